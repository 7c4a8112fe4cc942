package gateway

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
)

// What one gateway records, another reads; what somebody wrote by hand is refused until it is cleared.
func TestSharedState(t *testing.T) {
	store := newStore(t)
	one := startNode(t, parseNode(t, "one", config{}, "", echoAgent("bobby")), Deps{Store: store})
	two := startNode(t, parseNode(t, "two", config{}, "", echoAgent("billy")), Deps{Store: store})
	for range 2 { // the same id twice is one event
		if r := one.do("POST", "/v1/state/events", `{"id":"a","agent":"bobby","event":"deployed"}`); r.status != 200 {
			t.Fatalf("record: %d %s", r.status, r.body)
		}
	}
	one.do("POST", "/v1/state/events", `{"agent":"bobby","event":"rolled back"}`)
	list := func(path string) []bus.StateEvent {
		t.Helper()
		r := two.do("GET", path, "")
		var got RecentEventsResponse
		if err := json.Unmarshal(r.body, &got); err != nil || r.status != 200 {
			t.Fatalf("%d %s: %v", r.status, r.body, err)
		}
		return got.Events
	}
	if got := list("/v1/state/events"); len(got) != 2 || got[0].ID != "a" || got[0].Timestamp.IsZero() || got[1].Event != "rolled back" {
		t.Errorf("events %+v", got)
	}
	if got := list("/v1/state/events?limit=1"); len(got) != 1 || got[0].Event != "rolled back" {
		t.Errorf("the newest: %+v", got)
	}
	focus := func(method, body, want string) {
		t.Helper()
		if r := two.do(method, "/v1/state/focus", body); r.status != 200 || strings.TrimSpace(string(r.body)) != want {
			t.Errorf("%s focus: %d %s, want %s", method, r.status, r.body, want)
		}
	}
	focus("GET", "", `{"focus":""}`)
	focus("PUT", `{"focus":"ship it"}`, `{"focus":"ship it"}`)
	focus("GET", "", `{"focus":"ship it"}`)
	focus("DELETE", "", `{"focus":""}`)
	focus("GET", "", `{"focus":""}`)

	const byHand = "disk of node 3 is broken, see Ann"
	if _, err := store.Txn(t.Context(), []bus.Op{{Verb: bus.OpSet, Key: bus.RecentEventsKey, Value: []byte(byHand)}}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []response{one.do("GET", "/v1/state/events", ""), one.do("POST", "/v1/state/events", `{"agent":"bobby","event":"x"}`)} {
		if e := r.err(t); r.status != 409 || e.Code != CodeSpoiled || !strings.Contains(e.Message, bus.RecentEventsKey) || !strings.Contains(e.Message, "state events --clear") {
			t.Errorf("spoiled: %d %+v", r.status, e)
		}
	}
	if v, _ := store.Read(t.Context(), bus.RecentEventsKey); string(v) != byHand {
		t.Errorf("what somebody wrote is gone: %q", v)
	}
	if r := one.do("DELETE", "/v1/state/events", ""); r.status != 200 {
		t.Errorf("clear: %d %s", r.status, r.body)
	}
	if got := list("/v1/state/events"); len(got) != 0 {
		t.Errorf("after clearing: %+v", got)
	}
}
