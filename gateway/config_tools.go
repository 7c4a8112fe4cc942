package gateway

import (
	"cmp"
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
