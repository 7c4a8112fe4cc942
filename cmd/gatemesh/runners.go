package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/a2a"
	"github.com/gatemesh/gatemesh/agent/anthropic"
	exectool "github.com/gatemesh/gatemesh/agent/command"
	"github.com/gatemesh/gatemesh/agent/infra"
	"github.com/gatemesh/gatemesh/agent/mcptools"
	"github.com/gatemesh/gatemesh/agent/openai"
	"github.com/gatemesh/gatemesh/agent/openclaw"
	"github.com/gatemesh/gatemesh/bus"
	store "github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/gateway"
)

// The capabilities of the checks runner.
const (
	infraCheck = "infra.check"
	nodeReport = "node.report"
)

// runners are all kinds that this binary knows: the agent package's own, and those that
// need something outside.
func runners(consul gateway.ConsulConfig, tools ...agent.ToolSource) agent.Runners {
	r := agent.Builtin()
	r["checks"] = func(spec agent.Spec, deps agent.Deps) (bus.Handler, error) { return newChecks(spec, deps, consul) }
	r["a2a"], r["openclaw"], r["exec"] = a2a.New, openclaw.New(buildVersion().Version), exectool.NewRunner
	client := modelClient()
	r["llm"] = agent.NewLLM(agent.Vendors{
		agent.APIOpenAI:    func(s agent.ModelSpec) (agent.Model, error) { return openai.New(s, client) },
		agent.APIAnthropic: func(s agent.ModelSpec) (agent.Model, error) { return anthropic.New(s, client) },
	}, append([]agent.ToolSource{exectool.Tools}, tools...)...)
	return r
}

// mcpServers are the servers whose tools the agents of a configuration have.
func mcpServers(cfg *gateway.Config, log hclog.Logger) *mcptools.Servers {
	var list []mcptools.Server
	for name, s := range cfg.MCP.Servers {
		if s.Disabled {
			continue
		}
		list = append(list, mcptools.Server{
			Name: name, Command: s.Command, Args: s.Args, Env: texts(s.Env), Dir: s.Cwd, URL: s.URL, SSE: s.Transport == "sse", Headers: texts(s.Headers),
			Timeout: time.Duration(s.TimeoutSec) * time.Second,
		})
	}
	return mcptools.New(list, buildVersion().Version, log)
}

// texts are values as an environment has them: OpenClaw's may be numbers and booleans.
func texts(values map[string]any) map[string]string {
	m := make(map[string]string, len(values))
	for name, v := range values {
		m[name] = fmt.Sprint(v)
	}
	return m
}

// modelClient is what all models are asked through. It follows no redirect: keys travel in headers that
// net/http would hand on.
func modelClient() *http.Client {
	return &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// checkOptions is what an agent with the runner checks looks at.
func checkOptions(r agent.Runner, consul gateway.ConsulConfig) (o infra.Options, onlyNode bool) {
	looksAt := func(part string) bool { return len(r.Checks) == 0 || slices.Contains(r.Checks, part) }
	o = infra.Options{
		Consul:   consulClient(consul),
		Nomad:    nomadClient(r.Nomad),
		NoConsul: !looksAt("consul"),
		NoNomad:  !looksAt("nomad"),
		Timeout:  r.Timeout,

		IgnoreCheck: store.IsProbe,
	}
	if !looksAt("node") { // it is told of, and nothing of it is trouble
		o.MaxLoadPerCore, o.MaxMemoryPercent, o.MaxDiskPercent = -1, -1, -1
	}
	return o, o.NoConsul && o.NoNomad
}

// newChecks makes the runner that looks at Consul, Nomad and the own node.
func newChecks(spec agent.Spec, deps agent.Deps, consul gateway.ConsulConfig) (bus.Handler, error) {
	o, onlyNode := checkOptions(spec.Runner, consul)
	checker, err := infra.New(o)
	if err != nil {
		return nil, err
	}
	return agent.Checks(func(ctx context.Context, capability string) (agent.Finding, error) {
		if capability == "" {
			capability = infraCheck
			if onlyNode {
				capability = nodeReport
			}
		}
		switch capability {
		case infraCheck:
			r := checker.Check(ctx)
			return agent.Finding{Text: r.Text(), Result: r.Summary(), Report: r}, nil
		case nodeReport:
			r := checker.Node(ctx)
			return agent.Finding{Text: r.Text(), Result: string(r.Status), Report: r}, nil
		}
		return agent.Finding{}, fmt.Errorf("%w: %q; this agent does %s and %s", agent.ErrNotOffered, capability, infraCheck, nodeReport)
	}, spec, deps), nil
}

// consulClient is how the check reaches Consul; nil leaves it all to the environment, and
// so do empty fields.
func consulClient(c gateway.ConsulConfig) *consulapi.Config {
	if c == (gateway.ConsulConfig{}) {
		return nil
	}
	return &consulapi.Config{Address: c.Address, Token: c.Token, TokenFile: c.TokenFile, Datacenter: c.Datacenter}
}

// nomadClient is the same for Nomad. Its library fills in nothing, hence the default
// configuration, which has the environment's; the address stays empty unless somebody
// named one, because only then is Nomad missed when it is silent.
func nomadClient(n agent.Nomad) *nomadapi.Config {
	if n == (agent.Nomad{}) {
		return nil
	}
	cfg := nomadapi.DefaultConfig()
	cfg.Address = n.Address
	if n.Token != "" {
		cfg.SecretID = n.Token
	}
	return cfg
}
