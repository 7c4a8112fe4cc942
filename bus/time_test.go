package bus_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// bubble is a mesh in fake time, on the real embedded store.
type bubble struct {
	*testing.T
	store bus.Store
}

// inBubble runs f in fake time: nothing waits really, and every moment is exact.
func inBubble(t *testing.T, f func(b *bubble)) {
	path := filepath.Join(t.TempDir(), "mesh.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := local.Open(path, local.Options{})
		if err != nil {
			t.Fatal(err)
		}
		b := &bubble{T: t, store: s}
		defer s.Close()
		f(b)
	})
}

// pass lets fake time pass, and everything that is due then happen.
func (b *bubble) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

type gw struct {
	*bus.Bus
	store *bustest.FaultyStore

	mu     sync.Mutex
	events []bus.Event
	at     []time.Time
}

func (b *bubble) gateway(name string, change func(*bus.Config)) *gw {
	b.Helper()
	g := &gw{store: bustest.Faulty(b.store)}
	cfg := bus.Config{Gateway: name, Store: g.store, Observe: func(ev bus.Event) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.events = append(g.events, ev)
		g.at = append(g.at, time.Now())
	}}
	if change != nil {
		change(&cfg)
	}
	var err error
	if g.Bus, err = bus.New(cfg); err != nil {
		b.Fatal(err)
	}
	if err := g.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	synctest.Wait()
	return g
}

// stop ends gateways before the bubble does.
func (b *bubble) stop(gs ...*gw) {
	for _, g := range gs {
		g.store.Before(nil)
		if err := g.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	}
}

func (b *bubble) serve(g *gw, spec bus.AgentSpec, h bus.HandlerFunc) {
	b.Helper()
	if err := g.Serve(spec, h); err != nil {
		b.Fatal(err)
	}
	synctest.Wait()
}

func (b *bubble) send(g *gw, to, body string, change func(*bus.Outgoing)) string {
	b.Helper()
	o := bus.Outgoing{To: envelope.Address{Agent: to}, From: "user", Payload: envelope.TextPayload(body)}
	if change != nil {
		change(&o)
	}
	s, err := g.Send(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	return s.MessageID
}

// names lists what a message's owner made of it. What the sender learns comes by another way, and may
// overtake the owner's events or be overtaken.
func (g *gw) names(id string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []string
	for _, ev := range g.events {
		if ev.MessageID == id && ev.Event != bus.EventReceipt && ev.Event != bus.EventQueued {
			list = append(list, ev.Event)
		}
	}
	return strings.Join(list, " ")
}

func (g *gw) facts(id string) bus.Facts {
	tr, _, _ := g.Track(id)
	return tr.Facts
}

// An idle gateway writes its heartbeat and nothing else: three times a minute, whatever the
// number of its agents. ARCHITECTURE.md and `gatemesh bench` state the same number.
func TestIdleWrites(t *testing.T) {
	for name, signed := range map[string]bool{"open": false, "signed": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bubble) { idleWrites(b, signed) })
		})
	}
}

func idleWrites(b *bubble, signed bool) {
	g := b.gateway("jerry", func(c *bus.Config) {
		if signed {
			b.trustIn(c)
		}
	})
	for i := range 5 {
		b.serve(g, bus.AgentSpec{ID: fmt.Sprintf("agent-%d", i), Capabilities: []string{"x"}}, func(context.Context, *bus.Incoming) error { return nil })
	}
	id := b.send(g, "agent-1", "settle", nil)
	b.pass(2 * time.Minute)
	if !g.facts(id).Acked {
		b.Fatal("not acked")
	}
	g.store.ResetCounts()
	b.pass(10 * time.Minute)
	if got := g.store.Writes(); got != 30 {
		b.Errorf("%d writes in ten idle minutes, want 30", got)
	}
	b.stop(g)
}

// trustIn makes an operator's mesh of the gateway alone, and puts its trust set into the store.
func (b *bubble) trustIn(c *bus.Config) {
	b.Helper()
	operator, key := trust.NewKey(), trust.NewKey()
	set := &trust.Set{
		Mesh: "m", Version: 1, IssuedAt: envelope.At(time.Now()), Operators: []string{trust.EncodePublic(operator.Public())}, Revoked: []trust.Revocation{},
		Gateways: []trust.Member{{Name: c.Gateway, Agents: []string{"*"}, Keys: []trust.MemberKey{{Public: trust.EncodePublic(key.Public())}}}},
	}
	raw, err := trust.SignSet(set, operator)
	if err == nil {
		_, err = c.Store.Txn(b.Context(), []bus.Op{{Verb: bus.OpSet, Key: trust.SetKey, Value: raw}})
	}
	if err == nil {
		c.Anchor, err = trust.OpenAnchor("", "m", []ed25519.PublicKey{operator.Public()})
	}
	if err != nil {
		b.Fatal(err)
	}
	c.Signer, c.Trust = &trust.Signer{Mesh: "m", Gateway: c.Gateway, Key: key}, trust.NewVerifier("m", false)
}

func TestRetryTimes(t *testing.T) {
	inBubble(t, func(b *bubble) {
		policy := bus.RetryPolicy{MaxAttempts: 6, Initial: time.Second, Max: 4 * time.Second}
		g := b.gateway("jerry", func(c *bus.Config) { c.Retry = policy })
		var times []time.Time
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error {
			times = append(times, time.Now())
			if m.Attempt() == 2 {
				return bus.RetryAfter(time.Minute, errors.New("come back in a minute"))
			}
			return errors.New("no")
		})
		id := b.send(g, "bob", "x", nil)
		b.pass(3 * time.Minute)
		if len(times) != 6 || !g.facts(id).Dead {
			b.Fatalf("%d attempts, facts %+v", len(times), g.facts(id))
		}
		for i, want := range []time.Duration{time.Second, time.Minute, 4 * time.Second, 4 * time.Second, 4 * time.Second} {
			got := times[i+1].Sub(times[i])
			low := want / 2
			if want == time.Minute {
				low = want - time.Millisecond // asked for, so not drawn (the record holds milliseconds)
			}
			if got < low-time.Millisecond || got > want+time.Millisecond {
				b.Errorf("pause %d was %s, want %s to %s", i+1, got, low, want)
			}
		}
		if got := g.names(id); got != strings.Repeat("delivered failed retry ", 5)+"delivered failed dead-letter" {
			b.Errorf("events: %s", got)
		}
		b.stop(g)
	})
}

func TestAckTimeout(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		b.serve(g, bus.AgentSpec{ID: "bob", AckTimeout: 30 * time.Second}, func(ctx context.Context, m *bus.Incoming) error {
			if m.Attempt() == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		id := b.send(g, "bob", "x", nil)
		b.pass(29 * time.Second)
		if f := g.facts(id); !f.Delivered || f.Acked {
			b.Errorf("while it is worked on: %+v", f)
		}
		b.pass(3 * time.Second)
		if f := g.facts(id); !f.Acked {
			b.Errorf("after the second attempt: %+v", f)
		}
		st, err := g.Lookup(b.Context(), id)
		if err != nil || st.Delivery.Attempt != 2 {
			b.Errorf("%+v %v", st, err)
		}
		b.stop(g)
	})
}

// A TTL counts on the receiver's clock; the skew is added and not a moment more.
func TestExpiry(t *testing.T) {
	for _, tc := range []struct {
		name string
		wait time.Duration
		dead bool
	}{
		{"in time", time.Minute + envelope.DefaultSkew - 50*time.Millisecond, false},
		{"late", time.Minute + envelope.DefaultSkew + 50*time.Millisecond, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(b *bubble) {
				jerry, first := b.gateway("jerry", nil), b.gateway("first", nil)
				ok := func(context.Context, *bus.Incoming) error { return nil }
				b.serve(first, bus.AgentSpec{ID: "bob", Rank: 1}, ok) // the second need not wait for it
				b.pass(time.Second)
				b.stop(first)
				id := b.send(jerry, "bob", "x", func(o *bus.Outgoing) { o.TTL = time.Minute })
				b.pass(tc.wait)
				second := b.gateway("second", nil)
				b.serve(second, bus.AgentSpec{ID: "bob"}, ok)
				b.pass(10 * time.Millisecond)
				f := jerry.facts(id)
				if f.Dead != tc.dead || f.Acked == tc.dead || tc.dead && (f.Class != envelope.ClassExpired || f.Delivered) {
					b.Errorf("%+v", f)
				}
				b.stop(jerry, second)
			})
		})
	}
}

// A gateway that cannot renew its session begins no work after 60 % of the TTL, long before the
// store lets anybody else take over; and goes on when it can renew again.
func TestTrustEndsBeforeTheLease(t *testing.T) {
	inBubble(t, func(b *bubble) {
		jerry := b.gateway("jerry", nil)
		bobby := b.gateway("bobby", func(c *bus.Config) { c.SessionTTL = 100 * time.Second })
		var handled []time.Time
		b.serve(bobby, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error {
			handled = append(handled, time.Now())
			return nil
		})
		begin := time.Now()
		// The last renewal was at most 25 s ago; none succeeds from here on.
		bobby.store.Before(func(call string, _ []bus.Op) error {
			if call == bustest.CallRenewSession {
				return fmt.Errorf("%w: by the test", bus.ErrUnavailable)
			}
			return nil
		})
		b.pass(61 * time.Second)
		id := b.send(jerry, "bob", "x", nil)
		b.pass(10 * time.Second)
		if len(handled) > 0 {
			b.Fatalf("handled %s after the last renewal could have been", handled[0].Sub(begin))
		}
		bobby.store.Before(nil)
		b.pass(5 * time.Second)
		if !jerry.facts(id).Acked {
			b.Errorf("not handled after the store came back: %+v %s", jerry.facts(id), bobby.names(id))
		}
		b.stop(jerry, bobby)
	})
}

// A server that answers for a moment as if the session had never been (Consul's leader after a restart, as long as
// it replays) takes nothing from its gateway: the lock stands, so the session does.
func TestServerThatForgot(t *testing.T) {
	inBubble(t, func(b *bubble) {
		jerry := b.gateway("jerry", nil)
		b.serve(jerry, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		forgot := 0
		jerry.store.Before(func(call string, _ []bus.Op) error {
			if call == bustest.CallRenewSession && forgot < 3 {
				forgot++
				return bus.ErrNoSession
			}
			return nil
		})
		b.pass(20 * time.Second)
		if forgot != 3 {
			b.Fatalf("%d renewals", forgot)
		}
		select {
		case err := <-jerry.Fatal():
			b.Fatalf("it stops: %v", err)
		default:
		}
		jerry.mu.Lock()
		for _, ev := range jerry.events {
			if ev.Event == bus.EventDeposed || ev.Event == bus.EventReleased {
				b.Errorf("%s lost %s", ev.Gateway, ev.To)
			}
		}
		jerry.mu.Unlock()
		id := b.send(jerry, "bob", "x", nil)
		b.pass(time.Second)
		if !jerry.facts(id).Acked {
			b.Errorf("%+v", jerry.facts(id))
		}
		b.stop(jerry)
	})
}

// The last process started under a name has it; the one before learns that and stops for good.
func TestNameIsTakenOver(t *testing.T) {
	inBubble(t, func(b *bubble) {
		first := b.gateway("jerry", nil)
		b.serve(first, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		second := b.gateway("jerry", nil)
		select {
		case err := <-first.Fatal():
			if !errors.Is(err, bus.ErrReplaced) {
				b.Errorf("fatal: %v", err)
			}
		case <-time.After(time.Minute):
			b.Error("the first process was not told")
		}
		if err := first.Ready(); err == nil {
			b.Error("the first process still says it is ready")
		}
		b.serve(second, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		b.pass(time.Second)
		id := b.send(second, "bob", "x", nil)
		b.pass(time.Second)
		if !second.facts(id).Acked {
			b.Errorf("%+v", second.facts(id))
		}
		ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
		defer cancel()
		if err := first.Stop(ctx); err != nil {
			b.Log(err)
		}
		b.stop(second)
	})
}

// Choices are taken in order: the first at once, and when it stops, the second at once.
func TestRanks(t *testing.T) {
	inBubble(t, func(b *bubble) {
		first, second := b.gateway("first", nil), b.gateway("second", nil)
		ok := func(context.Context, *bus.Incoming) error { return nil }
		b.serve(second, bus.AgentSpec{ID: "bob", Rank: 1}, ok)
		b.serve(first, bus.AgentSpec{ID: "bob", Rank: 0}, ok)
		b.pass(time.Second)
		owner := func() string {
			for _, o := range second.Owners() {
				if o.Agent == "bob" {
					return o.Gateway
				}
			}
			return ""
		}
		if owner() != "first" {
			b.Errorf("owned by %q", owner())
		}
		begin := time.Now()
		b.stop(first)
		for ; ; b.pass(10 * time.Millisecond) {
			if owner() == "second" {
				break
			}
			if time.Since(begin) > time.Minute {
				b.Fatal("nobody took over")
			}
		}
		if d := time.Since(begin); d > 100*time.Millisecond {
			b.Errorf("taken over after %s", d)
		}
		b.stop(second)
	})
}

// Stop returns in time even when a handler ignores its context, and the message is not lost.
func TestStopIsBounded(t *testing.T) {
	inBubble(t, func(b *bubble) {
		jerry := b.gateway("jerry", nil)
		bobby := b.gateway("bobby", func(c *bus.Config) { c.DrainGrace = time.Second })
		release := make(chan struct{})
		b.serve(bobby, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error {
			<-release
			return nil
		})
		id := b.send(jerry, "bob", "x", nil)
		b.pass(time.Second)
		ctx, cancel := context.WithTimeout(b.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		err := bobby.Stop(ctx)
		if d := time.Since(begin); d > 4*time.Second {
			b.Errorf("stop took %s (%v)", d, err)
		}
		close(release)
		second := b.gateway("second", nil)
		b.serve(second, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		b.pass(30 * time.Second)
		if !jerry.facts(id).Acked {
			b.Errorf("%+v", jerry.facts(id))
		}
		if err := bobby.Stop(b.Context()); err != nil {
			b.Errorf("stopping again: %v", err)
		}
		b.stop(jerry, second)
	})
}

// Answers to questions that were asked through the API are kept for their time and no longer.
func TestResultsAreDropped(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error {
			return m.Reply(envelope.TextPayload("yes"))
		})
		s, err := g.AskAPI(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload("?")})
		if err != nil {
			b.Fatal(err)
		}
		synctest.Wait()
		kept := func() int {
			keys, err := b.store.Keys(b.Context(), bus.Root+"results/", "")
			if err != nil {
				b.Fatal(err)
			}
			return len(keys)
		}
		b.pass(55 * time.Minute)
		if kept() != 1 || !g.facts(s.MessageID).Replied {
			b.Errorf("after 55 minutes: %d answers, %+v", kept(), g.facts(s.MessageID))
		}
		b.pass(30 * time.Minute)
		if kept() != 0 {
			b.Error("after 85 minutes it is still there")
		}
		b.stop(g)
	})
}

// Who waits for a message is told, however many others come meanwhile.
func TestWaitersAreNotForgotten(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		release := make(chan struct{})
		b.serve(g, bus.AgentSpec{ID: "bob", MaxConcurrent: 100}, func(ctx context.Context, m *bus.Incoming) error {
			if m.Envelope().Text() == "slow" {
				<-release
			}
			return nil
		})
		id := b.send(g, "bob", "slow", nil)
		got := make(chan error, 1)
		go func() {
			_, err := g.Await(b.Context(), id, func(t bus.Track) bool { return t.Facts.Acked })
			got <- err
		}()
		synctest.Wait()
		for range 50 {
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() { b.send(g, "bob", "quick", nil) })
			}
			wg.Wait()
		}
		close(release)
		select {
		case err := <-got:
			if err != nil {
				b.Error(err)
			}
		case <-time.After(time.Minute):
			b.Error("not told")
		}
		b.stop(g)
	})
}

// When a gateway stops, each inbox goes as soon as its own work is done: an idle one at once, one whose
// handler waits for an answer at once too, one whose handler works after the grace.
func TestHandoverIsPerInbox(t *testing.T) {
	inBubble(t, func(b *bubble) {
		first := b.gateway("first", func(c *bus.Config) { c.DrainGrace = 5 * time.Second })
		second := b.gateway("second", nil)
		work := func(ctx context.Context, m *bus.Incoming) error {
			switch m.Envelope().Text() {
			case "work":
				<-ctx.Done()
				return ctx.Err()
			case "ask":
				_, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: "busy"}, Payload: envelope.TextPayload("quick")})
				return err
			}
			return nil
		}
		for _, id := range []string{"idle", "busy", "asking"} {
			b.serve(first, bus.AgentSpec{ID: id}, work)
			if err := second.Serve(bus.AgentSpec{ID: id, Rank: 1}, bus.HandlerFunc(func(context.Context, *bus.Incoming) error { return nil })); err != nil {
				b.Fatal(err)
			}
		}
		b.pass(time.Second)
		busy := b.send(first, "busy", "work", func(o *bus.Outgoing) { o.ConversationID = "c" })
		b.send(first, "asking", "ask", func(o *bus.Outgoing) { o.ConversationID = "c" })
		b.pass(time.Second)
		begin := time.Now()
		stopped := make(chan error, 1)
		go func() { stopped <- first.Stop(context.Background()) }()
		taken := map[string]time.Duration{}
		for len(taken) < 3 && time.Since(begin) < time.Minute {
			b.pass(50 * time.Millisecond)
			for _, o := range second.Owners() {
				if _, seen := taken[o.Agent]; !seen && o.Gateway == "second" && o.Agent != "second" {
					taken[o.Agent] = time.Since(begin)
				}
			}
		}
		if taken["idle"] > time.Second || taken["asking"] > time.Second || taken["busy"] < 5*time.Second || taken["busy"] > 6*time.Second || len(taken) != 3 {
			b.Errorf("taken over after %v", taken)
		}
		if err := <-stopped; err != nil {
			b.Error(err)
		}
		b.pass(time.Second)
		if st, err := second.Lookup(b.Context(), busy); err != nil || st.State != envelope.Acked {
			b.Errorf("the work that was handed over: %+v %v", st, err)
		}
		b.stop(second)
	})
}
