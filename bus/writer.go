package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// unit is what must be written together or not at all.
type unit struct {
	// ctx bounds how long the caller waits; the writer drops the unit when it ended and
	// the unit is known not to be written.
	ctx   context.Context
	sends []laneItem

	// What follows is an owner's, and is refused once it is deposed.
	owner    *inbox
	taken    []*laneEntry // one for each message that is resolved by this unit: its place in the lane is behind the cursor
	receipts []ownedReceipt
	pending  []pendingOp
	extra    []Op

	// sweep names a lane whose taken slots are to be deleted; load has it read first if this process has not used
	// it. beyond are slots of it that no bell names, left by tries that were lost: they go too.
	sweep  string
	load   bool
	beyond []uint64
	// mend names a lane whose bell is to be put back if it is not what this gateway wrote.
	mend string
	// again is a lane whose cursor is to be written once more, as it is.
	again *source

	// urgent: it does more than tell of what is done, so it waits for no company. Set by submit.
	urgent bool
	// at is when the last try was laid out: the entry's time, so never later than the moment at
	// which somebody could see what it sends.
	at envelope.Time
	// done gets the outcome exactly once, through finish.
	done     func(error)
	finished bool
}

// send adds a message to the unit. One that is passed on goes into another lane than its own target's.
func (u *unit) send(x *outgoing) {
	meta := itemMeta{Hops: x.hops, AttemptID: x.o.AttemptID}
	to := x.s.TargetAgent
	if x.forward != nil {
		to, meta.For, meta.Spent = x.forward.to, x.forward.to, x.forward.spent
		meta.Keys = x.forward.keys
	}
	if x.proof != nil {
		meta.Proof = x.proof
	}
	u.sends = append(u.sends, newLaneItem(to, x.s, meta))
}

// laneItem is one message on its way into a lane.
type laneItem struct {
	to string
	s  *envelope.Sealed
	// tail is what stands in the item behind the envelope.
	tail []byte
	leaf trust.Hash
}

// newLaneItem hashes the item, too. Here and not in the writer: that is most of what a signature costs, and there is one writer.
func newLaneItem(to string, s *envelope.Sealed, meta itemMeta) laneItem {
	it := laneItem{to: to, s: s, tail: encodeTail(meta)}
	it.leaf = trust.Leaf(s.Canonical(), metaHash(it.tail[:len(it.tail)-1]))
	return it
}

// size is what it takes in an entry.
func (it *laneItem) size() int { return len(itemHead) + len(it.s.Canonical()) + len(it.tail) }

// sizeOf is what they take in an entry.
func sizeOf(items []laneItem) int {
	n := 0
	for i := range items {
		n += items[i].size()
	}
	return n
}

func (u *unit) finish(err error) {
	if !u.finished {
		u.finished = true
		u.done(err)
	}
}

type ownedReceipt struct {
	src *source
	receipt
}

// pendingOp writes or (with a nil value) deletes a record of the owner. at is the index that
// the key must have; only the writer reads and changes it.
type pendingOp struct {
	key   string
	value []byte
	at    *uint64
}

// Limits of one batch; all far below the store's.
const (
	batchSends = 512
	batchUnits = 2048
	// entryBytes is what an entry may have, packed; entryMost what it may have before that.
	entryBytes   = 480 << 10
	entryMost    = 900 << 10
	receiptBytes = 64 // what one receipt of many is taken to cost
	// bulkUnits is how many receipts make a batch after which there is a rest, of longestRest at the most.
	bulkUnits   = 64
	longestRest = 40 * time.Millisecond
	pageOps     = 3 // the cursor, the page that makes room for new receipts, and theirs
	// bigEntry is from where on an entry is put into its slot by a request of its own, as it
	// is, before the transaction that names it: in base64 inside the transaction's
	// JSON it would cost every server more than the second request does.
	bigEntry = 24 << 10
)

// writer is the one place that writes for delivery. It takes whatever units wait, packs them
// into one transaction, and looks again: batches build themselves while a
// transaction is in flight, and nothing waits for company.
type writer struct {
	b     *Bus
	lanes map[string]*lane
	limit *rate.Limiter
	// packed is what the last entry kept of its size when it was packed, and room where an entry is laid out before. Only the writer's
	// goroutine uses them.
	packed float64
	room   []byte
	// used is the newest number of a lane that has to be read again.
	used map[string]uint64

	// ailment is what the first try was told that failed since one succeeded; nil when none did. Later ones are told of
	// the consequences: a Consul server that cannot write steps down, and then there is no leader.
	ailment atomic.Pointer[error]

	mu      sync.Mutex
	queue   []*unit
	bytes   int // of queued sends
	urgent  int // queued units that are
	stopped bool
	// wake carries wake-ups (capacity 1), not units.
	wake chan struct{}
	done chan struct{}
}

func newWriter(b *Bus) *writer {
	return &writer{b: b, packed: 1, limit: rate.NewLimiter(rate.Limit(b.cfg.MaxWrites), max(1, b.cfg.MaxWrites/10)), lanes: make(map[string]*lane), used: make(map[string]uint64), wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// queueBytes bounds the sends that wait in memory.
const queueBytes = 32 << 20

// submit queues a unit. Its done is called from the writer's goroutine, or from here
// when the writer has stopped.
func (w *writer) submit(u *unit) {
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		u.finish(ErrStopped)
		return
	}
	w.queue = append(w.queue, u)
	w.bytes += u.size()
	if u.urgent = len(u.sends)+len(u.pending)+len(u.extra) > 0 || len(u.receipts) == 0; u.urgent {
		w.urgent++
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// full reports whether new sends should be refused for now.
func (w *writer) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes > queueBytes
}

// size is what the unit holds in memory.
func (u *unit) size() int {
	n := u.inTxn()
	return n + sizeOf(u.sends)
}

// inTxn is what the unit adds to a transaction, without what it sends.
func (u *unit) inTxn() int {
	n := 0
	for _, p := range u.pending {
		n += len(p.value)
	}
	for _, x := range u.extra {
		n += len(x.Value)
	}
	return n + receiptBytes*len(u.receipts)
}

// run writes until ctx ends and the queue is empty or, at the latest, until
// hard ends.
func (w *writer) run(ctx, hard context.Context) {
	defer close(w.done)
	var next *ahead
	var rest time.Time
	for {
		if next == nil {
			w.rest(ctx, rest)
			if units := w.take(); len(units) > 0 {
				next = &ahead{units: units}
			}
		}
		if next != nil {
			bulk := len(next.units) >= bulkUnits && !slices.ContainsFunc(next.units, func(u *unit) bool { return u.urgent })
			began := time.Now()
			next = w.commit(hard, next)
			if rest = (time.Time{}); bulk {
				now := time.Now()
				rest = now.Add(min(2*now.Sub(began), longestRest))
			}
			continue
		}
		select {
		case <-w.wake:
			continue
		default:
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			w.mu.Lock()
			empty := len(w.queue) == 0
			if empty || hard.Err() != nil {
				w.stopped = true
				rest := w.queue
				w.queue = nil
				w.mu.Unlock()
				for _, u := range rest {
					u.finish(ErrStopped)
				}
				return
			}
			w.mu.Unlock()
		}
	}
}

// rest waits until a moment, or until something is queued that cannot wait, or much. After a batch of many receipts and nothing
// else, the next such batch waits twice as long as that one took: a commit costs the servers as much for one receipt as for hundreds, and under load
// every batch would hold just those that were done while the one before was written.
func (w *writer) rest(ctx context.Context, until time.Time) {
	d := time.Until(until)
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		w.mu.Lock()
		enough := w.urgent > 0 || len(w.queue) >= batchUnits/2
		w.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-w.wake:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// take removes the units of the next batch from the queue, in order, as many as
// one transaction holds.
func (w *writer) take() []*unit {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return nil
	}
	lim := w.b.store.Limits()
	ops, size, n, envelopes, most := 1, 0, 0, 0, w.entryRoom()
	lanes := map[string]int{}
	owners := map[*inbox]bool{}
	pages := map[*source]bool{}
	records := map[string]bool{}
	for _, u := range w.queue {
		o, s := ops, size+u.inTxn()
		for _, x := range u.sends {
			have, ok := lanes[x.to]
			if !ok {
				o += 3
				s += bellInline
			}
			// A big entry is not in the transaction, but for its first bytes until it is big.
			s += min(bigEntry, have+x.size()) - min(bigEntry, have)
		}
		if u.owner != nil && !owners[u.owner] {
			o++
		}
		for _, e := range u.taken {
			if !pages[e.src] {
				o += pageOps
			}
		}
		for _, r := range u.receipts {
			if !pages[r.src] {
				o += pageOps
				s += 2 * r.src.headBytes()
			}
		}
		o += len(u.pending) + len(u.extra)
		tooBig := false
		for _, po := range u.pending {
			// The second write of a record needs the index that the first one gets.
			tooBig = tooBig || records[po.key]
		}
		for _, x := range u.sends {
			tooBig = tooBig || lanes[x.to]+x.size() > most
		}
		if n > 0 && (o > lim.Ops || s > lim.Bytes || envelopes+len(u.sends) > batchSends || n >= batchUnits || tooBig) {
			break
		}
		for _, x := range u.sends {
			lanes[x.to] += x.size()
		}
		if u.owner != nil {
			owners[u.owner] = true
		}
		for _, e := range u.taken {
			pages[e.src] = true
		}
		for _, r := range u.receipts {
			pages[r.src] = true
		}
		for _, po := range u.pending {
			records[po.key] = true
		}
		ops, size = o, s
		envelopes += len(u.sends)
		n++
	}
	batch := w.queue[:n:n]
	w.queue = w.queue[n:]
	if len(w.queue) == 0 {
		w.queue = nil
	}
	for _, u := range batch {
		w.bytes -= u.size()
		if u.urgent {
			w.urgent--
		}
	}
	return batch
}

// commit writes a batch: tries, finds out what became of a try whose answer was lost, and
// tries again until every unit is written, refused or given up by its caller. It returns the batch
// that was begun meanwhile, nil when none was.
func (w *writer) commit(ctx context.Context, a *ahead) *ahead {
	a.wait()
	batch := a.units
	wait := newBackoffUpTo(urgent)
	var tries []*plan // whose outcome is not known
	refusals := 0
	for len(batch) > 0 {
		if ctx.Err() != nil {
			fail(batch, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrStopped))
			return nil
		}
		if len(tries) > 0 {
			// Nothing may be written before it is known where the store stands.
			p, pairs, err := w.which(ctx, tries)
			if err != nil {
				batch = w.giveUp(batch, true)
				w.b.pause(ctx, wait, err)
				continue
			}
			if p != nil {
				w.b.storeUp()
				w.applied(p, pairs)
				batch = without(batch, p.units)
				tries = nil
				continue
			}
		}
		batch = w.giveUp(batch, len(tries) > 0)
		if len(batch) == 0 {
			return nil
		}
		if a != nil && len(batch) != len(a.units) {
			a = nil // what was laid out holds more than is left
		}
		p, err := w.build(ctx, batch, a)
		a = nil // good for one try: after that the lanes may stand elsewhere
		if err == nil {
			err = w.putBig(ctx, p)
		}
		if err == nil {
			// A limit on what this gateway asks of the store: what waits meanwhile shares the next write.
			err = w.limit.Wait(ctx)
		}
		if err == nil {
			next := w.lookAhead(ctx, p)
			var pairs []Pair
			pairs, err = w.b.store.Txn(ctx, p.ops)
			if err == nil {
				w.ailment.Store(nil)
				w.b.storeUp()
				w.applied(p, func(op int) uint64 { return pairs[op].ModifyIndex })
				return next
			}
			w.giveBack(next)
		}
		var refused *TxnError
		switch {
		case errors.As(err, &refused):
			batch = w.refused(ctx, p, refused, tries)
			if refusals++; len(batch) > 0 && (refusals > 1 || refused.Refused(0)) {
				w.b.pause(ctx, wait, err)
			}
			// A refusal proves that none of the earlier tries can land any more only
			// for the keys that were read again; refused did that.
			tries = nil
		case errors.Is(err, ErrTooLarge), errors.Is(err, ErrForbidden):
			// A key that the access rules do not know (an agent that is new) must not take the rest with it.
			if len(batch) == 1 {
				fail(batch, err)
				return nil
			}
			w.requeue(batch[len(batch)/2:])
			batch = batch[:len(batch)/2]
		case errors.Is(err, ErrClosed):
			fail(batch, err)
			return nil
		default:
			if p != nil {
				tries = append(tries, p)
			}
			w.ailment.CompareAndSwap(nil, &err)
			w.b.storeDown(err)
			w.b.pause(ctx, wait, err)
		}
	}
	return nil
}

// putBig writes the slots of a plan's big entries. Until a bell names them nobody reads them,
// and a slot that an earlier try left is written over; only one that is not there or that
// this gateway's lock covers can be.
func (w *writer) putBig(ctx context.Context, p *plan) error {
	for _, lw := range p.lanes {
		if lw.big == nil {
			continue
		}
		key := slotKey(w.b.cfg.Gateway, lw.lane.to, lw.seq)
		for index := uint64(0); ; {
			ok, err := w.b.store.Put(ctx, key, lw.big, index)
			if err != nil {
				return err
			}
			if ok {
				break
			}
			old, err := w.b.store.Get(ctx, key)
			if err != nil {
				return err
			}
			index = 0
			if old != nil {
				index = old.ModifyIndex
			}
		}
	}
	return nil
}

// which reads the witnesses of tries whose answers were lost, and returns the try that was
// applied, or nil when none was.
func (w *writer) which(ctx context.Context, tries []*plan) (*plan, func(int) uint64, error) {
	for _, p := range tries {
		if p.witness < 0 {
			continue // only plain sets and deletes: doing them again is the same
		}
		pair, err := w.b.store.Get(ctx, p.ops[p.witness].Key)
		if err != nil {
			return nil, nil, err
		}
		if pair == nil || !bytes.Equal(pair.Value, p.ops[p.witness].Value) || pair.ModifyIndex == p.ops[p.witness].Index {
			continue
		}
		// All keys of one transaction have one index.
		return p, func(int) uint64 { return pair.ModifyIndex }, nil
	}
	return nil, nil, nil
}

// refused takes the units that can never be written out of a refused batch, reads again what
// had moved, and returns the units to try again.
func (w *writer) refused(ctx context.Context, p *plan, e *TxnError, tries []*plan) []*unit {
	batch := p.units
	// A lost try may have landed between reading and writing: the keys tell.
	if len(tries) > 0 {
		if q, index, err := w.which(ctx, tries); err == nil && q != nil {
			w.applied(q, index)
			return without(batch, q.units)
		}
	}
	if e.Refused(0) {
		w.b.session.suspect(p.session)
	}
	for ib, op := range p.owners {
		if !e.Refused(op) {
			continue
		}
		ib.depose(ErrDeposed)
		batch = drop(batch, func(u *unit) bool { return u.owner == ib }, ErrDeposed)
	}
	for _, lw := range p.lanes {
		if e.Refused(lw.op) && !w.keepLane(ctx, lw.lane) {
			w.used[lw.lane.to] = lw.lane.seq
			delete(w.lanes, lw.lane.to) // read again by the next build
		}
	}
	for _, pw := range p.pages {
		if !e.Refused(pw.op) {
			continue
		}
		if err := pw.src.reload(ctx, w.b); err != nil {
			w.b.log.Warn("cannot read receipts again", "lane", pw.src.from+" to "+pw.src.agent, "error", err)
		}
	}
	for _, po := range p.pending {
		if !e.Refused(po.op) {
			continue
		}
		// Somebody deleted or changed the record by hand: take it as it is now.
		pair, err := w.b.store.Get(ctx, po.key)
		switch {
		case err != nil:
		case pair == nil && po.value == nil:
			batch = dropPending(batch, po.key)
		case pair == nil:
			*po.at = 0
		default:
			*po.at = pair.ModifyIndex
		}
	}
	return batch
}

// keepLane reports whether the bell that stands where this lane's should is somebody else's work: one that this gateway did
// not sign, or an older one. Then what this process knows goes on to count, and the next write goes over it.
func (w *writer) keepLane(ctx context.Context, l *lane) bool {
	if !w.b.enforced() || l.value == nil {
		return false
	}
	p, err := w.b.store.Get(ctx, bellKey(l.to, w.b.cfg.Gateway))
	if err != nil {
		return false
	}
	if p == nil {
		l.index = 0
		return true
	}
	var bl bell
	if err := json.Unmarshal(p.Value, &bl); err == nil {
		if _, err = w.b.checkBell(w.b.cfg.Gateway, l.to, &bl); err == nil && bl.Seq >= l.seq && !bytes.Equal(p.Value, l.value) {
			return false // our own, newer: a try that was lost
		} else if err == nil {
			err = &trust.Refusal{Reason: trust.Replay, Gateway: w.b.cfg.Gateway, Detail: fmt.Sprintf("bell %d, and %d was written", bl.Seq, l.seq)}
		}
		if !bytes.Equal(p.Value, l.value) {
			w.b.refuse(p.Key, p.Value, err, "@"+w.b.cfg.Gateway, l.to)
		}
	}
	l.index = p.ModifyIndex
	return true
}

// giveUp takes out the units whose callers no longer wait.
func (w *writer) giveUp(batch []*unit, unknown bool) []*unit {
	rest := batch[:0:0]
	for _, u := range batch {
		err := u.ctx.Err()
		if err == nil && u.owner == nil && u.stale(w.b.now()) {
			err = fmt.Errorf("%w while it waited to be written", ErrExpired)
			if unknown {
				err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
			}
			u.finish(err)
			continue
		}
		if err == nil {
			rest = append(rest, u)
			continue
		}
		if u.owner != nil && u.owner.ctx.Err() != nil {
			err = ErrDeposed
		} else if unknown {
			err = w.b.outcomeUnknown(err)
		} else {
			err = fmt.Errorf("%w: nothing was written: %w", ErrUnavailable, err)
		}
		u.finish(err)
	}
	return rest
}

// stale reports whether a message of the unit expired before it could be written.
func (u *unit) stale(now time.Time) bool {
	for _, x := range u.sends {
		if x.s.Expired(now, envelope.DefaultSkew) {
			return true
		}
	}
	return false
}

func (w *writer) requeue(units []*unit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(append([]*unit(nil), units...), w.queue...)
	for _, u := range units {
		w.bytes += u.size()
		if u.urgent {
			w.urgent++
		}
	}
}

func fail(units []*unit, err error) {
	for _, u := range units {
		u.finish(err)
	}
}

func drop(units []*unit, which func(*unit) bool, err error) []*unit {
	rest := units[:0:0]
	for _, u := range units {
		if which(u) {
			u.finish(err)
		} else {
			rest = append(rest, u)
		}
	}
	return rest
}

func without(units, gone []*unit) []*unit {
	in := make(map[*unit]bool, len(gone))
	for _, u := range gone {
		in[u] = true
	}
	rest := units[:0:0]
	for _, u := range units {
		if !in[u] {
			rest = append(rest, u)
		}
	}
	return rest
}

// dropPending forgets the deletion of a record that is gone already.
func dropPending(units []*unit, key string) []*unit {
	for _, u := range units {
		for i, po := range u.pending {
			if po.key == key && po.value == nil {
				u.pending = append(u.pending[:i:i], u.pending[i+1:]...)
				break
			}
		}
	}
	return units
}
