package bus_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

func prio(n int) func(*bus.Outgoing) {
	return func(o *bus.Outgoing) { o.Task = &envelope.Task{Priority: &n} }
}

func notBefore(at time.Time) func(*bus.Outgoing) {
	return func(o *bus.Outgoing) {
		t := envelope.At(at)
		o.Task = &envelope.Task{NotBefore: &t}
	}
}

// Of the messages that wait for the one place, the highest priority goes first, and of equals the oldest.
func TestPriority(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		var order []string
		release := make(chan struct{})
		b.serve(g, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, func(_ context.Context, m *bus.Incoming) error {
			order = append(order, m.Envelope().Text())
			<-release
			return nil
		})
		b.send(g, "bob", "first", nil)
		synctest.Wait()
		for i := range 3 {
			for _, p := range []int{2, 9, 5, 0} {
				b.send(g, "bob", fmt.Sprintf("%d-%d", p, i), prio(p))
				b.pass(10 * time.Millisecond)
			}
		}
		b.send(g, "bob", "5-last", nil) // names none
		b.pass(time.Minute)
		close(release)
		b.pass(time.Second)
		want := "first 9-0 9-1 9-2 5-0 5-1 5-2 5-last 2-0 2-1 2-2 0-0 0-1 0-2"
		if got := strings.Join(order, " "); got != want {
			b.Errorf("order\n%s, want\n%s", got, want)
		}
		b.stop(g)
	})
}

// A message that is not due waits in a record of its own: it counts no attempt, holds up neither lane nor
// other conversations, goes to the next owner, and its ttl begins when it is due.
func TestDelay(t *testing.T) {
	inBubble(t, func(b *bubble) {
		jerry, first := b.gateway("jerry", nil), b.gateway("first", nil)
		type done struct {
			text    string
			at      time.Duration
			attempt int
		}
		var mu sync.Mutex
		var all []done
		start := time.Now()
		h := func(_ context.Context, m *bus.Incoming) error {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, done{m.Envelope().Text(), time.Since(start).Round(time.Second), m.Attempt()})
			return nil
		}
		b.serve(first, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, h)
		hour := b.send(jerry, "bob", "in an hour", notBefore(start.Add(time.Hour))) // its ttl is 5 minutes
		b.send(jerry, "bob", "in ten", notBefore(start.Add(10*time.Minute)))
		b.pass(100 * time.Millisecond) // less than what others may wait without a record
		if in, err := jerry.Inboxes(b.Context(), "bob"); err != nil || in[0].Waiting != 0 || in[0].Pending != 2 {
			b.Errorf("the cursor waits for the delayed ones: %+v %v", in, err)
		}
		same := func(at time.Duration) func(*bus.Outgoing) {
			return func(o *bus.Outgoing) {
				o.ConversationID = "together"
				if at > 0 {
					notBefore(start.Add(at))(o)
				}
			}
		}
		b.send(jerry, "bob", "together 1", same(20*time.Minute))
		b.send(jerry, "bob", "together 2", func(o *bus.Outgoing) { same(0)(o); o.TTL = time.Hour })
		b.send(jerry, "bob", "now", nil)
		b.pass(2 * time.Second)
		if in, err := jerry.Inboxes(b.Context(), "bob"); err != nil || in[0].Waiting != 0 || in[0].Pending != 4 {
			b.Errorf("the cursor waits for the delayed ones: %+v %v", in, err)
		}
		if st, err := jerry.Lookup(b.Context(), hour); err != nil || st.State != envelope.Queued || st.Delivery.NextAttemptAt == nil || st.Delivery.Attempt != 0 {
			b.Errorf("the delayed one: %+v %v", st, err)
		}
		b.pass(15 * time.Minute)
		second := b.gateway("second", nil)
		b.serve(second, bus.AgentSpec{ID: "bob", MaxConcurrent: 1, Rank: 1}, h)
		b.crash(first)
		b.pass(44*time.Minute + 30*time.Second) // 59:32
		mu.Lock()
		if len(all) != 4 {
			b.Errorf("before the hour: %+v", all)
		}
		mu.Unlock()
		b.pass(time.Minute)
		want := []done{{"now", 0, 1}, {"in ten", 10 * time.Minute, 1}, {"together 1", 20 * time.Minute, 1}, {"together 2", 20 * time.Minute, 1}, {"in an hour", time.Hour, 1}}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(all, want) {
			b.Errorf("handled\n%+v, want\n%+v", all, want)
		}
		if !jerry.facts(hour).Acked {
			b.Errorf("%+v", jerry.facts(hour))
		}
		if _, err := jerry.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "u", Payload: envelope.TextPayload("x"),
			Task: &envelope.Task{NotBefore: func() *envelope.Time { t := envelope.At(time.Now().Add(31 * 24 * time.Hour)); return &t }()}}); err == nil {
			b.Error("a delay of 31 days was taken")
		}
		b.stop(second, jerry, first)
	})
}

// A message that is due and late by more than its ttl is given up.
func TestDelayedExpires(t *testing.T) {
	inBubble(t, func(b *bubble) {
		jerry, first := b.gateway("jerry", nil), b.gateway("first", nil)
		ok := func(context.Context, *bus.Incoming) error { return nil }
		b.serve(first, bus.AgentSpec{ID: "bob"}, ok)
		at := time.Now().Add(time.Hour)
		id := b.send(jerry, "bob", "x", func(o *bus.Outgoing) { notBefore(at)(o); o.TTL = time.Minute })
		b.pass(time.Second)
		b.stop(first)
		b.pass(time.Hour + time.Minute + 10*time.Second)
		second := b.gateway("second", nil)
		b.serve(second, bus.AgentSpec{ID: "bob"}, ok)
		b.pass(time.Second)
		if f := jerry.facts(id); !f.Dead || f.Class != envelope.ClassExpired {
			b.Errorf("%+v", f)
		}
		b.stop(second, jerry)
	})
}
