package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
)

// TestExecTool has a model run programs on the node of its agent, by the configuration of OpenClaw: those of the list alone, in the workspace, and confined
// by the kernel. A reload takes the tool away.
func TestExecTool(t *testing.T) {
	dir := t.TempDir()
	workspace, secret := filepath.Join(dir, "workspace"), filepath.Join(dir, "secret")
	if err := os.MkdirAll(workspace, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(workspace, "notes"), "what is in the workspace")
	writeFile(t, secret, "what is outside")
	call := func(id, command string) agent.ToolCall {
		args, err := json.Marshal(map[string]string{"command": command})
		if err != nil {
			t.Fatal(err)
		}
		return agent.ToolCall{ID: id, Name: "exec", Arguments: args}
	}
	server := modeltest.NewServer(t, agent.APIOpenAI,
		modeltest.Step{Calls: []agent.ToolCall{call("c1", "cat notes"), call("c2", "cat "+secret), call("c3", "id"), call("c4", "env")}},
		modeltest.Step{Text: "I have looked."},
		modeltest.Step{Text: "Without tools."},
	)
	config := func(deny string) string {
		return fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true, level: "debug" }, service: { register: false } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  models: { providers: { stub: { baseUrl: %q, apiKey: %q, models: [{ id: "m", contextWindow: 8000, maxTokens: 500 }] } } },
  tools: { deny: [%s] },
  agents: { list: [{ id: "bobby", model: "stub/m", workspace: %q, sandbox: { mode: "all" }, tools: { exec: { safeBins: ["cat", "env"] } } }] },
}
`, filepath.Join(dir, "data"), server.BaseURL(), modeltest.Key, deny, workspace)
	}
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), config(""))
	p, env := startDaemon(t, file)
	until(t, "it owns its agent", func() bool { return strings.Contains(must(t, env, "owner", "list"), "bobby") })
	if out := must(t, env, "ask", "--to", "bobby", "Look at your notes"); !strings.Contains(out, "I have looked.") {
		t.Fatalf("%q", out)
	}
	requests := server.Requests()
	if len(requests) != 2 || !strings.Contains(requests[0].Body, "cat, env") {
		t.Fatalf("%d requests, the first: %+v", len(requests), requests[0])
	}
	told := requests[1].Body
	for _, want := range []string{"what is in the workspace", "Permission denied", "tools.exec.safeBins"} {
		if !strings.Contains(told, want) {
			t.Errorf("the model is not told %q: %s", want, told)
		}
	}
	for _, never := range []string{"what is outside", "the-token-of-this-test", modeltest.Key, "GATEMESH"} {
		if strings.Contains(told, never) {
			t.Errorf("the model is told %q", never)
		}
	}
	writeFile(t, file, config(`"group:runtime"`))
	until(t, "the reload", func() bool { return strings.Contains(p.text(), "configuration reloaded") })
	must(t, env, "ask", "--to", "bobby", "Again")
	requests = server.Requests()
	if last := requests[len(requests)-1].Body; strings.Contains(last, "cat, env") || !strings.Contains(last, "agents_list") {
		t.Errorf("tools after the reload: %s", last)
	}
}
