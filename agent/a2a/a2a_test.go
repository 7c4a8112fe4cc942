package a2a_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	a2aproto "github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2asrv"
	"github.com/a2aproject/a2a-go/v2/a2asrv/taskstore"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/a2a"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/envelope"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

const (
	longest = 30 * time.Second
	secret  = "the-token-for-the-remote-agent"
)

// remote is an A2A agent of the official SDK, behind a door that may misbehave.
type remote struct {
	*httptest.Server
	t *testing.T

	mu        sync.Mutex
	asked     map[string]int // by message id
	cancelled int
	hold      chan struct{}
	entered   chan struct{}
	loseReply int  // of so many SendMessage requests
	noList    bool // it cannot list its tasks
	refuse    bool // whatever comes
	elsewhere string
}

func newRemote(t *testing.T) *remote {
	t.Helper()
	r := &remote{t: t, asked: map[string]int{}, hold: make(chan struct{}), entered: make(chan struct{}, 10)}
	store := taskstore.NewInMemory(&taskstore.InMemoryStoreConfig{Authenticator: func(context.Context) (string, error) { return "gatemesh", nil }})
	rpc := a2asrv.NewJSONRPCHandler(a2asrv.NewHandler(r, a2asrv.WithTaskStore(store)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { r.serve(w, q, rpc) }))
	t.Cleanup(func() { r.CloseClientConnections(); r.Close() })
	return r
}

func (r *remote) serve(w http.ResponseWriter, q *http.Request, rpc http.Handler) {
	if q.Header.Get("Authorization") != "Bearer "+secret {
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	}
	if strings.HasSuffix(q.URL.Path, "/.well-known/agent-card.json") {
		at := r.URL + "/rpc"
		if r.elsewhere != "" {
			at = r.elsewhere
		}
		a2asrv.NewStaticAgentCardHandler(&a2aproto.AgentCard{Name: "Remote", SupportedInterfaces: []*a2aproto.AgentInterface{a2aproto.NewAgentInterface(at, a2aproto.TransportProtocolJSONRPC)}}).ServeHTTP(w, q)
		return
	}
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return
	}
	q.Body = io.NopCloser(bytes.NewReader(body))
	var call struct {
		Method string
		ID     json.RawMessage
	}
	_ = json.Unmarshal(body, &call)
	r.mu.Lock()
	lose := call.Method == "SendMessage" && r.loseReply > 0
	if lose {
		r.loseReply--
	}
	noList, refuse := r.noList, r.refuse
	r.mu.Unlock()
	switch {
	case refuse:
		http.Error(w, "broken", http.StatusBadGateway)
	case noList && call.Method == "ListTasks":
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"method not found"}}`, call.ID)
	case lose:
		rpc.ServeHTTP(httptest.NewRecorder(), q)
		panic(http.ErrAbortHandler) // it has it, and nobody hears so
	default:
		rpc.ServeHTTP(w, q)
	}
}

// Execute implements a2asrv.AgentExecutor.
func (r *remote) Execute(ctx context.Context, x *a2asrv.ExecutorContext) iter.Seq2[a2aproto.Event, error] {
	return func(yield func(a2aproto.Event, error) bool) {
		text := ""
		if p := x.Message.Parts; len(p) == 1 {
			text = p[0].Text()
		}
		r.mu.Lock()
		r.asked[x.Message.ID]++
		r.mu.Unlock()
		if text == "message" {
			yield(a2aproto.NewMessage(a2aproto.MessageRoleAgent, a2aproto.NewTextPart("without a task")), nil)
			return
		}
		if !yield(a2aproto.NewSubmittedTask(x, x.Message), nil) {
			return
		}
		if text == "hold" {
			r.entered <- struct{}{}
			select {
			case <-r.hold:
			case <-ctx.Done():
				return
			}
		}
		say := func(state a2aproto.TaskState, text string) {
			yield(a2aproto.NewStatusUpdateEvent(x, state, a2aproto.NewMessageForTask(a2aproto.MessageRoleAgent, x, a2aproto.NewTextPart(text))), nil)
		}
		switch text {
		case "fail":
			say(a2aproto.TaskStateFailed, "it broke")
		case "reject":
			say(a2aproto.TaskStateRejected, "not that")
		case "input":
			say(a2aproto.TaskStateInputRequired, "which one?")
		default:
			part := a2aproto.NewTextPart("done: " + text)
			if text == "" {
				part = a2aproto.NewDataPart(map[string]any{"n": 7.0})
			}
			if yield(a2aproto.NewArtifactEvent(x, part), nil) {
				yield(a2aproto.NewStatusUpdateEvent(x, a2aproto.TaskStateCompleted, nil), nil)
			}
		}
	}
}

// Cancel implements a2asrv.AgentExecutor.
func (r *remote) Cancel(_ context.Context, x *a2asrv.ExecutorContext) iter.Seq2[a2aproto.Event, error] {
	return func(yield func(a2aproto.Event, error) bool) {
		r.mu.Lock()
		r.cancelled++
		r.mu.Unlock()
		yield(a2aproto.NewStatusUpdateEvent(x, a2aproto.TaskStateCanceled, nil), nil)
	}
}

func (r *remote) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *remote) times(id string) (n int) {
	r.change(func() { n = r.asked[id] })
	return n
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	t.Cleanup(cancel)
	return ctx
}

// gatewayOn is a gateway's bus on a store, with the agent far that the remote agent stands behind.
func gatewayOn(t *testing.T, name string, s bus.Store, r agent.Runner) *bus.Bus {
	t.Helper()
	h, err := a2a.New(agent.Spec{ID: "far", Runner: r}, agent.Deps{Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.New(bus.Config{Gateway: name, Store: s, Retry: bus.RetryPolicy{Initial: 10 * time.Millisecond, Max: 50 * time.Millisecond}, DrainGrace: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(bus.AgentSpec{ID: "far"}, h); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(within(t)); err != nil {
			t.Error(err)
		}
	})
	return b
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

func (r *remote) runner() agent.Runner { return agent.Runner{URL: r.URL, Token: secret} }

// begin sends a question, and ask waits for its end.
func begin(t *testing.T, b *bus.Bus, payload string, ttl time.Duration) string {
	t.Helper()
	for ctx := within(t); ; {
		s, err := b.AskAPI(ctx, bus.Outgoing{From: "user", To: envelope.Address{Agent: "far"}, Payload: []byte(payload), TTL: ttl})
		if err == nil {
			return s.MessageID
		}
		if !errors.Is(err, bus.ErrUnknownAgent) || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func await(t *testing.T, b *bus.Bus, id string) bus.Track {
	t.Helper()
	tr, err := b.Await(within(t), id, func(x bus.Track) bool { return x.Facts.Replied || x.Facts.Dead })
	if err != nil {
		t.Fatalf("%v: %+v", err, tr.Facts)
	}
	return tr
}

func TestAnswers(t *testing.T) {
	r := newRemote(t)
	b := gatewayOn(t, "one", newStore(t), r.runner())
	for _, c := range []struct {
		payload, reply, class, says string
	}{
		{`"hello"`, `"done: hello"`, "", ""},
		{`{"x":1}`, `{"n":7}`, "", ""},
		{`"message"`, `"without a task"`, "", ""},
		{`"input"`, `"which one?"`, "", ""},
		{`"fail"`, "", string(envelope.ClassUndeliverable), "it broke"},
		{`"reject"`, "", string(envelope.ClassUndeliverable), "not that"},
	} {
		id := begin(t, b, c.payload, time.Minute)
		tr := await(t, b, id)
		got := ""
		if tr.Reply != nil {
			got = string(tr.Reply.Payload)
		}
		if got != c.reply || string(tr.Facts.Class) != c.class || !strings.Contains(tr.Facts.Reason, c.says) {
			t.Errorf("%s: %s, %+v", c.payload, got, tr.Facts)
		}
		if n := r.times(id); n != 1 {
			t.Errorf("%s was asked %d times", c.payload, n)
		}
	}
}

// The reply to the question is lost: it is found among the remote agent's tasks, and not asked again.
func TestLostReply(t *testing.T) {
	r := newRemote(t)
	b := gatewayOn(t, "one", newStore(t), r.runner())
	r.change(func() { r.loseReply = 1 })
	id := begin(t, b, `"hello"`, time.Minute)
	if tr := await(t, b, id); tr.Reply == nil || string(tr.Reply.Payload) != `"done: hello"` || r.times(id) != 1 {
		t.Errorf("%+v (%s), asked %d times", tr.Facts, tr.Facts.Reason, r.times(id))
	}
	// An agent that cannot list its tasks: unknown, or asked again where that is known to do no harm.
	r.change(func() { r.loseReply, r.noList = 1, true })
	id = begin(t, b, `"hello again"`, time.Minute)
	if tr := await(t, b, id); tr.Facts.Class != envelope.ClassUnknown || r.times(id) != 1 {
		t.Errorf("%+v (%s), asked %d times", tr.Facts, tr.Facts.Reason, r.times(id))
	}
	again := r.runner()
	again.ResendSameID = true
	other := gatewayOn(t, "two", newStore(t), again)
	r.change(func() { r.loseReply = 1 })
	id = begin(t, other, `"once more"`, time.Minute)
	if tr := await(t, other, id); tr.Reply == nil || r.times(id) != 2 {
		t.Errorf("%+v (%s), asked %d times", tr.Facts, tr.Facts.Reason, r.times(id))
	}
}

// The gateway that asked stops while the remote agent works: the next one goes on with the task.
func TestNextOwnerGoesOn(t *testing.T) {
	r := newRemote(t)
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
	one := gatewayOn(t, "one", s, r.runner())
	gatewayOn(t, "two", s, r.runner())
	id := begin(t, asker, `"hold"`, time.Minute)
	<-r.entered
	if err := one.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	close(r.hold)
	if tr := await(t, asker, id); tr.Reply == nil || string(tr.Reply.Payload) != `"done: hold"` || r.times(id) != 1 {
		t.Errorf("%+v (%s), asked %d times", tr.Facts, tr.Facts.Reason, r.times(id))
	}
}

// A remote agent that is away: what is asked waits, over the death of who waits, and is asked once when the agent is there.
func TestAway(t *testing.T) {
	r := newRemote(t)
	addr := r.Listener.Addr().String()
	r.CloseClientConnections()
	r.Close()
	s := newStore(t)
	x := r.runner()
	one := gatewayOn(t, "one", s, x)
	var ids []string
	for i := range 3 {
		ids = append(ids, begin(t, one, fmt.Sprintf("\"hello %d\"", i), time.Minute))
	}
	for deadline := time.Now().Add(longest); ; <-time.After(5 * time.Millisecond) {
		if tr, _, ok := one.Track(ids[2]); ok && tr.Facts.Delivered {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not tried")
		}
	}
	if err := one.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	// The same gateway is started again, and the agent comes back.
	two := gatewayOn(t, "one", s, x)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	back := &http.Server{Handler: r.Config.Handler, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = back.Serve(l) }()
	t.Cleanup(func() { _ = back.Close(); <-done })
	for _, id := range ids {
		st, err := two.Lookup(within(t), id)
		for deadline := time.Now().Add(longest); err == nil && !st.State.Terminal() && time.Now().Before(deadline); st, err = two.Lookup(within(t), id) {
			<-time.After(20 * time.Millisecond)
		}
		if err != nil || st.State != envelope.Acked || r.times(id) != 1 {
			t.Errorf("%+v %v, asked %d times", st, err, r.times(id))
		}
	}
}

// A question whose time is up is cancelled at the remote agent.
func TestCancelledThere(t *testing.T) {
	r := newRemote(t)
	b := gatewayOn(t, "one", newStore(t), r.runner())
	id := begin(t, b, `"hold"`, 2*time.Second)
	<-r.entered
	if tr := await(t, b, id); !tr.Facts.Dead {
		t.Errorf("%+v", tr.Facts)
	}
	for deadline := time.Now().Add(longest); ; <-time.After(5 * time.Millisecond) {
		n := 0
		r.change(func() { n = r.cancelled })
		if n == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it goes on there")
		}
	}
	close(r.hold)
}

// An agent that does not answer is asked later; one that refuses the token, or whose card leads elsewhere, is told of without the token.
func TestTrouble(t *testing.T) {
	r := newRemote(t)
	r.change(func() { r.refuse = true })
	b := gatewayOn(t, "one", newStore(t), r.runner())
	id := begin(t, b, `"hello"`, time.Minute)
	for deadline := time.Now().Add(longest); ; <-time.After(5 * time.Millisecond) {
		if tr, _, ok := b.Track(id); ok && tr.Facts.Delivered {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not tried")
		}
	}
	r.change(func() { r.refuse = false })
	if tr := await(t, b, id); tr.Reply == nil || r.times(id) != 1 {
		t.Errorf("%+v (%s), asked %d times", tr.Facts, tr.Facts.Reason, r.times(id))
	}
	for _, c := range []struct {
		name, says string
		change     func(*agent.Runner)
	}{
		{"token", "401", func(x *agent.Runner) { x.Token = "another-secret-token" }},
		{"elsewhere", "elsewhere", func(*agent.Runner) { r.elsewhere = "https://thief.example/rpc" }},
		{"nowhere", "refused", func(x *agent.Runner) { x.URL = "http://127.0.0.1:1/agent" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := r.runner()
			c.change(&x)
			b := gatewayOn(t, "one", newStore(t), x)
			ttl := time.Minute
			if c.name == "nowhere" {
				ttl = 2 * time.Second
			}
			tr := await(t, b, begin(t, b, `"hello"`, ttl))
			if !tr.Facts.Dead || !strings.Contains(tr.Facts.Reason, c.says) || strings.Contains(tr.Facts.Reason, "secret") || strings.Contains(tr.Facts.Reason, secret) {
				t.Errorf("%+v", tr.Facts)
			}
		})
	}
	for _, u := range []string{"", "bobby", "ftp://x/", "https://user:pass@x/"} {
		if _, err := a2a.New(agent.Spec{Runner: agent.Runner{URL: u}}, agent.Deps{}); err == nil || strings.Contains(err.Error(), "pass") {
			t.Errorf("%q: %v", u, err)
		}
	}
}
