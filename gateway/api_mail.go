package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// Mail is one message that was fetched: it is leased until Until, and is handed out again when nobody says by then what became of it.
type Mail struct {
	MessageID      string          `json:"message_id"`
	From           string          `json:"from"` // agent@gateway
	Capability     string          `json:"capability,omitempty"`
	ConversationID string          `json:"conversation_id,omitempty"`
	Text           string          `json:"text"`
	Payload        json.RawMessage `json:"payload"`
	Attempt        int             `json:"attempt"`
	SentAt         envelope.Time   `json:"sent_at"`
	ExpiresAt      envelope.Time   `json:"expires_at"`
	Until          envelope.Time   `json:"leased_until"`
}

// MailRequest is the body of POST /v1/agents/{agent}/mail: how many messages (10, at most 100), how long to wait for the first one (not at all, at most
// 5m), and for how long they are leased (1m, at most 1h).
type MailRequest struct {
	Max   int    `json:"max,omitempty"`
	Wait  string `json:"wait,omitempty"`
	Lease string `json:"lease,omitempty"`
}

// MailResponse answers it.
type MailResponse struct {
	Mail []Mail `json:"mail"`
}

// MailboxResponse answers GET /v1/agents/{agent}/mailbox: what can be fetched at once, and what was. More may wait in the inbox.
type MailboxResponse struct {
	Waiting int `json:"waiting"`
	Leased  int `json:"leased"`
}

// CheckRequest is the body of POST /v1/agents/{agent}/check: what the agent's last check found.
type CheckRequest struct {
	Result string `json:"last_check_result"`
	Alert  string `json:"last_alert,omitempty"`
}

// MailOrder is the body of POST /v1/agents/{agent}/mail/{id}/{verdict}: ack and working need nothing, reply a text or a payload.
type MailOrder struct {
	Text    *string         `json:"text,omitempty"`    // reply
	Payload json.RawMessage `json:"payload,omitempty"` // reply
	Reason  string          `json:"reason,omitempty"`  // nak, reject
	After   string          `json:"after,omitempty"`   // nak: when to try again
	Lease   string          `json:"lease,omitempty"`   // working: how much longer, from now
}

// MailVerdict answers it.
type MailVerdict struct {
	MessageID string        `json:"message_id"`
	Verdict   string        `json:"verdict"`
	Until     envelope.Time `json:"leased_until,omitzero"` // working
}

// mayBe refuses a token that speaks for another agent than the one of the path.
func mayBe(r *http.Request, agent string) error {
	if c := callerOf(r); c != nil && c.agent != "" && c.agent != agent {
		return &APIError{status: http.StatusForbidden, Code: CodeRole, Message: "the token " + c.name + " is for the agent " + c.agent}
	}
	return nil
}

// getMailbox is GET /v1/agents/{agent}/mailbox.
func (g *Gateway) getMailbox(w http.ResponseWriter, r *http.Request) error {
	box, err := g.mailboxOf(r)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, box.count())
}

// postCheck is POST /v1/agents/{agent}/check.
func (g *Gateway) postCheck(w http.ResponseWriter, r *http.Request) error {
	var c CheckRequest
	if err := decodeBody(r, &c); err != nil {
		return err
	}
	id := r.PathValue("agent")
	if err := mayBe(r, id); err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	n, err := b.NoteCheck(r.Context(), id, bus.CheckNote{Result: c.Result, Alert: c.Alert})
	if errors.Is(err, bus.ErrDeposed) {
		return &APIError{status: http.StatusConflict, Code: CodeNotOwned, Message: "the inbox of " + clipText(id, 64) + " is not at this gateway: say it where the agent runs"}
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, n)
}

// mailboxOf is the mailbox of the path, if the caller may use it and it is here.
func (g *Gateway) mailboxOf(r *http.Request) (*mailbox, error) {
	id := r.PathValue("agent")
	if err := mayBe(r, id); err != nil {
		return nil, err
	}
	b, err := g.ready()
	if err != nil {
		return nil, err
	}
	l := g.agents[id]
	if l == nil {
		return nil, &APIError{status: http.StatusNotFound, Code: CodeUnknownAgent, Message: "no agent " + clipText(id, 64) + " runs here: give one the runner mailbox in agents.list"}
	}
	box, ok := l.now.Load().handler.(*mailbox)
	if !ok {
		return nil, badRequest("agent", "%s has a runner of its own: only an agent with the runner mailbox fetches its messages", id)
	}
	if owner := b.OwnerOf(id); owner != "" && owner != g.name {
		where := ""
		for _, gw := range b.Gateways() {
			if gw.Name == owner {
				where = " (" + gw.URL + ")"
			}
		}
		return nil, &APIError{status: http.StatusConflict, Code: CodeNotOwned, Message: "the inbox of " + id + " is at " + owner + where + " now: fetch there"}
	}
	return box, nil
}

// postFetch is POST /v1/agents/{agent}/mail. It is no GET: it leases.
func (g *Gateway) postFetch(w http.ResponseWriter, r *http.Request) error {
	var q MailRequest
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	box, err := g.mailboxOf(r)
	if err != nil {
		return err
	}
	most := cmp.Or(q.Max, 10)
	if most < 1 || most > maxFetch {
		return badRequest("max", "max is how many messages to fetch, 1 to %d", maxFetch)
	}
	wait, err := mailDuration("wait", q.Wait, 0, 5*time.Minute)
	if err != nil {
		return err
	}
	lease, err := mailDuration("lease", q.Lease, defaultLease, longestLease)
	if err != nil {
		return err
	}
	ctx, cancel := g.patient(w, r, wait)
	defer cancel()
	if wait == 0 {
		var end context.CancelFunc
		ctx, end = context.WithCancel(r.Context())
		end()
	}
	resp := MailResponse{Mail: []Mail{}}
	list, until := box.fetch(ctx, most, lease)
	for _, m := range list {
		e := m.Envelope()
		resp.Mail = append(resp.Mail, Mail{
			MessageID: e.MessageID, From: e.SourceAgent + "@" + e.SourceGateway, Capability: e.Capability, ConversationID: e.ConversationID,
			Text: agent.Text(e.Payload), Payload: e.Payload, Attempt: m.Attempt(), SentAt: e.CreatedAt, ExpiresAt: envelope.At(e.ExpiresAt()), Until: envelope.At(until),
		})
	}
	return writeJSON(w, http.StatusOK, resp)
}

func mailDuration(name, text string, otherwise, most time.Duration) (time.Duration, error) {
	if text == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > most {
		return 0, badRequest(name, "%s %q is not a duration up to %s, such as \"30s\"", name, clipText(text, 40), most)
	}
	return d, nil
}

// postMail is POST /v1/agents/{agent}/mail/{id}/{verdict}.
func (g *Gateway) postMail(w http.ResponseWriter, r *http.Request) error {
	var o MailOrder
	if err := decodeBody(r, &o); err != nil {
		return err
	}
	box, err := g.mailboxOf(r)
	if err != nil {
		return err
	}
	v := MailVerdict{MessageID: r.PathValue("id"), Verdict: r.PathValue("verdict")}
	if !isMessageID(v.MessageID) {
		return badRequest("id", "that is not the id of a message")
	}
	reason := clipText(o.Reason, 500)
	switch v.Verdict {
	case "ack":
		err = box.settle(v.MessageID, ackIt)
	case "reply":
		payload := []byte(o.Payload)
		switch {
		case (o.Text == nil) == (o.Payload == nil):
			return badRequest("text", "a reply has a text or a payload")
		case o.Text != nil:
			payload = envelope.TextPayload(*o.Text)
		}
		if most := g.settings.Load().maxPayload; len(payload) > most {
			return &APIError{status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Field: "payload", Message: "the reply is larger than mesh.maxPayload"}
		}
		err = box.settle(v.MessageID, replyWith(payload))
	case "nak":
		after, bad := mailDuration("after", o.After, 0, envelope.MaxTTL)
		if bad != nil {
			return bad
		}
		if reason == "" {
			reason = "given back by who fetched it"
		}
		err = box.settle(v.MessageID, nakIt(reason, after))
	case "reject":
		if reason == "" {
			reason = "rejected by who fetched it"
		}
		err = box.settle(v.MessageID, rejectIt(reason))
	case "working":
		lease, bad := mailDuration("lease", o.Lease, defaultLease, longestLease)
		if bad != nil {
			return bad
		}
		var until time.Time
		if until, err = box.prolong(v.MessageID, lease); err == nil {
			v.Until = envelope.At(until)
		}
	default:
		return badRequest("verdict", "want ack, reply, nak, reject or working")
	}
	if err != nil {
		return &APIError{status: http.StatusConflict, Code: CodeNotLeased, Message: "the message " + err.Error()}
	}
	return writeJSON(w, http.StatusOK, v)
}
