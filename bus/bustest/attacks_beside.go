package bustest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// What somebody does to what is beside the mail: shared state, fan-outs, names, heartbeats.

// forgedState: what everybody reads, and many write.
func forgedState(w *world) {
	mallory := w.thief()
	jerry, bobby := w.node("jerry"), w.node("bobby")
	w.clearState(jerry)
	defer w.clearState(jerry)
	for _, text := range []string{"first", "second", "third"} {
		w.record(bobby, bus.StateEvent{Agent: w.name("bob"), Event: text})
	}
	var ring []json.RawMessage
	if err := json.Unmarshal(w.value(bus.RecentEventsKey), &ring); err != nil {
		w.Fatal(err)
	}
	// shows puts a ring there and wants these texts read of it.
	shows := func(ring []json.RawMessage, want string) {
		raw, err := envelope.Encode(ring)
		if err != nil {
			w.Fatal(err)
		}
		w.put(bus.RecentEventsKey, raw)
		list, err := jerry.RecentEvents(w.ctx())
		var got []string
		for _, e := range list {
			got = append(got, e.Event)
		}
		if text := strings.Join(got, " "); err != nil || text != want {
			w.Errorf("the ring shows %q, want %q: %v", text, want, err)
		}
	}
	at := envelope.At(time.Now())
	said := func(agent string) []byte {
		raw, err := envelope.Encode(bus.StateEvent{ID: "evil", Timestamp: at, Agent: agent, Event: "evil"})
		if err != nil {
			w.Fatal(err)
		}
		return raw
	}
	w.attack(Writer, "unsigned event", "an event in the ring that nobody signed")
	shows(append(ring[:3:3], said(w.name("bob"))), "first second third")
	jerry.refuses(trust.Unsigned)
	w.attack(Writer, "changed event", "another text in a true event")
	shows([]json.RawMessage{ring[0], bytes.Replace(ring[1], []byte("second"), []byte("evil"), 1), ring[2]}, "first third")
	jerry.refuses(trust.BadSignature)
	w.attack(Writer, "event twice", "a true event once more")
	shows([]json.RawMessage{ring[0], ring[1], ring[0], ring[2]}, "first second third")
	w.harmless()
	w.attack(Thief, "event of another's agent", "an event that says that another's agent did something, signed with the stolen key")
	evil := mallory.SignRecord(trust.KindState, bus.RecentEventsKey, at.Time, said(w.name("bob")))
	shows(append(ring[:3:3], evil), "first second third")
	jerry.refuses(trust.NotHost)
	w.record(bobby, bus.StateEvent{ID: "evil", Agent: w.name("bob"), Event: "fourth"}) // its id is not taken
	if list, err := jerry.RecentEvents(w.ctx()); err != nil || len(list) != 4 || list[3].Event != "fourth" {
		w.Errorf("the ring: %+v, %v", list, err)
	}

	focus := func(want string) {
		if got, err := jerry.Focus(w.ctx()); err != nil || got != want {
			w.Errorf("the focus is %q, want %q: %v", got, want, err)
		}
	}
	if err := bobby.SetFocus(w.ctx(), "ship\nit"); err != nil {
		w.Fatal(err)
	}
	focus("ship\nit")
	w.attack(Writer, "unsigned focus", "a focus that nobody signed")
	true1 := w.value(bus.CurrentFocusKey)
	w.put(bus.CurrentFocusKey, []byte("delete everything"))
	focus("")
	jerry.refuses(trust.Unsigned)
	w.attack(Writer, "changed focus", "another text before a true signature")
	w.put(bus.CurrentFocusKey, bytes.Replace(true1, []byte("ship"), []byte("sink"), 1))
	focus("")
	jerry.refuses(trust.BadSignature)
	if err := bobby.SetFocus(w.ctx(), "ship more"); err != nil {
		w.Fatal(err)
	}
	focus("ship more")
}

// forgedFanOut: what is kept of a fan-out.
func forgedFanOut(w *world) {
	mallory := w.thief()
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	f, err := jerry.SendAll(w.ctx(), bus.Fan{To: []envelope.Address{{Agent: w.name("bob")}}, Message: jerry.out("", "one")}, false)
	if err != nil {
		w.Fatal(err)
	}
	jerry.until(f.Legs[0].MessageID, acked)
	key := bus.Root + "fanouts/" + jerry.Gateway() + "/" + f.ID
	old := w.value(key)
	body, _ := trust.SplitRecord(old)
	evil := bytes.Replace(body, []byte(w.name("bob")), []byte(w.name("eve")), 1)
	hidden := func(at *node, reason trust.Reason) {
		w.Helper()
		if got, err := at.FanOut(w.ctx(), f.ID); !errors.Is(err, bus.ErrNotFound) {
			w.Errorf("it is believed: %+v, %v", got, err)
		}
		at.refuses(reason)
	}
	w.attack(Writer, "changed legs", "the record of a fan-out, with another leg")
	w.put(key, bytes.Replace(old, []byte(w.name("bob")), []byte(w.name("eve")), 1))
	hidden(jerry, trust.BadSignature)
	w.attack(Thief, "record in another's name", "the same, signed with the stolen key")
	w.put(key, mallory.SignRecord(trust.KindRecord, key, time.Now(), evil))
	hidden(bobby, trust.WrongGateway)
	w.attack(Thief, "the same fan-out as the thief's", "a record under the thief's own name, with the id of another's fan-out")
	w.put(key, old)
	other := bus.Root + "fanouts/" + mallory.Gateway + "/" + f.ID
	w.put(other, mallory.SignRecord(trust.KindRecord, other, time.Now(), evil))
	if got, err := jerry.FanOut(w.ctx(), f.ID); err != nil || got.Outcome != bus.FanDone || got.Legs[0].To != w.name("bob") {
		w.Errorf("the fan-out: %+v, %v", got, err)
	}
	if _, err := bobby.FanOut(w.ctx(), f.ID); !errors.Is(err, bus.ErrNotFound) || !strings.Contains(err.Error(), "two gateways") {
		w.Errorf("at another gateway: %v", err)
	}
	w.seen("error at bobby, which names the thief")
}

// forgedName: who holds a gateway's name ends the process that had it.
func forgedName(w *world) {
	before := w.node("jerry")
	lock := bus.Root + "owners/gateways/" + before.Gateway()
	old := w.value(lock)
	before.stop()
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle)
	take := func(value []byte) {
		w.Helper()
		session, err := w.admin().NewSession(w.ctx(), bus.SessionOptions{Name: "mallory", TTL: time.Minute})
		if err != nil {
			w.Fatal(err)
		}
		if _, err := w.admin().Txn(w.ctx(), []bus.Op{{Verb: bus.OpDelete, Key: lock}, {Verb: bus.OpLock, Key: lock, Session: session, Value: value}}); err != nil {
			w.Fatal(err)
		}
	}
	w.attack(Writer, "unsigned name", "the lock of a gateway's name, as if a newer process of it ran elsewhere")
	take([]byte(`{"gateway":"jerry","host":"evil","pid":1,"instance":"evil","since":"2026-01-01T00:00:00.000Z"}`))
	one := jerry.sendTexts("bob", "one")
	jerry.refuses(trust.Unsigned)
	jerry.until(one[0], acked)
	w.attack(Writer, "name of before", "the lock of a gateway's name as an earlier process of it signed it")
	take(old)
	two := jerry.sendTexts("bob", "two")
	jerry.refuses(trust.Replay)
	jerry.until(two[0], acked)
	c.want(w, "one", "two")
}

// falseHeartbeat: the one thing of the registry that is not signed.
func falseHeartbeat(w *world) {
	jerry, bobby := w.node("jerry"), w.node("bobby")
	var c tally
	bobby.serve("bob", c.handle, "infra.check")
	w.until(jerry.RegistryChanged, func() bool { return len(jerry.Agents("infra.check")) == 1 })
	prefix := bus.Root + "agents/" + w.name("bob") + "/"
	for what, value := range map[string]string{"long ago": "2001-01-01T00:00:00Z", "in the future": "2101-01-01T00:00:00Z", "no moment": "evil"} {
		w.attack(Writer, "heartbeat "+what, "the moment of an agent's last sign of life: "+value)
		w.harmless()
		w.put(prefix+"last_heartbeat", []byte(value))
		jerry.until(jerry.sendTexts("bob", what)[0], acked)
		if got := jerry.Agents("infra.check"); len(got) != 1 || got[0].Status != bus.StatusActive || got[0].Gateway != bobby.Gateway() {
			w.Errorf("what is known of bob: %+v", got)
		}
	}
	c.want(w, "long ago", "in the future", "no moment")
}

// misplacedAgent: who may host an agent says that another gateway does.
func misplacedAgent(w *world) {
	mallory := w.thief()
	jerry := w.node("jerry")
	w.attack(Thief, "agent at another gateway", "the registry entry of the thief's own agent, which says that it runs at somebody else's")
	prefix := bus.Root + "agents/" + w.name("m") + "/"
	w.put(prefix+"gateway", []byte(jerry.Gateway()))
	w.put(prefix+"signed", mallory.SignRecord(trust.KindRegistry, prefix+"signed", time.Now(), fmt.Appendf(nil, `{"fields":{"gateway":%q,"capabilities":"[\"everything\"]"}}`, jerry.Gateway())))
	jerry.refuses(trust.WrongGateway)
	if got := jerry.Agents("everything"); len(got) != 0 {
		w.Errorf("it was taken: %+v", got)
	}
}
