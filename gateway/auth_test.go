package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// tokenOf makes an entry of the configuration, and its token.
func tokenOf(t testing.TB, name, role string) (TokenConfig, string) {
	t.Helper()
	token := NewToken()
	sum, err := HashToken(token)
	if err != nil {
		t.Fatal(err)
	}
	return TokenConfig{Name: name, Role: role, SHA256: sum}, token
}

// withTokens is a configuration whose API has these tokens; nobody is limited.
func withTokens(t testing.TB, tokens ...TokenConfig) *Config {
	t.Helper()
	c := parseNode(t, "lone", nil, "", echoAgent("bobby"))
	c.Gateway.Auth = AuthConfig{Mode: "token", Tokens: tokens, RateLimit: RateLimitConfig{MaxAttempts: 10000}}
	return c
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Del("Authorization")
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
	}
}

// Every route has a role, is described, and lets in who has the role or a greater one, and nobody else.
func TestRoutesHaveRoles(t *testing.T) {
	var tokens []TokenConfig
	given := map[role]string{}
	for _, name := range Roles() {
		c, token := tokenOf(t, "the-"+name, name)
		tokens = append(tokens, c)
		given[roleNamed(name)] = token
	}
	n := startNode(t, withTokens(t, tokens...), Deps{Store: newStore(t)})
	doc, err := os.ReadFile("api_types.go")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, rt := range n.routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		path = strings.TrimSuffix(path, "{$}")
		if rt.role == roleNobody {
			t.Errorf("%s has no role", rt.pattern)
		}
		if rt.role == roleOpen {
			open = append(open, rt.pattern)
		} else if method == http.MethodGet && rt.role != roleRead && path != "/v1/webchat" || method != http.MethodGet && rt.role == roleRead {
			t.Errorf("%s needs the role %s", rt.pattern, rt.role)
		}
		if !regexp.MustCompile(`(?m)^//\t`+method+` +`+regexp.QuoteMeta(path)+` `).Match(doc) && path != "/dashboard/" && method != http.MethodPut && rt.pattern != "DELETE /v1/state/focus" {
			t.Errorf("%s is not described in api_types.go", rt.pattern)
		}
		url := regexp.MustCompile(`\{[a-z]+\}`).ReplaceAllString(path, "x")
		if r := n.do(method, url, "", bearer("")); (r.status == http.StatusUnauthorized) != (rt.role != roleOpen) {
			t.Errorf("%s without a token: %d", rt.pattern, r.status)
		}
		for has, token := range given {
			r := n.do(method, url, "", bearer(token))
			if refused := r.status == http.StatusForbidden; refused == has.may(rt.role) || r.status == http.StatusUnauthorized {
				t.Errorf("%s with the role %s: %d %s", rt.pattern, has, r.status, r.body)
			} else if refused {
				want := fmt.Sprintf("this needs the role %s, and the token the-%s has the role %s", rt.role, has, has)
				if e := r.err(t); e.Code != CodeRole || e.Message != want || !strings.Contains(r.header.Get("WWW-Authenticate"), "insufficient_scope") {
					t.Errorf("%s: %+v", rt.pattern, e)
				}
			}
		}
	}
	if want := []string{"GET /health", "GET /health/store", "GET /ready", "GET /metrics", "GET /{$}", "GET /chat", "GET /dashboard/"}; !slices.Equal(open, want) {
		t.Errorf("open to everybody: %q", open)
	}
	// However a path is written, it is the same route, or none.
	for _, path := range []string{"/v1//agents", "//v1/agents", "/v1/../v1/agents", "/v1/%61gents", "/./v1/nothing", "/v1", "/v1/"} {
		n.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		if r := n.do(http.MethodGet, path, "", bearer("")); r.status != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d", path, r.status)
		}
	}
	if roleNobody.may(roleNobody) || roleOperate.may(roleNobody) || !roleOpen.may(roleOpen) || roleOpen.may(roleRead) {
		t.Error("the order of roles")
	}
	var st StatusResponse
	n.do(http.MethodGet, "/v1/status", "", bearer(given[roleSend])).into(t, &st)
	if st.Caller != "the-send" || st.Role != "send" {
		t.Errorf("status: %+v", st)
	}
}

// A token is replaced with both in force for a while; then the old one's stream is closed, and the new one's is
// not.
func TestTokenRotation(t *testing.T) {
	old, oldToken := tokenOf(t, "ci-2026", "send")
	next, nextToken := tokenOf(t, "ci-2027", "send")
	n := startNode(t, withTokens(t, old), Deps{Store: newStore(t)})
	reload := func(tokens ...TokenConfig) {
		t.Helper()
		changed, restart, err := n.Reload(withTokens(t, tokens...))
		if err != nil || len(restart) > 0 || strings.Join(changed, " ") != "gateway.auth.tokens" {
			t.Fatalf("reload: %v, %v, %v", changed, restart, err)
		}
	}
	status := func(token string) int { return n.do(http.MethodGet, "/v1/agents", "", bearer(token)).status }
	stream := func(token string) *websocket.Conn {
		n.token = token
		return n.stream("")
	}
	if status(oldToken) != 200 || status(nextToken) != 401 {
		t.Fatal("before")
	}
	before := stream(oldToken)
	reload(old, next)
	if status(oldToken) != 200 || status(nextToken) != 200 {
		t.Error("both are in force")
	}
	after := stream(nextToken)
	reload(next)
	if status(oldToken) != 401 || status(nextToken) != 200 {
		t.Error("only the new one is in force")
	}
	if err := goodbye(t, before); websocket.CloseStatus(err) != websocket.StatusPolicyViolation || !strings.Contains(err.Error(), "may not listen any more") {
		t.Errorf("the old one's stream: %v", err)
	}
	st := n.send(SendRequest{To: "bobby", Text: text("x")})
	for readEvent(t, after).MessageID != st.MessageID {
	}

	// A smaller role takes effect at once; it may still listen.
	next.Role = "read"
	reload(next)
	if r := n.do(http.MethodPost, "/v1/messages", `{"to":"bobby","text":"x"}`); r.status != http.StatusForbidden {
		t.Errorf("with the smaller role: %d", r.status)
	}
	// A mistake changes nothing.
	bad := next
	bad.SHA256 = "x"
	if _, _, err := n.Reload(withTokens(t, bad)); err == nil || strings.Contains(err.Error(), `"x"`) {
		t.Errorf("reload of a bad hash: %v", err)
	}
	if status(nextToken) != 200 {
		t.Error("after the refused reload")
	}
	// Whoever listened as one of all is one of nobody now.
	cfg := withTokens(t)
	cfg.Gateway.Auth.Mode = "none"
	if _, _, err := n.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	n.token = ""
	anybody := n.stream("")
	reloadMode, _, err := n.Reload(withTokens(t, next))
	if err != nil || !slices.Contains(reloadMode, "gateway.auth.mode") {
		t.Errorf("reload: %v, %v", reloadMode, err)
	}
	if err := goodbye(t, anybody); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("the stream of anybody: %v", err)
	}
}

// The drill: while clients send without a pause, every token is replaced twice. Nothing legitimate is refused, and
// the old tokens are dead.
func TestTokenRotationUnderLoad(t *testing.T) {
	const clients = 4
	c, token := tokenOf(t, "gen-0", "send")
	n := startNode(t, withTokens(t, c), Deps{Store: newStore(t)})
	var holding sync.RWMutex // a client holds it while it uses the token
	stop, answered := make(chan struct{}), make(chan struct{}, clients)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				holding.RLock()
				r := n.do(http.MethodPost, "/v1/messages", `{"to":"bobby","text":"x"}`, bearer(token))
				holding.RUnlock()
				if r.status != http.StatusAccepted {
					t.Errorf("refused: %d %s", r.status, r.body)
				}
				select {
				case answered <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	load := func() {
		for range 5 * clients {
			await(t, answered, "a request")
		}
	}
	var dead []string
	for gen := 1; gen <= 2; gen++ {
		next, nextToken := tokenOf(t, fmt.Sprint("gen-", gen), "send")
		load()
		if _, _, err := n.Reload(withTokens(t, c, next)); err != nil {
			t.Fatal(err)
		}
		load()
		holding.Lock()
		dead = append(dead, token)
		token = nextToken
		holding.Unlock()
		if _, _, err := n.Reload(withTokens(t, next)); err != nil {
			t.Fatal(err)
		}
		load()
		c = next
	}
	close(stop)
	wg.Wait()
	for _, token := range dead {
		if r := n.do(http.MethodGet, "/v1/status", "", bearer(token)); r.status != http.StatusUnauthorized {
			t.Errorf("an old token: %d", r.status)
		}
	}
}

// A stream that was let in while its token was taken away is closed as well: the reload looked for it before it
// was there.
func TestStreamOfATokenThatWentMeanwhile(t *testing.T) {
	c, _ := tokenOf(t, "ci", "read")
	n := startNode(t, withTokens(t, c), Deps{Store: newStore(t)})
	ghost := &caller{name: "gone", role: roleRead, hash: hashOf("gone")}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = n.getEvents(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, ghost)))
	}))
	defer s.Close()
	conn, _, err := websocket.Dial(within(t), s.URL, &websocket.DialOptions{HTTPClient: n.client})
	if err != nil {
		t.Fatal(err)
	}
	if err := goodbye(t, conn); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("the stream: %v", err)
	}
}

// goodbye reads to the end of a stream.
func goodbye(t testing.TB, c *websocket.Conn) (err error) {
	t.Helper()
	ctx := within(t)
	for err == nil {
		_, _, err = c.Read(ctx)
	}
	return err
}

func TestTokenExpires(t *testing.T) {
	c, token := tokenOf(t, "guest", "read")
	c.Expires = time.Now().Add(time.Hour).Format(time.RFC3339)
	n := startNode(t, withTokens(t, c), Deps{Store: newStore(t)})
	n.token = token
	var open *websocket.Conn
	for soon := time.Second; open == nil; soon *= 2 { // a slow machine may need longer to connect
		c.Expires = time.Now().Add(soon).Format(time.RFC3339Nano)
		if _, _, err := n.Reload(withTokens(t, c)); err != nil {
			t.Fatal(err)
		}
		open, _, _ = n.dial("", nil)
	}
	if err := goodbye(t, open); websocket.CloseStatus(err) != websocket.StatusPolicyViolation || !strings.Contains(err.Error(), "expired") {
		t.Errorf("the stream: %v", err)
	}
	r := n.do(http.MethodGet, "/v1/agents", "")
	if e := r.err(t); r.status != 401 || e.Message != "the token guest has expired: ask for its successor" {
		t.Errorf("%d %+v", r.status, e)
	}
	cfg := withTokens(t, c)
	cfg.Normalize()
	if w := cfg.Warnings(); len(w) != 1 || !strings.Contains(w[0].String(), "guest has expired") {
		t.Errorf("warnings: %v", w)
	}
}

// A gateway that others can reach never does without a token: not at the start, and not by a reload.
func TestOpenToOthers(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	s := newStore(t)
	n := newNode(t, parseNode(t, "open", nil, ""), Deps{Store: s, Listener: listen()})
	if err := n.Start(within(t)); err == nil || !strings.Contains(err.Error(), "needs a token") {
		t.Fatalf("start: %v", err)
	}
	c, token := tokenOf(t, "ci", "operate")
	n = startNode(t, withTokens(t, c), Deps{Store: s, Listener: listen()})
	open := withTokens(t)
	open.Gateway.Auth.Mode = "none"
	if _, _, err := n.Reload(open); err == nil || !strings.Contains(err.Error(), "goes on asking for a token") {
		t.Errorf("reload: %v", err)
	}
	for given, want := range map[string]int{"": 401, token: 200} {
		if r := n.do(http.MethodGet, "/v1/agents", "", bearer(given)); r.status != want {
			t.Errorf("after it: %d, want %d", r.status, want)
		}
	}
}

// Somebody guesses: they are stopped. Who holds a token that cannot be guessed is not, at the same address; a
// short one waits, and comes in again.
func TestGuessing(t *testing.T) {
	const short = "s3cret-t0ken"
	long, longToken := tokenOf(t, "ci", "read")
	cfg := withTokens(t, long)
	cfg.Gateway.Auth.Token = short
	cfg.Gateway.Auth.RateLimit = RateLimitConfig{MaxAttempts: 5, WindowMs: 10000}
	n := startNode(t, cfg, Deps{Store: newStore(t)})
	get := func(token string) response { return n.do(http.MethodGet, "/v1/agents", "", bearer(token)) }
	for range 20 { // who gives none guesses nothing
		if r := get(""); r.status != 401 && r.status != 429 {
			t.Fatalf("no token: %d", r.status)
		}
	}
	if r := get(""); r.status != 429 {
		t.Errorf("no token, again and again: %d", r.status)
	}
	if r := get(short); r.status != 200 {
		t.Errorf("the short token, while others give none: %d", r.status)
	}
	stopped := 0
	for i := range 20 {
		r := get(fmt.Sprint("guess-", i))
		if r.status != 429 {
			continue
		}
		stopped++
		if e := r.err(t); e.Code != CodeRateLimited || r.header.Get("Retry-After") == "" {
			t.Errorf("429: %+v, %v", e, r.header)
		}
	}
	if stopped < 10 {
		t.Errorf("%d of 20 guesses were stopped", stopped)
	}
	if r := get(longToken); r.status != 200 {
		t.Errorf("the long token: %d", r.status)
	}
	if r := get(short); r.status != 429 {
		t.Errorf("the short token, which might have been the next guess: %d", r.status)
	}
	deadline := within(t)
	for get(short).status != 200 { // each costs nothing
		if deadline.Err() != nil {
			t.Fatal("the short token is out for good")
		}
	}
	if m := n.do(http.MethodGet, "/metrics", "").body; !regexp.MustCompile(`\ngatemesh_http_denied_total\{reason="wrong_token"\} [5-9]`).Match(m) {
		t.Error("the metric does not count the wrong tokens")
	}
	if log := n.log.String(); strings.Contains(log, "guess-") || strings.Contains(log, short) || strings.Contains(log, longToken) {
		t.Error("the log shows what was given")
	}
}

func TestAttempts(t *testing.T) {
	var a attempts
	tr := tries{most: 3, window: 30 * time.Second}
	now := time.Now()
	no, yes := func() bool { return false }, func() bool { return true }
	judge := func(want time.Duration, addr string, right func() bool) {
		t.Helper()
		if got := a.judge(tr, addr, now, right); got.Round(time.Second) != want {
			t.Errorf("%s waits %s, want %s", addr, got, want)
		}
	}
	for range 3 {
		judge(0, "192.0.2.1:1", yes)
		judge(0, "192.0.2.1:1", no)
	}
	judge(10*time.Second, "192.0.2.1:2", func() bool { t.Error("asked although limited"); return true })
	judge(10*time.Second, "[::ffff:192.0.2.1]:2", no)
	judge(0, "192.0.2.2:1", no)
	now = now.Add(4 * time.Second)
	judge(6*time.Second, "192.0.2.1:1", no) // being told to wait costs nothing
	now = now.Add(6 * time.Second)
	judge(0, "192.0.2.1:1", yes)
	judge(0, "192.0.2.1:1", no)
	judge(10*time.Second, "192.0.2.1:1", no)

	for i := range 3 { // one /64 is one caller
		judge(0, fmt.Sprintf("[2001:db8::%d]:1", i), no)
	}
	judge(10*time.Second, "[2001:db8::ffff:1]:1", no)
	judge(0, "[2001:db8:0:1::1]:1", no)
	judge(0, "not an address", no)

	tr.exemptLoopback = true
	for range 10 {
		judge(0, "127.0.0.1:1", no)
		judge(0, "[::1]:1", no)
	}
	// A flood of addresses does not take all memory, and does not free those that guess most.
	for i := range 2 * maxAddresses {
		judge(0, fmt.Sprintf("10.0.%d.%d:1", i/256, i%256), no)
	}
	if len(a.of) != maxAddresses {
		t.Errorf("%d addresses are remembered", len(a.of))
	}
	judge(10*time.Second, "192.0.2.1:1", no)
	tr.most = 30 // a reload
	judge(0, "192.0.2.3:1", no)
}

func TestTokenRate(t *testing.T) {
	c, token := tokenOf(t, "busy", "read")
	c.MaxRequests = 2
	free, freeToken := tokenOf(t, "free", "read")
	n := startNode(t, withTokens(t, c, free), Deps{Store: newStore(t)})
	refused := 0
	for range 30 {
		r := n.do(http.MethodGet, "/v1/status", "", bearer(token))
		if r.status == http.StatusTooManyRequests {
			refused++
			if e := r.err(t); e.Message != "the token busy may make 2 requests a second" || r.header.Get("Retry-After") != "1" {
				t.Errorf("%+v", e)
			}
		}
		if r := n.do(http.MethodGet, "/v1/status", "", bearer(freeToken)); r.status != 200 {
			t.Errorf("another token: %d", r.status)
		}
	}
	if refused == 0 {
		t.Error("30 requests at once are no more than 2 a second")
	}
}

func TestFindLooksAtAll(t *testing.T) {
	cfg := withTokens(t)
	cfg.Gateway.Auth.Token = "short"
	given := []string{"short"}
	for i := range 5 {
		c, token := tokenOf(t, fmt.Sprint("t", i), "read")
		cfg.Gateway.Auth.Tokens = append(cfg.Gateway.Auth.Tokens, c)
		given = append(given, token)
	}
	g := newGuard(cfg.Gateway)
	for i, token := range given {
		if c := g.find(hashOf(token), false); c != g.callers[i] {
			t.Errorf("token %d is %+v", i, c)
		}
		if c := g.find(hashOf(token), true); (c != nil) != (i > 0) {
			t.Errorf("token %d, of those that cannot be guessed: %+v", i, c)
		}
	}
	if g.find(hashOf(""), false) != nil || g.find(tokenHash{}, false) != nil {
		t.Error("nothing is a token")
	}
}

func TestTokens(t *testing.T) {
	a, b := NewToken(), NewToken()
	if a == b || !regexp.MustCompile(`^gmt_[A-Za-z0-9_-]{43}$`).MatchString(a) || guessable(a) {
		t.Errorf("tokens: %s, %s", a, b)
	}
	const known = "gmt_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
	if sum, err := HashToken(known); err != nil || sum != "35a7fa3df3f909299061b882c3730667a00120b8a9b2d568ca6754889b691951" {
		t.Errorf("hash: %s, %v", sum, err)
	}
	for _, bad := range []string{"", "hunter2", strings.Repeat("x", minToken-1), strings.Repeat("x", maxToken+1), strings.Repeat("x", 40) + "\n", strings.Repeat("x", 20) + " " + strings.Repeat("x", 20)} {
		if sum, err := HashToken(bad); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %s, %v", bad, sum, err)
		}
	}
}

// Pages of other sites may not send and not listen, unless their origin is allowed.
func TestAllowedOrigins(t *testing.T) {
	cfg := parseNode(t, "lone", nil, "", echoAgent("bobby"))
	cfg.Gateway.ControlUI.AllowedOrigins = []string{"https://mesh.example"}
	n := startNode(t, cfg, Deps{Store: newStore(t)})
	for origin, want := range map[string]bool{
		"https://mesh.example": true, "http://" + n.Addr().String(): true,
		"http://mesh.example": false, "https://mesh.example:444": false, "https://mesh.example.evil.example": false, "null": false,
		"https://evil.example": false, "file://": false, "https://evil.example#https://mesh.example": false,
	} {
		r := n.do(http.MethodPost, "/v1/messages", `{"to":"bobby","text":"x"}`, func(r *http.Request) { r.Header.Set("Origin", origin) })
		if sent := r.status == http.StatusAccepted; sent != want || !want && r.status != http.StatusForbidden {
			t.Errorf("%s sends: %d", origin, r.status)
		}
		_, resp, err := n.dial("", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
		if heard := err == nil; heard != want || !want && resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s listens: %v", origin, err)
		}
	}
	// Taken away while the gateway runs.
	if _, _, err := n.Reload(parseNode(t, "lone", nil, "", echoAgent("bobby"))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.dial("", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://mesh.example"}}}); err == nil {
		t.Error("an origin that was taken away listens")
	}
}
