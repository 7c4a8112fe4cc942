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
