package gateway

// Parts of OpenClaw's configuration that are read into types and kept, although this
// version does not act on them: [Config.Unused] names those that a file sets.

// ModelsConfig is the model providers.
type ModelsConfig struct {
	Mode      string                    `json:"mode" doc:"merge with or replace OpenClaw's own list."`
	Providers map[string]ProviderConfig `json:"providers" doc:"Providers by id."`
	_         struct{}                  `accept:"*"`
}

// ProviderConfig is one model provider.
type ProviderConfig struct {
	BaseURL string             `json:"baseUrl" doc:"URL of its API."`
	APIKey  string             `json:"apiKey" cfg:"secret" doc:"Its key."`
	API     string             `json:"api" doc:"Its protocol, e.g. openai-completions."`
	Models  []ModelEntryConfig `json:"models" doc:"Its models."`
	_       struct{}           `accept:"*"`
}

// ModelEntryConfig is one model of a provider.
type ModelEntryConfig struct {
	ID            string         `json:"id" doc:"Id at the provider."`
	Name          string         `json:"name" doc:"Name for people."`
	Reasoning     bool           `json:"reasoning" doc:"Whether it reasons."`
	Input         []string       `json:"input" doc:"What it takes: text, image."`
	Cost          map[string]any `json:"cost" doc:"Prices."`
	ContextWindow int            `json:"contextWindow" doc:"Tokens it can read."`
	MaxTokens     int            `json:"maxTokens" doc:"Tokens it can write."`
	_             struct{}       `accept:"*"`
}

// ModelConfig is the model of an agent; in the file a string stands for {primary}.
type ModelConfig struct {
	Primary   string   `json:"primary" doc:"First choice, provider/model."`
	Fallbacks []string `json:"fallbacks" doc:"Next choices, in order."`
	_         struct{} `accept:"*"`
}

// SandboxConfig is how an agent's tools are confined.
type SandboxConfig struct {
	Mode            string   `json:"mode" doc:"off, non-main or all."`
	Scope           string   `json:"scope" doc:"session, agent or shared."`
	WorkspaceAccess string   `json:"workspaceAccess" doc:"none, ro or rw."`
	_               struct{} `accept:"*"`
}

// ToolsConfig is the tools of an agent.
type ToolsConfig struct {
	Profile string     `json:"profile" doc:"Named set of tools."`
	Exec    ExecConfig `json:"exec" doc:"The exec tool."`
	_       struct{}   `accept:"*"`
}

// ExecConfig is the exec tool.
type ExecConfig struct {
	Security string   `json:"security" doc:"deny, allowlist or full."`
	SafeBins []string `json:"safeBins" doc:"Programs that need no approval."`
	_        struct{} `accept:"*"`
}

// CronConfig is the scheduler.
type CronConfig struct {
	Enabled           bool     `json:"enabled" doc:"Whether jobs run."`
	MaxConcurrentRuns int      `json:"maxConcurrentRuns" doc:"Jobs at the same time."`
	SessionRetention  any      `json:"sessionRetention" doc:"How long a job's session is kept (a duration), or false."`
	_                 struct{} `accept:"*"`
}
