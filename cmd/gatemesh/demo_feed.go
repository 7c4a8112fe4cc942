package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// feedDelay is how long an event is held back so that one of another gateway that happened
// before it can still go first: three streams bring them.
const feedDelay = 60 * time.Millisecond

// settleTime bounds the wait for the last events of a question after its answer is here.
const settleTime = 3 * time.Second

// A feed merges the event streams of the demo's gateways and prints them.
type feed struct {
	d      *demo
	cancel context.CancelFunc
	in     chan bus.Event
	wg     sync.WaitGroup

	mu       sync.Mutex
	question string // its timeline is shown
	tl       *timeline
	open     map[string]bool // messages of the question that are not at their end yet
	answered bool
	settled  chan struct{} // closed when the question's story is complete; nil before a question
}

// follow opens the streams. They replay what happened before, so that nothing is missed
// (ownership, for --json).
func (d *demo) follow(ctx context.Context) (*feed, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &feed{d: d, cancel: cancel, in: make(chan bus.Event, 256)}
	for _, n := range d.nodes {
		s, err := n.client.stream(ctx, "", 1000)
		if err != nil {
			f.stop()
			return nil, &exitError{exitFailed, err}
		}
		f.wg.Go(func() {
			defer s.close()
			for {
				ev, err := s.next(ctx)
				if err != nil {
					return // the node's end is told elsewhere
				}
				select {
				case f.in <- ev.Event:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	f.wg.Go(func() { f.merge(ctx) })
	return f, nil
}

func (f *feed) stop() {
	f.cancel()
	f.wg.Wait()
}

// merge holds events back for a moment and prints them in order.
func (f *feed) merge(ctx context.Context) {
	var held []bus.Event
	flush := time.NewTicker(feedDelay / 3)
	defer flush.Stop()
	release := func(until time.Time) {
		inOrder(held)
		n := 0
		for n < len(held) && !held[n].At.After(until) {
			f.emit(held[n])
			n++
		}
		held = held[n:]
	}
	for {
		select {
		case ev := <-f.in:
			held = append(held, ev)
		case <-flush.C:
			release(time.Now().Add(-feedDelay))
		case <-ctx.Done():
			release(time.Now().Add(time.Hour))
			return
		}
	}
}

// inOrder sorts events by the clock, which all nodes share here; those of one gateway are
// in their order already. One thing is not left to the clock: the receiver may wake before the
// sender hears that its message is in the store, so "queued" goes before what the others
// tell of that message.
func inOrder(events []bus.Event) {
	slices.SortStableFunc(events, func(a, b bus.Event) int { return a.At.Compare(b.At.Time) })
	for i, ev := range events {
		if ev.Event != bus.EventQueued {
			continue
		}
		first := slices.IndexFunc(events[:i], func(e bus.Event) bool { return e.MessageID == ev.MessageID })
		if first >= 0 {
			copy(events[first+1:i+1], events[first:i])
			events[first] = ev
		}
	}
}

// show makes the feed print the timeline of a question, counted from start.
func (f *feed) show(question string, start time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := make([]string, len(f.d.nodes))
	for i, n := range f.d.nodes {
		names[i] = n.gateway
	}
	f.question, f.tl = question, newTimeline(f.d.p, start, names...)
	f.open, f.answered, f.settled = map[string]bool{}, false, make(chan struct{})
}

// settle waits until the question's story is complete: its answer is here, and every
// message that it caused has come to its end.
func (f *feed) settle(ctx context.Context) {
	f.mu.Lock()
	settled := f.settled
	f.mu.Unlock()
	t := time.NewTimer(settleTime)
	defer t.Stop()
	select {
	case <-settled:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (f *feed) emit(ev bus.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.d.a.asJSON {
		_ = f.d.a.printer().jsonLine(ev)
	}
	if f.question == "" || ev.CorrelationID != f.question && ev.MessageID != f.question {
		return
	}
	switch ev.Event {
	case bus.EventQueued, bus.EventRetry:
		f.open[ev.MessageID] = true
	case bus.EventAcked, bus.EventDeadLetter:
		delete(f.open, ev.MessageID)
	}
	if ev.Event == bus.EventReplied && ev.MessageID == f.question || ev.Event == bus.EventDeadLetter {
		f.answered = true
	}
	if ev.Event != bus.EventReceipt && !f.d.a.asJSON {
		f.tl.print(ev)
	}
	if f.answered && len(f.open) == 0 {
		select {
		case <-f.settled:
		default:
			close(f.settled)
		}
	}
}
