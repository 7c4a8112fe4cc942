package consul

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
)

// Options configures a [Store]. The zero value is what Consul's own tools do: the
// environment (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE,
// CONSUL_HTTP_AUTH, CONSUL_HTTP_SSL, CONSUL_CACERT, CONSUL_CLIENT_CERT, ...), else
// http://localhost:8500.
type Options struct {
	// Address overrides CONSUL_HTTP_ADDR: "host:port", "http://host:port[/prefix]",
	// "https://..." or "unix:///path/to/socket".
	Address string
	// Token overrides CONSUL_HTTP_TOKEN and CONSUL_HTTP_TOKEN_FILE.
	Token string
	// TokenFile holds the token, and is read again when it changes: a new token is used as soon as Consul
	// knows it, without a restart. It wins over Token, which is used while the file is empty.
	TokenFile string
	// Datacenter is asked instead of the agent's own.
	Datacenter string
	// Namespace and Partition are for Consul Enterprise. They override the environment.
	Namespace, Partition string
	// TLS overrides the TLS environment, field by field.
	TLS api.TLSConfig

	// Log hears of tokens that change. Nil: nobody does.
	Log *slog.Logger

	// RequestTimeout bounds every call that does not wait for a change; 0 means
	// 10 s. (A server without a majority answers 500 after 7.7 s.)
	RequestTimeout time.Duration
	// Wait is how long the server holds a Watch when nothing changes; 0 means
	// 30 s, Consul's maximum is 10 min. A Watch whose connection died silently
	// fails after Wait + Wait/16 + RequestTimeout.
	Wait time.Duration
	// MaxConns and MaxWatches bound the connections of plain calls and those of
	// watches; 0 means 64 and 96. They are apart so that watches can never starve
	// writes. A call beyond them waits for a free connection within its time. A
	// Consul server accepts 200 connections from one address
	// (http_max_conns_per_client), of all processes there together.
	MaxConns, MaxWatches int
}

const (
	defaultRequestTimeout = 10 * time.Second
	defaultWait           = 30 * time.Second
	defaultMaxConns       = 64
	defaultMaxWatches     = 96

	dialTimeout = 3 * time.Second
	idleTimeout = 90 * time.Second
	keepAlive   = 15 * time.Second
)

// Store is a bus.Store and bus.Registrar. Create it with [New].
type Store struct {
	calls   *api.Client // plain calls
	watches *api.Client // blocking queries, on connections of their own
	idle    func()      // closes idle connections of both
	addr    string      // for people: "http://127.0.0.1:8500"

	log      *slog.Logger
	token    *token
	rotation rotation
	services services

	timeout time.Duration
	wait    time.Duration

	closed context.Context // done once Close was called
	cancel context.CancelFunc

	mu      sync.RWMutex   // orders running.Add before Close's running.Wait
	running sync.WaitGroup // calls in flight
}

var (
	_ bus.Store     = (*Store)(nil)
	_ bus.Registrar = (*Store)(nil)
	_ bus.Overseer  = (*Store)(nil)
)

// New returns a store. It does not connect: that Consul cannot be reached is the
// first call's error. It fails on settings that can never work.
func New(opt Options) (*Store, error) {
	s := &Store{timeout: opt.RequestTimeout, wait: opt.Wait, services: services{byID: map[string]bus.Service{}}}
	if s.timeout <= 0 {
		s.timeout = defaultRequestTimeout
	}
	if s.wait <= 0 {
		s.wait = defaultWait
	}
	if opt.MaxConns <= 0 {
		opt.MaxConns = defaultMaxConns
	}
	if opt.MaxWatches <= 0 {
		opt.MaxWatches = defaultMaxWatches
	}
	if s.log = opt.Log; s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	token, err := tokenOf(opt)
	if err != nil {
		return nil, fmt.Errorf("consul settings: %w", err)
	}
	token.changed = s.rotated
	s.token, s.rotation.used = token, token.value
	calls, addr, err := connect(opt, token, opt.MaxConns)
	if err != nil {
		return nil, fmt.Errorf("consul settings: %w", err)
	}
	watches, _, err := connect(opt, token, opt.MaxWatches)
	if err != nil {
		return nil, fmt.Errorf("consul settings: %w", err)
	}
	s.calls, s.watches, s.addr = calls.api, watches.api, addr
	s.idle = func() { calls.idle(); watches.idle() }
	s.closed, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Describe implements bus.Store.
func (s *Store) Describe() string { return "consul at " + s.addr }

// Close ends all running calls, which return bus.ErrClosed, waits for them, and
// releases the connections. Sessions are left to their owners and their TTL.
func (s *Store) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
	s.idle()
	return nil
}

// call is one request on its way.
type call struct {
	ctx     context.Context // ends with the caller's, the store's, or after timeout
	caller  context.Context
	what    string // for errors: "get openclaw/x"
	timeout time.Duration
	answer  *answer
	end     func()
}

// begin starts a call; the caller must run its end.
func (s *Store) begin(ctx context.Context, what string, timeout time.Duration) (*call, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed.Err() != nil {
		return nil, bus.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	s.running.Add(1)
	c := &call{caller: ctx, what: what, timeout: timeout, answer: &answer{}}
	inner, cancel := context.WithTimeout(withAnswer(ctx, c.answer), timeout)
	stop := context.AfterFunc(s.closed, cancel)
	c.ctx = inner
	c.end = func() {
		stop()
		cancel()
		s.running.Done()
	}
	return c, nil
}

func (c *call) query() *api.QueryOptions { return (&api.QueryOptions{}).WithContext(c.ctx) }

// consistent is a query whose answer holds everything that was written before it was asked. Consul's default
// is weaker than its name: after a restart a new leader answers from what it has replayed so far, as if the last
// seconds had never been (https://developer.hashicorp.com/consul/api-docs/features/consistency).
func (c *call) consistent() *api.QueryOptions {
	q := c.query()
	q.RequireConsistent = true
	return q
}
func (c *call) write() *api.WriteOptions { return (&api.WriteOptions{}).WithContext(c.ctx) }

// Get implements bus.Store.
func (s *Store) Get(ctx context.Context, key string) (*bus.Pair, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	c, err := s.begin(ctx, "get "+key, s.timeout)
	if err != nil {
		return nil, err
	}
	defer c.end()
	kv, _, err := s.calls.KV().Get(key, c.consistent())
	if err != nil {
		return nil, s.fail(c, err)
	}
	if kv == nil {
		return nil, nil
	}
	pair := pairOf(kv)
	return &pair, nil
}

// Read implements bus.Store.
func (s *Store) Read(ctx context.Context, key string) ([]byte, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	c, err := s.begin(ctx, "read "+key, s.timeout)
	if err != nil {
		return nil, err
	}
	defer c.end()
	c.answer.raw = true
	// What is written once and never changed (a slot, a page of the ledger, a chunk) is right wherever it is found; only
	// that there is none has to be asked of a leader that knows.
	_, _, err = s.calls.KV().Get(key, c.query())
	if err == nil && c.answer.body == nil {
		_, _, err = s.calls.KV().Get(key, c.consistent())
	}
	if err != nil {
		return nil, s.fail(c, err)
	}
	return c.answer.body, nil
}

// Put implements bus.Store: one Raft entry.
func (s *Store) Put(ctx context.Context, key string, value []byte, index uint64) (bool, error) {
	if err := checkKey(key); err != nil {
		return false, err
	}
	if len(value) > maxPut {
		return false, fmt.Errorf("put %s: %w: %d bytes, at most %d", key, bus.ErrTooLarge, len(value), maxPut)
	}
	c, err := s.begin(ctx, "put "+key, s.timeout)
	if err != nil {
		return false, err
	}
	defer c.end()
	ok, _, err := s.calls.KV().CAS(&api.KVPair{Key: key, Value: value, ModifyIndex: index}, c.write())
	if err != nil {
		return false, s.fail(c, err)
	}
	return ok, nil
}

// maxPut is the largest value of a Put: Consul takes 512 KiB (kv_max_value_size), and the
// same bound holds for the embedded store.
const maxPut = 508 << 10

// List implements bus.Store. One answer holds everything: keep prefixes small. It
// is bus.ErrForbidden if the token may not read all of it.
func (s *Store) List(ctx context.Context, prefix string) ([]bus.Pair, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	c, err := s.begin(ctx, "list "+prefix, s.timeout)
	if err != nil {
		return nil, err
	}
	defer c.end()
	pairs, _, err := s.list(c, s.calls, prefix, c.consistent())
	return pairs, err
}

// Keys implements bus.Store. It is bus.ErrForbidden if the token may not read all
// of it.
func (s *Store) Keys(ctx context.Context, prefix, separator string) ([]string, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	c, err := s.begin(ctx, "list the keys of "+prefix, s.timeout)
	if err != nil {
		return nil, err
	}
	defer c.end()
	keys, meta, err := s.calls.KV().Keys(prefix, separator, c.consistent())
	if err != nil {
		return nil, s.fail(c, err)
	}
	if meta.ResultsFilteredByACLs {
		return nil, s.filtered(c)
	}
	return keys, nil
}

// Watch implements bus.Store. It returns after [Options.Wait] (and up to a
// sixteenth more) even if nothing has changed. Each running Watch holds one
// connection to Consul.
func (s *Store) Watch(ctx context.Context, prefix string, after uint64) ([]bus.Pair, uint64, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, 0, err
	}
	// The server adds up to a sixteenth of the wait so that waiters do not return
	// all at once. A blocking query on a connection that died silently never
	// returns: hence a deadline of our own.
	timeout := s.timeout
	if after > 0 {
		timeout += s.wait + s.wait/16
	}
	c, err := s.begin(ctx, "watch "+prefix, timeout)
	if err != nil {
		return nil, 0, err
	}
	defer c.end()
	q := c.consistent()
	if after > 0 {
		q = c.query() // it waits for what is newer than after
		q.WaitIndex, q.WaitTime = after, s.wait
	}
	pairs, index, err := s.list(c, s.watches, prefix, q)
	if err != nil {
		return nil, 0, err
	}
	// Whatever index came is the one to go on from, a lower one too: the state
	// was restored, and what is there now was just read. 0 would mean "do not
	// wait" next time and spin.
	return pairs, max(index, 1), nil
}

// list reads a prefix. That there is none (404) is an empty list with a valid index.
func (s *Store) list(c *call, client *api.Client, prefix string, q *api.QueryOptions) ([]bus.Pair, uint64, error) {
	kvs, meta, err := client.KV().List(prefix, q)
	if err != nil {
		return nil, 0, s.fail(c, err)
	}
	if meta.ResultsFilteredByACLs {
		return nil, 0, s.filtered(c)
	}
	pairs := make([]bus.Pair, len(kvs))
	for i, kv := range kvs {
		pairs[i] = pairOf(kv)
	}
	return pairs, meta.LastIndex, nil
}

func pairOf(kv *api.KVPair) bus.Pair {
	return bus.Pair{
		Key:         kv.Key,
		Value:       kv.Value,
		CreateIndex: kv.CreateIndex,
		ModifyIndex: kv.ModifyIndex,
		Session:     kv.Session,
	}
}

// errKey: the caller made a key that Consul would not keep as it is.
var errKey = errors.New("invalid key")

func checkKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w: empty", errKey)
	}
	return checkPrefix(key)
}

// checkPrefix refuses what a read and a transaction would take for different keys
// (reads clean paths), and what Consul's reads refuse since 1.22 although its
// transactions do not.
func checkPrefix(p string) error {
	if p == "" {
		return nil
	}
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	switch {
	case p[0] == '/':
		return fmt.Errorf("%w: %q begins with a slash", errKey, p)
	case !utf8.ValidString(p):
		return fmt.Errorf("%w: %q is not UTF-8", errKey, p)
	case clean != p:
		return fmt.Errorf("%w: %q is not a clean path (%q is)", errKey, p, clean)
	case p == "." || p == ".." || strings.HasPrefix(p, "../"):
		return fmt.Errorf("%w: %q is a relative path", errKey, p)
	case strings.TrimSpace(p) != p:
		return fmt.Errorf("%w: %q begins or ends with a space", errKey, p)
	}
	if plain, err := url.PathUnescape(p); err == nil && plain != p && (strings.Contains(plain, "..") || strings.Contains(plain, " ")) {
		return fmt.Errorf("%w: %q holds an escaped space or \"..\"", errKey, p)
	}
	return nil
}
