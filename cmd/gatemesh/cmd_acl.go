package main

import (
	"cmp"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// aclFlags say whose rules are wanted, and of which mesh.
type aclFlags struct {
	role, config, gateway, node, service string
	gateways, agents, queues, workers    []string
}

func (a *app) aclCommand() *cobra.Command {
	var f aclFlags
	c := &cobra.Command{
		Use: "policy", Short: "Print the rules of a Consul ACL policy, as HCL",
		Long: `Print the rules of a Consul ACL policy, as HCL.

  gatemesh acl policy --config openclaw.json --node jerry     the gateway that this file makes on jerry
  gatemesh acl policy --gateway jerry-gateway --node jerry --agent jerry=jerry-gateway,bobby-gateway --agent billy=billy-gateway
  gatemesh acl policy --role viewer

A gateway's rules name every gateway and every inbox of the mesh, because Consul's rules know prefixes and no
patterns: one that comes or goes changes the rules of all. The roles are gateway, janitor (added to a gateway that
clears up after others), operator and viewer. With --config, ${NODE} is what --node says, and variables that are not
set here do no harm unless they stand in a name. Then, with the output in jerry.hcl:

  consul acl policy create -name gatemesh-jerry -rules @jerry.hcl`,
		Args: cobra.NoArgs,
		RunE: body(func(*cobra.Command, []string) error { return a.printPolicy(f) }),
	}
	c.Flags().StringVar(&f.role, "role", "gateway", "gateway, janitor, operator or viewer")
	c.Flags().StringVar(&f.config, "config", "", "take gateway, agents, queues and service from this file")
	c.Flags().StringVar(&f.gateway, "gateway", "", "whose rules (role gateway)")
	c.Flags().StringVar(&f.node, "node", "", "name of the Consul node that the gateway asks (role gateway; see: consul members)")
	c.Flags().StringArrayVar(&f.agents, "agent", nil, "an agent and the gateways that may own it, as bobby=bobby-gateway,jerry-gateway (repeatable)")
	c.Flags().StringArrayVar(&f.queues, "queue", nil, "a task queue and the gateways that may own it, as nightly=bobby-gateway (repeatable)")
	c.Flags().StringArrayVar(&f.workers, "worker", nil, "a task queue and the gateways that do its work, as nightly=bobby-gateway,billy-gateway (repeatable)")
	c.Flags().StringSliceVar(&f.gateways, "gateways", nil, "further gateways of the mesh, which own nothing")
	c.Flags().StringVar(&f.service, "service", "", `name in Consul's catalog (mesh.service.name; default "openclaw")`)
	_ = c.MarkFlagFilename("config", "json", "json5")
	return group("acl", "Make access rules for Consul", c)
}

func (a *app) printPolicy(f aclFlags) error {
	role := consul.Role(f.role)
	if !slices.Contains(consul.Roles, role) {
		return failf(exitUsage, "--role %q: gateway, janitor, operator or viewer", f.role)
	}
	mesh := bus.Topology{Gateways: f.gateways, Agents: map[string][]string{}, Queues: map[string][]string{}, Workers: map[string][]string{}}
	if f.config != "" {
		if err := a.meshOf(&f, mesh); err != nil {
			return err
		}
	}
	for flag, to := range map[string]struct {
		given []string
		into  map[string][]string
	}{"--agent": {f.agents, mesh.Agents}, "--queue": {f.queues, mesh.Queues}, "--worker": {f.workers, mesh.Workers}} {
		for _, s := range to.given {
			name, gws, ok := strings.Cut(s, "=")
			if !ok || name == "" || gws == "" {
				return failf(exitUsage, "%s %q: write NAME=GATEWAY,GATEWAY", flag, s)
			}
			to.into[name] = append(to.into[name], strings.Split(gws, ",")...)
		}
	}
	if bad, ok := mesh.Invalid(); ok {
		return failf(exitUsage, "%q is not the name of a gateway, an agent or a queue: 1 to 63 of a-z, 0-9 and -", bad)
	}
	opt := consul.PolicyOptions{Role: role, Gateway: f.gateway, Node: f.node, Mesh: mesh, Service: cmp.Or(f.service, "openclaw")}
	if role == consul.RoleGateway {
		switch {
		case !envelope.ValidName(f.gateway):
			return failf(exitUsage, "--gateway %q: name the gateway whose rules these are, as --gateway jerry-gateway (or --config FILE)", f.gateway)
		case f.node == "":
			return failf(exitUsage, "name the Consul node that %s asks, as --node jerry (see: consul members)", f.gateway)
		case !slices.Contains(mesh.All(), f.gateway):
			return failf(exitUsage, "%s is not in the mesh: name its agents with --agent, or itself with --gateways", f.gateway)
		}
	}
	a.printer().printf("%s", consul.Policy(opt))
	return nil
}

// unset stands for variables of a configuration that are not set where rules are made. It is a number
// because ports are among them, and in no name by chance.
const unset = "54329"

// meshOf reads gateway, agents, queues and service of a configuration, where flags say nothing.
func (a *app) meshOf(f *aclFlags, mesh bus.Topology) error {
	cfg, _, err := gateway.LoadConfig(f.config, func(name string) (string, bool) {
		if v, ok := a.env(name); ok {
			return v, true
		}
		if name == "NODE" && f.node != "" {
			return f.node, true
		}
		return unset, true
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failf(exitUsage, "no configuration at %s", f.config)
	case err != nil:
		return &exitError{exitUsage, err}
	}
	cfg.Normalize()
	f.gateway = cmp.Or(f.gateway, cfg.Mesh.Gateway)
	f.service = cmp.Or(f.service, cfg.Mesh.Service.Name)
	names := []string{f.gateway, f.service}
	for _, ag := range cfg.Agents.List {
		mesh.Agents[ag.ID] = ag.Gateways
		names = append(append(names, ag.ID), ag.Gateways...)
	}
	for _, q := range cfg.Mesh.Queues {
		mesh.Queues[q.ID], mesh.Workers[q.ID] = q.Gateways, q.Workers
		names = append(append(append(names, q.ID), q.Gateways...), q.Workers...)
	}
	// Duties without names of gateways may be anybody's that has them configured: all that this file knows of.
	anybody := []string{f.gateway}
	for _, gws := range []map[string][]string{mesh.Agents, mesh.Queues, mesh.Workers} {
		for _, list := range gws {
			anybody = append(anybody, list...)
		}
	}
	anybody = append(anybody, f.gateways...)
	slices.Sort(anybody)
	anybody = slices.Compact(anybody)
	for _, c := range cfg.ChannelAccounts() {
		if c.Enabled {
			mesh.Agents[c.Inbox()] = orAnybody(c.Gateways, anybody)
			names = append(append(names, c.Inbox()), c.Gateways...)
		}
	}
	if cfg.Cron.Enabled {
		mesh.Agents[gateway.CronInbox] = anybody
	}
	for _, n := range names {
		if strings.Contains(n, unset) {
			return failf(exitUsage, "a name in %s needs a variable that is not set: %s (${NODE} is what --node says)", f.config, strings.ReplaceAll(n, unset, "${...}"))
		}
	}
	return nil
}

func orAnybody(gateways, anybody []string) []string {
	if len(gateways) == 0 {
		return anybody
	}
	return gateways
}
