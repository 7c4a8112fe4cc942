package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/envelope"
)

// While a transaction is under way, the next batch's big entry is put into its slot. Whatever becomes of
// that transaction, and of that put, everything arrives once and in order, and no slot stays behind.
func TestNextEntryIsPutAhead(t *testing.T) {
	lost := fmt.Errorf("%w: on the way", bus.ErrUnavailable)
	type faults struct {
		before, after func(b *bubble, call string, ops []bus.Op) error
	}
	// once lets f decide about the first transaction that names the first big entry, and about nothing else.
	once := func(f func(b *bubble) error) func(*bubble, string, []bus.Op) error {
		return func(b *bubble, call string, _ []bus.Op) error {
			if call != bustest.CallTxn {
				return nil
			}
			return f(b)
		}
	}
	for name, c := range map[string]faults{
		"all goes well":     {},
		"its request lost":  {before: once(func(*bubble) error { return lost })},
		"its reply lost":    {after: once(func(*bubble) error { return lost })},
		"it is too large":   {before: once(func(*bubble) error { return bus.ErrTooLarge })},
		"the bell is moved": {before: once(deleteBell)},
		"the put lost": {before: func(_ *bubble, call string, _ []bus.Op) error {
			if call == bustest.CallPut {
				return lost
			}
			return nil
		}},
		"the put's reply lost": {after: func(_ *bubble, call string, _ []bus.Op) error {
			if call == bustest.CallPut {
				return lost
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bubble) {
				g, h := b.gateway("jerry", nil), b.gateway("bobby", nil)
				var got []string
				b.serve(h, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error {
					text, _, _ := strings.Cut(m.Envelope().Text(), " ")
					got = append(got, text)
					return nil
				})
				// One small message holds the writer while the others queue up behind it.
				first, resume := make(chan struct{}), make(chan struct{})
				var stage atomic.Int32
				g.store.Before(func(call string, ops []bus.Op) error {
					if call == bustest.CallTxn && len(ops) > 1 && stage.CompareAndSwap(0, 1) {
						close(first)
						<-resume
						return nil
					}
					return nil
				})
				send := func(i int, size int) {
					_, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", ConversationID: "one",
						Payload: envelope.TextPayload(fmt.Sprintf("%02d ", i) + strings.Repeat("x", size))})
					if err != nil {
						b.Errorf("message %d: %v", i, err)
					}
				}
				go send(0, 1)
				<-first
				var want []string
				for i := 1; i <= 26; i++ {
					go send(i, 30<<10)
					synctest.Wait()
				}
				for i := range 27 {
					want = append(want, fmt.Sprintf("%02d", i))
				}
				// Then: the small one, and its look-ahead (none, the writer was asleep); the put of the first big entry,
				// its transaction with the put ahead beside it.
				var slots atomic.Int64
				var puts, faulted atomic.Int32
				g.store.Before(func(call string, ops []bus.Op) error {
					switch {
					case call == bustest.CallPut:
						puts.Add(1)
						if puts.Load() < 2 {
							return nil // the first big entry's own
						}
					case call != bustest.CallTxn || puts.Load() == 0 || !writesLane(ops):
						return nil
					case slots.Load() == 0:
						synctest.Wait() // whatever goes on beside this transaction has been done
						slots.Store(int64(b.count("lanes/jerry/bob/")))
					}
					if c.before != nil && faulted.Load() == 0 {
						if err := c.before(b, call, ops); err != nil {
							faulted.Add(1)
							return err
						}
					}
					return nil
				})
				g.store.After(func(call string, ops []bus.Op) error {
					if c.after == nil || faulted.Load() > 0 || puts.Load() < 1 || call == bustest.CallPut && puts.Load() < 2 || call == bustest.CallTxn && !writesLane(ops) {
						return nil
					}
					err := c.after(b, call, ops)
					if err != nil {
						faulted.Add(1)
					}
					return err
				})
				close(resume)
				b.pass(10 * time.Second)
				if !slices.Equal(got, want) {
					b.Errorf("handled %q", got)
				}
				if (c.before != nil || c.after != nil) && faulted.Load() == 0 {
					b.Error("the fault never happened")
				}
				if wantSlots := int64(2); c.before == nil && c.after == nil && slots.Load() != wantSlots {
					b.Errorf("%d slots while the first big entry's transaction was under way, want %d", slots.Load(), wantSlots)
				}
				g.store.After(nil)
				b.pass(5 * time.Minute)
				if n := b.count("lanes/"); n != 0 {
					b.Errorf("%d slots are left", n)
				}
				b.stop(h, g)
			})
		})
	}
}

func writesLane(ops []bus.Op) bool {
	return slices.ContainsFunc(ops, func(o bus.Op) bool { return o.Verb == bus.OpCAS && strings.HasPrefix(o.Key, bus.Root+"inbox/") })
}

// deleteBell is somebody's hand in the store: the sender has to read its lane again and goes on with other numbers.
func deleteBell(b *bubble) error {
	pairs, err := b.store.List(b.Context(), bus.Root+"inbox/bob/")
	if err != nil || len(pairs) == 0 {
		return errors.Join(err, errors.New("there is no bell"))
	}
	_, err = b.store.Txn(b.Context(), []bus.Op{{Verb: bus.OpDelete, Key: pairs[0].Key}})
	return err
}
