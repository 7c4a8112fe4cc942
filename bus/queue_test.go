package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// shift is a gateway's worker in a test: it remembers what it did, and obeys the first word of a task.
type shift struct {
	mu      sync.Mutex
	did     []string // "gateway:text"
	hold    chan struct{}
	stopped []error
}

func (s *shift) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.did, " ")
}

func (s *shift) handler(gw string) bus.HandlerFunc {
	return func(ctx context.Context, m *bus.Incoming) error {
		text := m.Envelope().Text()
		s.mu.Lock()
		s.did = append(s.did, gw+":"+text)
		hold := s.hold
		s.mu.Unlock()
		word, _, _ := strings.Cut(text, "-")
		switch word {
		case "hold":
			select {
			case <-hold:
			case <-ctx.Done():
				s.mu.Lock()
				s.stopped = append(s.stopped, context.Cause(ctx))
				s.mu.Unlock()
				return ctx.Err()
			}
		case "deaf":
			<-hold
		case "once":
			if m.Attempt() == 1 {
				return bus.RetryAfter(time.Minute, errors.New("not the first time"))
			}
		case "never":
			return bus.Never(envelope.ClassPoison, errors.New("makes no sense"))
		case "panics":
			panic("at work")
		}
		if err := m.Guard(); err != nil {
			return err
		}
		return m.Reply(envelope.TextPayload("done by " + gw))
	}
}

// queue starts a gateway that may own the queue.
func (b *bubble) queue(g *gw, rank int) {
	b.Helper()
	if err := g.ServeQueue(bus.QueueSpec{ID: "chores", Rank: rank, AckTimeout: time.Minute}); err != nil {
		b.Fatal(err)
	}
}

func (b *bubble) work(g *gw, s *shift, slots int) {
	b.Helper()
	if err := g.Work(bus.WorkerSpec{Queue: "chores", Agent: "billy", Slots: slots}, s.handler(g.Gateway())); err != nil {
		b.Fatal(err)
	}
}

// task adds one and returns its id; its result is asked for.
func (b *bubble) task(g *gw, body string, change func(*bus.Outgoing)) string {
	b.Helper()
	o := bus.Outgoing{To: envelope.Address{Agent: "chores"}, From: "user", Payload: envelope.TextPayload(body), TTL: time.Hour}
	if change != nil {
		change(&o)
	}
	s, err := g.AskAPI(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	return s.MessageID
}

func (b *bubble) result(g *gw, id string) string {
	tr, _, _ := g.Track(id)
	if tr.Reply == nil {
		return ""
	}
	return tr.Reply.Text()
}

// Tasks go to whoever has a free slot, the urgent ones first, and each is done once.
func TestQueueCompetingConsumers(t *testing.T) {
	inBubble(t, func(b *bubble) {
		owner, w1, w2 := b.gateway("owner", nil), b.gateway("w1", nil), b.gateway("w2", nil)
		b.queue(owner, 0)
		b.pass(time.Second)
		s := &shift{hold: make(chan struct{})}
		var ids []string
		for i := range 6 {
			ids = append(ids, b.task(w1, fmt.Sprintf("hold-%d", i), prio(i)))
		}
		b.pass(time.Second)
		if got := s.all(); got != "" {
			b.Errorf("without a worker: %s", got)
		}
		b.work(w1, s, 1)
		b.pass(time.Second)
		b.work(w2, s, 2)
		b.pass(time.Second)
		if got := s.all(); got != "w1:hold-5 w2:hold-4 w2:hold-3" && got != "w1:hold-5 w2:hold-3 w2:hold-4" {
			b.Errorf("three slots got %s", got)
		}
		list, err := owner.Tasks(b.Context(), "chores")
		if err != nil || len(list) != 6 || list[0].State != bus.TaskRunning || list[0].Worker != "w1" || list[0].Priority != 5 || list[5].State != bus.TaskWaiting || list[5].Priority != 0 {
			b.Errorf("tasks: %v %+v", err, list)
		}
		qs, err := w2.Queues(b.Context())
		if err != nil || len(qs) != 1 || qs[0].Running != 3 || qs[0].Waiting != 3 || qs[0].Owner != "owner" || len(qs[0].Workers) != 2 || qs[0].Workers[1].Slots != 2 {
			b.Errorf("queues: %v %+v", err, qs)
		}
		close(s.hold)
		b.pass(time.Second)
		for i, id := range ids {
			if f := w1.facts(id); !f.Acked || !f.Replied || !strings.HasPrefix(b.result(w1, id), "done by w") {
				b.Errorf("task %d: %+v %q", i, f, b.result(w1, id))
			}
		}
		if n := len(strings.Fields(s.all())); n != 6 {
			b.Errorf("done: %s", s.all())
		}
		if list, err := w1.Tasks(b.Context(), "chores"); err != nil || len(list) != 0 || b.count("pending/") != 0 {
			b.Errorf("afterwards: %v %+v, %d records", err, list, b.count("pending/"))
		}
		b.stop(w2, w1, owner)
	})
}

// What a worker says of a task is what happens to it.
func TestQueueVerdicts(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("owner", nil)
		b.queue(g, 0)
		s := &shift{hold: make(chan struct{})}
		b.work(g, s, 4)
		b.pass(time.Second)
		once, never, panics := b.task(g, "once-1", nil), b.task(g, "never-1", nil), b.task(g, "panics-1", func(o *bus.Outgoing) { o.MaxAttempts = 2 })
		deaf := b.task(g, "deaf-1", func(o *bus.Outgoing) { o.MaxAttempts, o.AckTimeout = 1, time.Second })
		b.pass(30 * time.Second)
		if list, err := g.Tasks(b.Context(), "chores"); err != nil || len(list) != 1 || list[0].State != bus.TaskRetrying || list[0].LastError != "not the first time" || list[0].DueAt == nil {
			b.Errorf("between two attempts: %v %+v", err, list)
		}
		b.pass(time.Minute)
		if f := g.facts(once); !f.Acked || b.result(g, once) != "done by owner" {
			b.Errorf("once: %+v", f)
		}
		for id, want := range map[string]struct {
			class  envelope.Class
			reason string
		}{
			never: {envelope.ClassPoison, "makes no sense"}, panics: {envelope.ClassExhausted, "panicked"}, deaf: {envelope.ClassExhausted, "ack timeout"},
		} {
			if f := g.facts(id); !f.Dead || f.Class != want.class || !strings.Contains(f.Reason, want.reason) {
				b.Errorf("want %+v: %+v", want, f)
			}
		}
		close(s.hold)
		b.pass(time.Second)
		b.stop(g)
	})
}

// A worker that dies loses its tasks at once: they are tried elsewhere, and what it says later counts for nothing.
func TestQueueWorkerDies(t *testing.T) {
	inBubble(t, func(b *bubble) {
		owner, w1 := b.gateway("owner", nil), b.gateway("w1", nil)
		b.queue(owner, 0)
		s := &shift{hold: make(chan struct{})}
		b.work(w1, s, 1)
		b.pass(time.Second)
		id := b.task(owner, "hold-1", nil)
		b.pass(time.Second)
		b.crash(w1)
		b.pass(time.Second)
		w2 := b.gateway("w2", nil)
		b.work(w2, s, 1)
		b.pass(3 * time.Second)
		if got := s.all(); got != "w1:hold-1 w2:hold-1" {
			b.Errorf("done: %s", got)
		}
		close(s.hold) // for both: the dead one would finish too
		b.pass(time.Second)
		st, err := owner.Lookup(b.Context(), id)
		if f := owner.facts(id); err != nil || !f.Acked || b.result(owner, id) != "done by w2" {
			b.Errorf("%+v %q %v", f, b.result(owner, id), err)
		}
		if names := owner.names(id); strings.Count(names, "failed") != 1 || st.State != envelope.Acked {
			b.Errorf("timeline %s, state %s", names, st.State)
		}
		b.stop(w2, owner, w1)
	})
}

// A worker that stops in order gives back what it cannot finish, and that is no failed attempt.
func TestQueueWorkerStops(t *testing.T) {
	inBubble(t, func(b *bubble) {
		owner, w1, w2 := b.gateway("owner", nil), b.gateway("w1", nil), b.gateway("w2", nil)
		b.queue(owner, 0)
		s := &shift{hold: make(chan struct{})}
		b.work(w1, s, 1)
		b.pass(time.Second)
		id := b.task(owner, "hold-1", func(o *bus.Outgoing) { o.MaxAttempts = 1 })
		b.pass(time.Second)
		b.work(w2, s, 1)
		b.pass(time.Second)
		b.stop(w1)
		b.pass(time.Second)
		close(s.hold)
		b.pass(time.Second)
		if f := owner.facts(id); !f.Acked || b.result(owner, id) != "done by w2" {
			b.Errorf("%+v %q; %s", f, b.result(owner, id), s.all())
		}
		b.stop(w2, owner)
	})
}

// The owner dies while a worker works: the next owner waits for the same worker, and the work is done once. So it is when
// the answer came while nobody owned the queue.
func TestQueueOwnerDies(t *testing.T) {
	for _, answered := range []bool{false, true} {
		t.Run(fmt.Sprintf("answered meanwhile %t", answered), func(t *testing.T) {
			inBubble(t, func(b *bubble) {
				owner, w := b.gateway("owner", nil), b.gateway("w", nil)
				b.queue(owner, 0)
				s := &shift{hold: make(chan struct{})}
				b.work(w, s, 2)
				b.pass(time.Second)
				id := b.task(w, "hold-1", func(o *bus.Outgoing) { o.MaxAttempts = 1 })
				b.pass(time.Second)
				b.crash(owner)
				if answered {
					close(s.hold)
					b.pass(time.Second)
				}
				heir := b.gateway("heir", nil)
				b.queue(heir, 1)
				b.pass(20 * time.Second)
				if !answered {
					if f := w.facts(id); f.Acked || f.Dead {
						b.Errorf("before the worker is done: %+v", f)
					}
					if list, err := heir.Tasks(b.Context(), "chores"); err != nil || len(list) != 1 || list[0].State != bus.TaskRunning || list[0].Worker != "w" {
						b.Errorf("tasks: %v %+v", err, list)
					}
					close(s.hold)
					b.pass(time.Second)
				}
				b.pass(20 * time.Second)
				if f := w.facts(id); !f.Acked || b.result(w, id) != "done by w" || s.all() != "w:hold-1" {
					b.Errorf("%+v %q; %s; %s", f, b.result(w, id), s.all(), w.names(id))
				}
				b.stop(heir, w, owner)
			})
		})
	}
}

// Owner and worker die together: the next owner finds the worker gone, and the task is tried elsewhere.
func TestQueueBothDie(t *testing.T) {
	inBubble(t, func(b *bubble) {
		both := b.gateway("both", nil)
		b.queue(both, 0)
		s := &shift{hold: make(chan struct{})}
		b.work(both, s, 1)
		b.pass(time.Second)
		heir := b.gateway("heir", nil)
		id := b.task(heir, "hold-1", nil)
		b.pass(time.Second)
		b.crash(both)
		b.queue(heir, 1)
		b.work(heir, s, 1)
		b.pass(10 * time.Second)
		close(s.hold)
		b.pass(5 * time.Second)
		if f := heir.facts(id); !f.Acked || b.result(heir, id) != "done by heir" || s.all() != "both:hold-1 heir:hold-1" {
			b.Errorf("%+v %q; %s", f, b.result(heir, id), s.all())
		}
		b.stop(heir, both)
	})
}

// A unique key is held by one unfinished task, whoever sends the next, over the owner's death too, and for a while
// after its end if it says so.
func TestQueueUniqueKeys(t *testing.T) {
	inBubble(t, func(b *bubble) {
		owner, other := b.gateway("owner", nil), b.gateway("other", nil)
		b.queue(owner, 0)
		s := &shift{hold: make(chan struct{})}
		b.work(other, s, 4)
		b.pass(time.Second)
		unique := func(o *bus.Outgoing) {
			o.Task = &envelope.Task{UniqueKey: "nightly", UniqueFor: envelope.MillisOf(time.Hour)}
		}
		first := b.task(owner, "hold-1", unique)
		b.pass(time.Second)
		again := b.task(other, "hold-2", unique)
		b.pass(time.Second)
		duplicate := `{"duplicate_of":"` + first + `"}`
		if f := other.facts(again); !f.Acked || b.result(other, again) != duplicate {
			b.Errorf("the second: %+v %q", f, b.result(other, again))
		}
		b.crash(owner)
		heir := b.gateway("heir", nil)
		b.queue(heir, 0)
		b.pass(10 * time.Second)
		third := b.task(other, "hold-3", unique)
		b.pass(time.Second)
		if b.result(other, third) != duplicate {
			b.Errorf("after the owner's death: %q", b.result(other, third))
		}
		close(s.hold)
		b.pass(time.Second)
		b.stop(heir)
		last := b.gateway("last", nil)
		b.queue(last, 0)
		b.pass(5 * time.Second)
		fourth := b.task(other, "hold-4", unique)
		b.pass(time.Second)
		if b.result(other, fourth) != duplicate {
			b.Errorf("after its end: %q", b.result(other, fourth))
		}
		if b.count("tasks/chores/unique/") != 1 {
			b.Errorf("%d unique keys are kept", b.count("tasks/chores/unique/"))
		}
		b.pass(time.Hour)
		fifth := b.task(other, "fifth", unique)
		b.pass(5 * time.Minute)
		if b.result(other, fifth) != "done by other" || s.all() != "other:hold-1 other:fifth" {
			b.Errorf("when it is free again: %q; %s", b.result(other, fifth), s.all())
		}
		b.pass(2 * time.Hour)
		if n := b.count("tasks/chores/unique/"); n != 0 {
			b.Errorf("%d unique keys are past their time", n)
		}
		// Without unique_for the key is free with the end of its task, a bad one too.
		for _, text := range []string{"never-1", "plain"} {
			id := b.task(other, text, func(o *bus.Outgoing) { o.Task = &envelope.Task{UniqueKey: "short"} })
			b.pass(time.Second)
			if f := other.facts(id); !f.Dead && b.result(other, id) != "done by other" {
				b.Errorf("%s: %+v %q", text, f, b.result(other, id))
			}
		}
		b.stop(last, other, owner)
	})
}

// A cancelled task is dead at once, waiting, delayed or running; redriven, it is done.
func TestQueueCancel(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, w := b.gateway("owner", nil), b.gateway("w", nil)
		b.queue(g, 0)
		s := &shift{hold: make(chan struct{})}
		b.work(w, s, 1)
		b.pass(time.Second)
		running := b.task(g, "hold-1", nil)
		b.pass(time.Second)
		waiting := b.task(g, "hold-2", nil)
		delayed := b.task(g, "hold-3", notBefore(time.Now().Add(time.Hour)))
		b.pass(5 * time.Second)
		for _, id := range []string{waiting, delayed, running} {
			if err := w.CancelTask(b.Context(), "chores", id, "admin"); err != nil {
				b.Fatal(err)
			}
			b.pass(time.Second)
			if f := g.facts(id); !f.Dead || f.Class != envelope.ClassCancelled || f.Reason != "cancelled by admin" {
				b.Errorf("%s: %+v", id, f)
			}
		}
		if len(s.stopped) != 1 || s.all() != "w:hold-1" {
			b.Errorf("the worker was stopped %d times; %s", len(s.stopped), s.all())
		}
		if err := w.CancelTask(b.Context(), "chores", running, "admin"); !errors.Is(err, bus.ErrNotFound) {
			b.Errorf("once more: %v", err)
		}
		dead, err := g.DeadLetters(b.Context(), bus.DeadLetterFilter{Agent: "chores", Class: envelope.ClassCancelled})
		if err != nil || len(dead) != 3 || dead[0].Envelope == nil || dead[0].Envelope.Text() == "" {
			b.Fatalf("dead letters: %v %+v", err, dead)
		}
		close(s.hold)
		if _, err := g.Redrive(b.Context(), bus.DeadLetterFilter{IDs: []string{running}}, bus.RedriveOptions{By: "admin"}); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		if f := g.facts(running); !f.Acked || b.result(g, running) != "done by w" {
			b.Errorf("redriven: %+v", f)
		}
		b.pass(2 * time.Hour)
		if twice := "w:hold-1"; s.all() != twice+" "+twice || b.count("pending/") != 0 {
			b.Errorf("in the end: %s, %d records", s.all(), b.count("pending/"))
		}
		b.stop(w, g)
	})
}

// A queue without workers can be looked at and changed, and an announcement that somebody deleted is made anew.
func TestQueueWithoutWorkers(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("owner", nil)
		b.queue(g, 0)
		b.pass(time.Second)
		id := b.task(g, "x", nil)
		b.pass(5 * time.Second)
		if err := g.CancelTask(b.Context(), "chores", id, "admin"); err != nil {
			b.Error(err)
		}
		s := &shift{}
		b.work(g, s, 1)
		b.pass(time.Second)
		if _, err := b.store.Txn(b.Context(), []bus.Op{{Verb: bus.OpDeleteTree, Key: bus.Root + "tasks/"}}); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		id = b.task(g, "y", nil)
		b.pass(25 * time.Second)
		if !g.facts(id).Acked || s.all() != "owner:y" {
			b.Errorf("%+v; %s", g.facts(id), s.all())
		}
		b.stop(g)
	})
}

// What a handler sends leaves when the task is done, from its agent, and a failed run sends nothing.
func TestQueueHandlerSends(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("owner", nil)
		b.queue(g, 0)
		var got []string
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error {
			got = append(got, m.Envelope().SourceAgent+": "+m.Envelope().Text())
			return nil
		})
		err := g.Work(bus.WorkerSpec{Queue: "chores", Agent: "billy"}, bus.HandlerFunc(func(_ context.Context, m *bus.Incoming) error {
			if _, err := m.Send(bus.Outgoing{To: envelope.Address{Agent: "bob"}, Payload: envelope.TextPayload("note")}); err != nil {
				return err
			}
			if m.Attempt() == 1 && m.Envelope().Text() == "fails first" && len(got) == 0 {
				got = append(got, "failed")
				return errors.New("first")
			}
			return nil
		}))
		if err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		id := b.task(g, "fails first", func(o *bus.Outgoing) { o.ReplyTo = "" })
		b.pass(10 * time.Second)
		if !g.facts(id).Acked || !slices.Equal(got, []string{"failed", "billy: note"}) {
			b.Errorf("%+v; %q", g.facts(id), got)
		}
		b.stop(g)
	})
}

// The writes of one task are counted: added, handed out, done, and the end.
func TestQueueWrites(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g := b.gateway("owner", nil)
		b.queue(g, 0)
		s := &shift{}
		b.work(g, s, 1)
		b.pass(time.Second)
		b.task(g, "warm", nil)
		b.pass(time.Second)
		writes := 0
		g.store.After(func(_ string, ops []bus.Op) error {
			if slices.ContainsFunc(ops, bus.Op.Writes) {
				writes++
			}
			return nil
		})
		id := b.task(g, "one", nil)
		synctest.Wait()
		b.pass(100 * time.Millisecond)
		if !g.facts(id).Replied {
			b.Fatalf("%+v", g.facts(id))
		}
		// Sent; handed out with its record; the worker's verdict; the end with the result; the result's own taking.
		if writes != 5 {
			b.Errorf("%d writes, ARCHITECTURE.md says 5", writes)
		}
		g.store.After(nil)
		b.stop(g)
	})
}
