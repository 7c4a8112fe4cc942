package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/envelope"
)

// soakFigures is what a soak counts, from outside of the bus.
type soakFigures struct {
	Seed     uint64         `json:"seed"`
	Messages int            `json:"messages"`
	Accepted int            `json:"accepted"`
	Acked    int            `json:"acked"`
	Faults   map[string]int `json:"faults"`
	// Lost were accepted and have no end; Doubled were acked twice over: an effect after the ack was known, more
	// than one answer, or acked and dead.
	Lost    int `json:"lost"`
	Doubled int `json:"doubled"`
	// RepeatedByCrash are effects that were made again because the process that made them ended, or lost its
	// place, before it could say so: the part that no mesh can promise (ARCHITECTURE.md).
	RepeatedByCrash int            `json:"repeated_by_crash"`
	DeadLetters     map[string]int `json:"dead_letters"`
	// Keys lie below openclaw/ after the first tenth and at the end, drained both times, without what is kept for
	// a stated time (answers, dead letters, chunks) and without the ledgers, which are the dedupe
	// memory and bounded by it.
	KeysEarly  int `json:"keys_early"`
	KeysEnd    int `json:"keys_end"`
	LedgerKeys int `json:"ledger_keys"`
	// LedgerMost is the bound: of each lane as many pages as hold the messages it remembers.
	LedgerMost    int  `json:"ledger_keys_most"`
	FootprintFlat bool `json:"footprint_flat"`
}

// soakMessage is what the outside knows of one message.
type soakMessage struct {
	order    soakOrder
	node     int
	accepted bool
	sentAt   time.Time
	tries    int
	ackedAt  time.Time
	dead     string
	replies  int
	// stored: its answer lies in the store, where the asking gateway keeps it.
	stored  bool
	effects []time.Time
	late    int // effects after the ack was known
}

func (m *soakMessage) over() bool { return m.accepted && (m.dead != "" || !m.ackedAt.IsZero()) }

type soak struct {
	t       *testing.T
	c       *cluster.Cluster
	rng     *rand.Rand
	say     func(string, ...any)
	store   bus.Store
	disks   []*disk // of the servers; none where they cannot be filled
	faults  []soakFault
	nodes   []*soakProcess
	figures soakFigures

	mu       sync.Mutex
	messages map[string]*soakMessage
	order    map[string][]string // effects by conversation, first ones only
	last     map[string]string
	problems []string
	changed  chan struct{}
}

func (s *soak) problem(format string, args ...any) {
	if len(s.problems) < 50 {
		s.problems = append(s.problems, fmt.Sprintf(format, args...))
	}
}

// hear takes in one line of a node.
func (s *soak) hear(node int, l soakLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		close(s.changed)
		s.changed = make(chan struct{})
	}()
	m := s.messages[l.ID]
	if m == nil {
		if l.What == "error" {
			s.say("node %d: %s", node, l.Text)
		}
		return
	}
	switch l.What {
	case "accepted":
		m.accepted = true
	case "refused", "unknown":
		m.sentAt = time.Time{} // to be sent again, under the same id
	case "effect":
		if len(m.effects) == 0 && m.order.Conv != "" {
			s.order[m.order.Conv] = append(s.order[m.order.Conv], m.order.Text)
		}
		if !m.ackedAt.IsZero() && l.At.After(m.ackedAt) {
			m.late++
			s.problem("%s: an effect at %s, %s after its ack was known", l.ID, l.At.Format(time.TimeOnly), l.At.Sub(m.ackedAt))
		}
		m.effects = append(m.effects, l.At)
	case "acked":
		m.accepted = true
		if m.ackedAt.IsZero() {
			m.ackedAt = l.At
		}
	case "dead":
		m.accepted, m.dead = true, l.Class
	case "replied":
		m.accepted = true
		m.replies++
	}
}

// send writes the orders that are due to their nodes.
func (s *soak) send(m *soakMessage) {
	p := s.nodes[m.node]
	b, err := json.Marshal(m.order)
	if err != nil {
		s.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.in.Write(append(b, '\n')) // a node that is gone gets it again later
}

// soakWords are what messages ask for, by how many of a hundred.
var soakWords = []struct {
	word string
	of   int
}{{"quick", 79}, {"slow", 8}, {"asks", 5}, {"once", 4}, {"fails", 2}, {"never", 2}}

func (s *soak) message(i int) *soakMessage {
	n := s.rng.IntN(100)
	word := ""
	for _, w := range soakWords {
		if word = w.word; n < w.of {
			break
		}
		n -= w.of
	}
	m := &soakMessage{node: s.rng.IntN(len(s.nodes)), order: soakOrder{ID: envelope.NewID(), To: soakAgent(s.rng.IntN(soakAgents)), Text: fmt.Sprintf("%s %d", word, i)}}
	if (word == "quick" || word == "slow") && i%10 == 0 {
		// In a conversation: the next one goes when the last was accepted, so that there is an order.
		m.order.Conv = fmt.Sprintf("node-%d to %s, %d", m.node, m.order.To, s.rng.IntN(3))
	}
	if i%997 == 0 {
		m.order.Big = 300 << 10
	}
	return m
}

// run sends n messages, rate of them in a second, with faults beside, and drains.
func (s *soak) run(n, rate int, faults bool) {
	stop := make(chan struct{})
	var faulting sync.WaitGroup
	if faults {
		faulting.Add(1)
		go func() {
			defer faulting.Done()
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				f := s.faults[s.rng.IntN(len(s.faults))]
				if k < len(s.faults) {
					f = s.faults[k] // each at least once
				}
				s.say("fault: %s", f.name)
				f.do(s)
				s.mu.Lock()
				s.figures.Faults[f.name]++
				s.mu.Unlock()
				s.idle(time.Duration(500+s.rng.IntN(1500)) * time.Millisecond)
			}
		}()
	}
	const window = 1500
	made, start, begun := 0, time.Now(), time.Now()
	var open []*soakMessage
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	report := time.Now()
	stopped := false
	all := make(chan struct{}) // every fault was there at least once
	if !faults {
		close(all)
	}
	allDone := func() bool {
		select {
		case <-all:
			return true
		default:
			return false
		}
	}
	seen := map[string]bool{}
	before, moved := 0, time.Now()
	for (made < n || len(open) > 0) && !s.t.Failed() {
		s.mu.Lock()
		rest := open[:0]
		for _, m := range open {
			if !m.over() || m.dead == "" && m.replies == 0 {
				rest = append(rest, m)
			}
		}
		open = rest
		var due []*soakMessage
		if faults && !allDone() {
			for name := range s.figures.Faults {
				seen[name] = true
			}
			if len(seen) == len(s.faults) {
				close(all)
			}
		}
		most := int(time.Since(start).Seconds() * float64(rate))
		for made < n && made < most && (made < n-1 || allDone()) && len(open)+len(due) < window {
			m := s.message(s.figures.Messages)
			if m.order.Conv != "" {
				if prev := s.messages[s.last[m.order.Conv]]; prev != nil && !prev.accepted {
					m.order.Conv = ""
				} else {
					s.last[m.order.Conv] = m.order.ID
				}
			}
			s.messages[m.order.ID] = m
			s.figures.Messages++
			made++
			due = append(due, m)
			if made%200 == 7 {
				due = append(due, m) // the same one twice, at once
			}
		}
		open = append(open, slices.Compact(slices.Clone(due))...)
		for _, m := range open {
			// Refused, or swallowed by a node that died: again, under the same id.
			if !m.accepted && m.tries > 0 && time.Since(m.sentAt) > 20*time.Second {
				due = append(due, m)
			}
		}
		for _, m := range due {
			m.sentAt = time.Now()
			m.tries++
		}
		changed := s.changed
		s.mu.Unlock()
		for _, m := range due {
			s.send(m)
		}
		if made == n && !stopped && faults {
			stopped = true
			close(stop)
			faulting.Wait() // what is open now ends without faults
			s.say("no more faults; draining %d", len(open))
			begun = time.Now()
		}
		if len(open) != before {
			before, moved = len(open), time.Now()
		}
		if time.Since(report) > 5*time.Second {
			report = time.Now()
			s.say("%d of %d sent, %d open", made, n, len(open))
		}
		if made == n && (stopped || !faults) && (time.Since(begun) > 3*time.Minute || time.Since(moved) > 30*time.Second) {
			// What a node was told while it was away is only in the store now.
			break
		}
		select {
		case <-changed:
		case <-tick.C:
		}
	}
	if faults && !stopped {
		close(stop)
		faulting.Wait()
	}
}

// runSoak is the whole of it: a first tenth, its footprint, the rest, and the end.
func runSoak(t *testing.T, messages, rate int, seed uint64, say func(string, ...any)) soakFigures {
	t.Helper()
	disks := newDisks(t, 3)
	opt := cluster.Options{Servers: 3}
	faults := soakFaults
	if disks != nil {
		for _, d := range disks {
			opt.DataDirs = append(opt.DataDirs, d.dir)
		}
		// A log file of 64 MiB, the default, is laid out in advance: a full disk would be felt much later.
		opt.Config = `raft_logstore { wal { segment_size_mb = 1 } }`
		faults = slices.Concat(soakFaults, diskFaults)
	}
	c := cluster.ForTestWith(t, opt)
	var servers []string
	for _, a := range c.Addrs() {
		servers = append(servers, strings.TrimPrefix(a, "http://"))
	}
	s := &soak{t: t, c: c, disks: disks, faults: faults, say: say, rng: rand.New(&lockedSource{src: rand.NewPCG(seed, 1)}), messages: map[string]*soakMessage{}, order: map[string][]string{}, last: map[string]string{}, changed: make(chan struct{})}
	s.figures.Seed, s.figures.Faults = seed, map[string]int{}
	store, err := consul.New(consul.Options{Address: c.Addr(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s.store = store
	for i := range soakAgents {
		s.nodes = append(s.nodes, &soakProcess{s: s, n: i, cable: cluster.CableForTest(t, append(servers[i:len(servers):len(servers)], servers[:i]...)...)})
	}
	for _, p := range s.nodes {
		p.revive()
	}
	t.Cleanup(func() {
		for _, p := range s.nodes {
			p.end(syscall.SIGTERM)
		}
	})
	s.run(messages/10, 10*rate, false)
	s.figures.KeysEarly, _ = s.footprint(store)
	s.run(messages-messages/10, rate, true)
	for _, p := range s.nodes { // all that they were told must be read before it is judged
		if !p.isReady(time.Minute) {
			t.Errorf("node %d is not running at the end", p.n)
		}
	}
	s.harvest(store)
	s.answers(store)
	f := &s.figures
	f.KeysEnd, f.LedgerKeys = s.footprint(store)
	// A page takes at least 32 messages and a lane remembers 16,384; its newest page lies elsewhere. Lanes: from
	// every node to every agent and, for answers, to every node.
	const pages = 16384/8 + 1
	f.LedgerMost = len(s.nodes) * (soakAgents + len(s.nodes)) * pages
	f.FootprintFlat = f.KeysEnd <= f.KeysEarly+len(s.nodes)*(soakAgents+len(s.nodes)) && f.LedgerKeys <= f.LedgerMost
	if !f.FootprintFlat {
		s.problem("the footprint grew: %+v", *f)
	}
	s.judge()
	for _, p := range s.problems {
		t.Errorf("seed %d: %s", seed, p)
	}
	return s.figures
}

// lockedSource is a random source for several goroutines.
type lockedSource struct {
	mu  sync.Mutex
	src rand.Source
}

func (l *lockedSource) Uint64() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.src.Uint64()
}

// TestSoak is the short form of `make soak`: gateway processes on three real servers, every fault once.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("minutes")
	}
	f := runSoak(t, 3000, 60, 1, t.Logf)
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b)
	if f.Lost != 0 || f.Doubled != 0 || len(f.Faults) < len(soakFaults) || f.Acked == 0 || len(f.DeadLetters) == 0 {
		t.Errorf("%+v", f)
	}
}
