package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

var people = directory{
	{ID: "billy", Name: "Billy", Gateway: "billy-gateway", Capabilities: []string{"node.report"}, Status: bus.StatusActive},
	{ID: "bobby", Name: "Bobby", Gateway: "bobby-gateway", Capabilities: []string{"infra.check", "node.report"}, Status: bus.StatusActive},
	{ID: "bobby-2", Name: "Bobby Tables", Gateway: "bobby-gateway", Capabilities: []string{"sql"}, Status: bus.StatusActive},
	{ID: "jerry", Name: "Jerry", Gateway: "jerry-gateway", Capabilities: []string{"relay"}, Status: bus.StatusActive},
	{ID: "ghost", Gateway: "gone", Capabilities: []string{"haunt.house"}, Status: bus.StatusUnreachable},
}

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		question, capability, from, to, want string
	}{
		{question: "Ask Bobby to check Consul services", want: "bobby infra.check"},
		{question: "ask BOBBY: how is your disk?", want: "bobby node.report"},
		{question: "bobby's node?", want: "bobby node.report"},
		{question: "bobby, hello", want: "bobby "},
		{question: "Jerry, ask Billy about Bobby", want: "billy "},
		{question: "tell bobby@bobby-gateway to check", want: "bobby@bobby-gateway infra.check"},
		{question: "Bobby Tables, drop it", want: "bobby-2 "},
		{question: "bobby-2 drop it", want: "bobby-2 "},
		{question: "ask ghost", want: "ghost "},
		{question: "bobbyx and xbobby", want: ""},
		{question: "check Nomad", want: "bobby infra.check"},
		{question: "is everything healthy?", want: "bobby infra.check"},
		{question: "how much memory is free?", want: "billy node.report"},
		{question: "check the disk", want: "billy node.report"},
		{question: "run infra.check please", want: "bobby infra.check"},
		{question: "node.report.", want: "billy node.report"},
		{question: "please haunt.house", want: ""}, // nobody active has it
		{question: "x", capability: "sql", want: "bobby-2 sql"},
		{question: "bobby, go", capability: "infra.check", want: "bobby infra.check"},
		{question: "what is love?", want: ""},
		{question: "", want: ""},
		{question: "what is love?", to: "billy", want: "billy "},
		{question: "check consul", to: "billy", want: "billy "},
		{question: "check the load", to: "billy", want: "billy node.report"},
		{question: "ask bobby", to: "billy", want: "bobby "},
		{question: "hello", to: "stranger", want: "stranger "},
		{question: "ask bobby", from: "bobby", want: ""}, // never back to who asks
		{question: "prüfe bobby_", want: "bobby "},
	} {
		r := &relay{spec: Spec{ID: "jerry", Runner: Runner{To: tc.to}}, dir: people}
		got := ""
		if c, ok := r.choose(tc.question, tc.capability, tc.from); ok {
			got = envelope.Address{Agent: c.agent, Gateway: c.gateway}.String() + " " + c.capability
		}
		if got != tc.want {
			t.Errorf("%q (capability %q, to %q): %q, want %q", tc.question, tc.capability, tc.to, got, tc.want)
		}
	}
}

func TestHelp(t *testing.T) {
	r := &relay{spec: Spec{ID: "jerry", Name: "Jerry"}, dir: people}
	got := r.help()
	for _, want := range []string{"I am Jerry", "- Bobby on bobby-gateway: infra.check, node.report", "- Bobby Tables (bobby-2) on", "- ghost on gone, not reachable now: haunt.house"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "- Jerry") {
		t.Errorf("it offers itself:\n%s", got)
	}
	if got := (&relay{spec: Spec{ID: "jerry"}, dir: directory{}}).help(); !strings.Contains(got, "No other agent") {
		t.Errorf("alone: %s", got)
	}
}

func handler(f func(context.Context, *bus.Incoming) error) bus.Handler { return bus.HandlerFunc(f) }

// withRelay is a mesh where jerry relays to bobby.
func withRelay(t *testing.T, runner Runner, bobby bus.Handler) *mesh {
	t.Helper()
	r := &relay{spec: Spec{ID: "jerry", Name: "Jerry", Runner: runner}}
	m := newMesh(t, bus.RetryPolicy{MaxAttempts: 1}, map[string]bus.Handler{"bobby": bobby, "jerry": handler(func(ctx context.Context, m *bus.Incoming) error {
		return r.Handle(ctx, m)
	})})
	r.dir = m
	return m
}

func TestRelay(t *testing.T) {
	m := withRelay(t, Runner{}, handler(func(_ context.Context, m *bus.Incoming) error {
		return m.Reply([]byte(`{"text":"all-healthy\nConsul: 3 members","result":"all-healthy","report":{}}`))
	}))
	tr := m.ask(bus.Outgoing{To: to("jerry"), Payload: []byte(`"ask bobby"`)})
	if want := "bobby (on gw): all-healthy\nConsul: 3 members"; tr.Reply.Text() != want {
		t.Errorf("%q, want %q", tr.Reply.Text(), want)
	}
	if tr := m.ask(bus.Outgoing{To: to("jerry"), Payload: []byte(`"hello"`)}); !strings.HasPrefix(tr.Reply.Text(), "I am Jerry") {
		t.Errorf("help: %q", tr.Reply.Text())
	}
	if tr := m.ask(bus.Outgoing{To: to("jerry"), Payload: []byte(`"ask bobby@elsewhere"`)}); !strings.Contains(tr.Reply.Text(), "I cannot ask bobby") {
		t.Errorf("pinned to the wrong gateway: %q", tr.Reply.Text())
	}
}

func TestRelayDeadLetter(t *testing.T) {
	m := withRelay(t, Runner{}, handler(func(context.Context, *bus.Incoming) error {
		return bus.Never(envelope.ClassPoison, errors.New("I will not"))
	}))
	tr := m.ask(bus.Outgoing{To: to("jerry"), Payload: []byte(`"ask bobby"`)})
	if got := tr.Reply.Text(); !strings.Contains(got, "given up (poison: I will not)") || !tr.Facts.Acked {
		t.Errorf("%q %+v", got, tr.Facts)
	}
}

// No answer in time: the reply has the facts, each for itself.
func TestRelayNoAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		runner Runner
		ttl    time.Duration
		want   string
	}{
		"timeout": {Runner{Timeout: 300 * time.Millisecond}, time.Minute, "accepted yes, delivered yes, acked no"},
		"ttl":     {Runner{}, time.Second, "accepted yes, delivered yes, acked no"},
	} {
		t.Run(name, func(t *testing.T) {
			m := withRelay(t, tc.runner, handler(func(ctx context.Context, _ *bus.Incoming) error {
				<-ctx.Done()
				return ctx.Err()
			}))
			tr := m.ask(bus.Outgoing{To: to("jerry"), TTL: tc.ttl, Payload: []byte(`"ask bobby"`)})
			if got := tr.Reply.Text(); !strings.Contains(got, tc.want) {
				t.Errorf("%q", got)
			}
		})
	}
	t.Run("acked without an answer", func(t *testing.T) {
		m := withRelay(t, Runner{Timeout: 300 * time.Millisecond}, handler(func(context.Context, *bus.Incoming) error { return nil }))
		tr := m.ask(bus.Outgoing{To: to("jerry"), Payload: []byte(`"ask bobby"`)})
		if got := tr.Reply.Text(); !strings.Contains(got, "accepted yes, delivered yes, acked yes") {
			t.Errorf("%q", got)
		}
	})
}

// Relays that send each other in circles end.
func TestRelayCircle(t *testing.T) {
	var dir *mesh
	relayTo := func(id, to string) bus.Handler {
		return handler(func(ctx context.Context, m *bus.Incoming) error {
			r := &relay{spec: Spec{ID: id, Runner: Runner{To: to}}, dir: dir}
			return r.Handle(ctx, m)
		})
	}
	dir = newMesh(t, bus.RetryPolicy{}, map[string]bus.Handler{"one": relayTo("one", "two"), "two": relayTo("two", "three"), "three": relayTo("three", "one")})
	tr := dir.ask(bus.Outgoing{To: to("one"), Payload: []byte(`"hello"`)})
	if got := tr.Reply.Text(); !strings.Contains(got, "one@gw > two@gw > three@gw > one") || strings.Count(got, "(on gw)") != 2 {
		t.Errorf("%q", got)
	}
	var none int64
	tr = dir.ask(bus.Outgoing{To: to("one"), Payload: []byte(`"hello"`), Budget: &envelope.Budget{Messages: &none}})
	if got := tr.Reply.Text(); !strings.HasPrefix(got, "I did not ask two: budget: 0 messages are left") {
		t.Errorf("%q", got)
	}
}

// An answer that fits a message but not with its introduction is cut, not lost.
func TestRelayLongAnswer(t *testing.T) {
	m := withRelay(t, Runner{}, handler(func(_ context.Context, m *bus.Incoming) error {
		return m.Reply(envelope.TextPayload(strings.Repeat("ä", envelope.MaxPayload/2-2)))
	}))
	tr := m.ask(bus.Outgoing{To: to("jerry"), Payload: []byte(`"ask bobby"`)})
	if got := tr.Reply.Text(); !strings.HasPrefix(got, "bobby (on gw): ää") || !strings.Contains(got, "too large") {
		t.Errorf("%.100q", got)
	}
}
