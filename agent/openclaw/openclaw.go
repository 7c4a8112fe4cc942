// Package openclaw is the runner openclaw: an agent of the mesh whose work an agent of a real OpenClaw gateway does, which is asked by OpenClaw's own WebSocket
// protocol, version 4.
//
// # Once
//
// A message becomes one run of the agent (method agent), whose idempotency key is the message's id, in a session of its own for each conversation:
// agent:<id>:mesh-<conversation>. That it is asked is an effect ("openclaw/agent"), recorded before, with the name of the gateway's process (bootId). Who finds that it was asked before, because the
// connection was lost or the inbox has another owner, reads the session first (chat.history): an answer in it is the answer. A run that goes on is waited for (agent.wait; who asks under the same key once more
// is only told that it is in flight). One that is not in the session is asked for again: in the same process the same key is the same run, and a process that was started since never had it. One that is in it
// without an answer, in a process that was started since, is given some time, since OpenClaw takes interrupted turns up again, and is unknown then: it may have done something, and
// nobody asks again by himself.
//
// While the gateway cannot be reached, a question waits in the agent's inbox until its own time is up. A run whose message's time is up is ended (chat.abort). A question whose session somebody resets at OpenClaw
// while nobody is connected may be asked twice.
package openclaw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
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
	// abortTimeout bounds the word that a run is to end.
	abortTimeout = 2 * time.Second
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

var (
	// errAway: the gateway cannot be reached.
	errAway = errors.New("is not there")
	// errBroken: a run that had begun was told to be over without an answer.
	errBroken = errors.New("the turn broke off")
)

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
		if !errors.Is(err, errAway) && !errors.Is(err, errLost) && !errors.Is(err, errBroken) {
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
		return p.follow(ctx, m, c, d.Boot == c.boot)
	}
	return p.begin(ctx, m, c)
}

// begin records that OpenClaw is asked, and asks.
func (p *peer) begin(ctx context.Context, m *bus.Incoming, c *conn) error {
	permit, err := m.Intend(ctx, effectRun, detail{c.boot})
	if err != nil {
		return err
	}
	if err := permit.Check(); err != nil {
		return err
	}
	return p.run(ctx, m, c)
}

// follow finds out what became of a run that was asked for. It asks again only for one that OpenClaw never had.
func (p *peer) follow(ctx context.Context, m *bus.Incoming, c *conn, same bool) error {
	o, err := p.outcome(ctx, m, c, same, false)
	if err != nil || o.state != absent {
		return p.conclude(m, o, err)
	}
	if same {
		return p.run(ctx, m, c) // it may have it and not have begun: in one process the same key is the same run
	}
	if err := m.Settle(effectRun, envelope.EffectFailed, ""); err != nil { // surely not there
		return err
	}
	return p.begin(ctx, m, c)
}

// conclude tells the bus what came of the run.
func (p *peer) conclude(m *bus.Incoming, o outcome, err error) error {
	if err != nil {
		return err
	}
	state, ref := envelope.EffectConfirmed, m.Envelope().MessageID
	if o.state == interrupted {
		state, ref = envelope.EffectUnknown, ""
	}
	if err := m.Settle(effectRun, state, ref); err != nil {
		return err
	}
	switch o.state {
	case answered:
		return m.Reply(envelope.TextPayload(o.text))
	case failed: // the same key gives the same answer, so another try would change nothing
		return bus.Never(envelope.ClassUndeliverable, fmt.Errorf("the turn at OpenClaw ended as %s", clip(o.text)))
	}
	return bus.Never(envelope.ClassUnknown, fmt.Errorf("OpenClaw at %s has the question and has not ended its turn, which was interrupted: look at its session %s, then redrive the message to have it asked again, or purge it", p.host, p.session(m)))
}

// session is OpenClaw's key of the conversation.
func (p *peer) session(m *bus.Incoming) string {
	return "agent:" + p.agent + ":mesh-" + envelope.DerivedID(m.Envelope().ConversationID, "openclaw/"+p.spec.ID)
}

// run asks for the run and waits for its end.
func (p *peer) run(ctx context.Context, m *bus.Incoming, c *conn) error {
	answers, end, err := c.ask(ctx, "agent", map[string]any{
		"agentId": p.agent, "sessionKey": p.session(m), "message": agent.Text(m.Envelope().Payload), "idempotencyKey": m.Envelope().MessageID, "deliver": false,
	})
	if err != nil {
		return err
	}
	defer end()
	here, stop := p.here(ctx, m, c)
	defer stop()
	for accepted := false; ; {
		select {
		case r := <-answers:
			o, err := answerOf(r)
			var no *remoteError
			switch {
			case errors.As(err, &no) && accepted:
				return errBroken // the session says how far it came
			case errors.As(err, &no):
				return p.refused(m, no)
			case err != nil:
				return err
			case o.state == begun:
				accepted = true
			case o.state == underWay: // who asks again is not told of the end
				stop()
				o, err := p.outcome(ctx, m, c, true, true)
				return p.conclude(m, o, err)
			default:
				return p.conclude(m, o, nil)
			}
		case <-c.done:
			return errLost
		case <-here.Done():
			return context.Cause(here)
		}
	}
}

// refused: nothing was begun.
func (p *peer) refused(m *bus.Incoming, no *remoteError) error {
	if err := m.Settle(effectRun, envelope.EffectFailed, ""); err != nil {
		return err
	}
	if no.Code == "UNAVAILABLE" {
		return bus.Retry(no)
	}
	return bus.Never(envelope.ClassUndeliverable, no)
}

// here is a context that ends when the handler may not wait any longer: the gateway stops (it does not wait for a turn: the next owner
// goes on with the run), the lease is lost, or the message's time is up, which ends the run, too.
func (p *peer) here(ctx context.Context, m *bus.Incoming, c *conn) (waiting context.Context, stop func()) {
	here, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			wait := lifeEvery
			if left := time.Until(m.Envelope().ExpiresAt().Add(envelope.DefaultSkew)); left > 0 {
				wait = min(wait, left+time.Millisecond)
			}
			err := m.Pause(here, wait)
			if err == nil {
				err = errors.Join(m.Working(), m.Guard())
			}
			if err == nil {
				continue
			}
			if errors.Is(err, bus.ErrExpired) {
				call, end := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
				_ = c.call(call, "chat.abort", map[string]any{"sessionKey": p.session(m), "runId": m.Envelope().MessageID}, new(json.RawMessage))
				end()
				_ = m.Settle(effectRun, envelope.EffectUnknown, "")
			}
			cancel(err)
			return
		}
	}()
	return here, func() { cancel(nil); <-ended }
}
