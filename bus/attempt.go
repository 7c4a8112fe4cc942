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
	timeout time.Duration
	timer   *time.Timer
	lose    context.CancelCauseFunc

	mu   sync.Mutex
	over bool
}

// renew starts the timeout anew, and reports whether the lease still stood.
func (l *lease) renew() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.timer.Reset(l.timeout)
	}
	return !l.over
}

// pause stops the timeout until renew: the handler waits for the mesh itself.
func (l *lease) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.timer.Stop()
	}
}

func (l *lease) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.over
}

func (l *lease) end(cause error) {
	l.mu.Lock()
	l.over = true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.lose(cause)
}

// begin starts the timeout, and reports whether the lease still stands.
func (l *lease) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.timer = time.AfterFunc(l.timeout, func() { l.end(errAckTimeout) })
	}
	return !l.over
}

// errAckTimeout is why a lease was lost while the term goes on.
var errAckTimeout = fmt.Errorf("no sign of life within the ack timeout: %w", ErrLeaseLost)

// enterWork takes one of the places for running handlers, and returns how to give it back: of the messages
// that wait for one, the highest priority first, then the oldest. A message that was being worked on when a process died runs alone among such: if it kills the next process
// too, no other is suspected with it again.
func (ib *inbox) enterWork(j *job) (leave func(), ok bool) {
	switch {
	case j.needsNoPlace():
		return func() {}, true
	case j.running() != nil:
		ib.door.push() // its worker never stopped
		return ib.door.leave, true
	}
	suspect := j.del.Crashes > 0
	if suspect {
		select {
		case ib.suspects <- struct{}{}:
		case <-ib.intake.Done():
			return nil, false
		}
	}
	if !ib.door.enter(ib.intake, j) {
		if suspect {
			<-ib.suspects
		}
		return nil, false
	}
	return func() {
		ib.door.leave()
		if suspect {
			<-ib.suspects
		}
	}, true
}

// attempt runs the handler once, under a lease, and calls leave when its place is free again. A handler
// that does not return when its ctx ends is left behind: what it does then is refused.
func (j *job) attempt(leave func()) (m *Incoming, err error) {
	ib := j.ib
	now := envelope.At(ib.b.now())
	ctx, lose := context.WithCancelCause(ib.work)
	l := &lease{timeout: j.ackTimeout(), lose: lose}
	defer l.end(context.Canceled)
	j.mu.Lock()
	if j.ended {
		j.mu.Unlock()
		leave()
		return nil, errOver
	}
	if merr := j.del.Move(envelope.Delivered, now); merr != nil {
		j.mu.Unlock()
		leave()
		return nil, Never(envelope.ClassPoison, merr)
	}
	j.del.Owner = ib.b.cfg.Gateway
	careful := j.careful || j.del.Crashes > 0
	j.stop = l.end
	j.mu.Unlock()
	defer func() {
		if cause := j.stopped(); cause != nil {
			err = Never(envelope.ClassCancelled, cause) // whatever the handler says
		}
	}()
	if careful {
		if err := j.recordAttempt(); err != nil {
			leave()
			return nil, err
		}
	}
	ev := j.event(EventDelivered)
	ev.State = envelope.Delivered
	ib.b.emit(ev)

	m = &Incoming{j: j, lease: l, budget: j.budget(), began: time.Now()}
	free, err := m.fetch(ctx)
	if err != nil {
		leave()
		return m, err
	}
	if !l.begin() {
		free()
		leave()
		return m, ErrLeaseLost // it was stopped before it began
	}
	park := time.AfterFunc(quick, func() { j.park(nil, nil) })
	defer park.Stop()

	result := make(chan error, 1)
	go func(m *Incoming) {
		defer free()
		result <- j.call(ctx, m)
	}(m)
	select {
	case err = <-result:
		leave()
	case <-ctx.Done():
		t := time.NewTimer(leaveBehind)
		defer t.Stop()
		select {
		case err = <-result:
			leave()
		case <-t.C:
			ib.abandon(j, result, leave)
		}
	}
	j.spent(m)
	if cause := context.Cause(ctx); cause != nil && !l.alive() {
		// The lease was lost, whatever the handler says.
		switch {
		case errors.Is(cause, errAckTimeout):
			return m, fmt.Errorf("%w (%s)", cause, l.timeout)
		case err == nil:
			return m, cause
		}
	}
	return m, err
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

// abandon goes on without a handler that ignores the end of its ctx. Its place comes back at once,
// but only as often as there are places: else stuck handlers would pile up without bound.
func (ib *inbox) abandon(j *job, result <-chan error, leave func()) {
	ib.b.log.Error("a handler ignores the end of its context; going on without it",
		"agent", ib.spec.ID, "message_id", j.env.MessageID, "left_behind", ib.leftBehind.Load()+1)
	held := int(ib.leftBehind.Add(1)) > ib.door.size()
	if !held {
		leave()
	}
	ib.b.run(func() {
		err := <-result
		ib.leftBehind.Add(-1)
		ib.b.log.Info("a handler that was left behind has returned", "agent", ib.spec.ID, "message_id", j.env.MessageID, "error", err)
		if held {
			leave()
		}
	})
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

// load has the whole message in memory, to stay; false: the inbox is given up meanwhile.
func (j *job) load() bool {
	j.waking.Lock()
	defer j.waking.Unlock()
	j.mu.Lock()
	j.started = true
	spilled := j.spilled
	j.mu.Unlock()
	if !spilled {
		return true
	}
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
