package gateway

import (
	"context"
	"net/http"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// FanRequest is the body of POST /v1/fanouts: a SendRequest for several agents. Its own "to" and
// "wait" are not used; id is the fan-out's.
type FanRequest struct {
	SendRequest
	// Agents are agent or agent@gateway, at most bus.MaxLegs. Empty: every agent that offers the
	// capability now.
	Agents []string `json:"agents,omitempty"`
}

// FanResponse is a fan-out with its legs. POST answers 202, or with "reply" and a timeout 200 once every leg
// has its end; GET answers 200.
type FanResponse struct {
	bus.FanStatus
	// Texts are the answers for people, by agent.
	Texts map[string]string `json:"texts,omitempty"`
	// TimedOut: waiting ended before every leg had its end.
	TimedOut bool `json:"timed_out,omitempty"`
}

func fanResponse(ctx context.Context, b *bus.Bus, st *bus.FanStatus) FanResponse {
	res := FanResponse{FanStatus: *st, Texts: map[string]string{}}
	for _, l := range st.Legs {
		if l.Reply == nil {
			continue
		}
		if full, err := b.Resolve(ctx, l.Reply); err == nil {
			res.Texts[l.To] = agent.Text(full.Payload)
		} else {
			res.Texts[l.To] = "(" + err.Error() + ")"
		}
	}
	return res
}

// postFanout is POST /v1/fanouts.
func (g *Gateway) postFanout(w http.ResponseWriter, r *http.Request) error {
	var req FanRequest
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	if req.To != "" {
		return badRequest("to", "a fan-out has agents, not to")
	}
	wait, err := parseWaiting(req.Wait, req.Timeout)
	if err != nil {
		return err
	}
	fan := bus.Fan{ID: req.ID}
	for _, s := range req.Agents {
		to, err := envelope.ParseAddress(s)
		if err != nil {
			return badRequest("agents", "agents: %v", err)
		}
		fan.To = append(fan.To, to)
	}
	if len(fan.To) == 0 && req.Capability == "" {
		return badRequest("agents", "agents or capability is missing: who shall get it?")
	}
	req.To = "all" // checked and then replaced, leg by leg
	if fan.Message, err = g.outgoing(&req.SendRequest, r); err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), acceptTimeout)
	defer cancel()
	st, err := b.SendAll(ctx, fan, req.Reply || wait.what == WaitReplied)
	if err != nil {
		return err
	}
	if wait.what == "" {
		return writeJSON(w, http.StatusAccepted, fanResponse(r.Context(), b, st))
	}
	return g.waitFan(w, r, b, st.ID, wait)
}

// getFanout is GET /v1/fanouts/{id}.
func (g *Gateway) getFanout(w http.ResponseWriter, r *http.Request) error {
	id, err := messageIDParam("id", r.PathValue("id"), false)
	if err != nil {
		return err
	}
	wait, err := parseWaiting(r.URL.Query().Get("wait"), r.URL.Query().Get("timeout"))
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	if wait.what == "" {
		st, err := b.FanOut(r.Context(), id)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, fanResponse(r.Context(), b, st))
	}
	return g.waitFan(w, r, b, id, wait)
}

func (g *Gateway) waitFan(w http.ResponseWriter, r *http.Request, b *bus.Bus, id string, wait waiting) error {
	ctx, cancel := g.patient(w, r, wait.timeout)
	defer cancel()
	st, err := b.AwaitFan(ctx, id)
	if r.Context().Err() != nil {
		return r.Context().Err()
	}
	if st == nil {
		return err
	}
	res := fanResponse(r.Context(), b, st)
	res.TimedOut = st.Outcome == bus.FanPending
	return writeJSON(w, http.StatusOK, res)
}
