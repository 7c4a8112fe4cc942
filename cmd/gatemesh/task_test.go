package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// TestTasks runs the task commands against one gateway that has a queue with a worker and one without.
func TestTasks(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: {
    gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true }, service: { register: false },
    queues: [{ id: "jobs", agent: "echo", concurrency: 3 }, { id: "idle", agent: "echo", workers: ["other-gateway"] }],
  },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  agents: { list: [{ id: "echo", runner: "echo" }] },
}
`, filepath.Join(dir, "data")))
	p, env := startDaemon(t, file)
	until(t, "both queues have their owner", func() bool {
		out := must(t, env, "task", "queues")
		return strings.Contains(out, "jobs\tnode-gateway\t0\t0\t0\tnode-gateway (3)\n") && strings.Contains(out, "idle\tnode-gateway\t0\t0\t0\t-\n")
	})

	t.Run("add", func(t *testing.T) {
		if out := must(t, env, "task", "add", "--queue", "jobs", "--priority", "0", "--wait", "count", "the", "beans"); out != "count the beans\n" {
			t.Errorf("result %q", out)
		}
		r := gatemesh(t, env, `{"text":"from a pipe"}`, "task", "add", "--queue", "jobs", "--json-body", "--wait", "-")
		if r.code != exitOK || r.out != "from a pipe\n" {
			t.Errorf("status %d: %q %s", r.code, r.out, r.errOut)
		}
		out := must(t, env, "task", "add", "--queue", "jobs", "beans")
		id, facts, _ := strings.Cut(strings.TrimSpace(out), " ")
		if len(id) != 36 || !strings.Contains(facts, "accepted") {
			t.Fatalf("%q", out)
		}
		if out := must(t, env, "task", "show", id); !strings.Contains(out, id) || !strings.Contains(out, "beans") {
			t.Errorf("task show:\n%s", out)
		}
	})
	t.Run("send with priority", func(t *testing.T) {
		st := parse[gateway.MessageStatus](t, must(t, env, "send", "--to", "echo", "--priority", "9", "--delay", "1h", "--json", "later"))
		if e := st.Envelope; e == nil || e.Priority() != 9 || time.Until(e.NotBefore()) < 30*time.Minute {
			t.Errorf("%+v", st)
		}
	})

	id := envelope.NewID()
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	t.Run("unique and later", func(t *testing.T) {
		must(t, env, "task", "add", "--queue", "idle", "--id", id, "--at", at.Format(time.RFC3339), "--priority", "7", "--capability", "beans.count",
			"--unique", "beans", "--unique-for", "1h", "--ttl", "1h", "--max-attempts", "2", "count")
		if out := must(t, env, "task", "show", id); !strings.Contains(out, "priority      7") || !strings.Contains(out, "unique key    beans") || !strings.Contains(out, "not before") {
			t.Errorf("%s", out)
		}
		out := must(t, env, "task", "add", "--queue", "idle", "--unique", "beans", "--wait", "count again")
		if !strings.HasPrefix(out, "a duplicate of "+id) {
			t.Errorf("%q", out)
		}
	})
	t.Run("list", func(t *testing.T) {
		until(t, "the tasks of jobs are done", func() bool { return must(t, env, "task", "list", "--queue", "jobs") == "no unfinished tasks\n" })
		must(t, env, "task", "add", "--queue", "idle", "--priority", "9", "now")
		list := parse[[]bus.TaskInfo](t, must(t, env, "task", "list", "--queue", "idle", "--json"))
		if len(list) != 2 || list[0].Priority != 9 || list[0].State != bus.TaskWaiting {
			t.Fatalf("%+v", list)
		}
		if x := list[1]; x.MessageID != id || x.State != bus.TaskDelayed || x.Priority != 7 || x.UniqueKey != "beans" || x.Capability != "beans.count" || x.DueAt == nil || !x.DueAt.Equal(at) {
			t.Errorf("%+v", x)
		}
		out := must(t, env, "task", "list", "--state", "delayed")
		if !strings.HasPrefix(out, "ID\tQUEUE\tSTATE\tPRIORITY\t") || !strings.Contains(out, id+"\tidle\tdelayed\t7\toperator@node-gateway\tbeans.count\t") || strings.Count(out, "\n") != 2 {
			t.Errorf("%s", out)
		}
		r := gatemesh(t, env, "", "task", "list", "--limit", "1")
		if r.code != exitOK || strings.Count(r.out, "\n") != 2 || r.errOut != "gatemesh: 1 task more (--limit)\n" {
			t.Errorf("status %d: %s%s", r.code, r.out, r.errOut)
		}
		queues := parse[[]bus.QueueInfo](t, must(t, env, "task", "queues", "--json"))
		if len(queues) != 2 || queues[0].Queue != "idle" || queues[0].Waiting != 1 || queues[0].Delayed != 1 || len(queues[1].Workers) != 1 {
			t.Errorf("%+v", queues)
		}
	})
	t.Run("doctor", func(t *testing.T) {
		found, _ := examine(t, env)
		wantFindings(t, found, map[string]string{"queue idle": statusWarn, "agents": statusOK})
		if got := found["agents"].Detail; got != "1 agent, each with an owner" {
			t.Errorf("agents: %s", got)
		}
	})
	t.Run("wait in vain", func(t *testing.T) {
		r := gatemesh(t, env, "", "task", "add", "--queue", "idle", "--wait", "--timeout", "50ms", "nobody does it")
		if r.code != exitTimeout {
			t.Errorf("status %d: %s", r.code, r.errOut)
		}
		oneLine(t, r)
	})
	t.Run("cancel", func(t *testing.T) {
		if out := must(t, env, "task", "cancel", id, "--queue", "idle", "--by", "me"); out != id+" cancelled\n" {
			t.Errorf("%q", out)
		}
		until(t, "the task is a dead letter", func() bool {
			dead := parse[[]bus.DeadLetter](t, must(t, env, "deadletter", "list", "--agent", "idle", "--class", "cancelled", "--json"))
			return len(dead) == 1 && dead[0].MessageID == id && strings.Contains(dead[0].Reason, "me")
		})
		r := gatemesh(t, env, "", "task", "cancel", id, "--queue", "idle")
		if r.code != exitUsage || !strings.Contains(r.errOut, "no unfinished task") {
			t.Errorf("twice: status %d: %s", r.code, r.errOut)
		}
		oneLine(t, r)
	})
	t.Run("completion", func(t *testing.T) {
		if r := gatemesh(t, env, "", "__complete", "task", "add", "--queue", "j"); !strings.HasPrefix(r.out, "jobs\t0 waiting\n:4") {
			t.Errorf("%s", r.out)
		}
	})
	t.Run("bad input", func(t *testing.T) {
		for _, c := range []struct {
			args []string
			says string
		}{
			{[]string{"task", "add", "--queue", "nothing", "hi"}, "gatemesh task queues"},
			{[]string{"task", "list", "--queue", "nothing"}, "there is no queue nothing"},
			{[]string{"task", "cancel", id, "--queue", "nothing"}, "there is no queue nothing"},
			{[]string{"task", "cancel", "X", "--queue", "idle"}, "not a message id"},
			{[]string{"task", "add", "--queue", "jobs", "--delay", "721h", "hi"}, "delay"},
			{[]string{"task", "add", "--queue", "jobs", "--unique", "a\tb", "hi"}, "unique_key"},
			{[]string{"task", "add", "--queue", "jobs", "--unique", "k", "--unique-for", "900000h", "hi"}, "unique_for"},
		} {
			r := gatemesh(t, env, "", c.args...)
			if r.code != exitUsage || !strings.Contains(r.errOut, c.says) {
				t.Errorf("%v: status %d, %q does not say %q", c.args, r.code, r.errOut, c.says)
			}
			oneLine(t, r)
		}
	})
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}
