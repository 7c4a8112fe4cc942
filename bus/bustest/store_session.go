package bustest

import (
	"errors"
	"slices"
	"sync"

	"github.com/gatemesh/gatemesh/bus"
)

func testLock(f *fixture) {
	sessions := make([]string, 4)
	for i := range sessions {
		sessions[i] = f.session()
	}
	won := make(chan string, len(sessions))
	var all sync.WaitGroup
	for _, s := range sessions {
		all.Go(func() {
			_, err := f.Txn(f.ctx, []bus.Op{lock(f.key("owner"), s, s)})
			var te *bus.TxnError
			switch {
			case err == nil:
				won <- s
			case !errors.As(err, &te) || !te.Refused(0):
				f.Errorf("Txn: %v", err)
			}
		})
	}
	all.Wait()
	close(won)
	var winners []string
	for s := range won {
		winners = append(winners, s)
	}
	if len(winners) != 1 {
		f.Fatalf("%d sessions hold one lock", len(winners))
	}
	p := f.has("owner", winners[0])
	if p.Session != winners[0] {
		f.Errorf("locked by %q, want %q", p.Session, winners[0])
	}
	// It is told from a free key when listed, too.
	pairs, err := f.List(f.ctx, f.key("owner"))
	if err != nil || len(pairs) != 1 || pairs[0].Session != winners[0] {
		f.Errorf("List: %+v, %v", pairs, err)
	}
}

func testUnlock(f *fixture) {
	a, b := f.session(), f.session()
	f.txn(lock(f.key("k"), "held", a))
	f.txn(bus.Op{Verb: bus.OpUnlock, Key: f.key("k"), Value: []byte("free"), Session: a})
	if p := f.has("k", "free"); p.Session != "" {
		f.Errorf("still locked by %q", p.Session)
	}
	f.txn(lock(f.key("k"), "next", b)) // handed over at once
	f.destroy(a)                       // no longer its business
	if p := f.has("k", "next"); p.Session != b {
		f.Errorf("locked by %q, want %q", p.Session, b)
	}
}

func testSessionEnd(f *fixture) {
	a, b := f.session(), f.session()
	f.txn(
		lock(f.key("a1"), "x", a), lock(f.key("dir/a2"), "x", a), lock(f.key("b"), "x", b),
		lock(f.key("released"), "x", a), lock(f.key("replaced"), "x", a), set(f.key("free"), "x"),
	)
	f.txn(
		bus.Op{Verb: bus.OpUnlock, Key: f.key("released"), Value: []byte("y"), Session: a},
		bus.Op{Verb: bus.OpDelete, Key: f.key("replaced")},
		set(f.key("replaced"), "y"),
		set(f.key("a1"), "written by whom it may concern"),
	)
	f.destroy(a)
	keys, err := f.Keys(f.ctx, f.prefix, "")
	if want := f.keys("b", "free", "released", "replaced"); err != nil || !slices.Equal(keys, want) {
		f.Errorf("left: %q, %v; want %q", keys, err, want)
	}
	f.destroy(a) // again is no error
	f.destroy(unknownSession)
	f.lockSoon("a1", "mine", b)
	if p := f.has("a1", "mine"); p.Session != b {
		f.Errorf("locked by %q, want %q", p.Session, b)
	}
}

func testSessionEndWakes(f *fixture) {
	prefix := f.key("w/")
	s := f.session()
	f.set("w/about", "resident")
	f.txn(lock(f.key("w/status"), "up", s))
	w := f.watch(prefix, 0)
	c := f.watching(f.ctx, prefix, w.index)
	f.destroy(s)
	after := f.until(prefix, f.receive(c), func(p []bus.Pair) bool { return len(p) == 1 })
	if after.index <= w.index {
		f.Errorf("index went from %d to %d", w.index, after.index)
	}
}

func testFencing(f *fixture) {
	a, b := f.session(), f.session()
	f.txn(lock(f.key("owner"), "a", a))
	f.set("cursor", "0")
	write := func(session, v string) []bus.Op {
		return []bus.Op{set(f.key("cursor"), v), checkSession(f.key("owner"), session)}
	}
	f.txn(write(a, "1")...)
	f.destroy(a)
	f.refused(write(a, "2"), 1) // nobody owns it
	f.has("cursor", "1")
	f.refused([]bus.Op{lock(f.key("owner"), "a", a)}, 0) // nor can it come back
	f.lockSoon("owner", "b", b)
	f.refused(write(a, "3"), 1) // somebody else does
	f.has("cursor", "1")
	f.txn(write(b, "4")...)
	f.has("cursor", "4")
	if p := f.has("owner", "b"); p.Session != b {
		f.Errorf("owned by %q, want %q", p.Session, b)
	}
}

func testRenew(f *fixture) {
	s := f.session()
	if err := f.RenewSession(f.ctx, s); err != nil {
		f.Errorf("RenewSession: %v", err)
	}
	f.destroy(s)
	if err := f.RenewSession(f.ctx, s); !errors.Is(err, bus.ErrNoSession) {
		f.Errorf("RenewSession of an ended session: %v, want ErrNoSession", err)
	}
	if err := f.RenewSession(f.ctx, unknownSession); !errors.Is(err, bus.ErrNoSession) {
		f.Errorf("RenewSession of an unknown session: %v, want ErrNoSession", err)
	}
	if a, b := f.session(), f.session(); a == b {
		f.Errorf("two sessions are both %q", a)
	}
}
