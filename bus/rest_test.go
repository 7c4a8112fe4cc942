package bus_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/envelope"
)

// Under load the receipts of many messages share a transaction: after one of many the next one waits twice as long as that one took. Who
// has more to say than that something is done does not wait, nor does what comes alone.
func TestManyReceiptsShareTransactions(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, h := b.gateway("jerry", nil), b.gateway("bobby", nil)
		b.serve(h, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error {
			if m.Envelope().ReplyTo != "" {
				return m.Reply(envelope.TextPayload("yes"))
			}
			return nil
		})
		const commit = 10 * time.Millisecond
		var mu sync.Mutex
		receipts := 0 // transactions that write some
		h.store.Before(func(call string, ops []bus.Op) error {
			for _, op := range ops {
				if call == bustest.CallTxn && op.Writes() && strings.Contains(op.Key, "/receipts/jerry/from/bob") {
					mu.Lock()
					receipts++
					mu.Unlock()
					<-time.After(commit) // in the bubble's time
					return nil
				}
			}
			return nil
		})
		count := func() int {
			mu.Lock()
			defer mu.Unlock()
			return receipts
		}
		ask := func(text string) time.Duration {
			began := time.Now()
			o := bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload(text)}
			s, err := g.AskAPI(b.Context(), o)
			if err == nil {
				_, err = g.Await(b.Context(), s.MessageID, func(tr bus.Track) bool { return tr.Facts.Replied })
			}
			if err != nil {
				b.Errorf("%s: %v", text, err)
			}
			return time.Since(began)
		}
		alone := ask("alone")

		const many, every = 2000, 100 * time.Microsecond
		before := count()
		var wg sync.WaitGroup
		var rushed time.Duration
		for i := range many {
			wg.Add(1)
			go func() {
				defer wg.Done()
				s, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload(fmt.Sprint(i))})
				if err == nil {
					_, err = g.Await(b.Context(), s.MessageID, func(tr bus.Track) bool { return tr.Facts.Acked })
				}
				if err != nil {
					b.Errorf("message %d: %v", i, err)
				}
			}()
			if i == many/2 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					rushed = ask("in between")
				}()
			}
			<-time.After(every) // in the bubble's time
		}
		wg.Wait()
		took := many * every
		if got, most := count()-before, int(took/(2*commit)); got > most {
			t.Errorf("%d transactions told of %d messages in %s; without a rest there is one every %s", got, many, took, commit)
		}
		if rushed > alone+commit+5*time.Millisecond {
			t.Errorf("a reply took %s among the many, and %s alone: it waited for more than the transaction before it", rushed, alone)
		}
		synctest.Wait()
		if last := ask("alone again"); last > alone+4*commit {
			t.Errorf("alone again it took %s, and %s at first", last, alone)
		}
		b.stop(h, g)
	})
}
