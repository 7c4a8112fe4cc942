package main

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// TestCLI runs every client command against a demo.
func TestCLI(t *testing.T) {
	demo, addr := startDemo(t)
	env := []string{"GATEMESH_ADDR=" + addr}

	t.Run("ask", func(t *testing.T) {
		if out := must(t, env, "ask", "Ask Bobby to check the infrastructure"); !strings.HasPrefix(out, "Bobby (on bobby-gateway): ") {
			t.Errorf("answer: %s", out)
		}
		st := parse[gateway.MessageStatus](t, must(t, env, "ask", "--json", "--to", "billy@billy-gateway", "--capability", nodeReport, "and you?"))
		if !st.Facts.Replied || st.Reply == nil || st.Text == "" {
			t.Errorf("ask --json: %+v", st.Facts)
		}
	})
	t.Run("send", func(t *testing.T) {
		for wait, want := range map[string]string{"none": "accepted", "accepted": "accepted", "delivered": "delivered", "acked": "acked"} {
			out := must(t, env, "send", "--to", "billy", "--wait", wait, "hello")
			if id, facts, _ := strings.Cut(strings.TrimSpace(out), " "); len(id) != 36 || !strings.Contains(facts, want) {
				t.Errorf("--wait %s: %q", wait, out)
			}
		}
	})
	t.Run("send twice", func(t *testing.T) {
		id := envelope.NewID()
		first := must(t, env, "send", "--to", "billy", "--id", id, "--wait", "acked", "once")
		second := must(t, env, "send", "--to", "billy", "--id", id, "--wait", "acked", "once")
		if !strings.HasPrefix(first, id) || !strings.HasPrefix(second, id) {
			t.Errorf("%q, then %q", first, second)
		}
	})
	t.Run("message", func(t *testing.T) {
		id := parse[gateway.MessageStatus](t, must(t, env, "ask", "--json", "Ask Bobby to check the infrastructure")).MessageID
		for _, name := range []string{id, shortID(id)} {
			out := must(t, env, "message", "show", name)
			for _, want := range []string{id, "timeline", "queued", "delivered", "acked", "replied", "body", "answer from jerry@jerry-gateway"} {
				if !strings.Contains(out, want) {
					t.Errorf("message show %s has no %q:\n%s", name, want, out)
				}
			}
		}
		if st := parse[gateway.MessageStatus](t, must(t, env, "message", "show", "--json", id)); st.MessageID != id || len(st.Events) < 4 {
			t.Errorf("message show --json: %+v", st)
		}
		if out := must(t, env, "message", "show", "--follow", id); !strings.Contains(out, "replied") {
			t.Errorf("message show --follow:\n%s", out)
		}
		for line := range strings.Lines(must(t, env, "message", "show", "--follow", "--json", id)) {
			parse[bus.Event](t, line)
		}
		if out := must(t, env, "message", "list"); !strings.Contains(out, id) {
			t.Errorf("message list:\n%s", out)
		}
		if list := parse[[]gateway.MessageStatus](t, must(t, env, "message", "list", "--json", "--limit", "2")); len(list) != 2 {
			t.Errorf("message list --limit 2: %d", len(list))
		}
	})
	t.Run("agents", func(t *testing.T) {
		if list := parse[[]bus.AgentInfo](t, must(t, env, "agents", "--json", "--capability", infraCheck)); len(list) != 1 || list[0].ID != "bobby" {
			t.Errorf("%+v", list)
		}
		if out := must(t, env, "agents", "--capability", "no.such"); !strings.HasPrefix(out, "no agents") {
			t.Errorf("%s", out)
		}
	})
	t.Run("gateways", func(t *testing.T) {
		if list := parse[[]bus.GatewayInfo](t, must(t, env, "gateways", "--json")); len(list) != 3 {
			t.Errorf("%+v", list)
		}
		if out := must(t, env, "gateways"); !strings.Contains(out, "billy-gateway\thealthy") {
			t.Errorf("%s", out)
		}
	})
	t.Run("inbox", func(t *testing.T) {
		if out := must(t, env, "inbox", "bobby"); !strings.Contains(out, "bobby\tbobby-gateway\t0\t0\t0\t") || !strings.Contains(out, "FROM\tNEWEST") {
			t.Errorf("%s", out)
		}
		if list := parse[[]bus.InboxInfo](t, must(t, env, "inbox", "--json")); len(list) < 3 {
			t.Errorf("%+v", list)
		}
	})
	t.Run("status", func(t *testing.T) {
		if st := parse[gateway.StatusResponse](t, must(t, env, "status", "--json")); !st.Ready || st.Gateway != "jerry-gateway" {
			t.Errorf("%+v", st)
		}
		if out := must(t, env, "status"); !strings.Contains(out, "state    ready\n") {
			t.Errorf("%s", out)
		}
	})
	t.Run("events", func(t *testing.T) {
		p := launch(t, env, "events", "--json", "--replay", "1000")
		line, _ := p.wait(0, `"event":"replied"`)
		if ev := parse[gateway.StreamEvent](t, line); ev.Seq == 0 || ev.Gateway != "jerry-gateway" {
			t.Errorf("%s", line)
		}
		id := envelope.NewID()
		must(t, env, "ask", "--id", id, "Ask Bobby to check the infrastructure")
		p.wait(0, `"event":"replied"`, id)
		if code := p.end(syscall.SIGINT); code != exitOK {
			t.Errorf("status %d", code)
		}
	})
	t.Run("doctor", func(t *testing.T) {
		found, r := examine(t, env)
		if r.code != exitOK {
			t.Errorf("status %d: %s", r.code, r.out)
		}
		wantFindings(t, found, map[string]string{"gateway": statusOK, "token": statusOK, "ready": statusOK, "clock": statusOK,
			"gateways": statusOK, "agents": statusOK, "inboxes": statusOK})
	})
	t.Run("completion", func(t *testing.T) {
		if out := must(t, env, "completion", "bash"); !strings.Contains(out, "__start_gatemesh") {
			t.Errorf("%.200s", out)
		}
		r := gatemesh(t, env, "", "__complete", "send", "--to", "b")
		if !strings.HasPrefix(r.out, "billy\t"+nodeReport+"\nbobby\t"+infraCheck+"\n:4") {
			t.Errorf("%s", r.out)
		}
	})
	t.Run("bad input", func(t *testing.T) {
		big := writeFile(t, filepath.Join(t.TempDir(), "big"), strings.Repeat("x", envelope.MaxPayload+1))
		for _, c := range []struct {
			args []string
			says string
		}{
			{[]string{"ask", "--to", "nobody", "hi"}, "gatemesh agents"},
			{[]string{"send", "--to", "bobby", "--file", big}, "mesh.maxPayload"},
			{[]string{"send", "--to", "bobby", "--id", "not-a-uuid", "hi"}, "UUID"},
			{[]string{"send", "--to", "bobby", "--ttl", "9000h", "hi"}, "ttl"},
			{[]string{"send", "--to", "bobby", "--from", "No One", "hi"}, "not a name"},
			{[]string{"message", "show", envelope.NewID()}, "not found"},
			{[]string{"message", "show", "ffffffff"}, "gatemesh message list"},
			{[]string{"inbox", "nobody"}, "nobody"},
		} {
			r := gatemesh(t, env, "", c.args...)
			if r.code != exitUsage {
				t.Errorf("%v: status %d", c.args, r.code)
			}
			oneLine(t, r)
			if !strings.Contains(r.errOut, c.says) {
				t.Errorf("%v: %q does not say %q", c.args, r.errOut, c.says)
			}
		}
	})
	if code := demo.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("demo: status %d", code)
	}
}
