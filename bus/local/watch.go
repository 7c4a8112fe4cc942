package local

import (
	"context"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/gatemesh/gatemesh/bus"
)

// watch is a waiting Watch.
type watch struct {
	prefix string
	wake   chan struct{} // holds one wake-up: they merge
}

func (w *watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Watch implements [bus.Store]. The index is the highest at which something below
// prefix was written or deleted, or a higher one; it is never 0. Changes outside
// of prefix do not wake it. It returns early with nothing changed after
// Options.MaxWait, after a commit failed, and when more than a thousand deletions
// anywhere lie between two calls: older ones are not remembered by key.
func (s *Store) Watch(ctx context.Context, prefix string, after uint64) ([]bus.Pair, uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	// Registered before the first look, or what is committed in between would be
	// missed.
	w := &watch{prefix: prefix, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, 0, bus.ErrClosed
	}
	s.watches[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watches, w)
		s.mu.Unlock()
	}()

	wait := time.NewTimer(s.maxWait)
	defer wait.Stop()
	anyway := after == 0
	for {
		list, index, err := s.look(ctx, prefix, after, anyway)
		if err != nil {
			return nil, 0, err
		}
		if index != after || anyway {
			return list, index, nil
		}
		select {
		case <-w.wake:
		case <-wait.C:
			anyway = true
		case <-s.closing:
			return nil, 0, bus.ErrClosed
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// look returns what is below prefix and its index: after when nothing is known to
// have changed since, less than after only if the store never came that far (it
// was restored, and the caller must not wait for it to catch up). It does not read
// the values when the index is after, unless anyway is set.
func (s *Store) look(ctx context.Context, prefix string, after uint64, anyway bool) (list []bus.Pair, index uint64, err error) {
	// The deletions come first: one that is committed between the two reads is then
	// seen without being counted. It is announced in a moment and wakes the caller,
	// at worst needlessly. The other way round it would be counted without being
	// seen, and missed.
	s.mu.Lock()
	index = s.deletes.last(prefix)
	s.mu.Unlock()
	err = s.view(ctx, func(tx *bolt.Tx) error {
		err := scan(tx.Bucket(bucketPairs), prefix, func(_ string, e *entry) {
			index = max(index, e.modify)
		})
		// What was there at after may be gone without being counted yet.
		if after <= getUint(tx.Bucket(bucketMeta), keyIndex) {
			index = max(index, after)
		}
		if err != nil || index == after && !anyway {
			return err
		}
		list, err = readAll(tx, prefix)
		return err
	})
	return list, index, err
}

// announceLocked tells the watches what a commit changed.
func (s *Store) announceLocked(changes []change) {
	for _, c := range changes {
		if c.deleted {
			s.deletes.add(c.key, c.index)
		}
	}
	for w := range s.watches {
		for _, c := range changes {
			if strings.HasPrefix(c.key, w.prefix) {
				w.signal()
				break
			}
		}
	}
}

// deleteMemory is how many deletions are remembered by key at least (and at
// most twice as many).
const deleteMemory = 1024

// deleteLog remembers recent deletions, which leave no trace in the file.
type deleteLog struct {
	recent []change // by rising index
	floor  uint64   // deletions up to here may have been forgotten
}

func (l *deleteLog) add(key string, index uint64) {
	if len(l.recent) >= 2*deleteMemory {
		old := len(l.recent) - deleteMemory
		l.floor = max(l.floor, l.recent[old-1].index)
		n := copy(l.recent, l.recent[old:])
		clear(l.recent[n:]) // lets go of the keys
		l.recent = l.recent[:n]
	}
	l.recent = append(l.recent, change{key: key, index: index, deleted: true})
}

// last returns the index of the newest deletion below prefix, or at least the floor.
func (l *deleteLog) last(prefix string) uint64 {
	for i := len(l.recent) - 1; i >= 0 && l.recent[i].index > l.floor; i-- {
		if strings.HasPrefix(l.recent[i].key, prefix) {
			return l.recent[i].index
		}
	}
	return l.floor
}
