package gateway

import (
	"errors"
	"time"
)

// Parts of OpenClaw's configuration. Of what this version does not act on [Config.Unused] names what a file sets.

// SandboxConfig is how the programs that an agent runs (exec) are confined.
type SandboxConfig struct {
	Mode            string `json:"mode" enum:"|off|non-main|all" doc:"What an agent runs (exec) is confined: off, non-main (in all sessions but agent:<id>:main) or all. Confined by Landlock: it reads the system's programs and its workspace, writes its workspace, and makes no TCP connections (unless docker.network says so); where the kernel cannot do that, it is not run. Empty: off."`
	Scope           string `json:"scope" cfg:"unused" doc:"OpenClaw: session, agent or shared container. Here each run is confined for itself."`
	WorkspaceAccess string `json:"workspaceAccess" enum:"|none|ro|rw" doc:"What is confined may do with the workspace: none, ro or rw. Empty: rw."`
	Docker          struct {
		Network string   `json:"network" doc:"none: what is confined makes no TCP connections; any other value: it may. Empty: none."`
		_       struct{} `accept:"*"`
	} `json:"docker" doc:"OpenClaw's container. There is none here; its network setting counts."`
	_ struct{} `accept:"*"`
}

// ToolsConfig is the tools of an agent.
type ToolsConfig struct {
	Profile   string     `json:"profile" enum:"|minimal|messaging|coding|full" doc:"Set of tools to begin with: minimal, messaging, coding or full. Empty: full."`
	Allow     []string   `json:"allow" doc:"Tools instead of the profile's: names, names with *, and group:sessions, group:messaging, group:agents, group:runtime, group:mcp."`
	AlsoAllow []string   `json:"alsoAllow" doc:"Tools beside the profile's."`
	Deny      []string   `json:"deny" doc:"Tools that it has in no case."`
	Exec      ExecConfig `json:"exec" doc:"The tool exec: programs on the agent's node."`
	Agents    struct {
		Enabled bool     `json:"enabled" doc:"Whether agents may read conversations of others."`
		Allow   []string `json:"allow" doc:"Whose: names, with * for any text. Empty: nobody's."`
		_       struct{} `accept:"*"`
	} `json:"agentToAgent" doc:"Whose conversations agents may read with sessions_list and sessions_history, beside their own."`
	_ struct{} `accept:"*"`
}

// SubagentsConfig is the sub-sessions that an agent may start.
type SubagentsConfig struct {
	AllowAgents []string `json:"allowAgents" doc:"Agents that it may start sub-sessions of (sessions_spawn, agentId): ids, with * for any text. Empty: its own alone."`
	_           struct{} `accept:"*"`
}

// ExecConfig is the exec tool.
type ExecConfig struct {
	Security   string   `json:"security" enum:"|deny|allowlist|full" doc:"deny, allowlist (the programs in safeBins) or full (any). Empty: deny; allowlist when there are safeBins."`
	SafeBins   []string `json:"safeBins" doc:"Programs that may be run, by their names; they are looked for in the gateway's PATH. What one can start is not limited."`
	TimeoutSec int      `json:"timeoutSec" min:"1" max:"3600" doc:"Seconds that a program may run. Empty: 60."`
	_          struct{} `accept:"*"`
}

// MCPConfig is the MCP servers that this gateway is a client of.
type MCPConfig struct {
	Servers map[string]MCPServerConfig `json:"servers" doc:"Servers by name. A tool is called <name>__<tool>; tools.deny and allow know it so, and all of them as group:mcp."`
	_       struct{}                   `accept:"*"`
}

// MCPServerConfig is one MCP server: a program or an endpoint.
type MCPServerConfig struct {
	Command    string         `json:"command" doc:"Program that is started; its standard input and output are the connection."`
	Args       []string       `json:"args" doc:"Its arguments."`
	Env        map[string]any `json:"env" cfg:"secret" doc:"Its environment, beside PATH, HOME and the locale: of the gateway's own it gets nothing else."`
	Cwd        string         `json:"cwd" doc:"Its directory. Empty: the gateway's."`
	URL        string         `json:"url" doc:"Endpoint, http or https."`
	Transport  string         `json:"transport" doc:"streamable-http, or sse (the protocol of before). Empty: streamable-http."`
	Headers    map[string]any `json:"headers" cfg:"secret" doc:"Headers of each request to the endpoint."`
	TimeoutSec int            `json:"timeoutSec" doc:"Seconds that one call may take, 1 to 3600. Empty: 60."`
	Disabled   bool           `json:"disabled" doc:"Whether it is left out."`
	_          struct{}       `accept:"*"`
}

// CronConfig is the scheduler.
type CronConfig struct {
	Enabled           bool     `json:"enabled" def:"false" doc:"Whether this gateway may have the scheduler."`
	MaxConcurrentRuns int      `json:"maxConcurrentRuns" def:"4" min:"1" max:"1000" doc:"Jobs that run at the same time."`
	SessionRetention  any      `json:"sessionRetention" doc:"How long the session of a job's isolated run is kept after it, as 24h, which is also what is meant when it is left out; false or 0h: as long as every other session (30 days)."`
	_                 struct{} `accept:"*"`
}

// defaultRunRetention is OpenClaw's.
const defaultRunRetention = 24 * time.Hour

// runRetention is how long the session of an isolated run is kept; 0: as long as every other one.
func (c CronConfig) runRetention() time.Duration {
	d, _ := c.parseRetention()
	return d
}

func (c CronConfig) parseRetention() (time.Duration, error) {
	switch x := c.SessionRetention.(type) {
	case nil:
		return defaultRunRetention, nil
	case bool:
		if !x {
			return 0, nil
		}
	case string:
		if d, err := time.ParseDuration(x); err == nil && d >= 0 {
			return d, nil
		}
	}
	return 0, errors.New(`not a duration like "24h", and not false`)
}

func (v *configValidator) cron() {
	if _, err := v.cfg.Cron.parseRetention(); err != nil {
		v.errorf("cron.sessionRetention", "%v", err)
	}
}
