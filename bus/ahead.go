package bus

import (
	"context"

	"github.com/gatemesh/gatemesh/envelope"
)

// aheadBytes is how much must wait before the next batch is begun while the one before it is still being
// written: half an entry, so that looking ahead never makes many small batches out of one.
const aheadBytes = entryBytes / 2

// ahead is a batch, and what is done for it while the transaction before it is under way: its big entries are
// laid out for where their lanes will be if that transaction is applied, and put into their slots. No bell names
// those before the batch's own transaction, so a guess that turns out wrong costs a slot that
// is written over, and nothing else.
type ahead struct {
	units   []*unit
	at      envelope.Time
	entries map[string]*aheadEntry // by lane
	// done is closed when every put has its outcome; nil when there is none.
	done chan struct{}
}

type aheadEntry struct {
	seq, count uint64
	value      []byte
	head       *signedHead
	// put is set when the slot holds value. Read it after done.
	put bool
}

// lookAhead takes the next batch and begins its puts, if there is enough of it. p is what will be written meanwhile.
func (w *writer) lookAhead(ctx context.Context, p *plan) *ahead {
	w.mu.Lock()
	enough := w.bytes >= aheadBytes
	w.mu.Unlock()
	if !enough {
		return nil
	}
	for _, u := range p.units {
		if len(u.beyond) > 0 {
			return nil // p deletes slots that no bell names: ours would be one
		}
	}
	a := &ahead{units: w.take(), at: envelope.At(w.b.now()), entries: map[string]*aheadEntry{}}
	for to, items := range itemsByLane(a.units) {
		l := w.lanes[to]
		if l == nil || sizeOf(items) <= bigEntry {
			continue
		}
		e := &aheadEntry{seq: l.seq, count: l.count}
		for _, lw := range p.lanes {
			if lw.lane == l {
				e.seq, e.count = lw.seq, lw.count
			}
		}
		e.seq++
		e.count += uint64(len(items))
		e.head = w.b.signHead(to, e.seq, e.count, a.at, items)
		e.value = w.packItems(e.seq, e.count, a.at, e.head, items)
		a.entries[to] = e
	}
	if len(a.entries) == 0 {
		w.requeue(a.units)
		return nil
	}
	a.done = make(chan struct{})
	go func() {
		defer close(a.done)
		for to, e := range a.entries {
			// Only where there is nothing: whatever comes late must not write over what was announced since.
			ok, err := w.b.store.Put(ctx, slotKey(w.b.cfg.Gateway, to, e.seq), e.value, 0)
			e.put = ok && err == nil
		}
	}()
	return a
}

// wait returns when no put is under way any more.
func (a *ahead) wait() {
	if a.done != nil {
		<-a.done
	}
}

// entry is what was laid out for the lane, nil unless it is exactly what the lane needs now.
func (a *ahead) entry(l *lane, items int) *aheadEntry {
	if a == nil {
		return nil
	}
	e := a.entries[l.to]
	if e == nil || !e.put || e.seq != l.seq+1 || e.count != l.count+uint64(items) {
		return nil
	}
	return e
}

// giveBack puts the batch where it came from: before everything that was queued since.
func (w *writer) giveBack(a *ahead) {
	if a != nil {
		a.wait()
		w.requeue(a.units)
	}
}

func itemsByLane(units []*unit) map[string][]laneItem {
	lanes := map[string][]laneItem{}
	for _, u := range units {
		for _, x := range u.sends {
			lanes[x.to] = append(lanes[x.to], x)
		}
	}
	return lanes
}
