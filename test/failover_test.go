package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/envelope"
)

// The ways in which an owner ends.
const (
	failGraceful = "graceful" // SIGTERM
	failCrash    = "crash"    // kill -9
	failNode     = "node"     // kill -9, and its Consul server with it
	failLeader   = "leader"   // the same, of a duty that has just been moved to where Consul's leader is: it would not stay there
	failStop     = "stop"     // SIGSTOP until another one has the duty, then SIGCONT
	failMove     = "transfer" // an operator wants it elsewhere: between the others
)

// failoverFigures is what the failovers came to, in milliseconds from the end of the owner until its successor's own work runs
// (p95, most), and until it has handled a message that was sent then (handled_p95).
type failoverFigures struct {
	Failovers int                       `json:"failovers"`
	Kinds     map[string]failoverFigure `json:"kinds"`
	Messages  int                       `json:"messages"`
	// HandledOnce, Doubled, Unknown and Lost are of the messages.
	HandledOnce int `json:"handled_once"`
	Doubled     int `json:"doubled"`
	Unknown     int `json:"unknown"`
	Lost        int `json:"lost"`
	// Writes of owners were accepted; OverlappingWrites of them although a later term had written before they were asked for.
	Writes            int `json:"writes"`
	OverlappingWrites int `json:"overlapping_writes"`
	// EffectsAfterWake were let through in a process that had been stopped meanwhile.
	EffectsAfterWake int `json:"effects_after_wake"`
	// EffectWindow is the p95, and EffectWindowMost the longest time for which an effect was not covered.
	EffectWindow     float64 `json:"effect_window_ms"`
	EffectWindowMost float64 `json:"effect_window_most_ms"`
}

type failoverFigure struct {
	N          int     `json:"n"`
	P50        float64 `json:"p50_ms"`
	P95        float64 `json:"p95_ms"`
	Most       float64 `json:"most_ms"`
	HandledP95 float64 `json:"handled_p95_ms,omitempty"`
}

// failoverRun drives three nodes, each with a Consul server of its own.
type failoverRun struct {
	t       *testing.T
	cluster *cluster.Cluster
	nodes   [3]*failoverProcess
	rng     *rand.Rand

	mu    sync.Mutex
	lines []heardLine
	// changed is closed and replaced with every line.
	changed chan struct{}

	took, handled map[string][]time.Duration
	messages      []string
}

type heardLine struct {
	failoverLine
	node int
}

type failoverProcess struct {
	n    int
	cmd  *exec.Cmd
	in   io.WriteCloser
	gone chan struct{}
}

// TestFailovers: each way once or twice, with every promise but the times.
func TestFailovers(t *testing.T) {
	f := driveFailovers(t, map[string]int{failGraceful: 2, failCrash: 2, failStop: 1, failNode: 1}, 1)
	t.Logf("%+v", f)
}

// driveFailovers ends owners, so often in each way, and counts what came of it.
func driveFailovers(t *testing.T, counts map[string]int, seed uint64) failoverFigures {
	t.Helper()
	// What a server has when nothing is configured; the cluster's own default is faster.
	r := newFailoverRun(t, seed, cluster.Options{Servers: 3, Config: "performance { raft_multiplier = 5 }"})
	var plan []string
	for _, kind := range []string{failGraceful, failCrash, failNode, failLeader, failStop} {
		plan = append(plan, slices.Repeat([]string{kind}, counts[kind])...)
	}
	r.rng.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	for i, kind := range plan {
		r.fail(kind)
		if t.Failed() {
			break
		}
		if len(plan) > 20 && i%10 == 9 {
			fmt.Fprintf(os.Stderr, "failover: %d of %d\n", i+1, len(plan))
		}
	}
	return r.judge()
}

// newFailoverRun starts the servers and the nodes.
func newFailoverRun(t *testing.T, seed uint64, servers cluster.Options) *failoverRun {
	t.Helper()
	r := &failoverRun{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), changed: make(chan struct{}), took: map[string][]time.Duration{}, handled: map[string][]time.Duration{},
		cluster: cluster.ForTestWith(t, servers),
	}
	for i := range r.nodes {
		r.start(i)
	}
	t.Cleanup(func() {
		for _, p := range r.nodes {
			p.end(syscall.SIGKILL)
		}
	})
	return r
}

func (r *failoverRun) start(i int) {
	r.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), failoverNodeEnv+"="+nodeName(i), failoverStoreEnv+"="+r.cluster.Addr(i))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	from := r.mark()
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	p := &failoverProcess{n: i, cmd: cmd, in: in, gone: make(chan struct{})}
	r.nodes[i] = p
	go func() {
		defer close(p.gone)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var l failoverLine
			if json.Unmarshal(lines.Bytes(), &l) != nil {
				continue // cut short by a kill
			}
			if l.What == "error" {
				r.t.Errorf("node %d: %s", i, l.Text)
			}
			r.mu.Lock()
			r.lines = append(r.lines, heardLine{l, i})
			close(r.changed)
			r.changed = make(chan struct{})
			r.mu.Unlock()
		}
		_ = cmd.Wait()
	}()
	r.await(from, fmt.Sprintf("node %d is ready", i), func(l heardLine) bool { return l.node == i && l.What == "ready" })
}

func (p *failoverProcess) end(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	_ = p.cmd.Process.Signal(sig)
	<-p.gone
}

func (p *failoverProcess) order(o failoverOrder) {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	_, _ = p.in.Write(append(b, '\n'))
}

// mark is the number of lines so far.
func (r *failoverRun) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.lines)
}

// await returns the first line from a mark on that fits.
func (r *failoverRun) await(from int, what string, fits func(heardLine) bool) heardLine {
	r.t.Helper()
	deadline := time.After(90 * time.Second)
	for {
		r.mu.Lock()
		for ; from < len(r.lines); from++ {
			if fits(r.lines[from]) {
				l := r.lines[from]
				r.mu.Unlock()
				return l
			}
		}
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			r.t.Fatalf("still not: %s; what was said last:\n%s", what, r.said(60))
		}
	}
}

// said is the last lines of all nodes, but for the many that tell of writes.
func (r *failoverRun) said(n int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var last []string
	for i := len(r.lines) - 1; i >= 0 && len(last) < n; i-- {
		if l := r.lines[i]; l.What != "wrote" {
			last = append(last, fmt.Sprintf("%s node %d: %s %s %s (term %d)", l.At.UTC().Format("15:04:05.000"), l.node, l.What, l.ID, l.Text, l.Token))
		}
	}
	slices.Reverse(last)
	return strings.Join(last, "\n")
}

// owner is who says that he owns the duty, under the latest term.
func (r *failoverRun) owner() heardLine {
	r.await(0, "somebody owns the duty", func(l heardLine) bool { return l.What == "resides" })
	r.mu.Lock()
	defer r.mu.Unlock()
	var o heardLine
	for _, l := range r.lines {
		if l.What == "resides" && l.Token > o.Token {
			o = l
		}
	}
	return o
}

// place moves the duty to a node, so that each is hit as often.
func (r *failoverRun) place(to int) {
	r.t.Helper()
	was := r.owner()
	if was.node == to {
		return
	}
	from := r.mark()
	begin := time.Now()
	r.nodes[r.rng.IntN(3)].order(failoverOrder{Move: nodeName(to)})
	now := r.await(from, "the duty is moved", func(l heardLine) bool { return l.What == "resides" && l.Token > was.Token && l.node == to })
	r.took[failMove] = append(r.took[failMove], now.At.Sub(begin))
	r.handled[failMove] = append(r.handled[failMove], now.At.Sub(begin))
}

// away waits until the duty is not where Consul's leader is, where it does not stay.
func (r *failoverRun) away(leader int) {
	r.t.Helper()
	if was := r.owner(); was.node == leader {
		r.await(0, "the duty leaves the leader's node", func(l heardLine) bool { return l.What == "resides" && l.Token > was.Token && l.node != leader })
	}
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }

// fail ends the owner, and waits until another one has the duty and all nodes are back.
func (r *failoverRun) fail(kind string) {
	r.t.Helper()
	leader, err := r.cluster.Leader(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	switch kind {
	case failNode:
		r.away(leader)
	case failLeader:
		r.place(leader)
	default:
		to := r.rng.IntN(3)
		if to == leader && r.owner().node == to {
			to = (to + 1) % 3 // nobody moved it there: it would leave in the middle of this
		}
		r.place(to)
	}
	was := r.owner()
	p, other := r.nodes[was.node], r.nodes[(was.node+1+r.rng.IntN(2))%3]
	// Checks and timers do not stand at the same place each time.
	phase := time.NewTimer(time.Duration(500+r.rng.IntN(1500)) * time.Millisecond)
	<-phase.C
	from := r.mark()
	held := ""
	if kind == failStop {
		held = envelope.NewID()
		other.order(failoverOrder{ID: held, Text: "hold"})
		r.await(from, "the owner has an effect in mind", func(l heardLine) bool { return l.What == "intent" && l.ID == held })
	}
	at := time.Now()
	switch kind {
	case failGraceful:
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	case failStop:
		_ = p.cmd.Process.Signal(syscall.SIGSTOP)
	case failNode, failLeader:
		if err := r.cluster.Kill(was.node); err != nil {
			r.t.Fatal(err)
		}
		_ = p.cmd.Process.Kill()
	default:
		_ = p.cmd.Process.Kill()
	}
	id := envelope.NewID()
	r.messages = append(r.messages, id)
	other.order(failoverOrder{ID: id, Text: "do"})
	next := r.await(from, "a successor after "+kind, func(l heardLine) bool { return l.What == "resides" && l.Token > was.Token && l.node != was.node })
	r.took[kind] = append(r.took[kind], next.At.Sub(at))
	// The owner may have taken it in its last moment: then the successor may not know whether it was handled.
	done := r.await(from, "the message is handled after "+kind, func(l heardLine) bool { return (l.What == "handled" || l.What == "doubt") && l.ID == id })
	r.handled[kind] = append(r.handled[kind], done.At.Sub(at))
	what := ""
	if leader == was.node {
		what = ", and its server led"
	}
	r.t.Logf("%s of node %d%s: owned again after %s (%s), handled after %s", kind, was.node, what, next.At.Sub(at).Round(time.Millisecond), next.At.UTC().Format("15:04:05.000"), done.At.Sub(at).Round(time.Millisecond))
	if kind == failStop {
		r.messages = append(r.messages, held)
		p.order(failoverOrder{Go: true, ID: held})
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		r.await(from, "the woken one decides", func(l heardLine) bool { return l.ID == held && (l.What == "withheld" || l.What == "granted") })
		r.await(from, "the successor is in doubt", func(l heardLine) bool { return l.ID == held && l.What == "doubt" })
		return
	}
	<-p.gone
	if kind == failNode || kind == failLeader {
		if err := r.cluster.Restart(r.t.Context(), was.node); err != nil {
			r.t.Fatal(err)
		}
		r.voters()
	}
	r.start(was.node)
}

// voters waits until all servers vote again: the others may have voted the dead one out, and would not outlive the next loss.
func (r *failoverRun) voters() {
	r.t.Helper()
	soonOr(r.t, "not all servers vote again", func() bool { return voting(r.cluster.Addr(0)) == len(r.nodes) })
}

// soonOr polls until f says yes.
func soonOr(t *testing.T, otherwise string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(90 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(otherwise)
		}
	}
}

// voting is how many servers vote, as the leader says.
func voting(addr string) int {
	resp, err := http.Get(addr + "/v1/operator/raft/configuration")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	var c struct{ Servers []struct{ Voter bool } }
	if json.NewDecoder(resp.Body).Decode(&c) != nil {
		return 0
	}
	n := 0
	for _, s := range c.Servers {
		if s.Voter {
			n++
		}
	}
	return n
}

// judge counts, from outside.
func (r *failoverRun) judge() failoverFigures {
	f := failoverFigures{Kinds: map[string]failoverFigure{}, Messages: len(r.messages)}
	for kind, took := range r.took {
		f.Failovers += len(took)
		f.Kinds[kind] = failoverFigure{N: len(took), P50: quantile(took, 0.5), P95: quantile(took, 0.95), Most: quantile(took, 1), HandledP95: quantile(r.handled[kind], 0.95)}
	}
	r.mu.Lock()
	lines := slices.Clone(r.lines)
	r.mu.Unlock()
	handled, doubt := map[string]int{}, map[string]int{}
	var windows []time.Duration
	for _, l := range lines {
		switch l.What {
		case "handled":
			handled[l.ID]++
		case "doubt":
			doubt[l.ID]++
		case "granted":
			f.EffectsAfterWake++
		case "window":
			windows = append(windows, time.Duration(l.MS*float64(time.Millisecond)))
		case "wrote":
			f.Writes++
		}
	}
	f.EffectWindow, f.EffectWindowMost = quantile(windows, 0.95), quantile(windows, 1)
	f.OverlappingWrites = overlapping(lines)
	for _, id := range r.messages {
		switch n := handled[id]; {
		case n > 1:
			f.Doubled++
		case n == 1:
			f.HandledOnce++
		case doubt[id] > 0:
			f.Unknown++
		default:
			f.Lost++
		}
	}
	if f.OverlappingWrites != 0 || f.Lost != 0 || f.Doubled != 0 || f.EffectsAfterWake != 0 {
		r.t.Errorf("%+v", f)
	}
	return f
}

// overlapping counts accepted writes that were asked for after a write of a later term had been accepted.
func overlapping(lines []heardLine) int {
	var writes []heardLine
	for _, l := range lines {
		if l.What == "wrote" {
			writes = append(writes, l)
		}
	}
	slices.SortFunc(writes, func(a, b heardLine) int { return a.At.Compare(b.At) })
	// highest[i] is the latest term of which one of the first i writes is.
	highest := make([]uint64, len(writes)+1)
	for i, w := range writes {
		highest[i+1] = max(highest[i], w.Token)
	}
	n := 0
	for _, w := range writes {
		before, _ := slices.BinarySearchFunc(writes, w.Begin, func(x heardLine, at time.Time) int { return x.At.Compare(at) })
		if highest[before] > w.Token {
			n++
		}
	}
	return n
}

func quantile(all []time.Duration, q float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	return float64(s[max(0, int(q*float64(len(s))+0.9999)-1)].Microseconds()) / 1000
}

// The judge finds a write that a deposed owner got through.
func TestOverlappingWritesAreSeen(t *testing.T) {
	at := func(token uint64, begin, end int) heardLine {
		base := time.Unix(0, 0)
		return heardLine{failoverLine: failoverLine{What: "wrote", Token: token, Begin: base.Add(time.Duration(begin)), At: base.Add(time.Duration(end))}}
	}
	for n, lines := range map[int][]heardLine{
		0: {at(1, 0, 10), at(2, 9, 20), at(1, 8, 21), at(2, 30, 40)},
		1: {at(1, 0, 10), at(2, 9, 20), at(1, 21, 22), at(2, 30, 40)},
	} {
		if got := overlapping(lines); got != n {
			t.Errorf("%d overlapping writes, want %d", got, n)
		}
	}
}

// overseen reports whether a node says that the catalog hears of its check.
func (r *failoverRun) overseen(i int) bool {
	resp, err := http.Get(r.cluster.Addr((i+1)%len(r.nodes)) + "/v1/kv/openclaw/gateways/" + nodeName(i) + "/overseen?raw")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return err == nil && string(b) == "true"
}

// A gateway came back with its node a moment ago, and its Consul agent tells the catalog nothing yet. The duty that is free then goes elsewhere,
// although the other one's server leads: who has it may halt, and is found out in seconds.
func TestFailoverPastWhoJustCameBack(t *testing.T) {
	r := newFailoverRun(t, 1, cluster.Options{Servers: 3})
	leader, err := r.cluster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	soonOr(t, "not all are overseen", func() bool { // servers that have just started may all be mute
		return r.overseen(0) && r.overseen(1) && r.overseen(2)
	})
	r.away(leader)
	was := r.owner()
	back := 3 - leader - was.node
	if err := r.cluster.Kill(back); err != nil {
		t.Fatal(err)
	}
	_ = r.nodes[back].cmd.Process.Kill()
	<-r.nodes[back].gone
	if err := r.cluster.RestartMute(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	r.start(back)
	if r.overseen(back) {
		t.Fatal("it is overseen, and its agent is mute")
	}

	from := r.mark()
	_ = r.nodes[was.node].cmd.Process.Kill()
	next := r.await(from, "a successor", func(l heardLine) bool { return l.What == "resides" && l.Token > was.Token && l.node != was.node })
	if next.node != leader {
		t.Errorf("node %d has it, which came back a moment ago; node %d leads", next.node, leader)
	}
	at := time.Now()
	_ = r.nodes[next.node].cmd.Process.Signal(syscall.SIGSTOP)
	last := r.await(from, "a successor of who halts", func(l heardLine) bool { return l.What == "resides" && l.Token > next.Token && l.node != next.node })
	took := last.At.Sub(at)
	t.Logf("owned again after %s", took.Round(time.Millisecond))
	if took > 10*time.Second {
		t.Errorf("who halted was found out after %s", took)
	}
}
