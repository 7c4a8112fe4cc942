package bus_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// A message that waits behind another of its conversation gets a record after a while, and a next owner reads
// records before lanes. So the one before it must have a record too, also while that waits for a place to run. (The
// model of bustest found this one.)
func TestOrderSurvivesASpillAndACrash(t *testing.T) {
	inBubble(t, func(b *bubble) {
		jerry, first := b.gateway("jerry", nil), b.gateway("first", nil)
		hold := make(chan struct{})
		b.serve(first, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, func(context.Context, *bus.Incoming) error {
			<-hold
			return nil
		})
		b.send(jerry, "bob", "takes the only place", nil)
		b.pass(time.Millisecond)
		one := func(o *bus.Outgoing) { o.ConversationID = "c" }
		for _, body := range []string{"1", "2", "3"} {
			b.send(jerry, "bob", body, one)
		}
		b.pass(3 * time.Second)
		if n := b.count("pending/bob/"); n != 4 {
			b.Errorf("%d of 4 have records", n)
		}
		b.crash(first)
		second := b.gateway("second", nil)
		var mu sync.Mutex
		var order []string
		b.serve(second, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error {
			mu.Lock()
			defer mu.Unlock()
			if m.Envelope().ConversationID == "c" {
				order = append(order, m.Envelope().Text())
			}
			return nil
		})
		b.pass(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(order, []string{"1", "2", "3"}) {
			b.Errorf("handled as %q", order)
		}
		close(hold)
		b.stop(jerry, first, second)
	})
}
