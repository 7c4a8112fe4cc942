package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// Deps are what a gateway works with, apart from its settings. Store and Runners are
// required.
type Deps struct {
	// Store is closed by whoever opened it, after Stop.
	Store bus.Store
	// Runners make the agents' handlers.
	Runners agent.Runners
	// Channels make the adapters of chat channels, by name; the gateway's own (webchat) needs none.
	Channels map[string]ChannelFactory
	// MCP makes the server at /mcp of the whole API, which it uses with the tokens of its callers; nil: there is none.
	MCP func(api http.Handler) http.Handler
	// A2A makes the server below /a2a in the same way.
	A2A func(api http.Handler) http.Handler
	// OpenClaw makes the server of OpenClaw's WebSocket protocol, at the root, in the same way. Its context ends when the gateway stops.
	OpenClaw func(api http.Handler) http.Handler
	// Logger may be nil. A reload sets its level.
	Logger hclog.Logger
	// Version is the build, for people.
	Version string
	// Listener is used instead of gateway.bind and gateway.port; Start takes it over.
	Listener net.Listener
	// StateDir is where the gateway keeps its key and the trust set that it has seen. Empty: nowhere, so it is somebody else
	// after each start.
	StateDir string
	// FailFast makes Start fail when the store cannot be reached, instead of going on trying.
	FailFast bool
	// DrainGrace is how long handlers may go on when the gateway stops. 0: 5 s.
	DrainGrace time.Duration
}

// Gateway is one node. Make it with New; it runs once.
type Gateway struct {
	deps  Deps
	log   hclog.Logger
	name  string
	start *Config // what this process was started with

	settings atomic.Pointer[settings]
	policy   livePolicy

	confidentiality liveConfidentiality
	agents          map[string]*liveAgent // by id: those that run here, and those that do a queue's work here
	accounts        map[string]*account   // of channels, by inbox
	router          atomic.Pointer[Router]
	cron            *scheduler    // nil: none here
	skillsChanged   chan struct{} // capacity 1: a wake-up
	skilled         atomic.Pointer[[]agent.Spec]
	chats           *chats
	sockets         *sockets
	metrics         *metrics
	hub             *hub
	ids             idLocks
	guard           atomic.Pointer[guard]
	// Requests refused for a wrong token, and for none.
	wrong, missing attempts

	cert   *certificate // nil: no TLS
	limits limits

	identity *identity
	// refusals bounds the log of what was refused.
	refusals *rate.Limiter
	// audit is nil until Start, and then when there is no audit log.
	audit *auditLog

	// bus is nil until the store was reached.
	bus    atomic.Pointer[bus.Bus]
	reason atomic.Pointer[string]
	// service carries wake-ups for the loop that keeps the catalog entry (capacity 1).
	service    chan struct{}
	registered atomic.Bool

	began    time.Time
	reached  atomic.Pointer[time.Time] // when the store's agent was last asked and answered; nil: not yet
	listener net.Listener
	url      string

	// life ends the background loops; waits ends requests that wait for something.
	life     context.Context
	endLife  context.CancelFunc
	waits    context.Context
	endWaits context.CancelFunc
	wg       sync.WaitGroup

	mu       sync.Mutex
	last     *Config // of the last reload
	started  bool
	stopping bool
	steps    []step
	done     chan struct{} // closed when everything has ended
	err      error         // why, readable after done
}

// A step is one thing that Start began and Stop ends.
type step struct {
	name string
	stop func(context.Context) error
}

// settings are what a reload can change, beside agents and the log level.
type settings struct {
	ttl, maxTTL time.Duration
	maxHops     int
	maxPayload  int
}

func settingsOf(c *Config) *settings {
	return &settings{ttl: c.Mesh.DefaultTTL, maxTTL: min(c.Mesh.MaxTTL, envelope.MaxTTL), maxHops: min(c.Mesh.DefaultMaxHops, envelope.MaxHops), maxPayload: int(c.Mesh.MaxPayload)}
}

// New checks everything that can be checked without the network: the configuration (which it
// normalizes) and the agents' runners.
func New(cfg *Config, deps Deps) (*Gateway, error) {
	if cfg == nil || deps.Store == nil {
		return nil, errors.New("a gateway needs a configuration and a store")
	}
	if deps.Logger == nil {
		deps.Logger = hclog.NewNullLogger()
	}
	cfg.Normalize()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	g := &Gateway{
		deps: deps, log: deps.Logger, name: cfg.Mesh.Gateway, start: cfg, last: cfg,
		agents: map[string]*liveAgent{}, service: make(chan struct{}, 1), done: make(chan struct{}),
		limits: defaultLimits,
	}
	g.guard.Store(newGuard(cfg.Gateway))
	var err error
	if g.cert, err = newCertificate(cfg.Gateway.TLS, g.log); err != nil {
		return nil, err
	}
	if g.identity, err = openIdentity(cfg, deps.StateDir); err != nil {
		return nil, err
	}
	g.refusals = rate.NewLimiter(1, 20)
	g.settings.Store(settingsOf(cfg))
	g.confidentiality.set(cfg)
	if err := g.policy.set(cfg); err != nil {
		return nil, err
	}
	if p := g.identity.policy.Policy(); p != nil {
		if err := g.policy.setSigned(p); err != nil {
			return nil, fmt.Errorf("the mesh's policy %d that is pinned in %s: %w", p.Version, policyFile, err)
		}
	}
	g.notReady("starting")
	g.hub = newHub()
	g.metrics = newMetrics(g, deps.Version)
	for _, a := range cfg.runnersHere() {
		h, ackTimeout, err := g.runner(cfg, a)
		if err != nil {
			return nil, err
		}
		l := &liveAgent{}
		l.set(h, ackTimeout)
		g.agents[a.ID] = l
	}
	g.router.Store(NewRouter(cfg))
	if err := g.newAccounts(cfg); err != nil {
		return nil, err
	}
	g.skillsChanged = make(chan struct{}, 1)
	g.takeSkills(cfg)
	if cfg.Cron.Enabled {
		g.cron = newScheduler(g)
	}
	g.chats, g.sockets = newChats(g), newSockets()
	g.life, g.endLife = context.WithCancel(context.Background())
	g.waits, g.endWaits = context.WithCancel(context.Background())
	return g, nil
}

// Start listens and then connects to the store. When the store cannot be reached it returns
// nil all the same (unless Deps.FailFast) and goes on trying. On an error nothing runs.
func (g *Gateway) Start(ctx context.Context) error {
	g.mu.Lock()
	if g.started || g.stopping {
		g.mu.Unlock()
		return errors.New("gateway was started or stopped before: make a new one")
	}
	if err := g.listen(ctx); err != nil {
		g.mu.Unlock()
		return err
	}
	if err := g.openAudit(); err != nil {
		g.mu.Unlock()
		return errors.Join(err, g.listener.Close())
	}
	g.started, g.began = true, time.Now()
	g.serve()
	g.steps = append(g.steps, step{"bus", g.stopBus})
	g.wg.Add(1)
	g.mu.Unlock()

	err := g.begin(ctx)
	g.wg.Done()
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), failTimeout)
		defer cancel()
		return errors.Join(err, g.stop(stop, err))
	}
	var agents []string
	for _, a := range g.start.AgentsHere() {
		agents = append(agents, a.ID)
	}
	slices.Sort(agents)
	g.log.Info("gateway is up", "gateway", g.name, "url", g.url, "store", g.deps.Store.Describe(),
		"agents", strings.Join(agents, ","), "version", g.deps.Version, "tls", g.cert != nil, "token", !g.guard.Load().open,
		"key", g.identity.signer.Current().ID(), "trust", g.identity.describe())
	return nil
}

// begin tries the store once and, if it may, leaves the rest to connectLoop.
func (g *Gateway) begin(ctx context.Context) error {
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.life, cancel)()
	err := g.connect(both)
	switch {
	case g.stopped():
		return errors.Join(bus.ErrStopped, g.abandon())
	case err == nil:
		return nil
	case g.deps.FailFast || errors.As(err, new(*startError)) || ctx.Err() != nil:
		return err
	}
	g.storeMissing(err)
	g.run(g.connectLoop)
	return nil
}

// listen opens the port.
func (g *Gateway) listen(ctx context.Context) error {
	l := g.deps.Listener
	if l == nil {
		var lc net.ListenConfig
		var err error
		if l, err = lc.Listen(ctx, "tcp", g.start.ListenAddr()); err != nil {
			return fmt.Errorf("listen on %s: %w (is another gateway running? change gateway.port or gateway.bind)", g.start.ListenAddr(), err)
		}
	}
	if g.guard.Load().open && !loopbackAddr(l.Addr()) {
		_ = l.Close()
		return fmt.Errorf("listen on %s, which others can reach, needs a token: set gateway.auth", l.Addr())
	}
	g.listener = l
	g.url = advertisedURL(g.start.Mesh.AdvertiseURL, l.Addr(), g.scheme())
	return nil
}

// limits are how long a client may take and how much it may say before its request is read.
type limits struct {
	// header bounds the TLS handshake and, from the first byte, the header; request all of it and the writing of the
	// answer (waiting on purpose comes on top); idle a connection without a request.
	header, request, idle time.Duration
	headerBytes           int
}

var defaultLimits = limits{header: 10 * time.Second, request: ioTimeout, idle: 2 * time.Minute, headerBytes: 64 << 10}

// serve answers HTTP from now on.
func (g *Gateway) serve() {
	// HTTP/1.1 alone: a WebSocket needs it, and HTTP/2 has limits of its own that would have to be watched.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	srv := &http.Server{
		Handler:           g.handler(),
		ReadHeaderTimeout: g.limits.header,
		ReadTimeout:       g.limits.request,
		WriteTimeout:      g.limits.request,
		IdleTimeout:       g.limits.idle,
		MaxHeaderBytes:    g.limits.headerBytes,
		Protocols:         &protocols,
		ErrorLog:          g.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	if g.cert != nil {
		g.listener = tls.NewListener(g.listener, g.cert.config())
	}
	g.run(func() {
		if err := srv.Serve(g.listener); !errors.Is(err, http.ErrServerClosed) {
			g.fail(fmt.Errorf("serve HTTP: %w", err))
		}
	})
	g.steps = append(g.steps, step{"HTTP server", func(ctx context.Context) error {
		err := srv.Shutdown(ctx)
		if err != nil {
			_ = srv.Close()
		}
		return err
	}}, step{"event streams", g.hub.close}, step{"chats", g.chats.close}, step{"OpenClaw clients", g.sockets.close})
}

func (g *Gateway) run(f func()) {
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		f()
	}()
}

// stopBus ends the bus, then the catalog entry (the session hangs on the entry's check), then
// the requests that wait for what cannot happen any more.
func (g *Gateway) stopBus(ctx context.Context) error {
	g.endLife()
	var errs []error
	if b := g.bus.Load(); b != nil {
		errs = append(errs, b.Stop(ctx))
	}
	errs = append(errs, g.deregister(ctx))
	g.endWaits()
	return errors.Join(errs...)
}

// abandon ends a bus that was started while Stop passed by.
func (g *Gateway) abandon() error {
	ctx, cancel := context.WithTimeout(context.Background(), failTimeout)
	defer cancel()
	return g.stopBus(ctx)
}

// fail ends the gateway because of err.
func (g *Gateway) fail(err error) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), failTimeout)
		defer cancel()
		_ = g.stop(ctx, err)
	}()
}

// failTimeout bounds the end of a gateway that cannot go on.
const failTimeout = 10 * time.Second

// Stop hands the agents over and ends everything, in reverse order of the start, no later
// than ctx allows. The error names the steps that failed. Stopping again waits for the
// first Stop.
func (g *Gateway) Stop(ctx context.Context) error { return g.stop(ctx, nil) }

func (g *Gateway) stop(ctx context.Context, cause error) error {
	g.mu.Lock()
	if g.stopping {
		g.mu.Unlock()
		select {
		case <-g.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stop gateway: %w", ctx.Err())
		}
	}
	g.stopping = true
	g.notReady("stopping")
	if cause != nil {
		g.log.Error("gateway stops", "gateway", g.name, "error", cause)
	}
	steps := g.steps
	g.steps = nil
	g.mu.Unlock()
	err := g.unwind(ctx, steps)
	g.err = cause
	if cause == nil {
		g.err = err
	}
	close(g.done)
	g.log.Info("gateway has stopped", "gateway", g.name)
	return err
}

// unwind ends steps in reverse order. None is left out because another one hangs: each runs
// on its own once ctx is over.
func (g *Gateway) unwind(ctx context.Context, steps []step) error {
	var errs []error
	bounded := func(name string, f func(context.Context) error) {
		end := make(chan error, 1)
		go func() { end <- f(ctx) }()
		var err error
		select {
		case err = <-end:
		case <-ctx.Done():
			select {
			case err = <-end:
			default:
				err = ctx.Err()
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", name, err))
		}
	}
	for _, s := range slices.Backward(steps) {
		bounded(s.name, s.stop)
	}
	g.endLife()
	g.endWaits()
	bounded("background work", func(context.Context) error { g.wg.Wait(); return nil })
	return errors.Join(errs...)
}

// Done is closed when the gateway has ended, by Stop or by itself.
func (g *Gateway) Done() <-chan struct{} { return g.done }

// Wait waits for the end and says why: nil after a Stop without errors, bus.ErrReplaced when
// another process took over this gateway's name, the HTTP server's error.
func (g *Gateway) Wait() error {
	<-g.done
	return g.err
}

// Name is the gateway's id.
func (g *Gateway) Name() string { return g.name }

// Addr is where it listens; nil before Start.
func (g *Gateway) Addr() net.Addr {
	if g.listener == nil {
		return nil
	}
	return g.listener.Addr()
}

// URL is where others reach it; "" before Start.
func (g *Gateway) URL() string { return g.url }

// Ready reports whether messages are accepted now, and else why not.
func (g *Gateway) Ready() error {
	if b := g.bus.Load(); b != nil && !g.stopped() {
		return b.Ready()
	}
	return errors.New(*g.reason.Load())
}

func (g *Gateway) stopped() bool { return g.life.Err() != nil }

func (g *Gateway) notReady(why string) { g.reason.Store(&why) }
