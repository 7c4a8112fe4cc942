package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
)

const (
	loopback = "127.0.0.1"
	// startAttempts bounds the retries after another program took a port.
	startAttempts = 3
	// startTimeout bounds Start and Restart; 2 to 4 s is usual, a busy machine
	// needs more.
	startTimeout = 60 * time.Second
	// pollEvery is the pause between two questions whether a server is ready.
	pollEvery = 50 * time.Millisecond
	// stopTimeout is how long a server may take to end before it is killed.
	stopTimeout = 5 * time.Second
	// tailLines is how much of a server's log an error quotes.
	tailLines = 15
)

// Options describes the servers to start. The zero value is one server in a
// temporary directory.
type Options struct {
	// Servers is how many: 1, 3 or 5. 0 means 1.
	Servers int
	// Names are the servers' node names. Nil: server-1, server-2, ...
	Names []string
	// Dir holds data and logs (server-1.log, ...). Servers started again on the
	// same Dir find their data and keep their ports. Empty: a temporary
	// directory that Stop removes.
	Dir string
	// DataDirs, if set, holds a directory for each server's data, so that one can lie on a disk of its own.
	DataDirs []string
	// UI serves Consul's web UI under /ui/.
	UI bool
	// Dev keeps everything in memory (one server only): nothing survives Restart.
	Dev bool
	// Config is HCL added to the configuration of each server, e.g. an acl block.
	// It wins over what this package sets.
	Config string
	// Token is used to ask whether the servers are ready. It is needed when
	// Config denies anonymous access: a management token.
	Token string
	// ACL denies everything that no policy allows. [Cluster.Token] is the management token: Token, or a random
	// one (then servers that are started again on the same Dir need it as Token).
	ACL bool
	// MutualTLS serves HTTPS instead of HTTP, to clients with a certificate of the cluster's own
	// authority only; see [Cluster.Certificates]. What the servers say to each other stays as it is.
	MutualTLS bool
	// Binary is the Consul binary. Empty: what [Find] finds.
	Binary string
	// Logger hears about starts and ends. Nil: nobody does.
	Logger hclog.Logger
	// Progress, if set, is told what Start is doing, for people. It is called
	// from Start's goroutine.
	Progress func(string)
}

// Cluster is a set of running servers. Its methods are safe for concurrent use;
// a server index outside 0..Servers-1 panics.
type Cluster struct {
	opt    Options
	dir    string
	temp   bool
	nonce  string // tells our servers from whatever else answers at a port
	http   *http.Client
	logger hclog.Logger
	certs  Certificates

	mu      sync.Mutex
	servers []*server
	stopped bool
}

// server is one of them. Its fields are guarded by Cluster.mu; name and ports
// never change.
type server struct {
	name  string
	ports ports
	proc  *process // nil before the first start
	live  bool     // neither killed nor paused by us
}

// Start starts the servers and returns when each of them accepts writes and knows
// the others as healthy. If that fails, everything is ended again and the error
// quotes the last lines of a server's log. ctx bounds the start only.
func Start(ctx context.Context, opt Options) (*Cluster, error) {
	if opt.Servers == 0 {
		opt.Servers = 1
	}
	switch {
	case opt.Servers != 1 && opt.Servers != 3 && opt.Servers != 5:
		return nil, fmt.Errorf("start consul: %d servers (1, 3 or 5 make sense)", opt.Servers)
	case opt.Dev && opt.Servers != 1:
		return nil, fmt.Errorf("start consul: a dev server is alone, not one of %d", opt.Servers)
	}
	if opt.Names != nil && len(opt.Names) != opt.Servers {
		return nil, fmt.Errorf("start consul: %d names for %d servers", len(opt.Names), opt.Servers)
	}
	if opt.DataDirs != nil && len(opt.DataDirs) != opt.Servers {
		return nil, fmt.Errorf("start consul: %d data directories for %d servers", len(opt.DataDirs), opt.Servers)
	}
	if opt.Binary == "" {
		bin, err := Find()
		if err != nil {
			return nil, fmt.Errorf("start consul: %w", err)
		}
		opt.Binary = bin
	}
	if opt.ACL && opt.Token == "" {
		opt.Token = uuid.NewString()
	}
	if opt.Progress == nil {
		opt.Progress = func(string) {}
	}
	if opt.Logger == nil {
		opt.Logger = hclog.NewNullLogger()
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()

	for attempt := 1; ; attempt++ {
		c, err := start(ctx, opt)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, errPortTaken) || attempt == startAttempts {
			return nil, fmt.Errorf("start consul: %w", err)
		}
		opt.Logger.Info("another program took a port, trying others", "attempt", attempt)
	}
}

// nonceKey is the node's metadata that holds the nonce.
const nonceKey = "gatemesh-cluster"

// errPortTaken: a server ended because something else had bound its port.
var errPortTaken = errors.New("a port was taken in between")

// start is one attempt.
func start(ctx context.Context, opt Options) (_ *Cluster, err error) {
	c := &Cluster{
		opt:    opt,
		dir:    opt.Dir,
		temp:   opt.Dir == "",
		nonce:  rand.Text(),
		logger: opt.Logger,
		http:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 10 * time.Second}},
	}
	if c.temp {
		if c.dir, err = os.MkdirTemp("", "gatemesh-consul-"); err != nil {
			return nil, err
		}
	} else {
		// Consul is told paths, not a working directory.
		if c.dir, err = filepath.Abs(c.dir); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			_ = c.Stop()
		}
	}()

	if opt.MutualTLS {
		if err := c.secure(); err != nil {
			return nil, err
		}
	}
	all, err := loadPorts(c.dir, opt.Servers)
	if err != nil {
		return nil, err
	}
	known := all != nil
	held := &reservation{}
	if !known {
		if all, held, err = reserve(opt.Servers); err != nil {
			return nil, err
		}
	}
	defer held.release()
	for i, p := range all {
		name := fmt.Sprintf("server-%d", i+1)
		if opt.Names != nil {
			name = opt.Names[i]
		}
		c.servers = append(c.servers, &server{name: name, ports: p})
	}
	for i := range c.servers {
		if err := c.configure(i); err != nil {
			return nil, err
		}
	}

	opt.Progress(fmt.Sprintf("starting %s", count(opt.Servers)))
	held.release()
	for i := range c.servers {
		c.mu.Lock()
		err := c.launchLocked(i)
		c.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	opt.Progress("waiting for a leader")
	for i := range c.servers {
		if err := c.await(ctx, i, c.ready); err != nil {
			if known && errors.Is(err, errPortTaken) {
				// Trying other ports cannot help: the data knows these.
				return nil, fmt.Errorf("the data in %s needs its old ports: %w", c.dir, detach(err))
			}
			return nil, err
		}
	}
	if !c.temp && !known {
		if err := savePorts(c.dir, all); err != nil {
			return nil, err
		}
	}
	opt.Progress("consul is ready at " + c.Addr(0))
	return c, nil
}

// detach keeps an error's text and drops what it wraps.
func detach(err error) error { return errors.New(err.Error()) }

func count(n int) string {
	if n == 1 {
		return "one Consul server"
	}
	return fmt.Sprintf("%d Consul servers", n)
}

func (c *Cluster) path(i int, what string) string {
	return filepath.Join(c.dir, c.servers[i].name+what)
}

// configure writes the configuration of server i, which joins the named ones before the others.
func (c *Cluster) configure(i int, join ...string) error {
	s := c.servers[i]
	for j, peer := range c.servers {
		if j != i {
			join = append(join, net.JoinHostPort(loopback, strconv.Itoa(peer.ports.Serf)))
		}
	}
	conf := map[string]any{
		"node_name":      s.name,
		"server":         true,
		"bind_addr":      loopback,
		"advertise_addr": loopback,
		"client_addr":    loopback,
		"ports": map[string]int{
			"http": s.ports.HTTP, "server": s.ports.Server, "serf_lan": s.ports.Serf,
			"serf_wan": -1, "dns": -1, "https": -1, "grpc": -1, "grpc_tls": -1,
		},
		"performance": map[string]any{"raft_multiplier": 1},
		"ui_config":   map[string]any{"enabled": c.opt.UI},
		"log_level":   "INFO",
		// No calls home, and no background writes into Raft: what a benchmark
		// counts is what it wrote.
		"disable_update_check":        true,
		"disable_anonymous_signature": true,
		"disable_coordinates":         true,
		"disable_remote_exec":         true,
		"connect":                     map[string]any{"enabled": false},
		"peering":                     map[string]any{"enabled": false},
		"node_meta":                   map[string]string{nonceKey: c.nonce},
		"leave_on_terminate":          false,
		"skip_leave_on_interrupt":     true,
	}
	if c.opt.ACL {
		conf["acl"] = map[string]any{
			"enabled": true, "default_policy": "deny",
			"tokens": map[string]string{"initial_management": c.opt.Token, "agent": c.opt.Token},
		}
	}
	if c.opt.MutualTLS {
		ports := conf["ports"].(map[string]int)
		ports["http"], ports["https"] = -1, s.ports.HTTP
		conf["tls"] = map[string]any{"https": map[string]any{
			"ca_file": c.certs.CA, "cert_file": c.certs.server, "key_file": c.certs.serverKey, "verify_incoming": true,
		}}
	}
	if !c.opt.Dev {
		conf["data_dir"] = c.path(i, "")
		if c.opt.DataDirs != nil {
			conf["data_dir"] = c.opt.DataDirs[i]
		}
		conf["bootstrap_expect"] = len(c.servers)
	}
	if len(join) > 0 {
		conf["retry_join"] = join
		conf["retry_interval"] = "250ms" // the default of 30 s would be the start time
	}
	raw, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path(i, ".json"), raw, 0o600); err != nil {
		return err
	}
	return os.WriteFile(c.path(i, "-extra.hcl"), []byte(c.opt.Config), 0o600)
}

// launchLocked starts the process of server i.
func (c *Cluster) launchLocked(i int) error {
	s := c.servers[i]
	args := []string{"agent", "-config-file", c.path(i, ".json"), "-config-file", c.path(i, "-extra.hcl")}
	if c.opt.Dev {
		args = append(args, "-dev")
	}
	log, err := os.OpenFile(c.path(i, ".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own handle
	cmd := exec.Command(c.opt.Binary, args...)
	cmd.Dir = c.dir
	cmd.Stdout, cmd.Stderr = log, log
	p, err := launch(cmd)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.proc, s.live = p, true
	c.logger.Info("consul server started", "server", s.name, "address", c.Addr(i), "pid", cmd.Process.Pid)
	return nil
}

// await polls until ok says that server i is ready.
func (c *Cluster) await(ctx context.Context, i int, ok func(context.Context, int) error) error {
	c.mu.Lock()
	s := c.servers[i]
	proc := s.proc
	c.mu.Unlock()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		last := ok(ctx, i)
		if last == nil {
			return nil
		}
		select {
		case <-proc.done:
			tail := c.tail(i)
			if strings.Contains(tail, "address already in use") {
				return fmt.Errorf("%s: %w\n%s", s.name, errPortTaken, tail)
			}
			return fmt.Errorf("%s ended by itself: %w\n%s", s.name, proc.err, tail)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready (%w): %w\n%s", s.name, last, ctx.Err(), c.tail(i))
		case <-tick.C:
		}
	}
}

// ready is nil if server i is ours, accepts writes and sees every server in good
// health.
func (c *Cluster) ready(ctx context.Context, i int) error {
	// If another server had the port, ours would be about to end while that one
	// answers.
	var self struct{ Meta map[string]string }
	if err := c.call(ctx, i, http.MethodGet, "/v1/agent/self", nil, &self); err != nil {
		return err
	}
	if self.Meta[nonceKey] != c.nonce {
		return fmt.Errorf("another server answers at %s", c.Addr(i))
	}
	if err := c.writes(ctx, i); err != nil {
		return err
	}
	// Without its serfHealth check a node cannot have sessions.
	var checks []struct{ CheckID, Status string }
	if err := c.call(ctx, i, http.MethodGet, "/v1/health/state/any", nil, &checks); err != nil {
		return err
	}
	healthy := 0
	for _, check := range checks {
		if check.CheckID == "serfHealth" && check.Status == "passing" {
			healthy++
		}
	}
	if healthy < len(c.servers) {
		return fmt.Errorf("knows %d of %d servers", healthy, len(c.servers))
	}
	return nil
}

// writes is nil if a write through server i succeeds. It leaves nothing behind.
func (c *Cluster) writes(ctx context.Context, i int) error {
	const probe = `[{"KV":{"Verb":"set","Key":"gatemesh-cluster-probe"}},{"KV":{"Verb":"delete","Key":"gatemesh-cluster-probe"}}]`
	return c.call(ctx, i, http.MethodPut, "/v1/txn", []byte(probe), nil)
}

// call asks server i, for at most two seconds.
func (c *Cluster) call(ctx context.Context, i int, method, path string, body []byte, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.Addr(i)+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if c.opt.Token != "" {
		req.Header.Set("X-Consul-Token", c.opt.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d: %s", path, resp.StatusCode, bytes.TrimSpace(raw))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// tail returns the last lines of server i's log, indented.
func (c *Cluster) tail(i int) string {
	raw, err := os.ReadFile(c.path(i, ".log"))
	if err != nil {
		return "  (no log: " + err.Error() + ")"
	}
	lines := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	return "  " + strings.Join(lines, "\n  ")
}

// Servers returns how many servers there are, running or not.
func (c *Cluster) Servers() int { return len(c.servers) }

// Token returns the management token that the servers were started with, or "".
func (c *Cluster) Token() string { return c.opt.Token }

// Addr returns the HTTP address of server i, e.g. "http://127.0.0.1:14230"; with
// [Options.MutualTLS] it begins with https.
func (c *Cluster) Addr(i int) string {
	scheme := "http://"
	if c.opt.MutualTLS {
		scheme = "https://"
	}
	return scheme + net.JoinHostPort(loopback, strconv.Itoa(c.servers[i].ports.HTTP))
}

// Addrs returns the HTTP addresses of all servers, running or not.
func (c *Cluster) Addrs() []string {
	all := make([]string, len(c.servers))
	for i := range all {
		all[i] = c.Addr(i)
	}
	return all
}

// Dir returns the directory of data and logs.
func (c *Cluster) Dir() string { return c.dir }

// Pid returns the process id of server i; it may have ended.
func (c *Cluster) Pid(i int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers[i].proc.cmd.Process.Pid
}

// Log returns what server i wrote to its log so far.
func (c *Cluster) Log(i int) string {
	raw, err := os.ReadFile(c.path(i, ".log"))
	if err != nil {
		return ""
	}
	return string(raw)
}

// Kill ends server i with SIGKILL and returns when it is gone. Killing one that
// is gone is no error.
func (c *Cluster) Kill(i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.killLocked(i)
}

func (c *Cluster) killLocked(i int) error {
	s := c.servers[i]
	s.live = false
	if s.proc == nil {
		return nil
	}
	if err := s.proc.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", s.name, err)
	}
	if !s.proc.ended(stopTimeout) {
		return fmt.Errorf("kill %s: pid %d still runs after %s", s.name, s.proc.cmd.Process.Pid, stopTimeout)
	}
	return nil
}

// Pause freezes server i (SIGSTOP): its connections stay open and nothing answers,
// as on a machine that hangs.
func (c *Cluster) Pause(i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.servers[i]
	if err := s.proc.pause(); err != nil {
		return fmt.Errorf("pause %s: %w", s.name, err)
	}
	s.live = false
	return nil
}

// Resume thaws server i.
func (c *Cluster) Resume(i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.servers[i]
	if err := s.proc.resume(); err != nil {
		return fmt.Errorf("resume %s: %w", s.name, err)
	}
	s.live = true
	return nil
}

// Restart starts server i again on its data and ports, killing it first if it
// runs, and returns when writes through it succeed. That needs a majority.
func (c *Cluster) Restart(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c.mu.Lock()
	err := c.restartLocked(i)
	c.mu.Unlock()
	if err == nil {
		err = c.await(ctx, i, c.writes)
	}
	if err != nil {
		return fmt.Errorf("restart consul: %w", err)
	}
	return nil
}

func (c *Cluster) restartLocked(i int) error {
	if c.stopped {
		return errors.New("the cluster was stopped")
	}
	if err := c.killLocked(i); err != nil {
		return err
	}
	return c.launchLocked(i)
}

// Leader returns the index of the server that leads. It waits, as long as ctx
// allows, for a leader that runs and says so itself: right after the old one was
// killed or paused the others still name it. A leader cut off for less than its
// lease (about 0.5 s) may still be named.
func (c *Cluster) Leader(ctx context.Context) (int, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		for i := range c.servers {
			if leader, ok := c.leaderBy(ctx, i); ok && c.running(leader) {
				if self, ok := c.leaderBy(ctx, leader); ok && self == leader {
					return leader, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("no consul leader: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (c *Cluster) running(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers[i].live
}

// leaderBy returns whom server i takes for the leader.
func (c *Cluster) leaderBy(ctx context.Context, i int) (int, bool) {
	if !c.running(i) {
		return 0, false
	}
	var addr string
	if err := c.call(ctx, i, http.MethodGet, "/v1/status/leader", nil, &addr); err != nil {
		return 0, false
	}
	for j, s := range c.servers {
		if addr == net.JoinHostPort(loopback, strconv.Itoa(s.ports.Server)) {
			return j, true
		}
	}
	return 0, false
}

// Stop ends all servers and removes a temporary directory. It takes at most about
// ten seconds and may be called again. Servers with a directory of their own are
// asked to end first; throwaway ones are killed.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	var errs []error
	if !c.temp {
		for _, s := range c.servers {
			if s.proc != nil {
				// Errors mean that it has ended; the kill below decides.
				_ = s.proc.resume()
				_ = s.proc.terminate()
			}
		}
		until := time.Now().Add(stopTimeout)
		for _, s := range c.servers {
			if s.proc != nil {
				s.proc.ended(time.Until(until))
			}
		}
	}
	for i := range c.servers {
		if err := c.killLocked(i); err != nil {
			errs = append(errs, err)
		}
	}
	c.http.CloseIdleConnections()
	if c.temp {
		if err := os.RemoveAll(c.dir); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("stop consul: %w", errors.Join(errs...))
	}
	return nil
}
