package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Config of one gateway's end of the bus. Only Gateway and Store are required.
type Config struct {
	// Gateway is this gateway's name, unique in the mesh.
	Gateway string
	Store   Store
	Logger  hclog.Logger
	// Observe sees every event, in the order in which this gateway makes them for one
	// message. It is called from the bus's own goroutines and must not block.
	Observe func(Event)
	// Clock is what stamps are written with and judged by; nil: time.Now. Leases, trust in the session, timers
	// and pauses run on the monotonic clock, whatever it says.
	Clock func() time.Time

	// Authorize decides whether a message may be handed to the agent that it is for: nil is yes, an error becomes the
	// reason of its dead letter (class unauthorised). It is asked before every attempt and must not block. nil: all may.
	Authorize func(Invocation) error

	// URL is where other gateways and people reach this one; Version is its build.
	URL, Version string
	// ClusterID and Deployment are the plan's cluster block.
	ClusterID, Deployment string

	// SessionTTL is how long the store keeps this gateway's locks without hearing of it (Consul:
	// at least 10 s, and up to twice as long). 0: 15 s.
	SessionTTL time.Duration
	// SessionChecks are catalog checks whose failure ends the session at once.
	SessionChecks []string
	// Heartbeat is how often the registry entries are renewed: each time is one write. 0: 20 s.
	Heartbeat time.Duration

	// TTL and MaxHops apply to messages that do not say. 0: 5 min, 4.
	TTL     time.Duration
	MaxHops int
	// MaxPayload in bytes; 0: 8 MiB. Above envelope.MaxPayload a payload lies in chunks beside its envelope.
	MaxPayload int
	Retry      RetryPolicy
	// MaxInbox is how many messages of this gateway may wait in one inbox; 0: 200,000.
	MaxInbox int
	// MaxWrites is how many transactions of delivery this gateway asks of the store in a second, at
	// most; 0: 1,000.
	MaxWrites int
	// DeadRetention is how long dead letters are kept; 0: 7 days. The newest 1,000 of an agent are kept at most.
	DeadRetention time.Duration
	// ResultRetention is how long answers to API questions are kept in the store. 0: 1 h.
	ResultRetention time.Duration
	// Signer signs what this gateway writes; nil: nothing is signed. Trust judges what others wrote; nil: everything is
	// believed. Anchor keeps the trust set, which is then read from the store; JoinToken goes with the request to join.
	Signer    *trust.Signer
	Trust     *trust.Verifier
	Anchor    *trust.Anchor
	JoinToken *trust.Token
	// NextKey is to follow the Signer's as soon as the set names it; nil: none. KeyChanged is told right before a next key is
	// signed with, see [Bus.Rotate]; it may be nil.
	NextKey    *trust.Key
	KeyChanged func(*trust.Key)
	// Policy judges what lies at trust.PolicyKey, by the trust set (nil: there is none), and takes it up; an error is a refusal.
	// It is asked with every heartbeat. nil: nobody reads it.
	Policy func(raw []byte, set *trust.Set) error
	// Keyring holds the keys that payloads for this gateway are encrypted for; it needs Signer and Trust. Confidential says which
	// payloads are encrypted; nil: none. It must not block.
	Keyring      *trust.Keyring
	Confidential func(capability string) Confidentiality
	// Marks is a file of this gateway's own that keeps how far its lanes had come; empty: nothing is kept, and a lane that was put
	// back to an older state during a restart is not noticed.
	Marks string
	// DrainGrace is how long running handlers may go on when the bus stops. 0: 5 s.
	DrainGrace time.Duration
}

func (c Config) withDefaults() (Config, error) {
	if !envelope.ValidName(c.Gateway) {
		return c, fmt.Errorf("gateway name %q: want 1 to 63 of a-z, 0-9 and -", c.Gateway)
	}
	if c.Store == nil {
		return c, errors.New("bus needs a store")
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.SessionTTL, 15*time.Second)
	def(&c.Heartbeat, 20*time.Second)
	def(&c.TTL, 5*time.Minute)
	def(&c.ResultRetention, time.Hour)
	def(&c.DrainGrace, 5*time.Second)
	def(&c.DeadRetention, 7*24*time.Hour)
	if c.MaxHops <= 0 {
		c.MaxHops = 4
	}
	if c.MaxPayload <= 0 {
		c.MaxPayload = 8 << 20
	}
	c.MaxPayload = min(c.MaxPayload, envelope.MaxClaim)
	if c.MaxInbox <= 0 {
		c.MaxInbox = 200_000
	}
	if c.MaxWrites <= 0 {
		c.MaxWrites = 1000
	}
	if c.ClusterID == "" {
		c.ClusterID = "gatemesh"
	}
	if c.Deployment == "" {
		c.Deployment = "option-2-distributed"
	}
	if c.Confidential != nil && c.Keyring == nil || c.Keyring != nil && (c.Signer == nil || c.Trust == nil) {
		return c, errors.New("encrypting payloads needs a keyring, a key to sign with and a trust set")
	}
	c.Retry = c.Retry.withDefaults()
	return c, nil
}

// Bus is one gateway's end of the mesh.
type Bus struct {
	cfg      Config
	store    Store
	log      hclog.Logger
	instance string

	tracks   *tracks
	outcomes sync.Pool // of channels that carried the one outcome of a unit
	session  *session
	writer   *writer
	outbox   *outbox
	elector  *elector
	registry *registry
	workers  *workers
	readers  *readers
	packer   packer
	refusals refusals
	marks    *marks
	// next is the key that waits for the operator; keyMu is held while it takes the place of the one before. trustMu is held by whoever judges a set and goes by it.
	// looks bounds how often a newer set is looked for.
	next    atomic.Pointer[trust.Key]
	keyMu   sync.Mutex
	trustMu sync.Mutex
	looks   *rate.Limiter
	// payloads bounds the big payloads in memory.
	payloads    *semaphore.Weighted
	blobOrphans orphans

	// life ends when everything has to be over.
	life context.Context
	kill context.CancelFunc
	// loops ends the background loops; the writer outlives them.
	loops    context.Context
	endLoops context.CancelFunc
	endWrite context.CancelFunc
	wg       sync.WaitGroup

	mu       sync.Mutex
	started  bool
	stopping atomic.Bool
	stopped  chan struct{}
	fatal    chan error
	down     atomic.Bool
}

// New checks cfg and makes a bus. Start it.
func New(cfg Config) (*Bus, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &Bus{cfg: cfg, store: cfg.Store, log: cfg.Logger, instance: uuid.NewString(), tracks: newTracks(),
		stopped: make(chan struct{}), fatal: make(chan error, 1)}
	b.outcomes.New = func() any { return make(chan error, 1) }
	if b.packer, err = newPacker(); err != nil {
		return nil, err
	}
	if b.marks, err = openMarks(cfg.Marks); err != nil {
		return nil, err
	}
	b.session = newSession(b)
	b.writer = newWriter(b)
	b.outbox = newOutbox(b)
	b.elector = newElector(b)
	b.registry = newRegistry(b)
	b.workers = newWorkers(b)
	b.readers = newReaders(b)
	b.payloads = semaphore.NewWeighted(resolvedBytes)
	b.blobOrphans = orphans{}
	b.next.Store(cfg.NextKey)
	b.looks = rate.NewLimiter(lookRate, lookBurst)
	return b, nil
}

// now is the wall clock: for what is written down or compared with what was. How long something takes is
// time.Since's.
func (b *Bus) now() time.Time { return b.cfg.Clock() }

// Gateway is this gateway's name.
func (b *Bus) Gateway() string { return b.cfg.Gateway }

// Serve makes this gateway a candidate for an agent's inbox, before or after Start. The handler of
// an agent that is served already is replaced with the next term.
func (b *Bus) Serve(spec AgentSpec, h Handler) error {
	if !envelope.ValidName(spec.ID) {
		return fmt.Errorf("agent id %q: want 1 to 63 of a-z, 0-9 and -", spec.ID)
	}
	if spec.ID == b.cfg.Gateway {
		return fmt.Errorf("agent id %q is the gateway's own name", spec.ID)
	}
	b.elector.serve(spec, h)
	return nil
}

// Start takes the gateway's name in the store and the free inboxes for which it is the first choice,
// registers both and begins to work. On an error nothing runs.
func (b *Bus) Start(ctx context.Context) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.started {
		return errors.New("bus was started before")
	}
	b.life, b.kill = context.WithCancel(context.Background())
	b.loops, b.endLoops = context.WithCancel(b.life)
	var write context.Context
	write, b.endWrite = context.WithCancel(b.life)
	if err := b.session.open(ctx); err != nil {
		b.kill()
		return err
	}
	if b.cfg.Anchor != nil && b.cfg.Trust != nil {
		b.cfg.Trust.OnMissing(b.lookForTrust)
	}
	b.readTrust(ctx)
	if b.cfg.Keyring != nil {
		b.publishKey(ctx)
	}
	b.elector.serve(AgentSpec{ID: b.cfg.Gateway, MaxConcurrent: 256}, desk{b})
	if err = b.outbox.prepare(ctx); err == nil {
		err = b.elector.prime(ctx)
	}
	if err == nil {
		err = b.registry.beat(ctx)
	}
	if err != nil {
		b.elector.deposeAll(ErrStopped)
		_ = b.session.close(context.WithoutCancel(ctx))
		b.kill()
		return err
	}
	b.started = true
	b.run(func() { b.writer.run(write, b.life) })
	b.run(func() {
		if err := b.session.keep(b.loops); err != nil {
			b.log.Error("stopping", "error", err)
			b.fatal <- err
		}
	})
	if b.cfg.Anchor != nil {
		b.run(func() { b.followTrust(b.loops) })
	}
	b.run(func() { b.session.watchPulse(b.loops) })
	if b.cfg.Keyring != nil {
		b.run(func() { b.readers.follow(b.loops) })
		b.run(func() { b.keepEncryptionKey(b.loops) })
	}
	b.run(func() { b.outbox.follow(b.loops) })
	b.run(func() { b.outbox.sweep(b.loops) })
	b.run(func() { b.registry.follow(b.loops) })
	b.run(func() { b.registry.heartbeats(b.loops) })
	b.run(func() { b.elector.run(b.loops) })
	b.run(func() { b.elector.oversee(b.loops) })
	b.run(func() { b.workers.run(b.loops) })
	b.run(func() { (&reconciler{b: b, strays: map[string]bool{}, gone: map[string]time.Time{}}).run(b.loops) })
	return nil
}

func (b *Bus) run(f func()) {
	b.wg.Add(1)
	go func() {
		defer b.wg.Done()
		f()
	}()
}

// Fatal gets an error when the bus cannot go on: stop it then. [ErrReplaced] is the only one.
func (b *Bus) Fatal() <-chan error { return b.fatal }

// Ready reports whether the bus can accept messages now, and else why not.
func (b *Bus) Ready() error {
	switch {
	case b.stopping.Load():
		return ErrStopped
	case b.down.Load():
		return fmt.Errorf("%w: %s does not answer", ErrUnavailable, b.store.Describe())
	case !b.session.trusted():
		return errors.New("no live session in the store yet")
	}
	return b.trusted()
}

// Stop hands everything over and ends: no new messages, running handlers get DrainGrace,
// outcomes are written, locks and session are released. It takes no longer than ctx allows
// (what was not written then is found in the store by the next owner). Stopping twice waits for
// the first.
func (b *Bus) Stop(ctx context.Context) error {
	b.mu.Lock()
	if !b.started {
		b.mu.Unlock()
		return nil
	}
	if b.stopping.Swap(true) {
		b.mu.Unlock()
		select {
		case <-b.stopped:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stop bus: %w", ctx.Err())
		}
	}
	b.mu.Unlock()
	defer close(b.stopped)

	b.workers.retire(ctx)
	b.elector.handover(ctx)
	b.endWrite()
	var err error
	select {
	case <-b.writer.done:
	case <-ctx.Done():
		err = fmt.Errorf("stop bus: writing what is left: %w", ctx.Err())
	}
	b.endLoops()
	if merr := b.marks.save(); merr != nil {
		b.log.Warn("stopping", "error", merr)
	}
	if cerr := b.session.close(ctx); cerr != nil && err == nil {
		err = fmt.Errorf("stop bus: end session (it ends by itself within its TTL): %w", cerr)
	}
	b.kill()
	over := make(chan struct{})
	go func() {
		b.wg.Wait()
		close(over)
	}()
	select {
	case <-over:
	case <-ctx.Done():
		if err == nil {
			err = fmt.Errorf("stop bus: %w", ctx.Err())
		}
	}
	return err
}

// storeDown and storeUp turn the many failures of an outage into two events.
func (b *Bus) storeDown(err error) {
	if errors.Is(err, context.Canceled) || b.down.Swap(true) {
		return
	}
	b.emit(Event{Event: EventStoreDown, At: envelope.At(b.now()), Gateway: b.cfg.Gateway, Reason: err.Error()})
}

// outcomeUnknown is the error of a caller who waited in vain for a write, with what the store said when writing began to fail:
// that is what has to be mended.
func (b *Bus) outcomeUnknown(waited error) error {
	if why := b.writer.ailment.Load(); why != nil {
		return fmt.Errorf("%w: %w; the store said: %w", ErrOutcomeUnknown, waited, *why)
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, waited)
}

func (b *Bus) storeUp() {
	if b.down.Load() && b.down.Swap(false) {
		b.session.verify() // it may have ended meanwhile
		b.emit(Event{Event: EventStoreUp, At: envelope.At(b.now()), Gateway: b.cfg.Gateway})
	}
}

// watch calls changed with what lies below prefix, now and whenever it changed, until ctx ends,
// changed fails or the store refuses for good. It rides out outages. All rules of watch
// indices are the Store's.
func (b *Bus) watch(ctx context.Context, prefix string, changed func([]Pair) error) error {
	var index uint64
	wait := newBackoff()
	if prefix == ownersPrefix {
		wait = newBackoffUpTo(urgent)
	}
	for {
		pairs, next, err := b.store.Watch(ctx, prefix, index)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrClosed):
			return err
		case err != nil:
			b.storeDown(err)
			b.pause(ctx, wait, err)
			index = 0 // look again from the start: the store may be another one
			continue
		}
		wait.Reset()
		b.storeUp()
		if next == index && index != 0 {
			continue
		}
		index = next
		if err := changed(pairs); err != nil {
			return err
		}
	}
}

// watchForever is watch for loops that must outlive every error of theirs.
func (b *Bus) watchForever(ctx context.Context, prefix string, changed func([]Pair) error) {
	wait := newBackoff()
	for ctx.Err() == nil {
		if err := b.watch(ctx, prefix, changed); err != nil && ctx.Err() == nil {
			b.log.Warn("watch failed; trying again", "prefix", prefix, "error", err)
			b.pause(ctx, wait, err)
		}
	}
}
