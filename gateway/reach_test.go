package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

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

// A page leaves a gateway that is cut off, and finds it closed until it is back.
func TestPageLeavesWhoIsCutOff(t *testing.T) {
	s := &behind{Store: newStore(t), asked: make(chan struct{})}
	n := startNode(t, parseChannels(t, "one", config{"channels": config{"webchat": config{}}}, echoAgent("bob")), Deps{Store: s})
	const conversation = "6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d01"
	c := n.chat(conversation, 0)
	await(t, s.asked, "a look")
	s.away.Store(true)
	await(t, s.asked, "a look")
	await(t, s.asked, "a look") // the one before this one has been judged
	long := time.Now().Add(-2 * cutOffAfter)
	n.reached.Store(&long)
	for {
		if _, _, err := c.Read(within(t)); err != nil {
			if code := websocket.CloseStatus(err); code != websocket.StatusTryAgainLater {
				t.Errorf("%v", err)
			}
			break
		}
	}
	dial := func() int {
		c, resp, err := websocket.Dial(within(t), "ws"+strings.TrimPrefix(n.url, "http")+"/v1/webchat?conversation="+conversation, &websocket.DialOptions{Subprotocols: []string{StreamProtocol}})
		if err == nil {
			_ = c.CloseNow()
		}
		return resp.StatusCode
	}
	if got := dial(); got != http.StatusServiceUnavailable {
		t.Errorf("cut off: status %d", got)
	}
	s.away.Store(false)
	await(t, s.asked, "a look")
	await(t, s.asked, "a look")
	if got := dial(); got != http.StatusSwitchingProtocols {
		t.Errorf("back: status %d", got)
	}
}
