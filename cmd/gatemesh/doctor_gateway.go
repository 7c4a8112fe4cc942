package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

func notThere(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// gateway asks the running gateway about itself and the mesh. Its error is bad usage.
func (d *doctor) gateway(ctx context.Context) error {
	c, err := d.a.client()
	if err != nil {
		return err
	}
	defer c.close()
	ctx, cancel := d.within(ctx)
	defer cancel()

	asked := time.Now()
	health, header, err := c.health(ctx)
	if err != nil {
		file := d.file
		if file == "" {
			file = "FILE"
		}
		detail, _, _ := strings.Cut(err.Error(), " (start one") // the fix says that
		d.fail("gateway", detail, "gatemesh gateway --config "+file+" (or export GATEMESH_ADDR=http://HOST:PORT)")
		return nil
	}
	d.ok("gateway", fmt.Sprintf("%s answers at %s", health.Gateway, c.addr()))
	d.clock("clock", "the gateway", header, asked, time.Now())

	st, err := c.status(ctx)
	switch {
	case hasCode(err, gateway.CodeUnauthorized):
		d.fail("token", "the gateway refuses it: "+firstClause(err), "export GATEMESH_TOKEN=... (one that gateway.auth knows; gatemesh token create makes one)")
		return nil
	case hasCode(err, gateway.CodeRole):
		d.fail("token", firstClause(err), "export GATEMESH_TOKEN=... (one with that role; gatemesh token create --role read makes one)")
		return nil
	case hasCode(err, gateway.CodeRateLimited):
		d.fail("token", firstClause(err), "wait a minute, and look in the log of "+health.Gateway+" who sends the wrong ones")
		return nil
	case err != nil:
		d.fail("token", err.Error(), "look at the log of "+health.Gateway)
		return nil
	}
	switch {
	case st.Caller != "":
		d.ok("token", "accepted: "+st.Caller+", role "+st.Role)
	case c.token == "":
		d.ok("token", "the gateway asks for none")
	default:
		d.ok("token", "accepted")
	}
	if c.base.Scheme == "http" && !loopbackHost(c.base.Hostname()) {
		d.warn("tls", "token and messages cross the network to "+c.base.Host+" readable", "set gateway.tls there and write https:// in GATEMESH_ADDR")
	}
	d.trusts = st.TrustVersion
	d.trust(st)
	d.confidentiality(st)
	if st.Ready {
		d.ok("ready", fmt.Sprintf("%s accepts messages; store: %s", st.Gateway, st.Store))
	} else {
		d.fail("ready", fmt.Sprintf("%s accepts no messages: %s", st.Gateway, st.Reason), "mend the store ("+st.Store+"): the gateway goes on by itself then")
	}
	d.mesh(ctx, c)
	return nil
}

// trust says whether the mesh believes everybody.
func (d *doctor) trust(st *gateway.StatusResponse) {
	switch {
	case st.Trust == gateway.TrustEnforced && st.NextKey != "":
		d.warn("trust", fmt.Sprintf("enforced, trust set %d; the key %s waits to follow %s", st.TrustVersion, st.NextKey, st.Key), "gatemesh keys rotate gateway "+st.Gateway+" --key "+st.NextKey+" on the operator's machine")
	case st.Trust == gateway.TrustEnforced && !st.KeyEnds.IsZero():
		d.warn("trust", fmt.Sprintf("enforced, trust set %d; this gateway's key %s ends at %s", st.TrustVersion, st.Key, st.KeyEnds.UTC().Format(time.RFC3339)), "gatemesh keys rotate gateway "+st.Gateway+" on the operator's machine")
	case st.Trust == gateway.TrustEnforced:
		d.ok("trust", fmt.Sprintf("enforced, trust set %d; this gateway's key is %s", st.TrustVersion, st.Key))
	case st.Trust == gateway.TrustWaiting:
		d.fail("trust", "signatures are enforced, and no trust set is known: nothing is believed", "gatemesh trust init on the operator's machine, and its public key in mesh.trust.operatorKeys")
	case strings.HasPrefix(st.Store, "file "):
		d.ok("trust", "open: the store is this process's own")
	default:
		d.warn("trust", "the mesh is open: whoever can write the store is believed", "gatemesh trust init, then its public key in mesh.trust.operatorKeys of every gateway")
	}
}

// confidentiality says whether payloads are encrypted, and whether every gateway can be encrypted for.
func (d *doctor) confidentiality(st *gateway.StatusResponse) {
	var lacking []string
	for _, k := range st.EncryptionKeys {
		if k.Key == "" {
			lacking = append(lacking, k.Gateway+" ("+k.Reason+")")
		}
	}
	switch {
	case st.Confidentiality == "" || st.Confidentiality == "off":
		detail := "off: whoever can read the store can read payloads"
		if len(lacking) > 0 {
			detail += "; without an encryption key: " + strings.Join(lacking, ", ")
		}
		d.ok("confidentiality", detail)
	case len(lacking) > 0:
		d.fail("confidentiality", st.Confidentiality+", and what they may run is refused: "+strings.Join(lacking, ", "),
			"start it with this version and its access rules (gatemesh acl policy), or gatemesh trust revoke it")
	default:
		d.ok("confidentiality", st.Confidentiality+"; "+plural(len(st.EncryptionKeys), "gateway")+", each with an encryption key")
	}
}

// firstClause is an error without what client.refused says of mending it.
func firstClause(err error) string {
	text, _, _ := strings.Cut(err.Error(), " (")
	return text
}

func loopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// clock compares this machine's clock with the Date header of an answer, which counts in
// whole seconds.
func (d *doctor) clock(check, whose string, header http.Header, asked, answered time.Time) {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return
	}
	// The header's second may have begun up to one second before the answer was made.
	skew := time.Duration(0)
	switch {
	case date.Add(time.Second).Before(asked):
		skew = date.Add(time.Second).Sub(asked)
	case date.After(answered):
		skew = date.Sub(answered)
	}
	if skew.Abs() < envelope.DefaultSkew/2 {
		d.ok(check, "agrees with "+whose)
		return
	}
	way := "ahead of"
	if skew > 0 {
		way = "behind"
	}
	detail := fmt.Sprintf("this clock is %s %s %s's; messages are judged wrongly beyond %s", skew.Abs().Round(100*time.Millisecond), way, whose, envelope.DefaultSkew)
	if skew.Abs() < envelope.DefaultSkew {
		d.warn(check, detail, "timedatectl set-ntp true (on both)")
		return
	}
	d.fail(check, detail, "timedatectl set-ntp true (on both)")
}

// mesh looks for what nobody serves.
func (d *doctor) mesh(ctx context.Context, c *client) {
	gateways, err := c.gateways(ctx)
	if err != nil {
		d.fail("gateways", err.Error(), "gatemesh status")
		return
	}
	var gone []string
	for _, g := range gateways {
		if g.Status == bus.StatusUnreachable {
			gone = append(gone, g.Name)
		}
	}
	if len(gone) > 0 {
		d.warn("gateways", "unreachable: "+strings.Join(gone, ", "), "start it on its node: gatemesh gateway --config FILE; one that is gone for good: consul kv delete -recurse openclaw/gateways/"+gone[0]+"/")
	} else {
		d.ok("gateways", plural(len(gateways), "gateway")+", all reachable")
	}

	queues, err := c.queues(ctx)
	if err != nil {
		d.fail("queues", err.Error(), "gatemesh status")
		return
	}
	agents, err := c.agents(ctx, "")
	if err != nil {
		d.fail("agents", err.Error(), "gatemesh status")
		return
	}
	// The registry shows a queue like an agent.
	agents = slices.DeleteFunc(agents, func(a bus.AgentInfo) bool {
		return slices.ContainsFunc(queues, func(q bus.QueueInfo) bool { return q.Queue == a.ID })
	})
	var idle []string
	for _, a := range agents {
		if a.Status != bus.StatusActive {
			idle = append(idle, a.ID)
		}
	}
	if len(idle) > 0 {
		d.warn("agents", "without an owner: "+strings.Join(idle, ", "), "start a gateway that has them in agents.list: gatemesh gateway --config FILE")
	} else {
		d.ok("agents", plural(len(agents), "agent")+", each with an owner")
	}

	inboxes, err := c.inboxes(ctx, "")
	if err != nil {
		d.fail("inboxes", err.Error(), "gatemesh status")
		return
	}
	d.inboxes(inboxes)
	accounts, err := c.channels(ctx)
	if err != nil {
		d.fail("channels", err.Error(), "gatemesh status")
		return
	}
	d.channels(accounts)
	d.queues(queues)
}

// queues looks for tasks that nobody hands out, or nobody works on.
func (d *doctor) queues(queues []bus.QueueInfo) {
	fine := true
	for _, q := range queues {
		open, slots := q.Waiting+q.Delayed+q.Running, 0
		for _, w := range q.Workers {
			slots += w.Slots
		}
		switch {
		case open == 0:
			continue
		case q.Owner == "":
			d.warn("queue "+q.Queue, plural(open, "task")+" unfinished and nobody hands them out", "start a gateway of its gateways (mesh.queues, id "+q.Queue+"): gatemesh gateway --config FILE")
		case slots == 0:
			d.warn("queue "+q.Queue, plural(open, "task")+" unfinished and nobody works", "start a gateway of its workers (mesh.queues, id "+q.Queue+"), or add one to them: gatemesh gateway --config FILE")
		default:
			continue
		}
		fine = false
	}
	if fine && len(queues) > 0 {
		d.ok("queues", plural(len(queues), "queue")+"; none has tasks without an owner and workers")
	}
}

func (d *doctor) inboxes(inboxes []bus.InboxInfo) {
	fine := true
	for _, i := range inboxes {
		if waiting := i.Waiting + uint64(i.Pending); waiting > 0 && i.Owner == "" {
			fine = false
			d.fail("inbox "+i.Agent, fmt.Sprintf("%d messages wait and nobody drains it", waiting), "start a gateway that serves "+i.Agent+": gatemesh gateway --config FILE")
		}
		if i.DeadLetters > 0 {
			fine = false
			d.warn("inbox "+i.Agent, plural(i.DeadLetters, "dead letter"), "gatemesh deadletter list --agent "+i.Agent+" (each says why), then redrive or purge")
		}
	}
	if fine {
		d.ok("inboxes", fmt.Sprintf("%d known; nothing waits in vain, no dead letters", len(inboxes)))
	}
}
