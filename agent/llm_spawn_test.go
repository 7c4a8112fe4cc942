package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/envelope"
)

// script is a model that answers by a function of the newest thing said.
type script func(ctx context.Context, said string, p Prompt) (*Completion, error)

func (s script) Generate(ctx context.Context, p Prompt, _ func(string)) (*Completion, error) {
	m := p.Messages[len(p.Messages)-1]
	said := m.Text
	for _, r := range m.Results {
		said += r.Text
	}
	return s(ctx, said, p)
}

// house is a mesh in fake time, on the real embedded store: gateways that may have jerry, and a chat that keeps what is posted in it.
type house struct {
	*testing.T
	store bus.Store
	model script
	spec  Spec
	tools []Tool

	mu    sync.Mutex
	posts []string
	faces map[string]*bustest.FaultyStore
}

func inHouse(t *testing.T, spec Spec, f func(h *house)) {
	path := filepath.Join(t.TempDir(), "mesh.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := local.Open(path, local.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		spec.ID, spec.Models = "jerry", []ModelSpec{{Provider: "p", ID: "m", API: "test", MaxTokens: 500}, {Provider: "p", ID: "other", API: "test", MaxTokens: 500}}
		f(&house{T: t, store: s, spec: spec, faces: map[string]*bustest.FaultyStore{}})
	})
}

func (h *house) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (h *house) gateway(name string) *bus.Bus {
	h.Helper()
	h.faces[name] = bustest.Faulty(h.store)
	b, err := bus.New(bus.Config{Gateway: name, Store: h.faces[name], DrainGrace: time.Millisecond, MaxPayload: envelope.MaxPayload})
	if err != nil {
		h.Fatal(err)
	}
	if err := b.Start(h.Context()); err != nil {
		h.Fatal(err)
	}
	synctest.Wait()
	return b
}

// jerry thinks at a gateway, with the house's model.
func (h *house) jerry(b *bus.Bus, rank int) {
	h.Helper()
	deps := Deps{
		Gateway: b.Gateway(), Directory: directory{{ID: "jerry"}, {ID: "bobby"}, {ID: "billy"}}, Room: b.Room,
		Place: func(e *envelope.Sealed) (Place, bool) { return Place{Inbox: e.SourceAgent}, e.SourceAgent == "chat" },
		Post: func(p Place, text string) bus.Outgoing {
			return bus.Outgoing{To: to(p.Inbox), Payload: envelope.TextPayload(text), Capability: "post"}
		},
	}
	handler, err := NewLLM(Vendors{"test": func(m ModelSpec) (Model, error) {
		return script(func(ctx context.Context, said string, p Prompt) (*Completion, error) {
			return h.model(ctx, said, Prompt{System: p.System + "\nmodel: " + m.ID, Messages: p.Messages, Tools: p.Tools})
		}), nil
	}}, func(Spec, Deps) (Toolset, error) { return toolset(h.tools), nil })(h.spec, deps)
	if err != nil {
		h.Fatal(err)
	}
	// One place: a run must not need it while it waits for one of the same agent.
	if err := b.Serve(bus.AgentSpec{ID: "jerry", Rank: rank, MaxConcurrent: 1, OneOrder: true, Waits: Waits}, handler); err != nil {
		h.Fatal(err)
	}
	synctest.Wait()
}

func (h *house) serve(b *bus.Bus, id string, f bus.HandlerFunc) {
	h.Helper()
	if err := b.Serve(bus.AgentSpec{ID: id}, f); err != nil {
		h.Fatal(err)
	}
	synctest.Wait()
}

// chat asks jerry things in a conversation, and keeps what it is told to post.
func (h *house) chat(b *bus.Bus) {
	h.serve(b, "chat", func(ctx context.Context, m *bus.Incoming) error {
		if m.Envelope().Capability == "post" {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.posts = append(h.posts, Text(m.Envelope().Payload))
			return nil
		}
		answer, err := m.Ask(ctx, bus.Outgoing{To: to("jerry"), ConversationID: "garden", Payload: m.Envelope().Payload, TTL: time.Hour})
		if err != nil {
			return err
		}
		h.mu.Lock()
		h.posts = append(h.posts, Text(answer.Payload))
		h.mu.Unlock()
		return nil
	})
}

func (h *house) say(b *bus.Bus, text string, change func(*bus.Outgoing)) {
	h.Helper()
	o := bus.Outgoing{To: to("chat"), From: "user", Payload: envelope.TextPayload(text), TTL: time.Hour}
	if change != nil {
		change(&o)
	}
	if _, err := b.Send(h.Context(), o); err != nil {
		h.Fatal(err)
	}
	synctest.Wait()
}

func (h *house) posted() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.posts, " | ")
}

// subs are the sub-sessions of an agent.
func (h *house) subs(b *bus.Bus) (list []Session) {
	h.Helper()
	entries, err := b.Room(h.Context(), "jerry", SessionsPrefix)
	if err != nil {
		h.Fatal(err)
	}
	for _, e := range entries {
		var s Session
		if json.Unmarshal(e.Value, &s) == nil && s.Sub != nil {
			list = append(list, s)
		}
	}
	return list
}

// crash ends a gateway as a killed process would: it does nothing more, and its session ends.
func (h *house) crash(name string) {
	h.Helper()
	gone := fmt.Errorf("%w: crashed by the test", bus.ErrUnavailable)
	p, err := h.store.Get(h.Context(), bus.Root+"owners/gateways/"+name)
	if err != nil || p == nil {
		h.Fatal(p, err)
	}
	h.faces[name].Before(func(string, []bus.Op) error { return gone })
	if err := h.store.DestroySession(h.Context(), p.Session); err != nil {
		h.Fatal(err)
	}
}

func (h *house) stop(bs ...*bus.Bus) {
	for _, b := range bs {
		h.faces[b.Gateway()].Before(nil)
		if err := b.Stop(context.Background()); err != nil {
			h.Error(err)
		}
	}
}

func callsSpawn(args string) *Completion { return wants("sessions_spawn", args) }

// gardener starts a run when it is asked for the roses, does it when it is one, and tells of its result.
func gardener(spawn string, work script) script {
	return func(ctx context.Context, said string, p Prompt) (*Completion, error) {
		switch {
		case strings.Contains(said, "has ended"):
			return answersText("I hear: " + strings.Split(said, "\n")[1]), nil
		case strings.Contains(said, "accepted"):
			return answersText("I am on it."), nil
		case strings.Contains(said, "forbidden"), strings.Contains(said, `"status":"error"`), strings.Contains(said, "there is no tool"):
			return answersText("refused: " + said), nil
		case strings.Contains(p.System, "This is a sub-session"):
			return work(ctx, said, p)
		}
		return callsSpawn(spawn), nil
	}
}

// A run begins when the turn that asked for it is over, works in a session of its own without the tools of sessions, and what came of it is told once, in the conversation
// and in the chat that it came from. All of that with one place for work.
func TestSpawn(t *testing.T) {
	inHouse(t, Spec{}, func(h *house) {
		release := make(chan struct{})
		var tools []string
		var told Prompt
		h.model = gardener(`{"task":"count the roses","label":"roses","model":"p/other"}`, func(_ context.Context, said string, p Prompt) (*Completion, error) {
			if said != "count the roses" || len(p.Messages) != 1 || !strings.Contains(p.System, "model: other") {
				h.Errorf("the run was told %q, %d messages: %s", said, len(p.Messages), p.System)
			}
			for _, d := range p.Tools {
				tools = append(tools, d.Name)
			}
			<-release
			return answersText("There are seven."), nil
		})
		inner := h.model
		h.model = func(ctx context.Context, said string, p Prompt) (*Completion, error) {
			if strings.Contains(said, "has ended") {
				told = p
			}
			return inner(ctx, said, p)
		}
		b := h.gateway("one")
		h.jerry(b, 0)
		h.chat(b)
		h.say(b, "How many roses are there?", nil)
		h.pass(time.Second)
		if got := h.posted(); got != "I am on it." {
			h.Errorf("the answer: %s", got)
		}
		subs := h.subs(b)
		if len(subs) != 1 || subs[0].Sub.StatusAt(time.Now()) != SubRunning || subs[0].Sub.Label != "roses" || subs[0].Sub.SpawnedBy != "agent:jerry:garden" ||
			!strings.HasPrefix(subs[0].Key, "agent:jerry:subagent:") {
			h.Fatalf("while it runs: %+v", subs)
		}
		close(release)
		h.pass(time.Second)
		if got := h.posted(); got != "I am on it. | I hear: There are seven." {
			h.Errorf("posts: %s", got)
		}
		if slices.ContainsFunc(tools, func(n string) bool { return strings.HasPrefix(n, "sessions_") }) || !slices.Contains(tools, "agents_list") {
			h.Errorf("the run has the tools %v", tools)
		}
		if n := len(told.Messages); n != 5 || !strings.Contains(told.Messages[2].Results[0].Text, `"childSessionKey":"`+subs[0].Key+`"`) ||
			!strings.HasPrefix(told.Messages[4].Text, `[The run "roses" that you started has ended: ok. Run `) {
			h.Errorf("the announcement came into %d messages: %+v", n, told.Messages)
		}
		if subs = h.subs(b); len(subs) != 1 || subs[0].Sub.Status != SubDone || len(subs[0].Messages) != 2 {
			h.Errorf("afterwards: %+v", subs)
		}
		h.pass(2 * time.Hour)
		if h.posted() != "I am on it. | I hear: There are seven." {
			h.Errorf("later: %s", h.posted())
		}
		h.stop(b)
	})
}

// Whenever the owner dies, the run is done and told of, once: in the middle of the turn that asks for it, of the run, of the telling.
func TestSpawnSurvivesItsOwner(t *testing.T) {
	for _, at := range []string{"asking", "working", "telling"} {
		t.Run(at, func(t *testing.T) {
			inHouse(t, Spec{}, func(h *house) {
				reached := make(chan struct{})
				ended := make(chan struct{})
				var died atomic.Bool
				die := func(where string) {
					if where == at && died.CompareAndSwap(false, true) {
						close(reached)
						<-ended // the process does not come back from there
					}
				}
				work := func(context.Context, string, Prompt) (*Completion, error) {
					die("working")
					return answersText("There are seven."), nil
				}
				garden := gardener(`{"task":"count the roses"}`, work)
				h.model = func(ctx context.Context, said string, p Prompt) (*Completion, error) {
					switch {
					case strings.Contains(said, "accepted"):
						die("asking")
					case strings.Contains(said, "has ended"):
						die("telling")
					}
					return garden(ctx, said, p)
				}
				one, two, three := h.gateway("one"), h.gateway("two"), h.gateway("three")
				h.jerry(one, 0)
				h.jerry(two, 1)
				h.chat(three)
				h.say(three, "How many roses are there?", nil)
				<-reached
				h.crash("one")
				h.pass(10 * time.Minute)
				if got := h.posted(); got != "I am on it. | I hear: There are seven." {
					h.Errorf("posts: %s", got)
				}
				if subs := h.subs(two); len(subs) != 1 || subs[0].Sub.Status != SubDone {
					h.Errorf("sub-sessions: %+v", subs)
				}
				close(ended)
				h.stop(two, three)
				h.stopCrashed(one)
			})
		})
	}
}

// A turn that goes on where an earlier attempt ended begins the runs that it was told are accepted.
func TestSpawnOfATurnThatGoesOn(t *testing.T) {
	inHouse(t, Spec{}, func(h *house) {
		touched, failures := 0, 0
		h.tools = []Tool{{ToolDef: ToolDef{"touch", "", json.RawMessage(`{"type":"object"}`)}, Effect: EffectOutside, Run: func(context.Context, *Call) (ToolOutput, error) {
			touched++
			return ToolOutput{Text: "touched"}, nil
		}}}
		h.model = func(_ context.Context, said string, p Prompt) (*Completion, error) {
			switch {
			case strings.Contains(p.System, "This is a sub-session"):
				return answersText("There are seven."), nil
			case strings.Contains(said, "has ended"):
				return answersText("I hear: " + strings.Split(said, "\n")[1]), nil
			case strings.Contains(said, "touched") && failures < 6: // all tries of both models
				failures++
				return nil, &ModelError{Fault: FaultOverloaded, Model: "p/m"}
			case strings.Contains(said, "touched"):
				return answersText("I am on it."), nil
			}
			calls := []ToolCall{{ID: "a", Name: "sessions_spawn", Arguments: json.RawMessage(`{"task":"count"}`)}, {ID: "b", Name: "touch", Arguments: json.RawMessage(`{}`)}}
			return &Completion{Calls: calls}, nil
		}
		b := h.gateway("one")
		h.jerry(b, 0)
		h.chat(b)
		h.say(b, "go", nil)
		h.pass(10 * time.Minute)
		if got := h.posted(); got != "I am on it. | I hear: There are seven." || touched != 1 || failures != 6 || len(h.subs(b)) != 1 {
			h.Errorf("%s; touched %d times, %d failures, %d runs", got, touched, failures, len(h.subs(b)))
		}
		h.stop(b)
	})
}

// stopCrashed ends what is left of a process that only this test keeps.
func (h *house) stopCrashed(b *bus.Bus) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = b.Stop(ctx)
}

// Across gateways: an agent that may be had do things does them on its own gateway, and what goes wrong there is told.
func TestSpawnAcrossGateways(t *testing.T) {
	for name, c := range map[string]struct {
		work bus.HandlerFunc
		want string
	}{
		"answer": {func(_ context.Context, m *bus.Incoming) error {
			return m.Reply(envelope.TextPayload("done: " + Text(m.Envelope().Payload) + " from " + m.Envelope().SourceGateway))
		}, "done: look at the disks from one"},
		"dead letter": {func(context.Context, *bus.Incoming) error {
			return bus.Never(envelope.ClassPoison, errors.New("no disks here"))
		}, "poison: no disks here"},
		"silence": {func(ctx context.Context, _ *bus.Incoming) error {
			<-ctx.Done()
			return ctx.Err()
		}, "There was no answer in the time of the run; known is: accepted, delivered"},
	} {
		t.Run(name, func(t *testing.T) {
			inHouse(t, Spec{SpawnAgents: []string{"bob*"}}, func(h *house) {
				h.model = gardener(`{"task":"look at the disks","agentId":"bobby","runTimeoutSeconds":2}`, nil)
				one, two := h.gateway("one"), h.gateway("two")
				h.jerry(one, 0)
				h.chat(two)
				var budget *envelope.Budget
				h.serve(two, "bobby", func(ctx context.Context, m *bus.Incoming) error {
					budget = m.Budget()
					return c.work(ctx, m)
				})
				forty := int64(40)
				h.say(two, "Are the disks well?", func(o *bus.Outgoing) { o.Budget = &envelope.Budget{Messages: &forty} })
				h.pass(10 * time.Minute)
				if got := h.posted(); got != "I am on it. | I hear: "+c.want {
					h.Errorf("posts: %s", got)
				}
				if budget == nil || budget.Messages == nil || *budget.Messages < 5 || *budget.Messages > 10 {
					h.Errorf("the run had the budget %+v, want a quarter", budget)
				}
				h.stop(one, two)
			})
		})
	}
}

// A run that takes longer than it may is stopped, and told of as that; its transcript goes when that is wanted.
func TestSpawnTimeout(t *testing.T) {
	inHouse(t, Spec{}, func(h *house) {
		h.model = gardener(`{"task":"wait","runTimeoutSeconds":2,"cleanup":"delete"}`, func(ctx context.Context, _ string, _ Prompt) (*Completion, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		b := h.gateway("one")
		h.jerry(b, 0)
		h.chat(b)
		h.say(b, "Wait!", nil)
		h.pass(time.Second)
		if len(h.subs(b)) != 1 {
			h.Error("a run whose transcript is not kept is not listed while it runs")
		}
		h.pass(2 * time.Second)
		if got := h.posted(); got != "I am on it. | I hear: The run was stopped after 2 seconds." {
			h.Errorf("posts: %s", got)
		}
		if subs := h.subs(b); len(subs) != 0 {
			h.Errorf("kept: %+v", subs)
		}
		h.stop(b)
	})
}

// What is not allowed, or makes no sense, is said to the model, and nothing begins.
func TestSpawnRefused(t *testing.T) {
	for args, want := range map[string]string{
		`{"task":"x","agentId":"billy"}`:                "billy is not an agent that you may have do things (subagents.allowAgents)",
		`{"task":"x","agentId":"bobo"}`:                 "there is no agent bobo",
		`{"task":" "}`:                                  "task is what is to be done",
		`{"task":"x","runTimeoutSeconds":-1}`:           "runTimeoutSeconds is -1",
		`{"task":"x","cleanup":"maybe"}`:                "cleanup is keep or delete",
		`{"task":"x","model":"p/none"}`:                 "p/none is none of your models",
		`{"task":"x","runTimeoutSeconds":1000000000.0}`: "want 0 to 82800",
	} {
		inHouse(t, Spec{SpawnAgents: []string{"bob*"}}, func(h *house) {
			h.model = gardener(args, func(context.Context, string, Prompt) (*Completion, error) { return nil, errors.New("it ran") })
			b := h.gateway("one")
			h.jerry(b, 0)
			h.chat(b)
			h.say(b, "go", nil)
			h.pass(time.Minute)
			if got := h.posted(); !strings.HasPrefix(got, "refused: ") || !strings.Contains(got, want) || len(h.subs(b)) != 0 {
				h.Errorf("%s: %s", args, got)
			}
			h.stop(b)
		})
	}
}

// A sub-session starts nothing, and announcements that start runs come to an end.
func TestSpawnDepth(t *testing.T) {
	inHouse(t, Spec{}, func(h *house) {
		h.model = gardener(`{"task":"x"}`, func(_ context.Context, said string, p Prompt) (*Completion, error) {
			if len(p.Messages) == 1 {
				return callsSpawn(`{"task":"deeper"}`), nil
			}
			return nil, errors.New(said) // gardener answers before
		})
		b := h.gateway("one")
		h.jerry(b, 0)
		h.chat(b)
		h.say(b, "go", nil)
		h.pass(time.Minute)
		if got := h.posted(); got != `I am on it. | I hear: refused: there is no tool "sessions_spawn"` || len(h.subs(b)) != 1 {
			h.Errorf("%s, %d", got, len(h.subs(b)))
		}
		runs := 0
		h.model = func(_ context.Context, said string, p Prompt) (*Completion, error) {
			switch {
			case strings.Contains(p.System, "This is a sub-session"):
				runs++
				return answersText("and on"), nil
			case strings.Contains(said, "accepted"):
				return answersText("NO_REPLY"), nil
			case strings.Contains(said, "forbidden"):
				return answersText(said), nil
			}
			return callsSpawn(`{"task":"x"}`), nil
		}
		h.say(b, "for ever", nil)
		h.pass(time.Minute)
		if got := h.posted(); runs != maxRounds || !strings.Contains(got, "runs have followed from results of runs 5 times") || strings.Count(got, "NO_REPLY") != 1 {
			h.Errorf("%d runs, %s", runs, got)
		}
		h.stop(b)
	})
}

// What an agent says to itself is not for others to say: neither a run nor an announcement.
func TestSpawnIsTheAgentsOwn(t *testing.T) {
	inHouse(t, Spec{}, func(h *house) {
		h.model = func(_ context.Context, said string, _ Prompt) (*Completion, error) {
			return answersText("I heard " + said), nil
		}
		b := h.gateway("one")
		h.jerry(b, 0)
		h.chat(b)
		order := mustJSON(spawnOrder{Agent: "jerry", Conversation: "garden", runOrder: runOrder{Task: "x"}, Place: &Place{Inbox: "chat"}})
		s, err := b.Send(h.Context(), bus.Outgoing{To: to("jerry"), From: "bobby", Capability: CapabilitySpawn, Payload: order})
		if err != nil {
			h.Fatal(err)
		}
		if _, err := b.Send(h.Context(), bus.Outgoing{To: to("jerry"), From: "bobby", Capability: CapabilityAnnounce, Payload: mustJSON(announcement{Text: "hi", Place: &Place{Inbox: "chat"}})}); err != nil {
			h.Fatal(err)
		}
		h.pass(time.Minute)
		if tr, _, _ := b.Track(s.MessageID); tr.Facts.Class != envelope.ClassUnauthorised || h.posted() != "" || len(h.subs(b)) != 0 {
			h.Errorf("%+v, posted %q", tr.Facts, h.posted())
		}
		h.stop(b)
	})
}
