package envelope

import (
	"errors"
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

func TestCheckPath(t *testing.T) {
	path := func(names ...string) []Hop {
		var hops []Hop
		for _, n := range names {
			agent, gw, _ := strings.Cut(n, "@")
			hops = append(hops, Hop{Gateway: gw, Agent: agent, At: At(noon)})
		}
		return hops
	}
	for _, c := range []struct {
		hops   []Hop
		target string
		want   string
	}{
		{nil, "a", ""},
		{path("a@x", "b@x", "c@y"), "d", ""},
		{path("a@x", "b@y", "c@z", "d@x"), "e", "4 hops, at most 3: a@x > b@y > c@z > d@x > e"},
		{path("a@x", "b@y", "c@z"), "a", "loop, a is on the path already: a@x > b@y > c@z > a"},
		{path("a@x", "b@y", "b@z"), "c", "loop, b is on the path already: a@x > b@y > b@z > c"},
		{path("@x", "@x"), "c", ""}, // agents that nobody named do not repeat
	} {
		err := CheckPath(c.hops, c.target, 3)
		got := ""
		if err != nil {
			got = err.Error()
			var h *HopsError
			if !errors.As(err, &h) || h.Class() != ClassHops {
				t.Errorf("%v is no HopsError of class hops", err)
			}
		}
		if got != c.want {
			t.Errorf("CheckPath(%v, %s) = %q, want %q", c.hops, c.target, got, c.want)
		}
	}
	var many []Hop
	for i := range 1000 {
		many = append(many, Hop{Gateway: "gw", Agent: fmt.Sprintf("agent-%d", i)})
	}
	if err := CheckPath(many, "a", 3); err == nil || len(err.Error()) > 2*maxError || !strings.HasSuffix(err.Error(), "...") {
		t.Errorf("a hostile path is not cut: %.100v", err)
	}
}

func TestExpiredWith(t *testing.T) {
	e := minimal()
	late := e.ExpiresAt().Add(time.Hour)
	if until := At(late.Add(time.Second)); e.ExpiredWith(late, 0, &until) || !e.ExpiredWith(late.Add(2*time.Second), 0, &until) || !e.ExpiredWith(late, 0, nil) {
		t.Error("a redrive's end of life does not replace the envelope's")
	}
}
