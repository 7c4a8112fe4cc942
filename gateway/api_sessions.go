package gateway

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// SessionInfo is a line of GET /v1/sessions: a conversation that an agent remembers.
type SessionInfo struct {
	Key string `json:"key"`
	// Agent and Conversation are what the key is made of.
	Agent        string    `json:"agent"`
	Conversation string    `json:"conversation"`
	Updated      time.Time `json:"updated"`
	// Messages are those that are remembered, Forgotten those that were left out for want of room.
	Messages  int `json:"messages"`
	Forgotten int `json:"forgotten,omitempty"`
	// Label, SpawnedBy (a key) and Status (running, done, timeout, lost) are those of a sub-session.
	Label     string `json:"label,omitempty"`
	SpawnedBy string `json:"spawned_by,omitempty"`
	Status    string `json:"status,omitempty"`
}

// SessionsResponse answers GET /v1/sessions, the newest first.
type SessionsResponse struct {
	Sessions []SessionInfo `json:"sessions"`
}

// CostsResponse answers GET /v1/costs: by day, agent and conversation, the newest day first.
type CostsResponse struct {
	Costs []agent.Cost `json:"costs"`
}

// thinkers are the agents of the request: the one it names, or all.
func (g *Gateway) thinkers(r *http.Request) (*bus.Bus, []string, error) {
	b, err := g.ready()
	if err != nil {
		return nil, nil, err
	}
	if id := r.URL.Query().Get("agent"); id != "" {
		if !envelope.ValidName(id) {
			return nil, nil, badRequest("agent", "%q is not the name of an agent", clipText(id, 40))
		}
		return b, []string{id}, nil
	}
	var ids []string
	for _, a := range b.Agents("") {
		ids = append(ids, a.ID)
	}
	return b, ids, nil
}

// getSessions is GET /v1/sessions.
func (g *Gateway) getSessions(w http.ResponseWriter, r *http.Request) error {
	b, ids, err := g.thinkers(r)
	if err != nil {
		return err
	}
	out := SessionsResponse{Sessions: []SessionInfo{}}
	for _, id := range ids {
		entries, err := b.Room(r.Context(), id, agent.SessionsPrefix)
		if err != nil {
			return err
		}
		for _, e := range entries {
			var s agent.Session
			if json.Unmarshal(e.Value, &s) != nil {
				continue // what is not readable is told of when its agent reads it
			}
			info := SessionInfo{
				Key: s.Key, Agent: id, Conversation: strings.TrimPrefix(e.Name, agent.SessionsPrefix),
				Updated: s.Updated, Messages: len(s.Messages), Forgotten: s.Forgotten,
			}
			if s.Sub != nil {
				info.Label, info.SpawnedBy, info.Status = s.Sub.Label, s.Sub.SpawnedBy, s.Sub.StatusAt(time.Now())
			}
			out.Sessions = append(out.Sessions, info)
		}
	}
	slices.SortFunc(out.Sessions, func(x, y SessionInfo) int { return cmp.Or(y.Updated.Compare(x.Updated), cmp.Compare(x.Key, y.Key)) })
	return writeJSON(w, http.StatusOK, out)
}

// getSession is GET /v1/sessions/{agent}/{conversation}.
func (g *Gateway) getSession(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	id, name := r.PathValue("agent"), agent.SessionName(r.PathValue("conversation"))
	if !envelope.ValidName(id) {
		return badRequest("agent", "%q is not the name of an agent", clipText(id, 40))
	}
	entries, err := b.Room(r.Context(), id, agent.SessionsPrefix+name)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(entries, func(e bus.RoomEntry) bool { return e.Name == agent.SessionsPrefix+name })
	var s agent.Session
	if at < 0 || json.Unmarshal(entries[at].Value, &s) != nil {
		return &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: "agent " + id + " has no session " + clipText(name, 100) + " (GET /v1/sessions lists them)"}
	}
	return writeJSON(w, http.StatusOK, s)
}

// getCosts is GET /v1/costs.
func (g *Gateway) getCosts(w http.ResponseWriter, r *http.Request) error {
	b, ids, err := g.thinkers(r)
	if err != nil {
		return err
	}
	day := r.URL.Query().Get("day")
	if _, err := time.Parse(time.DateOnly, day); day != "" && err != nil {
		return badRequest("day", "%q is not a day: want 2027-01-31 (UTC)", clipText(day, 40))
	}
	out := CostsResponse{Costs: []agent.Cost{}}
	for _, id := range ids {
		entries, err := b.Room(r.Context(), id, agent.CostsPrefix+day)
		if err != nil {
			return err
		}
		for _, e := range entries {
			var c agent.Cost
			if json.Unmarshal(e.Value, &c) == nil {
				out.Costs = append(out.Costs, c)
			}
		}
	}
	slices.SortFunc(out.Costs, func(x, y agent.Cost) int {
		return cmp.Or(cmp.Compare(y.Day, x.Day), cmp.Compare(x.Agent, y.Agent), cmp.Compare(x.Conversation, y.Conversation))
	})
	return writeJSON(w, http.StatusOK, out)
}
