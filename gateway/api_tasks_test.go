package gateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// waitQueue asks again until ok likes one queue.
func (n *node) waitQueue(id string, ok func(bus.QueueInfo) bool) bus.QueueInfo {
	n.t.Helper()
	ctx := within(n.t)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var res QueuesResponse
		n.do(http.MethodGet, "/v1/queues", "").into(n.t, &res)
		for _, q := range res.Queues {
			if q.Queue == id && ok(q) {
				return q
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.t.Fatalf("queue %s is not so: %+v", id, res.Queues)
		}
	}
}

func (n *node) tasks(queue, query string) TasksResponse {
	n.t.Helper()
	var res TasksResponse
	n.do(http.MethodGet, "/v1/queues/"+queue+"/tasks"+query, "").into(n.t, &res)
	return res
}

// gated gives the runner kind "echo" to g.
func gated(g *gate) agent.Runners { return runners(agent.Runners{"echo": g.factory}) }

// A queue over two gateways: each works on as many tasks as it may, one of them although the agent is
// not its own; the rest waits and can be looked at and cancelled.
func TestQueue(t *testing.T) {
	s := newStore(t)
	first, second := newGate(), newGate()
	queue := config{"queues": []config{{"id": "jobs", "agent": "bobby", "gateways": []string{"one"}, "workers": []string{"one", "two"}}}}
	bobby := config{"id": "bobby", "gateways": []string{"one"}, "runner": config{"kind": "echo"}}
	one := startNode(t, parseNode(t, "one", queue, "", bobby), Deps{Store: s, Runners: gated(first)})
	two := startNode(t, parseNode(t, "two", queue, "", bobby), Deps{Store: s, Runners: gated(second)})
	q := two.waitQueue("jobs", func(q bus.QueueInfo) bool { return q.Owner == "one" && len(q.Workers) == 2 })
	for _, w := range q.Workers {
		if w.Slots != 1 || w.Gateway != "one" && w.Gateway != "two" {
			t.Errorf("worker: %+v", w)
		}
	}
	if res := one.tasks("jobs", ""); len(res.Tasks) != 0 || res.Tasks == nil || res.Total != 0 {
		t.Errorf("an empty queue: %+v", res)
	}

	add := func(n *node, text, more string) MessageStatus {
		t.Helper()
		r := n.do(http.MethodPost, "/v1/messages", fmt.Sprintf(`{"to":"jobs","from":"tester","text":%q,"reply":true%s}`, text, more))
		var st MessageStatus
		r.into(t, &st)
		if r.status != http.StatusAccepted {
			t.Errorf("%d %s", r.status, r.body)
		}
		return st
	}
	a, b := add(one, "a", ""), add(two, "b", "")
	got := []string{await(t, first.entered, "a task on one"), await(t, second.entered, "a task on two")}
	if slices.Sort(got); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("worked on %q", got)
	}

	low := add(two, "low", `,"priority":0`)
	high := add(two, "high", `,"priority":9,"capability":"x.y","unique_key":"k"`)
	late := add(one, "late", `,"delay":"1h"`)
	if at := late.Envelope.NotBefore(); time.Until(at) < 30*time.Minute || time.Until(at) > time.Hour {
		t.Errorf("not before %s", at)
	}
	at := add(one, "at", fmt.Sprintf(`,"not_before":%q`, time.Now().Add(2*time.Hour).Format(time.RFC3339)))
	two.waitQueue("jobs", func(q bus.QueueInfo) bool { return q.Running == 2 && q.Waiting == 2 && q.Delayed == 2 })
	all := two.tasks("jobs", "")
	if len(all.Tasks) != 6 || all.Total != 6 || all.Tasks[0].MessageID != high.MessageID || all.Tasks[5].MessageID != low.MessageID {
		t.Errorf("all: %+v", all)
	}
	if x := all.Tasks[0]; x.State != "waiting" || x.Priority != 9 || x.From != "tester@two" || x.Capability != "x.y" || x.UniqueKey != "k" || x.Queue != "jobs" || x.MadeAt.IsZero() || x.DueAt != nil || x.Worker != "" {
		t.Errorf("high: %+v", x)
	}
	for query, want := range map[string][]string{
		"?state=running": {a.MessageID, b.MessageID}, "?state=waiting": {high.MessageID, low.MessageID},
		"?state=delayed": {late.MessageID, at.MessageID}, "?state=retrying": nil,
	} {
		var ids []string
		for _, x := range one.tasks("jobs", query).Tasks {
			ids = append(ids, x.MessageID)
			if delayed := x.State == "delayed"; delayed != (x.DueAt != nil) || (x.State == "running") != (x.Worker != "") {
				t.Errorf("%s: %+v", query, x)
			}
		}
		slices.Sort(ids)
		if slices.Sort(want); !slices.Equal(ids, want) {
			t.Errorf("%s: %q, want %q", query, ids, want)
		}
	}
	if res := one.tasks("jobs", "?limit=2"); len(res.Tasks) != 2 || res.Total != 6 {
		t.Errorf("limited: %+v", res)
	}

	// The same work again is not done again.
	twin := add(one, "high again", `,"unique_key":"k"`)
	one.do(http.MethodGet, "/v1/messages/"+twin.MessageID+"?wait=replied", "").into(t, &twin)
	if !twin.Facts.Replied || twin.Text != fmt.Sprintf(`{"duplicate_of":%q}`, high.MessageID) {
		t.Errorf("a duplicate: %+v %s", twin.Facts, twin.Text)
	}

	// Cancelled by a gateway that does not own it.
	cancel := "/v1/queues/jobs/tasks/" + low.MessageID + "/cancel"
	var gone TaskCancelled
	r := two.do(http.MethodPost, cancel, `{"by":"me"}`)
	for end := within(t); r.status == http.StatusNotFound && end.Err() == nil; { // until its owner has read it
		r = two.do(http.MethodPost, cancel, `{"by":"me"}`)
	}
	r.into(t, &gone)
	if gone != (TaskCancelled{"jobs", low.MessageID, "me"}) {
		t.Errorf("cancelled: %+v", gone)
	}
	two.do(http.MethodGet, "/v1/messages/"+low.MessageID+"?wait=acked", "").into(t, &low)
	if !low.Facts.Dead || low.Facts.Class != envelope.ClassCancelled {
		t.Errorf("after the cancel: %+v", low.Facts)
	}
	one.waitQueue("jobs", func(q bus.QueueInfo) bool { return q.Waiting == 1 })
	for _, path := range []string{cancel, strings.Replace(cancel, low.MessageID, envelope.NewID(), 1)} {
		r := two.do(http.MethodPost, path, `{}`)
		if e := r.err(t); r.status != http.StatusNotFound || e.Code != CodeNotFound || !strings.Contains(e.Message, "no unfinished task") || e.MessageID == "" {
			t.Errorf("nothing to cancel: %d %+v", r.status, e)
		}
	}

	close(first.leave)
	close(second.leave)
	for _, st := range []MessageStatus{a, b, high} {
		want := st.Envelope.Text()
		home := map[string]*node{"one": one, "two": two}[st.Envelope.SourceGateway] // the sender is told at once
		home.do(http.MethodGet, "/v1/messages/"+st.MessageID+"?wait=replied&timeout=20s", "").into(t, &st)
		if !st.Facts.Replied || st.Text != want {
			t.Errorf("%s: %+v %q", want, st.Facts, st.Text)
		}
	}
	one.waitQueue("jobs", func(q bus.QueueInfo) bool { return q.Running == 0 && q.Waiting == 0 && q.Delayed == 2 })
}

// A reload changes what does a queue's work; who keeps it and who works needs a restart.
func TestReloadQueue(t *testing.T) {
	mesh := config{"queues": []config{{"id": "jobs", "agent": "bobby", "gateways": []string{"lone"}, "workers": []string{"lone"}}}}
	bobby := config{"id": "bobby", "gateways": []string{"other"}, "runner": config{"kind": "echo"}}
	n := startNode(t, parseNode(t, "lone", mesh, "", bobby), Deps{Store: newStore(t)})
	n.waitQueue("jobs", func(q bus.QueueInfo) bool { return q.Owner == "lone" && len(q.Workers) == 1 })
	if st := n.ask("jobs", "x"); st.Text != "x" {
		t.Errorf("echo: %q", st.Text)
	}
	mesh["queues"] = []config{{"id": "jobs", "agent": "bobby", "gateways": []string{"lone"}, "workers": []string{"lone", "other"}}}
	bobby["runner"] = config{"kind": "relay", "to": "nobody"}
	changed, restart, err := n.Reload(parseNode(t, "lone", mesh, "", bobby))
	if err != nil || !slices.Equal(restart, []string{"mesh.queues.jobs.workers"}) || !slices.Contains(changed, "agents.bobby.runner.kind") {
		t.Errorf("changed %q, restart %q, %v", changed, restart, err)
	}
	if st := n.ask("jobs", "x"); st.Text == "x" {
		t.Error("the old runner still works")
	}
}

// At a queue the lease of the task bounds an attempt, not the ack timeout of the agent.
func TestQueueWorkIsNotBoundByItsAgent(t *testing.T) {
	l := &liveAgent{}
	l.set(bus.HandlerFunc(func(ctx context.Context, _ *bus.Incoming) error {
		if _, bound := ctx.Deadline(); bound {
			t.Error("it has a deadline")
		}
		return nil
	}), time.Minute) // which binds an agent's own messages: TestRunsOutlastAnAttempt
	if err := (queueWork{l}).Handle(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A queue that nobody owns now is still there, and so is what waits in it.
func TestQueueWithoutOwner(t *testing.T) {
	s := newStore(t)
	mesh := config{"queues": []config{{"id": "jobs", "agent": "bobby"}}}
	g := newGate()
	one := startNode(t, parseNode(t, "one", mesh, "", config{"id": "bobby", "gateways": []string{"one"}, "runner": "echo"}), Deps{Store: s, Runners: gated(g)})
	one.waitQueue("jobs", func(q bus.QueueInfo) bool { return q.Owner == "one" })
	st := one.send(SendRequest{To: "jobs", Text: text("x"), Delay: "1h"})
	one.waitQueue("jobs", func(q bus.QueueInfo) bool { return q.Delayed == 1 })
	two := startNode(t, parseNode(t, "two", nil, ""), Deps{Store: s})
	if err := one.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	two.waitQueue("jobs", func(q bus.QueueInfo) bool { return q.Owner == "" })
	if res := two.tasks("jobs", ""); res.Total != 1 || res.Tasks[0].State != "delayed" {
		t.Errorf("%+v", res)
	}
	r := two.do(http.MethodPost, "/v1/queues/jobs/tasks/"+st.MessageID+"/cancel", `{"timeout":"50ms"}`)
	if e := r.err(t); r.status != http.StatusGatewayTimeout || e.Code != CodeTimeout || !strings.Contains(e.Message, "nobody owns jobs") || e.MessageID != st.MessageID {
		t.Errorf("cancelled by nobody: %d %+v", r.status, e)
	}
}
