package consul

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if hangs.Load() {
			<-r.Context().Done() // the agent loses patience
		}
	}))
	defer srv.Close()
	s := open(t, Options{Address: c.Addr(back)})
	service := bus.Service{ID: "openclaw-back", Name: "openclaw", HealthURL: srv.URL, Interval: time.Second}
	check, err := s.RegisterService(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the catalog hears of an agent's checks that started long ago", longTime, func() bool { return s.Oversees(t.Context(), []string{check}) == nil })

	// The agent remembers the service, and takes its check for critical until it has asked.
	returnsMute(t, c, back)
	if _, err := s.RegisterService(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	session, err := s.NewSession(t.Context(), bus.SessionOptions{TTL: time.Minute, Checks: []string{check}})
	if err != nil {
		t.Fatalf("the agent passes on nothing by itself, and a session can be had all the same: %v", err)
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

// returnsMute kills a server and starts it again so that it fails at its first synchronisation: the first of those that it is to join
// accepts and says nothing, and it has forgotten the others, but they have not forgotten it.
func returnsMute(t *testing.T, c *cluster.Cluster, i int) {
	t.Helper()
	if err := c.Kill(i); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	files, _ := filepath.Glob(filepath.Join(c.Dir(), "*.json"))
	if len(files) != c.Servers() {
		t.Fatalf("%d configurations", len(files))
	}
	name := files[i]
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var conf map[string]any
	if err := json.Unmarshal(raw, &conf); err != nil {
		t.Fatal(err)
	}
	conf["retry_join"] = append([]any{l.Addr().String()}, conf["retry_join"].([]any)...)
	if raw, err = json.Marshal(conf); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(conf["data_dir"].(string), "serf")); err != nil {
		t.Fatal(err)
	}
	before := len(c.Log(i))
	started := make(chan error, 1)
	go func() { started <- c.Restart(t.Context(), i) }()
	held, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	eventually(t, "the first synchronisation fails", longTime, func() bool {
		return strings.Contains(c.Log(i)[before:], "failed to sync remote state")
	})
	held.Close() // on to the next one to join
	l.Close()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
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
