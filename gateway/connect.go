package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// connectTimeout bounds one try to reach the store.
	connectTimeout = 15 * time.Second
	// The pause between two tries doubles from the first to the last.
	connectFirst, connectLast = 200 * time.Millisecond, 5 * time.Second
	// serviceEvery is how often the catalog entry is written again while the store is in trouble:
	// an agent that lost it (Consul's dev mode after a restart) refuses our session's check.
	serviceEvery = 2 * time.Second
	// healthEvery is how often Consul asks /health/store; our session ends when nobody answers, or when we are cut off.
	healthEvery = time.Second
)

// startError is a mistake that trying again does not mend.
type startError struct{ cause error }

func (e *startError) Error() string { return e.cause.Error() }
func (e *startError) Unwrap() error { return e.cause }

// connect registers the gateway and starts its bus.
func (g *Gateway) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	check, err := g.register(ctx)
	if err != nil {
		return err
	}
	m := g.start.Mesh
	cfg := bus.Config{
		Gateway: g.name, Store: g.deps.Store, Logger: g.log.Named("bus"), URL: g.url, Version: g.deps.Version,
		ClusterID: m.Cluster.ID, Deployment: m.Cluster.Deployment, SessionTTL: m.SessionTTL, Heartbeat: m.HeartbeatInterval,
		TTL: m.DefaultTTL, MaxHops: min(m.DefaultMaxHops, envelope.MaxHops), MaxPayload: int(m.MaxPayload), ResultRetention: m.ResultRetention,
		DrainGrace: g.deps.DrainGrace, MaxInbox: m.MaxInbox, MaxWrites: m.MaxWrites, DeadRetention: m.DeadRetention,
		Authorize: g.authorize,
		Retry:     bus.RetryPolicy{MaxAttempts: m.Retry.MaxAttempts, Initial: m.Retry.Initial, Max: m.Retry.Max},
	}
	cfg.Signer, cfg.Trust, cfg.Anchor, cfg.JoinToken = g.identity.signer, g.identity.verifier, g.identity.anchor, g.identity.token
	cfg.Marks = g.identity.marks
	cfg.NextKey, cfg.KeyChanged, cfg.Policy = g.identity.next.Load(), g.keyChanged, g.takePolicy
	if g.identity.ring != nil {
		cfg.Keyring, cfg.Confidential = g.identity.ring, g.confidentiality.of
	}
	if check != "" {
		cfg.SessionChecks = []string{check}
	}
	var b *bus.Bus
	cfg.Observe = func(ev bus.Event) {
		g.observe(b, ev)
		if ev.Event == bus.EventOwned {
			g.lookAtSkills()
		}
		if ev.Event == bus.EventStoreDown || ev.Event == bus.EventStoreUp {
			select {
			case g.service <- struct{}{}:
			default:
			}
		}
	}
	if b, err = bus.New(cfg); err != nil {
		return &startError{err}
	}
	if err := g.serveAgents(b, g.start); err != nil {
		return &startError{err}
	}
	if err := g.serveQueues(b); err != nil {
		return &startError{err}
	}
	if err := g.serveChannels(b); err != nil {
		return &startError{err}
	}
	if err := g.serveCron(b); err != nil {
		return &startError{err}
	}
	if err := b.Start(ctx); err != nil {
		return fmt.Errorf("start bus: %w", err)
	}
	g.bus.Store(b)
	if next := g.identity.next.Load(); next != nil && next != cfg.NextKey {
		g.askFor(b, next) // it came meanwhile
	}
	g.observe(b, bus.Event{Event: bus.EventStoreUp, At: envelope.At(time.Now()), Gateway: g.name})
	g.run(func() {
		select {
		case err := <-b.Fatal():
			g.fail(err)
		case <-g.life.Done():
		}
	})
	g.run(g.keepService)
	g.run(func() { g.keepSkillJobs(g.life, b) })
	g.run(g.watchReach)
	g.run(g.chats.follow)
	return nil
}

// storeMissing says once, in one line, what is wrong and what to do.
func (g *Gateway) storeMissing(err error) {
	fix := "start it, or correct mesh.store and mesh.consul.address (CONSUL_HTTP_ADDR); no restart is needed"
	if errors.Is(err, bus.ErrForbidden) {
		fix = "gatemesh acl policy prints the rules that this gateway needs; a new rule, or a new token in mesh.consul.tokenFile (CONSUL_HTTP_TOKEN_FILE), needs no restart"
	}
	g.notReady(fmt.Sprintf("%s cannot be used: %v", g.deps.Store.Describe(), err))
	g.log.Error("the store cannot be used; the gateway stays up and goes on trying", "store", g.deps.Store.Describe(), "error", err, "fix", fix)
	g.observe(nil, bus.Event{Event: bus.EventStoreDown, At: envelope.At(time.Now()), Gateway: g.name, Reason: err.Error()})
}

// connectLoop tries until it works or the gateway stops.
func (g *Gateway) connectLoop() {
	for pause := connectFirst; ; pause = min(2*pause, connectLast) {
		t := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-t.C:
		case <-g.life.Done():
			t.Stop()
			return
		}
		err := g.connect(g.life)
		if err == nil {
			g.log.Info("the store answers now", "store", g.deps.Store.Describe())
			if g.stopped() {
				_ = g.abandon()
			}
			return
		}
		if mistake := (*startError)(nil); errors.As(err, &mistake) {
			g.fail(err)
			return
		}
		if g.life.Err() == nil {
			g.notReady(fmt.Sprintf("%s cannot be used: %v", g.deps.Store.Describe(), err))
			g.log.Debug("the store still cannot be used", "error", err)
		}
	}
}

// registrar is the store's catalog, if it has one and we are to use it.
func (g *Gateway) registrar() bus.Registrar {
	if !g.start.Mesh.Service.Register {
		return nil
	}
	r, _ := storeAs[bus.Registrar](g.deps.Store)
	return r
}

// storeAs finds what a store can do beyond bus.Store, also inside of others.
func storeAs[T any](s bus.Store) (found T, ok bool) {
	for s != nil {
		if found, ok = s.(T); ok {
			return found, true
		}
		w, wraps := s.(interface{ Unwrap() bus.Store })
		if !wraps {
			break
		}
		s = w.Unwrap()
	}
	return found, false
}

func (g *Gateway) serviceID() string { return g.start.Mesh.Service.Name + "-" + g.name }

// register writes the catalog entry and returns the id of its check; "" without a catalog.
func (g *Gateway) register(ctx context.Context) (string, error) {
	r := g.registrar()
	if r == nil {
		return "", nil
	}
	host, port := hostPort(g.url)
	check, err := r.RegisterService(ctx, bus.Service{
		ID: g.serviceID(), Name: g.start.Mesh.Service.Name, Address: host, Port: port,
		Tags:      []string{"openclaw", "gateway", "gatemesh"},
		Meta:      map[string]string{"gateway": g.name, "version": g.deps.Version, "url": g.url},
		HealthURL: g.scheme() + "://" + localAddr(g.listener.Addr()) + healthStorePath, Interval: healthEvery,
	})
	if err != nil {
		return "", fmt.Errorf("register service: %w", err)
	}
	g.registered.Store(true)
	return check, nil
}

func (g *Gateway) deregister(ctx context.Context) error {
	r := g.registrar()
	if r == nil || !g.registered.Swap(false) {
		return nil
	}
	if err := r.DeregisterService(ctx, g.serviceID()); err != nil {
		return fmt.Errorf("remove the service entry (consul services deregister -id=%s removes it): %w", g.serviceID(), err)
	}
	return nil
}

// keepService writes the catalog entry again while the store is in trouble and when it is back.
func (g *Gateway) keepService() {
	if g.registrar() == nil {
		return
	}
	t := time.NewTimer(serviceEvery)
	defer t.Stop()
	for {
		select {
		case <-g.service:
		case <-t.C:
			if g.metrics.storeIsUp() {
				continue // the next trouble wakes us
			}
		case <-g.life.Done():
			return
		}
		ctx, cancel := context.WithTimeout(g.life, connectTimeout)
		_, err := g.register(ctx)
		cancel()
		if err != nil && g.life.Err() == nil {
			g.log.Debug("write the service entry again", "error", err)
		}
		t.Reset(serviceEvery)
	}
}

// scheme is what the port speaks.
func (g *Gateway) scheme() string {
	if g.cert != nil {
		return "https"
	}
	return "http"
}

// advertisedURL is where others reach a gateway that listens on addr.
func advertisedURL(configured string, addr net.Addr, scheme string) string {
	if configured != "" {
		return configured
	}
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return scheme + "://" + addr.String()
	}
	ip := tcp.IP
	if ip.IsUnspecified() {
		ip = outwardIP()
	}
	return scheme + "://" + net.JoinHostPort(ip.String(), strconv.Itoa(tcp.Port))
}

// outwardIP is this machine's first address beyond loopback, IPv4 before IPv6.
func outwardIP() net.IP {
	best := net.IPv4(127, 0, 0, 1)
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return best
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if n.IP.To4() != nil {
			return n.IP
		}
		if best.IsLoopback() {
			best = n.IP
		}
	}
	return best
}

// localAddr is where this machine reaches a listener of its own.
func localAddr(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(tcp.Port))
	}
	return addr.String()
}

// hostPort splits a URL; the port is the scheme's when it names none.
func hostPort(raw string) (host string, port int) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", 0
	}
	port, _ = strconv.Atoi(u.Port())
	if port == 0 {
		port = 80
		if u.Scheme == "https" || u.Scheme == "wss" {
			port = 443
		}
	}
	return u.Hostname(), port
}
