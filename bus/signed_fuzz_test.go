package bus

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// FuzzSignedState: whatever is made of the shared state, what is shown is what somebody said.
func FuzzSignedState(f *testing.F) {
	b := signingBus(f)
	var ring []json.RawMessage
	said := map[StateEvent]bool{}
	for _, id := range []string{"one", "two"} {
		e := StateEvent{ID: id, Timestamp: envelope.At(time.UnixMilli(1_700_000_000_000)), Agent: "bob", Event: "it is " + id + " <&>"}
		said[e] = true
		ring = append(ring, b.sign(trust.KindState, RecentEventsKey, mustEncode(e)))
	}
	const focus = "ship\nit"
	f.Add(mustEncode(ring), b.signFocus(focus))
	f.Add(bytes.Replace(mustEncode(ring), []byte("it is one"), []byte("it is evil"), 1), []byte(focus))
	f.Add(bytes.Replace(mustEncode(ring), []byte(`"agent":"bob"`), []byte(`"Agent":"eve","agent":"bob"`), 1), b.signFocus(""))
	f.Add([]byte(`[{"signed":{}},null]`), []byte("x\n"+focusMark+"}"))
	f.Fuzz(func(t *testing.T, events, text []byte) {
		if raw, ring, err := decodeRing(events); err == nil {
			for i, e := range ring {
				if b.eventBelieved(raw[i], e.Agent) == nil && !said[e] {
					t.Fatalf("believed: %+v of %s", e, raw[i])
				}
			}
			_, _, err := decodeRing(encodeRing(raw))
			if err != nil {
				t.Fatalf("what was kept of %s: %v", events, err)
			}
		}
		got, st := splitFocus(text)
		if err := b.cfg.Trust.Stamp(trust.KindState, CurrentFocusKey, got, st, "", ""); err == nil && string(got) != focus && len(got) > 0 {
			t.Fatalf("believed: %q", text)
		}
	})
}

// FuzzSignedRecord is the same for what lies in one key: a message that is worked on, what the registry says of an agent, who owns an inbox, and
// who has a gateway's name.
func FuzzSignedRecord(f *testing.F) {
	b := signingBus(f)
	el := &elector{b: b}
	s := &session{b: b}
	items, _, _, _ := signedLane(f, b)
	env := items[0].s
	key, prefix, session := pendingKey("bob", env.MessageID), agentsPrefix+"bob/", "the-session"
	seeds := [][]byte{
		b.sign(trust.KindRecord, key, mustEncode(pendingRecord{Lane: 7, From: "jerry", Envelope: env.Canonical()})),
		b.sign(trust.KindRegistry, prefix+signedField, mustEncode(signedFields{map[string]string{"gateway": "jerry", "capabilities": "[]"}})),
		b.sign(trust.KindOwner, agentLockKey("bob"), mustEncode(ownerLock{Agent: "bob", Gateway: "jerry", Session: session})),
		b.sign(trust.KindOwner, gatewayLockKey("jerry"), mustEncode(gatewayLock{Gateway: "jerry", Host: "h", Instance: "i", Session: session})),
	}
	for _, raw := range seeds {
		f.Add(raw)
		f.Add(bytes.Replace(raw, []byte("jerry"), []byte("evil!"), 1))
		f.Add(bytes.Replace(raw, []byte(`{`), []byte(`{"gateway":"evil",`), 1))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if rec, got, err := b.openPending(&Pair{Key: key, Value: raw}, "bob"); err == nil && (rec.Lane != 7 || rec.From != "jerry" || !bytes.Equal(got.Canonical(), env.Canonical())) {
			t.Fatalf("believed: %s", raw)
		}
		r := newRegistry(b)
		fields := map[string]Pair{signedField: {Key: prefix + signedField, Value: raw, ModifyIndex: 1}}
		if err := r.believe(true, prefix, fields); err == nil && (text(fields["gateway"]) != "jerry" || text(fields["capabilities"]) != "[]") {
			t.Fatalf("believed: %s", raw)
		}
		if v, err := el.claim(trust.KindOwner, "bob", &Pair{Key: agentLockKey("bob"), Value: raw, Session: session}); err == nil && v.Gateway != "jerry" {
			t.Fatalf("believed: %s", raw)
		}
		if l, err := s.judge(&Pair{Key: gatewayLockKey("jerry"), Value: raw, Session: session}); err == nil && l.Instance != "i" {
			t.Fatalf("believed: %s", raw)
		}
	})
}
