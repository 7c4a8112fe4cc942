package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) *local.Store {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "mesh.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestFaultyPasses: without hooks the wrapper is the store.
func TestFaultyPasses(t *testing.T) {
	bustest.Store(t, func(t *testing.T) bus.Store { return bustest.Faulty(open(t)) })
}

func set(key string) bus.Op { return bus.Op{Verb: bus.OpSet, Key: key, Value: []byte("x")} }

func TestFaultyTxn(t *testing.T) {
	inner := open(t)
	f := bustest.Faulty(inner)
	ctx := t.Context()
	has := func(key string) bool {
		p, err := inner.Get(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		return p != nil
	}
	lost := fmt.Errorf("%w: lost", bus.ErrUnavailable)
	onTxn := func(call string, ops []bus.Op) error {
		if call == bustest.CallTxn && len(ops) > 0 {
			return lost
		}
		return nil
	}

	f.Before(onTxn)
	if _, err := f.Txn(ctx, []bus.Op{set("request")}); err != lost || has("request") {
		t.Errorf("lost request: %v, applied %v", err, has("request"))
	}
	if _, err := f.Get(ctx, "request"); err != nil {
		t.Errorf("Get: %v", err)
	}
	f.Before(nil)
	if f.Writes() != 0 {
		t.Errorf("%d writes counted for a lost request", f.Writes())
	}

	f.After(onTxn)
	if res, err := f.Txn(ctx, []bus.Op{set("reply")}); err != lost || res != nil || !has("reply") {
		t.Errorf("lost reply: %v, %v, applied %v", res, err, has("reply"))
	}
	var te *bus.TxnError
	if _, err := f.Txn(ctx, []bus.Op{{Verb: bus.OpCAS, Key: "reply"}}); !errors.As(err, &te) {
		t.Errorf("refused: %v, want the store's own error", err)
	}
	f.After(nil)

	if _, err := f.Txn(ctx, []bus.Op{set("a"), {Verb: bus.OpGet, Key: "a"}, set("b")}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Txn(ctx, []bus.Op{{Verb: bus.OpGet, Key: "a"}}); err != nil {
		t.Fatal(err)
	}
	if f.Writes() != 3 || f.WrittenKeys() != 4 {
		t.Errorf("%d writes of %d keys, want 3 of 4", f.Writes(), f.WrittenKeys())
	}
	f.ResetCounts()
	if f.Writes() != 0 || f.WrittenKeys() != 0 {
		t.Error("counts were not reset")
	}
	if f.Unwrap() != bus.Store(inner) {
		t.Error("Unwrap does not return the store inside")
	}
}

// TestFaultyEveryCall: each call has a name and obeys both hooks.
func TestFaultyEveryCall(t *testing.T) {
	f := bustest.Faulty(open(t))
	ctx := t.Context()
	var id string
	calls := map[string]func() error{
		bustest.CallGet:            func() error { _, err := f.Get(ctx, "x"); return err },
		bustest.CallList:           func() error { _, err := f.List(ctx, "x"); return err },
		bustest.CallKeys:           func() error { _, err := f.Keys(ctx, "x", "/"); return err },
		bustest.CallTxn:            func() error { _, err := f.Txn(ctx, []bus.Op{set("x")}); return err },
		bustest.CallWatch:          func() error { _, _, err := f.Watch(ctx, "x", 0); return err },
		bustest.CallNewSession:     func() (err error) { id, err = f.NewSession(ctx, bus.SessionOptions{}); return err },
		bustest.CallDestroySession: func() error { return f.DestroySession(ctx, id) },
		bustest.CallRenewSession: func() error {
			if err := f.RenewSession(ctx, id); !errors.Is(err, bus.ErrNoSession) {
				return err
			}
			return nil
		},
	}
	lost := errors.New("lost")
	for name, call := range calls {
		var seen []string
		hook := func(err error) bustest.Hook {
			return func(call string, _ []bus.Op) error {
				seen = append(seen, call)
				return err
			}
		}
		f.Before(hook(lost))
		if err := call(); err != lost {
			t.Errorf("%s with its request lost: %v", name, err)
		}
		f.Before(hook(nil))
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		f.Before(nil)
		for _, s := range seen {
			if s != name {
				t.Errorf("%s is known to the hook as %s", name, s)
			}
		}
		if len(seen) != 2 {
			t.Errorf("%s met the hook %d times, want 2", name, len(seen))
		}
		if name == bustest.CallRenewSession {
			continue // an unknown session is refused, so there is no reply to lose
		}
		f.After(hook(lost))
		if err := call(); err != lost {
			t.Errorf("%s with its reply lost: %v", name, err)
		}
		f.After(nil)
	}
}

// TestFaultyConcurrent is for the race detector.
func TestFaultyConcurrent(t *testing.T) {
	f := bustest.Faulty(open(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 25 {
				hook := func(string, []bus.Op) error { return nil }
				f.Before(hook)
				f.After(hook)
				if _, err := f.Txn(ctx, []bus.Op{set(fmt.Sprintf("%d/%d", g, i))}); err != nil {
					t.Errorf("Txn: %v", err)
				}
				f.Before(nil)
				f.After(nil)
			}
		})
	}
	all.Wait()
	if f.Writes() != 100 || f.WrittenKeys() != 100 {
		t.Errorf("%d writes of %d keys, want 100", f.Writes(), f.WrittenKeys())
	}
}
