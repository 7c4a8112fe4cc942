package bustest

import (
	"slices"
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
	// rings are the keys of gateways that payloads are encrypted for; nil: nothing is.
	rings map[string]*trust.Keyring
	// only are the agents of gateways that may not host any.
	only map[string][]string
}

func newTrusted(mesh string) *trusted {
	return &trusted{mesh: mesh, verifier: trust.NewVerifier(mesh, true), keys: map[string]*trust.Key{}, only: map[string][]string{}, set: trust.Set{Mesh: mesh}}
}

// join lets a gateway in; one that comes back has the key that it had.
func (m *trusted) join(cfg *bus.Config) {
	cfg.Signer, cfg.Trust = m.signer(cfg.Gateway), m.verifier
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rings == nil {
		return
	}
	if m.rings[cfg.Gateway] == nil {
		m.rings[cfg.Gateway], _ = trust.OpenKeyring("") // reads nothing
	}
	cfg.Keyring = m.rings[cfg.Gateway]
	cfg.Confidential = func(string) bus.Confidentiality { return bus.RequireEncrypted }
}

// encrypting has every payload encrypted, for gateways that the whole suite knows beforehand: who is let in later cannot read
// what was sent before.
func (m *trusted) encrypting(w *world) {
	m.rings = map[string]*trust.Keyring{}
	mesh := tagged(mayDo, w.tag)
	for _, gw := range mesh.All() {
		m.only[gw] = []string{}
		for _, inboxes := range []map[string][]string{mesh.Agents, mesh.Queues} {
			for id, owners := range inboxes {
				if slices.Contains(owners, gw) {
					m.only[gw] = append(m.only[gw], id)
				}
			}
		}
		if len(m.only[gw]) > 0 {
			m.publish(w, gw) // the others own nothing, and join when they start
		}
	}
}

// publish lets a gateway in with a key that can be encrypted for, before it runs.
func (m *trusted) publish(w *world, gw string) {
	signer := m.signer(gw)
	ring, _ := trust.OpenKeyring("") // reads nothing
	if _, err := ring.Tend(signer.Key.ID(), time.Now()); err != nil {
		w.Fatal(err)
	}
	m.rings[gw] = ring
	key := trust.EncryptionKeysPrefix + gw
	w.put(key, signer.SignRecord(trust.KindEncryption, key, time.Now(), ring.Statement(gw)))
}

// signer is the key of a gateway, let in when it was not: for any agent, or for those in only.
func (m *trusted) signer(gateway string) *trust.Signer {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.keys[gateway]
	if k == nil {
		k = trust.NewKey()
		m.keys[gateway] = k
		agents := m.only[gateway]
		if agents == nil {
			agents = []string{"*"}
		}
		next := trust.Set{Mesh: m.mesh, Version: m.set.Version + 1, Gateways: append([]trust.Member(nil), m.set.Gateways...), Revoked: m.set.Revoked}
		next.Put(gateway, trust.MemberKey{Public: trust.EncodePublic(k.Public()), NotBefore: envelope.At(time.Unix(0, 0))}, agents)
		m.set = next
		m.verifier.Use(&next)
	}
	return &trust.Signer{Mesh: m.mesh, Gateway: gateway, Key: k}
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
