package bustest

import (
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// trusted is a mesh that believes signatures only: every node that joins gets a key, and into the set.
type trusted struct {
	mesh     string
	verifier *trust.Verifier

	mu   sync.Mutex
	set  trust.Set
	keys map[string]*trust.Key
}

func newTrusted(mesh string) *trusted {
	return &trusted{mesh: mesh, verifier: trust.NewVerifier(mesh, true), keys: map[string]*trust.Key{}, set: trust.Set{Mesh: mesh}}
}

// join lets a gateway in, for any agent; one that comes back has the key that it had.
func (m *trusted) join(cfg *bus.Config) { m.joinAs(cfg, "*") }

func (m *trusted) joinAs(cfg *bus.Config, agents ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.keys[cfg.Gateway]
	if k == nil {
		k = trust.NewKey()
		m.keys[cfg.Gateway] = k
		next := trust.Set{Mesh: m.mesh, Version: m.set.Version + 1, Gateways: append([]trust.Member(nil), m.set.Gateways...)}
		next.Put(cfg.Gateway, trust.MemberKey{Public: trust.EncodePublic(k.Public()), NotBefore: envelope.At(time.Unix(0, 0))}, agents)
		m.set = next
		m.verifier.Use(&next)
	}
	cfg.Signer, cfg.Trust = &trust.Signer{Mesh: m.mesh, Gateway: cfg.Gateway, Key: k}, m.verifier
}

// revoke takes a gateway's key out.
func (m *trusted) revoke(gateway string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.set
	next.Version++
	next.Gateways = append([]trust.Member(nil), next.Gateways...)
	for i := range next.Gateways {
		next.Gateways[i].Keys = append([]trust.MemberKey(nil), next.Gateways[i].Keys...)
	}
	next.Revoke(gateway, "", time.Now())
	m.set = next
	m.verifier.Use(&next)
}
