package bustest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// What somebody does who may write and delete anything, and holds no key.

// waiting sends one message for each text to an inbox whose owner is away, and returns its slots: each message has its own, but for
// the first of a lane, which stays in the bell until the second comes.
func (w *world) waiting(from *node, agent string, texts ...string) (ids []string, slots []bus.Pair) {
	w.Helper()
	prefix := bus.Root + "lanes/" + from.Gateway() + "/" + w.name(agent) + "/"
	before, err := w.admin().List(w.ctx(), prefix)
	if err != nil {
		w.Fatal(err)
	}
	for _, text := range texts {
		o := from.out(agent, text)
		o.MaxHops, o.Capability = 3, "infra.check"
		n := int64(5)
		o.Budget = &envelope.Budget{Messages: &n}
		ids = append(ids, from.send(o).MessageID)
	}
	all, err := w.admin().List(w.ctx(), prefix)
	if err != nil || len(all)-len(before) != len(texts) {
		w.Fatalf("%d new slots for %d messages, %v", len(all)-len(before), len(texts), err)
	}
	return ids, all[len(before):]
}

// changedInFlight: every field that somebody could gain by, changed in a true entry.
func changedInFlight(w *world) {
	jerry, first := w.node("jerry"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	first.stop()
	changes := []struct{ what, from, to string }{
		{"longer life", `"ttl":`, `"ttl":9`},
		{"more hops", `"max_hops":3`, `"max_hops":30`},
		{"greater budget", `"messages":5`, `"messages":500`},
		{"another source agent", `"source_agent":"user"`, `"source_agent":"root"`},
		{"another capability", `"capability":"infra.check"`, `"capability":"infra.reset"`},
		{"another conversation", `"conversation_id":"`, `"conversation_id":"f`},
		{"another reply address", `"target_agent":`, `"reply_to":"mallory","target_agent":`},
		{"older schema", `"schema_version":"1.`, `"schema_version":"0.`},
		{"unknown major version", `"schema_version":"1.`, `"schema_version":"9.`},
		{"another moment", `"created_at":"2`, `"created_at":"3`},
		{"a hop that was not", `}]}`, `,"hops":[{"gateway":"x","agent":"y","at":"2026-01-01T00:00:00.000Z"}]}]}`},
		{"passed on to another", `}]}`, `,"for":"mallory"}]}`},
		{"the signature taken off", `"signed":`, `"sined":`},
		{"cut off in the middle", "", ""},
	}
	var texts []string
	for _, ch := range changes {
		texts = append(texts, ch.what)
	}
	ids, slots := w.waiting(jerry, "bob", slices.Concat(texts, []string{"good"})...)
	for i, ch := range changes {
		v := bytes.Replace(slots[i].Value, []byte(ch.from), []byte(ch.to), 1)
		if ch.from == `}]}` { // at the end of the entry
			v = append(bytes.TrimSuffix(slots[i].Value, []byte(ch.from)), ch.to...)
		}
		if ch.from == "" {
			v = slots[i].Value[:len(slots[i].Value)/2]
		}
		if bytes.Equal(v, slots[i].Value) {
			w.Fatalf("%s: nothing to change in %s", ch.what, slots[i].Value)
		}
		w.put(slots[i].Key, v)
	}
	second := w.node("second")
	second.serve("bob", c.handle)
	for i, ch := range changes {
		w.attack(Writer, ch.what, fmt.Sprintf("changed in a true entry: %q to %q", ch.from, ch.to))
		tr := jerry.until(ids[i], dead)
		if tr.Facts.Class != envelope.ClassUnauthorised && tr.Facts.Class != envelope.ClassPoison {
			w.Errorf("%s: class %s (%s)", ch.what, tr.Facts.Class, tr.Facts.Reason)
		}
		w.denied(jerry, tr.Facts.Class)
	}
	jerry.until(ids[len(changes)], acked)
	c.want(w, "one", "good")
}

// movedEntries: true entries of other lanes.
func movedEntries(w *world) {
	jerry, billy, first := w.node("jerry"), w.node("billy"), w.node("first")
	var bob, carol tally
	first.serve("bob", bob.handle)
	first.serve("carol", carol.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	jerry.until(jerry.sendTexts("carol", "one")[0], acked)
	billy.until(billy.sendTexts("bob", "one too")[0], acked)
	first.stop()
	ids, mine := w.waiting(jerry, "bob", "a", "b", "c", "d", "e")
	_, carols := w.waiting(jerry, "carol", "for carol", "for carol too")
	_, billys := w.waiting(billy, "bob", "of billy", "of billy too")
	w.put(mine[0].Key, carols[0].Value)
	w.put(mine[1].Key, billys[0].Value)
	w.put(mine[2].Key, mine[3].Value)
	w.put(mine[3].Key, mine[2].Value)
	second := w.node("second")
	second.serve("bob", bob.handle)
	second.serve("carol", carol.handle)
	w.attack(Writer, "entry of another agent's lane", "mail to carol in the place of mail to bob")
	jerry.gives(ids[0], envelope.ClassUnauthorised)
	w.attack(Writer, "entry of another source", "billy's mail to bob in the place of jerry's")
	jerry.gives(ids[1], envelope.ClassUnauthorised)
	w.attack(Writer, "re-ordered entries", "two entries of a lane, each in the other's place")
	jerry.gives(ids[2], envelope.ClassUnauthorised)
	jerry.gives(ids[3], envelope.ClassUnauthorised)
	jerry.until(ids[4], acked)
	w.soon("the rest is handled", func() bool {
		bob.mu.Lock()
		defer bob.mu.Unlock()
		carol.mu.Lock()
		defer carol.mu.Unlock()
		return bob.got["of billy"] > 0 && bob.got["of billy too"] > 0 && carol.got["for carol"] > 0 && carol.got["for carol too"] > 0
	})
	bob.want(w, "one", "one too", "e", "of billy", "of billy too")
	carol.want(w, "one", "for carol", "for carol too")
}

// spoiltValues: what was never an entry.
func spoiltValues(w *world) {
	jerry, first := w.node("jerry"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	first.stop()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		w.Fatal(err)
	}
	bomb := z.EncodeAll(make([]byte, 64<<20), nil)
	kinds := []struct {
		what, tried string
		value       []byte
	}{
		{"rubbish", "bytes that are no entry", []byte("\x00\xff{]")},
		{"empty", "nothing at all", []byte(" ")},
		{"frame of 64 MiB", "a few KiB that unpack to 64 MiB", bomb},
		{"deep nesting", "100,000 arrays inside each other", bytes.Repeat([]byte("["), 100_000)},
		{"300 KiB of zeros", "a value as big as the store takes", make([]byte, 300<<10)},
	}
	var texts []string
	for _, k := range kinds {
		texts = append(texts, k.what)
	}
	ids, slots := w.waiting(jerry, "bob", slices.Concat(texts, []string{"good"})...)
	for i, k := range kinds {
		w.put(slots[i].Key, k.value)
	}
	second := w.node("second")
	second.serve("bob", c.handle)
	for i, k := range kinds {
		w.attack(Writer, k.what+" in a slot", k.tried)
		tr := jerry.until(ids[i], dead)
		w.denied(jerry, tr.Facts.Class)
	}
	jerry.until(ids[len(kinds)], acked)

	w.attack(Writer, "truncated bell", "half of a true bell")
	v := w.value(w.bell(jerry, "bob"))
	w.put(w.bell(jerry, "bob"), v[:len(v)/2])
	second.refuses(trust.Malformed)
	jerry.until(jerry.sendTexts("bob", "two")[0], acked)
	w.attack(Writer, "truncated receipts", "half of true receipts, while both ends run")
	w.harmless()
	v = w.value(w.cursor(jerry, "bob"))
	w.put(w.cursor(jerry, "bob"), v[:len(v)/2])
	jerry.until(jerry.sendTexts("bob", "three")[0], acked)
	c.want(w, "one", "good", "two", "three")
}

func (w *world) remove(key string) {
	w.Helper()
	if _, err := w.admin().Txn(w.ctx(), []bus.Op{{Verb: bus.OpDelete, Key: key}}); err != nil {
		w.Fatal(err)
	}
}

// deletions: somebody takes away what others wrote.
func deletions(w *world) {
	jerry, first := w.node("jerry"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	first.stop()
	ids, slots := w.waiting(jerry, "bob", "gone", "kept")
	w.remove(slots[0].Key)
	second := w.node("second")
	second.serve("bob", c.handle)
	w.attack(Writer, "slot deleted", "mail that waits, deleted")
	jerry.gives(ids[0], envelope.ClassUndeliverable)
	jerry.until(ids[1], acked)

	w.attack(Writer, "bell deleted", "the bell of a lane, deleted between two messages")
	w.harmless()
	w.remove(w.bell(jerry, "bob"))
	jerry.until(jerry.sendTexts("bob", "two")[0], acked)

	w.attack(Writer, "receipts deleted", "cursor and receipts, deleted while the owner runs")
	w.harmless()
	w.remove(w.cursor(jerry, "bob"))
	jerry.until(jerry.sendTexts("bob", "three")[0], acked)

	w.attack(Writer, "ledger deleted", "the older receipts of a lane, deleted")
	w.harmless()
	if _, err := w.admin().Txn(w.ctx(), []bus.Op{{Verb: bus.OpDeleteTree, Key: bus.Root + "ledger/" + jerry.Gateway() + "/" + w.name("bob") + "/"}}); err != nil {
		w.Fatal(err)
	}
	jerry.until(jerry.sendTexts("bob", "four")[0], acked)

	w.attack(Writer, "lock deleted", "the lock of an inbox, deleted under its owner")
	w.remove(bus.Root + "owners/agents/" + w.name("bob"))
	jerry.until(jerry.sendTexts("bob", "five")[0], acked) // its handler may run twice: what the first run found is refused
	second.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventDeposed && ev.To == w.name("bob") })
	w.seen("event deposed at second")

	w.attack(Writer, "registry deleted", "all that the registry says of an agent, deleted")
	w.harmless()
	if _, err := w.admin().Txn(w.ctx(), []bus.Op{{Verb: bus.OpDeleteTree, Key: bus.Root + "agents/" + w.name("bob") + "/"}}); err != nil {
		w.Fatal(err)
	}
	jerry.until(jerry.sendTexts("bob", "six")[0], acked)
	c.mu.Lock()
	if n := c.got["five"]; n < 1 || n > 2 {
		w.Errorf("five was handed over %d times", n)
	}
	c.got["five"] = 1
	c.mu.Unlock()
	c.want(w, "one", "kept", "two", "three", "four", "five", "six")
}

// crossSigned: true values of one kind in the place of another.
func crossSigned(w *world) {
	jerry, first := w.node("jerry"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	receipts, claim := w.value(w.cursor(jerry, "bob")), w.value(bus.Root+"owners/agents/"+w.name("bob"))
	registry := w.value(bus.Root + "agents/" + w.name("bob") + "/signed")
	first.stop()
	id := jerry.sendTexts("bob", "two")[0]
	pending := bus.Root + "pending/" + w.name("bob") + "/" + envelope.NewID()
	w.attack(Writer, "receipts as a claim", "true receipts in the lock of an inbox")
	w.harmless() // nobody holds it
	w.put(bus.Root+"owners/agents/"+w.name("bob"), receipts)
	w.attack(Writer, "claim as receipts", "a true claim in the place of receipts")
	w.put(w.cursor(jerry, "bob"), claim)
	jerry.refuses(trust.BadSignature)
	w.attack(Writer, "registry entry as work", "a true registry entry in the place of a record of work")
	w.put(pending, registry)
	second := w.node("second")
	second.serve("bob", c.handle)
	second.waitFor(func(ev bus.Event) bool {
		return ev.Event == bus.EventRefused && strings.HasPrefix(ev.Reason, pending)
	})
	w.seen("event refused at second")
	jerry.until(id, acked)
	c.want(w, "one", "two")
}

// forgedResult: somebody changes the answer that a client is going to read.
func forgedResult(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		return m.Reply(envelope.TextPayload("true"))
	})
	s, err := jerry.AskAPI(w.ctx(), jerry.out("bob", "what?"))
	if err != nil {
		w.Fatal(err)
	}
	jerry.until(s.MessageID, replied)
	key := bus.Root + "results/" + jerry.Gateway() + "/" + s.MessageID
	w.eventually(w.admin(), key, func(pairs []bus.Pair) bool { return len(pairs) == 1 })
	w.attack(Writer, "changed answer", "another text in an answer that clients read from any gateway")
	w.put(key, bytes.Replace(w.value(key), []byte("true"), []byte("evil"), 1))
	st, err := bobby.Lookup(w.ctx(), s.MessageID)
	if err != nil || st.Reply != nil {
		w.Errorf("it was believed: %+v, %v", st, err)
	}
	bobby.refuses(trust.BadSignature)
}

// notTheOperator: what lies in the place of the trust set, and is none.
func notTheOperator(w *world) {
	operator, other, key := trust.NewKey(), trust.NewKey(), trust.NewKey()
	name := w.name("keeper")
	makeSet := func(version uint64, change func(*trust.Set)) *trust.Set {
		s := &trust.Set{Mesh: w.tag, Version: version, IssuedAt: envelope.At(time.Now()), Operators: []string{trust.EncodePublic(operator.Public())}, Revoked: []trust.Revocation{}}
		s.Put(name, trust.MemberKey{Public: trust.EncodePublic(key.Public()), NotBefore: envelope.At(time.Unix(0, 0))}, []string{"*"})
		if change != nil {
			change(s)
		}
		return s
	}
	sign := func(s *trust.Set, by ...*trust.Key) []byte {
		raw, err := trust.SignSet(s, by...)
		if err != nil {
			w.Fatal(err)
		}
		return raw
	}
	good := sign(makeSet(3, nil), operator)
	w.put(trust.SetKey, good)
	defer w.remove(trust.SetKey)
	anchor, err := trust.OpenAnchor("", w.tag, []ed25519.PublicKey{operator.Public()})
	if err != nil {
		w.Fatal(err)
	}
	verifier := trust.NewVerifier(w.tag, true)
	keeper := w.node("keeper", func(c *bus.Config) {
		c.Signer, c.Trust, c.Anchor, c.Heartbeat = &trust.Signer{Mesh: w.tag, Gateway: name, Key: key}, verifier, anchor, 20*time.Millisecond
	})
	if err := keeper.Ready(); err != nil {
		w.Fatal(err)
	}
	thief := trust.NewKey()
	evil := func(s *trust.Set) {
		s.Put("mallory", trust.MemberKey{Public: trust.EncodePublic(thief.Public()), NotBefore: envelope.At(time.Unix(0, 0))}, []string{"*"})
	}
	inserted := bytes.Replace(good, []byte(trust.EncodePublic(key.Public())), []byte(trust.EncodePublic(thief.Public())), 1)
	for _, a := range []struct {
		name, tried string
		value       []byte
	}{
		{"rubbish for a trust set", "bytes that are no set", []byte("{}")},
		{"key changed by hand", "another key in the true set", inserted},
		{"set of another operator", "a newer set with a key of the attacker's, signed by somebody else", sign(makeSet(9, evil), other)},
		{"set of one's own operator", "a newer set that names the attacker as operator, signed by him", sign(makeSet(9, func(s *trust.Set) {
			evil(s)
			s.Operators = []string{trust.EncodePublic(other.Public())}
		}), other)},
		{"older set", "a true set of before", sign(makeSet(2, evil), operator)},
		{"another set of the same version", "a set that the operator made and never published", sign(makeSet(3, evil), operator)},
		{"set of another mesh", "a true set of the same operator for another mesh", sign(makeSet(9, func(s *trust.Set) { evil(s); s.Mesh = "elsewhere" }), operator)},
	} {
		w.attack(Writer, a.name, a.tried)
		w.put(trust.SetKey, a.value)
		keeper.waitFor(func(ev bus.Event) bool {
			return ev.Event == bus.EventRefused && strings.HasPrefix(ev.Reason, trust.SetKey)
		})
		w.seen("event refused at keeper")
		if verifier.Set().Member("mallory") != nil || verifier.Set().Version != 3 {
			w.Errorf("%s: it was believed", a.name)
		}
	}
	w.attack(Writer, "set deleted", "no trust set at all")
	w.harmless()
	w.remove(trust.SetKey)
	if err := keeper.Ready(); err != nil {
		w.Errorf("without the set: %v", err)
	}
}
