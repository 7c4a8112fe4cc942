package gateway

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"unicode"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// OwnersResponse answers GET /v1/owners.
type OwnersResponse struct {
	Owners []bus.OwnerInfo `json:"owners"`
}

// OwnerOrder is the body of POST /v1/owners/{duty}/transfer and .../release; {} is one for release.
type OwnerOrder struct {
	// To is the gateway that is to have it; transfer needs it, release does not know it: whoever is next has it then.
	To string `json:"to,omitempty"`
	// By is who wants it; empty: operator.
	By string `json:"by,omitempty"`
	// Force takes it from an owner that does not answer.
	Force bool `json:"force,omitempty"`
	// Timeout is how long to wait for the next owner; empty: 60s.
	Timeout string `json:"timeout,omitempty"`
}

// getOwners is GET /v1/owners.
func (g *Gateway) getOwners(w http.ResponseWriter, _ *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, OwnersResponse{b.Duties()})
}

// postOwner is POST /v1/owners/{duty}/transfer and, when the next one is not named, .../release.
func (g *Gateway) postOwner(named bool) endpoint {
	return func(w http.ResponseWriter, r *http.Request) error {
		duty := r.PathValue("duty")
		if !envelope.ValidName(duty) {
			return badRequest("duty", "%q is not the name of a duty (GET /v1/owners lists them)", clipText(duty, 40))
		}
		var o OwnerOrder
		if err := decodeBody(r, &o); err != nil {
			return err
		}
		switch {
		case named && !envelope.ValidName(o.To):
			return badRequest("to", "to %q is not the name of a gateway: who is to have %s?", clipText(o.To, 40), duty)
		case !named && o.To != "":
			return badRequest("to", "a release does not say who is next: use transfer")
		}
		wait, err := parseWaiting(WaitAcked, o.Timeout)
		if err != nil {
			return err
		}
		if o.By == "" {
			o.By = DefaultFrom
		}
		if len(o.By) > longestBy || strings.ContainsFunc(o.By, unicode.IsControl) {
			return badRequest("by", "by %q is more than %d bytes or holds control characters", clipText(o.By, 40), longestBy)
		}
		b, err := g.ready()
		if err != nil {
			return err
		}
		ctx, cancel := g.patient(w, r, wait.timeout)
		defer cancel()
		change, err := b.Transfer(ctx, duty, bus.TransferOptions{To: o.To, By: o.By, Force: o.Force})
		if err != nil {
			return ownerError(ctx, r, b, duty, err)
		}
		return writeJSON(w, http.StatusOK, change)
	}
}

func ownerError(ctx context.Context, r *http.Request, b *bus.Bus, duty string, err error) error {
	var dead *bus.DeadLetterError
	switch {
	case r.Context().Err() != nil:
		return r.Context().Err()
	case errors.As(err, &dead):
		return &APIError{status: http.StatusConflict, Code: CodeNotOwned, Message: err.Error()}
	case errors.Is(err, bus.ErrNoOwner), errors.Is(err, bus.ErrCannotOwn):
		return &APIError{status: http.StatusConflict, Code: CodeNotOwned, Message: err.Error()}
	case ctx.Err() != nil:
		return &APIError{status: http.StatusGatewayTimeout, Code: CodeTimeout, Message: err.Error()}
	case errors.Is(err, bus.ErrUnknownAgent) && !slices.ContainsFunc(b.Duties(), func(o bus.OwnerInfo) bool { return o.Duty == duty }):
		return &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: err.Error()}
	}
	return err
}
