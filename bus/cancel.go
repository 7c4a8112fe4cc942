package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

var (
	// errCancelled is why a message that an operator gave up is not worked on any more.
	errCancelled = errors.New("cancelled")
	// ErrEnded: the message has ended, so nothing of it can be stopped.
	ErrEnded = errors.New("it has ended")
	// ErrUnread: the owner of the inbox has not read the message yet.
	ErrUnread = errors.New("it has not been read yet")
)

type cancelOrder struct {
	ID string `json:"id"`
	By string `json:"by"`
}

type cancelAnswer struct {
	Done bool `json:"done"`
	// Class is what it ended as; empty: nothing was done, or the owner is of an older version.
	Class envelope.Class `json:"class,omitempty"`
}

// CancelTask gives an unfinished task or message in an inbox up: it goes to the dead letters with the class "cancelled". A run of it is
// stopped as far as its handler listens; its result is refused. Errors: [ErrNotFound] (it has ended, or the
// inbox's owner has not read it yet), *[DeadLetterError], or that nobody owns the inbox.
func (b *Bus) CancelTask(ctx context.Context, inbox, id, by string) error {
	_, err := b.cancelIn(ctx, inbox, id, by)
	return err
}

func (b *Bus) cancelIn(ctx context.Context, inbox, id, by string) (envelope.Class, error) {
	if len(by) > 128 {
		return "", fmt.Errorf("%w: by is %d bytes, at most 128", envelope.ErrInvalid, len(by))
	}
	var ans cancelAnswer
	if err := b.askOwner(ctx, opCancel, inbox, cancelOrder{ID: id, By: by}, &ans); err != nil {
		return "", err
	}
	if !ans.Done {
		return "", fmt.Errorf("%w: %s has no unfinished message %s, or has not read it yet", ErrNotFound, inbox, id)
	}
	if ans.Class == "" {
		ans.Class = envelope.ClassCancelled
	}
	return ans.Class, nil
}

// CancelMessage gives a message up, wherever it is: for good, so that nobody begins it later, whoever takes the inbox over. One that
// waits (behind others, for a delay or a retry) ends at once. Of one that is worked on the handler's ctx ends; what it
// sent or answers after that is refused, and the message ends when it has returned, or after a second without it. What the handler did outside
// of the mesh stays done, and what it asked other agents goes on there. Its sender is told by the receipt, and whoever waits for its answer by a
// *[DeadLetterError].
//
// The class that it ended as is "cancelled", or "unknown" when an effect of it may have been made ([Incoming.Intend]). Errors:
// [ErrEnded] (with what became of it), [ErrUnread] (so much waits before it that the owner has not read it: try again), [ErrNotFound],
// envelope.ErrInvalid (it is an answer, or the mesh's own), *[DeadLetterError] (the order was refused), that nobody owns the inbox, ctx's.
func (b *Bus) CancelMessage(ctx context.Context, id, by string) (envelope.Class, error) {
	st, err := b.Lookup(ctx, id)
	if err != nil {
		return "", err
	}
	inbox, err := st.cancellable()
	if err != nil {
		return "", err
	}
	class, err := b.cancelIn(ctx, inbox, id, by)
	if !errors.Is(err, ErrNotFound) {
		return class, err
	}
	if st, err = b.Lookup(ctx, id); err != nil {
		return "", err
	}
	if _, err = st.cancellable(); err != nil {
		return "", err // it ended meanwhile
	}
	return "", fmt.Errorf("%w by the owner of %s: try again", ErrUnread, inbox)
}

// cancellable names the inbox that an unfinished message is in.
func (st *Status) cancellable() (string, error) {
	f := st.Facts
	switch {
	case f.Dead:
		return "", fmt.Errorf("%w: %s is a dead letter, %s: %s", ErrEnded, st.MessageID, f.Class, f.Reason)
	case f.Replied, f.Acked && f.PassedOn == "", st.Envelope == nil:
		return "", fmt.Errorf("%w: %s was handled", ErrEnded, st.MessageID)
	case st.Envelope.InReplyTo != "", strings.HasPrefix(st.Envelope.Capability, ReservedCapability):
		return "", fmt.Errorf("%w: %s is an answer or an order of the mesh itself, which cannot be cancelled", envelope.ErrInvalid, st.MessageID)
	case f.PassedOn != "":
		return f.PassedOn, nil
	}
	return st.Envelope.TargetAgent, nil
}

// cancelTask carries opCancel out. It answers when the end of the message is on its way to the store before the answer: a process that dies
// between leaves the order to the next owner.
func (ib *inbox) cancelTask(ctx context.Context, m *Incoming) error {
	var o cancelOrder
	if err := json.Unmarshal(m.Envelope().Payload, &o); err != nil {
		return Never(envelope.ClassPoison, fmt.Errorf("cannot cancel anything of %s: not an order: %w", ib.spec.ID, err))
	}
	var ans cancelAnswer
	if j := ib.find(o.ID, m.j); j != nil && !strings.HasPrefix(j.env.Capability, ReservedCapability) {
		if err := j.cancel(ctx, fmt.Errorf("%w by %s", errCancelled, o.By), m); err != nil {
			return err
		}
		j.mu.Lock()
		if j.del.State == envelope.DeadLetter && j.cancelled != nil {
			ans = cancelAnswer{Done: true, Class: j.del.Class}
		}
		j.mu.Unlock()
	}
	return m.Reply(mustEncode(ans))
}

// cancel ends a message that waits, or has the attempt that runs stopped and waits for the end; m carries the word to a task's worker. Errors: ctx's,
// [ErrHandover].
func (j *job) cancel(ctx context.Context, cause error, m *Incoming) error {
	j.mu.Lock()
	waits := !j.ended && j.waitsLocked()
	j.mu.Unlock()
	if waits {
		if !j.load() { // a dead letter keeps the whole message
			return ErrHandover
		}
		if j.deadIf(func() bool {
			if !j.waitsLocked() {
				return false
			}
			j.cancelled = cause
			return true
		}, envelope.ClassCancelled, cause) {
			j.ib.wakeBehind(j)
			return nil
		}
	}
	j.mu.Lock()
	if j.ended {
		j.mu.Unlock()
		return nil
	}
	j.cancelled = cause
	attempt, run, gone := j.lease, j.run, j.goneLocked()
	j.mu.Unlock()
	if attempt != nil {
		attempt.end(cause)
	}
	if run != nil {
		// At best the worker hears of it; its result is refused anyway.
		_, _ = m.Send(Outgoing{To: envelope.Address{Agent: run.Gateway}, From: j.ib.b.cfg.Gateway, Capability: opStopRun,
			Payload: mustEncode(cancelOrder{ID: run.Question}), Terminal: true, MaxHops: envelope.MaxHops, reserved: true})
	}
	select {
	case <-gone:
		return nil
	case <-j.ib.intake.Done():
		return ErrHandover
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wakeBehind lets those go on that wait for a message which is delayed, and has ended.
func (ib *inbox) wakeBehind(j *job) {
	ib.mu.Lock()
	defer ib.mu.Unlock()
	for _, c := range ib.convs {
		if c.asleep && len(c.queue) > 0 && c.queue[0] == j {
			c.asleep = false
			ib.converse(c)
			return
		}
	}
}

// waitsLocked: nobody works on it, and nobody is about to record what came of an attempt.
func (j *job) waitsLocked() bool {
	return j.lease == nil && (j.del.State == envelope.Queued || j.del.State == envelope.Delivered && !j.handling)
}

// goneLocked is closed when the message has ended.
func (j *job) goneLocked() <-chan struct{} {
	if j.gone == nil {
		j.gone = make(chan struct{})
		if j.left {
			close(j.gone)
		}
	}
	return j.gone
}

// farewell tells who waits for it that the message has ended, and that this is on its way to the store.
func (j *job) farewell() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.left = true
	if j.gone != nil {
		close(j.gone)
	}
}

// takeUp is the start of handle: ok unless the message has ended, and whether its last owner left it in the middle of an attempt.
func (j *job) takeUp() (left, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.handling = true
	if j.ended {
		j.ahead = nil
	}
	return j.del.State == envelope.Delivered, !j.ended
}

// stopped is the end of an attempt: nil, or why it was stopped.
func (j *job) stopped() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lease = nil
	return j.cancelled
}

// givenUp is why the message must not be tried any more; nil: it may.
func (j *job) givenUp() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cancelled
}

// over reports whether the message has ended.
func (j *job) over() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ended
}

// rest waits until the next attempt is due, and reports whether there is to be one.
func (j *job) rest() bool {
	d := j.due()
	if d <= 0 {
		return j.ib.intake.Err() == nil
	}
	j.mu.Lock()
	gone := j.goneLocked()
	j.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-gone:
		return false
	case <-j.ib.intake.Done():
	}
	return j.ib.intake.Err() == nil
}
