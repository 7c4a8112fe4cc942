package bustest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// fixture is what one subtest works with.
type fixture struct {
	*testing.T
	bus.Store
	ctx    context.Context
	prefix string
}

// key returns a key below the subtest's prefix.
func (f *fixture) key(name string) string { return f.prefix + name }

func (f *fixture) keys(names ...string) []string {
	keys := make([]string, len(names))
	for i, n := range names {
		keys[i] = f.key(n)
	}
	return keys
}

func set(key, value string) bus.Op {
	return bus.Op{Verb: bus.OpSet, Key: key, Value: []byte(value)}
}

// txn must succeed.
func (f *fixture) txn(ops ...bus.Op) []bus.Pair {
	f.Helper()
	res, err := f.Txn(f.ctx, ops)
	if err != nil {
		f.Fatalf("Txn: %v", err)
	}
	if len(res) != len(ops) {
		f.Fatalf("Txn of %d ops returned %d pairs", len(ops), len(res))
	}
	return res
}

// set writes one key and returns its modify index.
func (f *fixture) set(name, value string) uint64 {
	f.Helper()
	return f.txn(set(f.key(name), value))[0].ModifyIndex
}

// refused must be refused by exactly the ops given.
func (f *fixture) refused(ops []bus.Op, by ...int) {
	f.Helper()
	_, err := f.Txn(f.ctx, ops)
	var te *bus.TxnError
	if !errors.As(err, &te) {
		f.Fatalf("Txn: %v, want a *TxnError", err)
	}
	var got []int
	for _, op := range te.Failed {
		got = append(got, op.Op)
		if op.What == "" {
			f.Errorf("op %d does not say why it refused", op.Op)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, by) {
		f.Fatalf("refused by ops %v, want %v: %v", got, by, te.Failed)
	}
}

// get returns the pair or nil.
func (f *fixture) get(name string) *bus.Pair {
	f.Helper()
	p, err := f.Get(f.ctx, f.key(name))
	if err != nil {
		f.Fatalf("Get: %v", err)
	}
	return p
}

// has checks the value of a key.
func (f *fixture) has(name, value string) *bus.Pair {
	f.Helper()
	p := f.get(name)
	if p == nil {
		f.Fatalf("%s is missing, want %q", name, value)
	}
	if string(p.Value) != value {
		f.Fatalf("%s = %q, want %q", name, p.Value, value)
	}
	return p
}

// lacks checks that there is no such key.
func (f *fixture) lacks(name string) {
	f.Helper()
	if p := f.get(name); p != nil {
		f.Fatalf("%s = %q, want no such key", name, p.Value)
	}
}

// session opens a session that ends with the subtest.
func (f *fixture) session() string {
	f.Helper()
	id, err := f.NewSession(f.ctx, bus.SessionOptions{Name: "bustest", TTL: sessionTTL})
	if err != nil {
		f.Fatalf("NewSession: %v", err)
	}
	if id == "" {
		f.Fatal("NewSession returned no id")
	}
	f.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f.DestroySession(ctx, id); err != nil && !errors.Is(err, bus.ErrClosed) {
			f.Errorf("clean up: DestroySession: %v", err)
		}
	})
	return id
}

func (f *fixture) destroy(id string) {
	f.Helper()
	if err := f.DestroySession(f.ctx, id); err != nil {
		f.Fatalf("DestroySession: %v", err)
	}
}

func lock(key, value, session string) bus.Op {
	return bus.Op{Verb: bus.OpLock, Key: key, Value: []byte(value), Session: session}
}

func checkSession(key, session string) bus.Op {
	return bus.Op{Verb: bus.OpCheckSession, Key: key, Session: session}
}

// lockSoon locks a key whose last lock was lost, for which a store may have a
// short delay.
func (f *fixture) lockSoon(name, value, session string) {
	f.Helper()
	for {
		_, err := f.Txn(f.ctx, []bus.Op{lock(f.key(name), value, session)})
		var te *bus.TxnError
		switch {
		case err == nil:
			return
		case !errors.As(err, &te):
			f.Fatalf("lock: %v", err)
		}
	}
}

// woken is what a Watch returned.
type woken struct {
	pairs []bus.Pair
	index uint64
	err   error
}

// watching starts a Watch that may wait.
func (f *fixture) watching(ctx context.Context, prefix string, after uint64) <-chan woken {
	c := make(chan woken, 1)
	go func() {
		pairs, index, err := f.Watch(ctx, prefix, after)
		c <- woken{pairs, index, err}
	}()
	return c
}

// watch must return pairs.
func (f *fixture) watch(prefix string, after uint64) woken {
	f.Helper()
	return f.receive(f.watching(f.ctx, prefix, after))
}

func (f *fixture) receive(c <-chan woken) woken {
	f.Helper()
	select {
	case w := <-c:
		if w.err != nil {
			f.Fatalf("Watch: %v", w.err)
		}
		if w.index == 0 {
			f.Fatal("Watch returned index 0, which asks for an immediate return")
		}
		return w
	case <-f.ctx.Done():
		f.Fatal("Watch did not wake")
		panic("unreachable")
	}
}

// until watches on from w until what it sees satisfies cond.
func (f *fixture) until(prefix string, w woken, cond func([]bus.Pair) bool) woken {
	f.Helper()
	for !cond(w.pairs) {
		w = f.watch(prefix, w.index)
	}
	return w
}

// quiet checks that watches from the given index do not wake while during runs and
// some time after.
func (f *fixture) quiet(prefix string, after uint64, during func()) {
	f.Helper()
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	early := f.watching(ctx, prefix, after) // waits while it happens
	during()
	late := f.watching(ctx, prefix, after) // comes when it has happened
	// A timer and not a deadline on ctx, which a store may tell its server about.
	timer := time.AfterFunc(silence, cancel)
	defer timer.Stop()
	for _, c := range []<-chan woken{early, late} {
		if w := <-c; !errors.Is(w.err, context.Canceled) {
			f.Fatalf("Watch woke: index %d after %d, %d pairs, err %v", w.index, after, len(w.pairs), w.err)
		}
	}
}

func names(pairs []bus.Pair) []string {
	keys := make([]string, len(pairs))
	for i, p := range pairs {
		keys[i] = p.Key
	}
	return keys
}

func value(pairs []bus.Pair, key string) string {
	for _, p := range pairs {
		if p.Key == key {
			return string(p.Value)
		}
	}
	return ""
}
