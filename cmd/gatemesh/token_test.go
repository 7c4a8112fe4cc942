package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTokenCreate: what it prints goes into the configuration as it is, and the token comes in.
func TestTokenCreate(t *testing.T) {
	dir := t.TempDir()
	r := gatemesh(t, nil, "", "token", "create", "--name", "anna", "--role", "send", "--expires", "720h")
	token, line, ok := strings.Cut(strings.TrimSpace(r.out), "\n")
	if r.code != exitOK || r.errOut != "" || !ok || !strings.HasPrefix(token, "gmt_") || strings.Contains(line, token) {
		t.Fatalf("status %d:\n%s%s", r.code, r.out, r.errOut)
	}
	made := parse[newToken](t, must(t, nil, "token", "create", "--name", "viewer", "--role", "read", "--json"))
	sum := sha256.Sum256([]byte(made.Token))
	if made.Entry != (tokenEntry{Name: "viewer", Role: "read", SHA256: hex.EncodeToString(sum[:])}) {
		t.Errorf("%+v", made)
	}
	r = gatemesh(t, nil, made.Token+"\r\n", "token", "hash")
	if r.out != made.Entry.SHA256+"\n" {
		t.Errorf("token hash: %s%s", r.out, r.errOut)
	}
	r = gatemesh(t, nil, made.Token, "token", "hash", "--json")
	if r.out != fmt.Sprintf("{\"sha256\":%q}\n", made.Entry.SHA256) {
		t.Errorf("token hash --json: %s%s", r.out, r.errOut)
	}

	config := func(lines ...string) string {
		return strings.Replace(daemonConfig(fmt.Sprintf("store: 'local', dataDir: %q", filepath.Join(dir, "data")), "info"),
			`auth: { token: "the-token-of-this-test" }`, "auth: { tokens: [ "+strings.Join(lines, " ")+" ] }", 1)
	}
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), config(line, made.Entry.line()))
	p, env := startDaemon(t, file)
	served(t, append(env, "GATEMESH_TOKEN="+made.Token), "echo")
	if out := must(t, append(env, "GATEMESH_TOKEN="+token), "ask", "--to", "echo", "hello"); out != "hello\n" {
		t.Errorf("answer %q", out)
	}
	// One line says which role is wanted and which is there.
	for _, args := range [][]string{{"ask", "--to", "echo", "hello"}, {"deadletter", "purge", "--all"}} {
		r := gatemesh(t, append(env, "GATEMESH_TOKEN="+made.Token), "", args...)
		oneLine(t, r)
		if r.code != exitUsage || !strings.Contains(r.errOut, "the token viewer has the role read") || !strings.Contains(r.errOut, "GATEMESH_TOKEN") {
			t.Errorf("%q with read: status %d, %s", args, r.code, r.errOut)
		}
	}
	found, _ := examine(t, append(env, "GATEMESH_TOKEN="+made.Token), "--config", file)
	wantFindings(t, found, map[string]string{"gateway": statusOK, "token": statusOK, "ready": statusOK, "config": statusOK})
	if found["token"].Detail != "accepted: viewer, role read" {
		t.Errorf("doctor: %+v", found["token"])
	}

	// Replaced while it runs, by the file alone; a stream of the old one ends.
	old := launch(t, append(env, "GATEMESH_TOKEN="+token), "events", "--replay", "1")
	_, at := old.wait(0, "")
	writeFile(t, file, config(made.Entry.line()))
	old.wait(at, "may not listen any more")
	if code := old.exit(); code != exitUnavailable {
		t.Errorf("the stream of the old token: status %d", code)
	}
	if r := gatemesh(t, append(env, "GATEMESH_TOKEN="+token), "", "agents"); r.code != exitUsage {
		t.Errorf("the old token: status %d", r.code)
	}
	must(t, append(env, "GATEMESH_TOKEN="+made.Token), "agents")
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
	if text := p.text(); strings.Contains(text, token) || strings.Contains(text, made.Token) || strings.Contains(text, made.Entry.SHA256) {
		t.Error("the log holds a token or its hash")
	}
}

func TestTokenRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		args []string
		says string
	}{
		"no name":        {"", []string{"create", "--role", "read"}, "--name"},
		"bad name":       {"", []string{"create", "--role", "read", "--name", "Anna B"}, "--name"},
		"no role":        {"", []string{"create", "--name", "anna"}, "read, send, operate"},
		"bad role":       {"", []string{"create", "--name", "anna", "--role", "admin"}, "read, send, operate"},
		"bad expiry":     {"", []string{"create", "--name", "anna", "--role", "read", "--expires", "soon"}, "--expires"},
		"past expiry":    {"", []string{"create", "--name", "anna", "--role", "read", "--expires", "2020-01-01T00:00:00Z"}, "over already"},
		"nothing":        {"", []string{"hash"}, "0 characters"},
		"short":          {"hunter22\n", []string{"hash"}, "at least 22"},
		"white space":    {strings.Repeat("hunter22", 5) + " x\n", []string{"hash"}, "white space"},
		"too long":       {strings.Repeat("hunter22", 100), []string{"hash"}, "at most"},
		"as an argument": {"", []string{"hash", "hunter22"}, "unknown command"},
		"which":          {"", nil, "needs one of: create, hash"},
	} {
		r := gatemesh(t, nil, tc.in, append([]string{"token"}, tc.args...)...)
		oneLine(t, r)
		if r.code != exitUsage || r.out != "" || !strings.Contains(r.errOut, tc.says) || name != "as an argument" && strings.Contains(r.errOut, "hunter22") {
			t.Errorf("%s: status %d, %s%s", name, r.code, r.out, r.errOut)
		}
	}
	if got, err := expiry("36h", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)); got != "2026-01-02T12:00:00Z" || err != nil {
		t.Errorf("expiry: %s, %v", got, err)
	}
}

// TestTLSClient: https with GATEMESH_CACERT, and one line for each way to get it wrong.
func TestTLSClient(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeCertificate(t, cert, key)
	text := daemonConfig(fmt.Sprintf("store: 'local', dataDir: %q", filepath.Join(dir, "data")), "info")
	text = strings.Replace(text, "port: 0,", fmt.Sprintf("port: 0, bind: 'lan', tls: { enabled: true, certPath: %q, keyPath: %q },", cert, key), 1)
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), text)
	start := func(tls string) (*proc, string) {
		t.Helper()
		p := launch(t, nil, "gateway", "--config", file)
		line, _ := p.wait(0, "gateway is up", tls)
		url := parse[struct{ URL string }](t, line).URL
		return p, url[strings.LastIndex(url, ":")+1:]
	}
	p, port := start(`"tls":true`)
	if strings.Contains(p.text(), "without TLS") {
		t.Errorf("warned although there is TLS:\n%s", p.text())
	}
	env := []string{"GATEMESH_ADDR=https://127.0.0.1:" + port, "GATEMESH_TOKEN=the-token-of-this-test", "GATEMESH_CACERT=" + cert}
	served(t, env, "echo")
	if out := must(t, env, "ask", "--to", "echo", "hello"); out != "hello\n" {
		t.Errorf("answer %q", out)
	}
	stream := launch(t, env, "events", "--replay", "1")
	stream.wait(0, "echo")
	found, _ := examine(t, env, "--config", file)
	wantFindings(t, found, map[string]string{"gateway": statusOK, "token": statusOK, "tls": "", "gateway.bind": ""})

	rubbish := writeFile(t, filepath.Join(dir, "rubbish.pem"), "rubbish")
	for name, tc := range map[string]struct {
		set  string
		code int
		says string
	}{
		"no CA":      {"GATEMESH_CACERT=", exitUnavailable, "GATEMESH_CACERT names"},
		"no such CA": {"GATEMESH_CACERT=" + filepath.Join(dir, "none.pem"), exitUsage, "GATEMESH_CACERT"},
		"rubbish":    {"GATEMESH_CACERT=" + rubbish, exitUsage, "no certificate in PEM"},
		"plain HTTP": {"GATEMESH_ADDR=http://127.0.0.1:" + port, exitUnavailable, "speaks TLS: write https://"},
	} {
		for _, args := range [][]string{{"agents"}, {"events"}} {
			r := gatemesh(t, append(env, tc.set), "", args...)
			oneLine(t, r)
			if r.code != tc.code || !strings.Contains(r.errOut, tc.says) {
				t.Errorf("%s, %s: status %d, %s", name, args, r.code, r.errOut)
			}
		}
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}

	// Without TLS the same gateway is warned once, and so is who asks the doctor; https to it is explained.
	writeFile(t, file, strings.Replace(text, "enabled: true", "enabled: false", 1))
	p, port = start(`"tls":false`)
	env[0] = "GATEMESH_ADDR=https://127.0.0.1:" + port
	if n := strings.Count(p.text(), "without TLS"); n != 1 {
		t.Errorf("warned %d times:\n%s", n, p.text())
	}
	r := gatemesh(t, env, "", "agents")
	oneLine(t, r)
	if r.code != exitUnavailable || !strings.Contains(r.errOut, "does not speak TLS: write http://") {
		t.Errorf("https to plain HTTP: status %d, %s", r.code, r.errOut)
	}
	found, _ = examine(t, append(env, "GATEMESH_ADDR=http://127.0.0.1:"+port), "--config", file)
	wantFindings(t, found, map[string]string{"gateway.bind": statusWarn, "gateway": statusOK, "tls": ""})
}

// TestDoctorFindsOpenSecrets: a file with a secret is not for everybody, one that only names a variable is.
func TestDoctorFindsOpenSecrets(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeCertificate(t, cert, key)
	file := filepath.Join(dir, "openclaw.json")
	const token = "0123456789abcdef0123456789abcdef"
	env := []string{"GATEMESH_ADDR=http://127.0.0.1:1", "GW=" + token}
	tls := fmt.Sprintf("tls: { enabled: true, certPath: %q, keyPath: %q }", cert, key)
	for name, tc := range map[string]struct {
		text      string
		mode, key os.FileMode
		says      string
	}{
		"token":    {`{ gateway: { auth: { token: "` + token + `" } } }`, 0o644, 0o600, file},
		"ours":     {`{ gateway: { auth: { token: "` + token + `" } } }`, 0o640, 0o600, ""},
		"variable": {`{ gateway: { auth: { token: "${GW}" } } }`, 0o644, 0o600, ""},
		"key":      {`{ gateway: { ` + tls + ` } }`, 0o644, 0o644, key},
	} {
		writeFile(t, file, tc.text)
		for f, mode := range map[string]os.FileMode{file: tc.mode, key: tc.key} {
			if err := os.Chmod(f, mode); err != nil {
				t.Fatal(err)
			}
		}
		found, _ := examine(t, env, "--config", file)
		if got := found["secrets"]; got.Status == statusWarn != (tc.says != "") || !strings.Contains(got.Fix, tc.says) || strings.Contains(got.Detail, token) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// writeCertificate makes a certificate for 127.0.0.1 that signs itself.
func writeCertificate(t testing.TB, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	writeFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}
