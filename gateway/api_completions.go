package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// The part of the API that is OpenAI's, for programs that speak nothing else.
//
// A model is an agent: openclaw/bobby (also openclaw:bobby), on whichever gateway it lives; "openclaw" and openclaw/default are the default agent
// of this gateway's configuration. The header x-openclaw-agent-id wins over the model.
//
// Which conversation it is: that of the header x-openclaw-session-key (agent:bobby:main, or a name), else that of "user", which is the token's
// own; then the agent remembers what was said, and only the last message, which must be the user's, is the question. Without either each request is a
// conversation of its own, and what stands before the last message goes with the question as text.
//
// The header Idempotency-Key makes asking again safe: the same key of the same token is the same message, at every gateway, and has the same answer.
// Two gateways that get it at the same moment may both ask. Without it a repeated request is a new question. A client that goes away stops
// waiting; the question goes on.
//
// The answer comes whole, so a stream has one piece of content. Settings of the model (temperature and such) are the agent's own and are
// passed over, as all fields that are not known; tools of the client, images and n above 1 are refused. "usage" is zero: what a conversation costs is
// in GET /v1/costs.
const (
	completionsRoute = "POST /v1/chat/completions"
	modelsRoute      = "GET /v1/models"
	modelRoute       = "GET /v1/models/{model}"

	headerAgent   = "x-openclaw-agent-id"
	headerSession = "x-openclaw-session-key"
	// headerMessage is the answer's: the id under which the mesh knows the question.
	headerMessage = "X-Gatemesh-Message-Id"

	maxIdempotencyKey = 255 // bytes
)

// streamAlive is how often a stream that waits says so, for proxies that close what is silent.
const streamAlive = 10 * time.Second

type completionRequest struct {
	Model         string              `json:"model"`
	Messages      []completionMessage `json:"messages"`
	Stream        bool                `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	User      string            `json:"user"`
	N         *int              `json:"n"`
	Tools     []json.RawMessage `json:"tools"`
	Functions []json.RawMessage `json:"functions"`
}

type completionMessage struct {
	Role    string            `json:"role"`
	Content completionContent `json:"content"`
}

// completionContent is a text, or the texts of parts.
type completionContent string

func (c *completionContent) UnmarshalJSON(b []byte) error {
	var s *string
	if json.Unmarshal(b, &s) == nil {
		if s != nil {
			*c = completionContent(*s)
		}
		return nil
	}
	var parts []struct{ Type, Text string }
	if err := json.Unmarshal(b, &parts); err != nil {
		return badRequest("messages", "content is a text or a list of parts")
	}
	var all []string
	for _, p := range parts {
		if p.Type != "text" {
			return badRequest("messages", "a part of type %q: agents take text alone", clipText(p.Type, 40))
		}
		all = append(all, p.Text)
	}
	*c = completionContent(strings.Join(all, "\n"))
	return nil
}

type completion struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []completionChoice `json:"choices"`
	Usage   *completionUsage   `json:"usage,omitempty"`
}

type completionChoice struct {
	Index   int               `json:"index"`
	Message *completionAnswer `json:"message,omitempty"`
	Delta   *completionAnswer `json:"delta,omitempty"`
	Finish  *string           `json:"finish_reason"`
}

type completionAnswer struct {
	Role    string `json:"role,omitempty"`
	Content string `json:"content"`
}

type completionUsage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

// postCompletion is POST /v1/chat/completions.
func (g *Gateway) postCompletion(w http.ResponseWriter, r *http.Request) error {
	var req completionRequest
	if err := decodeJSON(r, &req, false); err != nil {
		return err
	}
	out, keyed, err := g.completionOutgoing(&req, r)
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	if err := g.acceptOnce(r.Context(), b, out, keyed); err != nil {
		return aboutMessage(err, out.ID)
	}
	w.Header().Set(headerMessage, out.ID)
	c := completion{ID: "chatcmpl-" + out.ID, Object: "chat.completion", Created: time.Now().Unix(), Model: req.Model}
	wait := waiting{WaitReplied, min(out.TTL+lookAgain, MaxWait)}
	ctx, cancel := g.patient(w, r, wait.timeout)
	defer cancel()
	if req.Stream {
		g.streamCompletion(ctx, w, r, b, out.ID, c, req.StreamOptions.IncludeUsage)
		return nil
	}
	st, err := g.follow(ctx, r.Context(), b, out.ID, wait)
	if err == nil {
		err = unanswered(st)
	}
	if err != nil {
		return aboutMessage(err, out.ID)
	}
	stop := "stop"
	c.Choices = []completionChoice{{Message: &completionAnswer{"assistant", st.Text}, Finish: &stop}}
	c.Usage = &completionUsage{}
	return writeJSON(w, http.StatusOK, c)
}

// streamCompletion answers with server-sent events.
func (g *Gateway) streamCompletion(ctx context.Context, w http.ResponseWriter, r *http.Request, b *bus.Bus, id string, c completion, usage bool) {
	c.Object = "chat.completion.chunk"
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	rc := http.NewResponseController(w)
	// Who is gone needs no answer; what was written to nobody is noticed by the request's context.
	say := func(text string) (there bool) {
		_, err := w.Write([]byte(text + "\n\n"))
		return err == nil && rc.Flush() == nil
	}
	event := func(v any) (there bool) {
		j, err := json.Marshal(v)
		return err == nil && say("data: "+string(j))
	}
	choice := func(text completionAnswer, finish *string) completion {
		next := c
		next.Choices = []completionChoice{{Delta: &text, Finish: finish}}
		return next
	}
	if !event(choice(completionAnswer{Role: "assistant"}, nil)) {
		return
	}
	wait := waiting{WaitReplied, streamAlive}
	for {
		some, cancel := context.WithTimeout(ctx, streamAlive)
		st, err := g.follow(some, r.Context(), b, id, wait)
		cancel()
		switch {
		case r.Context().Err() != nil:
			return
		case err == nil && st.TimedOut && ctx.Err() == nil:
			if !say(": waiting") {
				return
			}
			continue
		case err == nil:
			err = unanswered(st)
		}
		if err != nil {
			e, known := apiError(aboutMessage(err, id))
			if !known {
				g.log.Error("API request failed", "method", r.Method, "route", r.Pattern, "error", err)
			}
			event(openAIErrorResponse{openAIErrorOf(e)})
			return
		}
		stop := "stop"
		event(choice(completionAnswer{Content: st.Text}, nil))
		event(choice(completionAnswer{}, &stop))
		if usage {
			c.Choices, c.Usage = []completionChoice{}, &completionUsage{}
			event(c)
		}
		say("data: [DONE]")
		return
	}
}

// unanswered is why a message has no answer; nil: it has.
func unanswered(st MessageStatus) error {
	f := st.Facts
	switch {
	case f.Dead && f.Class == envelope.ClassUnauthorised:
		return &APIError{status: http.StatusForbidden, Code: CodeForbidden, Message: f.Reason}
	case f.Dead:
		return &APIError{status: http.StatusBadGateway, Code: CodeGivenUp, Message: fmt.Sprintf("the mesh gave the question up (%s): %s", f.Class, f.Reason)}
	case !f.Replied:
		return &APIError{status: http.StatusGatewayTimeout, Code: CodeTimeout, Message: "no answer in time; the question is not lost: GET /v1/messages/" + st.MessageID}
	}
	return nil
}

// acceptOnce sends a question. Its id may be taken, and known at another gateway alone: then it is that message.
func (g *Gateway) acceptOnce(ctx context.Context, b *bus.Bus, out bus.Outgoing, taken bool) error {
	if _, _, here := b.Track(out.ID); taken && !here {
		st, err := b.Lookup(ctx, out.ID)
		switch {
		case errors.Is(err, bus.ErrNotFound):
		case err != nil:
			return err
		case st.Envelope != nil && !st.Envelope.Closed() && !st.Envelope.Claimed():
			return sameMessage(st.Envelope, out, st.Envelope.SourceGateway)
		default:
			return nil
		}
	}
	_, err := g.accept(ctx, b, out, true)
	return err
}

// completionOutgoing makes a message of a request.
func (g *Gateway) completionOutgoing(req *completionRequest, r *http.Request) (out bus.Outgoing, keyed bool, err error) {
	switch {
	case len(req.Tools)+len(req.Functions) > 0:
		return out, false, badRequest("tools", "an agent has its own tools and cannot call those of a client")
	case req.N != nil && *req.N != 1:
		return out, false, badRequest("n", "n is %d: an agent answers once", *req.N)
	case len(req.Messages) == 0:
		return out, false, badRequest("messages", "messages is missing")
	case req.Messages[len(req.Messages)-1].Role != "user":
		return out, false, badRequest("messages", "the last message must be the user's")
	}
	to, err := g.completionAgent(req.Model, r.Header.Get(headerAgent))
	if err != nil {
		return out, false, err
	}
	who := ""
	if c := callerOf(r); c != nil {
		who = c.name
	}
	conversation := ""
	switch key := r.Header.Get(headerSession); {
	case key != "":
		conversation = key
		if rest, ok := strings.CutPrefix(key, "agent:"); ok {
			id, name, _ := strings.Cut(rest, ":")
			if named, _, _ := strings.Cut(to, "@"); id != named || name == "" {
				return out, false, badRequest(headerSession, "the session %q is not one of the agent %s: want agent:%s:NAME", clipText(key, 100), named, named)
			}
			conversation = name
		}
	case req.User != "":
		conversation = envelope.DerivedID("openai/user/"+who, req.User)
	}
	question := req.question(conversation != "")
	if strings.TrimSpace(question) == "" {
		return out, false, badRequest("messages", "the last message is empty")
	}
	send := SendRequest{To: to, Text: &question, ConversationID: conversation}
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		if len(key) > maxIdempotencyKey {
			return out, false, badRequest("Idempotency-Key", "the key is %d bytes, at most %d", len(key), maxIdempotencyKey)
		}
		send.ID = envelope.DerivedID("openai/idempotency/"+who, key)
		keyed = true
		if conversation == "" {
			send.ConversationID = send.ID
		}
	}
	out, err = g.outgoing(&send, r)
	if err == nil && out.ID == "" {
		out.ID = envelope.NewID()
	}
	return out, keyed, err
}

// question is what the agent is asked.
func (req *completionRequest) question(remembered bool) string {
	last := string(req.Messages[len(req.Messages)-1].Content)
	if remembered || len(req.Messages) == 1 {
		return last
	}
	var all []string
	for _, m := range req.Messages {
		if m.Content != "" {
			all = append(all, clipText(m.Role, 20)+": "+string(m.Content))
		}
	}
	return strings.Join(all, "\n\n")
}

// completionAgent is the agent that a model's name means.
func (g *Gateway) completionAgent(model, named string) (string, error) {
	if named != "" {
		return named, nil
	}
	id, ok := strings.CutPrefix(model, "openclaw")
	switch {
	case ok && (id == "" || id == "/default" || id == ":default"):
		if def := g.router.Load().Default(); def != "" {
			return def, nil
		}
	case ok && len(id) > 1 && (id[0] == '/' || id[0] == ':'):
		return id[1:], nil
	}
	return "", &APIError{status: http.StatusNotFound, Code: CodeUnknownAgent, Field: "model",
		Message: fmt.Sprintf("there is no model %q: want openclaw/AGENT (GET /v1/models lists them)", clipText(model, 80))}
}

type openAIModel struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func (g *Gateway) openAIModels() ([]openAIModel, error) {
	b, err := g.ready()
	if err != nil {
		return nil, err
	}
	list := []openAIModel{}
	add := func(id, owner string) {
		list = append(list, openAIModel{"openclaw/" + id, "model", g.began.Unix(), owner})
	}
	if g.router.Load().Default() != "" {
		add("default", g.name)
	}
	for _, a := range b.Agents("") {
		if a.ID != CronInbox && !slices.Contains(a.Capabilities, CapabilityPost) {
			add(a.ID, a.Gateway)
		}
	}
	return list, nil
}

// getModels is GET /v1/models.
func (g *Gateway) getModels(w http.ResponseWriter, _ *http.Request) error {
	list, err := g.openAIModels()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": list})
}

// getModel is GET /v1/models/{model}.
func (g *Gateway) getModel(w http.ResponseWriter, r *http.Request) error {
	list, err := g.openAIModels()
	if err != nil {
		return err
	}
	name := r.PathValue("model")
	for _, m := range list {
		if m.ID == name || m.ID == strings.Replace(name, ":", "/", 1) {
			return writeJSON(w, http.StatusOK, m)
		}
	}
	_, err = g.completionAgent("", "")
	return err
}

// openAIError is an APIError as OpenAI's clients read it.
type openAIError struct {
	Message   string  `json:"message"`
	Type      string  `json:"type"`
	Param     *string `json:"param"`
	Code      string  `json:"code"`
	MessageID string  `json:"message_id,omitempty"`
}

type openAIErrorResponse struct {
	Error openAIError `json:"error"`
}

func openAIRoute(pattern string) bool {
	return pattern == completionsRoute || pattern == modelsRoute || pattern == modelRoute
}

func openAIErrorOf(e *APIError) openAIError {
	o := openAIError{Message: e.Message, Type: "invalid_request_error", Code: e.Code, MessageID: e.MessageID}
	if e.Field != "" {
		o.Param = &e.Field
	}
	switch {
	case e.status == http.StatusUnauthorized:
		o.Type = "authentication_error"
	case e.status == http.StatusForbidden:
		o.Type = "permission_error"
	case e.status == http.StatusTooManyRequests:
		o.Type = "rate_limit_error"
	case e.status >= http.StatusInternalServerError:
		o.Type = "server_error"
	}
	return o
}

func writeOpenAIError(w http.ResponseWriter, e *APIError) {
	if e.status == http.StatusConflict || e.status >= http.StatusInternalServerError && e.status != http.StatusServiceUnavailable {
		// OpenAI's clients ask again by themselves, which would be a second question.
		w.Header().Set("x-should-retry", "false")
	}
	_ = writeJSON(w, e.status, openAIErrorResponse{openAIErrorOf(e)})
}
