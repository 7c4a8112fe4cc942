package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// resident is a handler with work of its own.
type resident struct {
	handle func(context.Context, *bus.Incoming) error
	reside func(context.Context, *bus.Term) error
}

func (r *resident) Handle(ctx context.Context, m *bus.Incoming) error { return r.handle(ctx, m) }
func (r *resident) Reside(ctx context.Context, t *bus.Term) error     { return r.reside(ctx, t) }

func TestResidentTerm(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.pass(time.Hour)
		one := b.gateway("one", nil)
		defer b.stop(one)
		var got []string
		in := make(chan *bus.Term, 4)
		out := make(chan struct{}, 4)
		r := &resident{
			handle: func(_ context.Context, m *bus.Incoming) error { got = append(got, m.Envelope().Text()); return nil },
			reside: func(ctx context.Context, tm *bus.Term) error {
				in <- tm
				<-ctx.Done()
				out <- struct{}{}
				return ctx.Err()
			},
		}
		if err := one.Serve(bus.AgentSpec{ID: "channel-x"}, r); err != nil {
			t.Fatal(err)
		}
		tm := <-in
		if err := errors.Join(tm.Trusted(), tm.Verify(b.Context())); err != nil {
			t.Error(err)
		}
		if _, err := tm.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "channel-x"}, Payload: envelope.TextPayload("hello")}); err != nil {
			t.Error(err)
		}
		if err := tm.Write(b.Context(), bus.RoomEntry{Name: "vault/device", Value: []byte{1, 2}}, bus.RoomEntry{Name: "state", Value: []byte(`{"a": 1}`)}); err != nil {
			t.Error(err)
		}
		list, err := tm.List(b.Context(), "")
		if err != nil || len(list) != 2 || list[0].Name != "state" || string(list[0].Value) != `{"a":1}` || string(list[1].Value) != "\x01\x02" {
			t.Errorf("%+v %v", list, err)
		}
		b.pass(time.Second)
		if len(got) != 1 || got[0] != "hello" {
			t.Errorf("handled %v", got)
		}
	})
}

func TestEffectLedger(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.pass(time.Hour)
		one := b.gateway("one", nil)
		defer b.stop(one)
		try := 0
		b.serve(one, bus.AgentSpec{ID: "x"}, func(ctx context.Context, m *bus.Incoming) error {
			try++
			p, err := m.Intend(ctx, "post", map[string]string{"to": "C1"})
			switch try {
			case 1:
				if err != nil || p.Check() != nil {
					t.Errorf("%v", err)
				}
				return errors.New("forgot what came of it")
			default:
				if !errors.Is(err, bus.ErrEffectOpen) {
					t.Errorf("%v", err)
				}
				return m.Settle("post", envelope.EffectUnknown, "")
			}
		})
		id := b.send(one, "x", "do", nil)
		b.pass(time.Minute)
		if f := one.facts(id); !f.Dead || f.Class != envelope.ClassUnknown || try != 2 {
			t.Errorf("%s %s %d", f, f.Reason, try)
		}
	})
}
