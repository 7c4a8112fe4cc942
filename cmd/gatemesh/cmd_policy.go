package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
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
	c := group("policy", "Say which agent may ask what of which, and explain what holds", a.policyExplainCommand(), a.policyPublishCommand(), a.policyShowCommand())
	c.Long = `Say which agent may ask what of which, and explain what holds.

A gateway goes by its own rules first (mesh.policy.rules), then by those of the mesh (openclaw/policy in the store, signed by
the operator), then by mesh.policy.default. The first rule that is about a message decides. So a node can be stricter or
more open than the mesh, and what is the same everywhere is written once. Rules are about messages within one gateway, too.

  gatemesh policy publish rules.json5      sign rules and put them into the store
  gatemesh policy show                     what lies there, and whether it counts
  gatemesh policy explain --from jerry@jerry-gateway --to bobby --capability infra.check`
	return c
}

func (a *app) policyPublishCommand() *cobra.Command {
	f := &trustFlags{}
	return f.bind(&cobra.Command{
		Use: "publish FILE", Short: "Sign the mesh's rules and put them into the store",
		Long: `Sign the mesh's rules and put them into the store, as the next version. FILE is JSON5: { rules: [ ... ] } with rules as in
mesh.policy.rules; - is standard input. Gateways take them up with their next heartbeat, keep them, and never go back
to an older version. To take back a change, publish the rules of before. { rules: [] } leaves each gateway to its own.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			rules, err := a.readRules(args[0])
			if err != nil {
				return err
			}
			return a.asOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				if err := o.needsSet(); err != nil {
					return err
				}
				p, err := o.publishPolicy(ctx, rules, o.key)
				if err != nil {
					return err
				}
				return a.showPolicy(p, o.key.ID(), "")
			})
		}),
	})
}

// readRules reads a file of rules.
func (a *app) readRules(file string) ([]byte, error) {
	var text []byte
	var err error
	if file == "-" {
		text, err = io.ReadAll(io.LimitReader(a.in, trust.MaxPolicy+1))
	} else {
		text, err = os.ReadFile(file)
	}
	if err == nil && len(text) > trust.MaxPolicy {
		err = fmt.Errorf("%s: more than %d bytes", file, trust.MaxPolicy)
	}
	if err == nil {
		text, err = gateway.ParsePolicy(file, text)
	}
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return text, nil
}

// policyView is what "policy show --json" prints.
type policyView struct {
	Mesh     string          `json:"mesh"`
	Version  uint64          `json:"version"`
	IssuedAt envelope.Time   `json:"issued_at"`
	SignedBy string          `json:"signed_by"`
	Rules    json.RawMessage `json:"rules"`
	// Problem is why no gateway goes by it.
	Problem string `json:"problem,omitempty"`
}

func (a *app) showPolicy(pol *trust.Policy, by, problem string) error {
	p := a.printer()
	if a.asJSON {
		return p.json(policyView{pol.Mesh, pol.Version, pol.IssuedAt, by, pol.Rules, problem})
	}
	p.printf("policy %d of the mesh %s, signed by %s %s\n", pol.Version, pol.Mesh, by, ago(pol.IssuedAt))
	if problem != "" {
		p.printf("%s %s\n", p.paint(red, "it does not count:"), problem)
	}
	rules, err := gateway.RulesOf(pol)
	if err != nil {
		return &exitError{exitFailed, err}
	}
	t := newTable("RULE", "NAME", "ACTION", "FROM", "TO", "CAPABILITY", "RATE", "MAX PAYLOAD")
	for i, r := range rules {
		size := ""
		if r.MaxPayload > 0 {
			size = r.MaxPayload.String()
		}
		t.add(strconv.Itoa(i+1), r.Name, r.Action, orStar(r.From), orStar(r.To), orStar(r.Capability), r.Rate, size)
	}
	p.table(t, "it has no rules: each gateway goes by its own")
	return nil
}

func orStar(pattern string) string {
	if pattern == "" {
		return "*"
	}
	return pattern
}

func (a *app) policyShowCommand() *cobra.Command {
	f := &trustFlags{}
	c := &cobra.Command{
		Use: "show", Short: "Show the mesh's rules that lie in the store, and whether they count",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.asReader(cmd.Context(), f, func(ctx context.Context, o *operator) error {
				m, err := o.readPolicy(ctx)
				if err != nil {
					return err
				}
				if m.policy == nil {
					return failf(exitFailed, "the mesh %s has no policy in the store: each gateway goes by its own rules (gatemesh policy publish)", o.mesh)
				}
				problem := ""
				if !slices.Contains(o.set.Operators, trust.EncodePublic(m.by)) {
					problem = fmt.Sprintf("its signer is not an operator of trust set %d", o.set.Version)
				}
				if err := a.showPolicy(m.policy, trust.KeyID(m.by), problem); err != nil || problem == "" {
					return err
				}
				return quiet(exitFailed)
			})
		}),
	}
	c.Flags().StringVar(&f.config, "config", "", configFlagHelp)
	_ = c.MarkFlagFilename("config", "json", "json5")
	return c
}

// meshRules are the rules of the mesh that explain goes by: those of a file, or those that this node's gateway has pinned.
func (a *app) meshRules(cfg *gateway.Config, file string) (*trust.Policy, error) {
	if file == "" {
		p, err := gateway.PinnedPolicy(cfg.Mesh.DataDir, cfg.Mesh.Cluster.ID)
		if errors.Is(err, fs.ErrPermission) {
			return nil, failf(exitUsage, "%w: ask as the gateway's user, or name the mesh's rules with --file", err)
		}
		if err != nil {
			return nil, &exitError{exitUsage, err}
		}
		return p, nil
	}
	rules, err := a.readRules(file)
	if err != nil {
		return nil, err
	}
	return &trust.Policy{Mesh: cfg.Mesh.Cluster.ID, Version: 1, Rules: rules}, nil
}

func (a *app) policyExplainCommand() *cobra.Command {
	var file, mesh, from, to, capability string
	var set []string
	var size int
	var operator bool
	explain := &cobra.Command{
		Use:   "explain --from AGENT@GATEWAY --to AGENT [--capability NAME]",
		Short: "Say whether a message would be allowed, and by which rule",
		Long: `Say whether a message would be allowed here, and by which rule. It is the receiving gateway that judges, so read
the configuration of the node where the agent runs. The rules of the mesh are those that the gateway of this node has taken
up last (mesh.dataDir), or those of --file, which need not be published yet. Nothing is asked over the network. What a
rate leaves over at this moment only the running gateway knows.

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
			signed, err := a.meshRules(cfg, mesh)
			if err == nil && signed != nil {
				err = p.Add(signed)
			}
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
	f.StringVar(&mesh, "file", "", "file with the mesh's rules, instead of those that the gateway has taken up")
	f.StringVar(&from, "from", "", "who asks: AGENT@GATEWAY")
	f.StringVar(&to, "to", "", "the agent or queue that is asked")
	f.StringVar(&capability, "capability", "", "what is asked for (empty: a message without a capability)")
	f.IntVar(&size, "size", 0, "bytes of payload")
	f.BoolVar(&operator, "operator", false, "an order of that gateway's operator: redrive, purge, cancel")
	_ = explain.MarkFlagFilename("config", "json", "json5")
	_ = explain.MarkFlagFilename("file", "json", "json5")
	_ = explain.MarkFlagRequired("from")
	_ = explain.MarkFlagRequired("to")
	return explain
}
