package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
)

// bellInline is the largest entry, in bytes, that travels inside its bell. It bounds what a
// receiver reads at a wake: one bell per source gateway.
const bellInline = 8 << 10

// lane is the sending end of (this gateway, target agent). Only the writer touches it,
// but for cursor.
type lane struct {
	to    string
	index uint64 // the bell's ModifyIndex; 0: there is no bell yet
	value []byte // the bell as it stands in the store
	seq   uint64
	count uint64
	// inline is the encoded entry seq while it is only in the bell.
	inline []byte
	// slots are the entries that have a key of their own, oldest first.
	slots []uint64
	*laneShared
}

// laneShared is what others than the writer may read and raise.
type laneShared struct {
	// cursor is what the receiver has taken, as far as this gateway knows.
	cursor atomic.Uint64
	// waiting is the number of slots not yet deleted.
	waiting atomic.Int64
}

// loadLane reads the sending end from the store, where it survives its gateway.
func (w *writer) loadLane(ctx context.Context, to string) (*lane, error) {
	l := &lane{to: to, laneShared: w.b.outbox.shared(to)}
	p, err := w.b.store.Get(ctx, bellKey(to, w.b.cfg.Gateway))
	if err != nil {
		return nil, fmt.Errorf("read bell of %s: %w", to, err)
	}
	if err := l.adopt(p); err != nil {
		return nil, err
	}
	prefix := lanePrefix(w.b.cfg.Gateway, to)
	keys, err := w.b.store.Keys(ctx, prefix, "")
	if err != nil {
		return nil, fmt.Errorf("list lane to %s: %w", to, err)
	}
	for _, k := range keys {
		if n, ok := parsePadded(k[len(prefix):]); ok {
			// A slot beyond the bell is one that a lost try left behind: it was never
			// announced, and the next entry is written over it. But without a bell (somebody
			// deleted it) no number may be used again.
			if l.index != 0 && n > l.seq {
				continue
			}
			l.slots = append(l.slots, n)
			l.seq = max(l.seq, n)
		}
	}
	h, _, err := w.b.readHead(ctx, w.b.cfg.Gateway, to)
	if err != nil {
		return nil, err
	}
	raise(&l.cursor, h.Cursor)
	l.waiting.Store(int64(len(l.slots)))
	if h.Cursor > l.seq {
		l.seq, l.count = h.Cursor, h.Count
	}
	return l, nil
}

// adopt takes the bell over as the store has it.
func (l *lane) adopt(p *Pair) error {
	l.inline = nil
	if p == nil || p.Key == "" {
		l.index, l.value = 0, nil
		return nil
	}
	var b bell
	if err := json.Unmarshal(p.Value, &b); err != nil {
		return fmt.Errorf("bell %s is not readable (%w); delete the key to mend it, no message is lost", p.Key, err)
	}
	l.index, l.value = p.ModifyIndex, p.Value
	l.seq, l.count = max(l.seq, b.Seq), max(l.count, b.Count)
	if len(b.Entry) > 0 {
		l.inline = b.Entry
	}
	return nil
}

// raise lifts a to at least n.
func raise(a *atomic.Uint64, n uint64) {
	for {
		old := a.Load()
		if n <= old || a.CompareAndSwap(old, n) {
			return
		}
	}
}

// readHead returns the receipts key of a lane, zero when there is none yet.
func (b *Bus) readHead(ctx context.Context, from, agent string) (receiptHead, *Pair, error) {
	var h receiptHead
	p, err := b.store.Get(ctx, receiptsKey(from, agent))
	if err != nil {
		return h, nil, fmt.Errorf("read receipts of %s from %s: %w", agent, from, err)
	}
	if p == nil {
		return h, nil, nil
	}
	if err := json.Unmarshal(p.Value, &h); err != nil {
		return h, p, fmt.Errorf("receipts %s are not readable (%w); restore the key from a snapshot, or delete it to handle what waits again", p.Key, err)
	}
	return h, p, nil
}
