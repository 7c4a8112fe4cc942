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

// cancelSurvives: an order to cancel that its owner took and did not finish is carried out by the next owner, who is not left with the message; one that nobody
// has begun is not begun by anybody later.
func cancelSurvives(w *world) {
	jerry, bobby, billy := w.node("jerry"), w.node("bobby"), w.node("billy")
	begun, stopped, hang := make(chan string, 4), make(chan error, 4), make(chan struct{})
	w.Cleanup(func() { close(hang) })
	bobby.serve("bob", func(ctx context.Context, m *bus.Incoming) error {
		begun <- m.Envelope().Text()
		<-ctx.Done()
		stopped <- context.Cause(ctx)
		<-hang // it does not let go, so that its end is not recorded
		return nil
	})
	o := jerry.out("bob", "works")
	o.ConversationID = "talk"
	works := jerry.send(o).MessageID
	if got := wait(w, begun, "the handler"); got != "works" {
		w.Fatalf("begun: %s", got)
	}
	o = jerry.out("bob", "waits")
	o.ConversationID = "talk"
	waits := jerry.send(o).MessageID
	if class, err := jerry.CancelMessage(w.ctx(), waits, "op"); err != nil || class != envelope.ClassCancelled {
		w.Fatalf("what waits: %s, %v", class, err)
	}
	done := make(chan error, 1)
	ctx := w.ctx()
	go func() {
		_, err := jerry.CancelMessage(ctx, works, "op")
		done <- err
	}()
	if err := wait(w, stopped, "the end of the handler"); err == nil || err.Error() != "cancelled by op" {
		w.Errorf("stopped: %v", err)
	}
	crash(w, bobby)
	if err := billy.Serve(bus.AgentSpec{ID: w.name("bob")}, bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
		if m.Envelope().MessageID == waits {
			w.Error("a message that had been cancelled was begun")
		}
		<-ctx.Done() // the order may come a moment after the message
		return ctx.Err()
	})); err != nil {
		w.Fatal(err)
	}
	if err := wait(w, done, "the answer to the order"); err != nil {
		w.Error(err)
	}
	for _, id := range []string{works, waits} {
		if tr := jerry.until(id, dead); tr.Facts.Class != envelope.ClassCancelled {
			w.Errorf("%s: %+v", id, tr.Facts)
		}
	}
	w.noPending("bob")
}
