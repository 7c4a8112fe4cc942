package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
)

// TestPlansCosts: the plan's table ("Estimated Monthly Costs"): 500,000, 200,000 and 300,000 tokens a day at 3 US dollars a million come to 45, 18 and 27
// dollars a month, 90 together. The tokens are counted at the models' wire, through the vendor's client.
func TestPlansCosts(t *testing.T) {
	server := modeltest.NewServer(t, agent.APIOpenAI)
	daily := map[string]int64{"jerry": 500_000, "bobby": 200_000, "billy": 300_000}
	const questions = 4
	server.Answer(func(r modeltest.Request) modeltest.Step {
		each := daily[r.Model] / questions
		return modeltest.Step{Text: "done", Usage: agent.Usage{In: each - each/10, Out: each / 10}}
	})
	dir := t.TempDir()
	model := func(id string) string {
		return fmt.Sprintf(`{ id: %q, contextWindow: 200000, maxTokens: 4096, cost: { input: 3, output: 3 } }`, id)
	}
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true }, service: { register: false } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  models: { providers: { litellm: { baseUrl: %q, apiKey: %q, api: "openai-completions", models: [%s, %s, %s] } } },
  agents: { list: [{ id: "jerry", model: "litellm/jerry" }, { id: "bobby", model: "litellm/bobby" }, { id: "billy", model: "litellm/billy" }] },
}
`, filepath.Join(dir, "data"), server.BaseURL(), modeltest.Key, model("jerry"), model("bobby"), model("billy")))
	p, env := startDaemon(t, file)
	for id := range daily {
		served(t, env, id)
	}
	began := time.Now()
	for i := range questions {
		for id := range daily {
			must(t, env, "ask", "--to", id, "--conversation", fmt.Sprint("task-", i%2), "your task")
		}
	}
	list := parse[[]costEstimate](t, must(t, env, "cost", "--by", "agent", "--json"))
	if began.UTC().Day() != time.Now().UTC().Day() {
		t.Skip("the day ended in the middle of it, so that it is the tokens of two")
	}
	want := map[string]float64{"jerry": 45, "bobby": 18, "billy": 27, "total": 90}
	if len(list) != len(want) {
		t.Fatalf("%+v", list)
	}
	for _, e := range list {
		if cents := int(e.USDPer30Days*100 + 0.5); cents != int(want[e.Agent]*100) || e.Days != 1 {
			t.Errorf("%+v, the plan has %.0f US dollars a month", e, want[e.Agent])
		}
		if n, ok := daily[e.Agent]; ok && (e.Tokens != n || e.Calls != questions) {
			t.Errorf("%+v, %d tokens were used", e, n)
		}
	}
	if out := must(t, env, "cost", "--by", "agent"); !strings.Contains(out, "total\t1\t12\t1000000\t3.0000\t1000000\t3.0000\t90.00\n") {
		t.Errorf("%q", out)
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}

func TestEstimates(t *testing.T) {
	now := time.Date(2027, 3, 10, 12, 0, 0, 0, time.UTC)
	day := func(id, day string, usd float64) agent.Cost {
		return agent.Cost{Agent: id, Day: day, Models: map[string]agent.ModelCost{"m": {Calls: 1, USD: usd, Usage: agent.Usage{In: 100}}}}
	}
	got := estimates([]agent.Cost{day("jerry", "2027-03-01", 5), day("jerry", "2027-03-10", 5), day("bobby", "2027-03-10", 2)}, now)
	if len(got) != 3 || got[0].Agent != "bobby" || got[0].Days != 1 || got[0].USDPer30Days != 60 || got[1].Days != 10 || got[1].USDPer30Days != 30 || got[1].TokensPerDay != 20 ||
		got[2].Agent != "total" || got[2].USDPer30Days != 90 || got[2].Calls != 3 {
		t.Errorf("%+v", got)
	}
	if got := estimates(nil, now); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}
