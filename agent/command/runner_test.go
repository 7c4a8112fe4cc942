//go:build linux

package command

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/envelope"
)

const longest = 30 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	t.Cleanup(cancel)
	return ctx
}

// worker is a gateway on a store whose agent worker is a program.
func worker(t *testing.T, name string, s bus.Store, spec agent.Spec) *bus.Bus {
	t.Helper()
	spec.ID = "worker"
	h, err := NewRunner(spec, agent.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.New(bus.Config{Gateway: name, Store: s, Retry: bus.RetryPolicy{Initial: 10 * time.Millisecond, Max: 50 * time.Millisecond}, DrainGrace: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(bus.AgentSpec{ID: "worker"}, h); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(within(t)); err != nil {
			t.Error(err)
		}
	})
	return b
}

func newStore(t *testing.T) bus.Store {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "mesh.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// script is a workspace with the program run in it.
func script(t *testing.T, body string) (workspace string, command []string) {
	t.Helper()
	workspace = t.TempDir()
	if err := os.WriteFile(filepath.Join(workspace, "run"), []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return workspace, []string{"./run", "argument"}
}

func ask(t *testing.T, b *bus.Bus, payload string) string {
	t.Helper()
	for ctx := within(t); ; {
		s, err := b.AskAPI(ctx, bus.Outgoing{From: "user", To: envelope.Address{Agent: "worker"}, Payload: []byte(payload), ConversationID: "c1"})
		if err == nil {
			return s.MessageID
		}
		if !errors.Is(err, bus.ErrUnknownAgent) || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func await(t *testing.T, b *bus.Bus, id string) bus.Track {
	t.Helper()
	tr, err := b.Await(within(t), id, func(x bus.Track) bool { return x.Facts.Replied || x.Facts.Dead })
	if err != nil {
		t.Fatalf("%v: %+v", err, tr.Facts)
	}
	return tr
}

func TestRunner(t *testing.T) {
	t.Setenv("GATEMESH_TOKEN", "secret-of-the-gateway")
	for _, c := range []struct {
		name, body, payload string
		reply, says         string
	}{
		{"text", `echo "$1: $(cat)"`, `"what?"`, `"argument: what?"`, ""},
		{"JSON for JSON", `cat`, `{"n":[1,2]}`, `{"n":[1,2]}`, ""},
		{"what looks like JSON", `echo "{x"`, `""`, `"{x"`, ""},
		{"nothing", `exit 0`, `"x"`, `""`, ""},
		{"what it is told", `echo "$GATEMESH_FROM $GATEMESH_CONVERSATION_ID $GATEMESH_ATTEMPT ${#GATEMESH_MESSAGE_ID} ${GATEMESH_TOKEN-none} $(pwd -P | tail -c 4)"`, `"x"`, `"user@one c1 1 36 none`, ""},
		{"asks for another try", `[ $GATEMESH_ATTEMPT = 3 ] || exit 75; echo third`, `"x"`, `"third"`, ""},
		{"another status", `echo "it is broken" >&2; exit 3`, `"x"`, "", "exit status 3: it is broken"},
		{"too long an answer", `head -c 1100000 /dev/zero`, `"x"`, "", "more than 1048576 bytes"},
		{"too slow", `sleep 60`, `"x"`, "", "killed after 200ms"},
		{"does not read what it is told", `exec 0<&-; echo fine`, `"` + strings.Repeat("x", 100_000) + `"`, `"fine"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			workspace, command := script(t, c.body)
			r := agent.Runner{Command: command}
			if c.name == "too slow" {
				r.Timeout = 200 * time.Millisecond
			}
			b := worker(t, "one", newStore(t), agent.Spec{Workspace: workspace, Runner: r})
			tr := await(t, b, ask(t, b, c.payload))
			switch {
			case c.reply != "" && (tr.Reply == nil || !strings.HasPrefix(string(tr.Reply.Payload), c.reply)):
				t.Fatalf("%+v, reply %s, not %s", tr.Facts, reply(tr), c.reply)
			case c.says != "" && !strings.Contains(tr.Facts.Reason, c.says):
				t.Fatalf("%+v, not %q", tr.Facts, c.says)
			}
		})
	}
}

func reply(tr bus.Track) string {
	if tr.Reply == nil {
		return ""
	}
	return string(tr.Reply.Payload)
}

// TestRunnerConfined: the program has the sandbox of its agent.
func TestRunnerConfined(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("what is outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[string]string{agent.SandboxOff: "what is outside", agent.SandboxNonMain: "Permission denied", agent.SandboxAll: "Permission denied"} {
		workspace, command := script(t, "cat "+secret+" 2>&1; true")
		b := worker(t, "one", newStore(t), agent.Spec{Workspace: workspace, Runner: agent.Runner{Command: command}, Exec: agent.ExecSpec{Sandbox: mode}})
		if tr := await(t, b, ask(t, b, `"x"`)); !strings.Contains(reply(tr), want) {
			t.Errorf("%s: %+v %s", mode, tr.Facts, reply(tr))
		}
	}
}

// TestRunnerCutOff has the gateway end in the middle of a run. The next one does not run the program again, unless it may.
func TestRunnerCutOff(t *testing.T) {
	for _, repeat := range []bool{false, true} {
		workspace, command := script(t, `echo x >> runs; if [ $(wc -l < runs) = 1 ]; then read line < gate; fi; echo done`)
		s, spec := newStore(t), agent.Spec{Workspace: workspace, Runner: agent.Runner{Command: command, Repeat: repeat}}
		gate := filepath.Join(workspace, "gate")
		if err := syscall.Mkfifo(gate, 0o600); err != nil {
			t.Fatal(err)
		}
		asker, err := bus.New(bus.Config{Gateway: "asker", Store: s})
		if err != nil {
			t.Fatal(err)
		}
		if err := asker.Start(within(t)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := asker.Stop(within(t)); err != nil {
				t.Error(err)
			}
		})
		one := worker(t, "one", s, spec)
		worker(t, "two", s, spec)
		id := ask(t, asker, `"x"`)
		f, err := os.OpenFile(gate, os.O_WRONLY, 0) // it opens when the program reads
		if err != nil {
			t.Fatal(err)
		}
		if err := one.Stop(within(t)); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		tr := await(t, asker, id)
		runs, err := os.ReadFile(filepath.Join(workspace, "runs"))
		if err != nil {
			t.Fatal(err)
		}
		n := strings.Count(string(runs), "x")
		switch {
		case repeat && (n != 2 || !tr.Facts.Acked):
			t.Errorf("may be repeated: %d runs, %+v", n, tr.Facts)
		case !repeat && (n != 1 || tr.Facts.Class != envelope.ClassUnknown || !strings.Contains(tr.Facts.Reason, "in the middle, on one")):
			t.Errorf("may not be repeated: %d runs, %+v", n, tr.Facts)
		}
	}
}

func TestRunnerConfiguration(t *testing.T) {
	for _, c := range []struct {
		spec agent.Spec
		says string
	}{
		{agent.Spec{Workspace: "w"}, "runner.command"},
		{agent.Spec{Runner: agent.Runner{Command: []string{"true"}}}, "workspace"},
		{agent.Spec{Workspace: "w", Runner: agent.Runner{Command: []string{"../run"}}}, "outside"},
	} {
		if _, err := NewRunner(c.spec, agent.Deps{}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, not %q", c.spec, err, c.says)
		}
	}
}
