package bustest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// duties are the parts of the contract that are about inboxes with work of their own.
var duties = []contract{
	{"ResidentTerms", residentTerms},
	{"EffectsAcrossCrashes", effectsAcrossCrashes},
	{"UniqueAcrossSources", uniqueAcrossSources},
	{"OneOrderAcrossSources", oneOrder},
	{"Transfer", transfer},
}

// homely is a handler with work of its own.
type homely struct {
	bus.HandlerFunc
	reside func(context.Context, *bus.Term) error
}

func (h homely) Reside(ctx context.Context, t *bus.Term) error { return h.reside(ctx, t) }

func done(context.Context, *bus.Incoming) error { return nil }

func (n *node) serveSpec(spec bus.AgentSpec, h bus.Handler) {
	n.w.Helper()
	spec.ID = n.w.name(spec.ID)
	if err := n.Serve(spec, h); err != nil {
		n.w.Fatal(err)
	}
}

// residentTerms: one resides at a time; in a handover the next one begins after the last one returned; each has a higher
// token, and finds what the last one left. What a deposed one tries is refused by the store.
func residentTerms(w *world) {
	terms := make(chan *bus.Term, 8)
	var inside, most atomic.Int32
	h := homely{done, func(ctx context.Context, t *bus.Term) error {
		most.Store(max(most.Load(), inside.Add(1)))
		terms <- t
		<-ctx.Done()
		<-time.After(50 * time.Millisecond) // it has something to close
		inside.Add(-1)
		return nil
	}}
	jerry, first, second := w.node("jerry"), w.node("first"), w.node("second")
	first.serveSpec(bus.AgentSpec{ID: "bob"}, h)
	one := wait(w, terms, "the first term")
	second.serveSpec(bus.AgentSpec{ID: "bob", Rank: 1}, h)
	if err := one.Write(w.ctx(), bus.RoomEntry{Name: "vault/key", Value: []byte{0, 1, 2}}, bus.RoomEntry{Name: "state", Value: []byte(`{"n":1}`)}); err != nil {
		w.Fatal(err)
	}
	if err := errors.Join(one.Trusted(), one.Verify(w.ctx())); err != nil {
		w.Error(err)
	}
	id, err := one.Send(w.ctx(), jerry.out("bob", "to itself"))
	if err != nil {
		w.Fatal(err)
	}
	first.until(id.MessageID, acked)
	first.stop()
	two := wait(w, terms, "the second term")
	if most.Load() != 1 {
		w.Errorf("%d resided at once", most.Load())
	}
	if two.Token() <= one.Token() {
		w.Errorf("token %d after %d", two.Token(), one.Token())
	}
	entries, err := two.List(w.ctx(), "")
	if err != nil || len(entries) != 2 || entries[0].Name != "state" || string(entries[1].Value) != "\x00\x01\x02" {
		w.Errorf("%+v %v", entries, err)
	}
	if err := errors.Join(one.Trusted(), one.Write(w.ctx(), bus.RoomEntry{Name: "state", Value: []byte("x")})); !errors.Is(err, bus.ErrDeposed) {
		w.Errorf("the last term: %v", err)
	}
	// The lock goes to somebody else, and the owner has not heard of it.
	see := make(chan struct{})
	second.store.After(func(call string, _ []bus.Op) error {
		if call == CallWatch {
			<-see
		}
		return nil
	})
	defer close(see)
	admin := w.admin()
	thief, err := admin.NewSession(w.ctx(), bus.SessionOptions{Name: "thief", TTL: time.Minute})
	if err != nil {
		w.Fatal(err)
	}
	lock := bus.Root + "owners/agents/" + w.name("bob")
	if _, err := admin.Txn(w.ctx(), []bus.Op{{Verb: bus.OpDelete, Key: lock}, {Verb: bus.OpLock, Key: lock, Session: thief, Value: []byte("{}")}}); err != nil {
		w.Fatal(err)
	}
	if err := two.Trusted(); err != nil {
		w.Errorf("it cannot know yet: %v", err)
	}
	if _, err := two.Send(w.ctx(), jerry.out("bob", "late")); !errors.Is(err, bus.ErrDeposed) {
		w.Errorf("sent after it was deposed: %v", err)
	}
	if err := errors.Join(two.Trusted(), two.Verify(w.ctx())); !errors.Is(err, bus.ErrDeposed) {
		w.Errorf("%v", err)
	}
}

// vendor is the other side of an effect: it takes what comes, and knows what it has taken.
type vendor struct {
	mu    sync.Mutex
	posts map[string]int
}

func (v *vendor) post(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.posts[id]++
}

func (v *vendor) count(id string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.posts[id]
}

// handle posts what it is given, once, whatever happened before.
func (v *vendor) handle(ctx context.Context, m *bus.Incoming) error {
	id := m.Envelope().MessageID
	p, err := m.Intend(ctx, "post", map[string]string{"nonce": id})
	var before *bus.EffectError
	switch {
	case errors.As(err, &before) && errors.Is(err, bus.ErrEffectMade):
		return m.Reply(envelope.TextPayload("posted before"))
	case errors.As(err, &before):
		t := time.NewTimer(m.EffectSettledAfter(before.Effect))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if v.count(id) > 0 {
			if err := m.Settle("post", envelope.EffectConfirmed, id); err != nil {
				return err
			}
			return m.Reply(envelope.TextPayload("found"))
		}
		if err := m.Settle("post", envelope.EffectFailed, ""); err != nil {
			return err
		}
		if p, err = m.Intend(ctx, "post", nil); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if err := p.Check(); err != nil {
		return err
	}
	v.post(id)
	if err := p.Settle(envelope.EffectSent, id); err != nil {
		return err
	}
	return m.Reply(envelope.TextPayload("posted"))
}

// effectsAcrossCrashes lets the owner of an effect die before and after each of its store calls. The vendor gets one post, and
// who asked gets one answer.
func effectsAcrossCrashes(w *world) {
	calls := effectRun(w, -1, false)
	if calls < 2 {
		w.Fatalf("the owner made only %d calls", calls)
	}
	for n := range calls {
		for _, after := range []bool{false, true} {
			if w.slow && (n%2 == 0) != after {
				continue // real servers: one of both
			}
			w.Run(fmt.Sprintf("call %d, after %v", n, after), func(t *testing.T) {
				if !w.slow {
					t.Parallel()
				}
				one := *w
				one.T = t
				effectRun(&one, n, after)
			})
		}
	}
}

// effectRun sends one message to an owner that dies at its nth call from then on, and returns how many it made.
func effectRun(w *world, at int, after bool) int {
	w.Helper()
	s := &world{T: w.T, open: w.open, slow: w.slow, tag: fmt.Sprintf("%s-%d", w.tag, sweepNumber.Add(1))}
	v := &vendor{posts: map[string]int{}}
	jerry, first := s.node("jerry"), s.node("first")
	first.serve("bob", v.handle)
	second := s.node("second")
	second.serveSpec(bus.AgentSpec{ID: "bob", Rank: 1}, bus.HandlerFunc(v.handle))
	var calls atomic.Int64
	var fallen sync.Once
	fall := make(chan struct{})
	hook := func(when bool) Hook {
		return func(call string, _ []bus.Op) error {
			if call == CallWatch {
				return nil
			}
			n := calls.Load()
			if !when {
				n = calls.Add(1) - 1
			} else {
				n--
			}
			if at >= 0 && n >= int64(at) && when == after || at >= 0 && n > int64(at) {
				fallen.Do(func() { close(fall) })
				return fmt.Errorf("%w: it died", bus.ErrUnavailable)
			}
			return nil
		}
	}
	first.store.Before(hook(false))
	first.store.After(hook(true))
	o, err := jerry.AskAPI(s.ctx(), jerry.out("bob", "post this"))
	if err != nil {
		s.Fatal(err)
	}
	if at >= 0 {
		wait(s, fall, "the end of the owner")
		crash(s, first)
	}
	tr := jerry.until(o.MessageID, func(t bus.Track) bool { return t.Facts.Replied && t.Facts.Acked || t.Facts.Dead })
	if n := v.count(o.MessageID); n != 1 || tr.Facts.Dead {
		s.Errorf("dead at call %d (after %v): %d posts, %s (%s), %s", at, after, n, tr.Facts, tr.Facts.Reason, tr.Reply.Text())
	}
	total := calls.Load()
	for _, n := range s.nodes {
		n.stop()
	}
	return int(total)
}

// uniqueAcrossSources: of two messages with a key one is handled, whichever gateways they are from, while it is worked on,
// after it, and at the next owner.
func uniqueAcrossSources(w *world) {
	jerry, user, first, second := w.node("jerry"), w.node("user"), w.node("first"), w.node("second")
	var handled sync.Map
	release := make(chan struct{})
	h := bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
		n, _ := handled.LoadOrStore(m.Envelope().UniqueKey(), new(atomic.Int32))
		n.(*atomic.Int32).Add(1)
		select {
		case <-release:
		case <-ctx.Done():
			return ctx.Err()
		}
		return m.Reply(envelope.TextPayload("handled"))
	})
	first.serveSpec(bus.AgentSpec{ID: "bob", Unique: true}, h)
	w.soon("the first owner", func() bool { return jerry.OwnerOf(w.name("bob")) == first.Gateway() })
	second.serveSpec(bus.AgentSpec{ID: "bob", Rank: 1, Unique: true}, h)
	event := func(n *node, key string) *envelope.Sealed {
		o := n.out("bob", "event "+key)
		o.ConversationID = key
		o.Task = &envelope.Task{UniqueKey: key, UniqueFor: envelope.MillisOf(time.Hour)}
		s, err := n.AskAPI(w.ctx(), o)
		if err != nil {
			w.Fatal(err)
		}
		return s
	}
	one := event(jerry, "a")
	w.soon("the first is worked on", func() bool { _, ok := handled.Load("a"); return ok })
	two := event(user, "a")
	close(release)
	if tr := jerry.until(one.MessageID, replied); tr.Reply.Text() != "handled" {
		w.Errorf("the first: %s", tr.Reply.Text())
	}
	duplicate := fmt.Sprintf(`{"duplicate_of":%q}`, one.MessageID)
	again := func(n *node, s *envelope.Sealed, when string) {
		w.Helper()
		if tr := n.until(s.MessageID, func(t bus.Track) bool { return t.Facts.Replied && t.Facts.Acked }); string(tr.Reply.Payload) != duplicate {
			w.Errorf("%s: %s", when, tr.Reply.Payload)
		}
	}
	again(user, two, "while it is worked on")
	again(user, event(user, "a"), "after it")
	first.stop()
	w.soon("the next owner", func() bool { return jerry.OwnerOf(w.name("bob")) == second.Gateway() })
	again(user, event(user, "a"), "at the next owner")
	b := event(user, "b")
	user.until(b.MessageID, acked)
	for _, key := range []string{"a", "b"} {
		if n, _ := handled.Load(key); n == nil || n.(*atomic.Int32).Load() != 1 {
			w.Errorf("%s was not handled once: %v", key, n)
		}
	}
}

// oneOrder: what two gateways send into one conversation while nobody owns the inbox is handled in the order in which it was
// sent, all of it before the owner's own work begins.
func oneOrder(w *world) {
	jerry, user, first := w.node("jerry"), w.node("user"), w.node("first")
	var mu sync.Mutex
	var order []string
	begun := make(chan int, 1)
	h := homely{
		func(_ context.Context, m *bus.Incoming) error {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, m.Envelope().Text())
			return nil
		},
		func(ctx context.Context, t *bus.Term) error {
			begun <- 0
			<-ctx.Done()
			return nil
		},
	}
	first.serveSpec(bus.AgentSpec{ID: "bob", OneOrder: true}, h)
	wait(w, begun, "the first term")
	first.stop()
	var want []string
	var ids []string
	send := func(n *node, text string) {
		o := n.out("bob", text)
		o.ConversationID = "room"
		want = append(want, text)
		ids = append(ids, n.send(o).MessageID)
		// Stamps are milliseconds.
		for at := time.Now().UnixMilli(); time.Now().UnixMilli() == at; {
			<-time.After(time.Millisecond)
		}
	}
	for i := range 20 {
		send([]*node{jerry, user}[i*7%3%2], fmt.Sprint(i))
	}
	third := w.node("third")
	third.serveSpec(bus.AgentSpec{ID: "bob", OneOrder: true}, h)
	wait(w, begun, "the own work of the next owner")
	jerry.until(ids[0], acked)
	w.soon("all are handled", func() bool { mu.Lock(); defer mu.Unlock(); return len(order) >= len(want) })
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(order, want) {
		w.Errorf("handled as %v", order)
	}
}

// transfer: a duty moves to who is named, without a message lost or doubled, and the terms do not overlap.
func transfer(w *world) {
	jerry, first, second := w.node("jerry"), w.node("first"), w.node("second")
	var inside, most atomic.Int32
	var mu sync.Mutex
	effects := map[string]int{}
	h := homely{
		func(_ context.Context, m *bus.Incoming) error {
			mu.Lock()
			defer mu.Unlock()
			effects[m.Envelope().MessageID]++
			return nil
		},
		func(ctx context.Context, _ *bus.Term) error {
			most.Store(max(most.Load(), inside.Add(1)))
			<-ctx.Done()
			inside.Add(-1)
			return nil
		},
	}
	first.serveSpec(bus.AgentSpec{ID: "bob"}, h)
	w.soon("the first owner", func() bool { return jerry.OwnerOf(w.name("bob")) == first.Gateway() })
	second.serveSpec(bus.AgentSpec{ID: "bob", Rank: 1}, h)
	w.soon("the second candidate is known", func() bool {
		d := jerry.Duties()
		i := slices.IndexFunc(d, func(o bus.OwnerInfo) bool { return o.Duty == w.name("bob") })
		return i >= 0 && d[i].Next == second.Gateway()
	})
	var ids []string
	to := []*node{second, first}
	for i := range 6 {
		for range 5 {
			ids = append(ids, jerry.send(jerry.out("bob", "x")).MessageID)
		}
		c, err := jerry.Transfer(w.ctx(), w.name("bob"), bus.TransferOptions{To: to[i%2].Gateway(), By: "op", Force: i == 5})
		if err != nil || c.To != to[i%2].Gateway() {
			w.Fatalf("%d: %+v %v", i, c, err)
		}
	}
	for _, id := range ids {
		jerry.until(id, acked)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, id := range ids[:25] { // the last time it was taken by force: what ran then may run again
		if effects[id] != 1 {
			w.Errorf("%s was handled %d times", id, effects[id])
		}
	}
	if most.Load() > 2 {
		w.Errorf("%d resided at once", most.Load())
	}
}
