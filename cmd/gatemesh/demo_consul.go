package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// consulStart bounds the start of Consul; childGrace how long a gateway may take to end: a
// little more than it takes itself (drainTime).
const (
	consulStart = 60 * time.Second
	childGrace  = drainTime + 5*time.Second
)

// startConsul runs the demo on Consul: three servers of its own, or the one that is there,
// and one gateway process for each node.
func (d *demo) startConsul(ctx context.Context) error {
	servers, err := d.servers(ctx)
	if err != nil {
		return err
	}
	ports, release, err := freePorts(d.opt.port)
	if err != nil {
		return err
	}
	s := demoSettings{
		store:  "consul",
		consul: func(i int) string { return servers[i%len(servers)] },
		port:   func(i int) int { return ports[i] },
	}
	if d.opt.existing {
		s.suffix = "-demo-" + strings.ToLower(rand.Text()[:5])
	}
	if d.nodes, err = demoNodes(s); err != nil {
		release()
		return err
	}
	if d.opt.existing {
		if err := d.sweepLater(ctx, servers[0]); err != nil {
			release()
			return err
		}
	}
	how := "each on a Consul server of its own"
	if d.opt.existing {
		how = "all on that Consul"
	}
	d.p.printf("three gateway processes, %s\n", how)
	release()
	return d.startChildren(ports, servers)
}

// servers returns the addresses of Consul: those of three throwaway servers, or the one.
func (d *demo) servers(ctx context.Context) ([]string, error) {
	if d.opt.existing {
		addr := d.a.getenv("CONSUL_HTTP_ADDR")
		d.p.printf("using the Consul at %s; everything of the demo is named demo-... there and removed at the end\n", addr)
		return []string{addr}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, consulStart)
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Options{
		Servers: 3, UI: true, Dir: filepath.Join(d.dir, "consul"),
		Progress: func(what string) { d.p.printf("%s\n", d.p.paint(dim, "consul: "+what)) },
	})
	if errors.Is(err, cluster.ErrNoBinary) {
		return nil, &exitError{exitFailed, err}
	}
	if err != nil {
		return nil, d.failed(ctx, fmt.Errorf("start Consul: %w", err))
	}
	d.stops = append(d.stops, c.Stop)
	d.p.printf("%s %s/ui/dc1/kv/openclaw/\n", d.p.paint(bold, "Consul UI"), c.Addr(0))
	return c.Addrs(), nil
}

// freePorts finds three ports, from first on if that is not 0, and holds them until just before they are used. They lie below
// the range from which kernels give out ports of outgoing connections.
func freePorts(first int) (ports []int, release func(), err error) {
	var held []net.Listener
	release = func() {
		for _, l := range held {
			_ = l.Close()
		}
	}
	const from, to, tries = 20000, 30000, 500
	for try := 0; len(ports) < len(demoNames); try++ {
		port := from + mathrand.IntN(to-from)
		if first > 0 {
			port = first + len(ports)
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		switch {
		case err == nil:
			held, ports = append(held, l), append(ports, port)
		case first > 0:
			release()
			return nil, nil, failf(exitFailed, "port %d: %w (name another with --port)", port, err)
		case try > tries:
			release()
			return nil, nil, failf(exitFailed, "no free port between %d and %d: %w", from, to, err)
		}
	}
	return ports, release, nil
}

func (d *demo) startChildren(ports []int, servers []string) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	var children []*child
	// All are asked to end before one is waited for: they hand over to nobody here.
	d.stops = append(d.stops, func() error {
		for _, c := range children {
			c.terminate()
		}
		var errs []error
		for _, c := range children {
			errs = append(errs, c.wait(childGrace))
		}
		return errors.Join(errs...)
	})
	for i, n := range d.nodes {
		file := filepath.Join(d.dir, n.gateway+".json")
		if err := os.WriteFile(file, n.config, 0o600); err != nil {
			return fmt.Errorf("write the configuration of %s: %w", n.gateway, err)
		}
		cmd := exec.Command(exe, "gateway", "--config", file)
		cmd.Env = os.Environ()
		if !d.opt.existing {
			cmd.Env = demoEnv(cmd.Env, servers[i%len(servers)])
		}
		c, err := startChild(n.gateway, filepath.Join(d.dir, n.gateway+".log"), cmd)
		if err != nil {
			return err
		}
		children = append(children, c)
		go func() {
			<-c.done
			d.died <- failf(exitFailed, "%s ended by itself (%v): %s", c.name, c.err, c.lastWords())
		}()
		n.addr = "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i]))
		if n.client, err = newClient(n.addr, "", ""); err != nil {
			return err
		}
	}
	return nil
}

// demoEnv points everything at the demo's Consul: a token or certificate for another one
// would only be in the way.
func demoEnv(env []string, addr string) []string {
	out := []string{"CONSUL_HTTP_ADDR=" + addr}
	for _, kv := range env {
		if !strings.HasPrefix(kv, "CONSUL_") {
			out = append(out, kv)
		}
	}
	return out
}

// sweepLater removes the demo's keys at the end, and what it added to openclaw/cluster/ if
// nobody else is there. It also shows now whether that Consul can be used at all.
func (d *demo) sweepLater(ctx context.Context, addr string) error {
	s, err := consul.New(consul.Options{Address: addr})
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	before, err := s.Keys(ctx, bus.Root+"cluster/", "")
	if err != nil {
		_ = s.Close()
		return failf(exitUnavailable, "the Consul at %s cannot be used: %w (try: consul members)", addr, err)
	}
	d.stops = append(d.stops, func() error {
		defer s.Close()
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		prefixes := demoPrefixes(d.nodes)
		if left, err := s.Keys(ctx, bus.Root+"gateways/", "/"); err == nil && !slices.ContainsFunc(left, d.foreign) {
			// Nobody else relies on what our gateways found missing there.
			for _, key := range []string{bus.Root + "cluster/id", bus.Root + "cluster/deployment"} {
				if !slices.Contains(before, key) {
					prefixes = append(prefixes, key)
				}
			}
		}
		var ops []bus.Op
		for _, p := range prefixes {
			ops = append(ops, bus.Op{Verb: bus.OpDeleteTree, Key: p})
		}
		if _, err := s.Txn(ctx, ops); err != nil {
			return failf(exitFailed, "remove the demo's keys: %w (consul kv get -keys openclaw/ shows them)", err)
		}
		return nil
	})
	return nil
}

// foreign reports whether a key below openclaw/gateways/ is of a gateway that is not ours.
func (d *demo) foreign(key string) bool {
	return !slices.ContainsFunc(d.nodes, func(n *demoNode) bool { return key == bus.Root+"gateways/"+n.gateway+"/" })
}
