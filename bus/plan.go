package bus

import (
	"context"
	"slices"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// plan is one try at writing a batch.
type plan struct {
	units   []*unit
	ops     []Op
	session string
	lanes   []laneWrite
	pages   []pageWrite
	owners  map[*inbox]int // the check of its lock
	pending []pendingWrite
	// resolved counts the items of entries that this plan takes; freed the slots it deletes.
	resolved map[*laneEntry]int
	freed    map[*lane]int
	// witness is an op whose key shows whether the plan was applied.
	witness int
}

type laneWrite struct {
	// big is an entry that is put into its slot before the transaction that names it.
	big []byte
	// put: it is in its slot already, since the transaction before.
	put    bool
	lane   *lane
	op     int
	seq    uint64
	count  uint64
	inline []byte
	slots  []uint64 // written
	ids    []string // of the messages in it
}

type pageWrite struct {
	src    *source
	op     int
	next   page
	cursor int // entries of src that are behind the cursor now
}

type pendingWrite struct {
	op int
	pendingOp
}

// build lays a batch out as one transaction, with what was done for it ahead (nil: nothing). It changes nothing
// but to load lanes.
func (w *writer) build(ctx context.Context, batch []*unit, a *ahead) (*plan, error) {
	p := &plan{units: batch, owners: map[*inbox]int{}, resolved: map[*laneEntry]int{}, freed: map[*lane]int{}, witness: -1, session: w.b.session.id()}
	p.add(Op{Verb: OpCheckSession, Key: gatewayLockKey(w.b.cfg.Gateway), Session: p.session})
	now := envelope.At(w.b.now())
	if a != nil && len(a.entries) > 0 {
		now = a.at
	}

	var order []string
	byLane := map[string][]laneItem{}
	var sources []*source
	bySource, again := map[*source][]receipt{}, map[*source]bool{}
	touch := func(s *source) {
		if _, ok := bySource[s]; !ok {
			bySource[s] = nil
			sources = append(sources, s)
		}
	}
	for _, u := range batch {
		u.at = now
		for _, x := range u.sends {
			if _, ok := byLane[x.to]; !ok {
				order = append(order, x.to)
			}
			byLane[x.to] = append(byLane[x.to], x)
		}
		if u.owner != nil {
			if _, ok := p.owners[u.owner]; !ok {
				p.owners[u.owner] = p.add(Op{Verb: OpCheckSession, Key: agentLockKey(u.owner.spec.ID), Session: p.session})
			}
		}
		for _, e := range u.taken {
			p.resolved[e]++
			touch(e.src)
		}
		if u.again != nil {
			touch(u.again)
			again[u.again] = true
		}
		for _, r := range u.receipts {
			touch(r.src)
			bySource[r.src] = joinReceipt(bySource[r.src], r.receipt)
		}
	}
	for _, to := range order {
		l, err := w.laneTo(ctx, to)
		if err != nil {
			return nil, err
		}
		p.appendLane(w, l, byLane[to], now, a.entry(l, len(byLane[to])))
	}
	for _, s := range sources {
		p.appendPage(w.b, s, bySource[s], again[s])
	}
	for _, u := range batch {
		for _, po := range u.pending {
			var op int
			if po.value == nil {
				op = p.add(Op{Verb: OpDeleteCAS, Key: po.key, Index: *po.at})
			} else {
				op = p.add(Op{Verb: OpCAS, Key: po.key, Value: po.value, Index: *po.at})
				p.witnessed(op)
			}
			p.pending = append(p.pending, pendingWrite{op, po})
		}
		for _, x := range u.extra {
			p.add(x)
		}
	}
	for _, u := range batch {
		if u.load {
			if _, err := w.laneTo(ctx, u.sweep); err != nil {
				return nil, err
			}
		}
	}
	w.cleanup(p)
	for _, u := range batch {
		w.mend(ctx, p, u.mend)
	}
	return p, nil
}

// mend puts a lane's bell back that somebody changed or deleted, unless the plan writes it anyway.
func (w *writer) mend(ctx context.Context, p *plan, to string) {
	l := w.lanes[to]
	if l == nil || slices.ContainsFunc(p.lanes, func(lw laneWrite) bool { return lw.lane == l }) || !w.keepLane(ctx, l) {
		return
	}
	op := p.add(Op{Verb: OpCAS, Key: bellKey(to, w.b.cfg.Gateway), Value: l.value, Index: l.index})
	p.witnessed(op)
	p.lanes = append(p.lanes, laneWrite{lane: l, op: op, seq: l.seq, count: l.count, inline: l.inline})
}

func (p *plan) add(o Op) int {
	p.ops = append(p.ops, o)
	return len(p.ops) - 1
}

func (p *plan) witnessed(op int) {
	if p.witness < 0 {
		p.witness = op
	}
}

func (w *writer) laneTo(ctx context.Context, to string) (*lane, error) {
	if l := w.lanes[to]; l != nil {
		return l, nil
	}
	l, err := w.loadLane(ctx, to, w.used[to])
	if err != nil {
		return nil, err
	}
	w.lanes[to] = l
	return l, nil
}

// appendLane puts items into a lane as one entry: inside the bell when the receiver has
// taken all before it, else into a slot of its own. done is that entry if it is in its slot already.
func (p *plan) appendLane(w *writer, l *lane, items []laneItem, now envelope.Time, done *aheadEntry) {
	lw := laneWrite{lane: l, seq: l.seq + 1, count: l.count + uint64(len(items)), put: done != nil}
	for _, it := range items {
		lw.ids = append(lw.ids, it.s.MessageID)
	}
	b := w.b
	gw := b.cfg.Gateway
	var e, value []byte
	var head *signedHead
	if lw.put {
		head = done.head
	} else {
		head = b.signHead(l.to, lw.seq, lw.count, now, items)
		if size := sizeOf(items); size > bigEntry {
			lw.big = w.packItems(lw.seq, lw.count, now, head, items)
		} else {
			e = encodeSigned(nil, lw.seq, lw.count, now, head, items)
		}
	}
	if e != nil && l.cursor.Load() >= l.seq && len(e) <= bellInline {
		lw.inline = e
		value = encodeBell(lw.seq, lw.count, e, nil)
	} else {
		if l.inline != nil && l.cursor.Load() < l.seq {
			p.add(Op{Verb: OpSet, Key: slotKey(gw, l.to, l.seq), Value: l.inline})
			lw.slots = append(lw.slots, l.seq)
		}
		if e != nil {
			p.add(Op{Verb: OpSet, Key: slotKey(gw, l.to, lw.seq), Value: e})
		}
		lw.slots = append(lw.slots, lw.seq)
		value = encodeBell(lw.seq, lw.count, nil, head)
	}
	lw.op = p.add(Op{Verb: OpCAS, Key: bellKey(l.to, gw), Value: value, Index: l.index})
	p.witnessed(lw.op)
	p.lanes = append(p.lanes, lw)
}

// appendPage adds receipts to a lane's page and moves its cursor over the entries that this
// batch completes. again writes it when there is nothing new, too.
func (p *plan) appendPage(b *Bus, s *source, receipts []receipt, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, done := s.page, 0
	for _, e := range s.entries {
		if e.open-p.resolved[e] > 0 {
			break
		}
		next.cursor, next.count = e.seq, e.count
		done++
	}
	if len(receipts) == 0 && done == 0 && (!again || s.page.value == nil) {
		return // part of an entry went to records of its own; the cursor waits for the rest
	}
	messages := 0
	for _, r := range receipts {
		messages += len(r.IDs)
	}
	big := messages >= ledgerReceipts
	if len(receipts) > 0 && (next.messages >= headReceipts || big && next.messages > 0) {
		p.toLedger(b, s, &next)
	}
	next.receipts = next.receipts[:len(next.receipts):len(next.receipts)]
	for _, r := range receipts {
		next.receipts = append(next.receipts, mustEncode(r))
	}
	next.messages += messages
	if big {
		next.body = encodeHead(next.cursor, next.count, next.number, next.last, next.receipts)
		p.toLedger(b, s, &next)
	}
	next.body = encodeHead(next.cursor, next.count, next.number, next.last, next.receipts)
	next.value = b.sign(trust.KindReceipts, receiptsKey(s.from, s.agent), next.body)
	op := p.add(Op{Verb: OpCAS, Key: receiptsKey(s.from, s.agent), Value: next.value, Index: s.page.index})
	p.witnessed(op)
	p.pages = append(p.pages, pageWrite{src: s, op: op, next: next, cursor: done})
}

// toLedger gives the receipts beside the cursor a page of their own.
func (p *plan) toLedger(b *Bus, s *source, next *page) {
	key := ledgerKey(s.from, s.agent, next.number)
	value := b.sign(trust.KindReceipts, key, next.body)
	if len(value) > packRecord {
		value = b.packer.pack(value, 1)
	}
	p.add(Op{Verb: OpSet, Key: key, Value: value})
	next.ledger = append(append([]ledgerPage(nil), next.ledger...), ledgerPage{next.number, next.messages})
	next.number++
	next.last, next.receipts, next.messages = len(next.receipts), nil, 0
}

// joinReceipt adds a receipt to a list, to the last one's messages if it says the same. The list has messages
// of its own: r stays as it is, for the next try.
func joinReceipt(list []receipt, r receipt) []receipt {
	if n := len(list); n > 0 && list[n-1].joins(r) {
		list[n-1].IDs = append(list[n-1].IDs, r.IDs...)
		return list
	}
	r.IDs = slices.Clone(r.IDs)
	return append(list, r)
}

// cleanup deletes taken slots with the operations that are left over: of the lanes that
// are written anyway, and of those that a unit asks to sweep. Then pages of ledgers that are beyond the dedupe memory; those that there
// is no room for go with the next receipts.
func (w *writer) cleanup(p *plan) {
	free := w.b.store.Limits().Ops - len(p.ops)
	sweep := func(l *lane) {
		if p.freed[l] > 0 {
			return
		}
		cur := l.cursor.Load()
		for _, n := range l.slots {
			if free <= 0 || n > cur {
				break
			}
			p.add(Op{Verb: OpDelete, Key: slotKey(w.b.cfg.Gateway, l.to, n)})
			p.freed[l]++
			free--
		}
	}
	for _, lw := range p.lanes {
		sweep(lw.lane)
	}
	for _, u := range p.units {
		l := w.lanes[u.sweep]
		if l == nil {
			continue
		}
		sweep(l)
		if slices.ContainsFunc(p.lanes, func(lw laneWrite) bool { return lw.lane == l }) {
			continue // this very batch may write over them
		}
		for _, n := range u.beyond {
			if n > l.seq && free > 0 {
				p.add(Op{Verb: OpDelete, Key: slotKey(w.b.cfg.Gateway, l.to, n)})
				free--
			}
		}
	}
	for i := range p.pages {
		s, next := p.pages[i].src, &p.pages[i].next
		for total := next.ledgerMessages(); free > 0 && len(next.ledger) > 1 && total-next.ledger[0].messages >= dedupeReceipts; free-- {
			p.add(Op{Verb: OpDelete, Key: ledgerKey(s.from, s.agent, next.ledger[0].number)})
			total -= next.ledger[0].messages
			next.ledger = next.ledger[1:]
		}
	}
}

// applied moves the writer's picture of the store to what the plan wrote.
func (w *writer) applied(p *plan, index func(op int) uint64) {
	for _, lw := range p.lanes {
		l := lw.lane
		l.index, l.value = index(lw.op), p.ops[lw.op].Value
		l.seq, l.count, l.inline = lw.seq, lw.count, lw.inline
	}
	for l, n := range p.freed {
		l.slots = l.slots[n:]
	}
	for _, lw := range p.lanes {
		lw.lane.slots = append(lw.lane.slots[:len(lw.lane.slots):len(lw.lane.slots)], lw.slots...)
		lw.lane.waiting.Store(int64(len(lw.lane.slots)))
		l := lw.lane
		raise(&l.sent, lw.count)
		l.hold(lw.seq, lw.ids)
		w.b.marks.raise(sentMarks, l.to, lw.seq)
		value := l.value
		l.bell.Store(&value)
	}
	for l := range p.freed {
		l.waiting.Store(int64(len(l.slots)))
	}
	for e, n := range p.resolved {
		e.src.mu.Lock()
		e.open -= n
		e.src.mu.Unlock()
	}
	for _, pw := range p.pages {
		pw.src.commit(pw, index(pw.op))
		w.b.marks.raise(takenMarks, pw.src.from+"/"+pw.src.agent, pw.next.cursor)
	}
	for _, po := range p.pending {
		if po.value == nil {
			*po.at = 0
		} else {
			*po.at = index(po.op)
		}
	}
	for _, u := range p.units {
		for _, r := range u.receipts {
			r.src.remember(r.IDs[0], r.State)
		}
		u.finish(nil)
	}
}
