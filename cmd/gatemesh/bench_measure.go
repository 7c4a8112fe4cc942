package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// countingStore counts transactions that write: each is one Raft entry on Consul.
type countingStore struct {
	bus.Store
	writes *atomic.Int64
}

func (c countingStore) Txn(ctx context.Context, ops []bus.Op) ([]bus.Pair, error) {
	if slices.ContainsFunc(ops, bus.Op.Writes) {
		c.writes.Add(1)
	}
	return c.Store.Txn(ctx, ops)
}

// benchMesh is two gateways with the agents of the measurement, and a third gateway that can
// leave a backlog.
type benchMesh struct {
	stores []bus.Store
	buses  []*bus.Bus
	// near and far are clients of the store at jerry's and bobby's side.
	near, far bus.Store
	writes    atomic.Int64

	jerry, bobby, billy *bus.Bus
	// texts are what the messages say, and servers the store's processes.
	texts   *benchTexts
	servers []int

	mu sync.Mutex
	// delivered and known get the moment at which a message reached its handler, or its
	// sender knew of the ack.
	delivered, known map[string]chan time.Time
	acked            atomic.Int64
	target           atomic.Int64
	all              chan struct{}
	release          chan struct{}
}

// The agents: one gets the backlog, one never does, and both take the measured messages.
const (
	loadedAgent = "loaded"
	emptyAgent  = "empty"
	stuckConv   = "stuck"
)

// newBenchMesh starts the gateways; open makes a client of the store at a node's side.
//
// With a trust set everything is signed and judged, as in a mesh that is closed.
func newBenchMesh(ctx context.Context, o benchOptions, open func(node int) (bus.Store, error)) (*benchMesh, error) {
	signers, verifier, err := benchTrust("bench-jerry", "bench-bobby", "bench-billy")
	if err != nil {
		return nil, err
	}

	m := &benchMesh{delivered: map[string]chan time.Time{}, known: map[string]chan time.Time{}, texts: benchTextsOf["random"](), release: make(chan struct{})}
	client := func(node int) (bus.Store, error) {
		s, err := open(node)
		if err == nil {
			m.stores = append(m.stores, s)
		}
		return s, err
	}
	start := func(node int, name string, observe func(bus.Event)) (*bus.Bus, error) {
		s, err := client(node)
		if err != nil {
			return nil, err
		}
		cfg := bus.Config{Gateway: name, Store: countingStore{s, &m.writes}, Observe: observe, TTL: time.Hour, DrainGrace: time.Second}
		if !o.unsigned {
			cfg.Signer, cfg.Trust = signers[name], verifier
		}
		if o.encrypted {
			if cfg.Keyring, err = trust.OpenKeyring(""); err != nil {
				return nil, err
			}
			cfg.Confidential = func(string) bus.Confidentiality { return bus.RequireEncrypted }
		}
		b, err := bus.New(cfg)
		if err != nil {
			return nil, err
		}
		if err := b.Start(ctx); err != nil {
			return nil, err
		}
		m.buses = append(m.buses, b)
		return b, nil
	}
	owned := make(chan struct{}, 8)
	if m.near, err = client(0); err == nil {
		m.far, err = client(1)
	}
	if err == nil {
		m.jerry, err = start(0, "bench-jerry", m.sender)
	}
	if err == nil {
		m.bobby, err = start(1, "bench-bobby", func(ev bus.Event) {
			if ev.Event == bus.EventOwned {
				select {
				case owned <- struct{}{}:
				default: // an inbox that came back, after the machine stood still
				}
			}
		})
	}
	if err == nil {
		m.billy, err = start(2, "bench-billy", nil)
	}
	if err != nil {
		m.close()
		return nil, err
	}
	for _, a := range []string{loadedAgent, emptyAgent} {
		if err := m.bobby.Serve(bus.AgentSpec{ID: a, AckTimeout: time.Hour}, bus.HandlerFunc(m.handle)); err != nil {
			m.close()
			return nil, err
		}
	}
	for range 3 { // the gateway's own inbox too
		select {
		case <-owned:
		case <-ctx.Done():
			m.close()
			return nil, ctx.Err()
		}
	}
	return m, nil
}

// benchTrust is a mesh of gateways that may each host every agent.
func benchTrust(gateways ...string) (map[string]*trust.Signer, *trust.Verifier, error) {
	const mesh = "bench"
	now := time.Now()
	operator := trust.NewKey()
	set := &trust.Set{Mesh: mesh, Version: 1, IssuedAt: envelope.At(now), Operators: []string{trust.EncodePublic(operator.Public())}, Revoked: []trust.Revocation{}}
	signers := map[string]*trust.Signer{}
	slices.Sort(gateways)
	for _, name := range gateways {
		key := trust.NewKey()
		signers[name] = &trust.Signer{Mesh: mesh, Gateway: name, Key: key}
		set.Gateways = append(set.Gateways, trust.Member{Name: name, Agents: []string{"*"},
			Keys: []trust.MemberKey{{Public: trust.EncodePublic(key.Public()), NotBefore: envelope.At(now)}}})
	}
	raw, err := trust.SignSet(set, operator)
	if err != nil {
		return nil, nil, err
	}
	if set, _, err = trust.DecodeSet(raw); err != nil {
		return nil, nil, err
	}
	v := trust.NewVerifier(mesh, true)
	v.Use(set)
	return signers, v, nil
}

func (m *benchMesh) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	select {
	case <-m.release:
	default:
		close(m.release)
	}
	for _, b := range m.buses {
		_ = b.Stop(ctx)
	}
	for _, s := range m.stores {
		_ = s.Close()
	}
}

func (m *benchMesh) handle(ctx context.Context, in *bus.Incoming) error {
	e := in.Envelope()
	if e.ConversationID == stuckConv {
		select {
		case <-m.release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	now := time.Now()
	m.mu.Lock()
	c := m.delivered[e.MessageID]
	m.mu.Unlock()
	if c != nil {
		c <- now
	}
	return nil
}

// sender sees the events of the sending gateway.
func (m *benchMesh) sender(ev bus.Event) {
	if ev.Event != bus.EventReceipt || ev.State != envelope.Acked {
		return
	}
	now := time.Now()
	m.mu.Lock()
	c, all := m.known[ev.MessageID], m.all
	m.mu.Unlock()
	if c != nil {
		c <- now
	}
	if m.acked.Add(1) == m.target.Load() && all != nil {
		close(all)
	}
}

func (m *benchMesh) out(to string, payload []byte) bus.Outgoing {
	return bus.Outgoing{ID: envelope.NewID(), To: envelope.Address{Agent: to}, From: "bench", Payload: payload}
}

// sample is a list of durations.
type sample []time.Duration

func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	c := slices.Clone(s)
	slices.Sort(c)
	return c[min(len(c)-1, int(q*float64(len(c))))]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// oneByOne sends n messages to each agent in turn, each when the one before is done, with the
// raw floor between them so that the machine's noise falls on all alike.
func (m *benchMesh) oneByOne(ctx context.Context, n int, agents ...string) (floor sample, delivered, known map[string]sample, err error) {
	delivered, known = map[string]sample{}, map[string]sample{}
	fl, err := newFloor(ctx, m.near, m.far, m.texts)
	if err != nil {
		return nil, nil, nil, err
	}
	defer fl.stop()
	for i := range n {
		d, err := fl.once(ctx, i)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("floor: %w", err)
		}
		floor = append(floor, d)
		for _, a := range agents {
			o := m.out(a, m.texts.take())
			dc, kc := make(chan time.Time, 1), make(chan time.Time, 1)
			m.mu.Lock()
			m.delivered[o.ID], m.known[o.ID] = dc, kc
			m.mu.Unlock()
			begin := time.Now()
			if _, err := m.jerry.Send(ctx, o); err != nil {
				return nil, nil, nil, fmt.Errorf("send: %w", err)
			}
			for range 2 {
				select {
				case at := <-dc:
					delivered[a] = append(delivered[a], at.Sub(begin))
				case at := <-kc:
					known[a] = append(known[a], at.Sub(begin))
				case <-ctx.Done():
					return nil, nil, nil, fmt.Errorf("message %s: %w", o.ID, ctx.Err())
				}
			}
			m.mu.Lock()
			delete(m.delivered, o.ID)
			delete(m.known, o.ID)
			m.mu.Unlock()
		}
	}
	return floor, delivered, known, nil
}

// floor is what the store itself needs: one plain write of the payload and the wake-up of a watch
// that waits for it.
type floor struct {
	store bus.Store
	texts *benchTexts
	woke  chan time.Time
	stop  func()
}

const floorKey = "bench/floor/key"

func newFloor(ctx context.Context, s, watched bus.Store, texts *benchTexts) (*floor, error) {
	if _, err := s.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: floorKey, Value: []byte("resident")}}); err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	wctx, cancel := context.WithCancel(ctx)
	f := &floor{store: s, texts: texts, woke: make(chan time.Time, 16)}
	done := make(chan struct{})
	ready := make(chan struct{})
	f.stop = func() { cancel(); <-done }
	go func() {
		defer close(done)
		var index uint64
		for wctx.Err() == nil {
			_, next, err := watched.Watch(wctx, "bench/floor/", index)
			if err != nil {
				continue
			}
			if index == 0 {
				close(ready)
			} else if next != index {
				f.woke <- time.Now()
			}
			index = next
		}
	}()
	<-ready
	return f, nil
}

func (f *floor) once(ctx context.Context, i int) (time.Duration, error) {
	value := slices.Clone(f.texts.take())
	copy(value[1:], fmt.Sprintf("%08d", i))
	begin := time.Now()
	if _, err := f.store.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: floorKey, Value: value}}); err != nil {
		return 0, err
	}
	select {
	case at := <-f.woke:
		return at.Sub(begin), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// throughput sends n messages from many senders and returns acked messages per second, until the
// sender knows of the last.
func (m *benchMesh) throughput(ctx context.Context, n, senders int, to string) (float64, error) {
	all := make(chan struct{})
	m.mu.Lock()
	m.all = all
	m.mu.Unlock()
	m.acked.Store(0)
	m.target.Store(int64(n))
	var next atomic.Int64
	errs := make(chan error, senders)
	begin := time.Now()
	for range senders {
		go func() {
			for next.Add(1) <= int64(n) {
				if _, err := m.jerry.Send(ctx, m.out(to, m.texts.take())); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	select {
	case <-all:
	case err := <-errs:
		return 0, fmt.Errorf("send: %w", err)
	case <-ctx.Done():
		return 0, fmt.Errorf("%d of %d acked: %w", m.acked.Load(), n, ctx.Err())
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}

// fill leaves n messages waiting behind a conversation that does not move.
func (m *benchMesh) fill(ctx context.Context, n int) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, 512)
	for range 512 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for next.Add(1) <= int64(n) {
				o := m.out(loadedAgent, m.texts.take())
				o.ConversationID = stuckConv
				if _, err := m.billy.Send(ctx, o); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	wg.Wait()
	select {
	case err := <-errs:
		return fmt.Errorf("fill: %w", err)
	default:
		return nil
	}
}

// naive is the bus that one writes first: a key per message under one inbox, listed when
// something changed, deleted one by one. It returns acked messages per second.
func naive(ctx context.Context, sender, receiver bus.Store, texts *benchTexts, n, workers int) (float64, error) {
	const prefix = "bench/naive/"
	if _, err := sender.Txn(ctx, []bus.Op{{Verb: bus.OpDeleteTree, Key: prefix}, {Verb: bus.OpSet, Key: prefix + "0", Value: []byte("resident")}}); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, 2*workers+1)
	var next atomic.Int64
	begin := time.Now()
	for range workers {
		go func() {
			for {
				i := next.Add(1)
				if i > int64(n) {
					return
				}
				if _, err := sender.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: fmt.Sprintf("%sm%09d", prefix, i), Value: texts.take()}}); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	work := make(chan string, n)
	var acked atomic.Int64
	done := make(chan struct{})
	for range workers {
		go func() {
			for {
				select {
				case key := <-work:
					if _, err := receiver.Txn(ctx, []bus.Op{{Verb: bus.OpDelete, Key: key}}); err != nil {
						errs <- err
						return
					}
					if acked.Add(1) == int64(n) {
						close(done)
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	go func() {
		seen := map[string]bool{prefix + "0": true}
		var index uint64
		for {
			pairs, next, err := receiver.Watch(ctx, prefix, index)
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					errs <- err
				}
				return
			}
			index = next
			for _, p := range pairs {
				if !seen[p.Key] {
					seen[p.Key] = true
					work <- p.Key
				}
			}
		}
	}()
	select {
	case <-done:
		return float64(n) / time.Since(begin).Seconds(), nil
	case err := <-errs:
		return 0, fmt.Errorf("naive bus: %w", err)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
