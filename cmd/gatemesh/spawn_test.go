package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/gateway"
)

// TestSubSessions has an agent of the whole binary start a run, through a model of either protocol, which kill -9 ends in the middle of the run: the next process
// finishes it, and tells the conversation that asked, once. The run is in the list of sessions.
func TestSubSessions(t *testing.T) {
	for _, api := range []string{agent.APIOpenAI, agent.APIAnthropic} {
		t.Run(api, func(t *testing.T) { subSessions(t, api) })
	}
}

func subSessions(t *testing.T, api string) {
	server := modeltest.NewServer(t, api,
		modeltest.Step{Calls: []agent.ToolCall{{ID: "c1", Name: "sessions_spawn", Arguments: json.RawMessage(`{"task":"count the services","label":"counting"}`)}}},
		modeltest.Step{Text: "I am on it."},
		modeltest.Step{Hang: true},
		modeltest.Step{Text: "There are seven."},
		modeltest.Step{Text: "Seven services run."},
	)
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true, level: "debug" }, service: { register: false }, retry: { initial: "10ms" } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  models: { providers: { stub: { baseUrl: %q, apiKey: %q, api: %q, models: [{ id: "m", contextWindow: 8000, maxTokens: 500 }] } } },
  agents: { list: [{ id: "jerry", model: "stub/m" }] },
}
`, filepath.Join(dir, "data"), server.BaseURL(), modeltest.Key, api))
	p, env := startDaemon(t, file)
	until(t, "it owns its agent", func() bool { return strings.Count(must(t, env, "owner", "list"), "node-gateway\t") >= 1 })
	if out := must(t, env, "ask", "--to", "jerry", "How many services?", "--conversation", "talk-1"); !strings.Contains(out, "I am on it.") {
		t.Fatalf("%q", out)
	}
	sub := func() (s gateway.SessionInfo) {
		for _, l := range parse[[]gateway.SessionInfo](t, must(t, env, "sessions", "list", "--json")) {
			if l.Status != "" {
				s = l
			}
		}
		return s
	}
	until(t, "the run is at the model", func() bool { return len(server.Requests()) == 3 && sub().Status == agent.SubRunning })
	if s := sub(); s.Label != "counting" || s.SpawnedBy != "agent:jerry:talk-1" || !strings.HasPrefix(s.Key, "agent:jerry:subagent:") {
		t.Errorf("%+v", s)
	}
	p.end(syscall.SIGKILL)
	p, env = startDaemon(t, file)
	until(t, "the conversation was told", func() bool {
		r := gatemesh(t, env, "", "sessions", "show", "agent:jerry:talk-1")
		return strings.Contains(r.out, "assistant: Seven services run.\n")
	})
	out := must(t, env, "sessions", "show", "agent:jerry:talk-1")
	if strings.Count(out, `[The run "counting" that you started has ended: ok.`) != 1 || !strings.Contains(out, "There are seven.") || sub().Status != agent.SubDone {
		t.Errorf("%s\n%+v", out, sub())
	}
	if out := must(t, env, "sessions", "show", sub().Key); !strings.Contains(out, "user: count the services\n") || !strings.Contains(out, "assistant: There are seven.\n") {
		t.Errorf("%s", out)
	}
	if out := must(t, env, "sessions", "list"); !strings.Contains(out, "\tdone\tcounting\tagent:jerry:talk-1\n") {
		t.Errorf("%s", out)
	}
	if n := len(server.Requests()); n != 5 {
		t.Errorf("the model was asked %d times", n)
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}
