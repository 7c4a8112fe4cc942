package bustest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// queues: competing workers do each task once, over the death of a worker and of the queue's owner, and a unique
// key is held by one task whoever sends the next.
func queues(w *world) {
	queue := w.name("chores")
	owner, heir := w.node("owner"), w.node("heir")
	for rank, n := range []*node{owner, heir} {
		if err := n.ServeQueue(bus.QueueSpec{ID: queue, Rank: rank}); err != nil {
			w.Fatal(err)
		}
	}
	owner.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventOwned && ev.To == queue })
	var mu sync.Mutex
	did, gone := map[string][]string{}, map[string]bool{}
	holding, release := make(chan string, 16), make(chan struct{})
	work := func(n *node, slots int) {
		err := n.Work(bus.WorkerSpec{Queue: queue, Agent: "billy", Slots: slots}, bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
			text := m.Envelope().Text()
			if strings.HasPrefix(text, "hold") {
				holding <- n.Gateway()
				select {
				case <-release:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := m.Guard(); err != nil {
				return err
			}
			mu.Lock()
			if !gone[n.Gateway()] { // a dead process does nothing; this one only believes that it lives
				did[text] = append(did[text], n.Gateway())
			}
			mu.Unlock()
			return m.Reply(envelope.TextPayload("done by " + n.Gateway()))
		}))
		if err != nil {
			w.Fatal(err)
		}
	}
	sender := w.node("sender")
	add := func(text string, task *envelope.Task) string {
		w.Helper()
		o := sender.out("chores", text)
		o.Task, o.TTL, o.MaxAttempts = task, time.Hour, 5
		s, err := sender.AskAPI(w.ctx(), o)
		if err != nil {
			w.Fatal(err)
		}
		return s.MessageID
	}
	one, two := w.node("one"), w.node("two")
	work(one, 2)
	work(two, 2)
	var ids []string
	for i := range 20 {
		ids = append(ids, add(fmt.Sprintf("quick %d", i), nil))
	}
	for _, id := range ids {
		if tr := sender.until(id, replied); !strings.HasPrefix(tr.Reply.Text(), "done by ") {
			w.Errorf("%s: %s", id, tr.Reply.Text())
		}
	}

	// A worker dies at work: the other one does it again.
	unique := &envelope.Task{UniqueKey: "backup", UniqueFor: envelope.MillisOf(time.Hour)}
	held := add("hold", unique)
	first := wait(w, holding, "the task")
	dying, other := one, two
	if first == two.Gateway() {
		dying, other = two, one
	}
	mu.Lock()
	gone[dying.Gateway()] = true
	mu.Unlock()
	crash(w, dying)
	if second := wait(w, holding, "the task's second run"); second != other.Gateway() {
		w.Errorf("the second run is at %s", second)
	}
	// The owner dies while the worker works: the heir waits for it.
	crash(w, owner)
	heir.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventOwned && ev.To == queue })
	tr := sender.until(add("again", unique), replied)
	if want := `{"duplicate_of":"` + held + `"}`; tr.Reply.Text() != want {
		w.Errorf("a second task of the same key: %s, want %s", tr.Reply.Text(), want)
	}
	list, err := heir.Tasks(w.ctx(), queue)
	if err != nil || len(list) != 1 || list[0].State != bus.TaskRunning || list[0].Worker != other.Gateway() {
		w.Errorf("tasks: %v %+v", err, list)
	}
	close(release)
	if tr := sender.until(held, replied); tr.Reply.Text() != "done by "+other.Gateway() {
		w.Errorf("the held task: %s", tr.Reply.Text())
	}
	mu.Lock()
	defer mu.Unlock()
	for text, by := range did {
		if len(by) != 1 {
			w.Errorf("%q was done by %v", text, by)
		}
	}
	if len(did) != 21 {
		w.Errorf("%d tasks were done", len(did))
	}
	w.noPending("chores")
}
