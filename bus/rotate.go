package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// A gateway's key changes while it runs:
//
//	Rotate(next) ──> the request lies in the store, vouched for by the key of now ──> an operator's set names next
//	──> Signer.Use(next) ──> what stands for long is signed anew
//
// From the moment in which the set lies in the store, both keys count. So a gateway that sees it late signs with the
// old one meanwhile, and one that has not seen it yet looks for it before it refuses the new one ([trust.Verifier.OnMissing]).

// Rotate makes next the key that this gateway signs with: at once in a mesh that believes everybody, else as soon as the
// trust set names it, which the operator is asked for. The key must be safe on the disk already. Asking again for the
// same key is no error, and asking for another one takes the place of the first.
func (b *Bus) Rotate(ctx context.Context, next *trust.Key) error {
	if b.cfg.Signer == nil {
		return errors.New("this gateway signs nothing")
	}
	b.next.Store(next)
	if b.cfg.Anchor == nil || b.cfg.Trust == nil {
		b.changeKey(ctx)
		return nil
	}
	p, err := b.store.Get(ctx, trust.SetKey)
	if err != nil {
		return err
	}
	if p != nil {
		b.takeTrust(ctx, p.Value)
	}
	b.changeKey(ctx)
	if p != nil {
		b.askToJoin(ctx, p.Value)
	}
	return nil
}

// changeKey takes up the next key when it counts.
func (b *Bus) changeKey(ctx context.Context) {
	b.keyMu.Lock()
	defer b.keyMu.Unlock()
	next, s, set := b.next.Load(), b.cfg.Signer, b.trustSet()
	switch {
	case next == nil || s == nil:
		return
	case next.ID() == s.Current().ID():
		b.next.CompareAndSwap(next, nil)
		return
	case set == nil && b.enforced():
		return // nobody counts yet
	case set != nil && !set.Names(s.Gateway, next.Public(), b.now()):
		return
	}
	if b.cfg.KeyChanged != nil {
		b.cfg.KeyChanged(next)
	}
	old := s.Current()
	s.Use(next)
	b.next.CompareAndSwap(next, nil)
	b.log.Info("this gateway signs with another key now", "key", next.ID(), "before", old.ID())
	b.resign(ctx)
}

// resign signs anew what stands for longer than a key should have to be believed: registry entries, claims, workers, rooms and
// cursors. Entries, receipts and records stay as they are: the old key has ended, and what it said before that counts.
func (b *Bus) resign(ctx context.Context) {
	b.registry.kick()
	for _, term := range b.elector.running() {
		if err := b.elector.claimAgain(ctx, term); err != nil && term.ctx.Err() == nil {
			b.log.Debug("cannot sign a claim anew; the old signature goes on to count", "agent", term.spec.ID, "error", err)
		}
		term.signCursors()
		if err := b.signRoom(ctx, term); err != nil && term.ctx.Err() == nil {
			b.log.Debug("cannot sign a room anew; the old signatures go on to count", "agent", term.spec.ID, "error", err)
		}
	}
	b.workers.sayAgain(ctx)
	if b.cfg.Keyring != nil {
		b.publishKey(ctx)
	}
}

// signRoom signs the entries of an inbox's room with the key of now, whoever of its owners wrote them. One that the owner
// writes at the same time is signed with it anyway.
func (b *Bus) signRoom(ctx context.Context, t *inbox) error {
	pairs, err := b.store.List(ctx, roomKey(t.spec.ID, ""))
	if err != nil {
		return err
	}
	for _, p := range pairs {
		body, st, err := b.open(trust.KindRecord, p.Key, p.Value, "", t.spec.ID)
		if err != nil || st == nil || st.Key == b.cfg.Signer.Current().ID() {
			continue
		}
		_, err = b.store.Txn(ctx, []Op{
			{Verb: OpCheckSession, Key: gatewayLockKey(b.cfg.Gateway), Session: t.session},
			{Verb: OpCheckSession, Key: agentLockKey(t.spec.ID), Session: t.session},
			{Verb: OpCAS, Key: p.Key, Value: b.sign(trust.KindRecord, p.Key, body), Index: p.ModifyIndex},
		})
		if refused := (*TxnError)(nil); err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	return nil
}

// claimAgain signs the claim and the term of an inbox with the key of now. It goes beside the writer: a release that is on
// its way there must not be followed by a lock.
func (el *elector) claimAgain(ctx context.Context, t *inbox) error {
	el.mu.Lock()
	o := el.owners[t.spec.ID]
	el.mu.Unlock()
	since := envelope.At(el.b.now())
	if o.session == t.session && !o.Since.IsZero() {
		since = envelope.At(o.Since)
	}
	lock, term := agentLockKey(t.spec.ID), termKey(t.spec.ID)
	claim := mustEncode(ownerLock{Agent: t.spec.ID, Gateway: el.b.cfg.Gateway, Since: since, Session: t.session})
	_, err := el.b.store.Txn(ctx, []Op{
		{Verb: OpCheckSession, Key: gatewayLockKey(el.b.cfg.Gateway), Session: t.session},
		{Verb: OpCheckSession, Key: lock, Session: t.session},
		{Verb: OpLock, Key: lock, Session: t.session, Value: el.b.sign(trust.KindOwner, lock, claim)},
		{Verb: OpSet, Key: term, Value: el.b.sign(trust.KindTerm, term, claim)},
	})
	return err
}

// signCursors writes the cursors of all lanes once more: one that is idle would keep its signature for ever.
func (ib *inbox) signCursors() {
	ib.mu.Lock()
	sources := make([]*source, 0, len(ib.sources))
	for _, s := range ib.sources {
		sources = append(sources, s)
	}
	ib.mu.Unlock()
	for _, s := range sources {
		ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, again: s, done: func(error) {}})
	}
}

// sayAgain signs the announcements of this gateway's workers anew.
func (ws *workers) sayAgain(ctx context.Context) {
	ws.mu.Lock()
	var all []worker
	if !ws.retired {
		all = ws.announcedLocked()
	}
	ws.mu.Unlock()
	for _, w := range all {
		if err := ws.write(ctx, w.spec.Queue, w.said, w.session); err != nil {
			ws.b.log.Debug("cannot sign a worker's announcement anew; the old signature goes on to count", "queue", w.spec.Queue, "error", err)
		}
	}
}

// takeTrust judges a set that lies in the store, and goes by it from now on when it is newer. When it is signed by an
// operator that this gateway does not know, the sets that named him are looked for.
func (b *Bus) takeTrust(ctx context.Context, raw []byte) {
	if !b.cfg.Anchor.Pinned() {
		return
	}
	b.trustMu.Lock()
	defer b.trustMu.Unlock()
	_, err := b.cfg.Anchor.Accept(raw)
	var r *trust.Refusal
	if errors.As(err, &r) && r.Reason == trust.WrongOperator && b.followOperators(ctx) {
		_, err = b.cfg.Anchor.Accept(raw)
	}
	if err != nil {
		b.refuse(trust.SetKey, raw, err, "", "")
	}
	if set := b.cfg.Anchor.Set(); set != nil && b.cfg.Trust.Set() != set {
		b.cfg.Trust.Use(set)
		b.log.Info("trust set taken", "version", set.Version, "gateways", len(set.Gateways), "enforced", true)
		b.elector.kick()
	}
}

// followOperators goes the way from the operators that this gateway knows to those of now, set by set. It reports whether it
// came any further.
func (b *Bus) followOperators(ctx context.Context) (further bool) {
	pairs, err := b.store.List(ctx, trust.OperatorsPrefix)
	if err != nil {
		return false
	}
	for _, p := range pairs { // in the order of their versions
		before := b.cfg.Anchor.Set()
		if set, err := b.cfg.Anchor.Accept(p.Value); err == nil && set != before {
			further = true
		}
	}
	return further
}

// lookLimit bounds how long somebody who judges a signature that costs no message waits for a newer set. The store has just
// answered him.
const lookLimit = 5 * time.Second

// lookRate and lookBurst bound the looks in a second: a key that changes costs one or two, and whoever fills the store with
// made-up keys must not make this gateway read it once for each.
const (
	lookRate  = 50
	lookBurst = 200
)

// lookForTrust reads the set once more: somebody signed with a key that this gateway does not know yet. For mail it waits for its
// turn, and until the store answers: what is refused is gone, and the key may be the one of a moment ago.
func (b *Bus) lookForTrust(mail bool) {
	ctx := b.loops
	if mail {
		if b.looks.Wait(ctx) != nil {
			return
		}
	} else {
		if !b.looks.Allow() {
			return
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lookLimit)
		defer cancel()
	}
	for wait := newBackoff(); ; {
		p, err := b.store.Get(ctx, trust.SetKey)
		if err == nil && p != nil {
			b.takeTrust(ctx, p.Value)
		}
		if err == nil || ctx.Err() != nil || !mail {
			return // what is no mail is judged under locks that others wait for, and is judged again
		}
		b.pause(ctx, wait, err)
	}
}

// readPolicy hands what lies at the policy's key to whoever judges by it.
func (b *Bus) readPolicy(ctx context.Context) {
	if b.cfg.Policy == nil {
		return
	}
	p, err := b.store.Get(ctx, trust.PolicyKey)
	if err != nil || p == nil {
		return // what was taken up goes on to count
	}
	err = b.cfg.Policy(p.Value, b.trustSet())
	if r := (*trust.Refusal)(nil); errors.As(err, &r) && (r.Reason == trust.WrongOperator || r.Reason == trust.NoTrustSet) {
		b.lookForTrust(false) // it may be of an operator whom a set names that came between the two reads
		err = b.cfg.Policy(p.Value, b.trustSet())
	}
	if err != nil {
		b.refuse(trust.PolicyKey, p.Value, err, "", "")
	}
}

// SignedGateway reads where a gateway says that it can be reached, and the stamp with which it said so: what is not
// signed by a key that the verifier knows for that gateway is an error. A gateway that never registered has a nil stamp.
func SignedGateway(ctx context.Context, s Store, v *trust.Verifier, name string) (url string, st *trust.Stamp, err error) {
	key := gatewaysPrefix + name + "/" + signedField
	p, err := s.Get(ctx, key)
	if err != nil || p == nil {
		return "", nil, err
	}
	body, st, err := v.Record(trust.KindRegistry, key, p.Value, name, "")
	if err != nil {
		return "", nil, err
	}
	var said signedFields
	if err := json.Unmarshal(body, &said); err != nil {
		return "", nil, fmt.Errorf("%w: %s: %w", errUnreadable, key, err)
	}
	return said.Fields["url"], st, nil
}
