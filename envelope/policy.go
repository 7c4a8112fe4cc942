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

// ExpiredWith is Expired with another end of life, when extended is one: what an operator's redrive gave.
func (e *Envelope) ExpiredWith(now time.Time, skew time.Duration, extended *Time) bool {
	if extended != nil {
		return now.After(extended.Add(skew))
	}
	return e.Expired(now, skew)
}

// A HopsError refuses a path that is too long or comes back to where it was.
type HopsError struct{ Reason, Path string }

func (e *HopsError) Error() string { return e.Reason + ": " + e.Path }

// Class is [ClassHops]: the path does not get shorter.
func (e *HopsError) Class() Class { return ClassHops }

// CheckPath judges whether target may get what came by hops, as *[HopsError]: no more than maxHops agents
// have passed it on, and none of them twice, target included.
func CheckPath(hops []Hop, target string, maxHops int) error {
	for i, h := range hops {
		again := h.Agent != "" && h.Agent == target
		for _, g := range hops[:i] {
			again = again || h.Agent != "" && g.Agent == h.Agent
		}
		if again {
			return &HopsError{"loop, " + h.Agent + " is on the path already", PathText(hops, target)}
		}
	}
	if len(hops) > maxHops {
		return &HopsError{fmt.Sprintf("%d hops, at most %d", len(hops), maxHops), PathText(hops, target)}
	}
	return nil
}

// PathText shows a path: jerry@gw-a > bobby@gw-b > billy.
func PathText(hops []Hop, target string) string {
	names := make([]string, 0, len(hops)+1)
	for _, h := range hops {
		names = append(names, strings.TrimPrefix(h.Agent+"@"+h.Gateway, "@"))
	}
	return clip(strings.Join(append(names, target), " > "), maxError)
}
