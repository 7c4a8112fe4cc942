package bustest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

const (
	// patience bounds a subtest: nothing in it should take nearly as long.
	patience = 30 * time.Second
	// silence is how long a watch must stay quiet to count as not woken.
	silence = 300 * time.Millisecond
	// sessionTTL outlasts every subtest (Consul's minimum is 10 s). Expiry is each
	// store's own to test: here it would have to be waited for.
	sessionTTL = 2 * patience
)

// Store runs the contract of [bus.Store] against the stores that open returns. It
// is called once for every subtest and closes what it opened by t.Cleanup (the
// suite may have closed it before). All may be the same server: each subtest keeps
// to a random key prefix of its own below "bustest/", and removes it afterwards.
func Store(t *testing.T, open func(t *testing.T) bus.Store) {
	for _, test := range []struct {
		name string
		run  func(*fixture)
	}{
		{"get", testGet},
		{"list", testList},
		{"keys", testKeys},
		{"put", testPut},
		{"txn results", testTxnResults},
		{"txn verbs", testVerbs},
		{"txn sees its own writes", testOwnWrites},
		{"txn names every refusing op and writes nothing", testRefusals},
		{"txn is seen whole or not at all", testIsolation},
		{"indices grow over the whole store", testIndices},
		{"reads see what was answered", testReadYourWrites},
		{"concurrent cas loses nothing", testCounter},
		{"limits", testLimits},
		{"watch returns at once without an index", testWatchFirst},
		{"watch wakes on a change below prefix", testWatchWakes},
		{"watch does not wake on a change beside prefix", testWatchBeside},
		{"watch does not miss what happened between two calls", testWatchBetween},
		{"watch merges changes", testWatchMerges},
		{"watch ends with its context", testWatchContext},
		{"watch ends with the store", testClose},
		{"calls obey their context", testContext},
		{"lock excludes other sessions", testLock},
		{"unlock keeps the key", testUnlock},
		{"a session's end deletes what it locks", testSessionEnd},
		{"a session's end wakes watches", testSessionEndWakes},
		{"a deposed owner is refused", testFencing},
		{"session renewal", testRenew},
		{"describe", testDescribe},
	} {
		t.Run(strings.ReplaceAll(test.name, " ", "-"), func(t *testing.T) {
			s := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			f := &fixture{T: t, Store: s, ctx: ctx, prefix: "bustest/" + rand.Text() + "/"}
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				_, err := s.Txn(ctx, []bus.Op{{Verb: bus.OpDeleteTree, Key: f.prefix}})
				if err != nil && !errors.Is(err, bus.ErrClosed) {
					t.Errorf("clean up: %v", err)
				}
			})
			test.run(f)
		})
	}
}

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

func testGet(f *fixture) {
	f.lacks("a")
	wrote := f.txn(set(f.key("a"), "one"))[0]
	p := f.has("a", "one")
	if p.Key != f.key("a") || p.Session != "" {
		f.Errorf("got %+v", p)
	}
	if p.ModifyIndex == 0 || p.CreateIndex != p.ModifyIndex {
		f.Errorf("a new key has create index %d, modify index %d", p.CreateIndex, p.ModifyIndex)
	}
	if p.ModifyIndex != wrote.ModifyIndex || p.CreateIndex != wrote.CreateIndex {
		f.Errorf("Get and Txn disagree: %+v, %+v", p, wrote)
	}

	f.set("a", "two")
	q := f.has("a", "two")
	if q.CreateIndex != p.CreateIndex || q.ModifyIndex <= p.ModifyIndex {
		f.Errorf("rewritten: %d/%d, was %d/%d", q.CreateIndex, q.ModifyIndex, p.CreateIndex, p.ModifyIndex)
	}

	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	f.set("binary", string(all))
	f.has("binary", string(all))
	f.set("empty", "")
	f.has("empty", "")
	f.set("grüße/мир/世界 +%?&=#", "utf-8")
	f.has("grüße/мир/世界 +%?&=#", "utf-8")

	f.lacks("binar") // a prefix is not a key
	f.lacks("binary/")
}

func testList(f *fixture) {
	for _, k := range []string{"b/2", "a", "b/10", "b", "bc", "b/1/x", "c"} {
		f.set(k, "value of "+k)
	}
	for _, test := range []struct {
		prefix string
		want   []string
	}{
		{"b/", []string{"b/1/x", "b/10", "b/2"}},
		{"b", []string{"b", "b/1/x", "b/10", "b/2", "bc"}}, // a string prefix, not a folder
		{"b/1", []string{"b/1/x", "b/10"}},
		{"", []string{"a", "b", "b/1/x", "b/10", "b/2", "bc", "c"}},
		{"none/", nil},
	} {
		pairs, err := f.List(f.ctx, f.key(test.prefix))
		if err != nil {
			f.Fatalf("List: %v", err)
		}
		if got, want := names(pairs), f.keys(test.want...); !slices.Equal(got, want) {
			f.Errorf("List(%q) = %q, want %q", test.prefix, got, want)
		}
		for _, p := range pairs {
			if want := "value of " + strings.TrimPrefix(p.Key, f.prefix); string(p.Value) != want || p.ModifyIndex == 0 {
				f.Errorf("listed %+v, want value %q", p, want)
			}
		}
	}
}

func testKeys(f *fixture) {
	for _, k := range []string{"a", "b/1/x", "b/1/y", "b/2", "b/3/", "bc/1", "c::d::e"} {
		f.set(k, k)
	}
	for _, test := range []struct {
		prefix, separator string
		want              []string
	}{
		{"", "", []string{"a", "b/1/x", "b/1/y", "b/2", "b/3/", "bc/1", "c::d::e"}},
		{"b/", "", []string{"b/1/x", "b/1/y", "b/2", "b/3/"}},
		{"", "/", []string{"a", "b/", "bc/", "c::d::e"}},
		{"b/", "/", []string{"b/1/", "b/2", "b/3/"}},
		{"b", "/", []string{"b/", "bc/"}},
		{"b/1/", "/", []string{"b/1/x", "b/1/y"}},
		{"c", "::", []string{"c::"}},
		{"none/", "/", nil},
	} {
		got, err := f.Keys(f.ctx, f.key(test.prefix), test.separator)
		if err != nil {
			f.Fatalf("Keys: %v", err)
		}
		if want := f.keys(test.want...); !slices.Equal(got, want) {
			f.Errorf("Keys(%q, %q) = %q, want %q", test.prefix, test.separator, got, want)
		}
	}
}

func testPut(f *fixture) {
	key := f.key("put")
	put := func(value string, index uint64, want bool) {
		f.Helper()
		ok, err := f.Put(f.ctx, key, []byte(value), index)
		if err != nil || ok != want {
			f.Fatalf("put at %d: %v, %v, want %v", index, ok, err, want)
		}
	}
	put("one", 0, true)
	put("two", 0, false)
	p := f.has("put", "one")
	put("two", p.ModifyIndex, true)
	put("three", p.ModifyIndex, false)
	f.has("put", "two")
	big := strings.Repeat("x", 500<<10)
	put(big, f.get("put").ModifyIndex, true)
	f.has("put", big)
	if got, err := f.Read(f.ctx, key); err != nil || string(got) != big {
		f.Errorf("read: %d bytes, %v", len(got), err)
	}
	if got, err := f.Read(f.ctx, f.key("nothing")); err != nil || got != nil {
		f.Errorf("read of nothing: %q, %v", got, err)
	}
	if _, err := f.Put(f.ctx, f.key("over"), make([]byte, 513<<10), 0); !errors.Is(err, bus.ErrTooLarge) {
		f.Errorf("over the limit: %v", err)
	}
	f.lacks("over")
}

func testTxnResults(f *fixture) {
	session := f.session()
	held := f.txn(lock(f.key("held"), "mine", session))[0]
	if held.Key != f.key("held") || held.Session != session || held.ModifyIndex == 0 || held.CreateIndex != held.ModifyIndex {
		f.Errorf("lock returned %+v", held)
	}
	old := f.set("old", "before")
	f.set("doomed", "x")
	f.set("tree/a", "x")

	res := f.txn(
		bus.Op{Verb: bus.OpGet, Key: f.key("old")},
		bus.Op{Verb: bus.OpGet, Key: f.key("missing")},
		set(f.key("old"), "after"),
		bus.Op{Verb: bus.OpCAS, Key: f.key("new"), Value: []byte("new")},
		bus.Op{Verb: bus.OpDelete, Key: f.key("doomed")},
		bus.Op{Verb: bus.OpDelete, Key: f.key("missing")},
		bus.Op{Verb: bus.OpDeleteTree, Key: f.key("tree/")},
		checkSession(f.key("held"), session),
		bus.Op{Verb: bus.OpCheckIndex, Key: f.key("held"), Index: held.ModifyIndex},
		bus.Op{Verb: bus.OpCheckNotExists, Key: f.key("missing")},
		lock(f.key("also"), "mine", session),
		bus.Op{Verb: bus.OpUnlock, Key: f.key("also"), Value: []byte("free"), Session: session},
		bus.Op{Verb: bus.OpGet, Key: f.key("old")},
	)
	if p := res[0]; p.Key != f.key("old") || string(p.Value) != "before" || p.ModifyIndex != old {
		f.Errorf("get returned %+v, want %q at %d", p, "before", old)
	}
	if p := res[1]; p.Key != "" || p.Value != nil || p.ModifyIndex != 0 {
		f.Errorf("get of a missing key returned %+v, want a zero Pair", p)
	}
	if p := res[2]; p.Key != f.key("old") || p.CreateIndex != old || p.ModifyIndex <= old || p.Value != nil {
		f.Errorf("set returned %+v", p)
	}
	at := res[2].ModifyIndex
	if p := res[3]; p.Key != f.key("new") || p.CreateIndex != at || p.ModifyIndex != at || p.Value != nil {
		f.Errorf("cas returned %+v, want both indices %d", p, at)
	}
	for i, name := range map[int]string{4: "doomed", 5: "missing", 6: "tree/", 7: "held", 8: "held", 9: "missing"} {
		p := res[i]
		if p.Key != f.key(name) || p.Value != nil || p.CreateIndex != 0 || p.ModifyIndex != 0 || p.Session != "" {
			f.Errorf("op %d returned %+v, want only key %q", i, p, f.key(name))
		}
	}
	if p := res[10]; p.Session != session || p.Value != nil {
		f.Errorf("lock returned %+v, want session %s", p, session)
	}
	if p := res[11]; p.Key != f.key("also") || p.Session != "" || p.Value != nil || p.ModifyIndex != at {
		f.Errorf("unlock returned %+v", p)
	}
	if p := res[12]; string(p.Value) != "after" || p.ModifyIndex != at {
		f.Errorf("get of what was just set returned %+v", p)
	}
	f.has("old", "after")
	f.has("new", "new")
	f.has("also", "free")
	f.lacks("doomed")
	f.lacks("tree/a")
	if p := f.has("held", "mine"); p.ModifyIndex != held.ModifyIndex || p.Session != session {
		f.Errorf("checks changed the key: %+v", p)
	}

	// Reads and checks alone need no write.
	res = f.txn(
		bus.Op{Verb: bus.OpGet, Key: f.key("old")},
		bus.Op{Verb: bus.OpGet, Key: f.key("missing")},
		checkSession(f.key("held"), session),
	)
	if string(res[0].Value) != "after" || res[1].Key != "" || res[2].Key != f.key("held") {
		f.Errorf("a reading transaction returned %+v", res)
	}
	res = f.txn(bus.Op{Verb: bus.OpGet, Key: f.key("old")})
	if string(res[0].Value) != "after" {
		f.Errorf("a transaction of one get returned %+v", res)
	}
}

func testVerbs(f *fixture) {
	session, other := f.session(), f.session()
	const stale = 1 // no key of this suite was written by a store's first commit
	for _, test := range []struct {
		name string
		// there: the key exists with value "old"; locked: by session.
		there, locked bool
		op            bus.Op // without key; Index 0 of want is replaced, see index
		index         string // "own": the key's modify index; "stale": another
		refused       bool
		want          string // value afterwards; "": no such key
		unlocked      bool   // the lock is gone afterwards
	}{
		{name: "set creates", op: bus.Op{Verb: bus.OpSet}, want: "new"},
		{name: "set replaces", there: true, op: bus.Op{Verb: bus.OpSet}, want: "new"},
		{name: "set keeps the lock", there: true, locked: true, op: bus.Op{Verb: bus.OpSet}, want: "new"},

		{name: "cas 0 creates", op: bus.Op{Verb: bus.OpCAS}, want: "new"},
		{name: "cas 0 refuses a key", there: true, op: bus.Op{Verb: bus.OpCAS}, refused: true, want: "old"},
		{name: "cas replaces", there: true, op: bus.Op{Verb: bus.OpCAS}, index: "own", want: "new"},
		{name: "cas keeps the lock", there: true, locked: true, op: bus.Op{Verb: bus.OpCAS}, index: "own", want: "new"},
		{name: "cas refuses another index", there: true, op: bus.Op{Verb: bus.OpCAS}, index: "stale", refused: true, want: "old"},
		{name: "cas refuses a missing key", op: bus.Op{Verb: bus.OpCAS}, index: "stale", refused: true},

		{name: "get", there: true, op: bus.Op{Verb: bus.OpGet}, want: "old"},
		{name: "get of a missing key", op: bus.Op{Verb: bus.OpGet}},

		{name: "delete", there: true, op: bus.Op{Verb: bus.OpDelete}},
		{name: "delete of a missing key", op: bus.Op{Verb: bus.OpDelete}},
		{name: "delete of a locked key", there: true, locked: true, op: bus.Op{Verb: bus.OpDelete}},

		{name: "delete-cas", there: true, op: bus.Op{Verb: bus.OpDeleteCAS}, index: "own"},
		{name: "delete-cas refuses another index", there: true, op: bus.Op{Verb: bus.OpDeleteCAS}, index: "stale", refused: true, want: "old"},
		{name: "delete-cas of a missing key", op: bus.Op{Verb: bus.OpDeleteCAS}, index: "stale"},

		{name: "delete-tree", there: true, op: bus.Op{Verb: bus.OpDeleteTree}},
		{name: "delete-tree of nothing", op: bus.Op{Verb: bus.OpDeleteTree}},

		{name: "lock creates", op: bus.Op{Verb: bus.OpLock, Session: other}, want: "new"},
		{name: "lock takes a free key", there: true, op: bus.Op{Verb: bus.OpLock, Session: other}, want: "new"},
		{name: "lock again writes", there: true, locked: true, op: bus.Op{Verb: bus.OpLock, Session: session}, want: "new"},
		{name: "lock refuses another session", there: true, locked: true, op: bus.Op{Verb: bus.OpLock, Session: other}, refused: true, want: "old"},
		{name: "lock refuses an unknown session", op: bus.Op{Verb: bus.OpLock, Session: unknownSession}, refused: true},
		{name: "lock refuses no session", op: bus.Op{Verb: bus.OpLock}, refused: true},

		{name: "unlock", there: true, locked: true, op: bus.Op{Verb: bus.OpUnlock, Session: session}, want: "new", unlocked: true},
		{name: "unlock refuses another session", there: true, locked: true, op: bus.Op{Verb: bus.OpUnlock, Session: other}, refused: true, want: "old"},
		{name: "unlock refuses a free key", there: true, op: bus.Op{Verb: bus.OpUnlock, Session: session}, refused: true, want: "old"},
		{name: "unlock refuses a missing key", op: bus.Op{Verb: bus.OpUnlock, Session: session}, refused: true},
		{name: "unlock refuses an unknown session", there: true, locked: true, op: bus.Op{Verb: bus.OpUnlock, Session: unknownSession}, refused: true, want: "old"},

		{name: "check-session", there: true, locked: true, op: bus.Op{Verb: bus.OpCheckSession, Session: session}, want: "old"},
		{name: "check-session refuses another session", there: true, locked: true, op: bus.Op{Verb: bus.OpCheckSession, Session: other}, refused: true, want: "old"},
		{name: "check-session refuses a free key", there: true, op: bus.Op{Verb: bus.OpCheckSession, Session: session}, refused: true, want: "old"},
		{name: "check-session refuses a missing key", op: bus.Op{Verb: bus.OpCheckSession, Session: session}, refused: true},
		{name: "check-session refuses an unknown session", there: true, locked: true, op: bus.Op{Verb: bus.OpCheckSession, Session: unknownSession}, refused: true, want: "old"},
		// No session holds no lock, on a free key least of all: a fence that is open
		// because somebody forgot to name the owner is none.
		{name: "check-session refuses no session", there: true, op: bus.Op{Verb: bus.OpCheckSession}, refused: true, want: "old"},

		{name: "check-index", there: true, op: bus.Op{Verb: bus.OpCheckIndex}, index: "own", want: "old"},
		{name: "check-index refuses another index", there: true, op: bus.Op{Verb: bus.OpCheckIndex}, index: "stale", refused: true, want: "old"},
		{name: "check-index refuses a missing key", op: bus.Op{Verb: bus.OpCheckIndex}, index: "stale", refused: true},

		{name: "check-not-exists", op: bus.Op{Verb: bus.OpCheckNotExists}},
		{name: "check-not-exists refuses a key", there: true, op: bus.Op{Verb: bus.OpCheckNotExists}, refused: true, want: "old"},
	} {
		f.Run(strings.ReplaceAll(test.name, " ", "-"), func(t *testing.T) {
			f := &fixture{T: t, Store: f.Store, ctx: f.ctx, prefix: f.key(rand.Text() + "/")}
			var before *bus.Pair
			switch {
			case test.locked:
				f.txn(lock(f.key("k"), "old", session))
				before = f.has("k", "old")
			case test.there:
				f.set("k", "old")
				before = f.has("k", "old")
			}
			op := test.op
			op.Key = f.key("k")
			if op.Writes() {
				op.Value = []byte("new")
			}
			switch op.Verb {
			case bus.OpDelete, bus.OpDeleteCAS, bus.OpDeleteTree:
				op.Value = nil
			}
			switch test.index {
			case "own":
				op.Index = before.ModifyIndex
			case "stale":
				op.Index = stale
			}
			if test.refused {
				f.refused([]bus.Op{op}, 0)
			} else {
				f.txn(op)
			}

			if test.want == "" {
				f.lacks("k")
				return
			}
			after := f.has("k", test.want)
			if before != nil && after.CreateIndex != before.CreateIndex {
				f.Errorf("create index moved from %d to %d", before.CreateIndex, after.CreateIndex)
			}
			if test.want == "old" && after.ModifyIndex != before.ModifyIndex {
				f.Errorf("nothing was written, yet the modify index moved from %d to %d", before.ModifyIndex, after.ModifyIndex)
			}
			if before != nil && test.want == "new" && after.ModifyIndex <= before.ModifyIndex {
				f.Errorf("modify index went from %d to %d", before.ModifyIndex, after.ModifyIndex)
			}
			holder := ""
			switch {
			case test.locked && !test.unlocked:
				holder = session
			case op.Verb == bus.OpLock:
				holder = op.Session
			}
			if after.Session != holder {
				f.Errorf("locked by %q, want %q", after.Session, holder)
			}
		})
	}
}

// unknownSession has the form of a session id.
const unknownSession = "00000000-0000-4000-8000-000000000000"

func testOwnWrites(f *fixture) {
	f.set("a", "one")
	f.set("tree/1", "x")
	create := f.has("a", "one").CreateIndex
	res := f.txn(
		bus.Op{Verb: bus.OpDelete, Key: f.key("a")},
		bus.Op{Verb: bus.OpCheckNotExists, Key: f.key("a")},
		bus.Op{Verb: bus.OpCAS, Key: f.key("a"), Value: []byte("two")},
		bus.Op{Verb: bus.OpGet, Key: f.key("a")},
		set(f.key("tree/2"), "x"),
		bus.Op{Verb: bus.OpDeleteTree, Key: f.key("tree/")},
		set(f.key("tree/3"), "x"),
	)
	if string(res[3].Value) != "two" {
		f.Errorf("get behind cas returned %q", res[3].Value)
	}
	if p := f.has("a", "two"); p.CreateIndex <= create {
		f.Errorf("deleted and created again at %d, before at %d", p.CreateIndex, create)
	}
	pairs, err := f.List(f.ctx, f.key("tree/"))
	if err != nil || !slices.Equal(names(pairs), f.keys("tree/3")) {
		f.Errorf("List = %q, %v; want only tree/3", names(pairs), err)
	}
	// The first of two creations refuses the second, and neither is kept.
	f.refused([]bus.Op{
		{Verb: bus.OpCAS, Key: f.key("twice"), Value: []byte("1")},
		{Verb: bus.OpCAS, Key: f.key("twice"), Value: []byte("2")},
	}, 1)
	f.lacks("twice")
}

func testRefusals(f *fixture) {
	session := f.session()
	a := f.set("a", "one")
	f.set("tree/1", "x")
	f.txn(lock(f.key("held"), "mine", session))
	ops := []bus.Op{
		set(f.key("new"), "x"),
		{Verb: bus.OpCAS, Key: f.key("a"), Value: []byte("two"), Index: a + 1},
		set(f.key("a"), "three"),
		{Verb: bus.OpCheckIndex, Key: f.key("held"), Index: 1},
		{Verb: bus.OpDelete, Key: f.key("held")},
		{Verb: bus.OpDeleteTree, Key: f.key("tree/")},
		{Verb: bus.OpCheckNotExists, Key: f.key("a")},
		{Verb: bus.OpGet, Key: f.key("missing")},
		lock(f.key("lock"), "x", unknownSession),
		checkSession(f.key("a"), session),
	}
	f.refused(ops, 1, 3, 6, 8, 9)
	if p := f.has("a", "one"); p.ModifyIndex != a {
		f.Errorf("a was written at %d", p.ModifyIndex)
	}
	if p := f.has("held", "mine"); p.Session != session {
		f.Errorf("held lost its lock: %+v", p)
	}
	f.has("tree/1", "x")
	f.lacks("new")
	f.lacks("lock")

	_, err := f.Txn(f.ctx, ops)
	var te *bus.TxnError
	if !errors.As(err, &te) || !te.Refused(1) || te.Refused(0) || te.Refused(2) {
		f.Errorf("Refused does not tell the refusing ops: %v", err)
	}
}

// testIsolation moves two keys together and never wants to see them apart.
func testIsolation(f *fixture) {
	const rounds = 50
	f.txn(set(f.key("x"), "0"), set(f.key("y"), "0"))
	var writer sync.WaitGroup
	done := make(chan struct{})
	writer.Go(func() {
		defer close(done)
		for i := 1; i <= rounds; i++ {
			v := strconv.Itoa(i)
			if _, err := f.Txn(f.ctx, []bus.Op{set(f.key("x"), v), set(f.key("y"), v)}); err != nil {
				f.Errorf("Txn: %v", err)
				return
			}
		}
	})
	defer writer.Wait()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		pairs, err := f.List(f.ctx, f.prefix)
		if err != nil {
			f.Fatalf("List: %v", err)
		}
		if x, y := value(pairs, f.key("x")), value(pairs, f.key("y")); x != y {
			f.Fatalf("List saw half a transaction: x=%s y=%s", x, y)
		}
		res := f.txn(bus.Op{Verb: bus.OpGet, Key: f.key("x")}, bus.Op{Verb: bus.OpGet, Key: f.key("y")})
		if !bytes.Equal(res[0].Value, res[1].Value) || res[0].ModifyIndex != res[1].ModifyIndex {
			f.Fatalf("Txn saw half a transaction: %+v", res)
		}
	}
}

func testIndices(f *fixture) {
	var last uint64
	for i := range 20 {
		at := f.set("k"+strconv.Itoa(i%3), strconv.Itoa(i))
		if at <= last {
			f.Fatalf("write %d got index %d after %d", i, at, last)
		}
		last = at
		if i%5 == 4 {
			f.txn(bus.Op{Verb: bus.OpDelete, Key: f.key("k" + strconv.Itoa(i%3))})
		}
	}
	// A key that comes back does not take up where it was.
	f.txn(bus.Op{Verb: bus.OpDelete, Key: f.key("k0")})
	if p := f.txn(bus.Op{Verb: bus.OpCAS, Key: f.key("k0"), Value: []byte("again")})[0]; p.CreateIndex <= last {
		f.Errorf("recreated at index %d after %d", p.CreateIndex, last)
	}
}

func testReadYourWrites(f *fixture) {
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			key := f.key(fmt.Sprintf("g%d/k", g))
			for i := range 20 {
				v := strconv.Itoa(i)
				if _, err := f.Txn(f.ctx, []bus.Op{set(key, v)}); err != nil {
					f.Errorf("Txn: %v", err)
					return
				}
				p, err := f.Get(f.ctx, key)
				if err != nil || p == nil || string(p.Value) != v {
					f.Errorf("Get after writing %q: %+v, %v", v, p, err)
					return
				}
				pairs, err := f.List(f.ctx, key)
				if err != nil || value(pairs, key) != v {
					f.Errorf("List after writing %q: %+v, %v", v, pairs, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func testCounter(f *fixture) {
	const goroutines, each = 6, 8
	f.set("n", "0")
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for done := 0; done < each; {
				p, err := f.Get(f.ctx, f.key("n"))
				if err != nil || p == nil {
					f.Errorf("Get: %v, %v", p, err)
					return
				}
				n, err := strconv.Atoi(string(p.Value))
				if err != nil {
					f.Error(err)
					return
				}
				_, err = f.Txn(f.ctx, []bus.Op{{Verb: bus.OpCAS, Key: p.Key, Index: p.ModifyIndex, Value: []byte(strconv.Itoa(n + 1))}})
				var te *bus.TxnError
				switch {
				case err == nil:
					done++
				case !errors.As(err, &te):
					f.Errorf("Txn: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
	if !f.Failed() {
		f.has("n", strconv.Itoa(goroutines*each))
	}
}

func testLimits(f *fixture) {
	max := f.Limits()
	if max.Ops < 16 || max.Bytes < 64<<10 {
		f.Fatalf("limits %+v are too small to work with", max)
	}
	sets := func(n int) []bus.Op {
		ops := make([]bus.Op, n)
		for i := range ops {
			ops[i] = set(f.key(fmt.Sprintf("many/%03d", i)), "x")
		}
		return ops
	}
	tooLarge := func(what string, ops []bus.Op) {
		f.Helper()
		if _, err := f.Txn(f.ctx, ops); !errors.Is(err, bus.ErrTooLarge) {
			f.Errorf("%s: %v, want ErrTooLarge", what, err)
		}
		keys, err := f.Keys(f.ctx, f.prefix, "")
		if err != nil || len(keys) != 0 {
			f.Errorf("%s left %q, %v", what, keys, err)
		}
	}
	full := strings.Repeat("v", max.Bytes)
	tooLarge("an op too many", sets(max.Ops+1))
	tooLarge("a byte too many", []bus.Op{set(f.key("large"), full+"v")})
	tooLarge("a byte too many in two values", []bus.Op{set(f.key("small"), "v"), set(f.key("large"), full)})

	f.txn(sets(max.Ops)...)
	keys, err := f.Keys(f.ctx, f.key("many/"), "")
	if err != nil || len(keys) != max.Ops {
		f.Errorf("%d keys, %v; want %d", len(keys), err, max.Ops)
	}
	f.txn(set(f.key("large"), full))
	f.has("large", full)
	f.txn(
		bus.Op{Verb: bus.OpGet, Key: f.key("large")},
		set(f.key("half"), full[:len(full)/2]),
		set(f.key("other half"), full[len(full)/2:]),
	)
	f.has("other half", full[len(full)/2:])
	// All at once: both limits hold together, with keys as long as real ones.
	ops := sets(max.Ops)
	for i := range ops {
		ops[i].Key = f.key(fmt.Sprintf("openclaw/pending/some-agent/%036d", i))
		ops[i].Value = []byte(full[:max.Bytes/max.Ops])
	}
	f.txn(ops...)
}

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

func testContext(f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	for name, err := range f.everyCall(ctx) {
		if !errors.Is(err, context.Canceled) {
			f.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	f.lacks("x")
}

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

func testDescribe(f *fixture) {
	if f.Describe() == "" {
		f.Error("the store has no name")
	}
}
