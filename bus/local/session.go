package local

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/gatemesh/gatemesh/bus"
)

// endRetry is how long an expired session whose end could not be written waits
// for the next try.
const endRetry = time.Second

// sessionRecord is what the file keeps of a session. Nothing reads it but people:
// after a restart every session in the file is dead.
type sessionRecord struct {
	Name    string        `json:"name,omitempty"`
	TTL     time.Duration `json:"ttl_ns,omitempty"`
	Created time.Time     `json:"created"`
}

// session is a living session. Guarded by Store.mu.
type session struct {
	ttl      time.Duration // 0: no limit
	deadline time.Time
	timer    *time.Timer // nil without a TTL
	ending   bool        // the TTL has passed: nothing can save it any more
}

func (x *session) stopLocked() {
	if x.timer != nil {
		x.timer.Stop()
	}
}

// NewSession implements [bus.Store]. Any positive TTL will do; 0 means that only
// DestroySession, or the next Open, ends the session. Checks are ignored.
func (s *Store) NewSession(ctx context.Context, opt bus.SessionOptions) (string, error) {
	if opt.TTL < 0 {
		return "", fmt.Errorf("session TTL %v: must not be negative", opt.TTL)
	}
	u, err := uuid.NewRandom()
	if err != nil {
		return "", fmt.Errorf("make session id: %w", err)
	}
	id := u.String()
	rec := sessionRecord{Name: opt.Name, TTL: opt.TTL, Created: time.Now().UTC()}
	r := newRequest(0, func(b *batch) error { return b.startSession(id, rec) })
	r.settled = func(err error) {
		if err == nil && !s.closed {
			s.startLocked(id, opt.TTL)
		}
	}
	if err := s.submit(ctx, r); err != nil {
		return "", err
	}
	return id, nil
}

func (s *Store) startLocked(id string, ttl time.Duration) {
	x := &session{ttl: ttl}
	if ttl > 0 {
		x.deadline = time.Now().Add(ttl)
		x.timer = time.AfterFunc(ttl, func() { s.expire(id) })
	}
	s.sessions[id] = x
}

// RenewSession implements [bus.Store]. It writes nothing.
func (s *Store) RenewSession(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return bus.ErrClosed
	}
	x := s.sessions[id]
	if x == nil || x.ending {
		return bus.ErrNoSession
	}
	if x.timer == nil {
		return nil
	}
	now := time.Now()
	if !now.Before(x.deadline) {
		return bus.ErrNoSession // its timer is on the way
	}
	x.deadline = now.Add(x.ttl)
	x.timer.Reset(x.ttl)
	return nil
}

// DestroySession implements [bus.Store].
func (s *Store) DestroySession(ctx context.Context, id string) error {
	return s.submit(ctx, s.newEnd(id, nil))
}

// expire is called by a session's timer.
func (s *Store) expire(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.sessions[id]
	if x == nil || s.closed || time.Now().Before(x.deadline) {
		return // ended, or renewed meanwhile and the timer was set again
	}
	x.ending = true
	s.enqueueLocked(s.newEnd(id, func(err error) {
		if !s.closed && !errors.Is(err, bus.ErrClosed) {
			s.log.Error("cannot write the end of an expired session; trying again", "session", id, "in", endRetry, "err", err)
			x.timer.Reset(endRetry)
		}
	}))
}

// newEnd returns the request that ends a session. failed, if any, is called with
// s.mu held when it could not be written.
func (s *Store) newEnd(id string, failed func(error)) *request {
	r := newRequest(0, func(b *batch) error { return b.endSession(id) })
	r.settled = func(err error) {
		switch {
		case err == nil:
			if x := s.sessions[id]; x != nil {
				x.stopLocked()
				delete(s.sessions, id)
			}
		case failed != nil:
			failed(err)
		}
	}
	return r
}

// ending reports whether the session's TTL has passed although the file may still
// know it.
func (s *Store) ending(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.sessions[id]
	return x != nil && (x.ending || x.timer != nil && !time.Now().Before(x.deadline))
}
