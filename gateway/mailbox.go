package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// runnerMailbox is the kind of an agent that lives outside of the gateway and fetches its messages (API, MCP).
const runnerMailbox = "mailbox"

const (
	// defaultLease is how long who fetched a message has to ack it, unless he says otherwise; longestLease is the most.
	defaultLease, longestLease = time.Minute, time.Hour
	// maxFetch is how many messages one fetch gets at most.
	maxFetch = 100
)

// A mailbox is the handler of such an agent. A message that nobody has fetched waits in it, at most maxConcurrent of them; the rest waits in the
// inbox. What was fetched and is not acked in time is tried again like any failure, and so ends as a dead letter when that goes on.
type mailbox struct {
	mu      sync.Mutex
	waiting []*mail // in the order in which they came
	leased  map[string]*mail
	// changed is closed and replaced when a message comes.
	changed chan struct{}
}

// mail is one message on its way through a mailbox.
type mail struct {
	m  *bus.Incoming
	id string
	// lease has the duration of each lease that is given or prolonged (capacity 1; the last one counts).
	lease   chan time.Duration
	verdict chan func(*bus.Incoming) error // capacity 1
}

func newMailbox() *mailbox {
	return &mailbox{leased: map[string]*mail{}, changed: make(chan struct{})}
}

// Handle implements bus.Handler.
func (b *mailbox) Handle(ctx context.Context, m *bus.Incoming) error {
	return b.hold(ctx, m.Envelope().MessageID, m)
}

// hold keeps a message until there is a verdict on it, its lease is over or ctx ends. Which of them was first is decided under b.mu: who was told
// that his verdict or his longer lease is taken is right.
func (b *mailbox) hold(ctx context.Context, id string, m *bus.Incoming) error {
	x := &mail{m: m, id: id, lease: make(chan time.Duration, 1), verdict: make(chan func(*bus.Incoming) error, 1)}
	b.mu.Lock()
	b.waiting = append(b.waiting, x)
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
	var over <-chan time.Time // nobody has fetched it yet
	lease := time.Duration(0)
	t := time.NewTimer(0)
	defer t.Stop()
	<-t.C
	for {
		var end error
		select {
		case v := <-x.verdict:
			return v(m)
		case lease = <-x.lease:
			t.Reset(lease)
			over = t.C
			continue
		case <-over:
			end = bus.Retry(fmt.Errorf("fetched, and neither acked nor prolonged within %s", lease))
		case <-ctx.Done():
			end = ctx.Err()
		}
		v, ended := b.end(x, ctx.Err() != nil)
		switch {
		case v != nil:
			return v(m)
		case ended:
			return end
		}
	}
}

// end takes a message out of the mailbox, unless there is a verdict on it already, or (if it may be) its lease was prolonged.
func (b *mailbox) end(x *mail, anyway bool) (verdict func(*bus.Incoming) error, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case v := <-x.verdict:
		return v, true
	default:
	}
	if len(x.lease) > 0 && !anyway {
		return nil, false
	}
	b.waiting = slices.DeleteFunc(b.waiting, func(y *mail) bool { return y == x })
	if b.leased[x.id] == x {
		delete(b.leased, x.id)
	}
	return nil, true
}

// fetch leases up to n messages, and waits for the first one until ctx ends. The leases last until the returned time at least.
func (b *mailbox) fetch(ctx context.Context, n int, lease time.Duration) ([]*bus.Incoming, time.Time) {
	for {
		b.mu.Lock()
		took, until := min(n, len(b.waiting)), time.Now().Add(lease)
		list := make([]*bus.Incoming, took)
		for i, x := range b.waiting[:took] {
			list[i] = x.m
			b.leased[x.id] = x
			x.lease <- lease // empty: it was not leased yet
		}
		b.waiting = slices.Delete(b.waiting, 0, took)
		changed := b.changed
		b.mu.Unlock()
		if took > 0 {
			return list, until
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, until
		}
	}
}

// count says how much lies in it.
func (b *mailbox) count() MailboxResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	return MailboxResponse{Waiting: len(b.waiting), Leased: len(b.leased)}
}

// errNotLeased: the message is not leased here: its lease is over, or it never was.
var errNotLeased = errors.New("is not leased by this gateway: its lease is over (it is handed out again), it was acked, or another gateway has it")

// settle ends a leased message with a verdict.
func (b *mailbox) settle(id string, verdict func(*bus.Incoming) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	x := b.leased[id]
	if x == nil {
		return errNotLeased
	}
	delete(b.leased, id)
	x.verdict <- verdict // one alone gets here
	return nil
}

// prolong gives a leased message more time, from now on, and returns until when at least.
func (b *mailbox) prolong(id string, lease time.Duration) (time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x := b.leased[id]
	if x == nil {
		return time.Time{}, errNotLeased
	}
	select {
	case <-x.lease: // one that was not looked at yet
	default:
	}
	until := time.Now().Add(lease)
	x.lease <- lease
	return until, nil
}

// Verdicts of who fetched a message.
func ackIt(*bus.Incoming) error { return nil }

func replyWith(payload []byte) func(*bus.Incoming) error {
	return func(m *bus.Incoming) error {
		if err := m.Reply(payload); err != nil {
			return fmt.Errorf("reply: %w", err)
		}
		return nil
	}
}

func nakIt(reason string, after time.Duration) func(*bus.Incoming) error {
	return func(*bus.Incoming) error { return bus.RetryAfter(after, errors.New(reason)) }
}

func rejectIt(reason string) func(*bus.Incoming) error {
	return func(*bus.Incoming) error { return bus.Never(envelope.ClassUndeliverable, errors.New(reason)) }
}
