package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

const sampleConfig = `{
  mesh: { gateway: "jerry-gateway", store: "local", dataDir: "/tmp/nowhere" },
  gateway: { port: 18790, auth: { token: "${MESH_SECRET}" } },
  agents: { list: [ { id: "jerry", runner: "relay" } ] },
  channels: { slack: { enabled: true } },
}
`

func TestConfigCommands(t *testing.T) {
	file := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"), sampleConfig)
	env := []string{"MESH_SECRET=do-not-print-me"}

	out := must(t, env, "config", "validate", "--config", file)
	if !strings.Contains(out, "ok: gateway jerry-gateway, store local, agents here: jerry") {
		t.Errorf("validate: %s", out)
	}
	var report configReport
	if err := json.Unmarshal([]byte(must(t, env, "config", "validate", "--json", "--config", file)), &report); err != nil || !report.OK || len(report.Problems) != 0 {
		t.Errorf("validate --json: %+v, %v", report, err)
	}
	bad := writeFile(t, filepath.Join(t.TempDir(), "bad.json"), `{ gateway: { port: "many" } }`)
	r := gatemesh(t, env, "", "config", "validate", "--json", "--config", bad)
	if err := json.Unmarshal([]byte(r.out), &report); err != nil || r.code != exitUsage || report.OK || len(report.Problems) != 1 || report.Problems[0].Line != 1 {
		t.Errorf("validate --json of a bad file: status %d, %+v, %v", r.code, report, err)
	}

	for _, args := range [][]string{{"config", "show"}, {"config", "show", "--json"}} {
		out := must(t, env, append(args, "--config", file, "--set", "gateway.port=18999")...)
		if strings.Contains(out, "do-not-print-me") {
			t.Errorf("%v printed a secret", args)
		}
		if !strings.Contains(out, "18999") {
			t.Errorf("%v does not show the override:\n%s", args, out)
		}
	}
	if out := must(t, nil, "config", "reference"); !strings.Contains(out, "| `mesh.store` |") {
		t.Errorf("reference: %.200s", out)
	}
}

func TestPolicyExplain(t *testing.T) {
	file := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"),
		`{ agents: { list: [{ id: "bobby" }, { id: "jerry", gateways: ["jerry-gateway", "bobby-gateway"] }, { id: "billy", gateways: ["billy-gateway", "bobby-gateway"] }] }, mesh: { gateway: "bobby-gateway", policy: { rules: [{ name: "checks", from: "jerry", to: "bobby", capability: "infra.*", maxPayload: 100 }] } } }`)
	for _, tc := range []struct {
		args   string
		status int
		says   string
	}{
		{"--from jerry@jerry-gateway --to bobby --capability infra.check", exitOK, `"allowed":true,"rule":"checks","number":1`},
		{"--from jerry@jerry-gateway --to bobby --capability infra.check --size 101", exitFailed, "100B at most"},
		{"--from jerry@jerry-gateway --to bobby", exitFailed, "mesh.policy.rules"},
		{"--from user@bobby-gateway --to bobby", exitOK, "own agents"},
		{"--from user@billy-gateway --to bobby --operator", exitOK, "operators"},
		{"--from user@billy-gateway --to bobby --operator --set mesh.policy.operators=jerry-gateway", exitFailed, "mesh.policy.operators"},
		{"--from jerry --to bobby --capability infra.check", exitOK, `"cases":[{"from":"jerry@jerry-gateway"`},
		{"--from user --to bobby", exitUsage, "user@bobby-gateway"},
		// It may run here, where nothing speaks against it, and elsewhere, where nothing speaks for it: that is no yes.
		{"--from bobby --to billy", exitFailed, `"gateway":"billy-gateway","allowed":false`},
		{"--from bobby --to billy --at bobby-gateway", exitOK, "own agents"},
		{"--from bobby --to billy --at bobby-gateway!", exitUsage, "--at"},
		{"--from jerry@jerry-gateway --to Bobby!", exitUsage, "--to"},
		{"--from jerry@jerry-gateway --to bobby --set mesh.policy.default=maybe", exitUsage, "mesh.policy.default"},
	} {
		r := gatemesh(t, nil, "", strings.Fields("policy explain --json --config "+file+" "+tc.args)...)
		if r.code != tc.status || !strings.Contains(r.out+r.errOut, tc.says) {
			t.Errorf("%s: status %d, want %d: %s%s, want %q", tc.args, r.code, tc.status, r.out, r.errOut, tc.says)
		}
	}
}
