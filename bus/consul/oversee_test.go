package consul

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// A Consul server that starts while Raft's leader speaks to it before it has joined the gossip fails at its first synchronisation, and
// tells the catalog nothing of its checks for half a minute. The gateway there has a session, and would keep it if it failed: that is seen. As soon as
// the agent speaks again it is seen, too, and then the gateway's failure ends its session in seconds. No probe is left behind.
func TestOversees(t *testing.T) {
	t.Parallel()
	c := cluster.ForTestWith(t, cluster.Options{Servers: 3})
	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	back, other := (leader+1)%3, open(t, Options{Address: c.Addr((leader + 2) % 3)})
	var hangs atomic.Bool
	gateway := func() *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if hangs.Load() {
				<-r.Context().Done() // the agent loses patience
			}
		}))
	}
	srv := gateway()
	s := open(t, Options{Address: c.Addr(back)})
	service := bus.Service{ID: "openclaw-back", Name: "openclaw", HealthURL: srv.URL, Interval: time.Second}
	check, err := s.RegisterService(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the catalog hears of an agent's checks that started long ago", longTime, func() bool { return s.Oversees(t.Context(), []string{check}) == nil })

	// It dies with its server. The new agent remembers the service and finds its check critical, but does not say so. What is registered
	// then is what it knows already, so it does not pass that on either.
	if err := c.RestartMute(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	srv.Close() // not before: a restart in between that is not mute would tell of it
	eventually(t, "the agent asks in vain", longTime, func() bool {
		var local map[string]struct{ Status string }
		_, err := s.calls.Raw().Query("/v1/agent/checks", &local, nil)
		return err == nil && local[check].Status == "critical"
	})
	srv = gateway()
	defer srv.Close()
	service.HealthURL = srv.URL
	if _, err := s.RegisterService(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	session, err := s.NewSession(t.Context(), bus.SessionOptions{TTL: time.Minute, Checks: []string{check}})
	if err != nil {
		t.Fatalf("the catalog still says that the check passes, so a session can be had: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := s.Oversees(ctx, []string{check}); err == nil {
		t.Fatalf("the catalog hears nothing of this agent's checks, and that was not noticed; its log:\n%s", c.Log(back))
	}

	// A new leader is told to all, and has every agent synchronise.
	if err := c.Kill(leader); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the catalog hears of the checks again", 2*longTime, func() bool {
		err := s.Oversees(t.Context(), []string{check})
		if err != nil && !errors.Is(err, bus.ErrUnavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	if n := strings.Count(checksOf(t, other), probeMark); n != 0 {
		t.Errorf("%d probes are left", n)
	}
	hangs.Store(true)
	eventually(t, "the session ends with its check", 10*time.Second, func() bool {
		return errors.Is(other.RenewSession(t.Context(), session), bus.ErrNoSession)
	})
}

// checksOf is the state of all checks, as the catalog has it.
func checksOf(t *testing.T, s *Store) string {
	t.Helper()
	var all []struct{ CheckID, Status string }
	if _, err := s.calls.Raw().Query("/v1/health/state/any", &all, nil); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
