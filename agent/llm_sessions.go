package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// Bounds of what a model is shown of sessions.
const (
	defaultSessions, maxSessions = 20, 100
	defaultHistory, maxHistory   = 50, 200
	maxHistoryText               = 2 << 10
)

// sessionTools are OpenClaw's tools that look at sessions: the agent's own, and those of agents that it may look at ([Spec].SessionsOf). They lie in the store, so it is the same wherever
// those agents are.
func (t *thinker) sessionTools() []Tool {
	if t.deps.Room == nil {
		return nil
	}
	return []Tool{
		{ToolDef: ToolDef{"sessions_list", "Lists conversations that you, or another agent, remember, the newest first.", json.RawMessage(`{
			"type": "object", "properties": {
				"agentId": {"type": "string", "description": "Whose; yours if left out"},
				"activeMinutes": {"type": "number", "description": "Only those with a message in so many minutes"},
				"limit": {"type": "number", "description": "How many, 20 if left out, 100 at most"}}}`)}, Run: t.listSessions},
		{ToolDef: ToolDef{"sessions_history", "Reads the transcript of a conversation that sessions_list names.", json.RawMessage(`{
			"type": "object", "required": ["sessionKey"], "properties": {
				"sessionKey": {"type": "string", "description": "Its key, as sessions_list says it"},
				"limit": {"type": "number", "description": "How many of the last messages, 50 if left out, 200 at most"}}}`)}, Run: t.sessionHistory},
	}
}

// mayRead reports whether the agent may look at the sessions of another one.
func (t *thinker) mayRead(agent string) bool {
	return agent == t.spec.ID || slices.ContainsFunc(t.spec.SessionsOf, func(p string) bool { return matchTool(p, agent) })
}

func (t *thinker) listSessions(ctx context.Context, c *Call) (ToolOutput, error) {
	var in struct {
		Agent  string  `json:"agentId"`
		Active float64 `json:"activeMinutes"`
		Limit  float64 `json:"limit"`
	}
	if err := c.Decode(&in); err != nil {
		return Failed("%v", err), nil
	}
	of := cmp.Or(in.Agent, t.spec.ID)
	if !t.mayRead(of) {
		return Failed("the sessions of %s are not yours to look at (tools.agentToAgent)", clip(of, 80)), nil
	}
	entries, err := t.deps.Room(ctx, of, SessionsPrefix)
	if err != nil {
		return ToolOutput{}, fmt.Errorf("list sessions of %s: %w", of, err)
	}
	type line struct {
		Key      string    `json:"key"`
		Updated  time.Time `json:"updatedAt"`
		Messages int       `json:"messages"`
		Last     string    `json:"lastMessage,omitempty"`
		// Of a sub-session.
		Label     string `json:"label,omitempty"`
		SpawnedBy string `json:"spawnedBy,omitempty"`
		Status    string `json:"status,omitempty"`
	}
	list := []line{}
	for _, e := range entries {
		s, ok := readSession(e)
		if !ok || in.Active > 0 && time.Since(s.Updated) > time.Duration(in.Active*float64(time.Minute)) {
			continue
		}
		l := line{Key: s.Key, Updated: s.Updated, Messages: len(s.Messages)}
		if n := len(s.Messages); n > 0 {
			l.Last = clip(s.Messages[n-1].Text, 200)
		}
		if s.Sub != nil {
			l.Label, l.SpawnedBy, l.Status = s.Sub.Label, s.Sub.SpawnedBy, s.Sub.StatusAt(time.Now())
		}
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b line) int { return cmp.Or(b.Updated.Compare(a.Updated), strings.Compare(a.Key, b.Key)) })
	all := len(list)
	list = list[:min(len(list), clamp(in.Limit, defaultSessions, maxSessions))]
	return ToolOutput{Text: string(mustJSON(map[string]any{"agent": of, "count": all, "sessions": list}))}, nil
}

func (t *thinker) sessionHistory(ctx context.Context, c *Call) (ToolOutput, error) {
	var in struct {
		Key   string  `json:"sessionKey"`
		Limit float64 `json:"limit"`
	}
	if err := c.Decode(&in); err != nil {
		return Failed("%v", err), nil
	}
	rest, ok := strings.CutPrefix(in.Key, "agent:")
	of, name, found := strings.Cut(rest, ":")
	name = SessionName(name)
	if !ok || !found || !roomName.MatchString(name) {
		return Failed("%q is no session: sessions_list names them, as agent:bobby:...", clip(in.Key, 200)), nil
	}
	if !t.mayRead(of) {
		return Failed("the sessions of %s are not yours to look at (tools.agentToAgent)", clip(of, 80)), nil
	}
	entries, err := t.deps.Room(ctx, of, SessionsPrefix+name)
	if err != nil {
		return ToolOutput{}, fmt.Errorf("read the session %s: %w", in.Key, err)
	}
	for _, e := range entries {
		s, ok := readSession(e)
		if !ok || e.Name != SessionsPrefix+name {
			continue
		}
		type line struct {
			Role  string   `json:"role"`
			Text  string   `json:"text,omitempty"`
			Calls []string `json:"calls,omitempty"`
		}
		msgs := s.Messages[max(0, len(s.Messages)-clamp(in.Limit, defaultHistory, maxHistory)):]
		list := make([]line, 0, len(msgs))
		for _, m := range msgs {
			l := line{Role: string(m.Role), Text: cutMiddle(m.Text, maxHistoryText)}
			for _, call := range m.Calls {
				l.Calls = append(l.Calls, call.Name)
			}
			for _, r := range m.Results {
				l.Text += cutMiddle(r.Text, maxHistoryText)
			}
			list = append(list, l)
		}
		return ToolOutput{Text: string(mustJSON(map[string]any{"sessionKey": s.Key, "updatedAt": s.Updated, "left_out": s.Forgotten + len(s.Messages) - len(msgs), "messages": list}))}, nil
	}
	return Failed("there is no session %q", clip(in.Key, 200)), nil
}

func readSession(e bus.RoomEntry) (s Session, ok bool) {
	return s, json.Unmarshal(e.Value, &s) == nil
}

// clamp is how many a model wants, within what it may.
func clamp(wanted float64, otherwise, most int) int {
	if wanted < 1 {
		return otherwise
	}
	return int(min(wanted, float64(most)))
}
