package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// ErrUntrusted: this gateway's key is not in the trust set, so nobody would believe what it writes.
var ErrUntrusted = errors.New("this gateway is not in the trust set")

// signedHead is the signature of an entry and what it is over.
type signedHead struct {
	trust.EntryHead
	stamp trust.Stamp
}

// signHead signs the entry that these items make; nil when nothing is signed.
func (b *Bus) signHead(to string, seq, count uint64, at envelope.Time, items []laneItem) *signedHead {
	if b.cfg.Signer == nil {
		return nil
	}
	leaves := make([]trust.Hash, len(items))
	for i, it := range items {
		leaves[i] = it.leaf
	}
	h := &signedHead{EntryHead: trust.EntryHead{Lane: lanePrefix(b.cfg.Gateway, to), Seq: seq, Count: count, Items: len(items), Root: trust.Root(leaves)}}
	h.stamp = b.cfg.Signer.SignEntry(&h.EntryHead, at.Time)
	return h
}

// noMetaHash is that of most items: nothing was added to them.
var noMetaHash = trust.MetaHash(nil)

// metaHash is trust.MetaHash of what stands behind an envelope, without the item's last bracket.
func metaHash(tail []byte) trust.Hash {
	if len(tail) == 0 {
		return noMetaHash
	}
	return trust.MetaHash(tail)
}

// saidEntry is an entry as its gateway said it: what a proof for one of its items is cut from.
type saidEntry struct {
	signedHead
	leaves []trust.Hash
	metas  []trust.Hash
}

// proof is the proof of an item.
func (s *saidEntry) proof(i int) []byte {
	return trust.Prove(s.stamp, &s.EntryHead, s.leaves, i, s.metas[i]).Encode()
}

// said hashes what an entry holds. It is nil when there is no signature that could be read.
func said(lane string, e *entry) *saidEntry {
	st, ok := trust.ParseStamp(e.Signed)
	if !ok || !st.At.Equal(e.At.Time) {
		return nil
	}
	n := len(e.Items)
	s := &saidEntry{signedHead: signedHead{stamp: *st}, leaves: make([]trust.Hash, 0, n), metas: make([]trust.Hash, 0, n)}
	for i := range e.Items {
		if e.Items[i].loose {
			return nil
		}
		meta := metaHash(e.Items[i].tail)
		s.metas = append(s.metas, meta)
		s.leaves = append(s.leaves, trust.Leaf(e.Items[i].Envelope, meta))
	}
	s.EntryHead = trust.EntryHead{Lane: lane, Seq: e.Seq, Count: e.Count, Items: len(e.Items), Root: trust.Root(s.leaves)}
	return s
}

// enforced reports whether what is unsigned is refused.
func (b *Bus) enforced() bool { return b.cfg.Trust != nil && b.cfg.Trust.Enforced() }

// trustSet is what is judged by; nil: nothing yet.
func (b *Bus) trustSet() *trust.Set {
	if b.cfg.Trust == nil {
		return nil
	}
	return b.cfg.Trust.Set()
}

// checkBell judges what a bell says, and returns the head that it names.
func (b *Bus) checkBell(from, agent string, bl *bell) (*signedHead, error) {
	if !b.enforced() {
		return nil, nil //nolint:nilnil // nothing to go by
	}
	lane := lanePrefix(from, agent)
	h := &signedHead{EntryHead: trust.EntryHead{Lane: lane, Seq: bl.Seq, Count: bl.Count, Items: bl.Items}}
	raw := bl.Signed
	if len(bl.Entry) > 0 {
		e, err := decodeEntry(bl.Entry)
		if err != nil {
			return nil, err
		}
		s := said(lane, &e)
		switch {
		case s == nil:
			return nil, b.cfg.Trust.Entry(&h.EntryHead, nil, from)
		case s.Seq != bl.Seq || s.Count != bl.Count:
			return nil, &trust.Refusal{Reason: trust.BadSignature, Gateway: from, Key: s.stamp.Key, Detail: fmt.Sprintf("the bell says %d, the entry in it %d", bl.Seq, s.Seq)}
		}
		*h = s.signedHead
		raw = e.Signed
	} else if len(bl.Root) == len(h.Root) {
		h.Root = trust.Hash(bl.Root)
	}
	st, ok := trust.ParseStamp(raw)
	if !ok {
		return nil, b.cfg.Trust.Entry(&h.EntryHead, nil, from)
	}
	h.stamp = *st
	return h, b.cfg.Trust.Entry(&h.EntryHead, st, from)
}

// checkEntry judges an entry of a lane. known is a head that was judged already: that of the bell, most often.
func (b *Bus) checkEntry(from, agent string, e *entry, known *signedHead) (*saidEntry, error) {
	if b.cfg.Trust == nil {
		return nil, nil //nolint:nilnil // nothing to go by
	}
	lane := lanePrefix(from, agent)
	s := said(lane, e)
	if !b.enforced() {
		return s, nil
	}
	if s == nil {
		return nil, b.cfg.Trust.Entry(&trust.EntryHead{Lane: lane, Seq: e.Seq}, nil, from)
	}
	if known != nil && known.EntryHead == s.EntryHead && bytes.Equal(known.stamp.Sig, s.stamp.Sig) && known.stamp.Key == s.stamp.Key {
		return s, nil
	}
	if known != nil && known.Seq == s.Seq {
		return s, &trust.Refusal{Reason: trust.Replay, Gateway: from, Key: s.stamp.Key, Detail: fmt.Sprintf("entry %d is not the one that the bell names", s.Seq)}
	}
	return s, b.cfg.Trust.Entry(&s.EntryHead, &s.stamp, from)
}

// checkItem judges whether the lane's gateway may bring this message: its own agents' mail, and what others
// sent and it passes on, with their proof.
func (b *Bus) checkItem(j *job, proof json.RawMessage, at envelope.Time) error {
	if !b.enforced() {
		return nil
	}
	e, v := &j.env.Envelope, b.cfg.Trust
	if e.CreatedAt.After(at.Add(trust.Slack)) {
		return &trust.Refusal{Reason: trust.OutOfTime, Gateway: j.src.from, Detail: "the entry is older than the message in it"}
	}
	if j.del.For != "" {
		if n := len(j.del.Hops); n == 0 || !v.MayHost(j.src.from, j.del.Hops[n-1].Agent) {
			return &trust.Refusal{Reason: trust.NotHost, Gateway: j.src.from, Detail: j.src.from + " passed it on as an agent that it may not host"}
		}
	}
	if e.SourceGateway != j.src.from {
		if err := b.checkProof(j.env, proof); err != nil {
			return err
		}
	}
	if !v.MaySend(e.SourceGateway, e.SourceAgent) {
		return &trust.Refusal{Reason: trust.NotHost, Gateway: e.SourceGateway, Detail: fmt.Sprintf("%s may not send as %s", e.SourceGateway, e.SourceAgent)}
	}
	return nil
}

// sign adds this gateway's stamp to a record that lies at key.
func (b *Bus) sign(kind trust.Kind, key string, object []byte) []byte {
	if b.cfg.Signer == nil {
		return object
	}
	return b.cfg.Signer.SignRecord(kind, key, b.now(), object)
}

// read returns the record at key as it was signed. by and agent say who may have written it (see [trust.Verifier.Record]).
func (b *Bus) read(kind trust.Kind, key string, raw []byte, by, agent string) ([]byte, error) {
	object, _, err := b.open(kind, key, raw, by, agent)
	return object, err
}

// open is read with the stamp; nil when there is none.
func (b *Bus) open(kind trust.Kind, key string, raw []byte, by, agent string) ([]byte, *trust.Stamp, error) {
	raw = b.packer.unpack(raw, nil)
	if b.cfg.Trust == nil {
		object, st := trust.SplitRecord(raw)
		return object, st, nil
	}
	return b.cfg.Trust.Record(kind, key, raw, by, agent)
}

// checkSource judges whether a message in a record was sent by whom it says: its writer hosts the agent, but other
// gateways' mail he must be able to show.
func (b *Bus) checkSource(env *envelope.Sealed, proof json.RawMessage, st *trust.Stamp) error {
	if !b.enforced() || env == nil || st != nil && env.SourceGateway == st.Gateway {
		return nil
	}
	return b.checkProof(env, proof)
}

// checkProof judges the proof that a message was sent by the gateway that it names; an empty one is none.
func (b *Bus) checkProof(env *envelope.Sealed, proof json.RawMessage) error {
	var p *trust.Proof
	if len(proof) > 0 {
		var err error
		if p, err = trust.DecodeProof(proof); err != nil {
			return err
		}
	}
	return b.cfg.Trust.Proof(p, env.Canonical(), env.SourceGateway)
}

// openPending is decodePending for a record that must be believed.
func (b *Bus) openPending(p *Pair, agent string) (rec pendingRecord, env *envelope.Sealed, err error) {
	if p == nil {
		return decodePending(nil)
	}
	body, st, err := b.open(trust.KindRecord, p.Key, p.Value, "", agent)
	if err != nil {
		return rec, nil, err
	}
	plain := *p
	plain.Value = body
	if rec, env, err = decodePending(&plain); err == nil {
		err = b.checkSource(env, rec.Proof, st)
	}
	return rec, env, err
}

// refusals remembers what was refused, so that each thing that lies in the store is told of once, however often it is
// read.
type refusals struct {
	mu   sync.Mutex
	seen map[string][sha256.Size]byte
}

// maxRefusals bounds the memory; beyond it, things are told of again.
const maxRefusals = 4096

func (r *refusals) fresh(key string, value []byte) bool {
	h := sha256.Sum256(value)
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.seen[key]; ok && old == h {
		return false
	}
	if r.seen == nil || len(r.seen) >= maxRefusals {
		r.seen = map[string][sha256.Size]byte{}
	}
	r.seen[key] = h
	return true
}

// refuse tells that what lies at key is not believed. Each value is told of once.
func (b *Bus) refuse(key string, value []byte, err error, from, to string) {
	if !b.refusals.fresh(key, value) {
		return
	}
	b.emit(b.refusal(key, err, from, to))
}

// refusal is the event of a refusal.
func (b *Bus) refusal(key string, err error, from, to string) Event {
	ev := Event{Event: EventRefused, At: envelope.At(b.now()), Gateway: b.cfg.Gateway, From: from, To: to, Class: envelope.ClassUnauthorised, Reason: key + ": " + err.Error()}
	var r *trust.Refusal
	if errors.As(err, &r) {
		ev.Refusal, ev.Key = string(r.Reason), r.Key
		if ev.From == "" && r.Gateway != "" {
			ev.From = "@" + r.Gateway
		}
	} else {
		ev.Refusal, ev.Class = string(trust.Malformed), envelope.ClassPoison
	}
	return ev
}

// trusted says why nobody would believe this gateway, if so.
func (b *Bus) trusted() error {
	if !b.enforced() {
		return nil
	}
	s := b.cfg.Signer
	if s == nil {
		return fmt.Errorf("%w: it has no key", ErrUntrusted)
	}
	if err := b.cfg.Trust.Speaks(s, b.now()); err != nil {
		if r := (*trust.Refusal)(nil); errors.As(err, &r) && r.Reason == trust.OutOfTime {
			return fmt.Errorf("%w: its key has ended: %w; gatemesh keys rotate gateway %s has it make another, gatemesh trust approve %s --key ID lets that in", ErrUntrusted, err, s.Gateway, s.Gateway)
		}
		return fmt.Errorf("%w: %w; the operator can let it in: gatemesh trust approve %s --key %s", ErrUntrusted, err, s.Gateway, s.Current().ID())
	}
	return nil
}

// trustRest is the least time between two reads of a trust set that somebody keeps changing.
const trustRest = time.Second

// followTrust keeps the trust set that lies in the store, and asks to join while this gateway is not in it. It reads when the set
// changes, so that a revocation works at once, and with every heartbeat. It writes nothing but that request, once.
func (b *Bus) followTrust(ctx context.Context) {
	changed := make(chan struct{}, 1) // carries wake-ups, which may merge
	watched := false
	for {
		if b.readTrust(ctx) && !watched {
			watched = true
			b.run(func() { b.watchTrust(ctx, changed) })
		}
		if !wait(ctx, min(trustRest, b.cfg.Heartbeat)) {
			return
		}
		t := time.NewTimer(b.cfg.Heartbeat)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// watchTrust tells of every change of the set. While somebody has deleted it, it looks once a heartbeat: a watch of what is not there
// may wake for anything.
func (b *Bus) watchTrust(ctx context.Context, changed chan<- struct{}) {
	b.watchForever(ctx, trust.SetKey, func(pairs []Pair) error {
		select {
		case changed <- struct{}{}:
		default:
		}
		rest := trustRest
		if len(pairs) == 0 {
			rest = b.cfg.Heartbeat
		}
		wait(ctx, rest)
		return nil
	})
}

// readTrust takes in the set that the store has now, and reports whether it has one.
func (b *Bus) readTrust(ctx context.Context) bool {
	if b.cfg.Anchor == nil || b.cfg.Trust == nil {
		return false
	}
	p, err := b.store.Get(ctx, trust.SetKey)
	if err != nil || p == nil {
		return false // what was pinned goes on to count
	}
	b.takeTrust(ctx, p.Value)
	b.changeKey(ctx)
	b.askToJoin(ctx, p.Value)
	b.readPolicy(ctx)
	return true
}

// askToJoin puts this gateway's request into the store while the set there does not name its key, or the one that is to
// follow it.
func (b *Bus) askToJoin(ctx context.Context, raw []byte) {
	s := b.cfg.Signer
	set, _, err := trust.DecodeSet(raw)
	if s == nil || err != nil {
		return
	}
	wanted, next, named := s.Current(), b.next.Load(), func(k *trust.Key) bool { return set.Names(s.Gateway, k.Public(), b.now()) }
	vouched := named(wanted)
	switch {
	case next != nil && named(next), next == nil && (vouched || set.Holds(s.Gateway, wanted.Public())):
		return // it counts, or it has ended: then it needs another key
	case next != nil:
		wanted = next
	}
	key := trust.RequestsPrefix + s.Gateway
	if p, err := b.store.Get(ctx, key); err != nil {
		return
	} else if p != nil {
		if r, _, err := trust.DecodeJoinRequest(key, s.Mesh, p.Value); err == nil && r.Public == trust.EncodePublic(wanted.Public()) &&
			(vouched && r.Vouch != nil && r.Vouch.Key == s.Current().ID() || !vouched && (b.cfg.JoinToken == nil || r.Token == b.cfg.JoinToken.ID())) {
			return
		}
	}
	var agents []string
	for _, id := range b.elector.candidates() {
		if id != s.Gateway {
			agents = append(agents, id)
		}
	}
	request := trust.NewJoinRequest(&trust.Signer{Mesh: s.Mesh, Gateway: s.Gateway, Key: wanted}, agents, b.cfg.JoinToken, b.now())
	if vouched {
		request = trust.NewRotationRequest(s, wanted, agents, b.now())
	}
	if _, err := b.store.Txn(ctx, []Op{
		{Verb: OpCheckSession, Key: gatewayLockKey(b.cfg.Gateway), Session: b.session.id()},
		{Verb: OpSet, Key: key, Value: request},
	}); err != nil {
		b.log.Debug("ask to join", "error", err)
		return
	}
	if vouched {
		b.log.Warn("this gateway asks for its next key to be let into the trust set", "key", s.Current().ID(), "next", next.ID(),
			"fix", "gatemesh keys rotate gateway "+s.Gateway+" --key "+next.ID()+" (on the operator's machine)")
		return
	}
	b.log.Warn("this gateway is not in the mesh's trust set and asks to join", "key", wanted.ID(),
		"fix", "gatemesh trust approve "+s.Gateway+" --key "+wanted.ID()+" (on the operator's machine)")
}
