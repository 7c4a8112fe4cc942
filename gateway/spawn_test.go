package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// spawner is a model that has bobby do what it is asked.
type spawner struct{}

func (spawner) Generate(_ context.Context, p agent.Prompt, _ func(string)) (*agent.Completion, error) {
	m := p.Messages[len(p.Messages)-1]
	switch {
	case strings.Contains(m.Text, "has ended"):
		return &agent.Completion{Text: "It is over: " + strings.Split(m.Text, "\n")[1]}, nil
	case strings.Contains(p.System, "This is a sub-session"):
		return &agent.Completion{Text: "done: " + m.Text}, nil
	case len(m.Results) > 0:
		return &agent.Completion{Text: "I have had it begun."}, nil
	}
	return &agent.Completion{Calls: []agent.ToolCall{{ID: "c", Name: "sessions_spawn", Arguments: json.RawMessage(`{"task":"look","label":"a look","agentId":"bobby"}`)}}}, nil
}

// A person in a chat, on one gateway, has an agent on another one start a run of an agent on a third, and reads the answer and then, in the same chat, what
// came of the run. The policy knows who may ask whom, and nothing of what an agent says to itself.
func TestSpawnFromAChat(t *testing.T) {
	s := newStore(t)
	thinks := func(id, gateway string) config {
		return config{"id": id, "gateways": []string{gateway}, "model": "stub/m", "subagents": config{"allowAgents": []string{"bob*"}}}
	}
	extra := func(gateway string) config {
		return config{
			"mesh": config{"gateway": gateway, "store": "local", "policy": config{"rules": []config{
				{"from": "channel-*", "to": "jerry"}, {"from": "jerry", "to": "bobby"}, {"from": "jerry", "to": "channel-*", "capability": CapabilityPost},
			}}},
			"channels": config{"webchat": config{"gateways": []string{"one"}}},
			"models":   config{"providers": config{"stub": config{"baseUrl": "http://127.0.0.1:9", "apiKey": "k", "api": "openai-completions", "models": []config{{"id": "m"}}}}},
		}
	}
	runners := agent.Builtin()
	runners["llm"] = agent.NewLLM(agent.Vendors{agent.APIOpenAI: func(agent.ModelSpec) (agent.Model, error) { return spawner{}, nil }})
	var nodes []*node
	for _, name := range []string{"one", "two", "three"} {
		nodes = append(nodes, startNode(t, parseChannels(t, name, extra(name), thinks("jerry", "two"), thinks("bobby", "three")), Deps{Store: s, Runners: runners}))
	}
	nodes[0].waitAgent("jerry", "two")
	nodes[1].waitAgent("bobby", "three")
	c := nodes[0].chat("6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d01", 0)
	say(t, c, "6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d02", "Have Bobby look.")
	var texts []string
	for _, e := range entries(t, c, 3) {
		texts = append(texts, e.Text)
	}
	if want := []string{"Have Bobby look.", "I have had it begun.", "It is over: done: look"}; !slices.Equal(texts, want) {
		t.Errorf("%q, want %q", texts, want)
	}
	_ = c.Close(websocket.StatusNormalClosure, "")
	var list SessionsResponse
	nodes[0].do(http.MethodGet, "/v1/sessions?agent=bobby", "").into(t, &list)
	if len(list.Sessions) != 1 || list.Sessions[0].Status != agent.SubDone || list.Sessions[0].Label != "a look" || !strings.HasPrefix(list.Sessions[0].SpawnedBy, "agent:jerry:") {
		t.Fatalf("%+v", list)
	}
	var session agent.Session
	_, name, _ := strings.Cut(strings.TrimPrefix(list.Sessions[0].Key, "agent:"), ":")
	nodes[0].do(http.MethodGet, "/v1/sessions/bobby/"+name, "").into(t, &session)
	if session.Key != list.Sessions[0].Key || len(session.Messages) != 2 {
		t.Errorf("%s: %+v", name, session)
	}
}

// What an agent says to itself passes whatever gateway had it before; nobody else says it, and no client of the API does.
func TestContinues(t *testing.T) {
	p, err := NewPolicy(PolicyConfig{}, "two")
	if err != nil {
		t.Fatal(err)
	}
	n := startNode(t, parseNode(t, "one", nil, "", echoAgent("bob")), Deps{Store: newStore(t)})
	for _, capability := range []string{agent.CapabilitySpawn, agent.CapabilityRun, agent.CapabilityAnnounce} {
		for from, allowed := range map[string]bool{"jerry": true, "bobby": false} {
			if v := p.Explain(bus.Invocation{From: envelope.Address{Agent: from, Gateway: "one"}, To: "jerry", Gateway: "two", Capability: capability}); v.Allowed != allowed {
				t.Errorf("%s by %s: %+v", capability, from, v)
			}
		}
		body, _ := json.Marshal(SendRequest{From: "bob", To: "bob", Capability: capability, Payload: json.RawMessage(`"x"`)})
		if r := n.do(http.MethodPost, "/v1/messages", string(body)); r.status != http.StatusBadRequest || r.err(t).Field != "capability" {
			t.Errorf("%s by a client: %d", capability, r.status)
		}
	}
}

// A run is bound by its own time, not by how long an attempt of its agent may take.
func TestRunsOutlastAnAttempt(t *testing.T) {
	l := &liveAgent{}
	bounded := map[string]bool{}
	l.set(bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
		_, bounded[m.Envelope().Capability] = ctx.Deadline()
		return nil
	}), time.Minute)
	s := newStore(t)
	b, err := bus.New(bus.Config{Gateway: "gw", Store: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(bus.AgentSpec{ID: "jerry"}, l); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	for _, capability := range []string{agent.CapabilitySpawn, agent.CapabilityRun} {
		e, err := b.Send(within(t), bus.Outgoing{From: "jerry", To: envelope.Address{Agent: "jerry"}, Capability: capability, Payload: envelope.TextPayload("x")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Await(within(t), e.MessageID, func(t bus.Track) bool { return t.Facts.Acked }); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	if bounded[agent.CapabilitySpawn] || !bounded[agent.CapabilityRun] {
		t.Errorf("%v", bounded)
	}
}
