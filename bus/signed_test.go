package bus

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// fuzzTime is when everything is signed here.
var fuzzTime = time.UnixMilli(1_800_000_000_000)

// signingBus is jerry's, in a mesh of jerry alone; it has no store. Its key and its clock are always the same: a fuzzer's workers are
// processes of their own, and could believe nothing of what the first one signed otherwise.
func signingBus(t testing.TB) *Bus {
	t.Helper()
	key, err := trust.ParseKey([]byte(base64.StdEncoding.EncodeToString(make([]byte, 32))))
	if err != nil {
		t.Fatal(err)
	}
	set := &trust.Set{Mesh: "m", Version: 1, Gateways: []trust.Member{{Name: "jerry", Agents: []string{"*"}, Keys: []trust.MemberKey{{Public: trust.EncodePublic(key.Public())}}}}}
	b := &Bus{cfg: Config{Gateway: "jerry", Clock: func() time.Time { return fuzzTime }, Signer: &trust.Signer{Mesh: "m", Gateway: "jerry", Key: key}, Trust: trust.NewVerifier("m", true)}}
	b.cfg.Trust.Use(set)
	return b
}

// signedLane is an entry of three messages, and the two bells that it can have.
func signedLane(t testing.TB, b *Bus) (items []laneItem, entry, inline, named []byte) {
	t.Helper()
	for i := range 3 {
		id := envelope.DerivedID("fuzz", fmt.Sprint(i))
		env, err := envelope.Seal(envelope.Envelope{
			SchemaVersion: envelope.Version, MessageID: id, CorrelationID: id, ConversationID: id, SourceGateway: "jerry", SourceAgent: "user",
			TargetAgent: "bob", Payload: envelope.TextPayload(fmt.Sprint(i)), CreatedAt: envelope.At(fuzzTime), TTL: envelope.MillisOf(time.Hour), MaxHops: 4,
		})
		if err != nil {
			t.Fatal(err)
		}
		u := &unit{}
		u.send(&outgoing{o: Outgoing{AttemptID: fmt.Sprint("attempt ", i)}, s: env})
		items = append(items, u.sends...)
	}
	at := envelope.At(fuzzTime)
	h := b.signHead("bob", 7, 21, at, items)
	entry = encodeSigned(nil, 7, 21, at, h, items)
	return items, entry, encodeBell(7, 21, entry, nil), encodeBell(7, 21, nil, h)
}

func TestSignedEntry(t *testing.T) {
	b := signingBus(t)
	items, raw, inline, named := signedLane(t, b)
	e, err := decodeEntry(raw)
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.checkEntry("jerry", "bob", &e, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range items {
		p, err := trust.DecodeProof(s.proof(i))
		if err == nil {
			err = b.cfg.Trust.Proof(p, items[i].s.Canonical(), "jerry")
		}
		if err != nil {
			t.Errorf("proof of item %d: %v", i, err)
		}
	}
	for name, raw := range map[string][]byte{"inline": inline, "named": named} {
		var bl bell
		if err := json.Unmarshal(raw, &bl); err != nil {
			t.Fatal(err)
		}
		h, err := b.checkBell("jerry", "bob", &bl)
		if err != nil || h.EntryHead != s.EntryHead {
			t.Errorf("%s bell: %+v, %v", name, h, err)
		}
		if _, err := b.checkEntry("jerry", "bob", &e, h); err != nil {
			t.Errorf("entry of the %s bell: %v", name, err)
		}
		if _, err := b.checkBell("jerry", "carol", &bl); err == nil {
			t.Errorf("the %s bell rings at another inbox, too", name)
		}
		bl.Seq++
		if _, err := b.checkBell("jerry", "bob", &bl); err == nil {
			t.Errorf("the %s bell has another number, too", name)
		}
	}
	// Another true entry of the same number is not the one that the bell names.
	var bl bell
	if err := json.Unmarshal(named, &bl); err != nil {
		t.Fatal(err)
	}
	h, err := b.checkBell("jerry", "bob", &bl)
	if err != nil {
		t.Fatal(err)
	}
	at := envelope.At(time.Now())
	other, err := decodeEntry(encodeSigned(nil, 7, 20, at, b.signHead("bob", 7, 20, at, items[:2]), items[:2]))
	if err != nil {
		t.Fatal(err)
	}
	var r *trust.Refusal
	if _, err := b.checkEntry("jerry", "bob", &other, h); !errors.As(err, &r) || r.Reason != trust.Replay {
		t.Errorf("another entry of the same number: %v", err)
	}
}

// FuzzSignedEntry: whatever is made of a signed entry, what is believed is what was signed.
func FuzzSignedEntry(f *testing.F) {
	b := signingBus(f)
	items, raw, _, _ := signedLane(f, b)
	f.Add(raw)
	f.Add(bytes.Replace(raw, []byte(`"seq":7`), []byte(`"seq":8`), 1))
	f.Add(bytes.Replace(raw, []byte(`,"items":[`), []byte(`,"Items":[{"envelope":{}}],"items":[`), 1))
	f.Add(bytes.Replace(raw, []byte(`"attempt_id"`), []byte(`"envelope":{},"attempt_id"`), 1))
	f.Add([]byte(`{"seq":7,"count":21,"items":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEntry(raw)
		if err != nil {
			return
		}
		if _, err := b.checkEntry("jerry", "bob", &e, nil); err != nil {
			return
		}
		if e.Seq != 7 || e.Count != 21 || len(e.Items) != len(items) {
			t.Fatalf("believed: %s", raw)
		}
		for i, it := range e.Items {
			if !bytes.Equal(it.Envelope, items[i].s.Canonical()) || it.AttemptID != fmt.Sprint("attempt ", i) || it.For != "" || len(it.Hops) > 0 {
				t.Fatalf("believed: %s", raw)
			}
		}
	})
}

// FuzzSignedBell is the same for bells.
func FuzzSignedBell(f *testing.F) {
	b := signingBus(f)
	_, _, inline, named := signedLane(f, b)
	f.Add(inline)
	f.Add(named)
	f.Add([]byte(`{"seq":7,"count":21,"entry":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var bl bell
		if json.Unmarshal(raw, &bl) != nil {
			return
		}
		if h, err := b.checkBell("jerry", "bob", &bl); err == nil && (bl.Seq != 7 || bl.Count != 21 || h.Items != 3) {
			t.Fatalf("believed: %s", raw)
		}
	})
}
