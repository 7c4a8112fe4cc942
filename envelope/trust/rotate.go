package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// Current is the key that the signer signs with: the first one, until another was put in its place.
func (s *Signer) Current() *Key {
	if k := s.now.Load(); k != nil {
		return k
	}
	return s.Key
}

// Use makes another key the one that is signed with from now on. Safe while others sign.
func (s *Signer) Use(k *Key) { s.now.Store(k) }

// ParseKeys reads one key, or two of which the second is to follow the first: PEM blocks, or a line of base64 each.
// Its errors never quote what it was given.
func ParseKeys(text []byte) ([]*Key, error) {
	if len(text) > 2*maxKeyText {
		return nil, fmt.Errorf("keys are %d bytes, at most %d", len(text), 2*maxKeyText)
	}
	var parts [][]byte
	if rest := bytes.TrimSpace(text); bytes.HasPrefix(rest, []byte("-----BEGIN")) {
		for len(rest) > 0 {
			block, after := pem.Decode(rest)
			if block == nil {
				return nil, errors.New("key is PEM that cannot be read")
			}
			parts = append(parts, pem.EncodeToMemory(block))
			rest = bytes.TrimSpace(after)
		}
	} else {
		parts = bytes.Fields(rest)
	}
	if len(parts) == 0 || len(parts) > 2 {
		return nil, fmt.Errorf("%d keys, want one, or two of which the second follows the first", len(parts))
	}
	var keys []*Key
	for _, p := range parts {
		k, err := ParseKey(p)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 2 && keys[0].id == keys[1].id {
		keys = keys[:1]
	}
	return keys, nil
}

// NewRotationRequest asks for another key of a gateway that is in the set already: signed by the new one, which shows that who
// asks holds it, and vouched for by the one that counts now.
func NewRotationRequest(s *Signer, next *Key, agents []string, at time.Time) []byte {
	place := RequestsPrefix + s.Gateway
	r := JoinRequest{Gateway: s.Gateway, Public: EncodePublic(next.Public()), Agents: append([]string{}, agents...)}
	vouch := s.Sign(KindRotate, place, at, []byte(r.Public))
	r.Vouch = &vouch
	body, err := envelope.Encode(r)
	if err != nil {
		panic("trust: a request does not encode: " + err.Error())
	}
	asks := &Signer{Mesh: s.Mesh, Gateway: s.Gateway, Key: next}
	return asks.SignRecord(KindJoin, place, at, body)
}

// Vouched returns the id of the key that vouches for the request's, when a set says that this one speaks for the gateway
// now. The errors are *[Refusal].
func (r *JoinRequest) Vouched(s *Set, now time.Time) (string, error) {
	if r.Vouch == nil {
		return "", refuse(Unsigned, r.Gateway, "", "no key of %s that is in the trust set vouches for the new one", r.Gateway)
	}
	v := NewVerifier(s.Mesh, true)
	v.Use(s)
	if err := v.Stamp(KindRotate, RequestsPrefix+r.Gateway, []byte(r.Public), r.Vouch, r.Gateway, ""); err != nil {
		return "", err
	}
	// That the stamp's moment lies in the key's life is what its holder says: the key must live now.
	return r.Vouch.Key, v.Speaks(&Signer{Mesh: s.Mesh, Gateway: r.Gateway, Key: &Key{id: r.Vouch.Key}}, now)
}

// Follow lets another key of a gateway follow those that it has. From now on it counts; what the others sign after the
// overlap is refused, and what they signed before stays believed. When there is no room for another key, those that ended
// longer than keep ago are taken out. A key that is there already ends nothing a second time.
func (s *Set) Follow(name, public string, now time.Time, overlap, keep time.Duration) error {
	m := s.Member(name)
	if m == nil {
		return fmt.Errorf("trust set %d has no gateway %s", s.Version, name)
	}
	// The ends of a life are judged with Slack, so it is taken off where the end is said to the second.
	end := envelope.At(now.Add(overlap - Slack))
	if slices.ContainsFunc(m.Keys, func(k MemberKey) bool { return k.Public == public }) {
		return nil
	}
	if len(m.Keys) >= maxKeys {
		m.Keys = slices.DeleteFunc(m.Keys, func(k MemberKey) bool {
			return k.NotAfter != nil && k.NotAfter.Add(Slack+keep).Before(now)
		})
	}
	if len(m.Keys) >= maxKeys {
		return fmt.Errorf("%s has %d keys, and what the oldest signed may still lie in the store: let it be %s old, or take it out with trust revoke, which refuses all of that", name, maxKeys, keep)
	}
	for i := range m.Keys {
		k := &m.Keys[i]
		if k.NotAfter == nil || k.NotAfter.After(end.Time) {
			k.NotAfter = &end
		}
		if !k.NotAfter.After(k.NotBefore.Time) { // it began less than an overlap ago
			k.NotBefore = envelope.At(k.NotAfter.Add(-time.Second))
		}
	}
	m.Keys = append(m.Keys, MemberKey{Public: public, NotBefore: envelope.At(now.Add(-Slack))})
	return nil
}

// Names reports whether the set lets a key speak for a gateway at a moment.
func (s *Set) Names(gateway string, public ed25519.PublicKey, at time.Time) bool {
	m := s.Member(gateway)
	text := EncodePublic(public)
	return m != nil && slices.ContainsFunc(m.Keys, func(k MemberKey) bool {
		h := heldKey{notBefore: k.NotBefore.Time}
		if k.NotAfter != nil {
			h.notAfter = k.NotAfter.Time
		}
		return k.Public == text && h.validAt(at)
	})
}

// End is when what a key of a gateway signs begins to be refused; nil: never, or there is no such key.
func (s *Set) End(gateway string, public ed25519.PublicKey) *time.Time {
	if m := s.Member(gateway); m != nil {
		for _, k := range m.Keys {
			if k.Public == EncodePublic(public) && k.NotAfter != nil {
				end := k.NotAfter.Add(Slack)
				return &end
			}
		}
	}
	return nil
}

// Holds reports whether the set has a key of a gateway, also one that has ended.
func (s *Set) Holds(gateway string, public ed25519.PublicKey) bool {
	m, text := s.Member(gateway), EncodePublic(public)
	return m != nil && slices.ContainsFunc(m.Keys, func(k MemberKey) bool { return k.Public == text })
}

// OperatorsPrefix is below which the sets lie that named other operators than the one before: the way from an operator that a
// gateway knows to the one of now. Each lies under its version.
const OperatorsPrefix = "openclaw/trust/operators/"

// OperatorsKey is where the set of a version lies, when it changed the operators.
func OperatorsKey(version uint64) string { return fmt.Sprintf("%s%016d", OperatorsPrefix, version) }
