package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/gatemesh/gatemesh/agent"
)

// runnerLLM is the kind of an agent that thinks.
const runnerLLM = "llm"

// ModelsConfig is the model providers.
type ModelsConfig struct {
	Mode      string                    `json:"mode" def:"merge" enum:"merge|replace" doc:"merge: the providers here come on top of those that are known anyway (anthropic, openai, zai, openrouter, litellm, lmstudio); replace: they are all there are."`
	Providers map[string]ProviderConfig `json:"providers" doc:"Providers by id. What one leaves out that is known anyway, it takes from there."`
	_         struct{}                  `accept:"*"`
}

// ProviderConfig is one model provider.
type ProviderConfig struct {
	BaseURL string             `json:"baseUrl" doc:"URL of its API: with its version (/v1) for openai-completions, without for anthropic-messages."`
	APIKey  string             `json:"apiKey" cfg:"secret" doc:"Its key. Empty: the provider's variable (ANTHROPIC_API_KEY, OPENAI_API_KEY, ZAI_API_KEY, OPENROUTER_API_KEY, LITELLM_API_KEY); others are asked without."`
	API     string             `json:"api" doc:"Its protocol: openai-completions or anthropic-messages. Empty: that of the known provider, else openai-completions."`
	Shared  bool               `json:"shared" doc:"lmstudio: it runs on a machine that is always on. Without it, an agent of a mesh on Consul may not depend on it."`
	Models  []ModelEntryConfig `json:"models" doc:"Its models. A provider that is not known anyway has no others."`
	_       struct{}           `accept:"*"`
}

// ModelEntryConfig is one model of a provider.
type ModelEntryConfig struct {
	ID            string     `json:"id" doc:"Id at the provider."`
	Name          string     `json:"name" doc:"Name for people."`
	Reasoning     bool       `json:"reasoning" doc:"OpenClaw's; without effect here."`
	Input         []string   `json:"input" doc:"OpenClaw's: text, image. Text alone is sent."`
	Cost          CostConfig `json:"cost" doc:"Prices; what has none costs nothing."`
	ContextWindow int        `json:"contextWindow" doc:"Tokens of prompt and answer together. Empty: 32768."`
	MaxTokens     int        `json:"maxTokens" doc:"Tokens of an answer. Empty: 4096."`
	_             struct{}   `accept:"*"`
}

// CostConfig is prices in US dollars for a million tokens.
type CostConfig struct {
	Input  float64  `json:"input" doc:"US dollars for a million tokens that it reads (cached ones too)."`
	Output float64  `json:"output" doc:"US dollars for a million tokens that it writes."`
	_      struct{} `accept:"*"`
}

// ModelConfig is the model of an agent; in the file a string stands for {primary}.
type ModelConfig struct {
	Primary   string   `json:"primary" doc:"First choice, provider/model."`
	Fallbacks []string `json:"fallbacks" doc:"Next choices, in order."`
	_         struct{} `accept:"*"`
}

// knownProvider is a provider that needs no entry.
type knownProvider struct {
	api, baseURL string
	// variables: the first that is set holds the key; without any the provider is asked without a key,
	// if it is one that may be.
	variables []string
	needsKey  bool
}

var knownProviders = map[string]knownProvider{
	"anthropic":  {agent.APIAnthropic, "https://api.anthropic.com", []string{"ANTHROPIC_API_KEY"}, true},
	"openai":     {agent.APIOpenAI, "https://api.openai.com/v1", []string{"OPENAI_API_KEY"}, true},
	"zai":        {agent.APIOpenAI, "https://api.z.ai/api/paas/v4", []string{"ZAI_API_KEY", "Z_AI_API_KEY"}, true},
	"openrouter": {agent.APIOpenAI, "https://openrouter.ai/api/v1", []string{"OPENROUTER_API_KEY"}, true},
	"litellm":    {agent.APIOpenAI, "http://localhost:4000", []string{"LITELLM_API_KEY"}, true},
	"lmstudio":   {agent.APIOpenAI, "http://localhost:1234/v1", nil, false},
}

// modelError is a name of a model that stands for none, or one that cannot be asked. field is the key
// of model that holds it.
type modelError struct {
	field, message string
	// noKey: only the key is missing.
	noKey bool
}

func (e *modelError) Error() string { return e.message }

// modelsOf resolves what an agent's model names, the preferred one first. Empty: it has none.
func (c *Config) modelsOf(a AgentConfig) ([]agent.ModelSpec, *modelError) {
	var specs []agent.ModelSpec
	names, fields := a.Model.Fallbacks, make([]string, 0, len(a.Model.Fallbacks)+1)
	for i := range names {
		fields = append(fields, fmt.Sprintf("fallbacks[%d]", i))
	}
	if a.Model.Primary != "" {
		names, fields = append([]string{a.Model.Primary}, names...), append([]string{"primary"}, fields...)
	}
	var noKey *modelError
	for i, name := range names {
		s, err := c.modelSpec(name)
		switch {
		case err == nil:
			specs = append(specs, s)
		case err.noKey:
			// Another one of the list may do.
			if err.field = fields[i]; noKey == nil {
				noKey = err
			}
		default:
			err.field = fields[i]
			return nil, err
		}
	}
	if len(specs) == 0 && noKey != nil {
		return nil, noKey
	}
	return specs, nil
}

func (c *Config) modelSpec(name string) (agent.ModelSpec, *modelError) {
	provider, id, ok := strings.Cut(name, "/")
	if !ok || provider == "" || id == "" {
		return agent.ModelSpec{}, &modelError{message: fmt.Sprintf("%q is not provider/model", cfgShort(name))}
	}
	known, isKnown := knownProviders[provider]
	isKnown = isKnown && c.Models.Mode != "replace"
	if !isKnown {
		known = knownProvider{api: agent.APIOpenAI}
	}
	own, said := c.Models.Providers[provider]
	if !said && !isKnown {
		all := slices.Collect(maps.Keys(c.Models.Providers))
		if c.Models.Mode != "replace" {
			all = append(all, slices.Collect(maps.Keys(knownProviders))...)
		}
		return agent.ModelSpec{}, &modelError{message: fmt.Sprintf("there is no provider %q: name it in models.providers%s", cfgShort(provider), cfgSuggest(provider, all))}
	}
	s := agent.ModelSpec{Provider: provider, ID: id, API: cmp.Or(own.API, known.api), BaseURL: cmp.Or(own.BaseURL, known.baseURL), APIKey: own.APIKey}
	at := slices.IndexFunc(own.Models, func(m ModelEntryConfig) bool { return m.ID == id })
	switch {
	case at >= 0:
		m := own.Models[at]
		s.ContextWindow, s.MaxTokens, s.Price = m.ContextWindow, m.MaxTokens, agent.Price{In: m.Cost.Input, Out: m.Cost.Output}
	case !isKnown:
		var ids []string
		for _, m := range own.Models {
			ids = append(ids, m.ID)
		}
		return s, &modelError{message: fmt.Sprintf("provider %q has no model %q: name it in models.providers.%s.models%s", provider, cfgShort(id), provider, cfgSuggest(id, ids))}
	case known.needsKey && s.ContextWindow == 0 && provider != "litellm":
		s.ContextWindow = 128_000 // the vendors' own models have that, and more
	}
	if s.APIKey == "" && c.source.env != nil {
		for _, name := range known.variables {
			if value, _ := c.source.env(name); s.APIKey == "" {
				s.APIKey = value
			}
		}
	}
	if s.APIKey == "" && known.needsKey {
		return s, &modelError{noKey: true, message: fmt.Sprintf("model %q has no key: set models.providers.%s.apiKey or the environment variable %s", cfgShort(name), provider, known.variables[0])}
	}
	return s, nil
}

// keyless warns of agents that would ask a model and do not, because nobody told its key: they relay, and nothing else would say so.
func (v *configValidator) keyless() {
	for i, a := range v.cfg.Agents.List {
		if a.keyless != "" {
			v.errorf(cfgItemPath(reflect.ValueOf(a), fmt.Sprintf("agents.list[%d]", i))+".model", "%s; until then %s relays what it is asked, as agents do that have no model", a.keyless, a.ID)
		}
	}
}

// models checks the providers, and what agents name of them. A missing key stops only an agent that was told to think.
func (v *configValidator) models() {
	if m := v.cfg.Models; m.Mode != "" {
		for _, id := range slices.Sorted(maps.Keys(m.Providers)) {
			v.provider("models.providers."+id, m.Providers[id])
		}
	}
	for i, a := range v.cfg.Agents.List {
		path := cfgItemPath(reflect.ValueOf(a), fmt.Sprintf("agents.list[%d]", i))
		specs, err := v.cfg.modelsOf(a)
		switch {
		case err != nil && (!err.noKey || a.Runner.Kind == runnerLLM):
			at := path + ".model"
			if !v.cfg.source.explicit(at) && v.cfg.source.explicit("agents.defaults.model") {
				at = "agents.defaults.model"
			}
			if v.cfg.source.explicit(at + "." + err.field) {
				at += "." + err.field
			}
			v.errorf(at, "%s", err.message)
		case err == nil && len(specs) == 0 && a.Runner.Kind == runnerLLM:
			v.errorf(path+".runner", "llm, but the agent has no model: set its model to provider/model")
		case err == nil && a.Runner.Kind == runnerLLM:
			v.laptopModels(path, specs)
		}
	}
}

// laptop is the provider that runs where somebody works, and is away when he is (plan, "Phase 4").
const laptop = "lmstudio"

// laptopModels refuses a mesh's agent that depends on a laptop: what the others rely on must not go away with it.
func (v *configValidator) laptopModels(path string, specs []agent.ModelSpec) {
	if v.cfg.Mesh.Store != "consul" || v.cfg.Models.Providers[laptop].Shared {
		return
	}
	for _, s := range specs {
		if s.Provider == laptop {
			at := path + ".model"
			if !v.cfg.source.explicit(at) && v.cfg.source.explicit("agents.defaults.model") {
				at = "agents.defaults.model"
			}
			v.errorf(at, "%s runs on somebody's laptop (LM Studio), and an agent of the mesh must not go away with it: name another model, run the laptop's own gateway (gatemesh --profile NAME, or mesh.store \"local\"), or say models.providers.lmstudio.shared when that machine is always on", s.Name())
			return
		}
	}
}

func (v *configValidator) provider(path string, p ProviderConfig) {
	if p.API != "" && p.API != agent.APIOpenAI && p.API != agent.APIAnthropic {
		v.errorf(path+".api", "%s is not one of %s, %s%s", v.show(path+".api", p.API), agent.APIOpenAI, agent.APIAnthropic, cfgSuggest(p.API, []string{agent.APIOpenAI, agent.APIAnthropic}))
	}
	if p.BaseURL != "" {
		u, err := url.Parse(p.BaseURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			v.errorf(path+".baseUrl", "not a URL that starts with http:// or https://")
		} else if u.User != nil {
			v.errorf(path+".baseUrl", "must not hold a password: use apiKey")
		}
	} else if _, known := knownProviders[path[strings.LastIndexByte(path, '.')+1:]]; !known || v.cfg.Models.Mode == "replace" {
		v.errorf(path, "baseUrl is missing")
	}
	for i, m := range p.Models {
		at := fmt.Sprintf("%s.models[%d]", path, i)
		switch {
		case m.ID == "":
			v.errorf(at, "id is missing")
		case m.ContextWindow < 0 || m.MaxTokens < 0 || m.ContextWindow > 0 && m.MaxTokens >= m.ContextWindow:
			v.errorf(at, "maxTokens (%d) must leave room in contextWindow (%d), and neither may be negative", m.MaxTokens, m.ContextWindow)
		case !(m.Cost.Input >= 0 && m.Cost.Output >= 0 && m.Cost.Input < 1e6 && m.Cost.Output < 1e6):
			v.errorf(at+".cost", "a price is from 0 to below 1000000 dollars for a million tokens")
		}
	}
}
