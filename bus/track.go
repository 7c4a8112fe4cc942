package bus

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/gatemesh/gatemesh/envelope"
)

// Facts are the four separate things that can be known of a message.
type Facts struct {
	Accepted  bool `json:"accepted"`
	Delivered bool `json:"delivered"`
	Acked     bool `json:"acked"`
	Replied   bool `json:"replied"`
	// Dead: given up; Class and Reason say why.
	Dead bool `json:"dead"`
	// PassedOn is the agent that it was passed on to by the one that it was for; what follows comes from there.
	PassedOn string         `json:"passed_on,omitempty"`
	Class    envelope.Class `json:"class,omitempty"`
	Reason   string         `json:"reason,omitempty"`
}

func (f Facts) String() string {
	var s []string
	for _, x := range []struct {
		on   bool
		name string
	}{{f.Accepted, "accepted"}, {f.Delivered, "delivered"}, {f.Acked, "acked"}, {f.Replied, "replied"}, {f.Dead, "given up"}} {
		if x.on {
			s = append(s, x.name)
		}
	}
	if len(s) == 0 {
		return "nothing known"
	}
	return strings.Join(s, ", ")
}

// Track is what this gateway remembers of one message.
type Track struct {
	Facts  Facts
	Events []Event
	// Envelope is nil when this gateway never held the message.
	Envelope *envelope.Sealed
	// Reply is the answer, once it is here.
	Reply *envelope.Sealed
}

// maxTracks bounds the memory for timelines, in messages; the oldest go first. What
// has gone is still found in the store ([Bus.Lookup]).
const maxTracks = 4096

// maxTrackEvents bounds one timeline; the newest are kept.
const maxTrackEvents = 64

// usualEvents is how many a message has that goes well and is answered: at its source, or at its owner.
const usualEvents = 3

type tracks struct {
	mu   sync.Mutex
	byID map[string]*trackEntry
	ring [maxTracks]*trackEntry
	next int
}

type trackEntry struct {
	id string
	// gen is how many messages had this memory before.
	gen uint64
	Track
	// changed is closed and replaced at every change; it carries wake-ups, not facts.
	changed chan struct{}
	// waiters keep it from being forgotten.
	waiters int
}

// trackRef finds a timeline without looking for its id, as long as it is remembered. The zero value finds none.
type trackRef struct {
	e   *trackEntry
	gen uint64
}

// atLocked is the timeline at ref, or that of the id.
func (t *tracks) atLocked(ref trackRef, id string) *trackEntry {
	if ref.e != nil && ref.e.gen == ref.gen {
		return ref.e
	}
	return t.entryLocked(id)
}

func newTracks() *tracks { return &tracks{byID: make(map[string]*trackEntry)} }

func (t *tracks) entryLocked(id string) *trackEntry {
	e := t.byID[id]
	if e == nil {
		// Somebody waits for some of them: those stay, as long as there are others.
		for range maxTracks {
			if old := t.ring[t.next]; old == nil || old.waiters == 0 {
				break
			}
			t.next = (t.next + 1) % maxTracks
		}
		// Who is forgotten makes room, in memory too: no pointer to an entry leaves the lock.
		e = t.ring[t.next]
		if e == nil {
			e = &trackEntry{Track: Track{Events: make([]Event, 0, usualEvents)}}
			t.ring[t.next] = e
		} else {
			e.wakeLocked()
			delete(t.byID, e.id)
		}
		clear(e.Events)
		*e = trackEntry{id: id, gen: e.gen + 1, Track: Track{Events: e.Events[:0]}}
		t.next = (t.next + 1) % maxTracks
		t.byID[id] = e
	}
	return e
}

func (e *trackEntry) wakeLocked() {
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// begin remembers the envelope of a message that this gateway handles or sends.
func (t *tracks) begin(s *envelope.Sealed) trackRef {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.beginLocked(s)
}

// beginAll is begin for many.
func (t *tracks) beginAll(jobs []*job) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, j := range jobs {
		j.track = t.beginLocked(j.env)
	}
}

func (t *tracks) beginLocked(s *envelope.Sealed) trackRef {
	e := t.entryLocked(s.MessageID)
	if e.Envelope == nil {
		e.Envelope = s
	}
	return trackRef{e, e.gen}
}

// note adds an event to a message's timeline, which is at ref if it is remembered.
func (t *tracks) note(ref trackRef, ev *Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.atLocked(ref, ev.MessageID)
	if len(e.Events) >= maxTrackEvents {
		e.Events = append(e.Events[:1], e.Events[2:]...)
	}
	if ev.Event == EventQueued && len(e.Events) > 0 && !slices.ContainsFunc(e.Events, func(x Event) bool { return x.Event == EventQueued }) {
		// Where sender and owner are one gateway, the owner can be told of the write before the sender is.
		e.Events = slices.Insert(e.Events, 0, *ev)
	} else {
		e.Events = append(e.Events, *ev)
	}
	switch ev.Event {
	case EventQueued:
		e.Facts.Accepted = true
	case EventDelivered, EventAcked, EventDeadLetter, EventReceipt:
		e.Facts.apply(ev)
	case EventReplied:
		e.Facts.Replied = true
	}
	e.wakeLocked()
}

func (f *Facts) apply(ev *Event) {
	f.Accepted = true
	switch ev.State {
	case envelope.Queued: // again, out of the dead letters
		f.Dead, f.Class, f.Reason = false, "", ""
	case envelope.Delivered, envelope.Failed:
		f.Delivered = true
	case envelope.Acked:
		f.Delivered, f.Acked = true, true
		if ev.PassedOn != "" {
			f.PassedOn = ev.PassedOn
		}
	case envelope.DeadLetter:
		f.Dead, f.Class, f.Reason = true, ev.Class, ev.Reason
	}
}

// replied remembers the answer; the caller emits the event.
func (t *tracks) replied(id string, reply *envelope.Sealed) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entryLocked(id)
	e.Reply = reply
}

// envelope returns the message itself, or nil.
func (t *tracks) envelope(id string) *envelope.Sealed {
	s, _ := t.find(id)
	return s
}

// find is envelope, with where its timeline is.
func (t *tracks) find(id string) (*envelope.Sealed, trackRef) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byID[id]; e != nil {
		return e.Envelope, trackRef{e, e.gen}
	}
	return nil, trackRef{}
}

// hold adds to the number of those who wait for a message.
func (t *tracks) hold(id string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byID[id]; e != nil {
		e.waiters += n
	}
}

// get returns a copy and a channel that is closed at the next change.
func (t *tracks) get(id string) (Track, <-chan struct{}, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byID[id]
	if e == nil {
		return Track{}, nil, false
	}
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	c := e.Track
	c.Events = append([]Event(nil), e.Events...)
	return c, e.changed, true
}

// wait returns when done says so of the message, or with what is known when ctx ends.
func (t *tracks) wait(ctx context.Context, id string, done func(Track) bool) (Track, error) {
	t.hold(id, 1)
	defer t.hold(id, -1)
	for {
		tr, changed, ok := t.get(id)
		if !ok {
			return Track{}, ErrNotFound
		}
		if done(tr) {
			return tr, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return tr, ctx.Err()
		}
	}
}

// recent lists the ids of the newest messages, newest first.
func (t *tracks) recent(n int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []string
	for i := 1; i <= maxTracks && len(ids) < n; i++ {
		if e := t.ring[(t.next-i+maxTracks)%maxTracks]; e != nil {
			ids = append(ids, e.id)
		}
	}
	return ids
}
