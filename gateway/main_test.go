package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// longest bounds every wait; nothing is expected to come near it.
const longest = 20 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	t.Cleanup(cancel)
	return ctx
}

// newStore is an embedded store that any number of gateways of the test share.
func newStore(t testing.TB) bus.Store {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "mesh.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

// node is a gateway under test, on a real socket.
type node struct {
	*Gateway
	t      testing.TB
	log    *logBuffer
	client *http.Client
	token  string
}

// logBuffer holds a gateway's log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type config map[string]any

// parseNode makes a Config of mesh settings and agents.
func parseNode(t testing.TB, name string, mesh config, token string, agents ...config) *Config {
	t.Helper()
	// What may be asked across gateways is policy_test.go's matter.
	m := config{"gateway": name, "store": "local", "policy": config{"default": "allow"}}
	for k, v := range mesh {
		m[k] = v
	}
	auth := config{"mode": "none"}
	if token != "" {
		auth = config{"mode": "token", "token": token}
	}
	list := make([]config, 0, len(agents))
	list = append(list, agents...)
	b, err := json.Marshal(config{"mesh": m, "gateway": config{"port": 0, "auth": auth}, "agents": config{"list": list}})
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := ParseConfig(name+".json", b, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newNode(t testing.TB, cfg *Config, deps Deps) *node {
	t.Helper()
	n := &node{t: t, log: &logBuffer{}, client: &http.Client{Transport: &http.Transport{}}, token: cfg.Gateway.Auth.Token}
	if deps.Runners == nil {
		deps.Runners = agent.Builtin()
	}
	deps.Logger = hclog.New(&hclog.LoggerOptions{Name: "test", Level: hclog.Debug, Output: n.log})
	deps.Version = "test"
	g, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	n.Gateway = g
	t.Cleanup(func() {
		n.client.CloseIdleConnections()
		if err := g.Stop(within(t)); err != nil {
			t.Errorf("stop %s: %v", g.Name(), err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", g.Name(), n.log)
		}
	})
	return n
}

// startNode makes and starts a gateway and waits until it owns its agents.
func startNode(t testing.TB, cfg *Config, deps Deps) *node {
	t.Helper()
	n := newNode(t, cfg, deps)
	if err := n.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	for _, a := range cfg.AgentsHere() {
		if a.Gateways[0] == n.Name() {
			n.waitAgent(a.ID, n.Name())
		}
	}
	return n
}

// waitAgent waits until this gateway sees the agent active on a gateway.
func (n *node) waitAgent(id, on string) {
	n.t.Helper()
	ctx := within(n.t)
	b := n.bus.Load()
	for {
		changed := b.RegistryChanged()
		for _, a := range b.Agents("") {
			if a.ID == id && a.Gateway == on && a.Status == bus.StatusActive {
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			n.t.Fatalf("%s does not see %s on %s: %+v", n.Name(), id, on, b.Agents(""))
		}
	}
}

type response struct {
	status int
	header http.Header
	body   []byte
}

func (r response) err(t testing.TB) APIError {
	t.Helper()
	var e ErrorResponse
	if err := json.Unmarshal(r.body, &e); err != nil || e.Error.Code == "" {
		t.Fatalf("status %d is not an error answer: %s", r.status, r.body)
	}
	return e.Error
}

// into decodes an answer of 2xx.
func (r response) into(t testing.TB, v any) {
	t.Helper()
	if r.status >= 300 {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal(r.body, v); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
}

// do sends a request; change may alter it.
func (n *node) do(method, path, body string, change ...func(*http.Request)) response {
	n.t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(within(n.t), method, "http://"+n.Addr().String()+path, rd)
	if err != nil {
		n.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if n.token != "" {
		req.Header.Set("Authorization", "Bearer "+n.token)
	}
	for _, c := range change {
		c(req)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return response{resp.StatusCode, resp.Header, b}
}

// send posts a message and returns what came.
func (n *node) send(req SendRequest) MessageStatus {
	n.t.Helper()
	b, err := json.Marshal(req)
	if err != nil {
		n.t.Fatal(err)
	}
	var st MessageStatus
	n.do(http.MethodPost, "/v1/messages", string(b)).into(n.t, &st)
	return st
}

func text(s string) *string { return &s }

// ask sends a question and waits for its answer.
func (n *node) ask(to, question string) MessageStatus {
	n.t.Helper()
	return n.send(SendRequest{To: to, Text: text(question), Wait: WaitReplied, Timeout: longest.String()})
}

// dial opens the event stream.
func (n *node) dial(query string, opts *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	n.t.Helper()
	if opts == nil {
		opts = &websocket.DialOptions{}
	}
	opts.HTTPClient = n.client
	if n.token != "" && opts.HTTPHeader == nil && opts.Subprotocols == nil {
		opts.HTTPHeader = http.Header{"Authorization": {"Bearer " + n.token}}
	}
	c, resp, err := websocket.Dial(within(n.t), fmt.Sprintf("ws://%s/v1/events%s", n.Addr(), query), opts)
	if err == nil {
		n.t.Cleanup(func() { _ = c.CloseNow() })
	}
	return c, resp, err
}

func (n *node) stream(query string) *websocket.Conn {
	n.t.Helper()
	c, _, err := n.dial(query, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func readEvent(t testing.TB, c *websocket.Conn) StreamEvent {
	t.Helper()
	_, b, err := c.Read(within(t))
	if err != nil {
		t.Fatal(err)
	}
	var ev StreamEvent
	if err := json.Unmarshal(b, &ev); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return ev
}

// gate is a runner whose handlers wait until they are let go.
type gate struct {
	entered chan string // agent's messages, as they arrive
	leave   chan struct{}
}

func newGate() *gate { return &gate{entered: make(chan string, 64), leave: make(chan struct{})} }

func (g *gate) factory(agent.Spec, agent.Deps) (bus.Handler, error) {
	return bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
		g.entered <- m.Envelope().Text()
		select {
		case <-g.leave:
			return m.Reply(m.Envelope().Payload)
		case <-ctx.Done():
			return ctx.Err()
		}
	}), nil
}

func runners(extra agent.Runners) agent.Runners {
	r := agent.Builtin()
	for k, f := range extra {
		r[k] = f
	}
	return r
}

func await[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-within(t).Done():
		t.Fatalf("waited in vain for %s", what)
		panic("not reached")
	}
}

func echoAgent(id string) config {
	return config{"id": id, "name": strings.ToUpper(id[:1]) + id[1:], "capabilities": []string{"infra.check"}, "runner": config{"kind": "echo"}}
}
