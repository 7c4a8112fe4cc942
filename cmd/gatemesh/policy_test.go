package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// TestPolicyOfMesh: rules are published, shown and explained; somebody at the store does not get his own in, nor old ones back.
func TestPolicyOfMesh(t *testing.T) {
	d := newOperatorDesk(t)
	rules := filepath.Join(d.dir, "rules.json5")
	run := func(sub string, args ...string) result {
		t.Helper()
		args = append([]string{"policy", sub, "--config", d.conf, "--json"}, args...)
		if sub == "publish" {
			args = append(args, "--operator-key", d.key)
		}
		return gatemesh(t, nil, "", args...)
	}
	view := func(sub string, args ...string) policyView {
		t.Helper()
		r := run(sub, args...)
		if r.code != exitOK {
			t.Fatalf("policy %s: status %d: %s", sub, r.code, r.errOut)
		}
		return parse[policyView](t, r.out)
	}
	explain := func(args ...string) (int, policyReport) {
		t.Helper()
		r := run("explain", append([]string{"--from", "jerry@elsewhere", "--to", "bobby"}, args...)...)
		return r.code, parse[policyReport](t, r.out)
	}
	writeFile(t, rules, "// of all\n{ rules: [{ name: 'checks', to: 'bobby', capability: 'infra.*', rate: '60/m', maxPayload: '1KiB' }, { action: 'deny', to: 'b*' }] }")

	// Without a network and before anything is published.
	if code, r := explain("--file", rules, "--capability", "infra.check"); code != exitOK || !r.Allowed || r.Rule != "checks" || !strings.HasPrefix(r.Where, "openclaw/policy") {
		t.Errorf("explained: %d %+v", code, r)
	}
	if code, r := explain("--file", rules); code != exitFailed || r.Number != 2 || !strings.Contains(r.Reason, "rule 2 of openclaw/policy") {
		t.Errorf("explained: %d %+v", code, r)
	}
	if code, r := explain(); code != exitFailed || r.Where != "" {
		t.Errorf("without rules: %d %+v", code, r)
	}
	if r := run("publish", rules); r.code != exitUsage || !strings.Contains(r.errOut, "gatemesh trust init") {
		t.Errorf("published without an operator: %d %s", r.code, r.errOut)
	}
	d.view("init")
	if v := view("publish", rules); v.Version != 1 || v.Problem != "" {
		t.Errorf("%+v", v)
	}
	first, err := trust.LoadKey(d.key)
	if err != nil {
		t.Fatal(err)
	}
	if v := view("show"); v.Version != 1 || v.SignedBy != first.ID() || !strings.Contains(string(v.Rules), `"max_payload":1024`) {
		t.Errorf("%+v", v)
	}
	var old []byte
	d.inStore(func(s bus.Store) {
		p, err := s.Get(t.Context(), trust.PolicyKey)
		if err != nil {
			t.Fatal(err)
		}
		old = p.Value
	})
	writeFile(t, rules, "{ rules: [] }")
	if v := view("publish", rules); v.Version != 2 {
		t.Errorf("%+v", v)
	}
	// Whatever lies there, the next version is newer than all that this operator signed, and than nothing of a stranger's.
	stranger, err := trust.SignPolicy(&trust.Policy{Mesh: "m", Version: 1 << 52, IssuedAt: envelope.At(time.Now()), Rules: []byte("[]")}, trust.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	for i, there := range [][]byte{old, stranger, []byte("junk"), nil} {
		d.put(trust.PolicyKey, there)
		if i == 1 {
			if r := run("show"); r.code != exitFailed || !strings.Contains(r.out, "not an operator") {
				t.Errorf("show: %d %s %s", r.code, r.out, r.errOut)
			}
		}
		if v := view("publish", rules); v.Version != uint64(i+3) {
			t.Errorf("over %.20s: version %d, want %d", there, v.Version, i+3)
		}
	}
	for text, want := range map[string]string{"{ rules: [{ to: 'a b' }], ": "rules", "{ rules: [{ tu: 'x' }] }": "tu", "{ default: 'allow' }": "each gateway's own"} {
		writeFile(t, rules, text)
		if r := run("publish", rules); r.code != exitUsage || !strings.Contains(r.errOut, want) {
			t.Errorf("%s: %d %s", text, r.code, r.errOut)
		}
	}
	if r := run("publish", rules+".none"); r.code != exitUsage {
		t.Errorf("no file: %d %s", r.code, r.errOut)
	}
}
