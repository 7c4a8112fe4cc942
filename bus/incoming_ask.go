package bus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// spentOf is the difference between two budgets, less some messages that were given back.
func spentOf(all, left *envelope.Budget, back int64) *envelope.Spent {
	s := &envelope.Spent{}
	if all.Messages != nil && left.Messages != nil {
		s.Messages = max(0, *all.Messages-*left.Messages-back)
	}
	if all.Tokens != nil && left.Tokens != nil {
		s.Tokens = max(0, *all.Tokens-*left.Tokens)
	}
	if all.USD != nil && left.USD != nil {
		s.USD = max(0, *all.USD-*left.USD)
	}
	if *s == (envelope.Spent{}) {
		return nil
	}
	return s
}

// lend takes the share of a question out of the budget: what out names, else all that is left.
func (m *Incoming) lend(out *Outgoing) (share *envelope.Budget, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.budget == nil {
		return out.Budget, nil
	}
	if err := m.budget.Exhausted(m.j.ib.b.now()); err != nil {
		return nil, err
	}
	if out.Budget != nil {
		left, err := m.debitLocked(out.Budget)
		if err != nil {
			return nil, err
		}
		m.budget = left
		return out.Budget, nil
	}
	rest, err := m.budget.Debit(1, 0, 0)
	if err != nil {
		return nil, err
	}
	out.Budget = rest
	m.budget = rest.None()
	return rest, nil
}

// giveBack returns what is left of a lent share.
func (m *Incoming) giveBack(lent, left *envelope.Budget) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.budget != nil && left != nil && lent != nil {
		m.budget = m.budget.Join(left.AtMost(lent))
	}
}

// Ask sends a question at once and waits for its answer. The question and the record that
// it was asked are one transaction: when the handler runs again, on this gateway or
// another, the same Ask gives the answer that came, or goes on waiting, and never asks
// twice; so when the gateway stops, it ends at once with [ErrHandover]. Waiting is a sign of life. Unless
// out names one, the conversation is one of this agent's own within the message's. The question has all that is
// left of the budget unless out names a share; its answer brings back the rest. Errors:
// *[DeadLetterError] (the question was given up), *[NoAnswerError] (ctx ended
// first), [ErrUnknownAgent], those of [Incoming.Send], or the store's.
func (m *Incoming) Ask(ctx context.Context, out Outgoing) (*envelope.Sealed, error) {
	j := m.j
	ib := j.ib
	m.mu.Lock()
	m.asks++
	n := m.asks
	if out.ConversationID == "" {
		// Not this message's own: an agent that is asked in a circle would wait for itself.
		out.ConversationID = envelope.DerivedID(j.env.ConversationID, ib.spec.ID)
	}
	hops, err := m.inheritLocked(&out, fmt.Sprintf("ask/%d", n))
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if n > maxAsks {
		return nil, fmt.Errorf("one handling may ask %d questions", maxAsks)
	}
	out.ReplyTo = ib.spec.ID
	lent, err := m.lend(&out)
	if err != nil {
		return nil, err
	}
	ans, err := m.believed(ctx, out)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	before := slices.Contains(j.asked, out.ID)
	j.mu.Unlock()
	switch {
	case ans != nil:
	case before:
		// Asked by an earlier run: its fate may have been told while nobody listened.
		if st, err := ib.b.Lookup(ctx, out.ID); err == nil && st.Facts.Dead {
			return nil, m.askDied(lent, out, st.Facts)
		}
	default:
		if err := m.ask(ctx, out, hops); err != nil {
			m.giveBack(lent, lent) // at worst it was written and costs nothing more than one message
			return nil, err
		}
	}
	if ans == nil {
		if ans, err = m.awaitAnswer(ctx, lent, out); err != nil {
			return nil, err
		}
	}
	m.giveBack(lent, ans.Budget)
	return ib.b.Resolve(ctx, ans)
}

// awaitAnswer waits for the answer to a question that was asked.
func (m *Incoming) awaitAnswer(ctx context.Context, lent *envelope.Budget, out Outgoing) (*envelope.Sealed, error) {
	j, ib := m.j, m.j.ib
	m.lease.pause()
	defer m.lease.renew()
	ib.b.tracks.hold(out.ID, 1)
	defer ib.b.tracks.hold(out.ID, -1)
	for {
		j.mu.Lock()
		if j.answered == nil {
			j.answered = make(chan struct{})
		}
		answered := j.answered
		j.mu.Unlock()
		if ans, err := m.believed(ctx, out); ans != nil || err != nil {
			return ans, err
		}
		tr, changed, _ := ib.b.tracks.get(out.ID)
		if tr.Facts.Dead {
			return nil, m.askDied(lent, out, tr.Facts)
		}
		select {
		case <-answered:
		case <-changed:
		case <-ib.intake.Done():
			return nil, ErrHandover
		case <-ctx.Done():
			return nil, &NoAnswerError{MessageID: out.ID, Agent: out.To.Agent, Facts: tr.Facts, Cause: ctx.Err()}
		}
	}
}

// Pause waits for d. Like [Incoming.Ask] it ends at once with [ErrHandover] when the gateway stops or hands the inbox on, so that nobody
// waits for who waits; a handler returns that as it is, and the message goes on at the next owner. It is no sign of life: the
// lease runs on. Other errors: the cause of ctx's end.
func (m *Incoming) Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-m.j.ib.intake.Done():
		return ErrHandover
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// askDied is the end of a question in the dead letters. What it was lent comes back when it died
// before anybody could spend it.
func (m *Incoming) askDied(lent *envelope.Budget, out Outgoing, f Facts) error {
	if !f.Delivered {
		m.giveBack(lent, lent)
	}
	return &DeadLetterError{MessageID: out.ID, Agent: out.To.Agent, Class: f.Class, Reason: f.Reason}
}

// Asked is how many questions this attempt asked; what [Incoming.SkipAsks] skipped counts.
func (m *Incoming) Asked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asks
}

// SkipAsks says that the handler knows the answers to n questions of an earlier attempt and will not ask them again: the
// next [Incoming.Ask] is the one after them. It is for handlers that go on where an earlier attempt ended.
func (m *Incoming) SkipAsks(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asks += n
}

// Leg is one question of an AskAll and what became of it.
type Leg struct {
	To     envelope.Address
	Answer *envelope.Sealed
	Err    error
}

// AskAll asks several agents at the same time and waits for all; every leg has its own fate. Those without
// a budget of their own share what is left equally.
func (m *Incoming) AskAll(ctx context.Context, outs []Outgoing) []Leg {
	legs := make([]Leg, len(outs))
	m.mu.Lock()
	base := m.asks
	shares := m.budget.Split(len(outs))
	m.mu.Unlock()
	var wg sync.WaitGroup
	for i, o := range outs {
		if o.Budget == nil && shares[i] != nil {
			// The question itself is paid for out of its share.
			rest, err := shares[i].Debit(1, 0, 0)
			if err != nil {
				legs[i] = Leg{To: o.To, Err: err}
				continue
			}
			o.Budget = rest
		}
		if o.ID == "" {
			o.ID = envelope.DerivedID(m.j.env.MessageID, m.j.life()+fmt.Sprintf("askall/%d/%d/%s", base, i, m.contentOf(&o)))
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			ans, err := m.Ask(ctx, o)
			legs[i] = Leg{To: o.To, Answer: ans, Err: err}
		}()
	}
	wg.Wait()
	return legs
}

// ask writes the question and that it was asked.
func (m *Incoming) ask(ctx context.Context, out Outgoing, hops []envelope.Hop) error {
	j, ib := m.j, m.j.ib
	if err := ib.b.checkTarget(ctx, out.To); err != nil {
		return err
	}
	if err := ib.b.roomFor(out.To.Agent); err != nil {
		return err
	}
	s, err := ib.b.seal(out)
	if err != nil {
		return err
	}
	if err := ib.b.putPayload(ctx, s); err != nil {
		return err
	}
	ib.b.tracks.begin(s)
	j.mu.Lock()
	j.asked = append(j.asked, s.MessageID)
	if j.answers == nil {
		j.answers = map[string]*envelope.Sealed{}
	}
	j.mu.Unlock()
	ib.mu.Lock()
	ib.asks[s.MessageID] = j
	ib.mu.Unlock()
	written := make(chan error, 1)
	j.park([]outgoing{{s: s, hops: hops}}, func(at envelope.Time, err error) {
		if err == nil {
			ib.b.sent(s, at)
		}
		written <- err
	})
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// answer gives an answer to the job that waits for it, and reports whether there is one.
// Its own taking is written with the job's end when that comes quickly.
func (ib *inbox) answer(a *job) bool {
	ib.mu.Lock()
	j := ib.asks[a.env.InReplyTo]
	ib.mu.Unlock()
	if j == nil {
		return false
	}
	now := envelope.At(ib.b.now())
	if a.del.Move(envelope.Delivered, now) != nil {
		return false
	}
	a.del.Owner = ib.b.cfg.Gateway
	ev := a.event(EventDelivered)
	ev.State = envelope.Delivered
	j.mu.Lock()
	if j.ended {
		j.mu.Unlock()
		a.del.State = envelope.Queued
		a.del.Attempt = 0
		return false
	}
	if j.answers == nil {
		j.answers = map[string]*envelope.Sealed{}
	}
	j.answers[a.env.InReplyTo] = a.env
	j.attached = append(j.attached, a)
	j.mu.Unlock()
	ib.b.emit(ev)
	ib.b.gotReply(a.env)
	j.mu.Lock()
	if j.answered != nil {
		close(j.answered)
		j.answered = nil
	}
	j.mu.Unlock()
	time.AfterFunc(quick, func() { j.detach(a) })
	return true
}

// detach writes the taking of an answer by itself, because the job that waited for it goes on.
func (j *job) detach(a *job) {
	ib := j.ib
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended || ib.ctx.Err() != nil {
		return
	}
	for i, x := range j.attached {
		if x == a {
			j.attached = append(j.attached[:i:i], j.attached[i+1:]...)
		}
	}
	now := envelope.At(ib.b.now())
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.del.Move(envelope.Acked, now) != nil {
		return
	}
	a.ended = true
	st := storedAnswer{key: answerKey(ib.spec.ID, j.env.MessageID, a.env.InReplyTo), at: new(uint64)}
	j.stored = append(j.stored, st)
	u := &unit{
		ctx: ib.ctx, owner: ib, taken: a.takenLocked(), receipts: []ownedReceipt{{a.src, a.receiptLocked(now)}},
		pending: []pendingOp{{key: st.key, value: ib.b.sign(trust.KindRecord, st.key, a.env.Canonical()), at: st.at}},
	}
	u.done = func(err error) {
		ib.finished(err, a)
		if err == nil {
			ev := a.event(EventAcked)
			ev.State = envelope.Acked
			ib.b.emit(ev)
		}
	}
	ib.b.writer.submit(u)
}
