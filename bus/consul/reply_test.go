package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
)

const canary = "canary-5f0c-token"

// answering is a store whose Consul gives one answer to everything.
func answering(t *testing.T, status int, body string) *Store {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(srv.Close)
	return open(t, Options{Address: srv.URL, Token: canary, RequestTimeout: 5 * time.Second})
}

// calls are all the calls of a store that reach Consul.
func calls(s *Store) map[string]func(context.Context) error {
	const id = "adf4238a-882b-9ddc-4a9d-5b6758e4159e"
	return map[string]func(context.Context) error{
		"get":   func(ctx context.Context) error { _, err := s.Get(ctx, "k"); return err },
		"list":  func(ctx context.Context) error { _, err := s.List(ctx, "k"); return err },
		"keys":  func(ctx context.Context) error { _, err := s.Keys(ctx, "k", "/"); return err },
		"watch": func(ctx context.Context) error { _, _, err := s.Watch(ctx, "k", 7); return err },
		"txn": func(ctx context.Context) error {
			_, err := s.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: "k", Value: []byte("v")}})
			return err
		},
		"new session":     func(ctx context.Context) error { _, err := s.NewSession(ctx, bus.SessionOptions{}); return err },
		"renew session":   func(ctx context.Context) error { return s.RenewSession(ctx, id) },
		"destroy session": func(ctx context.Context) error { return s.DestroySession(ctx, id) },
		"register": func(ctx context.Context) error {
			_, err := s.RegisterService(ctx, bus.Service{ID: "a", Name: "b"})
			return err
		},
		"deregister": func(ctx context.Context) error { return s.DeregisterService(ctx, "a") },
		"leader":     func(ctx context.Context) error { _, err := s.Leader(ctx); return err },
		"servers":    func(ctx context.Context) error { _, _, err := s.Servers(ctx); return err },
		"raft index": func(ctx context.Context) error { _, err := s.RaftIndex(ctx); return err },
	}
}

var kinds = []error{bus.ErrUnavailable, bus.ErrForbidden, bus.ErrTooLarge, bus.ErrNoSession, bus.ErrClosed}

// TestReplyMapping: every call maps an answer in the same way, and no error shows the
// token, even if the server (or a proxy) repeats it.
func TestReplyMapping(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   error // nil: none of the kinds
		text   string
	}{
		{"denied", 403, "Permission denied: token " + canary + " lacks permission 'key:read'", bus.ErrForbidden, "CONSUL_HTTP_TOKEN"},
		{"unknown token", 403, "ACL not found", bus.ErrForbidden, "CONSUL_HTTP_TOKEN"},
		{"proxy wants a login", 401, "", bus.ErrForbidden, ""},
		{"no leader", 500, "No cluster leader", bus.ErrUnavailable, "majority"},
		{"full disk", 500, "rpc error making call: raft apply failed: unable to store logs within log store, err: \"write raft/wal/1.wal: no space left on device\"", bus.ErrUnavailable, "make space there"},
		{"stuck since a full disk", 500, "rpc error making call: raft apply failed: unable to store logs within log store, err: \"segment is sealed\"", bus.ErrUnavailable, "restart that server"},
		{"rpc", 500, "rpc error making call: EOF", bus.ErrUnavailable, "rpc error"},
		{"raft", 500, "raft apply failed: leadership lost while committing log", bus.ErrUnavailable, ""},
		{"gateway", 502, canary, bus.ErrUnavailable, "<hidden>"},
		{"rate", 503, "rate limit exceeded, try again later or against a different server", bus.ErrUnavailable, ""},
		{"elsewhere", 429, "rate limit exceeded", bus.ErrUnavailable, ""},
		{"connections", 429, "Your IP is issuing too many concurrent connections, please rate limit your calls", bus.ErrUnavailable, "http_max_conns_per_client"},
		{"too large", 413, "Request body(600000 bytes) too large, max size: 524288 bytes.", bus.ErrTooLarge, ""},
		{"too large, old Consul", 400, "Value exceeds 524288 byte limit", bus.ErrTooLarge, ""},
		{"ops", 413, "Transaction contains too many operations (129 > 128)", bus.ErrTooLarge, ""},
		{"session", 500, `invalid session "adf4238a-882b-9ddc-4a9d-5b6758e4159e"`, bus.ErrNoSession, ""},
		{"ttl", 500, "Invalid Session TTL '1000000000', must be between [10s=24h0m0s]", nil, "Invalid Session TTL"},
		{"bad request", 400, "Client sent an HTTP request to an HTTPS server.", nil, "HTTPS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := answering(t, tt.status, tt.body)
			for name, call := range calls(s) {
				err := call(t.Context())
				if err == nil {
					t.Errorf("%s: no error", name)
					continue
				}
				for _, kind := range kinds {
					if errors.Is(err, kind) != (kind == tt.want) {
						t.Errorf("%s: errors.Is(%v) is %v: %v", name, kind, kind != tt.want, err)
					}
				}
				if !strings.Contains(err.Error(), tt.text) {
					t.Errorf("%s: %q is not in the text: %v", name, tt.text, err)
				}
				for _, e := range tree(err) {
					if strings.Contains(fmt.Sprintf("%v %+v", e, e), canary) {
						t.Errorf("%s: the token is in the error: %v", name, e)
					}
				}
			}
		})
	}
	t.Run("cut off", func(t *testing.T) {
		for name, call := range calls(answering(t, 200, `[{"Key": "k", `)) {
			// Destroying and registering read no answer.
			if err := call(t.Context()); err != nil && !errors.Is(err, bus.ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// tree returns err and everything that it wraps.
func tree(err error) []error {
	all := []error{err}
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			all = append(all, tree(inner)...)
		}
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			all = append(all, tree(inner)...)
		}
	}
	return all
}

// TestRefusedTransaction: the answers of /v1/txn with status 409.
func TestRefusedTransaction(t *testing.T) {
	ops := []bus.Op{
		{Verb: bus.OpSet, Key: "a"},
		{Verb: bus.OpCAS, Key: "b", Index: 3},
		{Verb: bus.OpLock, Key: "c", Session: "x"},
	}
	txn := func(what ...string) error {
		var errs []string
		for i, w := range what {
			if w != "" {
				errs = append(errs, fmt.Sprintf(`{"OpIndex":%d,"What":%q}`, i, w))
			}
		}
		_, err := answering(t, 409, `{"Results":null,"Errors":[`+strings.Join(errs, ",")+`]}`).Txn(t.Context(), ops)
		return err
	}
	var refused *bus.TxnError
	err := txn("", `failed to set key "b", index is stale`, `failed to lock key "c", lock is already held`)
	if !errors.As(err, &refused) || refused.Refused(0) || !refused.Refused(1) || !refused.Refused(2) {
		t.Errorf("refused: %v", err)
	}
	err = txn("", "", `invalid session "x"`)
	if !errors.Is(err, bus.ErrNoSession) || !errors.As(err, &refused) || !refused.Refused(2) || refused.Refused(1) {
		t.Errorf("no session: %v", err)
	}
	err = txn("Permission denied: token with AccessorID '00000000' lacks permission 'key:write' on \"a\"", `failed to set key "b", index is stale`)
	if refused = nil; !errors.Is(err, bus.ErrForbidden) || errors.As(err, &refused) {
		t.Errorf("denied: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	s := open(t, Options{Address: addr, Token: canary})
	for name, call := range calls(s) {
		begin := time.Now()
		err := call(t.Context())
		if !errors.Is(err, bus.ErrUnavailable) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v", name, err)
		}
		if text := fmt.Sprint(err); !strings.Contains(text, addr) || !strings.Contains(text, "CONSUL_HTTP_ADDR") || strings.Contains(text, canary) {
			t.Errorf("%s: the text is %s", name, text)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: failed after %s", name, took)
		}
	}
}

// TestContextsAndClose: a caller's context stays a context error, our own deadline
// does not look like one, and Close ends what runs.
func TestContextsAndClose(t *testing.T) {
	arrived := make(chan struct{}, 64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // only then does the server notice that the client left
		arrived <- struct{}{}
		<-r.Context().Done()
	}))
	defer srv.Close()
	opt := Options{Address: srv.URL, RequestTimeout: 100 * time.Millisecond, Wait: 160 * time.Millisecond}

	s := open(t, opt)
	for name, call := range calls(s) {
		err := call(t.Context())
		if !errors.Is(err, bus.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, own deadline: %v", name, err)
		}
		<-arrived
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		opt := opt
		opt.RequestTimeout = time.Minute
		if err := calls(open(t, opt))[name](ctx); !errors.Is(err, context.Canceled) || errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("%s, cancelled: %v", name, err)
		}
	}

	opt.RequestTimeout, opt.Wait = time.Minute, time.Minute
	s = open(t, opt)
	failed := make(chan error)
	n := 0
	for _, call := range calls(s) {
		n++
		go func() { failed <- call(context.Background()) }()
	}
	for range n {
		<-arrived
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	for range n {
		if err := <-failed; !errors.Is(err, bus.ErrClosed) {
			t.Errorf("a running call: %v", err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	for name, call := range calls(s) {
		if err := call(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestWatchIndex: the rules of Consul's index.
func TestWatchIndex(t *testing.T) {
	index, status := "", 200
	var asked string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RawQuery
		if index != "" {
			w.Header().Set("X-Consul-Index", index)
		}
		w.WriteHeader(status)
		if status == 200 {
			io.WriteString(w, `[{"Key":"k","ModifyIndex":3}]`)
		}
	}))
	defer srv.Close()
	s := open(t, Options{Address: srv.URL, Wait: 2 * time.Second})
	for _, tt := range []struct {
		name, header string
		status       int
		after, want  uint64
		query        string
		pairs        int
	}{
		{"first", "9", 200, 0, 9, "consistent=&recurse=", 1},
		{"moved on", "12", 200, 9, 12, "index=9&recurse=&wait=2000ms", 1},
		{"went back", "4", 200, 12, 4, "index=12&recurse=&wait=2000ms", 1},
		{"zero", "0", 200, 12, 1, "index=12&recurse=&wait=2000ms", 1},
		{"missing", "", 200, 12, 1, "index=12&recurse=&wait=2000ms", 1},
		{"nothing there", "17", 404, 12, 17, "index=12&recurse=&wait=2000ms", 0},
	} {
		index, status = tt.header, tt.status
		pairs, got, err := s.Watch(t.Context(), "k", tt.after)
		if err != nil || got != tt.want || len(pairs) != tt.pairs || asked != tt.query {
			t.Errorf("%s: index %d, %d pairs, asked %q: %v", tt.name, got, len(pairs), asked, err)
		}
	}
}

// TestFreshLeader: a leader that was just elected after a restart answers from what it has replayed so far, unless it is
// asked for a consistent answer. No read takes such an answer for what there is.
func TestFreshLeader(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "9")
		q := r.URL.Query()
		switch {
		case !q.Has("consistent"):
			w.WriteHeader(http.StatusNotFound)
		case q.Has("raw"):
			io.WriteString(w, "v")
		case q.Has("keys"):
			io.WriteString(w, `["k"]`)
		default:
			io.WriteString(w, `[{"Key":"k","Value":"dg==","ModifyIndex":3}]`)
		}
	}))
	defer srv.Close()
	s := open(t, Options{Address: srv.URL})
	ctx := t.Context()
	if p, err := s.Get(ctx, "k"); err != nil || p == nil {
		t.Errorf("get: %v, %v", p, err)
	}
	if b, err := s.Read(ctx, "k"); err != nil || string(b) != "v" {
		t.Errorf("read: %q, %v", b, err)
	}
	if list, err := s.List(ctx, "k"); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
	if keys, err := s.Keys(ctx, "k", ""); err != nil || len(keys) != 1 {
		t.Errorf("keys: %v, %v", keys, err)
	}
	if list, _, err := s.Watch(ctx, "k", 0); err != nil || len(list) != 1 {
		t.Errorf("the first watch: %v, %v", list, err)
	}
}

// TestWatchesDoNotStarveCalls: with all connections for watches in use, and more
// watches waiting for one, a call has its own.
func TestWatchesDoNotStarveCalls(t *testing.T) {
	arrived, release := make(chan struct{}, 8), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "8")
		if r.URL.Query().Has("index") {
			arrived <- struct{}{}
			<-release
		}
		io.WriteString(w, `[{"Key":"k","ModifyIndex":3}]`)
	}))
	defer srv.Close()
	s := open(t, Options{Address: srv.URL, MaxWatches: 2, MaxConns: 1})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, _, err := s.Watch(t.Context(), "k", 7); err != nil {
				t.Error(err)
			}
		})
	}
	<-arrived
	<-arrived
	if _, err := s.Get(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	if n := len(arrived); n > 0 {
		t.Errorf("%d watches too many", n)
	}
	close(release)
	wg.Wait()
}

// TestFilteredAnswer: a list that the token's rules made shorter is no list.
func TestFilteredAnswer(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "5")
		w.Header().Set("X-Consul-LastContact", "0")
		w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
		if r.URL.Query().Has("keys") {
			io.WriteString(w, `["k"]`)
			return
		}
		io.WriteString(w, `[{"Key":"k","ModifyIndex":3}]`)
	}))
	defer srv.Close()
	s := open(t, Options{Address: srv.URL})
	for _, name := range []string{"list", "keys", "watch"} {
		if err := calls(s)[name](t.Context()); !errors.Is(err, bus.ErrForbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeys(t *testing.T) {
	for _, key := range []string{"a", "a/b", "a/", "ä/b c/d", "a%2Fb", "a%zz", "a..b", "a/.b"} {
		if err := checkKey(key); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
	for _, key := range []string{"", "/", "/a", "a//b", "a/../b", "a/./b", "..", "../a", "a/..", ".", "./a", " a", "a ", "a%20b", "a%2e%2e", "a\xff", "a//", "a/."} {
		if err := checkKey(key); err == nil {
			t.Errorf("%q passes", key)
		}
	}
	if err := checkPrefix(""); err != nil {
		t.Errorf("the empty prefix: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct{ address, env, ssl, want string }{
		{"", "", "", "http://localhost:8500"},
		{"", "10.0.0.1:8500", "", "http://10.0.0.1:8500"},
		{"", "10.0.0.1:8501", "true", "https://10.0.0.1:8501"},
		{"", "https://c:8501/base", "", "https://c:8501/base"},
		{"127.0.0.1:1", "10.0.0.1:8500", "", "http://127.0.0.1:1"},
		{"http://127.0.0.1:1", "", "true", "http://127.0.0.1:1"},
		{"unix:///run/consul.sock", "", "", "unix:///run/consul.sock"},
	} {
		t.Setenv("CONSUL_HTTP_ADDR", tt.env)
		t.Setenv("CONSUL_HTTP_SSL", tt.ssl)
		s := open(t, Options{Address: tt.address, Token: canary})
		if got := s.Describe(); got != "consul at "+tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
	_, err := New(Options{Address: "http://me:" + canary + "@c:8500"})
	if err == nil || strings.Contains(err.Error(), canary) || !strings.Contains(err.Error(), "CONSUL_HTTP_AUTH") {
		t.Errorf("a password in the address: %v", err)
	}
	if _, err := New(Options{Address: "ftp://c"}); err == nil {
		t.Error("ftp passes")
	}
	if _, err := New(Options{TLS: api.TLSConfig{CAFile: filepath.Join(t.TempDir(), "none.pem")}}); err == nil {
		t.Error("a CA file that is not there passes")
	}
}

// TestTransports: a unix socket and TLS by environment, both with connections that
// are used again.
// TestRedirects: the token goes to nobody but Consul.
func TestRedirects(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s came with the token %q", r.Method, r.URL, r.Header.Get("X-Consul-Token"))
	}))
	t.Cleanup(other.Close)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(srv.Close)
	for name, call := range calls(open(t, Options{Address: srv.URL, Token: canary})) {
		if err := call(t.Context()); err == nil {
			t.Errorf("%s: a redirect is taken for an answer", name)
		}
	}
}

func TestTransports(t *testing.T) {
	var conns atomic.Int32
	newServer := func(ln net.Listener) *httptest.Server {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Consul-Token") != canary {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			io.WriteString(w, `[{"Key":"k","ModifyIndex":3}]`)
		}))
		if ln != nil {
			srv.Listener.Close()
			srv.Listener = ln
		}
		conns.Store(0)
		srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				conns.Add(1)
			}
		}
		return srv
	}
	check := func(s *Store) {
		t.Helper()
		for range 3 {
			if pair, err := s.Get(t.Context(), "k"); err != nil || pair.ModifyIndex != 3 {
				t.Fatalf("%v, %v", pair, err)
			}
		}
		s.Close()
	}
	t.Setenv("CONSUL_HTTP_TOKEN", canary)

	sock := filepath.Join(t.TempDir(), "c.sock")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(ln)
	srv.Start()
	check(open(t, Options{Address: "unix://" + sock}))
	srv.Close()
	if conns.Load() != 1 {
		t.Errorf("unix: %d connections for 3 calls", conns.Load())
	}

	srv = newServer(nil)
	srv.StartTLS()
	t.Setenv("CONSUL_HTTP_ADDR", srv.Listener.Addr().String())
	t.Setenv("CONSUL_HTTP_SSL", "true")
	s := open(t, Options{})
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown CA: %v", err)
	}
	conns.Store(0)
	t.Setenv("CONSUL_HTTP_SSL_VERIFY", "false")
	check(open(t, Options{}))
	srv.Close()
	if conns.Load() != 1 {
		t.Errorf("TLS: %d connections for 3 calls", conns.Load())
	}
}

// TestSizes: refused before anything is sent (nothing listens).
func TestSizes(t *testing.T) {
	s := open(t, Options{Address: "127.0.0.1:1"})
	set := func(n, size int, key string) []bus.Op {
		ops := make([]bus.Op, n)
		for i := range ops {
			ops[i] = bus.Op{Verb: bus.OpSet, Key: fmt.Sprintf("%s%d", key, i), Value: make([]byte, size)}
		}
		return ops
	}
	lim := s.Limits()
	long := strings.Repeat("k", 2000)
	for name, ops := range map[string][]bus.Op{
		"ops":   set(lim.Ops+1, 1, "k"),
		"gets":  make([]bus.Op, lim.Ops+1),
		"value": set(1, lim.Bytes+1, "k"),
		"sum":   set(2, lim.Bytes/2+1, "k"),
		"body":  set(lim.Ops, lim.Bytes/lim.Ops, long),
	} {
		if name == "gets" {
			for i := range ops {
				ops[i] = bus.Op{Verb: bus.OpGet, Key: "k"}
			}
		}
		if _, err := s.Txn(t.Context(), ops); !errors.Is(err, bus.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, op := range map[string]bus.Op{
		"verb": {Verb: 99, Key: "k"},
		"key":  {Verb: bus.OpSet, Key: "a//b"},
	} {
		if _, err := s.Txn(t.Context(), []bus.Op{op}); err == nil || errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
