package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cenkalti/backoff/v4"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Shared state is what all agents may know of each other (plan, "Shared state"): a ring of what happened lately,
// and what everybody is at. These are the only two keys with many writers, so each write is a
// compare-and-swap of the whole value, tried again when another was first.
const (
	RecentEventsKey = sharedRoot + "recent-events"
	CurrentFocusKey = sharedRoot + "current-focus"
)

// Bounds of the shared state.
const (
	// MaxRecentEvents and MaxRecentBytes bound the ring: the oldest go first. Signatures are extra: at most 60 KiB.
	MaxRecentEvents = 100
	MaxRecentBytes  = 32 << 10
	// MaxEventBytes bounds the text of one, and MaxFocusBytes that of the focus.
	MaxEventBytes = 1 << 10
	MaxFocusBytes = 4 << 10
)

// swapTries is how often a write of shared state is tried. Of eight writers at once one in six wins a
// round, and the pauses double up to swapPause: 24 lost in a row mean that the key is no place for that many.
const (
	swapTries = 24
	swapPause = 250 * time.Millisecond
)

// ErrContended: others wrote the same key first each time; nothing was written.
var ErrContended = errors.New("too many write the shared state at once")

// A StateEvent is an entry of the ring. Its order there is that of the writes; the timestamp is its writer's.
type StateEvent struct {
	// ID makes recording again safe, as long as the event is in the ring; empty: a new one. One that somebody wrote
	// by hand may have none.
	ID        string        `json:"id,omitempty"`
	Timestamp envelope.Time `json:"timestamp"`
	Agent     string        `json:"agent"`
	Event     string        `json:"event"`
}

// A SpoiledError: the key holds what gatemesh did not write and cannot read. It is left as it is, because
// somebody may want it.
type SpoiledError struct {
	Key, Reset string
	Cause      error
}

func (e *SpoiledError) Error() string {
	return fmt.Sprintf("%s holds something else (%v), and is left as it is: look at it, then mend it or clear it (%s)", e.Key, e.Cause, e.Reset)
}

func (e *SpoiledError) Unwrap() error { return e.Cause }

// RecordEvent adds an event to the ring, and returns it with its id; its timestamp is this gateway's. Recording
// under an id that is in the ring changes nothing. Errors: envelope.ErrInvalid, [ErrTooLarge], *[SpoiledError],
// [ErrContended], [ErrStopped], [ErrOutcomeUnknown] (record it again under the id of the returned event), or the store's.
func (b *Bus) RecordEvent(ctx context.Context, e StateEvent) (StateEvent, error) {
	if e.ID == "" {
		e.ID = envelope.NewID()
	}
	e.Timestamp = envelope.At(b.now())
	switch {
	case !envelope.ValidName(e.Agent):
		return e, fmt.Errorf("%w: agent %q: want 1 to 63 of a-z, 0-9 and -", envelope.ErrInvalid, e.Agent)
	case len(e.ID) > 64:
		return e, fmt.Errorf("%w: id is %d bytes, at most 64", envelope.ErrInvalid, len(e.ID))
	case strings.TrimSpace(e.Event) == "":
		return e, fmt.Errorf("%w: the event says nothing", envelope.ErrInvalid)
	case !utf8.ValidString(e.Event) || !utf8.ValidString(e.ID):
		return e, fmt.Errorf("%w: the event is not UTF-8", envelope.ErrInvalid)
	case len(e.Event) > MaxEventBytes:
		return e, fmt.Errorf("event is %d bytes, at most %d: %w", len(e.Event), MaxEventBytes, ErrTooLarge)
	}
	if err := b.maySpeakOf(e.Agent); err != nil {
		return e, err
	}
	said := b.sign(trust.KindState, RecentEventsKey, mustEncode(e))
	err := b.swap(ctx, RecentEventsKey, func(old []byte) ([]byte, error) {
		raw, ring, err := decodeRing(old)
		if err != nil {
			return nil, err
		}
		for _, have := range b.believedEvents(raw, ring) {
			if have.ID == e.ID {
				e = have
				return old, nil
			}
		}
		return encodeRing(append(raw, said)), nil
	})
	return e, err
}

// RecentEvents is the ring, oldest first; where signatures are enforced, without what no gateway of the mesh may have recorded. Errors: *[SpoiledError], or the store's.
func (b *Bus) RecentEvents(ctx context.Context) ([]StateEvent, error) {
	p, err := b.store.Read(ctx, RecentEventsKey)
	if err != nil {
		return nil, fmt.Errorf("read recent events: %w", err)
	}
	raw, ring, err := decodeRing(p)
	return b.believedEvents(raw, ring), err
}

// SetFocus says what everybody is at now; the last one who says it wins. "" removes it. Errors: as RecordEvent.
func (b *Bus) SetFocus(ctx context.Context, text string) error {
	switch {
	case !utf8.ValidString(text):
		return fmt.Errorf("%w: the focus is not UTF-8", envelope.ErrInvalid)
	case len(text) > MaxFocusBytes:
		return fmt.Errorf("focus is %d bytes, at most %d: %w", len(text), MaxFocusBytes, ErrTooLarge)
	case text == "":
		return b.clear(ctx, CurrentFocusKey)
	}
	said := b.signFocus(text)
	return b.swap(ctx, CurrentFocusKey, func(old []byte) ([]byte, error) {
		have, _ := splitFocus(old)
		_, err := decodeFocus(have)
		return said, err
	})
}

// Focus is what everybody is at, or "": also where signatures are enforced and no gateway of the mesh has said what lies there.
func (b *Bus) Focus(ctx context.Context) (string, error) {
	p, err := b.store.Read(ctx, CurrentFocusKey)
	if err != nil {
		return "", fmt.Errorf("read the focus: %w", err)
	}
	return b.believedFocus(p)
}

// ClearEvents empties the ring, whatever it holds.
func (b *Bus) ClearEvents(ctx context.Context) error { return b.clear(ctx, RecentEventsKey) }

func (b *Bus) clear(ctx context.Context, key string) error {
	if b.stopping.Load() {
		return ErrStopped
	}
	if _, err := b.store.Txn(ctx, []Op{{Verb: OpDelete, Key: key}}); err != nil {
		return fmt.Errorf("clear %s: %w", key, err)
	}
	return nil
}

// swap makes change, which may be asked several times, to a key that others write too. Returning what it was
// given says that nothing is left to do: so a write whose reply was lost is found when it is read again, and one
// that is still on its way loses against whatever is written instead.
func (b *Bus) swap(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval, pause.MaxElapsedTime = 2*time.Millisecond, swapPause, 0
	pause.Reset()
	cause, unknown := ErrContended, false
	for range swapTries {
		if b.stopping.Load() {
			cause = ErrStopped
			break
		}
		done, err := b.swapOnce(ctx, key, change, &unknown)
		if done {
			return err
		}
		if cause = ErrContended; err != nil {
			cause = err
		}
		if !wait(ctx, pause.NextBackOff()) {
			cause = ctx.Err()
			break
		}
	}
	if unknown {
		return fmt.Errorf("%w: %s: %w", ErrStateUnknown, key, cause)
	}
	return fmt.Errorf("%s was not written in %d tries: %w", key, swapTries, cause)
}

// swapOnce is one try. It is not done when another was first (no error), or when the store did not answer.
func (b *Bus) swapOnce(ctx context.Context, key string, change func(old []byte) ([]byte, error), unknown *bool) (done bool, err error) {
	p, err := b.store.Get(ctx, key)
	if err != nil {
		return !errors.Is(err, ErrUnavailable), fmt.Errorf("read %s: %w", key, err)
	}
	var old []byte
	var index uint64
	if p != nil {
		old, index = p.Value, p.ModifyIndex
	}
	value, err := change(old)
	if err != nil {
		return true, err
	}
	if p != nil && bytes.Equal(value, old) {
		return true, nil
	}
	won, err := b.store.Put(ctx, key, value, index)
	if err != nil {
		lost := errors.Is(err, ErrUnavailable) || ctx.Err() != nil
		*unknown = *unknown || lost
		return !lost, fmt.Errorf("write %s: %w", key, err)
	}
	return won, nil
}

// ErrStateUnknown: the store did not say in time whether it wrote the shared state. It may have. It is an
// [ErrOutcomeUnknown].
var ErrStateUnknown error = stateUnknown{}

type stateUnknown struct{}

func (stateUnknown) Error() string        { return "not known whether the shared state was written" }
func (stateUnknown) Is(target error) bool { return target == ErrOutcomeUnknown }

// decodeRing reads the ring; entries stay as they are, with what others wrote beside what is known here.
func decodeRing(b []byte) (raw []json.RawMessage, ring []StateEvent, err error) {
	ring = []StateEvent{}
	if len(b) == 0 {
		return nil, ring, nil
	}
	spoiled := func(cause error) error {
		return &SpoiledError{RecentEventsKey, "gatemesh state events --clear", cause}
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, nil, spoiled(err)
	}
	for i, r := range raw {
		var e struct {
			ID           string    `json:"id"`
			Timestamp    time.Time `json:"timestamp"` // people write other zones than UTC
			Agent, Event *string
		}
		if err := json.Unmarshal(r, &e); err != nil {
			return nil, nil, spoiled(fmt.Errorf("entry %d: %w", i+1, err))
		}
		if e.Agent == nil || e.Event == nil {
			return nil, nil, spoiled(fmt.Errorf("entry %d has no agent or no event", i+1))
		}
		ring = append(ring, StateEvent{ID: e.ID, Timestamp: envelope.At(e.Timestamp), Agent: *e.Agent, Event: *e.Event})
	}
	return raw, ring, nil
}

// encodeRing keeps the newest that fit; their stamps are extra.
func encodeRing(raw []json.RawMessage) []byte {
	n, size := len(raw), 2
	for n > 0 && len(raw)-n < MaxRecentEvents {
		event, _ := trust.SplitRecord(raw[n-1])
		if size += len(event) + 1; size > MaxRecentBytes {
			break
		}
		n--
	}
	return mustEncode(raw[n:])
}

func decodeFocus(b []byte) (string, error) {
	spoiled := func(cause error) error {
		return &SpoiledError{CurrentFocusKey, "gatemesh state focus --clear", cause}
	}
	switch {
	case !utf8.Valid(b):
		return "", spoiled(errors.New("not UTF-8"))
	case len(b) > MaxFocusBytes:
		return "", spoiled(fmt.Errorf("%d bytes, at most %d", len(b), MaxFocusBytes))
	}
	return string(b), nil
}
