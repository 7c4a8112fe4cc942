package envelope

import (
	"fmt"
	"strings"
	"time"
)

// DefaultSkew is how far two gateways' clocks may differ before a TTL is judged
// wrongly (design notes, "Time").
const DefaultSkew = 5 * time.Second

// Expired reports whether nobody may act on the envelope at now, by the receiver's clock.
//
// Created_at is the sender's clock, and believed as far as clocks may differ: the
// envelope lives from created_at - skew to created_at + ttl + skew, both included.
// A sender whose clock is slow loses that much of its TTL; one whose clock is
// more than skew ahead is refused at once, because its TTL would be stretched by
// as much. So nobody acts on a message later than ttl + 2*skew after it was made.
func (e *Envelope) Expired(now time.Time, skew time.Duration) bool {
	return now.After(e.ExpiresAt().Add(skew)) || now.Before(e.CreatedAt.Add(-skew))
}

// CheckHops refuses a path that is too long or came back to where it was.
func (e *Envelope) CheckHops(hops []Hop) error {
	if len(hops) > e.MaxHops {
		return fmt.Errorf("%d hops, at most %d: %s", len(hops), e.MaxHops, hopPath(hops))
	}
	for i, h := range hops {
		for _, g := range hops[:i] {
			if g.Gateway == h.Gateway {
				return fmt.Errorf("loop through %s: %s", h.Gateway, hopPath(hops))
			}
		}
	}
	return nil
}

func hopPath(hops []Hop) string {
	names := make([]string, len(hops))
	for i, h := range hops {
		names[i] = h.Gateway
	}
	return clip(strings.Join(names, " > "), maxError)
}
