package main

import (
	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// policyReport is what "policy explain --json" prints.
type policyReport struct {
	From       string `json:"from"`
	To         string `json:"to"`
	Capability string `json:"capability"`
	Gateway    string `json:"gateway"` // whose policy
	gateway.Verdict
}

func (a *app) policyCommand() *cobra.Command {
	var file, from, to, capability string
	var set []string
	var size int
	var operator bool
	explain := &cobra.Command{
		Use:   "explain --from AGENT@GATEWAY --to AGENT [--capability NAME]",
		Short: "Say whether a message would be allowed, and by which rule",
		Long: `Say whether a message would be allowed here, and by which rule. It is the receiving gateway that judges, so read
the configuration of the node where the agent runs. Nothing is asked over the network. What a rate leaves over at this
moment only the running gateway knows.

Status 0: allowed. 1: not allowed. 2: bad input or configuration.`,
		Example: `  gatemesh policy explain --from jerry@jerry-gateway --to bobby --capability infra.check
  gatemesh policy explain --from user@billy-gateway --to bobby --operator`,
		Args: cobra.NoArgs,
		RunE: body(func(*cobra.Command, []string) error {
			sender, err := envelope.ParseAddress(from)
			if err != nil {
				return failf(exitUsage, "--from %q: %w", from, err)
			}
			switch {
			case sender.Gateway == "":
				return failf(exitUsage, "--from %q: say through which gateway, as jerry@jerry-gateway", from)
			case to == "" || !envelope.ValidName(to):
				return failf(exitUsage, "--to %q: name the agent that is asked", to)
			case size < 0:
				return failf(exitUsage, "--size %d: want a number of bytes", size)
			}
			cfg, _, err := a.loadConfig(a.configPath(file), set)
			if err != nil {
				return err
			}
			p, err := gateway.NewPolicy(cfg.Mesh.Policy, cfg.Mesh.Gateway)
			if err != nil {
				return err
			}
			r := policyReport{From: from, To: to, Capability: capability, Gateway: cfg.Mesh.Gateway, Verdict: p.Explain(bus.Invocation{
				From: sender, To: to, Gateway: cfg.Mesh.Gateway, Capability: capability, Size: size, Operator: operator,
			})}
			out := a.printer()
			if a.asJSON {
				err = out.json(r)
			} else {
				word := out.paint(green, "allowed")
				if !r.Allowed {
					word = out.paint(red, "denied")
				}
				out.printf("%s by %s: %s\n", word, cfg.Mesh.Gateway, printable(r.Reason))
			}
			if err == nil && !r.Allowed {
				err = quiet(exitFailed)
			}
			return err
		}),
	}
	f := explain.Flags()
	f.StringVar(&file, "config", "", configFlagHelp)
	f.StringArrayVar(&set, "set", nil, "override a key, as --set mesh.policy.default=allow (repeatable)")
	f.StringVar(&from, "from", "", "who asks: AGENT@GATEWAY")
	f.StringVar(&to, "to", "", "the agent or queue that is asked")
	f.StringVar(&capability, "capability", "", "what is asked for (empty: a message without a capability)")
	f.IntVar(&size, "size", 0, "bytes of payload")
	f.BoolVar(&operator, "operator", false, "an order of that gateway's operator: redrive, purge, cancel")
	_ = explain.MarkFlagFilename("config", "json", "json5")
	_ = explain.MarkFlagRequired("from")
	_ = explain.MarkFlagRequired("to")
	return group("policy", "Explain which agent may ask what of which", explain)
}
