package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// Set is who may speak in a mesh.
type Set struct {
	// Mesh names the mesh; a set of another one is refused.
	Mesh string `json:"mesh"`
	// Version grows with every change. A gateway never goes back.
	Version  uint64        `json:"version"`
	IssuedAt envelope.Time `json:"issued_at"`
	// Operators are the public keys, any one of which signs the next version.
	Operators []string `json:"operators"`
	Gateways  []Member `json:"gateways"`
	// Revoked are the newest keys that were taken out: a name for what is refused. A key that is in neither list is unknown.
	Revoked []Revocation `json:"revoked"`
}

// Member is one gateway.
type Member struct {
	Name string `json:"name"`
	// Keys may be several, so that one can follow another.
	Keys []MemberKey `json:"keys"`
	// Agents are the agents (and queues) that it may host: names, in which * stands for any characters. Its own inbox is its
	// own anyway.
	Agents []string `json:"agents"`
}

// MemberKey is a public key and when it counts.
type MemberKey struct {
	Public string `json:"public"`
	// NotBefore is zero for a key that counts from its own beginning: one that signed before it was let in.
	NotBefore envelope.Time  `json:"not_before,omitzero"`
	NotAfter  *envelope.Time `json:"not_after,omitempty"` // nil: without end
}

// Revocation is a key that must not be believed, whatever it signed and whenever.
type Revocation struct {
	Key     string        `json:"key"`
	Gateway string        `json:"gateway"`
	At      envelope.Time `json:"at"`
}

// Bounds of a set.
const (
	// MaxSet is the size of a signed set: with room to spare below what a store's value may hold.
	MaxSet       = 256 << 10
	maxOperators = 8
	maxMembers   = 500
	maxKeys      = 8
	maxPatterns  = 64
	maxRevoked   = 256
	maxSigs      = 8
)

// signedSet is a set on the wire: its bytes, and who signed them.
type signedSet struct {
	Set        json.RawMessage `json:"set"`
	Signatures []operatorSig   `json:"signatures"`
}

type operatorSig struct {
	Public string `json:"public"`
	Sig    []byte `json:"sig"`
}

// SetKey is where a set lies in the store, and part of what is signed.
const SetKey = "openclaw/trust/set"

// setStatement is what operators sign.
func setStatement(set []byte) []byte {
	return append([]byte("gatemesh/"+string(KindSet)+"/v1\n"+SetKey+"\n"), set...)
}

// SignSet checks a set and signs it with the operators' keys.
func SignSet(s *Set, operators ...*Key) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	body, err := envelope.Encode(s)
	if err != nil {
		return nil, fmt.Errorf("encode trust set: %w", err)
	}
	w := signedSet{Set: body, Signatures: []operatorSig{}}
	for _, k := range operators {
		w.Signatures = append(w.Signatures, operatorSig{EncodePublic(k.Public()), ed25519.Sign(k.private, setStatement(body))})
	}
	raw, err := envelope.Encode(w)
	if err == nil && len(raw) > MaxSet {
		err = fmt.Errorf("trust set is %d bytes, at most %d", len(raw), MaxSet)
	}
	return raw, err
}

// DecodeSet reads a signed set in exactly the form that SignSet writes, and returns those whose signatures under it are
// good. It does not say whether any of them may sign: see [Anchor].
func DecodeSet(raw []byte) (*Set, []ed25519.PublicKey, error) {
	bad := func(format string, args ...any) error { return refuse(Malformed, "", "", "trust set "+format, args...) }
	if len(raw) > MaxSet {
		return nil, nil, bad("is %d bytes, at most %d", len(raw), MaxSet)
	}
	var w signedSet
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, nil, bad("is not readable: %v", err)
	}
	var s Set
	if err := json.Unmarshal(w.Set, &s); err != nil {
		return nil, nil, bad("is not readable: %v", err)
	}
	body, err := envelope.Encode(&s)
	if err != nil || !bytes.Equal(body, w.Set) {
		return nil, nil, bad("is not in its one form (use gatemesh trust, do not edit it)")
	}
	if again, err := envelope.Encode(w); err != nil || !bytes.Equal(again, raw) {
		return nil, nil, bad("is not in its one form (use gatemesh trust, do not edit it)")
	}
	if err := s.check(); err != nil {
		return nil, nil, bad("%v", err)
	}
	if len(w.Signatures) == 0 || len(w.Signatures) > maxSigs {
		return nil, nil, bad("has %d signatures, want 1 to %d", len(w.Signatures), maxSigs)
	}
	var by []ed25519.PublicKey
	statement := setStatement(w.Set)
	for _, sig := range w.Signatures {
		public, err := ParsePublic(sig.Public)
		if err != nil || EncodePublic(public) != sig.Public {
			return nil, nil, bad("has a signature without a public key")
		}
		if len(sig.Sig) != ed25519.SignatureSize || !ed25519.Verify(public, statement, sig.Sig) {
			return nil, nil, refuse(BadSignature, "", KeyID(public), "trust set %d was changed after it was signed", s.Version)
		}
		by = append(by, public)
	}
	return &s, by, nil
}

// check is everything that a set must be.
func (s *Set) check() error {
	switch {
	case !plainName(s.Mesh):
		return fmt.Errorf("names the mesh %q", s.Mesh)
	case s.Version == 0 || s.Version > 1<<53:
		return fmt.Errorf("has version %d", s.Version)
	case s.IssuedAt.IsZero():
		return fmt.Errorf("does not say when it was issued")
	case len(s.Operators) == 0 || len(s.Operators) > maxOperators:
		return fmt.Errorf("names %d operators, want 1 to %d", len(s.Operators), maxOperators)
	case len(s.Gateways) > maxMembers || len(s.Revoked) > maxRevoked:
		return fmt.Errorf("names %d gateways and %d revoked keys, at most %d and %d", len(s.Gateways), len(s.Revoked), maxMembers, maxRevoked)
	}
	if s.Gateways == nil || s.Revoked == nil {
		return fmt.Errorf("leaves out a list")
	}
	seen := map[string]string{}
	key := func(whose, text string) error {
		public, err := ParsePublic(text)
		if err != nil || EncodePublic(public) != text {
			return fmt.Errorf("%s: want a public key as the base64 of 32 bytes", whose)
		}
		if other, ok := seen[KeyID(public)]; ok {
			return fmt.Errorf("%s has the key %s of %s: each needs its own", whose, KeyID(public), other)
		}
		seen[KeyID(public)] = whose
		return nil
	}
	for _, o := range s.Operators {
		if err := key("operator", o); err != nil {
			return err
		}
	}
	last := ""
	for _, m := range s.Gateways {
		if err := m.check(last); err != nil {
			return err
		}
		last = m.Name
		for _, k := range m.Keys {
			if err := key(m.Name, k.Public); err != nil {
				return err
			}
		}
	}
	for _, r := range s.Revoked {
		if !keyIDText(r.Key) || !envelope.ValidName(r.Gateway) || r.At.IsZero() {
			return fmt.Errorf("names a revoked key that is none")
		}
		if whose, ok := seen[r.Key]; ok {
			return fmt.Errorf("names the key %s of %s as revoked, too", r.Key, whose)
		}
	}
	return nil
}

func (m *Member) check(before string) error {
	switch {
	case !envelope.ValidName(m.Name):
		return fmt.Errorf("names the gateway %q", m.Name)
	case m.Name <= before:
		return fmt.Errorf("names gateway %s after %s: they are sorted, each once", m.Name, before)
	case len(m.Keys) == 0 || len(m.Keys) > maxKeys || len(m.Agents) > maxPatterns || m.Agents == nil:
		return fmt.Errorf("gives %s %d keys and %d patterns of agents, want 1 to %d and at most %d", m.Name, len(m.Keys), len(m.Agents), maxKeys, maxPatterns)
	}
	for _, k := range m.Keys {
		if k.NotAfter != nil && !k.NotAfter.After(k.NotBefore.Time) {
			return fmt.Errorf("gives %s a key that is never valid", m.Name)
		}
	}
	for _, p := range m.Agents {
		if !ValidPattern(p) {
			return fmt.Errorf("lets %s host %q: want the name of an agent, in which * stands for any characters", m.Name, p)
		}
	}
	return nil
}

// ValidPattern reports whether p may stand for agents: a name, in which * stands for any characters.
func ValidPattern(p string) bool {
	return p != "" && len(p) <= 64 && strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789-*") == "" && strings.Count(p, "*") <= 4
}

// Member returns a gateway, or nil.
func (s *Set) Member(name string) *Member {
	if i := slices.IndexFunc(s.Gateways, func(m Member) bool { return m.Name == name }); i >= 0 {
		return &s.Gateways[i]
	}
	return nil
}

// MayHost reports whether a gateway may own the agent's inbox, and speak for it.
func (s *Set) MayHost(gateway, agent string) bool {
	m := s.Member(gateway)
	switch {
	case m == nil:
		return false
	case agent == gateway:
		return true
	case s.Member(agent) != nil:
		return false // the inbox of another gateway is that one's alone
	}
	return m.fits(agent)
}

func (m *Member) fits(agent string) bool {
	return slices.ContainsFunc(m.Agents, func(p string) bool { ok, _ := path.Match(p, agent); return ok })
}

// MaySend reports whether a gateway may send as an agent: as those that it may host, and under names that nobody may host
// (people, clients of its API).
func (s *Set) MaySend(gateway, agent string) bool {
	if s.MayHost(gateway, agent) {
		return true
	}
	return s.Member(gateway) != nil && s.Member(agent) == nil && !slices.ContainsFunc(s.Gateways, func(m Member) bool { return m.fits(agent) })
}

// Put adds a gateway, or a key to one that is there, and sorts.
func (s *Set) Put(name string, k MemberKey, agents []string) {
	if m := s.Member(name); m != nil {
		if !slices.ContainsFunc(m.Keys, func(x MemberKey) bool { return x.Public == k.Public }) {
			m.Keys = append(m.Keys, k)
		}
		for _, p := range agents {
			if !slices.Contains(m.Agents, p) {
				m.Agents = append(m.Agents, p)
			}
		}
		return
	}
	s.Gateways = append(s.Gateways, Member{Name: name, Keys: []MemberKey{k}, Agents: append([]string{}, agents...)})
	slices.SortFunc(s.Gateways, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
}

// Retire ends a key of a gateway at a moment; what it signed before stays believed. It reports whether there is such a key.
func (s *Set) Retire(name, key string, at time.Time) bool {
	m := s.Member(name)
	if m == nil {
		return false
	}
	for i := range m.Keys {
		if public, err := ParsePublic(m.Keys[i].Public); err == nil && KeyID(public) == key {
			end := envelope.At(at)
			m.Keys[i].NotAfter = &end
			return true
		}
	}
	return false
}

// Revoke takes out a key of a gateway, or the whole gateway when key is empty, and reports whether anything was there.
func (s *Set) Revoke(name, key string, at time.Time) bool {
	m := s.Member(name)
	if m == nil {
		return false
	}
	n := len(s.Revoked)
	m.Keys = slices.DeleteFunc(m.Keys, func(k MemberKey) bool {
		public, err := ParsePublic(k.Public)
		if err != nil || key != "" && KeyID(public) != key {
			return false
		}
		s.Revoked = append(s.Revoked, Revocation{KeyID(public), name, envelope.At(at)})
		return true
	})
	if len(m.Keys) == 0 {
		s.Gateways = slices.DeleteFunc(s.Gateways, func(x Member) bool { return x.Name == name })
	}
	gone := len(s.Revoked) > n
	if over := len(s.Revoked) - maxRevoked; over > 0 {
		s.Revoked = slices.Delete(s.Revoked, 0, over)
	}
	return gone
}
