package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"strconv"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// EntryHead is what the one signature of an entry is over: its place in the lane, and the root of its items.
type EntryHead struct {
	// Lane is the prefix of the lane's slots in the store.
	Lane  string
	Seq   uint64
	Count uint64
	Items int
	Root  Hash
}

// body is the last part of the statement.
func (h *EntryHead) body() []byte {
	b := make([]byte, 0, 96)
	b = strconv.AppendUint(b, h.Seq, 10)
	b = append(b, '\n')
	b = strconv.AppendUint(b, h.Count, 10)
	b = append(b, '\n')
	b = strconv.AppendInt(b, int64(h.Items), 10)
	b = append(b, '\n')
	return append(b, h.Root[:]...)
}

// SignEntry makes the stamp of an entry.
func (s *Signer) SignEntry(h *EntryHead, at time.Time) Stamp {
	return s.Sign(KindEntry, h.Lane, at, h.body())
}

// AppendStamp writes a stamp as a JSON object.
func AppendStamp(b []byte, st *Stamp) []byte { return appendStamp(b, st) }

// ParseStamp reads what AppendStamp wrote; ok is false for anything else.
func ParseStamp(b []byte) (st *Stamp, ok bool) { return parseStamp(b) }

// SignedEntry reports whether the key made the stamp for this entry.
func (st *Stamp) SignedEntry(public ed25519.PublicKey, h *EntryHead) bool {
	return st.SignedBy(public, KindEntry, h.Lane, h.body())
}

// maxItems is more than an entry ever holds.
const maxItems = 1 << 16

// A Proof shows to anybody that a gateway put an envelope into an entry: the head, the signature, and the way from the
// item to the root.
type Proof struct {
	Stamp
	Lane  string `json:"lane"`
	Seq   uint64 `json:"seq"`
	Count uint64 `json:"count"`
	Items int    `json:"items"`
	Index int    `json:"index"`
	// Meta is the hash of what the path had added to the item then.
	Meta []byte   `json:"meta"`
	Path [][]byte `json:"path"`
}

// Prove cuts the proof of one item out of an entry.
func Prove(st Stamp, h *EntryHead, leaves []Hash, index int, meta Hash) *Proof {
	p := &Proof{Stamp: st, Lane: h.Lane, Seq: h.Seq, Count: h.Count, Items: h.Items, Index: index, Meta: meta[:], Path: [][]byte{}}
	for _, n := range auditPath(leaves, index) {
		p.Path = append(p.Path, n[:])
	}
	return p
}

// Encode is the proof as JSON.
func (p *Proof) Encode() []byte {
	b, err := envelope.Encode(p)
	if err != nil {
		panic("trust: a proof does not encode: " + err.Error())
	}
	return b
}

// maxProof is more than a proof of maxItems needs.
const maxProof = 4096

// DecodeProof reads a proof in exactly the form that Encode writes.
func DecodeProof(raw []byte) (*Proof, error) {
	var p Proof
	if len(raw) > maxProof {
		return nil, refuse(Malformed, "", "", "proof is %d bytes, at most %d", len(raw), maxProof)
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, refuse(Malformed, "", "", "proof is not readable: %v", err)
	}
	ok := p.readable() && plainName(p.Lane) && p.Items > 0 && p.Items <= maxItems && p.Index >= 0 && p.Index < p.Items && len(p.Meta) == len(Hash{})
	for _, n := range p.Path {
		ok = ok && len(n) == len(Hash{})
	}
	if !ok || !bytes.Equal(p.Encode(), raw) {
		return nil, refuse(Malformed, "", "", "proof is not in its one form")
	}
	return &p, nil
}

// head is the entry's head that the proof leads to, for an envelope.
func (p *Proof) head(canonical []byte) (*EntryHead, bool) {
	path := make([]Hash, len(p.Path))
	for i, n := range p.Path {
		path[i] = Hash(n)
	}
	root, ok := rootFrom(Leaf(canonical, Hash(p.Meta)), p.Index, p.Items, path)
	return &EntryHead{Lane: p.Lane, Seq: p.Seq, Count: p.Count, Items: p.Items, Root: root}, ok
}
