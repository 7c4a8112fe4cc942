package envelope

import (
	"fmt"
	"time"
)

// DefaultSkew is how far two gateways' clocks may differ before a TTL is judged
// wrongly (design notes, "Time").
const DefaultSkew = 5 * time.Second

// Expired reports whether nobody may act on the envelope any more, by the receiver's clock.
// The sender's stamp is believed within skew: a message from the future lives
// from now on, so a sender cannot stretch a TTL by a wrong clock by more than skew.
func (e *Envelope) Expired(now time.Time, skew time.Duration) bool {
	return now.After(e.ExpiresAt().Add(skew)) || e.CreatedAt.After(now.Add(skew+e.TTL.Duration()))
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
	s := ""
	for i, h := range hops {
		if i > 0 {
			s += " > "
		}
		s += h.Gateway
	}
	return s
}
