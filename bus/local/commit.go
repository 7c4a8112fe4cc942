package local

import (
	"bytes"
	"context"
	"encoding/json"
	"runtime"

	bolt "go.etcd.io/bbolt"

	"github.com/gatemesh/gatemesh/bus"
)

// What one commit collects at most, so that nobody waits long behind a crowd.
const (
	batchRequests = 512
	batchBytes    = 4 << 20
)

// request is a change that waits for, or is in, a commit.
type request struct {
	// apply changes the batch or, returning an error, leaves it as it was.
	apply func(*batch) error
	// settled, if any, is called with s.mu held before done is closed, with the
	// outcome. It must not block.
	settled func(error)
	bytes   int
	err     error         // valid once done is closed
	done    chan struct{} // closed by the committer
}

func newRequest(bytes int, apply func(*batch) error) *request {
	return &request{apply: apply, bytes: bytes, done: make(chan struct{})}
}

// submit has r committed and returns its outcome. When ctx ends first, r is
// withdrawn; once the committer has it that is too late, and submit waits, so
// that the context's error always means "not applied".
func (s *Store) submit(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return bus.ErrClosed
	}
	s.enqueueLocked(r)
	s.mu.Unlock()

	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
	}
	if s.withdraw(r) {
		return ctx.Err()
	}
	<-r.done
	return r.err
}

func (s *Store) enqueueLocked(r *request) {
	s.queue = append(s.queue, r)
	s.work.Signal()
}

func (s *Store) withdraw(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, q := range s.queue {
		if q == r {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
			return true
		}
	}
	return false
}

// commitLoop is the committer: the only goroutine that writes.
func (s *Store) commitLoop() {
	defer close(s.done)
	for {
		rs := s.take()
		if rs == nil {
			return
		}
		s.commitAll(rs)
		// Those just answered may have more to write; let them queue it for the
		// commit that starts now instead of the one after.
		runtime.Gosched()
	}
}

// take waits for requests and removes up to one commit's worth from the queue. When
// the store closes it refuses what is left and returns nil.
func (s *Store) take() []*request {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 && !s.closed {
		s.work.Wait()
	}
	if s.closed {
		for _, r := range s.queue {
			r.settleLocked(bus.ErrClosed)
		}
		s.queue = nil
		return nil
	}
	n, bytes := 0, 0
	for n < len(s.queue) && n < batchRequests && (n == 0 || bytes+s.queue[n].bytes <= batchBytes) {
		bytes += s.queue[n].bytes
		n++
	}
	rs := s.queue[:n:n]
	s.queue = s.queue[n:]
	if len(s.queue) == 0 {
		s.queue = nil // frees the array, whose head is in rs
	}
	return rs
}

func (r *request) settleLocked(err error) {
	r.err = err
	if r.settled != nil {
		r.settled(err)
	}
	close(r.done)
}

// commitAll applies rs one after another and writes what came of them at once.
func (s *Store) commitAll(rs []*request) {
	errs, changes, err := s.write(rs)
	if err != nil {
		err = s.unavailable(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.announceLocked(changes)
	} else {
		// If only the last sync failed the changes may be visible all the same: let
		// everybody look. The failed indices are never used again, so nobody who
		// has seen this floor can miss anything.
		s.deletes.floor = s.index
		for w := range s.watches {
			w.signal()
		}
	}
	for i, r := range rs {
		if err != nil {
			// Also for the refused ones: what refused them may be part of what failed.
			r.settleLocked(err)
			continue
		}
		r.settleLocked(s.readError(errs[i]))
	}
}

// write returns the outcome of each request and the changes, or the error that
// undid them all.
func (s *Store) write(rs []*request) (errs []error, _ []change, err error) {
	tx, err := s.db.Begin(true)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it only says so
	b := s.newBatch(tx, s.index)
	defer func() { s.index = b.index }()
	errs = make([]error, len(rs))
	for i, r := range rs {
		errs[i] = r.apply(b)
		if b.broken != nil {
			return nil, nil, b.broken
		}
	}
	if b.dirty {
		if err := b.commit(); err != nil {
			return nil, nil, err
		}
	}
	return errs, b.changes, nil
}

// change is one changed key, for the watches.
type change struct {
	key     string
	index   uint64
	deleted bool
}

// batch is one commit in the making.
type batch struct {
	s *Store
	state
	meta, locks *bolt.Bucket
	tx          *bolt.Tx
	index       uint64 // the last index given out
	changes     []change
	dirty       bool  // something was written
	broken      error // the file failed halfway: nothing of the batch may be committed
}

func (s *Store) newBatch(tx *bolt.Tx, index uint64) *batch {
	return &batch{
		s: s, state: s.newState(tx), tx: tx, index: index,
		meta: tx.Bucket(bucketMeta), locks: tx.Bucket(bucketLocks),
	}
}

func (b *batch) commit() error {
	if err := putUint(b.meta, keyIndex, b.index); err != nil {
		return err
	}
	if fault := b.s.commitFault; fault != nil {
		if err := fault(); err != nil {
			return err
		}
	}
	return b.tx.Commit()
}

// fail marks the batch as broken. The error goes to everybody in it.
func (b *batch) fail(err error) error {
	b.broken = err
	return err
}

// put writes next to key, or deletes the key, if it is there, when next is nil. It
// keeps the lock records in step.
func (b *batch) put(key string, next *entry, index uint64) error {
	old, err := b.get(key)
	if err != nil {
		return b.fail(err)
	}
	oldHolder, newHolder := holder(old), holder(next)
	switch {
	case next != nil:
		err = b.pairs.Put([]byte(key), next.encode())
	case old != nil:
		err = b.pairs.Delete([]byte(key))
	default:
		return nil
	}
	if err == nil && oldHolder != newHolder && oldHolder != "" {
		err = b.locks.Delete(lockName(oldHolder, key))
	}
	if err == nil && oldHolder != newHolder && newHolder != "" {
		err = b.locks.Put(lockName(newHolder, key), nil)
	}
	if err != nil {
		return b.fail(err)
	}
	b.dirty = true
	b.changes = append(b.changes, change{key: key, index: index, deleted: next == nil})
	return nil
}

// startSession writes a new session.
func (b *batch) startSession(id string, rec sessionRecord) error {
	v, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := b.sessions.Put([]byte(id), v); err != nil {
		return b.fail(err)
	}
	b.dirty = true
	return nil
}

// endSession deletes the session and the keys it locks, if it is there.
func (b *batch) endSession(id string) error {
	if b.sessions.Get([]byte(id)) == nil {
		return nil
	}
	prefix := lockPrefix(id)
	var keys []string
	c := b.locks.Cursor()
	for k, _ := c.Seek(prefix); len(k) > len(prefix) && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		keys = append(keys, string(k[len(prefix):]))
	}
	for _, key := range keys {
		if err := b.put(key, nil, b.index+1); err != nil {
			return err
		}
	}
	if err := b.sessions.Delete([]byte(id)); err != nil {
		return b.fail(err)
	}
	b.index++
	b.dirty = true
	return nil
}
