package consul

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/gatemesh/gatemesh/bus"
)

// lockDelay is how long Consul keeps a key from being locked again after its
// session ended by failure. Fencing is by the check of the lock inside every
// transaction, not by waiting, so it is as small as can be said. (0 would mean
// Consul's default of 15 s.)
const lockDelay = time.Millisecond

// sessionRequest is the body of /v1/session/create. The API's own type cannot say
// "no node checks, but these service checks".
type sessionRequest struct {
	Name          string         `json:",omitempty"`
	TTL           string         `json:",omitempty"`
	LockDelay     string         `json:",omitempty"`
	Behavior      string         `json:",omitempty"`
	NodeChecks    *[]string      `json:",omitempty"` // nil: Consul's default, serfHealth
	ServiceChecks []serviceCheck `json:",omitempty"`
}

type serviceCheck struct{ ID string }

// checkPause is the first pause before another look at a check that is not ready;
// it doubles up to checkPauseMax.
const (
	checkPause    = 20 * time.Millisecond
	checkPauseMax = 500 * time.Millisecond
)

// NewSession implements bus.Store: behaviour delete, lock-delay 1 ms. The session
// belongs to the node of the asked agent, and ends with that node's serfHealth
// check where it has one (nodes registered from outside have none).
//
// Checks that are not in the catalog yet (the agent sends it a new service a
// moment later) or are still critical are waited for, within the request time; then
// it is bus.ErrUnavailable. A TTL outside Consul's bounds is an error of no class.
// If the answer is lost, a session may be left behind; it ends with its TTL.
func (s *Store) NewSession(ctx context.Context, opt bus.SessionOptions) (string, error) {
	c, err := s.begin(ctx, "create a session", s.timeout)
	if err != nil {
		return "", err
	}
	defer c.end()
	req := sessionRequest{Name: opt.Name, LockDelay: lockDelay.String(), Behavior: "delete"}
	if opt.TTL > 0 {
		req.TTL = opt.TTL.String()
	}
	for _, id := range opt.Checks {
		req.ServiceChecks = append(req.ServiceChecks, serviceCheck{ID: id})
	}
	for pause := checkPause; ; pause = min(2*pause, checkPauseMax) {
		var out struct{ ID string }
		_, err := s.calls.Raw().Write("/v1/session/create", req, &out, c.write())
		if err == nil {
			return out.ID, nil
		}
		if req.NodeChecks == nil && strings.Contains(err.Error(), "Missing check 'serfHealth'") {
			req.NodeChecks = &[]string{}
			continue
		}
		if !checkPending(err, opt.Checks) || !sleep(c.ctx, pause) {
			if checkPending(err, opt.Checks) && c.caller.Err() == nil && s.closed.Err() == nil {
				return "", s.failed(c, bus.ErrUnavailable, err, textOf(err), "is the gateway's health address right and reachable from Consul?")
			}
			return "", s.fail(c, err)
		}
	}
}

// checkPending reports whether a session was refused because one of the checks is
// not registered, or not passing, yet.
func checkPending(err error, checks []string) bool {
	text := err.Error()
	return slices.ContainsFunc(checks, func(id string) bool {
		return strings.Contains(text, fmt.Sprintf("Missing check '%s'", id)) ||
			strings.Contains(text, fmt.Sprintf("Check '%s' is in critical", id))
	})
}

// sleep pauses; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// RenewSession implements bus.Store. It writes nothing to Raft.
func (s *Store) RenewSession(ctx context.Context, id string) error {
	c, err := s.begin(ctx, "renew session "+id, s.timeout)
	if err != nil {
		return err
	}
	defer c.end()
	if !sessionID(id) {
		return s.failed(c, bus.ErrNoSession, nil, "not an id of a session", "")
	}
	// Not the API's Renew, whose errors leave out what the server said.
	if _, err := s.calls.Raw().Write("/v1/session/renew/"+id, nil, nil, c.write()); err != nil {
		if c.answer.status == http.StatusNotFound {
			return s.failed(c, bus.ErrNoSession, nil, "Consul does not know it", "")
		}
		return s.fail(c, err)
	}
	return nil
}

// DestroySession implements bus.Store.
func (s *Store) DestroySession(ctx context.Context, id string) error {
	c, err := s.begin(ctx, "destroy session "+id, s.timeout)
	if err != nil {
		return err
	}
	defer c.end()
	if !sessionID(id) {
		return nil // there is no such session
	}
	if _, err := s.calls.Session().Destroy(id, c.write()); err != nil {
		return s.fail(c, err)
	}
	return nil
}

// sessionID reports whether id has the form of Consul's session ids. Asked about
// anything else Consul answers 500, as if it were ill.
func sessionID(id string) bool {
	return len(id) == 36 && uuid.Validate(id) == nil
}
