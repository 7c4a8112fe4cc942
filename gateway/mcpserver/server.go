// Package mcpserver is the MCP server consul-registry (plan, "Custom MCP Server"): the mesh as tools, for agents of other programs. Each tool is one
// request to the gateway's own API, with the token that its caller came with: there is no second way around roles, policy, limits and the audit log.
//
// An agent that lives behind it has the runner mailbox in the gateway's configuration, and best a token of its own (gateway.auth.tokens, agent): MCP
// passes no identity of its caller. It looks for messages with check_inbox, which leases them, and says of each what became of it: ack_message,
// reply_message or nak_message. What nobody acks is handed out again when its lease is over.
package mcpserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/gatemesh/gatemesh/gateway"
)

// Name is what the server calls itself, as the plan does.
const Name = "consul-registry"

// New makes a server whose tools are requests by call.
func New(version string, call gateway.Call) *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: Name, Version: version}, &mcp.ServerOptions{
		Instructions: "Agents of a mesh of gateways. Find them with agent_discover, ask one with send_message, look for what was sent to you with check_inbox, and say of each message what became of it.",
	})
	t := &tools{call}
	mcp.AddTool(s, &mcp.Tool{Name: "agent_register", Description: "Say that an agent is here, and learn how it is known in the mesh. It must be configured with the runner mailbox."}, t.register)
	mcp.AddTool(s, &mcp.Tool{Name: "agent_discover", Description: "List the agents of the mesh, or those with a capability, and which gateway has each.", Annotations: readOnly}, t.discover)
	mcp.AddTool(s, &mcp.Tool{Name: "agent_heartbeat", Description: "Write down what the agent's last check found."}, t.heartbeat)
	mcp.AddTool(s, &mcp.Tool{Name: "send_message", Description: "Send a message to an agent, on whichever gateway it lives. It is durable when this returns. With wait_seconds the answer is waited for."}, t.send)
	mcp.AddTool(s, &mcp.Tool{Name: "check_inbox", Description: "Lease messages that were sent to the agent. Ack, reply to or give back each before its lease is over; else it is handed out again."}, t.inbox)
	mcp.AddTool(s, &mcp.Tool{Name: "ack_message", Description: "Say that a leased message is done."}, t.verdict("ack"))
	mcp.AddTool(s, &mcp.Tool{Name: "reply_message", Description: "Answer a leased message, and say that it is done."}, t.reply)
	mcp.AddTool(s, &mcp.Tool{Name: "nak_message", Description: "Give a leased message back, to be handed out again."}, t.nak)
	mcp.AddTool(s, &mcp.Tool{Name: "message_status", Description: "Say what became of a message: accepted, delivered, acked, replied, or given up and why.", Annotations: readOnly}, t.status)
	mcp.AddTool(s, &mcp.Tool{Name: "dead_letters", Description: "List the messages that were given up, and why.", Annotations: readOnly}, t.deadLetters)
	return s
}

var readOnly = &mcp.ToolAnnotations{ReadOnlyHint: true}

// Handler serves MCP over streamable HTTP, without sessions: each request is its own, with its own token. api is the gateway's whole API.
func Handler(version string, api http.Handler) http.Handler {
	return mcp.NewStreamableHTTPHandler(func(r *http.Request) *mcp.Server {
		return New(version, gateway.CallAs(api, r))
	}, &mcp.StreamableHTTPOptions{Stateless: true, JSONResponse: true, MaxRequestBodyBytes: gateway.MaxBodyBytes})
}

type tools struct{ call gateway.Call }

// ask makes a request and hands its answer to the model as it is: JSON, which names everything. A refusal is the tool's error, in the API's own words.
func (t *tools) ask(ctx context.Context, method, path string, body any) (*mcp.CallToolResult, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	status, answer, err := t.call(ctx, method, path, b)
	if err != nil {
		return nil, err
	}
	if status >= 400 {
		var e struct{ Error gateway.APIError }
		if json.Unmarshal(answer, &e) != nil || e.Error.Message == "" {
			return nil, fmt.Errorf("the gateway answers with HTTP %d", status)
		}
		return nil, errors.New(e.Error.Message)
	}
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: strings.TrimSpace(string(answer))}}}, nil
}

// self is the agent that is meant: the one that was named, else the token's own.
func (t *tools) self(ctx context.Context, named string) (string, error) {
	if named != "" {
		return url.PathEscape(named), nil
	}
	status, answer, err := t.call(ctx, http.MethodGet, "/v1/status", nil)
	var s gateway.StatusResponse
	if err != nil || status != http.StatusOK || json.Unmarshal(answer, &s) != nil || s.Agent == "" {
		return "", errors.New("agent_id is missing: name the agent (this token is not an agent's own)")
	}
	return s.Agent, nil
}

type registerIn struct {
	Agent        string   `json:"agent_id,omitempty" jsonschema:"the agent; the token's own when left out"`
	Capabilities []string `json:"capabilities,omitempty" jsonschema:"what it can do; the gateway's configuration counts"`
	Gateway      string   `json:"gateway_id,omitempty" jsonschema:"its gateway; the one that is asked when left out"`
}

func (t *tools) register(ctx context.Context, _ *mcp.CallToolRequest, in registerIn) (*mcp.CallToolResult, any, error) {
	id, err := t.self(ctx, in.Agent)
	if err != nil {
		return nil, nil, err
	}
	// Who may not fetch there, or cannot, hears why.
	if _, err := t.ask(ctx, http.MethodGet, "/v1/agents/"+id+"/mailbox", nil); err != nil {
		return nil, nil, err
	}
	status, answer, err := t.call(ctx, http.MethodGet, "/v1/agents", nil)
	if err != nil {
		return nil, nil, err
	}
	var list gateway.AgentsResponse
	if status != http.StatusOK || json.Unmarshal(answer, &list) != nil {
		return nil, nil, fmt.Errorf("the gateway answers with HTTP %d", status)
	}
	for _, a := range list.Agents {
		if a.ID == id {
			b, err := json.Marshal(map[string]any{"success": true, "registered_at": time.Now().UTC().Format(time.RFC3339), "agent": a})
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: string(b)}}}, nil, err
		}
	}
	return nil, nil, fmt.Errorf("%s has no owner yet: try again in a moment", id)
}

type discoverIn struct {
	Capability string `json:"capability,omitempty" jsonschema:"only agents that can do this"`
}

func (t *tools) discover(ctx context.Context, _ *mcp.CallToolRequest, in discoverIn) (*mcp.CallToolResult, any, error) {
	path := "/v1/agents"
	if in.Capability != "" {
		path += "?capability=" + url.QueryEscape(in.Capability)
	}
	r, err := t.ask(ctx, http.MethodGet, path, nil)
	return r, nil, err
}

type heartbeatIn struct {
	Agent  string `json:"agent_id,omitempty" jsonschema:"the agent; the token's own when left out"`
	Status string `json:"status,omitempty" jsonschema:"for people; that it lives shows the gateway"`
	Result string `json:"last_check_result" jsonschema:"as all-healthy, or alert: 2 failed allocations, 0 unhealthy services"`
	Alert  string `json:"last_alert,omitempty" jsonschema:"what was wrong, if anything was"`
}

func (t *tools) heartbeat(ctx context.Context, _ *mcp.CallToolRequest, in heartbeatIn) (*mcp.CallToolResult, any, error) {
	id, err := t.self(ctx, in.Agent)
	if err != nil {
		return nil, nil, err
	}
	r, err := t.ask(ctx, http.MethodPost, "/v1/agents/"+id+"/check", gateway.CheckRequest{Result: in.Result, Alert: in.Alert})
	return r, nil, err
}

type sendIn struct {
	From         string  `json:"from_agent,omitempty" jsonschema:"who sends; the token's own agent when left out"`
	To           string  `json:"to_agent" jsonschema:"agent, or agent@gateway"`
	Message      string  `json:"message_body" jsonschema:"what to say"`
	Capability   string  `json:"capability,omitempty" jsonschema:"what is asked for, as infra.check"`
	Conversation string  `json:"conversation_id,omitempty" jsonschema:"messages of one conversation come one after the other"`
	ID           string  `json:"message_id,omitempty" jsonschema:"a lower-case UUID that makes sending again safe"`
	Wait         float64 `json:"wait_seconds,omitempty" jsonschema:"how long to wait for the answer, at most 300; 0: not at all"`
}

func (t *tools) send(ctx context.Context, _ *mcp.CallToolRequest, in sendIn) (*mcp.CallToolResult, any, error) {
	req := gateway.SendRequest{ID: in.ID, From: in.From, To: in.To, Text: &in.Message, Capability: in.Capability, ConversationID: in.Conversation, Reply: true}
	if in.Wait > 0 {
		req.Wait, req.Timeout = gateway.WaitReplied, seconds(min(in.Wait, 300))
	}
	r, err := t.ask(ctx, http.MethodPost, "/v1/messages", req)
	return r, nil, err
}

func seconds(s float64) string { return time.Duration(s * float64(time.Second)).String() }

type inboxIn struct {
	Agent string  `json:"agent_id,omitempty" jsonschema:"the agent; the token's own when left out"`
	Max   int     `json:"max,omitempty" jsonschema:"how many messages, 10 when left out"`
	Wait  float64 `json:"wait_seconds,omitempty" jsonschema:"how long to wait for the first one, at most 60"`
	Lease float64 `json:"lease_seconds,omitempty" jsonschema:"how long they are leased, 60 when left out, at most 3600"`
}

func (t *tools) inbox(ctx context.Context, _ *mcp.CallToolRequest, in inboxIn) (*mcp.CallToolResult, any, error) {
	id, err := t.self(ctx, in.Agent)
	if err != nil {
		return nil, nil, err
	}
	q := gateway.MailRequest{Max: in.Max}
	if in.Wait > 0 {
		q.Wait = seconds(min(in.Wait, 60))
	}
	if in.Lease > 0 {
		q.Lease = seconds(in.Lease)
	}
	r, err := t.ask(ctx, http.MethodPost, "/v1/agents/"+id+"/mail", q)
	return r, nil, err
}

type verdictIn struct {
	Agent string `json:"agent_id,omitempty" jsonschema:"the agent; the token's own when left out"`
	ID    string `json:"message_id" jsonschema:"of the leased message"`
}

type replyIn struct {
	verdictIn
	Message string `json:"message_body" jsonschema:"the answer"`
}

type nakIn struct {
	verdictIn
	Reason string  `json:"reason,omitempty" jsonschema:"why; it is kept with the message"`
	After  float64 `json:"after_seconds,omitempty" jsonschema:"when to hand it out again"`
}

func (t *tools) verdict(what string) mcp.ToolHandlerFor[verdictIn, any] {
	return func(ctx context.Context, _ *mcp.CallToolRequest, in verdictIn) (*mcp.CallToolResult, any, error) {
		return t.settle(ctx, in, what, gateway.MailOrder{})
	}
}

func (t *tools) reply(ctx context.Context, _ *mcp.CallToolRequest, in replyIn) (*mcp.CallToolResult, any, error) {
	return t.settle(ctx, in.verdictIn, "reply", gateway.MailOrder{Text: &in.Message})
}

func (t *tools) nak(ctx context.Context, _ *mcp.CallToolRequest, in nakIn) (*mcp.CallToolResult, any, error) {
	o := gateway.MailOrder{Reason: in.Reason}
	if in.After > 0 {
		o.After = seconds(in.After)
	}
	return t.settle(ctx, in.verdictIn, "nak", o)
}

func (t *tools) settle(ctx context.Context, in verdictIn, what string, o gateway.MailOrder) (*mcp.CallToolResult, any, error) {
	id, err := t.self(ctx, in.Agent)
	if err != nil {
		return nil, nil, err
	}
	r, err := t.ask(ctx, http.MethodPost, "/v1/agents/"+id+"/mail/"+url.PathEscape(in.ID)+"/"+what, o)
	return r, nil, err
}

type statusIn struct {
	ID string `json:"message_id" jsonschema:"of the message"`
}

func (t *tools) status(ctx context.Context, _ *mcp.CallToolRequest, in statusIn) (*mcp.CallToolResult, any, error) {
	r, err := t.ask(ctx, http.MethodGet, "/v1/messages/"+url.PathEscape(in.ID), nil)
	return r, nil, err
}

type deadIn struct {
	Agent string `json:"agent_id,omitempty" jsonschema:"only those that were meant for this agent"`
	Limit int    `json:"limit,omitempty" jsonschema:"how many, 20 when left out"`
}

func (t *tools) deadLetters(ctx context.Context, _ *mcp.CallToolRequest, in deadIn) (*mcp.CallToolResult, any, error) {
	q := url.Values{"limit": {"20"}}
	if in.Limit > 0 {
		q.Set("limit", fmt.Sprint(in.Limit))
	}
	if in.Agent != "" {
		q.Set("agent", in.Agent)
	}
	r, err := t.ask(ctx, http.MethodGet, "/v1/deadletters?"+q.Encode(), nil)
	return r, nil, err
}
