package agent

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// wise is a model that answers by a function; what it was asked is kept.
type wise struct {
	mu     sync.Mutex
	seen   []Prompt
	answer func(n int, p Prompt) (*Completion, error)
}

func (w *wise) Generate(_ context.Context, p Prompt, _ func(string)) (*Completion, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, p)
	return w.answer(len(w.seen), p)
}

func (w *wise) prompts() []Prompt {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Prompt(nil), w.seen...)
}

func wants(name, args string) *Completion {
	return &Completion{Calls: []ToolCall{{ID: "c1", Name: name, Arguments: json.RawMessage(args)}}, Usage: Usage{In: 100, Out: 20}}
}

func answersText(text string) *Completion {
	return &Completion{Text: text, Usage: Usage{In: 100, Out: 20}}
}

// last is the newest result of a tool in a prompt.
func last(p Prompt) ToolResult {
	m := p.Messages[len(p.Messages)-1]
	if m.Role != RoleTool {
		return ToolResult{}
	}
	return m.Results[0]
}

// toolset is a Toolset that does not change.
type toolset []Tool

func (s toolset) Tools() []Tool { return s }

// thinking is a mesh with jerry, who thinks with w, and bobby, who answers by a function.
func thinking(t *testing.T, w *wise, spec Spec, bobby bus.HandlerFunc, tools ...Tool) *mesh {
	t.Helper()
	spec.ID = "jerry"
	spec.Models = []ModelSpec{{Provider: "p", ID: "m", API: "test", MaxTokens: 500, Price: Price{In: 3, Out: 15}}}
	h, err := NewLLM(Vendors{"test": func(ModelSpec) (Model, error) { return w, nil }}, func(Spec, Deps) (Toolset, error) { return toolset(tools), nil })(spec, Deps{
		Directory: directory{{ID: "bobby", Name: "Bobby", Gateway: "gw", Status: bus.StatusActive, Capabilities: []string{"infra.check"}}},
		Logger:    nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	if bobby == nil {
		bobby = func(_ context.Context, m *bus.Incoming) error {
			return m.Reply(envelope.TextPayload("all is well, says bobby to: " + Text(m.Envelope().Payload)))
		}
	}
	return newMesh(t, bus.RetryPolicy{Initial: time.Millisecond, Max: time.Millisecond, MaxAttempts: 3}, map[string]bus.Handler{"jerry": h, "bobby": bobby})
}

func (m *mesh) say(conversation, text string) bus.Track {
	return m.ask(bus.Outgoing{To: to("jerry"), Payload: envelope.TextPayload(text), ConversationID: conversation})
}

func TestThinkerAsksAnotherAgent(t *testing.T) {
	w := &wise{}
	w.answer = func(n int, p Prompt) (*Completion, error) {
		switch n {
		case 1:
			return wants("agents_list", `{}`), nil
		case 2:
			return wants("sessions_send", `{"sessionKey":"agent:bobby:main","message":"check Consul"}`), nil
		}
		return answersText("Bobby says: " + last(p).Text), nil
	}
	ws := t.TempDir()
	if err := os.WriteFile(filepath.Join(ws, "SOUL.md"), []byte("You like short answers."), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("not yours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(ws, "USER.md")); err != nil {
		t.Fatal(err)
	}
	m := thinking(t, w, Spec{Workspace: ws, Description: "The hub."}, nil)
	tr := m.say("talk-1", "Ask Bobby to check Consul services")
	got := Text(tr.Reply.Payload)
	if !strings.Contains(got, "all is well, says bobby to: check Consul") {
		t.Fatalf("got %q", got)
	}
	for _, fact := range []string{`\"accepted\":true`, `\"delivered\":true`, `\"acked\":true`, `\"replied\":true`, `\"from\":\"bobby@gw\"`} {
		if plain := strings.ReplaceAll(fact, `\`, ""); !strings.Contains(got, plain) {
			t.Errorf("the model was not told %s: %s", plain, got)
		}
	}
	p := w.prompts()
	if s := p[0].System; !strings.Contains(s, "You like short answers.") || !strings.Contains(s, "The hub.") || !strings.Contains(s, "- bobby (Bobby) on gw: infra.check") || strings.Contains(s, "not yours") {
		t.Errorf("system prompt: %s", s)
	}
	if !strings.Contains(last(p[1]).Text, `"infra.check"`) {
		t.Errorf("agents_list gave %s", last(p[1]).Text)
	}
	m.session("talk-1", func(s *Session, c *Cost) {
		if s.Key != "agent:jerry:talk-1" || len(s.Messages) != 6 || s.Messages[5].Text != got {
			t.Errorf("transcript: %+v", s)
		}
		mc := c.Models["p/m"]
		if mc.Calls != 3 || mc.Usage != (Usage{300, 60}) || mc.USD < 0.00179 || mc.USD > 0.00181 {
			t.Errorf("costs: %+v", c)
		}
	})
}

// session reads what rests of a conversation with jerry.
func (m *mesh) session(name string, look func(*Session, *Cost)) {
	m.t.Helper()
	var s Session
	var c Cost
	list, err := m.Room(within(m.t), "jerry", SessionsPrefix+name)
	if err != nil || len(list) != 1 || json.Unmarshal(list[0].Value, &s) != nil {
		m.t.Fatalf("transcript: %+v, %v", list, err)
	}
	list, err = m.Room(within(m.t), "jerry", CostsPrefix)
	if err != nil || len(list) != 1 || json.Unmarshal(list[0].Value, &c) != nil {
		m.t.Fatalf("costs: %+v, %v", list, err)
	}
	look(&s, &c)
}

func TestThinkerRemembers(t *testing.T) {
	w := &wise{answer: func(_ int, p Prompt) (*Completion, error) {
		var all []string
		for _, m := range p.Messages {
			all = append(all, m.Text)
		}
		return answersText("I heard: " + strings.Join(all, "|")), nil
	}}
	m := thinking(t, w, Spec{}, nil)
	m.say("talk", "one")
	if got := Text(m.say("talk", "two").Reply.Payload); got != "I heard: one|I heard: one|two" {
		t.Errorf("got %q", got)
	}
	if got := Text(m.say("other", "three").Reply.Payload); got != "I heard: three" {
		t.Errorf("conversations mix: %q", got)
	}
	m.say("talk", "/reset")
	if got := Text(m.say("talk", "four").Reply.Payload); got != "I heard: four" {
		t.Errorf("after a reset: %q", got)
	}
	// A transcript has a bound.
	long := strings.Repeat("x", 6000)
	for range 12 {
		m.say("talk", long)
	}
	list, err := m.Room(within(t), "jerry", SessionsPrefix+"talk")
	if err != nil || len(list) != 1 || len(list[0].Value) > maxTranscript+1000 {
		t.Errorf("%d bytes, %v", len(list[0].Value), err)
	}
}

func TestThinkerFailures(t *testing.T) {
	fault := func(f Fault) (*Completion, error) {
		return nil, &ModelError{Fault: f, Model: "p/m", After: time.Minute, Detail: "oh no"} // a hint too long to wait for
	}
	for name, c := range map[string]struct {
		answer func(int, Prompt) (*Completion, error)
		want   string // of the reply
		class  envelope.Class
		asked  int
	}{
		"endless loop": {func(int, Prompt) (*Completion, error) { return wants("agents_list", `{}`), nil }, "I stopped after 12 steps", "", 12},
		"wrong key":    {func(int, Prompt) (*Completion, error) { return fault(FaultAuth) }, "", envelope.ClassUndeliverable, 1},
		"no such tool": {func(n int, p Prompt) (*Completion, error) {
			if n == 1 {
				return wants("rm_rf", `{}`), nil
			}
			return answersText(last(p).Text), nil
		}, `there is no tool "rm_rf"`, "", 2},
		"wrong arguments": {func(n int, p Prompt) (*Completion, error) {
			if n == 1 {
				return wants("sessions_send", `{"sessionKey":7}`), nil
			}
			return answersText(last(p).Text), nil
		}, "wrong arguments", "", 2},
		"nobody": {func(n int, p Prompt) (*Completion, error) {
			if n == 1 {
				return wants("sessions_send", `{"sessionKey":"nobody","message":"hi"}`), nil
			}
			return answersText(last(p).Text), nil
		}, `"status":"error"`, "", 2},
		"itself": {func(n int, p Prompt) (*Completion, error) {
			if n == 1 {
				return wants("sessions_send", `{"sessionKey":"jerry","message":"hi"}`), nil
			}
			return answersText(last(p).Text), nil
		}, `"accepted":false`, "", 2},
		"empty answer": {func(int, Prompt) (*Completion, error) { return answersText(" "), nil }, "empty answer", "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wise{answer: c.answer}
			tr := thinking(t, w, Spec{}, nil).say("talk", "go")
			if c.class != "" {
				if tr.Facts.Class != c.class || !strings.Contains(tr.Facts.Reason, "models.providers") {
					t.Errorf("got %s: %s", tr.Facts.Class, tr.Facts.Reason)
				}
			} else if tr.Reply == nil || !strings.Contains(Text(tr.Reply.Payload), c.want) {
				t.Errorf("got %+v", tr)
			}
			if n := len(w.prompts()); n != c.asked {
				t.Errorf("the model was asked %d times, want %d", n, c.asked)
			}
		})
	}
}

func TestThinkerKeepsToItsBudget(t *testing.T) {
	w := &wise{answer: func(n int, _ Prompt) (*Completion, error) {
		if n < 4 {
			return wants("agents_list", `{}`), nil
		}
		return answersText("done"), nil
	}}
	m := thinking(t, w, Spec{}, nil)
	// Each call takes 120 tokens, and may take the prompt and 500.
	tokens := int64(1200)
	tr := m.ask(bus.Outgoing{To: to("jerry"), Payload: envelope.TextPayload("go"), ConversationID: "talk", Budget: &envelope.Budget{Tokens: &tokens}})
	if got := Text(tr.Reply.Payload); !strings.Contains(got, "I stopped: budget: the next call of p/m may take") {
		t.Errorf("got %q", got)
	}
	asked := len(w.prompts())
	if left := tr.Reply.Budget; asked == 0 || asked > 3 || left == nil || left.Tokens == nil || *left.Tokens != tokens-int64(asked)*120 {
		t.Errorf("%d calls, left %+v", asked, left)
	}
	usd := 0.001 // less than 500 tokens at 15 dollars
	tr = m.ask(bus.Outgoing{To: to("jerry"), Payload: envelope.TextPayload("go"), ConversationID: "talk2", Budget: &envelope.Budget{USD: &usd}})
	if got := Text(tr.Reply.Payload); !strings.Contains(got, "may cost") || len(w.prompts()) != asked {
		t.Errorf("a call that may cost too much was made: %q", got)
	}
}

// A message that is handled again asks the model again, and the other agent only once.
func TestThinkerAsksOnce(t *testing.T) {
	w := &wise{}
	w.answer = func(n int, p Prompt) (*Completion, error) {
		switch {
		case last(p).CallID == "":
			return wants("sessions_send", `{"sessionKey":"bobby","message":"check"}`), nil
		case n == 2:
			return nil, errors.New("the process is in trouble") // the bus tries again
		}
		return answersText(last(p).Text), nil
	}
	asked := 0
	m := thinking(t, w, Spec{}, func(_ context.Context, m *bus.Incoming) error {
		asked++ // one conversation, so one after another
		return m.Reply(envelope.TextPayload("fine"))
	})
	tr := m.say("talk", "go")
	if tr.Reply == nil || !strings.Contains(Text(tr.Reply.Payload), `"reply":"fine"`) || asked != 1 || len(w.prompts()) != 4 {
		t.Errorf("bobby was asked %d times: %+v", asked, tr.Facts)
	}
}
