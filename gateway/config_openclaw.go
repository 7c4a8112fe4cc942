package gateway

// Parts of OpenClaw's configuration that are read into types and kept, although this
// version does not act on them: [Config.Unused] names those that a file sets.

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
	Enabled           bool     `json:"enabled" def:"false" doc:"Whether this gateway may have the scheduler."`
	MaxConcurrentRuns int      `json:"maxConcurrentRuns" def:"4" min:"1" max:"1000" doc:"Jobs that run at the same time."`
	SessionRetention  any      `json:"sessionRetention" cfg:"unused" doc:"OpenClaw: how long a job's session is kept. Here sessions are kept as long as others."`
	_                 struct{} `accept:"*"`
}
