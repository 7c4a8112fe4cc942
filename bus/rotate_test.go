package bus_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// operated is a mesh whose operator sits in the test.
type operated struct {
	*bubble
	operator *trust.Key
	set      *trust.Set
	signers  map[string]*trust.Signer
}

func (b *bubble) operated(names ...string) *operated {
	b.Helper()
	m := &operated{bubble: b, operator: trust.NewKey(), signers: map[string]*trust.Signer{}}
	m.set = &trust.Set{Mesh: "m", IssuedAt: envelope.At(time.Now()), Operators: []string{trust.EncodePublic(m.operator.Public())}, Gateways: []trust.Member{}, Revoked: []trust.Revocation{}}
	for _, name := range names {
		m.signers[name] = &trust.Signer{Mesh: "m", Gateway: name, Key: trust.NewKey()}
		m.set.Put(name, trust.MemberKey{Public: trust.EncodePublic(m.signers[name].Key.Public())}, []string{"*"})
	}
	m.publish()
	return m
}

func (m *operated) put(key string, value []byte) {
	m.Helper()
	if _, err := m.store.Txn(m.Context(), []bus.Op{{Verb: bus.OpSet, Key: key, Value: value}}); err != nil {
		m.Fatal(err)
	}
}

func (m *operated) publish() {
	m.Helper()
	m.set.Version++
	raw, err := trust.SignSet(m.set, m.operator)
	if err != nil {
		m.Fatal(err)
	}
	m.put(trust.SetKey, raw)
}

func (m *operated) join(name string, change ...func(*bus.Config)) *gw {
	m.Helper()
	return m.gateway(name, func(c *bus.Config) {
		for _, f := range change {
			f(c)
		}
		var err error
		if c.Anchor, err = trust.OpenAnchor("", "m", []ed25519.PublicKey{m.operator.Public()}); err != nil {
			m.Fatal(err)
		}
		c.Signer, c.Trust = m.signers[name], trust.NewVerifier("m", true)
	})
}

// rotate gives a gateway another key; its old one ends ten minutes later.
func (m *operated) rotate(g *gw) (old, now *trust.Key) {
	m.Helper()
	old, now = m.signers[g.Gateway()].Current(), trust.NewKey()
	if err := g.Rotate(m.Context(), now); err != nil {
		m.Fatal(err)
	}
	if m.signers[g.Gateway()].Current() != old {
		m.Errorf("%s signs with a key that the set does not name", g.Gateway())
	}
	if err := m.set.Follow(g.Gateway(), trust.EncodePublic(now.Public()), time.Now(), 10*time.Minute, time.Hour); err != nil {
		m.Fatal(err)
	}
	m.publish()
	m.pass(30 * time.Second) // a heartbeat
	if m.signers[g.Gateway()].Current() != now {
		m.Errorf("%s does not sign with its new key", g.Gateway())
	}
	return old, now
}

func (m *operated) signedBy(key string) string {
	m.Helper()
	p, err := m.store.Get(m.Context(), key)
	if err != nil || p == nil {
		m.Fatalf("%s: %v %v", key, p, err)
	}
	_, st := trust.SplitRecord(p.Value)
	if st == nil {
		return ""
	}
	return st.Key
}

func (g *gw) refusals() (list []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, ev := range g.events {
		if ev.Event == bus.EventRefused {
			list = append(list, ev.Reason)
		}
	}
	return list
}

// TestTrustIsWatched: whoever is let in or thrown out need not wait for a heartbeat, also after somebody deleted the set; and whoever
// changes the set all the time has no gateway read it all the time.
func TestTrustIsWatched(t *testing.T) {
	inBubble(t, func(b *bubble) {
		m := b.operated("jerry", "bobby")
		bobby := m.join("bobby")
		within := func(d time.Duration, believed bool, what string) {
			b.Helper()
			m.pass(d)
			if err := bobby.Ready(); believed != (err == nil) || !believed && !errors.Is(err, bus.ErrUntrusted) {
				b.Errorf("%s: %v", what, err)
			}
		}
		without, with := m.set.Gateways[:1], m.set.Gateways
		if with[0].Name != "jerry" {
			without = m.set.Gateways[1:]
		}
		within(0, true, "at the start")
		m.set.Gateways = without
		m.publish()
		within(2*time.Second, false, "thrown out")
		m.set.Gateways = with
		m.publish()
		within(2*time.Second, true, "let in")

		if _, err := m.store.Txn(b.Context(), []bus.Op{{Verb: bus.OpDelete, Key: trust.SetKey}}); err != nil {
			b.Fatal(err)
		}
		within(time.Minute, true, "while the set is gone")
		m.set.Gateways = without
		m.publish()
		within(25*time.Second, false, "thrown out after that") // a heartbeat: what is not there is not watched

		var gets atomic.Int64
		bobby.store.Before(func(call string, _ []bus.Op) error {
			if call == bustest.CallGet {
				gets.Add(1)
			}
			return nil
		})
		for range 300 {
			m.publish()
			m.pass(10 * time.Millisecond)
		}
		if n := gets.Load(); n == 0 || n > 4*8 {
			b.Errorf("%d reads while the set changed 300 times in 3 s", n)
		}
		m.set.Gateways = with
		m.publish()
		within(2*time.Second, true, "let in after that")
		b.stop(bobby)
	})
}

// TestRotateKeepsWhatWaits: what a key signed in its life is believed after its end, by those who were not there too: messages that
// are delayed or wait for a retry, what was acked, the queue's worker; and what stands for long is signed anew.
func TestRotateKeepsWhatWaits(t *testing.T) {
	inBubble(t, func(b *bubble) {
		m := b.operated("jerry", "bobby", "second", "works")
		jerry, bobby, works := m.join("jerry"), m.join("bobby"), m.join("works")
		var mu sync.Mutex
		handled := map[string]int{}
		handle := func(_ context.Context, in *bus.Incoming) error {
			mu.Lock()
			defer mu.Unlock()
			text := in.Envelope().Text()
			handled[text]++
			if text == "again" && handled[text] == 1 {
				return bus.RetryAfter(2*time.Hour, fmt.Errorf("come back later"))
			}
			return in.Reply(in.Envelope().Payload)
		}
		b.serve(bobby, bus.AgentSpec{ID: "bob"}, handle)
		b.queue(bobby, 0)
		b.work(works, &shift{}, 2)
		b.pass(time.Second)
		day := func(o *bus.Outgoing) { o.TTL = 24 * time.Hour }
		done := b.send(jerry, "bob", "done", day)
		again := b.send(jerry, "bob", "again", day)
		later := b.send(jerry, "bob", "later", func(o *bus.Outgoing) {
			t := envelope.At(time.Now().Add(3 * time.Hour))
			o.TTL, o.Task = 24*time.Hour, &envelope.Task{NotBefore: &t}
		})
		b.pass(time.Minute)
		room := bus.Root + "duties/bob/left/behind"
		m.put(room, m.signers["bobby"].SignRecord(trust.KindRecord, room, time.Now(), []byte(`{"json":{"n":1}}`)))
		for range 2 {
			for _, g := range []*gw{jerry, bobby, works} {
				m.rotate(g)
			}
		}
		for key, by := range map[string]string{
			"owners/agents/bob": "bobby", "terms/bob": "bobby", "agents/bob/signed": "bobby", "gateways/bobby/signed": "bobby", "gateways/jerry/signed": "jerry",
			"receipts/jerry/from/bob": "bobby", "tasks/chores/workers/of/works": "works", "duties/bob/left/behind": "bobby",
		} {
			if got, want := m.signedBy(bus.Root+key), m.signers[by].Current().ID(); got != want {
				b.Errorf("%s is signed by %s, want %s", key, got, want)
			}
		}
		task := b.task(jerry, "a chore", nil)
		b.pass(time.Hour) // all old keys have ended
		if got := b.result(jerry, task); got != "done by works" {
			b.Errorf("the task: %q", got)
		}
		b.crash(bobby)
		second := m.join("second") // it has seen none of it
		b.serve(second, bus.AgentSpec{ID: "bob"}, handle)
		b.pass(4 * time.Hour)
		mu.Lock()
		if handled["done"] != 1 || handled["again"] != 2 || handled["later"] != 1 {
			b.Errorf("handled: %v", handled)
		}
		mu.Unlock()
		for _, id := range []string{done, again, later} {
			if f := jerry.facts(id); !f.Acked || f.Dead {
				b.Errorf("%s: %+v", id, f)
			}
		}
		for _, g := range []*gw{jerry, second, works} {
			if r := g.refusals(); len(r) > 0 {
				b.Errorf("%s refused %q", g.Gateway(), r)
			}
		}
		b.stop(jerry, bobby, second, works)
	})
}

// TestRotateDuringAnOutage: who has not seen the set that names a new key, and cannot look for it now, waits with the mail.
func TestRotateDuringAnOutage(t *testing.T) {
	inBubble(t, func(b *bubble) {
		m := b.operated("jerry", "bobby")
		jerry := m.join("jerry")
		bobby := m.join("bobby", func(c *bus.Config) { c.Heartbeat = 24 * time.Hour })
		b.serve(bobby, bus.AgentSpec{ID: "bob"}, func(_ context.Context, in *bus.Incoming) error { return in.Reply(in.Envelope().Payload) })
		first := b.send(jerry, "bob", "before", nil)
		b.pass(time.Second)
		bobby.store.Before(func(call string, _ []bus.Op) error {
			if call == bustest.CallGet {
				return fmt.Errorf("%w: the test's outage", bus.ErrUnavailable)
			}
			return nil
		})
		m.rotate(jerry)
		second := b.send(jerry, "bob", "meanwhile", nil)
		b.pass(time.Minute)
		if f := jerry.facts(second); f.Acked || f.Dead {
			b.Errorf("judged without the set: %+v", f)
		}
		bobby.store.Before(nil)
		b.pass(time.Minute)
		for _, id := range []string{first, second} {
			if f := jerry.facts(id); !f.Acked || f.Dead {
				b.Errorf("%+v", f)
			}
		}
		for _, r := range bobby.refusals() { // claims and registry entries are judged again
			if strings.HasPrefix(r, bus.Root+"inbox/") || strings.HasPrefix(r, bus.Root+"lanes/") {
				b.Errorf("refused: %s", r)
			}
		}
		b.stop(jerry, bobby)
	})
}

// TestMadeUpKeys: who fills the store with keys that nobody knows does not make a gateway look for each.
func TestMadeUpKeys(t *testing.T) {
	inBubble(t, func(b *bubble) {
		m := b.operated("jerry")
		jerry := m.join("jerry")
		b.pass(time.Minute)
		var gets atomic.Int64
		jerry.store.Before(func(call string, _ []bus.Op) error {
			if call == bustest.CallGet {
				gets.Add(1)
			}
			return nil
		})
		for i := range 300 {
			name := fmt.Sprintf("g%d", i)
			key := bus.Root + "gateways/" + name + "/signed"
			m.put(key, (&trust.Signer{Mesh: "m", Gateway: name, Key: trust.NewKey()}).SignRecord(trust.KindRegistry, key, time.Now(), []byte(`{"fields":{}}`)))
		}
		b.pass(time.Second)
		if n := gets.Load(); n < 10 || n > 290 {
			b.Errorf("%d reads", n)
		}
		if n := len(jerry.refusals()); n < 270 {
			b.Errorf("%d of 300 were refused", n)
		}
		b.stop(jerry)
	})
}
