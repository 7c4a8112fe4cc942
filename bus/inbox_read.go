package bus

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// announce hands a bell to the loop of its lane, starting it the first time. Lanes are
// read side by side: a full one waits alone.
func (ib *inbox) announce(from string, p Pair) {
	ib.mu.Lock()
	bells := ib.bells[from]
	if bells == nil {
		bells = make(chan Pair, 1)
		ib.bells[from] = bells
		ib.wg.Add(1)
		go func() {
			defer ib.wg.Done()
			ib.readLane(from, bells)
		}()
	}
	ib.mu.Unlock()
	select {
	case <-bells: // an older bell that nobody has looked at yet says less
	default:
	}
	bells <- p
}

// readLane follows one lane's bells until the term ends.
func (ib *inbox) readLane(from string, bells <-chan Pair) {
	var last Pair
	retry := newBackoff()
	for {
		select {
		case last = <-bells:
		case <-ib.intake.Done():
			return
		}
		for {
			s, err := ib.source(from)
			if err == nil {
				err = ib.ring(s, last)
			}
			if err == nil || ib.intake.Err() != nil {
				retry.Reset()
				ib.gathered(from)
				break
			}
			if !errors.Is(err, ErrUnavailable) {
				ib.gathered(from) // the others do not wait for it
				ib.b.log.Warn("cannot read a lane; trying again", "agent", ib.spec.ID, "from", from, "error", err)
			}
			ib.b.storeDown(err)
			ib.b.pause(ib.intake, retry, err)
		}
	}
}

// source returns the receiving end of a lane, loading it the first time.
func (ib *inbox) source(from string) (*source, error) {
	ib.mu.Lock()
	s := ib.sources[from]
	ib.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := loadSource(ib.intake, ib.b, ib.spec.ID, from)
	if err != nil {
		return nil, err
	}
	s.fetched = s.page.cursor
	s.admitted.Store(s.fetched)
	s.fresh = s.page.index == 0 || s.mistrusted
	ib.mu.Lock()
	ib.sources[from] = s
	ib.mu.Unlock()
	return s, nil
}

// ring reads what a bell announces.
func (ib *inbox) ring(s *source, p Pair) error {
	from := s.from
	if s.rung == p.ModifyIndex {
		return nil // a wake-up brings the bells of all sources
	}
	var bl bell
	if err := json.Unmarshal(p.Value, &bl); err != nil {
		ib.b.emit(Event{Event: EventRefused, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, From: "@" + from, To: ib.spec.ID,
			Class: envelope.ClassPoison, Reason: "bell is not readable: " + err.Error()})
		return nil //nolint:nilerr // said in the event; its writer mends it with the next message
	}
	head, err := ib.b.checkBell(from, ib.spec.ID, &bl)
	if err != nil {
		// Nothing that it says is so. Its writer puts the right one back.
		ib.b.refuse(p.Key, p.Value, err, "@"+from, ib.spec.ID)
		s.rung = p.ModifyIndex
		return nil
	}
	s.head = head
	if s.fresh {
		// The lane is new, or its cursor was deleted by hand: begin with the oldest that the bell speaks of. A slot
		// beyond the bell is no beginning: it is put before the transaction that names it, and that brings
		// what is only in the bell now into a slot before it.
		first, err := ib.nextSlot(from, 1)
		if err != nil {
			return err
		}
		if first > 0 && first <= bl.Seq {
			s.fetched = max(s.fetched, first-1)
		}
		s.fresh = false
	}
	if ib.unclean && s.careful == 0 {
		// What the last owner can have been at when it died: no more than it held, and nothing
		// that came since.
		s.careful = min(bl.Seq, s.fetched+heldItems)
	}
	for s.fetched < bl.Seq {
		if s.fetched+1 == bl.Seq && len(bl.Entry) > 0 {
			if err := ib.admit(s, bl.Seq, bl.Entry); err != nil {
				return err
			}
			s.admitted.Store(s.fetched)
			continue
		}
		last := min(bl.Seq, s.fetched+fetchSlots)
		if len(bl.Entry) > 0 {
			last = min(last, bl.Seq-1)
		}
		values, err := ib.readSlots(from, s.fetched+1, last)
		if err != nil {
			return fmt.Errorf("read lane from %s: %w", from, err)
		}
		for _, v := range values {
			if len(v.entry) == 0 {
				if err := ib.gap(s, bl); err != nil {
					return err
				}
				s.admitted.Store(s.fetched)
				break
			}
			err := ib.admit(s, s.fetched+1, v.entry)
			v.done()
			if err != nil {
				return err
			}
			s.admitted.Store(s.fetched)
		}
	}
	s.rung = p.ModifyIndex
	return nil
}

// nextSlot returns the number of the oldest slot of a lane from n on, or 0.
func (ib *inbox) nextSlot(from string, n uint64) (uint64, error) {
	prefix := lanePrefix(from, ib.spec.ID)
	keys, err := ib.b.store.Keys(ib.intake, prefix, "")
	if err != nil {
		return 0, fmt.Errorf("list lane from %s: %w", from, err)
	}
	for _, k := range keys {
		if m, ok := parsePadded(k[len(prefix):]); ok && m >= n {
			return m, nil
		}
	}
	return 0, nil
}

// gap goes over entries that are missing: somebody deleted them. One event tells of all.
func (ib *inbox) gap(s *source, bl bell) error {
	first := s.fetched + 1
	next, err := ib.nextSlot(s.from, first)
	if err != nil {
		return err
	}
	if next == first {
		return nil // it came back between two reads
	}
	last := bl.Seq
	if len(bl.Entry) > 0 {
		last = bl.Seq - 1
	}
	if next > 0 && next <= bl.Seq {
		last = next - 1
	}
	ib.b.emit(Event{Event: EventGap, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, From: "@" + s.from, To: ib.spec.ID,
		Reason: fmt.Sprintf("entries %d to %d of %s are missing: somebody deleted them", first, last, lanePrefix(s.from, ib.spec.ID))})
	le := &laneEntry{src: s, seq: last, open: 1}
	s.mu.Lock()
	s.fetched = last
	le.count = s.page.count
	s.entries = append(s.entries, le)
	s.mu.Unlock()
	r := receipt{State: envelope.DeadLetter, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, Class: envelope.ClassUndeliverable, Error: "its entry is missing from the store: somebody deleted it"}
	for n := first; n <= min(last, first+maxMissing-1); n++ {
		r.IDs = append(r.IDs, entryID(s.from, n))
	}
	ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, taken: []*laneEntry{le}, receipts: []ownedReceipt{{s, r}}, done: func(error) {}})
	return nil
}

// readSlots reads the slots first to last of a lane, side by side.
func (ib *inbox) readSlots(from string, first, last uint64) ([]slotValue, error) {
	values := make([]slotValue, last-first+1)
	g, ctx := errgroup.WithContext(ib.intake)
	for i := range values {
		g.Go(func() (err error) {
			values[i], err = ib.b.readSlotOnce(ctx, slotKey(from, ib.spec.ID, first+uint64(i)))
			return err
		})
	}
	return values, g.Wait()
}

// admit takes one entry into memory and hands its messages to their conversations. It
// waits while the inbox holds all it may. It keeps nothing of raw.
func (ib *inbox) admit(s *source, seq uint64, raw []byte) error {
	if err := ib.waitForRoom(s, len(raw)); err != nil {
		return err
	}
	le := &laneEntry{src: s, seq: seq}
	e, err := decodeEntry(raw)
	var said *saidEntry
	if err == nil {
		said, err = ib.b.checkEntry(s.from, ib.spec.ID, &e, s.headOf(seq))
		if err == nil && e.Seq != seq && ib.b.enforced() {
			err = &trust.Refusal{Reason: trust.Replay, Gateway: s.from, Key: said.stamp.Key, Detail: fmt.Sprintf("entry %d lies where %d belongs", e.Seq, seq)}
		}
	}
	if refused := (*trust.Refusal)(nil); errors.As(err, &refused) {
		// What its gateway put here is gone: the lane goes on without it, and the sender is told by a receipt.
		ib.b.refuse(slotKey(s.from, ib.spec.ID, seq), raw, err, "@"+s.from, ib.spec.ID)
		ib.bury(le, s, string(raw), entryID(s.from, seq), envelope.ClassUnauthorised, fmt.Errorf("entry %d is refused: %w", seq, err))
		return nil
	}
	if err != nil || e.Seq != seq {
		if err == nil {
			err = fmt.Errorf("it says it is entry %d", e.Seq)
		}
		if ib.b.enforced() {
			ib.b.refuse(slotKey(s.from, ib.spec.ID, seq), raw, err, "@"+s.from, ib.spec.ID)
		}
		ib.bury(le, s, string(raw), entryID(s.from, seq), envelope.ClassPoison, fmt.Errorf("entry %d is not readable: %w", seq, err))
		return nil
	}
	type decoded struct {
		env *envelope.Sealed
		err error
	}
	envs := make([]decoded, len(e.Items))
	var keys []string
	for i := range e.Items {
		d := &envs[i]
		if d.env, d.err = envelope.Decode(e.Items[i].Envelope); d.err == nil && ib.unique != nil {
			keys = append(keys, d.env.UniqueKey())
		}
	}
	if err := ib.unique.look(keys); err != nil {
		return err
	}
	le.open = len(e.Items)
	s.mu.Lock()
	le.count = max(e.Count, s.page.count)
	s.fetched = seq
	s.entries = append(s.entries, le)
	s.mu.Unlock()
	if len(e.Items) == 0 {
		ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, taken: []*laneEntry{le}, done: func(error) {}})
		return nil
	}
	jobs := make([]*job, 0, len(e.Items))
	for i, it := range e.Items {
		env, err := envs[i].env, envs[i].err
		if err != nil {
			class := envelope.ClassPoison
			if v := (*envelope.VersionError)(nil); errors.As(err, &v) {
				class = envelope.ClassVersion
			}
			ib.buryItem(le, s, it, i, class, err)
			continue
		}
		j := &job{ib: ib, src: s, entry: le, lane: seq, item: i, env: env,
			del: envelope.Delivery{State: envelope.Queued, Hops: it.Hops, QueuedAt: &e.At, AttemptID: it.AttemptID, For: it.For, Spent: it.Spent, Keys: it.Keys}}
		if err := j.misplaced(); err != nil {
			ib.buryItem(le, s, it, i, envelope.ClassUndeliverable, err)
			continue
		}
		if j.said, j.proof = said, it.Proof; said != nil && len(it.Proof) > 0 && env.SourceGateway == s.from {
			j.proof = nil // a message of its own needs none
		}
		if err := ib.b.checkItem(j, it.Proof, e.At); err != nil {
			ib.b.refuse(fmt.Sprintf("%s item %d", slotKey(s.from, ib.spec.ID, seq), i), it.Envelope, err, "@"+s.from, ib.spec.ID)
			ib.buryItem(le, s, it, i, envelope.ClassUnauthorised, err)
			continue
		}
		if ib.duplicate(j) {
			ib.b.emit(j.event(EventDuplicate))
			ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, taken: []*laneEntry{le}, done: func(error) {}})
			continue
		}
		if at := env.NotBefore(); at.After(ib.b.now()) {
			next := envelope.At(at)
			j.del.NextAttemptAt = &next
		}
		if seq <= s.careful {
			j.careful = true
		}
		ib.claimUnique(j)
		jobs = append(jobs, j)
	}
	ib.enter(jobs...)
	ib.takenIn(jobs)
	return nil
}

// headOf is the head of an entry that the bell named, nil for another one.
func (s *source) headOf(seq uint64) *signedHead {
	if s.head == nil || s.head.Seq != seq {
		return nil
	}
	return s.head
}

// duplicate reports whether the message has been taken before, and otherwise marks it
// as being here.
func (ib *inbox) duplicate(j *job) bool {
	if j.src.known(j.env.MessageID) {
		return true
	}
	ib.mu.Lock()
	defer ib.mu.Unlock()
	if ib.active[j.env.Key()] != nil {
		return true
	}
	ib.active[j.env.Key()] = j
	return false
}
