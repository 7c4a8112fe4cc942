package bus_test

import (
	"context"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Whoever holds the janitor's duty without a right to it keeps everybody from clearing up: that is told of.
func TestFalseJanitorIsToldOf(t *testing.T) {
	inBubble(t, func(b *bubble) {
		set := &trust.Set{Mesh: "m", Version: 1}
		v := trust.NewVerifier("m", true)
		sign := func(c *bus.Config) {
			k := trust.NewKey()
			set.Put(c.Gateway, trust.MemberKey{Public: trust.EncodePublic(k.Public())}, []string{"*"})
			v.Use(set)
			c.Signer, c.Trust, c.ResultRetention = &trust.Signer{Mesh: "m", Gateway: c.Gateway, Key: k}, v, 10*time.Minute
		}
		g, h := b.gateway("jerry", sign), b.gateway("gone", sign)
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		if _, err := h.SendAll(b.Context(), bus.Fan{To: []envelope.Address{{Agent: "bob"}}, Message: bus.Outgoing{From: "user", Payload: envelope.TextPayload("leg")}}, false); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		b.crash(h)
		const key = bus.Root + "owners/duties/janitor"
		session, err := b.store.NewSession(b.Context(), bus.SessionOptions{Name: "mallory", TTL: 24 * time.Hour})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := b.store.Txn(b.Context(), []bus.Op{{Verb: bus.OpLock, Key: key, Session: session, Value: []byte(`{"gateway":"gone"}`)}}); err != nil {
			b.Fatal(err)
		}
		told := func() (n int) {
			g.mu.Lock()
			defer g.mu.Unlock()
			for _, ev := range g.events {
				if ev.Event == bus.EventRefused && ev.Refusal == string(trust.Unsigned) {
					n++
				}
			}
			return n
		}
		b.pass(80 * time.Minute)
		if told() != 1 || b.count("fanouts/gone/") == 0 {
			b.Errorf("told %d times, %d fan-outs", told(), b.count("fanouts/gone/"))
		}
		if err := b.store.DestroySession(b.Context(), session); err != nil {
			b.Fatal(err)
		}
		if b.pass(5 * time.Minute); b.count("fanouts/gone/") != 0 {
			b.Error("never cleared up")
		}
		b.stop(g, h)
	})
}
