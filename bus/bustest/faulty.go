package bustest

import (
	"context"
	"sync/atomic"

	"github.com/gatemesh/gatemesh/bus"
)

// The names by which hooks know the calls of a store. Limits, Describe and Close
// never fail.
const (
	CallGet            = "get"
	CallList           = "list"
	CallKeys           = "keys"
	CallTxn            = "txn"
	CallPut            = "put"
	CallRead           = "read"
	CallWatch          = "watch"
	CallNewSession     = "new-session"
	CallRenewSession   = "renew-session"
	CallDestroySession = "destroy-session"
)

// Hook decides about one call; ops is nil unless the call is [CallTxn] or [CallPut] and must
// not be changed. An error it returns is what the caller gets, as it is: return
// one that wraps a sentinel of bus, or code under test cannot judge it. Hooks are
// called concurrently and may block.
type Hook func(call string, ops []bus.Op) error

// FaultyStore is a [bus.Store] that loses requests and replies when told to, and
// counts writes. Safe for concurrent use.
type FaultyStore struct {
	inner         bus.Store
	before, after atomic.Pointer[Hook]

	writes, keys atomic.Int64
}

var _ bus.Store = (*FaultyStore)(nil)

// Faulty wraps store. Without hooks it only counts.
func Faulty(store bus.Store) *FaultyStore { return &FaultyStore{inner: store} }

// Unwrap returns the store inside. What it can do beyond bus.Store, such as
// bus.Registrar, is found there.
func (f *FaultyStore) Unwrap() bus.Store { return f.inner }

// Before sets the hook that runs before a call; nil removes it. Its error is a
// lost request: the store never saw it.
func (f *FaultyStore) Before(h Hook) { swap(&f.before, h) }

// After sets the hook that runs after a call that succeeded; nil removes it. Its
// error is a lost reply: what the call did stays done. Calls that the store
// refused return the store's own error and do not reach the hook.
func (f *FaultyStore) After(h Hook) { swap(&f.after, h) }

// Writes returns how many transactions with at least one writing op were handed
// to the store inside (refused ones too: Consul pays a raft entry for those as
// well). Requests lost by the Before hook do not count.
func (f *FaultyStore) Writes() int64 { return f.writes.Load() }

// WrittenKeys returns how many writing ops those transactions held.
func (f *FaultyStore) WrittenKeys() int64 { return f.keys.Load() }

// ResetCounts sets both counters to zero.
func (f *FaultyStore) ResetCounts() {
	f.writes.Store(0)
	f.keys.Store(0)
}

func swap(p *atomic.Pointer[Hook], h Hook) {
	if h == nil {
		p.Store(nil)
		return
	}
	p.Store(&h)
}

func run(p *atomic.Pointer[Hook], call string, ops []bus.Op) error {
	if h := p.Load(); h != nil {
		return (*h)(call, ops)
	}
	return nil
}

// through makes a call between the hooks.
func through[T any](f *FaultyStore, call string, ops []bus.Op, do func() (T, error)) (T, error) {
	var none T
	if err := run(&f.before, call, ops); err != nil {
		return none, err
	}
	v, err := do()
	if err != nil {
		return v, err
	}
	if err := run(&f.after, call, ops); err != nil {
		return none, err
	}
	return v, nil
}

// Get implements [bus.Store].
func (f *FaultyStore) Get(ctx context.Context, key string) (*bus.Pair, error) {
	return through(f, CallGet, nil, func() (*bus.Pair, error) { return f.inner.Get(ctx, key) })
}

// Read implements [bus.Store].
func (f *FaultyStore) Read(ctx context.Context, key string) ([]byte, error) {
	return through(f, CallRead, nil, func() ([]byte, error) { return f.inner.Read(ctx, key) })
}

// List implements [bus.Store].
func (f *FaultyStore) List(ctx context.Context, prefix string) ([]bus.Pair, error) {
	return through(f, CallList, nil, func() ([]bus.Pair, error) { return f.inner.List(ctx, prefix) })
}

// Keys implements [bus.Store].
func (f *FaultyStore) Keys(ctx context.Context, prefix, separator string) ([]string, error) {
	return through(f, CallKeys, nil, func() ([]string, error) { return f.inner.Keys(ctx, prefix, separator) })
}

// Txn implements [bus.Store].
func (f *FaultyStore) Txn(ctx context.Context, ops []bus.Op) ([]bus.Pair, error) {
	return through(f, CallTxn, ops, func() ([]bus.Pair, error) {
		var n int64
		for _, op := range ops {
			if op.Writes() {
				n++
			}
		}
		if n > 0 {
			f.writes.Add(1)
			f.keys.Add(n)
		}
		return f.inner.Txn(ctx, ops)
	})
}

// Put implements [bus.Store]. Hooks see it as the one operation that it is.
func (f *FaultyStore) Put(ctx context.Context, key string, value []byte, index uint64) (bool, error) {
	op := bus.Op{Verb: bus.OpCAS, Key: key, Value: value, Index: index}
	return through(f, CallPut, []bus.Op{op}, func() (bool, error) {
		f.writes.Add(1)
		f.keys.Add(1)
		return f.inner.Put(ctx, key, value, index)
	})
}

// Watch implements [bus.Store]. A Before hook that blocks holds the watch back; an
// After hook that blocks holds its wake-up back.
func (f *FaultyStore) Watch(ctx context.Context, prefix string, after uint64) ([]bus.Pair, uint64, error) {
	var index uint64
	pairs, err := through(f, CallWatch, nil, func() (pairs []bus.Pair, err error) {
		pairs, index, err = f.inner.Watch(ctx, prefix, after)
		return pairs, err
	})
	if err != nil {
		return nil, 0, err
	}
	return pairs, index, nil
}

// NewSession implements [bus.Store].
func (f *FaultyStore) NewSession(ctx context.Context, opt bus.SessionOptions) (string, error) {
	return through(f, CallNewSession, nil, func() (string, error) { return f.inner.NewSession(ctx, opt) })
}

// RenewSession implements [bus.Store].
func (f *FaultyStore) RenewSession(ctx context.Context, id string) error {
	_, err := through(f, CallRenewSession, nil, func() (struct{}, error) { return struct{}{}, f.inner.RenewSession(ctx, id) })
	return err
}

// DestroySession implements [bus.Store].
func (f *FaultyStore) DestroySession(ctx context.Context, id string) error {
	_, err := through(f, CallDestroySession, nil, func() (struct{}, error) { return struct{}{}, f.inner.DestroySession(ctx, id) })
	return err
}

// Limits implements [bus.Store].
func (f *FaultyStore) Limits() bus.Limits { return f.inner.Limits() }

// Describe implements [bus.Store].
func (f *FaultyStore) Describe() string { return f.inner.Describe() }

// Close implements [bus.Store].
func (f *FaultyStore) Close() error { return f.inner.Close() }
