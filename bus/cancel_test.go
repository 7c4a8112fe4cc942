package bus_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// inTurn sends a message of a conversation.
func inTurn(conversation string) func(*bus.Outgoing) {
	return func(o *bus.Outgoing) { o.ConversationID, o.ReplyTo = conversation, "helper" }
}

// A cancelled message is dead at once, wherever it waits: for a place, for its turn, for a delay, for a retry; nothing of it runs later, also at the
// next owner, and what waits behind it goes on. One that is worked on is stopped.
func TestCancelMessage(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, other := b.gateway("owner", nil), b.gateway("other", nil)
		s := &shift{hold: make(chan struct{})}
		b.serve(g, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, s.handler("owner"))
		retrying := b.send(other, "bob", "once-1", inTurn("retry"))
		b.pass(time.Second)
		afterRetry := b.send(other, "bob", "after-retry", inTurn("retry"))
		delayed := b.send(other, "bob", "delayed-1", func(o *bus.Outgoing) {
			inTurn("delay")(o)
			o.TTL = 3 * time.Hour
			notBefore(time.Now().Add(time.Hour))(o)
		})
		b.pass(time.Second)
		afterDelay := b.send(other, "bob", "after-delay", inTurn("delay"))
		running := b.send(other, "bob", "hold-1", inTurn("run"))
		b.pass(time.Second)
		atDoor := b.send(other, "bob", "door-1", inTurn("door"))
		b.pass(2 * time.Second) // so long that those which wait have records of their own, and have left memory
		behind := b.send(other, "bob", "behind-1", inTurn("run"))
		b.pass(2 * time.Second)
		cancel := func(from *gw, id string) {
			b.Helper()
			class, err := from.CancelMessage(b.Context(), id, "admin")
			if err != nil || class != envelope.ClassCancelled {
				b.Fatalf("%s: %s, %v", id, class, err)
			}
			b.pass(time.Millisecond)
			if f := other.facts(id); !f.Dead || f.Class != envelope.ClassCancelled || f.Reason != "cancelled by admin" {
				b.Errorf("%s: %+v", id, f)
			}
		}
		before := s.all()
		for i, id := range []string{retrying, delayed, atDoor, behind, running} {
			cancel([]*gw{g, other}[i%2], id)
		}
		if len(s.stopped) != 1 || s.stopped[0].Error() != "cancelled by admin" {
			b.Errorf("the handler was stopped: %v", s.stopped)
		}
		b.pass(time.Second)
		for name, id := range map[string]string{"after-retry": afterRetry, "after-delay": afterDelay} {
			if !other.facts(id).Acked {
				b.Errorf("%s still waits: %+v", name, other.facts(id))
			}
		}
		// Neither at the next owner does anything of them run.
		heir := b.gateway("heir", nil)
		b.serve(heir, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, s.handler("heir"))
		b.stop(g)
		b.pass(3 * time.Hour)
		if ran := strings.TrimSpace(strings.TrimPrefix(s.all(), before)); ran != "owner:after-retry owner:after-delay" && ran != "owner:after-delay owner:after-retry" {
			b.Errorf("ran later: %s", ran)
		}
		if n := b.count("pending/"); n != 0 {
			b.Errorf("%d records", n)
		}
		for name, id := range map[string]string{"dead": running, "acked": afterRetry} {
			if _, err := heir.CancelMessage(b.Context(), id, "admin"); !errors.Is(err, bus.ErrEnded) {
				b.Errorf("%s: %v", name, err)
			}
		}
		if _, err := heir.CancelMessage(b.Context(), envelope.NewID(), "admin"); !errors.Is(err, bus.ErrNotFound) {
			b.Errorf("of nobody: %v", err)
		}
		// Redriven, it is handled.
		if _, err := heir.Redrive(b.Context(), bus.DeadLetterFilter{IDs: []string{behind}}, bus.RedriveOptions{By: "admin", TTL: time.Hour}); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		if !other.facts(behind).Acked {
			b.Errorf("redriven: %+v", other.facts(behind))
		}
		b.stop(other, heir)
	})
}

// A handler that ignores its end is left behind, and its answer refused. What may have had an outside effect does not end as merely cancelled.
func TestCancelWhatDoesNotListen(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, other := b.gateway("owner", nil), b.gateway("other", nil)
		hold := make(chan struct{})
		var late error
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(ctx context.Context, m *bus.Incoming) error {
			if m.Envelope().Text() == "posts" {
				p, err := m.Intend(ctx, "post", nil)
				if err != nil {
					return err
				}
				<-ctx.Done()
				if p.Check() == nil {
					b.Error("an effect was let through after the end")
				}
				return nil
			}
			<-hold
			late = m.Reply(envelope.TextPayload("too late"))
			return late
		})
		ask := func(text string) string {
			return b.send(other, "bob", text, func(o *bus.Outgoing) { o.ReplyTo, o.TTL = "other", time.Hour })
		}
		deaf, posts := ask("deaf"), ask("posts")
		b.pass(time.Second)
		began := time.Now()
		if class, err := other.CancelMessage(b.Context(), deaf, "admin"); err != nil || class != envelope.ClassCancelled || time.Since(began) > 2*time.Second {
			b.Errorf("deaf: %s, %v after %s", class, err, time.Since(began))
		}
		if class, err := other.CancelMessage(b.Context(), posts, "admin"); err != nil || class != envelope.ClassUnknown {
			b.Errorf("posts: %s, %v", class, err)
		}
		close(hold)
		b.pass(time.Minute)
		if !errors.Is(late, bus.ErrLeaseLost) {
			b.Errorf("the late answer: %v", late)
		}
		for id, class := range map[string]envelope.Class{deaf: envelope.ClassCancelled, posts: envelope.ClassUnknown} {
			if f := other.facts(id); !f.Dead || f.Class != class || f.Replied {
				b.Errorf("%s: %+v", class, f)
			}
		}
		b.stop(g, other)
	})
}

// A message that was passed on is cancelled where it is now, and who asked from a handler is told. Nobody can cancel the mesh's own orders.
func TestCancelWhatWasPassedOn(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, other := b.gateway("owner", nil), b.gateway("other", nil)
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error { return m.Forward(envelope.Address{Agent: "billy"}) })
		b.serve(other, bus.AgentSpec{ID: "billy"}, func(ctx context.Context, _ *bus.Incoming) error {
			<-ctx.Done()
			return ctx.Err()
		})
		var told error
		var question string
		b.serve(g, bus.AgentSpec{ID: "jerry"}, func(ctx context.Context, m *bus.Incoming) error {
			question = envelope.NewID()
			_, told = m.Ask(ctx, bus.Outgoing{ID: question, To: envelope.Address{Agent: "billy"}, Payload: envelope.TextPayload("?")})
			return nil
		})
		id := b.send(g, "bob", "go", nil)
		asks := b.send(g, "jerry", "go", nil)
		b.pass(time.Second)
		for _, id := range []string{id, question} {
			if class, err := g.CancelMessage(b.Context(), id, "admin"); err != nil || class != envelope.ClassCancelled {
				b.Errorf("%s, %v", class, err)
			}
		}
		b.pass(time.Second)
		var dead *bus.DeadLetterError
		if !errors.As(told, &dead) || dead.Class != envelope.ClassCancelled || !g.facts(asks).Acked {
			b.Errorf("who asked was told %v", told)
		}
		if f := g.facts(id); !f.Dead || f.Class != envelope.ClassCancelled {
			b.Errorf("passed on: %+v", f)
		}
		g.mu.Lock()
		order := ""
		for _, ev := range g.events {
			if ev.Capability == "mesh.task.cancel" {
				order = ev.MessageID
			}
		}
		g.mu.Unlock()
		if _, err := g.CancelMessage(b.Context(), order, "admin"); err == nil {
			b.Error("an order of the mesh was cancelled")
		}
		b.stop(g, other)
	})
}

// What lies so far back that its owner has not read it is not cancelled, and that is said; through the lane that it came in the order comes behind it.
func TestCancelWhatIsNotRead(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, other := b.gateway("owner", nil), b.gateway("other", nil)
		hold := make(chan struct{})
		b.serve(g, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, func(context.Context, *bus.Incoming) error {
			<-hold
			return nil
		})
		hour := func(o *bus.Outgoing) { o.TTL = time.Hour }
		var wg sync.WaitGroup
		for range 2200 {
			wg.Go(func() { b.send(other, "bob", "x", hour) })
		}
		wg.Wait()
		last := b.send(other, "bob", "last", hour)
		b.pass(time.Second)
		if _, err := g.CancelMessage(b.Context(), last, "admin"); !errors.Is(err, bus.ErrUnread) {
			b.Errorf("%v", err)
		}
		close(hold)
		b.pass(time.Minute)
		if !other.facts(last).Acked {
			b.Errorf("%+v", other.facts(last))
		}
		b.stop(g, other)
	})
}

// What waits behind a message that was cancelled, and that message when it is redriven, do not overtake those before it, also when the owner dies then.
func TestCancelKeepsTheOrder(t *testing.T) {
	for _, redriven := range []bool{false, true} {
		inBubble(t, func(b *bubble) {
			g, heir, other := b.gateway("owner", nil), b.gateway("heir", nil), b.gateway("other", nil)
			s := &shift{hold: make(chan struct{})}
			b.serve(g, bus.AgentSpec{ID: "bob", MaxConcurrent: 1}, s.handler("owner"))
			b.serve(heir, bus.AgentSpec{ID: "bob", MaxConcurrent: 1, Rank: 1}, s.handler("heir"))
			b.send(other, "bob", "hold-1", inTurn("run"))
			b.pass(time.Second)
			b.send(other, "bob", "first", inTurn("talk")) // at the door, without a record
			second := b.send(other, "bob", "second", inTurn("talk"))
			b.pass(time.Millisecond)
			if _, err := other.CancelMessage(b.Context(), second, "admin"); err != nil {
				b.Fatal(err)
			}
			last := "third"
			if redriven {
				last = "second"
				if r, err := other.Redrive(b.Context(), bus.DeadLetterFilter{IDs: []string{second}}, bus.RedriveOptions{By: "admin"}); err != nil || len(r) != 1 || !r[0].Done {
					b.Fatal(r, err)
				}
			} else {
				b.send(other, "bob", "third", inTurn("talk"))
				b.pass(5 * time.Second) // it has a record now
			}
			b.crash(g)
			close(s.hold)
			b.pass(time.Minute)
			if got, talk := s.all(), "heir:first heir:"+last; !strings.Contains(got, talk) {
				b.Errorf("in the order %s, want %s", got, talk)
			}
			b.stop(heir, other)
			g.store.Before(nil)
			_ = g.Stop(context.Background())
		})
	}
}
