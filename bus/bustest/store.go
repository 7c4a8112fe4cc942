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

func testDescribe(f *fixture) {
	if f.Describe() == "" {
		f.Error("the store has no name")
	}
}
