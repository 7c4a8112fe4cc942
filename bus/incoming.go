package bus

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Incoming is a message in a handler's hands. It is good until Handle returns or its lease is lost;
// after that every method that would do something returns [ErrLeaseLost].
type Incoming struct {
	j     *job
	lease *lease
	// env is the message with its payload, also when that lies outside of the envelope.
	env *envelope.Sealed
	// began is when this attempt did, on the monotonic clock.
	began time.Time
	// key is that of an encrypted payload.
	key trust.ContentKey

	mu    sync.Mutex
	asks  int
	sends int
	reply bool
	// budget is what may still be spent; nil: unlimited.
	budget *envelope.Budget
	// out, pending and extra go out with the ack; after runs when that is written.
	out     []outgoing
	pending []pendingOp
	extra   []Op
	told    []ownedReceipt
	after   func()
	// task is set when this is the run of a queue's task at a worker; env is the task then.
	task *taskWork
}

// outgoing is one message of an ack.
type outgoing struct {
	o    Outgoing
	s    *envelope.Sealed
	hops []envelope.Hop
	// forward is set when the message itself is passed on: s is not sealed again, and proof shows who sent it.
	forward *passedOn
	proof   []byte
}

// Envelope returns the message. Do not change it.
func (m *Incoming) Envelope() *envelope.Sealed {
	if m.env != nil {
		return m.env
	}
	return m.j.env
}

// Attempt is 1 the first time, and grows with every retry.
func (m *Incoming) Attempt() int {
	if m.task != nil {
		return m.task.attempt
	}
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	return m.j.del.Attempt
}

// Hops are the agents that passed the message, or its cause, on, oldest first. Do not change it.
func (m *Incoming) Hops() []envelope.Hop { return m.j.del.Hops }

// Gateway is the gateway that works on it.
func (m *Incoming) Gateway() string { return m.j.ib.b.cfg.Gateway }

// AckTimeout is how long the handler may go without a sign of life ([Incoming.Working]; waiting in
// [Incoming.Ask] is one).
func (m *Incoming) AckTimeout() time.Duration { return m.lease.timeout }

// Working says that the handler still works: the ack timeout starts anew. It costs no write. Errors:
// [ErrLeaseLost].
func (m *Incoming) Working() error {
	if !m.lease.renew() {
		return ErrLeaseLost
	}
	return nil
}

// Guard says whether the handler may make an effect outside of the mesh now; call it immediately
// before. It is no lock: what happens between its answer and the effect is not covered. Errors: [ErrLeaseLost],
// [ErrDeposed], [ErrExpired], *envelope.BudgetError; return them as they are.
func (m *Incoming) Guard() error {
	j := m.j
	switch {
	case !m.lease.alive():
		return ErrLeaseLost
	case j.ib.ctx.Err() != nil || !j.ib.b.session.trusted():
		return ErrDeposed
	case j.env.ExpiredWith(j.ib.b.now(), envelope.DefaultSkew, j.del.ExpiresAt):
		return Never(envelope.ClassExpired, fmt.Errorf("%w: %w", ErrExpired, j.expiry()))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.budget.Exhausted(m.j.ib.b.now())
}

// Record adds what the agent did to the events that all agents see ([Bus.RecordEvent]): the same text once for a
// message, however often it is handled. It is an effect of its own, not part of the ack.
func (m *Incoming) Record(ctx context.Context, text string) error {
	_, err := m.j.ib.b.RecordEvent(ctx, StateEvent{ID: envelope.DerivedID(m.j.env.MessageID, "event/"+text), Agent: m.j.ib.spec.ID, Event: text})
	return err
}

// Budget is what may still be spent; nil: there is no limit. Do not change it.
func (m *Incoming) Budget() *envelope.Budget {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.budget
}

// Spend takes tokens and US dollars, spent already, off the budget. An error (*envelope.BudgetError)
// says that nothing is left for more; what was spent stays recorded either way.
func (m *Incoming) Spend(tokens int64, usd float64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.budget == nil {
		return nil
	}
	left, err := m.budget.Debit(0, tokens, usd)
	if err != nil {
		return err
	}
	m.budget = left
	return left.Exhausted(m.j.ib.b.now())
}

// Reply answers the message. The answer leaves in the transaction that acks it, and brings back what
// is left of the budget; a message that wants no answer swallows it. At most one reply.
func (m *Incoming) Reply(payload []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.lease.alive() {
		return ErrLeaseLost
	}
	if m.task != nil {
		if m.task.result != nil {
			return fmt.Errorf("task %s has a result already", m.env.MessageID)
		}
		if most := m.j.ib.b.cfg.MaxPayload; len(payload) > most {
			return fmt.Errorf("the result is %d bytes, at most %d: %w", len(payload), most, ErrTooLarge)
		}
		m.task.result = payload
		return nil
	}
	return m.replyLocked(payload)
}

func (m *Incoming) replyLocked(payload []byte) error {
	if m.reply {
		return fmt.Errorf("message %s has a reply already", m.j.env.MessageID)
	}
	e := &m.j.env.Envelope
	if e.ReplyTo == "" {
		return nil
	}
	o := Outgoing{
		ID: envelope.DerivedID(e.MessageID, "reply"), To: envelope.Address{Agent: e.ReplyTo}, From: m.j.ib.spec.ID,
		InReplyTo: e.MessageID, CorrelationID: e.CorrelationID, ConversationID: e.ConversationID, MaxHops: e.MaxHops,
		Capability: e.Capability, Payload: payload, Traceparent: e.Traceparent, Terminal: true, Budget: m.budget, reserved: true,
		secret: e.Encrypted(),
	}
	if err := m.addLocked(o, m.pathOn()); err != nil {
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

func (m *Incoming) addLocked(o Outgoing, hops []envelope.Hop) error {
	s, err := m.j.ib.b.seal(o)
	if err != nil {
		return err
	}
	return m.joinLocked(outgoing{o: o, s: s, hops: hops})
}

func (m *Incoming) joinLocked(x outgoing) error {
	n := len(x.s.Canonical())
	for _, o := range m.out {
		n += len(o.s.Canonical())
	}
	if len(m.out) >= maxOut || n > maxOutBytes {
		return fmt.Errorf("%w: one handling may send %d messages of %d KiB together", ErrTooLarge, maxOut, maxOutBytes>>10)
	}
	m.out = append(m.out, x)
	return nil
}

// Send sends a message in the transaction that acks this one; if that never
// happens, it is never sent. It continues this message's correlation, conversation, path and budget
// unless out says otherwise, and has the same id however often the
// handler runs. Errors: *envelope.HopsError (the target is on the path already, or max_hops is reached),
// *envelope.BudgetError, [ErrInboxFull], [ErrTooLarge], [ErrLeaseLost], envelope.ErrInvalid.
func (m *Incoming) Send(out Outgoing) (id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sends++
	hops, err := m.inheritLocked(&out, fmt.Sprintf("send/%d", m.sends))
	if err != nil {
		return "", err
	}
	if err := m.j.ib.b.roomFor(out.To.Agent); err != nil {
		return "", err
	}
	left, err := m.debitLocked(out.Budget)
	if err != nil {
		return "", err
	}
	if err := m.addLocked(out, hops); err != nil {
		return "", err
	}
	m.budget = left
	return m.out[len(m.out)-1].s.MessageID, nil
}

// debitLocked is the budget less one message and the share that goes with it, if it names one.
func (m *Incoming) debitLocked(share *envelope.Budget) (*envelope.Budget, error) {
	if m.budget == nil {
		return nil, nil //nolint:nilnil // unlimited
	}
	if err := m.budget.Exhausted(m.j.ib.b.now()); err != nil {
		return nil, err
	}
	messages, tokens, usd := int64(1), int64(0), 0.0
	if share != nil {
		if share.Messages != nil {
			messages += *share.Messages
		}
		if share.Tokens != nil {
			tokens = *share.Tokens
		}
		if share.USD != nil {
			usd = *share.USD
		}
	}
	return m.budget.Debit(messages, tokens, usd)
}

// pathOn is the path of what this handling causes.
func (m *Incoming) pathOn() []envelope.Hop {
	j := m.j
	return append(j.del.Hops[:len(j.del.Hops):len(j.del.Hops)],
		envelope.Hop{Gateway: j.ib.b.cfg.Gateway, Agent: j.ib.spec.ID, At: envelope.At(j.ib.b.now())})
}

// life tells the lives of a message apart: one that was redriven asks anew, because the answer to what it asked
// before it died has come and gone.
func (j *job) life() string {
	if n := len(j.del.Redrives); n > 0 {
		return fmt.Sprintf("life/%d/", j.del.Redrives[n-1].At.UnixMilli())
	}
	return ""
}

// inheritLocked makes out a consequence of this message, and returns its path.
func (m *Incoming) inheritLocked(out *Outgoing, step string) ([]envelope.Hop, error) {
	if !m.lease.alive() {
		return nil, ErrLeaseLost
	}
	e := &m.Envelope().Envelope
	if out.From == "" {
		out.From = m.j.ib.spec.ID
		if m.task != nil {
			out.From = m.task.agent
		}
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
	if out.MaxHops == 0 {
		out.MaxHops = e.MaxHops
	}
	if out.ID == "" {
		// The content is part of the name: a handler that asks something else when it
		// runs again must not be given the old question's answer.
		out.ID = envelope.DerivedID(e.MessageID, m.j.life()+step+"/"+m.contentOf(out))
	}
	out.secret = out.secret || e.Encrypted()
	hops := m.pathOn()
	if out.Branch {
		hops = branch(hops, out.To.Agent)
	}
	if err := envelope.CheckPath(hops, out.To.Agent, out.MaxHops); err != nil {
		return nil, err
	}
	return hops, nil
}

// branch is a path on which target is not named: its hops stay, and count.
func branch(hops []envelope.Hop, target string) []envelope.Hop {
	if last := len(hops) - 1; hops[last].Agent == target {
		hops = hops[:last]
	}
	for i := range hops {
		if hops[i].Agent == target {
			hops[i].Agent = ""
		}
	}
	return hops
}

// contentOf names what is sent. Of what comes of an encrypted message the name is made with that one's key, which every owner of
// the inbox has: a plain hash in the id would let anybody at the store try out guesses of the payload.
func (m *Incoming) contentOf(out *Outgoing) string {
	h := sha256.New()
	if m.key != nil {
		h = hmac.New(sha256.New, m.key)
	}
	h.Write([]byte(out.To.String() + "\x00" + out.Capability + "\x00"))
	h.Write(out.Payload)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Forward passes this very message on to another agent, in the transaction that acks this delivery: same
// id, same signed bytes, one more hop. Its answer comes from there; if it dies there, its sender is
// told. Return nil after it. Errors are final ([Never]): a terminal message, a loop, max_hops, the budget.
func (m *Incoming) Forward(to envelope.Address) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.j
	if !m.lease.alive() {
		return ErrLeaseLost
	}
	if j.env.Terminal {
		return Never(envelope.ClassUndeliverable, fmt.Errorf("%s must not be forwarded to %s: it is terminal", j.env.MessageID, to))
	}
	hops := m.pathOn()
	if err := envelope.CheckPath(hops, to.Agent, j.env.MaxHops); err != nil {
		return err
	}
	if err := j.ib.b.roomFor(to.Agent); err != nil {
		return err
	}
	keys, err := m.rewrap(to)
	if err != nil {
		return err
	}
	left, err := m.debitLocked(nil)
	if err != nil {
		return err
	}
	m.budget = left
	on := &passedOn{to: to.Agent, keys: keys}
	if left != nil {
		on.spent = spentOf(j.env.Budget, left, 0)
	}
	return m.joinLocked(outgoing{s: j.env, hops: hops, forward: on, proof: j.provenance()})
}

// passedOn is a message that goes on to another agent than its sender named.
type passedOn struct {
	to    string
	spent *envelope.Spent
	keys  []string
}

// settle fixes what the ack sends: what is left of the budget is shared out, the reply's share
// being what it brings back.
func (m *Incoming) settle() error {
	if m.budget == nil {
		return nil
	}
	var open []int
	for i, x := range m.out {
		if x.forward == nil && (x.o.Budget == nil || x.o.reserved) {
			open = append(open, i)
		}
	}
	shares := m.budget.Split(len(open))
	for n, i := range open {
		x := &m.out[i]
		x.o.Budget = shares[n]
		s, err := m.j.ib.b.seal(x.o)
		if err != nil {
			return err
		}
		x.s = s
	}
	return nil
}

// spent records what an attempt took off the budget, for the next one. What it only meant to send was
// not spent.
func (j *job) spent(m *Incoming) {
	if j.env.Budget == nil {
		return
	}
	m.mu.Lock()
	left := m.budget
	back := int64(len(m.out))
	if m.reply {
		back-- // it cost nothing
	}
	m.mu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.del.Spent = spentOf(j.env.Budget, left, back)
}
