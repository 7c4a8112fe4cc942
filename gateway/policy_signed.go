package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// signedRule is a rule as it lies in the store, in the one form that is signed. The names are stable.
type signedRule struct {
	Name       string `json:"name,omitempty"`
	Action     string `json:"action"`
	From       string `json:"from,omitempty"`
	To         string `json:"to,omitempty"`
	Capability string `json:"capability,omitempty"`
	Rate       string `json:"rate,omitempty"`
	MaxPayload int64  `json:"max_payload,omitempty"` // bytes
}

// maxSignedRules bounds a policy of the mesh: every message from another gateway is held against all of it.
const maxSignedRules = 500

// ParsePolicy reads a file of rules, JSON5 as the configuration is: { rules: [ ... ] } with the rules of mesh.policy.rules. It
// returns them in the form that is signed. What holds when none is about a message, and who may give orders, each
// gateway's own configuration says.
func ParsePolicy(name string, text []byte) (json.RawMessage, error) {
	whole := append(append([]byte("{mesh:{policy:"), text...), "\n}}"...)
	cfg, warnings, err := ParseConfig(name, whole, os.LookupEnv)
	switch {
	case err != nil:
		return nil, err
	case len(warnings) > 0: // a field that is not known could be what was meant to forbid something
		return nil, fmt.Errorf("%s: %s", name, warnings[0])
	}
	for _, key := range []string{"mesh.policy.default", "mesh.policy.operators"} {
		if cfg.source.explicit(key) {
			return nil, fmt.Errorf("%s: %s is each gateway's own: a policy of the mesh holds rules alone", name, key)
		}
	}
	cfg.Normalize()
	p := &Policy{}
	if err := p.add(cfg.Mesh.Policy.Rules, trust.PolicyKey); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if n := len(p.rules); n > maxSignedRules {
		return nil, fmt.Errorf("%s: %d rules, at most %d", name, n, maxSignedRules)
	}
	rules := []signedRule{}
	for i, r := range p.rules {
		if r.Action != "allow" && r.Action != "deny" {
			return nil, fmt.Errorf("%s: rules[%d].action: %q is not one of allow, deny", name, i, r.Action)
		}
		rules = append(rules, signedRule{r.Name, r.Action, r.From, r.To, r.Capability, r.Rate, int64(r.MaxPayload)})
	}
	return envelope.Encode(rules)
}

// RulesOf reads the rules of a signed policy. One that this version does not understand is an error: half a policy is
// another one.
func RulesOf(p *trust.Policy) ([]PolicyRule, error) {
	var list []signedRule
	d := json.NewDecoder(bytes.NewReader(p.Rules))
	d.DisallowUnknownFields()
	if err := d.Decode(&list); err != nil {
		return nil, fmt.Errorf("policy %d holds what this version does not know: %w", p.Version, err)
	}
	if len(list) > maxSignedRules {
		return nil, fmt.Errorf("policy %d has %d rules, at most %d", p.Version, len(list), maxSignedRules)
	}
	rules := []PolicyRule{}
	for i, r := range list {
		if r.Action != "allow" && r.Action != "deny" {
			return nil, fmt.Errorf("policy %d: rules[%d].action is %q", p.Version, i, r.Action)
		}
		rules = append(rules, PolicyRule{Name: r.Name, Action: r.Action, From: r.From, To: r.To, Capability: r.Capability, Rate: r.Rate, MaxPayload: ConfigBytes(r.MaxPayload)})
	}
	return rules, nil
}

// Add puts the rules of the mesh behind those of the configuration.
func (p *Policy) Add(signed *trust.Policy) error {
	rules, err := RulesOf(signed)
	if err != nil {
		return err
	}
	p.mesh = signed.Version
	return p.add(rules, fmt.Sprintf("%s (version %d)", trust.PolicyKey, signed.Version))
}

// PinnedPolicy reads the newest policy of the mesh that a gateway has accepted, from its state directory; nil when there is none.
func PinnedPolicy(dir, mesh string) (*trust.Policy, error) {
	if dir == "" {
		return nil, errors.New("there is no state directory")
	}
	a, err := trust.OpenPolicyAnchor(filepath.Join(dir, policyFile), mesh)
	if err != nil {
		return nil, err
	}
	return a.Policy(), nil
}

// takePolicy judges what lies at the policy's key, and goes by it from now on when it may be.
func (g *Gateway) takePolicy(raw []byte, set *trust.Set) error {
	return g.identity.policy.Accept(raw, set, func(p *trust.Policy) error {
		if err := g.policy.setSigned(p); err != nil {
			return err
		}
		g.log.Info("policy of the mesh taken", "version", p.Version)
		g.audit.order(auditOrder{What: "policy", Keys: []string{fmt.Sprint(p.Version)}})
		return nil
	})
}
