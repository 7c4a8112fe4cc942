package bustest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// What somebody does who also has the key of one gateway, which may host one agent that is nobody's concern.

// thief is that key.
func (w *world) thief() *trust.Signer {
	w.trust.only[w.name("mallory")] = []string{w.name("m")}
	return w.trust.signer(w.name("mallory"))
}

// stolenReceipts: the thief's own page of receipts names mail to somebody else.
func stolenReceipts(w *world) {
	mallory := w.thief()
	jerry, first := w.node("jerry"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	first.stop()
	id := jerry.sendTexts("bob", "two")[0]
	w.attack(Thief, "receipt for another's mail", "a receipt in the thief's own page that says that mail to another agent was handled")
	key := w.cursor(jerry, "m")
	body := fmt.Appendf(nil, `{"cursor":1,"count":1,"page":0,"receipts":[{"ids":[%q],"state":"acked","at":"2026-01-01T00:00:00.000Z","gateway":%q}]}`, id, mallory.Gateway)
	w.put(key, mallory.SignRecord(trust.KindReceipts, key, time.Now(), body))
	jerry.refuses(trust.NotHost)
	if tr, _, _ := jerry.Track(id); tr.Facts.Acked || tr.Facts.Delivered {
		w.Errorf("the sender believes it: %s", tr.Facts)
	}
	if st, err := jerry.Lookup(w.ctx(), id); err != nil || st.Facts.Acked {
		w.Errorf("lookup believes it: %+v, %v", st, err)
	}
	second := w.node("second")
	second.serve("bob", c.handle)
	jerry.until(id, acked)
	c.want(w, "one", "two")
}

// forge makes an envelope of the thief's.
func (w *world) forge(s *trust.Signer, from, to, capability string, change func(*envelope.Envelope)) *envelope.Sealed {
	w.Helper()
	e := envelope.Envelope{
		SchemaVersion: envelope.Version, MessageID: envelope.NewID(), CorrelationID: envelope.NewID(), ConversationID: envelope.NewID(), SourceGateway: s.Gateway, SourceAgent: from,
		TargetAgent: w.name(to), Capability: capability, Payload: envelope.TextPayload("evil"), CreatedAt: envelope.At(time.Now()), TTL: envelope.MillisOf(time.Hour), MaxHops: 4,
	}
	if change != nil {
		change(&e)
	}
	env, err := envelope.Seal(e)
	if err != nil {
		w.Fatal(err)
	}
	return env
}

func plainItem(e *envelope.Sealed) []byte {
	return []byte(`{"envelope":` + string(e.Canonical()) + `}`)
}

// stolenAnswer: the thief answers a question that was put to another.
func stolenAnswer(w *world) {
	mallory := w.thief()
	jerry, bobby := w.node("jerry"), w.node("bobby")
	hold := make(chan struct{})
	bobby.serve("bob", func(ctx context.Context, m *bus.Incoming) error {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
		return m.Reply(envelope.TextPayload("true"))
	})
	bobby.serve("hub", func(ctx context.Context, m *bus.Incoming) error {
		a, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: w.name("bob")}, Payload: envelope.TextPayload("what?")})
		if err != nil {
			return err
		}
		return m.Reply(envelope.TextPayload("bob says " + a.Text()))
	})
	s, err := jerry.AskAPI(w.ctx(), jerry.out("hub", "ask bob"))
	if err != nil {
		w.Fatal(err)
	}
	q := bobby.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventQueued && ev.To == w.name("bob") })
	answer := func(to, question string) *envelope.Sealed {
		return w.forge(mallory, w.name("m"), to, "", func(e *envelope.Envelope) {
			e.InReplyTo, e.CorrelationID, e.ConversationID, e.Terminal = question, q.CorrelationID, envelope.NewID(), true
			if to == "jerry" {
				e.TargetAgent = jerry.Gateway()
			}
		})
	}
	w.attack(Thief, "answer to an agent's question", "an answer from the thief's own agent to a question that was put to another")
	a := answer("hub", q.MessageID)
	w.forgeLaneTo(mallory, w.name("hub"), 1, plainItem(a), a.Canonical())
	bobby.refuses(trust.NotHost)
	w.attack(Thief, "answer to a client's question", "the same, to a question that a client asks")
	a = answer("jerry", s.MessageID)
	w.forgeLaneTo(mallory, jerry.Gateway(), 1, plainItem(a), a.Canonical())
	ev := jerry.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventDeadLetter && ev.MessageID == a.MessageID })
	if ev.Class != envelope.ClassUnauthorised {
		w.Errorf("class %s: %s", ev.Class, ev.Reason)
	}
	w.seen("dead letter (unauthorised) at jerry")
	close(hold)
	if tr := jerry.until(s.MessageID, replied); tr.Reply.Text() != "bob says true" {
		w.Errorf("the answer is %q", tr.Reply.Text())
	}
}

// stolenOrders: the thief gives orders that operators give.
func stolenOrders(w *world) {
	mallory := w.thief()
	jerry := w.node("jerry")
	bobby := w.node("bobby", func(c *bus.Config) {
		c.Authorize = func(i bus.Invocation) error {
			if i.Operator && !strings.HasSuffix(i.From.Gateway, jerry.Gateway()) {
				return errors.New("operators of that gateway may not")
			}
			return nil
		}
	})
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		return bus.Never(envelope.ClassPoison, errors.New("no"))
	})
	id := jerry.sendTexts("bob", "one")[0]
	jerry.until(id, dead)
	seq := uint64(0)
	for _, what := range []string{"redrive", "purge"} {
		w.attack(Thief, "order to "+what, "an operator's order to another's dead letters, from the thief's gateway")
		seq++
		e := w.forge(mallory, mallory.Gateway, "bob", bus.ReservedCapability+what, func(e *envelope.Envelope) {
			e.Payload = fmt.Appendf(nil, `{"filter":{"agent":%q},"ids":[%q],"by":"mallory"}`, w.name("bob"), id)
		})
		w.forgeLane(mallory, seq, plainItem(e), e.Canonical())
		ev := bobby.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventDeadLetter && ev.MessageID == e.MessageID })
		w.seen(fmt.Sprintf("dead letter (%s) at bobby", ev.Class))
	}
	w.attack(Thief, "order under an agent's name", "the same order, as if an agent had given it")
	e := w.forge(mallory, w.name("m"), "bob", bus.ReservedCapability+"purge", nil)
	w.forgeLane(mallory, seq+1, plainItem(e), e.Canonical())
	ev := bobby.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventDeadLetter && ev.MessageID == e.MessageID })
	w.seen(fmt.Sprintf("dead letter (%s) at bobby", ev.Class))
	if st, err := jerry.Lookup(w.ctx(), id); err != nil || st.State != envelope.DeadLetter {
		w.Errorf("the dead letter: %+v, %v", st, err)
	}
}

// stolenRecords: what only an agent's hosts may write, with the key of another.
func stolenRecords(w *world) {
	mallory := w.thief()
	jerry, bobby := w.node("jerry"), w.node("bobby")
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		return bus.Never(envelope.ClassPoison, errors.New("no"))
	})
	id := jerry.sendTexts("bob", "one")[0]
	jerry.until(id, dead)
	key := bus.Root + "deadletters/" + w.name("bob") + "/" + id
	old := w.value(key)
	body, _ := trust.SplitRecord(old)
	w.attack(Thief, "dead letter of another's inbox", "a dead letter written over, signed by a gateway that may not host the agent")
	w.put(key, mallory.SignRecord(trust.KindRecord, key, time.Now(), []byte(strings.Replace(string(body), "poison", "expired", 1))))
	res, err := jerry.Redrive(w.ctx(), bus.DeadLetterFilter{Agent: w.name("bob"), IDs: []string{id}}, bus.RedriveOptions{By: "op", TTL: time.Hour})
	if err == nil && len(res) == 1 && res[0].Done {
		w.Errorf("it was redriven: %+v", res)
	}
	jerry.refuses(trust.NotHost)
	w.put(key, old)

	w.attack(Thief, "big registry entry", "300 KiB in the registry, in the name of another's agent")
	reg := bus.Root + "agents/" + w.name("bob") + "/signed"
	w.put(reg, mallory.SignRecord(trust.KindRegistry, reg, time.Now(), fmt.Appendf(nil, `{"fields":{"gateway":%q}}`, strings.Repeat("x", 250<<10))))
	jerry.refuses(trust.NotHost)

	w.attack(Thief, "claim of another's inbox", "the lock of an inbox, with the thief's signed claim and the true session's id")
	lock := bus.Root + "owners/agents/" + w.name("bob")
	p, err := w.admin().Get(w.ctx(), lock)
	if err != nil || p == nil {
		w.Fatal(err)
	}
	claim := fmt.Appendf(nil, `{"agent":%q,"gateway":%q,"since":"2026-01-01T00:00:00.000Z","session":%q}`, w.name("bob"), mallory.Gateway, p.Session)
	w.put(lock, mallory.SignRecord(trust.KindOwner, lock, time.Now(), claim))
	jerry.refuses(trust.NotHost)
	w.soon("bob is owned by nobody that is named", func() bool { return jerry.OwnerOf(w.name("bob")) == "" })
}

// stolenQueue: a unique key that would keep a task from being done, and a worker that is none.
func stolenQueue(w *world) {
	mallory := w.thief()
	jerry, owner, one := w.node("jerry"), w.node("owner"), w.node("one")
	queue := w.name("chores")
	var c tally
	if err := owner.ServeQueue(bus.QueueSpec{ID: queue}); err != nil {
		w.Fatal(err)
	}
	owner.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventOwned && ev.To == queue })
	w.attack(Thief, "worker in another's name", "the announcement of a worker, signed by the thief in another gateway's name")
	key := bus.Root + "tasks/" + queue + "/workers/of/" + one.Gateway()
	session, err := w.admin().NewSession(w.ctx(), bus.SessionOptions{Name: "mallory", TTL: time.Minute})
	if err != nil {
		w.Fatal(err)
	}
	if _, err := w.admin().Txn(w.ctx(), []bus.Op{{Verb: bus.OpLock, Key: key, Session: session, Value: mallory.SignRecord(trust.KindRegistry, key, time.Now(),
		fmt.Appendf(nil, `{"gateway":%q,"worker":"evil","slots":99,"since":"2026-01-01T00:00:00.000Z"}`, one.Gateway()))}}); err != nil {
		w.Fatal(err)
	}
	owner.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventRefused && strings.HasPrefix(ev.Reason, key) })
	w.seen("event refused at owner")
	w.remove(key)
	if err := one.Work(bus.WorkerSpec{Queue: queue, Agent: w.name("helper")}, bus.HandlerFunc(c.handle)); err != nil {
		w.Fatal(err)
	}
	jerry.until(jerry.sendTexts("chores", "done")[0], acked)
	c.want(w, "done")
}
