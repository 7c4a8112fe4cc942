package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/envelope"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const longest = 20 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	t.Cleanup(cancel)
	return ctx
}

// directory is a fixed list of agents.
type directory []bus.AgentInfo

func (d directory) Agents(capability string) []bus.AgentInfo {
	var list []bus.AgentInfo
	for _, a := range d {
		if capability == "" || strings.Contains(strings.Join(a.Capabilities, " "), capability) {
			list = append(list, a)
		}
	}
	return list
}

// mesh is one gateway with some agents on an embedded store.
type mesh struct {
	*bus.Bus
	t testing.TB
}

// newMesh serves handlers by agent id.
func newMesh(t testing.TB, retry bus.RetryPolicy, handlers map[string]bus.Handler) *mesh {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "mesh.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.New(bus.Config{Gateway: "gw", Store: s, Retry: retry, DrainGrace: time.Millisecond, MaxPayload: envelope.MaxPayload})
	if err != nil {
		t.Fatal(err)
	}
	for id, h := range handlers {
		if err := b.Serve(bus.AgentSpec{ID: id}, h); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(within(t)); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &mesh{b, t}
	for id := range handlers {
		m.waitAgent(id)
	}
	return m
}

func (m *mesh) waitAgent(id string) {
	m.t.Helper()
	ctx := within(m.t)
	for {
		changed := m.RegistryChanged()
		for _, a := range m.Agents("") {
			if a.ID == id && a.Status == bus.StatusActive {
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			m.t.Fatalf("%s does not appear", id)
		}
	}
}

// ask sends a question as a user and waits for the end.
func (m *mesh) ask(out bus.Outgoing) bus.Track {
	m.t.Helper()
	if out.From == "" {
		out.From = "operator"
	}
	s, err := m.AskAPI(within(m.t), out)
	if err != nil {
		m.t.Fatal(err)
	}
	tr, err := m.Await(within(m.t), s.MessageID, func(t bus.Track) bool { return t.Facts.Replied || t.Facts.Dead })
	if err != nil {
		m.t.Fatalf("no answer: %v, %+v", err, tr.Facts)
	}
	return tr
}

func to(agent string) envelope.Address { return envelope.Address{Agent: agent} }

func TestRunners(t *testing.T) {
	r := Builtin()
	for _, tc := range []struct {
		spec Spec
		deps Deps
		want string
	}{
		{Spec{ID: "a", Runner: Runner{Kind: "echo"}}, Deps{}, ""},
		{Spec{ID: "a", Runner: Runner{Kind: "relay"}}, Deps{Directory: directory{}}, ""},
		{Spec{ID: "a", Runner: Runner{Kind: "relay"}}, Deps{}, "needs a directory"},
		{Spec{ID: "a", Runner: Runner{Kind: "relay", To: "a"}}, Deps{Directory: directory{}}, "agent itself"},
		{Spec{ID: "a", Runner: Runner{Kind: "gpt"}}, Deps{}, "one of echo, relay"},
	} {
		h, err := r.New(tc.spec, tc.deps)
		if tc.want == "" && (err != nil || h == nil) || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%+v: %v", tc.spec.Runner, err)
		}
	}
}

func TestText(t *testing.T) {
	for payload, want := range map[string]string{
		`"hi"`: "hi", `{"text":"hi","result":"x"}`: "hi", `{"text":7}`: `{"text":7}`, `{"a":1}`: `{"a":1}`, `[1]`: `[1]`, `null`: `null`, ``: ``, `{"text":""}`: "",
	} {
		if got := Text(json.RawMessage(payload)); got != want {
			t.Errorf("%s: %q", payload, got)
		}
	}
}

func TestEcho(t *testing.T) {
	h, err := NewEcho(Spec{}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	m := newMesh(t, bus.RetryPolicy{}, map[string]bus.Handler{"echo": h})
	if tr := m.ask(bus.Outgoing{To: to("echo"), Payload: []byte(`{"b":1,"a":[2]}`)}); string(tr.Reply.Payload) != `{"b":1,"a":[2]}` {
		t.Errorf("%s", tr.Reply.Payload)
	}
}

func TestChecks(t *testing.T) {
	tries := 0
	h := Checks(func(_ context.Context, capability string) (Finding, error) {
		switch capability {
		case "":
			return Finding{Text: "all is well\nreally", Result: "all-healthy", Report: map[string]int{"nodes": 3}}, nil
		case "flaky":
			if tries++; tries == 1 {
				return Finding{}, errors.New("not now")
			}
			return Finding{Text: "now", Result: "ok"}, nil
		case "huge":
			return Finding{Text: "much", Result: "ok", Report: strings.Repeat("x", envelope.MaxPayload)}, nil
		case "unspeakable":
			return Finding{Text: "x", Report: func() {}}, nil
		}
		return Finding{}, fmt.Errorf("%w: %q", ErrNotOffered, capability)
	}, Spec{ID: "bobby"}, Deps{})
	m := newMesh(t, bus.RetryPolicy{Initial: time.Millisecond, Max: time.Millisecond}, map[string]bus.Handler{"bobby": h})
	ask := func(capability string) bus.Track {
		return m.ask(bus.Outgoing{To: to("bobby"), Capability: capability, Payload: []byte(`"go"`)})
	}
	if got := string(ask("").Reply.Payload); got != `{"text":"all is well\nreally","result":"all-healthy","report":{"nodes":3}}` {
		t.Errorf("payload: %s", got)
	}
	if got := string(ask("flaky").Reply.Payload); got != `{"text":"now","result":"ok"}` {
		t.Errorf("after a retry: %s", got)
	}
	if got := string(ask("huge").Reply.Payload); !strings.Contains(got, "left out") || !strings.Contains(got, `"result":"ok"`) {
		t.Errorf("too large: %.200s", got)
	}
	if f := ask("unspeakable").Facts; f.Class != envelope.ClassPoison {
		t.Errorf("a report that is not JSON: %+v", f)
	}
	if f := ask("dance").Facts; f.Class != envelope.ClassUndeliverable || !strings.Contains(f.Reason, `"dance"`) {
		t.Errorf("not offered: %+v", f)
	}
}
