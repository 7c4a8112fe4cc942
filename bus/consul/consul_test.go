package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func set(key, value string) bus.Op {
	return bus.Op{Verb: bus.OpSet, Key: key, Value: []byte(value)}
}

// retry tries fn again while the store is unavailable, and returns how long it took.
func retry(t *testing.T, within time.Duration, fn func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	eventually(t, "the store is available", within, func() bool {
		err := fn()
		if err != nil && !errors.Is(err, bus.ErrUnavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	return time.Since(begin)
}

// TestOneServer runs against one real server what needs no faults. The server denies what no policy
// allows; delivery runs with the rights of each gateway.
func TestOneServer(t *testing.T) {
	c := newRealm(t, cluster.Options{Servers: 1, Config: manyClients})
	s := c.admin
	t.Run("Transactions", func(t *testing.T) { testTransactions(t, s) })
	t.Run("Limits", func(t *testing.T) { testLimits(t, s) })
	t.Run("Sessions", func(t *testing.T) { testSessions(t, s, c.Token()) })
	t.Run("ServiceCheckEndsSession", func(t *testing.T) { testServiceCheck(t, s) })
	t.Run("ServiceCheckOverTLS", func(t *testing.T) { testServiceCheckTLS(t, s) })
	t.Run("Servers", func(t *testing.T) { testServers(t, s) })
	t.Run("WatchBlackholed", func(t *testing.T) { testBlackhole(t, c) })
	t.Run("Suite", func(t *testing.T) {
		bustest.Store(t, func(t *testing.T) bus.Store { return open(t, Options{Address: c.Addr(0), Token: c.Token()}) })
	})
	t.Run("Delivery", func(t *testing.T) {
		bustest.DeliveryAs(t, func(t *testing.T) func(bus.Topology, string) bus.Store {
			return func(mesh bus.Topology, gateway string) bus.Store {
				if gateway == "" {
					return open(t, Options{Address: c.Addr(0), Token: c.Token()})
				}
				return c.as(t, mesh, gateway, "server-1", c.Addr(0))
			}
		})
	})
	t.Run("SignedDelivery", func(t *testing.T) {
		bustest.SignedDelivery(t, func(t *testing.T) func() bus.Store {
			// With all rights: what rules would refuse is what the signatures are there for.
			return func() bus.Store { return open(t, Options{Address: c.Addr(0), Token: c.Token()}) }
		})
	})
}

// testTransactions: a Pair for every op, whatever the mix, also for the verbs to
// which Consul answers nothing.
func testTransactions(t *testing.T, s *Store) {
	ctx := t.Context()
	session := must(s.NewSession(ctx, bus.SessionOptions{Name: "txn"}))(t)
	defer s.DestroySession(ctx, session)
	first := must(s.Txn(ctx, []bus.Op{set("x/a", "1"), set("x/b", "2"), set("x/gone", "3"), set("x/tree/1", "4"), set("x/tree/2", "5")}))(t)
	index := first[0].ModifyIndex
	if index == 0 || first[4].ModifyIndex != index || first[0].Value != nil {
		t.Fatalf("pairs of the first transaction: %+v", first)
	}

	ops := []bus.Op{
		{Verb: bus.OpDelete, Key: "x/gone"},
		{Verb: bus.OpGet, Key: "x/gone"},
		{Verb: bus.OpCheckNotExists, Key: "x/none"},
		{Verb: bus.OpGet, Key: "x/none", Index: 99, Session: "ignored"},
		{Verb: bus.OpCAS, Key: "x/a", Value: []byte("new"), Index: index},
		{Verb: bus.OpGet, Key: "x/a"},
		{Verb: bus.OpDeleteTree, Key: "x/tree/"},
		{Verb: bus.OpDelete, Key: "x/never"},
		{Verb: bus.OpLock, Key: "x/lock", Value: []byte("held"), Session: session},
		{Verb: bus.OpCheckSession, Key: "x/lock", Session: session},
		{Verb: bus.OpGet, Key: "x/lock"},
		{Verb: bus.OpCheckIndex, Key: "x/b", Index: index},
		{Verb: bus.OpDeleteCAS, Key: "x/b", Index: index},
		{Verb: bus.OpCAS, Key: "x/new", Value: []byte("made")},
		{Verb: bus.OpSet, Key: "x/a", Value: nil},
		{Verb: bus.OpGet, Key: "x/a"},
		{Verb: bus.OpUnlock, Key: "x/lock", Value: []byte("free"), Session: session},
		{Verb: bus.OpGet, Key: "x/lock"},
	}
	pairs := must(s.Txn(ctx, ops))(t)
	if len(pairs) != len(ops) {
		t.Fatalf("%d pairs for %d ops", len(pairs), len(ops))
	}
	now := pairs[4].ModifyIndex
	want := []bus.Pair{
		{Key: "x/gone"},
		{},
		{Key: "x/none"},
		{},
		{Key: "x/a", CreateIndex: index, ModifyIndex: now},
		{Key: "x/a", CreateIndex: index, ModifyIndex: now, Value: []byte("new")},
		{Key: "x/tree/"},
		{Key: "x/never"},
		{Key: "x/lock", CreateIndex: now, ModifyIndex: now, Session: session},
		{Key: "x/lock"},
		{Key: "x/lock", CreateIndex: now, ModifyIndex: now, Session: session, Value: []byte("held")},
		{Key: "x/b"},
		{Key: "x/b"},
		{Key: "x/new", CreateIndex: now, ModifyIndex: now},
		{Key: "x/a", CreateIndex: index, ModifyIndex: now},
		{Key: "x/a", CreateIndex: index, ModifyIndex: now},
		{Key: "x/lock", CreateIndex: now, ModifyIndex: now},
		{Key: "x/lock", CreateIndex: now, ModifyIndex: now, Value: []byte("free")},
	}
	for i := range want {
		if got := pairs[i]; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want[i]) {
			t.Errorf("op %d (%s %s):\n got %+v\nwant %+v", i, ops[i].Verb, ops[i].Key, got, want[i])
		}
	}

	// Each refusing op is named by its place, and nothing is written.
	before := must(s.RaftIndex(ctx))(t)
	_, err := s.Txn(ctx, []bus.Op{
		set("x/a", "no"),
		{Verb: bus.OpCAS, Key: "x/a", Index: 1},
		{Verb: bus.OpGet, Key: "x/a"},
		{Verb: bus.OpCheckNotExists, Key: "x/a"},
		{Verb: bus.OpCheckSession, Key: "x/lock", Session: session},
		{Verb: bus.OpUnlock, Key: "x/lock", Session: session},
		{Verb: bus.OpCheckIndex, Key: "x/none", Index: 3},
		{Verb: bus.OpDeleteCAS, Key: "x/a", Index: 3},
	})
	var refused *bus.TxnError
	if !errors.As(err, &refused) {
		t.Fatalf("a refused transaction: %v", err)
	}
	var places []int
	for _, f := range refused.Failed {
		places = append(places, f.Op)
	}
	if !slices.Equal(places, []int{1, 3, 4, 5, 6, 7}) {
		t.Errorf("refusing ops: %v", refused.Failed)
	}
	if pair := must(s.Get(ctx, "x/a"))(t); len(pair.Value) != 0 {
		t.Errorf("a refused transaction wrote %q", pair.Value)
	}

	// Reads alone make no Raft entry; the refused one above was one.
	pairs = must(s.Txn(ctx, []bus.Op{{Verb: bus.OpGet, Key: "x/a"}, {Verb: bus.OpGet, Key: "x/none"}, {Verb: bus.OpCheckIndex, Key: "x/a", Index: now}}))(t)
	if len(pairs) != 3 || pairs[0].ModifyIndex != now || pairs[1].Key != "" || pairs[2].Key != "x/a" {
		t.Errorf("reads alone: %+v", pairs)
	}
	if after := must(s.RaftIndex(ctx))(t); after != before+1 {
		t.Errorf("%d Raft entries for one refused transaction and one of reads", after-before)
	}
	// The same bytes again: no new index (bus writers must not wait for one).
	same := must(s.Txn(ctx, []bus.Op{{Verb: bus.OpCAS, Key: "x/a", Index: now}}))(t)
	if same[0].ModifyIndex != now {
		t.Errorf("the same value again has index %d, not %d", same[0].ModifyIndex, now)
	}
}

func testLimits(t *testing.T, s *Store) {
	ctx := t.Context()
	lim := s.Limits()
	// The largest that Limits allows, in one value and in many with long keys.
	must(s.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: "big", Value: make([]byte, lim.Bytes)}}))(t)
	ops := make([]bus.Op, lim.Ops)
	for i := range ops {
		ops[i] = bus.Op{Verb: bus.OpSet, Key: fmt.Sprintf("big%s/%d", strings.Repeat("k", 140), i), Value: bytes.Repeat([]byte{0xff}, lim.Bytes/lim.Ops)}
	}
	must(s.Txn(ctx, ops))(t)
	if pairs := must(s.List(ctx, "bigk"))(t); len(pairs) != lim.Ops {
		t.Errorf("%d of %d written", len(pairs), lim.Ops)
	}
	for i := range ops {
		ops[i] = bus.Op{Verb: bus.OpGet, Key: ops[i].Key}
	}
	if pairs := must(s.Txn(ctx, ops))(t); len(pairs[lim.Ops-1].Value) != lim.Bytes/lim.Ops {
		t.Errorf("read back %d bytes", len(pairs[lim.Ops-1].Value))
	}
	// Characters that JSON writes in six bytes pass our estimate, not Consul's check.
	// (Nothing of ours has such keys.)
	odd := []bus.Op{{Verb: bus.OpSet, Key: strings.Repeat("<", 5000), Value: make([]byte, lim.Bytes)}}
	if _, err := s.Txn(ctx, odd); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("a body over Consul's limit: %v", err)
	}
	must(s.Txn(ctx, []bus.Op{{Verb: bus.OpDeleteTree, Key: "big"}}))(t)
}

// manyClients: the suites are a hundred gateways from one address, one after another, and a server counts the
// watches of those that are gone until they run out (5 minutes).
const manyClients = `limits { http_max_conns_per_client = 2000 }`

func testSessions(t *testing.T, s *Store, token string) {
	ctx := t.Context()
	id := must(s.NewSession(ctx, bus.SessionOptions{Name: "gatemesh jerry", TTL: 10 * time.Second}))(t)
	var infos []struct {
		Name, Behavior, TTL string
		LockDelay           time.Duration
		NodeChecks          []string
	}
	if _, err := s.calls.Raw().Query("/v1/session/info/"+id, &infos, nil); err != nil || len(infos) != 1 {
		t.Fatalf("%v, %v", infos, err)
	}
	if i := infos[0]; i.Name != "gatemesh jerry" || i.Behavior != "delete" || i.TTL != "10s" || i.LockDelay != lockDelay || !slices.Equal(i.NodeChecks, []string{"serfHealth"}) {
		t.Errorf("the session is %+v", i)
	}
	if err := s.RenewSession(ctx, id); err != nil {
		t.Error(err)
	}
	must(s.Txn(ctx, []bus.Op{{Verb: bus.OpLock, Key: "s/lock", Session: id}}))(t)
	if err := s.DestroySession(ctx, id); err != nil {
		t.Error(err)
	}
	if pair := must(s.Get(ctx, "s/lock"))(t); pair != nil {
		t.Errorf("the lock outlives its session: %+v", pair)
	}
	for _, gone := range []string{id, "no-such-session"} {
		if err := s.RenewSession(ctx, gone); !errors.Is(err, bus.ErrNoSession) {
			t.Errorf("renew %s: %v", gone, err)
		}
		if err := s.DestroySession(ctx, gone); err != nil {
			t.Errorf("destroy %s: %v", gone, err)
		}
		var refused *bus.TxnError
		// Another key: on the one that was just freed, the lock-delay would be the answer.
		_, err := s.Txn(ctx, []bus.Op{set("s/other", "x"), {Verb: bus.OpLock, Key: "s/free", Session: gone}})
		if !errors.Is(err, bus.ErrNoSession) || !errors.As(err, &refused) || !refused.Refused(1) {
			t.Errorf("lock with %s: %v", gone, err)
		}
	}
	if _, err := s.NewSession(ctx, bus.SessionOptions{TTL: time.Second}); err == nil || errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "TTL") {
		t.Errorf("a TTL under Consul's minimum: %v", err)
	}
	short := open(t, Options{Address: strings.TrimPrefix(s.Describe(), "consul at "), Token: token, RequestTimeout: 2 * time.Second})
	if _, err := short.NewSession(ctx, bus.SessionOptions{Checks: []string{"service:none"}}); !errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "service:none") {
		t.Errorf("a check that is not there: %v", err)
	}
}

// testServiceCheck: a gateway that dies loses its locks by its health check, long
// before its session's TTL.
func testServiceCheck(t *testing.T, s *Store) {
	ctx := t.Context()
	health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	defer health.Close()
	svc := bus.Service{
		ID: "gatemesh-jerry", Name: "gatemesh", Address: "127.0.0.1", Port: 4711,
		Tags: []string{"jerry"}, Meta: map[string]string{"version": "1"},
		HealthURL: health.URL, Interval: time.Second,
	}
	check := must(s.RegisterService(ctx, svc))(t)
	if check != "service:gatemesh-jerry" {
		t.Errorf("the check is %q", check)
	}
	id := must(s.NewSession(ctx, bus.SessionOptions{Name: "jerry", TTL: time.Hour, Checks: []string{check}}))(t)
	must(s.Txn(ctx, []bus.Op{{Verb: bus.OpLock, Key: "c/lock", Session: id}, set("c/about", "resident")}))(t)

	// The catalog knows it, with everything.
	var entries []struct {
		ServiceAddress string
		ServicePort    int
		ServiceTags    []string
		ServiceMeta    map[string]string
	}
	if _, err := s.calls.Raw().Query("/v1/catalog/service/gatemesh", &entries, nil); err != nil || len(entries) != 1 {
		t.Fatalf("catalog: %v, %v", entries, err)
	}
	if e := entries[0]; e.ServicePort != 4711 || e.ServiceAddress != "127.0.0.1" || e.ServiceTags[0] != "jerry" || e.ServiceMeta["version"] != "1" {
		t.Errorf("catalog: %+v", e)
	}

	_, index, err := s.Watch(ctx, "c/", 0)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	health.CloseClientConnections()
	health.Close()
	bounded, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		pairs, next, err := s.Watch(bounded, "c/", index)
		if err != nil {
			t.Fatal(err)
		}
		if len(pairs) == 1 && pairs[0].Key == "c/about" {
			break
		}
		index = next
	}
	t.Logf("the lock was gone %s after the gateway died (check every %s)", time.Since(begin).Round(time.Millisecond), svc.Interval)
	if err := s.RenewSession(ctx, id); !errors.Is(err, bus.ErrNoSession) {
		t.Errorf("renew after the check failed: %v", err)
	}
	for range 2 {
		if err := s.DeregisterService(ctx, svc.ID); err != nil {
			t.Errorf("deregister: %v", err)
		}
	}
}

// testServiceCheckTLS: the agent also asks a gateway that shows a certificate for another name, of a CA that it
// does not know.
func testServiceCheckTLS(t *testing.T, s *Store) {
	asked := make(chan struct{}, 1)
	health := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
	}))
	defer health.Close()
	must(s.RegisterService(t.Context(), bus.Service{ID: "gatemesh-tls", Name: "gatemesh", HealthURL: health.URL, Interval: time.Second}))(t)
	select {
	case <-asked:
	case <-time.After(15 * time.Second):
		t.Error("the agent never asked")
	}
	if err := s.DeregisterService(t.Context(), "gatemesh-tls"); err != nil {
		t.Error(err)
	}
}

func testServers(t *testing.T, s *Store) {
	ctx := t.Context()
	leader, peers, err := s.Servers(ctx)
	if err != nil || len(peers) != 1 || leader != peers[0] {
		t.Errorf("servers %q, leader %q: %v", peers, leader, err)
	}
	before := must(s.RaftIndex(ctx))(t)
	must(s.Txn(ctx, []bus.Op{set("r", "1"), set("r2", "2")}))(t)
	if after := must(s.RaftIndex(ctx))(t); after != before+1 {
		t.Errorf("one transaction was %d Raft entries", after-before)
	}
}

// blackhole is a TCP proxy that at a signal stops forwarding and keeps its
// connections open, as a cable that was pulled does.
type blackhole struct {
	net.Listener
	target string
	wg     sync.WaitGroup
	quit   chan struct{} // closed by stop

	mu    sync.Mutex
	conns []net.Conn
	dead  bool
}

func newBlackhole(t *testing.T, target string) *blackhole {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &blackhole{Listener: ln, target: target, quit: make(chan struct{})}
	b.wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			b.mu.Lock()
			b.conns = append(b.conns, in, out)
			b.mu.Unlock()
			b.wg.Go(func() { b.forward(in, out) })
			b.wg.Go(func() { b.forward(out, in) })
		}
	})
	t.Cleanup(b.stop)
	return b
}

func (b *blackhole) forward(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		b.mu.Lock()
		dead := b.dead
		b.mu.Unlock()
		if dead {
			continue // swallowed
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (b *blackhole) die() {
	b.mu.Lock()
	b.dead = true
	b.mu.Unlock()
}

func (b *blackhole) stop() {
	b.Close()
	b.mu.Lock()
	for _, c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

// testBlackhole: a watch whose connection died silently ends by its own deadline.
func testBlackhole(t *testing.T, c *realm) {
	b := newBlackhole(t, strings.TrimPrefix(c.Addr(0), "http://"))
	s := open(t, Options{Address: b.Addr().String(), Token: c.Token(), Wait: 400 * time.Millisecond, RequestTimeout: 400 * time.Millisecond})
	ctx := t.Context()
	must(s.Txn(ctx, []bus.Op{set("hole/about", "resident")}))(t)
	_, index, err := s.Watch(ctx, "hole/", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, next, err := s.Watch(ctx, "hole/", index); err != nil || next != index {
		t.Fatalf("a quiet watch: index %d after %d, %v", next, index, err)
	}
	b.die()
	begin := time.Now()
	_, _, err = s.Watch(ctx, "hole/", index)
	if took := time.Since(begin); !errors.Is(err, bus.ErrUnavailable) || took > 2*time.Second {
		t.Errorf("a blackholed watch: after %s %v", took, err)
	}
	if _, err := s.Get(ctx, "hole/about"); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("a blackholed get: %v", err)
	}
}

// TestForbidden: a real server with ACLs. The token may write mine/ and read
// shared/, and nothing else.
func TestForbidden(t *testing.T) {
	const root = "canary-root-8a11"
	c := cluster.ForTestWith(t, cluster.Options{Token: root, Config: `
acl {
  enabled = true
  default_policy = "deny"
  tokens { initial_management = "` + root + `" }
}`})
	ctx := t.Context()
	admin := open(t, Options{Address: c.Addr(0), Token: root})
	write := func(path string, in, out any) {
		t.Helper()
		if _, err := admin.calls.Raw().Write(path, in, out, nil); err != nil {
			t.Fatal(err)
		}
	}
	write("/v1/acl/policy", map[string]any{"Name": "mine", "Rules": `
key_prefix "mine/" { policy = "write" }
key_prefix "shared/" { policy = "read" }`}, nil)
	var token struct{ SecretID string }
	write("/v1/acl/token", map[string]any{"Policies": []map[string]string{{"Name": "mine"}}}, &token)
	must(admin.Txn(ctx, []bus.Op{set("shared/a", "1"), set("other/a", "1"), set("mine/a", "1")}))(t)
	s := open(t, Options{Address: c.Addr(0), Token: token.SecretID})

	must(s.Txn(ctx, []bus.Op{set("mine/b", "2"), {Verb: bus.OpGet, Key: "shared/a"}}))(t)
	if pairs := must(s.List(ctx, "mine/"))(t); len(pairs) != 2 {
		t.Errorf("mine: %v", pairs)
	}
	stranger := open(t, Options{Address: c.Addr(0), Token: "canary-" + token.SecretID})
	for name, err := range map[string]error{
		"txn":              second(s.Txn(ctx, []bus.Op{set("mine/c", "3"), set("other/a", "3")})),
		"txn to read-only": second(s.Txn(ctx, []bus.Op{set("shared/a", "3")})),
		"txn reads":        second(s.Txn(ctx, []bus.Op{{Verb: bus.OpGet, Key: "mine/a"}, {Verb: bus.OpGet, Key: "other/a"}})),
		"txn check":        second(s.Txn(ctx, []bus.Op{{Verb: bus.OpCheckIndex, Key: "other/a", Index: 1}})),
		"get":              second(s.Get(ctx, "other/a")),
		"list part":        second(s.List(ctx, "")),
		"list nothing":     second(s.List(ctx, "other/")),
		"keys":             second(s.Keys(ctx, "", "/")),
		"session":          second(s.NewSession(ctx, bus.SessionOptions{})),
		"service":          second(s.RegisterService(ctx, bus.Service{ID: "a", Name: "a"})),
		"raft index":       second(s.RaftIndex(ctx)),
		"unknown token":    second(stranger.Get(ctx, "mine/a")),
		"unknown, txn":     second(stranger.Txn(ctx, []bus.Op{set("mine/a", "4")})),
	} {
		if !errors.Is(err, bus.ErrForbidden) || errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, e := range tree(err) {
			if text := e.Error(); strings.Contains(text, token.SecretID) || strings.Contains(text, root) {
				t.Errorf("%s: the token is in %q", name, text)
			}
		}
		if !strings.Contains(err.Error(), "CONSUL_HTTP_TOKEN") {
			t.Errorf("%s: no remedy in %v", name, err)
		}
	}
	if _, _, err := s.Watch(ctx, "other/", 0); !errors.Is(err, bus.ErrForbidden) {
		t.Errorf("watch: %v", err)
	}
	if pair := must(admin.Get(ctx, "mine/c"))(t); pair != nil {
		t.Errorf("a forbidden transaction wrote %+v", pair)
	}
	// The exception: what may be written is, before what may not be read is missed.
	_, err := s.Txn(ctx, []bus.Op{set("mine/d", "4"), {Verb: bus.OpGet, Key: "other/a"}, set("mine/e", "5")})
	if !errors.Is(err, bus.ErrForbidden) || !strings.Contains(err.Error(), "were applied") {
		t.Errorf("a transaction with an unreadable get: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestThreeServers measures on three servers, and kills their leader.
func TestThreeServers(t *testing.T) {
	c := cluster.ForTestWith(t, cluster.Options{Servers: 3, Config: manyClients})
	ctx := t.Context()
	leader := must(c.Leader(ctx))(t)
	follower := (leader + 1) % 3
	s := open(t, Options{Address: c.Addr(follower)})

	value := bytes.Repeat([]byte("x"), 1024)
	var puts, wakes []time.Duration
	for i := range 200 {
		begin := time.Now()
		value[0] = byte(i)
		must(s.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: "m/put", Value: value}}))(t)
		puts = append(puts, time.Since(begin))
	}
	_, index, err := s.Watch(ctx, "m/", 0)
	if err != nil {
		t.Fatal(err)
	}
	type wake struct {
		at  time.Time
		err error
	}
	woke := make(chan wake)
	go func() {
		defer close(woke)
		for range 200 {
			next := index
			for err == nil && next == index {
				_, next, err = s.Watch(ctx, "m/", index)
			}
			index = next
			woke <- wake{time.Now(), err}
			if err != nil {
				return
			}
		}
	}()
	for i := range 200 {
		begin := time.Now()
		value[0] = byte(i + 7)
		must(s.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: "m/put", Value: value}}))(t)
		w := <-woke
		if w.err != nil {
			t.Fatal(w.err)
		}
		wakes = append(wakes, w.at.Sub(begin))
	}
	<-woke
	t.Logf("three servers, through a follower: put of 1 KiB p50 %s, from before the put until the watch has it p50 %s", p50(puts), p50(wakes))

	t.Run("Suite", func(t *testing.T) {
		// Every subtest through another server than the one before.
		next := 0
		bustest.Store(t, func(t *testing.T) bus.Store {
			next++
			return open(t, Options{Address: c.Addr(next % 3)})
		})
	})

	t.Run("Delivery", func(t *testing.T) {
		// Every gateway through another server than the one before.
		next := 0
		bustest.Delivery(t, func(t *testing.T) func() bus.Store {
			return func() bus.Store {
				next++
				return open(t, Options{Address: c.Addr(next % 3)})
			}
		})
	})

	// The leader dies. Writes through the others come back by trying again, and
	// nothing that was answered is lost.
	n := 0
	write := func() error {
		_, err := s.Txn(ctx, []bus.Op{set(fmt.Sprintf("w/%03d", n), "x")})
		if err == nil {
			n++
		}
		return err
	}
	for range 20 {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Kill(leader); err != nil {
		t.Fatal(err)
	}
	t.Logf("leader killed: writes again after %s", retry(t, 30*time.Second, write).Round(time.Millisecond))
	if got := len(must(s.Keys(ctx, "w/", ""))(t)); got != n {
		t.Errorf("%d of %d accepted writes are there", got, n)
	}

	// Without a majority nothing is accepted, and it is said in time.
	second := must(c.Leader(ctx))(t)
	if second == follower {
		second = 3 - leader - follower
	}
	if err := c.Kill(second); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := s.Txn(ctx, []bus.Op{set("w/minority", "x")}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("a minority's write: %v", err)
	} else {
		t.Logf("a minority refuses after %s: %v", time.Since(begin).Round(time.Millisecond), err)
	}
	if err := s.Reach(ctx); err != nil {
		t.Errorf("the agent of a minority is there: %v", err)
	}
	away := open(t, Options{Address: c.Addr(second)})
	if err := away.Reach(ctx); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("an agent that is gone: %v", err)
	}
	// The server that we were not connected to comes back, ours never went.
	if err := c.Restart(ctx, second); err != nil {
		t.Fatal(err)
	}
	t.Logf("majority again: writes after %s", retry(t, 30*time.Second, write).Round(time.Millisecond))
}

func p50(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2].Round(10 * time.Microsecond)
}
