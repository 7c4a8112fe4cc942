package bus

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// BenchmarkVerifyLanes is what owners do with packed entries of 32 messages of 1 KiB before anything of them is handled: unpack, read,
// judge. Lanes do it side by side; with as many cores as lanes, two do twice as much as one.
func BenchmarkVerifyLanes(b *testing.B) {
	const messages = 32
	s := signingBus(b)
	var err error
	if s.packer, err = newPacker(); err != nil {
		b.Fatal(err)
	}
	packed := func(agent string) []byte {
		var items []laneItem
		for i := range messages {
			id := envelope.DerivedID(agent, fmt.Sprint(i))
			env, err := envelope.Seal(envelope.Envelope{
				SchemaVersion: envelope.Version, MessageID: id, CorrelationID: id, ConversationID: id, SourceGateway: "jerry", SourceAgent: "user", TargetAgent: agent,
				Payload: envelope.TextPayload(strings.Repeat(id, 1024/len(id))), CreatedAt: envelope.At(fuzzTime), TTL: envelope.MillisOf(time.Hour), MaxHops: 4,
			})
			if err != nil {
				b.Fatal(err)
			}
			u := &unit{}
			u.send(&outgoing{s: env})
			items = append(items, u.sends...)
		}
		at := envelope.At(fuzzTime)
		return s.packer.pack(encodeSigned(nil, 1, messages, at, s.signHead(agent, 1, messages, at, items), items), 1)
	}
	for _, lanes := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(lanes), func(b *testing.B) {
			var wg sync.WaitGroup
			for n := range lanes {
				agent := fmt.Sprintf("agent-%d", n)
				raw := packed(agent)
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range b.N {
						e, err := decodeEntry(s.packer.unpack(raw, nil))
						if err == nil {
							_, err = s.checkEntry("jerry", agent, &e, nil)
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				}()
			}
			wg.Wait()
			b.ReportMetric(float64(b.N*lanes*messages)/b.Elapsed().Seconds(), "envelopes/s")
		})
	}
}
