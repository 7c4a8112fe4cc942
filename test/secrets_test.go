package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope/trust"
)

// A canary is a secret that can be found again. Those of one run share nothing with each other.
type canary struct{ what, text string }

// forms are the ways in which a secret may have been written.
func (c canary) forms() []string {
	b := []byte(c.text)
	h := sha256.Sum256(b)
	return []string{
		strings.TrimPrefix(c.text, "gmt_"), url.QueryEscape(c.text), hex.EncodeToString(b), hex.EncodeToString(h[:]),
		strings.TrimRight(base64.StdEncoding.EncodeToString(b), "="), base64.RawURLEncoding.EncodeToString(b),
		base64.RawStdEncoding.EncodeToString([]byte("user:" + c.text)), // as Basic authentication has it
	}
}

// A flight is all canaries, and all that was written while they were about.
type flight struct {
	t        *testing.T
	canaries []canary
	written  map[string]string // by where
}

// hatch makes a canary that looks like a token of ours.
func (f *flight) hatch(what string) string {
	f.t.Helper()
	b := make([]byte, 24)
	if _, err := rand.Read(b); err != nil {
		f.t.Fatal(err)
	}
	text := "gmt_Canary-" + base64.RawURLEncoding.EncodeToString(b)
	f.canaries = append(f.canaries, canary{what, text})
	return text
}

func (f *flight) wrote(where, text string) {
	f.written[where] += "\n" + text
}

// found names each canary that was seen outside, and where.
func (f *flight) found() (found []string) {
	for _, where := range slices.Sorted(maps.Keys(f.written)) {
		text := strings.ToLower(f.written[where])
		for _, c := range f.canaries {
			for i, form := range c.forms() {
				if at := strings.Index(text, strings.ToLower(form)); at >= 0 {
					found = append(found, fmt.Sprintf("%s, form %d, in %s: ...%q", c.what, i, where, text[max(0, at-120):at]))
				}
			}
		}
	}
	return found
}

// The search finds what is there, in every form.
func TestJudgeCanaries(t *testing.T) {
	f := &flight{t: t, written: map[string]string{}}
	f.hatch("the one")
	f.hatch("the other")
	for i, form := range f.canaries[0].forms() {
		f.written = map[string]string{"log": "before " + strings.ToUpper(form) + " behind"}
		if got := f.found(); len(got) == 0 || !strings.HasPrefix(got[0], "the one, form ") {
			t.Errorf("form %d: %q", i, got)
		}
	}
	f.written = map[string]string{"log": f.canaries[0].text[:20]}
	if got := f.found(); len(got) != 0 {
		t.Errorf("found what is not there: %q", got)
	}
}

// TestSecretsCanary gives a gateway process a recognisable secret wherever it takes one, sends it others where they do not
// belong, breaks its configuration, has it dump its goroutines, and looks for them in all that it wrote: answers, log,
// dump, metrics, store, a Consul server's snapshot, config show and validate, doctor. What a control says must be there shows that it looked.
func TestSecretsCanary(t *testing.T) {
	dir := t.TempDir()
	f := &flight{t: t, written: map[string]string{}}

	// A Nomad that shows whether the secret reaches whom it is for, and says nothing.
	var mu sync.Mutex
	nomadSaw := map[string]bool{}
	nomad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		nomadSaw[r.Header.Get("X-Nomad-Token")] = true
		w.WriteHeader(http.StatusForbidden)
	}))
	defer nomad.Close()

	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots := f.certificate(cert, key)
	operator, reader, gone := f.hatch("gateway.auth.token"), f.hatch("a token of the list"), f.hatch("an expired token")
	inSHA := f.hatch("a token in the place of its hash")
	env := []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "GOTRACEBACK=all", "GW_SECRET=" + operator}
	for _, name := range []string{"GATEMESH_TOKEN", "OPENCLAW_GATEWAY_TOKEN", "CONSUL_HTTP_TOKEN", "NOMAD_TOKEN", "SLACK_BOT_TOKEN", "DEEP_SECRET", "ANTHROPIC_API_KEY"} {
		env = append(env, name+"="+f.hatch("variable "+name))
	}
	env = append(env, "CONSUL_HTTP_AUTH=user:"+f.hatch("variable CONSUL_HTTP_AUTH"))
	nomadToken := f.hatch("runner.nomad.token")
	// These two have a form of their own, or the gateway does not start.
	enroll := trust.NewToken("lone", time.Now().Add(time.Hour), trust.NewKey().Public()).Secret()
	channelKey := base64.StdEncoding.EncodeToString([]byte("canary-channel-key-of-32-bytes!!"))
	f.canaries = append(f.canaries, canary{"mesh.channelKeys", channelKey}, canary{"mesh.trust.enrollToken", enroll[strings.LastIndexByte(enroll, '.')+1:]})
	seed := make([]byte, 32)
	if _, err := rand.Read(seed); err != nil {
		t.Fatal(err)
	}
	f.canaries = append(f.canaries, canary{"variable GATEMESH_GATEWAY_KEY", base64.StdEncoding.EncodeToString(seed)})
	env = append(env, "GATEMESH_GATEWAY_KEY="+base64.StdEncoding.EncodeToString(seed))
	entry := func(name, role, token, more string) string {
		h := sha256.Sum256([]byte(token))
		return fmt.Sprintf("{ name: %q, role: %q, sha256: %q%s }", name, role, hex.EncodeToString(h[:]), more)
	}
	config := fmt.Sprintf(`{
  mesh: { gateway: "lone", store: "local", dataDir: %q, log: { level: "debug", json: true }, consul: { token: %q }, trust: { enrollToken: %q }, channelKeys: [%q] },
  gateway: {
    port: 0, tls: { enabled: true, certPath: %q, keyPath: %q },
    auth: { token: "${GW_SECRET}", password: %q, tokens: [ %s, %s ], rateLimit: { maxAttempts: 1000 } },
    http: { headers: { authorization: %q } },
  },
  env: { FREE: %q, vars: { ALSO: %q } },
  models: { providers: { p: { apiKey: %q, baseUrl: "https://models.example/v1" }, q: { apiKey: "${ANTHROPIC_API_KEY}", baseUrl: "https://models.example/v1" } } },
  update: { feed: "https://user:%s@models.example" },
  channels: { slack: { token: "${SLACK_BOT_TOKEN}", botToken: %q, appToken: %q, enabled: false, accounts: { ops: { token: %q, botToken: %q, appToken: %q } } } },
  mcp: { servers: { s: { command: "sh", env: { ANY: %q }, args: ["-c", "echo $ANY >&2; exit 1", "${DEEP_SECRET}"], clientSecret: %q },
    h: { url: "http://127.0.0.1:1/mcp", headers: { Authorization: %q } } } },
  agents: { list: [
    { id: "echo", runner: { kind: "echo", options: { token: %q } } },
    { id: "far", runner: { kind: "a2a", url: "http://127.0.0.1:1/a2a/far", token: %q } },
    { id: "checks", capabilities: ["infra.check"], runner: { kind: "checks", checks: ["nomad"], nomad: { address: %q, token: %q } } },
  ] },
}
`, filepath.Join(dir, "data"), f.hatch("mesh.consul.token"), enroll, channelKey, cert, key, f.hatch("gateway.auth.password"),
		entry("viewer", "read", reader, ""), entry("gone", "operate", gone, `, expires: "2020-01-01T00:00:00Z"`), f.hatch("gateway.http.headers"),
		f.hatch("env.FREE"), f.hatch("env.vars.ALSO"), f.hatch("models apiKey"), f.hatch("a password in a URL"), f.hatch("channels.slack.botToken"), f.hatch("channels.slack.appToken"),
		f.hatch("channels.slack.accounts.ops.token"), f.hatch("channels.slack.accounts.ops.botToken"), f.hatch("channels.slack.accounts.ops.appToken"),
		f.hatch("mcp env"), f.hatch("mcp clientSecret"), f.hatch("mcp headers"), f.hatch("runner.options.token"), f.hatch("runner.token"), nomad.URL, nomadToken)
	file := filepath.Join(dir, "openclaw.json")
	save := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save(config)
	command := func(env []string, args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, builtBinary(t), args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		f.wrote("gatemesh "+strings.Join(args[:2], " "), string(out))
	}
	command(env, "config", "show", "--config", file)
	command(env, "config", "show", "--config", file, "--json")
	command(env, "config", "validate", "--config", file)
	command(env, "config", "validate", "--config", file, "--json")
	command(env, "config", "reference")
	f.everyKey(f.written["gatemesh config reference"], f.written["gatemesh config show"])

	// Mistakes with a secret beside, or in, them.
	broken := map[string]string{
		"port":     strings.Replace(config, "port: 0", `port: "${GW_SECRET}"`, 1),
		"bind":     strings.Replace(config, "port: 0", `bind: "${GW_SECRET}"`, 1),
		"mode":     strings.Replace(config, "port: 0", `mode: "${GW_SECRET}"`, 1),
		"role":     strings.Replace(config, `role: "read"`, `role: "${GW_SECRET}"`, 1),
		"name":     strings.Replace(config, `name: "viewer"`, `name: "${GW_SECRET}"`, 1),
		"expires":  strings.Replace(config, `"2020-01-01T00:00:00Z"`, `"${GW_SECRET}"`, 1),
		"origin":   strings.Replace(config, "port: 0", `controlUi: { allowedOrigins: ["${GW_SECRET}"] }`, 1),
		"hash":     regexp.MustCompile(`sha256: "[0-9a-f]+"`).ReplaceAllString(config, fmt.Sprintf("sha256: %q", inSHA)),
		"no hash":  regexp.MustCompile(`sha256: "[0-9a-f]+"`).ReplaceAllString(config, fmt.Sprintf("sha256: %q", strings.TrimPrefix(inSHA, "gmt_"))),
		"same":     strings.Replace(config, "tokens: [", "tokens: [ "+entry("same", "read", operator, "")+",", 1),
		"unclosed": config[:strings.Index(config, "appToken: ")+len("appToken: ")+20],
		"comma":    strings.Replace(config, ", appToken", " appToken", 1),
		"space":    strings.Replace(config, "${GW_SECRET}", "${GW_SECRET} ", 1),
	}
	for _, what := range slices.Sorted(maps.Keys(broken)) {
		save(broken[what])
		before := len(f.written["gatemesh config validate"])
		command(env, "config", "validate", "--config", file)
		if !strings.Contains(f.written["gatemesh config validate"][before:], "openclaw.json:") {
			t.Errorf("broken by %s, and nothing was said: %s", what, f.written["gatemesh config validate"][before:])
		}
	}
	save(config)

	g := f.start(env, file)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	statuses := map[int]int{}
	call := func(method, path, body string, change func(*http.Request)) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, g.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		change(r)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		statuses[resp.StatusCode]++
		f.wrote("answers", fmt.Sprint(resp.Status, resp.Header, string(b)))
	}
	bearer := func(token string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
	}
	with := func(token string, more func(*http.Request)) func(*http.Request) {
		return func(r *http.Request) { bearer(token)(r); more(r) }
	}
	const control = "words-of-the-control-message"
	call("POST", "/v1/messages", `{"to":"echo","text":"`+control+`","wait":"replied"}`, bearer(operator))
	call("POST", "/v1/messages", `{"to":"checks","text":"all well?","capability":"infra.check","wait":"replied"}`, bearer(operator))
	call("POST", "/v1/messages", `{"to":"echo","text":"x"}`, bearer(reader))
	for _, path := range []string{"/", "/health", "/ready", "/metrics", "/v1/status", "/v1/messages", "/v1/agents", "/v1/gateways", "/v1/inboxes", "/v1/deadletters", "/v1/queues", "/v1/state/events"} {
		call("GET", path, "", bearer(reader))
		call("GET", path, "", bearer(gone))
		call("GET", path, "", bearer(f.hatch("a wrong token")))
	}
	lost := f.hatch("a token in the wrong place")
	for _, path := range []string{
		"/v1/agents?token=", "/v1/agents?access_token=", "/v1/events?token=", "/v1/deadletters?agent=echo&token=", "/metrics?token=", "/", "/v1/", "/v1/nothing/", "/v1/messages/",
		"/v1/inboxes/", "/v1/fanouts/", "/v1/queues/", "/dashboard/", "/v1//agents?token=", "/%2e%2e/v1/agents?token=",
	} {
		call("GET", path+lost, "", func(*http.Request) {})
		call("GET", path+lost, "", bearer(operator))
	}
	for _, h := range []string{"Cookie", "X-Api-Key", "X-Auth-Token", "User-Agent", "Referer", "Traceparent", "Sec-WebSocket-Protocol", "Proxy-Authorization", "X-Forwarded-For"} {
		call("GET", "/v1/agents", "", func(r *http.Request) { r.Header.Set(h, lost) })
		call("POST", "/v1/messages", `{"to":"echo","text":"x"}`, with(operator, func(r *http.Request) { r.Header.Set(h, lost) }))
	}
	call("GET", "/v1/agents", "", func(r *http.Request) { r.SetBasicAuth("user", lost) })
	call("GET", "/v1/agents", "", func(r *http.Request) { r.Header.Set("Authorization", lost) })
	call("POST", "/v1/messages", `{"to":"echo","text":"x"}`, with(operator, func(r *http.Request) { r.Header.Set("Origin", "https://"+lost) }))
	for _, h := range []string{"Sec-WebSocket-Protocol", "Origin", "Sec-WebSocket-Key"} {
		call("GET", "/v1/events", "", func(r *http.Request) {
			if h != "Sec-WebSocket-Protocol" {
				bearer(reader)(r)
			}
			for k, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} {
				r.Header.Set(k, v)
			}
			r.Header.Set(h, map[string]string{"Sec-WebSocket-Protocol": "gatemesh.v1, gatemesh.token." + base64.RawURLEncoding.EncodeToString([]byte(lost)), "Origin": "https://" + lost, "Sec-WebSocket-Key": lost}[h])
		})
	}
	call("POST", "/v1/messages", `{"to":"echo","text":"x","token":"`+lost+`"}`, bearer(operator))
	call("POST", "/v1/messages", `{"to":"echo" "`+lost+`"`, bearer(operator))
	call("POST", "/v1/messages", `{"to":{"a":"`+lost+`"},"text":"x"}`, bearer(operator))
	for _, text := range []string{"GET /v1/agents?token=" + lost + " HTTP/9.9\r\n\r\n", lost + " / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.1\r\n" + lost + "\r\n\r\n", "GET / HTTP/1.1\r\nConnection: close\r\nHost: " + lost + "/x\r\n\r\n"} {
		f.wrote("answers", g.raw(text, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	}
	f.wrote("answers", g.raw("GET /v1/agents?token="+lost+" HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "+operator+"\r\n\r\n", nil)) // to a port that speaks TLS
	for _, want := range []int{200, 400, 401, 403, 404} {
		if statuses[want] == 0 {
			t.Errorf("no answer was a %d: %v", want, statuses)
		}
	}
	clientEnv := func(token string) []string {
		return append(slices.Clone(env), "GATEMESH_ADDR="+g.url, "GATEMESH_CACERT="+cert, "GATEMESH_TOKEN="+token)
	}
	for _, token := range []string{operator, reader, gone, lost} {
		command(clientEnv(token), "doctor", "--config", file)
		command(clientEnv(token), "doctor", "--json", "--config", file)
		command(clientEnv(token), "ask", "--to", "echo", "hello")
		command(clientEnv(token), "message", "list")
		command(clientEnv(token), "inbox", "echo")
	}

	// Reloads that fail, and one that does not.
	for _, what := range []string{"hash", "comma", "role"} {
		save(broken[what])
		g.waitFor("configuration not reloaded")
	}
	save(strings.Replace(config, "maxAttempts: 1000", "maxAttempts: 999", 1))
	g.waitFor("configuration reloaded")
	f.onConsul(config, env, roots, operator, control)
	// A key that is half written is spoken of, and not shown.
	if err := os.WriteFile(key, []byte("-----BEGIN PRIVATE KEY-----\n"+f.hatch("half a key")+"\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client.CloseIdleConnections()
	call("GET", "/v1/status", "", bearer(reader))

	g.quit()
	f.wrote("log and dump", g.log.String())
	if err := filepath.WalkDir(filepath.Join(dir, "data"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		f.wrote("store", string(b))
		return err
	}); err != nil {
		t.Fatal(err)
	}

	// That it was looked at, and that the secrets were in use.
	for where, want := range map[string][]string{
		"log and dump": {`"request refused"`, "wrong_token", "expired_token", "the new certificate cannot be used", "SIGQUIT: quit", "\ngoroutine 1 "},
		"answers":      {control, "gatemesh_http_denied_total", "the token viewer has the role read", "has expired"}, "store": {control},
		"gatemesh config show": {"[redacted]", "viewer"}, "gatemesh doctor --config": {"accepted: viewer, role read"}, "gatemesh doctor --json": {"viewer"},
		"gatemesh ask --to": {"hello"}, "gatemesh message list": {"echo"},
	} {
		for _, w := range want {
			if !strings.Contains(f.written[where], w) {
				t.Errorf("%s does not hold %q", where, w)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if !nomadSaw[nomadToken] {
		t.Error("Nomad's token never reached Nomad: it was not in use")
	}
	for _, line := range f.found() {
		t.Error(line)
	}
}

// everyKey looks whether every key of the reference that is secret was planted: show has it, hidden.
func (f *flight) everyKey(reference, show string) {
	f.t.Helper()
	keys := regexp.MustCompile("(?m)^\\| `([^`]+)` .* Secret\\.").FindAllStringSubmatch(reference, -1)
	if len(keys) < 8 {
		f.t.Errorf("only %d keys are secret: %q", len(keys), keys)
	}
	for _, k := range keys {
		path := strings.NewReplacer(`<name>`, `[^.]+`, `\[\]`, `\[\d+\]`, `agents\.defaults\.`, `agents\.[^ ]*`).Replace(regexp.QuoteMeta(k[1]))
		if !regexp.MustCompile(`(?m)^` + path + `(\.\w+)? = \[?"\[redacted\]"`).MatchString(show) {
			f.t.Errorf("%s is secret, and was not planted: give it a canary in this test", k[1])
		}
	}
}

// certificate writes one for 127.0.0.1 and its key; each line of the key is a canary.
func (f *flight) certificate(certFile, keyFile string) *x509.CertPool {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.t.Fatal(err)
	}
	certText := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	keyText := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	for _, line := range bytes.Fields(keyText) {
		if len(line) > 40 {
			f.canaries = append(f.canaries, canary{"a line of the private key", string(line)})
		}
	}
	for file, text := range map[string][]byte{certFile: certText, keyFile: keyText} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certText)
	return roots
}

// A cage is a gateway process and all that it writes.
type cage struct {
	t   *testing.T
	cmd *exec.Cmd
	url string
	log *output
	at  int // where waitFor looks on
	end chan struct{}
}

// output is what a process writes; grown is closed and replaced with every write.
type output struct {
	mu    sync.Mutex
	b     bytes.Buffer
	grown chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.grown)
	o.grown = make(chan struct{})
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (f *flight) start(env []string, file string) *cage {
	f.t.Helper()
	g := &cage{t: f.t, log: &output{grown: make(chan struct{})}, end: make(chan struct{})}
	g.cmd = exec.Command(builtBinary(f.t), "gateway", "--config", file)
	g.cmd.Env, g.cmd.Stdout, g.cmd.Stderr = env, g.log, g.log
	if err := g.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() {
		_ = g.cmd.Wait()
		close(g.end)
	}()
	f.t.Cleanup(func() {
		_ = g.cmd.Process.Kill()
		<-g.end
	})
	var up struct{ URL string }
	if err := json.Unmarshal([]byte(g.waitFor("gateway is up")), &up); err != nil || up.URL == "" {
		f.t.Fatalf("where it listens: %v", err)
	}
	g.url = up.URL
	return g
}

// waitFor returns the next line of the log that holds text.
func (g *cage) waitFor(text string) string {
	g.t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for {
		g.log.mu.Lock()
		all, grown := g.log.b.String(), g.log.grown
		g.log.mu.Unlock()
		for line := range strings.Lines(all[g.at:]) {
			if !strings.HasSuffix(line, "\n") {
				break
			}
			g.at += len(line)
			if strings.Contains(line, text) {
				return line
			}
		}
		select {
		case <-grown:
		case <-g.end:
			g.t.Fatalf("ended without %q:\n%s", text, g.log)
		case <-deadline.C:
			g.t.Fatalf("no line with %q:\n%s", text, g.log)
		}
	}
}

// raw says text, over TLS or not, and returns all that comes.
func (g *cage) raw(text string, conf *tls.Config) string {
	g.t.Helper()
	addr := strings.TrimPrefix(g.url, "https://")
	d := net.Dialer{Timeout: time.Minute}
	var conn net.Conn
	var err error
	if conf != nil {
		conn, err = (&tls.Dialer{NetDialer: &d, Config: conf}).DialContext(g.t.Context(), "tcp", addr)
	} else {
		conn, err = d.DialContext(g.t.Context(), "tcp", addr)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		g.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		g.t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		g.t.Fatalf("no end after %q", text)
	}
	return string(b)
}

// quit has the process dump its goroutines, and end.
func (g *cage) quit() {
	g.t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		g.t.Fatal(err)
	}
	select {
	case <-g.end:
	case <-time.After(time.Minute):
		g.t.Fatal("still there after SIGQUIT")
	}
}
