package gateway

import (
	"context"
	"net/http"

	"github.com/gatemesh/gatemesh/bus"
)

// EventRequest is the body of POST /v1/state/events.
type EventRequest struct {
	// ID makes recording again safe, as long as the event is in the ring. Empty: a new one.
	ID string `json:"id,omitempty"`
	// Agent is who did it, and Event what, in at most bus.MaxEventBytes.
	Agent string `json:"agent"`
	Event string `json:"event"`
}

// RecentEventsResponse is the answer of GET /v1/state/events.
type RecentEventsResponse struct {
	Events []bus.StateEvent `json:"events"`
}

// FocusState is the body of PUT /v1/state/focus and the answer of all methods there; "" is none.
type FocusState struct {
	Focus string `json:"focus"`
}

// ClearedResponse is the answer of DELETE /v1/state/events.
type ClearedResponse struct {
	Cleared string `json:"cleared"` // the key
}

// getStateEvents is GET /v1/state/events.
func (g *Gateway) getStateEvents(w http.ResponseWriter, r *http.Request) error {
	limit, err := intParam(r, "limit", bus.MaxRecentEvents, 1, bus.MaxRecentEvents)
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	list, err := b.RecentEvents(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, RecentEventsResponse{list[max(0, len(list)-limit):]})
}

// postStateEvent is POST /v1/state/events.
func (g *Gateway) postStateEvent(w http.ResponseWriter, r *http.Request) error {
	var req EventRequest
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	if err := mayBe(r, req.Agent); err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), acceptTimeout)
	defer cancel()
	e, err := b.RecordEvent(ctx, bus.StateEvent{ID: req.ID, Agent: req.Agent, Event: req.Event})
	if err != nil {
		return aboutMessage(err, e.ID)
	}
	return writeJSON(w, http.StatusOK, e)
}

// deleteStateEvents is DELETE /v1/state/events.
func (g *Gateway) deleteStateEvents(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	if err := b.ClearEvents(r.Context()); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, ClearedResponse{bus.RecentEventsKey})
}

// getFocus is GET /v1/state/focus.
func (g *Gateway) getFocus(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	text, err := b.Focus(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, FocusState{text})
}

// putFocus is PUT /v1/state/focus.
func (g *Gateway) putFocus(w http.ResponseWriter, r *http.Request) error {
	var f FocusState
	if err := decodeBody(r, &f); err != nil {
		return err
	}
	if f.Focus == "" {
		return badRequest("focus", "focus is empty: DELETE removes it")
	}
	return g.setFocus(w, r, f)
}

// deleteFocus is DELETE /v1/state/focus.
func (g *Gateway) deleteFocus(w http.ResponseWriter, r *http.Request) error {
	return g.setFocus(w, r, FocusState{})
}

func (g *Gateway) setFocus(w http.ResponseWriter, r *http.Request, f FocusState) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), acceptTimeout)
	defer cancel()
	if err := b.SetFocus(ctx, f.Focus); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, f)
}
