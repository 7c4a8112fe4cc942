package modeltest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
)

// Vendor is what a vendor child exports.
type Vendor func(agent.ModelSpec, *http.Client) (agent.Model, error)

// Run holds a vendor child to what agent.Model promises.
func Run(t *testing.T, api string, vendor Vendor) {
	t.Run("answers", func(t *testing.T) { answers(t, api, vendor) })
	t.Run("faults", func(t *testing.T) { faults(t, api, vendor) })
	t.Run("conversation", func(t *testing.T) { conversation(t, api, vendor) })
	t.Run("cancelled", func(t *testing.T) { cancelled(t, api, vendor) })
	t.Run("no connection", func(t *testing.T) { noConnection(t, api, vendor) })
	t.Run("environment", func(t *testing.T) { environment(t, api, vendor) })
}

// prompt is a question with a tool.
func prompt() agent.Prompt {
	return agent.Prompt{
		System:    "You are Jerry.",
		Messages:  []agent.ChatMessage{{Role: agent.RoleUser, Text: "Is Consul well?"}},
		MaxTokens: 77,
		Tools: []agent.ToolDef{{Name: "sessions_send", Description: "asks an agent", Schema: json.RawMessage(
			`{"type":"object","properties":{"message":{"type":"string"}},"required":["message"]}`)}},
	}
}

func open(t *testing.T, vendor Vendor, spec agent.ModelSpec) agent.Model {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	m, err := vendor(spec, client)
	if err != nil {
		t.Fatalf("make the model: %v", err)
	}
	return m
}

func call(id, name, args string) agent.ToolCall {
	return agent.ToolCall{ID: id, Name: name, Arguments: json.RawMessage(args)}
}

func answers(t *testing.T, api string, vendor Vendor) {
	used := agent.Usage{In: 120, Out: 34}
	s := NewServer(t, api,
		Step{Text: "It is well, says Bobby.", Usage: used},
		Step{Text: "I ask.", Calls: []agent.ToolCall{call("c1", "sessions_send", `{"message":"how are you?"}`), call("c2", "agents_list", ``)}, Usage: used},
		Step{Text: "It is", Limit: true, Usage: used},
	)
	m := open(t, vendor, s.Spec("glm-5"))
	var pieces []string
	got, err := m.Generate(t.Context(), prompt(), func(p string) { pieces = append(pieces, p) })
	if err != nil || got.Text != "It is well, says Bobby." || got.Usage != used || len(got.Calls) != 0 || got.Cut {
		t.Fatalf("an answer in text: %+v, %v", got, err)
	}
	if len(pieces) < 2 || strings.Join(pieces, "") != got.Text {
		t.Errorf("the text did not stream: %q", pieces)
	}
	got, err = m.Generate(t.Context(), prompt(), nil)
	if err != nil || len(got.Calls) != 2 || got.Calls[0].Name != "sessions_send" || string(got.Calls[0].Arguments) != `{"message":"how are you?"}` ||
		got.Calls[0].ID != "c1" || string(got.Calls[1].Arguments) != `{}` || got.Text != "I ask." {
		t.Fatalf("an answer with calls of tools: %+v, %v", got, err)
	}
	if got, err = m.Generate(t.Context(), prompt(), nil); err != nil || !got.Cut {
		t.Fatalf("an answer that ended at its bound: %+v, %v", got, err)
	}
	r := s.Requests()[0]
	if r.Model != "glm-5" || !strings.Contains(r.System, "You are Jerry.") || len(r.Tools) != 1 || r.Tools[0] != "sessions_send" || r.MaxTokens != 77 {
		t.Errorf("the server was asked %+v", r)
	}
}

func faults(t *testing.T, api string, vendor Vendor) {
	for name, c := range map[string]struct {
		step   Step
		want   agent.Fault
		after  time.Duration
		status int
	}{
		"429 with a hint":     {Step{Status: 429, Header: map[string]string{"Retry-After": "7"}, Body: "slow down"}, agent.FaultRateLimited, 7 * time.Second, 429},
		"429 with a fine one": {Step{Status: 429, Header: map[string]string{"Retry-After-Ms": "250"}}, agent.FaultRateLimited, 250 * time.Millisecond, 429},
		"429 without":         {Step{Status: 429}, agent.FaultRateLimited, 0, 429},
		"500":                 {Step{Status: 500, Body: "oops"}, agent.FaultOutage, 0, 500},
		"502":                 {Step{Status: 502}, agent.FaultOutage, 0, 502},
		"503":                 {Step{Status: 503, Header: map[string]string{"Retry-After": "2"}}, agent.FaultOverloaded, 2 * time.Second, 503},
		"529":                 {Step{Status: 529, Body: "overloaded"}, agent.FaultOverloaded, 0, 529},
		"400":                 {Step{Status: 400, Body: "no such parameter"}, agent.FaultBadRequest, 0, 400},
		"404":                 {Step{Status: 404, Body: "no such model"}, agent.FaultBadRequest, 0, 404},
		"401 with the key":    {Step{Status: 401, Body: "wrong key: " + Key}, agent.FaultAuth, 0, 401},
		"403":                 {Step{Status: 403}, agent.FaultAuth, 0, 403},
		"413":                 {Step{Status: 413}, agent.FaultTooLong, 0, 413},
		"too long":            {Step{Status: 400, Body: "prompt is too long: 300000 tokens"}, agent.FaultTooLong, 0, 400},
		"cut stream":          {Step{Text: "It is well, says Bobby.", Cut: true}, agent.FaultCutStream, 0, 0},
		"garbage":             {Step{Garbage: true}, agent.FaultGarbage, 0, 0},
		"malformed call":      {Step{Calls: []agent.ToolCall{call("c1", "sessions_send", `{"message": "how`)}, Usage: agent.Usage{In: 9, Out: 3}}, agent.FaultMalformedCall, 0, 0},
		"call that is a list": {Step{Calls: []agent.ToolCall{call("c1", "sessions_send", `[1,2]`)}}, agent.FaultMalformedCall, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewServer(t, api, c.step)
			got, err := open(t, vendor, s.Spec("m")).Generate(t.Context(), prompt(), nil)
			var f *agent.ModelError
			if !errors.As(err, &f) {
				t.Fatalf("got %+v, %v; want a *ModelError", got, err)
			}
			if f.Fault != c.want || f.After != c.after || f.Status != c.status || f.Model != "stub/m" {
				t.Errorf("got %+v; want %s, after %s, status %d", f, c.want, c.after, c.status)
			}
			if c.want == agent.FaultMalformedCall && f.Usage != c.step.Usage {
				t.Errorf("it cost %+v, and says %+v", c.step.Usage, f.Usage)
			}
			if strings.Contains(err.Error(), Key) {
				t.Errorf("the error shows the key: %v", err)
			}
			if n := len(s.Requests()); n != 1 {
				t.Errorf("%d requests: the child repeats by itself", n)
			}
		})
	}
}

// conversation checks that calls and results go back as they came.
func conversation(t *testing.T, api string, vendor Vendor) {
	s := NewServer(t, api, Step{Text: "done"})
	p := prompt()
	p.Messages = append(p.Messages,
		agent.ChatMessage{Role: agent.RoleAssistant, Text: "I ask.", Calls: []agent.ToolCall{call("call-77", "sessions_send", `{"message":"status?"}`)}},
		agent.ChatMessage{Role: agent.RoleTool, Results: []agent.ToolResult{{CallID: "call-77", Text: "all is well here"}}},
		agent.ChatMessage{Role: agent.RoleUser, Text: "And now?"},
	)
	if _, err := open(t, vendor, s.Spec("m")).Generate(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	body := s.Requests()[0].Body
	for _, want := range []string{"Is Consul well?", "I ask.", "call-77", "status?", "all is well here", "And now?"} {
		if !strings.Contains(body, want) {
			t.Errorf("the request lacks %q: %s", want, body)
		}
	}
	if strings.Count(body, "call-77") != 2 {
		t.Errorf("call and result do not share their id: %s", body)
	}
}

func cancelled(t *testing.T, api string, vendor Vendor) {
	s := NewServer(t, api)
	asked := make(chan struct{})
	s.Answer(func(Request) Step { close(asked); return Step{Hang: true} })
	stop := errors.New("the gateway stops")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-asked; cancel(stop) }()
	if _, err := open(t, vendor, s.Spec("m")).Generate(ctx, prompt(), nil); !errors.Is(err, stop) {
		t.Fatalf("got %v, want the cause of the cancellation", err)
	}
}

func noConnection(t *testing.T, api string, vendor Vendor) {
	s := NewServer(t, api)
	spec := s.Spec("m")
	s.Close()
	_, err := open(t, vendor, spec).Generate(t.Context(), prompt(), nil)
	var f *agent.ModelError
	if !errors.As(err, &f) || f.Fault != agent.FaultOutage {
		t.Fatalf("got %v, want an outage", err)
	}
	spec.BaseURL = ""
	if _, err := vendor(spec, nil); err == nil {
		t.Error("a model without a base URL is taken: the SDK would ask its own vendor")
	}
}

// environment checks that what the SDK finds in the environment goes to no other provider.
func environment(t *testing.T, api string, vendor Vendor) {
	const other = "sk-of-the-environment"
	for _, name := range []string{"OPENAI_API_KEY", "OPENAI_ORG_ID", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"} {
		t.Setenv(name, other)
	}
	t.Setenv("OPENAI_CUSTOM_HEADERS", "X-Custom: "+other)
	t.Setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
	t.Setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
	leaked := ""
	s := NewServer(t, api)
	handler := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k, v := range r.Header {
			if strings.Contains(strings.Join(v, " "), other) {
				leaked = k
			}
		}
		handler.ServeHTTP(w, r)
	})
	if _, err := open(t, vendor, s.Spec("m")).Generate(t.Context(), prompt(), nil); err != nil {
		t.Fatal(err)
	}
	if leaked != "" {
		t.Errorf("the header %s has a key of the environment", leaked)
	}
}
