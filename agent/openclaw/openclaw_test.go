package openclaw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
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
	"github.com/gatemesh/gatemesh/envelope"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

const (
	longest = 30 * time.Second
	token   = "the-token-of-openclaw"
)

// claw is OpenClaw's side of the wire, as far as the runner uses it: what its gateway was seen to say, and what it forgets when it is started anew.
type claw struct {
	*httptest.Server
	t *testing.T

	mu         sync.Mutex
	boot       int
	cache      map[string]string // of this process: run id, answer
	asked      map[string]int    // turns begun, by run id
	transcript []map[string]any  // survives
	noKeys     bool
	conns      map[*websocket.Conn]bool
	changed    chan struct{} // closed and made anew when a turn ends
	aborted    []string
	breaks     bool          // the next turn is told to be over with UNAVAILABLE, after it began
	hold       chan struct{} // a turn of "hold" waits for it
	entered    chan string
	refuse     *remoteError
}

func newClaw(t *testing.T) *claw {
	t.Helper()
	c := &claw{t: t, boot: 1, cache: map[string]string{}, asked: map[string]int{}, conns: map[*websocket.Conn]bool{}, changed: make(chan struct{}), hold: make(chan struct{}), entered: make(chan string, 10)}
	c.Server = httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(func() { c.drop(); c.Close() })
	return c
}

func (c *claw) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// drop ends all connections.
func (c *claw) drop() {
	c.change(func() {
		for ws := range c.conns {
			_ = ws.CloseNow()
		}
	})
}

// restart is a new process: what was in memory is gone.
func (c *claw) restart() {
	c.change(func() { c.boot++; c.cache = map[string]string{} })
	c.drop()
}

func (c *claw) serve(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.change(func() { c.conns[ws] = true })
	defer c.change(func() { delete(c.conns, ws) })
	var wmu sync.Mutex
	send := func(v any) {
		data, err := json.Marshal(v)
		if err != nil {
			c.t.Error(err)
		}
		wmu.Lock()
		defer wmu.Unlock()
		_ = ws.Write(ctx, websocket.MessageText, data)
	}
	answer := func(id string, payload any) {
		send(map[string]any{"type": "res", "id": id, "ok": true, "payload": payload})
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	send(map[string]any{"type": "event", "event": "connect.challenge", "payload": map[string]any{"nonce": "n"}})
	for {
		_, data, err := ws.Read(ctx)
		if err != nil {
			return
		}
		var f struct {
			ID     string
			Method string
			Params struct {
				Auth struct{ Token string }
				AgentID, SessionKey, Message,
				IdempotencyKey string
				RunID     string
				TimeoutMS int
			}
		}
		if err := json.Unmarshal(data, &f); err != nil {
			c.t.Error(err)
			return
		}
		switch f.Method {
		case "connect": //nolint:usestdlibvars // OpenClaw's word
			if f.Params.Auth.Token != token {
				send(map[string]any{"type": "res", "id": f.ID, "ok": false, "error": map[string]string{"code": "UNAUTHORIZED", "message": "wrong token"}})
				continue
			}
			c.mu.Lock()
			boot := fmt.Sprint("boot-", c.boot)
			c.mu.Unlock()
			answer(f.ID, map[string]any{"type": "hello-ok", "protocol": 4, "server": map[string]string{"bootId": boot, "connId": "x"}})
		case "agent":
			wg.Go(func() { c.agent(ctx, f.ID, f.Params.IdempotencyKey, f.Params.Message, send) })
		case "agent.wait":
			wg.Go(func() { answer(f.ID, c.wait(ctx, f.Params.RunID, time.Duration(f.Params.TimeoutMS)*time.Millisecond)) })
		case "chat.abort":
			c.change(func() { c.aborted = append(c.aborted, f.Params.RunID) })
			answer(f.ID, map[string]any{"ok": true})
		case "chat.history":
			c.mu.Lock()
			active := false
			for _, x := range c.cache {
				active = active || x == ""
			}
			h := map[string]any{"messages": c.transcript, "inputReceipts": []any{}, "hasActiveRun": active}
			c.mu.Unlock()
			answer(f.ID, h)
		}
	}
}

func (c *claw) agent(ctx context.Context, id, key, message string, send func(any)) {
	final := func(text string) {
		status := "ok"
		if strings.HasPrefix(text, "error") {
			status = "error"
		}
		send(map[string]any{"type": "res", "id": id, "ok": true, "payload": map[string]any{"runId": key, "status": status, "summary": text, "result": map[string]any{"payloads": []map[string]string{{"text": text}}}}})
	}
	c.mu.Lock()
	refuse := c.refuse
	c.refuse = nil
	text, known := c.cache[key]
	if !known && refuse == nil {
		c.asked[key]++
		c.cache[key] = ""
		said := map[string]any{"role": "user", "content": "[Wed 12:00] " + message, "idempotencyKey": key + ":user"}
		if c.noKeys {
			delete(said, "idempotencyKey")
		}
		c.transcript = append(c.transcript, said)
	}
	boot := c.boot
	c.mu.Unlock()
	if refuse != nil {
		send(map[string]any{"type": "res", "id": id, "ok": false, "error": refuse})
		return
	}
	switch {
	case known && text != "":
		final(text)
		return
	case known: // and that is all that who asks again is told
		send(map[string]any{"type": "res", "id": id, "ok": true, "payload": map[string]any{"runId": key, "status": "in_flight"}})
		return
	}
	send(map[string]any{"type": "res", "id": id, "ok": true, "payload": map[string]any{"runId": key, "status": "accepted"}})
	if message == "hold" {
		c.entered <- key
		<-c.hold // the turn goes on without its connection
	}
	text = "claw says: " + message
	if message == "error" {
		text = "error of the model"
	}
	alive := false
	c.change(func() {
		if alive = c.boot == boot; alive {
			if c.cache[key] == "" {
				c.transcript = append(c.transcript, map[string]any{"role": "assistant", "content": []map[string]string{{"type": "text", "text": text}}})
			}
			c.cache[key] = text
			close(c.changed)
			c.changed = make(chan struct{})
		}
	})
	broken := false
	c.change(func() { broken, c.breaks = c.breaks, false })
	if broken {
		send(map[string]any{"type": "res", "id": id, "ok": false, "error": remoteError{"UNAVAILABLE", "shutting down"}})
		return
	}
	if alive && ctx.Err() == nil {
		final(text)
	}
}

// wait is agent.wait: a run that the process does not know is one that has not ended yet.
func (c *claw) wait(ctx context.Context, run string, most time.Duration) map[string]any {
	timer := time.NewTimer(most)
	defer timer.Stop()
	for {
		c.mu.Lock()
		text, changed := c.cache[run], c.changed
		c.mu.Unlock()
		switch {
		case strings.HasPrefix(text, "error"):
			return map[string]any{"runId": run, "status": "error", "error": text, "endedAt": 1}
		case text != "":
			return map[string]any{"runId": run, "status": "ok", "endedAt": 1}
		}
		select {
		case <-changed:
		case <-timer.C:
			return map[string]any{"runId": run, "status": "timeout"}
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *claw) times(id string) (n int) {
	c.change(func() { n = c.asked[id] })
	return n
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	t.Cleanup(cancel)
	return ctx
}

func newStore(t *testing.T) bus.Store {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "mesh.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// gatewayOn is a gateway's bus with the agent jerry, whom OpenClaw stands behind.
func gatewayOn(t *testing.T, name string, s bus.Store, r agent.Runner) *bus.Bus {
	t.Helper()
	b, _ := gatewayAndPeer(t, name, s, r)
	return b
}

func gatewayAndPeer(t *testing.T, name string, s bus.Store, r agent.Runner) (*bus.Bus, *peer) {
	t.Helper()
	h, err := New("1.2.3")(agent.Spec{ID: "jerry", Runner: r}, agent.Deps{Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	p := h.(*peer)
	p.idleAfter = 50 * time.Millisecond
	b, err := bus.New(bus.Config{Gateway: name, Store: s, Retry: bus.RetryPolicy{Initial: 10 * time.Millisecond, Max: 20 * time.Millisecond}, DrainGrace: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(bus.AgentSpec{ID: "jerry"}, h); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(within(t)); err != nil {
			t.Error(err)
		}
		for deadline := time.Now().Add(longest); ; <-time.After(5 * time.Millisecond) { // the connection is let go
			p.mu.Lock()
			gone := p.conn == nil
			p.mu.Unlock()
			if gone || time.Now().After(deadline) {
				break
			}
		}
	})
	return b, p
}

func (c *claw) runner() agent.Runner { return agent.Runner{URL: c.URL, Token: token} }

func begin(t *testing.T, b *bus.Bus, text string, ttl time.Duration) string {
	t.Helper()
	for ctx := within(t); ; {
		s, err := b.AskAPI(ctx, bus.Outgoing{From: "user", To: envelope.Address{Agent: "jerry"}, Payload: envelope.TextPayload(text), ConversationID: "talk", TTL: ttl})
		if err == nil {
			return s.MessageID
		}
		if !errors.Is(err, bus.ErrUnknownAgent) || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func await(t *testing.T, b *bus.Bus, id string) (reply string, f bus.Facts) {
	t.Helper()
	tr, err := b.Await(within(t), id, busEnd)
	if err != nil {
		t.Fatalf("%v: %+v", err, tr.Facts)
	}
	if tr.Reply != nil {
		reply = agent.Text(tr.Reply.Payload)
	}
	return reply, tr.Facts
}

func TestTurns(t *testing.T) {
	c := newClaw(t)
	b := gatewayOn(t, "one", newStore(t), c.runner())
	for range 2 {
		id := begin(t, b, "hello", time.Minute)
		if reply, f := await(t, b, id); reply != "claw says: hello" || c.times(id) != 1 {
			t.Errorf("%q %+v, asked %d times", reply, f, c.times(id))
		}
	}
	if _, f := await(t, b, begin(t, b, "error", time.Minute)); f.Class != envelope.ClassUndeliverable || !strings.Contains(f.Reason, "error of the model") {
		t.Errorf("%+v %s", f, f.Reason)
	}
	c.change(func() { c.refuse = &remoteError{"UNAVAILABLE", "submit a new turn"} })
	id := begin(t, b, "after a while", time.Minute)
	if reply, f := await(t, b, id); reply != "claw says: after a while" || c.times(id) != 1 {
		t.Errorf("%q %+v", reply, f)
	}
	c.change(func() { c.refuse = &remoteError{"INVALID_REQUEST", "no such agent"} })
	if _, f := await(t, b, begin(t, b, "nobody", time.Minute)); f.Class != envelope.ClassUndeliverable || !strings.Contains(f.Reason, "no such agent") {
		t.Errorf("%+v %s", f, f.Reason)
	}
}

// The connection is lost in the middle of a turn: the same process is asked for the same run.
func TestConnectionLost(t *testing.T) {
	c := newClaw(t)
	b := gatewayOn(t, "one", newStore(t), c.runner())
	id := begin(t, b, "hold", time.Minute)
	<-c.entered
	c.drop()
	close(c.hold)
	if reply, f := await(t, b, id); reply != "claw says: hold" || c.times(id) != 1 {
		t.Errorf("%q %+v, asked %d times", reply, f, c.times(id))
	}
}

// A turn that began and is told to be over without an answer: what the session has of it counts.
func TestBrokenTurn(t *testing.T) {
	c := newClaw(t)
	c.change(func() { c.breaks = true })
	b := gatewayOn(t, "one", newStore(t), c.runner())
	id := begin(t, b, "hello", time.Minute)
	if reply, f := await(t, b, id); reply != "claw says: hello" || c.times(id) != 1 {
		t.Errorf("%q %+v, asked %d times", reply, f, c.times(id))
	}
}

// A turn whose message's time is up is ended, and told of.
func TestTimeIsUp(t *testing.T) {
	t.Parallel() // it takes the allowance for clocks
	c := newClaw(t)
	b := gatewayOn(t, "one", newStore(t), c.runner())
	id := begin(t, b, "hold", time.Second)
	<-c.entered
	defer close(c.hold)
	if _, f := await(t, b, id); f.Replied {
		t.Errorf("%+v", f)
	}
	for deadline := time.Now().Add(longest); ; <-time.After(5 * time.Millisecond) {
		var aborted []string
		c.change(func() { aborted = slices.Clone(c.aborted) })
		if len(aborted) == 1 && aborted[0] == id {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("aborted: %v", aborted)
		}
	}
}

// OpenClaw is started anew: what the transcript has of the message decides.
func TestStartedAnew(t *testing.T) {
	for _, x := range []struct {
		name, reply string
		class       envelope.Class
		times       int
		before      func(c *claw, id string) // what the new process knows
	}{
		{"it had answered", "from before", "", 1, func(c *claw, _ string) {
			c.transcript = append(c.transcript, map[string]any{"role": "assistant", "content": []map[string]string{{"type": "text", "text": "from before"}}})
		}},
		{"it never got it", "claw says: hold", "", 2, func(c *claw, _ string) { c.transcript = nil }},
		{"an older one, answered", "from before", "", 1, func(c *claw, _ string) {
			for _, x := range c.transcript {
				delete(x, "idempotencyKey")
			}
			c.transcript = append(c.transcript, map[string]any{"role": "assistant", "content": "from before"})
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newClaw(t)
			b := gatewayOn(t, "one", newStore(t), c.runner())
			id := begin(t, b, "hold", time.Minute)
			<-c.entered
			c.change(func() { x.before(c, id) })
			c.restart()
			close(c.hold)
			if reply, f := await(t, b, id); reply != x.reply || f.Class != x.class || c.times(id) != x.times {
				t.Errorf("%q %+v (%s), asked %d times", reply, f, f.Reason, c.times(id))
			}
		})
	}
}

// The transcript alone decides these.
func TestOutcome(t *testing.T) {
	const said, id = "how is it", "run-1"
	user, answer := `{"role":"user","content":"[Wed] how is it","idempotencyKey":"run-1:user"}`, `{"role":"assistant","content":[{"type":"text","text":"fine"}]}`
	other, old := `{"role":"user","content":"how is it","idempotencyKey":"run-0:user"}`, `{"role":"user","content":"how is it"}`
	tool, resumed := `{"role":"assistant","content":[{"type":"toolCall","name":"x"}]}`, `{"role":"user","content":"go on","idempotencyKey":"recovery:user"}`
	for _, c := range []struct {
		name, doc, text string
		state           outcomeState
	}{
		{"nothing", `{}`, "", absent},
		{"answered", `{"messages":[` + user + `,` + answer + `]}`, "fine", answered},
		{"answered by the recovery", `{"messages":[` + user + `,` + tool + `,` + resumed + `,` + answer + `]}`, "fine", answered},
		{"in the middle", `{"messages":[` + user + `,` + tool + `]}`, "", interrupted},
		{"in flight", `{"messages":[` + user + `,` + answer + `],"inFlightRun":{"runId":"run-1"}}`, "", interrupted},
		{"active", `{"messages":[` + user + `,` + answer + `],"hasActiveRun":true}`, "", interrupted},
		{"another one's", `{"messages":[` + other + `,` + answer + `]}`, "", absent},
		{"of before keys, and another one's", `{"messages":[` + old + `,` + answer + `,` + other + `,` + answer + `]}`, "", absent},
		{"without keys", `{"messages":[` + old + `,` + tool + `,` + answer + `]}`, "fine", answered},
		{"twice, without keys", `{"messages":[` + old + `,` + answer + `,` + old + `,` + answer + `]}`, "", interrupted},
		{"waits there", `{"messages":[],"pendingInputs":{"items":[{"runId":"run-1","state":"queued"}]}}`, "", interrupted},
		{"was cancelled there", `{"messages":[],"pendingInputs":{"items":[{"runId":"run-1","state":"cancelled"}]}}`, "", absent},
	} {
		var h history
		if err := json.Unmarshal([]byte(c.doc), &h); err != nil {
			t.Fatal(err)
		}
		if text, state := h.of(said, id); text != c.text || state != c.state {
			t.Errorf("%s: %q %d", c.name, text, state)
		}
	}
}

// The gateway that asked stops: the next one asks for the same run.
func TestNextOwner(t *testing.T) {
	c := newClaw(t)
	s := newStore(t)
	asker, err := bus.New(bus.Config{Gateway: "asker", Store: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := asker.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := asker.Stop(within(t)); err != nil {
			t.Error(err)
		}
	})
	one := gatewayOn(t, "one", s, c.runner())
	gatewayOn(t, "two", s, c.runner())
	id := begin(t, asker, "hold", time.Minute)
	<-c.entered
	if err := one.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	close(c.hold)
	if reply, f := await(t, asker, id); reply != "claw says: hold" || c.times(id) != 1 {
		t.Errorf("%q %+v, asked %d times", reply, f, c.times(id))
	}
}

// A gateway that is away is waited for; one that refuses the token is told of, without it.
func TestAwayAndRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	b := gatewayOn(t, "one", newStore(t), agent.Runner{URL: "ws://" + addr, Token: token})
	id := begin(t, b, "hello", time.Minute)
	for deadline := time.Now().Add(longest); ; <-time.After(5 * time.Millisecond) {
		if tr, _, ok := b.Track(id); ok && tr.Facts.Delivered {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not tried")
		}
	}
	c := newClaw(t)
	if l, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	later := &http.Server{Handler: c.Config.Handler, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = later.Serve(l) }()
	t.Cleanup(func() { c.drop(); _ = later.Close(); <-done })
	if reply, f := await(t, b, id); reply != "claw says: hello" || c.times(id) != 1 {
		t.Errorf("%q %+v", reply, f)
	}
	b = gatewayOn(t, "two", newStore(t), agent.Runner{URL: c.URL, Token: "another-secret"})
	if _, f := await(t, b, begin(t, b, "hello", time.Minute)); !f.Dead || !strings.Contains(f.Reason, "UNAUTHORIZED") || strings.Contains(f.Reason, "another-secret") {
		t.Errorf("%+v %s", f, f.Reason)
	}
	for _, u := range []string{"", "jerry", "ftp://x", "ws://u:pass@x"} {
		if _, err := New("x")(agent.Spec{Runner: agent.Runner{URL: u}}, agent.Deps{}); err == nil || strings.Contains(err.Error(), "pass") {
			t.Errorf("%q: %v", u, err)
		}
	}
}

// busEnd: the question is answered, or given up.
func busEnd(x bus.Track) bool { return x.Facts.Replied || x.Facts.Dead }
