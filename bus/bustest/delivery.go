package bustest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// longest bounds every wait of the suite; nothing is expected to come near it.
const longest = 30 * time.Second

// Delivery is the contract of delivery and ownership over a Store: it runs on every
// implementation. open returns a new client of one and the same store at each call; the
// suite uses names of its own in every subtest, so the store may be shared.
func Delivery(t *testing.T, open func(t *testing.T) func() bus.Store) {
	deliver(t, asAnybody(open), inTheOpen)
}

// SignedDelivery is [Delivery] in a mesh whose gateways sign, and believe nothing else.
func SignedDelivery(t *testing.T, open func(t *testing.T) func() bus.Store) {
	deliver(t, asAnybody(open), signed)
}

// ConfidentialDelivery is [SignedDelivery] with every payload encrypted, and what must not be seen looked for.
func ConfidentialDelivery(t *testing.T, open func(t *testing.T) func() bus.Store) {
	deliver(t, asAnybody(open), confidential)
}

// security is how much of it the meshes of the suite have.
type security int

const (
	inTheOpen security = iota
	signed
	confidential
)

func asAnybody(open func(t *testing.T) func() bus.Store) func(t *testing.T) func(string) bus.Store {
	return func(t *testing.T) func(string) bus.Store {
		o := open(t)
		return func(string) bus.Store { return o() }
	}
}

// DeliveryAs is [Delivery] on a store with access rules: open returns a client with the rights of a gateway of
// mesh, or, for "", of somebody who may do everything.
func DeliveryAs(t *testing.T, open func(t *testing.T) func(mesh bus.Topology, gateway string) bus.Store) {
	deliver(t, func(t *testing.T) func(string) bus.Store {
		o := open(t)
		return func(gateway string) bus.Store {
			_, tag, _ := strings.Cut(gateway, "-")
			return o(tagged(mayDo, tag), gateway)
		}
	}, inTheOpen)
}

// contract is a part of the suite.
type contract struct {
	name string
	run  func(*world)
}

func deliver(t *testing.T, open func(t *testing.T) func(gateway string) bus.Store, sec security) {
	parts := []contract{
		{"SendAckReply", sendAckReply},
		{"AskSurvivesItsHandler", askSurvives},
		{"OrderWithinConversation", order},
		{"ConversationsDoNotWait", independent},
		{"BacklogTakenOver", backlog},
		{"RetryThenDeadLetter", retries},
		{"NeverIsFinal", neverFinal},
		{"DuplicateIsOneEffect", duplicates},
		{"LostReplyLostRequest", lostReplies},
		{"FloodWithLosses", flood},
		{"HandoverOnStop", handover},
		{"DeposedOwnerCannotWrite", deposed},
		{"LockIsCheckedByTheStore", fenced},
		{"ExpiredIsNotHandled", expired},
		{"LargePayloads", large},
		{"RegistryHeals", registryHeals},
		{"UnreadableMailIsSetAside", unreadable},
		{"BellsAndCursorsMended", mended},
		{"WritesPerMessage", writesPerMessage},
		{"FaultAtEveryCall", faultSweep},
		{"UnsteadyWatches", unsteadyWatches},
		{"DeadLettersRedriveAndPurge", redrive},
		{"RedriveSurvivesItsOwner", redriveSurvives},
		{"ClaimCheck", claim},
		{"FanOut", fanOut},
		{"AskAll", askAll},
		{"UncleanTakeover", uncleanTakeover},
		{"RandomRuns", randomRuns},
		{"DelayedSurvivesItsOwner", delayed},
		{"SharedState", sharedState},
		{"TaskQueues", queues},
		{"CancelSurvivesItsOwner", cancelSurvives},
	}
	parts = append(parts, duties...)
	switch sec {
	case signed:
		parts = append(parts, attacks...)
	case confidential:
		parts = append(parts, secrets...)
	}
	for _, tc := range parts {
		t.Run(tc.name, func(t *testing.T) {
			w := &world{T: t, open: open(t), tag: strings.ReplaceAll(uuid.NewString()[:8], "-", "")}
			_, w.slow = w.open("").(bus.Registrar)
			if sec >= signed {
				w.trust = newTrusted(w.tag)
			}
			if sec == confidential {
				w.trust.encrypting(w)
			}
			tc.run(w)
		})
	}
}

func sendAckReply(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		return m.Reply(envelope.TextPayload("re: " + m.Envelope().Text()))
	})
	s, err := jerry.AskAPI(w.ctx(), jerry.out("bob", "hello"))
	if err != nil {
		w.Fatal(err)
	}
	tr := jerry.until(s.MessageID, func(t bus.Track) bool { return acked(t) && replied(t) })
	if got := tr.Reply.Text(); got != "re: hello" {
		w.Errorf("reply %q", got)
	}
	if tr.Reply.InReplyTo != s.MessageID || tr.Reply.CorrelationID != s.CorrelationID || tr.Reply.SourceAgent != w.name("bob") {
		w.Errorf("reply does not belong: %+v", tr.Reply.Envelope)
	}
	// Any gateway finds it, answer included; an encrypted one can be read by who asked.
	st, err := bobby.Lookup(w.ctx(), s.MessageID)
	if err != nil || st.State != envelope.Acked || st.Reply == nil || st.Reply.Text() != "re: hello" && !st.Reply.Closed() {
		w.Errorf("lookup from another gateway: %+v, %v", st, err)
	}
	if _, err := bobby.Lookup(w.ctx(), envelope.NewID()); !errors.Is(err, bus.ErrNotFound) {
		w.Errorf("lookup of nothing: %v", err)
	}
	if _, err := jerry.Send(w.ctx(), jerry.out("nobody", "x")); !errors.Is(err, bus.ErrUnknownAgent) {
		w.Errorf("unknown agent: %v", err)
	}
	if err := bobby.Start(w.ctx()); err == nil {
		w.Error("started twice")
	}
}

// askSurvives: a handler asks, dies before the answer, and its successor on another gateway
// gets the answer to the question that was asked once.
func askSurvives(w *world) {
	bobby := w.node("bobby")
	var asked atomic.Int64
	hold := make(chan struct{})
	bobby.serve("bob", func(ctx context.Context, m *bus.Incoming) error {
		asked.Add(1)
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
		return m.Reply(envelope.TextPayload("42"))
	})
	again := make(chan struct{}, 1)
	hub := func(ctx context.Context, m *bus.Incoming) error {
		if m.Attempt() > 1 {
			again <- struct{}{}
		}
		a, err := m.Ask(ctx, bus.Outgoing{To: envelope.Address{Agent: w.name("bob")}, Payload: envelope.TextPayload("what?")})
		if err != nil {
			return err
		}
		return m.Reply(envelope.TextPayload("bob says " + a.Text()))
	}
	user := w.node("user")
	first := w.node("first")
	first.serve("hub", hub)
	s, err := user.AskAPI(w.ctx(), user.out("hub", "ask bob"))
	if err != nil {
		w.Fatal(err)
	}
	first.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventQueued && ev.To == w.name("bob") })
	crash(w, first)
	second := w.node("second")
	second.serve("hub", hub)
	wait(w, again, "the second run")
	close(hold)
	tr := user.until(s.MessageID, replied)
	if tr.Reply.Text() != "bob says 42" {
		w.Errorf("reply %q", tr.Reply.Text())
	}
	if n := asked.Load(); n != 1 {
		w.Errorf("bob was asked %d times", n)
	}
	user.until(s.MessageID, acked)
	boxes, err := user.Inboxes(w.ctx(), w.name("bob"))
	if err != nil || len(boxes) != 1 || len(boxes[0].Lanes) != 1 || boxes[0].Lanes[0].From != first.Gateway() || boxes[0].Lanes[0].Seq != 1 {
		w.Errorf("the question was sent again: %+v %v", boxes, err)
	}
	if st, err := user.Lookup(w.ctx(), s.MessageID); err != nil || st.Delivery.Attempt < 2 {
		w.Errorf("the second attempt should show: %+v %v", st, err)
	}
}

// crash makes a node's store fail for good and ends its session as the store would: the process
// is as good as dead for the mesh, and what it still tries must not count.
func crash(w *world, n *node) {
	w.Helper()
	id := w.lockSession(bus.Root + "owners/gateways/" + n.Gateway())
	gone := fmt.Errorf("%w: crashed by the test", bus.ErrUnavailable)
	n.store.Before(func(string, []bus.Op) error { return gone })
	if err := w.admin().DestroySession(w.ctx(), id); err != nil {
		w.Fatal(err)
	}
}

func (w *world) admin() bus.Store { return w.open("") }

func (w *world) lockSession(key string) string {
	w.Helper()
	p, err := w.admin().Get(w.ctx(), key)
	if err != nil || p == nil || p.Session == "" {
		w.Fatalf("%s is not locked: %v %v", key, p, err)
	}
	return p.Session
}

func order(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	const convs, each = 5, 60
	var mu sync.Mutex
	got := map[string][]string{}
	all := make(chan struct{}, convs*each)
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		mu.Lock()
		got[m.Envelope().ConversationID] = append(got[m.Envelope().ConversationID], m.Envelope().Text())
		mu.Unlock()
		all <- struct{}{}
		return nil
	})
	var wg sync.WaitGroup
	for c := range convs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range each {
				o := jerry.out("bob", fmt.Sprint(i))
				o.ConversationID = fmt.Sprint(c)
				if _, err := jerry.Send(w.ctx(), o); err != nil {
					w.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	for range convs * each {
		wait(w, all, "a message")
	}
	for c, list := range got {
		for i, s := range list {
			if s != fmt.Sprint(i) {
				w.Fatalf("conversation %s: place %d holds %s", c, i, s)
			}
		}
	}
}

func independent(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	release := make(chan struct{})
	bobby.serve("bob", func(ctx context.Context, m *bus.Incoming) error {
		if m.Envelope().ConversationID == "stuck" {
			select {
			case <-release:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	o := jerry.out("bob", "think long")
	o.ConversationID = "stuck"
	stuck := jerry.send(o)
	behind := jerry.send(o)
	for range 20 {
		jerry.until(jerry.send(jerry.out("bob", "quick")).MessageID, acked)
	}
	// The slow one is known to be delivered although it is not acked.
	tr := jerry.until(stuck.MessageID, func(t bus.Track) bool { return t.Facts.Delivered })
	if tr.Facts.Acked {
		w.Error("the stuck message cannot be acked yet")
	}
	close(release)
	jerry.until(stuck.MessageID, acked)
	jerry.until(behind.MessageID, acked)
	w.noPending("bob")
}

// noPending waits until an agent has no records of messages in work.
func (w *world) noPending(agent string) {
	w.Helper()
	s := w.admin()
	w.eventually(s, bus.Root+"pending/"+w.name(agent)+"/", func(p []bus.Pair) bool { return len(p) == 0 })
}

// eventually watches a prefix until it fits.
func (w *world) eventually(s bus.Store, prefix string, fits func([]bus.Pair) bool) {
	w.Helper()
	ctx := w.ctx()
	var index uint64
	for {
		pairs, next, err := s.Watch(ctx, prefix, index)
		if err != nil {
			w.Fatalf("%s: %v", prefix, err)
		}
		if fits(pairs) {
			return
		}
		index = next
	}
}

// backlog: mail waits for an agent without an owner, more than one transaction of it, and the owner
// that comes gets all of it, once, and the store is clean after.
func backlog(w *world) {
	jerry := w.node("jerry")
	first := w.node("first")
	first.serve("bob", func(context.Context, *bus.Incoming) error { return nil })
	jerry.until(jerry.send(jerry.out("bob", "warm-up")).MessageID, acked)
	first.stop()
	const n = 700
	var wg sync.WaitGroup
	ids := make([]string, n)
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s, err := jerry.Send(w.ctx(), jerry.out("bob", strings.Repeat("x", 500)))
			if err != nil {
				w.Error(err)
				return
			}
			ids[i] = s.MessageID
		}()
	}
	wg.Wait()
	boxes, err := jerry.Inboxes(w.ctx(), w.name("bob"))
	if err != nil || len(boxes) != 1 || boxes[0].Waiting != n || boxes[0].Owner != "" {
		w.Fatalf("inbox: %+v %v", boxes, err)
	}
	if st, err := first.Lookup(w.ctx(), ids[n/2]); err != nil || st.State != envelope.Queued {
		w.Errorf("waiting mail is found from anywhere: %+v %v", st, err)
	}
	var mu sync.Mutex
	count := map[string]int{}
	second := w.node("second")
	second.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		mu.Lock()
		defer mu.Unlock()
		count[m.Envelope().MessageID]++
		return nil
	})
	for _, id := range ids {
		jerry.until(id, acked)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, id := range ids {
		if count[id] != 1 {
			w.Errorf("%s was handled %d times", id, count[id])
		}
	}
	w.eventually(w.admin(), bus.Root+"lanes/"+jerry.Gateway()+"/", func(p []bus.Pair) bool { return len(p) == 0 })
}

func retries(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var mu sync.Mutex
	attempts := map[string]int{}
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		mu.Lock()
		attempts[m.Envelope().Text()]++
		n := attempts[m.Envelope().Text()]
		mu.Unlock()
		if m.Envelope().Text() == "second time" && n == 2 {
			return nil
		}
		if m.Envelope().Text() == "panic" {
			panic("boom")
		}
		return errors.New("not yet")
	})
	ok := jerry.send(jerry.out("bob", "second time"))
	bad := jerry.send(jerry.out("bob", "hopeless"))
	boom := jerry.send(jerry.out("bob", "panic"))
	jerry.until(ok.MessageID, acked)
	tr := jerry.until(bad.MessageID, dead)
	if tr.Facts.Class != envelope.ClassExhausted || !strings.Contains(tr.Facts.Reason, "not yet") {
		w.Errorf("told the sender %q %q", tr.Facts.Class, tr.Facts.Reason)
	}
	jerry.until(boom.MessageID, dead)
	mu.Lock()
	defer mu.Unlock()
	if attempts["second time"] != 2 || attempts["hopeless"] != 3 || attempts["panic"] != 3 {
		w.Errorf("attempts: %v", attempts)
	}
	st, err := jerry.Lookup(w.ctx(), bad.MessageID)
	if err != nil || st.State != envelope.DeadLetter || len(st.Delivery.Failures) != 3 || st.Envelope.Text() != "hopeless" && !st.Envelope.Encrypted() {
		w.Errorf("the dead letter keeps everything: %+v %v", st, err)
	}
	w.noPending("bob")
}

func neverFinal(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var n atomic.Int64
	bobby.serve("bob", func(context.Context, *bus.Incoming) error {
		n.Add(1)
		return bus.Never(envelope.ClassPoison, errors.New("makes no sense"))
	})
	tr := jerry.until(jerry.send(jerry.out("bob", "?")).MessageID, dead)
	if tr.Facts.Class != envelope.ClassPoison || n.Load() != 1 {
		w.Errorf("class %s after %d attempts", tr.Facts.Class, n.Load())
	}
	pinned := jerry.out("bob", "for another")
	pinned.To.Gateway = jerry.Gateway()
	if _, err := jerry.Send(w.ctx(), pinned); err != nil && !errors.Is(err, bus.ErrUnknownAgent) {
		w.Errorf("pinned to the wrong gateway: %v", err)
	}
}
