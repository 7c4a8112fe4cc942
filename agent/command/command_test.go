//go:build linux

package command

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/agent"
)

func TestMain(m *testing.M) {
	if Confined() {
		os.Exit(126)
	}
	goleak.VerifyTestMain(m)
}

// made is an agent's exec tool in a workspace of its own.
func made(t *testing.T, x agent.ExecSpec) (workspace string, run func(args map[string]any) agent.ToolOutput) {
	t.Helper()
	workspace = t.TempDir()
	set, err := Tools(agent.Spec{ID: "bobby", Workspace: workspace, Exec: x}, agent.Deps{})
	if err != nil || set == nil {
		t.Fatal(set, err)
	}
	list := set.Tools()
	if len(list) != 1 || list[0].Name != "exec" || list[0].Effect != agent.EffectOutside {
		t.Fatalf("%+v", list)
	}
	return workspace, func(args map[string]any) agent.ToolOutput {
		t.Helper()
		raw, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		out, err := list[0].Run(t.Context(), &agent.Call{Arguments: raw, Session: "agent:bobby:c1"})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

func TestAllowlist(t *testing.T) {
	t.Setenv("GATEMESH_TOKEN", "secret-of-the-gateway")
	ws, run := made(t, agent.ExecSpec{Security: agent.ExecAllowlist, SafeBins: []string{"echo", "env", "pwd", "sh", "cat", "false", "head"}})
	if err := os.MkdirAll(filepath.Join(ws, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(ws, "out")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, command, workdir string
		says                   string
		failed, undone         bool
	}{
		{"words and quotes", `echo 'a  b' "c d" e\ f`, "", "a  b c d e f", false, false},
		{"nothing is expanded", `echo '$HOME' '*'`, "", "$HOME *", false, false},
		{"variables are text", `echo $HOME *`, "", "$HOME *", false, false},
		{"not on the list", "id", "", "safeBins", true, true},
		{"not by its path", "/bin/echo x", "", "safeBins", true, true},
		{"a pipe", "echo x | cat", "", `no "|"`, true, true},
		{"a list", "echo x; echo y", "", `no ";"`, true, true},
		{"a redirection", "echo x > y", "", `no ">"`, true, true},
		{"in the background", "echo x & echo y", "", `no "&"`, true, true},
		{"unfinished", `echo "x`, "", "not readable", true, true},
		{"empty", "  ", "", "empty", true, true},
		{"a status", "false", "", "exit status 1", true, false},
		{"below", "pwd", "below", "/below", false, false},
		{"above", "pwd", "..", "in the workspace", true, true},
		{"elsewhere", "pwd", "/etc", "no directory", true, true},
		{"by a link", "pwd", "out/etc", "in the workspace", true, true},
		{"nowhere", "pwd", "gone", "no directory", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := run(map[string]any{"command": c.command, "workdir": c.workdir})
			if !strings.Contains(out.Text, c.says) || out.Failed != c.failed || out.Undone != c.undone {
				t.Errorf("%+v", out)
			}
		})
	}
	env := run(map[string]any{"command": "env"}).Text
	for _, line := range strings.Split(strings.TrimSpace(env), "\n") {
		switch name, _, _ := strings.Cut(line, "="); name {
		case "HOME", "TMPDIR", "PATH", "LANG", "LC_ALL", "TZ", "PWD", "SHLVL", "_":
		default:
			t.Errorf("it is told %s", line)
		}
	}
	if _, err := os.Stat(filepath.Join(ws, "y")); err == nil {
		t.Error("something was redirected")
	}
}

func TestNotOffered(t *testing.T) {
	for security, want := range map[string]string{"": "", agent.ExecDeny: "", "sometimes": "not known", agent.ExecFull: "workspace"} {
		set, err := Tools(agent.Spec{ID: "a", Exec: agent.ExecSpec{Security: security}}, agent.Deps{})
		if set != nil || (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v %v", security, set, err)
		}
	}
}

// What runs too long is killed with all that it started, and what says too much is cut.
func TestBounds(t *testing.T) {
	ws, run := made(t, agent.ExecSpec{Security: agent.ExecFull, Timeout: 300 * time.Millisecond})
	began := time.Now()
	out := run(map[string]any{"command": `sh -c "sleep 60 & echo $! > child; echo begun; wait"`})
	if !out.Failed || out.Undone || !strings.Contains(out.Text, "killed after 300ms") || !strings.Contains(out.Text, "begun") {
		t.Errorf("%+v", out)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("after %s", d)
	}
	pid, err := os.ReadFile(filepath.Join(ws, "child"))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its child lives: %s", stat)
		}
		<-time.After(5 * time.Millisecond)
	}
	_, run = made(t, agent.ExecSpec{Security: agent.ExecFull})
	if out = run(map[string]any{"command": "head -c 3000000 /dev/zero"}); out.Failed || len(out.Text) > agent.MaxToolOutput+100 || !strings.Contains(out.Text, "bytes are left out here") {
		t.Errorf("%d bytes, failed %v", len(out.Text), out.Failed)
	}
}

// What ends the handling ends the program, and is no output.
func TestCancelled(t *testing.T) {
	_, _ = made(t, agent.ExecSpec{Security: agent.ExecFull})
	set, err := Tools(agent.Spec{ID: "a", Workspace: t.TempDir(), Exec: agent.ExecSpec{Security: agent.ExecFull}}, agent.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := set.Tools()[0].Run(ctx, &agent.Call{Arguments: []byte(`{"command":"sleep 60"}`)}); err == nil {
		t.Error("no error")
	}
}

// Under the sandbox the kernel refuses what without it works: each line is tried both ways.
func TestSandbox(t *testing.T) {
	if err := Available(); err != nil {
		t.Fatalf("this cannot be shown here: %v", err)
	}
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("the-secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	port := ln.Addr().(*net.TCPAddr).Port
	tries := []struct{ name, script string }{
		{"read outside", "cat " + secret},
		{"write outside", "echo x > " + filepath.Join(outside, "made")},
		{"remove outside", "rm " + filepath.Join(outside, "victim")},
		{"another process's environment", fmt.Sprintf("cat /proc/%d/environ > /dev/null", os.Getpid())},
		{"signal the gateway", fmt.Sprintf("kill -0 %d", os.Getpid())},
		{"connect", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d", port)},
		{"by a link", "ln -s " + secret + " link; cat link"},
	}
	for _, mode := range []string{agent.SandboxOff, agent.SandboxAll, agent.SandboxNonMain} {
		_, run := made(t, agent.ExecSpec{Security: agent.ExecFull, Sandbox: mode})
		for _, c := range tries {
			if err := os.WriteFile(filepath.Join(outside, "victim"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			out := run(map[string]any{"command": "bash -c '" + c.script + "'"})
			if confined := mode != agent.SandboxOff; out.Failed != confined {
				t.Errorf("%s with sandbox %s: %+v", c.name, mode, out)
			}
		}
		for _, c := range []string{"echo x > inside; cat inside", "echo x > $TMPDIR/y; cat $TMPDIR/y", "mkdir -p a b; echo 1 > a/f; mv a/f b/f"} {
			if out := run(map[string]any{"command": "bash -c '" + c + "'"}); out.Failed {
				t.Errorf("%q with sandbox %s: %+v", c, mode, out)
			}
		}
	}
	_, run := made(t, agent.ExecSpec{Security: agent.ExecFull, Sandbox: agent.SandboxAll, Network: true})
	if out := run(map[string]any{"command": fmt.Sprintf("bash -c 'exec 3<>/dev/tcp/127.0.0.1/%d'", port)}); out.Failed {
		t.Errorf("it may connect: %+v", out)
	}
	if out := run(map[string]any{"command": "cat " + secret}); !out.Failed {
		t.Errorf("with the network it reads outside: %+v", out)
	}
	// The workspace, as the setting says.
	for access, want := range map[string]string{agent.AccessRead: "read", agent.AccessNone: "", agent.AccessReadWrite: "read write"} {
		ws, run := made(t, agent.ExecSpec{Security: agent.ExecFull, Sandbox: agent.SandboxAll, Access: access})
		if err := os.WriteFile(filepath.Join(ws, "f"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		got := ""
		if out := run(map[string]any{"command": "cat " + filepath.Join(ws, "f")}); !out.Failed {
			got = "read"
		}
		if out := run(map[string]any{"command": "touch " + filepath.Join(ws, "g")}); !out.Failed {
			got += " write"
		}
		if got != want {
			t.Errorf("workspaceAccess %s: %q", access, got)
		}
	}
}

// The main session is not confined by non-main, and a mode that is not known confines.
func TestWhoIsConfined(t *testing.T) {
	for _, c := range []struct {
		mode, session string
		want          bool
	}{
		{"", "agent:a:x", false},
		{"off", "agent:a:x", false},
		{"non-main", "agent:a:main", false},
		{"non-main", "agent:a:main:x", true},
		{"non-main", "agent:a:x", true},
		{"all", "agent:a:main", true},
		{"odd", "agent:a:main", true},
	} {
		if got := (tool{agent.Spec{Exec: agent.ExecSpec{Sandbox: c.mode}}}).confined(c.session); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// Where a program cannot be confined it is not run.
func TestRefusedRatherThanUnconfined(t *testing.T) {
	ws, run := made(t, agent.ExecSpec{Security: agent.ExecFull, Sandbox: agent.SandboxAll, Access: "everything"})
	out := run(map[string]any{"command": "touch made"})
	if !out.Failed || !out.Undone || !strings.Contains(out.Text, "is to be confined") {
		t.Errorf("%+v", out)
	}
	if _, err := os.Stat(filepath.Join(ws, "made")); err == nil {
		t.Error("it was run")
	}
	if err := become("{", nil); err == nil {
		t.Error("no order, and no error")
	}
}
