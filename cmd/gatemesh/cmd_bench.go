package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/bus/local"
)

// benchFigures is what one store measured. All ratios are of figures of the same run.
type benchFigures struct {
	// The raw store: one plain write of 1 KiB and the wake-up of a watch on it.
	FloorMS float64 `json:"floor_ms"`
	// From before Send until the handler has it.
	DeliveredP50       float64 `json:"delivered_p50_ms"`
	DeliveredP95       float64 `json:"delivered_p95_ms"`
	DeliveredP99       float64 `json:"delivered_p99_ms"`
	DeliveredOverFloor float64 `json:"delivered_over_floor"`
	// From before Send until the sender has the receipt of the ack.
	KnowsP50 float64 `json:"sender_knows_p50_ms"`
	KnowsP95 float64 `json:"sender_knows_p95_ms"`
	KnowsP99 float64 `json:"sender_knows_p99_ms"`

	AckedPerS      float64 `json:"acked_per_s"`
	NaivePerS      float64 `json:"naive_acked_per_s"`
	AckedOverNaive float64 `json:"acked_over_naive"`

	// The worse of the two ratios (delivered p50, acked throughput) to an inbox with
	// so many waiting over an empty inbox, measured in turns.
	Backlog10k  float64 `json:"backlog_10k_cost"`
	Backlog100k float64 `json:"backlog_100k_cost"`

	WritesPerMessage    float64 `json:"writes_per_message"`
	IdleWritesPerMinute float64 `json:"idle_writes_per_minute"`

	// On three servers only: NATS JetStream with three replicas, the same payload and number, in turns with ours.
	// JetStream says which it was, or why there are no figures; the ratios are ours over theirs, medians of pairs.
	JetStream                string  `json:"jetstream,omitempty"`
	JetStreamPerS            float64 `json:"jetstream_r3_acked_per_s,omitempty"`
	JetStreamSyncedPerS      float64 `json:"jetstream_r3_synced_acked_per_s,omitempty"`
	JetStreamSyncedKnowsP50  float64 `json:"jetstream_r3_synced_knows_p50_ms,omitempty"`
	AckedOverJetStreamSynced float64 `json:"acked_over_jetstream_synced,omitempty"`
	AckedOverJetStream       float64 `json:"acked_over_jetstream,omitempty"`
	KnowsOverJetStreamSynced float64 `json:"knows_over_jetstream_synced,omitempty"`
	// The same with messages of prose, which packs (JetStream keeps them as they are, so its own rate is the same).
	ProseAckedPerS                float64 `json:"prose_acked_per_s,omitempty"`
	ProseAckedOverJetStreamSynced float64 `json:"prose_acked_over_jetstream_synced,omitempty"`
	ProseAckedOverJetStream       float64 `json:"prose_acked_over_jetstream,omitempty"`
	// Processor time a message, in microseconds: of the gateways and who loads them, of Consul's servers, and of all of JetStream, clients
	// included. What bounds the throughput of a machine that carries all of it; Linux only.
	GatewaysCPU        float64 `json:"gateways_cpu_us,omitempty"`
	ServersCPU         float64 `json:"servers_cpu_us,omitempty"`
	ProseGatewaysCPU   float64 `json:"prose_gateways_cpu_us,omitempty"`
	ProseServersCPU    float64 `json:"prose_servers_cpu_us,omitempty"`
	JetStreamCPU       float64 `json:"jetstream_r3_cpu_us,omitempty"`
	JetStreamSyncedCPU float64 `json:"jetstream_r3_synced_cpu_us,omitempty"`
}

// The goals that a bench run is held to, on three Consul servers.
const (
	goalOverFloor = 1.4
	goalOverNaive = 10
	goalBacklog   = 1.3
	goalWrites    = 2
)

type benchOptions struct {
	stores   []string
	rounds   int
	messages int
	senders  int
	naive    int
	backlogs []int
	idle     time.Duration
	peer     string
	proof    string
	commit   string
	short    bool
	unsigned bool
	// encrypted: payloads for three gateways each.
	encrypted bool
}

func (a *app) benchCommand() *cobra.Command {
	o := benchOptions{}
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure delivery against the store's own floor and a naive bus",
		Long: `Measure, for the embedded store and for one and three Consul servers started for the occasion: how long a
message takes to its handler and until its sender knows, how many a second are acked, and what
10,000 and 100,000 waiting messages cost. The store's own floor (one plain write and
the wake-up of a watch) and a naive bus (a key per message, list, delete) are measured in the same
run: on a noisy machine believe the ratios. Everything is signed and judged against a trust set (but with --unsigned). On three servers NATS JetStream with three replicas (--peer; skipped, and said
so, when it is not built) is measured in turns with ours, with synced writes and as shipped, and once more with messages of prose: everything else
has texts in which there is nothing to pack. That comparison is reported and judges nothing.

Fails (status 1) when a goal is missed on three servers: delivered p50 at most 1.4 times the floor,
acked throughput at least 10 times the naive bus, 100,000 waiting at most 1.3 times as dear,
at most 2 writes a message.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error { return a.bench(cmd.Context(), o) }),
	}
	f := c.Flags()
	f.StringSliceVar(&o.stores, "stores", []string{"local", "consul-1", "consul-3"}, "what to measure on: local, consul-1, consul-3")
	f.IntVar(&o.rounds, "rounds", 400, "messages sent one by one, for the latencies")
	f.IntVar(&o.messages, "messages", 20000, "messages sent at once, for the throughput")
	f.IntVar(&o.senders, "senders", 1024, "how many send at the same time")
	f.IntVar(&o.naive, "naive", 4000, "messages through the naive bus")
	f.IntSliceVar(&o.backlogs, "backlog", []int{10000, 100000}, "how many wait in the inbox while it is measured again")
	f.DurationVar(&o.idle, "idle", time.Minute, "how long idle gateways are watched for writes")
	f.BoolVar(&o.short, "short", false, "a quick run that judges nothing")
	f.BoolVar(&o.unsigned, "unsigned", false, "without signatures, to see what they cost")
	f.BoolVar(&o.encrypted, "encrypted", false, "with every payload encrypted, for three gateways, to see what that costs")
	f.StringVar(&o.peer, "peer", "bin/tools/jetstreambench", "the program that measures NATS JetStream (make nats builds it)")
	f.StringVar(&o.proof, "proof", "", "write the figures to this file")
	f.StringVar(&o.commit, "commit", "", "the commit to name in the figures")
	return c
}

func (a *app) bench(ctx context.Context, o benchOptions) error {
	if o.encrypted && o.unsigned {
		return failf(exitUsage, "--encrypted needs a trust set, so not --unsigned")
	}
	begin := time.Now()
	if o.short {
		o.rounds, o.messages, o.naive, o.idle, o.backlogs = min(o.rounds, 60), min(o.messages, 3000), min(o.naive, 600), min(o.idle, 3*time.Second), nil
	}
	say := func(format string, args ...any) {
		fmt.Fprintf(a.err, "[%6.1fs] %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	figures := map[string]*benchFigures{}
	for _, name := range o.stores {
		f, err := benchStore(ctx, name, o, say)
		if err != nil {
			return fmt.Errorf("bench %s: %w", name, err)
		}
		figures[name] = f
	}
	p := newPrinter(a.out, a.env)
	var missed []string
	if f := figures["consul-3"]; f != nil && !o.short {
		for _, g := range []struct {
			what      string
			got, goal float64
			atLeast   bool
		}{
			{"delivered_over_floor", f.DeliveredOverFloor, goalOverFloor, false},
			{"acked_over_naive", f.AckedOverNaive, goalOverNaive, true},
			{"backlog_100k_cost", f.Backlog100k, goalBacklog, false},
			{"writes_per_message", f.WritesPerMessage, goalWrites, false},
		} {
			if g.atLeast && g.got < g.goal || !g.atLeast && g.got > g.goal {
				missed = append(missed, fmt.Sprintf("%s is %.2f, the goal is %.1f", g.what, g.got, g.goal))
			}
		}
	}
	if o.proof != "" {
		if err := writeProof(o.proof, proof{Name: "bench", Commit: o.commit, OK: len(missed) == 0, Seconds: time.Since(begin).Seconds(), Figures: figures}); err != nil {
			return err
		}
	}
	if a.asJSON {
		if err := p.json(figures); err != nil {
			return err
		}
	} else {
		t := newTable(append([]string{"FIGURE"}, o.stores...)...)
		for _, row := range benchRows {
			cells := []any{row.name}
			for _, s := range o.stores {
				cell := "-"
				if v := row.get(figures[s]); v != 0 || !row.peer {
					cell = fmt.Sprintf(row.format, v)
				}
				cells = append(cells, cell)
			}
			t.add(cells...)
		}
		p.table(t, "")
	}
	if len(missed) > 0 {
		for _, m := range missed {
			fmt.Fprintln(a.err, "missed on three servers:", m)
		}
		return quiet(exitFailed)
	}
	return nil
}

var benchRows = []struct {
	name, format string
	get          func(*benchFigures) float64
	peer         bool // of the peer, which is not measured everywhere
}{
	{"floor (write + wake) p50 ms", "%.2f", func(f *benchFigures) float64 { return f.FloorMS }, false},
	{"delivered p50 ms", "%.2f", func(f *benchFigures) float64 { return f.DeliveredP50 }, false},
	{"delivered p95 ms", "%.2f", func(f *benchFigures) float64 { return f.DeliveredP95 }, false},
	{"delivered p99 ms", "%.2f", func(f *benchFigures) float64 { return f.DeliveredP99 }, false},
	{"delivered over floor", "%.2f", func(f *benchFigures) float64 { return f.DeliveredOverFloor }, false},
	{"sender knows p50 ms", "%.2f", func(f *benchFigures) float64 { return f.KnowsP50 }, false},
	{"sender knows p95 ms", "%.2f", func(f *benchFigures) float64 { return f.KnowsP95 }, false},
	{"sender knows p99 ms", "%.2f", func(f *benchFigures) float64 { return f.KnowsP99 }, false},
	{"acked per s", "%.0f", func(f *benchFigures) float64 { return f.AckedPerS }, false},
	{"naive acked per s", "%.0f", func(f *benchFigures) float64 { return f.NaivePerS }, false},
	{"acked over naive", "%.1f", func(f *benchFigures) float64 { return f.AckedOverNaive }, false},
	{"10 k waiting costs", "%.2f", func(f *benchFigures) float64 { return f.Backlog10k }, false},
	{"100 k waiting costs", "%.2f", func(f *benchFigures) float64 { return f.Backlog100k }, false},
	{"writes per message", "%.2f", func(f *benchFigures) float64 { return f.WritesPerMessage }, false},
	{"writes per idle gateway-minute", "%.1f", func(f *benchFigures) float64 { return f.IdleWritesPerMinute }, false},
	{"JetStream R3 acked per s", "%.0f", func(f *benchFigures) float64 { return f.JetStreamPerS }, true},
	{"JetStream R3 synced acked per s", "%.0f", func(f *benchFigures) float64 { return f.JetStreamSyncedPerS }, true},
	{"JetStream R3 synced knows p50 ms", "%.2f", func(f *benchFigures) float64 { return f.JetStreamSyncedKnowsP50 }, true},
	{"acked over JetStream R3 synced", "%.2f", func(f *benchFigures) float64 { return f.AckedOverJetStreamSynced }, true},
	{"acked over JetStream R3", "%.2f", func(f *benchFigures) float64 { return f.AckedOverJetStream }, true},
	{"knows over JetStream R3 synced", "%.2f", func(f *benchFigures) float64 { return f.KnowsOverJetStreamSynced }, true},
	{"prose acked per s", "%.0f", func(f *benchFigures) float64 { return f.ProseAckedPerS }, true},
	{"prose acked over JetStream R3 synced", "%.2f", func(f *benchFigures) float64 { return f.ProseAckedOverJetStreamSynced }, true},
	{"prose acked over JetStream R3", "%.2f", func(f *benchFigures) float64 { return f.ProseAckedOverJetStream }, true},
	{"processor us a message: gateways", "%.1f", func(f *benchFigures) float64 { return f.GatewaysCPU }, true},
	{"processor us a message: servers", "%.1f", func(f *benchFigures) float64 { return f.ServersCPU }, true},
	{"processor us of prose: gateways", "%.1f", func(f *benchFigures) float64 { return f.ProseGatewaysCPU }, true},
	{"processor us of prose: servers", "%.1f", func(f *benchFigures) float64 { return f.ProseServersCPU }, true},
	{"processor us: JetStream R3 synced", "%.1f", func(f *benchFigures) float64 { return f.JetStreamSyncedCPU }, true},
	{"processor us: JetStream R3", "%.1f", func(f *benchFigures) float64 { return f.JetStreamCPU }, true},
}

// benchStore measures on one kind of store.
func benchStore(ctx context.Context, name string, o benchOptions, say func(string, ...any)) (_ *benchFigures, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	var open func(node int) (bus.Store, error)
	var servers []int
	index := func(context.Context) (uint64, error) { return 0, nil }
	switch name {
	case "local":
		dir, err := os.MkdirTemp("", "gatemesh-bench-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		s, err := local.Open(filepath.Join(dir, "mesh.db"), local.Options{})
		if err != nil {
			return nil, err
		}
		defer s.Close()
		open = func(int) (bus.Store, error) { return shared{s}, nil }
	case "consul-1", "consul-3":
		n := int(name[len(name)-1] - '0')
		say("%s: starting", name)
		c, err := cluster.Start(ctx, cluster.Options{Servers: n, Progress: func(s string) { say("%s: %s", name, s) }})
		if err != nil {
			return nil, err
		}
		defer c.Stop()
		for i := range n {
			servers = append(servers, c.Pid(i))
		}
		open = func(node int) (bus.Store, error) { return consul.New(consul.Options{Address: c.Addr(node % n)}) }
		probe, err := consul.New(consul.Options{Address: c.Addr(0)})
		if err != nil {
			return nil, err
		}
		defer probe.Close()
		index = probe.RaftIndex
	default:
		return nil, failf(exitUsage, "unknown store %q: want local, consul-1 or consul-3", name)
	}
	m, err := newBenchMesh(ctx, o, open)
	if err != nil {
		return nil, err
	}
	defer m.close()
	m.servers = servers
	f := &benchFigures{}

	say("%s: %d messages one by one, beside the floor", name, o.rounds)
	if _, _, _, err := m.oneByOne(ctx, 20, emptyAgent, loadedAgent); err != nil {
		return nil, err
	}
	floor, delivered, known, err := m.oneByOne(ctx, o.rounds, emptyAgent)
	if err != nil {
		return nil, err
	}
	d, k := delivered[emptyAgent], known[emptyAgent]
	f.FloorMS = ms(floor.quantile(.5))
	f.DeliveredP50, f.DeliveredP95, f.DeliveredP99 = ms(d.quantile(.5)), ms(d.quantile(.95)), ms(d.quantile(.99))
	f.KnowsP50, f.KnowsP95, f.KnowsP99 = ms(k.quantile(.5)), ms(k.quantile(.95)), ms(k.quantile(.99))
	f.DeliveredOverFloor = float64(d.quantile(.5)) / float64(floor.quantile(.5))

	say("%s: counting writes of idle gateways for %s, then of messages", name, o.idle)
	before := m.writes.Load()
	idle := time.NewTimer(o.idle)
	select {
	case <-idle.C:
	case <-ctx.Done():
		idle.Stop()
		return nil, ctx.Err()
	}
	f.IdleWritesPerMinute = float64(m.writes.Load()-before) / float64(len(m.buses)) / o.idle.Minutes()
	if f.WritesPerMessage, err = m.writesPerMessage(ctx, index); err != nil {
		return nil, err
	}

	say("%s: %d messages at once, beside %d through the naive bus", name, o.messages, o.naive)
	var ours, theirs []float64
	for range 3 {
		x, err := m.throughput(ctx, o.messages, o.senders, emptyAgent)
		if err != nil {
			return nil, err
		}
		y, err := naive(ctx, m.near, m.far, m.texts, o.naive, 32)
		if err != nil {
			return nil, err
		}
		ours, theirs = append(ours, x), append(theirs, y)
	}
	f.AckedPerS, f.NaivePerS = median(ours), median(theirs)
	f.AckedOverNaive = f.AckedPerS / f.NaivePerS

	if name == "consul-3" {
		if err := m.besidePeer(ctx, f, o, say); err != nil {
			return nil, err
		}
	}

	waiting := 0
	for _, n := range o.backlogs {
		say("%s: letting %d wait in one inbox, and measuring it beside an empty one", name, n)
		if err := m.fill(ctx, n-waiting); err != nil {
			return nil, err
		}
		waiting = n
		cost, err := m.backlogCost(ctx, o, say)
		if err != nil {
			return nil, err
		}
		switch n {
		case 10000:
			f.Backlog10k = cost
		case 100000:
			f.Backlog100k = cost
		}
	}
	return f, nil
}

// shared is a store that several users close, and only its owner really.
type shared struct{ bus.Store }

func (shared) Close() error { return nil }

func median(x []float64) float64 {
	return slices.Sorted(slices.Values(x))[len(x)/2]
}

// writesPerMessage counts transactions, and on Consul checks the count against the Raft log.
func (m *benchMesh) writesPerMessage(ctx context.Context, index func(context.Context) (uint64, error)) (float64, error) {
	const n = 100
	i0, err := index(ctx)
	if err != nil {
		return 0, err
	}
	w0 := m.writes.Load()
	for range n {
		o := m.out(emptyAgent, m.texts.take())
		kc := make(chan time.Time, 1)
		m.mu.Lock()
		m.known[o.ID] = kc
		m.mu.Unlock()
		if _, err := m.jerry.Send(ctx, o); err != nil {
			return 0, err
		}
		select {
		case <-kc:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	writes := float64(m.writes.Load()-w0) / n
	i1, err := index(ctx)
	if err != nil {
		return 0, err
	}
	if raft := float64(i1-i0) / n; raft > writes {
		writes = raft
	}
	return float64(int(writes*100+.5)) / 100, nil
}

// backlogCost measures the loaded inbox beside the empty one, in turns.
func (m *benchMesh) backlogCost(ctx context.Context, o benchOptions, say func(string, ...any)) (float64, error) {
	_, delivered, _, err := m.oneByOne(ctx, o.rounds/2, emptyAgent, loadedAgent)
	if err != nil {
		return 0, err
	}
	latency := float64(delivered[loadedAgent].quantile(.5)) / float64(delivered[emptyAgent].quantile(.5))
	// Pairs measured one right after the other, in changing order, so that the machine's drift and
	// what the store does by itself (snapshots) fall on both alike.
	var ratios []float64
	for i := range 7 {
		agents := []string{emptyAgent, loadedAgent}
		if i%2 == 1 {
			slices.Reverse(agents)
		}
		rate := map[string]float64{}
		for _, a := range agents {
			if rate[a], err = m.throughput(ctx, o.messages/2, o.senders, a); err != nil {
				return 0, err
			}
		}
		ratios = append(ratios, rate[emptyAgent]/rate[loadedAgent])
	}
	throughput := median(ratios)
	say("waiting mail costs %.2f times the latency, and %.2f times the throughput (pairs: %.2f)", latency, throughput, ratios)
	return max(latency, throughput), nil
}
