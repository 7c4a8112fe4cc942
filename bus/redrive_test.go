package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// A message that asked, died and was redriven asks anew: under the old id its question would be dropped as a
// duplicate, and it would wait for ever for an answer that came in its last life.
func TestRedrivenMessageAsksAnew(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		b.serve(g, bus.AgentSpec{ID: "helper"}, func(_ context.Context, m *bus.Incoming) error { return m.Reply(m.Envelope().Payload) })
		mended := false
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(ctx context.Context, m *bus.Incoming) error {
			if _, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: "helper"}, Payload: envelope.TextPayload("?")}); err != nil {
				return err
			}
			if !mended {
				return bus.Never(envelope.ClassPoison, errors.New("the disk is full"))
			}
			return nil
		})
		id := b.send(g, "bob", "x", func(o *bus.Outgoing) { o.TTL = time.Hour })
		b.pass(time.Second)
		if !g.facts(id).Dead {
			b.Fatalf("%+v", g.facts(id))
		}
		mended = true
		if _, err := g.Redrive(b.Context(), bus.DeadLetterFilter{Agent: "bob"}, bus.RedriveOptions{By: "op"}); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Minute)
		if f := g.facts(id); !f.Acked || f.Dead {
			b.Errorf("after the redrive: %+v, %s", f, g.names(id))
		}
		b.stop(g)
	})
}
