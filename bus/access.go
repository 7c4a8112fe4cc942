package bus

import (
	"cmp"
	"maps"
	"slices"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

const (
	// CredentialsRoot is where a gateway may keep what no other may read, each below its own
	// name. Nothing of the bus lies there.
	CredentialsRoot = Root + "credentials/"
	// DoctorRoot is where "gatemesh doctor" tries whether the store can be written.
	DoctorRoot = Root + "doctor/"
)

// A Topology says who may do what in a mesh. The access rules of a store are made from it, so a
// gateway, agent or queue that comes needs new rules of all gateways.
type Topology struct {
	// Gateways are those that only send: the ones named below are known anyway.
	Gateways []string
	// Agents and Queues are the inboxes, each with the gateways that may own it.
	Agents, Queues map[string][]string
	// Workers are the gateways that may do the tasks of a queue.
	Workers map[string][]string
}

// A Grant is the right to write one key, or all keys that begin with it.
type Grant struct {
	Key string
	// Prefix: all keys below Key, which ends in a slash.
	Prefix bool
	// What names the line of ARCHITECTURE.md's table of keys.
	What string
}

// All lists the gateways of the mesh.
func (t Topology) All() []string {
	all := slices.Clone(t.Gateways)
	for _, m := range []map[string][]string{t.Agents, t.Queues, t.Workers} {
		for _, gws := range m {
			all = append(all, gws...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// inboxes are all that mail can be sent to. A gateway has one itself: for answers and for tasks.
func (t Topology) inboxes() []string {
	all := t.All()
	for _, m := range []map[string][]string{t.Agents, t.Queues} {
		for id := range m {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Writes lists, in the order of the keys, what a gateway writes: the table of keys in ARCHITECTURE.md, with the
// names put in. Rules that know prefixes and no patterns need them one by one. The janitor's duty is
// apart ([JanitorWrites]): a gateway without it leaves it to others.
func (t Topology) Writes(gw string) []Grant {
	var g []Grant
	key := func(what string, keys ...string) {
		for _, k := range keys {
			g = append(g, Grant{Key: k, What: what})
		}
	}
	below := func(what string, prefixes ...string) {
		for _, p := range prefixes {
			g = append(g, Grant{Key: p, Prefix: true, What: what})
		}
	}
	key("cluster block, by the first gateway", clusterPrefix+"id", clusterPrefix+"deployment")
	key("shared state, by compare-and-swap", RecentEventsKey, CurrentFocusKey)
	below("probe of doctor", DoctorRoot)

	below("own registry entry", gatewaysPrefix+gw+"/")
	key("own encryption key", trust.EncryptionKeysPrefix+gw)
	key("own request to join", trust.RequestsPrefix+gw)
	key("own name", gatewayLockKey(gw))
	key("own receipts: resident key", receiptsAboutKey(gw))
	below("own lanes", lanesRoot+gw+"/")
	below("own payloads", blobsRoot+gw+"/")
	below("own fan-outs", fanoutsRoot+gw+"/")
	below("own results", resultsPrefix(gw))
	below("own credentials", CredentialsRoot+gw+"/")
	for _, to := range t.inboxes() {
		key("own bell at "+to, bellKey(to, gw))
	}

	for _, id := range t.inboxes() {
		queue := slices.Contains(t.Queues[id], gw)
		if id != gw && !queue && !slices.Contains(t.Agents[id], gw) {
			continue
		}
		of := "inbox of " + id + ": "
		key(of+"ownership", agentLockKey(id))
		key(of+"resident key", inboxAboutKey(id))
		key(of+"term", termKey(id))
		key(of+"handoff", handoffKey(id))
		below(of+"work in progress", pendingPrefix(id))
		below(of+"dead letters", deadRoot+id+"/")
		for _, from := range t.All() {
			key(of+"cursor and receipts of mail from "+from, receiptsKey(from, id))
			below(of+"older receipts of mail from "+from, ledgerPrefix(from, id))
		}
		if id != gw {
			below(of+"registry entry", agentsPrefix+id+"/")
		}
		if queue {
			key(of+"workers' resident key", workersAboutKey(id))
		}
		if id != gw {
			below(of+"unique keys", uniquePrefix(id))
			below(of+"room", roomKey(id, ""))
		}
	}
	for queue, gws := range t.Workers {
		if slices.Contains(gws, gw) {
			key("own announcement as a worker of "+queue, workerKey(queue, gw))
		}
	}
	return inOrder(g)
}

// JanitorWrites lists what a gateway writes beyond [Topology.Writes] to clear up after gateways that
// are gone. It may delete mail of any gateway and depose any, so few should have it. (The names are
// only checked for absence; Consul asks for the right to write for that.)
func JanitorWrites() []Grant {
	const what = "left by gateways that are gone"
	return inOrder([]Grant{
		{Key: janitor, What: "the janitor's duty"},
		{Key: ownersPrefix + "gateways/", Prefix: true, What: "names of gateways that are gone"},
		{Key: lanesRoot, Prefix: true, What: what},
		{Key: blobsRoot, Prefix: true, What: what},
		{Key: fanoutsRoot, Prefix: true, What: what},
		{Key: resultsRoot, Prefix: true, What: what},
	})
}

func inOrder(g []Grant) []Grant {
	slices.SortFunc(g, func(a, b Grant) int { return cmp.Compare(a.Key, b.Key) })
	return g
}

// Invalid returns the first name that is none, if there is one.
func (t Topology) Invalid() (string, bool) {
	for _, id := range append(t.inboxes(), slices.Sorted(maps.Keys(t.Workers))...) {
		if !envelope.ValidName(id) {
			return id, true
		}
	}
	return "", false
}
