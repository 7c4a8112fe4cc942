package bustest

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// redrive: dead letters go back to work with their history, what would die again is left, and a purge
// is for good; each is done by the owner, whoever asks.
func redrive(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	bob := w.name("bob")
	var mended atomic.Bool
	var attempts atomic.Int64
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		if !mended.Load() {
			return bus.Never(envelope.ClassPoison, errors.New("the disk is full"))
		}
		attempts.Store(int64(m.Attempt()))
		return nil
	})
	var ids []string
	for range 20 {
		ids = append(ids, jerry.send(jerry.out("bob", "work")).MessageID)
	}
	for _, id := range ids {
		jerry.until(id, dead)
	}
	list, err := jerry.DeadLetters(w.ctx(), bus.DeadLetterFilter{Agent: bob, Class: envelope.ClassPoison, Contains: "disk"})
	if err != nil || len(list) != 20 || list[0].Hindrance != "" || list[0].Envelope == nil || list[0].Delivery.Attempt != 1 {
		w.Fatalf("%d dead letters, %v: %+v", len(list), err, list[0])
	}
	filter := bus.DeadLetterFilter{Agent: bob, IDs: ids[:18]}
	plan, err := jerry.Redrive(w.ctx(), filter, bus.RedriveOptions{By: "op", DryRun: true})
	if err != nil || len(plan) != 18 || !plan[0].Done {
		w.Fatalf("rehearsal: %d, %v", len(plan), err)
	}
	if n, _ := jerry.DeadLetters(w.ctx(), bus.DeadLetterFilter{Agent: bob}); len(n) != 20 {
		w.Fatalf("the rehearsal left %d of 20", len(n))
	}
	mended.Store(true)
	done, err := jerry.Redrive(w.ctx(), filter, bus.RedriveOptions{By: "op"})
	if err != nil || len(done) != 18 {
		w.Fatalf("redrive: %d, %v", len(done), err)
	}
	for _, r := range done {
		if !r.Done || r.Agent != bob || r.Class != envelope.ClassPoison {
			w.Errorf("%+v", r)
		}
	}
	for _, id := range ids[:18] {
		if tr := jerry.until(id, acked); tr.Facts.Dead {
			w.Errorf("%s is acked and dead", id)
		}
	}
	if attempts.Load() != 2 {
		w.Errorf("attempt %d after the redrive, want 2", attempts.Load())
	}
	again, err := jerry.Redrive(w.ctx(), bus.DeadLetterFilter{Agent: bob, IDs: ids[:1]}, bus.RedriveOptions{By: "op"})
	if err != nil || len(again) != 0 {
		w.Errorf("what is no dead letter was redriven: %+v %v", again, err)
	}
	purged, err := jerry.Purge(w.ctx(), bus.DeadLetterFilter{Agent: bob}, "op", false)
	if err != nil || len(purged) != 2 || !purged[0].Done {
		w.Errorf("purge: %+v %v", purged, err)
	}
	if n, _ := jerry.DeadLetters(w.ctx(), bus.DeadLetterFilter{Agent: bob}); len(n) != 0 {
		w.Errorf("%d are left after the purge", len(n))
	}
	// Nobody but the mesh itself gives such orders.
	forged := jerry.out("bob", "{}")
	forged.Capability = "mesh.deadletter.purge"
	if _, err := jerry.Send(w.ctx(), forged); !errors.Is(err, envelope.ErrInvalid) {
		w.Errorf("a client sent an order: %v", err)
	}
}

// redriveSurvives: a redriven message whose owner dies before it is handled is not lost.
func redriveSurvives(w *world) {
	jerry, bobby, billy := w.node("jerry"), w.node("bobby"), w.node("billy")
	begun := make(chan struct{}, 1)
	var mended atomic.Bool
	handler := func(ctx context.Context, _ *bus.Incoming) error {
		if !mended.Load() {
			return bus.Never(envelope.ClassPoison, errors.New("no"))
		}
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	bobby.serve("bob", handler)
	id := jerry.send(jerry.out("bob", "work")).MessageID
	jerry.until(id, dead)
	mended.Store(true)
	if r, err := jerry.Redrive(w.ctx(), bus.DeadLetterFilter{IDs: []string{id}}, bus.RedriveOptions{By: "op"}); err != nil || len(r) != 1 || !r[0].Done {
		w.Fatalf("%+v %v", r, err)
	}
	wait(w, begun, "second life")
	if err := billy.Serve(bus.AgentSpec{ID: w.name("bob")}, bus.HandlerFunc(func(_ context.Context, m *bus.Incoming) error {
		if m.Envelope().MessageID != id {
			return errors.New("another message")
		}
		return nil
	})); err != nil {
		w.Fatal(err)
	}
	crash(w, bobby)
	jerry.until(id, acked)
	st, err := billy.Lookup(w.ctx(), id)
	if err != nil || st.State != envelope.Acked {
		w.Errorf("%+v %v", st, err)
	}
}

// claim: a payload beyond the inline limit comes whole in both directions, and what is torn or changed
// never reaches a handler.
func claim(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var handled atomic.Int64
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		handled.Add(1)
		return m.Reply(m.Envelope().Payload)
	})
	big := strings.Repeat("0123456789abcdef", 70_000) // 1.1 MB
	ask := func() string {
		s, err := jerry.AskAPI(w.ctx(), jerry.out("bob", big))
		if err != nil {
			w.Fatal(err)
		}
		return s.MessageID
	}
	id := ask()
	tr := jerry.until(id, replied)
	full, err := jerry.Resolve(w.ctx(), tr.Reply)
	if err != nil || full.Text() != big {
		w.Fatalf("the answer: %v", err)
	}
	// Damaged on the way: between being written and being read.
	for _, damage := range []struct {
		name string
		op   func(key string) bus.Op
		want string
	}{
		{"torn", func(k string) bus.Op { return bus.Op{Verb: bus.OpDelete, Key: k} }, "is missing"},
		{"changed", func(k string) bus.Op {
			return bus.Op{Verb: bus.OpSet, Key: k, Value: []byte(strings.Repeat("x", 256<<10))}
		}, "SHA-256"},
	} {
		before := handled.Load()
		admin := w.admin()
		jerry.store.Before(func(call string, ops []bus.Op) error {
			for _, o := range ops {
				if call != CallTxn || !strings.Contains(o.Key, "/inbox/") {
					continue
				}
				// The chunks are there by now; the message that names them is about to be.
				keys, err := admin.Keys(context.Background(), bus.Root+"blobs/"+jerry.Gateway()+"/", "")
				if err != nil {
					return err
				}
				for _, k := range keys {
					if strings.HasSuffix(k, "0001") && !strings.Contains(k, id) {
						if _, err := admin.Txn(context.Background(), []bus.Op{damage.op(k)}); err != nil {
							return err
						}
					}
				}
			}
			return nil
		})
		hurt := ask()
		jerry.store.Before(nil)
		tr := jerry.until(hurt, dead)
		if tr.Facts.Class != envelope.ClassPoison || !strings.Contains(tr.Facts.Reason, damage.want) || handled.Load() != before {
			w.Errorf("%s: %+v, handled %d times", damage.name, tr.Facts, handled.Load()-before)
		}
	}
	huge := jerry.out("bob", strings.Repeat("x", 8<<20))
	before := jerry.store.Writes()
	if _, err := jerry.Send(w.ctx(), huge); !errors.Is(err, bus.ErrTooLarge) {
		w.Errorf("over the limit: %v", err)
	}
	if n := jerry.store.Writes() - before; n != 0 {
		w.Errorf("%d writes for what was refused", n)
	}
}

// fanOut: every leg has its own fate, and the whole says which.
func fanOut(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	ok := func(_ context.Context, m *bus.Incoming) error { return m.Reply(envelope.TextPayload("yes")) }
	bobby.serve("one", ok, w.name("vote"))
	bobby.serve("two", ok, w.name("vote"))
	jerry.serve("three", func(context.Context, *bus.Incoming) error {
		return bus.Never(envelope.ClassPoison, errors.New("never"))
	}, w.name("vote"))
	registered := func() bool { return len(jerry.Agents(w.name("vote"))) == 3 }
	for !registered() {
		wait(w, jerry.RegistryChanged(), "the registry")
	}
	fan := bus.Fan{Message: bus.Outgoing{From: "user", Capability: w.name("vote"), Payload: envelope.TextPayload("?"), Budget: &envelope.Budget{Messages: new(int64)}}}
	st, err := jerry.SendAll(w.ctx(), fan, true)
	if err != nil || len(st.Legs) != 3 {
		w.Fatalf("%+v %v", st, err)
	}
	st, err = jerry.AwaitFan(w.ctx(), st.ID)
	if err != nil || st.Outcome != bus.FanPartial {
		w.Fatalf("%+v %v", st, err)
	}
	for _, l := range st.Legs {
		if bad := l.To == w.name("three"); bad != l.Facts.Dead || bad == l.Facts.Replied {
			w.Errorf("leg %s: %+v", l.To, l.Facts)
		}
	}
	// Another gateway tells the same from the store, and sending again is no second message.
	far, err := bobby.FanOut(w.ctx(), st.ID)
	if err != nil || far.Outcome != bus.FanPartial {
		w.Errorf("seen from afar: %+v %v", far, err)
	}
	fan.ID = st.ID
	if again, err := jerry.SendAll(w.ctx(), fan, true); err != nil || again.Legs[0].MessageID != st.Legs[0].MessageID {
		w.Errorf("sent again: %+v %v", again, err)
	}
	for name, f := range map[string]bus.Fan{
		"nobody":    {Message: bus.Outgoing{From: "user", Capability: "no-such", Payload: envelope.TextPayload("?")}},
		"twice":     {To: []envelope.Address{{Agent: w.name("one")}, {Agent: w.name("one")}}, Message: bus.Outgoing{From: "user", Payload: envelope.TextPayload("?")}},
		"a unknown": {To: []envelope.Address{{Agent: w.name("one")}, {Agent: w.name("unknown")}}, Message: bus.Outgoing{From: "user", Payload: envelope.TextPayload("?")}},
	} {
		if _, err := jerry.SendAll(w.ctx(), f, false); err == nil {
			w.Errorf("%s: accepted", name)
		}
	}
}

// askAll: a handler's questions to several agents are legs of their own too.
func askAll(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	bobby.serve("one", func(_ context.Context, m *bus.Incoming) error { return m.Reply(envelope.TextPayload("1")) })
	bobby.serve("two", func(context.Context, *bus.Incoming) error {
		return bus.Never(envelope.ClassPoison, errors.New("never"))
	})
	jerry.serve("chair", func(ctx context.Context, m *bus.Incoming) error {
		var said []string
		for _, l := range m.AskAll(ctx, []bus.Outgoing{
			{To: envelope.Address{Agent: w.name("one")}, Payload: envelope.TextPayload("?")},
			{To: envelope.Address{Agent: w.name("two")}, Payload: envelope.TextPayload("?")},
			{To: envelope.Address{Agent: w.name("unknown")}, Payload: envelope.TextPayload("?")},
		}) {
			var dead *bus.DeadLetterError
			switch {
			case l.Err == nil:
				said = append(said, l.Answer.Text())
			case errors.As(l.Err, &dead):
				said = append(said, "dead")
			case errors.Is(l.Err, bus.ErrUnknownAgent):
				said = append(said, "unknown")
			default:
				said = append(said, l.Err.Error())
			}
		}
		return m.Reply(envelope.TextPayload(strings.Join(said, " ")))
	})
	s, err := jerry.AskAPI(w.ctx(), jerry.out("chair", "vote"))
	if err != nil {
		w.Fatal(err)
	}
	if tr := jerry.until(s.MessageID, replied); tr.Reply.Text() != "1 dead unknown" {
		w.Errorf("legs: %s", tr.Reply.Text())
	}
}

// uncleanTakeover: after an owner that died, attempts are recorded before they begin; after one that
// stopped in order, they are not.
func uncleanTakeover(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	term := bus.Root + "terms/" + w.name("bob")
	bobby.serve("bob", func(context.Context, *bus.Incoming) error { return nil })
	jerry.until(jerry.send(jerry.out("bob", "x")).MessageID, acked)
	if p, err := w.admin().Get(w.ctx(), term); err != nil || p == nil {
		w.Fatalf("a running term has no mark: %v %v", p, err)
	}
	bobby.stop()
	if p, err := w.admin().Get(w.ctx(), term); err != nil || p != nil {
		w.Fatalf("a term that ended in order left its mark: %v", err)
	}
	second := w.node("second")
	second.serve("bob", func(context.Context, *bus.Incoming) error { return nil })
	crash(w, second)
	id := jerry.send(jerry.out("bob", "after the crash")).MessageID
	third := w.node("third")
	recorded := make(chan bool, 1)
	third.serve("bob", func(ctx context.Context, m *bus.Incoming) error {
		p, err := w.admin().Get(ctx, bus.Root+"pending/"+w.name("bob")+"/"+m.Envelope().MessageID)
		recorded <- err == nil && p != nil && strings.Contains(string(p.Value), `"state":"delivered"`)
		return nil
	})
	if !wait(w, recorded, "the handler") {
		w.Error("an attempt after a crash began without a record")
	}
	jerry.until(id, acked)
}

// delayed: a message that is not due waits in a record that the next owner finds, is not begun before its time,
// and holds up no other.
func delayed(w *world) {
	jerry, bobby, billy := w.node("jerry"), w.node("bobby"), w.node("billy")
	type run struct {
		id      string
		at      time.Time
		attempt int
	}
	runs := make(chan run, 8)
	handler := func(_ context.Context, m *bus.Incoming) error {
		runs <- run{m.Envelope().MessageID, time.Now(), m.Attempt()}
		return nil
	}
	bobby.serve("bob", handler)
	due := envelope.At(time.Now().Add(3 * time.Second))
	o := jerry.out("bob", "later")
	o.Task = &envelope.Task{NotBefore: &due}
	later := jerry.send(o).MessageID
	now := jerry.send(jerry.out("bob", "now")).MessageID
	jerry.until(now, acked)
	if r := wait(w, runs, "the one that is due"); r.id != now {
		w.Errorf("%+v ran first", r)
	}
	if err := billy.Serve(bus.AgentSpec{ID: w.name("bob")}, bus.HandlerFunc(handler)); err != nil {
		w.Fatal(err)
	}
	crash(w, bobby)
	jerry.until(later, acked)
	if r := wait(w, runs, "the delayed one"); r.id != later || r.at.Before(due.Time) || r.attempt != 1 {
		w.Errorf("the delayed one: %+v, due at %s", r, due.Time)
	}
	select {
	case r := <-runs:
		w.Errorf("one more run: %+v", r)
	default:
	}
}
