package gateway

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// held is one message in a mailbox and what became of it.
func held(ctx context.Context, b *mailbox) <-chan error {
	end := make(chan error, 1)
	go func() { end <- b.hold(ctx, "m", nil) }()
	synctest.Wait()
	return end
}

var errSaid = errors.New("the verdict")

func said(*bus.Incoming) error { return errSaid }

// A verdict that comes in the moment in which the lease ends counts, or is refused: never both told as taken and dropped.
func TestVerdictAtTheEndOfTheLease(t *testing.T) {
	for _, end := range []string{"lease", "context"} {
		for range 300 {
			synctest.Test(t, func(t *testing.T) {
				b := newMailbox()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				lease := time.Minute
				if end == "context" {
					lease = time.Hour
					time.AfterFunc(time.Minute, cancel)
				}
				over := held(ctx, b)
				if got, until := b.fetch(ctx, 5, lease); len(got) != 1 || !until.Equal(time.Now().Add(lease)) {
					t.Fatal(got, until)
				}
				<-time.After(time.Minute)
				err := b.settle("m", said)
				got := <-over
				if taken := errors.Is(got, errSaid); taken != (err == nil) {
					t.Errorf("by the %s: settle said %v, and it ended with %v", end, err, got)
				}
				if n := b.count(); n.Waiting+n.Leased != 0 {
					t.Errorf("left behind: %+v", n)
				}
			})
		}
	}
}

// A lease that is prolonged in the moment in which it ends goes on, or is refused.
func TestProlongAtTheEndOfTheLease(t *testing.T) {
	for range 300 {
		synctest.Test(t, func(t *testing.T) {
			b := newMailbox()
			over := held(t.Context(), b)
			b.fetch(t.Context(), 1, time.Minute)
			<-time.After(time.Minute)
			until, err := b.prolong("m", time.Minute)
			if err == nil {
				<-time.After(time.Until(until) - time.Millisecond)
				if e := b.settle("m", said); e != nil {
					t.Errorf("prolonged until %s, and a millisecond before that: %v", until, e)
				}
			}
			if got := <-over; errors.Is(got, errSaid) != (err == nil) {
				t.Errorf("prolong said %v, and it ended with %v", err, got)
			}
		})
	}
}
