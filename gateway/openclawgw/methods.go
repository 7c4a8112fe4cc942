package openclawgw

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// mainKey is the conversation that is meant when none is named.
const mainKey = "main"

// method answers a request; nil and no error: it has answered itself.
type method func(*connection, request) (any, error)

// methods is all that is served.
var methods map[string]method

func init() { //nolint:gochecknoinits // the table names functions that read it
	methods = map[string]method{
		"health":             func(c *connection, _ request) (any, error) { return c.health() },
		"status":             (*connection).status,
		"agent":              (*connection).agent,
		"agents.list":        (*connection).agentsList,
		"chat.send":          (*connection).chatSend,
		"chat.history":       (*connection).chatHistory,
		"sessions.list":      (*connection).sessionsList,
		"sessions.describe":  (*connection).sessionsDescribe,
		"sessions.subscribe": func(*connection, request) (any, error) { return map[string]any{"subscribed": true}, nil },
		"models.list":        func(*connection, request) (any, error) { return map[string]any{"models": []any{}}, nil },
		"commands.list":      func(*connection, request) (any, error) { return map[string]any{"commands": []any{}}, nil },
	}
}

func methodNames() (names []string) {
	for name := range methods {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func sessionKey(agent, conversation string) string { return "agent:" + agent + ":" + conversation }

// target is the agent and the conversation that a request means.
func (c *connection) target(key, agentID string) (id, conversation string, err error) {
	id, conversation = agentID, mainKey
	if rest, ok := strings.CutPrefix(key, "agent:"); ok {
		named, name, _ := strings.Cut(rest, ":")
		if agentID != "" && agentID != named || name == "" {
			return "", "", invalid("the session %q is not one of the agent %q: want agent:ID:NAME", clip(key), clip(agentID))
		}
		id, conversation = named, name
	} else if key != "" {
		conversation = key
	}
	if id == "" {
		var st gateway.StatusResponse
		if err := c.get("/v1/status", &st); err != nil {
			return "", "", err
		}
		if id = st.DefaultAgent; id == "" {
			return "", "", invalid("name an agent: this gateway has no default")
		}
	}
	if !envelope.ValidName(id) {
		return "", "", invalid("%q is not the id of an agent", clip(id))
	}
	return id, conversation, nil
}

// health is what `openclaw health` shows.
func (c *connection) health() (any, error) {
	began := time.Now()
	var st gateway.StatusResponse
	var list gateway.AgentsResponse
	if err := c.get("/v1/status", &st); err != nil {
		return nil, err
	}
	if err := c.get("/v1/agents", &list); err != nil && st.Ready {
		return nil, err
	}
	none := map[string]any{"path": st.Store, "count": 0, "recent": []any{}}
	agents := []any{}
	for _, a := range list.Agents {
		agents = append(agents, map[string]any{
			"agentId": a.ID, "name": display(a.Name, a.ID), "isDefault": a.ID == st.DefaultAgent, "sessions": none,
			"heartbeat": map[string]any{"enabled": false, "every": "disabled", "everyMs": nil, "prompt": "", "target": "none", "ackMaxChars": 0},
		})
	}
	return map[string]any{
		"ok": st.Ready, "ts": began.UnixMilli(), "durationMs": time.Since(began).Milliseconds(), "channels": map[string]any{}, "channelOrder": []any{}, "channelLabels": map[string]any{},
		"heartbeatSeconds": 0, "defaultAgentId": st.DefaultAgent, "agents": agents, "sessions": none,
	}, nil
}

func (c *connection) status(request) (any, error) {
	var st gateway.StatusResponse
	if err := c.get("/v1/status", &st); err != nil {
		return nil, err
	}
	return map[string]any{
		"runtimeVersion": c.version, "gateway": st.Gateway, "store": st.Store, "ready": st.Ready, "owned": st.Owned,
		"heartbeat":      map[string]any{"defaultAgentId": st.DefaultAgent, "agents": []any{}},
		"channelSummary": []any{}, "queuedSystemEvents": []any{},
		"sessions": map[string]any{"paths": []any{}, "count": 0, "defaults": map[string]any{"model": nil, "contextTokens": nil}, "recent": []any{}},
	}, nil
}

func display(name, id string) string {
	if name != "" {
		return name
	}
	return id
}

func (c *connection) agentsList(request) (any, error) {
	var st gateway.StatusResponse
	var list gateway.AgentsResponse
	if err := errors.Join(c.get("/v1/status", &st), c.get("/v1/agents", &list)); err != nil {
		return nil, err
	}
	agents := []any{}
	for _, a := range list.Agents {
		agents = append(agents, map[string]any{"id": a.ID, "name": display(a.Name, a.ID)})
	}
	return map[string]any{"defaultId": st.DefaultAgent, "mainKey": mainKey, "scope": "per-sender", "agents": agents}, nil
}

type sessionParams struct {
	Key        string `json:"key"`
	SessionKey string `json:"sessionKey"`
	AgentID    string `json:"agentId"`
	Limit      int    `json:"limit"`
}

// sessionRow is a session in a list.
func sessionRow(s gateway.SessionInfo) map[string]any {
	return map[string]any{
		"key": sessionKey(s.Agent, s.Conversation), "kind": "direct", "agentId": s.Agent, "displayName": s.Conversation, "updatedAt": s.Updated.UnixMilli(),
		"sessionId": envelope.DerivedID("openclaw/session", s.Key), "totalTokensFresh": false,
	}
}

func (c *connection) sessions(agentID string) ([]gateway.SessionInfo, error) {
	var list gateway.SessionsResponse
	path := "/v1/sessions"
	if agentID != "" {
		path += "?agent=" + url.QueryEscape(agentID)
	}
	err := c.get(path, &list)
	return list.Sessions, err
}

func (c *connection) sessionsList(r request) (any, error) {
	var p sessionParams
	if err := params(r, &p); err != nil {
		return nil, err
	}
	all, err := c.sessions(p.AgentID)
	if err != nil {
		return nil, err
	}
	rows := []any{}
	for _, s := range all {
		if p.Limit <= 0 || len(rows) < p.Limit {
			rows = append(rows, sessionRow(s))
		}
	}
	return map[string]any{
		"ts": time.Now().UnixMilli(), "path": "(mesh)", "count": len(rows), "totalCount": len(all), "hasMore": len(rows) < len(all),
		"defaults": map[string]any{"modelProvider": nil, "model": nil, "contextTokens": nil}, "sessions": rows,
	}, nil
}

func (c *connection) sessionsDescribe(r request) (any, error) {
	var p sessionParams
	if err := params(r, &p); err != nil {
		return nil, err
	}
	id, conversation, err := c.target(p.Key, p.AgentID)
	if err != nil {
		return nil, err
	}
	all, err := c.sessions(id)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.Conversation == conversation {
			return map[string]any{"session": sessionRow(s)}, nil
		}
	}
	return map[string]any{"session": nil}, nil
}

// chatHistory is what the agent remembers; one that remembers nothing (it does not think) has no history.
func (c *connection) chatHistory(r request) (any, error) {
	var p sessionParams
	if err := params(r, &p); err != nil {
		return nil, err
	}
	id, conversation, err := c.target(p.SessionKey, p.AgentID)
	if err != nil {
		return nil, err
	}
	var s agent.Session
	err = c.get("/v1/sessions/"+url.PathEscape(id)+"/"+url.PathEscape(conversation), &s)
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	messages := []any{}
	for _, m := range s.Messages {
		if m.Text != "" && (m.Role == agent.RoleUser || m.Role == agent.RoleAssistant) {
			messages = append(messages, message(string(m.Role), m.Text, s.Updated))
		}
	}
	if p.Limit > 0 && len(messages) > p.Limit {
		messages = messages[len(messages)-p.Limit:]
	}
	key := sessionKey(id, conversation)
	return map[string]any{"sessionKey": key, "sessionId": envelope.DerivedID("openclaw/session", key), "messages": messages}, nil
}

func message(role, text string, at time.Time) map[string]any {
	return map[string]any{"role": role, "content": []any{map[string]any{"type": "text", "text": text}}, "timestamp": at.UnixMilli()}
}
