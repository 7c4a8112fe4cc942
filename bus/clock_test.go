package bus_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// skewed is a clock that is wrong by d.
func skewed(d time.Duration) func(*bus.Config) {
	return func(c *bus.Config) { c.Clock = func() time.Time { return time.Now().Add(d) } }
}

// What clocks decide when they are minutes apart: the end of a lifetime, and who is to mend his clock.
func TestClockSkewLifetimes(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.pass(time.Hour) // fake time begins in the first year that an envelope may speak of
		ahead, behind, right := b.gateway("ahead", skewed(3*time.Minute)), b.gateway("behind", skewed(-3*time.Minute)), b.gateway("right", nil)
		defer b.stop(ahead, behind, right)
		var mu sync.Mutex
		handled := map[string]int{}
		b.serve(right, bus.AgentSpec{ID: "bobby"}, func(_ context.Context, m *bus.Incoming) error {
			mu.Lock()
			defer mu.Unlock()
			handled[m.Envelope().Text()]++
			return nil
		})
		b.pass(time.Second)
		send := func(g *gw, text string, ttl time.Duration) bus.Track {
			t.Helper()
			s, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bobby"}, From: "user", Payload: envelope.TextPayload(text), TTL: ttl})
			if err != nil {
				t.Fatal(err)
			}
			tr, err := g.Await(b.Context(), s.MessageID, func(tr bus.Track) bool { return tr.Facts.Acked || tr.Facts.Dead })
			if err != nil {
				t.Fatal(err)
			}
			// A timeline is told in the order of what happened, whatever the clocks say.
			if tr.Events[0].Event != bus.EventQueued {
				t.Errorf("%s: %+v", text, tr.Events)
			}
			return tr
		}
		for _, c := range []struct {
			from *gw
			text string
			ttl  time.Duration
			says string // "": acked
		}{
			{ahead, "from a clock ahead", time.Hour, "set the clock of ahead"},
			{behind, "from a clock behind", time.Hour, ""},
			{behind, "short, from a clock behind", time.Minute, "what that of behind said"},
			{right, "from a right clock", time.Minute, ""},
		} {
			tr := send(c.from, c.text, c.ttl)
			mu.Lock()
			times := handled[c.text]
			mu.Unlock()
			if tr.Facts.Dead != (c.says != "") || times != map[bool]int{true: 1}[c.says == ""] {
				t.Errorf("%s: %s (%s), handled %d times", c.text, tr.Facts, tr.Facts.Reason, times)
			}
			if c.says != "" && (tr.Facts.Class != envelope.ClassExpired || !strings.Contains(tr.Facts.Reason, c.says)) {
				t.Errorf("%s: %s: %s", c.text, tr.Facts.Class, tr.Facts.Reason)
			}
		}
		b.serve(behind, bus.AgentSpec{ID: "slow"}, func(context.Context, *bus.Incoming) error { return nil })
		b.pass(time.Second)
		s, err := right.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "slow"}, From: "user", Payload: envelope.TextPayload("x"), TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		b.pass(time.Second)
		if f := right.facts(s.MessageID); f.Class != envelope.ClassExpired || !strings.Contains(f.Reason, "by the clock of behind") {
			t.Errorf("at a receiver whose clock is behind: %s (%s)", f, f.Reason)
		}
		res, err := right.Redrive(b.Context(), bus.DeadLetterFilter{Agent: "bobby"}, bus.RedriveOptions{By: "op", TTL: time.Minute})
		if err != nil || len(res) != 2 || !res[0].Done || !res[1].Done {
			t.Fatalf("redrive: %+v %v", res, err)
		}
		b.pass(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if handled["from a clock ahead"] != 1 || handled["short, from a clock behind"] != 1 {
			t.Errorf("after the redrive: %v", handled)
		}
	})
}

// What clocks must not decide: who owns an inbox, how long it takes to take it over, the order, and how long a retry waits
// that was planned by another clock.
func TestClockSkewOwnership(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.pass(time.Hour) // fake time begins in the first year that an envelope may speak of
		sender, first, second := b.gateway("sender", nil), b.gateway("first", skewed(3*time.Minute)), b.gateway("second", nil)
		defer b.stop(sender, second)
		const delay = 10 * time.Second
		var at []time.Time
		var order []string
		var mu sync.Mutex
		handle := func(_ context.Context, m *bus.Incoming) error {
			mu.Lock()
			defer mu.Unlock()
			if text := m.Envelope().Text(); text != "retried" {
				order = append(order, text)
				return nil
			}
			if at = append(at, time.Now()); len(at) == 1 {
				return bus.RetryAfter(delay, errors.New("not yet"))
			}
			return nil
		}
		attempts := func() []time.Time {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(at)
		}
		b.serve(first, bus.AgentSpec{ID: "bobby"}, handle)
		b.serve(second, bus.AgentSpec{ID: "bobby", Rank: 1}, handle)
		b.pass(time.Second)
		send := func(text string) string {
			t.Helper()
			s, err := sender.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bobby"}, From: "user", Payload: envelope.TextPayload(text), ConversationID: text[:1], TTL: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			return s.MessageID
		}
		send("retried")
		send("order 1")
		b.pass(time.Second)
		if got := sender.OwnerOf("bobby"); got != "first" || len(attempts()) != 1 {
			t.Fatalf("owner %q, %d attempts", got, len(attempts()))
		}
		b.pass(10 * time.Minute) // nothing but clocks that differ: no term ends
		for _, g := range []*gw{sender, first, second} {
			g.mu.Lock()
			for _, ev := range g.events {
				if ev.Event == bus.EventDeposed {
					t.Errorf("deposed: %+v", ev)
				}
			}
			g.mu.Unlock()
		}
		if a := attempts(); len(a) != 2 || a[1].Sub(a[0]) != delay {
			t.Errorf("attempts at %v", a)
		}
		mu.Lock()
		at = nil
		mu.Unlock()
		id := send("retried")
		b.pass(time.Second)
		b.stop(first)
		moved := time.Now()
		send("order 2")
		b.pass(30 * time.Second)
		if got := sender.OwnerOf("bobby"); got != "second" {
			t.Fatalf("owner %q", got)
		}
		if a := attempts(); len(a) != 2 || a[1].Sub(moved) > delay+time.Second {
			t.Errorf("the heir's clock is three minutes behind that which planned the retry: attempts %v after the handover", a)
		}
		if _, err := sender.Await(b.Context(), id, func(tr bus.Track) bool { return tr.Facts.Acked }); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if strings.Join(order, ",") != "order 1,order 2" {
			t.Errorf("order %q", order)
		}
	})
}
