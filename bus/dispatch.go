package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// job is one message in the hands of its owner.
type job struct {
	ib   *inbox
	src  *source
	env  *envelope.Sealed
	size int
	// entry is the lane entry whose cursor waits for this message; nil once it has a
	// record of its own. lane and item keep its place.
	entry *laneEntry
	lane  uint64
	item  int

	// duplicateOf names the unfinished task that has the same unique key; it is set before the job is shared.
	duplicateOf string
	// waited: the delay of its next attempt is over, by whatever clock that was planned. Only its conversation uses it.
	waited bool

	mu sync.Mutex
	// loading is closed when a spilled message has been read again; nil: nobody does that.
	loading chan struct{}
	del     envelope.Delivery
	// run is where a task of a queue is worked on.
	run *taskRun
	// handling: it is in the hands of handle. lease is that of the attempt that runs; nil: none does. cancelled is why the message is to be
	// given up when that has ended. gone is closed with the message's end (left); nil until somebody waits for it.
	handling  bool
	left      bool
	lease     *lease
	cancelled error
	gone      chan struct{}
	// parked: it has a record of its own, or one is on its way; at is the record's index
	// (the writer's).
	parked bool
	at     uint64
	ended  bool
	// recorded is the attempt that the record in the store tells of.
	recorded int
	// careful: the record of each attempt is written before the attempt begins.
	careful bool
	// started: its turn has come. spilled: env is only the header, the rest is in its record.
	started, spilled bool
	// ahead is the message before it in its conversation, until its own turn comes.
	ahead *job
	// conv is the conversation that it is handled in; only who handles it uses it.
	conv *conversation
	// track finds its timeline; it is set before the job is shared.
	track trackRef
	// atDoor: it waits for nothing but a place to run in, so a record of its own would gain nothing.
	atDoor bool
	// said is the entry that it came in, and proof what came with it when others had passed it on: see provenance. Both are
	// set before the job is shared.
	said  *saidEntry
	proof []byte
	// passedTo is the agent that its handling passed it on to.
	passedTo string
	// What its handling asked, and the answers that are here.
	asked   []string
	answers map[string]*envelope.Sealed
	// attached are answers in memory whose own taking waits for this job's end; stored
	// are answers with a key.
	attached []*job
	stored   []storedAnswer
	// answered is closed and replaced when an answer comes.
	answered chan struct{}
}

type storedAnswer struct {
	key string
	at  *uint64
}

func (j *job) event(name string) Event {
	ev := j.ib.b.eventOf(name, &j.env.Envelope)
	j.mu.Lock()
	defer j.mu.Unlock()
	ev.Attempt = j.del.Attempt
	return ev
}

// misplaced says why the message cannot be handled here, if so.
func (j *job) misplaced() error {
	e, here := &j.env.Envelope, j.ib.b.cfg.Gateway
	if j.del.For != "" {
		// Passed on: the one who did is the last hop, and the lane is its gateway's.
		switch n := len(j.del.Hops); {
		case j.del.For != j.ib.spec.ID:
			return fmt.Errorf("it was passed on to agent %s, not %s", j.del.For, j.ib.spec.ID)
		case e.Terminal:
			return errors.New("it is terminal, and was passed on all the same")
		case n == 0 || j.del.Hops[n-1].Gateway != j.src.from:
			return fmt.Errorf("it was passed on, but not by %s, in whose lane it lies", j.src.from)
		}
		return nil
	}
	switch {
	case e.TargetAgent != j.ib.spec.ID:
		return fmt.Errorf("it is for agent %s, not %s", e.TargetAgent, j.ib.spec.ID)
	case e.SourceGateway != j.src.from:
		return fmt.Errorf("it says it is from %s but lies in the lane of %s", e.SourceGateway, j.src.from)
	case e.TargetGateway != "" && e.TargetGateway != here:
		return fmt.Errorf("it is pinned to %s, but %s runs on %s now", e.TargetGateway, e.TargetAgent, here)
	}
	return nil
}

// dispatch hands a message to the question that it answers, or to its conversation.
func (ib *inbox) dispatch(j *job) {
	if j.env.InReplyTo != "" && ib.answer(j) {
		return
	}
	ib.toConversation(j)
}

// keptBefore sees to it that what is older than a message in its conversation has a record or an end in the store before what is written from now on; false:
// it has not been read yet, or is between two attempts.
func (ib *inbox) keptBefore(j *job) bool {
	if j.src.admitted.Load() < j.lane {
		return false
	}
	if ib.spec.OneOrder {
		ib.gather.mu.Lock()
		open := ib.gather.open
		ib.gather.mu.Unlock()
		if open {
			return false
		}
	}
	ib.mu.Lock()
	var older *job
	if c := ib.convs[ib.conversationOf(j)]; c != nil {
		older = c.last
	}
	ib.mu.Unlock()
	for older != nil && older.src == j.src && placeInLane(older, j) >= 0 {
		older.mu.Lock()
		next := older.ahead
		older.mu.Unlock()
		older = next
	}
	return older == nil || older.kept()
}

// handle takes a message through its attempts until it has an end, or the inbox. o is what came of the attempt that runs already; nil: none
// does. It reports whether it was left behind by another goroutine, which goes on in its place.
func (j *job) handle(o *outcome) (left bool) {
	ib := j.ib
	if o == nil && !j.start() {
		return false
	}
	for o != nil || ib.intake.Err() == nil {
		if o == nil {
			at, ok := j.turn()
			if !ok {
				return false
			}
			if o, left = j.attempt(at); left {
				return true
			}
		}
		if j.settle(o) {
			return false
		}
		o = nil
	}
	return false
}

// start is the beginning of handle; false: there is nothing to do.
func (j *job) start() bool {
	ib := j.ib
	left, ok := j.takeUp()
	if !ok {
		return false // it was cancelled while it waited for its turn
	}
	if !left {
		return true
	}
	if !j.begin() {
		return false
	}
	// Its last owner died at work, or was deposed.
	if j.running() != nil {
		// A task: only the queue's owner died, its worker may be at it still.
		j.mu.Lock()
		_ = j.del.Handover(ib.b.cfg.Gateway, envelope.At(ib.b.now())) // it is delivered
		j.mu.Unlock()
		return true
	}
	return !j.failed(envelope.ClassCrashed, errors.New("the gateway that worked on it stopped"))
}

// turn waits until an attempt may begin, and takes its place; false: there is to be none.
func (j *job) turn() (at place, ok bool) {
	ib := j.ib
	if cause := j.givenUp(); cause != nil {
		j.dead(envelope.ClassCancelled, cause)
		return at, false
	}
	if !j.waited && !j.rest() {
		return at, false
	}
	j.waited = false
	if !ib.b.session.waitTrusted(ib.intake) {
		return at, false
	}
	// What waits here is not in memory when it has a record of its own.
	if at, ok = ib.enterWork(j); !ok {
		return at, false
	}
	if !j.begin() || j.over() {
		at.leave()
		return at, false
	}
	if class, err := j.unfit(); err != nil {
		at.leave()
		j.dead(class, err)
		return at, false
	}
	return at, true
}

// settle records what came of an attempt, and reports whether that was the last one.
func (j *job) settle(o *outcome) (end bool) {
	ib, m, err := j.ib, o.m, o.err
	if ib.ctx.Err() != nil || errors.Is(err, errOver) {
		return true // deposed: whatever came out is not ours to record
	}
	if err != nil && m != nil && m.task != nil {
		err = m.verdict(err)
	}
	if err == nil {
		return j.acked(m)
	}
	if ib.work.Err() != nil && errors.Is(err, context.Canceled) || ib.intake.Err() != nil && errors.Is(err, ErrHandover) {
		j.handover()
		return true
	}
	if errors.Is(err, errGivenBack) {
		j.giveBack(err)
		return false
	}
	if class, final := finalClass(err); final {
		j.dead(class, err)
		return true
	}
	class := envelope.ClassRetry
	switch {
	case errors.Is(err, errWorkerLost):
		class = envelope.ClassCrashed
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrLeaseLost):
		class = envelope.ClassTimeout
	}
	return j.failed(class, err)
}

// finalClass reports whether an error ends a message, and as what.
func finalClass(err error) (envelope.Class, bool) {
	var n *never
	if errors.As(err, &n) {
		return n.class, true
	}
	// The rules of the path and the budget say it of themselves.
	var c interface{ Class() envelope.Class }
	if errors.As(err, &c) && !c.Class().Retryable() {
		return c.Class(), true
	}
	return "", false
}

// unfit says why the message must not be handed to its agent now, if so.
func (j *job) unfit() (envelope.Class, error) {
	now := j.ib.b.now()
	// What may have had its effect is handed out all the same: its handler can find out. It gets no permit for more.
	j.mu.Lock()
	open := len(j.del.OpenEffects()) > 0
	j.mu.Unlock()
	if !open && j.env.ExpiredWith(now, envelope.DefaultSkew, j.del.ExpiresAt) {
		return envelope.ClassExpired, j.expiry()
	}
	if j.env.InReplyTo == "" { // a reply goes back by nature
		if err := envelope.CheckPath(j.del.Hops, j.ib.spec.ID, j.env.MaxHops); err != nil {
			return envelope.ClassHops, err
		}
	}
	if err := j.budget().Exhausted(now); err != nil {
		return envelope.ClassBudget, err
	}
	if err := j.permitted(); err != nil {
		return envelope.ClassUnauthorised, err
	}
	if err := j.ib.b.inTheClear(&j.env.Envelope); err != nil {
		return envelope.ClassUnauthorised, err
	}
	return "", nil
}

// budget is what the handling may spend: what the envelope gives less what earlier attempts spent.
func (j *job) budget() *envelope.Budget {
	if s := j.del.Spent; s != nil {
		return j.env.Budget.Less(*s)
	}
	return j.env.Budget
}

// expiry says why the message is expired: too old, or stamped by a clock that is ahead.
func (j *job) expiry() error {
	e := &j.env.Envelope
	if at := j.del.ExpiresAt; at != nil {
		return fmt.Errorf("the lifetime that its redrive gave it ended at %s", at.Format(time.RFC3339))
	}
	if ahead := e.CreatedAt.Sub(j.ib.b.now()); ahead > 0 {
		return fmt.Errorf("created_at is %s in the future by the clock of %s: set the clock of %s, or its own when that is behind (allowed skew %s)",
			ahead.Round(time.Millisecond), j.ib.b.cfg.Gateway, e.SourceGateway, envelope.DefaultSkew)
	}
	return fmt.Errorf("ttl of %s passed %s ago by the clock of %s, counted from what that of %s said when it was made", e.TTL.Duration(), j.ib.b.now().Sub(e.ExpiresAt()).Round(time.Millisecond), j.ib.b.cfg.Gateway, e.SourceGateway)
}

// due is how long the next attempt waits. The moment was written by another clock, perhaps, which may differ from
// this one by minutes: it is never longer than the whole delay.
func (j *job) due() time.Duration {
	at := j.del.NextAttemptAt
	if at == nil {
		return 0
	}
	d := at.Sub(j.ib.b.now())
	if n := len(j.del.Failures); n > 0 {
		d = min(d, at.Sub(j.del.Failures[n-1].At.Time))
	}
	return d
}

// wait waits for d, and reports whether ctx still lives.
func wait(ctx context.Context, d time.Duration) bool {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// acked records success: receipt, replies and sends in one transaction. It reports whether that was the end.
func (j *job) acked(m *Incoming) (end bool) {
	ib := j.ib
	if class, err := m.prepare(); err != nil {
		if ib.ctx.Err() != nil {
			return true
		}
		if class.Retryable() {
			return j.failed(class, err)
		}
		j.dead(class, err)
		return true
	}
	now := envelope.At(ib.b.now())
	j.mu.Lock()
	if err := j.undecided(); err != nil {
		j.mu.Unlock()
		j.dead(envelope.ClassUnknown, err)
		return true
	}
	if err := j.del.Move(envelope.Acked, now); err != nil {
		j.mu.Unlock()
		j.dead(envelope.ClassPoison, err)
		return true
	}
	if ib.queue == nil && j.duplicateOf == "" {
		m.extra = append(m.extra, ib.keepUnique(j)...)
	}
	for _, x := range m.out {
		if x.forward != nil {
			j.passedTo = x.forward.to
		}
	}
	u := j.endLocked(now)
	attached := j.attached
	j.mu.Unlock()
	for _, x := range m.out {
		u.send(&x)
		ib.b.tracks.begin(x.s) // before anybody can answer it
	}
	u.extra, u.pending, u.receipts = m.extra, append(u.pending, m.pending...), append(u.receipts, m.told...)
	u.done = func(err error) {
		ib.finished(err, append([]*job{j}, attached...)...)
		if err != nil {
			return
		}
		ev := j.event(EventAcked)
		ev.State = envelope.Acked
		j.emit(&ev)
		for _, x := range m.out {
			if x.forward != nil {
				fev := j.event(EventForwarded)
				fev.To, fev.Reason = x.forward.to, envelope.PathText(x.hops, x.forward.to)
				ib.b.emit(fev)
				continue
			}
			ib.b.sent(x.s, u.at)
		}
		for _, a := range attached {
			aev := a.event(EventAcked)
			aev.State = envelope.Acked
			ib.b.emit(aev)
		}
		if m.after != nil {
			m.after()
		}
	}
	ib.b.writer.submit(u)
	j.farewell()
	return true
}

// prepare makes what the ack sends final: shares of the budget, and big payloads in the store before
// anything names them.
func (m *Incoming) prepare() (envelope.Class, error) {
	if err := m.settle(); err != nil {
		return envelope.ClassPoison, fmt.Errorf("share out the budget: %w", err)
	}
	for _, x := range m.out {
		if x.forward != nil {
			continue
		}
		if err := m.j.ib.b.putPayload(m.j.ib.ctx, x.s); err != nil {
			return envelope.ClassRetry, err
		}
	}
	return "", nil
}

// finished forgets jobs whose end is written; when it could not be, the term ends, and the
// next one finds them where they are.
func (ib *inbox) finished(err error, jobs ...*job) {
	if err != nil && ib.ctx.Err() == nil {
		ib.b.log.Warn("cannot record an outcome", "agent", ib.spec.ID, "message_id", jobs[0].env.MessageID, "error", err)
	}
	if err != nil && !errors.Is(err, ErrDeposed) && !errors.Is(err, ErrStopped) {
		ib.depose(fmt.Errorf("record outcome of %s: %w", jobs[0].env.MessageID, err))
	}
	for _, j := range jobs {
		ib.leave(j)
	}
}

// failed records an attempt that did not work, and reports whether that was the end.
func (j *job) failed(class envelope.Class, cause error) (end bool) {
	ib := j.ib
	policy := ib.b.cfg.Retry.of(&j.env.Envelope)
	now := envelope.At(ib.b.now())
	j.mu.Lock()
	if err := j.del.Move(envelope.Failed, now); err != nil {
		j.mu.Unlock()
		j.dead(envelope.ClassPoison, err)
		return true
	}
	j.del.Fail(ib.b.cfg.Gateway, now, class, cause.Error())
	count := j.del.RetryCount
	j.mu.Unlock()
	ev := j.event(EventFailed)
	ev.State, ev.Class, ev.Reason = envelope.Failed, class, cause.Error()
	ib.b.emit(ev)
	if j.del.Crashes >= maxCrashes {
		j.dead(envelope.ClassPoison, fmt.Errorf("%d times the process that worked on it died", j.del.Crashes))
		return true
	}
	if count >= policy.MaxAttempts {
		end := envelope.ClassExhausted
		if errors.Is(cause, trust.ErrNotForHere) {
			end = envelope.ClassUnreadable
		}
		j.dead(end, fmt.Errorf("%d attempts failed, the last one: %w", count, cause))
		return true
	}
	delay := policy.delay(count)
	var r *retryAfter
	if errors.As(cause, &r) {
		delay = r.after
	}
	next := envelope.At(now.Add(delay))
	j.mu.Lock()
	_ = j.del.Move(envelope.Queued, now) // failed to queued is in the table
	j.del.NextAttemptAt = &next
	u := &unit{ctx: ib.ctx, owner: ib, taken: j.takenLocked(), pending: []pendingOp{j.recordLocked()}}
	rc := j.receiptLocked(now)
	rc.State = envelope.Failed
	u.receipts = []ownedReceipt{{j.src, rc}}
	j.parked = true
	j.mu.Unlock()
	u.done = func(err error) {
		if err != nil {
			if !errors.Is(err, ErrDeposed) && !errors.Is(err, ErrStopped) {
				ib.depose(fmt.Errorf("record retry of %s: %w", j.env.MessageID, err))
			}
			return
		}
		rev := j.event(EventRetry)
		rev.State, rev.Reason = envelope.Queued, fmt.Sprintf("attempt %d in %s", count+1, delay.Round(time.Millisecond))
		ib.b.emit(rev)
	}
	ib.b.writer.submit(u)
	return false
}

// handover gives the message back without counting the attempt: the gateway stops.
func (j *job) handover() {
	now := envelope.At(j.ib.b.now())
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.parked || j.del.Handover(j.ib.b.cfg.Gateway, now) != nil {
		return // without a record it is still in its lane
	}
	u := &unit{ctx: j.ib.ctx, owner: j.ib, pending: []pendingOp{j.recordLocked()}, done: func(error) {}}
	j.ib.b.writer.submit(u)
}

// dead gives a message up: a dead letter with everything known, and the sender is told.
func (j *job) dead(class envelope.Class, cause error) { j.deadIf(nil, class, cause) }

// deadIf is dead, if the message has not ended and may (called with j.mu held; nil: yes) says so; it reports whether that was so.
func (j *job) deadIf(may func() bool, class envelope.Class, cause error) bool {
	ib := j.ib
	now := envelope.At(ib.b.now())
	j.mu.Lock()
	if j.ended || may != nil && !may() {
		j.mu.Unlock()
		return false
	}
	if err := j.undecided(); err != nil && class != envelope.ClassUnknown {
		class, cause = envelope.ClassUnknown, fmt.Errorf("%w; it ended as %s: %w", err, class, cause)
	}
	if err := j.del.Move(envelope.DeadLetter, now); err != nil {
		j.mu.Unlock()
		ib.b.log.Error("illegal move", "message_id", j.env.MessageID, "error", err)
		return false
	}
	j.del.Class, j.del.LastError = class, cause.Error()
	j.del.Owner = ib.b.cfg.Gateway
	u := j.endLocked(now)
	attached := j.attached
	rec := deadRecord{Delivery: j.del, Envelope: j.env.Canonical(), From: j.src.from, Lane: j.lane, Item: j.item, Proof: j.provenance()}
	j.mu.Unlock()
	key := deadKey(ib.spec.ID, j.env.MessageID)
	u.extra = []Op{{Verb: OpSet, Key: key, Value: ib.b.sign(trust.KindRecord, key, mustEncode(rec))}}
	if class == envelope.ClassUnknown {
		u.extra = append(u.extra, ib.keepUnique(j)...) // it may have done its work
	}
	if j.del.For != "" {
		u.send(&outgoing{s: ib.b.advise(j, class, cause)})
	}
	u.done = func(err error) {
		ib.finished(err, append([]*job{j}, attached...)...)
		if err == nil {
			ev := j.event(EventDeadLetter)
			ev.State, ev.Class, ev.Reason = envelope.DeadLetter, class, cause.Error()
			ib.b.emit(ev)
		}
	}
	ib.b.writer.submit(u)
	j.farewell()
	return true
}
