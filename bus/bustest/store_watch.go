package bustest

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

func testWatchFirst(f *fixture) {
	f.set("w/about", "resident")
	f.set("w/b", "1")
	w := f.watch(f.key("w/"), 0)
	if want := f.keys("w/about", "w/b"); !slices.Equal(names(w.pairs), want) {
		f.Errorf("watch returned %q, want %q", names(w.pairs), want)
	}
	if value(w.pairs, f.key("w/b")) != "1" {
		f.Errorf("watch returned %+v", w.pairs)
	}
	// Of nothing, too.
	if w := f.watch(f.key("none/"), 0); len(w.pairs) != 0 {
		f.Errorf("watch returned %q", names(w.pairs))
	}
}

func testWatchWakes(f *fixture) {
	prefix := f.key("w/")
	f.set("w/about", "resident")
	w := f.watch(prefix, 0)
	for _, step := range []struct {
		what string
		do   func()
		seen func([]bus.Pair) bool
	}{
		{"create", func() { f.set("w/a", "1") }, func(p []bus.Pair) bool { return value(p, f.key("w/a")) == "1" }},
		{"change", func() { f.set("w/a", "2") }, func(p []bus.Pair) bool { return value(p, f.key("w/a")) == "2" }},
		{"create deeper", func() { f.set("w/d/e/f", "1") }, func(p []bus.Pair) bool { return value(p, f.key("w/d/e/f")) == "1" }},
		{"delete", func() { f.txn(bus.Op{Verb: bus.OpDelete, Key: f.key("w/a")}) }, func(p []bus.Pair) bool { return value(p, f.key("w/a")) == "" }},
		{"delete tree", func() { f.txn(bus.Op{Verb: bus.OpDeleteTree, Key: f.key("w/d/")}) }, func(p []bus.Pair) bool { return len(p) == 1 }},
		{"delete the last key", func() { f.txn(bus.Op{Verb: bus.OpDelete, Key: f.key("w/about")}) }, func(p []bus.Pair) bool { return len(p) == 0 }},
	} {
		before := w
		c := f.watching(f.ctx, prefix, w.index)
		step.do()
		w = f.until(prefix, f.receive(c), step.seen)
		if w.index <= before.index {
			f.Errorf("%s: index went from %d to %d", step.what, before.index, w.index)
		}
	}

	// One key is a prefix as well.
	f.set("one", "1")
	w = f.watch(f.key("one"), 0)
	c := f.watching(f.ctx, f.key("one"), w.index)
	f.set("one", "2")
	f.until(f.key("one"), f.receive(c), func(p []bus.Pair) bool { return value(p, f.key("one")) == "2" })
}

func testWatchBeside(f *fixture) {
	prefix := f.key("a/b/")
	f.set("a/b/about", "resident") // Consul wakes waiters on an empty prefix for anything
	f.set("a/bc", "0")
	f.set("a/bc/tree", "0")
	w := f.watch(prefix, 0)
	f.quiet(prefix, w.index, func() {
		f.set("a/bc", "1")                                         // shares the prefix but for the slash
		f.set("a/b", "1")                                          // is the prefix but for the slash
		f.set("a/c/b/", "1")                                       // beside
		f.set("a/a", "1")                                          // before it in key order
		f.txn(bus.Op{Verb: bus.OpDelete, Key: f.key("a/bc")})      // deletions count as changes
		f.txn(bus.Op{Verb: bus.OpDeleteTree, Key: f.key("a/bc/")}) // in trees, too
		f.txn(bus.Op{Verb: bus.OpDelete, Key: f.key("a/b/none")})  // nothing to delete
		f.refused([]bus.Op{                                        // refused, so nothing changed
			set(f.key("a/b/refused"), "x"),
			{Verb: bus.OpCheckNotExists, Key: f.key("a/b/about")},
		}, 1)
	})
}

func testWatchBetween(f *fixture) {
	prefix := f.key("w/")
	f.set("w/about", "resident")
	f.set("w/a", "1")
	w := f.watch(prefix, 0)

	f.set("w/a", "2")
	w = f.watch(prefix, w.index) // must not wait
	if value(w.pairs, f.key("w/a")) != "2" {
		w = f.until(prefix, w, func(p []bus.Pair) bool { return value(p, f.key("w/a")) == "2" })
	}

	// A deletion leaves nothing that could carry its index.
	f.txn(bus.Op{Verb: bus.OpDelete, Key: f.key("w/a")})
	w = f.until(prefix, f.watch(prefix, w.index), func(p []bus.Pair) bool { return len(p) == 1 })

	// Come and gone in between.
	f.set("w/b", "1")
	f.txn(bus.Op{Verb: bus.OpDelete, Key: f.key("w/b")})
	if again := f.watch(prefix, w.index); again.index <= w.index {
		f.Errorf("index went from %d to %d", w.index, again.index)
	}
}

func testWatchMerges(f *fixture) {
	prefix := f.key("w/")
	f.set("w/about", "resident")
	w := f.watch(prefix, 0)
	for i := range 20 {
		f.set("w/n", strconv.Itoa(i))
	}
	f.set("w/m", "1")
	w = f.watch(prefix, w.index)
	if value(w.pairs, f.key("w/n")) != "19" || value(w.pairs, f.key("w/m")) != "1" {
		f.Errorf("one wake-up for all shows %+v", w.pairs)
	}
	f.quiet(prefix, w.index, func() {}) // they were one
}

func testWatchContext(f *fixture) {
	f.set("w/about", "resident")
	w := f.watch(f.key("w/"), 0)
	ctx, cancel := context.WithCancel(f.ctx)
	c := f.watching(ctx, f.key("w/"), w.index)
	cancel()
	if got := <-c; !errors.Is(got.err, context.Canceled) {
		f.Errorf("cancelled: %v, want context.Canceled", got.err)
	}
	ctx, cancel = context.WithTimeout(f.ctx, 10*time.Millisecond)
	defer cancel()
	if got := <-f.watching(ctx, f.key("w/"), w.index); !errors.Is(got.err, context.DeadlineExceeded) {
		f.Errorf("deadline: %v, want context.DeadlineExceeded", got.err)
	}
}

func testClose(f *fixture) {
	f.set("w/about", "resident")
	w := f.watch(f.key("w/"), 0)
	c := f.watching(f.ctx, f.key("w/"), w.index)
	f.txn(bus.Op{Verb: bus.OpDeleteTree, Key: f.prefix}) // while it can
	w = f.receive(c)
	c = f.watching(f.ctx, f.key("w/"), w.index)
	if err := f.Close(); err != nil {
		f.Fatalf("Close: %v", err)
	}
	select {
	case got := <-c:
		if !errors.Is(got.err, bus.ErrClosed) {
			f.Errorf("Watch: %v, want ErrClosed", got.err)
		}
	case <-f.ctx.Done():
		f.Fatal("Watch outlives its store")
	}
	if err := f.Close(); err != nil {
		f.Errorf("second Close: %v", err)
	}
	for name, err := range f.everyCall(f.ctx) {
		if !errors.Is(err, bus.ErrClosed) {
			f.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
}

// everyCall makes each call that can fail.
func (f *fixture) everyCall(ctx context.Context) map[string]error {
	errs := make(map[string]error)
	_, errs["Get"] = f.Get(ctx, f.key("x"))
	_, errs["List"] = f.List(ctx, f.prefix)
	_, errs["Keys"] = f.Keys(ctx, f.prefix, "/")
	_, errs["Txn"] = f.Txn(ctx, []bus.Op{set(f.key("x"), "x")})
	_, errs["reading Txn"] = f.Txn(ctx, []bus.Op{{Verb: bus.OpGet, Key: f.key("x")}})
	_, _, errs["Watch"] = f.Watch(ctx, f.prefix, 0)
	_, errs["NewSession"] = f.NewSession(ctx, bus.SessionOptions{TTL: sessionTTL})
	errs["RenewSession"] = f.RenewSession(ctx, unknownSession)
	errs["DestroySession"] = f.DestroySession(ctx, unknownSession)
	return errs
}
