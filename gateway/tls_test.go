package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// makeCertificate writes a certificate for 127.0.0.1 that signs itself, and its key.
func makeCertificate(t testing.TB, c TLSConfig, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
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
	for file, block := range map[string]*pem.Block{c.CertPath: {Type: "CERTIFICATE", Bytes: cert}, c.KeyPath: {Type: "PRIVATE KEY", Bytes: private}} {
		next := file + ".next"
		if err := os.WriteFile(next, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return pool
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	c := TLSConfig{Enabled: true, CertPath: filepath.Join(dir, "cert.pem"), KeyPath: filepath.Join(dir, "key.pem")}
	pool := makeCertificate(t, c, 1)
	cfg := parseNode(t, "lone", nil, "", echoAgent("bobby"))
	cfg.Gateway.TLS = c
	services := &catalog{Store: newStore(t)}
	n := startNode(t, cfg, Deps{Store: services})
	if !strings.HasPrefix(n.URL(), "https://127.0.0.1:") {
		t.Errorf("URL %s", n.URL())
	}
	if s, _ := services.get("openclaw-lone"); !strings.HasPrefix(s.HealthURL, "https://127.0.0.1:") {
		t.Errorf("the catalog's check: %s", s.HealthURL)
	}
	// serial makes a new connection and says whose certificate it saw.
	serial := func(roots *x509.CertPool, change func(*tls.Config)) (int64, error) {
		conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		if change != nil {
			change(conf)
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(within(t), http.MethodGet, "https://"+n.Addr().String()+"/v1/agents", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 {
			t.Errorf("%s %s", resp.Proto, resp.Status)
		}
		return resp.TLS.PeerCertificates[0].SerialNumber.Int64(), nil
	}
	want := func(what string, roots *x509.CertPool, want int64) {
		t.Helper()
		if got, err := serial(roots, nil); err != nil || got != want {
			t.Errorf("%s: certificate %d, want %d (%v)", what, got, want, err)
		}
	}
	want("at first", pool, 1)
	if _, err := serial(pool, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
	if _, err := serial(x509.NewCertPool(), nil); err == nil {
		t.Error("a client that does not know the certificate was served")
	}
	// HTTP to this port is answered so that people understand.
	if r := n.do(http.MethodGet, "/health", ""); r.status != http.StatusBadRequest || !strings.Contains(string(r.body), "HTTPS") {
		t.Errorf("plain HTTP: %d %s", r.status, r.body)
	}
	conn, _, err := websocket.Dial(within(t), "wss://"+n.Addr().String()+"/v1/events?replay=1", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}},
		HTTPHeader: http.Header{"Origin": {"https://" + n.Addr().String()}}, // as the page does
	})
	if err != nil {
		t.Fatal(err)
	}
	readEvent(t, conn)
	_ = conn.CloseNow()

	// Renewed while it runs; half a renewal, and rubbish, leave what was.
	pool = makeCertificate(t, c, 2)
	want("renewed", pool, 2)
	other := TLSConfig{CertPath: filepath.Join(dir, "other.pem"), KeyPath: filepath.Join(dir, "other-key.pem")}
	third := makeCertificate(t, other, 3)
	if err := os.Rename(other.CertPath, c.CertPath); err != nil {
		t.Fatal(err)
	}
	want("half renewed", pool, 2)
	want("half renewed, again", pool, 2)
	if got := strings.Count(n.log.String(), "the new certificate cannot be used"); got != 1 {
		t.Errorf("said %d times", got)
	}
	if err := os.Rename(other.KeyPath, c.KeyPath); err != nil {
		t.Fatal(err)
	}
	want("wholly renewed", third, 3)
	if err := os.Remove(c.KeyPath); err != nil {
		t.Fatal(err)
	}
	want("without its key", third, 3)
	if err := os.WriteFile(c.KeyPath, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	want("with rubbish", third, 3)
	pool = makeCertificate(t, c, 4)
	want("mended", pool, 4)

	cfg = parseNode(t, "lone", nil, "", echoAgent("bobby"))
	if _, restart, err := n.Reload(cfg); err != nil || !strings.Contains(strings.Join(restart, " "), "gateway.tls.enabled") {
		t.Errorf("switching it off: %v, %v", restart, err)
	}
}

func TestTLSRefusesToStart(t *testing.T) {
	dir := t.TempDir()
	cfg := parseNode(t, "lone", nil, "")
	cfg.Gateway.TLS = TLSConfig{Enabled: true, CertPath: filepath.Join(dir, "cert.pem"), KeyPath: filepath.Join(dir, "key.pem")}
	if _, err := New(cfg, Deps{Store: newStore(t)}); err == nil || !strings.Contains(err.Error(), "gateway.tls") || !strings.Contains(err.Error(), "cert.pem") {
		t.Errorf("without files: %v", err)
	}
}

// Who can be reached by others without TLS is told so once, as with whatever else is not wise.
func TestConfigWarnings(t *testing.T) {
	const strong = "0123456789abcdef0123456789abcdef"
	for name, tc := range map[string]struct{ doc, want string }{
		"nothing":      {`{}`, ""},
		"loopback":     {`{ gateway: { auth: { token: "` + strong + `" } } }`, ""},
		"another name": {`{ gateway: { bind: "127.0.0.2" } }`, ""},
		"open": {`{ gateway: { bind: "lan", auth: { token: "` + strong + `" } } }`,
			`c.json5:1:20: gateway.bind: "lan" without TLS: tokens and messages cross the network readable; set gateway.tls, or stay on loopback behind a proxy or Tailscale Serve that has it`},
		"around Tailscale": {`{ gateway: { bind: "lan", auth: { token: "` + strong + `" }, tls: { enabled: true, certPath: "a", keyPath: "b" }, tailscale: { mode: "serve" } } }`,
			`c.json5:1:152: gateway.tailscale.mode: "serve" hands requests to 127.0.0.1, and with gateway.bind "lan" the gateway can be reached around it, with a token but without Tailscale: say bind "loopback", or tailscale.mode "off"`},
		"open with TLS": {`{ gateway: { bind: "lan", auth: { token: "` + strong + `" }, tls: { enabled: true, certPath: "a", keyPath: "b" } } }`, ""},
		"off":           {`{ gateway: { tls: { certPath: "a", keyPath: "b" } } }`, `c.json5:1:19: gateway.tls: there is a certificate, but TLS is off: set gateway.tls.enabled`},
		"tokens for nobody": {`{ gateway: { auth: { mode: "none", tokens: [{ name: "ci", role: "read", sha256: "` + strong + strong + `" }] } } }`,
			`c.json5:1:28: gateway.auth.mode: there are tokens, but "none" lets everybody on this machine in without`},
		"short": {`{ gateway: { auth: { token: "hunter2" } } }`, `c.json5:1:29: gateway.auth.token: 7 characters can be guessed: make one with gatemesh token create`},
	} {
		cfg := mustParseConfig(t, tc.doc)
		cfg.Normalize()
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, w := range cfg.Warnings() {
			got = append(got, w.String())
		}
		if strings.Join(got, "\n") != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", name, strings.Join(got, "\n"), tc.want)
		}
	}
}
