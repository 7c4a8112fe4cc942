package bus

import (
	"errors"
	"fmt"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// parkWaiting gives a message that still waits for its turn a record of its own, behind those before it
// in its conversation: the next owner takes records before lanes.
func (j *job) parkWaiting() {
	j.mu.Lock()
	waiting := !j.parked && !j.started && !j.ended && !j.atDoor
	j.mu.Unlock()
	if waiting && !j.kept() && j.ib.ctx.Err() == nil {
		time.AfterFunc(quick, j.parkWaiting)
	}
}

// kept sees to it that the message has a record or an end in the store before what is written from now on,
// with all before it in its conversation, and reports whether that is so.
func (j *job) kept() bool {
	j.mu.Lock()
	ahead, done, cancelled := j.ahead, j.parked || j.ended, j.ended && j.cancelled != nil
	j.mu.Unlock()
	if done && !cancelled {
		return true
	}
	if ahead != nil && !ahead.kept() {
		return false // also of one that was cancelled while those before it go on
	}
	if done {
		return true
	}
	j.park(nil, func(_ envelope.Time, err error) {
		if err == nil {
			j.spill()
		}
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.parked || j.ended
}

// park gives the message a record of its own, so that its lane's cursor can go on and a
// successor finds it; with sends, a question goes out in the same transaction. done may be nil; it
// gets the time of the entry.
func (j *job) park(sends []outgoing, done func(at envelope.Time, err error)) {
	j.keep(false, sends, done)
}

// keep is park; anew writes the record also when the store has one of this attempt.
func (j *job) keep(anew bool, sends []outgoing, done func(at envelope.Time, err error)) {
	ib := j.ib
	if done == nil {
		done = func(envelope.Time, error) {}
	}
	if ib.ctx.Err() != nil {
		done(envelope.Time{}, ErrDeposed)
		return
	}
	j.mu.Lock()
	// What failed is about to be recorded by who found that, as what comes of it.
	if j.ended && anew {
		j.mu.Unlock()
		done(envelope.Time{}, ErrLeaseLost)
		return
	}
	if j.ended || !anew && sends == nil && (j.parked && j.recorded == j.del.Attempt || j.del.State == envelope.Failed) {
		j.mu.Unlock()
		done(envelope.Time{}, nil)
		return
	}
	defer j.mu.Unlock()
	u := &unit{ctx: ib.ctx, owner: ib, pending: []pendingOp{j.recordLocked()}}
	for _, x := range sends {
		u.send(&x)
	}
	if !j.parked {
		u.taken = j.takenLocked()
		if j.del.State == envelope.Delivered {
			u.receipts = []ownedReceipt{{j.src, j.receiptLocked(*j.del.DeliveredAt)}}
		}
	}
	j.parked = true
	u.done = func(err error) {
		if err != nil && !errors.Is(err, ErrDeposed) && !errors.Is(err, ErrStopped) {
			ib.depose(fmt.Errorf("keep %s: %w", j.env.MessageID, err))
		}
		done(u.at, err)
	}
	ib.b.writer.submit(u)
}

func (j *job) takenLocked() []*laneEntry {
	if j.entry == nil {
		return nil
	}
	t := j.entry
	j.entry = nil
	return []*laneEntry{t}
}

func (j *job) recordLocked() pendingOp {
	j.recorded = j.del.Attempt
	rec := pendingRecord{Delivery: j.del, Lane: j.lane, Item: j.item, From: j.src.from, Envelope: j.env.Canonical(), Asked: j.asked, Run: j.run, Proof: j.provenance()}
	key := pendingKey(j.ib.spec.ID, j.env.MessageID)
	return pendingOp{key: key, value: j.ib.b.sign(trust.KindRecord, key, mustEncode(rec)), at: &j.at}
}

// provenance is the proof that its source sent the message, for whoever gets it from here; nil when nothing was signed.
func (j *job) provenance() []byte {
	if len(j.proof) == 0 && j.said != nil {
		return j.said.proof(j.item)
	}
	return j.proof
}

func (j *job) receiptLocked(at envelope.Time) receipt {
	r := receipt{IDs: []string{j.env.MessageID}, State: j.del.State, At: at, Gateway: j.ib.b.cfg.Gateway, Attempt: j.del.Attempt, To: j.passedTo}
	if j.del.State != envelope.Delivered {
		r.DeliveredAt = j.del.DeliveredAt
	}
	if j.del.State != envelope.Acked {
		r.Class, r.Error = j.del.Class, j.del.LastError
	}
	return r
}

// endLocked starts the unit that takes the message to a terminal state: its receipt, the end of
// its record and of the answers it held.
func (j *job) endLocked(at envelope.Time) *unit {
	u := &unit{ctx: j.ib.ctx, owner: j.ib, taken: j.takenLocked(), receipts: []ownedReceipt{{j.src, j.receiptLocked(at)}}}
	if j.parked {
		u.pending = append(u.pending, pendingOp{key: pendingKey(j.ib.spec.ID, j.env.MessageID), at: &j.at})
	}
	for _, s := range j.stored {
		u.pending = append(u.pending, pendingOp{key: s.key, at: s.at})
	}
	j.ended = true
	for _, a := range j.attached {
		a.mu.Lock()
		_ = a.del.Move(envelope.Acked, at) // delivered when it was attached
		u.taken = append(u.taken, a.takenLocked()...)
		u.receipts = append(u.receipts, ownedReceipt{a.src, a.receiptLocked(at)})
		a.ended = true
		a.mu.Unlock()
	}
	return u
}
