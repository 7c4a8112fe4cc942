package local

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/gatemesh/gatemesh/bus"
)

func TestWatchMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		apply(t, s, set("w/a", "x"))
		_, index, err := s.Watch(t.Context(), "w/", 0)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		pairs, next, err := s.Watch(t.Context(), "w/", index)
		if err != nil || next != index || len(pairs) != 1 || time.Since(start) != defaultMaxWait {
			t.Errorf("after %v: %d pairs, index %d after %d, %v", time.Since(start), len(pairs), next, index, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestWatchPrecision: with the watch known to wait, what wakes it and what does not.
func TestWatchPrecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		id := newSession(t, s, 0)
		apply(t, s, set("w/about", "x"), set("v", "x"), bus.Op{Verb: bus.OpLock, Key: "w/held", Session: id})
		_, index, err := s.Watch(t.Context(), "w/", 0)
		if err != nil {
			t.Fatal(err)
		}
		c := make(chan uint64, 1)
		watch := func() {
			from := index
			go func() {
				_, next, err := s.Watch(t.Context(), "w/", from)
				if err != nil && !errors.Is(err, bus.ErrClosed) { // the last one
					t.Errorf("Watch: %v", err)
				}
				c <- next
			}()
			synctest.Wait()
		}
		watch()
		for _, op := range []bus.Op{
			set("wx", "1"), set("w", "1"), {Verb: bus.OpDelete, Key: "wx"}, {Verb: bus.OpDelete, Key: "w/none"},
			set("w/about", "x"), // changes nothing
			{Verb: bus.OpLock, Key: "w/held", Session: id},
			{Verb: bus.OpCheckNotExists, Key: "w/none"},
			{Verb: bus.OpDeleteTree, Key: "v"},
		} {
			apply(t, s, op)
			synctest.Wait()
			if len(c) != 0 {
				t.Fatalf("woken by %v of %q", op.Verb, op.Key)
			}
		}
		// A key that comes and goes in one transaction was never there.
		apply(t, s, set("w/new", "1"), bus.Op{Verb: bus.OpDelete, Key: "w/new"})
		synctest.Wait()
		if len(c) != 0 {
			t.Fatal("woken by nothing")
		}
		for _, op := range []bus.Op{
			set("w/about", "y"), set("w/new", "1"), {Verb: bus.OpDelete, Key: "w/new"},
			{Verb: bus.OpUnlock, Key: "w/held", Session: id}, {Verb: bus.OpDeleteTree, Key: "w"},
		} {
			apply(t, s, op)
			synctest.Wait()
			if len(c) != 1 {
				t.Fatalf("not woken by %v of %q", op.Verb, op.Key)
			}
			next := <-c
			if next <= index {
				t.Fatalf("%v of %q: index went from %d to %d", op.Verb, op.Key, index, next)
			}
			index = next
			watch()
		}
		// An index that this store has not reached: it was restored.
		if _, next, err := s.Watch(t.Context(), "w/", index+1000); err != nil || next != index {
			t.Errorf("Watch from the future: index %d, %v; want %d", next, err, index)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		<-c
	})
}

// TestWatchBeforeAnnouncement: a watch that looks when a deletion is committed but
// not announced yet neither goes back nor misses it.
func TestWatchBeforeAnnouncement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		apply(t, s, set("w/about", "x"))
		index := apply(t, s, set("w/a", "x"))[0].ModifyIndex
		at := index + 1
		err := s.db.Update(func(tx *bolt.Tx) error {
			return errors.Join(tx.Bucket(bucketPairs).Delete([]byte("w/a")), putUint(tx.Bucket(bucketMeta), keyIndex, at))
		})
		if err != nil {
			t.Fatal(err)
		}
		c := make(chan uint64, 1)
		go func() {
			_, next, err := s.Watch(t.Context(), "w/", index)
			if err != nil {
				t.Errorf("Watch: %v", err)
			}
			c <- next
		}()
		synctest.Wait()
		select {
		case next := <-c:
			t.Fatalf("Watch went from %d to %d", index, next)
		default:
		}
		s.mu.Lock()
		s.announceLocked([]change{{key: "w/a", index: at, deleted: true}})
		s.mu.Unlock()
		if next := <-c; next != at {
			t.Errorf("index %d, want %d", next, at)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestWatchKeepsUp: whoever follows a watch comes to see the last state, whatever
// happened in between. The last deed is a deletion, the easiest to miss.
func TestWatchKeepsUp(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	const keys, rounds = 5, 60
	var writers, followers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for i := range rounds {
				op := set(fmt.Sprintf("w/%d/%d", w, i%keys), strconv.Itoa(i))
				if i%3 == 2 {
					op.Verb = bus.OpDelete
				}
				if _, err := s.Txn(ctx, []bus.Op{op}); err != nil {
					t.Errorf("Txn: %v", err)
				}
			}
		})
	}
	for range 2 {
		followers.Go(func() {
			var index uint64
			for {
				pairs, next, err := s.Watch(ctx, "w/", index)
				if err != nil {
					t.Errorf("Watch missed the last change: %v", err)
					return
				}
				if next < index {
					t.Errorf("index went from %d to %d", index, next)
				}
				index = next
				if len(pairs) == 1 && pairs[0].Key == "w/end" {
					return
				}
			}
		})
	}
	writers.Wait()
	apply(t, s, set("w/end", "x"), set("w/0/0", "x"), set("w/1/0", "x"), set("w/2/0", "x"))
	for w := range 3 {
		apply(t, s, bus.Op{Verb: bus.OpDeleteTree, Key: fmt.Sprintf("w/%d/", w)})
	}
	followers.Wait()
}
