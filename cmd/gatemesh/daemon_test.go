package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// daemonConfig is one node with three agents; store is a piece of the mesh block.
func daemonConfig(store, level string) string {
	return fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", %s, log: { level: %q, json: true }, service: { register: false } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  agents: { list: [ { id: "echo", runner: "echo" }, { id: "relay", runner: { kind: "relay", to: "echo" } } ] },
}
`, store, level)
}

// startDaemon runs a gateway and returns its address.
func startDaemon(t *testing.T, file string) (*proc, []string) {
	t.Helper()
	p := launch(t, nil, "gateway", "--config", file)
	line, _ := p.wait(0, "gateway is up")
	up := parse[struct{ URL string }](t, line)
	return p, []string{"GATEMESH_ADDR=" + up.URL, "GATEMESH_TOKEN=the-token-of-this-test"}
}

// served waits until an agent has its owner: a little after the gateway is up.
func served(t *testing.T, env []string, agent string) {
	t.Helper()
	until(t, agent+" has its owner", func() bool {
		return strings.Contains(must(t, env, "agents"), agent+"\tnode-gateway\tactive")
	})
}

func TestGatewayServesAndDrains(t *testing.T) {
	dir := t.TempDir()
	store := fmt.Sprintf("store: 'local', dataDir: %q", filepath.Join(dir, "data"))
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), daemonConfig(store, "info"))
	p, env := startDaemon(t, file)

	served(t, env, "echo")
	if out := must(t, env, "ask", "--to", "echo", "hello there"); out != "hello there\n" {
		t.Errorf("answer %q", out)
	}
	for name, token := range map[string]string{"wrong": "wrong-token-here", "none": ""} {
		r := gatemesh(t, append(env, "GATEMESH_TOKEN="+token), "", "agents")
		if r.code != exitUsage || !strings.Contains(r.errOut, "GATEMESH_TOKEN") || token != "" && strings.Contains(r.errOut, token) {
			t.Errorf("%s token: status %d, %s", name, r.code, r.errOut)
		}
		found, _ := examine(t, append(env, "GATEMESH_TOKEN="+token))
		wantFindings(t, found, map[string]string{"gateway": statusOK, "token": statusFail})
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
	text := p.text()
	if !strings.Contains(text, "draining and handing over") || !strings.Contains(text, `"stopped"`) {
		t.Errorf("the log does not say that it drained:\n%s", text)
	}
	if strings.Contains(text, "the-token-of-this-test") {
		t.Error("the log holds the token")
	}

	// What was there is there again.
	p, env = startDaemon(t, file)
	served(t, env, "echo")
	if code := p.end(syscall.SIGINT); code != exitOK {
		t.Errorf("status %d", code)
	}
}

// TestGatewayDrainsWork: a message that is in work when SIGTERM comes is not lost.
func TestGatewayDrainsWork(t *testing.T) {
	dir := t.TempDir()
	store := fmt.Sprintf("store: 'local', dataDir: %q", filepath.Join(dir, "data"))
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), daemonConfig(store, "info"))
	p, env := startDaemon(t, file)
	served(t, env, "relay")
	var ids []string
	for range 5 {
		id := envelope.NewID()
		must(t, env, "send", "--to", "relay", "--id", id, "ask echo")
		ids = append(ids, id)
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Fatalf("status %d", code)
	}
	p, env = startDaemon(t, file)
	for _, id := range ids {
		until(t, id+" is acked", func() bool {
			r := gatemesh(t, env, "", "message", "show", "--json", id)
			return r.code == exitOK && parse[gateway.MessageStatus](t, r.out).Facts.Acked
		})
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}

func TestGatewayReloads(t *testing.T) {
	dir := t.TempDir()
	store := fmt.Sprintf("store: 'local', dataDir: %q", filepath.Join(dir, "data"))
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), daemonConfig(store, "info"))
	p, _ := startDaemon(t, file)

	at := p.count()
	p.signal(syscall.SIGHUP)
	_, at = p.wait(at, "reading the configuration again", "SIGHUP")

	// Replaced as editors do it. The port needs a restart, the level does not.
	next := strings.Replace(daemonConfig(store, "debug"), "port: 0", "port: 18999", 1)
	if err := os.Rename(writeFile(t, file+".new", next), file); err != nil {
		t.Fatal(err)
	}
	_, at = p.wait(at, "need a restart", "gateway.port")

	writeFile(t, file, "{ gateway: { port: 'many' } }")
	_, at = p.wait(at, "the old one stays", "openclaw.json:1:")

	writeFile(t, file, daemonConfig(store, "info"))
	p.wait(at, "configuration reloaded")
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}

// TestGatewayWaitsForConsul: without Consul the gateway stays up and says so; it goes on by
// itself when Consul comes, and again after it was away.
func TestGatewayWaitsForConsul(t *testing.T) {
	c := cluster.ForTestWith(t, cluster.Options{Dir: t.TempDir()})
	if err := c.Kill(0); err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"), daemonConfig(fmt.Sprintf("consul: { address: %q }", c.Addr(0)), "info"))
	p, env := startDaemon(t, file)
	r := gatemesh(t, env, "", "ask", "--to", "echo", "hi")
	if r.code != exitUnavailable {
		t.Errorf("ask without Consul: status %d, %s", r.code, r.errOut)
	}
	oneLine(t, r)
	found, _ := examine(t, env, "--config", file)
	wantFindings(t, found, map[string]string{"gateway": statusOK, "token": statusOK, "ready": statusFail, "consul": statusFail})

	if err := c.Restart(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	until(t, "the gateway answers", func() bool {
		return gatemesh(t, env, "", "ask", "--to", "echo", "hi").out == "hi\n"
	})
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}

// TestSecondSignal: nobody has to wait for a store that does not answer.
func TestSecondSignal(t *testing.T) {
	c := cluster.ForTest(t, 1)
	file := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"), daemonConfig(fmt.Sprintf("consul: { address: %q }", c.Addr(0)), "info"))
	p, env := startDaemon(t, file)
	until(t, "the gateway is ready", func() bool { return gatemesh(t, env, "", "ask", "--to", "echo", "hi").code == exitOK })
	if err := c.Pause(0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Resume(0) }()
	at := p.count()
	p.signal(syscall.SIGTERM)
	_, at = p.wait(at, "draining and handing over")
	if code := p.end(syscall.SIGTERM); code != exitFailed {
		t.Errorf("status %d", code)
	}
	p.wait(at, "gatemesh: second signal")
}

func TestGatewayRefusesATakenPort(t *testing.T) {
	dir := t.TempDir()
	text := daemonConfig(fmt.Sprintf("store: 'local', dataDir: %q", filepath.Join(dir, "data")), "info")
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), text)
	_, env := startDaemon(t, file)
	port := env[0][strings.LastIndex(env[0], ":")+1:]
	other := writeFile(t, filepath.Join(dir, "other.json"), strings.Replace(text, "/data", "/data2", 1))
	r := gatemesh(t, nil, "", "gateway", "--config", other, "--set", "gateway.port="+port)
	if r.code != exitFailed || !strings.Contains(r.errOut, "gateway.port") {
		t.Errorf("taken port: status %d, %s", r.code, r.errOut)
	}
	r = gatemesh(t, nil, "", "gateway", "--config", file)
	if r.code != exitFailed || !strings.Contains(r.errOut, "another process has this store open") {
		t.Errorf("taken store: status %d, %s", r.code, r.errOut)
	}
	oneLine(t, r)
}
