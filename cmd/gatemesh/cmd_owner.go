package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) ownerCommand() *cobra.Command {
	return group("owner", "List who owns which duty, and move duties", a.ownerListCommand(), a.ownerTransferCommand(), a.ownerReleaseCommand())
}

func (a *app) ownerListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the duties, who owns them, who may, and who is next",
		Long: `List the duties of the mesh: agents, queues, chat accounts. One gateway owns each.

MAY OWN IT lists the gateways that may, best choice first; those in brackets are not there now.
NEXT has it when its owner stops or dies. Nothing moves back by itself when a better choice
returns: gatemesh owner transfer does that.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				owners, err := c.owners(ctx)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(owners)
				}
				a.printOwners(owners)
				return nil
			})
		}),
	}
}

func (a *app) printOwners(owners []bus.OwnerInfo) {
	t := newTable("DUTY", "OWNER", "SINCE", "TOKEN", "NEXT", "MAY OWN IT")
	for _, o := range owners {
		owner, since, token := cell{o.Owner, green}, "", ""
		if o.Token == 0 {
			owner = cell{"nobody", red}
		} else {
			since, token = ago(o.Since), fmt.Sprint(o.Token)
		}
		var may []string
		for _, c := range o.Candidates {
			name := c.Gateway
			if !c.Live {
				name = "(" + name + ")"
			}
			may = append(may, name)
		}
		t.add(o.Duty, owner, since, token, o.Next, strings.Join(may, ", "))
	}
	a.printer().table(t, "no duties are known (one appears when a gateway may own it: agents, mesh.queues, channels in its configuration)")
}

func (a *app) ownerTransferCommand() *cobra.Command {
	var o gateway.OwnerOrder
	c := &cobra.Command{
		Use: "transfer DUTY --to GATEWAY", Short: "Have a gateway take a duty over from its owner",
		Long: `Have a gateway take a duty over. Its owner begins nothing new, lets what runs come to its end (for
5 s at most), and releases it; no message is lost and none is handled twice.

--force takes it from an owner that is dead, hangs, or is cut off: at once, without asking it. What
it was at goes on at the next owner as after a crash; whatever it still writes is refused.

` + exitHelp,
		Example: `  gatemesh owner transfer jerry --to bobby-gateway
  gatemesh owner transfer channel-slack-default --to bobby-gateway --force`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDuties,
		RunE: body(func(cmd *cobra.Command, args []string) error {
			if !envelope.ValidName(o.To) {
				return failf(exitUsage, "owner transfer needs --to GATEWAY (gatemesh owner list says who may own %s)", args[0])
			}
			return a.moveDuty(cmd.Context(), args[0], "transfer", o)
		}),
	}
	a.ownerFlags(c, &o)
	c.Flags().StringVar(&o.To, "to", "", "the gateway that is to have it")
	_ = c.RegisterFlagCompletionFunc("to", a.completeCandidates)
	return c
}

func (a *app) ownerReleaseCommand() *cobra.Command {
	var o gateway.OwnerOrder
	c := &cobra.Command{
		Use: "release DUTY", Short: "Have the owner of a duty hand it to whoever is next",
		Long: `Have the owner of a duty hand it to whoever is next (gatemesh owner list), as owner transfer does.
It does not take it back for as long as another one has it.

` + exitHelp,
		Example:           "  gatemesh owner release jerry",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDuties,
		RunE: body(func(cmd *cobra.Command, args []string) error {
			return a.moveDuty(cmd.Context(), args[0], "release", o)
		}),
	}
	a.ownerFlags(c, &o)
	return c
}

func (a *app) ownerFlags(c *cobra.Command, o *gateway.OwnerOrder) {
	c.Flags().BoolVar(&o.Force, "force", false, "take it from an owner that does not answer")
	c.Flags().StringVar(&o.By, "by", "", "who wants it; it stays in the log (default: operator)")
}

func (a *app) moveDuty(ctx context.Context, duty, how string, o gateway.OwnerOrder) error {
	if !envelope.ValidName(duty) {
		return failf(exitUsage, "%q is not the name of a duty (gatemesh owner list)", duty)
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	c, err := a.client()
	if err != nil {
		return err
	}
	change, err := c.moveDuty(ctx, duty, how, o, a.timeoutOr(gateway.DefaultWait))
	switch {
	case hasCode(err, gateway.CodeTimeout):
		return failf(exitTimeout, "%w (gatemesh owner list)", err)
	case hasCode(err, gateway.CodeNotFound):
		return failf(exitUsage, "%w (gatemesh owner list)", err)
	case err != nil:
		return err
	}
	if a.asJSON {
		return a.printer().json(change)
	}
	if change.From == change.To {
		a.printer().printf("%s is owned by %s already\n", change.Duty, change.To)
		return nil
	}
	a.printer().printf("%s: %s owns it now, in the place of %s\n", change.Duty, change.To, change.From)
	return nil
}

// quickOwners asks for completions.
func (a *app) quickOwners(cmd *cobra.Command) []bus.OwnerInfo {
	c, err := a.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	owners, err := c.owners(ctx)
	if err != nil {
		return nil
	}
	return owners
}

func (a *app) completeDuties(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, o := range a.quickOwners(cmd) {
		if len(args) == 0 && strings.HasPrefix(o.Duty, typed) {
			out = append(out, o.Duty+"\towned by "+o.Owner)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeCandidates offers the live gateways that may own the duty, or any duty when none is named yet.
func (a *app) completeCandidates(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	var out []string
	seen := map[string]bool{}
	for _, o := range a.quickOwners(cmd) {
		if len(args) > 0 && o.Duty != args[0] {
			continue
		}
		for _, c := range o.Candidates {
			if c.Live && !seen[c.Gateway] && (len(args) == 0 || c.Gateway != o.Owner) && strings.HasPrefix(c.Gateway, typed) {
				seen[c.Gateway] = true
				out = append(out, c.Gateway)
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
