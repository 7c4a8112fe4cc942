package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// checkStory checks the events of a demo's question: jerry got it, asked bobby, bobby
// answered, jerry passed it on, and every fact was told by the gateway that made it.
func checkStory(t *testing.T, out, suffix string) {
	t.Helper()
	type step struct{ event, gateway string }
	story := map[string][]step{} // by message
	var events []bus.Event
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		ev := parse[bus.Event](t, line)
		if ev.Event == "" || ev.Gateway == "" || ev.At.IsZero() {
			t.Errorf("line without event, gateway or at: %s", line)
		}
		events = append(events, ev)
		if ev.MessageID != "" {
			story[ev.MessageID] = append(story[ev.MessageID], step{ev.Event, strings.TrimSuffix(ev.Gateway, suffix)})
		}
	}
	find := func(from, to string) bus.Event {
		i := slices.IndexFunc(events, func(ev bus.Event) bool {
			agent, _, _ := strings.Cut(ev.From, "@")
			return ev.Event == bus.EventQueued && agent == from && ev.To == to && ev.InReplyTo == ""
		})
		if i < 0 {
			t.Fatalf("no question from %s to %s:\n%s", from, to, out)
		}
		return events[i]
	}
	question := find("user", "jerry"+suffix)
	asked := find("jerry"+suffix, "bobby"+suffix)
	if asked.CorrelationID != question.MessageID {
		t.Errorf("jerry's question belongs to %s, want %s", asked.CorrelationID, question.MessageID)
	}
	if asked.Capability != infraCheck {
		t.Errorf("jerry asked for %q", asked.Capability)
	}
	for id, want := range map[string][]step{
		question.MessageID: {{"queued", "jerry-gateway"}, {"delivered", "jerry-gateway"}, {"acked", "jerry-gateway"}, {"replied", "jerry-gateway"}},
		asked.MessageID:    {{"queued", "jerry-gateway"}, {"delivered", "bobby-gateway"}, {"acked", "bobby-gateway"}},
	} {
		for _, s := range want {
			if !slices.Contains(story[id], s) {
				t.Errorf("message %s has no %v: %v", id, s, story[id])
			}
		}
	}
	i := slices.IndexFunc(events, func(ev bus.Event) bool { return ev.Event == bus.EventReplied && ev.MessageID == question.MessageID })
	if i >= 0 && !strings.Contains(events[i].Text, "Bobby") {
		t.Errorf("the answer is %q", events[i].Text)
	}
}

var timelineLine = regexp.MustCompile(`(?m)^ +\d+ ms  (jerry|bobby)-gateway  (queued|delivered|acked|replied) +[0-9a-f]{8}  \S+ -> \S+`)

func checkTimeline(t *testing.T, out string) {
	t.Helper()
	found := map[string]bool{}
	for _, m := range timelineLine.FindAllStringSubmatch(out, -1) {
		found[m[1]+" "+m[2]] = true
	}
	for _, want := range []string{"jerry queued", "jerry delivered", "bobby delivered", "bobby acked", "jerry acked", "jerry replied"} {
		if !found[want] {
			t.Errorf("the timeline has no %q:\n%s", want, out)
		}
	}
	if !strings.Contains(out, "question user -> jerry: Ask Bobby to check the infrastructure") || !regexp.MustCompile(`(?m)^answer after \d+ ms$`).MatchString(out) {
		t.Errorf("no question or answer:\n%s", out)
	}
}

func TestDemoOnce(t *testing.T) {
	tmp := t.TempDir()
	out := must(t, []string{"TMPDIR=" + tmp}, "demo", "--once")
	checkTimeline(t, out)
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// Whatever this machine has or has not: Bobby looked at all three.
	for _, part := range []string{"Consul: ", "Nomad: ", "Node "} {
		if !strings.Contains(out, "\n  "+part) {
			t.Errorf("the answer says nothing of %q:\n%s", part, out)
		}
	}
}

func TestDemoOnceJSON(t *testing.T) {
	r := gatemesh(t, nil, "", "demo", "--once", "--json")
	if r.code != exitOK {
		t.Fatalf("status %d: %s", r.code, r.errOut)
	}
	checkStory(t, r.out, "")
}

func TestDemoAnswersAnotherQuestion(t *testing.T) {
	out := must(t, nil, "demo", "--once", "--question", "How is the disk of your node, Billy?")
	if !strings.Contains(out, "Billy (on billy-gateway):") {
		t.Errorf("Billy did not answer:\n%s", out)
	}
}

// startDemo runs a demo that stays, and returns the address that it prints.
func startDemo(t *testing.T, args ...string) (*proc, string) {
	t.Helper()
	p := launch(t, nil, append([]string{"demo"}, args...)...)
	line, _ := p.wait(0, "list agents", "GATEMESH_ADDR=")
	_, rest, _ := strings.Cut(line, "GATEMESH_ADDR=")
	addr, _, _ := strings.Cut(rest, " ")
	return p, addr
}

func TestDemoStaysUntilItIsStopped(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		p, addr := startDemo(t)
		if out := must(t, []string{"GATEMESH_ADDR=" + addr}, "agents"); !strings.Contains(out, "bobby\tbobby-gateway\tactive") {
			t.Errorf("agents:\n%s", out)
		}
		if code := p.end(s); code != exitOK {
			t.Errorf("%v: status %d", s, code)
		}
		if r := gatemesh(t, []string{"GATEMESH_ADDR=" + addr}, "", "agents"); r.code != exitUnavailable {
			t.Errorf("after the end: status %d", r.code)
		}
	}
}

// TestDemoPort: the three gateways listen where they were told to.
func TestDemoPort(t *testing.T) {
	l, port := threePorts(t)
	r := gatemesh(t, nil, "", "demo", "--once", "--port", strconv.Itoa(port))
	if r.code != exitFailed || !strings.Contains(r.errOut, "in use") {
		t.Errorf("taken port: status %d, %s", r.code, r.errOut)
	}
	oneLine(t, r)
	_ = l.Close()
	if out := must(t, nil, "demo", "--once", "--port", strconv.Itoa(port)); !strings.Contains(out, fmt.Sprintf("jerry-gateway http://127.0.0.1:%d ", port)) ||
		!strings.Contains(out, fmt.Sprintf("billy-gateway http://127.0.0.1:%d ", port+2)) {
		t.Errorf("%s", out)
	}
}

// threePorts finds three ports in a row, below those that the system gives away by itself, so that they are
// still free when they are used. It listens on the first.
func threePorts(t *testing.T) (net.Listener, int) {
	t.Helper()
	for range 100 {
		port := 24000 + rand.IntN(8000)
		var ls []net.Listener
		for i := range 3 {
			if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+i)); err == nil {
				ls = append(ls, l)
			}
		}
		for i, l := range ls {
			if i > 0 || len(ls) < 3 {
				_ = l.Close()
			}
		}
		if len(ls) == 3 {
			return ls[0], port
		}
	}
	t.Fatal("no three free ports in a row")
	return nil, 0
}

// TestChildrenDieWithTheDemo: a demo that is killed leaves no gateway and no Consul.
func TestChildrenDieWithTheDemo(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has a death signal")
	}
	p := launch(t, []string{"TMPDIR=" + t.TempDir()}, "demo", "--store", "consul")
	line, _ := p.wait(0, "list agents", "GATEMESH_ADDR=")
	_, rest, _ := strings.Cut(line, "GATEMESH_ADDR=")
	addr, _, _ := strings.Cut(rest, " ")
	p.end(syscall.SIGKILL)
	until(t, "jerry's gateway is gone", func() bool {
		return gatemesh(t, []string{"GATEMESH_ADDR=" + addr}, "", "status").code == exitUnavailable
	})
}

func TestDemoOnConsul(t *testing.T) {
	r := gatemesh(t, nil, "", "demo", "--store", "consul", "--once")
	if r.code != exitOK || r.errOut != "" {
		t.Fatalf("status %d\n%s%s", r.code, r.out, r.errOut)
	}
	checkTimeline(t, r.out)
	if !regexp.MustCompile(`(?m)^Consul UI http://127.0.0.1:\d+/ui/dc1/kv/openclaw/$`).MatchString(r.out) {
		t.Errorf("no address of the UI:\n%s", r.out)
	}
	// Bobby really looked: there is a Consul, and he says so.
	if strings.Contains(r.out, "Consul: absent") {
		t.Errorf("Bobby did not see Consul:\n%s", r.out)
	}
}

// TestDemoOnExistingConsul: what was there stays as it was, and nothing is left behind.
func TestDemoOnExistingConsul(t *testing.T) {
	c := cluster.ForTest(t, 1)
	s, err := consul.New(consul.Options{Address: c.Addr(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	mine := []string{"openclaw/agents/bobby/gateway", "openclaw/cluster/id", "openclaw/inbox/bobby/about", "other/key"}
	for _, k := range mine {
		if _, err := s.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: k, Value: []byte("mine")}}); err != nil {
			t.Fatal(err)
		}
	}
	before, err := s.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	r := gatemesh(t, []string{"CONSUL_HTTP_ADDR=" + c.Addr(0)}, "", "demo", "--store", "consul", "--existing", "--once", "--json")
	if r.code != exitOK {
		t.Fatalf("status %d\n%s%s", r.code, r.out, r.errOut)
	}
	suffix := regexp.MustCompile(`-demo-[a-z0-9]{5}`).FindString(r.out)
	checkStory(t, r.out, suffix)
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	after, err := s.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != len(after) {
		t.Errorf("before %d keys, after %d", len(before), len(after))
	}
	for i := range min(len(before), len(after)) {
		if before[i].Key != after[i].Key || before[i].ModifyIndex != after[i].ModifyIndex {
			t.Errorf("%s was touched, or %s is new", before[i].Key, after[i].Key)
		}
	}
}
