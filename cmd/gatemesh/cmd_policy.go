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

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) policyCommand() *cobra.Command {
	c := group("policy", "Say which agent may ask what of which, and explain what holds", a.policyExplainCommand(), a.policyPublishCommand(), a.policyShowCommand())
	c.Long = `Say which agent may ask what of which, and explain what holds.

A gateway goes by its own rules first (mesh.policy.rules), then by those of the mesh (openclaw/policy in the store, signed by
the operator), then by mesh.policy.default. The first rule that is about a message decides. So a node can be stricter or
more open than the mesh, and what is the same everywhere is written once. Rules are about messages within one gateway, too.

  gatemesh policy publish rules.json5      sign rules and put them into the store
  gatemesh policy show                     what lies there, and whether it counts
  gatemesh policy explain --from jerry --to bobby --capability infra.check`
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
