package local

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/gatemesh/gatemesh/bus"
)

// model is the contract once more, as plainly as it can be put: a map, copied for
// every transaction.
type model struct {
	pairs map[string]bus.Pair
	alive map[string]bool
	index uint64
}

// txn returns the refusing ops, or nil when all were applied.
func (m *model) txn(ops []bus.Op) (refused []int) {
	next := make(map[string]bus.Pair, len(m.pairs))
	for k, p := range m.pairs {
		next[k] = p
	}
	changed := false
	write := func(op bus.Op, session string) {
		p, ok := next[op.Key]
		if ok && bytes.Equal(p.Value, op.Value) && p.Session == session {
			return
		}
		if !ok {
			p = bus.Pair{Key: op.Key, CreateIndex: m.index + 1}
		}
		p.Value, p.Session, p.ModifyIndex = op.Value, session, m.index+1
		next[op.Key] = p
		changed = true
	}
	for i, op := range ops {
		p, exists := next[op.Key]
		ok := true
		switch op.Verb {
		case bus.OpSet:
			write(op, p.Session)
		case bus.OpCAS:
			if ok = exists && p.ModifyIndex == op.Index || !exists && op.Index == 0; ok {
				write(op, p.Session)
			}
		case bus.OpGet:
		case bus.OpDelete:
			changed = changed || exists
			delete(next, op.Key)
		case bus.OpDeleteCAS:
			if ok = !exists || p.ModifyIndex == op.Index; ok {
				changed = changed || exists
				delete(next, op.Key)
			}
		case bus.OpDeleteTree:
			for k := range next {
				if strings.HasPrefix(k, op.Key) {
					changed = true
					delete(next, k)
				}
			}
		case bus.OpLock:
			if ok = m.alive[op.Session] && (p.Session == "" || p.Session == op.Session); ok {
				write(op, op.Session)
			}
		case bus.OpUnlock:
			if ok = exists && m.alive[op.Session] && p.Session == op.Session; ok {
				write(op, "")
			}
		case bus.OpCheckSession:
			ok = exists && m.alive[op.Session] && p.Session == op.Session
		case bus.OpCheckIndex:
			ok = exists && p.ModifyIndex == op.Index
		case bus.OpCheckNotExists:
			ok = !exists
		}
		if !ok {
			refused = append(refused, i)
		}
	}
	if refused == nil && changed {
		m.pairs = next
		m.index++
	}
	return refused
}

func (m *model) end(session string) {
	if !m.alive[session] {
		return
	}
	for k, p := range m.pairs {
		if p.Session == session {
			delete(m.pairs, k)
		}
	}
	m.index++
	delete(m.alive, session)
}

func (m *model) list() []bus.Pair {
	var list []bus.Pair
	for _, p := range m.pairs {
		list = append(list, p)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Key < list[j].Key })
	return list
}

func equal(a, b bus.Pair) bool {
	return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && a.Session == b.Session &&
		a.CreateIndex == b.CreateIndex && a.ModifyIndex == b.ModifyIndex
}

func TestModel(t *testing.T) {
	dir, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		s, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		ctx := t.Context()
		m := &model{pairs: map[string]bus.Pair{}, alive: map[string]bool{}, index: 1}
		sessions := []string{""} // also the ended ones
		key := rapid.SampledFrom([]string{"a", "a/", "a/b", "a/c", "b", "b/a"})

		step := map[string]func(*rapid.T){
			"new session": func(t *rapid.T) {
				id, err := s.NewSession(ctx, bus.SessionOptions{})
				if err != nil {
					t.Fatal(err)
				}
				sessions = append(sessions, id)
				m.alive[id] = true
			},
			"end session": func(t *rapid.T) {
				id := rapid.SampledFrom(sessions).Draw(t, "session")
				if err := s.DestroySession(ctx, id); err != nil {
					t.Fatal(err)
				}
				m.end(id)
			},
			"": func(t *rapid.T) {
				list, err := s.List(ctx, "")
				if err != nil {
					t.Fatal(err)
				}
				if want := m.list(); !slices.EqualFunc(list, want, equal) {
					t.Fatalf("store holds\n%+v\nwant\n%+v", list, want)
				}
				checkLocks(t, s, list)
			},
		}
		txn := func(t *rapid.T) {
			ops := make([]bus.Op, rapid.IntRange(1, 6).Draw(t, "ops"))
			for i := range ops {
				op := bus.Op{
					Verb:    bus.Verb(rapid.IntRange(int(bus.OpSet), int(bus.OpCheckNotExists)).Draw(t, "verb")),
					Key:     key.Draw(t, "key"),
					Value:   []byte(rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "value")),
					Session: rapid.SampledFrom(sessions).Draw(t, "session"),
				}
				// Mostly an index and a session that fit.
				if p, ok := m.pairs[op.Key]; ok && rapid.IntRange(0, 3).Draw(t, "fit") > 0 {
					op.Index = p.ModifyIndex
					if p.Session != "" {
						op.Session = p.Session
					}
				}
				ops[i] = op
			}
			_, err := s.Txn(ctx, ops)
			var got []int
			var te *bus.TxnError
			if errors.As(err, &te) {
				for _, f := range te.Failed {
					got = append(got, f.Op)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if want := m.txn(ops); !slices.Equal(got, want) {
				t.Fatalf("%+v refused by %v, want %v", ops, got, want)
			}
		}
		// The more names, the more often.
		for _, name := range []string{"txn", "another txn", "one more txn", "yet another txn"} {
			step[name] = txn
		}
		t.Repeat(step)
	})
}

// checkLocks compares the lock records with the pairs.
func checkLocks(t *rapid.T, s *Store, list []bus.Pair) {
	var got, want []string
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketLocks).ForEach(func(k, _ []byte) error {
			got = append(got, string(k))
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.Session != "" {
			want = append(want, string(lockName(p.Session, p.Key)))
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("lock records %q, want %q", got, want)
	}
}

// TestDeleteLog: the log may report a later deletion than there was, never an
// earlier one, and does not grow.
func TestDeleteLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var log deleteLog
		last := map[string]uint64{}
		prefixes := []string{"", "a/", "b/", "rare/"}
		n := rapid.Uint64Range(1, 5*deleteMemory).Draw(t, "deletions")
		for index := uint64(1); index <= n; index++ {
			key := []string{"a/x", "b/x"}[index%2]
			if index%1999 == 5 {
				key = "rare/x"
			}
			log.add(key, index)
			for _, p := range prefixes {
				if strings.HasPrefix(key, p) {
					last[p] = index
				}
			}
		}
		for _, p := range prefixes {
			got := log.last(p)
			if got < last[p] || got > max(last[p], log.floor) {
				t.Fatalf("last(%q) = %d, want %d (floor %d)", p, got, last[p], log.floor)
			}
		}
		if len(log.recent) > 2*deleteMemory {
			t.Fatalf("%d deletions remembered", len(log.recent))
		}
	})
}

func TestEntry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := entry{
			create: rapid.Uint64().Draw(t, "create"), modify: rapid.Uint64().Draw(t, "modify"),
			session: rapid.String().Draw(t, "session"), value: rapid.SliceOf(rapid.Byte()).Draw(t, "value"),
		}
		b := e.encode()
		got, err := decode("k", b)
		if err != nil || !equal(got.pair("k"), e.pair("k")) {
			t.Fatalf("%+v, %v; want %+v", got, err, e)
		}
		for cut := range len(b) - len(e.value) {
			if _, err := decode("k", b[:cut]); !errors.Is(err, errDamaged) {
				t.Fatalf("decoded %d of %d bytes: %v", cut, len(b), err)
			}
		}
	})
}
