package trust

import (
	"crypto/ed25519"
	"sync/atomic"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// A Verifier says whether a gateway said something. Its answers come from one immutable view of the trust set, so that lanes
// that verify side by side wait for nothing.
type Verifier struct {
	mesh    string
	enforce bool
	view    atomic.Pointer[view]
	// missing is asked before a key counts as unknown: a gateway signs with a new one as soon as the set names it, and
	// this set may be older. It returns when there is no newer one.
	missing atomic.Pointer[func(mail bool)]
}

// view is a set, looked up by key.
type view struct {
	set     *Set
	keys    map[string]*heldKey
	revoked map[string]string // key id to gateway
	names   map[string]bool
}

type heldKey struct {
	gateway   string
	public    ed25519.PublicKey
	notBefore time.Time
	notAfter  time.Time // zero: without end
}

// Slack is how far the clocks of gateways and operator may stand apart at the ends of a key's life, and how much younger than
// its entry's stamp a message may be. Nothing else is judged by a stamp's moment: ownership and order know no wall clock.
const Slack = 5 * time.Minute

func (k *heldKey) validAt(at time.Time) bool {
	return !at.Before(k.notBefore.Add(-Slack)) && (k.notAfter.IsZero() || !at.After(k.notAfter.Add(Slack)))
}

// NewVerifier makes a verifier of a mesh that knows no set yet. Until it does, everything is accepted, or with enforce
// nothing is.
func NewVerifier(mesh string, enforce bool) *Verifier { return &Verifier{mesh: mesh, enforce: enforce} }

// Use makes a set the one that answers come from; from then on signatures are enforced.
func (v *Verifier) Use(s *Set) {
	w := &view{set: s, keys: map[string]*heldKey{}, revoked: map[string]string{}, names: map[string]bool{}}
	for _, m := range s.Gateways {
		w.names[m.Name] = true
		for _, k := range m.Keys {
			public, err := ParsePublic(k.Public)
			if err != nil {
				continue // check refuses such a set
			}
			h := &heldKey{gateway: m.Name, public: public, notBefore: k.NotBefore.Time}
			if k.NotAfter != nil {
				h.notAfter = k.NotAfter.Time
			}
			w.keys[KeyID(public)] = h
		}
	}
	for _, r := range s.Revoked {
		w.revoked[r.Key] = r.Gateway
	}
	v.view.Store(w)
}

// Set is the set that answers come from, or nil.
func (v *Verifier) Set() *Set {
	if w := v.view.Load(); w != nil {
		return w.set
	}
	return nil
}

// Enforced reports whether what is unsigned is refused.
func (v *Verifier) Enforced() bool { return v.enforce || v.view.Load() != nil }

// OnMissing sets what is done before a key that the set does not name is refused: look for a newer set, and [Verifier.Use] it.
// It is called from whatever goroutine judges, once a judgement. mail: a refusal would cost a message (an entry, a proof, receipts,
// a record), so the look is worth waiting for; else it must be quick.
func (v *Verifier) OnMissing(look func(mail bool)) { v.missing.Store(&look) }

// key is keyOf, with a look for a newer set when the key is not in this one.
func (v *Verifier) key(st *Stamp, mail bool) (*heldKey, *view, error) {
	k, w, err := v.keyOf(st)
	look := v.missing.Load()
	if refused, ok := err.(*Refusal); !ok || refused.Reason != UnknownKey || look == nil { //nolint:errorlint // keyOf made it
		return k, w, err
	}
	(*look)(mail)
	if v.view.Load() == w {
		return k, w, err
	}
	return v.keyOf(st)
}

// keyOf finds the key that a stamp names and judges it. A nil key without an error means that nothing is enforced.
func (v *Verifier) keyOf(st *Stamp) (*heldKey, *view, error) {
	w := v.view.Load()
	switch {
	case w == nil && !v.enforce:
		return nil, nil, nil
	case st == nil:
		return nil, w, refuse(Unsigned, "", "", "it has no signature, or none that can be read")
	case w == nil:
		return nil, w, refuse(NoTrustSet, st.Gateway, st.Key, "no trust set is known yet (gatemesh trust init)")
	case st.Mesh != v.mesh:
		return nil, w, refuse(WrongMesh, st.Gateway, st.Key, "it was signed for the mesh %s, this is %s", st.Mesh, v.mesh)
	}
	if gw, ok := w.revoked[st.Key]; ok {
		return nil, w, refuse(Revoked, gw, st.Key, "the key of %s was revoked", gw)
	}
	k := w.keys[st.Key]
	switch {
	case k == nil:
		return nil, w, refuse(UnknownKey, st.Gateway, st.Key, "trust set %d has no such key", w.set.Version)
	case k.gateway != st.Gateway:
		return nil, w, refuse(WrongGateway, k.gateway, st.Key, "the key of %s was used as if it were %s's", k.gateway, st.Gateway)
	case !k.validAt(st.At.Time):
		return nil, w, refuse(OutOfTime, st.Gateway, st.Key, "signed at %s, when the key was not valid", st.At.Format(time.RFC3339))
	}
	return k, w, nil
}

// Record judges a record that lies at a place, and returns its object and stamp. by is the gateway that
// must have written it; when it is empty, any that may host the agent (when that is not empty, too) may have.
func (v *Verifier) Record(kind Kind, place string, raw []byte, by, agent string) (object []byte, st *Stamp, err error) {
	object, st = SplitRecord(raw)
	return object, st, v.Stamp(kind, place, object, st, by, agent)
}

// Stamp judges a stamp over a body at a place; by and agent are as in [Verifier.Record].
func (v *Verifier) Stamp(kind Kind, place string, body []byte, st *Stamp, by, agent string) error {
	k, w, err := v.key(st, kind == KindReceipts || kind == KindRecord)
	if err != nil || k == nil {
		return err
	}
	if !st.SignedBy(k.public, kind, place, body) {
		return refuse(BadSignature, st.Gateway, st.Key, "%s did not write this as a %s at %s", st.Gateway, kind, place)
	}
	return w.speaks(st, by, agent)
}

// speaks judges whether the stamp's gateway may have written something.
func (w *view) speaks(st *Stamp, by, agent string) error {
	switch {
	case by != "" && st.Gateway != by:
		return refuse(WrongGateway, st.Gateway, st.Key, "%s wrote what only %s may", st.Gateway, by)
	case agent != "" && !w.set.MayHost(st.Gateway, agent):
		return refuse(NotHost, st.Gateway, st.Key, "%s may not host %s", st.Gateway, agent)
	}
	return nil
}

// Entry judges an entry of the lane of a gateway.
func (v *Verifier) Entry(h *EntryHead, st *Stamp, by string) error {
	k, w, err := v.key(st, true)
	if err != nil || k == nil {
		return err
	}
	if !st.SignedEntry(k.public, h) {
		return refuse(BadSignature, st.Gateway, st.Key, "%s did not write this as entry %d of %s", st.Gateway, h.Seq, h.Lane)
	}
	return w.speaks(st, by, "")
}

// Proof judges the proof that a gateway sent an envelope.
func (v *Verifier) Proof(p *Proof, canonical []byte, by string) error {
	var st *Stamp
	if p != nil {
		st = &p.Stamp
	}
	k, w, err := v.key(st, true)
	if err != nil || k == nil {
		return err
	}
	if h, ok := p.head(canonical); !ok || !st.SignedEntry(k.public, h) {
		return refuse(BadSignature, st.Gateway, st.Key, "%s did not send this envelope as item %d of entry %d of %s", st.Gateway, p.Index, p.Seq, p.Lane)
	}
	return w.speaks(st, by, "")
}

// Speaks says why what the signer signs now would be refused, or nil.
func (v *Verifier) Speaks(s *Signer, now time.Time) error {
	_, _, err := v.keyOf(&Stamp{Mesh: s.Mesh, Gateway: s.Gateway, Key: s.Current().id, At: envelope.At(now)})
	return err
}

// MaySend reports whether a gateway may send as an agent.
func (v *Verifier) MaySend(gateway, agent string) bool {
	w := v.view.Load()
	if w == nil {
		return !v.enforce
	}
	return w.set.MaySend(gateway, agent)
}

// MayHost reports whether a gateway may host an agent.
func (v *Verifier) MayHost(gateway, agent string) bool {
	w := v.view.Load()
	if w == nil {
		return !v.enforce
	}
	return w.set.MayHost(gateway, agent)
}
