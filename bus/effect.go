package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// Effect is an entry in a message's ledger of what its handling does outside of the mesh.
type Effect = envelope.Effect

// EffectWindow is how long a [Permit] lets its effect begin, counted from before the request left by which the store
// confirmed the ownership. Whoever takes an inbox over knows that its last owner begins nothing more when as much
// time has passed since.
const EffectWindow = 2 * time.Second

// Sentinels of effects.
var (
	// ErrEffectOpen: an earlier attempt was about to make the effect, and did not record what came of it. Ask the
	// other side, settle it, or give the message up with envelope.ClassUnknown.
	ErrEffectOpen = errors.New("an earlier attempt may have made it")
	// ErrEffectMade: the effect was made already.
	ErrEffectMade = errors.New("it was made already")
	// ErrEffectWindow: the permit is too old to go by. [Permit.Renew] asks again.
	ErrEffectWindow = errors.New("the permit is too old")
)

// An EffectError refuses to make an effect that is in the ledger already.
type EffectError struct {
	Effect Effect
	// Cause is [ErrEffectOpen] or [ErrEffectMade].
	Cause error
}

func (e *EffectError) Error() string {
	return fmt.Sprintf("effect %s is %s since %s (%s, attempt %d): %v", e.Effect.Name, e.Effect.State, e.Effect.At.Format(time.RFC3339Nano), e.Effect.Gateway, e.Effect.Attempt, e.Cause)
}

func (e *EffectError) Unwrap() error { return e.Cause }

// Permit lets one effect outside of the mesh happen, now.
type Permit struct {
	m    *Incoming
	name string
	// asked is when the last confirmation was asked for, on the monotonic clock; wall on the other, which goes on while the
	// machine sleeps.
	asked time.Time
	wall  time.Time
}

// Effects are what earlier attempts of the message, here or elsewhere, and this one recorded.
func (m *Incoming) Effects() []Effect {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	return slices.Clone(m.j.del.Effects)
}

// Effect returns one of [Incoming.Effects].
func (m *Incoming) Effect(name string) (Effect, bool) {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	return m.j.del.Effect(name)
}

// Intend records that the handler is about to make an effect outside of the mesh, and returns the permit to do so: one
// write, which the store refuses when this gateway does not own the inbox any more. name is the same however often the
// handler runs; detail (at most 2 KiB of JSON, nil: none) is for whoever has to find out what came of it, and must hold no secret.
// Errors: *[EffectError] (it is in the ledger: never make it then), [ErrLeaseLost], [ErrDeposed], [ErrExpired],
// envelope.ErrInvalid, [ErrOutcomeUnknown] when ctx ends first (the intent may stand: settle it as failed).
func (m *Incoming) Intend(ctx context.Context, name string, detail any) (*Permit, error) {
	if err := m.Guard(); err != nil {
		return nil, err
	}
	j := m.j
	now := envelope.At(j.ib.b.now())
	e := Effect{Name: name, At: now, Gateway: j.ib.b.cfg.Gateway, Token: j.ib.term}
	if detail != nil {
		raw, err := envelope.Encode(detail)
		if err != nil {
			return nil, fmt.Errorf("%w: effect %s: its detail: %w", envelope.ErrInvalid, name, err)
		}
		e.Detail = raw
	}
	if err := m.intend(e); err != nil {
		return nil, err
	}
	p := &Permit{m: m, name: name}
	p.ask()
	if err := m.writeRecord(ctx); err != nil {
		// Nobody gets a permit, so it is not made.
		_ = m.settleEffect(name, envelope.EffectFailed, "", 0)
		return nil, err
	}
	m.effectEvent(name, 0)
	return p, nil
}

// intend puts an effect into the ledger in memory, unless it is there.
func (m *Incoming) intend(e Effect) error {
	j := m.j
	j.mu.Lock()
	defer j.mu.Unlock()
	if !m.lease.alive() {
		return ErrLeaseLost // the next attempt begins under the same mutex
	}
	if old, ok := j.del.Effect(e.Name); ok && (old.State.Open() || old.State.Made()) {
		return refuseEffect(old)
	}
	e.Attempt = j.del.Attempt
	return j.del.Intend(e)
}

func refuseEffect(e Effect) error {
	if e.State.Made() {
		return &EffectError{Effect: e, Cause: ErrEffectMade}
	}
	return &EffectError{Effect: e, Cause: ErrEffectOpen}
}

// writeRecord writes the message's record as it is now, and waits for it.
func (m *Incoming) writeRecord(ctx context.Context) error {
	written := make(chan error, 1)
	m.j.keep(true, nil, func(_ envelope.Time, err error) { written <- err })
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return m.j.ib.b.outcomeUnknown(ctx.Err())
	}
}

func (p *Permit) ask() {
	p.asked, p.wall = time.Now(), p.m.j.ib.b.now().Round(0)
}

// Check says whether the effect may begin: call it immediately before the bytes leave, and give the request a time after
// which it surely failed or arrived. What happens between its answer and the effect is not covered by anything; it is
// what the metric of the effect window shows. Errors: [ErrLeaseLost], [ErrDeposed], [ErrExpired], [ErrEffectWindow],
// *envelope.BudgetError; the effect must not be made then. Settle it as failed, or let the next attempt find out.
func (p *Permit) Check() error {
	m := p.m
	if err := m.Guard(); err != nil {
		return err
	}
	if err := m.Term().Trusted(); err != nil {
		return err
	}
	if e, ok := m.Effect(p.name); !ok || e.State != envelope.EffectIntent {
		return refuseEffect(e)
	}
	if d := p.age(); d >= EffectWindow {
		return fmt.Errorf("effect %s: %w: the ownership was confirmed %s ago, at most %s", p.name, ErrEffectWindow, d.Round(time.Millisecond), EffectWindow)
	}
	return nil
}

func (p *Permit) age() time.Duration {
	return max(time.Since(p.asked), p.m.j.ib.b.now().Round(0).Sub(p.wall))
}

// Renew has the store confirm the ownership again, and checks.
func (p *Permit) Renew(ctx context.Context) error {
	if err := p.m.Guard(); err != nil {
		return err
	}
	next := Permit{m: p.m, name: p.name}
	next.ask()
	if err := p.m.Term().Verify(ctx); err != nil {
		return err
	}
	p.asked, p.wall = next.asked, next.wall
	return p.Check()
}

// Settle records what came of the effect; see [Incoming.Settle]. The event has how long the effect was not covered.
func (p *Permit) Settle(state envelope.EffectState, ref string) error {
	return p.m.settleEffect(p.name, state, ref, p.age())
}

// Settle records what came of an effect: sent, confirmed, failed (it was surely not made and may be tried again) or unknown.
// ref is the other side's name for it. It is written with the next record or with the ack; a process that dies before
// leaves the intent. Errors: [ErrLeaseLost], envelope.ErrInvalid.
func (m *Incoming) Settle(name string, state envelope.EffectState, ref string) error {
	return m.settleEffect(name, state, ref, 0)
}

// SettleNow is Settle, and waits until it is written.
func (m *Incoming) SettleNow(ctx context.Context, name string, state envelope.EffectState, ref string) error {
	if err := m.Settle(name, state, ref); err != nil {
		return err
	}
	return m.writeRecord(ctx)
}

func (m *Incoming) settleEffect(name string, state envelope.EffectState, ref string, window time.Duration) error {
	j := m.j
	j.mu.Lock()
	err := ErrLeaseLost
	if m.lease.alive() {
		err = j.del.Settle(name, state, ref, j.ib.b.cfg.Gateway, envelope.At(j.ib.b.now()))
	}
	j.mu.Unlock()
	if err == nil {
		m.effectEvent(name, window)
	}
	return err
}

// EffectSettledAfter is how long the handler still has to wait before what the other side says about an effect of an
// earlier attempt is final: until then, the one who intended it may begin it. What he began takes as long as his request
// may; add that.
func (m *Incoming) EffectSettledAfter(e Effect) time.Duration {
	since := m.began
	if e.Token != m.j.ib.term {
		since = m.j.ib.began
	}
	return max(0, EffectWindow-time.Since(since))
}

// effectEvent tells of what happened to an effect.
func (m *Incoming) effectEvent(name string, window time.Duration) {
	e, ok := m.Effect(name)
	if !ok {
		return
	}
	ev := m.j.event(EventEffect)
	ev.Effect, ev.EffectState = e.Name, e.State
	ev.WindowMillis = float64(window.Microseconds()) / 1000
	ev.Reason = "effect " + e.Name + " is " + string(e.State)
	m.j.ib.b.emit(ev)
}

// undecided says why the message must not end as if all were known; nil when all is.
func (j *job) undecided() error {
	open := j.del.OpenEffects()
	if len(open) == 0 {
		return nil
	}
	e := open[0]
	more := ""
	if len(open) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(open)-1)
	}
	return fmt.Errorf("it is not known whether effect %s was made%s: %s was about to at %s (attempt %d); look at the other side, then redrive it to have it made again, or purge it",
		e.Name, more, e.Gateway, e.At.Format(time.RFC3339Nano), e.Attempt)
}
