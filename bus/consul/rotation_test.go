package consul

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/envelope"
)

// member is a gateway with a token in a file, as the daemon makes it: registered, and with a session that hangs
// from its check.
type member struct {
	*bus.Bus
	store    *Store
	policy   string
	file     string
	accessor string
	health   *httptest.Server
	events   chan bus.Event
	log      *said
}

// said is what a store logs.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

var pair = bus.Topology{Agents: map[string][]string{"jerry": {"jerry-gateway"}, "bobby": {"bobby-gateway"}}}

// member starts one at server i.
func (r *realm) member(t *testing.T, agent string, i int) *member {
	t.Helper()
	name := agent + "-gateway"
	m := &member{policy: name, file: filepath.Join(t.TempDir(), "token"), events: make(chan bus.Event, 1<<14), log: &said{}}
	r.policy(t, name, Policy(PolicyOptions{Role: RoleGateway, Gateway: name, Node: fmt.Sprintf("server-%d", i+1), Mesh: pair, Service: "openclaw"}))
	r.giveNew(t, m)
	m.store = open(t, Options{Address: r.Addr(i), TokenFile: m.file, Log: slog.New(slog.NewTextHandler(m.log, nil))})
	eventually(t, "the member's server knows its token", longTime, func() bool { return m.store.knows(t.Context(), m.store.token.current()) == nil })
	m.health = httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(m.health.Close)
	check := must(m.store.RegisterService(t.Context(), bus.Service{ID: "openclaw-" + name, Name: "openclaw", HealthURL: m.health.URL, Interval: time.Second}))(t)
	var err error
	m.Bus, err = bus.New(bus.Config{
		Gateway: name, Store: m.store, SessionTTL: time.Minute, SessionChecks: []string{check}, DrainGrace: 100 * time.Millisecond, Heartbeat: time.Second,
		Observe: func(ev bus.Event) { m.events <- ev }, Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Serve(bus.AgentSpec{ID: agent}, bus.HandlerFunc(func(_ context.Context, in *bus.Incoming) error { return in.Reply(in.Envelope().Payload) })); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), longTime)
		defer cancel()
		if err := m.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return m
}

// giveNew makes a token and writes it to the member's file, as a template does: by renaming. It returns the
// old token's secret and accessor.
func (r *realm) giveNew(t *testing.T, m *member) (secret, accessor string) {
	t.Helper()
	old, _ := os.ReadFile(m.file)
	accessor = m.accessor
	next, id := r.token(t, m.policy)
	m.accessor = id
	writeToken(t, m.file, next)
	return strings.TrimSpace(string(old)), accessor
}

func writeToken(t *testing.T, file, token string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func (r *realm) revoke(t *testing.T, accessor string) {
	t.Helper()
	if _, err := r.admin.calls.Raw().Delete("/v1/acl/token/"+accessor, nil); err != nil {
		t.Fatal(err)
	}
}

// inUse waits until the member sends the token that its file holds, and has registered anew.
func (m *member) inUse(t *testing.T) {
	t.Helper()
	eventually(t, "the new token is in use", longTime, func() bool {
		want, _ := m.store.token.read()
		used := m.store.token.current()
		m.store.rotation.Lock()
		defer m.store.rotation.Unlock()
		return used == want && !m.store.rotation.running
	})
}

func (m *member) ask(ctx context.Context, to, text string) error {
	ctx, cancel := context.WithTimeout(ctx, longTime)
	defer cancel()
	s, err := m.AskAPI(ctx, bus.Outgoing{To: envelope.Address{Agent: to}, From: "user", Payload: envelope.TextPayload(text)})
	if err != nil {
		return err
	}
	_, err = m.Await(ctx, s.MessageID, func(tr bus.Track) bool { return tr.Facts.Replied })
	return err
}

func sessionOf(t *testing.T, s *Store, gateway string) string {
	t.Helper()
	p := must(s.Get(t.Context(), "openclaw/owners/gateways/"+gateway))(t)
	if p == nil {
		return ""
	}
	return p.Session
}

// TestTokenRotation: each gateway's token is replaced twice while questions go to and fro. Nothing is refused, no
// session is lost, the old tokens are dead, and a gateway that dies afterwards loses its locks as before.
func TestTokenRotation(t *testing.T) {
	r := newRealm(t, cluster.Options{Servers: 3})
	jerry, bobby := r.member(t, "jerry", 1), r.member(t, "bobby", 2)
	for _, m := range []*member{jerry, bobby} {
		eventually(t, "with the rules that are printed it is seen that the catalog hears of "+m.policy+"'s check", longTime, func() bool {
			p, err := r.admin.Get(t.Context(), "openclaw/gateways/"+m.policy+"/overseen")
			return err == nil && p != nil && string(p.Value) == "true"
		})
	}
	r.policy(t, "blind", `service "openclaw" { policy = "write" }`)
	token, _ := r.token(t, "blind")
	blind := open(t, r.client(r.Addr(0), token))
	check := must(blind.RegisterService(t.Context(), bus.Service{ID: "openclaw-blind", Name: "openclaw", HealthURL: jerry.health.URL, Interval: time.Second}))(t)
	if err := blind.Oversees(t.Context(), []string{check}); !errors.Is(err, bus.ErrForbidden) {
		t.Errorf("whoever may not read the catalog: %v", err)
	}
	if err := blind.DeregisterService(t.Context(), "openclaw-blind"); err != nil {
		t.Error(err)
	}
	before := map[string]string{}
	for _, gw := range []string{"jerry-gateway", "bobby-gateway"} {
		before[gw] = sessionOf(t, r.admin, gw)
	}

	traffic, stop := context.WithCancel(t.Context())
	defer stop()
	var asked atomic.Int64
	var wg sync.WaitGroup
	for _, way := range []struct {
		from *member
		to   string
	}{{jerry, "bobby"}, {bobby, "jerry"}, {jerry, "bobby"}} {
		wg.Go(func() {
			for i := 0; traffic.Err() == nil; i++ {
				if err := way.from.ask(t.Context(), way.to, fmt.Sprint(i)); err != nil {
					t.Errorf("question %d to %s: %v", i, way.to, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	flows := func(what string) {
		t.Helper()
		from := asked.Load()
		eventually(t, what+": 30 more answers", longTime, func() bool { return asked.Load() >= from+30 || t.Failed() })
	}
	flows("at first")
	for round := range 2 {
		for _, m := range []*member{jerry, bobby} {
			secret, accessor := r.giveNew(t, m)
			flows("both tokens are good")
			m.inUse(t)
			r.revoke(t, accessor)
			flows("the old one is deleted")
			for i := range r.Servers() {
				old := open(t, Options{Address: r.Addr(i), Token: secret})
				eventually(t, fmt.Sprintf("round %d: the old token of %s is dead at server %d", round, m.Gateway(), i), longTime, func() bool {
					_, err := old.Get(t.Context(), "openclaw/cluster/id")
					return errors.Is(err, bus.ErrForbidden) && strings.Contains(err.Error(), textUnknownToken)
				})
			}
		}
	}
	stop()
	wg.Wait()
	t.Logf("%d questions were answered meanwhile", asked.Load())
	if n := strings.Count(jerry.log.String(), "a new Consul token is in use"); n != 2 {
		t.Errorf("it is said %d times that a new token is in use:\n%s", n, jerry.log)
	}
	for gw, id := range before {
		if now := sessionOf(t, r.admin, gw); now != id {
			t.Errorf("the session of %s was %s and is %s", gw, id, now)
		}
	}
	for _, m := range []*member{jerry, bobby} {
		for len(m.events) > 0 {
			if ev := <-m.events; ev.Event == bus.EventStoreDown || ev.Event == bus.EventDeposed {
				t.Errorf("%s: %s: %s", ev.Gateway, ev.Event, ev.Reason)
			}
		}
	}

	// Consul's agent brings the check's state to the catalog with the token that registered it.
	bobby.health.CloseClientConnections()
	bobby.health.Close()
	eventually(t, "the session of a gateway that does not answer ends", longTime, func() bool {
		now := sessionOf(t, r.admin, "bobby-gateway")
		return now != before["bobby-gateway"]
	})
}

// TestTokenRevoked: without a good token a gateway says in one line what is wrong and what mends it, and goes on by
// itself when it is mended: when the file holds a good one, and when the policy has the rule again.
func TestTokenRevoked(t *testing.T) {
	r := newRealm(t, cluster.Options{})
	jerry, bobby := r.member(t, "jerry", 0), r.member(t, "bobby", 0)
	works := func(what string) {
		t.Helper()
		eventually(t, what, longTime, func() bool { return jerry.ask(t.Context(), "bobby", "hello") == nil })
	}
	works("at first")
	down := func() bus.Event {
		t.Helper()
		limit := time.After(longTime)
		for {
			select {
			case ev := <-bobby.events:
				if ev.Event == bus.EventStoreDown {
					return ev
				}
			case <-limit:
				t.Fatal("the gateway does not say that it cannot use the store")
			}
		}
	}

	// A new token that Consul does not know is no reason to stop using the old one.
	good, _ := os.ReadFile(bobby.file)
	writeToken(t, bobby.file, "adf4238a-882b-9ddc-4a9d-5b6758e4159e")
	bobby.store.token.current()
	works("with a mistake in the file")
	eventually(t, "the mistake is said", longTime, func() bool { return strings.Contains(bobby.log.String(), "does not know the new token") })
	if now := bobby.store.token.current(); now != strings.TrimSpace(string(good)) {
		t.Errorf("a token that Consul does not know is in use")
	}
	writeToken(t, bobby.file, strings.TrimSpace(string(good)))
	bobby.inUse(t)
	if text := bobby.log.String(); strings.Count(text, "\n") != 1 || strings.Contains(text, "adf4238a") {
		t.Errorf("it says:\n%s", text)
	}

	r.revoke(t, bobby.accessor)
	if ev := down(); !strings.Contains(ev.Reason, textUnknownToken) || !strings.Contains(ev.Reason, "consul acl token create") ||
		!strings.Contains(ev.Reason, bobby.file) || strings.Contains(ev.Reason, "\n") {
		t.Errorf("a deleted token: %q", ev.Reason)
	}
	r.giveNew(t, bobby)
	works("after a new token")
	for len(bobby.events) > 0 {
		<-bobby.events
	}

	whole := Policy(PolicyOptions{Role: RoleGateway, Gateway: "bobby-gateway", Node: "server-1", Mesh: pair, Service: "openclaw"})
	r.setPolicy(t, "bobby-gateway", strings.Replace(whole, `key "openclaw/receipts/jerry-gateway/from/bobby"`, `key "openclaw/elsewhere"`, 1))
	s := must(jerry.AskAPI(t.Context(), bus.Outgoing{To: envelope.Address{Agent: "bobby"}, From: "user", Payload: envelope.TextPayload("?")}))(t)
	limit := time.After(longTime)
	for said := ""; said == ""; {
		select {
		case ev := <-bobby.events:
			if strings.Contains(ev.Reason, "key:write") {
				said = ev.Reason
				if !strings.Contains(said, "openclaw/receipts/jerry-gateway/from/bobby") || !strings.Contains(said, "gatemesh acl policy") || strings.Contains(said, "\n") {
					t.Errorf("a missing rule: %q", said)
				}
			}
		case <-limit:
			t.Fatal("nothing is said of a missing rule")
		}
	}
	r.setPolicy(t, "bobby-gateway", whole)
	if _, err := jerry.Await(t.Context(), s.MessageID, func(tr bus.Track) bool { return tr.Facts.Acked && tr.Facts.Replied }); err != nil {
		t.Errorf("the message that came meanwhile: %v", err)
	}
}
