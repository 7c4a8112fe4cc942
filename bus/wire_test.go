package bus

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

func sealedSamples(tb testing.TB) []*envelope.Sealed {
	tb.Helper()
	var all []*envelope.Sealed
	for _, payload := range []string{`"plain"`, `"quote \" brace } { [ \\"`, `{"a":{"b":["}",1]},"items":[]}`, `null`, `"ü` + "\u2028" + `<&>"`} {
		s, err := envelope.Seal(envelope.Envelope{
			SchemaVersion: envelope.Version, MessageID: envelope.NewID(), CorrelationID: envelope.NewID(), ConversationID: "c",
			SourceGateway: "jerry", SourceAgent: "user", TargetAgent: "bob", Payload: json.RawMessage(payload),
			CreatedAt: envelope.At(mustTime("2026-11-22T10:00:00Z")), TTL: 1000, MaxHops: 3,
		})
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func sampleEntry(tb testing.TB) []byte {
	var items []laneItem
	for i, s := range sealedSamples(tb) {
		var hops []envelope.Hop
		if i%2 == 1 {
			hops = []envelope.Hop{{Gateway: "billy", At: s.CreatedAt}}
		}
		items = append(items, newLaneItem("bob", s, itemMeta{Hops: hops}))
	}
	return encodeSigned(nil, 7, 42, envelope.At(mustTime("2026-11-22T10:00:00Z")), nil, items)
}

// checkEntry holds the fast reader to encoding/json: what both read is the same, and the fast one
// reads all that is valid.
func checkEntry(t *testing.T, raw []byte) {
	t.Helper()
	fast, ferr := decodeEntry(raw)
	var slow entry
	serr := json.Unmarshal(raw, &slow)
	if serr != nil {
		return // what is cut without being looked at is refused when it is decoded
	}
	if ferr != nil {
		t.Fatalf("valid, but refused (%v): %s", ferr, raw)
	}
	if fast.Seq != slow.Seq || len(fast.Items) != len(slow.Items) {
		t.Fatalf("read differently: %+v and %+v from %s", fast, slow, raw)
	}
	for i := range slow.Items {
		if !reflect.DeepEqual(fast.Items[i].Hops, slow.Items[i].Hops) || string(fast.Items[i].Envelope) != string(slow.Items[i].Envelope) {
			t.Fatalf("item %d: %s\nand %s", i, fast.Items[i].Envelope, slow.Items[i].Envelope)
		}
	}
}

func TestEntryRoundTrip(t *testing.T) {
	raw := sampleEntry(t)
	checkEntry(t, raw)
	e, err := decodeEntry(raw)
	if err != nil || e.Seq != 7 || e.Count != 42 || len(e.Items) != 5 {
		t.Fatalf("%+v %v", e, err)
	}
	for i, s := range sealedSamples(t) {
		got, err := envelope.Decode(e.Items[i].Envelope)
		if err != nil || string(got.Payload) != string(s.Payload) {
			t.Errorf("item %d: %v %s", i, err, got.Payload)
		}
	}
	// A record that holds an envelope keeps its bytes.
	for _, s := range sealedSamples(t) {
		var rec pendingRecord
		if err := json.Unmarshal(mustEncode(pendingRecord{Envelope: s.Canonical()}), &rec); err != nil || string(rec.Envelope) != string(s.Canonical()) {
			t.Errorf("bytes changed: %v\n%s\n%s", err, rec.Envelope, s.Canonical())
		}
	}
	if strings.Contains(string(encodeBell(1, 2, nil, nil)), "entry") {
		t.Error("a bare bell has no entry")
	}
}

func FuzzEntry(f *testing.F) {
	raw := sampleEntry(f)
	f.Add(raw)
	f.Add([]byte(`{"seq":1,"items":[{"envelope":{}}]}`))
	f.Add([]byte(`{"seq":1,"items":[{"envelope":{},"hops":null},{}]}`))
	f.Add([]byte(`{"items":[],"seq":3}`))
	f.Add([]byte(`{"":[{"":{"":{"":{},"items":[]}}}]}`))
	f.Add([]byte(`{"seq":1,"items":[{"envelope":"}"}]}`))
	f.Fuzz(checkEntry)
}

// FuzzRecords: whatever lies in the store, reading it does not panic.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"seq":1,"count":2,"entry":{}}`))
	f.Add(encodeHead(1, 2, 3, 4, [][]byte{mustEncode(receipt{IDs: []string{"x"}})}))
	f.Add(mustEncode(pendingRecord{}))
	for _, e := range sealedSamples(f) {
		f.Add(mustEncode(pendingRecord{Lane: 7, From: "jerry", Envelope: e.Canonical(), Asked: []string{e.MessageID}}))
		f.Add(mustEncode(deadRecord{Delivery: envelope.Delivery{State: envelope.DeadLetter}, From: "jerry", Envelope: e.Canonical()}))
	}
	f.Add([]byte(`{"delivery":{"state":"dead-letter","dead_at":null},"raw":"\u0000","from":"jerry"}`))
	fuzzed := &Bus{cfg: Config{Clock: time.Now}}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &lane{laneShared: &laneShared{}}
		_ = l.adopt(&Pair{Key: "k", Value: b, ModifyIndex: 1})
		var h receiptHead
		if json.Unmarshal(b, &h) == nil {
			s := &source{seen: map[string]envelope.State{}}
			s.rememberRawLocked(h.Receipts)
		}
		_, _ = decodeEntry(b)
		_ = objectEnd(b)
		if rec, env, err := decodePending(&Pair{Key: "k", Value: b}); err == nil {
			// What can be read can be written again, and says the same.
			again, env2, err := decodePending(&Pair{Key: "k", Value: mustEncode(rec)})
			if err != nil || again.Lane != rec.Lane || env2.Key() != env.Key() {
				t.Errorf("%s\nbecame %+v, %v", b, again, err)
			}
		}
		d := fuzzed.decodeDead("bobby", "id", b)
		if d.Hindrance == "" && (d.Envelope == nil || d.Delivery.State != envelope.DeadLetter) {
			t.Errorf("%s\ncould be redriven: %+v", b, d)
		}
	})
}

// What is cut out of a receipt is what encoding/json reads in it.
func TestReceiptsAreReadAlike(t *testing.T) {
	at := envelope.At(mustTime("2026-11-22T10:00:00Z"))
	var all [][]byte
	for _, ids := range [][]string{{"a"}, {"a", "b", "c"}, {`a","b`, `\`}, {"é", "]", "],"}, {""}, {"", ""}, {}, nil} {
		all = append(all, mustEncode(receipt{IDs: ids, State: envelope.Acked, At: at, Gateway: "bobby", Attempt: 1, DeliveredAt: &at}))
	}
	for _, raw := range []string{`{"ids":["a", "b"],"state":"acked"}`, `{"ids":["a" ,"b"],"state":"acked"}`, `{"state":"acked","ids":["a","b"]}`, `{"ids":["a","b"]}`, `{"ids":["\u0061","b"],"state":"acked"}`} {
		all = append(all, []byte(raw))
	}
	for _, raw := range all {
		var want receipt
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		got, err := decodeReceipt(raw)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v (%v)\n%+v", raw, got, err, want)
		}
	}
	for _, raw := range []string{`{"ids":["a"],"state":1}`, `{"ids":["a"],`} {
		if _, err := decodeReceipt([]byte(raw)); err == nil {
			t.Errorf("%s was read", raw)
		}
	}
}

func TestMovesOfTheDedupeMemory(t *testing.T) {
	s := &source{seen: map[string]envelope.State{}}
	for range dedupeReceipts {
		s.remember(envelope.NewID(), envelope.Acked)
	}
	first := s.order[0]
	if !s.known(first) {
		t.Fatal("forgotten too early")
	}
	s.remember(first, envelope.DeadLetter)
	if len(s.order) != dedupeReceipts {
		t.Error("a second receipt of one message takes a second place")
	}
	s.remember(envelope.NewID(), envelope.Acked)
	if s.known(first) || len(s.order) != dedupeReceipts || len(s.seen) != dedupeReceipts {
		t.Errorf("the memory is not bounded: %d, %d", len(s.order), len(s.seen))
	}
}

func mustTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}
