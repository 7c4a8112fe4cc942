package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// Incoming is a message in a handler's hands. It is good until Handle returns.
type Incoming struct {
	j     *job
	asks  int
	sends int
	reply bool
	// out and extra go out with the ack; after runs when that is written.
	out   []*envelope.Sealed
	extra []Op
	after func()
}

// Envelope returns the message. Do not change it.
func (m *Incoming) Envelope() *envelope.Sealed { return m.j.env }

// Attempt is 1 the first time, and grows with every retry.
func (m *Incoming) Attempt() int {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	return m.j.del.Attempt
}

// Gateway is the gateway that works on it.
func (m *Incoming) Gateway() string { return m.j.ib.b.cfg.Gateway }

// Reply answers the message. The answer leaves in the transaction that acks it; a
// message that wants no answer swallows it. At most one reply.
func (m *Incoming) Reply(payload []byte) error {
	if m.reply {
		return fmt.Errorf("message %s has a reply already", m.j.env.MessageID)
	}
	e := &m.j.env.Envelope
	if e.ReplyTo == "" {
		return nil
	}
	s, err := m.j.ib.b.seal(Outgoing{
		ID: envelope.DerivedID(e.MessageID, "reply"), To: envelope.Address{Agent: e.ReplyTo}, From: e.TargetAgent,
		InReplyTo: e.MessageID, CorrelationID: e.CorrelationID, ConversationID: e.ConversationID,
		Capability: e.Capability, Payload: payload, Traceparent: e.Traceparent, Terminal: true,
	})
	if err != nil {
		return err
	}
	if err := m.add(s); err != nil {
		return err
	}
	m.reply = true
	return nil
}

// What one handling may send in the transaction that acks it. More would not fit into it.
const (
	maxOut      = 16
	maxOutBytes = 256 << 10
	// maxAsks bounds the questions of one handling.
	maxAsks = 64
)

func (m *Incoming) add(s *envelope.Sealed) error {
	n := len(s.Canonical())
	for _, o := range m.out {
		n += len(o.Canonical())
	}
	if len(m.out) >= maxOut || n > maxOutBytes {
		return fmt.Errorf("%w: one handling may send %d messages of %d KiB together", ErrTooLarge, maxOut, maxOutBytes>>10)
	}
	m.out = append(m.out, s)
	return nil
}

// Send sends a message in the transaction that acks this one; if that never
// happens, it is never sent. It continues this message's correlation and
// conversation unless out says otherwise, and has the same id however often the
// handler runs.
func (m *Incoming) Send(out Outgoing) (id string, err error) {
	m.sends++
	m.inherit(&out, fmt.Sprintf("send/%d", m.sends))
	s, err := m.j.ib.b.seal(out)
	if err != nil {
		return "", err
	}
	return s.MessageID, m.add(s)
}

func (m *Incoming) inherit(out *Outgoing, step string) {
	e := &m.j.env.Envelope
	if out.From == "" {
		out.From = e.TargetAgent
	}
	if out.CorrelationID == "" {
		out.CorrelationID = e.CorrelationID
	}
	if out.ConversationID == "" {
		out.ConversationID = e.ConversationID
	}
	if out.Traceparent == "" {
		out.Traceparent = e.Traceparent
	}
	if out.ID == "" {
		// The content is part of the name: a handler that asks something else when it
		// runs again must not be given the old question's answer.
		h := sha256.Sum256(append([]byte(out.To.String()+"\x00"+out.Capability+"\x00"), out.Payload...))
		out.ID = envelope.DerivedID(e.MessageID, step+"/"+hex.EncodeToString(h[:8]))
	}
}

// Ask sends a question at once and waits for its answer. The question and the record that
// it was asked are one transaction: when the handler runs again, on this gateway or
// another, the same Ask gives the answer that came, or goes on waiting, and never asks
// twice; so when the gateway stops, it ends at once with [ErrHandover]. Unless out names one, the conversation is one of this agent's own within the message's. Errors: *[DeadLetterError] (the question was given up), *[NoAnswerError] (ctx ended
// first), [ErrUnknownAgent], or the store's.
func (m *Incoming) Ask(ctx context.Context, out Outgoing) (*envelope.Sealed, error) {
	j := m.j
	ib := j.ib
	m.asks++
	if out.ConversationID == "" {
		// Not this message's own: an agent that is asked in a circle would wait for itself.
		out.ConversationID = envelope.DerivedID(j.env.ConversationID, ib.spec.ID)
	}
	m.inherit(&out, fmt.Sprintf("ask/%d", m.asks))
	out.ReplyTo = ib.spec.ID
	j.mu.Lock()
	ans := j.answers[out.ID]
	before := slices.Contains(j.asked, out.ID)
	j.mu.Unlock()
	if ans != nil {
		return ans, nil
	}
	if m.asks > maxAsks {
		return nil, fmt.Errorf("one handling may ask %d questions", maxAsks)
	}
	if before {
		// Asked by an earlier run: its fate may have been told while nobody listened.
		if st, err := ib.b.Lookup(ctx, out.ID); err == nil && st.Facts.Dead {
			return nil, &DeadLetterError{MessageID: out.ID, Agent: out.To.Agent, Class: st.Facts.Class, Reason: st.Facts.Reason}
		}
	} else {
		if err := m.ask(ctx, out); err != nil {
			return nil, err
		}
	}
	ib.b.tracks.hold(out.ID, 1)
	defer ib.b.tracks.hold(out.ID, -1)
	for {
		j.mu.Lock()
		ans := j.answers[out.ID]
		if j.answered == nil {
			j.answered = make(chan struct{})
		}
		answered := j.answered
		j.mu.Unlock()
		if ans != nil {
			return ans, nil
		}
		tr, changed, _ := ib.b.tracks.get(out.ID)
		if tr.Facts.Dead {
			return nil, &DeadLetterError{MessageID: out.ID, Agent: out.To.Agent, Class: tr.Facts.Class, Reason: tr.Facts.Reason}
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

// ask writes the question and that it was asked.
func (m *Incoming) ask(ctx context.Context, out Outgoing) error {
	j, ib := m.j, m.j.ib
	if err := ib.b.checkTarget(ctx, out.To); err != nil {
		return err
	}
	s, err := ib.b.seal(out)
	if err != nil {
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
	j.park([]*envelope.Sealed{s}, func(at envelope.Time, err error) {
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
	now := envelope.At(time.Now())
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
	now := envelope.At(time.Now())
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
		pending: []pendingOp{{key: st.key, value: a.env.Canonical(), at: st.at}},
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
