package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// A verdictSite is three nodes: a Consul server on each, and a gateway on each or on the first alone.
type verdictSite struct {
	form    verdictForm
	dir     string
	effects string // the file in which the work leaves a line
	say     func(string, ...any)
	c       *cluster.Cluster
	probe   *consul.Store
	nodes   []*verdictNode
	// failed gets the error of a gateway that ended without being told to.
	failed chan error
}

// A verdictNode is one with a gateway.
type verdictNode struct {
	s     *verdictSite
	i     int
	file  string
	addr  string
	cable *cluster.Cable // between its gateway and its Consul server
	ask   *client

	mu       sync.Mutex
	process  *child
	expected bool // its end is wanted
}

// verdictReady bounds the start: a Consul server that has just started may be deaf to its gateway's check for half a minute.
const verdictReady = 2 * time.Minute

func (s *verdictSite) start(ctx context.Context) error {
	up, cancel := context.WithTimeout(ctx, consulStart)
	defer cancel()
	var err error
	// Stock settings: the elections of production servers, not those of tests.
	if s.c, err = cluster.Start(up, cluster.Options{
		Servers: 3, Dir: filepath.Join(s.dir, "consul"), Config: "performance { raft_multiplier = 5 }", Progress: func(what string) { s.say("consul: %s", what) },
	}); err != nil {
		return fmt.Errorf("start Consul: %w", err)
	}
	if s.probe, err = consul.New(consul.Options{Address: s.c.Addr(len(verdictMesh.gateways) - 1)}); err != nil { // a node that nothing happens to
		return err
	}
	ports, release, err := freePorts(0)
	if err != nil {
		return err
	}
	release()
	for i, name := range s.form.gateways {
		n := &verdictNode{s: s, i: i, file: filepath.Join(s.dir, name+".json"), addr: fmt.Sprintf("http://127.0.0.1:%d", ports[i])}
		s.nodes = append(s.nodes, n)
		if n.cable, err = cluster.NewCable(s.c.Addr(i)); err != nil {
			return err
		}
		if n.ask, err = newClient(n.addr, "", ""); err != nil {
			return err
		}
		if err := os.MkdirAll(s.workspace(name), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(n.file, s.config(name, ports[i], n.cable.Addr()), 0o600); err != nil {
			return err
		}
		if err := n.start(); err != nil {
			return err
		}
	}
	s.say("waiting until everybody is at home, and Consul hears of every gateway")
	return s.await(ctx, verdictReady, s.atHome)
}

// config is the same but for who runs what: one agent each, and where else it may run; or all on one.
func (s *verdictSite) config(name string, port int, store string) []byte {
	homes := func(first int) (list []string) {
		for i := range s.form.gateways {
			list = append(list, s.form.gateways[(first+i)%len(s.form.gateways)])
		}
		return list
	}
	// The work: a line in a file outside of the mesh, which anybody can count. ($${ is how the configuration writes ${.)
	script := `read -r line; id=$${line##* }; printf '%s\n' "$id" >> ` + quoteShell(s.effects) + `; echo "noted $id"`
	b, err := json.MarshalIndent(map[string]any{
		"gateway": map[string]any{"port": port, "bind": "loopback", "auth": map[string]any{"mode": "none"}},
		"agents": map[string]any{"list": []any{
			map[string]any{"id": "jerry", "name": "Jerry", "default": true, "runner": map[string]any{"kind": "relay", "to": "bobby"}, "gateways": homes(0)},
			map[string]any{"id": "bobby", "name": "Bobby", "workspace": s.workspace(name), "runner": map[string]any{"kind": "exec", "command": []string{"/bin/sh", "-c", script}}, "gateways": homes(1)},
			map[string]any{"id": "billy", "name": "Billy", "runner": map[string]any{"kind": "echo"}, "gateways": homes(2)},
		}},
		"channels": map[string]any{"webchat": map[string]any{"answerWithin": "5m"}},
		"bindings": []any{map[string]any{"agentId": "jerry", "match": map[string]any{"channel": "webchat"}}},
		"mesh": map[string]any{
			"gateway": name, "store": "consul", "consul": map[string]any{"address": store}, "dataDir": filepath.Join(s.dir, "data-"+name),
			"cluster": map[string]any{"id": "gatemesh-verdict", "deployment": "verdict"},
			"policy":  map[string]any{"rules": []any{map[string]any{"from": "channel-*", "to": "jerry"}, map[string]any{"from": "jerry", "to": "bobby"}}},
		},
	}, "", "  ")
	if err != nil {
		panic(err) // strings and numbers
	}
	return b
}

// workspace is where a node's bobby works.
func (s *verdictSite) workspace(name string) string { return filepath.Join(s.dir, "workspace-"+name) }

func quoteShell(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// await asks until ok, or says what is missing.
func (s *verdictSite) await(ctx context.Context, most time.Duration, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case err := <-s.failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", most, err)
		case <-tick.C:
		}
	}
}

// atHome: each agent is where its configuration wants it first, the page has an owner, and nobody is unseen.
func (s *verdictSite) atHome(ctx context.Context) error {
	for _, n := range s.nodes {
		duties, err := n.ask.owners(ctx)
		if err != nil {
			return err
		}
		owner := map[string]string{}
		for _, d := range duties {
			owner[d.Duty] = d.Owner
			for _, c := range d.Candidates {
				if c.Unseen || !c.Live {
					return fmt.Errorf("%s is not ready to own %s", c.Gateway, d.Duty)
				}
			}
		}
		for i, agent := range []string{"jerry", "bobby", "billy"} {
			if want := s.form.gateways[i%len(s.form.gateways)]; owner[agent] != want {
				return fmt.Errorf("%s sees %s at %q, not at %s", s.form.gateways[n.i], agent, owner[agent], want)
			}
		}
		if owner["channel-webchat-default"] == "" {
			return errors.New("nobody has the page's account")
		}
	}
	return nil
}

// victim is the node that has jerry.
func (s *verdictSite) victim(ctx context.Context) (*verdictNode, error) {
	var last error
	for _, n := range s.nodes {
		duties, err := n.owners(ctx)
		if err != nil {
			last = err
			continue
		}
		for _, d := range duties {
			if i := slices.Index(s.form.gateways, d.Owner); d.Duty == "jerry" && i >= 0 {
				return s.nodes[i], nil
			}
		}
		last = errors.New("nobody has jerry")
	}
	return nil, last
}

func (s *verdictSite) stop() error {
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.end(syscall.SIGTERM))
		if n.cable != nil {
			errs = append(errs, n.cable.Close())
		}
	}
	if s.probe != nil {
		errs = append(errs, s.probe.Close())
	}
	if s.c != nil {
		errs = append(errs, s.c.Stop())
	}
	return errors.Join(errs...)
}

func (n *verdictNode) name() string { return n.s.form.gateways[n.i] }

func (n *verdictNode) start() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(exe, "gateway", "--config", n.file)
	for _, kv := range demoEnv(os.Environ(), n.cable.Addr()) {
		if !strings.HasPrefix(kv, "GATEMESH_") && !strings.HasPrefix(kv, "NOMAD_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	c, err := startChild(n.name(), strings.TrimSuffix(n.file, ".json")+".log", cmd)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.process, n.expected = c, false
	n.mu.Unlock()
	go func() {
		<-c.done
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.process == c && !n.expected {
			select {
			case n.s.failed <- fmt.Errorf("%s ended by itself (%s): %s", c.name, c.cmd.ProcessState, c.lastWords()):
			default:
			}
		}
	}()
	return nil
}

// end ends the gateway and waits for it.
func (n *verdictNode) end(sig syscall.Signal) error {
	n.mu.Lock()
	c := n.process
	n.process, n.expected = nil, true
	n.mu.Unlock()
	if c == nil {
		return nil
	}
	_ = c.cmd.Process.Signal(sig)
	if err := c.wait(childGrace); err != nil && sig != syscall.SIGKILL {
		return err
	}
	return nil
}

// pids of the gateways.
func (s *verdictSite) pids() (all []int) {
	for _, n := range s.nodes {
		n.mu.Lock()
		if n.process != nil {
			all = append(all, n.process.cmd.Process.Pid)
		}
		n.mu.Unlock()
	}
	return all
}

// verdictCost is what had been used at a moment.
type verdictCost struct {
	gateways, servers time.Duration // of the processor
	writes            uint64        // Raft entries
}

func (s *verdictSite) cost(ctx context.Context) (c verdictCost, err error) {
	c.gateways = cpuTime(s.pids()...)
	for i := range s.c.Servers() {
		c.servers += cpuTime(s.c.Pid(i))
	}
	c.writes, err = s.probe.RaftIndex(ctx)
	return c, err
}

// A verdictPhase is a time during which people ask and something happens.
type verdictPhase struct {
	name, what string
	// lasts is how long people ask.
	lasts time.Duration
	twice bool // each question is said on two pages
	long  bool // not in a short run
	fault func(ctx context.Context, s *verdictSite) error
}

// The phases by name.
const (
	phaseQuiet = "quiet"
	phaseCrash = "crash"
	phaseNode  = "node"
)

// sleep waits; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func verdictPhases(o verdictOptions) []verdictPhase {
	lasts := 15 * time.Second
	if o.short {
		lasts = 4 * time.Second
	}
	// with does something to the node that has jerry.
	with := func(f func(ctx context.Context, n *verdictNode) error) func(context.Context, *verdictSite) error {
		return func(ctx context.Context, s *verdictSite) error {
			n, err := s.victim(ctx)
			if err != nil {
				return err
			}
			return f(ctx, n)
		}
	}
	return []verdictPhase{
		{name: phaseQuiet, what: "quiet", lasts: lasts, fault: func(context.Context, *verdictSite) error { return nil }},
		{name: "drop", what: "drop: connections to Consul are reset once a second", lasts: lasts, long: true, fault: with(func(ctx context.Context, n *verdictNode) error {
			for range int(lasts.Seconds()) {
				n.cable.Set(cluster.CableResets)
				n.cable.Set(cluster.CableWhole)
				if !sleep(ctx, time.Second) {
					break
				}
			}
			return nil
		})},
		{name: "duplicate", what: "duplicate: each question is said twice", lasts: lasts, twice: true, fault: func(context.Context, *verdictSite) error { return nil }},
		{name: "delay", what: "delay: 100 ms to Consul and 100 ms back", lasts: lasts, long: true, fault: with(func(ctx context.Context, n *verdictNode) error {
			n.cable.Delay(100 * time.Millisecond)
			defer n.cable.Delay(0)
			sleep(ctx, lasts)
			return nil
		})},
		{name: "partition", what: "partition: cut off from Consul for 15 s", lasts: 30 * time.Second, long: true, fault: with(func(ctx context.Context, n *verdictNode) error {
			n.cable.Set(cluster.CableHangs)
			defer n.cable.Set(cluster.CableWhole)
			sleep(ctx, 15*time.Second)
			return nil
		})},
		{name: "update", what: "update: stopped in order and started anew", lasts: lasts, long: true, fault: with(func(_ context.Context, n *verdictNode) error {
			if err := n.end(syscall.SIGTERM); err != nil {
				return err
			}
			return n.start()
		})},
		{name: phaseCrash, what: fmt.Sprintf("crash: killed with -9, started again after %s", o.restart), lasts: o.restart + lasts, fault: with(func(ctx context.Context, n *verdictNode) error {
			_ = n.end(syscall.SIGKILL)
			sleep(ctx, o.restart)
			return n.start()
		})},
		{name: phaseNode, what: fmt.Sprintf("node: lost with its Consul server, back after %s", o.repair), lasts: o.repair + lasts, fault: with(func(ctx context.Context, n *verdictNode) error {
			err := n.s.c.Kill(n.i)
			_ = n.end(syscall.SIGKILL)
			if err != nil {
				return err
			}
			sleep(ctx, o.repair)
			if err := n.s.c.Restart(ctx, n.i); err != nil {
				return err
			}
			return n.start()
		})},
	}
}

// verdictFaults are the names of what can happen.
func verdictFaults() (names []string) {
	for _, p := range verdictPhases(verdictOptions{}) {
		if p.name != phaseQuiet {
			names = append(names, p.name)
		}
	}
	return names
}

// narrate tells of each duty that has another owner, until ctx ends.
func (s *verdictSite) narrate(ctx context.Context) {
	begin, was := time.Now(), map[string]string{}
	for ; ; sleep(ctx, narrateEvery) {
		for _, n := range s.nodes {
			duties, err := n.owners(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				continue
			}
			for _, d := range duties {
				at, known := was[d.Duty]
				if d.Owner != "" && known && d.Owner != at {
					s.say("  %5.1f s  %s is at %s now, and was at %s", time.Since(begin).Seconds(), d.Duty, d.Owner, at)
				}
				if d.Owner != "" {
					was[d.Duty] = d.Owner
				}
			}
			break
		}
	}
}

const (
	narrateEvery  = 250 * time.Millisecond
	narrateWithin = time.Second
)

// owners asks a gateway, unless it is not running.
func (n *verdictNode) owners(ctx context.Context) ([]bus.OwnerInfo, error) {
	n.mu.Lock()
	running := n.process != nil
	n.mu.Unlock()
	if !running {
		return nil, fmt.Errorf("%s is not running", n.name())
	}
	ctx, cancel := context.WithTimeout(ctx, narrateWithin)
	defer cancel()
	return n.ask.owners(ctx)
}
