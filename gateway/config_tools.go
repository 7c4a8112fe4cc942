package gateway

import (
	"cmp"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/gatemesh/gatemesh/agent"
)

// toolPolicies are what a tool must pass to be the agent's: the mesh's policy, with the agent's profile where it has one, and its own.
func (c *Config) toolPolicies(a AgentConfig) []agent.ToolPolicy {
	all, own := c.Tools, a.Tools
	return []agent.ToolPolicy{
		{Profile: cmp.Or(own.Profile, all.Profile), Allow: all.Allow, AlsoAllow: slices.Concat(all.AlsoAllow, own.AlsoAllow), Deny: all.Deny},
		{Allow: own.Allow, AlsoAllow: own.AlsoAllow, Deny: own.Deny},
	}
}

// sessionsOf are the agents whose conversations an agent may read beside its own.
func (c *Config) sessionsOf(a AgentConfig) []string {
	for _, t := range []ToolsConfig{a.Tools, c.Tools} {
		if t.Agents.Enabled {
			return t.Agents.Allow
		}
	}
	return nil
}

// execOf is how an agent may run programs.
func (c *Config) execOf(a AgentConfig) agent.ExecSpec {
	all, own := c.Tools.Exec, a.Tools.Exec
	x := agent.ExecSpec{
		Security: cmp.Or(own.Security, all.Security), SafeBins: all.SafeBins,
		Timeout: time.Duration(cmp.Or(own.TimeoutSec, all.TimeoutSec)) * time.Second,
		Sandbox: a.Sandbox.Mode, Access: a.Sandbox.WorkspaceAccess, Network: cmp.Or(a.Sandbox.Docker.Network, "none") != "none",
	}
	if len(own.SafeBins) > 0 {
		x.SafeBins = own.SafeBins
	}
	if x.Security == "" && len(x.SafeBins) > 0 {
		x.Security = agent.ExecAllowlist
	}
	return x
}

// mcpName is what a server may be called: it is part of its tools' names, which vendors of models take up to 64 characters of.
var mcpName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$`)

// mcp refuses servers that cannot be reached as they are told.
func (v *configValidator) mcp() {
	for _, name := range slices.Sorted(maps.Keys(v.cfg.MCP.Servers)) {
		s, at := v.cfg.MCP.Servers[name], cfgJoin("mcp.servers", name)
		if !mcpName.MatchString(name) {
			v.errorf(at, "%q is no name for a server: letters, digits, _ and -, at most 31", cfgShort(name))
		}
		if (s.Command == "") == (s.URL == "") {
			v.errorf(at, "a server has a command (a program to be started) or a url (an endpoint)")
			continue
		}
		if s.URL != "" {
			if u, err := url.Parse(s.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
				v.errorf(at+".url", "that is not the URL of an endpoint, as https://tools.example/mcp")
			}
		}
		if !slices.Contains([]string{"", "streamable-http", "sse"}, s.Transport) || s.Transport != "" && s.URL == "" {
			v.errorf(at+".transport", "%s: want streamable-http or sse, with a url", v.show(at+".transport", s.Transport))
		}
		if s.TimeoutSec < 0 || s.TimeoutSec > 3600 {
			v.errorf(at+".timeoutSec", "%d is not between 1 and 3600", s.TimeoutSec)
		}
	}
}
