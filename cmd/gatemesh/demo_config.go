package main

import (
	"encoding/json"

	"github.com/gatemesh/gatemesh/bus"
)

// A demoNode is one gateway of the demo: its configuration, and how it is reached once it runs.
type demoNode struct {
	gateway string // jerry-gateway
	agent   string // jerry
	config  []byte // openclaw.json
	addr    string // http://127.0.0.1:PORT
	client  *client
}

// demoNames are the nodes, in the order in which they start; jerry is asked.
var demoNames = []struct{ id, name, description, workspace string }{
	{"jerry", "Jerry", "Hub: passes a question on to the agent that knows", "workspace-jerry"},
	{"bobby", "Bobby", "Infrastructure: looks at Consul, Nomad and its node", "workspace-bobby"},
	{"billy", "Billy", "Automation: reports on its node", "workspace-billy"},
}

// demoRunners say what each agent can do, and what answers for it.
var demoRunners = map[string]struct {
	capabilities []string
	runner       map[string]any
}{
	"jerry": {[]string{"relay"}, map[string]any{"kind": "relay"}},
	"bobby": {[]string{infraCheck}, map[string]any{"kind": "checks"}},
	"billy": {[]string{nodeReport}, map[string]any{"kind": "checks", "checks": []string{"node"}}},
}

// demoSettings are what the nodes of one demo have in common.
type demoSettings struct {
	store  string
	suffix string           // "-demo-x7k2" when the store is not ours, else ""
	consul func(int) string // the address that node i talks to
	port   func(int) int
}

// demoNodes makes the three configurations: the same file that anyone would write for a
// node, so that the demo runs what a mesh runs.
func demoNodes(s demoSettings) ([]*demoNode, error) {
	var nodes []*demoNode
	for i, who := range demoNames {
		n := &demoNode{gateway: who.id + "-gateway" + s.suffix, agent: who.id + s.suffix}
		mesh := map[string]any{
			"gateway": n.gateway, "store": s.store,
			"cluster": map[string]any{"id": "gatemesh-demo", "deployment": "demo"},
			"log":     map[string]any{"level": "info"},
			// Across gateways nothing is allowed that no rule allows.
			"policy": map[string]any{"rules": []any{
				map[string]any{"name": "demo", "from": "*@*-gateway" + s.suffix, "to": n.agent},
			}},
		}
		if s.consul != nil {
			mesh["consul"] = map[string]any{"address": s.consul(i)}
			mesh["service"] = map[string]any{"name": "openclaw" + s.suffix}
		}
		r := demoRunners[who.id]
		config, err := json.MarshalIndent(map[string]any{
			"mesh": mesh,
			// Loopback only, and gone in a moment: no token to carry around.
			"gateway": map[string]any{"port": s.port(i), "bind": "loopback", "auth": map[string]any{"mode": "none"}},
			"agents": map[string]any{"list": []any{map[string]any{
				"id": n.agent, "name": who.name, "description": who.description,
				"workspace": "~/.openclaw/" + who.workspace, "capabilities": r.capabilities, "runner": r.runner,
			}}},
		}, "", "  ")
		if err != nil {
			return nil, err
		}
		n.config = config
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// demoPrefixes are the keys of one demo in a store that is not ours. They hold its
// suffix, so they are nobody else's.
func demoPrefixes(nodes []*demoNode) []string {
	var p []string
	for _, n := range nodes {
		p = append(p, bus.Root+"gateways/"+n.gateway+"/", bus.Root+"owners/gateways/"+n.gateway,
			bus.Root+"lanes/"+n.gateway+"/", bus.Root+"receipts/"+n.gateway+"/", bus.Root+"ledger/"+n.gateway+"/", bus.Root+"results/"+n.gateway+"/")
		for _, inbox := range []string{n.agent, n.gateway} {
			p = append(p, bus.Root+"agents/"+inbox+"/", bus.Root+"owners/agents/"+inbox, bus.Root+"inbox/"+inbox+"/",
				bus.Root+"pending/"+inbox+"/", bus.Root+"deadletters/"+inbox+"/")
		}
	}
	return p
}
