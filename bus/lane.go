package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/gatemesh/gatemesh/envelope/trust"
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
	// sent and taken count envelopes: ever put into the lane, and taken as far as this gateway knows.
	sent, taken atomic.Uint64

	// bell is the lane's bell as this process wrote it last.
	bell atomic.Pointer[[]byte]

	mu sync.Mutex
	// inside are the messages of the entries that nobody has taken, by number, as far as this process sent them:
	// what says that an entry is lost can name its number only.
	inside map[uint64][]string
	// order is its numbers, oldest first: forgetting must not cost what waits.
	order []uint64
	held  int
}

// maxInside bounds the message ids that inside holds.
const maxInside = 16384

// hold remembers what is in an entry.
func (l *laneShared) hold(seq uint64, ids []string) {
	if len(ids) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held+len(ids) > maxInside {
		return
	}
	if l.inside == nil {
		l.inside = map[uint64][]string{}
	}
	if l.inside[seq] == nil {
		l.order = append(l.order, seq)
	}
	l.held += len(ids) - len(l.inside[seq])
	l.inside[seq] = ids
}

// drop forgets the entries up to cursor.
func (l *laneShared) drop(cursor uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.order) > 0 && l.order[0] <= cursor {
		l.held -= len(l.inside[l.order[0]])
		delete(l.inside, l.order[0])
		l.order = l.order[1:]
	}
}

// in returns the messages of an entry, nil when they are not known.
func (l *laneShared) in(seq uint64) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inside[seq]
}

// entryID stands in a receipt for what was in an entry that cannot be read.
func entryID(from string, seq uint64) string { return from + "-" + padded(seq) }

// laneJump is added to the newest known number when a lane's bell was deleted or made unreadable by
// hand: the receiver may have seen numbers that nothing in the store tells of any more, and a
// number that is used again would be taken for an old one.
const laneJump = 64

// loadLane reads the sending end from the store, where it survives its gateway. floor is the newest
// number that this process knows to be used.
func (w *writer) loadLane(ctx context.Context, to string, floor uint64) (*lane, error) {
	l := &lane{to: to, seq: floor, laneShared: w.b.outbox.shared(to)}
	p, err := w.b.store.Get(ctx, bellKey(to, w.b.cfg.Gateway))
	if err != nil {
		return nil, fmt.Errorf("read bell of %s: %w", to, err)
	}
	whole := true
	if err := w.ownBell(to, p); err != nil {
		// Somebody else wrote it. Nothing that it says is so, not even its number.
		w.b.refuse(p.Key, p.Value, err, "@"+w.b.cfg.Gateway, to)
		l.index, l.value, whole = p.ModifyIndex, p.Value, false
	} else if err := l.adopt(p); err != nil {
		// It is this gateway's own key, so nobody else will mend it.
		w.b.log.Warn("a bell is not readable; writing a new one", "error", err)
		l.index, l.value, whole = p.ModifyIndex, p.Value, false
	}
	if mark := w.b.marks.get(sentMarks, to); w.b.enforced() && mark > l.seq {
		// True, and older than what this gateway remembers. Numbers that were used since must not be used again.
		value := l.value
		w.b.refuse(bellKey(to, w.b.cfg.Gateway), value, &trust.Refusal{Reason: trust.Replay, Gateway: w.b.cfg.Gateway, Detail: fmt.Sprintf("bell %d, and %d was written", l.seq, mark)}, "@"+w.b.cfg.Gateway, to)
		l.seq = mark + rollbackJump
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
			if l.index != 0 && whole && n > l.seq {
				continue
			}
			l.slots = append(l.slots, n)
			l.seq = max(l.seq, n)
		}
	}
	h, _, err := w.b.readHead(ctx, w.b.cfg.Gateway, to)
	if refused := (*trust.Refusal)(nil); errors.Is(err, errUnreadable) || errors.As(err, &refused) {
		w.b.log.Warn("sending on without knowing what was taken", "error", err)
	} else if err != nil {
		return nil, err
	}
	raise(&l.cursor, h.Cursor)
	raise(&l.taken, h.Count)
	l.waiting.Store(int64(len(l.slots)))
	if h.Cursor > l.seq {
		l.seq, l.count = h.Cursor, h.Count
	}
	if l.seq > 0 && (l.index == 0 || !whole) {
		l.seq += laneJump
		l.count = max(l.count, h.Count)
	}
	raise(&l.sent, l.count)
	return l, nil
}

// ownBell says why a bell is not to be believed, if so. One that cannot be read is not judged.
func (w *writer) ownBell(to string, p *Pair) error {
	var bl bell
	if !w.b.enforced() || p == nil || json.Unmarshal(p.Value, &bl) != nil {
		return nil //nolint:nilerr // adopt says so
	}
	_, err := w.b.checkBell(w.b.cfg.Gateway, to, &bl)
	return err
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
		return fmt.Errorf("bell %s: %w: %w", p.Key, errUnreadable, err)
	}
	l.index, l.value = p.ModifyIndex, p.Value
	l.seq, l.count = max(l.seq, b.Seq), max(l.count, b.Count)
	if len(b.Entry) > 0 {
		l.inline = b.Entry
	}
	return nil
}

// errUnreadable: a value in the store is not what this package writes.
var errUnreadable = errors.New("not readable")

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
	body, err := b.read(trust.KindReceipts, p.Key, p.Value, "", agent)
	if err != nil {
		b.refuse(p.Key, p.Value, err, "@"+from, agent)
		return h, p, fmt.Errorf("receipts %s: %w", p.Key, err)
	}
	if err := json.Unmarshal(body, &h); err != nil {
		return receiptHead{}, p, fmt.Errorf("%w: receipts %s: %w; restore the key from a snapshot, or delete it (what was taken last may then be handled again)", errUnreadable, p.Key, err)
	}
	return h, p, nil
}
