// Package openclaw is the runner openclaw: an agent of the mesh whose work an agent of a real OpenClaw gateway does, which is asked by OpenClaw's own WebSocket
// protocol, version 4.
//
// # Once
//
// A message becomes one run of the agent (method agent), whose idempotency key is the message's id, in a session of its own for each conversation:
// agent:<id>:mesh-<conversation>. That it is asked is an effect ("openclaw/agent"), recorded before, with the name of the gateway's process. As long as that process lives, the same request is answered
// with the same run, so an attempt that lost the connection, here or at the next owner, asks again. A process that was started since has forgotten it: then the session's transcript says what became
// of the message (chat.history), before anything is sent. An answer in it is the answer; a message that is not in it is sent again; one that is in it without an answer is given some time, since
// OpenClaw takes interrupted turns up again, and is unknown then: it may have done something, and nobody asks again by himself.
//
// While the gateway cannot be reached, a question waits in the agent's inbox until its own time is up.
package openclaw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

const (
	effectRun = "openclaw/agent"
	// firstWait and longestWait are the pauses while the gateway is away.
	firstWait, longestWait = 500 * time.Millisecond, 15 * time.Second
	// callTimeout bounds a request that is no run.
	callTimeout = 30 * time.Second
	// recoverFor is how long a turn that was interrupted is given to end, recoverEvery how often it is looked at.
	recoverFor, recoverEvery = 2 * time.Minute, 2 * time.Second
	// lifeEvery is how often a run that goes on is told to the bus as a sign of life.
	lifeEvery = 15 * time.Second
	// keepIdle is how long a connection is kept that nobody needs: to make one takes longer than most answers of the mesh.
	keepIdle = time.Minute
	// historyLimit is how many messages of a session are looked through.
	historyLimit = 200
)

// New returns an [agent.Factory]; version is this program's.
func New(version string) agent.Factory {
	return func(spec agent.Spec, deps agent.Deps) (bus.Handler, error) {
		r := spec.Runner
		u, err := url.Parse(r.URL)
		if err != nil || u.Host == "" || u.User != nil {
			return nil, errors.New("it needs runner.url: where the OpenClaw gateway is, as ws://127.0.0.1:18789")
		}
		switch u.Scheme {
		case "http":
			u.Scheme = "ws"
		case "https":
			u.Scheme = "wss"
		case "ws", "wss":
		default:
			return nil, errors.New("runner.url is not one of a WebSocket: write ws:// or wss://")
		}
		p := &peer{spec: spec, deps: deps, url: u.String(), host: u.Host, version: version, agent: r.To, idleAfter: keepIdle}
		if p.agent == "" {
			p.agent = spec.ID
		}
		return p, nil
	}
}

// peer is the agent at the OpenClaw gateway.
type peer struct {
	spec                      agent.Spec
	deps                      agent.Deps
	url, host, version, agent string

	// idleAfter is how long a connection is kept that nobody needs.
	idleAfter time.Duration

	mu    sync.Mutex
	conn  *conn
	users int
	idle  *time.Timer
}

// errAway: the gateway cannot be reached.
var errAway = errors.New("is not there")

// connect returns the connection, made anew when the last one is over.
func (p *peer) connect(ctx context.Context) (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		select {
		case <-p.conn.done:
		default:
			return p.conn, nil
		}
	}
	c, err := dial(ctx, p.url, p.spec.Runner.Token, p.version)
	var no *remoteError
	switch {
	case errors.As(err, &no) && no.Code != "UNAVAILABLE":
		return nil, fmt.Errorf("OpenClaw at %s: %w", p.host, err)
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("OpenClaw at %s %w: %w", p.host, errAway, err)
	}
	p.conn = c
	return c, nil
}

// use and release count who needs the connection: it is closed when nobody has for a while.
func (p *peer) use() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users++
	if p.idle != nil {
		p.idle.Stop()
		p.idle = nil
	}
}

func (p *peer) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users > 0 || p.conn == nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(p.idleAfter, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.idle == t && p.conn != nil {
			p.conn.close()
			p.conn, p.idle = nil, nil
		}
	})
	p.idle = t
}

// detail is what the effect keeps: which process was asked.
type detail struct {
	Boot string `json:"boot"`
}

// Handle implements bus.Handler.
func (p *peer) Handle(ctx context.Context, m *bus.Incoming) error {
	p.use()
	defer p.release()
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		c, err := p.connect(ctx)
		if err == nil {
			err = p.turn(ctx, m, c)
		}
		if !errors.Is(err, errAway) && !errors.Is(err, errLost) {
			return err
		}
		if wait == firstWait && p.deps.Logger != nil {
			p.deps.Logger.Info("a question waits for an OpenClaw gateway", "message_id", m.Envelope().MessageID, "error", err)
		}
		pause := wait
		if left := time.Until(m.Envelope().ExpiresAt()); left > 0 {
			pause = min(pause, left+time.Millisecond)
		}
		if err := m.Pause(ctx, pause); err != nil {
			return err
		}
		if gone := m.Guard(); gone != nil {
			return fmt.Errorf("%w: %w", err, gone)
		}
		if err := m.Working(); err != nil {
			return err
		}
	}
}

// turn has the message answered on one connection.
func (p *peer) turn(ctx context.Context, m *bus.Incoming, c *conn) error {
	was, known := m.Effect(effectRun)
	switch {
	case known && was.State.Made():
		return bus.Never(envelope.ClassUnknown, errors.New("OpenClaw has the question, and what it answered is not known"))
	case known && was.State.Open():
		var d detail
		_ = json.Unmarshal(was.Detail, &d)
		if d.Boot == c.boot {
			return p.run(ctx, m, c) // it knows the key
		}
		text, state, err := p.outcome(ctx, m, c)
		switch {
		case err != nil:
			return err
		case state == answered:
			if err := m.Settle(effectRun, envelope.EffectConfirmed, m.Envelope().MessageID); err != nil {
				return err
			}
			return m.Reply(envelope.TextPayload(text))
		case state == interrupted:
			if err := m.Settle(effectRun, envelope.EffectUnknown, ""); err != nil {
				return err
			}
			return bus.Never(envelope.ClassUnknown, fmt.Errorf("OpenClaw at %s was started anew in the middle of the turn, and has not ended it: look at its session %s, then redrive the message to have it asked again, or purge it", p.host, p.session(m)))
		}
		if err := m.Settle(effectRun, envelope.EffectFailed, ""); err != nil { // surely not there
			return err
		}
	}
	permit, err := m.Intend(ctx, effectRun, detail{c.boot})
	if err != nil {
		return err
	}
	if err := permit.Check(); err != nil {
		return err
	}
	return p.run(ctx, m, c)
}

// session is OpenClaw's key of the conversation.
func (p *peer) session(m *bus.Incoming) string {
	return "agent:" + p.agent + ":mesh-" + envelope.DerivedID(m.Envelope().ConversationID, "openclaw/"+p.spec.ID)
}

// run asks for the run, or for what became of it, and waits for its end.
func (p *peer) run(ctx context.Context, m *bus.Incoming, c *conn) error {
	answers, end, err := c.ask(ctx, "agent", map[string]any{
		"agentId": p.agent, "sessionKey": p.session(m), "message": agent.Text(m.Envelope().Payload), "idempotencyKey": m.Envelope().MessageID, "deliver": false,
	})
	if err != nil {
		return err
	}
	defer end()
	// A gateway that stops does not wait for a turn: the next owner asks for the same run.
	watch, stop := context.WithCancel(ctx)
	defer stop()
	leaving := make(chan error, 1)
	go func() {
		for {
			err := m.Pause(watch, lifeEvery)
			if err == nil {
				err = m.Working()
			}
			if err != nil {
				leaving <- err
				return
			}
		}
	}()
	for {
		select {
		case r := <-answers:
			done, err := p.answered(m, r)
			if done || err != nil {
				return err
			}
		case <-c.done:
			return errLost
		case err := <-leaving:
			return err
		}
	}
}

// answered takes an answer to agent in: the first one says that it was accepted, the second what came of it.
func (p *peer) answered(m *bus.Incoming, r response) (done bool, err error) {
	var no *remoteError
	if errors.As(r.err, &no) {
		if no.Code == "UNAVAILABLE" { // nothing was begun
			_ = m.Settle(effectRun, envelope.EffectFailed, "")
			return true, bus.Retry(r.err)
		}
		_ = m.Settle(effectRun, envelope.EffectFailed, "")
		return true, bus.Never(envelope.ClassUndeliverable, r.err)
	}
	var run struct {
		Status  string `json:"status"`
		Summary string `json:"summary"`
		Error   string `json:"error"`
		Result  struct {
			Payloads []struct {
				Text string `json:"text"`
			} `json:"payloads"`
		} `json:"result"`
	}
	if err := json.Unmarshal(r.payload, &run); err != nil {
		return true, fmt.Errorf("OpenClaw's answer is not readable: %w", err)
	}
	switch run.Status {
	case "accepted", "in_flight":
		return false, nil
	case "ok":
		var texts []string
		for _, x := range run.Result.Payloads {
			if x.Text != "" {
				texts = append(texts, x.Text)
			}
		}
		if err := m.Settle(effectRun, envelope.EffectConfirmed, m.Envelope().MessageID); err != nil {
			return true, err
		}
		return true, m.Reply(envelope.TextPayload(strings.Join(texts, "\n")))
	}
	// The same key gives the same answer, so another try would change nothing.
	if err := m.Settle(effectRun, envelope.EffectConfirmed, m.Envelope().MessageID); err != nil {
		return true, err
	}
	return true, bus.Never(envelope.ClassUndeliverable, fmt.Errorf("the turn at OpenClaw ended as %s: %s", clip(run.Status), clip(run.Error+" "+run.Summary)))
}

// What a session's transcript says of a message.
type outcomeState int

const (
	absent outcomeState = iota
	answered
	interrupted
)

// history is the part of chat.history that matters.
type history struct {
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
		Text    string          `json:"text"`
		// Key of a user's message is its run's, and ":user".
		Key string `json:"idempotencyKey"`
	} `json:"messages"`
	Active        bool            `json:"hasActiveRun"`
	InFlightRun   json.RawMessage `json:"inFlightRun"`
	PendingInputs struct {
		Items []struct {
			RunID string `json:"runId"`
			State string `json:"state"`
		} `json:"items"`
	} `json:"pendingInputs"`
}

// outcome reads from the session what became of the message after the gateway was started anew.
func (p *peer) outcome(ctx context.Context, m *bus.Incoming, c *conn) (text string, state outcomeState, err error) {
	end := time.Now().Add(recoverFor)
	for {
		var h history
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := c.call(call, "chat.history", map[string]any{"sessionKey": p.session(m), "agentId": p.agent, "limit": historyLimit}, &h)
		cancel()
		var no *remoteError
		switch {
		case errors.As(err, &no) && (no.Code == "NOT_FOUND" || strings.Contains(strings.ToLower(no.Message), "not found")):
			return "", absent, nil // there is no such session
		case err != nil && ctx.Err() == nil && !errors.Is(err, errLost) && no == nil:
			return "", absent, errLost // no answer in time: on another connection
		case err != nil:
			return "", absent, err
		}
		text, state = h.of(agent.Text(m.Envelope().Payload), m.Envelope().MessageID)
		if state != interrupted || time.Now().After(end) {
			return text, state, nil
		}
		if err := m.Pause(ctx, recoverEvery); err != nil {
			return "", state, err
		}
		if err := errors.Join(m.Guard(), m.Working()); err != nil {
			return "", state, err
		}
	}
}

// of looks for a message, by its run's key, and for the answer to it. All that comes behind it belongs to it, also what OpenClaw does by itself when it takes an interrupted
// turn up again: the mesh sends the next message of a conversation when this one has ended. Versions that keep no keys show the text alone; of two with one text
// it does not say which is which.
func (h *history) of(said, id string) (text string, state outcomeState) {
	at, same, keyed := -1, 0, false
	for i, x := range h.Messages {
		if x.Role != "user" {
			continue
		}
		keyed = keyed || x.Key != ""
		switch {
		case x.Key == id+":user" || x.Key == id:
			at, same = i, 1
		case x.Key == "" && !keyed && strings.Contains(contentText(x.Content, x.Text), said):
			at = i
			same++
		}
	}
	if keyed && at >= 0 && h.Messages[at].Key == "" {
		at = -1 // it is of a time before keys
	}
	if at < 0 {
		for _, r := range h.PendingInputs.Items {
			if r.RunID == id && r.State == "queued" {
				return "", interrupted
			}
		}
		return "", absent
	}
	for _, x := range h.Messages[at+1:] {
		if t := contentText(x.Content, x.Text); x.Role == "assistant" && t != "" {
			text = t // the last one: those before it went with calls of tools
		}
	}
	if text == "" || same > 1 || h.Active || len(h.InFlightRun) > 0 && string(h.InFlightRun) != "null" {
		return "", interrupted
	}
	return text, answered
}

// contentText is the text of a message's content, which is a string or a list of blocks.
func contentText(content json.RawMessage, text string) string {
	var s string
	if json.Unmarshal(content, &s) == nil && s != "" {
		return s
	}
	var blocks []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if json.Unmarshal(content, &blocks) == nil {
		var texts []string
		for _, b := range blocks {
			if b.Type == "text" && b.Text != "" {
				texts = append(texts, b.Text)
			}
		}
		if len(texts) > 0 {
			return strings.Join(texts, "\n")
		}
	}
	return text
}
