package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

func nothing(context.Context, *bus.Incoming) error { return nil }

// ownedBy waits until a gateway sees that an owner, and returns how long that took.
func (b *bubble) ownedBy(g *gw, duty, owner string) time.Duration {
	b.Helper()
	begin := time.Now()
	for g.OwnerOf(duty) != owner {
		if time.Since(begin) > time.Minute {
			b.Fatalf("%s is owned by %q, not %q", duty, g.OwnerOf(duty), owner)
		}
		b.pass(5 * time.Millisecond)
	}
	return time.Since(begin)
}

// cutOff ends a gateway without its doing anything about it.
func (b *bubble) cutOff(g *gw, session bool) {
	b.Helper()
	g.store.Before(func(string, []bus.Op) error { return fmt.Errorf("%w: crashed", bus.ErrUnavailable) })
	if !session {
		return
	}
	p, err := b.store.Get(b.Context(), "openclaw/owners/gateways/"+g.Gateway())
	if err != nil || p == nil {
		b.Fatalf("%v %v", p, err)
	}
	if err := b.store.DestroySession(b.Context(), p.Session); err != nil {
		b.Fatal(err)
	}
}

// The dead cost nothing: the third choice takes over at once when the first two are gone; while the second is alive it goes first.
func TestLineOfChoices(t *testing.T) {
	inBubble(t, func(b *bubble) {
		one, two, three := b.gateway("one", nil), b.gateway("two", nil), b.gateway("three", nil)
		all := []string{"one", "two", "three"}
		for i, g := range []*gw{one, two, three} {
			b.serve(g, bus.AgentSpec{ID: "bob", Rank: i, Candidates: all}, nothing)
		}
		b.ownedBy(three, "bob", "one")
		b.pass(10 * time.Second)
		b.cutOff(one, true)
		if d := b.ownedBy(three, "bob", "two"); d > 100*time.Millisecond {
			b.Errorf("the second choice took it after %s", d)
		}
		b.cutOff(two, true)
		if d := b.ownedBy(three, "bob", "three"); d > 100*time.Millisecond {
			b.Errorf("the third choice took it after %s", d)
		}
		d := three.Duties()
		if len(d) != 1 || d[0].Owner != "three" || d[0].Token == 0 || len(d[0].Candidates) != 3 || d[0].Candidates[0].Live || !d[0].Candidates[2].Live || d[0].Next != "" {
			b.Errorf("%+v", d)
		}
		b.stop(one, two, three)
	})
}

// Duties of one rank do not all end on one gateway, neither when all start nor when one dies; and nothing moves back by itself.
func TestSpread(t *testing.T) {
	inBubble(t, func(b *bubble) {
		gws := []*gw{b.gateway("one", nil), b.gateway("two", nil), b.gateway("three", nil)}
		const n = 30
		all := []string{"one", "two", "three"}
		for _, g := range gws {
			for i := range n {
				if err := g.Serve(bus.AgentSpec{ID: fmt.Sprintf("duty-%d", i), Candidates: all, Spread: true}, bus.HandlerFunc(nothing)); err != nil {
					t.Fatal(err)
				}
			}
		}
		b.pass(5 * time.Second)
		count := func() map[string]int {
			c := map[string]int{}
			for i := range n {
				c[gws[2].OwnerOf(fmt.Sprintf("duty-%d", i))]++
			}
			return c
		}
		if c := count(); c["one"] < 4 || c["two"] < 4 || c["three"] < 4 {
			b.Errorf("at the start: %v", c)
		}
		was := count()
		b.cutOff(gws[0], true)
		b.pass(time.Second)
		c := count()
		if c["one"] != 0 || c["two"] == was["two"] || c["three"] == was["three"] || c["two"]+c["three"] != n {
			b.Errorf("after the end of one: %v, before %v", c, was)
		}
		gws[0].store.Before(nil)
		b.pass(time.Minute)
		if again := count(); fmt.Sprint(again) != fmt.Sprint(c) {
			b.Errorf("it came back, and %v became %v", c, again)
		}
		b.stop(gws...)
	})
}

// A handful of duties, as a mesh has, spreads as evenly as it can: at the start, when a gateway crashes, and when one stops. The names are those that a hash alone
// puts on one gateway.
func TestSpreadOfAFew(t *testing.T) {
	duties := []string{"channel-slack-default", "channel-webchat-default", "channel-whatsapp-default", "channel-discord-default", "cron", "echo"}
	spread := func(b *bubble, g *gw, want ...int) {
		t.Helper()
		c := map[string]int{}
		for _, d := range duties {
			c[g.OwnerOf(d)]++
		}
		var got []int
		for _, n := range c {
			got = append(got, n)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || c[""] != 0 {
			b.Errorf("%v, want %v", c, want)
		}
	}
	mesh := func(b *bubble, names ...string) (gws []*gw) {
		for _, name := range names {
			gws = append(gws, b.gateway(name, nil))
		}
		for _, g := range gws {
			for _, d := range duties {
				if err := g.Serve(bus.AgentSpec{ID: d, Spread: true, Candidates: names}, bus.HandlerFunc(nothing)); err != nil {
					t.Fatal(err)
				}
			}
		}
		b.pass(20 * time.Second)
		return gws
	}
	inBubble(t, func(b *bubble) {
		gws := mesh(b, "jerry", "bobby", "billy")
		spread(b, gws[1], 2, 2, 2)
		b.cutOff(gws[0], true)
		b.pass(100 * time.Millisecond) // less than a turn: nobody waited for another one
		spread(b, gws[1], 3, 3)
		b.stop(gws...)
	})
	inBubble(t, func(b *bubble) {
		gws := mesh(b, "jerry", "bobby", "billy", "anna")
		for _, d := range duties {
			if _, err := gws[0].Transfer(b.Context(), d, bus.TransferOptions{To: "jerry", By: "op"}); err != nil {
				t.Fatal(err)
			}
		}
		b.pass(time.Second)
		spread(b, gws[1], 6)
		b.stop(gws[0])
		b.pass(time.Second)
		spread(b, gws[1], 2, 2, 2)
		b.stop(gws[1:]...)
	})
}

// An operator moves a duty: its owner hands it to who is named, or to whoever is next, and does not take it back.
func TestTransfer(t *testing.T) {
	inBubble(t, func(b *bubble) {
		one, two, three := b.gateway("one", nil), b.gateway("two", nil), b.gateway("three", nil)
		var mu sync.Mutex // one term's beginning is ordered after the end of the one before by the store alone
		var tokens []uint64
		r := &resident{handle: nothing, reside: func(ctx context.Context, tm *bus.Term) error {
			mu.Lock()
			tokens = append(tokens, tm.Token())
			mu.Unlock()
			<-ctx.Done()
			return nil
		}}
		for i, g := range []*gw{one, two, three} {
			if err := g.Serve(bus.AgentSpec{ID: "bob", Rank: i}, r); err != nil {
				t.Fatal(err)
			}
		}
		b.ownedBy(three, "bob", "one")
		b.pass(10 * time.Second)
		move := func(to, want string) {
			t.Helper()
			begin := time.Now()
			c, err := two.Transfer(b.Context(), "bob", bus.TransferOptions{To: to, By: "op"})
			if err != nil || c.To != want || c.Token == 0 || time.Since(begin) > 200*time.Millisecond {
				b.Fatalf("%+v %v after %s", c, err, time.Since(begin))
			}
			b.pass(20 * time.Second)
			if o := two.OwnerOf("bob"); o != want {
				b.Errorf("a while later it is owned by %s, not %s", o, want)
			}
		}
		move("three", "three") // the last in line
		move("", "one")
		move("", "two")
		mu.Lock()
		if len(tokens) != 4 || tokens[0] >= tokens[1] || tokens[1] >= tokens[2] || tokens[2] >= tokens[3] {
			b.Errorf("tokens %v", tokens)
		}
		mu.Unlock()
		for _, c := range []struct{ duty, to, says string }{
			{"bob", "four", "may not own"},
			{"carol", "", "no gateway may own"},
			{"bob", "one", ""},
		} {
			_, err := three.Transfer(b.Context(), c.duty, bus.TransferOptions{To: c.to, By: "op"})
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				b.Errorf("%+v: %v", c, err)
			}
		}
		// An owner that hangs: it does not answer, and can be passed over.
		b.cutOff(one, false)
		ctx, cancel := context.WithTimeout(b.Context(), 3*time.Second)
		_, err := three.Transfer(ctx, "bob", bus.TransferOptions{To: "three", By: "op"})
		cancel()
		if err == nil || !strings.Contains(err.Error(), "--force") {
			b.Errorf("%v", err)
		}
		c, err := three.Transfer(b.Context(), "bob", bus.TransferOptions{To: "three", By: "op", Force: true})
		if err != nil || c.To != "three" || c.From != "one" {
			b.Errorf("%+v %v", c, err)
		}
		one.store.Before(nil)
		b.pass(time.Minute)
		if o := two.OwnerOf("bob"); o != "three" {
			b.Errorf("owned by %s", o)
		}
		if err := two.Stop(b.Context()); err != nil {
			b.Error(err)
		}
		if _, err := one.Transfer(b.Context(), "bob", bus.TransferOptions{To: "two", By: "op"}); !errors.Is(err, bus.ErrCannotOwn) {
			b.Errorf("to one that is gone: %v", err)
		}
		b.stop(one, three)
	})
}

// seated is a store whose own server may lead.
type seated struct {
	bus.Store
	leads *atomic.Bool
}

func (s seated) Leads(context.Context) (bool, error) { return s.leads.Load(), nil }

// What resides does not stay where the store's leader is, when another one of its rank is there; an agent's work does, and so does
// what has an order.
func TestAwayFromTheLeader(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var flags [2]atomic.Bool
		seat := func(i int) func(*bus.Config) {
			return func(c *bus.Config) { c.Store = seated{c.Store, &flags[i]} }
		}
		one, two := b.gateway("one", seat(0)), b.gateway("two", seat(1))
		defer b.stop(one, two)
		h := &resident{handle: nothing, reside: func(ctx context.Context, _ *bus.Term) error { <-ctx.Done(); return nil }}
		for i, g := range []*gw{one, two} {
			for _, spec := range []bus.AgentSpec{{ID: "account", Spread: true}, {ID: "agent"}, {ID: "ranked", Rank: i}} {
				var err error
				if spec.ID == "agent" {
					err = g.Serve(spec, bus.HandlerFunc(nothing))
				} else {
					err = g.Serve(spec, h)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		b.pass(20 * time.Second)
		owner := func(duty string) string { return one.OwnerOf(duty) }
		was, agent := owner("account"), owner("agent")
		lead := map[string]int{"one": 0, "two": 1}[was]
		other := []string{"two", "one"}[lead]
		flags[lead].Store(true)
		b.pass(9 * time.Second)
		if owner("account") != was {
			b.Error("it moved at once: the seat may change again")
		}
		b.pass(20 * time.Second)
		if got := owner("account"); got != other {
			b.Errorf("the leader is at %s, and so is the account: %s", was, got)
		}
		if owner("agent") != agent || owner("ranked") != "one" {
			b.Errorf("agent moved from %s to %s, ranked is at %s", agent, owner("agent"), owner("ranked"))
		}
		// An operator wants it there: it stays.
		if _, err := one.Transfer(b.Context(), "account", bus.TransferOptions{To: was, By: "op"}); err != nil {
			t.Fatal(err)
		}
		b.pass(time.Minute)
		if got := owner("account"); got != was {
			b.Errorf("an operator wanted it at %s: %s", was, got)
		}
		if _, err := one.Transfer(b.Context(), "account", bus.TransferOptions{To: other, By: "op"}); err != nil {
			t.Fatal(err)
		}
		// Both lead, as each says: it goes nowhere.
		flags[1-lead].Store(true)
		b.pass(time.Minute)
		if got := owner("account"); got != other {
			b.Errorf("it went back to %s", got)
		}
	})
}

// A gateway that stops has given its accounts to the one that is there, which is the leader's. That one does not hand them back to who
// is still ending its work.
func TestNotBackToWhoStops(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var leads, no atomic.Bool
		leads.Store(true)
		one := b.gateway("one", func(c *bus.Config) { c.Store = seated{c.Store, &leads} })
		two := b.gateway("two", func(c *bus.Config) { c.Store = seated{c.Store, &no} })
		var terms, working atomic.Int32
		h := func(n *atomic.Int32) *resident {
			return &resident{handle: nothing, reside: func(ctx context.Context, _ *bus.Term) error { n.Add(1); <-ctx.Done(); return nil }}
		}
		var other atomic.Int32
		for g, n := range map[*gw]*atomic.Int32{one: &terms, two: &other} {
			if err := g.Serve(bus.AgentSpec{ID: "account", Spread: true}, h(n)); err != nil {
				t.Fatal(err)
			}
		}
		b.serve(two, bus.AgentSpec{ID: "slow"}, func(context.Context, *bus.Incoming) error {
			working.Add(1)
			<-time.After(4 * time.Second)
			return nil
		})
		b.pass(40 * time.Second)
		if o := one.OwnerOf("account"); o != "two" {
			t.Fatalf("the account is at %q", o)
		}
		terms.Store(0)
		b.send(one, "slow", "work", nil)
		b.pass(time.Second)
		if working.Load() != 1 {
			t.Fatal("nothing is at work")
		}
		stopped := make(chan error, 1)
		go func() { stopped <- two.Stop(b.Context()) }()
		b.pass(2 * time.Second)
		if o, n := one.OwnerOf("account"), terms.Load(); o != "one" || n != 1 {
			b.Errorf("while two ends its work the account is at %q, in term %d", o, n)
		}
		if err := <-stopped; err != nil {
			b.Error(err)
		}
		b.pass(30 * time.Second)
		if o, n := one.OwnerOf("account"), terms.Load(); o != "one" || n != 1 {
			b.Errorf("afterwards it is at %q, in term %d", o, n)
		}
		b.stop(one)
	})
}

// blind is a store whose watches of the owners say nothing while it is shut.
type blind struct {
	bus.Store
	shut *atomic.Bool
	open chan struct{}
}

func (s blind) Watch(ctx context.Context, prefix string, after uint64) ([]bus.Pair, uint64, error) {
	pairs, index, err := s.Store.Watch(ctx, prefix, after)
	if strings.HasPrefix(prefix, "openclaw/owners") && s.shut.Load() {
		select {
		case <-s.open:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	return pairs, index, err
}

// Who was cut off does not know yet that its duty is elsewhere. An operator who wants it back there is not told that it is there.
func TestTransferAfterBeingCutOff(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var shut atomic.Bool
		open := make(chan struct{})
		one := b.gateway("one", func(c *bus.Config) { c.Store = blind{c.Store, &shut, open} })
		two := b.gateway("two", nil)
		defer b.stop(one, two)
		b.serve(one, bus.AgentSpec{ID: "bob"}, nothing)
		b.serve(two, bus.AgentSpec{ID: "bob", Rank: 1}, nothing)
		b.pass(10 * time.Second)
		shut.Store(true)
		if c, err := two.Transfer(b.Context(), "bob", bus.TransferOptions{To: "two", By: "op", Force: true}); err != nil || c.To != "two" {
			b.Errorf("%+v %v", c, err)
		}
		if o := one.OwnerOf("bob"); o != "one" {
			b.Errorf("one knows already: %q", o)
		}
		time.AfterFunc(time.Second, func() { shut.Store(false); close(open) })
		c, err := one.Transfer(b.Context(), "bob", bus.TransferOptions{To: "one", By: "op"})
		if err != nil || c.From != "two" || c.To != "one" || c.Token == 0 {
			b.Errorf("%+v %v", c, err)
		}
		b.pass(time.Second)
		if o := two.OwnerOf("bob"); o != "one" {
			b.Errorf("it is at %q", o)
		}
	})
}

// A handler that waits for something does not hold up who stops; its message goes on at the next owner.
func TestPauseEndsWithTheTerm(t *testing.T) {
	inBubble(t, func(b *bubble) {
		one, two := b.gateway("one", nil), b.gateway("two", nil)
		var attempts []string
		var mu sync.Mutex
		handle := func(g string) bus.HandlerFunc {
			return func(ctx context.Context, m *bus.Incoming) error {
				mu.Lock()
				attempts = append(attempts, fmt.Sprintf("%s %d", g, m.Attempt()))
				mu.Unlock()
				return m.Pause(ctx, 20*time.Second)
			}
		}
		b.serve(one, bus.AgentSpec{ID: "bob"}, handle("one"))
		b.serve(two, bus.AgentSpec{ID: "bob", Rank: 1}, handle("two"))
		id := b.send(two, "bob", "hello", nil)
		b.pass(5 * time.Second)
		began := time.Now()
		b.stop(one)
		if d := time.Since(began); d > time.Second {
			b.Errorf("the stop took %s", d)
		}
		b.pass(30 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if got := strings.Join(attempts, ", "); got != "one 1, two 2" {
			b.Errorf("attempts: %s", got)
		}
		if f := two.facts(id); !f.Acked {
			b.Errorf("%+v", f)
		}
		b.stop(two)
	})
}

// Who handed a duty on leaves it to the next owner, and takes it at once when that one ends.
func TestTakenBackFromWhoEnded(t *testing.T) {
	inBubble(t, func(b *bubble) {
		one, two := b.gateway("one", nil), b.gateway("two", nil)
		b.serve(one, bus.AgentSpec{ID: "duty"}, nothing)
		b.serve(two, bus.AgentSpec{ID: "duty"}, nothing)
		b.ownedBy(one, "duty", one.OwnerOf("duty"))
		from, to := one, two
		if one.OwnerOf("duty") == "two" {
			from, to = two, one
		}
		b.pass(10 * time.Second)
		if _, err := from.Transfer(b.Context(), "duty", bus.TransferOptions{To: to.Gateway(), By: "op"}); err != nil {
			t.Fatal(err)
		}
		b.ownedBy(from, "duty", to.Gateway())
		b.cutOff(to, true)
		if d := b.ownedBy(from, "duty", from.Gateway()); d > 100*time.Millisecond {
			t.Errorf("it was taken back after %s", d)
		}
		b.stop(from, to)
	})
}

// Who has just taken a duty says so, although its picture of all locks comes later.
func TestOwnerOfWhatWasJustTaken(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var self atomic.Pointer[bus.Bus]
		var said atomic.Value
		one := b.gateway("one", func(c *bus.Config) {
			observe := c.Observe
			c.Observe = func(ev bus.Event) {
				if ev.Event == bus.EventOwned && ev.To == "duty" {
					said.Store(self.Load().OwnerOf("duty"))
				}
				observe(ev)
			}
		})
		self.Store(one.Bus)
		b.serve(one, bus.AgentSpec{ID: "duty"}, nothing)
		b.ownedBy(one, "duty", "one")
		if got := said.Load(); got != "one" {
			t.Errorf("as it was taken it was owned by %q", got)
		}
		b.stop(one)
	})
}
