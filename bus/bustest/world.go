package bustest

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// world is one subtest's mesh.
type world struct {
	*testing.T
	// open returns a client with the rights of a gateway; "" is somebody who may do everything.
	open func(gateway string) bus.Store
	tag  string
	// slow: real servers; what is done for every call is done for some.
	slow  bool
	nodes []*node
	// trust is set when the mesh believes signatures only.
	trust *trusted
	// book is where attacks are written down; nil: nowhere.
	book *book
}

func (w *world) name(s string) string { return s + "-" + w.tag }

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.Context(), longest)
	w.Cleanup(cancel)
	return ctx
}

// node is one gateway.
type node struct {
	*bus.Bus
	w      *world
	store  *FaultyStore
	events chan *bus.Event // pointers: hundreds of nodes each have room for many
	stop   func()
}

type option func(*bus.Config)

// mayDo is who does what in the suite, without the tags of the subtests: stores with access
// rules make them from it.
var mayDo = bus.Topology{
	Gateways: []string{"user", "sender", "three"},
	Agents: map[string][]string{
		"bob":    {"jerry", "bobby", "billy", "first", "second", "third"},
		"bob2":   {"billy"},
		"hub":    {"first", "second"},
		"helper": {"jerry", "billy"},
		"one":    {"bobby"}, "two": {"bobby"}, "three": {"jerry"}, "chair": {"jerry"},
	},
	Queues:  map[string][]string{"chores": {"owner", "heir"}},
	Workers: map[string][]string{"chores": {"one", "two"}},
}

// tagged is the topology of one subtest.
func tagged(t bus.Topology, tag string) bus.Topology {
	list := func(names []string) []string {
		out := make([]string, len(names))
		for i, n := range names {
			out[i] = n + "-" + tag
		}
		return out
	}
	all := func(m map[string][]string) map[string][]string {
		out := map[string][]string{}
		for id, gws := range m {
			out[id+"-"+tag] = list(gws)
		}
		return out
	}
	return bus.Topology{Gateways: list(t.Gateways), Agents: all(t.Agents), Queues: all(t.Queues), Workers: all(t.Workers)}
}

func (w *world) node(name string, opts ...option) *node {
	w.Helper()
	n := &node{w: w, store: Faulty(w.open(w.name(name))), events: make(chan *bus.Event, 1<<16)}
	cfg := bus.Config{
		Gateway: w.name(name), Store: n.store, URL: "http://" + name, Logger: hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Warn, Output: testWriter{w.T}}),
		Observe: func(ev bus.Event) { n.events <- &ev }, Heartbeat: time.Hour, DrainGrace: 100 * time.Millisecond,
		Retry: bus.RetryPolicy{MaxAttempts: 3, Initial: 10 * time.Millisecond, Max: 20 * time.Millisecond},
	}
	if w.trust != nil {
		w.trust.join(&cfg)
	}
	for _, o := range opts {
		o(&cfg)
	}
	b, err := bus.New(cfg)
	if err != nil {
		w.Fatal(err)
	}
	n.Bus = b
	if err := b.Start(w.ctx()); err != nil {
		w.Fatal(err)
	}
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), longest)
			defer cancel()
			n.store.Before(nil)
			n.store.After(nil)
			if err := b.Stop(ctx); err != nil {
				w.Errorf("stop %s: %v", name, err)
			}
		})
	}
	w.Cleanup(n.stop)
	w.nodes = append(w.nodes, n)
	return n
}

type testWriter struct{ t *testing.T }

func (tw testWriter) Write(p []byte) (int, error) {
	tw.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (n *node) serve(agent string, h bus.HandlerFunc, caps ...string) {
	n.w.Helper()
	if err := n.Serve(bus.AgentSpec{ID: n.w.name(agent), Capabilities: caps}, h); err != nil {
		n.w.Fatal(err)
	}
	n.waitFor(func(ev bus.Event) bool { return ev.Event == bus.EventOwned && ev.To == n.w.name(agent) })
}

// waitFor consumes events until one fits.
func (n *node) waitFor(fits func(bus.Event) bool) bus.Event {
	n.w.Helper()
	t := time.NewTimer(longest)
	defer t.Stop()
	for {
		select {
		case ev := <-n.events:
			if fits(*ev) {
				return *ev
			}
		case <-t.C:
			n.w.Fatal("the event did not come")
		}
	}
}

func (n *node) out(to, textBody string) bus.Outgoing {
	return bus.Outgoing{To: envelope.Address{Agent: n.w.name(to)}, From: "user", Payload: envelope.TextPayload(textBody)}
}

func (n *node) send(o bus.Outgoing) *envelope.Sealed {
	n.w.Helper()
	s, err := n.Send(n.w.ctx(), o)
	if err != nil {
		n.w.Fatalf("send: %v", err)
	}
	return s
}

// soon waits for what no event tells of.
func (w *world) soon(what string, holds func() bool) {
	w.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx := w.ctx(); !holds(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.Fatalf("in vain: %s", what)
		}
	}
}

func (n *node) until(id string, done func(bus.Track) bool) bus.Track {
	n.w.Helper()
	tr, err := n.Await(n.w.ctx(), id, done)
	if err != nil {
		n.w.Fatalf("message %s: %v (%s; %+v)", id, err, tr.Facts, tr.Events)
	}
	return tr
}

func acked(t bus.Track) bool   { return t.Facts.Acked }
func replied(t bus.Track) bool { return t.Facts.Replied }
func dead(t bus.Track) bool    { return t.Facts.Dead }

// wait receives from c.
func wait[T any](w *world, c <-chan T, what string) T {
	w.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(longest):
		w.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}
