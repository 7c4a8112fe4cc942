package consul

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// token is the ACL token that every request carries. With a file it follows the file: what is new there
// is tried first, beside the traffic, so that a token that Consul does not know (yet) does no harm while the old
// one is good; when the old one is refused, the file decides at once.
type token struct {
	file string // "": fixed
	// changed is called, from a request, when the file holds another token. It must not block.
	changed func()

	mu    sync.Mutex
	value string      // in use; "": none
	next  string      // in the file and not in use yet; "": none
	seen  os.FileInfo // the file as it was last looked at
}

// newToken reads the file for the first time. An empty one leaves value.
func newToken(file, value string) (*token, error) {
	t := &token{file: file, value: value}
	if file == "" {
		return t, nil
	}
	in, err := t.read()
	if err != nil {
		return nil, fmt.Errorf("the token's file (CONSUL_HTTP_TOKEN_FILE): %w", err)
	}
	if in != "" {
		t.value = in
	}
	t.seen, _ = os.Stat(file)
	return t, nil
}

func (t *token) read() (string, error) {
	raw, err := os.ReadFile(t.file)
	return strings.TrimSpace(string(raw)), err
}

// current is what to send now. It looks at the file: that costs microseconds.
func (t *token) current() string {
	if t.file == "" {
		return t.value
	}
	info, err := os.Stat(t.file)
	t.mu.Lock()
	value := t.value
	same := err != nil || t.seen != nil && os.SameFile(t.seen, info) && t.seen.ModTime().Equal(info.ModTime()) && t.seen.Size() == info.Size()
	if same {
		t.mu.Unlock()
		return value
	}
	t.seen = info
	found := t.findLocked()
	t.mu.Unlock()
	if found {
		t.changed()
	}
	return value
}

// findLocked reads the file and reports whether another token is there. An empty file, or one that cannot be read,
// says nothing: it may be about to be written.
func (t *token) findLocked() bool {
	in, err := t.read()
	switch {
	case err != nil, in == "", in == t.next:
		return false
	case in == t.value:
		t.next = ""
		return false
	}
	t.next = in
	return true
}

// instead is asked when Consul does not know the token used, and returns the one to try again with, if
// there is another.
func (t *token) instead(used string) (string, bool) {
	if t.file == "" {
		return "", false
	}
	t.mu.Lock()
	if t.value == used {
		t.findLocked()
		if t.next != "" {
			t.value, t.next = t.next, ""
			value := t.value
			t.mu.Unlock()
			t.changed() // for what hangs from the token that was used before
			return value, true
		}
	}
	value := t.value
	t.mu.Unlock()
	return value, value != used
}

// candidate is what is to be tried; "" when nothing is.
func (t *token) candidate() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next
}

// adopt makes the candidate the token in use.
func (t *token) adopt(next string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next == next {
		t.value, t.next = next, ""
	}
}

// The pause between two tries of a new token, or of registering anew with it.
const (
	rotatePause    = 100 * time.Millisecond
	rotatePauseMax = 5 * time.Second
)

// rotated starts, once at a time, what a change of the token's file asks for.
func (s *Store) rotated() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed.Err() != nil {
		return
	}
	s.rotation.Lock()
	defer s.rotation.Unlock()
	s.rotation.due = true
	if !s.rotation.running {
		s.rotation.running = true
		s.running.Add(1)
		go s.rotate()
	}
}

// rotation is what a change of the token started.
type rotation struct {
	sync.Mutex
	due, running bool

	// Of the running goroutine alone: which token was found to be no good and said to be, so that it is said once; and
	// which is said to be in use.
	bad, used string
}

// rotate tries the new token until Consul knows it, takes it into use, and registers anew: Consul's agent keeps the
// token with which a service came and brings its check's state to the catalog with it. With a token that was
// deleted, a gateway that dies would keep its locks until its session's TTL.
func (s *Store) rotate() {
	defer s.running.Done()
	for pause := rotatePause; ; {
		s.rotation.Lock()
		if !s.rotation.due || s.closed.Err() != nil {
			s.rotation.running = false
			s.rotation.Unlock()
			return
		}
		s.rotation.due = false
		s.rotation.Unlock()
		if s.rotateOnce(s.closed) == nil {
			pause = rotatePause
			continue
		}
		s.rotation.Lock()
		s.rotation.due = true
		s.rotation.Unlock()
		sleep(s.closed, pause)
		pause = min(2*pause, rotatePauseMax)
	}
}

func (s *Store) rotateOnce(ctx context.Context) error {
	r := &s.rotation
	if next := s.token.candidate(); next != "" {
		if err := s.knows(ctx, next); err != nil {
			if errors.Is(err, bus.ErrForbidden) && r.bad != next {
				r.bad = next
				s.log.Warn("Consul does not know the new token; the old one stays in use, and the new one is tried again", "file", s.token.file)
			}
			return err
		}
		s.token.adopt(next)
	}
	for _, svc := range s.services.all() {
		if _, err := s.register(ctx, svc); err != nil {
			return err
		}
		if !s.services.has(svc.ID) { // removed meanwhile
			if err := s.DeregisterService(ctx, svc.ID); err != nil {
				return err
			}
		}
	}
	if now := s.token.current(); r.used != now {
		r.used = now
		s.log.Info("a new Consul token is in use; the old one can be deleted", "file", s.token.file)
	}
	return nil
}

// knows is nil if Consul knows the token, which may still allow nothing. The asked server answers from what it has: a
// leader is ahead of it, and it decides itself who may register.
func (s *Store) knows(ctx context.Context, token string) error {
	c, err := s.begin(ctx, "try the new token", s.timeout)
	if err != nil {
		return err
	}
	defer c.end()
	c.answer.token = token
	var self struct{}
	q := c.query()
	q.AllowStale = true
	_, err = s.calls.Raw().Query("/v1/acl/token/self", &self, q)
	if err != nil && c.answer.status == http.StatusUnauthorized {
		return nil // ACLs are off: every token is as good
	}
	if err != nil {
		return s.fail(c, err)
	}
	return nil
}

// TokenInfo is what Consul says of the token in use.
type TokenInfo struct {
	// Accessor names it without giving it away.
	Accessor string
	Created  time.Time
	Expires  time.Time // zero: never
	// File is where it comes from; empty: the configuration or a variable.
	File string
}

// Token asks Consul about the token in use; nil: Consul asks for none.
func (s *Store) Token(ctx context.Context) (*TokenInfo, error) {
	c, err := s.begin(ctx, "read the token", s.timeout)
	if err != nil {
		return nil, err
	}
	defer c.end()
	var self struct {
		AccessorID     string
		CreateTime     time.Time
		ExpirationTime *time.Time
	}
	q := c.query()
	_, err = s.calls.Raw().Query("/v1/acl/token/self", &self, q)
	if err != nil && c.answer.status == http.StatusUnauthorized {
		return nil, nil //nolint:nilnil // ACLs are off
	}
	if err != nil {
		return nil, s.fail(c, err)
	}
	info := &TokenInfo{Accessor: self.AccessorID, Created: self.CreateTime, File: s.token.file}
	if self.ExpirationTime != nil {
		info.Expires = *self.ExpirationTime
	}
	return info, nil
}

// services are what this store has registered and not removed.
type services struct {
	sync.Mutex
	byID map[string]bus.Service
}

func (s *services) all() []bus.Service {
	s.Lock()
	defer s.Unlock()
	return slices.Collect(maps.Values(s.byID))
}

func (s *services) has(id string) bool {
	s.Lock()
	defer s.Unlock()
	_, ok := s.byID[id]
	return ok
}
