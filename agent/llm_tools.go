package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// tools are those that the agent may use now, for a message.
func (t *thinker) tools(m *bus.Incoming) toolbox {
	sets := [][]Tool{t.meshTools(), t.spawnTools(), t.sessionTools(), t.readsSkills()}
	for _, s := range t.sets {
		sets = append(sets, s.Tools())
	}
	policies := t.spec.Tools
	if isSub(m) {
		policies = append(policies[:len(policies):len(policies)], subPolicy)
	}
	return pick(policies, sets...)
}

// meshTools are those of the mesh, by OpenClaw's names.
func (t *thinker) meshTools() []Tool {
	return []Tool{
		{ToolDef: ToolDef{"sessions_send", "Sends a message to another agent and waits for its answer. The agent may be on any gateway.", json.RawMessage(`{
			"type": "object", "required": ["sessionKey", "message"], "properties": {
				"sessionKey": {"type": "string", "description": "The agent: its id, agent@gateway, or agent:<id>:main"},
				"message": {"type": "string", "description": "What to ask or tell it"},
				"capability": {"type": "string", "description": "What of its capabilities is meant, if it has several"},
				"timeoutSeconds": {"type": "number", "description": "How long to wait for the answer, 60 if left out"}}}`)}, Effect: EffectMesh, Timeout: -1, Run: t.send},
		{ToolDef: ToolDef{"agents_list", "Lists the agents of the mesh, with what they can be asked for.", json.RawMessage(`{
			"type": "object", "properties": {"capability": {"type": "string", "description": "Only those that have it"}}}`)}, Run: t.agents},
	}
}

// agents is agents_list.
func (t *thinker) agents(_ context.Context, c *Call) (ToolOutput, error) {
	var in struct {
		Capability string `json:"capability"`
	}
	if err := c.Decode(&in); err != nil {
		return Failed("%v", err), nil
	}
	list := t.deps.Directory.Agents(in.Capability)
	return ToolOutput{Text: string(mustJSON(map[string]any{"requester": t.spec.ID, "agents": list[:min(len(list), maxListed)]}))}, nil
}

// sent is what sessions_send tells the model: the four facts, each for itself.
type sent struct {
	Status    string `json:"status"`
	MessageID string `json:"messageId,omitempty"`
	Accepted  bool   `json:"accepted"`
	Delivered bool   `json:"delivered"`
	Acked     bool   `json:"acked"`
	Replied   bool   `json:"replied"`
	From      string `json:"from,omitempty"`
	Reply     string `json:"reply,omitempty"`
	Error     string `json:"error,omitempty"`
}

const (
	defaultSendWait = 60 * time.Second
	longestSendWait = 10 * time.Minute
)

// send is sessions_send.
func (t *thinker) send(ctx context.Context, c *Call) (ToolOutput, error) {
	m := c.Message
	var in struct {
		SessionKey string  `json:"sessionKey"`
		Message    string  `json:"message"`
		Capability string  `json:"capability"`
		Timeout    float64 `json:"timeoutSeconds"`
	}
	if err := c.Decode(&in); err != nil {
		return Failed("%v", err), nil
	}
	to, err := target(in.SessionKey)
	if err != nil || in.Message == "" {
		return Failed("wrong arguments: sessionKey names an agent (bobby, bobby@bobby-gateway), message is what to say"), nil
	}
	e := &m.Envelope().Envelope
	if e.Terminal {
		return Failed("not sent: the message at hand is an answer, and must not cause questions"), nil
	}
	wait := defaultSendWait
	if in.Timeout > 0 {
		wait = time.Duration(min(in.Timeout, longestSendWait.Seconds()) * float64(time.Second))
	}
	wait = untilReply(m, wait)
	bounded, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	answer, err := m.Ask(bounded, bus.Outgoing{
		To: to, Capability: in.Capability, Payload: envelope.TextPayload(in.Message),
		ConversationID: envelope.DerivedID(e.ConversationID, t.spec.ID),
		TTL:            max(time.Until(e.ExpiresAt()).Truncate(time.Second), time.Second),
	})
	if err == nil {
		return ToolOutput{Text: string(mustJSON(sent{Status: "ok", MessageID: answer.InReplyTo, Accepted: true, Delivered: true, Acked: true, Replied: true,
			From: answer.SourceAgent + "@" + answer.SourceGateway, Reply: Text(answer.Payload)}))}, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return ToolOutput{}, cause
	}
	out, known := unanswered(err)
	if !known {
		return ToolOutput{}, fmt.Errorf("ask %s: %w", to.Agent, err)
	}
	return ToolOutput{Text: string(mustJSON(out)), Failed: true}, nil
}

// unanswered is what is known of a question without an answer; false: the bus is to try again.
func unanswered(err error) (sent, bool) {
	var noAnswer *bus.NoAnswerError
	var dead *bus.DeadLetterError
	var hops *envelope.HopsError
	var budget *envelope.BudgetError
	switch {
	case errors.As(err, &noAnswer):
		f := noAnswer.Facts
		return sent{Status: "timeout", MessageID: noAnswer.MessageID, Accepted: f.Accepted, Delivered: f.Delivered, Acked: f.Acked, Error: "no answer in time; it may still come"}, true
	case errors.As(err, &dead):
		return sent{Status: "dead-letter", MessageID: dead.MessageID, Accepted: true, Error: fmt.Sprintf("%s: %s", dead.Class, dead.Reason)}, true
	case errors.As(err, &hops), errors.As(err, &budget), errors.Is(err, bus.ErrInboxFull), errors.Is(err, bus.ErrUnknownAgent),
		errors.Is(err, envelope.ErrInvalid), errors.Is(err, bus.ErrTooLarge):
		return sent{Status: "error", Error: err.Error()}, true
	}
	return sent{}, false
}

// target reads an agent's address: bobby, bobby@gateway, or OpenClaw's agent:bobby:main.
func target(key string) (envelope.Address, error) {
	if rest, ok := strings.CutPrefix(key, "agent:"); ok {
		key, _, _ = strings.Cut(rest, ":")
	}
	return envelope.ParseAddress(key)
}
