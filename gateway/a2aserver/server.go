// Package a2aserver serves every agent of the mesh to programs that speak A2A 1.0 (JSON-RPC): its card at /a2a/AGENT/.well-known/agent-card.json, its
// endpoint at /a2a/AGENT. Both want the gateway's token, and each call is requests to the gateway's own API with it.
//
// A task is one message of the mesh, and its state is what the mesh knows of that message: any gateway can say it, after any crash, for as long as the
// mesh remembers (mesh.resultRetention after the answer). The task's id follows from the token's name, the agent and the messageId, so a repeated
// messageId is the same task with the same answer, whatever else the repetition says. Two gateways that get one messageId at the same moment may
// both send it. contextId is the conversation.
//
// What there is not: push notifications, ListTasks, an extended card, and tasks that go on after their end (go on with the contextId).
package a2aserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2asrv"
	sdklog "github.com/a2aproject/a2a-go/v2/log"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// cardSuffix ends the path of a card.
const cardSuffix = "/.well-known/agent-card.json"

// Handler serves all agents. api is the gateway's whole API.
func Handler(version string, api http.Handler) http.Handler {
	quiet := slog.New(slog.DiscardHandler) // what goes wrong is in the answers, and in the API's own log
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.WithContext(sdklog.AttachLogger(r.Context(), quiet))
		s := &server{agent: r.PathValue("agent"), call: gateway.CallAs(api, r), version: version, url: selfURL(r)}
		if strings.HasSuffix(r.URL.Path, cardSuffix) {
			s.serveCard(w, r)
			return
		}
		a2asrv.NewJSONRPCHandler(s).ServeHTTP(w, r)
	})
}

// selfURL is the agent's endpoint as the client of r reaches it.
func selfURL(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host + "/a2a/" + url.PathEscape(r.PathValue("agent"))
}

// server answers one request for one agent.
type server struct {
	agent, version, url string
	call                gateway.Call
}

var _ a2asrv.RequestHandler = (*server)(nil)

func (s *server) serveCard(w http.ResponseWriter, r *http.Request) {
	status, body, err := s.call(r.Context(), http.MethodGet, "/v1/agents", nil)
	var list gateway.AgentsResponse
	if err != nil || status != http.StatusOK || json.Unmarshal(body, &list) != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(max(status, http.StatusBadRequest))
		_, _ = w.Write(body)
		return
	}
	for _, a := range list.Agents {
		if a.ID != s.agent {
			continue
		}
		card := &a2a.AgentCard{
			Name: a.Name, Description: a.Description, Version: s.version,
			SupportedInterfaces: []*a2a.AgentInterface{a2a.NewAgentInterface(s.url, a2a.TransportProtocolJSONRPC)},
			Capabilities:        a2a.AgentCapabilities{Streaming: true},
			DefaultInputModes:   []string{"text/plain", "application/json"}, DefaultOutputModes: []string{"text/plain", "application/json"},
			SecuritySchemes:      a2a.NamedSecuritySchemes{"token": a2a.HTTPAuthSecurityScheme{Scheme: "Bearer", Description: "a token of the gateway, with the role send"}},
			SecurityRequirements: a2a.SecurityRequirementsOptions{{"token": a2a.SecuritySchemeScopes{}}},
			Skills:               []a2a.AgentSkill{},
		}
		if card.Name == "" {
			card.Name = a.ID
		}
		for _, c := range a.Capabilities {
			card.Skills = append(card.Skills, a2a.AgentSkill{ID: c, Name: c, Description: c, Tags: []string{c}})
		}
		a2asrv.NewStaticAgentCardHandler(card).ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": gateway.CodeUnknownAgent, "message": "no gateway of the mesh has this agent (GET /v1/agents)"}})
}

// api makes a request to the gateway's API and decodes its answer.
func (s *server) api(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	status, answer, err := s.call(ctx, method, path, body)
	if err != nil {
		return err
	}
	if status < http.StatusBadRequest {
		return json.Unmarshal(answer, out)
	}
	var e gateway.ErrorResponse
	if json.Unmarshal(answer, &e) != nil || e.Error.Code == "" {
		return fmt.Errorf("%w: the gateway answers with HTTP %d", a2a.ErrInternalError, status)
	}
	return &refusal{status: status, api: e.Error}
}

// refusal is an error of the API, which A2A has a word of its own for.
type refusal struct {
	status int
	api    gateway.APIError
}

func (e *refusal) Error() string { return e.api.Message }

func (e *refusal) Unwrap() error {
	switch {
	case e.status == http.StatusUnauthorized:
		return a2a.ErrUnauthenticated
	case e.status == http.StatusForbidden:
		return a2a.ErrUnauthorized
	case e.api.Code == gateway.CodeNotFound:
		return a2a.ErrTaskNotFound
	case e.status == http.StatusTooManyRequests || e.status >= http.StatusInternalServerError:
		return a2a.ErrServerError
	}
	return a2a.ErrInvalidParams
}

// taskID is the id of the task that a message begins, the message's in the mesh; and the mark by which its sender may cancel it.
func (s *server) taskID(ctx context.Context, messageID string) (id, mark string, err error) {
	var who gateway.StatusResponse
	if err := s.api(ctx, http.MethodGet, "/v1/status", nil, &who); err != nil {
		return "", "", err
	}
	id = envelope.DerivedID("a2a/"+who.Caller, s.agent+"/"+messageID)
	return id, gateway.AskedBy(who.Caller, id), nil
}

// begin sends a message, unless it was sent before at whichever gateway, and says what is known of it then.
func (s *server) begin(ctx context.Context, m *a2a.Message) (st gateway.MessageStatus, err error) {
	switch {
	case m == nil || m.ID == "":
		return st, fmt.Errorf("%w: message.messageId is missing", a2a.ErrInvalidParams)
	case m.TaskID != "":
		return st, fmt.Errorf("%w: a task is one question: go on with its contextId", a2a.ErrUnsupportedOperation)
	}
	req := gateway.SendRequest{To: s.agent, ConversationID: m.ContextID, Reply: true}
	if err := fill(&req, m.Parts); err != nil {
		return st, err
	}
	if req.ID, req.CorrelationID, err = s.taskID(ctx, m.ID); err != nil {
		return st, err
	}
	if req.ConversationID == "" {
		req.ConversationID = req.ID
	}
	st, err = s.look(ctx, req.ID, "")
	if !errors.Is(err, a2a.ErrTaskNotFound) {
		return st, err
	}
	err = s.api(ctx, http.MethodPost, "/v1/messages", req, &st)
	var r *refusal
	if errors.As(err, &r) && r.api.Code == gateway.CodeConflict {
		return s.look(ctx, req.ID, "") // it came twice at the same time
	}
	return st, err
}

// fill puts the parts into a request: one of data is the payload, texts are a text.
func fill(req *gateway.SendRequest, parts a2a.ContentParts) error {
	var texts []string
	for _, p := range parts {
		switch c := p.Content.(type) {
		case a2a.Text:
			texts = append(texts, string(c))
		case a2a.Data:
			if len(parts) > 1 {
				return fmt.Errorf("%w: data goes alone, in one part", a2a.ErrUnsupportedContentType)
			}
			b, err := json.Marshal(c.Value)
			if err != nil {
				return fmt.Errorf("%w: %w", a2a.ErrInvalidParams, err)
			}
			req.Payload = b
			return nil
		default:
			return fmt.Errorf("%w: agents take text or data", a2a.ErrUnsupportedContentType)
		}
	}
	text := strings.Join(texts, "\n")
	if strings.TrimSpace(text) == "" {
		return fmt.Errorf("%w: the message is empty", a2a.ErrInvalidParams)
	}
	req.Text = &text
	return nil
}

// look says what the mesh knows of a message, and with wait only once that is so or time is up.
func (s *server) look(ctx context.Context, id, wait string) (st gateway.MessageStatus, err error) {
	path := "/v1/messages/" + url.PathEscape(id)
	if wait != "" {
		path += "?wait=" + wait + "&timeout=" + gateway.MaxWait.String()
	}
	err = s.api(ctx, http.MethodGet, path, nil, &st)
	return st, err
}

// SendMessage implements a2asrv.RequestHandler.
func (s *server) SendMessage(ctx context.Context, req *a2a.SendMessageRequest) (a2a.SendMessageResult, error) {
	st, err := s.begin(ctx, req.Message)
	if err != nil {
		return nil, err
	}
	if req.Config == nil || !req.Config.ReturnImmediately {
		if st, err = s.look(ctx, st.MessageID, gateway.WaitReplied); err != nil {
			return nil, err
		}
	}
	return s.task(st)
}

// GetTask implements a2asrv.RequestHandler.
func (s *server) GetTask(ctx context.Context, req *a2a.GetTaskRequest) (*a2a.Task, error) {
	st, err := s.look(ctx, string(req.ID), "")
	if err != nil {
		return nil, asTask(err)
	}
	return s.task(st)
}

// asTask makes of an id that is none a task that is not there.
func asTask(err error) error {
	if errors.Is(err, a2a.ErrInvalidParams) {
		return fmt.Errorf("%w: %s", a2a.ErrTaskNotFound, err.Error())
	}
	return err
}

// SendStreamingMessage implements a2asrv.RequestHandler.
func (s *server) SendStreamingMessage(ctx context.Context, req *a2a.SendMessageRequest) iter.Seq2[a2a.Event, error] {
	return func(yield func(a2a.Event, error) bool) {
		st, err := s.begin(ctx, req.Message)
		if err != nil {
			yield(nil, err)
			return
		}
		s.stream(ctx, st, yield)
	}
}

// SubscribeToTask implements a2asrv.RequestHandler.
func (s *server) SubscribeToTask(ctx context.Context, req *a2a.SubscribeToTaskRequest) iter.Seq2[a2a.Event, error] {
	return func(yield func(a2a.Event, error) bool) {
		st, err := s.look(ctx, string(req.ID), "")
		if err != nil {
			yield(nil, asTask(err))
			return
		}
		if t, err := s.task(st); err == nil && t.Status.State.Terminal() {
			yield(nil, fmt.Errorf("%w: the task has ended: get it", a2a.ErrUnsupportedOperation))
			return
		}
		s.stream(ctx, st, yield)
	}
}

// stream tells of a task until its end.
func (s *server) stream(ctx context.Context, st gateway.MessageStatus, yield func(a2a.Event, error) bool) {
	before, err := s.task(st)
	if err != nil {
		yield(nil, err)
		return
	}
	if !yield(before, nil) {
		return
	}
	for _, wait := range []string{gateway.WaitDelivered, gateway.WaitReplied} {
		if before.Status.State.Terminal() {
			return
		}
		if st, err = s.look(ctx, st.MessageID, wait); err != nil {
			yield(nil, err)
			return
		}
		now, err := s.task(st)
		if err != nil {
			yield(nil, err)
			return
		}
		for _, a := range now.Artifacts {
			if !yield(&a2a.TaskArtifactUpdateEvent{TaskID: now.ID, ContextID: now.ContextID, Artifact: a, LastChunk: true}, nil) {
				return
			}
		}
		if now.Status.State != before.Status.State && !yield(&a2a.TaskStatusUpdateEvent{TaskID: now.ID, ContextID: now.ContextID, Status: now.Status}, nil) {
			return
		}
		before = now
	}
}

// CancelTask implements a2asrv.RequestHandler: what has not ended can be given up by the token that asked it, and by any with the role operate, also while
// the agent works on it. What that did outside of the mesh by then stays done; where the mesh cannot know whether it was done, the task has failed.
func (s *server) CancelTask(ctx context.Context, req *a2a.CancelTaskRequest) (*a2a.Task, error) {
	st, err := s.look(ctx, string(req.ID), "")
	if err != nil {
		return nil, asTask(err)
	}
	if _, err := s.task(st); err != nil {
		return nil, err // another agent's
	}
	err = s.api(ctx, http.MethodPost, "/v1/messages/"+url.PathEscape(string(req.ID))+"/cancel", gateway.TaskOrder{}, &gateway.MessageCancelled{})
	var r *refusal
	switch {
	case errors.As(err, &r) && r.api.Code == gateway.CodeEnded:
		return nil, fmt.Errorf("%w: %s", a2a.ErrTaskNotCancelable, r.api.Message)
	case err != nil:
		return nil, err
	}
	if st, err = s.look(ctx, string(req.ID), gateway.WaitReplied); err != nil { // its end, which is there
		return nil, err
	}
	return s.task(st)
}

// ListTasks implements a2asrv.RequestHandler.
func (s *server) ListTasks(context.Context, *a2a.ListTasksRequest) (*a2a.ListTasksResponse, error) {
	return nil, a2a.ErrUnsupportedOperation
}

// GetTaskPushConfig implements a2asrv.RequestHandler.
func (s *server) GetTaskPushConfig(context.Context, *a2a.GetTaskPushConfigRequest) (*a2a.PushConfig, error) {
	return nil, a2a.ErrPushNotificationNotSupported
}

// ListTaskPushConfigs implements a2asrv.RequestHandler.
func (s *server) ListTaskPushConfigs(context.Context, *a2a.ListTaskPushConfigRequest) (*a2a.ListTaskPushConfigResponse, error) {
	return nil, a2a.ErrPushNotificationNotSupported
}

// CreateTaskPushConfig implements a2asrv.RequestHandler.
func (s *server) CreateTaskPushConfig(context.Context, *a2a.PushConfig) (*a2a.PushConfig, error) {
	return nil, a2a.ErrPushNotificationNotSupported
}

// DeleteTaskPushConfig implements a2asrv.RequestHandler.
func (s *server) DeleteTaskPushConfig(context.Context, *a2a.DeleteTaskPushConfigRequest) error {
	return a2a.ErrPushNotificationNotSupported
}

// GetExtendedAgentCard implements a2asrv.RequestHandler.
func (s *server) GetExtendedAgentCard(context.Context, *a2a.GetExtendedAgentCardRequest) (*a2a.AgentCard, error) {
	return nil, a2a.ErrExtendedCardNotConfigured
}
