package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// flightTime is how long after its owner could begin nothing more a post may still arrive.
	flightTime = 2 * time.Second
	// findPatience is for how long after a post was begun its vendor is asked what became of it, while it gives no answer. Longer
	// than most outages, and short enough for those who wait behind it in the same conversation.
	findPatience = 10 * time.Minute
	// findTries is how often it is asked however late it is (the mesh may have been down for longer), and at most where it refuses the credentials.
	findTries = 3
)

// errPostUnknown: nobody knows whether a post was made.
var errPostUnknown = errors.New("whether it was posted is not known")

// find settles a post of which an earlier attempt, here or elsewhere, left nothing but that it was about to make it.
func (a *account) find(ctx context.Context, m *bus.Incoming, ch Channel, e bus.Effect, p Post) (ref string, made bool, err error) {
	// As long as its owner may still begin it, what the vendor says is not final; nor while its bytes may be on their way.
	if err := m.Pause(ctx, m.EffectSettledAfter(e)+flightTime); err != nil {
		return "", false, err
	}
	finder, ok := ch.(ChannelFinder)
	if !ok {
		return "", false, a.unknown(m, e.Name, ErrCannotFind)
	}
	p.Check = func() error { return m.Term().Verify(ctx) } // some vendors are asked by saying it again under the same id
	fctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	posted, found, err := finder.Find(fctx, p)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", false, context.Cause(ctx)
	case err != nil && a.askAgain(m, e, err):
		a.failed(err)
		return "", false, later(err, fmt.Errorf("ask the vendor what became of a post: %w", err))
	case err != nil:
		return "", false, a.unknown(m, e.Name, err)
	case found:
		a.posted(posted.At)
		return posted.Ref, true, m.Settle(e.Name, envelope.EffectConfirmed, posted.Ref)
	}
	return "", false, m.Settle(e.Name, envelope.EffectFailed, "")
}

// askAgain reports whether the vendor, who gave no answer, is to be asked again.
func (a *account) askAgain(m *bus.Incoming, e bus.Effect, err error) bool {
	tries := m.Attempt() - e.Attempt // the one that began it asked nobody
	switch {
	case IsRejected(err), errors.Is(err, ErrCannotFind), m.Attempt() >= channelAttempts:
		return false
	case tries < findTries:
		return true
	}
	return !IsBadCredentials(err) && time.Since(e.At.Time) < a.patience
}

// later is a failure that is tried again when the vendor, who said cause, wants it.
func later(cause, err error) error {
	var notSent *NotSentError
	if errors.As(cause, &notSent) && notSent.After > 0 {
		return bus.RetryAfter(notSent.After, err)
	}
	return err
}

// unknown ends a message whose post may have been made: nobody sends it again by himself.
func (a *account) unknown(m *bus.Incoming, name string, cause error) error {
	if err := m.Settle(name, envelope.EffectUnknown, ""); err != nil {
		return err
	}
	a.set(func() { a.status.Unknown++ })
	a.g.metrics.channelUnknown.WithLabelValues(a.cfg.Channel, a.cfg.ID).Inc()
	return bus.Never(envelope.ClassUnknown, fmt.Errorf("%s: %w, and cannot be found out: %w", name, errPostUnknown, cause))
}

// tellUnknown tells who asked that an answer may not have arrived: for them it is a question without an answer, and only they can see whether it is
// one. It is an effect as any other, begun after the answer's outcome was given up, and returns how the message goes on: cause, which ends it, or why the telling
// is to be tried again. If nobody knows whether the note was posted either, it stays at that.
func (a *account) tellUnknown(ctx context.Context, m *bus.Incoming, ch Channel, to PostTarget, cause error) error {
	_, err := a.effect(ctx, m, ch, "unknown/1", to, fmt.Sprintf(unknownNote, m.Envelope().MessageID))
	switch {
	case err == nil, bus.IsNever(err), errors.Is(err, bus.ErrExpired):
		return cause
	case ctx.Err() != nil, errors.Is(err, bus.ErrHandover), errors.Is(err, bus.ErrLeaseLost), errors.Is(err, bus.ErrDeposed):
		return err // the next owner tells it
	case a.noteIsLate(m):
		a.log.Warn("who asked could not be told that an answer may not have arrived", "message_id", m.Envelope().MessageID, "error", err)
		return cause
	}
	return err
}

// unknownNote is what is said to who asked.
const unknownNote = "My answer to this may not have arrived: the connection broke while it was on its way. If you do not see it, please ask again. (Reference %s)"

// noteIsLate reports whether the operators have waited long enough for the dead letter.
func (a *account) noteIsLate(m *bus.Incoming) bool {
	if m.Attempt() >= channelAttempts {
		return true
	}
	for _, e := range m.Effects() {
		if e.State == envelope.EffectUnknown {
			return time.Since(e.At.Time) >= a.patience
		}
	}
	return false
}
