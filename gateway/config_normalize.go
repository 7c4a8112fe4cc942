package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// cfgTokenVariables give gateway.auth.token when the file knows no token at all, first one first. Beside
// gateway.auth.tokens they would make an operator of whatever token the shell has for its client.
var cfgTokenVariables = []string{"OPENCLAW_GATEWAY_TOKEN", "GATEMESH_TOKEN"}

// The variables that hold an enrolment token and a gateway's key. The key is read when it is needed, and never becomes part
// of a Config.
const (
	cfgEnrollVariable = "GATEMESH_ENROLL_TOKEN"
	keyVariable       = "GATEMESH_GATEWAY_KEY"
)

// Normalize fills in what was left out: defaults, the token from the environment, the
// names and paths that depend on each other, agents.defaults into every agent, all
// agents into Agents.List, and what a queue takes over from its agent. It never changes what was said, and doing it twice changes
// nothing. Of a Config made by hand it leaves zeros alone that can be meant: port 0 and
// booleans.
func (c *Config) Normalize() {
	if c.source.origins == nil {
		c.source.origins = map[string]Origin{}
	}
	if c.source.env == nil {
		c.source.env = os.LookupEnv
	}
	cfgFill(reflect.ValueOf(c).Elem(), "", false, c.source.explicit)
	m := &c.Mesh
	if m.Gateway == "" {
		m.Gateway = cfgDefaultGatewayID(os.Hostname())
	}
	if m.DataDir == "" {
		m.DataDir = "~/.gatemesh/" + m.Gateway
	}
	m.DataDir = cfgExpandHome(m.DataDir, c.source.env)
	m.Identity.KeyFile = cfgExpandHome(m.Identity.KeyFile, c.source.env)
	if value, _ := c.source.env(cfgEnrollVariable); m.Trust.EnrollToken == "" && value != "" {
		m.Trust.EnrollToken = value
		c.source.origins["mesh.trust.enrollToken"] = Origin{Kind: OriginEnv, Name: cfgEnrollVariable, Vars: []string{cfgEnrollVariable}}
	}

	auth := &c.Gateway.Auth
	for _, name := range cfgTokenVariables {
		if value, _ := c.source.env(name); auth.Token == "" && len(auth.Tokens) == 0 && value != "" {
			auth.Token = value
			c.source.origins["gateway.auth.token"] = Origin{Kind: OriginEnv, Name: name, Vars: []string{name}}
		}
	}
	if auth.Mode == "" {
		auth.Mode = "none"
		if auth.Token != "" || len(auth.Tokens) > 0 {
			auth.Mode = "token"
		}
	}
	for _, path := range []*string{&c.Gateway.TLS.CertPath, &c.Gateway.TLS.KeyPath} {
		*path = cfgExpandHome(*path, c.source.env)
	}
	c.normalizeAgents()
	c.normalizeQueues()
	m.Policy.Rules = slices.Clone(m.Policy.Rules)
	for i := range m.Policy.Rules {
		r := &m.Policy.Rules[i]
		r.Action = cmp.Or(r.Action, "allow")
	}
}

func (c *Config) normalizeQueues() {
	c.Mesh.Queues = slices.Clone(c.Mesh.Queues)
	for i := range c.Mesh.Queues {
		q, path := &c.Mesh.Queues[i], fmt.Sprintf("mesh.queues[%d]", i)
		if q.Concurrency == 0 && !c.source.explicit(path+".concurrency") {
			q.Concurrency = 1
		}
		at := slices.IndexFunc(c.Agents.List, func(a AgentConfig) bool { return a.ID == q.Agent })
		if at < 0 {
			continue // Validate says so
		}
		a := c.Agents.List[at]
		if len(q.Gateways) == 0 {
			q.Gateways = a.Gateways
		}
		if len(q.Workers) == 0 {
			q.Workers = a.Gateways
		}
		if !c.source.explicit(path + ".ackTimeout") {
			q.AckTimeout = cmp.Or(q.AckTimeout, a.AckTimeout)
		}
	}
}

func (c *Config) normalizeAgents() {
	list := slices.Clone(c.Agents.List)
	for _, id := range c.entryOrder() {
		a := c.Agents.Entries[id]
		if a.ID == "" {
			a.ID = id
		}
		list = append(list, a)
	}
	c.Agents.List, c.Agents.Entries = list, nil
	def := c.Agents.Defaults
	// Nobody chose a runner, so one that fits the agent may be chosen.
	const kindAt = "agents.defaults.runner"
	noRunner := def.Runner.Kind == "relay" && !c.source.explicit(kindAt) && !c.source.explicit(kindAt+".kind")
	for i := range list {
		a := &list[i]
		if a.Model.Primary == "" && len(a.Model.Fallbacks) == 0 {
			a.Model = def.Model
		}
		a.Name = cmp.Or(a.Name, a.ID)
		a.Workspace = cmp.Or(a.Workspace, def.Workspace)
		if len(a.Gateways) == 0 {
			a.Gateways = []string{c.Mesh.Gateway}
		}
		if a.Runner.Kind == "" && !c.source.explicit(a.path+".runner.kind") {
			// What an agent says without a kind refines the default runner.
			own := a.Runner
			a.Runner = def.Runner
			cfgOverlay(reflect.ValueOf(&a.Runner).Elem(), reflect.ValueOf(own))
			if noRunner {
				specs, err := c.modelsOf(*a)
				switch {
				case err == nil && len(specs) > 0:
					a.Runner.Kind = runnerLLM
				case err != nil && err.noKey:
					a.keyless = err.message
				}
			}
		}
		// An explicit 0 stays, for Validate to refuse.
		if !c.source.explicit(a.path + ".maxConcurrent") {
			a.MaxConcurrent = cmp.Or(a.MaxConcurrent, def.MaxConcurrent)
		}
		if !c.source.explicit(a.path + ".ackTimeout") {
			a.AckTimeout = cmp.Or(a.AckTimeout, def.AckTimeout, c.Mesh.AckTimeout)
		}
		sandbox := def.Sandbox
		cfgOverlay(reflect.ValueOf(&sandbox).Elem(), reflect.ValueOf(a.Sandbox))
		a.Sandbox = sandbox
		if a.Subagents.AllowAgents == nil {
			a.Subagents.AllowAgents = def.Subagents.AllowAgents
		}
	}
}

// entryOrder is the order of agents.entries in the file, else of the alphabet.
func (c *Config) entryOrder() []string {
	ids := slices.Sorted(maps.Keys(c.Agents.Entries))
	slices.SortStableFunc(ids, func(a, b string) int {
		x, y := c.Origin(c.Agents.Entries[a].path), c.Origin(c.Agents.Entries[b].path)
		return cmp.Or(cmp.Compare(x.Line, y.Line), cmp.Compare(x.Col, y.Col))
	})
	return ids
}

// cfgOverlay writes the fields of over that are set into base.
func cfgOverlay(base, over reflect.Value) {
	for _, f := range cfgSchema(base.Type()).fields {
		b, o := base.Field(f.index), over.Field(f.index)
		switch {
		case f.typ.Kind() == reflect.Struct:
			cfgOverlay(b, o)
		case !o.IsZero():
			b.Set(o)
		}
	}
}

// cfgDefaultGatewayID is "<short host name>-gateway", made of characters an id may have.
func cfgDefaultGatewayID(host string, err error) string {
	const suffix = "-gateway"
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	host = strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, host)
	host = strings.Trim(host, "-")
	if err != nil || host == "" {
		host = "local"
	}
	return host[:min(len(host), 63-len(suffix))] + suffix
}

// cfgExpandHome replaces a leading ~ by the home directory.
func cfgExpandHome(path string, env cfgEnv) string {
	if path != "~" && !strings.HasPrefix(path, "~/") {
		return path
	}
	home, _ := env("HOME")
	if home == "" {
		var err error
		if home, err = os.UserHomeDir(); err != nil {
			return path
		}
	}
	return filepath.Join(home, path[1:])
}
