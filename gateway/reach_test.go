package gateway

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// behind is a store whose agent can be out of reach.
type behind struct {
	bus.Store
	away atomic.Bool
	// asked has a token for each time it was asked.
	asked chan struct{}
}

func (s *behind) Unwrap() bus.Store { return s.Store }

func (s *behind) Reach(ctx context.Context) error {
	select {
	case s.asked <- struct{}{}:
	case <-ctx.Done():
	}
	if s.away.Load() {
		return errors.New("no answer")
	}
	return nil
}

// Consul's check hears that the gateway is cut off, only after a while, and that it is not any more; a store without an agent is never out of reach.
func TestCutOff(t *testing.T) {
	s := &behind{Store: newStore(t), asked: make(chan struct{})}
	n := startNode(t, parseNode(t, "one", nil, "", echoAgent("bob")), Deps{Store: s})
	health := func() int { return n.do(http.MethodGet, healthStorePath, "").status }
	for range 2 {
		await(t, s.asked, "a look")
	}
	if got := health(); got != http.StatusOK {
		t.Errorf("status %d", got)
	}
	s.away.Store(true)
	for range 2 {
		await(t, s.asked, "a look") // the one before this one has been judged
	}
	if got := health(); got != http.StatusOK {
		t.Errorf("after a moment: status %d", got)
	}
	long := time.Now().Add(-2 * cutOffAfter)
	n.reached.Store(&long)
	if got := health(); got != http.StatusServiceUnavailable {
		t.Errorf("cut off: status %d", got)
	}
	if got := n.do(http.MethodGet, "/health", "").status; got != http.StatusOK {
		t.Errorf("/health: %d: nobody should restart it for that", got)
	}
	s.away.Store(false)
	for range 2 {
		await(t, s.asked, "a look")
	}
	if got := health(); got != http.StatusOK {
		t.Errorf("back: status %d", got)
	}
}
