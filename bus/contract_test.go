package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/envelope"
)

// crash ends a gateway as kill -9 would: the store sees nothing of it any more, and its session is gone.
func (b *bubble) crash(g *gw) {
	b.Helper()
	p, err := b.store.Get(b.Context(), bus.Root+"owners/gateways/"+g.Gateway())
	if err != nil || p == nil {
		b.Fatalf("lock of %s: %v %v", g.Gateway(), p, err)
	}
	g.store.Before(func(string, []bus.Op) error { return fmt.Errorf("%w: crashed by the test", bus.ErrUnavailable) })
	if err := b.store.DestroySession(b.Context(), p.Session); err != nil {
		b.Fatal(err)
	}
}

func (b *bubble) count(prefix string) int {
	b.Helper()
	keys, err := b.store.Keys(b.Context(), bus.Root+prefix, "")
	if err != nil {
		b.Fatal(err)
	}
	return len(keys)
}

func number(n int64) *int64 { return &n }

// A handler that says that it works keeps its lease; one that is silent loses it, and what it does then
// is refused, also when it comes back later.
func TestLease(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		var late error
		var guarded []error
		var attempts atomic.Int64
		b.serve(g, bus.AgentSpec{ID: "bob", AckTimeout: time.Minute}, func(ctx context.Context, m *bus.Incoming) error {
			switch attempts.Add(1) {
			case 1: // thinks for three minutes, and says so
				for range 6 {
					<-time.After(30 * time.Second)
					if err := m.Working(); err != nil {
						return err
					}
				}
				return m.Reply(envelope.TextPayload("thought"))
			default: // silent, then late
				<-ctx.Done()
				late = m.Reply(envelope.TextPayload("too late"))
				guarded = append(guarded, m.Guard(), m.Working(), m.Spend(1, 1), context.Cause(ctx))
				return nil
			}
		})
		good, err := g.AskAPI(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload("think")})
		if err != nil {
			b.Fatal(err)
		}
		b.pass(4 * time.Minute)
		if !g.facts(good.MessageID).Replied {
			b.Errorf("the one that worked: %+v", g.facts(good.MessageID))
		}
		bad := b.send(g, "bob", "silent", func(o *bus.Outgoing) { o.MaxAttempts = 1 })
		b.pass(2 * time.Minute)
		if f := g.facts(bad); !f.Dead || f.Class != envelope.ClassExhausted || !strings.Contains(f.Reason, "ack timeout") {
			b.Errorf("the silent one: %+v", f)
		}
		if !errors.Is(late, bus.ErrLeaseLost) || !errors.Is(guarded[0], bus.ErrLeaseLost) || !errors.Is(guarded[1], bus.ErrLeaseLost) || !errors.Is(guarded[3], bus.ErrLeaseLost) {
			b.Errorf("after the lease: reply %v, guard, working, spend, cause %v", late, guarded)
		}
		b.stop(g)
	})
}

// A handler that ignores everything holds up neither its conversation nor the agent.
func TestStuckHandlerIsLeftBehind(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		release := make(chan struct{})
		var after atomic.Int64
		b.serve(g, bus.AgentSpec{ID: "bob", AckTimeout: time.Second, MaxConcurrent: 1}, func(_ context.Context, m *bus.Incoming) error {
			if m.Envelope().Text() == "stuck" {
				<-release
				return nil
			}
			after.Add(1)
			return nil
		})
		same := func(o *bus.Outgoing) { o.ConversationID, o.MaxAttempts = "c", 1 }
		stuck := b.send(g, "bob", "stuck", same)
		next := b.send(g, "bob", "next", same)
		other := b.send(g, "bob", "other", nil)
		b.pass(3 * time.Second)
		if f := g.facts(stuck); !f.Dead || !strings.Contains(f.Reason, "ack timeout") {
			b.Errorf("stuck: %+v", f)
		}
		if !g.facts(next).Acked || !g.facts(other).Acked || after.Load() != 2 {
			b.Errorf("those behind it: %+v %+v", g.facts(next), g.facts(other))
		}
		// A second one takes the only place for good: stuck handlers do not pile up.
		again := b.send(g, "bob", "stuck", same)
		waits := b.send(g, "bob", "waits", nil)
		b.pass(3 * time.Second)
		if !g.facts(again).Dead || g.facts(waits).Delivered {
			b.Errorf("second stuck %+v, the one that waits %+v", g.facts(again), g.facts(waits))
		}
		close(release)
		b.pass(time.Second)
		if !g.facts(waits).Acked {
			b.Errorf("after the handlers came back: %+v", g.facts(waits))
		}
		b.stop(g)
	})
}

// Attempts, ack timeout and delay of one message are its sender's, when it says so.
func TestPolicyOfAMessage(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		times := map[string][]time.Time{}
		b.serve(g, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, func(ctx context.Context, m *bus.Incoming) error {
			body := m.Envelope().Text()
			times[body] = append(times[body], time.Now())
			switch body {
			case "hangs":
				<-ctx.Done()
				return ctx.Err()
			case "now":
				return bus.Retry(errors.New("again"))
			}
			return errors.New("no")
		})
		three := b.send(g, "bob", "three", func(o *bus.Outgoing) { o.MaxAttempts, o.RetryDelay = 3, 8*time.Second })
		b.pass(time.Minute)
		now := b.send(g, "bob", "now", func(o *bus.Outgoing) { o.MaxAttempts = 4 })
		b.pass(time.Second)
		hangs := b.send(g, "bob", "hangs", func(o *bus.Outgoing) { o.MaxAttempts, o.AckTimeout = 1, 3*time.Second })
		b.pass(5 * time.Second)
		if n := times["three"]; len(n) != 3 || n[1].Sub(n[0]) < 4*time.Second-time.Millisecond || n[1].Sub(n[0]) > 8*time.Second+time.Millisecond || !g.facts(three).Dead {
			b.Errorf("three: %v %+v", n, g.facts(three))
		}
		if n := times["now"]; len(n) != 4 || n[3].Sub(n[0]) > 50*time.Millisecond || !g.facts(now).Dead {
			b.Errorf("now: %v", n)
		}
		if f := g.facts(hangs); !f.Dead || !strings.Contains(f.Reason, "(3s)") {
			b.Errorf("hangs: %+v", f)
		}
		b.stop(g)
	})
}

// A question that comes back to an agent that waits for it ends where it would close the circle, in
// one turn, with the path.
func TestLoopIsStoppedInOneTurn(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		var calls atomic.Int64
		var said error
		ask := func(to string) bus.HandlerFunc {
			return func(ctx context.Context, m *bus.Incoming) error {
				calls.Add(1)
				a, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: to}, Payload: m.Envelope().Payload})
				var dead *bus.DeadLetterError
				switch {
				case errors.As(err, &dead):
					return m.Reply(envelope.TextPayload(dead.Reason))
				case err != nil:
					said = err
					return err
				}
				return m.Reply(a.Payload)
			}
		}
		b.serve(g, bus.AgentSpec{ID: "a"}, ask("b"))
		b.serve(g, bus.AgentSpec{ID: "b"}, ask("c"))
		b.serve(g, bus.AgentSpec{ID: "c"}, ask("a"))
		s, err := g.AskAPI(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "a"}, From: "user", Payload: envelope.TextPayload("round")})
		if err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		tr, _, _ := g.Track(s.MessageID)
		if !tr.Facts.Replied || calls.Load() != 3 || !strings.Contains(tr.Reply.Text(), "a@jerry > b@jerry > c@jerry > a") {
			b.Errorf("%+v after %d calls; c was told %v", tr.Facts, calls.Load(), said)
		}
		var hops *envelope.HopsError
		if !errors.As(said, &hops) {
			b.Errorf("c was told %v", said)
		}
		b.stop(g)
	})
}

func TestForward(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, h := b.gateway("jerry", nil), b.gateway("bobby", nil)
		pass := func(to string) bus.HandlerFunc {
			return func(_ context.Context, m *bus.Incoming) error {
				if m.Envelope().Text() == "for c" && to == "a" {
					return m.Reply([]byte(fmt.Sprintf("%q", m.Hops()[0].Agent+" and "+m.Hops()[1].Agent)))
				}
				return m.Forward(envelope.Address{Agent: to})
			}
		}
		b.serve(g, bus.AgentSpec{ID: "a"}, pass("b"))
		b.serve(h, bus.AgentSpec{ID: "b"}, pass("c"))
		b.serve(g, bus.AgentSpec{ID: "c"}, pass("a"))
		ask := func(text string, change func(*bus.Outgoing)) string {
			o := bus.Outgoing{To: envelope.Address{Agent: "a"}, From: "user", Payload: envelope.TextPayload(text)}
			if change != nil {
				change(&o)
			}
			s, err := g.AskAPI(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			b.pass(time.Second)
			return s.MessageID
		}
		tr, _, _ := g.Track(ask("for c", nil))
		if !tr.Facts.Replied || tr.Reply.Text() != "a and b" || tr.Reply.SourceAgent != "c" {
			b.Errorf("forwarded twice: %+v", tr.Facts)
		}
		// A to B to C to A: dead at C, and its sender, at another gateway's lane's end, is told.
		loop := g.facts(ask("round and round", nil))
		if !loop.Dead || loop.Class != envelope.ClassHops || !strings.Contains(loop.Reason, "a@jerry > b@bobby > c@jerry > a") {
			b.Errorf("loop: %+v", loop)
		}
		if f := g.facts(ask("last", func(o *bus.Outgoing) { o.Terminal = true })); !f.Dead || f.Class != envelope.ClassUndeliverable || !strings.Contains(f.Reason, "terminal") {
			b.Errorf("terminal: %+v", f)
		}
		if f := g.facts(ask("for c", func(o *bus.Outgoing) { o.MaxHops = 1 })); !f.Dead || f.Class != envelope.ClassHops || !strings.Contains(f.Reason, "2 hops, at most 1") {
			b.Errorf("max_hops: %+v", f)
		}
		b.stop(g, h)
	})
}

// Whatever agents do, the messages of one causal tree are no more than its first sender allowed.
func TestBudgetStopsARunaway(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		var calls atomic.Int64
		for i := range 6 {
			b.serve(g, bus.AgentSpec{ID: fmt.Sprintf("a%d", i)}, func(ctx context.Context, m *bus.Incoming) error {
				calls.Add(1)
				if err := m.Spend(10, 0); err != nil {
					return err
				}
				outs := []bus.Outgoing{}
				for k := range 6 {
					outs = append(outs, bus.Outgoing{To: envelope.Address{Agent: fmt.Sprintf("a%d", k)}, Payload: m.Envelope().Payload})
				}
				m.AskAll(ctx, outs)
				return m.Reply(envelope.TextPayload("done"))
			})
		}
		run := func(budget *envelope.Budget) (bus.Track, int64) {
			calls.Store(0)
			s, err := g.AskAPI(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "a0"}, From: "user", Payload: envelope.TextPayload("go"), MaxHops: 6, Budget: budget})
			if err != nil {
				b.Fatal(err)
			}
			b.pass(10 * time.Second)
			tr, _, _ := g.Track(s.MessageID)
			return tr, calls.Load()
		}
		if tr, n := run(&envelope.Budget{Messages: number(40)}); !tr.Facts.Replied || n > 41 || n < 5 {
			b.Errorf("%d handlings on a budget of 40 messages, %+v", n, tr.Facts)
		} else if tr.Reply.Budget == nil || *tr.Reply.Budget.Messages < 0 {
			b.Errorf("the answer brings back %+v", tr.Reply.Budget)
		}
		// 100 tokens, 10 each, shared out: at most 10 can begin with a full purse.
		if tr, n := run(&envelope.Budget{Tokens: number(100)}); tr.Facts.Dead || n > 12 {
			b.Errorf("%d handlings on 100 tokens, %+v", n, tr.Facts)
		}
		past := envelope.At(time.Now().Add(-time.Second))
		if _, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "a0"}, From: "user", Payload: envelope.TextPayload("go"), Budget: &envelope.Budget{Deadline: &past}}); err == nil {
			b.Error("a message was dispatched after its chain's deadline")
		} else if c := (*envelope.BudgetError)(nil); !errors.As(err, &c) {
			b.Error(err)
		}
		soon := envelope.At(time.Now().Add(2 * time.Second))
		b.serve(g, bus.AgentSpec{ID: "slow"}, func(context.Context, *bus.Incoming) error { return bus.RetryAfter(3*time.Second, errors.New("later")) })
		id := b.send(g, "slow", "x", func(o *bus.Outgoing) { o.Budget = &envelope.Budget{Deadline: &soon} })
		b.pass(5 * time.Second)
		if f := g.facts(id); !f.Dead || f.Class != envelope.ClassBudget {
			b.Errorf("past its deadline: %+v", f)
		}
		b.stop(g)
	})
}

// What a failed attempt spent is not there for the next one.
func TestRetriesSpendOneBudget(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		var left []int64
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error {
			left = append(left, *m.Budget().Tokens)
			if err := m.Spend(30, 0); err != nil {
				return err
			}
			return errors.New("the model gave nonsense")
		})
		id := b.send(g, "bob", "x", func(o *bus.Outgoing) { o.Budget = &envelope.Budget{Tokens: number(80)}; o.MaxAttempts = 50 })
		b.pass(5 * time.Minute)
		if f := g.facts(id); !f.Dead || f.Class != envelope.ClassBudget || len(left) != 3 || left[0] != 80 || left[1] != 50 || left[2] != 20 {
			b.Errorf("purse at each attempt %v, %+v", left, f)
		}
		b.stop(g)
	})
}

// A message that takes its process with it is poison in the end, however quickly it does so, and nobody
// who ran beside it is blamed.
func TestPoisonThatKillsTheProcess(t *testing.T) {
	inBubble(t, func(b *bubble) {
		sender := b.gateway("sender", nil)
		var bad, good atomic.Int64
		var crashed []*gw
		var ids []string
		start := func(n int) *gw {
			g := b.gateway(fmt.Sprintf("node-%d", n), nil)
			crashes := func() { b.crash(g) }
			b.serve(g, bus.AgentSpec{ID: "bob"}, func(ctx context.Context, m *bus.Incoming) error {
				if m.Envelope().Text() == "poison" {
					bad.Add(1)
					crashes() // within the first moment
					<-ctx.Done()
					return ctx.Err()
				}
				good.Add(1)
				return nil
			})
			return g
		}
		first := start(0)
		for i := range 10 {
			ids = append(ids, b.send(sender, "bob", fmt.Sprint("fine ", i), nil))
		}
		synctest.Wait()
		poison := b.send(sender, "bob", "poison", func(o *bus.Outgoing) { o.TTL = 24 * time.Hour })
		for i := range 10 {
			ids = append(ids, b.send(sender, "bob", fmt.Sprint("fine too ", i), func(o *bus.Outgoing) { o.TTL = 24 * time.Hour }))
		}
		crashed = append(crashed, first)
		for n := 1; n < 8 && !sender.facts(poison).Dead; n++ {
			b.pass(time.Minute)
			crashed = append(crashed, start(n))
			b.pass(5 * time.Minute)
		}
		if f := sender.facts(poison); !f.Dead || f.Class != envelope.ClassPoison {
			b.Errorf("poison: %+v", f)
		}
		// The first crash leaves no trace: then three that do.
		if n := bad.Load(); n > 4 {
			b.Errorf("%d processes died of it", n)
		}
		for _, id := range ids {
			if f := sender.facts(id); !f.Acked {
				b.Errorf("one beside it: %+v", f)
			}
		}
		b.stop(sender)
		b.stop(crashed...)
	})
}

// A conversation that is stuck holds up itself only, also when thousands wait in it; what
// waits is in the store and not in memory, and its order stands.
func TestStuckConversationIsSpilled(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		release := make(chan struct{})
		var order []string
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error {
			if m.Envelope().Text() == "first" {
				<-release
			}
			if m.Envelope().ConversationID == "stuck" {
				order = append(order, m.Envelope().Text())
			}
			return nil
		})
		stuck := func(o *bus.Outgoing) { o.ConversationID, o.TTL = "stuck", time.Hour }
		last := b.send(g, "bob", "first", stuck)
		const n = 3000
		for i := range n {
			last = b.send(g, "bob", fmt.Sprint(i), stuck)
			if i%500 == 499 {
				b.pass(2 * time.Second)
			}
		}
		b.pass(2 * time.Second)
		other := b.send(g, "bob", "other", nil)
		b.pass(time.Second)
		if !g.facts(other).Acked {
			b.Fatal("an unrelated conversation waits for a stuck one")
		}
		if got := b.count("pending/bob/"); got != n+1 {
			b.Errorf("%d records, want %d", got, n+1)
		}
		close(release)
		b.pass(10 * time.Second)
		if !g.facts(last).Acked || len(order) != n+1 || order[1] != "0" || order[n] != fmt.Sprint(n-1) {
			b.Fatalf("%d handled, last %+v", len(order), g.facts(last))
		}
		for i := range n {
			if order[i+1] != fmt.Sprint(i) {
				b.Fatalf("number %d came as %s", i, order[i+1])
			}
		}
		if got := b.count("pending/bob/"); got != 0 {
			b.Errorf("%d records are left", got)
		}
		b.stop(g)
	})
}

func TestInboxIsBounded(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", func(c *bus.Config) { c.MaxInbox = 10 })
		h := b.gateway("bobby", nil)
		b.serve(h, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		b.stop(h)
		var full *bus.InboxFullError
		sent := 0
		for range 20 {
			_, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload("x")})
			if err != nil {
				if !errors.As(err, &full) || !errors.Is(err, bus.ErrInboxFull) {
					b.Fatal(err)
				}
				break
			}
			sent++
		}
		if sent != 10 || full == nil || full.Waiting != 10 || !strings.Contains(full.Error(), "nobody owns it now") {
			b.Fatalf("%d were accepted, then %v", sent, full)
		}
		h = b.gateway("bobby", nil)
		b.serve(h, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		b.pass(time.Second)
		if id := b.send(g, "bob", "again", nil); id == "" {
			b.Error("no room after the inbox was drained")
		}
		b.pass(time.Second)
		b.stop(g, h)
	})
}

// A send that could not be written before it expired is refused, not written late.
func TestExpiresWhileTheStoreIsAway(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", nil)
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		b.pass(time.Second)
		g.store.Before(func(call string, _ []bus.Op) error {
			if call == "txn" {
				return fmt.Errorf("%w: away", bus.ErrUnavailable)
			}
			return nil
		})
		got := make(chan error, 1)
		go func() {
			_, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload("x"), TTL: 2 * time.Second})
			got <- err
		}()
		b.pass(30 * time.Second)
		g.store.Before(nil)
		b.pass(30 * time.Second)
		select {
		case err := <-got:
			if !errors.Is(err, bus.ErrExpired) {
				b.Errorf("%v", err)
			}
		default:
			b.Error("the sender still waits")
		}
		b.stop(g)
	})
}

func TestDeadLettersAreKeptForAWhile(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", func(c *bus.Config) { c.DeadRetention = time.Hour })
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error {
			return bus.Never(envelope.ClassPoison, errors.New("no"))
		})
		id := b.send(g, "bob", "x", nil)
		b.pass(50 * time.Minute)
		if b.count("deadletters/") != 1 {
			b.Fatal("gone before its time")
		}
		b.pass(20 * time.Minute)
		if b.count("deadletters/") != 0 || !strings.Contains(g.names(id), bus.EventPurged) {
			b.Errorf("still there; events %s", g.names(id))
		}
		b.stop(g)
	})
}

// What a gateway that is gone for good left behind is cleared by another one; its waiting mail is not.
func TestClearsAfterAGatewayThatIsGone(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("jerry", func(c *bus.Config) { c.ResultRetention = 10 * time.Minute })
		h := b.gateway("gone", func(c *bus.Config) { c.ResultRetention = 10 * time.Minute })
		hold := make(chan struct{})
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error { return m.Reply(m.Envelope().Payload) })
		b.serve(h, bus.AgentSpec{ID: "nobody"}, func(context.Context, *bus.Incoming) error { <-hold; return nil })
		big := strings.Repeat("x", envelope.MaxPayload+10)
		s, err := h.AskAPI(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload(big)})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := h.SendAll(b.Context(), bus.Fan{To: []envelope.Address{{Agent: "bob"}}, Message: bus.Outgoing{From: "user", Payload: envelope.TextPayload("leg")}}, false); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		if !h.facts(s.MessageID).Replied || b.count("blobs/gone/") == 0 || b.count("results/gone/") == 0 || b.count("fanouts/gone/") == 0 {
			b.Fatal("nothing was left to clear")
		}
		b.crash(h)
		close(hold)
		b.send(g, "nobody", "waits", func(o *bus.Outgoing) { o.TTL = 24 * time.Hour })
		b.pass(50 * time.Minute)
		if b.count("blobs/gone/") == 0 {
			b.Error("cleared before its time")
		}
		b.pass(30 * time.Minute)
		if n := b.count("blobs/gone/") + b.count("results/gone/") + b.count("fanouts/gone/"); n != 0 {
			b.Errorf("%d keys are left", n)
		}
		g.mu.Lock()
		strays := 0
		for _, ev := range g.events {
			if ev.Event == bus.EventStray && ev.To == "nobody" {
				strays++
			}
		}
		g.mu.Unlock()
		if strays != 1 {
			b.Errorf("%d reports of mail that waits for nobody", strays)
		}
		// The payloads of the living one go too.
		if b.pass(time.Hour); b.count("blobs/") != 0 {
			b.Errorf("%d chunks are left", b.count("blobs/"))
		}
		b.stop(g, h)
	})
}

// Slots that nobody will read are deleted: those that were taken while their gateway was away and that it has no other
// reason to look at, and those that no bell names, which a lost try left. What waits stays.
func TestSlotsAreSwept(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, h := b.gateway("jerry", nil), b.gateway("bobby", nil)
		hold := make(chan struct{})
		b.serve(h, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, func(context.Context, *bus.Incoming) error { <-hold; return nil })
		long := func(o *bus.Outgoing) { o.TTL, o.ConversationID = time.Hour, "one" }
		for range 5 {
			b.send(g, "bob", strings.Repeat("x", 9<<10), long)
		}
		if b.count("lanes/jerry/bob/") == 0 {
			b.Fatal("there are no slots to sweep")
		}
		b.crash(g)
		close(hold)
		b.pass(time.Minute)
		g2 := b.gateway("jerry", nil)
		b.pass(3 * time.Minute)
		if n := b.count("lanes/"); n != 0 {
			b.Errorf("%d slots are left of what was taken", n)
		}
		stray := []bus.Op{{Verb: bus.OpSet, Key: bus.Root + "lanes/jerry/bob/0000000000000099", Value: []byte("{}")}}
		if _, err := b.store.Txn(b.Context(), stray); err != nil {
			b.Fatal(err)
		}
		b.pass(61 * time.Second)
		if b.count("lanes/") != 1 {
			b.Error("a slot that no bell names went the first time that it was seen: its transaction may be on its way")
		}
		b.pass(2 * time.Minute)
		if n := b.count("lanes/"); n != 0 {
			b.Errorf("%d slots are left that no bell names", n)
		}
		b.stop(h)
		waits := b.send(g2, "bob", strings.Repeat("y", 9<<10), long)
		b.pass(5 * time.Minute)
		if f := g2.facts(waits); f.Acked || f.Dead {
			b.Errorf("what waits: %+v", f)
		}
		again := b.gateway("bobby", nil)
		b.serve(again, bus.AgentSpec{ID: "bob"}, func(context.Context, *bus.Incoming) error { return nil })
		b.pass(time.Minute)
		if f := g2.facts(waits); !f.Acked {
			b.Errorf("what waited: %+v", f)
		}
		b.stop(again, g2, g)
		// What a gateway that is gone left goes too.
		if _, err := b.store.Txn(b.Context(), stray); err != nil {
			b.Fatal(err)
		}
		last := b.gateway("last", nil)
		b.pass(70 * time.Minute)
		if n := b.count("lanes/"); n != 0 {
			b.Errorf("%d slots are left of a gateway that is gone", n)
		}
		b.stop(last)
	})
}

// A big entry is put into its slot before the transaction that names it. Who begins to read a new lane in between
// begins with what the bell holds, not with that slot.
func TestNewLaneBeginsWithItsBell(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, h := b.gateway("jerry", nil), b.gateway("bobby", nil)
		var got []string
		handler := func(_ context.Context, m *bus.Incoming) error {
			got = append(got, m.Envelope().Text()[:1])
			return nil
		}
		b.serve(h, bus.AgentSpec{ID: "bob"}, handler)
		b.stop(h)
		first := b.send(g, "bob", "1", nil)
		synctest.Wait()
		put, resume := make(chan struct{}), make(chan struct{})
		g.store.Before(func(call string, ops []bus.Op) error {
			if call == bustest.CallTxn && len(ops) > 1 && put != nil {
				close(put)
				put = nil
				<-resume
			}
			return nil
		})
		began := put
		go func() {
			_, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload("2" + strings.Repeat("x", 30<<10))})
			if err != nil {
				b.Error(err)
			}
		}()
		<-began
		if b.count("lanes/jerry/bob/") != 1 {
			b.Fatalf("%d slots while the transaction is on its way", b.count("lanes/jerry/bob/"))
		}
		again := b.gateway("bobby", nil)
		b.serve(again, bus.AgentSpec{ID: "bob"}, handler)
		b.pass(time.Second)
		close(resume)
		b.pass(time.Second)
		if !slices.Equal(got, []string{"1", "2"}) || !g.facts(first).Acked {
			b.Errorf("handled %q; the first: %+v", got, g.facts(first))
		}
		b.stop(again, g)
	})
}
