package infra

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tool finds a server's binary: the environment, bin/tools of the repository,
// PATH.
func tool(t testing.TB, name, env string) string {
	t.Helper()
	if p := os.Getenv(env); p != "" {
		return p
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		p := filepath.Join(dir, "bin", "tools", name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	t.Fatalf("this test needs the %s binary: run `make %s` (or set %s)", name, name, env)
	return ""
}

// agentProc is a running Consul or Nomad agent that dies with the test, and on
// Linux also with the test binary.
type agentProc struct {
	cmd  *exec.Cmd
	dir  string
	log  string
	done chan struct{} // closed when the process is gone
}

// kill ends the process the hard way and waits for it. It may be called again.
func (p *agentProc) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
	unmountBelow(p.dir)
}

// tail is the end of the agent's log.
func (p *agentProc) tail() string {
	data, _ := os.ReadFile(p.log)
	return string(data[max(0, len(data)-3000):])
}

// start runs binary and waits until ready answers nil.
func start(t testing.TB, dir, binary string, args []string, ready func(context.Context) error) (*agentProc, error) {
	t.Helper()
	logPath := filepath.Join(dir, "agent.log")
	logFile, err := os.Create(logPath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = logFile.Close() }() // the agent has its own copy
	cmd := exec.Command(binary, args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = logFile, logFile
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		// Nomad refuses to start with some AWS settings; the others would leak
		// the developer's own cluster into the test's.
		if name == "AWS_CA_BUNDLE" || strings.HasPrefix(name, "CONSUL_") || strings.HasPrefix(name, "NOMAD_") {
			continue
		}
		cmd.Env = append(cmd.Env, e)
	}
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &agentProc{cmd: cmd, dir: dir, log: logPath, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			t.Cleanup(p.kill)
			return p, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("the agent ended by itself:\n%s", p.tail())
		case <-ctx.Done():
			p.kill()
			return nil, fmt.Errorf("the agent is not ready after 40 s (%w):\n%s", err, p.tail())
		case <-tick.C:
		}
	}
}

// startRetry starts an agent on fresh ports, and again on others when somebody
// was quicker to take one.
func startRetry(t testing.TB, ports int, attempt func(dir string, ports []int) (*agentProc, error)) *agentProc {
	t.Helper()
	var errs []error
	for range 3 {
		p, err := attempt(t.TempDir(), freePorts(t, ports))
		if err == nil {
			return p
		}
		errs = append(errs, err)
	}
	t.Fatal(errors.Join(errs...))
	return nil
}

// freePorts are n different ports of the loopback that nobody uses now.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for len(ports) < n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }() // all at the end: else the next one gets the same
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// closedAddress is a loopback address where nothing listens.
func closedAddress(t testing.TB) string {
	return fmt.Sprintf("http://127.0.0.1:%d", freePorts(t, 1)[0])
}

// waitFor checks until the report is as wished, or fails with the last one.
func waitFor(t testing.TB, c *Checker, what string, want func(Report) bool) Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		r := c.Check(ctx)
		if want(r) {
			return r
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within 30 s; the last report:\n%s\n%s\nerrors: %v %v", what, r.Text(), r.Detail, r.Consul.Errors, r.Nomad.Errors)
		case <-tick.C:
		}
	}
}

// resultIs is the usual wish of waitFor.
func resultIs(result string) func(Report) bool {
	return func(r Report) bool { return r.Result == result }
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// calm makes the own node healthy, whatever the machine does while it tests.
func calm(c *Checker) *Checker {
	c.node.load1 = func(context.Context) (float64, error) { return 0.4, nil }
	c.node.memory = func(context.Context) (float64, uint64, error) { return 12, 1 << 30, nil }
	c.node.disk = func(context.Context, string) (float64, uint64, error) { return 40, 1 << 40, nil }
	c.node.hostname = func() (string, error) { return "jerry", nil }
	c.node.uptime = func(context.Context) (uint64, error) { return 3*86400 + 4*3600, nil }
	c.node.cores = 2
	return c
}

func newChecker(t testing.TB, opts Options) *Checker {
	t.Helper()
	c, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return calm(c)
}

// What the test needs of the operating system; set on Linux.
var (
	// dieWithParent makes the process end with the test binary.
	dieWithParent = func(*exec.Cmd) {}
	// unmountBelow removes what Nomad, as root, mounts for its tasks' secrets.
	unmountBelow = func(string) {}
)

func mustContain(t testing.TB, text string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in:\n%s", w, text)
		}
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func equalNames(t testing.TB, what string, got List, want ...string) {
	t.Helper()
	if !slices.Equal(got.Names, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got.Names, want)
	}
}
