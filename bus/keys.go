package bus

import (
	"fmt"
	"strconv"
	"strings"
)

// Root is the prefix of every key of the mesh (plan, "Consul KV Schema"; Consul keys do
// not start with a slash).
const Root = "openclaw/"

const (
	clusterPrefix  = Root + "cluster/"
	gatewaysPrefix = Root + "gateways/"
	agentsPrefix   = Root + "agents/"
	ownersPrefix   = Root + "owners/"
	inboxRoot      = Root + "inbox/"
	lanesRoot      = Root + "lanes/"
	receiptsRoot   = Root + "receipts/"
	ledgerRoot     = Root + "ledger/"
	pendingRoot    = Root + "pending/"
	deadRoot       = Root + "deadletters/"
	resultsRoot    = Root + "results/"
	termsRoot      = Root + "terms/"
	blobsRoot      = Root + "blobs/"
	fanoutsRoot    = Root + "fanouts/"
	tasksRoot      = Root + "tasks/"
	sharedRoot     = Root + "shared-state/"
	dutiesRoot     = Root + "duties/"

	agentOwners    = ownersPrefix + "agents/"
	gatewayLocks   = ownersPrefix + "gateways/"
	handoffsPrefix = ownersPrefix + "transfers/"
)

func gatewayLockKey(gw string) string          { return gatewayLocks + gw }
func agentLockKey(agent string) string         { return agentOwners + agent }
func inboxPrefix(agent string) string          { return inboxRoot + agent + "/" }
func inboxAboutKey(agent string) string        { return inboxRoot + agent + "/about" }
func bellKey(agent, from string) string        { return inboxRoot + agent + "/from/" + from }
func lanePrefix(from, agent string) string     { return lanesRoot + from + "/" + agent + "/" }
func receiptsPrefix(gw string) string          { return receiptsRoot + gw + "/" }
func receiptsAboutKey(gw string) string        { return receiptsRoot + gw + "/about" }
func receiptsKey(gw, agent string) string      { return receiptsRoot + gw + "/from/" + agent }
func ledgerPrefix(gw, agent string) string     { return ledgerRoot + gw + "/" + agent + "/" }
func pendingPrefix(agent string) string        { return pendingRoot + agent + "/" }
func pendingKey(agent, id string) string       { return pendingRoot + agent + "/" + id }
func deadKey(agent, id string) string          { return deadRoot + agent + "/" + id }
func resultsPrefix(gw string) string           { return resultsRoot + gw + "/" }
func resultKey(gw, id string) string           { return resultsRoot + gw + "/" + id }
func slotKey(from, to string, n uint64) string { return lanePrefix(from, to) + padded(n) }
func termKey(agent string) string              { return termsRoot + agent }
func blobPrefix(gw, id string) string          { return blobsRoot + gw + "/" + id + "/" }
func blobKey(gw, id string, n int) string      { return blobPrefix(gw, id) + fmt.Sprintf("%04d", n) }
func blobAboutKey(gw, id string) string        { return blobPrefix(gw, id) + "about" }
func workersPrefix(queue string) string        { return tasksRoot + queue + "/workers/" }
func workersAboutKey(queue string) string      { return workersPrefix(queue) + "about" }
func workerKey(queue, gw string) string        { return workersPrefix(queue) + "of/" + gw }
func uniquePrefix(queue string) string         { return tasksRoot + queue + "/unique/" }
func roomKey(agent, name string) string        { return dutiesRoot + agent + "/" + name }
func fanoutKey(gw, id string) string           { return fanoutsRoot + gw + "/" + id }
func ledgerKey(gw, agent string, n uint64) string {
	return ledgerPrefix(gw, agent) + padded(n)
}

// answerKey holds the answer to a question (child) that the handling of a pending message
// asked: it lies below the pending record so that one listing loads both.
func answerKey(agent, id, child string) string {
	return pendingKey(agent, id) + "/answers/" + child
}

// padded keeps numbers in order in listings and in the Consul UI.
func padded(n uint64) string { return fmt.Sprintf("%016d", n) }

func parsePadded(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && len(s) == 16
}

// sourceOfBell returns the gateway whose bell key is, or "".
func sourceOfBell(agent, key string) string {
	from, ok := strings.CutPrefix(key, inboxRoot+agent+"/from/")
	if !ok || strings.Contains(from, "/") {
		return ""
	}
	return from
}
