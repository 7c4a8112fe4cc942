package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/envelope"
)

// A user asks jerry on one gateway, jerry asks bobby on another one, the answer comes back.
func TestAskEndToEnd(t *testing.T) {
	s := newStore(t)
	jerry := startNode(t, parseNode(t, "jerry-gateway", nil, "", config{"id": "jerry", "name": "Jerry", "runner": "relay"}), Deps{Store: s})
	startNode(t, parseNode(t, "bobby-gateway", nil, "secret", echoAgent("bobby")), Deps{Store: s})
	jerry.waitAgent("bobby", "bobby-gateway")

	const question = "Ask Bobby to check Consul services"
	st := jerry.ask("jerry", question)
	if want := "Bobby (on bobby-gateway): " + question; st.Text != want {
		t.Errorf("answer %q, want %q", st.Text, want)
	}
	if f := st.Facts; !f.Accepted || !f.Delivered || !f.Acked || !f.Replied || f.Dead {
		t.Errorf("facts: %+v", f)
	}
	var names []string
	for _, ev := range st.Events {
		names = append(names, ev.Event)
	}
	for _, want := range []string{bus.EventQueued, bus.EventDelivered, bus.EventAcked, bus.EventReplied} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not in the timeline: %v", want, names)
		}
	}

	// Without a name, by what it needs.
	if st := jerry.ask("jerry", "is everything healthy?"); st.Text != "Bobby (on bobby-gateway): is everything healthy?" {
		t.Errorf("by keyword: %q", st.Text)
	}
	if st := jerry.ask("jerry", "what is love?"); !strings.Contains(st.Text, "- Bobby on bobby-gateway: infra.check") {
		t.Errorf("help: %q", st.Text)
	}
}

// Stop hands the agent over: the next gateway of its list goes on, and nothing is lost.
func TestStopHandsOver(t *testing.T) {
	s := newStore(t)
	first, second := newGate(), newGate()
	spec := config{"id": "bobby", "gateways": []string{"one", "two"}, "runner": config{"kind": "echo"}}
	with := func(g *gate) agent.Runners {
		gates := runners(nil)
		gates["echo"] = g.factory
		return gates
	}
	one := startNode(t, parseNode(t, "one", nil, "", spec), Deps{Store: s, Runners: with(first), DrainGrace: time.Millisecond})
	two := startNode(t, parseNode(t, "two", nil, "", spec), Deps{Store: s, Runners: with(second)})
	three := startNode(t, parseNode(t, "three", nil, ""), Deps{Store: s})
	three.waitAgent("bobby", "one")

	st := three.send(SendRequest{To: "bobby", Text: text("hello"), Reply: true})
	if got := await(t, first.entered, "the first gateway's handler"); got != "hello" {
		t.Fatalf("got %q", got)
	}
	close(second.leave)
	stopped := make(chan error, 1)
	go func() { stopped <- one.Stop(within(t)) }()
	if got := await(t, second.entered, "the second gateway's handler"); got != "hello" {
		t.Errorf("the second gateway got %q", got)
	}
	if err := await(t, stopped, "the stop"); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := one.Wait(); err != nil {
		t.Errorf("Wait after a clean stop: %v", err)
	}
	var done MessageStatus
	three.do(http.MethodGet, "/v1/messages/"+st.MessageID+"?wait=replied&timeout=20s", "").into(t, &done)
	if !done.Facts.Replied || done.Text != "hello" || done.TimedOut {
		t.Errorf("after the handover: %+v %q", done.Facts, done.Text)
	}
	two.waitAgent("bobby", "two")
	if err := one.Stop(within(t)); err != nil {
		t.Errorf("second stop: %v", err)
	}
	if err := one.Start(within(t)); err == nil {
		t.Error("a stopped gateway was started again")
	}
}

// Without its store a gateway stays up, says so, and recovers by itself.
func TestStoreMissingAtStart(t *testing.T) {
	s := bustest.Faulty(newStore(t))
	down := fmt.Errorf("%w: connection refused", bus.ErrUnavailable)
	tries := make(chan struct{}, 64)
	s.Before(func(string, []bus.Op) error {
		select {
		case tries <- struct{}{}:
		default:
		}
		return down
	})
	n := newNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: s})
	if err := n.Start(within(t)); err != nil {
		t.Fatalf("start without a store: %v", err)
	}
	if r := n.do(http.MethodGet, "/health", ""); r.status != http.StatusOK {
		t.Errorf("/health: %d", r.status)
	}
	r := n.do(http.MethodGet, "/ready", "")
	if r.status != http.StatusServiceUnavailable || !strings.Contains(string(r.body), "connection refused") {
		t.Errorf("/ready: %d %s", r.status, r.body)
	}
	for _, path := range []string{"/v1/agents", "/v1/gateways", "/v1/inboxes", "/v1/inboxes/bobby", "/v1/messages", "/v1/messages/" + envelope.NewID()} {
		r := n.do(http.MethodGet, path, "")
		if e := r.err(t); r.status != http.StatusServiceUnavailable || e.Code != CodeNotReady || r.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %+v", path, r.status, e)
		}
	}
	var status StatusResponse
	n.do(http.MethodGet, "/v1/status", "").into(t, &status)
	if status.Ready || status.Reason == "" {
		t.Errorf("status: %+v", status)
	}
	if got := strings.Count(n.log.String(), "[ERROR]"); got != 1 || !strings.Contains(n.log.String(), "CONSUL_HTTP_ADDR") {
		t.Errorf("want one line that says what to do:\n%s", n.log)
	}
	if m := string(n.do(http.MethodGet, "/metrics", "").body); !strings.Contains(m, "\ngatemesh_store_up 0") {
		t.Error("gatemesh_store_up is not 0")
	}
	events := n.stream("")
	for range 2 {
		await(t, tries, "another try")
	}
	s.Before(nil)
	for ev := readEvent(t, events); ev.Event.Event != bus.EventStoreUp; ev = readEvent(t, events) {
	}
	if st := n.ask("bobby", "there?"); st.Text != "there?" {
		t.Errorf("after recovery: %+v", st)
	}
	if r := n.do(http.MethodGet, "/ready", ""); r.status != http.StatusOK {
		t.Errorf("/ready after recovery: %d %s", r.status, r.body)
	}
	if m := string(n.do(http.MethodGet, "/metrics", "").body); !strings.Contains(m, "\ngatemesh_store_up 1") {
		t.Error("gatemesh_store_up is not 1")
	}
}

// While the store is away sends are refused at once or in the end, reads too; then all is well.
func TestStoreLostLater(t *testing.T) {
	s := bustest.Faulty(newStore(t))
	n := startNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: s})
	events := n.stream("")
	down := fmt.Errorf("%w: connection refused", bus.ErrUnavailable)
	s.Before(func(string, []bus.Op) error { return down })
	r := n.do(http.MethodGet, "/v1/inboxes", "")
	if e := r.err(t); r.status != http.StatusServiceUnavailable || e.Code != CodeStoreUnavailable {
		t.Errorf("inboxes: %d %+v", r.status, e)
	}
	r = n.do(http.MethodPost, "/v1/messages", `{"to":"nobody-known","text":"x"}`)
	if e := r.err(t); r.status != http.StatusServiceUnavailable || e.Code != CodeStoreUnavailable {
		t.Errorf("send: %d %+v", r.status, e)
	}
	if m := n.do(http.MethodGet, "/metrics", ""); m.status != http.StatusOK {
		t.Errorf("/metrics without a store: %d", m.status)
	}
	go func() { // the send that finds out makes the event
		b := n.bus.Load()
		_, _ = b.Send(within(t), bus.Outgoing{To: envelope.Address{Agent: "bobby"}, From: "operator", Payload: []byte(`1`)})
	}()
	for readEvent(t, events).Event.Event != bus.EventStoreDown {
	}
	if r := n.do(http.MethodGet, "/ready", ""); r.status != http.StatusServiceUnavailable {
		t.Errorf("/ready without a store: %d", r.status)
	}
	s.Before(nil)
	for readEvent(t, events).Event.Event != bus.EventStoreUp {
	}
	if st := n.ask("bobby", "back?"); st.Text != "back?" {
		t.Errorf("after recovery: %+v", st)
	}
}

func TestFailFast(t *testing.T) {
	s := bustest.Faulty(newStore(t))
	s.Before(func(string, []bus.Op) error { return bus.ErrUnavailable })
	n := newNode(t, parseNode(t, "lone", nil, ""), Deps{Store: s, FailFast: true})
	if err := n.Start(within(t)); !errors.Is(err, bus.ErrUnavailable) {
		t.Fatalf("start: %v", err)
	}
	await(t, n.Done(), "the end")
	if _, err := net.Dial("tcp", n.Addr().String()); err == nil {
		t.Error("the port is still open")
	}
}

// Two processes under one name: the first one ends itself.
func TestReplaced(t *testing.T) {
	s := newStore(t)
	mesh := config{"sessionTTL": "10s"}
	one := startNode(t, parseNode(t, "same", mesh, "", echoAgent("bobby")), Deps{Store: s})
	two := startNode(t, parseNode(t, "same", mesh, "", echoAgent("bobby")), Deps{Store: s})
	await(t, one.Done(), "the end of the first")
	if err := one.Wait(); !errors.Is(err, bus.ErrReplaced) {
		t.Errorf("why: %v", err)
	}
	if st := two.ask("bobby", "you?"); st.Text != "you?" {
		t.Errorf("the second: %+v", st)
	}
}

func TestNewRefuses(t *testing.T) {
	s := newStore(t)
	good := parseNode(t, "lone", nil, "")
	for name, tc := range map[string]struct {
		cfg  *Config
		deps Deps
		want string
	}{
		"no store":       {good, Deps{}, "needs a configuration and a store"},
		"no config":      {nil, Deps{Store: s}, "needs a configuration and a store"},
		"unknown runner": {parseNode(t, "lone", nil, "", config{"id": "bobby", "runner": config{"kind": "checks"}}), Deps{Store: s, Runners: agent.Builtin()}, "one of echo, relay"},
		"own name":       {parseNode(t, "lone", nil, "", echoAgent("lone")), Deps{Store: s, Runners: agent.Builtin()}, "id of this gateway"},
		"open to others": {func() *Config { c := parseNode(t, "lone", nil, ""); c.Gateway.Bind = "lan"; return c }(), Deps{Store: s}, "needs a token"},
	} {
		if _, err := New(tc.cfg, tc.deps); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPortInUse(t *testing.T) {
	s := newStore(t)
	n := startNode(t, parseNode(t, "one", nil, ""), Deps{Store: s})
	cfg := parseNode(t, "two", nil, "")
	cfg.Gateway.Port = n.Addr().(*net.TCPAddr).Port
	other := newNode(t, cfg, Deps{Store: s})
	if err := other.Start(within(t)); err == nil || !strings.Contains(err.Error(), "gateway.port") {
		t.Errorf("start on a taken port: %v", err)
	}
}

func TestReload(t *testing.T) {
	s := newStore(t)
	g := newGate()
	rs := runners(nil)
	rs["checks"] = g.factory
	n := startNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: s, Runners: rs})

	next := echoAgent("bobby")
	next["runner"] = config{"kind": "checks"}
	next["maxConcurrent"] = 3
	cfg := parseNode(t, "lone", config{"maxTTL": "10m", "defaultTTL": "2m", "retry": config{"maxAttempts": 2}}, "", next)
	cfg.Gateway.Port = 1234
	changed, restart, err := n.Reload(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"agents.bobby.runner.kind", "mesh.maxTTL", "mesh.defaultTTL", "gateway.port"} {
		if !strings.Contains(strings.Join(changed, " "), want) {
			t.Errorf("%s is not among the changed: %v", want, changed)
		}
	}
	if got := strings.Join(restart, " "); got != "agents.bobby.maxConcurrent gateway.port mesh.retry.maxAttempts" {
		t.Errorf("need a restart: %s", got)
	}
	n.send(SendRequest{To: "bobby", Text: text("new?")})
	if got := await(t, g.entered, "the new runner"); got != "new?" {
		t.Errorf("the new runner got %q", got)
	}
	close(g.leave)
	if e := n.do(http.MethodPost, "/v1/messages", `{"to":"bobby","text":"x","ttl":"11m"}`).err(t); e.Field != "ttl" {
		t.Errorf("the new maxTTL: %+v", e)
	}
	// What waits for a restart is said again, what is the same is not.
	changed, restart, err = n.Reload(cfg)
	if err != nil || len(changed) != 0 || len(restart) != 3 {
		t.Errorf("the same again: %v, %v, %v", changed, restart, err)
	}
	// A mistake changes nothing.
	bad := parseNode(t, "lone", config{"maxTTL": "1m"}, "", next)
	if _, _, err := n.Reload(bad); err == nil {
		t.Error("a wrong configuration was taken")
	}
	if st := n.send(SendRequest{To: "bobby", Text: text("x"), TTL: "5m"}); !st.Facts.Accepted {
		t.Errorf("after the refused reload: %+v", st)
	}
}

// ackTimeout is bounded by the agent's handler, so that a reload can change it.
func TestAckTimeout(t *testing.T) {
	s := newStore(t)
	g := newGate()
	rs := runners(nil)
	rs["echo"] = g.factory
	a := echoAgent("bobby")
	a["ackTimeout"] = "1s"
	n := startNode(t, parseNode(t, "lone", config{"retry": config{"maxAttempts": 1}}, "", a), Deps{Store: s, Runners: rs})
	st := n.send(SendRequest{To: "bobby", Text: text("x"), Wait: WaitAcked})
	if !st.Facts.Dead || st.Facts.Class != envelope.ClassExhausted || st.Facts.Acked {
		t.Errorf("facts: %+v", st.Facts)
	}
}

// catalog is a store with a service catalog.
type catalog struct {
	bus.Store
	mu       sync.Mutex
	services map[string]bus.Service
	refuse   error
}

func (c *catalog) RegisterService(_ context.Context, s bus.Service) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return "", c.refuse
	}
	if c.services == nil {
		c.services = map[string]bus.Service{}
	}
	c.services[s.ID] = s
	return "service:" + s.ID, nil
}

func (c *catalog) DeregisterService(_ context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.services, id)
	return nil
}

func (c *catalog) NewSession(ctx context.Context, o bus.SessionOptions) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, check := range o.Checks {
		if _, ok := c.services[strings.TrimPrefix(check, "service:")]; !ok {
			return "", fmt.Errorf("missing check %q", check)
		}
	}
	return c.Store.NewSession(ctx, o)
}

func (c *catalog) get(id string) (bus.Service, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.services[id]
	return s, ok
}

func TestCatalogEntry(t *testing.T) {
	c := &catalog{Store: newStore(t)}
	cfg := parseNode(t, "lone", config{"advertiseURL": "https://lone.example:8443"}, "")
	n := startNode(t, cfg, Deps{Store: bustest.Faulty(c)})
	s, ok := c.get("openclaw-lone")
	if !ok || s.Name != "openclaw" || s.Address != "lone.example" || s.Port != 8443 || strings.Join(s.Tags, " ") != "openclaw gateway gatemesh" {
		t.Errorf("service: %+v", s)
	}
	resp, err := n.client.Get(s.HealthURL)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("health URL %s: %v", s.HealthURL, err)
	}
	if err == nil {
		_ = resp.Body.Close()
	}
	if err := n.Stop(within(t)); err != nil {
		t.Error(err)
	}
	if _, ok := c.get("openclaw-lone"); ok {
		t.Error("the entry is still there after Stop")
	}

	cfg = parseNode(t, "lone", config{"service": config{"register": false}}, "")
	startNode(t, cfg, Deps{Store: c})
	if _, ok := c.get("openclaw-lone"); ok {
		t.Error("registered although it should not")
	}
}

func TestStopWhileStarting(t *testing.T) {
	s := bustest.Faulty(newStore(t))
	asked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.Before(func(call string, _ []bus.Op) error {
		if call == bustest.CallNewSession {
			once.Do(func() { close(asked) })
			<-goOn
		}
		return nil
	})
	n := newNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: s})
	started, stopped := make(chan error, 1), make(chan error, 1)
	go func() { started <- n.Start(within(t)) }()
	await(t, asked, "the session")
	go func() { stopped <- n.Stop(within(t)) }()
	await(t, n.life.Done(), "the stop to begin")
	close(goOn)
	if err := await(t, started, "the start"); err == nil {
		t.Error("the start says it worked")
	}
	if err := await(t, stopped, "the stop"); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestURLs(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 18789} }
	for _, tc := range []struct {
		configured string
		addr       net.Addr
		url, local string
	}{
		{"", tcp("127.0.0.1"), "http://127.0.0.1:18789", "127.0.0.1:18789"},
		{"", tcp("10.1.2.3"), "http://10.1.2.3:18789", "10.1.2.3:18789"},
		{"", tcp("::1"), "http://[::1]:18789", "[::1]:18789"},
		{"wss://jerry.tailscale", tcp("0.0.0.0"), "wss://jerry.tailscale", "127.0.0.1:18789"},
	} {
		if got := advertisedURL(tc.configured, tc.addr, "http"); got != tc.url {
			t.Errorf("url of %v: %s", tc.addr, got)
		}
		if got := localAddr(tc.addr); got != tc.local {
			t.Errorf("local address of %v: %s", tc.addr, got)
		}
	}
	if got := advertisedURL("", tcp("::"), "https"); strings.Contains(got, "[::]") || !strings.HasPrefix(got, "https://") || !strings.HasSuffix(got, ":18789") {
		t.Errorf("url of all interfaces: %s", got)
	}
	for raw, want := range map[string]int{"https://a": 443, "http://a": 80, "wss://a": 443, "http://a:18789": 18789} {
		if host, port := hostPort(raw); host != "a" || port != want {
			t.Errorf("%s: %s %d", raw, host, port)
		}
	}
}
