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
	t.Run("message cancel", func(t *testing.T) {
		id, _, _ := strings.Cut(must(t, env, "send", "--to", "billy", "--delay", "1h", "--wait", "accepted", "later"), " ")
		if out := must(t, env, "message", "cancel", "--by", "me", id); out != id+" cancelled\n" {
			t.Errorf("%q", out)
		}
		if st := parse[gateway.MessageStatus](t, must(t, env, "message", "show", "--json", id)); st.Facts.Class != envelope.ClassCancelled || st.Facts.Reason != "cancelled by me" {
			t.Errorf("%+v", st.Facts)
		}
		if r := gatemesh(t, env, "", "message", "cancel", id); r.code != exitUsage || !strings.Contains(r.errOut, "it has ended") {
			t.Errorf("again: %+v", r)
		}
		must(t, env, "deadletter", "purge", id)
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
	t.Run("big payload", func(t *testing.T) {
		text := strings.Repeat("0123456789", 60_000)
		file := writeFile(t, filepath.Join(t.TempDir(), "big"), text)
		if out := must(t, env, "send", "--to", "bobby", "--capability", "infra.check", "--wait", "acked", "--file", file); !strings.Contains(out, "acked") {
			t.Errorf("%s", out)
		}
	})
	t.Run("dead letters", func(t *testing.T) {
		sent := gatemesh(t, env, "", "send", "--to", "bobby", "--capability", "tea.brew", "--wait", "acked", "--json", "make tea")
		if sent.code != exitFailed {
			t.Fatalf("status %d: %s", sent.code, sent.errOut)
		}
		id := parse[gateway.MessageStatus](t, sent.out).MessageID
		dead := parse[[]bus.DeadLetter](t, must(t, env, "deadletter", "list", "--agent", "bobby", "--class", "undeliverable", "--json"))
		if len(dead) != 1 || dead[0].MessageID != id || dead[0].Envelope == nil {
			t.Fatalf("%+v", dead)
		}
		for _, want := range []string{id, "undeliverable", "tea.brew", "make tea", "gatemesh deadletter redrive " + id} {
			if out := must(t, env, "deadletter", "show", id); !strings.Contains(out, want) {
				t.Errorf("show has no %q:\n%s", want, out)
			}
		}
		if out := must(t, env, "deadletter", "redrive", "--contains", "tea.brew", "--dry-run"); !strings.Contains(out, "would be queued again") {
			t.Errorf("%s", out)
		}
		// Nothing has changed, so it dies again, with both lives in its record.
		must(t, env, "deadletter", "redrive", id, "--by", "me")
		st := parse[gateway.MessageStatus](t, must(t, env, "message", "show", id, "--json"))
		if st.MessageID != id {
			t.Errorf("%+v", st)
		}
		p := launch(t, env, "message", "show", id, "--follow")
		p.wait(0, "dead-letter")
		again := parse[bus.DeadLetter](t, must(t, env, "deadletter", "show", id, "--json"))
		if len(again.Delivery.Redrives) != 1 || again.Delivery.Redrives[0].By != "me" || again.Delivery.Attempt != 2 {
			t.Errorf("%+v", again.Delivery)
		}
		if res := parse[gateway.DeadLetterResults](t, must(t, env, "deadletter", "purge", "--all", "--json")); res.Done != 1 || res.Left != 0 {
			t.Errorf("%+v", res)
		}
		if out := must(t, env, "deadletter", "list"); !strings.HasPrefix(out, "no dead letters") {
			t.Errorf("%s", out)
		}
	})
	t.Run("fan-out", func(t *testing.T) {
		r := gatemesh(t, env, "", "ask", "--to", "bobby,jerry", "--capability", "tea.brew", "make tea")
		if r.code != exitFailed || !strings.Contains(r.out, "bobby\t") || !strings.Contains(r.out, "undeliverable") || !strings.Contains(r.out, "jerry\t") || !strings.Contains(r.errOut, "partial") {
			t.Errorf("status %d: %s%s", r.code, r.out, r.errOut)
		}
		all := parse[gateway.FanResponse](t, must(t, env, "ask", "--to", "", "--all", "--capability", infraCheck, "--json", "check"))
		if all.Outcome != bus.FanDone || len(all.Legs) == 0 || !strings.Contains(all.Texts["bobby"], "Consul") {
			t.Errorf("%+v", all)
		}
	})
	t.Run("budget", func(t *testing.T) {
		if out := must(t, env, "ask", "--budget-messages", "0", "Ask Bobby to check the infrastructure"); !strings.Contains(out, "I did not ask bobby: budget") && !strings.Contains(out, "I did not ask Bobby: budget") {
			t.Errorf("%s", out)
		}
	})
	t.Run("bad input", func(t *testing.T) {
		big := writeFile(t, filepath.Join(t.TempDir(), "big"), strings.Repeat("x", 8<<20))
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
			{[]string{"ask", "--to", "bobby,nobody", "hi"}, "nobody"},
			{[]string{"ask", "--all", "hi"}, "--capability"},
			{[]string{"send", "--to", "bobby", "--capability", "mesh.deadletter.purge", "hi"}, "the mesh's own"},
			{[]string{"send", "--to", "bobby", "--max-attempts", "1000", "hi"}, "--max-attempts"},
			{[]string{"send", "--to", "bobby", "--ack-timeout", "soon", "hi"}, "--ack-timeout"},
			{[]string{"deadletter", "purge"}, "--all"},
			{[]string{"deadletter", "list", "--class", "bad-luck"}, "undeliverable"},
			{[]string{"deadletter", "redrive", "--before", "yesterday"}, "before"},
			{[]string{"deadletter", "show", "ffffffff"}, "deadletter list"},
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
