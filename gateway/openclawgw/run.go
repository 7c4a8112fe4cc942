package openclawgw

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

type runParams struct {
	Message        string `json:"message"`
	AgentID        string `json:"agentId"`
	SessionKey     string `json:"sessionKey"`
	IdempotencyKey string `json:"idempotencyKey"`
	// Timeout is in seconds, TimeoutMs (chat.send) in milliseconds; 0: as long as the message lives.
	Timeout   float64 `json:"timeout"`
	TimeoutMs float64 `json:"timeoutMs"`
}

// run is a question on its way.
type run struct {
	c                     *connection
	id, key, agent        string
	message, conversation string // in the mesh
	began                 time.Time
	wait                  time.Duration
	seq                   int
}

// begin sends the question, unless the mesh knows it.
func (c *connection) begin(r request) (*run, error) {
	var p runParams
	if err := params(r, &p); err != nil {
		return nil, err
	}
	switch {
	case p.IdempotencyKey == "":
		return nil, invalid("invalid %s params: must have required property 'idempotencyKey'", r.Method)
	case len(p.IdempotencyKey) > 255:
		return nil, invalid("invalid %s params: idempotencyKey is longer than 255 bytes", r.Method)
	case strings.TrimSpace(p.Message) == "":
		return nil, invalid("invalid %s params: message is empty", r.Method)
	}
	id, conversation, err := c.target(p.SessionKey, p.AgentID)
	if err != nil {
		return nil, err
	}
	u := &run{c: c, id: p.IdempotencyKey, agent: id, conversation: conversation, key: sessionKey(id, conversation), began: time.Now(),
		message: envelope.DerivedID("openclaw/"+c.caller, id+"/"+p.IdempotencyKey), wait: gateway.MaxWait}
	if ms := p.TimeoutMs + p.Timeout*1000; ms >= 1 && ms < float64(u.wait.Milliseconds()) {
		u.wait = time.Duration(ms) * time.Millisecond
	}
	var st gateway.MessageStatus
	err = c.get("/v1/messages/"+u.message, &st)
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		err = c.post("/v1/messages", gateway.SendRequest{ID: u.message, To: id, Text: &p.Message, ConversationID: conversation, Reply: true}, &st)
	}
	return u, err
}

// end waits for the answer and tells of it. Of a run that began as a chat the first event is the chat's own: OpenClaw's TUI takes another one, when it comes
// as fast as the answer to chat.send, for the beginning of somebody else's run, and waits for its own for ever.
func (u *run) end(chat bool) (text string, err error) {
	if !chat {
		u.tell("lifecycle", map[string]any{"phase": "start", "startedAt": u.began.UnixMilli()})
	}
	text, err = u.outcome()
	now := time.Now()
	if err != nil {
		u.chat("error", map[string]any{"errorMessage": err.Error()})
		u.tell("lifecycle", map[string]any{"phase": "error", "error": err.Error(), "startedAt": u.began.UnixMilli(), "endedAt": now.UnixMilli()})
		return "", err
	}
	u.chat("delta", map[string]any{"deltaText": text, "message": message("assistant", text, now)})
	u.tell("assistant", map[string]any{"text": text, "delta": text})
	u.tell("lifecycle", map[string]any{"phase": "end", "startedAt": u.began.UnixMilli(), "endedAt": now.UnixMilli(), "aborted": false, "stopReason": "stop"})
	u.chat("final", map[string]any{"stopReason": "stop", "message": message("assistant", text, now)})
	return text, nil
}

// outcome is the answer, or why there is none.
func (u *run) outcome() (string, error) {
	var st gateway.MessageStatus
	q := url.Values{"wait": {gateway.WaitReplied}, "timeout": {u.wait.String()}}
	if err := u.c.get("/v1/messages/"+u.message+"?"+q.Encode(), &st); err != nil {
		return "", err
	}
	switch f := st.Facts; {
	case f.Dead:
		return "", &wireError{Code: codeUnavailable, Message: "the mesh gave the question up (" + string(f.Class) + "): " + f.Reason}
	case !f.Replied:
		return "", &wireError{Code: codeTimeout, Message: "no answer in time; the question is not lost: ask again with the same idempotencyKey"}
	}
	return st.Text, nil
}

// tell and chat are the two kinds of events of a run.
func (u *run) tell(stream string, data map[string]any) {
	u.seq++
	u.c.event("agent", map[string]any{"runId": u.id, "sessionKey": u.key, "agentId": u.agent, "stream": stream, "data": data, "seq": u.seq, "ts": time.Now().UnixMilli()})
}

func (u *run) chat(state string, more map[string]any) {
	p := map[string]any{"runId": u.id, "sessionKey": u.key, "agentId": u.agent, "seq": u.seq, "state": state}
	for k, v := range more {
		p[k] = v
	}
	u.c.event("chat", p)
}

// agent answers twice: accepted, and with the result.
func (c *connection) agent(r request) (any, error) {
	u, err := c.begin(r)
	if err != nil {
		return nil, err
	}
	c.answer(r.ID, map[string]any{"runId": u.id, "sessionKey": u.key, "agentId": u.agent, "status": "accepted", "acceptedAt": u.began.UnixMilli()})
	text, err := u.end(false)
	if err != nil {
		c.fail(r.ID, err)
		return nil, nil //nolint:nilnil // it has answered
	}
	return map[string]any{
		"runId": u.id, "status": "ok", "summary": "completed",
		"result": map[string]any{
			"payloads": []any{map[string]any{"text": text, "mediaUrl": nil}},
			"meta":     map[string]any{"durationMs": time.Since(u.began).Milliseconds(), "agentMeta": map[string]any{"sessionId": envelope.DerivedID("openclaw/session", u.key), "provider": "gatemesh", "model": u.agent}, "aborted": false},
		},
	}, nil
}

// chatSend answers once; the rest comes as events.
func (c *connection) chatSend(r request) (any, error) {
	u, err := c.begin(r)
	if err != nil {
		return nil, err
	}
	c.answer(r.ID, map[string]any{"runId": u.id, "status": "started"})
	_, _ = u.end(true) // the events say it
	return nil, nil    //nolint:nilnil // it has answered
}
