package openclawgw

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "a-token-that-nobody-guesses-in-this-test"

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// counter answers "count: text", and refuses "never".
type counter struct{ n atomic.Int64 }

func (w *counter) factory(agent.Spec, agent.Deps) (bus.Handler, error) {
	return bus.HandlerFunc(func(_ context.Context, m *bus.Incoming) error {
		if m.Envelope().Text() == "never" {
			return bus.Never(envelope.ClassPoison, errors.New("not that"))
		}
		return m.Reply(envelope.TextPayload(fmt.Sprintf("%d: %s in %s", w.n.Add(1), m.Envelope().Text(), m.Envelope().ConversationID)))
	}), nil
}

// mesh starts two gateways on one store; bobby lives on the first.
func mesh(t *testing.T, w *counter) (gateways []*gateway.Gateway) {
	t.Helper()
	store, err := local.Open(filepath.Join(t.TempDir(), "mesh.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	for _, n := range []struct{ gateway, agent string }{{"home", "bobby"}, {"edge", "jerry"}} {
		cfg, _, err := gateway.ParseConfig(n.gateway+".json5", []byte(fmt.Sprintf(`{ mesh: { gateway: %q, store: "local", policy: { default: "allow" } },
			gateway: { port: 0, auth: { token: %q } }, agents: { list: [{ id: %q, name: "The one", runner: "echo" }] } }`, n.gateway, token, n.agent)), func(string) (string, bool) { return "", false })
		if err != nil {
			t.Fatal(err)
		}
		g, err := gateway.New(cfg, gateway.Deps{Store: store, Runners: agent.Runners{"echo": w.factory}, Logger: hclog.NewNullLogger(), OpenClaw: func(api http.Handler) http.Handler { return Handler("1.2.3", api) }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := g.Stop(within(t)); err != nil {
				t.Error(err)
			}
		})
		if err := g.Start(within(t)); err != nil {
			t.Fatal(err)
		}
		gateways = append(gateways, g)
	}
	return gateways
}

// client is a program that speaks OpenClaw's protocol.
type client struct {
	t     *testing.T
	conn  *websocket.Conn
	nonce string
	next  int
	seen  []map[string]any // events
}

type reply struct {
	OK      bool
	Payload map[string]any
	Error   wireError
}

// dial opens a connection and takes the challenge.
func dial(t *testing.T, g *gateway.Gateway) *client {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	conn, _, err := websocket.Dial(within(t), "ws://"+g.Addr().String()+"/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(1 << 20)
	t.Cleanup(func() { _ = conn.CloseNow() })
	c := &client{t: t, conn: conn}
	f := c.frame()
	if f["event"] != "connect.challenge" {
		t.Fatalf("%v, want a challenge", f)
	}
	c.nonce, _ = f["payload"].(map[string]any)["nonce"].(string)
	return c
}

func (c *client) frame() (f map[string]any) {
	c.t.Helper()
	if err := wsjson.Read(within(c.t), c.conn, &f); err != nil {
		c.t.Fatal(err)
	}
	return f
}

// ask sends a request and returns its next answer; events on the way are kept.
func (c *client) ask(method string, params any) reply {
	c.t.Helper()
	c.next++
	if err := wsjson.Write(within(c.t), c.conn, map[string]any{"type": "req", "id": fmt.Sprint(c.next), "method": method, "params": params}); err != nil {
		c.t.Fatal(err)
	}
	return c.answer()
}

func (c *client) answer() (r reply) {
	c.t.Helper()
	for {
		f := c.frame()
		if f["type"] == "event" {
			c.seen = append(c.seen, f)
			continue
		}
		if f["id"] != fmt.Sprint(c.next) {
			c.t.Fatalf("an answer to %v", f["id"])
		}
		b, err := json.Marshal(f)
		if err != nil {
			c.t.Fatal(err)
		}
		if err := json.Unmarshal(b, &r); err != nil {
			c.t.Fatal(err)
		}
		return r
	}
}

// event waits for a chat's event of a state.
func (c *client) chat(state string) map[string]any {
	c.t.Helper()
	for i := 0; ; i++ {
		if i == len(c.seen) {
			c.seen = append(c.seen, c.frame())
		}
		if p, _ := c.seen[i]["payload"].(map[string]any); c.seen[i]["event"] == "chat" && p["state"] == state {
			return p
		}
	}
}

func hello(token string) map[string]any {
	return map[string]any{
		"minProtocol": 4, "maxProtocol": 4, "role": "operator", "scopes": []string{"operator.read", "operator.write"}, "auth": map[string]any{"token": token},
		"client": map[string]any{"id": "openclaw-tui", "version": "1", "platform": "Linux", "mode": "ui", "deviceFamily": "PC"},
	}
}

func connected(t *testing.T, g *gateway.Gateway) *client {
	t.Helper()
	c := dial(t, g)
	if r := c.ask("connect", hello(token)); !r.OK || r.Payload["type"] != "hello-ok" {
		t.Fatalf("%+v", r)
	}
	return c
}

// sees waits until a gateway knows an agent of another.
func (c *client) sees(agent string) {
	c.t.Helper()
	for ctx := within(c.t); ctx.Err() == nil; {
		b, err := json.Marshal(c.ask("agents.list", nil).Payload["agents"])
		if err != nil {
			c.t.Fatal(err)
		}
		if strings.Contains(string(b), `"`+agent+`"`) {
			return
		}
	}
	c.t.Fatalf("%s is not seen", agent)
}

// A run, asked at one gateway of an agent on another: two answers, events between, and the same answer under the same key everywhere.
func TestRun(t *testing.T) {
	nodes := mesh(t, &counter{})
	c := connected(t, nodes[1])
	c.sees("bobby")
	run := map[string]any{"agentId": "bobby", "sessionKey": "agent:bobby:desk", "message": "well?", "idempotencyKey": "one"}
	if r := c.ask("agent", run); !r.OK || r.Payload["status"] != "accepted" || r.Payload["runId"] != "one" {
		t.Fatalf("%+v", r)
	}
	text := func(r reply) string {
		t.Helper()
		b, err := json.Marshal(r.Payload["result"])
		if err != nil {
			t.Fatal(err)
		}
		var res struct{ Payloads []struct{ Text string } }
		if err := json.Unmarshal(b, &res); err != nil || len(res.Payloads) != 1 {
			t.Fatalf("%+v", r)
		}
		return res.Payloads[0].Text
	}
	if r := c.answer(); !r.OK || r.Payload["status"] != "ok" || text(r) != "1: well? in desk" {
		t.Errorf("%+v", r)
	}
	var last float64
	var streams []string
	for _, f := range c.seen {
		if seq, _ := f["seq"].(float64); seq != last+1 {
			t.Errorf("event %v after %v", f["seq"], last)
		}
		last++
		if p, _ := f["payload"].(map[string]any); f["event"] == "agent" {
			streams = append(streams, fmt.Sprint(p["stream"]))
		}
	}
	if want := []string{"lifecycle", "assistant", "lifecycle"}; !slices.Equal(streams, want) {
		t.Errorf("%q, want %q", streams, want)
	}
	for _, g := range nodes {
		again := connected(t, g)
		again.sees("bobby")
		again.ask("agent", run)
		if r := again.answer(); text(r) != "1: well? in desk" {
			t.Errorf("under the same key: %+v", r)
		}
	}

	if r := c.ask("chat.send", map[string]any{"sessionKey": "agent:bobby:main", "message": "hm?", "idempotencyKey": "two", "deliver": false}); !r.OK || r.Payload["status"] != "started" {
		t.Fatalf("%+v", r)
	}
	c.seen = nil
	if p := c.chat("final"); p["runId"] != "two" || !strings.Contains(fmt.Sprint(p["message"]), "2: hm? in main") {
		t.Errorf("%v", p)
	}
	if f := c.seen[0]; f["event"] != "chat" {
		t.Errorf("the first event of a chat is %v", f)
	}
	c.ask("chat.send", map[string]any{"sessionKey": "agent:bobby:main", "message": "never", "idempotencyKey": "three"})
	if p := c.chat("error"); !strings.Contains(fmt.Sprint(p["errorMessage"]), "not that") {
		t.Errorf("%v", p)
	}
}

// Reads, and what is refused.
func TestMethods(t *testing.T) {
	nodes := mesh(t, &counter{})
	c := connected(t, nodes[0])
	if r := c.ask("health", nil); !r.OK || r.Payload["ok"] != true || r.Payload["defaultAgentId"] != "bobby" {
		t.Errorf("%+v", r)
	}
	for method, params := range map[string]any{
		"status": nil, "agents.list": map[string]any{}, "sessions.subscribe": nil, "sessions.list": map[string]any{"agentId": "bobby", "limit": 1},
		"sessions.describe": map[string]any{"key": "agent:bobby:main"}, "chat.history": map[string]any{"sessionKey": "agent:bobby:main", "limit": 10},
	} {
		if r := c.ask(method, params); !r.OK {
			t.Errorf("%s: %+v", method, r.Error)
		}
	}
	for _, x := range []struct {
		method, says string
		params       any
	}{
		{"agents.nosuch", "unknown method: agents.nosuch", nil},
		{"agent", "idempotencyKey", map[string]any{"message": "x"}},
		{"agent", "message is empty", map[string]any{"message": " ", "idempotencyKey": "k"}},
		{"agent", "not an object", 7},
		{"agent", "at /message", map[string]any{"message": 7, "idempotencyKey": "k"}},
		{"agent", "not one of the agent", map[string]any{"message": "x", "idempotencyKey": "k", "agentId": "bobby", "sessionKey": "agent:jerry:main"}},
		{"agent", "no gateway", map[string]any{"message": "x", "idempotencyKey": "k", "agentId": "nobody"}},
		{"chat.history", "not the id", map[string]any{"sessionKey": "agent:A B:main"}},
	} {
		if r := c.ask(x.method, x.params); r.OK || r.Error.Code != codeInvalid || !strings.Contains(r.Error.Message, x.says) {
			t.Errorf("%s %v: %+v, want %q", x.method, x.params, r, x.says)
		}
	}
	// The page is where it was.
	resp, err := http.Get("http://" + nodes[0].Addr().String() + "/")
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
}

// Who may not come in is told why, and is sent away.
func TestConnect(t *testing.T) {
	g := mesh(t, &counter{})[0]
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(public)
	device := func(c *client, p map[string]any, change func(map[string]any)) map[string]any {
		at := time.Now().UnixMilli()
		id := hex.EncodeToString(sum[:])
		text := fmt.Sprintf("v3|%s|openclaw-tui|ui|operator|operator.read,operator.write|%d|%s|%s|linux|pc", id, at, token, c.nonce)
		d := map[string]any{"id": id, "publicKey": base64.RawURLEncoding.EncodeToString(public), "signedAt": at, "nonce": c.nonce, "signature": base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(text)))}
		change(d)
		p["device"] = d
		return p
	}
	for _, x := range []struct {
		name, code string
		params     func(*client) map[string]any
	}{
		{"token", "", func(*client) map[string]any { return hello(token) }},
		{"device", "", func(c *client) map[string]any { return device(c, hello(token), func(map[string]any) {}) }},
		{"no token", "AUTH_TOKEN_MISSING", func(*client) map[string]any { return hello("") }},
		{"wrong token", "AUTH_TOKEN_MISMATCH", func(*client) map[string]any { return hello("wrong") }},
		{"other protocol", "PROTOCOL_MISMATCH", func(*client) map[string]any { p := hello(token); p["minProtocol"], p["maxProtocol"] = 5, 6; return p }},
		{"other signature", "DEVICE_AUTH_SIGNATURE_INVALID", func(c *client) map[string]any {
			return device(c, hello(token), func(d map[string]any) { d["signature"] = base64.RawURLEncoding.EncodeToString(make([]byte, 64)) })
		}},
		{"signed for another token", "DEVICE_AUTH_SIGNATURE_INVALID", func(c *client) map[string]any { return device(c, hello(token+"x"), func(map[string]any) {}) }},
		{"other nonce", "DEVICE_AUTH_NONCE_MISMATCH", func(c *client) map[string]any {
			return device(c, hello(token), func(d map[string]any) { d["nonce"] = "old" })
		}},
		{"old", "DEVICE_AUTH_SIGNATURE_EXPIRED", func(c *client) map[string]any {
			return device(c, hello(token), func(d map[string]any) { d["signedAt"] = time.Now().Add(-time.Hour).UnixMilli() })
		}},
		{"other id", "DEVICE_AUTH_DEVICE_ID_MISMATCH", func(c *client) map[string]any {
			return device(c, hello(token), func(d map[string]any) { d["id"] = "me" })
		}},
		{"other key", "DEVICE_AUTH_PUBLIC_KEY_INVALID", func(c *client) map[string]any {
			return device(c, hello(token), func(d map[string]any) { d["publicKey"] = "AA" })
		}},
	} {
		c := dial(t, g)
		r := c.ask("connect", x.params(c))
		if got, _ := r.Error.Details["code"].(string); got != x.code || r.OK != (x.code == "") {
			t.Errorf("%s: %+v, want %q", x.name, r, x.code)
		}
		if strings.Contains(r.Error.Message, token) {
			t.Errorf("%s: the token is said again", x.name)
		}
		if r.OK {
			continue
		}
		if _, _, err := c.conn.Read(within(t)); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
			t.Errorf("%s: not sent away: %v", x.name, err)
		}
	}
	c := dial(t, g)
	if r := c.ask("health", nil); r.OK || !strings.Contains(r.Error.Message, "first request must be connect") {
		t.Errorf("%+v", r)
	}
}

// When the gateway stops its clients are told, and it does not wait for them.
func TestStop(t *testing.T) {
	g := mesh(t, &counter{})[0]
	c := connected(t, g)
	end := make(chan error, 1)
	ctx := within(t)
	go func() {
		_, _, err := c.conn.Read(ctx)
		end <- err
	}()
	if err := g.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-end; websocket.CloseStatus(err) != websocket.StatusServiceRestart {
		t.Errorf("%v, want a service restart", err)
	}
}
