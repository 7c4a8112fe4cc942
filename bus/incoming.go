package bus

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
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
