package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// Kind is what a signature is over. Every kind has its own statements.
type Kind string

// The kinds.
const (
	KindEntry    Kind = "entry"        // an entry of a lane
	KindReceipts Kind = "receipts"     // a lane's cursor and its newest receipts, or a page of the ledger
	KindRegistry Kind = "registry"     // what a gateway says of itself, or of an agent of its
	KindOwner    Kind = "owner"        // that somebody owns an agent, or runs under a gateway's name
	KindTerm     Kind = "term"         // that a term runs
	KindRecord   Kind = "record"       // a pending message, a dead letter, an answer
	KindSet      Kind = "trust-set"    // a trust set; an operator's
	KindJoin     Kind = "join-request" // that a gateway wants to join
	KindPolicy   Kind = "policy"       // who may ask what of whom; an operator's
	KindState    Kind = "state"        // what a gateway put into the shared state
	KindAudit    Kind = "audit"        // that a log of what happened is whole up to here
	KindRotate   Kind = "key-rotation" // that another key of the gateway is to follow

	KindEncryption Kind = "encryption-key" // the key that payloads for a gateway are encrypted for
)

// A Stamp is a signature and what must be known to check it.
type Stamp struct {
	Mesh    string        `json:"mesh"`
	Gateway string        `json:"gateway"`
	Key     string        `json:"key"`
	At      envelope.Time `json:"at"`
	Sig     []byte        `json:"sig"`
}

// statement is the bytes that are signed. No field but the last can hold a line feed ([Stamp.readable]).
func statement(kind Kind, st *Stamp, place string, body []byte) []byte {
	b := make([]byte, 0, 160+len(place)+len(body))
	b = append(b, "gatemesh/"...)
	b = append(b, kind...)
	b = append(b, "/v1\n"...)
	for _, s := range [...]string{st.Mesh, st.Gateway, st.Key} {
		b = append(b, s...)
		b = append(b, '\n')
	}
	b = strconv.AppendInt(b, st.At.UnixMilli(), 10)
	b = append(b, '\n')
	b = append(b, place...)
	b = append(b, '\n')
	return append(b, body...)
}

// Signer is a key that speaks for a gateway of a mesh. Key is the first one; see [Signer.Use].
type Signer struct {
	Mesh, Gateway string
	Key           *Key

	now atomic.Pointer[Key] // nil: Key
}

// Sign makes the stamp of a body at a place (a key of the store).
func (s *Signer) Sign(kind Kind, place string, at time.Time, body []byte) Stamp {
	key := s.Current()
	st := Stamp{Mesh: s.Mesh, Gateway: s.Gateway, Key: key.id, At: envelope.At(at)}
	st.Sig = ed25519.Sign(key.private, statement(kind, &st, place, body))
	return st
}

// readable reports whether the stamp's fields can stand in a statement.
func (st *Stamp) readable() bool {
	return plainName(st.Mesh) && plainName(st.Gateway) && keyIDText(st.Key) && len(st.Sig) == ed25519.SignatureSize && !st.At.IsZero()
}

// plainName bounds names that come with a stamp: no control characters, no quotes, at most 128 bytes.
func plainName(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' || s[i] == '\\' || s[i] == '<' || s[i] == '>' || s[i] == '&' {
			return false
		}
	}
	return true
}

func keyIDText(s string) bool {
	if len(s) != 16 {
		return false
	}
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return true
}

const stampMark = `"signed":`

// appendStamp writes a stamp as json.Marshal would.
func appendStamp(b []byte, st *Stamp) []byte {
	b = append(b, `{"mesh":"`...)
	b = append(b, st.Mesh...)
	b = append(b, `","gateway":"`...)
	b = append(b, st.Gateway...)
	b = append(b, `","key":"`...)
	b = append(b, st.Key...)
	b = append(b, `","at":`...)
	at, err := st.At.MarshalJSON()
	if err != nil {
		at = []byte(`null`) // nobody will read it back: readable refuses it
	}
	b = append(b, at...)
	b = append(b, `,"sig":"`...)
	b = base64.StdEncoding.AppendEncode(b, st.Sig)
	return append(b, `"}`...)
}

// parseStamp reads a stamp in exactly the form that appendStamp writes: two texts for one stamp would be two records
// with one signature.
func parseStamp(b []byte) (*Stamp, bool) {
	var st Stamp
	if len(b) > 1024 || json.Unmarshal(b, &st) != nil || !st.readable() || !bytes.Equal(appendStamp(nil, &st), b) {
		return nil, false
	}
	return &st, true
}

// SignRecord returns a JSON object with its stamp as the last member. Readers that know no signatures pass over it.
func (s *Signer) SignRecord(kind Kind, place string, at time.Time, object []byte) []byte {
	st := s.Sign(kind, place, at, object)
	b := make([]byte, 0, len(object)+256)
	b = append(b, object[:len(object)-1]...)
	if len(object) > 2 {
		b = append(b, ',')
	}
	b = append(b, stampMark...)
	b = appendStamp(b, &st)
	return append(b, '}')
}

// SplitRecord takes a record apart: the object that was signed, and its stamp; nil when it has none.
func SplitRecord(raw []byte) (object []byte, st *Stamp) {
	i := bytes.LastIndex(raw, []byte(stampMark))
	if i < 1 || raw[len(raw)-1] != '}' {
		return raw, nil
	}
	st, ok := parseStamp(raw[i+len(stampMark) : len(raw)-1])
	if !ok {
		return raw, nil
	}
	body := raw[:i]
	if body[len(body)-1] == ',' {
		body = body[:len(body)-1]
	}
	object = make([]byte, 0, len(body)+1)
	return append(append(object, body...), '}'), st
}

// SignedBy reports whether the key made the stamp for this body at this place.
func (st *Stamp) SignedBy(public ed25519.PublicKey, kind Kind, place string, body []byte) bool {
	return st.readable() && KeyID(public) == st.Key && ed25519.Verify(public, statement(kind, st, place, body), st.Sig)
}
