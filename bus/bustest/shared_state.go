package bustest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/gatemesh/gatemesh/bus"
)

// sharedState: several gateways write the ring at once, and replies are lost. Every event is there once; beyond the
// bound the oldest go; each writer's are in its order.
func sharedState(w *world) {
	nodes := []*node{w.node("one"), w.node("two"), w.node("three")}
	w.clearState(nodes[0])
	const each = 30 // 90 in all: below the bound, so that none may be missing
	for _, n := range nodes {
		var puts atomic.Int64
		n.store.After(func(call string, _ []bus.Op) error {
			if call == CallPut && puts.Add(1)%5 == 0 {
				return fmt.Errorf("%w: the test lost the reply", bus.ErrUnavailable)
			}
			return nil
		})
	}
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for k := range each {
				w.record(n, bus.StateEvent{ID: fmt.Sprintf("%d-%d", i, k), Agent: fmt.Sprintf("agent-%d", i), Event: fmt.Sprint(k)})
			}
		}()
	}
	wg.Wait()
	for _, n := range nodes {
		n.store.After(nil)
	}
	ring, err := nodes[1].RecentEvents(w.ctx())
	if err != nil || len(ring) != each*len(nodes) {
		w.Fatalf("%d events, want %d: %v", len(ring), each*len(nodes), err)
	}
	next := map[string]int{}
	for _, e := range ring {
		if e.Event != fmt.Sprint(next[e.Agent]) {
			w.Fatalf("%s: event %s after %d: lost, doubled or out of order", e.Agent, e.Event, next[e.Agent]-1)
		}
		next[e.Agent]++
	}
	for k := range 20 {
		w.record(nodes[0], bus.StateEvent{Agent: "late", Event: fmt.Sprint(k)})
	}
	if ring, err = nodes[2].RecentEvents(w.ctx()); err != nil || len(ring) != bus.MaxRecentEvents || ring[len(ring)-1].Event != "19" {
		w.Errorf("the bound: %d events, %v", len(ring), err)
	}
	if err := nodes[0].SetFocus(w.ctx(), "ship it"); err != nil {
		w.Fatal(err)
	}
	if f, err := nodes[1].Focus(w.ctx()); err != nil || f != "ship it" {
		w.Errorf("focus %q, %v", f, err)
	}
	w.clearState(nodes[0])
}

// record does what a client does: once more under the same id when others were first too often.
func (w *world) record(n *node, e bus.StateEvent) {
	var err error
	for range 5 {
		if e, err = n.RecordEvent(w.ctx(), e); err == nil {
			return
		}
	}
	w.Errorf("record %+v: %v", e, err)
}

// clearState empties the two keys, which all worlds of a store share.
func (w *world) clearState(n *node) {
	ctx := context.WithoutCancel(w.ctx())
	if err := n.ClearEvents(ctx); err != nil {
		w.Fatal(err)
	}
	if err := n.SetFocus(ctx, ""); err != nil {
		w.Fatal(err)
	}
}
