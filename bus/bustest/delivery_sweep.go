package bustest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// sweepSends is what a run of the sweep sends: text and, by it, what the handler does.
var sweepSends = []string{"quick", "slow", "asks", "fails once", "never", "conversation 1", "conversation 2", "conversation 3"}

// faultSweep loses the request, and then the reply, of every single store call of a scenario that has it
// all: quick and slow work, a question within a handling, a retry, a dead letter, an order, and a
// handover. After each loss the same must be true.
func faultSweep(w *world) {
	stride := 1
	if w.slow {
		stride = 7 // real servers: a seventh of them, request and reply in turn
	}
	calls := sweepRun(w, "plain", nil, nil)
	if calls < 30 {
		w.Fatalf("the scenario made only %d calls", calls)
	}
	w.Logf("%d store calls", calls)
	for n := 0; n < calls; n += stride {
		lost := func(kind string) Hook {
			var seen atomic.Int64
			return func(call string, _ []bus.Op) error {
				if call == CallWatch || seen.Add(1)-1 != int64(n) {
					return nil
				}
				return fmt.Errorf("%w: the test lost the %s of call %d (%s)", bus.ErrUnavailable, kind, n, call)
			}
		}
		for _, kind := range []string{"request", "reply"} {
			if w.slow && (n%2 == 0) != (kind == "request") {
				continue
			}
			w.Run(fmt.Sprintf("%s %d", kind, n), func(t *testing.T) {
				if !w.slow {
					t.Parallel()
				}
				one := *w
				one.T = t
				if kind == "request" {
					sweepRun(&one, t.Name(), lost(kind), nil)
				} else {
					sweepRun(&one, t.Name(), nil, lost(kind))
				}
			})
		}
	}
}

// sweepRun plays the scenario once with hooks on every gateway's store, and returns the number of calls.
func sweepRun(w *world, name string, before, after Hook) int {
	w.Helper()
	var calls atomic.Int64
	count := func(call string, ops []bus.Op) error {
		if call != CallWatch {
			calls.Add(1)
		}
		if before != nil {
			return before(call, ops)
		}
		return nil
	}
	open := w.open
	if w.slow { // a server takes only so many connections: each run gives back its own
		var clients []bus.Store
		open = func(gateway string) bus.Store {
			clients = append(clients, w.open(gateway))
			return clients[len(clients)-1]
		}
		defer func() {
			for _, c := range clients {
				_ = c.Close()
			}
		}()
	}
	s := &world{T: w.T, open: open, slow: w.slow, tag: fmt.Sprintf("%s-%d", w.tag, sweepNumber.Add(1))}
	arm := func(n *node) {
		n.store.Before(count)
		n.store.After(after)
	}
	jerry, bobby := s.node("jerry"), s.node("bobby")
	effects := map[string]int{}
	var order []string
	var mu sync.Mutex
	var failed atomic.Bool
	handler := func(ctx context.Context, m *bus.Incoming) error {
		text := m.Envelope().Text()
		switch text {
		case "slow":
			select {
			case <-time.After(3 * 10 * time.Millisecond): // three times what is quick, so that it is recorded
			case <-ctx.Done():
				return ctx.Err()
			}
		case "asks":
			a, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: s.name("helper")}, Payload: envelope.TextPayload("help")})
			if err != nil {
				return err
			}
			text += " " + a.Text()
		case "fails once":
			if !failed.Swap(true) {
				return errors.New("once")
			}
		case "never":
			return bus.Never(envelope.ClassPoison, errors.New("never"))
		}
		mu.Lock()
		effects[m.Envelope().MessageID]++
		if m.Envelope().ConversationID == "ordered" {
			order = append(order, text)
		}
		mu.Unlock()
		return m.Reply(envelope.TextPayload(text))
	}
	bobby.serve("bob", handler)
	jerry.serve("helper", func(_ context.Context, m *bus.Incoming) error { return m.Reply(envelope.TextPayload("helped")) })
	arm(jerry)
	arm(bobby)
	ids := map[string]string{}
	for i, text := range sweepSends {
		o := jerry.out("bob", text)
		o.ID = envelope.NewID()
		if len(text) > 12 {
			o.ConversationID = "ordered"
		}
		ids[text] = o.ID
		for try := 0; ; try++ {
			ctx, cancel := context.WithTimeout(s.Context(), longest)
			_, err := jerry.AskAPI(ctx, o)
			cancel()
			if err == nil {
				break
			}
			// Refused or unknown: a client sends again under the same id.
			if !errors.Is(err, bus.ErrUnavailable) && !errors.Is(err, bus.ErrOutcomeUnknown) || try > 5 {
				s.Fatalf("%s: send %q: %v", name, text, err)
			}
		}
		if i == 3 { // a second owner stands by, and gets the inbox in the middle of it
			billy := s.node("billy")
			arm(billy)
			if err := billy.Serve(bus.AgentSpec{ID: s.name("bob"), Rank: 1}, bus.HandlerFunc(handler)); err != nil {
				s.Fatal(err)
			}
			go bobby.stop()
		}
	}
	for text, id := range ids {
		tr := jerry.until(id, func(t bus.Track) bool { return t.Facts.Dead || t.Facts.Replied && t.Facts.Acked })
		if (text == "never") != tr.Facts.Dead || tr.Facts.Dead && (tr.Facts.Acked || tr.Facts.Replied) {
			s.Errorf("%s: %q: %s (%s)", name, text, tr.Facts, tr.Facts.Reason)
		}
	}
	jerry.store.Before(nil)
	jerry.store.After(nil)
	s.settled(name, jerry)
	mu.Lock()
	defer mu.Unlock()
	for text, id := range ids {
		// No process dies here, so even what the mesh does not promise holds: one effect each.
		if n := effects[id]; (text != "never") != (n == 1) || n > 1 {
			s.Errorf("%s: %q was handled %d times", name, text, n)
		}
	}
	if order = slices.Compact(order); !slices.Equal(order, sweepSends[5:]) {
		s.Errorf("%s: the conversation came as %q", name, order)
	}
	for _, n := range s.nodes {
		n.stop()
	}
	return int(calls.Load())
}

var sweepNumber atomic.Int64

// settled checks that nothing of this world's agents is left on its way: no pending record, no answer, every lane taken
// to its end, and one dead letter.
func (w *world) settled(name string, n *node) {
	w.Helper()
	ctx := w.ctx()
	for _, agent := range []string{"bob", "helper"} {
		w.noPending(agent)
		boxes, err := n.Inboxes(ctx, w.name(agent))
		if err != nil {
			w.Fatal(err)
		}
		for _, b := range boxes {
			if b.Agent == w.name(agent) && (b.Waiting != 0 || b.Pending != 0) {
				w.Errorf("%s: inbox %+v", name, b)
			}
		}
	}
	dead, err := n.DeadLetters(ctx, bus.DeadLetterFilter{Agent: w.name("bob")})
	if err != nil || len(dead) != 1 {
		w.Errorf("%s: %d dead letters, %v", name, len(dead), err)
	}
}

// unsteadyWatches: whatever watches do, what is sent is done once, and who asked knows.
func unsteadyWatches(w *world) {
	open := w.open
	var stores []*unsteady
	w.open = func(gateway string) bus.Store {
		stores = append(stores, Unsteady(open(gateway)).(*unsteady))
		return stores[len(stores)-1]
	}
	jerry, bobby := w.node("jerry"), w.node("bobby")
	w.open = open
	var mu sync.Mutex
	effects := map[string]int{}
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		mu.Lock()
		defer mu.Unlock()
		effects[m.Envelope().MessageID]++
		return m.Reply(m.Envelope().Payload)
	})
	var ids []string
	for i := range 200 {
		s, err := jerry.AskAPI(w.ctx(), jerry.out("bob", fmt.Sprint(i)))
		if err != nil {
			w.Fatal(err)
		}
		ids = append(ids, s.MessageID)
		if i%20 == 0 { // now and then nobody is behind, so that bells carry their entries
			jerry.until(s.MessageID, replied)
		}
	}
	for _, id := range ids {
		jerry.until(id, func(t bus.Track) bool { return t.Facts.Replied && t.Facts.Acked })
	}
	for _, u := range stores {
		u.mu.Lock()
		if u.backwards == 0 {
			w.Error("no index went backwards: this test shows nothing")
		}
		u.mu.Unlock()
	}
	mu.Lock()
	defer mu.Unlock()
	for _, id := range ids {
		if effects[id] != 1 {
			w.Errorf("%s had %d effects", id, effects[id])
		}
	}
}
