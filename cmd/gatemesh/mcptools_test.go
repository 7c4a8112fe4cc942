package main

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
)

// TestMCPTools has a model use tools of MCP servers that the configuration names: the mesh's own two, which are real ones, as a program and as an endpoint.
func TestMCPTools(t *testing.T) {
	call := func(id, name, args string) agent.ToolCall {
		return agent.ToolCall{ID: id, Name: name, Arguments: json.RawMessage(args)}
	}
	server := modeltest.NewServer(t, agent.APIOpenAI)
	first := true
	server.Answer(func(r modeltest.Request) modeltest.Step {
		if !strings.Contains(r.Body, "program__agent_discover") || !strings.Contains(r.Body, "endpoint__agent_discover") {
			return modeltest.Step{Text: "not yet"}
		}
		if first {
			first = false
			return modeltest.Step{Calls: []agent.ToolCall{call("c1", "program__agent_discover", `{}`), call("c2", "endpoint__message_status", `{"message_id":"nonsense"}`)}}
		}
		return modeltest.Step{Text: "I have looked."}
	})
	dir := t.TempDir()
	port := freePort(t)
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true, level: "debug" }, service: { register: false } },
  gateway: { port: %d, auth: { token: "the-token-of-this-test" } },
  models: { providers: { stub: { baseUrl: %q, apiKey: %q, models: [{ id: "m", contextWindow: 64000, maxTokens: 500 }] } } },
  tools: { deny: ["*__send_message"] },
  mcp: { servers: {
    program: { command: %q, args: ["mcp"], env: { GATEMESH_ADDR: "http://127.0.0.1:%d", GATEMESH_TOKEN: "the-token-of-this-test" } },
    endpoint: { url: "http://127.0.0.1:%d/mcp", headers: { Authorization: "Bearer the-token-of-this-test" } },
    broken: { command: "/nowhere/at-all" },
  } },
  agents: { list: [{ id: "jerry", model: "stub/m" }, { id: "bobby", runner: "echo", capabilities: ["infra.check"] }] },
}
`, filepath.Join(dir, "data"), port, server.BaseURL(), modeltest.Key, binary, port, port))
	p, env := startDaemon(t, file)
	until(t, "it owns its agents", func() bool { return strings.Contains(must(t, env, "owner", "list"), "bobby") })
	until(t, "the model has the tools", func() bool {
		return strings.Contains(must(t, env, "ask", "--to", "jerry", "Who is there?"), "I have looked.")
	})
	requests := server.Requests()
	last := requests[len(requests)-1].Body
	if !strings.Contains(last, "infra.check") {
		t.Errorf("the model is not told of bobby: %s", last)
	}
	if strings.Contains(last, "__send_message") {
		t.Error("it has a tool that it is denied")
	}
	log := p.text()
	if !strings.Contains(log, `"server":"broken"`) || strings.Contains(log, "the-token-of-this-test") {
		t.Error("the log does not tell of the broken one, or it shows the token")
	}
}

// freePort is one that nothing listens on now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}
