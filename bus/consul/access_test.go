package consul

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// longTime bounds waits for what usually comes at once.
const longTime = 20 * time.Second

// realm is a cluster with ACLs and whoever may do everything there.
type realm struct {
	*cluster.Cluster
	admin  *Store
	tokens map[string]string // secret by the policy's name
}

func newRealm(t *testing.T, opt cluster.Options) *realm {
	t.Helper()
	opt.ACL = true
	c := cluster.ForTestWith(t, opt)
	r := &realm{Cluster: c, tokens: map[string]string{}}
	r.admin = open(t, r.client(c.Addr(0), c.Token()))
	return r
}

// client are the options of whoever has a token; with the cluster's certificate, where it wants one.
func (r *realm) client(addr, token string) Options {
	certs := r.Certificates()
	return Options{Address: addr, Token: token, TLS: api.TLSConfig{CAFile: certs.CA, CertFile: certs.ClientCert, KeyFile: certs.ClientKey}}
}

// policy writes a policy.
func (r *realm) policy(t testing.TB, name, rules string) {
	t.Helper()
	if _, err := r.admin.calls.Raw().Write("/v1/acl/policy", map[string]any{"Name": name, "Rules": rules}, nil, nil); err != nil {
		t.Fatalf("policy %s: %v", name, err)
	}
}

// setPolicy changes the rules of a policy.
func (r *realm) setPolicy(t testing.TB, name, rules string) {
	t.Helper()
	var is struct{ ID string }
	if _, err := r.admin.calls.Raw().Query("/v1/acl/policy/name/"+name, &is, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.calls.Raw().Write("/v1/acl/policy/"+is.ID, map[string]any{"Name": name, "Rules": rules}, nil, nil); err != nil {
		t.Fatalf("policy %s: %v", name, err)
	}
}

// token makes a token with policies that are there.
func (r *realm) token(t testing.TB, policies ...string) (secret, accessor string) {
	t.Helper()
	var links []map[string]string
	for _, p := range policies {
		links = append(links, map[string]string{"Name": p})
	}
	var token struct{ SecretID, AccessorID string }
	if _, err := r.admin.calls.Raw().Write("/v1/acl/token", map[string]any{"Policies": links}, &token, nil); err != nil {
		t.Fatalf("token with %v: %v", policies, err)
	}
	for i := range r.Servers() { // a follower may hear of it a moment later
		c, err := New(r.client(r.Addr(i), token.SecretID))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the server knows the token", longTime, func() bool {
			var self struct{ AccessorID string }
			_, err := c.calls.Raw().Query("/v1/acl/token/self", &self, &api.QueryOptions{AllowStale: true}) // else the leader answers
			return err == nil || !strings.Contains(err.Error(), "ACL not found")
		})
		_ = c.Close()
	}
	return token.SecretID, token.AccessorID
}

// as returns a client with the rights of a gateway of mesh, by the rules that "gatemesh acl policy" prints.
func (r *realm) as(t *testing.T, mesh bus.Topology, gateway, node, addr string) *Store {
	t.Helper()
	if r.tokens[gateway] == "" {
		r.policy(t, gateway, Policy(PolicyOptions{Role: RoleGateway, Gateway: gateway, Node: node, Mesh: mesh, Service: "openclaw"}))
		r.tokens[gateway], _ = r.token(t, gateway)
	}
	return open(t, r.client(addr, r.tokens[gateway]))
}
