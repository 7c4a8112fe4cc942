package bus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
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

// What resides in an eager inbox begins with the term, while what waits is still being read; what it sends once that has been read comes behind.
func TestEagerResident(t *testing.T) {
	inBubble(t, func(b *bubble) {
		zero, one := b.gateway("zero", nil), b.gateway("one", nil)
		b.serve(zero, bus.AgentSpec{ID: "channel-x"}, nothing) // so that it is known
		b.stop(zero)
		for i := range 3 {
			b.send(one, "channel-x", fmt.Sprintf("before %d", i), func(o *bus.Outgoing) { o.ConversationID = "c" })
		}
		slow := b.gateway("two", nil)
		defer b.stop(one, slow)
		slow.store.Before(func(call string, _ []bus.Op) error {
			if call == bustest.CallList { // of pending records, and of each lane's ledger
				<-time.After(time.Second)
			}
			return nil
		})
		var mu sync.Mutex
		var got []string
		began := time.Now()
		var resides, caught time.Duration
		r := &resident{
			handle: func(_ context.Context, m *bus.Incoming) error {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, m.Envelope().Text())
				return nil
			},
			reside: func(ctx context.Context, tm *bus.Term) error {
				resides = time.Since(began)
				if err := tm.CaughtUp(ctx); err != nil {
					t.Error(err)
				}
				caught = time.Since(began)
				if _, err := tm.Send(ctx, bus.Outgoing{To: envelope.Address{Agent: "channel-x"}, Payload: envelope.TextPayload("after"), ConversationID: "c"}); err != nil {
					t.Error(err)
				}
				<-ctx.Done()
				return nil
			},
		}
		if err := slow.Serve(bus.AgentSpec{ID: "channel-x", OneOrder: true, Eager: true}, r); err != nil {
			t.Fatal(err)
		}
		b.pass(10 * time.Second)
		if caught-resides < 2*time.Second { // one after the other
			t.Errorf("it began after %s and was caught up after %s", resides, caught)
		}
		mu.Lock()
		defer mu.Unlock()
		if fmt.Sprint(got) != "[before 0 before 1 before 2 after]" {
			t.Errorf("handled %q", got)
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

// An intent is in the store before there is a permit, also when the message has a record of this attempt already.
func TestIntentIsWritten(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.pass(time.Hour)
		one := b.gateway("one", nil)
		defer b.stop(one)
		b.serve(one, bus.AgentSpec{ID: "x"}, func(ctx context.Context, m *bus.Incoming) error {
			<-time.After(time.Second) // by now it has one
			for _, name := range []string{"first", "second"} {
				if _, err := m.Intend(ctx, name, nil); err != nil {
					return err
				}
				p, err := b.store.Get(ctx, "openclaw/pending/x/"+m.Envelope().MessageID)
				if err != nil || p == nil || !strings.Contains(string(p.Value), `{"name":"`+name+`","state":"intent"`) {
					t.Errorf("%s: %s %v", name, p.Value, err)
				}
				if err := m.SettleNow(ctx, name, envelope.EffectSent, ""); err != nil {
					return err
				}
				if p, err = b.store.Get(ctx, p.Key); err != nil || !strings.Contains(string(p.Value), `{"name":"`+name+`","state":"sent"`) {
					t.Errorf("%s: %s %v", name, p.Value, err)
				}
			}
			return nil
		})
		id := b.send(one, "x", "do", nil)
		b.pass(time.Minute)
		if f := one.facts(id); !f.Acked {
			t.Errorf("%s %s", f, f.Reason)
		}
	})
}

// A message ends as unknown, and only that, when nobody knows whether its effect was made: whatever its handler says. A redrive that
// means it has the effect made again.
func TestUnknownIsSaid(t *testing.T) {
	for _, tc := range []struct {
		name  string
		state envelope.EffectState // "": it is not settled
		says  error
		class envelope.Class // "": acked
	}{
		{"forgotten, and done", "", nil, envelope.ClassUnknown},
		{"forgotten, and never", "", bus.Never(envelope.ClassPoison, errors.New("no")), envelope.ClassUnknown},
		{"unknown, and never", envelope.EffectUnknown, bus.Never(envelope.ClassPoison, errors.New("no")), envelope.ClassUnknown},
		{"not made, and never", envelope.EffectFailed, bus.Never(envelope.ClassPoison, errors.New("no")), envelope.ClassPoison},
		{"sent", envelope.EffectSent, nil, ""},
		{"confirmed", envelope.EffectConfirmed, nil, ""},
		{"not made", envelope.EffectFailed, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(b *bubble) {
				b.pass(time.Hour)
				one := b.gateway("one", nil)
				defer b.stop(one)
				made := 0
				b.serve(one, bus.AgentSpec{ID: "x"}, func(ctx context.Context, m *bus.Incoming) error {
					p, err := m.Intend(ctx, "post", nil)
					if err != nil {
						return err
					}
					if made++; made > 1 {
						return p.Settle(envelope.EffectSent, "2")
					}
					if tc.state != "" {
						if err := p.Settle(tc.state, "1"); err != nil {
							t.Error(err)
						}
					}
					return tc.says
				})
				id := b.send(one, "x", "do", nil)
				b.pass(time.Minute)
				if f := one.facts(id); f.Class != tc.class || f.Acked != (tc.class == "") {
					t.Errorf("%s %s: %s", f, f.Class, f.Reason)
				}
				if tc.class != envelope.ClassUnknown {
					return
				}
				dead, err := one.DeadLetters(b.Context(), bus.DeadLetterFilter{})
				if err != nil || len(dead) != 1 || len(dead[0].Delivery.Effects) != 1 || !dead[0].Delivery.Effects[0].State.Open() || dead[0].Delivery.Effects[0].Gateway != "one" {
					t.Fatalf("%+v %v", dead, err)
				}
				if res, err := one.Redrive(b.Context(), bus.DeadLetterFilter{Agent: "x"}, bus.RedriveOptions{By: "op", TTL: time.Minute}); err != nil || len(res) != 1 || res[0].Done {
					t.Errorf("redriven among others: %+v %v", res, err)
				}
				if res, err := one.Redrive(b.Context(), bus.DeadLetterFilter{IDs: []string{id}}, bus.RedriveOptions{By: "op", TTL: time.Minute}); err != nil || len(res) != 1 || !res[0].Done {
					t.Fatalf("%+v %v", res, err)
				}
				b.pass(time.Minute)
				if f := one.facts(id); !f.Acked || made != 2 {
					t.Errorf("after the redrive: %s %s, made %d times", f, f.Reason, made)
				}
			})
		})
	}
}

// A permit is good for the effect window, counted from before its intent was asked for, and can be renewed; not by one that is no
// longer the owner.
func TestPermitWindow(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.pass(time.Hour)
		var ahead atomic.Int64 // of the wall clock: the machine slept
		one, two := b.gateway("one", func(c *bus.Config) {
			c.Clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		}), b.gateway("two", nil)
		defer b.stop(one, two)
		h := func(ctx context.Context, m *bus.Incoming) error {
			if m.Gateway() == "two" {
				if e := m.Effects(); len(e) != 1 || e[0].State != envelope.EffectIntent || e[0].Gateway != "one" || e[0].Token >= m.Term().Token() {
					t.Errorf("the successor sees %+v", e)
				} else if d := m.EffectSettledAfter(e[0]); d <= 0 || d > bus.EffectWindow {
					t.Errorf("it waits %s", d)
				}
				return m.Settle("post", envelope.EffectConfirmed, "found")
			}
			p, err := m.Intend(ctx, "post", nil)
			if err != nil {
				t.Error(err)
				return err
			}
			<-time.After(bus.EffectWindow - time.Millisecond)
			if err := p.Check(); err != nil {
				t.Errorf("within the window: %v", err)
			}
			<-time.After(2 * time.Millisecond)
			if err := p.Check(); !errors.Is(err, bus.ErrEffectWindow) {
				t.Errorf("after the window: %v", err)
			}
			if err := p.Renew(ctx); err != nil {
				t.Errorf("renewed: %v", err)
			}
			ahead.Store(int64(bus.EffectWindow + time.Second))
			if p.Check() == nil || m.Term().Trusted() == nil {
				t.Error("it slept, and may do it")
			}
			<-time.After(time.Second) // its session is verified
			if err := p.Renew(ctx); err != nil {
				t.Errorf("renewed: %v", err)
			}
			b.cutOff(one, true) // its lock is two's now
			<-time.After(bus.EffectWindow)
			if err := p.Check(); err == nil {
				t.Error("let through after the end of the term")
			}
			if err := p.Renew(ctx); err == nil {
				t.Error("renewed after the end of the term")
			}
			return nil
		}
		b.serve(one, bus.AgentSpec{ID: "x"}, h)
		b.ownedBy(two, "x", "one")
		b.serve(two, bus.AgentSpec{ID: "x", Rank: 1}, h)
		id := b.send(two, "x", "do", nil)
		b.pass(time.Minute)
		if f := two.facts(id); !f.Acked {
			t.Errorf("%s %s", f, f.Reason)
		}
	})
}
