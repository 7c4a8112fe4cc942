package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/gatemesh/gatemesh/envelope"
)

// PolicyKey is where the mesh's policy lies in the store, and part of what is signed.
const PolicyKey = "openclaw/policy"

// MaxPolicy is the size of a signed policy, in bytes.
const MaxPolicy = 128 << 10

// Policy is rules for all gateways of a mesh, as an operator signs them. What the rules say is not this package's business.
type Policy struct {
	Mesh string `json:"mesh"`
	// Version grows with every change. A gateway never goes back.
	Version  uint64          `json:"version"`
	IssuedAt envelope.Time   `json:"issued_at"`
	Rules    json.RawMessage `json:"rules"`
}

// signedPolicy is a policy on the wire.
type signedPolicy struct {
	Policy     json.RawMessage `json:"policy"`
	Signatures []operatorSig   `json:"signatures"`
}

func policyStatement(body []byte) []byte {
	return append([]byte("gatemesh/"+string(KindPolicy)+"/v1\n"+PolicyKey+"\n"), body...)
}

// SignPolicy checks a policy and signs it with an operator's key.
func SignPolicy(p *Policy, operator *Key) ([]byte, error) {
	body, err := p.encode()
	if err != nil {
		return nil, err
	}
	raw, err := envelope.Encode(signedPolicy{body, []operatorSig{{EncodePublic(operator.Public()), ed25519.Sign(operator.private, policyStatement(body))}}})
	if err == nil && len(raw) > MaxPolicy {
		err = fmt.Errorf("policy is %d bytes, at most %d", len(raw), MaxPolicy)
	}
	return raw, err
}

// encode is the one form of a policy.
func (p *Policy) encode() ([]byte, error) {
	switch {
	case !plainName(p.Mesh):
		return nil, fmt.Errorf("policy names the mesh %q", p.Mesh)
	case p.Version == 0 || p.Version > 1<<53:
		return nil, fmt.Errorf("policy has version %d", p.Version)
	case p.IssuedAt.IsZero():
		return nil, errors.New("policy does not say when it was issued")
	case len(p.Rules) == 0 || p.Rules[0] != '[':
		return nil, errors.New("policy has no list of rules")
	}
	return envelope.Encode(p)
}

// DecodePolicy reads a signed policy in exactly the form that SignPolicy writes, and returns whose signature under it is good.
// It does not say whether that one may sign: see [PolicyAnchor].
func DecodePolicy(raw []byte) (*Policy, ed25519.PublicKey, error) {
	bad := func(format string, args ...any) error { return refuse(Malformed, "", "", "policy "+format, args...) }
	if len(raw) > MaxPolicy {
		return nil, nil, bad("is %d bytes, at most %d", len(raw), MaxPolicy)
	}
	var w signedPolicy
	var p Policy
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, nil, bad("is not readable: %v", err)
	}
	if err := json.Unmarshal(w.Policy, &p); err != nil {
		return nil, nil, bad("is not readable: %v", err)
	}
	body, err := p.encode()
	if err != nil {
		return nil, nil, bad("is none: %v", err)
	}
	if again, err := envelope.Encode(w); err != nil || !bytes.Equal(again, raw) || !bytes.Equal(body, w.Policy) || len(w.Signatures) != 1 {
		return nil, nil, bad("is not in its one form (use gatemesh policy publish, do not edit it)")
	}
	public, err := ParsePublic(w.Signatures[0].Public)
	if err != nil || EncodePublic(public) != w.Signatures[0].Public {
		return nil, nil, bad("has a signature without a public key")
	}
	if !ed25519.Verify(public, policyStatement(body), w.Signatures[0].Sig) {
		return nil, nil, refuse(BadSignature, "", KeyID(public), "policy %d was changed after it was signed", p.Version)
	}
	return &p, public, nil
}

// A PolicyAnchor keeps the newest policy that was accepted, on the disk of who goes by it, so that whoever can write the store
// cannot take it back to an older one.
type PolicyAnchor struct {
	pinned
	mesh   string
	policy *Policy // nil: none yet
}

// OpenPolicyAnchor reads what was accepted before. An empty path keeps nothing beyond this process.
func OpenPolicyAnchor(path, mesh string) (*PolicyAnchor, error) {
	a := &PolicyAnchor{pinned: pinned{what: "policy", path: path}, mesh: mesh}
	raw, err := a.read()
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return a, nil
	}
	p, _, err := DecodePolicy(raw)
	if err != nil {
		return nil, fmt.Errorf("pinned policy %s: %w (if its loss is explained, remove the file: the one in the store counts again)", path, err)
	}
	if p.Mesh != mesh {
		return nil, fmt.Errorf("pinned policy %s is of the mesh %q, not of %q: another mesh.dataDir, or remove the file", path, p.Mesh, mesh)
	}
	a.raw, a.policy = raw, p
	return a, nil
}

// Policy is the newest policy that was accepted, or nil.
func (a *PolicyAnchor) Policy() *Policy {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.policy
}

// Accept judges a signed policy, and makes it the newest when it may be: signed by an operator of the set, and newer than
// what was seen. use is asked before anything is kept and may refuse; it may be nil. The errors are *[Refusal], use's or
// the disk's. One that is the newest already is no error.
func (a *PolicyAnchor) Accept(raw []byte, set *Set, use func(*Policy) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.policy != nil && bytes.Equal(raw, a.raw) {
		return nil
	}
	p, by, err := DecodePolicy(raw)
	if err != nil {
		return err
	}
	switch {
	case set == nil:
		return refuse(NoTrustSet, "", KeyID(by), "policy %d is signed by somebody, and no trust set says who the operators are", p.Version)
	case p.Mesh != a.mesh:
		return refuse(WrongMesh, "", KeyID(by), "policy is of the mesh %s, this is %s", p.Mesh, a.mesh)
	case !slices.Contains(set.Operators, EncodePublic(by)):
		return refuse(WrongOperator, "", KeyID(by), "policy %d is not signed by an operator of trust set %d", p.Version, set.Version)
	case a.policy != nil && p.Version <= a.policy.Version:
		return refuse(Rollback, "", KeyID(by), "policy %d, and %d was seen: somebody put an older or another one into the store", p.Version, a.policy.Version)
	}
	if use != nil {
		if err := use(p); err != nil {
			return err
		}
	}
	if err := a.keepLocked(raw, p.Version); err != nil {
		return err
	}
	a.policy = p
	return nil
}
