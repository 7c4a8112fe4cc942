package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
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

	mu  sync.Mutex
	del envelope.Delivery
	// parked: it has a record of its own, or one is on its way; at is the record's index
	// (the writer's).
	parked bool
	at     uint64
	ended  bool
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

// conversation handles the messages of one (source gateway, conversation) one after another.
type conversation struct {
	queue []*job
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
	switch e := &j.env.Envelope; {
	case e.TargetAgent != j.ib.spec.ID:
		return fmt.Errorf("it is for agent %s, not %s", e.TargetAgent, j.ib.spec.ID)
	case e.SourceGateway != j.src.from:
		return fmt.Errorf("it says it is from %s but lies in the lane of %s", e.SourceGateway, j.src.from)
	case e.TargetGateway != "" && e.TargetGateway != j.ib.b.cfg.Gateway:
		return fmt.Errorf("it is pinned to %s, but %s runs on %s now", e.TargetGateway, e.TargetAgent, j.ib.b.cfg.Gateway)
	}
	return nil
}

// dispatch hands a message to the question that it answers, or to its conversation.
func (ib *inbox) dispatch(j *job) {
	ib.b.tracks.begin(j.env)
	if j.env.InReplyTo != "" && ib.answer(j) {
		return
	}
	ib.toConversation(j)
}

func (ib *inbox) toConversation(j *job) {
	key := j.src.from + "/" + j.env.ConversationID
	ib.mu.Lock()
	defer ib.mu.Unlock()
	c := ib.convs[key]
	if c != nil {
		c.queue = append(c.queue, j)
		return
	}
	c = &conversation{queue: []*job{j}}
	ib.convs[key] = c
	ib.wg.Add(1)
	go func() {
		defer ib.wg.Done()
		for {
			ib.mu.Lock()
			if len(c.queue) == 0 || ib.intake.Err() != nil {
				delete(ib.convs, key)
				ib.mu.Unlock()
				return
			}
			next := c.queue[0]
			c.queue = c.queue[1:]
			ib.mu.Unlock()
			next.handle()
		}
	}()
}

// handle takes a message through its attempts until it has an end, or the inbox.
func (j *job) handle() {
	ib := j.ib
	if j.del.State == envelope.Delivered {
		// Its last owner died at work, or was deposed.
		if j.failed(envelope.ClassCrashed, errors.New("the gateway that worked on it stopped")) {
			return
		}
	}
	for ib.intake.Err() == nil {
		if at := j.del.NextAttemptAt; at != nil && !wait(ib.intake, time.Until(at.Time)) {
			return
		}
		if !ib.b.session.waitTrusted(ib.intake) {
			return
		}
		if j.env.Expired(time.Now(), envelope.DefaultSkew) {
			j.dead(envelope.ClassExpired, expiry(&j.env.Envelope))
			return
		}
		if err := j.env.CheckHops(j.del.Hops); err != nil {
			j.dead(envelope.ClassHops, err)
			return
		}
		select {
		case ib.slots <- struct{}{}:
		case <-ib.intake.Done():
			return
		}
		m, err := j.attempt()
		<-ib.slots
		if ib.ctx.Err() != nil {
			return // deposed: whatever came out is not ours to record
		}
		if err == nil {
			j.acked(m)
			return
		}
		if ib.work.Err() != nil && errors.Is(err, context.Canceled) || ib.intake.Err() != nil && errors.Is(err, ErrHandover) {
			j.handover()
			return
		}
		var n *never
		if errors.As(err, &n) {
			j.dead(n.class, err)
			return
		}
		class := envelope.ClassRetry
		if errors.Is(err, context.DeadlineExceeded) {
			class = envelope.ClassTimeout
		}
		if j.failed(class, err) {
			return
		}
	}
}

// expiry says why an envelope is expired: too old, or stamped by a clock that is ahead.
func expiry(e *envelope.Envelope) error {
	if ahead := time.Until(e.CreatedAt.Time); ahead > 0 {
		return fmt.Errorf("created_at is %s in the future: set the clock of %s (allowed skew %s)", ahead.Round(time.Millisecond), e.SourceGateway, envelope.DefaultSkew)
	}
	return fmt.Errorf("ttl of %s passed %s ago", e.TTL.Duration(), time.Since(e.ExpiresAt()).Round(time.Millisecond))
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

// attempt runs the handler once.
func (j *job) attempt() (m *Incoming, err error) {
	ib := j.ib
	now := envelope.At(time.Now())
	j.mu.Lock()
	if merr := j.del.Move(envelope.Delivered, now); merr != nil {
		j.mu.Unlock()
		return nil, Never(envelope.ClassPoison, merr)
	}
	j.del.Owner = ib.b.cfg.Gateway
	j.mu.Unlock()
	ev := j.event(EventDelivered)
	ev.State = envelope.Delivered
	ib.b.emit(ev)
	ctx, cancel := context.WithTimeout(ib.work, ib.spec.AckTimeout)
	defer cancel()
	m = &Incoming{j: j}
	park := time.AfterFunc(quick, func() { j.park(nil, nil) })
	defer park.Stop()
	defer func() {
		if r := recover(); r != nil {
			ib.b.log.Error("handler panicked", "agent", ib.spec.ID, "message_id", j.env.MessageID, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("handler panicked: %v", r)
		}
	}()
	return m, ib.handler.Handle(ctx, m)
}

// parkWaiting gives a message that still waits for its turn a record of its own.
func (j *job) parkWaiting() {
	j.mu.Lock()
	waiting := !j.parked && !j.ended && j.del.State == envelope.Queued
	j.mu.Unlock()
	if waiting {
		j.park(nil, nil)
	}
}

// park gives the message a record of its own, so that its lane's cursor can go on and a
// successor finds it; with sends, a question goes out in the same transaction. done may be nil; it
// gets the time of the entry.
func (j *job) park(sends []*envelope.Sealed, done func(at envelope.Time, err error)) {
	ib := j.ib
	if done == nil {
		done = func(envelope.Time, error) {}
	}
	if ib.ctx.Err() != nil {
		done(envelope.Time{}, ErrDeposed)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended || (j.parked && sends == nil) {
		done(envelope.Time{}, nil)
		return
	}
	u := &unit{ctx: ib.ctx, owner: ib, sends: sends, pending: []pendingOp{j.recordLocked()}}
	for _, s := range sends {
		u.items = append(u.items, encodeItem(s, nil))
	}
	if !j.parked {
		u.taken = j.takenLocked()
		if j.del.State == envelope.Delivered {
			u.receipts = []ownedReceipt{{j.src, j.receiptLocked(*j.del.DeliveredAt)}}
		}
	}
	j.parked = true
	u.done = func(err error) {
		if err != nil && !errors.Is(err, ErrDeposed) && !errors.Is(err, ErrStopped) {
			ib.depose(fmt.Errorf("keep %s: %w", j.env.MessageID, err))
		}
		done(u.at, err)
	}
	ib.b.writer.submit(u)
}

func (j *job) takenLocked() []*job {
	if j.entry == nil {
		return nil
	}
	t := &job{src: j.src, entry: j.entry}
	j.entry = nil
	return []*job{t}
}

func (j *job) recordLocked() pendingOp {
	rec := pendingRecord{Delivery: j.del, Lane: j.lane, Item: j.item, Envelope: j.env.Canonical(), Asked: j.asked}
	return pendingOp{key: pendingKey(j.ib.spec.ID, j.env.MessageID), value: mustEncode(rec), at: &j.at}
}

func (j *job) receiptLocked(at envelope.Time) receipt {
	r := receipt{IDs: []string{j.env.MessageID}, State: j.del.State, At: at, Gateway: j.ib.b.cfg.Gateway, Attempt: j.del.Attempt}
	if j.del.State != envelope.Delivered {
		r.DeliveredAt = j.del.DeliveredAt
	}
	if j.del.State != envelope.Acked {
		r.Class, r.Error = j.del.Class, j.del.LastError
	}
	return r
}

// endLocked starts the unit that takes the message to a terminal state: its receipt, the end of
// its record and of the answers it held.
func (j *job) endLocked(at envelope.Time) *unit {
	u := &unit{ctx: j.ib.ctx, owner: j.ib, taken: j.takenLocked(), receipts: []ownedReceipt{{j.src, j.receiptLocked(at)}}}
	if j.parked {
		u.pending = append(u.pending, pendingOp{key: pendingKey(j.ib.spec.ID, j.env.MessageID), at: &j.at})
	}
	for _, s := range j.stored {
		u.pending = append(u.pending, pendingOp{key: s.key, at: s.at})
	}
	j.ended = true
	for _, a := range j.attached {
		a.mu.Lock()
		_ = a.del.Move(envelope.Acked, at) // delivered when it was attached
		u.taken = append(u.taken, a.takenLocked()...)
		u.receipts = append(u.receipts, ownedReceipt{a.src, a.receiptLocked(at)})
		a.ended = true
		a.mu.Unlock()
	}
	return u
}

// acked records success: receipt, replies and sends in one transaction.
func (j *job) acked(m *Incoming) {
	now := envelope.At(time.Now())
	j.mu.Lock()
	if err := j.del.Move(envelope.Acked, now); err != nil {
		j.mu.Unlock()
		j.dead(envelope.ClassPoison, err)
		return
	}
	u := j.endLocked(now)
	attached := j.attached
	j.mu.Unlock()
	for _, s := range m.out {
		u.sends = append(u.sends, s)
		u.items = append(u.items, encodeItem(s, nil))
		j.ib.b.tracks.begin(s) // before anybody can answer it
	}
	u.extra = m.extra
	u.done = func(err error) {
		j.ib.finished(err, append([]*job{j}, attached...)...)
		if err != nil {
			return
		}
		ev := j.event(EventAcked)
		ev.State = envelope.Acked
		j.ib.b.emit(ev)
		for _, s := range m.out {
			j.ib.b.sent(s, u.at)
		}
		for _, a := range attached {
			aev := a.event(EventAcked)
			aev.State = envelope.Acked
			j.ib.b.emit(aev)
		}
		if m.after != nil {
			m.after()
		}
	}
	j.ib.b.writer.submit(u)
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
	policy := ib.b.cfg.Retry
	now := envelope.At(time.Now())
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
	if count >= policy.MaxAttempts {
		j.dead(envelope.ClassExhausted, fmt.Errorf("%d attempts failed, the last one: %w", count, cause))
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
	now := envelope.At(time.Now())
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.parked || j.del.Handover(j.ib.b.cfg.Gateway, now) != nil {
		return // without a record it is still in its lane
	}
	u := &unit{ctx: j.ib.ctx, owner: j.ib, pending: []pendingOp{j.recordLocked()}, done: func(error) {}}
	j.ib.b.writer.submit(u)
}

// dead gives a message up: a dead letter with everything known, and the sender is told.
func (j *job) dead(class envelope.Class, cause error) {
	ib := j.ib
	now := envelope.At(time.Now())
	j.mu.Lock()
	if err := j.del.Move(envelope.DeadLetter, now); err != nil {
		j.mu.Unlock()
		ib.b.log.Error("illegal move", "message_id", j.env.MessageID, "error", err)
		return
	}
	j.del.Class, j.del.LastError = class, cause.Error()
	j.del.Owner = ib.b.cfg.Gateway
	u := j.endLocked(now)
	attached := j.attached
	rec := deadRecord{Delivery: j.del, Envelope: j.env.Canonical(), From: j.src.from}
	j.mu.Unlock()
	u.extra = []Op{{Verb: OpSet, Key: deadKey(ib.spec.ID, j.env.MessageID), Value: mustEncode(rec)}}
	u.done = func(err error) {
		ib.finished(err, append([]*job{j}, attached...)...)
		if err == nil {
			ev := j.event(EventDeadLetter)
			ev.State, ev.Class, ev.Reason = envelope.DeadLetter, class, cause.Error()
			ib.b.emit(ev)
		}
	}
	ib.b.writer.submit(u)
}

// RetryPolicy says how failed attempts are repeated.
type RetryPolicy struct {
	// MaxAttempts counts the first one too; 0 means 5.
	MaxAttempts int
	// Initial is the delay after the first failure (0: 1 s); it doubles up to Max (0: 1 min).
	// Each delay is drawn from 50 % to 100 % of that, so that failures do not march in step.
	Initial, Max time.Duration
}

func (p RetryPolicy) withDefaults() RetryPolicy {
	if p.MaxAttempts <= 0 {
		p.MaxAttempts = 5
	}
	if p.Initial <= 0 {
		p.Initial = time.Second
	}
	if p.Max <= 0 {
		p.Max = time.Minute
	}
	return p
}

func (p RetryPolicy) delay(failures int) time.Duration {
	d := p.Max
	if shift := failures - 1; shift < 30 && p.Initial<<shift < p.Max {
		d = p.Initial << shift
	}
	return d/2 + rand.N(d/2+1)
}
