package consul

import (
	"fmt"
	"strings"

	"github.com/gatemesh/gatemesh/bus"
)

// A Role is what somebody is in the mesh, for Consul's access rules.
type Role string

// The roles. Rules of several add up when a token has several policies.
const (
	// RoleGateway is one gateway: it writes its own keys and those of inboxes that it may own.
	RoleGateway Role = "gateway"
	// RoleJanitor is added to a gateway that clears up after others.
	RoleJanitor Role = "janitor"
	// RoleOperator is a person who mends things by hand.
	RoleOperator Role = "operator"
	// RoleViewer looks, and changes nothing.
	RoleViewer Role = "viewer"
)

// Roles are all of them.
var Roles = []Role{RoleGateway, RoleJanitor, RoleOperator, RoleViewer}

// PolicyOptions says whose rules are wanted.
type PolicyOptions struct {
	Role Role
	// Gateway and Node are for RoleGateway: its name, and that of the Consul node whose agent it
	// asks. Sessions belong to that node.
	Gateway, Node string
	Mesh          bus.Topology
	// Service is the name in the catalog (mesh.service.name).
	Service string
}

// Policy returns the rules of a Consul ACL policy, as HCL. The same options give the same bytes.
func Policy(opt PolicyOptions) string {
	r := &rules{}
	switch opt.Role {
	case RoleGateway:
		r.comment("Gateway " + opt.Gateway + " at Consul's node " + opt.Node + ".")
		r.mesh("read")
		r.hide(opt.Gateway)
		r.head("Written by this gateway: each key has one writer, and rules know no patterns")
		r.grants(opt.Mesh.Writes(opt.Gateway))
		r.head("Its locks hang from a session of its node, and from its service's check")
		r.rule("session", opt.Node, "write")
		r.rule("service", opt.Service, "write")
		r.catalog("What the infrastructure check looks at, and where the gateway sees whether the catalog hears of its own check")
	case RoleJanitor:
		r.comment("Beside the policy of a gateway: it may clear up after gateways that are gone. Give it to one or two.")
		r.grants(bus.JanitorWrites())
	case RoleOperator:
		r.comment("An operator, who mends things by hand (the runbook's consul kv delete). Gateways need nothing of it.")
		r.mesh("write")
		r.hide("")
		r.rule("session_prefix", "", "write")
		r.rule("service", opt.Service, "write")
		r.catalog(looksAt)
		r.b.WriteString("operator = \"read\" # consul operator raft list-peers\n")
	case RoleViewer:
		r.comment("Somebody who looks (consul kv get -recurse, Consul's own page) and changes nothing.")
		r.mesh("read")
		r.hide("")
		r.rule("session_prefix", "", "read")
		r.catalog(looksAt)
	}
	return r.b.String()
}

type rules struct{ b strings.Builder }

func (r *rules) comment(text string) { fmt.Fprintf(&r.b, "# %s\n", text) }

func (r *rules) head(text string) { fmt.Fprintf(&r.b, "\n# %s.\n", text) }

func (r *rules) rule(kind, name, policy string) {
	fmt.Fprintf(&r.b, "%s %q { policy = %q }\n", kind, name, policy)
}

func (r *rules) mesh(policy string) { r.rule("key_prefix", bus.Root, policy) }

// hide takes the credentials out of what may be read.
func (r *rules) hide(gateway string) {
	r.rule("key_prefix", bus.CredentialsRoot, "deny")
	if gateway != "" {
		r.comment("Its own are below, with the right to write.")
	}
}

func (r *rules) grants(all []bus.Grant) {
	for _, g := range all {
		kind := "key"
		if g.Prefix {
			kind = "key_prefix"
		}
		fmt.Fprintf(&r.b, "%s %q { policy = \"write\" } # %s\n", kind, g.Key, g.What)
	}
}

const looksAt = "What the infrastructure check looks at"

// catalog is the right to read the catalog.
func (r *rules) catalog(why string) {
	r.head(why)
	for _, kind := range []string{"node_prefix", "service_prefix", "agent_prefix"} {
		r.rule(kind, "", "read")
	}
}
