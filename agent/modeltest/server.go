// Package modeltest is a model server at the wire, in both protocols, and the suite that every vendor child
// of agent passes through it. It is for tests: no binary imports it.
package modeltest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/gatemesh/gatemesh/agent"
)

// Key is the API key that the server wants, and that no error may show.
const Key = "sk-test-0123456789abcdef"

// A Step is what the server does with one request.
type Step struct {
	Text  string
	Calls []agent.ToolCall
	Usage agent.Usage
	// Status other than 0 refuses the request, with Header and Body.
	Status int
	Header map[string]string
	Body   string
	// Cut ends the connection in the middle of the answer; Garbage answers what is no stream;
	// Hang answers nothing until the client goes.
	Cut, Garbage, Hang bool
	// Limit says that the answer ended at its bound.
	Limit bool
}

// Request is what the server was asked, the same for both protocols.
type Request struct {
	Path      string
	Model     string
	System    string
	Tools     []string
	MaxTokens int
	// Body is the request as it came.
	Body string
}

// Server plays a script: one Step a request, the last one again and again.
type Server struct {
	*httptest.Server
	api string

	mu       sync.Mutex
	script   []Step
	answer   func(Request) Step
	requests []Request
}

// NewServer starts a server of the protocol; it stops with the test.
func NewServer(t testing.TB, api string, script ...Step) *Server {
	t.Helper()
	s := &Server{api: api, script: script}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// Answer makes the server ask f for each step, instead of a script.
func (s *Server) Answer(f func(Request) Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// BaseURL is what a provider's baseUrl is for the server.
func (s *Server) BaseURL() string {
	if s.api == agent.APIOpenAI {
		return s.URL + "/v1"
	}
	return s.URL
}

// Spec is the server's model.
func (s *Server) Spec(id string) agent.ModelSpec {
	return agent.ModelSpec{Provider: "stub", ID: id, API: s.api, BaseURL: s.BaseURL(), APIKey: Key}
}

// Requests are those that came, oldest first.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

func (s *Server) next(r Request) Step {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
	if s.answer != nil {
		return s.answer(r)
	}
	if len(s.script) == 0 {
		return Step{Text: "ok"}
	}
	return s.script[min(len(s.requests), len(s.script))-1]
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	path, key := "/v1/chat/completions", strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if s.api == agent.APIAnthropic {
		path, key = "/v1/messages", r.Header.Get("X-Api-Key")
	}
	switch {
	case r.URL.Path != path || r.Method != http.MethodPost:
		s.refuse(w, Step{Status: http.StatusNotFound, Body: "no such path: " + r.URL.Path})
		return
	case key != Key:
		s.refuse(w, Step{Status: http.StatusUnauthorized, Body: "invalid key " + key})
		return
	}
	step := s.next(read(body, r.URL.Path))
	switch {
	case step.Hang:
		<-r.Context().Done()
	case step.Status != 0:
		s.refuse(w, step)
	case step.Garbage:
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: message_start\ndata: <html>this is no JSON</html>\n\n")
	default:
		w.Header().Set("Content-Type", "text/event-stream")
		events := openAIEvents
		if s.api == agent.APIAnthropic {
			events = anthropicEvents
		}
		lines := events(step)
		if step.Cut {
			_, _ = io.WriteString(w, strings.Join(lines[:len(lines)/2], ""))
			w.(http.Flusher).Flush() //nolint:forcetypeassert // net/http's own
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, strings.Join(lines, ""))
	}
}

func (s *Server) refuse(w http.ResponseWriter, step Step) {
	for k, v := range step.Header {
		w.Header().Set(k, v)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(step.Status)
	kind := "invalid_request_error"
	if step.Status == 529 {
		kind = "overloaded_error"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "error", "error": map[string]any{"type": kind, "message": step.Body}})
}

func read(body []byte, path string) Request {
	var b struct {
		Model    string `json:"model"`
		Max      int    `json:"max_tokens"`
		System   any    `json:"system"`
		Messages []struct {
			Role    string `json:"role"`
			Content any    `json:"content"`
		} `json:"messages"`
		Tools []struct {
			Name     string                `json:"name"`
			Function struct{ Name string } `json:"function"`
		} `json:"tools"`
	}
	_ = json.Unmarshal(body, &b)
	r := Request{Path: path, Model: b.Model, MaxTokens: b.Max, Body: string(body)}
	if b.System != nil {
		r.System = fmt.Sprint(b.System)
	}
	for _, m := range b.Messages {
		if m.Role == "system" {
			r.System = fmt.Sprint(m.Content)
		}
	}
	for _, t := range b.Tools {
		r.Tools = append(r.Tools, t.Name+t.Function.Name)
	}
	return r
}
