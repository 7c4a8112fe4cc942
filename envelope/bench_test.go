package envelope

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// payloads are 1 KiB each, of the two common kinds: text from an agent, and a
// report made of many small values.
var payloads = []struct {
	name string
	json json.RawMessage
}{
	{"text", TextPayload(strings.Repeat("All three servers answer. ", 40)[:1022])},
	{"object", objectPayload(1024)},
}

func objectPayload(size int) json.RawMessage {
	var parts []string
	for i, n := 0, 2; n < size-60; i++ {
		p := fmt.Sprintf(`{"check":"disk-%d","ok":true,"free":%d}`, i, 1<<20+i)
		parts, n = append(parts, p), n+len(p)+1
	}
	return json.RawMessage("[" + strings.Join(parts, ",") + "]")
}

func benchEnvelope(payload json.RawMessage) Envelope {
	return Envelope{
		SchemaVersion: Version, MessageID: NewID(), CorrelationID: NewID(), ConversationID: "ops/2026-02-03",
		ReplyTo: "jerry", SourceGateway: "gw-jerry", SourceAgent: "jerry", TargetAgent: "bobby",
		Capability: "infra.check", Payload: payload, CreatedAt: At(time.Now()), TTL: 60_000, MaxHops: 8,
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, p := range payloads {
		b.Run(p.name, func(b *testing.B) {
			e := benchEnvelope(p.json)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Seal(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, p := range payloads {
		b.Run(p.name, func(b *testing.B) {
			s, err := Seal(benchEnvelope(p.json))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(s.Canonical())))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode(s.Canonical()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkValidate(b *testing.B) {
	e := benchEnvelope(payloads[0].json)
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Validate(); err != nil {
			b.Fatal(err)
		}
	}
}
