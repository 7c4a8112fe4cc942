package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// callTimeout bounds a call that waits for nobody.
const callTimeout = 10 * time.Second

// call runs f with a client, within --timeout.
func (a *app) call(ctx context.Context, f func(ctx context.Context, c *client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, cancel := a.within(ctx, callTimeout)
	defer cancel()
	return f(ctx, c)
}

func (a *app) agentsCommand() *cobra.Command {
	var capability string
	c := &cobra.Command{
		Use: "agents", Short: "List the agents of the mesh, who owns them and what they can do",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				agents, err := c.agents(ctx, capability)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(agents)
				}
				a.printAgents(agents)
				return nil
			})
		}),
	}
	c.Flags().StringVar(&capability, "capability", "", "only those that can do this, as infra.check")
	return c
}

func (a *app) printAgents(agents []bus.AgentInfo) {
	t := newTable("AGENT", "GATEWAY", "STATUS", "HEARTBEAT", "CAPABILITIES", "DESCRIPTION")
	for _, ag := range agents {
		t.add(ag.ID, ag.Gateway, cell{ag.Status, statusColour(ag.Status)}, ago(ag.LastHeartbeat), strings.Join(ag.Capabilities, ", "), cut(ag.Description, 60))
	}
	a.printer().table(t, "no agents are known (an agent appears when a gateway serves it: agents.list in its configuration)")
}

func (a *app) gatewaysCommand() *cobra.Command {
	return &cobra.Command{
		Use: "gateways", Short: "List the gateways of the mesh",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				gateways, err := c.gateways(ctx)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(gateways)
				}
				t := newTable("GATEWAY", "STATUS", "HEARTBEAT", "AGENTS", "URL", "VERSION")
				for _, g := range gateways {
					t.add(g.Name, cell{g.Status, statusColour(g.Status)}, ago(g.LastHeartbeat), strings.Join(g.Agents, ", "), g.URL, g.Version)
				}
				a.printer().table(t, "no gateways are known")
				return nil
			})
		}),
	}
}

func (a *app) inboxCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inbox [AGENT]", Short: "Show what waits in the inboxes, and who drains them",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeAgents,
		RunE: body(func(cmd *cobra.Command, args []string) error {
			agent := ""
			if len(args) == 1 {
				if agent = args[0]; !envelope.ValidName(agent) {
					return failf(exitUsage, "%q is not the name of an agent (gatemesh agents lists them)", agent)
				}
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				inboxes, err := c.inboxes(ctx, agent)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(inboxes)
				}
				a.printInboxes(inboxes, agent != "")
				return nil
			})
		}),
	}
}

func (a *app) printInboxes(inboxes []bus.InboxInfo, lanes bool) {
	p := a.printer()
	t := newTable("INBOX", "OWNER", "WAITING", "PENDING", "DEAD LETTERS", "SOURCES")
	for _, i := range inboxes {
		var from []string
		for _, l := range i.Lanes {
			from = append(from, l.From)
		}
		t.add(i.Agent, i.Owner, i.Waiting, i.Pending, i.DeadLetters, strings.Join(from, ", "))
	}
	p.table(t, "no inboxes yet (one appears with its agent)")
	if !lanes || len(inboxes) != 1 || len(inboxes[0].Lanes) == 0 {
		return
	}
	p.printf("\n")
	t = newTable("FROM", "NEWEST", "TAKEN", "WAITING")
	for _, l := range inboxes[0].Lanes {
		t.add(l.From, l.Seq, l.Cursor, l.Waiting)
	}
	p.table(t, "")
}

func statusColour(s string) colour {
	switch s {
	case bus.StatusHealthy, bus.StatusActive:
		return green
	case bus.StatusDraining:
		return yellow
	}
	return red
}

// ago is how long a moment lies back, by this machine's clock.
func ago(t envelope.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := time.Since(t.Time)
	if d < 0 {
		d = 0
	}
	return d.Truncate(time.Second).String() + " ago"
}
