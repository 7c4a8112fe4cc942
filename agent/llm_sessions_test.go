package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// A model lists the conversations that it remembers and reads one; of other agents those that it may.
func TestThinkerLooksAtSessions(t *testing.T) {
	w := &wise{}
	tool := ""
	w.answer = func(_ int, p Prompt) (*Completion, error) {
		if tool == "" {
			return answersText("noted"), nil
		}
		if last(p).Text == "" {
			name, args, _ := strings.Cut(tool, " ")
			return wants(name, args), nil
		}
		return answersText(last(p).Text), nil
	}
	var b *bus.Bus
	vendors := Vendors{"test": func(ModelSpec) (Model, error) { return w, nil }}
	deps := Deps{Directory: directory{}, Room: func(ctx context.Context, agent, prefix string) ([]bus.RoomEntry, error) {
		return b.Room(ctx, agent, prefix)
	}}
	handlers := map[string]bus.Handler{}
	for id, of := range map[string][]string{"jerry": {"bob*"}, "bobby": nil} {
		h, err := NewLLM(vendors)(Spec{ID: id, SessionsOf: of, Models: []ModelSpec{{Provider: "p", ID: "m", API: "test", MaxTokens: 500}}}, deps)
		if err != nil {
			t.Fatal(err)
		}
		handlers[id] = h
	}
	m := newMesh(t, bus.RetryPolicy{Initial: time.Millisecond, Max: time.Millisecond, MaxAttempts: 2}, handlers)
	b = m.Bus
	say := func(agent, conversation, text string) string {
		t.Helper()
		tr := m.ask(bus.Outgoing{To: to(agent), Payload: []byte(fmt.Sprintf("%q", text)), ConversationID: conversation})
		if tr.Reply == nil {
			t.Fatalf("%+v", tr.Facts)
		}
		return Text(tr.Reply.Payload)
	}
	say("jerry", "garden", "The roses are red.")
	say("jerry", "kitchen", "The stove is off.")
	say("bobby", "disks", "They are full.")
	for i, c := range []struct {
		by, tool      string
		says, saysNot string
	}{
		{"jerry", `sessions_list {}`, `"key":"agent:jerry:garden"`, "disks"},
		{"jerry", `sessions_list {"limit":1}`, `"count":3,"sessions":[{"key":"agent:jerry:look-0"`, `"key":"agent:jerry:kitchen"`},
		{"jerry", `sessions_list {"activeMinutes":0.000001}`, `"count":0`, "garden"},
		{"jerry", `sessions_history {"sessionKey":"agent:jerry:garden"}`, "The roses are red.", "stove"},
		{"jerry", `sessions_history {"sessionKey":"agent:jerry:garden","limit":1}`, "noted", "roses"},
		{"jerry", `sessions_list {"agentId":"bobby"}`, "agent:bobby:disks", "garden"},
		{"jerry", `sessions_history {"sessionKey":"agent:bobby:disks"}`, "They are full.", ""},
		{"jerry", `sessions_list {"agentId":"billy"}`, "not yours to look at", ""},
		{"bobby", `sessions_list {"agentId":"jerry"}`, "not yours to look at", "garden"},
		{"bobby", `sessions_history {"sessionKey":"agent:jerry:garden"}`, "not yours to look at", "roses"},
		{"jerry", `sessions_history {"sessionKey":"agent:jerry:gone"}`, "there is no session", ""},
		{"jerry", `sessions_history {"sessionKey":"agent:jerry:../../x"}`, "is no session", ""},
		{"jerry", `sessions_history {"sessionKey":7}`, "wrong arguments", ""},
	} {
		tool = c.tool
		got := say(c.by, fmt.Sprintf("look-%d", i), "Look.")
		tool = ""
		if !strings.Contains(got, c.says) || c.saysNot != "" && strings.Contains(got, c.saysNot) {
			t.Errorf("%s by %s: %s", c.tool, c.by, got)
		}
	}
}

// The sessions of a job's isolated runs go after a time of their own.
func TestSessionsAreForgotten(t *testing.T) {
	for retention, want := range map[time.Duration]string{time.Hour: "garden now", 0: "cron-tick-1 garden now"} {
		inHouse(t, Spec{RunRetention: retention}, func(h *house) {
			h.model = func(context.Context, string, Prompt) (*Completion, error) { return answersText("noted"), nil }
			b := h.gateway("one")
			h.jerry(b, 0)
			say := func(conversation string) {
				h.Helper()
				if _, err := b.Send(h.Context(), bus.Outgoing{To: to("jerry"), From: "user", ConversationID: conversation, Payload: []byte(`"x"`), TTL: time.Hour}); err != nil {
					h.Fatal(err)
				}
				h.pass(time.Second)
			}
			names := func() string {
				h.Helper()
				list, err := b.Room(h.Context(), "jerry", SessionsPrefix)
				if err != nil {
					h.Fatal(err)
				}
				var all []string
				for _, e := range list {
					all = append(all, strings.TrimPrefix(e.Name, SessionsPrefix))
				}
				return strings.Join(all, " ")
			}
			say("garden")
			say(RunPrefix + "tick-1")
			h.pass(50 * time.Minute)
			say("early")
			if got := names(); got != "cron-tick-1 early garden" {
				h.Errorf("after 50 minutes: %s", got)
			}
			h.pass(11 * time.Minute)
			say("now")
			if got := strings.Replace(names(), "early ", "", 1); got != want {
				h.Errorf("after 61 minutes, retention %s: %s, want %s", retention, got, want)
			}
			if err := b.Stop(h.Context()); err != nil {
				h.Fatal(err)
			}
		})
	}
}
