package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// believed is the share of the TTL for which a renewed session is believed, counted from before the
// renewal was sent: the store may count from any later moment, so it never ends the
// session earlier.
const believed = 0.6

// renewals is how often a session is renewed within its TTL.
const renewals = 4

// session keeps this gateway's one session, and the lock on its name.
type session struct {
	b *Bus

	mu      sync.Mutex
	current string
	// until is when the session is no longer believed (monotonic clock).
	until time.Time
	// pulse is when this process was last seen to run; wall is the same on the other clock, which goes on while the machine sleeps.
	pulse, wall time.Time
	// changed is closed and replaced when current or until changes for the better.
	changed chan struct{}
	// kick carries wake-ups for the renewing loop (capacity 1).
	kick chan struct{}
}

// gatewayLock is the value of the key that makes a gateway's name unique.
type gatewayLock struct {
	Gateway string        `json:"gateway"`
	Host    string        `json:"host"`
	PID     int           `json:"pid"`
	Since   envelope.Time `json:"since"`
	// Instance tells two starts of the same name apart.
	Instance string `json:"instance"`
	// Session is the one that holds the lock: a lock of before under another session says nothing.
	Session string `json:"session"`
}

func newSession(b *Bus) *session {
	return &session{b: b, changed: make(chan struct{}), kick: make(chan struct{}, 1)}
}

// id is the current session, or "" while there is none.
func (s *session) id() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// now is the current session, and what is closed when it is renewed or replaced.
func (s *session) now() (id string, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.changed
}

// trusted reports whether the session is surely alive. A process that was stopped and
// wakes up finds that it is not.
func (s *session) trusted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trustedLocked()
}

func (s *session) trustedLocked() bool {
	now := time.Now()
	return s.current != "" && now.Before(s.until) && !s.stalledLocked(now)
}

const (
	// pulseEvery is how often this process shows itself that it runs.
	pulseEvery = EffectWindow / 4
	// stalled is how long it may not have run for its session to be believed all the same. What is shorter is covered by
	// [EffectWindow].
	stalled = EffectWindow
)

func (s *session) stalledLocked(now time.Time) bool {
	return !s.pulse.IsZero() && max(now.Sub(s.pulse), s.b.now().Round(0).Sub(s.wall)) > stalled
}

// watchPulse notices when this process did not run for a while (it was stopped, or the machine slept): others may have taken
// everything over since, so the session is not believed until the store was asked. [session.trusted] says so even before
// this loop has run again.
func (s *session) watchPulse(ctx context.Context) {
	t := time.NewTicker(pulseEvery)
	defer t.Stop()
	for {
		s.mu.Lock()
		late := s.stalledLocked(time.Now())
		if late {
			s.until = time.Time{}
		}
		s.pulse, s.wall = time.Now(), s.b.now().Round(0)
		s.mu.Unlock()
		if late {
			s.verify()
			s.b.log.Warn("this process did not run for a while; verifying its session", "gateway", s.b.cfg.Gateway)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// waitTrusted waits until the session is trusted again, and reports whether ctx still lives.
func (s *session) waitTrusted(ctx context.Context) bool {
	for {
		s.mu.Lock()
		ok, changed := s.trustedLocked(), s.changed
		s.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (s *session) set(id string, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.until = id, until
	close(s.changed)
	s.changed = make(chan struct{})
}

// suspect asks for the session to be verified at once: the store refused id.
func (s *session) suspect(id string) {
	if s.id() == id {
		s.verify()
	}
}

// verify asks for a renewal now.
func (s *session) verify() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *session) trustUntil(asked time.Time) time.Time {
	return asked.Add(time.Duration(float64(s.b.cfg.SessionTTL) * believed))
}

// open creates the session and takes the gateway's name. A process that already runs
// under the name is deposed: the last one started wins, because after a crash or a
// partition the newer one is the one that the operator (or Nomad) wants, and fencing makes
// the older one harmless.
func (s *session) open(ctx context.Context) error {
	asked := time.Now()
	id, err := s.b.store.NewSession(ctx, SessionOptions{Name: "gatemesh " + s.b.cfg.Gateway, TTL: s.b.cfg.SessionTTL, Checks: s.b.cfg.SessionChecks})
	if err != nil {
		return fmt.Errorf("create session: %w", err)
	}
	host, _ := os.Hostname()
	key := gatewayLockKey(s.b.cfg.Gateway)
	value := s.b.sign(trust.KindOwner, key, mustEncode(gatewayLock{Gateway: s.b.cfg.Gateway, Host: host, PID: os.Getpid(), Since: envelope.At(s.b.now()), Instance: s.b.instance, Session: id}))
	for {
		_, err = s.b.store.Txn(ctx, []Op{{Verb: OpLock, Key: key, Value: value, Session: id}})
		var refused *TxnError
		if !errors.As(err, &refused) {
			break
		}
		p, gerr := s.b.store.Get(ctx, key)
		if gerr != nil {
			err = gerr
			break
		}
		if p != nil && p.Session != "" {
			other, _ := s.holder(p)
			s.b.log.Warn("the gateway's name is in use; taking it over", "gateway", s.b.cfg.Gateway, "host", other.Host, "pid", other.PID, "since", other.Since.Time)
			if derr := s.b.store.DestroySession(ctx, p.Session); derr != nil {
				err = derr
				break
			}
		}
		if ctx.Err() != nil {
			err = ctx.Err()
			break
		}
		wait(ctx, 5*time.Millisecond) // the lock-delay is 1 ms
	}
	if err != nil {
		_ = s.b.store.DestroySession(context.WithoutCancel(ctx), id)
		return fmt.Errorf("take the name %s: %w", s.b.cfg.Gateway, err)
	}
	s.set(id, s.trustUntil(asked))
	return nil
}

// keep renews the session until ctx ends, and replaces it when it was lost. It returns
// ErrReplaced when another process runs under this gateway's name.
func (s *session) keep(ctx context.Context) error {
	every := s.b.cfg.SessionTTL / renewals
	t := time.NewTimer(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-s.kick:
		case <-ctx.Done():
			return nil
		}
		next := every
		if err := s.renew(ctx); err != nil {
			if errors.Is(err, ErrReplaced) {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
			s.b.storeDown(err)
			next = min(time.Second, every)
		}
		t.Reset(next)
	}
}

func (s *session) renew(ctx context.Context) error {
	id := s.id()
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.b.cfg.SessionTTL/2)
	defer cancel()
	err := ErrNoSession
	if id != "" {
		err = s.b.store.RenewSession(ctx, id)
	}
	if err == nil {
		// The lock can go without its session: somebody deleted the key.
		p, gerr := s.b.store.Get(ctx, gatewayLockKey(s.b.cfg.Gateway))
		switch {
		case gerr != nil:
			return gerr
		case p != nil && p.Session == id:
			s.set(id, s.trustUntil(asked))
			s.b.storeUp()
			return nil
		}
		_ = s.b.store.DestroySession(ctx, id)
		err = ErrNoSession
	}
	if !errors.Is(err, ErrNoSession) {
		return fmt.Errorf("renew session: %w", err)
	}
	// The lock goes in the same moment as its session. While it stands the session lives, and only whoever answered
	// does not know of it: Consul's leader after a restart, as long as it replays.
	p, err := s.b.store.Get(ctx, gatewayLockKey(s.b.cfg.Gateway))
	if err != nil {
		return err
	}
	if id != "" && p != nil && p.Session == id {
		return fmt.Errorf("renew session: %w: the server that answered does not know it, but it holds its lock", ErrUnavailable)
	}
	s.mu.Lock()
	s.current, s.until = "", time.Time{}
	s.mu.Unlock()
	s.b.elector.deposeAll(ErrNoSession)
	if p != nil && p.Session != "" {
		if other, ok := s.holder(p); ok && other.Instance != s.b.instance {
			return fmt.Errorf("%w: %s now runs on %s (pid %d); this process stops", ErrReplaced, s.b.cfg.Gateway, other.Host, other.PID)
		}
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	s.b.log.Warn("session was lost; opened a new one", "gateway", s.b.cfg.Gateway)
	s.b.elector.kick()
	s.b.registry.kick()
	return nil
}

// holder reads who holds this gateway's name. It is not ok when this gateway's key did not say so: whoever may only write the store must
// not be able to end a process by it, and loses the name again. A process that nobody would believe itself believes everybody.
func (s *session) holder(p *Pair) (l gatewayLock, ok bool) {
	l, err := s.judge(p)
	if err != nil && s.b.trusted() == nil {
		s.b.refuse(p.Key, p.Value, err, "@"+s.b.cfg.Gateway, "")
		return gatewayLock{}, false
	}
	return l, true
}

// judge reads such a lock, and says why it is not believed.
func (s *session) judge(p *Pair) (l gatewayLock, err error) {
	body, st, err := s.b.open(trust.KindOwner, p.Key, p.Value, s.b.cfg.Gateway, "")
	_ = json.Unmarshal(body, &l)
	if err == nil && s.b.enforced() && l.Session != p.Session {
		err = &trust.Refusal{Reason: trust.Replay, Gateway: st.Gateway, Key: st.Key, Detail: "it was signed for another session"}
	}
	return l, err
}

// close ends the session; the store deletes the locks with it.
func (s *session) close(ctx context.Context) error {
	id := s.id()
	if id == "" {
		return nil
	}
	s.mu.Lock()
	s.current, s.until = "", time.Time{}
	s.mu.Unlock()
	return s.b.store.DestroySession(ctx, id)
}
