package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/gatemesh/gatemesh/bus"
)

func set(key, value string) bus.Op {
	return bus.Op{Verb: bus.OpSet, Key: key, Value: []byte(value)}
}

func apply(t testing.TB, s *Store, ops ...bus.Op) []bus.Pair {
	t.Helper()
	res, err := s.Txn(t.Context(), ops)
	if err != nil {
		t.Fatalf("Txn: %v", err)
	}
	return res
}

func refused(t testing.TB, s *Store, ops ...bus.Op) {
	t.Helper()
	var te *bus.TxnError
	if _, err := s.Txn(t.Context(), ops); !errors.As(err, &te) {
		t.Fatalf("Txn: %v, want a *TxnError", err)
	}
}

func get(t testing.TB, s *Store, key string) *bus.Pair {
	t.Helper()
	p, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return p
}

func newSession(t testing.TB, s *Store, ttl time.Duration) string {
	t.Helper()
	id, err := s.NewSession(t.Context(), bus.SessionOptions{Name: "test", TTL: ttl})
	if err != nil {
		t.Fatalf("NewSession: %v", err)
	}
	return id
}

func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.db")
	s := open(t, path)
	start := time.Now()
	_, err := Open(path, Options{})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("second Open: %v, want ErrInUse and the path", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("second Open took %v", took)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestOpenCreates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there")
	s := open(t, filepath.Join(dir, "mesh.db"))
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Dir(dir): 0o700, s.path: 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", path, got, want)
		}
	}
	if want := "file " + s.path; s.Describe() != want {
		t.Errorf("Describe: %q, want %q", s.Describe(), want)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	foreign := filepath.Join(dir, "foreign")
	if err := os.WriteFile(foreign, bytes.Repeat([]byte("not a store\n"), 2000), 0o600); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer")
	s := open(t, newer)
	err := s.db.Update(func(tx *bolt.Tx) error { return putUint(tx.Bucket(bucketMeta), keyFormat, formatVersion+1) })
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		foreign:                           "not a store file",
		newer:                             "use the build that wrote it",
		dir:                               dir,
		filepath.Join(foreign, "in", "x"): "create store directory",
	} {
		if s, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s): %v, want %q", path, err, want)
			if err == nil {
				_ = s.Close()
			}
		}
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.db")
	s := open(t, path)
	ctx := t.Context()
	id := newSession(t, s, time.Hour)
	forever := newSession(t, s, 0)
	apply(t, s, set("w/kept", "x"),
		bus.Op{Verb: bus.OpLock, Key: "w/held", Session: id},
		bus.Op{Verb: bus.OpLock, Key: "w/held too", Session: forever},
		bus.Op{Verb: bus.OpLock, Key: "w/free", Session: id},
		bus.Op{Verb: bus.OpUnlock, Key: "w/free", Session: id})
	last := apply(t, s, set("w/last", "x"))[0].ModifyIndex
	_, index, err := s.Watch(ctx, "w/", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	keys, err := s.Keys(ctx, "", "")
	if want := []string{"w/free", "w/kept", "w/last"}; err != nil || fmt.Sprint(keys) != fmt.Sprint(want) {
		t.Errorf("reopened: %q, %v; want %q", keys, err, want)
	}
	for _, id := range []string{id, forever} {
		if err := s.RenewSession(ctx, id); !errors.Is(err, bus.ErrNoSession) {
			t.Errorf("RenewSession: %v, want ErrNoSession", err)
		}
		refused(t, s, bus.Op{Verb: bus.OpLock, Key: "w/held", Session: id})
	}
	// A watch that goes on where it was learns of the locks' end.
	pairs, next, err := s.Watch(ctx, "w/", index)
	if err != nil || len(pairs) != 3 || next <= index {
		t.Errorf("Watch: %d pairs at %d, %v; want 3 after %d", len(pairs), next, err, index)
	}
	if at := apply(t, s, set("w/new", "x"))[0].ModifyIndex; at <= last {
		t.Errorf("index %d after %d", at, last)
	}

	// With nothing to clean up, opening writes nothing.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("opening and closing changed the file (%v)", err)
	}
}

// TestIndexNeverZero: 0 would make a watch return at once, for ever.
func TestIndexNeverZero(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
	if _, index, err := s.Watch(t.Context(), "", 0); err != nil || index == 0 {
		t.Errorf("watch of an empty store: index %d, %v", index, err)
	}
}

// hold keeps the committer busy until release is called.
func hold(t *testing.T, s *Store) (release func()) {
	t.Helper()
	entered, leave := make(chan struct{}), make(chan struct{})
	r := newRequest(0, func(*batch) error {
		close(entered)
		<-leave
		return nil
	})
	s.mu.Lock()
	s.enqueueLocked(r)
	s.mu.Unlock()
	<-entered
	return sync.OnceFunc(func() { close(leave) })
}

// fail makes commits fail with what fault returns.
func fail(t *testing.T, s *Store, fault func() error) {
	t.Helper()
	err := s.submit(t.Context(), newRequest(0, func(*batch) error {
		s.commitFault = fault
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
}

func commits(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.db.View(func(tx *bolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		apply(t, s, set("n", "0"))
		at := get(t, s, "n").ModifyIndex
		before := commits(t, s)
		release := hold(t, s)
		var all sync.WaitGroup
		var mu sync.Mutex
		var won, lost int
		for i := range 20 {
			all.Go(func() {
				own := set("own/"+strconv.Itoa(i), "x")
				_, err := s.Txn(t.Context(), []bus.Op{own, {Verb: bus.OpCAS, Key: "n", Index: at, Value: []byte(strconv.Itoa(i + 1))}})
				mu.Lock()
				defer mu.Unlock()
				var te *bus.TxnError
				switch {
				case err == nil:
					won++
				case errors.As(err, &te):
					lost++
				default:
					t.Errorf("Txn: %v", err)
				}
			})
			all.Go(func() { apply(t, s, set("free/"+strconv.Itoa(i), "x")) })
		}
		synctest.Wait() // all are queued
		release()
		all.Wait()
		if won != 1 || lost != 19 {
			t.Errorf("%d swaps of one key succeeded, %d were refused", won, lost)
		}
		for prefix, want := range map[string]int{"own/": 1, "free/": 20} {
			pairs, err := s.List(t.Context(), prefix)
			if err != nil || len(pairs) != want {
				t.Errorf("%d keys below %s, %v; want %d", len(pairs), prefix, err, want)
			}
		}
		if got := commits(t, s) - before; got != 1 {
			t.Errorf("40 waiting transactions took %d commits, want 1", got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestContextInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		// A transaction that waits is withdrawn.
		release := hold(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		c := make(chan error, 1)
		go func() {
			_, err := s.Txn(ctx, []bus.Op{set("withdrawn", "x")})
			c <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-c; !errors.Is(err, context.Canceled) {
			t.Errorf("waiting: %v, want context.Canceled", err)
		}
		release()

		// One that is being committed is not.
		entered, leave := make(chan struct{}), make(chan struct{})
		fail(t, s, func() error {
			close(entered)
			<-leave
			return nil
		})
		ctx, cancel = context.WithCancel(t.Context())
		go func() {
			_, err := s.Txn(ctx, []bus.Op{set("committed", "x")})
			c <- err
		}()
		<-entered
		cancel()
		synctest.Wait()
		select {
		case err := <-c:
			t.Errorf("returned %v before the outcome was known", err)
		default:
		}
		close(leave)
		if err := <-c; err != nil {
			t.Errorf("committed: %v", err)
		}
		fail(t, s, nil)
		if get(t, s, "withdrawn") != nil || get(t, s, "committed") == nil {
			t.Error("the errors do not tell what was applied")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		newSession(t, s, time.Minute) // its timer must not outlive the store
		release := hold(t, s)
		c := make(chan error, 1)
		go func() {
			_, err := s.Txn(t.Context(), []bus.Op{set("k", "x")})
			c <- err
		}()
		synctest.Wait()
		var all sync.WaitGroup
		closing := func() {
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		all.Go(closing)
		synctest.Wait()
		release()
		all.Go(closing)
		all.Go(closing)
		if err := <-c; !errors.Is(err, bus.ErrClosed) {
			t.Errorf("waiting Txn: %v, want ErrClosed", err)
		}
		all.Wait()
	})
}

// TestCommitFails: nothing applied, nothing stuck, no index used twice.
func TestCommitFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		apply(t, s, set("w/a", "1"), set("w/b", "1"))
		before := get(t, s, "w/a").ModifyIndex
		_, index, err := s.Watch(t.Context(), "w/", 0)
		if err != nil {
			t.Fatal(err)
		}
		fail(t, s, func() error { return &os.PathError{Op: "write", Path: s.path, Err: syscall.ENOSPC} })
		ops := []bus.Op{set("w/a", "2"), {Verb: bus.OpDelete, Key: "w/b"}}
		_, err = s.Txn(t.Context(), ops)
		if want := "disk full: free space in " + filepath.Dir(s.path); !errors.Is(err, bus.ErrUnavailable) ||
			!errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), want) {
			t.Errorf("Txn: %v, want ErrUnavailable with %q", err, want)
		}
		if _, err := s.NewSession(t.Context(), bus.SessionOptions{}); !errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("NewSession: %v, want ErrUnavailable", err)
		}
		if a := get(t, s, "w/a"); string(a.Value) != "1" || a.ModifyIndex != before || get(t, s, "w/b") == nil {
			t.Errorf("a failed commit left %+v", a)
		}
		refused(t, s, bus.Op{Verb: bus.OpCAS, Key: "w/a"}) // needs no commit
		// A watch may look once, and then waits again.
		pairs, index, err := s.Watch(t.Context(), "w/", index)
		if err != nil || len(pairs) != 2 {
			t.Fatalf("Watch: %+v, %v", pairs, err)
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
		if len(c) != 0 {
			t.Error("Watch does not wait")
		}
		fail(t, s, nil)
		at := apply(t, s, ops...)[0].ModifyIndex
		if next := <-c; next < at || at <= index {
			t.Errorf("watched from %d to %d, written at %d", index, next, at)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		const ttl = 10 * time.Second
		ctx := t.Context()
		id := newSession(t, s, ttl)
		other := newSession(t, s, 0)
		forever := newSession(t, s, 0)
		apply(t, s, set("w/about", "x"),
			bus.Op{Verb: bus.OpLock, Key: "w/owner", Session: id},
			bus.Op{Verb: bus.OpLock, Key: "w/status", Session: id},
			bus.Op{Verb: bus.OpLock, Key: "w/other", Session: other})
		check := bus.Op{Verb: bus.OpCheckSession, Key: "w/owner", Session: id}

		<-time.After(ttl - 1) // fake time
		apply(t, s, check)
		if err := s.RenewSession(ctx, id); err != nil {
			t.Fatalf("RenewSession: %v", err)
		}
		<-time.After(ttl - 1)
		apply(t, s, check)
		apply(t, s, check, set("by owner", "x"))

		pairs, index, err := s.Watch(ctx, "w/", 0)
		if err != nil || len(pairs) != 4 {
			t.Fatalf("Watch: %+v, %v", pairs, err)
		}
		before, start := commits(t, s), time.Now()
		pairs, _, err = s.Watch(ctx, "w/", index)
		if err != nil || len(pairs) != 2 || pairs[0].Key != "w/about" || pairs[1].Key != "w/other" {
			t.Errorf("Watch: %+v, %v; want about and other", pairs, err)
		}
		if took := time.Since(start); took != 1 {
			t.Errorf("ended %v after its TTL", took-1)
		}
		if n := commits(t, s) - before; n != 1 {
			t.Errorf("the end took %d commits, want 1", n)
		}
		if err := s.RenewSession(ctx, id); !errors.Is(err, bus.ErrNoSession) {
			t.Errorf("RenewSession: %v, want ErrNoSession", err)
		}
		refused(t, s, check)
		refused(t, s, check, set("by owner", "y"))
		refused(t, s, bus.Op{Verb: bus.OpLock, Key: "w/owner", Session: id})
		apply(t, s, bus.Op{Verb: bus.OpLock, Key: "w/owner", Session: other}) // at once

		<-time.After(1000 * time.Hour)
		if err := s.RenewSession(ctx, forever); err != nil {
			t.Errorf("without a TTL: %v", err)
		}
		if _, err := s.NewSession(ctx, bus.SessionOptions{TTL: -1}); err == nil {
			t.Error("took a negative TTL")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestExpiryOnFullDisk: a session is over when its TTL is, written or not.
func TestExpiryOnFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s, err := Open(filepath.Join(t.TempDir(), "mesh.db"), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		id := newSession(t, s, 10*time.Second)
		apply(t, s, bus.Op{Verb: bus.OpLock, Key: "owner", Session: id})
		fail(t, s, func() error { return syscall.ENOSPC })
		<-time.After(time.Minute)
		synctest.Wait()
		if p := get(t, s, "owner"); p == nil || p.Session != id {
			t.Fatalf("owner is %+v; was the disk full?", p)
		}
		if err := s.RenewSession(t.Context(), id); !errors.Is(err, bus.ErrNoSession) {
			t.Errorf("RenewSession: %v, want ErrNoSession", err)
		}
		refused(t, s, bus.Op{Verb: bus.OpCheckSession, Key: "owner", Session: id})
		refused(t, s, bus.Op{Verb: bus.OpLock, Key: "new", Session: id})
		refused(t, s, bus.Op{Verb: bus.OpUnlock, Key: "owner", Session: id})
		fail(t, s, nil)
		<-time.After(endRetry)
		synctest.Wait()
		if p := get(t, s, "owner"); p != nil {
			t.Errorf("still there: %+v", p)
		}
		if !strings.Contains(log.String(), id) || !strings.Contains(log.String(), "free space") {
			t.Errorf("the log does not say what to do: %s", &log)
		}
	})
}

func TestRefusedKeys(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
	refused(t, s, set("", "x"))
	refused(t, s, set("/slash", "x"))
	refused(t, s, set("\xff", "x"))
	refused(t, s, bus.Op{Key: "no verb"})
	refused(t, s, bus.Op{Verb: 99, Key: "no such verb"})
	if _, err := s.Txn(t.Context(), []bus.Op{set(strings.Repeat("k", maxKey+1), "x")}); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("long key: %v, want ErrTooLarge", err)
	}
	id := newSession(t, s, 0)
	long := strings.Repeat("k", maxKey)
	apply(t, s, bus.Op{Verb: bus.OpLock, Key: long, Session: id})
	if get(t, s, long) == nil {
		t.Error("the longest key is missing")
	}
	if res, err := s.Txn(t.Context(), nil); err != nil || len(res) != 0 {
		t.Errorf("empty transaction: %v, %v", res, err)
	}
}

// TestDamagedEntry: bytes that are no entry are an error, not a value.
func TestDamagedEntry(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
	err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketPairs).Put([]byte("k"), []byte{1, 1, 200}) })
	if err != nil {
		t.Fatal(err)
	}
	_, errGet := s.Get(t.Context(), "k")
	_, errTxn := s.Txn(t.Context(), []bus.Op{set("k", "x")})
	for _, err := range []error{errGet, errTxn} {
		if !errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%v, want ErrUnavailable and what to do", err)
		}
	}
	apply(t, s, set("other", "x"))
}
