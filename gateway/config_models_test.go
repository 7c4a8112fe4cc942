package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
)

const modelsDoc = `{
	mesh: { store: "local" }, models: { providers: {
		litellm: { baseUrl: "https://litellm.example/v1", apiKey: "k-litellm-1", models: [
			{ id: "llama", contextWindow: 32768, maxTokens: 4096, cost: { input: 0.5, output: 1.5 } }] },
		anthropic: { models: [{ id: "claude-sonnet-4-5", cost: { input: 3, output: 3 } }] },
		own: { baseUrl: "http://10.0.0.1:9/v1", models: [{ id: "small" }] },
	} },
	agents: { defaults: { model: "own/small" }, list: [
		{ id: "jerry", model: "anthropic/claude-sonnet-4-5" },
		{ id: "bobby", model: { primary: "anthropic/claude-sonnet-4-5", fallbacks: ["litellm/llama", "lmstudio/what-is-loaded"] } },
		{ id: "billy" },
		{ id: "checker", runner: "checks" },
	] },
}`

func TestConfigModels(t *testing.T) {
	names := func(cfg *Config, i int) string {
		specs, err := cfg.modelsOf(cfg.Agents.List[i])
		if err != nil {
			return err.Error()
		}
		var all []string
		for _, s := range specs {
			all = append(all, s.Name())
		}
		return strings.Join(all, " ")
	}
	for name, c := range map[string]struct {
		env           []string
		kinds, models string
	}{
		// Without the key an agent goes on as it did, with one it thinks.
		"without a key": {nil, "relay,llm,llm,checks", "litellm/llama lmstudio/what-is-loaded"},
		"with one":      {[]string{"ANTHROPIC_API_KEY=k-anthropic-1"}, "llm,llm,llm,checks", "anthropic/claude-sonnet-4-5 litellm/llama lmstudio/what-is-loaded"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := mustParseConfig(t, modelsDoc, c.env...)
			cfg.Normalize()
			cfg.Normalize()
			if err := cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			var kinds []string
			for _, a := range cfg.Agents.List {
				kinds = append(kinds, a.Runner.Kind)
			}
			if got := strings.Join(kinds, ","); got != c.kinds {
				t.Errorf("runners %q, want %q", got, c.kinds)
			}
			if got := names(cfg, 1); got != c.models {
				t.Errorf("bobby's models %q, want %q", got, c.models)
			}
			for _, format := range []string{"json", "origins"} {
				if text := showConfig(t, cfg, format); strings.Contains(text, "k-litellm") || strings.Contains(text, "k-anthropic") {
					t.Errorf("%s shows a key", format)
				}
			}
		})
	}
	cfg := mustParseConfig(t, modelsDoc, "ANTHROPIC_API_KEY=k-anthropic-1")
	cfg.Normalize()
	specs, _ := cfg.modelsOf(cfg.Agents.List[1])
	want := agent.ModelSpec{
		Provider: "anthropic", ID: "claude-sonnet-4-5", API: agent.APIAnthropic, BaseURL: "https://api.anthropic.com", APIKey: "k-anthropic-1",
		Price: agent.Price{In: 3, Out: 3},
	}
	if specs[0] != want {
		t.Errorf("got %+v", specs[0])
	}
	if s := specs[1]; s.ContextWindow != 32768 || s.MaxTokens != 4096 || s.Price != (agent.Price{In: 0.5, Out: 1.5}) || s.APIKey != "k-litellm-1" || s.API != agent.APIOpenAI {
		t.Errorf("got %+v", s)
	}
	// What a day of the three agents costs at these prices, and a month of it.
	total := 0.0
	for _, tokens := range []int64{500_000, 200_000, 300_000} {
		total += 30 * specs[0].Price.Of(agent.Usage{In: tokens / 2, Out: tokens / 2})
	}
	if total < 89.99 || total > 90.01 {
		t.Errorf("%f dollars a month", total)
	}
}

func TestConfigModelsBad(t *testing.T) {
	for name, c := range map[string]struct{ from, to, want string }{
		"provider":     {`"litellm/llama"`, `"litelm/llama"`, `c.json5:10:79: agents.list[1].model.fallbacks[0]: there is no provider "litelm": name it in models.providers (did you mean "litellm"?)`},
		"model":        {`model: "own/small"`, `model: "own/smal"`, `c.json5:8:31: agents.defaults.model`},
		"no provider":  {`model: "anthropic/claude-sonnet-4-5" }`, `model: "claude" }`, `c.json5:9:25: agents.list[0].model`},
		"llm, no key":  {`id: "jerry",`, `id: "jerry", runner: "llm",`, `model "anthropic/claude-sonnet-4-5" has no key: set models.providers.anthropic.apiKey or the environment variable ANTHROPIC_API_KEY`},
		"replace":      {`models: { providers`, `models: { mode: "replace", providers`, `models.providers.anthropic: baseUrl is missing`},
		"mode":         {`models: { providers`, `models: { mode: "both", providers`, `models.mode: "both" is not one of merge, replace`},
		"api":          {`apiKey: "k-litellm-1"`, `apiKey: "k-litellm-1", api: "openai-complete"`, `c.json5:3:81: models.providers.litellm.api: "openai-complete" is not one of`},
		"url":          {`"http://10.0.0.1:9/v1"`, `"10.0.0.1:9"`, `models.providers.own.baseUrl: not a URL`},
		"password":     {`http://10.0.0.1:9`, `http://u:pw@10.0.0.1:9`, `models.providers.own.baseUrl: must not hold a password`},
		"price":        {`input: 0.5`, `input: -1`, `models.providers.litellm.models[0].cost: a price is from 0`},
		"price's type": {`input: 0.5`, `input: "free"`, `models.providers.litellm.models[0].cost.input: expected number, found string`},
		"window":       {`maxTokens: 4096`, `maxTokens: 32768`, `models.providers.litellm.models[0]: maxTokens (32768) must leave room`},
		"no model":     {`id: "small"`, `name: "small"`, `models.providers.own.models[0]: id is missing`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _, err := ParseConfig("c.json5", []byte(strings.Replace(modelsDoc, c.from, c.to, 1)), configEnv())
			if err == nil {
				cfg.Normalize()
				err = cfg.Validate()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s", err, c.want)
			}
		})
	}
}

// An agent that would think and has no key relays, and that is said.
func TestKeylessModelIsToldOf(t *testing.T) {
	for _, c := range []struct {
		agent, key string
		says       string
	}{
		{`{ id: "jerry", model: "anthropic/claude" }`, "", "until then jerry relays"},
		{`{ id: "jerry", model: "anthropic/claude" }`, "secret", ""},
		{`{ id: "jerry", model: "anthropic/claude", runner: "relay" }`, "", ""},
		{`{ id: "jerry" }`, "", ""},
	} {
		cfg, _, err := ParseConfig("c.json5", []byte(`{ agents: { list: [`+c.agent+`] } }`), func(name string) (string, bool) {
			if name != "ANTHROPIC_API_KEY" {
				return "", false
			}
			return c.key, c.key != ""
		})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Normalize()
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint(cfg.Warnings())
		if got := strings.Contains(text, "relays"); got != (c.says != "") || !strings.Contains(text, c.says) || strings.Contains(text, "secret") {
			t.Errorf("%s: %s", c.agent, text)
		}
	}
}

func TestRunRetention(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 24 * time.Hour, `sessionRetention: "2h"`: 2 * time.Hour, `sessionRetention: "0h"`: 0, "sessionRetention: false": 0,
		`sessionRetention: "soon"`: -1, `sessionRetention: "-1h"`: -1, "sessionRetention: true": -1, "sessionRetention: 24": -1} {
		cfg, _, err := ParseConfig("c.json5", []byte("{ cron: { "+text+" } }"), func(string) (string, bool) { return "", false })
		if err != nil {
			t.Fatal(err)
		}
		cfg.Normalize()
		switch err := cfg.Validate(); {
		case want < 0 && (err == nil || !strings.Contains(err.Error(), "cron.sessionRetention")):
			t.Errorf("%s: %v", text, err)
		case want >= 0 && (err != nil || cfg.Cron.runRetention() != want):
			t.Errorf("%s: %s, %v", text, cfg.Cron.runRetention(), err)
		}
	}
}
