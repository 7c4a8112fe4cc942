package bus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/envelope"
)

// The ring is bounded in entries and in bytes, keeps what others wrote beside what it knows, and refuses the rest.
func TestSharedStateRing(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		defer b.stop(g)
		put := func(text string) {
			t.Helper()
			if _, err := b.store.Txn(b.Context(), []bus.Op{{Verb: bus.OpSet, Key: bus.RecentEventsKey, Value: []byte(text)}}); err != nil {
				t.Fatal(err)
			}
		}
		record := func(text string) (bus.StateEvent, error) {
			return g.RecordEvent(b.Context(), bus.StateEvent{Agent: "bobby", Event: text})
		}
		put(`[{"timestamp":"2026-01-01T01:00:00+01:00","agent":"ann","event":"by hand","ticket":7}]`)
		if _, err := record("first"); err != nil {
			t.Fatal(err)
		}
		p, _ := b.store.Read(b.Context(), bus.RecentEventsKey)
		if ring, err := g.RecentEvents(b.Context()); err != nil || len(ring) != 2 || ring[0].Timestamp.UTC().Hour() != 0 || !strings.Contains(string(p), `"ticket":7`) {
			t.Errorf("%+v %v: %s", ring, err, p)
		}
		for i := range bus.MaxRecentEvents {
			if _, err := record(fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		if ring, err := g.RecentEvents(b.Context()); err != nil || len(ring) != bus.MaxRecentEvents || ring[0].Event != "0" {
			t.Errorf("%d events, the first %+v, %v", len(ring), ring[0], err)
		}
		for range bus.MaxRecentEvents {
			if _, err := record(strings.Repeat("x", bus.MaxEventBytes)); err != nil {
				t.Fatal(err)
			}
		}
		p, _ = b.store.Read(b.Context(), bus.RecentEventsKey)
		if len(p) > bus.MaxRecentBytes || len(p) < bus.MaxRecentBytes-2*bus.MaxEventBytes {
			t.Errorf("the ring has %d bytes", len(p))
		}
		for text, want := range map[string]error{" ": envelope.ErrInvalid, "\xff": envelope.ErrInvalid, strings.Repeat("x", bus.MaxEventBytes+1): bus.ErrTooLarge} {
			if _, err := record(text); !errors.Is(err, want) {
				t.Errorf("record %.5q: %v", text, err)
			}
		}
		for _, text := range []string{"see Ann", `{"a":1}`, `[1]`, `[{"timestamp":"yesterday","agent":"a","event":"b"}]`, `[{"timestamp":"2026-01-01T00:00:00Z","agent":"a"}]`} {
			put(text)
			_, err := record("x")
			var s *bus.SpoiledError
			if !errors.As(err, &s) || s.Key != bus.RecentEventsKey {
				t.Errorf("%s: %v", text, err)
			}
			if p, _ := b.store.Read(b.Context(), bus.RecentEventsKey); string(p) != text {
				t.Errorf("%s became %s", text, p)
			}
		}
	})
}

// A write that loses every time, or whose replies are all lost, says so; a handler's is one event for a message.
func TestSharedStateLoses(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		defer b.stop(g)
		var n atomic.Int64
		g.store.Before(func(call string, _ []bus.Op) error {
			if call == bustest.CallPut { // somebody else is first
				_, err := b.store.Txn(b.Context(), []bus.Op{{Verb: bus.OpSet, Key: bus.CurrentFocusKey, Value: fmt.Append(nil, n.Add(1))}})
				return err
			}
			return nil
		})
		if err := g.SetFocus(b.Context(), "mine"); !errors.Is(err, bus.ErrContended) || errors.Is(err, bus.ErrOutcomeUnknown) {
			t.Errorf("lost %d times: %v", n.Load(), err)
		}
		lost := func(call string, _ []bus.Op) error {
			if call == bustest.CallPut || call == bustest.CallGet && n.Load() < 0 {
				n.Store(-1) // and nothing can be read any more
				return fmt.Errorf("%w: lost", bus.ErrUnavailable)
			}
			return nil
		}
		g.store.Before(nil)
		g.store.After(lost)
		if e, err := g.RecordEvent(b.Context(), bus.StateEvent{Agent: "bobby", Event: "x"}); !errors.Is(err, bus.ErrOutcomeUnknown) || e.ID == "" {
			t.Errorf("%+v: %v", e, err)
		}
		g.store.After(nil)
		if ring, err := g.RecentEvents(b.Context()); err != nil || len(ring) != 1 {
			t.Errorf("the reply was lost, not the event: %+v %v", ring, err)
		}
		tried := 0
		b.serve(g, bus.AgentSpec{ID: "bobby"}, func(ctx context.Context, m *bus.Incoming) error {
			if err := m.Record(ctx, "handled"); err != nil {
				return err
			}
			if tried++; tried == 1 {
				return bus.Retry(errors.New("once more"))
			}
			return nil
		})
		s, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bobby"}, From: "user", Payload: envelope.TextPayload("x")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Await(b.Context(), s.MessageID, func(tr bus.Track) bool { return tr.Facts.Acked }); err != nil {
			t.Fatal(err)
		}
		if ring, err := g.RecentEvents(b.Context()); err != nil || len(ring) != 2 || tried != 2 {
			t.Errorf("%d tries, %+v %v", tried, ring, err)
		}
	})
}
