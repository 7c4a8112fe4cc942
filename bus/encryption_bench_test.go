package bus

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// BenchmarkEncryptedEntry lays out and packs an entry of 32 messages of 1 KiB of prose, as they are and encrypted for so many
// gateways: what that costs the store is B/envelope, because ciphertext does not pack.
func BenchmarkEncryptedEntry(b *testing.B) {
	prose := strings.Repeat("The node is up, its disk is half full, and the last backup went through. ", 14)
	for _, readers := range []int{0, 1, 3} {
		b.Run(fmt.Sprint(readers), func(b *testing.B) {
			p, err := newPacker()
			if err != nil {
				b.Fatal(err)
			}
			var items []laneItem
			seal := benchSeal(b, readers)
			for i := range 32 {
				items = append(items, newLaneItem("bob", seal(fmt.Sprintf("%d %s", i, prose)), itemMeta{}))
			}
			entry := encodeSigned(nil, 1, 32, envelope.At(time.Now()), nil, items)
			var packed []byte
			for b.Loop() {
				packed = p.pack(entry, 1)
			}
			b.ReportMetric(float64(len(entry))/32, "unpackedB/envelope")
			b.ReportMetric(float64(len(packed))/32, "B/envelope")
		})
	}
}

// BenchmarkEncryptedDecode is reading such an envelope: what is encrypted does not go the short way through the codec.
func BenchmarkEncryptedDecode(b *testing.B) {
	for _, readers := range []int{0, 3} {
		b.Run(fmt.Sprint(readers), func(b *testing.B) {
			raw := benchSeal(b, readers)(strings.Repeat("x", 1024)).Canonical()
			for b.Loop() {
				if _, err := envelope.Decode(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchSeal seals messages, encrypted for so many readers.
func benchSeal(b *testing.B, readers int) func(text string) *envelope.Sealed {
	b.Helper()
	ring, err := trust.OpenKeyring("")
	if err == nil {
		_, err = ring.Tend("", time.Now())
	}
	if err != nil {
		b.Fatal(err)
	}
	var list []*trust.Reader
	for range readers {
		r, err := trust.DecodeReader("bobby-gateway", ring.Statement("bobby-gateway"))
		if err != nil {
			b.Fatal(err)
		}
		list = append(list, r)
	}
	key, err := trust.NewSendingKey("jerry-gateway", list)
	if err != nil {
		b.Fatal(err)
	}
	return func(text string) *envelope.Sealed {
		e := envelope.Envelope{
			SchemaVersion: envelope.Version, MessageID: envelope.NewID(), CorrelationID: envelope.NewID(), ConversationID: envelope.NewID(), SourceGateway: "jerry-gateway",
			SourceAgent: "jerry", TargetAgent: "bobby", Payload: envelope.TextPayload(text), CreatedAt: envelope.At(time.Now()), TTL: 60_000, MaxHops: 4,
		}
		var s *envelope.Sealed
		if readers == 0 {
			s, err = envelope.Seal(e)
		} else {
			e.SchemaVersion = envelope.EncryptedVersion
			var cipher string
			if e.Encryption, cipher, err = key.Encrypt(e.Binding(), e.Payload); err == nil {
				s, err = envelope.SealEncrypted(e, cipher, e.Payload)
			}
		}
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
}
