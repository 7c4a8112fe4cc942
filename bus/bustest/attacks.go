package bustest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// attacks are what somebody does who may write anything to the store, some of them with the key of one gateway. Each must
// be refused, told of once, and leave the mail beside it alone.
var attacks = []contract{
	{"ForgedBell", forgedBell},
	{"ForgedBellOfAnIdleLane", forgedIdleBell},
	{"ReplayedEntries", replayedEntries},
	{"ForgedReceipts", forgedReceipts},
	{"ForgedReceiptsOfALiveOwner", forgedLiveReceipts},
	{"ForgedRecords", forgedRecords},
	{"RolledBack", rolledBack},
	{"ForgedClaim", forgedClaim},
	{"ForgedRegistry", forgedRegistry},
	{"StolenKey", stolenKey},
	{"RevokedKey", revokedKey},
	{"RevokedOwner", revokedOwner},
	{"NotInTheSet", notInTheSet},
	{"ForwardedWithProof", forwardedWithProof},
	{"ChangedInFlight", changedInFlight},
	{"MovedEntries", movedEntries},
	{"SpoiltValues", spoiltValues},
	{"Deletions", deletions},
	{"CrossSigned", crossSigned},
	{"ForgedResult", forgedResult},
	{"NotTheOperator", notTheOperator},
	{"StolenReceipts", stolenReceipts},
	{"StolenAnswer", stolenAnswer},
	{"StolenOrders", stolenOrders},
	{"StolenRecords", stolenRecords},
	{"StolenQueue", stolenQueue},
	{"ForgedState", forgedState},
	{"ForgedFanOut", forgedFanOut},
	{"ForgedName", forgedName},
	{"FalseHeartbeat", falseHeartbeat},
	{"MisplacedAgent", misplacedAgent},
}

// tally counts what an agent was handed, by text.
type tally struct {
	mu  sync.Mutex
	got map[string]int
}

func (c *tally) handle(_ context.Context, m *bus.Incoming) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.got == nil {
		c.got = map[string]int{}
	}
	c.got[m.Envelope().Text()]++
	return nil
}

// want checks that each of these was handed over once, and nothing else.
func (c *tally) want(w *world, texts ...string) {
	w.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, text := range texts {
		if c.got[text] != 1 {
			w.Errorf("%q was handed over %d times", text, c.got[text])
		}
	}
	for text := range c.got {
		if !slices.Contains(texts, text) {
			w.Errorf("%q was handed over", text)
		}
	}
}

func (w *world) bell(from *node, agent string) string {
	return bus.Root + "inbox/" + w.name(agent) + "/from/" + from.Gateway()
}

func (w *world) cursor(from *node, agent string) string {
	return bus.Root + "receipts/" + from.Gateway() + "/from/" + w.name(agent)
}

func (w *world) put(key string, value []byte) {
	w.Helper()
	if _, err := w.admin().Txn(w.ctx(), []bus.Op{{Verb: bus.OpSet, Key: key, Value: value}}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) value(key string) []byte {
	w.Helper()
	p, err := w.admin().Get(w.ctx(), key)
	if err != nil || p == nil {
		w.Fatalf("%s: %v, %v", key, p, err)
	}
	return p.Value
}

// refuses waits until the node tells of a refusal for this reason.
func (n *node) refuses(r trust.Reason) bus.Event {
	n.w.Helper()
	ev := n.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventRefused && ev.Refusal == string(r) })
	n.w.seen(fmt.Sprintf("event refused (%s) at %s", r, strings.TrimSuffix(n.Gateway(), "-"+n.w.tag)))
	return ev
}

// refusedBy waits until one of two nodes tells of a refusal: whoever wrote what was written over puts it back when he sees it, and the other's
// watch may see only that.
func (w *world) refusedBy(r trust.Reason, one, two *node) {
	w.Helper()
	t := time.NewTimer(longest)
	defer t.Stop()
	for {
		var ev *bus.Event
		at := one
		select {
		case ev = <-one.events:
		case ev = <-two.events:
			at = two
		case <-t.C:
			w.Fatalf("neither %s nor %s refuses for %s", one.Gateway(), two.Gateway(), r)
		}
		if ev.Event == bus.EventRefused && ev.Refusal == string(r) {
			w.seen(fmt.Sprintf("event refused (%s) at %s", r, strings.TrimSuffix(at.Gateway(), "-"+w.tag)))
			return
		}
	}
}

// sendAll sends messages with these texts, one after another.
func (n *node) sendTexts(agent string, texts ...string) (ids []string) {
	n.w.Helper()
	for _, text := range texts {
		ids = append(ids, n.send(n.out(agent, text)).MessageID)
	}
	return ids
}

// forgedBell: a bell that promises what was never sent would make the owner pass over everything that comes.
func forgedBell(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	bobby.serve("carol", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	old := w.value(w.bell(jerry, "bob"))
	jerry.until(jerry.sendTexts("bob", "two")[0], acked)
	jerry.until(jerry.sendTexts("carol", "three")[0], acked)

	w.attack(Writer, "unsigned bell", "a bell that promises a thousand messages, so that the owner passes over what comes")
	w.put(w.bell(jerry, "bob"), []byte(`{"seq":1000,"count":1000}`))
	bobby.refuses(trust.Unsigned)
	jerry.until(jerry.sendTexts("bob", "four")[0], acked)
	jerry.refuses(trust.Unsigned)

	w.attack(Writer, "bell of another lane", "the same gateway's true bell for another agent")
	w.put(w.bell(jerry, "bob"), w.value(w.bell(jerry, "carol")))
	bobby.refuses(trust.BadSignature)
	jerry.until(jerry.sendTexts("bob", "five")[0], acked)

	w.attack(Writer, "raised bell", "a true bell with a greater number")
	raised := bytes.Replace(w.value(w.bell(jerry, "bob")), []byte(`{"seq":`), []byte(`{"seq":9`), 1)
	w.put(w.bell(jerry, "bob"), raised)
	bobby.refuses(trust.BadSignature)
	jerry.until(jerry.sendTexts("bob", "six")[0], acked)

	w.attack(Writer, "old bell", "a bell of before")
	w.put(w.bell(jerry, "bob"), old) // true, and said before: the owner has taken it, the sender knows better
	jerry.until(jerry.sendTexts("bob", "seven")[0], acked)
	jerry.refuses(trust.Replay)
	c.want(w, "one", "two", "three", "four", "five", "six", "seven")
}

// forgedIdleBell: the only copy of a message is in its bell, and the sender has nothing more to send.
func forgedIdleBell(w *world) {
	jerry, first := w.node("jerry"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	first.stop()
	id := jerry.sendTexts("bob", "two")[0]
	w.attack(Writer, "the only copy", "write over a bell that holds the only copy of a message, while nobody sends")
	w.put(w.bell(jerry, "bob"), []byte(`{"seq":1,"count":1}`))
	jerry.refuses(trust.Unsigned)
	second := w.node("second")
	second.serve("bob", c.handle)
	jerry.until(id, acked)
	c.want(w, "one", "two")
}

// replayedEntries: true entries at places where they do not belong.
func replayedEntries(w *world) {
	jerry, first := w.node("jerry"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	first.stop()
	ids := jerry.sendTexts("bob", "two", "three", "four", "five", "six")
	lane, err := w.admin().List(w.ctx(), bus.Root+"lanes/"+jerry.Gateway()+"/"+w.name("bob")+"/")
	if err != nil || len(lane) != 5 {
		w.Fatalf("%d slots, %v", len(lane), err)
	}
	w.put(lane[1].Key, lane[0].Value)                                                           // an older one again
	w.put(lane[3].Key, bytes.Replace(lane[3].Value, []byte("five"), []byte("evil"), 1))         // changed
	w.put(lane[4].Key, bytes.Replace(lane[0].Value, []byte(`{"seq":2`), []byte(`{"seq":6`), 1)) // renumbered
	second := w.node("second")
	second.serve("bob", c.handle)
	jerry.until(ids[0], acked)
	w.attack(Writer, "replayed entry", "an entry once more, in the place of the next one")
	jerry.gives(ids[1], envelope.ClassUnauthorised)
	jerry.until(ids[2], acked)
	w.attack(Writer, "changed payload", "another text in a true entry")
	jerry.gives(ids[3], envelope.ClassUnauthorised)
	w.attack(Writer, "renumbered entry", "an entry once more, with the number of its new place")
	jerry.gives(ids[4], envelope.ClassUnauthorised)
	jerry.until(jerry.sendTexts("bob", "seven")[0], acked)
	c.want(w, "one", "two", "four", "seven")
}

// forgedReceipts: a cursor that says that everything was taken would make the sender delete its mail, and the owner pass
// over it.
func forgedReceipts(w *world) {
	w.trust.only[w.name("mallory")] = []string{w.name("m")}
	mallory := w.trust.signer(w.name("mallory"))
	jerry, first := w.node("jerry"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	first.stop()
	ids := jerry.sendTexts("bob", "two", "three", "four")
	key := w.cursor(jerry, "bob")
	body := []byte(`{"cursor":100,"count":100,"page":0,"receipts":[]}`)
	w.attack(Writer, "unsigned cursor", "receipts that say that everything was taken, so that the sender deletes its mail")
	w.put(key, body)
	jerry.refuses(trust.Unsigned)
	w.attack(Thief, "cursor of another's inbox", "the same, signed by a gateway that may not host the agent")
	w.put(key, mallory.SignRecord(trust.KindReceipts, key, time.Now(), body))
	if ev := jerry.refuses(trust.NotHost); ev.Key != mallory.Key.ID() {
		w.Errorf("whose it was is not told: %+v", ev)
	}
	second := w.node("second")
	second.serve("bob", c.handle)
	second.refuses(trust.NotHost)
	for _, id := range ids {
		jerry.until(id, acked)
	}
	c.want(w, "one", "two", "three", "four")
}

// forgedLiveReceipts: the owner knows better than what lies in the store.
func forgedLiveReceipts(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	key := w.cursor(jerry, "bob")
	old := w.value(key)
	jerry.until(jerry.sendTexts("bob", "two")[0], acked)
	w.attack(Writer, "old receipts", "the receipts of before, while the owner runs")
	w.put(key, old)
	jerry.refuses(trust.Replay)
	jerry.until(jerry.sendTexts("bob", "three")[0], acked)
	w.attack(Writer, "forged receipts", "unsigned receipts, while the owner runs")
	w.put(key, []byte(`{"cursor":100,"count":100,"page":7,"receipts":[]}`))
	jerry.refuses(trust.Unsigned)
	jerry.until(jerry.sendTexts("bob", "four")[0], acked)
	w.attack(Writer, "spoilt receipts", "rubbish in the place of receipts, while the owner runs")
	w.harmless()
	w.put(key, []byte(`{rubbish`))
	jerry.until(jerry.sendTexts("bob", "five")[0], acked)
	c.want(w, "one", "two", "three", "four", "five")
}

// forgedRecords: work that nobody asked for, put where an owner finds what its predecessor left.
func forgedRecords(w *world) {
	w.trust.only[w.name("mallory")] = []string{w.name("m")}
	mallory := w.trust.signer(w.name("mallory"))
	jerry := w.node("jerry")
	var c tally
	forge := func(text string, state envelope.State) (id string, record []byte) {
		env, err := envelope.Seal(envelope.Envelope{
			SchemaVersion: envelope.Version, MessageID: envelope.NewID(), CorrelationID: envelope.NewID(), ConversationID: envelope.NewID(), SourceGateway: jerry.Gateway(), SourceAgent: "user",
			TargetAgent: w.name("bob"), Payload: envelope.TextPayload(text), CreatedAt: envelope.At(time.Now()), TTL: envelope.MillisOf(time.Hour), MaxHops: 4,
		})
		if err != nil {
			w.Fatal(err)
		}
		now := envelope.At(time.Now())
		d := envelope.Delivery{State: state, QueuedAt: &now}
		if state == envelope.DeadLetter {
			d.DeadAt, d.Class, d.LastError = &now, envelope.ClassExhausted, "it says"
		}
		record, err = envelope.Encode(map[string]any{"delivery": d, "lane_seq": 1, "item": 0, "from": jerry.Gateway(), "envelope": json.RawMessage(env.Canonical())})
		if err != nil {
			w.Fatal(err)
		}
		return env.MessageID, record
	}
	pending := bus.Root + "pending/" + w.name("bob") + "/"
	w.attack(Writer, "work without a signature", "a record of work that nobody asked for")
	id, rec := forge("unsigned", envelope.Queued)
	w.put(pending+id, rec)
	id, rec = forge("stolen", envelope.Queued)
	w.put(pending+id, mallory.SignRecord(trust.KindRecord, pending+id, time.Now(), rec))
	// One that may host bob, and cannot show that jerry sent it.
	w.trust.only[w.name("host")] = []string{w.name("bob")}
	host := w.trust.signer(w.name("host"))
	id, rec = forge("invented", envelope.Queued)
	w.put(pending+id, host.SignRecord(trust.KindRecord, pending+id, time.Now(), rec))
	id, rec = forge("dead", envelope.DeadLetter)
	w.put(bus.Root+"deadletters/"+w.name("bob")+"/"+id, rec)

	bobby := w.node("bobby")
	bobby.serve("bob", c.handle)
	seen := map[string]int{}
	w.seen("event refused (unsigned) at bobby")
	w.attack(Thief, "work of another's agent", "the same, signed by a gateway that may not host the agent")
	w.seen("event refused (not_host) at bobby")
	w.attack(Thief, "invented work", "the same, signed by one that may host it and cannot show who sent it")
	w.seen("event refused (unsigned) at bobby")
	for range 3 {
		seen[bobby.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventRefused && strings.HasPrefix(ev.Reason, pending) }).Refusal]++
	}
	if seen[string(trust.Unsigned)] != 2 || seen[string(trust.NotHost)] != 1 {
		w.Errorf("refused for %v", seen)
	}
	w.attack(Writer, "redrive of a forged dead letter", "an unsigned dead letter, and an operator who redrives it")
	w.seen("answer of the redrive")
	res, err := jerry.Redrive(w.ctx(), bus.DeadLetterFilter{Agent: w.name("bob"), IDs: []string{id}}, bus.RedriveOptions{By: "mallory"})
	if err != nil || len(res) != 1 || res[0].Done {
		w.Errorf("redrive of a forged dead letter: %+v, %v", res, err)
	}
	jerry.until(jerry.sendTexts("bob", "good")[0], acked)
	c.want(w, "good")
}

// forgedClaim: somebody writes into a lock who does not hold it.
func forgedClaim(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	key := bus.Root + "owners/agents/" + w.name("bob")
	before := w.value(key)
	w.attack(Writer, "claim without the lock", "another name in the lock of an inbox")
	w.put(key, []byte(fmt.Sprintf(`{"agent":%q,"gateway":"mallory"}`, w.name("bob"))))
	w.refusedBy(trust.Unsigned, jerry, bobby)
	if o := jerry.OwnerOf(w.name("bob")); o == "mallory" {
		w.Errorf("bob is owned by %s", o)
	}
	jerry.until(jerry.sendTexts("bob", "two")[0], acked)
	bobby.stop()
	second := w.node("second")
	second.serve("bob", c.handle)
	w.attack(Writer, "claim of a term that is over", "the true claim of the last owner in the lock of this one")
	w.put(key, before) // the one of a term that is over
	w.refusedBy(trust.Replay, jerry, second)
	jerry.until(jerry.sendTexts("bob", "three")[0], acked)
	c.want(w, "one", "two", "three")
}

// forgeLane puts one signed entry into a gateway's lane to bob, without a bus.
func (w *world) forgeLane(s *trust.Signer, seq uint64, item, canonical []byte) {
	w.Helper()
	w.forgeLaneTo(s, w.name("bob"), seq, item, canonical)
}

func (w *world) forgeLaneTo(s *trust.Signer, to string, seq uint64, item, canonical []byte) {
	w.Helper()
	at := envelope.At(time.Now())
	tail := item[len(`{"envelope":`)+len(canonical) : len(item)-1]
	h := &trust.EntryHead{Lane: bus.Root + "lanes/" + s.Gateway + "/" + to + "/", Seq: seq, Count: seq, Items: 1, Root: trust.Root([]trust.Hash{trust.Leaf(canonical, trust.MetaHash(tail))})}
	st := s.SignEntry(h, at.Time)
	stamp, err := envelope.Encode(at)
	if err != nil {
		w.Fatal(err)
	}
	entry := fmt.Appendf(nil, `{"seq":%d,"count":%d,"at":%s,"signed":%s,"items":[%s]}`, seq, seq, stamp, trust.AppendStamp(nil, &st), item)
	w.put(bus.Root+"inbox/"+to+"/from/"+s.Gateway, fmt.Appendf(nil, `{"seq":%d,"count":%d,"entry":%s}`, seq, seq, entry))
}

// stolenKey: somebody has the key of a gateway that may host one agent, and says more with it.
func stolenKey(w *world) {
	w.trust.only[w.name("mallory")] = []string{w.name("m")}
	mallory := w.trust.signer(w.name("mallory"))
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	seal := func(from, agent, text string, at time.Time) *envelope.Sealed {
		env, err := envelope.Seal(envelope.Envelope{
			SchemaVersion: envelope.Version, MessageID: envelope.NewID(), CorrelationID: envelope.NewID(), ConversationID: envelope.NewID(), SourceGateway: from, SourceAgent: agent,
			TargetAgent: w.name("bob"), Payload: envelope.TextPayload(text), CreatedAt: envelope.At(at), TTL: envelope.MillisOf(time.Hour), MaxHops: 4,
		})
		if err != nil {
			w.Fatal(err)
		}
		return env
	}
	item := func(e *envelope.Sealed, tail string) []byte {
		return []byte(`{"envelope":` + string(e.Canonical()) + tail + `}`)
	}
	say := func(seq uint64, e *envelope.Sealed, tail string) {
		w.forgeLane(mallory, seq, item(e, tail), e.Canonical())
	}
	now := time.Now()
	passed := fmt.Sprintf(`,"hops":[{"gateway":%q,"agent":%q,"at":"2026-01-01T00:00:00.000Z"}],"for":%q`, mallory.Gateway, w.name("m"), w.name("bob"))
	for i, attack := range []struct {
		what string
		env  *envelope.Sealed
		tail string
		want trust.Reason
	}{
		{"as an agent of another", seal(mallory.Gateway, w.name("bob"), "evil", now), "", trust.NotHost},
		{"as another gateway's desk", seal(mallory.Gateway, jerry.Gateway(), "evil", now), "", trust.NotHost},
		{"passed on, and never sent", seal(jerry.Gateway(), w.name("jerry-agent"), "evil", now), passed, trust.Unsigned},
		{"passed on by an agent of another", seal(jerry.Gateway(), "x", "evil", now), strings.Replace(passed, w.name("m"), w.name("bob"), 1), trust.NotHost},
		{"dated back", seal(mallory.Gateway, w.name("m"), "evil", now.Add(time.Hour)), "", trust.OutOfTime},
	} {
		w.attack(Thief, attack.what, "an entry in the thief's own lane, signed with the stolen key")
		say(uint64(i+1), attack.env, attack.tail)
		if ev := bobby.refuses(attack.want); !strings.HasSuffix(ev.From, mallory.Gateway) {
			w.Errorf("%s: whose it was is not told: %+v", attack.what, ev)
		}
	}
	// What it may say it may say, also now.
	say(6, seal(mallory.Gateway, w.name("m"), "good", now), "")
	jerry.until(jerry.sendTexts("bob", "good too")[0], acked)
	w.eventually(w.admin(), bus.Root+"receipts/"+mallory.Gateway+"/", func(pairs []bus.Pair) bool {
		return slices.ContainsFunc(pairs, func(p bus.Pair) bool { return bytes.HasPrefix(p.Value, []byte(`{"cursor":6,`)) })
	})
	c.want(w, "good", "good too")
}

// revokedKey: what waits of a gateway whose key was stolen is not handed over any more.
func revokedKey(w *world) {
	jerry, thief, first := w.node("jerry"), w.node("thief"), w.node("first")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	thief.until(thief.sendTexts("bob", "two")[0], acked)
	first.stop()
	thief.sendTexts("bob", "evil", "evil")
	id := jerry.sendTexts("bob", "three")[0]
	w.attack(Thief, "revoked key", "mail that waits from a gateway whose key was revoked since, and more of it")
	w.trust.revoke(thief.Gateway())
	if _, err := thief.Send(w.ctx(), thief.out("bob", "evil")); !errors.Is(err, bus.ErrUntrusted) {
		w.Errorf("a revoked gateway sends: %v", err)
	}
	second := w.node("second")
	second.serve("bob", c.handle)
	second.refuses(trust.Revoked)
	jerry.until(id, acked)
	c.want(w, "one", "two", "three")
}

// notInTheSet: a gateway that nobody let in says so, and takes nothing.
func notInTheSet(w *world) {
	jerry := w.node("jerry")
	w.attack(Writer, "a gateway that nobody let in", "a gateway of one's own beside the others, as a candidate for their agents")
	w.seen("its own refusal to start work")
	stranger := w.node("stranger", func(c *bus.Config) {
		c.Signer = &trust.Signer{Mesh: w.trust.mesh, Gateway: c.Gateway, Key: trust.NewKey()}
	})
	if err := stranger.Ready(); !errors.Is(err, bus.ErrUntrusted) || !strings.Contains(err.Error(), "gatemesh trust approve") {
		w.Errorf("ready: %v", err)
	}
	if err := jerry.Ready(); err != nil {
		w.Error(err)
	}
	var c tally
	if err := stranger.Serve(bus.AgentSpec{ID: w.name("bob")}, bus.HandlerFunc(c.handle)); err != nil {
		w.Fatal(err)
	}
	jerry.serve("bob", c.handle) // would not come if the stranger had taken it
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	c.want(w, "one")
}

// forwardedWithProof: a third gateway believes what the first one sent and the second passed on.
func forwardedWithProof(w *world) {
	jerry, bobby, billy := w.node("jerry"), w.node("bobby"), w.node("billy")
	var c tally
	bobby.serve("bob", func(_ context.Context, m *bus.Incoming) error {
		return m.Forward(envelope.Address{Agent: w.name("bill")})
	})
	billy.serve("bill", c.handle)
	var ids []string
	var wg sync.WaitGroup
	for i := range 8 { // so that some share an entry
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := jerry.Send(w.ctx(), jerry.out("bob", fmt.Sprint(i))); err != nil {
				w.Error(err)
			}
		}()
		ids = append(ids, fmt.Sprint(i))
	}
	wg.Wait()
	for range 8 {
		billy.waitFor(func(ev bus.Event) bool {
			return ev.Event == bus.EventAcked && ev.To == w.name("bob") || ev.Event == bus.EventAcked
		})
	}
	c.want(w, ids...)
}

// forgedRegistry: somebody says that an agent runs at his gateway, or writes into what others say of themselves.
func forgedRegistry(w *world) {
	w.trust.only[w.name("mallory")] = []string{w.name("m")}
	mallory := w.trust.signer(w.name("mallory"))
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle, "infra.check")
	prefix := bus.Root + "agents/" + w.name("bob") + "/"
	w.until(jerry.RegistryChanged, func() bool { return len(jerry.Agents("infra.check")) == 1 })
	w.attack(Thief, "registry of another's agent", "the registry says that an agent runs at the thief's gateway and can do everything")
	w.put(prefix+"gateway", []byte("mallory"))
	w.put(prefix+"capabilities", []byte(`["everything"]`))
	body := []byte(fmt.Sprintf(`{"fields":{"gateway":%q,"capabilities":"[\"everything\"]"}}`, mallory.Gateway))
	w.put(prefix+"signed", mallory.SignRecord(trust.KindRegistry, prefix+"signed", time.Now(), body))
	w.refusedBy(trust.NotHost, jerry, bobby)
	if got := jerry.Agents("everything"); len(got) != 0 {
		w.Errorf("a forged entry was taken: %+v", got)
	}
	// Its owner writes it again.
	w.until(jerry.RegistryChanged, func() bool {
		got := jerry.Agents("infra.check")
		return len(got) == 1 && got[0].Gateway == bobby.Gateway()
	})
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	c.want(w, "one")
}

// until waits for changes until it is so.
func (w *world) until(changed func() <-chan struct{}, so func() bool) {
	w.Helper()
	ctx := w.ctx()
	for {
		c := changed()
		if so() {
			return
		}
		select {
		case <-c:
		case <-ctx.Done():
			w.Fatal("it did not become so")
		}
	}
}

// rolledBack: while both ends are down, somebody puts bell and cursor back to what they were.
func rolledBack(w *world) {
	dir := w.TempDir()
	keep := func(c *bus.Config) { c.Marks = filepath.Join(dir, c.Gateway+".json") }
	jerry, bobby := w.node("jerry", keep), w.node("bobby", keep)
	var c tally
	bobby.serve("bob", c.handle)
	send := func(text string) { w.Helper(); jerry.until(jerry.sendTexts("bob", text)[0], acked) }
	send("one")
	cursor := w.value(w.cursor(jerry, "bob"))
	send("two")
	bell := w.value(w.bell(jerry, "bob"))
	send("three")
	send("four")
	w.attack(Writer, "lane put back", "bell and cursor of before, while both ends are down")
	jerry.stop()
	bobby.stop()
	w.put(w.bell(jerry, "bob"), bell)
	w.put(w.cursor(jerry, "bob"), cursor)
	jerry, bobby = w.node("jerry", keep), w.node("bobby", keep)
	bobby.serve("bob", c.handle)
	bobby.refuses(trust.Replay)
	send("five")
	send("six")
	jerry.refuses(trust.Replay)
	c.want(w, "one", "two", "three", "four", "five", "six")
}

// revokedOwner: a gateway that may not host its agent any more hands it over, and what waits goes on elsewhere.
func revokedOwner(w *world) {
	jerry, first, second := w.node("jerry"), w.node("first"), w.node("second")
	var c tally
	first.serve("bob", c.handle)
	jerry.until(jerry.sendTexts("bob", "one")[0], acked)
	if err := second.Serve(bus.AgentSpec{ID: w.name("bob"), Rank: 1}, bus.HandlerFunc(c.handle)); err != nil {
		w.Fatal(err)
	}
	w.attack(Thief, "revoked owner", "a gateway whose key was revoked goes on owning an inbox")
	w.trust.revoke(first.Gateway())
	if err := first.Serve(bus.AgentSpec{ID: w.name("bob")}, bus.HandlerFunc(c.handle)); err != nil { // looks again, as it does with a new set
		w.Fatal(err)
	}
	second.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventOwned && ev.To == w.name("bob") })
	second.refuses(trust.Revoked) // the cursor went with the key
	jerry.until(jerry.sendTexts("bob", "two")[0], acked)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.got["two"] != 1 {
		w.Errorf("%v", c.got)
	}
}
