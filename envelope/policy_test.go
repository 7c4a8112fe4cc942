package envelope

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestExpired is the clock rule as a table. "Ahead" is how far the sender's clock is
// before the receiver's, "age" the true time since the message was made.
func TestExpired(t *testing.T) {
	const (
		ttl  = 10 * time.Minute
		skew = 2 * time.Minute
		ms   = time.Millisecond
	)
	for _, c := range []struct {
		what       string
		ahead, age time.Duration
		expired    bool
	}{
		{"equal clocks, just made", 0, 0, false},
		{"equal clocks, at its ttl", 0, ttl, false},
		{"equal clocks, grace for skew", 0, ttl + skew, false},
		{"equal clocks, past the grace", 0, ttl + skew + ms, true},

		{"sender ahead within skew, just made", skew, 0, false},
		{"sender ahead within skew, lives longest", skew, ttl + 2*skew, false},
		{"sender ahead within skew, past it", skew, ttl + 2*skew + ms, true},
		{"sender ahead too far, just made", skew + ms, 0, true},
		{"sender ahead too far, stamp less than a ttl away", 5 * time.Minute, 0, true},
		{"sender ahead too far, until the clocks meet", 5 * time.Minute, 3*time.Minute - ms, true},
		{"sender ahead too far, within skew by now", 5 * time.Minute, 3 * time.Minute, false},
		{"sender ahead by days", 72 * time.Hour, 0, true},

		{"sender behind within skew, at its ttl", -skew, ttl, false},
		{"sender behind within skew, past it", -skew, ttl + ms, true},
		{"sender behind five minutes, loses three of its ttl", -5 * time.Minute, 7 * time.Minute, false},
		{"sender behind five minutes, past that", -5 * time.Minute, 7*time.Minute + ms, true},
		{"sender behind by its ttl and skew, just made", -ttl - skew, 0, false},
		{"sender behind by more, just made", -ttl - skew - ms, 0, true},
	} {
		e := minimal()
		e.TTL = MillisOf(ttl)
		e.CreatedAt = At(noon.Add(c.ahead))
		if got := e.Expired(noon.Add(c.age), skew); got != c.expired {
			t.Errorf("%s: Expired = %v", c.what, got)
		}
	}

	e := minimal()
	e.TTL = 1
	if e.Expired(noon.Add(time.Millisecond), 0) || !e.Expired(noon.Add(time.Millisecond+1), 0) {
		t.Error("without skew, an envelope lives exactly for its ttl")
	}
	if want := noon.Add(time.Millisecond); !e.ExpiresAt().Equal(want) {
		t.Errorf("ExpiresAt is %v, want %v", e.ExpiresAt(), want)
	}
}

func TestCheckHops(t *testing.T) {
	path := func(names ...string) []Hop {
		var hops []Hop
		for _, n := range names {
			hops = append(hops, Hop{Gateway: n, At: At(noon)})
		}
		return hops
	}
	e := minimal()
	e.MaxHops = 3
	for _, c := range []struct {
		hops []Hop
		want string
	}{
		{nil, ""},
		{path("a", "b", "c"), ""},
		{path("a", "b", "c", "d"), "4 hops, at most 3: a > b > c > d"},
		{path("a", "b", "a"), "loop through a: a > b > a"},
		{path("a", "b", "b"), "loop through b: a > b > b"},
	} {
		got := ""
		if err := e.CheckHops(c.hops); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("CheckHops(%v) = %q, want %q", c.hops, got, c.want)
		}
	}
	var many []Hop
	for i := range 10_000 {
		many = append(many, Hop{Gateway: fmt.Sprintf("gw-%d", i)})
	}
	if err := e.CheckHops(many); err == nil || len(err.Error()) > 2*maxError || !strings.HasSuffix(err.Error(), "...") {
		t.Errorf("a hostile path is not cut: %.100v", err)
	}
}
