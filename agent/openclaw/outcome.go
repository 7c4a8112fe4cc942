package openclaw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
)

// outcome is what became of a run; text is the answer, or what is said of the failure.
type outcome struct {
	state outcomeState
	text  string
}

type outcomeState int

const (
	absent outcomeState = iota // OpenClaw does not know it
	answered
	interrupted // it began, and has no end
	failed
	begun    // just now
	underWay // before
)

// answerOf takes an answer to agent in: the first one says that it was accepted, the second what came of it.
func answerOf(r response) (outcome, error) {
	if r.err != nil {
		return outcome{}, r.err
	}
	var run struct {
		Status  string `json:"status"`
		Summary string `json:"summary"`
		Error   string `json:"error"`
		Result  struct {
			Payloads []struct {
				Text string `json:"text"`
			} `json:"payloads"`
		} `json:"result"`
	}
	if err := json.Unmarshal(r.payload, &run); err != nil {
		return outcome{}, fmt.Errorf("OpenClaw's answer is not readable: %w", err)
	}
	switch run.Status {
	case "accepted":
		return outcome{state: begun}, nil
	case "in_flight":
		return outcome{state: underWay}, nil
	case "ok":
		var texts []string
		for _, x := range run.Result.Payloads {
			if x.Text != "" {
				texts = append(texts, x.Text)
			}
		}
		return outcome{answered, strings.Join(texts, "\n")}, nil
	}
	return outcome{failed, run.Status + ": " + run.Error + " " + run.Summary}, nil
}

// history is the part of chat.history that matters.
type history struct {
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
		Text    string          `json:"text"`
		// Key of a user's message is its run's, and ":user".
		Key string `json:"idempotencyKey"`
	} `json:"messages"`
	Active        bool            `json:"hasActiveRun"`
	InFlightRun   json.RawMessage `json:"inFlightRun"`
	PendingInputs struct {
		Items []struct {
			RunID string `json:"runId"`
			State string `json:"state"`
		} `json:"items"`
	} `json:"pendingInputs"`
}

// outcome finds out what became of a run from the session. same: the process that was asked is still there; known: and it says that the run goes on, which
// may be long before it has a place in the session.
func (p *peer) outcome(ctx context.Context, m *bus.Incoming, c *conn, same, known bool) (o outcome, err error) {
	ctx, stop := p.here(ctx, m, c)
	defer stop()
	for end := time.Now().Add(recoverFor); ; {
		h, err := p.history(ctx, m, c)
		if err != nil {
			return o, err
		}
		o.text, o.state = h.of(agent.Text(m.Envelope().Payload), m.Envelope().MessageID)
		if o.state == answered || o.state == absent && !known {
			return o, nil
		}
		working := known || h.working()
		if same {
			w, err := p.wait(ctx, m, c)
			var no *remoteError
			switch {
			case errors.As(err, &no): // an older one
			case err != nil:
				return o, err
			case w.ended():
				return p.ended(ctx, m, c, w)
			}
			working = working || w.Status == "pending"
		}
		switch {
		case working:
			end = time.Now().Add(recoverFor)
		case time.Now().After(end):
			o.state = interrupted
			return o, nil
		}
		if err := m.Pause(ctx, recoverEvery); err != nil {
			return o, err
		}
	}
}

// ended reads the answer of a run that has ended: the session has all of it.
func (p *peer) ended(ctx context.Context, m *bus.Incoming, c *conn, w waited) (outcome, error) {
	h, err := p.history(ctx, m, c)
	if err != nil {
		return outcome{}, err
	}
	text, state := h.of(agent.Text(m.Envelope().Payload), m.Envelope().MessageID)
	switch {
	case state == answered:
		return outcome{answered, text}, nil
	case w.Status == "ok": // it may have nothing to say
		return outcome{answered, w.Reply.Text}, nil
	}
	return outcome{failed, w.Status + ": " + w.Error}, nil
}

// waited is what agent.wait says.
type waited struct {
	Status  string  `json:"status"`
	Error   string  `json:"error"`
	Stop    string  `json:"stopReason"`
	Ended   float64 `json:"endedAt"`
	Pending bool    `json:"pendingError"`
	Reply   struct {
		Text string `json:"text"`
	} `json:"terminalReply"`
}

// ended reports whether the run has. A timeout may be that of the run, or of the waiting alone.
func (w waited) ended() bool {
	switch w.Status {
	case "ok", "error":
		return !w.Pending
	case "timeout":
		return !w.Pending && (w.Ended > 0 || w.Stop != "")
	}
	return false
}

// wait waits for the end of a run of the gateway's process, for a while.
func (p *peer) wait(ctx context.Context, m *bus.Incoming, c *conn) (w waited, err error) {
	err = p.call(ctx, c, "agent.wait", map[string]any{"runId": m.Envelope().MessageID, "timeoutMs": lifeEvery.Milliseconds()}, &w)
	return w, err
}

// history reads the session; no such session is an empty one.
func (p *peer) history(ctx context.Context, m *bus.Incoming, c *conn) (h history, err error) {
	err = p.call(ctx, c, "chat.history", map[string]any{"sessionKey": p.session(m), "agentId": p.agent, "limit": historyLimit}, &h)
	var no *remoteError
	if errors.As(err, &no) && (no.Code == "NOT_FOUND" || strings.Contains(strings.ToLower(no.Message), "not found")) {
		return history{}, nil
	}
	return h, err
}

// call asks for something that is answered soon; no answer is a lost connection.
func (p *peer) call(ctx context.Context, c *conn, method string, params, out any) error {
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := c.call(bounded, method, params, out)
	var no *remoteError
	switch {
	case err == nil, errors.As(err, &no), errors.Is(err, errLost):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case bounded.Err() != nil:
		return errLost
	}
	return err
}

// working reports whether something goes on in the session.
func (h *history) working() bool {
	return h.Active || len(h.InFlightRun) > 0 && string(h.InFlightRun) != "null"
}

// of looks for a message, by its run's key, and for the answer to it. All that comes behind it belongs to it, also what OpenClaw does by itself when it takes an interrupted
// turn up again: the mesh sends the next message of a conversation when this one has ended. Versions that keep no keys show the text alone; of two with one text
// it does not say which is which.
func (h *history) of(said, id string) (text string, state outcomeState) {
	at, same, keyed := -1, 0, false
	for i, x := range h.Messages {
		if x.Role != "user" {
			continue
		}
		keyed = keyed || x.Key != ""
		switch {
		case x.Key == id+":user" || x.Key == id:
			at, same = i, 1
		case x.Key == "" && !keyed && strings.Contains(contentText(x.Content, x.Text), said):
			at = i
			same++
		}
	}
	if keyed && at >= 0 && h.Messages[at].Key == "" {
		at = -1 // it is of a time before keys
	}
	if at < 0 {
		for _, r := range h.PendingInputs.Items {
			if r.RunID == id && r.State == "queued" {
				return "", interrupted
			}
		}
		return "", absent
	}
	for _, x := range h.Messages[at+1:] {
		if t := contentText(x.Content, x.Text); x.Role == "assistant" && t != "" {
			text = t // the last one: those before it went with calls of tools
		}
	}
	if text == "" || same > 1 || h.working() {
		return "", interrupted
	}
	return text, answered
}

// contentText is the text of a message's content, which is a string or a list of blocks.
func contentText(content json.RawMessage, text string) string {
	var s string
	if json.Unmarshal(content, &s) == nil && s != "" {
		return s
	}
	var blocks []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if json.Unmarshal(content, &blocks) == nil {
		var texts []string
		for _, b := range blocks {
			if b.Type == "text" && b.Text != "" {
				texts = append(texts, b.Text)
			}
		}
		if len(texts) > 0 {
			return strings.Join(texts, "\n")
		}
	}
	return text
}
