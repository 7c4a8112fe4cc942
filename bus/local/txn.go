package local

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"

	"github.com/gatemesh/gatemesh/bus"
)

// Txn implements [bus.Store]. Transactions without a writing op read what is
// committed and sync nothing; so do those that turn out to change nothing.
//
// The context's error means that nothing was applied: once the commit has begun
// Txn waits for its outcome whatever ctx does. [bus.ErrTooLarge] is decided before
// anything else is looked at.
func (s *Store) Txn(ctx context.Context, ops []bus.Op) ([]bus.Pair, error) {
	size, err := measure(ops)
	if err != nil {
		return nil, err
	}
	writes := false
	for _, op := range ops {
		writes = writes || op.Writes()
	}

	var res []bus.Pair
	if !writes {
		err = s.view(ctx, func(tx *bolt.Tx) (err error) {
			t := txn{state: s.newState(tx)}
			res, err = t.run(ops)
			return err
		})
	} else {
		err = s.submit(ctx, newRequest(size, func(b *batch) (err error) {
			res, err = b.txn(ops)
			return err
		}))
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

// maxPut is the largest value of a Put, the same as on Consul.
const maxPut = 508 << 10

// Put implements [bus.Store].
func (s *Store) Put(ctx context.Context, key string, value []byte, index uint64) (bool, error) {
	ops := []bus.Op{{Verb: bus.OpCAS, Key: key, Value: value, Index: index}}
	if len(value) > maxPut || len(key) > maxKey {
		return false, fmt.Errorf("%w: key of %d bytes, at most %d; value of %d bytes, at most %d", bus.ErrTooLarge, len(key), maxKey, len(value), maxPut)
	}
	err := s.submit(ctx, newRequest(len(value), func(b *batch) error {
		_, err := b.txn(ops)
		return err
	}))
	if refused := (*bus.TxnError)(nil); errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

// measure returns the sum of the values' sizes in bytes.
func measure(ops []bus.Op) (int, error) {
	if len(ops) > maxOps {
		return 0, fmt.Errorf("%w: %d operations in a transaction, at most %d", bus.ErrTooLarge, len(ops), maxOps)
	}
	size := 0
	for i, op := range ops {
		if len(op.Key) > maxKey {
			return 0, fmt.Errorf("%w: op %d: key of %d bytes, at most %d", bus.ErrTooLarge, i, len(op.Key), maxKey)
		}
		size += len(op.Value)
	}
	if size > maxBytes {
		return 0, fmt.Errorf("%w: %d bytes of values in a transaction, at most %d", bus.ErrTooLarge, size, maxBytes)
	}
	return size, nil
}

// txn applies ops to the batch, all or none.
func (b *batch) txn(ops []bus.Op) ([]bus.Pair, error) {
	t := txn{state: b.state, index: b.index + 1, over: make(map[string]*entry)}
	res, err := t.run(ops)
	if err != nil {
		return nil, err
	}
	for _, key := range t.order {
		if err := b.put(key, t.over[key], t.index); err != nil {
			return nil, err
		}
	}
	if len(t.order) > 0 {
		// Also when a key only came and went: its index is in the results, and must
		// not become another write's.
		b.index, b.dirty = t.index, true
	}
	return res, nil
}

// state is what a transaction is judged by.
type state struct {
	pairs, sessions *bolt.Bucket
	ending          func(session string) bool
}

func (s *Store) newState(tx *bolt.Tx) state {
	return state{
		pairs: tx.Bucket(bucketPairs), sessions: tx.Bucket(bucketSessions),
		ending: s.ending,
	}
}

// get returns the entry at key, nil when there is none. It is valid until the
// bucket is next written.
func (st state) get(key string) (*entry, error) {
	v := st.pairs.Get([]byte(key))
	if v == nil {
		return nil, nil
	}
	return decode(key, v)
}

// alive reports whether the session may lock and pass checks.
func (st state) alive(session string) bool {
	return session != "" && st.sessions.Get([]byte(session)) != nil && !st.ending(session)
}

// txn is one transaction being judged. It writes to over only, so a refusal needs
// no undoing; later ops see what earlier ones did.
type txn struct {
	state
	index uint64            // what the transaction's writes get
	over  map[string]*entry // nil: deleted
	order []string          // the keys of over as they came
}

func (t *txn) get(key string) (*entry, error) {
	if e, ok := t.over[key]; ok {
		return e, nil
	}
	return t.state.get(key)
}

func (t *txn) set(key string, e *entry) {
	if _, ok := t.over[key]; !ok {
		t.order = append(t.order, key)
	}
	t.over[key] = e
}

// run judges every op, also behind a refused one, so that the caller learns of
// all refusals at once. Errors: *bus.TxnError, or the file's.
func (t *txn) run(ops []bus.Op) ([]bus.Pair, error) {
	res := make([]bus.Pair, len(ops))
	var refused []bus.FailedOp
	for i, op := range ops {
		p, why, err := t.step(op)
		if err != nil {
			return nil, err
		}
		if why != "" {
			refused = append(refused, bus.FailedOp{Op: i, What: op.Verb.String() + " " + why})
		}
		res[i] = p
	}
	if refused != nil {
		return nil, &bus.TxnError{Failed: refused}
	}
	return res, nil
}

// step judges one op. A non-empty why is a refusal.
func (t *txn) step(op bus.Op) (p bus.Pair, why string, err error) {
	if why := badKey(op); why != "" {
		return p, why, nil
	}
	if op.Verb == bus.OpDeleteTree {
		return bus.Pair{Key: op.Key}, "", t.deleteTree(op.Key)
	}
	old, err := t.get(op.Key)
	if err != nil {
		return p, "", err
	}
	refuse := func(format string, args ...any) (bus.Pair, string, error) {
		return bus.Pair{}, fmt.Sprintf("%q: ", op.Key) + fmt.Sprintf(format, args...), nil
	}
	only := bus.Pair{Key: op.Key}

	switch op.Verb {
	case bus.OpGet:
		if old == nil {
			return bus.Pair{}, "", nil
		}
		return old.pair(op.Key), "", nil

	case bus.OpSet:
		return t.write(op, old, holder(old)), "", nil

	case bus.OpCAS:
		switch {
		case op.Index == 0 && old != nil:
			return refuse("exists (index %d)", old.modify)
		case op.Index != 0 && old == nil:
			return refuse("no such key, expected index %d", op.Index)
		case op.Index != 0 && old.modify != op.Index:
			return refuse("index is %d, expected %d", old.modify, op.Index)
		}
		return t.write(op, old, holder(old)), "", nil

	case bus.OpDelete, bus.OpDeleteCAS:
		if old == nil {
			return only, "", nil
		}
		if op.Verb == bus.OpDeleteCAS && old.modify != op.Index {
			return refuse("index is %d, expected %d", old.modify, op.Index)
		}
		t.set(op.Key, nil)
		return only, "", nil

	case bus.OpLock:
		switch {
		case !t.alive(op.Session):
			return refuse("session %q has ended", op.Session)
		case old != nil && old.session != "" && old.session != op.Session:
			return refuse("locked by session %q", old.session)
		}
		return t.write(op, old, op.Session), "", nil

	case bus.OpUnlock:
		if why := t.notHeld(old, op.Session); why != "" {
			return refuse("%s", why)
		}
		return t.write(op, old, ""), "", nil

	case bus.OpCheckSession:
		if why := t.notHeld(old, op.Session); why != "" {
			return refuse("%s", why)
		}
		return only, "", nil

	case bus.OpCheckIndex:
		switch {
		case old == nil:
			return refuse("no such key, expected index %d", op.Index)
		case old.modify != op.Index:
			return refuse("index is %d, expected %d", old.modify, op.Index)
		}
		return only, "", nil

	case bus.OpCheckNotExists:
		if old != nil {
			return refuse("exists (index %d)", old.modify)
		}
		return only, "", nil

	default:
		return refuse("unknown verb %d", op.Verb)
	}
}

// holder returns the session that locks e, if any.
func holder(e *entry) string {
	if e == nil {
		return ""
	}
	return e.session
}

// notHeld says why session does not hold the lock of a key, or nothing.
func (t *txn) notHeld(e *entry, session string) string {
	switch {
	case !t.alive(session):
		return fmt.Sprintf("session %q has ended", session)
	case e == nil:
		return "no such key"
	case e.session == "":
		return "not locked"
	case e.session != session:
		return fmt.Sprintf("locked by session %q, not %q", e.session, session)
	default:
		return ""
	}
}

// write sets key to the op's value, locked by session if any.
func (t *txn) write(op bus.Op, old *entry, session string) bus.Pair {
	next := &entry{create: t.index, modify: t.index, session: session, value: op.Value}
	if old != nil {
		if old.same(next) {
			return old.stamp(op.Key)
		}
		next.create = old.create
	}
	t.set(op.Key, next)
	return next.stamp(op.Key)
}

func (t *txn) deleteTree(prefix string) error {
	for key, e := range t.over {
		if e != nil && strings.HasPrefix(key, prefix) {
			t.over[key] = nil
		}
	}
	return scan(t.pairs, prefix, func(key string, _ *entry) {
		t.set(key, nil)
	})
}

// badKey refuses what Consul would refuse or garble.
func badKey(op bus.Op) string {
	switch {
	case op.Key == "" && op.Verb != bus.OpDeleteTree:
		return "needs a key"
	case strings.HasPrefix(op.Key, "/"):
		return fmt.Sprintf("%q: a key must not begin with a slash", op.Key)
	case !utf8.ValidString(op.Key):
		return fmt.Sprintf("%q: a key must be UTF-8", op.Key)
	default:
		return ""
	}
}
