package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/gateway"
)

// TestThinkingAgent has an agent of the whole binary think with a model of either protocol, which sends a message to
// another agent, and looks at what it remembers and what that cost.
func TestThinkingAgent(t *testing.T) {
	for _, api := range []string{agent.APIOpenAI, agent.APIAnthropic} {
		t.Run(api, func(t *testing.T) { thinkingAgent(t, api) })
	}
}

func thinkingAgent(t *testing.T, api string) {
	server := modeltest.NewServer(t, api,
		modeltest.Step{Status: 429, Header: map[string]string{"Retry-After-Ms": "20"}, Body: "slow down"},
		modeltest.Step{Calls: []agent.ToolCall{{ID: "c1", Name: "sessions_send", Arguments: json.RawMessage(`{"sessionKey":"bobby","message":"check Consul"}`)}}, Usage: agent.Usage{In: 1000, Out: 100}},
		modeltest.Step{Text: "Bobby says it is well.", Usage: agent.Usage{In: 2000, Out: 200}},
	)
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true, level: "debug" }, service: { register: false } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  models: { providers: { stub: { baseUrl: %q, apiKey: %q, api: %q, models: [{ id: "m", contextWindow: 8000, maxTokens: 500, cost: { input: 3, output: 15 } }] } } },
  agents: { list: [{ id: "jerry", model: "stub/m" }, { id: "bobby", runner: "echo" }] },
}
`, filepath.Join(dir, "data"), server.BaseURL(), modeltest.Key, api))
	p, env := startDaemon(t, file)
	until(t, "it owns its agents", func() bool { return strings.Count(must(t, env, "owner", "list"), "node-gateway\t") >= 2 })

	out := must(t, env, "ask", "--to", "jerry", "Ask Bobby to check Consul", "--conversation", "talk-1")
	if !strings.Contains(out, "Bobby says it is well.") {
		t.Fatalf("%q", out)
	}
	requests := server.Requests()
	if n := len(requests); n != 3 || !strings.Contains(requests[2].Body, "check Consul") || !strings.Contains(requests[2].Body, `replied`) {
		t.Fatalf("%d requests, the last one: %+v", n, requests[n-1])
	}

	list := parse[[]gateway.SessionInfo](t, must(t, env, "sessions", "list", "--json"))
	if len(list) != 1 || list[0].Key != "agent:jerry:talk-1" || list[0].Messages != 4 {
		t.Errorf("%+v", list)
	}
	if out := must(t, env, "sessions", "list"); !strings.Contains(out, "\nagent:jerry:talk-1\t") {
		t.Errorf("%q", out)
	}
	if out := must(t, env, "sessions", "show", "agent:jerry:talk-1"); !strings.Contains(out, "user: Ask Bobby to check Consul\n") || !strings.Contains(out, "assistant calls sessions_send") || !strings.Contains(out, "assistant: Bobby says it is well.\n") {
		t.Errorf("%q", out)
	}
	costs := parse[[]agent.Cost](t, must(t, env, "cost", "--json"))
	if len(costs) != 1 || costs[0].Agent != "jerry" || costs[0].Conversation != "talk-1" || costs[0].Models["stub/m"].Calls != 2 || costs[0].Models["stub/m"].Usage != (agent.Usage{In: 3000, Out: 300}) {
		t.Errorf("%+v", costs)
	}
	if out := must(t, env, "cost", "--by", "conversation"); !strings.Contains(out, "\tjerry\tstub/m\t2\t3000\t300\t0.0135\ttalk-1\n") {
		t.Errorf("%q", out)
	}
	resp, err := http.Get(strings.TrimPrefix(env[0], "GATEMESH_ADDR=") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`gatemesh_model_calls_total{model="stub/m",result="ok"} 2`, `gatemesh_model_calls_total{model="stub/m",result="rate-limited"} 1`,
		`gatemesh_model_tokens_total{direction="in",model="stub/m"} 3000`, `gatemesh_model_cost_usd_total{model="stub/m"} 0.013`} {
		if !strings.Contains(string(text), line) {
			t.Errorf("the metrics do not have %s", line)
		}
	}
	must(t, env, "sessions", "reset", "agent:jerry:talk-1")
	if list := parse[[]gateway.SessionInfo](t, must(t, env, "sessions", "list", "--json")); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"sessions", "show", "jerry"}, "is not a session"},
		{[]string{"sessions", "reset", "agent:jerry:other"}, "has no session other"},
		{[]string{"cost", "--day", "yesterday"}, "is not a day"},
		{[]string{"cost", "--by", "star"}, "is not conversation"},
	} {
		r := gatemesh(t, env, "", tc.args...)
		if r.code != exitUsage && r.code != exitFailed || !strings.Contains(r.errOut, tc.says) || strings.Count(r.errOut, "\n") != 1 {
			t.Errorf("%v: status %d: %q", tc.args, r.code, r.errOut)
		}
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
	if log := p.text(); strings.Contains(log, modeltest.Key) {
		t.Error("the log shows the key")
	}
}
