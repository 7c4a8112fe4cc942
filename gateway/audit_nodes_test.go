package gateway

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// auditedLines ends a node and returns the lines of its log, which is whole and signed to the end.
func auditedLines(t *testing.T, n *node, dir string) (lines []AuditLine) {
	t.Helper()
	if err := n.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, AuditDir)
	rep, err := VerifyAudit(dir, checkedBy(n.identity.signer))
	if err != nil || len(rep.Problems) > 0 || rep.Unvouched > 0 || rep.Marks == 0 {
		t.Errorf("the log of %s: %+v, %v", n.Name(), rep, err)
	}
	var text strings.Builder
	if err := ExportAudit(&text, dir); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		var l AuditLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

// What has to be in an audit log is there, as lines of gateways that worked: every transition, each change of ownership, what the
// policy said, allowed and denied, and each order of an operator, with who gave it.
func TestAuditTellsAll(t *testing.T) {
	store := newStore(t)
	dirs := map[string]string{"jerry": t.TempDir(), "one": t.TempDir(), "two": t.TempDir()}
	bobby := config{"id": "bobby", "runner": "echo", "gateways": []string{"one", "two"}}
	rules := config{"rules": []config{{"name": "reports", "capability": "node.report"}}, "operators": []string{"jerry"}}
	jerry := startNode(t, parseNode(t, "jerry", nil, "old-token-old-token-old-token"), Deps{Store: store, StateDir: dirs["jerry"]})
	one := startNode(t, parseNode(t, "one", config{"policy": rules}, "", bobby), Deps{Store: store, StateDir: dirs["one"]})
	two := startNode(t, parseNode(t, "two", config{"policy": rules}, "", bobby), Deps{Store: store, StateDir: dirs["two"]})
	jerry.waitAgent("bobby", "one")
	ask := func(capability string) MessageStatus {
		return jerry.send(SendRequest{To: "bobby", Text: text("x"), Capability: capability, Wait: WaitReplied, Timeout: longest.String()})
	}
	allowed, denied := ask("node.report"), ask("infra.check")
	if !allowed.Facts.Replied || !denied.Facts.Dead {
		t.Fatalf("%+v, %+v", allowed.Facts, denied.Facts)
	}
	for _, what := range []string{"redrive", "purge"} {
		var res DeadLetterResults
		jerry.do(http.MethodPost, "/v1/deadletters/"+what, `{"agent":"bobby","all":true}`).into(t, &res)
		if res.Done != 1 {
			t.Fatalf("%s: %+v", what, res)
		}
		if what == "redrive" { // it is denied again
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for ctx, b := within(t), one.bus.Load(); ; <-tick.C {
				list, err := b.DeadLetters(ctx, bus.DeadLetterFilter{Agent: "bobby"})
				if err != nil {
					t.Fatal(err)
				}
				if len(list) == 1 && len(list[0].Delivery.Redrives) == 1 {
					break
				}
			}
		}
	}
	if changed, _, err := jerry.Reload(parseNode(t, "jerry", nil, "new-token-new-token-new-token")); err != nil || !slices.Contains(changed, "gateway.auth.token") {
		t.Fatalf("reload: %v, %v", changed, err)
	}
	ones := auditedLines(t, one, dirs["one"]) // and two takes over
	jerry.waitAgent("bobby", "two")
	twos := auditedLines(t, two, dirs["two"])
	jerrys := auditedLines(t, jerry, dirs["jerry"])

	for _, want := range []struct {
		where []AuditLine
		kind  AuditKind
		what  string
		has   []string
	}{
		{jerrys, AuditEvent, "accepted", []string{`"event":"queued"`, allowed.MessageID}},
		{ones, AuditEvent, "delivered", []string{`"event":"delivered"`, allowed.MessageID}},
		{ones, AuditEvent, "acked", []string{`"event":"acked"`, allowed.MessageID}},
		{jerrys, AuditEvent, "receipt", []string{`"event":"receipt"`, allowed.MessageID, `"by":"one"`}},
		{jerrys, AuditEvent, "replied", []string{`"event":"replied"`, allowed.MessageID}},
		{ones, AuditPolicy, "allowed", []string{allowed.MessageID, `"allowed":true`, `"rule":"reports"`, `"capability":"node.report"`, `@jerry"`}},
		{ones, AuditPolicy, "denied", []string{denied.MessageID, `"allowed":false`, "mesh.policy.rules"}},
		{ones, AuditPolicy, "an operator's order", []string{`"allowed":true`, "mesh.policy.operators", "redrive"}},
		{ones, AuditEvent, "dead letter of the denial", []string{`"event":"dead-letter"`, denied.MessageID, `"class":"unauthorised"`}},
		{ones, AuditEvent, "redriven", []string{`"event":"redriven"`, denied.MessageID}},
		{ones, AuditEvent, "purged", []string{`"event":"purged"`, denied.MessageID}},
		{jerrys, AuditOrder, "redrive", []string{"POST /v1/deadletters/redrive", `"status":200`, `"who":`}},
		{jerrys, AuditOrder, "purge", []string{"POST /v1/deadletters/purge", `"status":200`, `"who":`}},
		{jerrys, AuditOrder, "token", []string{`"what":"reload"`, "gateway.auth.token"}},
		{ones, AuditEvent, "owned", []string{`"event":"owned"`, `"bobby"`}},
		{ones, AuditEvent, "released", []string{`"event":"released"`, `"bobby"`}},
		{twos, AuditEvent, "taken over", []string{`"event":"owned"`, `"bobby"`}},
	} {
		if !slices.ContainsFunc(want.where, func(l AuditLine) bool {
			return l.Kind == want.kind && !slices.ContainsFunc(want.has, func(s string) bool { return !strings.Contains(string(l.Data), s) })
		}) {
			t.Errorf("no line of kind %s says %s: %q", want.kind, want.what, want.has)
		}
	}
	n := 0
	for _, l := range ones {
		if l.Kind == AuditPolicy && strings.Contains(string(l.Data), denied.MessageID) {
			n++
		}
	}
	if n != 2 {
		t.Errorf("the policy denied a message twice, once after a redrive, and that is in %d lines", n)
	}
	for _, l := range slices.Concat(ones, twos, jerrys) {
		if strings.Contains(string(l.Data), "token-old-token") || strings.Contains(string(l.Data), "token-new-token") {
			t.Errorf("a secret: %s", l.Data)
		}
	}
}
