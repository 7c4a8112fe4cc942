package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/gateway"
)

// startLocal runs the three gateways in this process, on one embedded store.
func (d *demo) startLocal(ctx context.Context) error {
	log, closeLog, err := d.localLog()
	if err != nil {
		return err
	}
	d.stops = append(d.stops, closeLog)
	store, err := openLocal(d.dir, log)
	if err != nil {
		return fmt.Errorf("open the demo's store: %w", err)
	}
	d.stops = append(d.stops, store.Close)
	port := func(i int) int {
		if d.opt.port == 0 {
			return 0
		}
		return d.opt.port + i
	}
	if d.nodes, err = demoNodes(demoSettings{store: "local", port: port}); err != nil {
		return err
	}
	d.p.printf("three gateways in this process, on one embedded store\n")
	var running []*node
	d.stops = append(d.stops, func() error { return stopAll(running) })
	for _, n := range d.nodes {
		cfg, _, err := gateway.ParseConfig(n.gateway+".json", n.config, d.a.env)
		if err != nil {
			return err
		}
		// The store is closed once, after all three.
		g, err := newNodeOn(shared{store}, cfg, log.Named(n.gateway), true, "")
		if err != nil {
			return err
		}
		if err := g.Start(ctx); err != nil {
			return d.failed(ctx, fmt.Errorf("start %s: %w", n.gateway, err))
		}
		running = append(running, g)
		go func() {
			if err := g.Wait(); err != nil {
				d.died <- err
			}
		}()
		n.addr = "http://" + g.Addr().String()
		if n.client, err = newClient(n.addr, "", ""); err != nil {
			return err
		}
	}
	return nil
}

// stopAll stops the nodes at the same time.
func stopAll(nodes []*node) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	errs := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() { errs <- n.stop(ctx) }()
	}
	var all []error
	for range nodes {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// localLog keeps the gateways' log out of the timeline.
func (d *demo) localLog() (hclog.Logger, func() error, error) {
	f, err := os.Create(filepath.Join(d.dir, "gateways.log"))
	if err != nil {
		return nil, nil, err
	}
	return hclog.New(&hclog.LoggerOptions{Name: "gatemesh", Level: hclog.Info, Output: f}), f.Close, nil
}
