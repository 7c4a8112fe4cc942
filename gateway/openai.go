package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// The OpenAI-compatible way in, as OpenClaw's gateway has it: an agent is a model, wherever it lives. A request is one message to the agent, by the
// same way as every other: policy, roles, limits and audit log are the same, and it is durable before anybody waits for it.

const (
	// modelPrefix stands before an agent's name in a model's.
	modelPrefix = "openclaw/"
	// completionWait is how long a request waits for the agent's answer.
	completionWait = 5 * time.Minute
	// completionAlive is how often a stream says that it still waits, so that nobody in between hangs up.
	completionAlive = 15 * time.Second
	// maxTranscript bounds what is made of the messages of a request, in bytes.
	maxTranscript = 256 << 10
)

// completionRequest is what is read of a request; what else clients say (temperature ...) is the agent's own matter, and passed over.
type completionRequest struct {
	Model    string              `json:"model"`
	Messages []completionMessage `json:"messages"`
	Stream   bool                `json:"stream"`
	// User names a conversation that the agent remembers; without one each request is a conversation of its own, and brings all that was said.
	User string `json:"user"`
}

type completionMessage struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

// text is a message's content: a text, or parts of which the texts count.
func (m completionMessage) text() string {
	var s string
	if json.Unmarshal(m.Content, &s) == nil {
		return s
	}
	var parts []struct{ Type, Text string }
	if json.Unmarshal(m.Content, &parts) != nil {
		return ""
	}
	var texts []string
	for _, p := range parts {
		if p.Type == "text" || p.Type == "input_text" {
			texts = append(texts, p.Text)
		}
	}
	return strings.Join(texts, "\n")
}

type modelList struct {
	Object string      `json:"object"`
	Data   []modelItem `json:"data"`
}

type modelItem struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

// getModels is GET /v1/models: the agents that can be asked.
func (g *Gateway) getModels(w http.ResponseWriter, _ *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	list := modelList{Object: "list", Data: []modelItem{}}
	for _, a := range b.Agents("") {
		if a.ID != CronInbox && !slices.Contains(a.Capabilities, CapabilityPost) {
			list.Data = append(list.Data, modelItem{modelPrefix + a.ID, "model", g.began.Unix(), "gatemesh"})
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// postCompletion is POST /v1/chat/completions.
func (g *Gateway) postCompletion(w http.ResponseWriter, r *http.Request) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return &APIError{status: http.StatusUnsupportedMediaType, Code: CodeContentType, Message: "send JSON, with the header Content-Type: application/json"}
	}
	var req completionRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return &APIError{status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Message: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
		}
		return badRequest("", "the body is no JSON of a chat completion: %s", clipText(err.Error(), 100))
	}
	send, err := g.completionMessage(&req, r)
	if err != nil {
		return err
	}
	out, err := g.outgoing(send, r)
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	id, err := g.accept(r.Context(), b, out, true)
	if err != nil {
		return aboutMessage(err, id)
	}
	ctx, cancel := g.patient(w, r, completionWait)
	defer cancel()
	c := &completion{id: "chatcmpl-" + id, model: req.Model, created: time.Now().Unix()}
	if req.Stream {
		return c.stream(ctx, w, func() (string, error) { return g.completed(ctx, b, id) })
	}
	text, err := g.completed(ctx, b, id)
	if r.Context().Err() != nil {
		return r.Context().Err()
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, c.whole(text))
}

// completionMessage is the message that a request becomes.
func (g *Gateway) completionMessage(req *completionRequest, r *http.Request) (*SendRequest, error) {
	agent := r.Header.Get("X-OpenClaw-Agent-Id")
	if agent == "" {
		var named bool
		if agent, named = strings.CutPrefix(req.Model, modelPrefix); !named {
			if agent, named = strings.CutPrefix(req.Model, "openclaw:"); !named {
				agent = ""
			}
		}
		if req.Model == "openclaw" {
			agent = g.router.Load().Default()
		}
	}
	if agent == "" {
		return nil, badRequest("model", "model %q names no agent: write %sAGENT (GET /v1/models lists them)", clipText(req.Model, 60), modelPrefix)
	}
	last := len(req.Messages) - 1
	for last >= 0 && req.Messages[last].Role != "user" {
		last--
	}
	if last < 0 || strings.TrimSpace(req.Messages[last].text()) == "" {
		return nil, badRequest("messages", "messages has no text of a user")
	}
	text := req.Messages[last].text()
	send := &SendRequest{To: agent, Reply: true, Text: &text, ConversationID: r.Header.Get("X-OpenClaw-Session-Key")}
	if send.ConversationID == "" && req.User != "" {
		send.ConversationID = envelope.DerivedID("openai", req.User)
	}
	if send.ConversationID == "" && last > 0 {
		var all []string
		for _, m := range req.Messages[:last+1] {
			if t := m.text(); t != "" {
				all = append(all, m.Role+": "+t)
			}
		}
		text = strings.Join(all, "\n\n")
	}
	if len(text) > maxTranscript {
		return nil, &APIError{status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Field: "messages", Message: fmt.Sprintf("the messages are %d bytes, at most %d", len(text), maxTranscript)}
	}
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		who := ""
		if c := callerOf(r); c != nil {
			who = c.name
		}
		send.ID = envelope.DerivedID("openai/"+who, key)
	}
	return send, nil
}

// completed waits for the answer to a message.
func (g *Gateway) completed(ctx context.Context, b *bus.Bus, id string) (string, error) {
	tr, err := b.Await(ctx, id, func(t bus.Track) bool { return t.Facts.Replied || t.Facts.Dead })
	switch {
	case err != nil:
		return "", &APIError{status: http.StatusGatewayTimeout, Code: CodeTimeout, Message: "no answer in time; it may still come (gatemesh message show)", MessageID: id}
	case tr.Facts.Dead:
		return "", &APIError{status: http.StatusBadGateway, Code: CodeGivenUp, Message: "the agent gave no answer: " + tr.Facts.Reason, MessageID: id}
	}
	st := statusOf(id, tr)
	st.resolve(ctx, b)
	return st.Text, nil
}

// completion is an answer in the making.
type completion struct {
	id, model string
	created   int64
}

type completionChoice struct {
	Index        int             `json:"index"`
	Message      *completionSaid `json:"message,omitempty"`
	Delta        *completionSaid `json:"delta,omitempty"`
	FinishReason *string         `json:"finish_reason"`
}

type completionSaid struct {
	Role    string `json:"role,omitempty"`
	Content string `json:"content,omitempty"`
}

type completionResponse struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []completionChoice `json:"choices"`
	// Usage is not known: the agent's model counts (gatemesh cost).
	Usage *completionUsage `json:"usage,omitempty"`
}

type completionUsage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

func (c *completion) whole(text string) completionResponse {
	stop := "stop"
	return completionResponse{ID: c.id, Object: "chat.completion", Created: c.created, Model: c.model, Usage: &completionUsage{},
		Choices: []completionChoice{{Message: &completionSaid{Role: "assistant", Content: text}, FinishReason: &stop}}}
}

// stream sends the answer as events. An agent's answer comes as a whole, so there is one piece of it; a comment says meanwhile that somebody is there.
func (c *completion) stream(ctx context.Context, w http.ResponseWriter, answer func() (string, error)) error {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	write := func(s string) { // who is gone needs no answer
		_, _ = fmt.Fprint(w, s)
		_ = rc.Flush()
	}
	event := func(v any) {
		b, err := json.Marshal(v)
		if err != nil {
			b = []byte(`{}`)
		}
		write("data: " + string(b) + "\n\n")
	}
	piece := func(d completionSaid, end *string) {
		event(completionResponse{ID: c.id, Object: "chat.completion.chunk", Created: c.created, Model: c.model, Choices: []completionChoice{{Delta: &d, FinishReason: end}}})
	}
	piece(completionSaid{Role: "assistant"}, nil)
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := answer() // ends with ctx
		done <- result{text, err}
	}()
	alive := time.NewTicker(completionAlive)
	defer alive.Stop()
	for {
		select {
		case <-alive.C:
			write(": waiting\n\n")
		case r := <-done:
			if r.err != nil {
				var e *APIError
				if !errors.As(r.err, &e) {
					e = internalError()
				}
				if ctx.Err() == nil || e.Code != CodeTimeout {
					event(map[string]any{"error": e})
				}
				return nil
			}
			stop := "stop"
			piece(completionSaid{Content: r.text}, nil)
			piece(completionSaid{}, &stop)
			write("data: [DONE]\n\n")
			return nil
		}
	}
}
