package a2aserver

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2aclient"
	"github.com/a2aproject/a2a-go/v2/a2aclient/agentcard"
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

// worker counts what it is asked, answers "count: text", holds what says "hold" until it is let go, and refuses "never".
type worker struct {
	count   atomic.Int64
	entered chan struct{}
	leave   chan struct{}
}

func (w *worker) factory(agent.Spec, agent.Deps) (bus.Handler, error) {
	return bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
		n := w.count.Add(1)
		text := m.Envelope().Text()
		if strings.HasPrefix(text, "hold") {
			w.entered <- struct{}{}
			select {
			case <-w.leave:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		switch {
		case text == "never":
			return bus.Never(envelope.ClassPoison, errors.New("not that"))
		case strings.HasPrefix(text, "{"):
			return m.Reply(json.RawMessage(fmt.Sprintf(`{"text":"an object","count":%d}`, n)))
		}
		return m.Reply(envelope.TextPayload(fmt.Sprintf("%d: %s", n, text)))
	}), nil
}

// tokenOf is the token of who may send.
func tokenOf(who string) string { return who + "-s token, which nobody guesses in this test" }

// mesh starts three gateways on one store: bobby lives on the first, and the queue chores is kept there.
func mesh(t *testing.T, w *worker) (urls []string) {
	t.Helper()
	store, err := local.Open(filepath.Join(t.TempDir(), "mesh.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	senders := ""
	for _, who := range []string{"anna", "berta"} {
		senders += fmt.Sprintf(`{ name: %q, role: "send", sha256: "%x" },`, who, sha256.Sum256([]byte(tokenOf(who))))
	}
	for i, name := range []string{"home", "edge", "other"} {
		agents := `{ id: "own-` + name + `", runner: "echo" }`
		if i == 0 {
			agents = `{ id: "bobby", name: "Bobby", description: "looks after things", capabilities: ["infra.check"], runner: "echo" }`
		}
		queues := `queues: [{ id: "chores", agent: "bobby", gateways: ["home"], workers: ["home"] }],`
		if i > 0 {
			queues = ""
		}
		cfg, _, err := gateway.ParseConfig(name+".json5", []byte(fmt.Sprintf(`{ mesh: { gateway: %q, store: "local", policy: { default: "allow" }, %s },
			gateway: { port: 0, auth: { token: %q, tokens: [%s] } }, agents: { list: [%s] } }`, name, queues, token, senders, agents)), func(string) (string, bool) { return "", false })
		if err != nil {
			t.Fatal(err)
		}
		g, err := gateway.New(cfg, gateway.Deps{Store: store, Runners: agent.Runners{"echo": w.factory, "relay": agent.NewRelay}, A2A: func(api http.Handler) http.Handler { return Handler("1.2.3", api) }, Logger: hclog.NewNullLogger()})
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
		urls = append(urls, "http://"+g.Addr().String())
	}
	return urls
}

type bearer struct {
	token string
	rt    http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.rt.RoundTrip(r)
}

// client is a2a-go's own, which begins with the agent's card.
func client(t *testing.T, base, agent, token string) (*a2aclient.Client, *a2a.AgentCard, error) {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	hc := &http.Client{Transport: bearer{token, tr}}
	var card *a2a.AgentCard
	var err error
	for ctx := within(t); ; { // the registry of another gateway follows
		if card, err = agentcard.NewResolver(hc).Resolve(ctx, base+"/a2a/"+agent); err == nil {
			break
		}
		var status *agentcard.ErrStatusNotOK
		if !errors.As(err, &status) || status.StatusCode != http.StatusNotFound && status.StatusCode != http.StatusServiceUnavailable || agent == "nobody" {
			return nil, nil, err
		}
	}
	c, err := a2aclient.NewFromCard(within(t), card, a2aclient.WithJSONRPCTransport(hc))
	if err != nil {
		return nil, nil, err
	}
	t.Cleanup(func() { _ = c.Destroy() })
	return c, card, nil
}

func mustClient(t *testing.T, base, agent string) *a2aclient.Client {
	t.Helper()
	c, _, err := client(t, base, agent, token)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func asks(text string) *a2a.SendMessageRequest {
	return &a2a.SendMessageRequest{Message: a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart(text))}
}

func send(t *testing.T, c *a2aclient.Client, req *a2a.SendMessageRequest) *a2a.Task {
	t.Helper()
	res, err := c.SendMessage(within(t), req)
	if err != nil {
		t.Fatal(err)
	}
	task, ok := res.(*a2a.Task)
	if !ok {
		t.Fatalf("%T, want a task", res)
	}
	return task
}

func answer(t *testing.T, task *a2a.Task) string {
	t.Helper()
	if task.Status.State != a2a.TaskStateCompleted || len(task.Artifacts) != 1 {
		t.Fatalf("%+v, want it completed", task)
	}
	return task.Artifacts[0].Parts[0].Text()
}

// One question asked at one gateway of an agent on another: its task is known at a third, and asking it again is no second question.
func TestTasksAreTheMeshs(t *testing.T) {
	w := &worker{}
	urls := mesh(t, w)
	edge, card, err := client(t, urls[1], "bobby", token)
	if err != nil {
		t.Fatal(err)
	}
	other := mustClient(t, urls[2], "bobby")
	if card.Name != "Bobby" || card.Version != "1.2.3" || len(card.Skills) != 1 || card.Skills[0].ID != "infra.check" || !card.Capabilities.Streaming || card.SupportedInterfaces[0].ProtocolVersion != a2a.Version {
		t.Errorf("%+v", card)
	}
	req := asks("well?")
	req.Message.ContextID = "our-talk"
	task := send(t, edge, req)
	if got := answer(t, task); got != "1: well?" || task.ContextID != "our-talk" {
		t.Errorf("%q in %q", got, task.ContextID)
	}
	seen, err := other.GetTask(within(t), &a2a.GetTaskRequest{ID: task.ID})
	if err != nil {
		t.Fatal(err)
	}
	if answer(t, seen) != "1: well?" || seen.ContextID != "our-talk" || seen.ID != task.ID {
		t.Errorf("from another gateway: %+v", seen)
	}
	for _, c := range []*a2aclient.Client{edge, other} {
		if again := send(t, c, req); answer(t, again) != "1: well?" || again.ID != task.ID {
			t.Errorf("the same message: %+v", again)
		}
	}
	if next := answer(t, send(t, other, asks("and now?"))); next != "2: and now?" {
		t.Errorf("%q: a repeated message was asked again", next)
	}
	data := &a2a.SendMessageRequest{Message: a2a.NewMessage(a2a.MessageRoleUser, a2a.NewDataPart(map[string]any{"look": true}))}
	if got := send(t, edge, data); answer(t, got) != "an object" || got.Artifacts[0].Parts[1].Data().(map[string]any)["count"] != 3.0 {
		t.Errorf("%+v", got.Artifacts[0])
	}
	failed := send(t, edge, asks("never"))
	if failed.Status.State != a2a.TaskStateFailed || failed.Status.Message == nil || !strings.Contains(failed.Status.Message.Parts[0].Text(), "not that") {
		t.Errorf("%+v", failed.Status)
	}
}

// A stream tells of the task's way, one who comes later is told the rest, and who has gone loses nothing.
func TestStream(t *testing.T) {
	w := &worker{entered: make(chan struct{}, 8), leave: make(chan struct{})}
	urls := mesh(t, w)
	edge, other := mustClient(t, urls[1], "bobby"), mustClient(t, urls[2], "bobby")
	now := asks("hold on")
	now.Config = &a2a.SendMessageConfig{ReturnImmediately: true}
	task := send(t, edge, now)
	if task.Status.State.Terminal() {
		t.Fatalf("%+v at once", task)
	}
	<-w.entered
	let := false
	tell := func(events func(func(a2a.Event, error) bool)) (states []a2a.TaskState, text string) {
		for ev, err := range events {
			if err != nil {
				t.Fatal(err)
			}
			switch e := ev.(type) {
			case *a2a.Task:
				states = append(states, e.Status.State)
			case *a2a.TaskStatusUpdateEvent:
				states = append(states, e.Status.State)
			case *a2a.TaskArtifactUpdateEvent:
				text = e.Artifact.Parts[0].Text()
			}
			if !let {
				let = true
				close(w.leave)
			}
		}
		return states, text
	}
	states, text := tell(other.SubscribeToTask(within(t), &a2a.SubscribeToTaskRequest{ID: task.ID}))
	if text != "1: hold on" || states[len(states)-1] != a2a.TaskStateCompleted {
		t.Errorf("%v %q", states, text)
	}
	states, text = tell(edge.SendStreamingMessage(within(t), asks("flow")))
	if text != "2: flow" || states[len(states)-1] != a2a.TaskStateCompleted {
		t.Errorf("%v %q", states, text)
	}
	for _, err := range other.SubscribeToTask(within(t), &a2a.SubscribeToTaskRequest{ID: task.ID}) {
		if !errors.Is(err, a2a.ErrUnsupportedOperation) {
			t.Errorf("subscribe to what has ended: %v", err)
		}
	}
}

// A question is given up from any gateway: while the agent works on it, and while it waits behind another one. What has ended cannot be.
func TestCancelQuestion(t *testing.T) {
	w := &worker{entered: make(chan struct{}, 8), leave: make(chan struct{})}
	urls := mesh(t, w)
	c, edge := mustClient(t, urls[0], "bobby"), mustClient(t, urls[len(urls)-1], "bobby")
	ask := func(text string) (*a2a.SendMessageRequest, *a2a.Task) {
		req := asks(text)
		req.Message.ContextID = "talk"
		req.Config = &a2a.SendMessageConfig{ReturnImmediately: true}
		return req, send(t, c, req)
	}
	_, running := ask("hold this")
	<-w.entered
	req, waiting := ask("hold that, too")
	if _, err := mustClient(t, urls[0], "own-edge").CancelTask(within(t), &a2a.CancelTaskRequest{ID: waiting.ID}); !errors.Is(err, a2a.ErrTaskNotFound) {
		t.Errorf("another agent's: %v", err)
	}
	for _, id := range []a2a.TaskID{waiting.ID, running.ID} {
		task, err := edge.CancelTask(within(t), &a2a.CancelTaskRequest{ID: id})
		if err != nil || task.Status.State != a2a.TaskStateCanceled {
			t.Fatalf("%+v, %v", task, err)
		}
	}
	if got := send(t, c, &a2a.SendMessageRequest{Message: req.Message}); got.Status.State != a2a.TaskStateCanceled {
		t.Errorf("the same question again: %+v", got.Status)
	}
	done := send(t, c, asks("quick"))
	if n := w.count.Load(); n != 2 || done.Status.State != a2a.TaskStateCompleted {
		t.Errorf("the agent worked %d times, %+v", n, done.Status)
	}
	for _, id := range []a2a.TaskID{waiting.ID, running.ID, done.ID} {
		if _, err := edge.CancelTask(within(t), &a2a.CancelTaskRequest{ID: id}); !errors.Is(err, a2a.ErrTaskNotCancelable) {
			t.Errorf("what has ended: %v", err)
		}
	}
	if _, err := c.CancelTask(within(t), &a2a.CancelTaskRequest{ID: a2a.TaskID(envelope.NewID())}); !errors.Is(err, a2a.ErrTaskNotFound) {
		t.Errorf("nothing: %v", err)
	}
}

// Who may send cancels what he asked, from whatever gateway, and nothing that others did.
func TestCancelOnesOwn(t *testing.T) {
	w := &worker{entered: make(chan struct{}, 8), leave: make(chan struct{})}
	urls := mesh(t, w)
	as := func(url, who string) *a2aclient.Client {
		c, _, err := client(t, url, "bobby", tokenOf(who))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	req := asks("hold this")
	req.Config = &a2a.SendMessageConfig{ReturnImmediately: true}
	task := send(t, as(urls[0], "anna"), req)
	<-w.entered
	cancel := &a2a.CancelTaskRequest{ID: task.ID}
	if _, err := as(urls[0], "berta").CancelTask(within(t), cancel); !errors.Is(err, a2a.ErrUnauthorized) {
		t.Errorf("another one's: %v", err)
	}
	if got, err := as(urls[1], "anna").CancelTask(within(t), cancel); err != nil || got.Status.State != a2a.TaskStateCanceled {
		t.Errorf("one's own: %+v, %v", got, err)
	}
	if _, err := as(urls[1], "berta").CancelTask(within(t), cancel); errors.Is(err, a2a.ErrTaskNotCancelable) || err == nil {
		t.Errorf("another one's, which has ended: %v", err)
	}
}

// A task of a queue is given up, also while it runs.
func TestCancel(t *testing.T) {
	w := &worker{entered: make(chan struct{}, 8), leave: make(chan struct{})}
	urls := mesh(t, w)
	mustClient(t, urls[0], "bobby") // it is served
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	c, err := a2aclient.NewFromEndpoints(within(t), []*a2a.AgentInterface{a2a.NewAgentInterface(urls[0]+"/a2a/chores", a2a.TransportProtocolJSONRPC)},
		a2aclient.WithJSONRPCTransport(&http.Client{Transport: bearer{token, tr}}))
	if err != nil {
		t.Fatal(err)
	}
	req := asks("hold this")
	req.Config = &a2a.SendMessageConfig{ReturnImmediately: true}
	task := send(t, c, req)
	<-w.entered
	if _, err := c.CancelTask(within(t), &a2a.CancelTaskRequest{ID: task.ID}); err != nil {
		t.Fatal(err)
	}
	if got := send(t, c, &a2a.SendMessageRequest{Message: req.Message}); got.Status.State != a2a.TaskStateCanceled {
		t.Errorf("%+v", got.Status)
	}
	if _, err := c.CancelTask(within(t), &a2a.CancelTaskRequest{ID: task.ID}); !errors.Is(err, a2a.ErrTaskNotCancelable) {
		t.Errorf("cancel what has ended: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	urls := mesh(t, &worker{})
	if _, _, err := client(t, urls[0], "bobby", "wrong"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("a card for a wrong token: %v", err)
	}
	if _, _, err := client(t, urls[0], "nobody", token); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a card of nobody: %v", err)
	}
	c := mustClient(t, urls[0], "bobby")
	bad := func(want error, change func(*a2a.SendMessageRequest)) {
		t.Helper()
		req := asks("x")
		change(req)
		if _, err := c.SendMessage(within(t), req); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	bad(a2a.ErrInvalidParams, func(r *a2a.SendMessageRequest) { r.Message.ID = "" })
	bad(a2a.ErrInvalidParams, func(r *a2a.SendMessageRequest) { r.Message.Parts = a2a.ContentParts{a2a.NewTextPart(" ")} })
	bad(a2a.ErrInvalidParams, func(r *a2a.SendMessageRequest) { r.Message.ContextID = strings.Repeat("x", 5000) })
	bad(a2a.ErrUnsupportedContentType, func(r *a2a.SendMessageRequest) { r.Message.Parts = a2a.ContentParts{a2a.NewRawPart([]byte("x"))} })
	bad(a2a.ErrUnsupportedOperation, func(r *a2a.SendMessageRequest) { r.Message.TaskID = "another" })
	for _, id := range []string{envelope.NewID(), "../x"} {
		if _, err := c.GetTask(within(t), &a2a.GetTaskRequest{ID: a2a.TaskID(id)}); !errors.Is(err, a2a.ErrTaskNotFound) {
			t.Errorf("task %s: %v", id, err)
		}
	}
	if _, err := c.ListTasks(within(t), &a2a.ListTasksRequest{}); !errors.Is(err, a2a.ErrUnsupportedOperation) {
		t.Errorf("list: %v", err)
	}
}
