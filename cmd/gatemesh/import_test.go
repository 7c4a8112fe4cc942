package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestImportOpenClaw: what becomes of the plan's configurations is said key by key, without a variable being set and without a secret being shown.
func TestImportOpenClaw(t *testing.T) {
	at := func(name string) string { return filepath.Join("..", "..", "gateway", "testdata", "config", name) }
	r := gatemesh(t, nil, "", "import", "openclaw", "--json", at("plan-phase2.json5"))
	got := parse[importReport](t, r.out)
	if r.code != exitOK || !got.OK || len(got.Agents) == 0 || len(got.Problems) != 0 {
		t.Errorf("status %d: %+v", r.code, got)
	}
	for _, a := range got.Agents {
		if a.ID == "" || a.Runner == "" || len(a.Gateways) == 0 {
			t.Errorf("%+v", a)
		}
	}

	// The first phase's file, with Tailscale Serve in front of a gateway that listens beyond loopback: taken as it is, which is warned of.
	r = gatemesh(t, []string{"GATEMESH_TOKEN=the-token-of-this-test"}, "", "import", "openclaw", "--json", at("plan-phase1.json5"))
	got = parse[importReport](t, r.out)
	if r.code != exitOK || !got.OK || len(got.Agents) != 3 || len(got.Problems) != 0 || !slices.ContainsFunc(got.Warnings, func(w importRemark) bool { return w.Key == "gateway.tailscale.mode" && w.Line > 0 }) {
		t.Errorf("status %d: %+v", r.code, got)
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"), `{
  gateway: { bind: "loopback" },
  agents: { entries: { jerry: { model: { primary: "litellm/m" } }, bobby: { runner: "checks", sandbox: { mode: "off", scope: "agent" } } } },
  models: { providers: { litellm: { baseUrl: "${LITELLM_BASE_URL}", apiKey: "${LITELLM_API_KEY}", api: "openai-completions", models: [{ id: "m", contextWindow: 1000, maxTokens: 100 }] } } },
  channels: { slack: { appToken: "${SLACK_APP_TOKEN}", botToken: "${SLACK_BOT_TOKEN}" }, discord: { enabled: false } },
  bindings: [{ agentId: "jerry", match: { channel: "slack" } }],
  cron: { enabled: true, sessionRetention: "24h" },
}`)
	r = gatemesh(t, []string{"SLACK_BOT_TOKEN=xoxb-canary"}, "", "import", "openclaw", "--json", file)
	got = parse[importReport](t, r.out)
	if !got.OK || got.Bindings != 1 || strings.Join(got.Variables, " ") != "LITELLM_API_KEY LITELLM_BASE_URL SLACK_APP_TOKEN" {
		t.Errorf("%+v", got)
	}
	var agents, accounts []string
	for _, a := range got.Agents {
		agents = append(agents, a.ID+" "+a.Runner+" "+a.Model)
	}
	for _, c := range got.Channels {
		accounts = append(accounts, c.Inbox+map[bool]string{true: " on", false: " off"}[c.Connected])
	}
	slices.Sort(agents)
	if strings.Join(agents, ", ") != "bobby checks , jerry llm litellm/m" || strings.Join(accounts, ", ") != "channel-discord-default off, channel-slack-default on" {
		t.Errorf("%q %q", agents, accounts)
	}
	ignored := map[string]string{}
	for _, x := range got.Ignored {
		ignored[x.Key] = x.Reason
	}
	if !strings.Contains(ignored["agents.entries.bobby.sandbox.scope"], "each run is confined for itself") || len(ignored) != 1 {
		t.Errorf("%+v", ignored)
	}
	text := must(t, []string{"SLACK_BOT_TOKEN=xoxb-canary"}, "import", "openclaw", file)
	if !strings.Contains(text, "a gateway starts with it") || !strings.Contains(text, "SLACK_APP_TOKEN") || strings.Contains(text+r.out, "canary") || strings.Contains(text, unset) {
		t.Error(text)
	}
	for name, says := range map[string]string{"nothing.json5": "no file"} {
		if r := gatemesh(t, nil, "", "import", "openclaw", at(name)); r.code != exitUsage || !strings.Contains(r.errOut, says) {
			t.Errorf("%s: %d %s", name, r.code, r.errOut)
		}
	}
}
