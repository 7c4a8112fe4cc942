package main

import (
	"context"
	"errors"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/agent/mcptools"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/gateway"
)

// A node is a gateway and the store that was opened for it.
type node struct {
	*gateway.Gateway
	store bus.Store
	tools *mcptools.Servers
}

// newNode assembles the gateway of a configuration: the one place that knows both the
// vendors' packages and the gateway.
func newNode(cfg *gateway.Config, log hclog.Logger) (*node, error) {
	s, err := openStore(cfg, log)
	if err != nil {
		return nil, err
	}
	n, err := newNodeOn(s, cfg, log, false, cfg.Mesh.DataDir)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return n, nil
}

// newNodeOn is newNode on a store that is open; stop closes it. With failFast a store
// that cannot be reached is an error of the start, instead of something to wait for. state is where it keeps its key;
// "" is nowhere.
func newNodeOn(s bus.Store, cfg *gateway.Config, log hclog.Logger, failFast bool, state string) (*node, error) {
	tools := mcpServers(cfg, log)
	g, err := gateway.New(cfg, gateway.Deps{
		Store: s, Runners: runners(cfg.Mesh.Consul, tools.Source), Channels: channels(), MCP: mcpAt(buildVersion().Version), A2A: a2aAt(buildVersion().Version), OpenClaw: openClawAt(buildVersion().Version), Logger: log, Version: buildVersion().Version, FailFast: failFast, StateDir: state,
	})
	if err != nil {
		// What New refuses is in the configuration: it touches nothing else.
		return nil, &exitError{exitUsage, err}
	}
	return &node{g, s, tools}, nil
}

// Start connects to the MCP servers, which is not waited for, and starts the gateway.
func (n *node) Start(ctx context.Context) error {
	n.tools.Start()
	if err := n.Gateway.Start(ctx); err != nil {
		n.tools.Stop()
		return err
	}
	return nil
}

// stop hands over and closes the store, which must come last.
func (n *node) stop(ctx context.Context) error {
	err := n.Stop(ctx)
	n.tools.Stop()
	return errors.Join(err, n.store.Close())
}
