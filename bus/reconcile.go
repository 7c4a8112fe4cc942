package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

const (
	// reconcileEvery is how often strays are looked for. Looking costs reads only.
	reconcileEvery = time.Minute
	// goneAfter is how long a gateway may be away before another one clears up after it.
	goneAfter = time.Hour
	janitor   = ownersPrefix + "duties/janitor"
)

// reconciler finds what nobody will come back to, and resolves it.
type reconciler struct {
	b *Bus
	// strays are the inboxes that a stray was reported of; gone is when a gateway was first found absent.
	strays map[string]bool
	gone   map[string]time.Time
	// slots are those of this gateway's lanes that the last pass saw.
	slots map[string][]uint64
}

func (r *reconciler) run(ctx context.Context) {
	t := time.NewTicker(reconcileEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if !r.b.session.trusted() {
			continue
		}
		if err := r.pass(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrUnavailable) {
			r.b.log.Warn("clearing up failed; trying again", "in", reconcileEvery, "error", err)
		}
	}
}

// pass looks at everything once.
func (r *reconciler) pass(ctx context.Context) error {
	b := r.b
	own := Op{Verb: OpCheckSession, Key: gatewayLockKey(b.cfg.Gateway), Session: b.session.id()}
	r.findStrays()
	_, err := b.dropBlobs(ctx, b.cfg.Gateway, own)
	errs := []error{err, b.dropFanouts(ctx, b.cfg.Gateway, own), r.sweepSlots(ctx)}
	for _, ib := range b.elector.running() {
		errs = append(errs, ib.dropDead(ctx), ib.dropAnswers(ctx), ib.dropUnique(ctx))
	}
	return errors.Join(append(errs, r.clearGone(ctx))...)
}

// findStrays reports, once each, the inboxes in which mail of this gateway waits and that nobody owns.
func (r *reconciler) findStrays() {
	o := r.b.outbox
	o.mu.Lock()
	waiting := map[string]uint64{}
	for to, l := range o.lanes {
		if sent, taken := l.sent.Load(), l.taken.Load(); sent > taken {
			waiting[to] = sent - taken
		}
	}
	o.mu.Unlock()
	for to := range r.strays {
		if waiting[to] == 0 || r.b.OwnerOf(to) != "" {
			delete(r.strays, to)
		}
	}
	for to, n := range waiting {
		if r.strays[to] || r.b.OwnerOf(to) != "" {
			continue
		}
		r.strays[to] = true
		r.b.emit(Event{Event: EventStray, At: envelope.At(r.b.now()), Gateway: r.b.cfg.Gateway, To: to,
			Reason: fmt.Sprintf("%d messages wait and nobody owns the inbox: start a gateway that may run %s; what passes its ttl is given up then", n, to)})
	}
}

// sweepSlots has the slots of this gateway's lanes deleted that nobody will read: those that were taken, of lanes that
// it has not used since its start too, and those beyond the bell, which a lost try left. The latter are left
// alone the first time that they are seen: the transaction that names them may still be on its way.
func (r *reconciler) sweepSlots(ctx context.Context) error {
	b := r.b
	prefix := lanesRoot + b.cfg.Gateway + "/"
	keys, err := b.store.Keys(ctx, prefix, "")
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	slots := map[string][]uint64{}
	for _, k := range keys {
		to, num, _ := strings.Cut(k[len(prefix):], "/")
		if n, ok := parsePadded(num); ok {
			slots[to] = append(slots[to], n)
		}
	}
	for to, now := range slots {
		old := slices.DeleteFunc(slices.Clone(now), func(n uint64) bool { return !slices.Contains(r.slots[to], n) })
		done := make(chan error, 1)
		b.writer.submit(&unit{ctx: ctx, sweep: to, load: true, beyond: old[max(0, len(old)-16):], done: func(err error) { done <- err }})
		if err := <-done; err != nil && !errors.Is(err, ErrStopped) {
			return fmt.Errorf("sweep the lane to %s: %w", to, err)
		}
	}
	r.slots = slots
	return nil
}

// dropFanouts deletes the records of fan-outs that are older than answers are kept.
func (b *Bus) dropFanouts(ctx context.Context, gw string, fence Op) error {
	return b.dropOld(ctx, fanoutsRoot+gw+"/", fence)
}

// dropOld deletes records with an "at" that is older than answers are kept.
func (b *Bus) dropOld(ctx context.Context, prefix string, fence Op) error {
	keys, err := b.store.Keys(ctx, prefix, "")
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	ops := []Op{fence}
	flush := func() error {
		if len(ops) == 1 {
			return nil
		}
		_, err := b.store.Txn(ctx, ops)
		ops = []Op{fence}
		if err != nil {
			return fmt.Errorf("delete below %s: %w", prefix, err)
		}
		return nil
	}
	for _, k := range keys {
		raw, err := b.store.Read(ctx, k)
		if err != nil {
			return fmt.Errorf("read %s: %w", k, err)
		}
		var r struct {
			At envelope.Time `json:"at"`
		}
		if json.Unmarshal(raw, &r) == nil && b.now().Sub(r.At.Time) < b.cfg.ResultRetention {
			continue
		}
		if ops = append(ops, Op{Verb: OpDelete, Key: k}); len(ops) == b.store.Limits().Ops {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// dropAnswers deletes answers whose question has no record any more: nothing will read them.
func (ib *inbox) dropAnswers(ctx context.Context) error {
	prefix := pendingPrefix(ib.spec.ID)
	keys, err := ib.b.store.Keys(ctx, prefix, "")
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	records := map[string]bool{}
	for _, k := range keys {
		if !strings.Contains(k[len(prefix):], "/") {
			records[k[len(prefix):]] = true
		}
	}
	var ops []Op
	for _, k := range keys {
		id, rest, _ := strings.Cut(k[len(prefix):], "/")
		ib.mu.Lock()
		here := ib.holds(id)
		ib.mu.Unlock()
		if rest != "" && !records[id] && !here && len(ops) < ib.b.store.Limits().Ops-4 {
			ops = append(ops, Op{Verb: OpDelete, Key: k})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	done := make(chan error, 1)
	ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, extra: ops, done: func(err error) { done <- err }})
	return <-done
}

// holds reports whether a message is in memory, whoever sent it; ib.mu is held.
func (ib *inbox) holds(id string) bool {
	for key := range ib.active {
		if key.ID == id {
			return true
		}
	}
	return false
}

// clearGone deletes what gateways left that have been away for long: slots that were taken, answers, fan-outs and
// chunks past their time. One gateway does it at a time; a gateway that comes back finds its
// bells, cursors and ledgers as they were.
func (r *reconciler) clearGone(ctx context.Context) error {
	b := r.b
	gone, err := r.absent(ctx)
	if err != nil || len(gone) == 0 {
		return err
	}
	session := b.session.id()
	_, err = b.store.Txn(ctx, []Op{
		{Verb: OpCheckSession, Key: gatewayLockKey(b.cfg.Gateway), Session: session},
		{Verb: OpLock, Key: janitor, Session: session, Value: b.sign(trust.KindOwner, janitor, mustEncode(janitorLock{b.cfg.Gateway, session}))},
	})
	var refused *TxnError
	if errors.Is(err, ErrForbidden) {
		return nil // another one is the one that may
	}
	if errors.As(err, &refused) {
		return r.judgeJanitor(ctx) // another one does it
	}
	if err != nil {
		return fmt.Errorf("take the janitor's duty: %w", err)
	}
	fence := Op{Verb: OpCheckSession, Key: janitor, Session: session}
	var errs []error
	for _, gw := range gone {
		n, err := b.dropBlobs(ctx, gw, fence)
		errs = append(errs, err, b.dropOld(ctx, resultsPrefix(gw), fence), b.dropFanouts(ctx, gw, fence))
		m, err := b.dropTakenSlots(ctx, gw, fence)
		errs = append(errs, err)
		if n+m > 0 {
			b.log.Info("cleared up after a gateway that is gone", "gateway", gw, "payloads", n, "slots", m)
		}
	}
	_, err = b.store.Txn(ctx, []Op{fence, {Verb: OpDelete, Key: janitor}})
	return errors.Join(append(errs, err)...)
}

// janitorLock is who has the janitor's duty.
type janitorLock struct {
	Gateway string `json:"gateway"`
	Session string `json:"session"`
}

// judgeJanitor tells when the duty is held by nobody who may: then nothing is cleared up, which nothing else would show.
func (r *reconciler) judgeJanitor(ctx context.Context) error {
	p, err := r.b.store.Get(ctx, janitor)
	if err != nil || p == nil || !r.b.enforced() {
		return err
	}
	body, st, err := r.b.open(trust.KindOwner, p.Key, p.Value, "", "")
	var l janitorLock
	if err == nil && (json.Unmarshal(body, &l) != nil || l != janitorLock{st.Gateway, p.Session}) {
		err = &trust.Refusal{Reason: trust.Replay, Gateway: st.Gateway, Key: st.Key, Detail: "it was signed for another session"}
	}
	if err != nil {
		r.b.refuse(p.Key, p.Value, err, "", "")
	}
	return nil
}

// absent lists the gateways that left something in the store and have had no session for goneAfter,
// as far as this gateway has seen.
func (r *reconciler) absent(ctx context.Context) ([]string, error) {
	b := r.b
	left := map[string]bool{}
	for _, root := range []string{lanesRoot, blobsRoot, resultsRoot, fanoutsRoot} {
		keys, err := b.store.Keys(ctx, root, "/")
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", root, err)
		}
		for _, k := range keys {
			left[strings.TrimSuffix(k[len(root):], "/")] = true
		}
	}
	locks, err := b.store.Keys(ctx, ownersPrefix+"gateways/", "")
	if err != nil {
		return nil, fmt.Errorf("list gateways: %w", err)
	}
	for _, k := range locks {
		delete(left, k[len(ownersPrefix+"gateways/"):])
	}
	var gone []string
	for gw := range left {
		since, ok := r.gone[gw]
		if !ok {
			since = time.Now()
			r.gone[gw] = since
		}
		if time.Since(since) >= goneAfter {
			gone = append(gone, gw)
		}
	}
	for gw := range r.gone {
		if !left[gw] {
			delete(r.gone, gw)
		}
	}
	sort.Strings(gone)
	return gone, nil
}

// dropTakenSlots deletes the slots of a gateway's lanes that their receivers have taken, and those that no bell names.
func (b *Bus) dropTakenSlots(ctx context.Context, gw string, fence Op) (n int, err error) {
	prefix := lanesRoot + gw + "/"
	keys, err := b.store.Keys(ctx, prefix, "")
	if err != nil {
		return 0, fmt.Errorf("list %s: %w", prefix, err)
	}
	cursors, bells := map[string]uint64{}, map[string]*Pair{}
	// Should the gateway come back meanwhile, the slots beyond its bells are its own again.
	away := Op{Verb: OpCheckNotExists, Key: gatewayLockKey(gw)}
	ops := []Op{fence, away}
	for i, k := range keys {
		agent, num, _ := strings.Cut(k[len(prefix):], "/")
		seq, ok := parsePadded(num)
		if _, read := cursors[agent]; ok && !read {
			h, _, err := b.readHead(ctx, gw, agent)
			if refused := (*trust.Refusal)(nil); err != nil && !errors.Is(err, errUnreadable) && !errors.As(err, &refused) {
				return n, err
			}
			cursors[agent] = h.Cursor
			if bells[agent], err = b.store.Get(ctx, bellKey(agent, gw)); err != nil {
				return n, fmt.Errorf("read bell of %s: %w", agent, err)
			}
			var said bell
			if p := bells[agent]; p != nil && json.Unmarshal(p.Value, &said) == nil {
				if _, err := b.checkBell(gw, agent, &said); err != nil {
					b.refuse(p.Key, p.Value, err, "@"+gw, agent)
					bells[agent] = nil // what it leaves out may be mail
				}
			}
		}
		var bl bell
		if p := bells[agent]; ok && p != nil && json.Unmarshal(p.Value, &bl) == nil && seq > bl.Seq {
			// No bell names it: a try that was lost left it.
			if _, err := b.store.Txn(ctx, []Op{fence, away, {Verb: OpCheckIndex, Key: p.Key, Index: p.ModifyIndex}, {Verb: OpDelete, Key: k}}); err != nil {
				return n, fmt.Errorf("delete slots of %s: %w", gw, err)
			}
			n++
		}
		if ok && seq <= cursors[agent] {
			ops = append(ops, Op{Verb: OpDelete, Key: k})
		}
		if len(ops) == b.store.Limits().Ops || i == len(keys)-1 && len(ops) > 2 {
			if _, err := b.store.Txn(ctx, ops); err != nil {
				return n, fmt.Errorf("delete slots of %s: %w", gw, err)
			}
			n += len(ops) - 2
			ops = ops[:2:2]
		}
	}
	return n, nil
}
