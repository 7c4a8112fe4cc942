package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// overseen is a store that hears of a gateway's checks, or does not.
type overseen struct {
	bus.Store
	// says: nil is yes.
	says *atomic.Pointer[error]
	// asked counts, unless it is nil.
	asked *atomic.Int32
}

func (s overseen) Oversees(context.Context, []string) error {
	if s.asked != nil {
		s.asked.Add(1)
	}
	if err := s.says.Load(); err != nil {
		return *err
	}
	return nil
}

// hears is the configuration of a gateway of whose checks the store hears, and its switch: what is stored there is the store's answer.
func hears(first error) (func(*bus.Config), *atomic.Pointer[error]) {
	var says atomic.Pointer[error]
	if first != nil {
		says.Store(&first)
	}
	return func(c *bus.Config) {
		c.Store = overseen{Store: c.Store, says: &says}
		c.SessionChecks = []string{"service:" + c.Gateway}
	}, &says
}

var errMute = fmt.Errorf("%w: nobody told it", bus.ErrUnavailable)

// unseen is what a gateway says of another one that may have a duty.
func unseen(g *gw, duty, name string) bool {
	for _, d := range g.Duties() {
		for _, c := range d.Candidates {
			if d.Duty == duty && c.Gateway == name {
				return c.Unseen
			}
		}
	}
	return false
}

// Who just came back has the fewest duties and would get the next one that is free. Until the store hears of its checks others come first, and no
// operator moves anything there; then it is as good as any. With a new session it has to be seen anew.
func TestUnseenComesLast(t *testing.T) {
	inBubble(t, func(b *bubble) {
		seen, _ := hears(nil)
		one, two := b.gateway("one", seen), b.gateway("two", seen)
		duties := []string{"first", "second"}
		serve := func(g *gw) {
			for _, id := range duties {
				b.serve(g, bus.AgentSpec{ID: id, Spread: true}, nothing)
			}
		}
		serve(one)
		serve(two)
		b.pass(10 * time.Second)
		if one.OwnerOf("first") == one.OwnerOf("second") {
			if _, err := one.Transfer(b.Context(), "second", bus.TransferOptions{By: "op"}); err != nil {
				t.Fatal(err)
			}
		}
		mute, says := hears(errMute)
		three := b.gateway("three", mute)
		serve(three)
		b.pass(10 * time.Second)
		if !unseen(one, "first", "three") || !unseen(three, "first", "three") || unseen(three, "first", "one") {
			t.Error("it is not told who is unseen")
		}
		if _, err := one.Transfer(b.Context(), "first", bus.TransferOptions{To: "three", By: "op"}); !errors.Is(err, bus.ErrCannotOwn) {
			t.Errorf("moved to who is unseen: %v", err)
		}
		of := one.OwnerOf("first")
		survivor, lost := one, two
		if of == "one" {
			survivor, lost = two, one
		}
		b.cutOff(lost, true)
		if d := b.ownedBy(survivor, "first", survivor.Gateway()); d > 100*time.Millisecond {
			t.Errorf("it was owned again after %s", d)
		}

		says.Store(nil)
		b.pass(2 * time.Second)
		if unseen(survivor, "first", "three") {
			t.Error("it is still unseen")
		}
		if c, err := survivor.Transfer(b.Context(), "first", bus.TransferOptions{To: "three", By: "op"}); err != nil || c.To != "three" {
			t.Errorf("%+v %v", c, err)
		}

		says.Store(&errMute)
		p, err := b.store.Get(b.Context(), "openclaw/owners/gateways/three")
		if err != nil || p == nil {
			t.Fatal(err)
		}
		b.pass(time.Minute)
		if unseen(survivor, "first", "three") {
			t.Error("it was seen, and its session is the same")
		}
		if err := b.store.DestroySession(b.Context(), p.Session); err != nil {
			t.Fatal(err)
		}
		b.pass(30 * time.Second)
		if !unseen(survivor, "first", "three") {
			t.Error("nobody saw that the store hears of the checks of the new session")
		}
		says.Store(nil)
		b.pass(2 * time.Second)
		if unseen(survivor, "first", "three") {
			t.Error("with its new session it is unseen for ever")
		}
		lost.store.Before(nil)
		b.stop(survivor, three, lost)
	})
}

// A gateway that is alone takes everything at once, seen or not; one of several that are not seen takes what it took before anybody asked; and who may not
// ask is believed.
func TestUnseenTakesWhatNobodyElseTakes(t *testing.T) {
	inBubble(t, func(b *bubble) {
		mute, _ := hears(errMute)
		one := b.gateway("one", mute)
		begin := time.Now()
		b.serve(one, bus.AgentSpec{ID: "duty", Spread: true}, nothing)
		if d := b.ownedBy(one, "duty", "one"); d > 100*time.Millisecond || time.Since(begin) > 200*time.Millisecond {
			t.Errorf("alone it took the duty after %s", d)
		}
		two := b.gateway("two", mute)
		b.serve(two, bus.AgentSpec{ID: "duty", Spread: true}, nothing)
		b.pass(10 * time.Second)
		b.cutOff(one, true)
		if d := b.ownedBy(two, "duty", "two"); d > 100*time.Millisecond {
			t.Errorf("the last one took it after %s", d)
		}
		forbidden, _ := hears(fmt.Errorf("%w: no service:write", bus.ErrForbidden))
		three := b.gateway("three", forbidden)
		b.serve(three, bus.AgentSpec{ID: "duty", Spread: true}, nothing)
		b.pass(time.Second)
		if unseen(two, "duty", "three") {
			t.Error("who may not ask is unseen for ever")
		}
		b.stop(one, two, three)
	})
}

// Each question writes, so nobody asks a store that is in trouble; when it is well again the gateway is seen as soon as ever.
func TestNobodyAsksWhileTheStoreIsDown(t *testing.T) {
	inBubble(t, func(b *bubble) {
		mute, says := hears(errMute)
		var asked atomic.Int32
		one := b.gateway("one", func(c *bus.Config) {
			mute(c)
			s := c.Store.(overseen)
			s.asked = &asked
			c.Store = s
		})
		if err := one.Serve(bus.AgentSpec{ID: "duty", Spread: true}, bus.HandlerFunc(nothing)); err != nil {
			t.Fatal(err)
		}
		b.pass(10 * time.Second)
		if n := asked.Load(); n < 5 {
			t.Errorf("it was asked %d times in 10 s", n)
		}
		b.cutOff(one, false)
		b.pass(30 * time.Second) // it notices
		before := asked.Load()
		b.pass(time.Minute)
		if n := asked.Load() - before; n != 0 {
			t.Errorf("it was asked %d times while it was down", n)
		}
		says.Store(nil)
		one.store.Before(nil)
		for end := time.Now().Add(time.Minute); unseen(one, "duty", "one"); b.pass(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it is unseen for ever")
			}
		}
		b.stop(one)
	})
}

// Who is not seen leaves the others time to be slow, and takes what they do not take.
func TestUnseenLeavesTime(t *testing.T) {
	for owner, slow := range map[string]time.Duration{"two": 1500 * time.Millisecond, "three": 30 * time.Second} {
		t.Run(owner, func(t *testing.T) {
			inBubble(t, func(b *bubble) {
				seen, _ := hears(nil)
				mute, _ := hears(errMute)
				one, two, three := b.gateway("one", seen), b.gateway("two", seen), b.gateway("three", mute)
				for _, g := range []*gw{one, two, three} {
					if err := g.Serve(bus.AgentSpec{ID: "duty", Spread: true}, bus.HandlerFunc(nothing)); err != nil {
						t.Fatal(err)
					}
					b.ownedBy(one, "duty", "one")
				}
				b.pass(10 * time.Second)
				two.store.Before(func(_ string, ops []bus.Op) error {
					if slices.ContainsFunc(ops, func(o bus.Op) bool { return o.Verb == bus.OpLock && o.Key == bus.Root+"owners/agents/duty" }) {
						<-time.After(slow)
					}
					return nil
				})
				b.cutOff(one, true)
				if d := b.ownedBy(three, "duty", owner); owner == "three" && (d < 2*time.Second || d > 3*time.Second) {
					t.Errorf("who is unseen took it after %s", d)
				}
				b.stop(one, two, three)
			})
		})
	}
}

// What resides where the store's leader is waits for a better place that is seen.
func TestNotAwayToUnseen(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var leads, no atomic.Bool
		leads.Store(true)
		one := b.gateway("one", func(c *bus.Config) { c.Store = seated{c.Store, &leads} })
		h := &resident{handle: nothing, reside: func(ctx context.Context, _ *bus.Term) error { <-ctx.Done(); return nil }}
		mute, says := hears(errMute)
		two := b.gateway("two", func(c *bus.Config) {
			c.Store = seated{c.Store, &no}
			mute(c)
		})
		for _, g := range []*gw{one, two} {
			if err := g.Serve(bus.AgentSpec{ID: "account", Spread: true}, h); err != nil {
				t.Fatal(err)
			}
			b.ownedBy(one, "account", "one")
		}
		b.pass(time.Minute)
		if o := two.OwnerOf("account"); o != "one" {
			t.Errorf("it is at %q", o)
		}
		says.Store(nil)
		b.pass(10 * time.Second)
		if o := two.OwnerOf("account"); o != "two" {
			t.Errorf("seen, and it is at %q", o)
		}
		b.stop(one, two)
	})
}

// A gateway that begins leaves their turn to better choices that may be starting too. That it is not seen yet, as nobody is then, makes nobody better.
func TestUnseenAtTheStart(t *testing.T) {
	atOnce := func(first error) (n int) {
		inBubble(t, func(b *bubble) {
			var duties []string
			for i := range 12 {
				duties = append(duties, fmt.Sprintf("duty-%d", i))
			}
			serve := func(g *gw) {
				for _, id := range duties {
					if err := g.Serve(bus.AgentSpec{ID: id, Spread: true}, bus.HandlerFunc(nothing)); err != nil {
						t.Fatal(err)
					}
				}
			}
			config, _ := hears(first)
			one := b.gateway("one", config)
			serve(one)
			b.pass(time.Minute)
			b.stop(one)
			two := b.gateway("two", config)
			serve(two)
			b.pass(100 * time.Millisecond)
			for _, id := range duties {
				if two.OwnerOf(id) == "two" {
					n++
				}
			}
			b.stop(two)
		})
		return n
	}
	seen, not := atOnce(nil), atOnce(errMute)
	if seen == 0 || seen == 12 || seen != not {
		t.Errorf("seen it takes %d of 12 at once, unseen %d", seen, not)
	}
}
