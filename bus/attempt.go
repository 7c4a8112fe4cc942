package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// maxCrashes is how many attempts may end with the process before the message is poison.
	maxCrashes = 3
	// leaveBehind is how long a handler may take to return after its ctx ended.
	leaveBehind = time.Second
)

// lease is the right to decide about a message. It ends when the handler returns, when it shows no sign
// of life for the ack timeout, and with the term.
type lease struct {
	j       *job
	m       *Incoming // nil until the handler is about to be called
	at      place
	timeout time.Duration
	lose    context.CancelCauseFunc

	mu   sync.Mutex
	over bool
	// timer is for what is due next: the record that who is not quick gets, and the end of the timeout. Most messages need
	// neither, so they share one.
	timer        *time.Timer
	parkAt       time.Time // zero: done
	endAt        time.Time
	paused, left bool
	// back: the handler has returned; backed is closed then, nil until somebody waits for that. behind: it was left behind,
	// and held: with its place.
	back, behind, held bool
	backed             chan struct{}
}

// renew starts the timeout anew, and reports whether the lease still stood.
func (l *lease) renew() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		now := time.Now()
		l.endAt, l.paused = now.Add(l.timeout), false
		l.armLocked(now)
	}
	return !l.over
}

// pause stops the timeout until renew: the handler waits for the mesh itself.
func (l *lease) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = true
}

func (l *lease) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.over
}

func (l *lease) end(cause error) {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.lose(cause)
}

// leave is the end of the attempt: nothing is due any more.
func (l *lease) leave() {
	l.mu.Lock()
	l.over, l.left = true, true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.lose(context.Canceled)
}

// begin starts the timeout, and reports whether the lease still stands.
func (l *lease) begin(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	l.parkAt, l.endAt = now.Add(quick), now.Add(l.timeout)
	l.timer = time.AfterFunc(min(quick, l.timeout), l.due)
	return true
}

// due does what is due, and waits for the rest.
func (l *lease) due() {
	l.mu.Lock()
	now := time.Now()
	park := !l.left && !l.parkAt.IsZero() && !now.Before(l.parkAt)
	if park {
		l.parkAt = time.Time{}
	}
	lost := !l.over && !l.paused && !now.Before(l.endAt)
	if !lost {
		l.armLocked(now)
	}
	l.mu.Unlock()
	if park {
		l.j.park(nil, nil)
	}
	if lost {
		l.end(errAckTimeout)
		l.due() // what is not parked yet is so when that is due
	}
}

// armLocked sets the timer for what is due next; l.mu is held.
func (l *lease) armLocked(now time.Time) {
	var next time.Time
	if !l.left {
		next = l.parkAt
	}
	if !l.over && !l.paused && (next.IsZero() || l.endAt.Before(next)) {
		next = l.endAt
	}
	if !next.IsZero() {
		l.timer.Reset(next.Sub(now))
	}
}

// errAckTimeout is why a lease was lost while the term goes on.
var errAckTimeout = fmt.Errorf("no sign of life within the ack timeout: %w", ErrLeaseLost)

// place is one of those for running handlers, or the right to run without one.
type place struct {
	ib            *inbox
	none, suspect bool
}

// leave gives it back.
func (p place) leave() {
	if p.none {
		return
	}
	p.ib.door.leave()
	if p.suspect {
		<-p.ib.suspects
	}
}

// enterWork takes one of the places for running handlers: of the messages
// that wait for one, the highest priority first, then the oldest. A message that was being worked on when a process died runs alone among such: if it kills the next process
// too, no other is suspected with it again.
func (ib *inbox) enterWork(j *job) (p place, ok bool) {
	p = place{ib: ib}
	switch {
	case j.needsNoPlace():
		p.none = true
		return p, true
	case j.running() != nil:
		ib.door.push() // its worker never stopped
		return p, true
	}
	if p.suspect = j.del.Crashes > 0; p.suspect {
		select {
		case ib.suspects <- struct{}{}:
		case <-ib.intake.Done():
			return p, false
		}
	}
	if !ib.door.enter(ib.intake, j) {
		if p.suspect {
			<-ib.suspects
		}
		return p, false
	}
	return p, true
}

// outcome is what came of an attempt.
type outcome struct {
	m   *Incoming
	err error
}

// attempt runs the handler once, under a lease, and gives its place back when that is free again. A handler that does not return when
// its ctx ends is left behind: what it does then is refused, and another goroutine goes on with the conversation (left).
func (j *job) attempt(at place) (o *outcome, left bool) {
	ib := j.ib
	now := envelope.At(ib.b.now())
	ctx, lose := context.WithCancelCause(ib.work)
	l := &lease{j: j, at: at, timeout: j.ackTimeout(), lose: lose}
	j.mu.Lock()
	err := errOver
	if !j.ended {
		if err = j.del.Move(envelope.Delivered, now); err != nil {
			err = Never(envelope.ClassPoison, err)
		}
	}
	if err != nil {
		j.mu.Unlock()
		at.leave()
		l.leave()
		return &outcome{err: err}, false
	}
	j.del.Owner = ib.b.cfg.Gateway
	careful := j.careful || j.del.Crashes > 0
	j.lease = l
	j.mu.Unlock()
	if careful {
		if err := j.recordAttempt(); err != nil {
			at.leave()
			return l.concluded(ctx, err), false
		}
	}
	ev := j.event(EventDelivered)
	ev.State = envelope.Delivered
	j.emit(&ev)

	m := &Incoming{j: j, lease: l, budget: j.budget(), began: time.Now()}
	l.m = m
	free, err := m.fetch(ctx)
	if err == nil && !l.begin(m.began) {
		free()
		err = ErrLeaseLost // it was stopped before it began
	}
	if err != nil {
		at.leave()
		return l.concluded(ctx, err), false
	}
	stop := context.AfterFunc(ctx, func() { l.leaveBehind(ctx) })
	err = func() error {
		defer free() // also when the handler ends its goroutine
		return j.call(ctx, m)
	}()
	if l.returned(err) {
		return nil, true
	}
	stop()
	at.leave()
	j.spent(m)
	return l.concluded(ctx, err), false
}

// concluded is what an attempt came to, whose handler returned err or was left behind.
func (l *lease) concluded(ctx context.Context, err error) *outcome {
	j := l.j
	if cause := context.Cause(ctx); cause != nil && l.m != nil && !l.alive() {
		// The lease was lost, whatever the handler says.
		switch {
		case errors.Is(cause, errAckTimeout):
			err = fmt.Errorf("%w (%s)", cause, l.timeout)
		case err == nil:
			err = cause
		}
	}
	if cause := j.stopped(); cause != nil {
		err = Never(envelope.ClassCancelled, cause) // whatever the handler says
	}
	l.leave()
	return &outcome{l.m, err}
}

// call runs the handler; a panic is a failure like any other.
func (j *job) call(ctx context.Context, m *Incoming) (err error) {
	defer func() {
		if r := recover(); r != nil {
			j.ib.b.log.Error("handler panicked", "agent", j.ib.spec.ID, "message_id", j.env.MessageID, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("handler panicked: %v", r)
		}
	}()
	if j.env.InReplyTo == "" && strings.HasPrefix(j.env.Capability, ReservedCapability) {
		return j.ib.operate(ctx, m)
	}
	if j.duplicateOf != "" && j.ib.queue == nil {
		return m.Reply(mustEncode(map[string]string{"duplicate_of": j.duplicateOf}))
	}
	return j.ib.handler.Handle(ctx, m)
}

// returned notes that the handler has returned, and reports whether it was left behind.
func (l *lease) returned(err error) bool {
	l.mu.Lock()
	behind := l.behind
	l.back = true
	if l.backed != nil {
		close(l.backed)
	}
	l.mu.Unlock()
	if !behind {
		return false
	}
	ib := l.j.ib
	ib.leftBehind.Add(-1)
	ib.b.log.Info("a handler that was left behind has returned", "agent", ib.spec.ID, "message_id", l.j.env.MessageID, "error", err)
	if l.held {
		l.at.leave()
	}
	ib.b.wg.Done()
	return true
}

// leaveBehind waits until the handler returns, for a moment, and goes on without it if it does not: it ignores the end of its ctx. Its place
// comes back at once, but only as often as there are places: else stuck handlers would pile up without bound.
func (l *lease) leaveBehind(ctx context.Context) {
	l.mu.Lock()
	if l.back {
		l.mu.Unlock()
		return
	}
	backed := make(chan struct{})
	l.backed = backed
	l.mu.Unlock()
	t := time.NewTimer(leaveBehind)
	defer t.Stop()
	select {
	case <-backed:
		return
	case <-t.C:
	}
	j, ib := l.j, l.j.ib
	l.mu.Lock()
	if l.back {
		l.mu.Unlock()
		return
	}
	ib.b.wg.Add(1) // the handler; this goroutine counts as a worker of the inbox in its place
	n := ib.leftBehind.Add(1)
	l.behind, l.held = true, int(n) > ib.door.size()
	held := l.held
	l.mu.Unlock()
	ib.b.log.Error("a handler ignores the end of its context; going on without it", "agent", ib.spec.ID, "message_id", j.env.MessageID, "left_behind", n)
	if !held {
		l.at.leave()
	}
	j.spent(l.m)
	ib.converseFrom(j.conv, j, l.concluded(ctx, nil))
}

// recordAttempt writes that the attempt begins, before it does.
func (j *job) recordAttempt() error {
	written := make(chan error, 1)
	j.park(nil, func(_ envelope.Time, err error) { written <- err })
	return <-written
}

// ackTimeout is how long one attempt may go without a sign of life.
func (j *job) ackTimeout() time.Duration {
	if d := j.env.AckTimeout.Duration(); d > 0 {
		return d
	}
	return j.ib.spec.AckTimeout
}

// begin is the start of the message's turn. A message that was spilled is read again.
func (j *job) begin() bool {
	j.mu.Lock()
	j.ahead = nil
	j.mu.Unlock()
	return j.load()
}

// load has the whole message in memory, to stay; false: the inbox is given up meanwhile. Of several who want it one reads, and the others wait
// for that one.
func (j *job) load() bool {
	for {
		j.mu.Lock()
		j.started = true
		others := j.loading // who is not done is waited for, whatever is in memory already
		if others == nil {
			if !j.spilled {
				j.mu.Unlock()
				return true
			}
			j.loading = make(chan struct{})
		}
		j.mu.Unlock()
		if others == nil {
			break
		}
		<-others // it ends with the intake at the latest
	}
	defer func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		close(j.loading)
		j.loading = nil
	}()
	return j.readBack()
}

// readBack reads a spilled message again, for as long as the store is away.
func (j *job) readBack() bool {
	ib := j.ib
	retry := newBackoff()
	key := pendingKey(ib.spec.ID, j.env.MessageID)
	for ib.intake.Err() == nil {
		p, err := ib.b.store.Get(ib.intake, key)
		if err != nil {
			ib.b.storeDown(err)
			ib.b.pause(ib.intake, retry, err)
			continue
		}
		rec, env, err := ib.b.openPending(p, ib.spec.ID)
		if err == nil && env.Key() != j.env.Key() {
			err = fmt.Errorf("it holds message %s", env.MessageID)
		}
		if err != nil {
			ib.b.emit(Event{Event: EventRefused, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, To: ib.spec.ID, MessageID: j.env.MessageID,
				Class: envelope.ClassPoison, Reason: fmt.Sprintf("pending record is not readable, left where it is (%s): %v", key, err)})
			ib.leave(j)
			return false
		}
		j.mu.Lock()
		j.env, j.spilled, j.at = env, false, p.ModifyIndex
		_ = rec
		j.mu.Unlock()
		ib.unspill(j)
		return true
	}
	return false
}

// maxSpilled is how many messages of an inbox may wait in the store alone, behind others of
// their conversations. What is in memory of each is its header, about 1 KiB.
const maxSpilled = 16384

// spill lets go of a waiting message that has a record of its own.
func (j *job) spill() {
	ib := j.ib
	ib.mu.Lock()
	defer ib.mu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.started || j.ended || j.spilled || !j.parked || ib.spilled >= maxSpilled || ib.active[j.env.Key()] != j {
		return
	}
	j.env, j.spilled = j.env.Header(), true
	ib.spilled++
	ib.freeLocked(j)
}

// unspill counts a message as being in memory again.
func (ib *inbox) unspill(j *job) {
	ib.mu.Lock()
	defer ib.mu.Unlock()
	ib.spilled--
	j.size = len(j.env.Canonical())
	j.src.held++
	j.src.heldBytes += j.size
}
