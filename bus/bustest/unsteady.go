package bustest

import (
	"context"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// Unsteady wraps a store so that its watches do everything that the contract of [bus.Store] allows and that
// a quiet store never does: they return early with nothing changed, tell again what they told before,
// come late, merge changes, and now and then begin anew with a lower index, as after a restore.
// Registrar is not passed on.
func Unsteady(store bus.Store) bus.Store {
	return &unsteady{Store: store, last: map[string]told{}}
}

type unsteady struct {
	bus.Store

	mu    sync.Mutex
	turns int
	last  map[string]told // what a prefix was told before
	// offset is what is taken off every index since the last "restore".
	offset uint64
	// backwards counts the indices that were lower than what the caller had.
	backwards int
}

type told struct {
	pairs []bus.Pair
	index uint64
}

// unsteadyPause is what a late watch is late by.
const unsteadyPause = 3 * time.Millisecond

// Watch implements bus.Store. Indices that are given out are real ones minus an offset, which now and then becomes half
// of what it is taken from: what is given out then is far lower than before. Callers pass back what they were given.
func (u *unsteady) Watch(ctx context.Context, prefix string, after uint64) ([]bus.Pair, uint64, error) {
	u.mu.Lock()
	u.turns++
	turn := u.turns
	before, known := u.last[prefix]
	u.mu.Unlock()
	switch {
	case after != 0 && turn%5 == 1 && known: // the same again, under another index
		return before.pairs, after + 1, nil
	case after != 0 && turn%5 == 2: // nothing has changed
		return before.pairs, after, nil
	case turn%5 == 3: // late, so that changes merge
		t := time.NewTimer(unsteadyPause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	var from uint64 // the index that the store itself gave
	if known && after != 0 {
		from = before.index
	}
	pairs, index, err := u.Store.Watch(ctx, prefix, from)
	if err != nil {
		return nil, 0, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last[prefix] = told{pairs, index}
	if turn%17 == 0 {
		u.offset = index / 2
	}
	if index > u.offset {
		index -= u.offset
	}
	if index == after {
		index++ // the same index would say that nothing has changed
	}
	if index < after {
		u.backwards++
	}
	return pairs, index, nil
}
