package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// told is who is told of alerts.
type told struct {
	mu      sync.Mutex
	alerts  []Alert
	arrived chan struct{}
}

func (a *told) Handle(_ context.Context, m *bus.Incoming) error {
	var got Alert
	if m.Envelope().Capability != CapabilityAlert {
		return m.Reply([]byte(`"no alert"`))
	}
	if err := json.Unmarshal(m.Envelope().Payload, &got); err != nil {
		return err
	}
	a.mu.Lock()
	a.alerts = append(a.alerts, got)
	a.mu.Unlock()
	a.arrived <- struct{}{}
	return nil
}

func (a *told) states() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	for _, x := range a.alerts {
		list = append(list, fmt.Sprintf("%d %s", x.Number, x.State))
	}
	return strings.Join(list, ", ")
}

// Each change is told once: however many checks find it at the same time, and whatever a check does before it is acked.
func TestWatch(t *testing.T) {
	var bad atomic.Bool
	var failing atomic.Int32 // checks whose first attempt ends after the alert was prepared
	jerry := &told{arrived: make(chan struct{}, 100)}
	var mu sync.Mutex
	var notes []bus.CheckNote
	spec := Spec{ID: "bobby", Name: "Bobby", Runner: Runner{Alert: "jerry"}}
	deps := Deps{NoteCheck: func(_ context.Context, _ string, n bus.CheckNote) error {
		mu.Lock()
		defer mu.Unlock()
		notes = append(notes, n)
		return nil
	}}
	check := Checks(func(_ context.Context, capability string) (Finding, error) {
		switch {
		case capability == "node.report":
			return Finding{Text: "alert: of another kind", Result: "warning"}, nil
		case bad.Load():
			return Finding{Text: "alert: 1 failed allocations, 0 unhealthy services\nFailed allocations: web", Result: "alert: 1 failed allocations, 0 unhealthy services"}, nil
		}
		return Finding{Text: healthy, Result: healthy}, nil
	}, spec, deps)
	flaky := bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
		err := check.Handle(ctx, m)
		if err == nil && failing.Add(-1) >= 0 {
			return fmt.Errorf("it did not come to the ack")
		}
		return err
	})
	m := newMesh(t, bus.RetryPolicy{Initial: time.Millisecond, Max: time.Millisecond}, map[string]bus.Handler{"bobby": flaky, "jerry": jerry})
	many := func(n int, capability string) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if tr := m.ask(bus.Outgoing{To: to("bobby"), Capability: capability, Payload: []byte(`"go"`), ConversationID: fmt.Sprintf("c%d", i)}); tr.Reply == nil {
					t.Errorf("no answer: %+v", tr.Facts)
				}
			})
		}
		wg.Wait()
	}
	heard := func(want string) {
		t.Helper()
		for jerry.states() != want {
			select {
			case <-jerry.arrived:
			case <-time.After(longest):
				t.Fatalf("told of %q, not %q", jerry.states(), want)
			}
		}
	}
	many(8, "")
	many(2, "node.report")
	if got := jerry.states(); got != "" {
		t.Errorf("told of %q, and all is well", got)
	}
	bad.Store(true)
	failing.Store(3)
	many(8, "")
	heard("1 alert")
	many(8, "")
	bad.Store(false)
	failing.Store(2)
	many(8, "")
	heard("1 alert, 2 all-clear")
	many(4, "")
	bad.Store(true)
	many(1, "")
	heard("1 alert, 2 all-clear, 3 alert")
	many(4, "")
	jerry.mu.Lock()
	first, clear := jerry.alerts[0], jerry.alerts[1]
	jerry.mu.Unlock()
	if !strings.HasPrefix(first.Text, "Bobby: alert: 1 failed") || !strings.Contains(first.Text, "web") || !first.Since.IsZero() {
		t.Errorf("%+v", first)
	}
	if !strings.Contains(clear.Text, "all clear") || !strings.Contains(clear.Text, "1 failed allocations") || clear.Result != healthy || clear.Since.IsZero() {
		t.Errorf("%+v", clear)
	}
	mu.Lock()
	defer mu.Unlock()
	if n := notes[len(notes)-1]; n.Result != "alert: 1 failed allocations, 0 unhealthy services" || n.Alert != n.Result || notes[0].Alert != "" || notes[0].Result != healthy {
		t.Errorf("notes: %+v", notes)
	}
}

// Who is to be told and asked for the check himself reads its answer; the change is told with the next check.
func TestWatchAskedByWhoIsTold(t *testing.T) {
	jerry := &told{arrived: make(chan struct{}, 10)}
	spec := Spec{ID: "bobby", Runner: Runner{Alert: "jerry"}}
	check := Checks(func(context.Context, string) (Finding, error) {
		return Finding{Text: "alert: 0 failed allocations, 1 unhealthy services", Result: "alert: 0 failed allocations, 1 unhealthy services"}, nil
	}, spec, Deps{})
	asks := bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
		if m.Envelope().Capability == CapabilityAlert {
			return jerry.Handle(ctx, m)
		}
		ans, err := m.Ask(ctx, bus.Outgoing{To: to("bobby"), Payload: []byte(`"check"`)})
		if err != nil {
			return err
		}
		return m.Reply(ans.Payload)
	})
	m := newMesh(t, bus.RetryPolicy{}, map[string]bus.Handler{"bobby": check, "jerry": asks})
	if tr := m.ask(bus.Outgoing{To: to("jerry"), Payload: []byte(`"how is it"`)}); tr.Reply == nil || !strings.Contains(string(tr.Reply.Payload), "1 unhealthy") {
		t.Fatalf("%+v", tr)
	}
	if got := jerry.states(); got != "" {
		t.Errorf("told of %q besides", got)
	}
	m.ask(bus.Outgoing{To: to("bobby"), Payload: []byte(`"check"`)})
	select {
	case <-jerry.arrived:
	case <-time.After(longest):
	}
	if got := jerry.states(); got != "1 alert" {
		t.Errorf("told of %q", got)
	}
}
