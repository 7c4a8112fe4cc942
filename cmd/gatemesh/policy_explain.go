package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// policyReport is what "policy explain --json" prints: of several cases the first that is denied, or the first.
type policyReport struct {
	policyCase
	// Cases are all of them, when there is more than one.
	Cases []policyCase `json:"cases,omitempty"`
}

// policyCase is one pair of a gateway that may send and one that may judge.
type policyCase struct {
	From       string `json:"from"`
	To         string `json:"to"`
	Capability string `json:"capability"`
	Gateway    string `json:"gateway"` // whose policy
	gateway.Verdict
}

type policyExplanation struct {
	config, mesh, at     string
	from, to, capability string
	set                  []string
	size                 int
	operator             bool
}

func (a *app) policyExplainCommand() *cobra.Command {
	x := &policyExplanation{}
	explain := &cobra.Command{
		Use:   "explain --from AGENT[@GATEWAY] --to AGENT [--capability NAME]",
		Short: "Say whether a message would be allowed, and by which rule",
		Long: `Say whether a message would be allowed, and by which rule. The gateway that has the agent's inbox judges, and that is any of those
where the agent may run: so each of them is asked, as the configuration that is read here names them, unless --at names one.
Without a gateway in --from, each where that agent may run is taken to send. Nodes whose configurations differ: ask with each.

The rules of the mesh are those that the gateway of this node has taken up last (mesh.dataDir), or those of --file, which need not
be published yet. Nothing is asked over the network. What a rate leaves over at this moment only the running gateway knows.

Status 0: allowed, by each gateway. 1: not allowed. 2: bad input or configuration.`,
		Example: `  gatemesh policy explain --from jerry --to bobby --capability infra.check
  gatemesh policy explain --from jerry@jerry-gateway --to bobby --at bobby-gateway
  gatemesh policy explain --from user@billy-gateway --to bobby --operator`,
		Args: cobra.NoArgs,
		RunE: body(func(*cobra.Command, []string) error {
			cases, err := a.explain(x)
			if err != nil {
				return err
			}
			return a.showExplained(cases)
		}),
	}
	f := explain.Flags()
	f.StringVar(&x.config, "config", "", configFlagHelp)
	f.StringArrayVar(&x.set, "set", nil, "override a key, as --set mesh.policy.default=allow (repeatable)")
	f.StringVar(&x.mesh, "file", "", "file with the mesh's rules, instead of those that the gateway has taken up")
	f.StringVar(&x.from, "from", "", "who asks: AGENT, or AGENT@GATEWAY")
	f.StringVar(&x.to, "to", "", "the agent or queue that is asked")
	f.StringVar(&x.at, "at", "", "the gateway that judges (each where the agent may run)")
	f.StringVar(&x.capability, "capability", "", "what is asked for (empty: a message without a capability)")
	f.IntVar(&x.size, "size", 0, "bytes of payload")
	f.BoolVar(&x.operator, "operator", false, "an order of that gateway's operator: redrive, purge, cancel")
	_ = explain.MarkFlagFilename("config", "json", "json5")
	_ = explain.MarkFlagFilename("file", "json", "json5")
	_ = explain.MarkFlagRequired("from")
	_ = explain.MarkFlagRequired("to")
	return explain
}

func (a *app) explain(x *policyExplanation) ([]policyCase, error) {
	sender, err := envelope.ParseAddress(x.from)
	switch {
	case err != nil:
		return nil, failf(exitUsage, "--from %q: %w", x.from, err)
	case x.to == "" || !envelope.ValidName(x.to):
		return nil, failf(exitUsage, "--to %q: name the agent that is asked", x.to)
	case x.at != "" && !envelope.ValidName(x.at):
		return nil, failf(exitUsage, "--at %q: name a gateway", x.at)
	case x.size < 0:
		return nil, failf(exitUsage, "--size %d: want a number of bytes", x.size)
	}
	cfg, _, err := a.loadConfig(a.configPath(x.config), x.set)
	if err != nil {
		return nil, err
	}
	signed, err := a.meshRules(cfg, x.mesh)
	if err != nil {
		return nil, err
	}
	senders := []string{sender.Gateway}
	if sender.Gateway == "" {
		if senders = homesOf(cfg, sender.Agent); len(senders) == 0 {
			return nil, failf(exitUsage, "--from %q: no agent of this configuration; say through which gateway, as %s@%s", x.from, sender.Agent, cfg.Mesh.Gateway)
		}
	}
	judges := []string{x.at}
	if x.at == "" {
		if judges = homesOf(cfg, x.to); len(judges) == 0 {
			judges = []string{cfg.Mesh.Gateway}
		}
	}
	var cases []policyCase
	for _, judge := range judges {
		p, err := gateway.NewPolicy(cfg.Mesh.Policy, judge)
		if err == nil && signed != nil {
			err = p.Add(signed)
		}
		if err != nil {
			return nil, err
		}
		for _, gw := range senders {
			from := envelope.Address{Agent: sender.Agent, Gateway: gw}
			cases = append(cases, policyCase{From: from.String(), To: x.to, Capability: x.capability, Gateway: judge, Verdict: p.Explain(bus.Invocation{
				From: from, To: x.to, Gateway: judge, Capability: x.capability, Size: x.size, Operator: x.operator,
			})})
		}
	}
	return cases, nil
}

// homesOf are the gateways that may have an agent's or a queue's inbox, as the configuration says; none for one that it does not name.
func homesOf(cfg *gateway.Config, name string) []string {
	for _, g := range cfg.Agents.List {
		if g.ID == name {
			return g.Gateways
		}
	}
	for _, q := range cfg.Mesh.Queues {
		if q.ID == name {
			return q.Gateways
		}
	}
	return nil
}

func (a *app) showExplained(cases []policyCase) error {
	out := a.printer()
	r := policyReport{policyCase: cases[0]}
	if i := slices.IndexFunc(cases, func(c policyCase) bool { return !c.Allowed }); i >= 0 {
		r.policyCase = cases[i]
	}
	if len(cases) > 1 {
		r.Cases = cases
	}
	if a.asJSON {
		if err := out.json(r); err != nil {
			return err
		}
	} else {
		for _, c := range cases {
			word := out.paint(green, "allowed")
			if !c.Allowed {
				word = out.paint(red, "denied")
			}
			if len(cases) > 1 {
				out.printf("%s from %s at %s: %s\n", word, c.From, c.Gateway, printable(c.Reason))
			} else {
				out.printf("%s by %s: %s\n", word, c.Gateway, printable(c.Reason))
			}
		}
	}
	if !r.Allowed {
		return quiet(exitFailed)
	}
	return nil
}
