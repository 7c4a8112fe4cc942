// Package a2a is the runner a2a: an agent of the mesh whose work a remote agent does, which is asked by A2A 1.0 (https://a2a-protocol.org), through the
// official client library.
//
// # Once
//
// The remote message has the mesh message's id, and its context the conversation's. That it is sent is an effect ("a2a/send"): recorded before,
// and with the remote task's id after it. An attempt that finds the task's id, here or at the next owner, goes on asking after that task. One that finds only the intent asks
// the remote agent for the tasks of the context (ListTasks) and looks for its message in their histories; where that cannot be asked, what was sent stays unknown and nothing is
// sent again, unless resendSameId says that the remote agent takes a message id once (as a gatemesh gateway does).
//
// While the remote agent cannot be reached, a question waits in the agent's inbox, until its own time is up: so a laptop keeps what is meant for a mesh that is away.
//
// # The end
//
// A task that is completed, or asks for more input, is answered with its artifacts, else with the message of its status. One that failed, was rejected or
// cancelled is a dead letter that says why. When the mesh message's time is up first, the remote task is asked to be cancelled.
//
// The token goes to the host of the configured URL alone, whatever the agent's card says.
package a2a

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2aclient"
	"github.com/a2aproject/a2a-go/v2/a2aclient/agentcard"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// effectSend is the name of the effect.
	effectSend = "a2a/send"
	// callTimeout bounds one request.
	callTimeout = 30 * time.Second
	// firstLook and longestLook are the pauses between two looks at a task.
	firstLook, longestLook = 100 * time.Millisecond, 5 * time.Second
	// firstWait and longestWait are the pauses while the remote agent is away.
	firstWait, longestWait = 500 * time.Millisecond, 30 * time.Second
	// cancelTimeout bounds the request to cancel.
	cancelTimeout = 5 * time.Second
	// maxPages bounds a search for a message, in pages of a hundred tasks.
	maxPages = 10
)

// New is an [agent.Factory].
func New(spec agent.Spec, deps agent.Deps) (bus.Handler, error) {
	r := spec.Runner
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("it needs runner.url: where the remote agent's card is, without /.well-known/agent-card.json, as https://agents.example/bobby")
	}
	p := &peer{spec: spec, deps: deps, base: strings.TrimRight(r.URL, "/"), host: u.Host}
	p.client = &http.Client{
		Timeout: callTimeout, Transport: bearer{token: r.Token, host: u.Host, next: http.DefaultTransport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return p, nil
}

// bearer adds the token to requests to one host.
type bearer struct {
	token, host string
	next        http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" && r.URL.Host == b.host {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

// peer is the remote agent.
type peer struct {
	spec       agent.Spec
	deps       agent.Deps
	base, host string
	client     *http.Client

	mu     sync.Mutex
	remote *a2aclient.Client // nil: its card is not known, or did not serve
}

// connect returns a client made of the agent's card.
func (p *peer) connect(ctx context.Context) (*a2aclient.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.remote != nil {
		return p.remote, nil
	}
	card, err := agentcard.NewResolver(p.client).Resolve(ctx, p.base)
	var status *agentcard.ErrStatusNotOK
	switch {
	case errors.As(err, &status) && status.StatusCode < http.StatusInternalServerError:
		return nil, fmt.Errorf("read the card of the remote agent at %s: %w", p.host, plain(err))
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("the remote agent at %s %w: %w", p.host, errAway, plain(err))
	}
	for _, i := range card.SupportedInterfaces {
		if u, err := url.Parse(i.URL); err != nil || u.Host != p.host {
			return nil, fmt.Errorf("the card of the remote agent at %s names an interface elsewhere (%q), which is not asked: set runner.url to where it is", p.host, clip(i.URL))
		}
	}
	c, err := a2aclient.NewFromCard(ctx, card, a2aclient.WithJSONRPCTransport(p.client), a2aclient.WithRESTTransport(p.client))
	if err != nil {
		return nil, fmt.Errorf("the remote agent at %s: %w", p.host, plain(err))
	}
	p.remote = c
	return c, nil
}

// forget has the card read again: an agent that does not answer may have moved.
func (p *peer) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remote = nil
}

// Handle implements bus.Handler.
func (p *peer) Handle(ctx context.Context, m *bus.Incoming) error {
	for pause := firstWait; ; pause = min(2*pause, longestWait) {
		c, err := p.connect(ctx)
		var task *a2a.Task
		var answer *a2a.Message
		if err == nil {
			task, answer, err = p.begin(ctx, m, c)
		}
		switch {
		case errors.Is(err, errAway):
			if err := p.wait(ctx, m, pause, err); err != nil {
				return err
			}
			continue
		case err != nil:
			if !bus.IsNever(err) {
				p.forget()
			}
			return err
		case answer != nil:
			return reply(m, answer.Parts)
		}
		if task, err = p.follow(ctx, m, c, task); err != nil {
			return err
		}
		return end(m, task)
	}
}

// errAway: the remote agent cannot be reached, and has got nothing.
var errAway = errors.New("is not there")

// wait keeps a question while the remote agent is away, until the question's time is up. It is no failed attempt.
func (p *peer) wait(ctx context.Context, m *bus.Incoming, pause time.Duration, why error) error {
	p.forget()
	if pause == firstWait && p.deps.Logger != nil {
		p.deps.Logger.Info("a question waits for a remote agent that is away", "message_id", m.Envelope().MessageID, "error", why)
	}
	if left := time.Until(m.Envelope().ExpiresAt()); left > 0 {
		pause = min(pause, left+time.Millisecond)
	}
	if err := m.Pause(ctx, pause); err != nil {
		return err
	}
	if err := m.Guard(); err != nil {
		return fmt.Errorf("%w: %w", why, err)
	}
	return m.Working()
}

// begin has the remote agent take the message, once, and returns the task that it became, or the answer if there is none.
func (p *peer) begin(ctx context.Context, m *bus.Incoming, c *a2aclient.Client) (*a2a.Task, *a2a.Message, error) {
	was, known := m.Effect(effectSend)
	switch {
	case known && was.State.Made():
		if was.State == envelope.EffectUnknown || was.Ref == "" {
			return nil, nil, bus.Never(envelope.ClassUnknown, errors.New("whether the remote agent has the question is not known, and it is not asked again"))
		}
		t, err := get(ctx, c, a2a.TaskID(was.Ref))
		return t, nil, err
	case known && was.State.Open():
		t, found, err := p.find(ctx, m, c, was)
		if err != nil || t != nil {
			return t, nil, err
		}
		if !found {
			if err := m.Settle(effectSend, envelope.EffectFailed, ""); err != nil { // surely not there: it may be sent
				return nil, nil, err
			}
		}
	}
	permit, err := m.Intend(ctx, effectSend, map[string]string{"to": p.host})
	if err != nil {
		return nil, nil, err
	}
	if err := permit.Check(); err != nil {
		return nil, nil, err
	}
	res, err := c.SendMessage(ctx, p.request(m))
	switch {
	case errors.Is(err, a2a.ErrInvalidParams), errors.Is(err, a2a.ErrUnsupportedContentType), errors.Is(err, a2a.ErrUnauthenticated), errors.Is(err, a2a.ErrUnauthorized):
		_ = permit.Settle(envelope.EffectFailed, "")
		return nil, nil, bus.Never(envelope.ClassUndeliverable, fmt.Errorf("the remote agent at %s refuses it: %w", p.host, plain(err)))
	case notConnected(err):
		_ = permit.Settle(envelope.EffectFailed, "")
		return nil, nil, fmt.Errorf("the remote agent at %s %w: %w", p.host, errAway, plain(err))
	case err != nil:
		return nil, nil, fmt.Errorf("ask the remote agent at %s (it may have it): %w", p.host, plain(err)) // the next attempt finds out
	}
	switch r := res.(type) {
	case *a2a.Message:
		return nil, r, permit.Settle(envelope.EffectConfirmed, "message "+r.ID)
	case *a2a.Task:
		// Written before anything is waited for: who goes on with this message asks after the task.
		return r, nil, m.SettleNow(ctx, effectSend, envelope.EffectConfirmed, string(r.ID))
	}
	return nil, nil, bus.Never(envelope.ClassUndeliverable, errors.New("the remote agent answers with neither a task nor a message"))
}

// notConnected: nothing was sent.
func notConnected(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// request is the remote message. Its id is the same however often it is sent.
func (p *peer) request(m *bus.Incoming) *a2a.SendMessageRequest {
	e := m.Envelope()
	part := a2a.NewTextPart(agent.Text(e.Payload))
	var object map[string]any
	if json.Unmarshal(e.Payload, &object) == nil && object["text"] == nil {
		part = a2a.NewDataPart(object)
	}
	msg := a2a.NewMessage(a2a.MessageRoleUser, part)
	msg.ID, msg.ContextID = e.MessageID, conversation(e)
	return &a2a.SendMessageRequest{Message: msg, Config: &a2a.SendMessageConfig{ReturnImmediately: true}}
}

// conversation is the conversation's name at the remote agent.
func conversation(e *envelope.Sealed) string {
	return envelope.DerivedID(e.ConversationID, "a2a/"+e.TargetAgent)
}

// find looks for the task that an earlier attempt may have begun. found without a task: it may be sent again, under the same id.
func (p *peer) find(ctx context.Context, m *bus.Incoming, c *a2aclient.Client, was bus.Effect) (task *a2a.Task, found bool, err error) {
	// As long as the one that intended it may still begin it, what the remote agent says is not final.
	if err := m.Pause(ctx, m.EffectSettledAfter(was)+time.Second); err != nil {
		return nil, false, err
	}
	id, all := m.Envelope().MessageID, 1<<20
	req := &a2a.ListTasksRequest{ContextID: conversation(m.Envelope()), PageSize: 100, HistoryLength: &all}
	for range maxPages {
		list, err := c.ListTasks(ctx, req)
		switch {
		case cannotList(err) && p.spec.Runner.ResendSameID:
			return nil, true, p.again(m)
		case cannotList(err):
			if err := m.Settle(effectSend, envelope.EffectUnknown, ""); err != nil {
				return nil, false, err
			}
			return nil, false, bus.Never(envelope.ClassUnknown, fmt.Errorf("the remote agent at %s was asked and the answer was lost; it cannot list its tasks, and resendSameId is off", p.host))
		case err != nil:
			return nil, false, fmt.Errorf("look for a question at the remote agent at %s: %w", p.host, plain(err))
		}
		for _, t := range list.Tasks {
			for _, msg := range t.History {
				if msg == nil || msg.ID != id {
					continue
				}
				if err := m.SettleNow(ctx, effectSend, envelope.EffectConfirmed, string(t.ID)); err != nil {
					return nil, true, err
				}
				t, err = get(ctx, c, t.ID) // a list has no artifacts
				return t, true, err
			}
		}
		if req.PageToken = list.NextPageToken; req.PageToken == "" {
			break
		}
	}
	return nil, false, nil
}

// again lets the effect be made once more: the remote agent takes a message's id once.
func (p *peer) again(m *bus.Incoming) error { return m.Settle(effectSend, envelope.EffectFailed, "") }

func cannotList(err error) bool {
	return errors.Is(err, a2a.ErrUnsupportedOperation) || errors.Is(err, a2a.ErrMethodNotFound)
}

func get(ctx context.Context, c *a2aclient.Client, id a2a.TaskID) (*a2a.Task, error) {
	t, err := c.GetTask(ctx, &a2a.GetTaskRequest{ID: id})
	switch {
	case errors.Is(err, a2a.ErrTaskNotFound):
		return nil, bus.Never(envelope.ClassUndeliverable, fmt.Errorf("the remote agent does not know the task %s any more", clip(string(id))))
	case err != nil:
		return nil, fmt.Errorf("ask after the task at the remote agent: %w", plain(err))
	}
	return t, nil
}

// follow asks after a task until it is over, wants something, or the message ends.
func (p *peer) follow(ctx context.Context, m *bus.Incoming, c *a2aclient.Client, t *a2a.Task) (*a2a.Task, error) {
	pause := firstLook
	for !over(t.Status.State) {
		if err := m.Guard(); errors.Is(err, bus.ErrExpired) {
			p.cancel(c, t.ID) // nobody waits for its answer any more
			return nil, err
		}
		if err := m.Pause(ctx, pause); err != nil {
			return nil, err
		}
		pause = min(pause*3/2, longestLook)
		if err := m.Working(); err != nil {
			return nil, err
		}
		now, err := get(ctx, c, t.ID)
		if bus.IsNever(err) {
			return nil, err
		}
		if err == nil {
			t = now
		} else if ctx.Err() == nil && p.deps.Logger != nil {
			p.deps.Logger.Debug("asking after a task again", "error", err)
		}
	}
	return t, nil
}

// cancel asks for an end of the task; what comes of it nobody waits for.
func (p *peer) cancel(c *a2aclient.Client, id a2a.TaskID) {
	ctx, end := context.WithTimeout(context.Background(), cancelTimeout)
	defer end()
	if _, err := c.CancelTask(ctx, &a2a.CancelTaskRequest{ID: id}); err != nil && p.deps.Logger != nil {
		p.deps.Logger.Info("a remote task goes on although nobody waits for it", "task", clip(string(id)), "error", plain(err))
	}
}

func over(s a2a.TaskState) bool {
	return s.Terminal() || s == a2a.TaskStateInputRequired || s == a2a.TaskStateAuthRequired
}

// end makes of a task that is over the end of the message.
func end(m *bus.Incoming, t *a2a.Task) error {
	said := ""
	if t.Status.Message != nil {
		said = textOf(t.Status.Message.Parts)
	}
	switch t.Status.State {
	case a2a.TaskStateCanceled:
		return bus.Never(envelope.ClassCancelled, fmt.Errorf("the remote agent cancelled it: %s", clip(said)))
	case a2a.TaskStateCompleted, a2a.TaskStateInputRequired:
	default:
		return bus.Never(envelope.ClassUndeliverable, fmt.Errorf("at the remote agent it is %s: %s", t.Status.State, clip(said)))
	}
	var parts a2a.ContentParts
	for _, a := range t.Artifacts {
		if a != nil {
			parts = append(parts, a.Parts...)
		}
	}
	if len(parts) == 0 && t.Status.Message != nil {
		parts = t.Status.Message.Parts
	}
	return reply(m, parts)
}

// reply answers with the parts: one of data as it is, else their texts.
func reply(m *bus.Incoming, parts a2a.ContentParts) error {
	if len(parts) == 1 {
		if d, ok := parts[0].Content.(a2a.Data); ok {
			if raw, err := envelope.Encode(d.Value); err == nil {
				return m.Reply(raw)
			}
		}
	}
	return m.Reply(envelope.TextPayload(textOf(parts)))
}

func textOf(parts a2a.ContentParts) string {
	var texts []string
	for _, p := range parts {
		if p == nil {
			continue
		}
		switch c := p.Content.(type) {
		case a2a.Text:
			texts = append(texts, string(c))
		case a2a.Data:
			if raw, err := json.Marshal(c.Value); err == nil {
				texts = append(texts, string(raw))
			}
		default:
			texts = append(texts, "(a file)")
		}
	}
	return strings.ToValidUTF8(strings.Join(texts, "\n"), "\uFFFD")
}

// plain is an error without the URL of a request, which may hold a secret.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return errors.New(clip(err.Error()))
}

func clip(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.ToValidUTF8(text[:min(len(text), 300)], "")
}
