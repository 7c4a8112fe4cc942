package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// peer is a running jetstreambench (test/tools/nats): three NATS servers and their clients, which
// measure when they are told to. It is a program of its own so that nothing here depends on NATS.
type peer struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	server string
}

// peerStop is how long a peer may take to end before it is killed.
const peerStop = 10 * time.Second

// startPeer starts the peer and waits until it is ready.
func startPeer(ctx context.Context, path string, synced bool) (*peer, error) {
	cmd := exec.Command(path, fmt.Sprintf("-synced=%t", synced))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the peer: %w", err)
	}
	p := &peer{cmd: cmd, in: in, out: json.NewDecoder(out)}
	var ready struct {
		Server string `json:"server"`
		Nodes  int    `json:"nodes"`
		Synced bool   `json:"synced"`
	}
	if err := p.read(ctx, &ready); err != nil {
		p.stop()
		return nil, err
	}
	if ready.Nodes != 3 || ready.Synced != synced {
		p.stop()
		return nil, fmt.Errorf("the peer runs %d servers, synced %t; want 3, %t: build it again (make nats)", ready.Nodes, ready.Synced, synced)
	}
	p.server = ready.Server
	return p, nil
}

// ask has the peer measure something.
func (p *peer) ask(ctx context.Context, answer any, do string, messages, senders int) error {
	err := json.NewEncoder(p.in).Encode(map[string]any{"do": do, "messages": messages, "senders": senders})
	if err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	return p.read(ctx, answer)
}

// read takes the next line of the peer; when ctx ends first, the peer is asked to end, which ends the reading.
func (p *peer) read(ctx context.Context, answer any) error {
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Signal(os.Interrupt) })
	defer stop()
	if err := p.out.Decode(answer); err != nil {
		return errors.Join(fmt.Errorf("the peer gave no answer (it says why above): %w", err), ctx.Err())
	}
	return nil
}

func (p *peer) stop() {
	_ = p.in.Close()
	kill := time.AfterFunc(peerStop, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	_ = p.cmd.Wait()
}

// peerPairs is how many rounds of throughput ours and the peer's take in turns.
const peerPairs = 5

// besidePeer measures the mesh and JetStream in turns, first with synced writes and then as shipped. Without the
// peer's binary it says so and leaves its figures out.
func (m *benchMesh) besidePeer(ctx context.Context, f *benchFigures, o benchOptions, say func(string, ...any)) error {
	if _, err := os.Stat(o.peer); errors.Is(err, os.ErrNotExist) {
		f.JetStream = fmt.Sprintf("skipped: no binary at %s (make nats builds it)", o.peer)
		say("SKIPPED, so nothing is compared with JetStream: no binary at %s (make nats builds it)", o.peer)
		return nil
	}
	for _, synced := range []bool{true, false} {
		if err := m.besideJetStream(ctx, f, o, synced, say); err != nil {
			return fmt.Errorf("JetStream: %w", err)
		}
	}
	return nil
}

func (m *benchMesh) besideJetStream(ctx context.Context, f *benchFigures, o benchOptions, synced bool, say func(string, ...any)) error {
	mode := "as shipped"
	if synced {
		mode = "synced writes"
	}
	p, err := startPeer(ctx, o.peer, synced)
	if err != nil {
		return err
	}
	defer p.stop()
	f.JetStream = "nats-server " + p.server
	say("consul-3: in turns with JetStream R3 (%s, %s)", p.server, mode)

	if synced {
		var ours sample
		var theirs []float64
		const turns = 8
		for range turns {
			_, _, known, err := m.oneByOne(ctx, max(1, o.rounds/turns), emptyAgent)
			if err != nil {
				return err
			}
			ours = append(ours, known[emptyAgent]...)
			var l struct {
				Knows []float64 `json:"knows_ms"`
			}
			if err := p.ask(ctx, &l, "latency", max(1, o.rounds/turns), 1); err != nil {
				return err
			}
			theirs = append(theirs, l.Knows...)
		}
		f.JetStreamSyncedKnowsP50 = median(theirs)
		f.KnowsOverJetStreamSynced = ms(ours.quantile(.5)) / f.JetStreamSyncedKnowsP50
	}

	random, err := m.pairs(ctx, p, "random", o)
	if err != nil {
		return err
	}
	prose, err := m.pairs(ctx, p, "prose", o)
	if err != nil {
		return err
	}
	for kind, r := range map[string]*peerRounds{"random text": random, "prose": prose} {
		say("consul-3: acked over JetStream R3 (%s, %s) %.2f (pairs: %s)", mode, kind, median(r.ratios), strings.Trim(fmt.Sprintf("%.2f", r.ratios), "[]"))
	}
	f.GatewaysCPU, f.ServersCPU = median(random.gateways), median(random.servers)
	f.ProseGatewaysCPU, f.ProseServersCPU, f.ProseAckedPerS = median(prose.gateways), median(prose.servers), median(prose.ours)
	theirs, cpu := median(append(random.theirs, prose.theirs...)), median(append(random.peer, prose.peer...))
	if synced {
		f.JetStreamSyncedPerS, f.JetStreamSyncedCPU = theirs, cpu
		f.AckedOverJetStreamSynced, f.ProseAckedOverJetStreamSynced = median(random.ratios), median(prose.ratios)
	} else {
		f.JetStreamPerS, f.JetStreamCPU = theirs, cpu
		f.AckedOverJetStream, f.ProseAckedOverJetStream = median(random.ratios), median(prose.ratios)
	}
	return nil
}

// peerRounds is what rounds of throughput in turns with the peer gave: messages a second, and microseconds of processor time a message.
type peerRounds struct {
	ours, theirs, ratios    []float64
	gateways, servers, peer []float64
}

// pairs measures throughput in turns with the peer, with one kind of texts.
func (m *benchMesh) pairs(ctx context.Context, p *peer, kind string, o benchOptions) (*peerRounds, error) {
	was := m.texts
	m.texts = benchTextsOf[kind]()
	defer func() { m.texts = was }()
	r := &peerRounds{}
	theirProcs := withChildren(p.cmd.Process.Pid)
	perMessage := func(procs []int, what func() error) (float64, error) {
		before := cpuTime(procs...)
		err := what()
		return float64((cpuTime(procs...) - before).Microseconds()) / float64(o.messages), err
	}
	for i := range peerPairs {
		var x float64
		var y struct {
			AckedPerS float64 `json:"acked_per_s"`
		}
		turns := []func() error{
			func() error {
				servers := cpuTime(m.servers...)
				us, err := perMessage([]int{os.Getpid()}, func() (err error) {
					x, err = m.throughput(ctx, o.messages, o.senders, emptyAgent)
					return err
				})
				r.gateways = append(r.gateways, us)
				r.servers = append(r.servers, float64((cpuTime(m.servers...)-servers).Microseconds())/float64(o.messages))
				return err
			},
			func() error {
				us, err := perMessage(theirProcs, func() error { return p.ask(ctx, &y, "throughput", o.messages, o.senders) })
				r.peer = append(r.peer, us)
				return err
			},
		}
		if i%2 == 1 {
			slices.Reverse(turns)
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return nil, err
			}
		}
		r.ours, r.theirs, r.ratios = append(r.ours, x), append(r.theirs, y.AckedPerS), append(r.ratios, x/y.AckedPerS)
	}
	return r, nil
}
