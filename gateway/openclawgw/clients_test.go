//go:build linux && proof

package openclawgw

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent/openclaw/openclawtest"
	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/test/proof"
)

// program is the real OpenClaw, in a home of its own that knows the gateway.
func program(t *testing.T, g *gateway.Gateway) func(args ...string) *exec.Cmd {
	t.Helper()
	bin, path := openclawtest.Program(t)
	home := t.TempDir()
	cfg := filepath.Join(home, "openclaw.json")
	if err := os.WriteFile(cfg, []byte(`{ gateway: { mode: "remote", remote: { url: "ws://`+g.Addr().String()+`", token: "`+token+`" } } }`), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) *exec.Cmd {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		t.Cleanup(cancel)
		cmd := exec.CommandContext(ctx, bin, args...)
		cmd.Env = []string{
			"PATH=" + path, "HOME=" + home, "OPENCLAW_STATE_DIR=" + filepath.Join(home, "state"), "OPENCLAW_CONFIG_PATH=" + cfg, "OPENCLAW_GATEWAY_TOKEN=" + token, "TERM=xterm-256color",
			"OPENCLAW_NO_AUTO_UPDATE=1", "OPENCLAW_DISABLE_BONJOUR=1", "DO_NOT_TRACK=1",
		}
		return cmd
	}
}

// clientFigures is what bin/proof/openclaw-clients.json holds: the commands of OpenClaw that were answered as they have to be, the messages typed
// into its TUI that were, and the events that its schema allowed.
type clientFigures struct {
	Commands []string       `json:"commands"`
	Typed    int            `json:"typed"`
	Events   map[string]int `json:"events"`
}

func TestProofOpenClawClients(t *testing.T) {
	proof.Run(t, "openclaw-clients", func() any {
		var f clientFigures
		t.Run("programs", func(t *testing.T) { programs(t, &f) })
		t.Run("schema", func(t *testing.T) { f.Events = schema(t) })
		return f
	})
}

// programs are OpenClaw's own, at a gateway of the mesh, with an agent that lives on another one.
func programs(t *testing.T, f *clientFigures) {
	nodes := mesh(t, &counter{})
	openclaw := program(t, nodes[1])
	connected(t, nodes[1]).sees("bobby")
	for _, x := range []struct {
		args []string
		says []string
	}{
		{[]string{"gateway", "call", "health"}, []string{`"ok": true`, `"defaultAgentId": "jerry"`}},
		{[]string{"health"}, []string{"bobby", "jerry (default)"}},
		{[]string{"agent", "--agent", "bobby", "--message", "from the shell"}, []string{"1: from the shell in main"}},
	} {
		out, err := openclaw(x.args...).CombinedOutput()
		if err != nil {
			t.Errorf("openclaw %q: %v\n%s", x.args, err, out)
		}
		said := err == nil
		for _, want := range x.says {
			if !strings.Contains(string(out), want) {
				said = false
				t.Errorf("openclaw %q does not say %q:\n%s", x.args, want, out)
			}
		}
		if said {
			f.Commands = append(f.Commands, strings.Join(x.args, " "))
		}
	}
	tui(t, openclaw("tui", "--session", "agent:bobby:main"), &f.Typed)
}

// tui types into OpenClaw's TUI, which wants a terminal: tmux has one.
func tui(t *testing.T, cmd *exec.Cmd, typed *int) {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Fatal("no tmux here, and OpenClaw's TUI wants a terminal (Debian: apt-get install tmux)")
	}
	socket := filepath.Join(t.TempDir(), "tmux")
	tmux := func(args ...string) string {
		out, err := exec.Command("tmux", append([]string{"-S", socket}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	tmux(slices.Concat([]string{"new-session", "-d", "-s", "tui", "-x", "120", "-y", "40", "env", "-i"}, cmd.Env, cmd.Args)...)
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", socket, "kill-server").Run() })
	shows := func(want string) {
		t.Helper()
		screen := ""
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			if screen = tmux("capture-pane", "-p", "-t", "tui"); strings.Contains(screen, want) {
				return
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-t.Context().Done():
			}
		}
		t.Fatalf("the TUI does not show %q:\n%s", want, screen)
	}
	shows("connected | idle")
	tmux("send-keys", "-t", "tui", "from the terminal", "Enter")
	shows("2: from the terminal in main")
	*typed++
	shows("connected | idle")
	tmux("send-keys", "-t", "tui", "and again", "Enter")
	shows("3: and again in main")
	*typed++
}
