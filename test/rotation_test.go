package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// The drill: three gateway processes under nomad/acl's rules on three Consul servers, questions in all directions the
// whole time, and every kind of key replaced twice. It is counted from outside: by the clients, and by the gateways' audit logs.

var drillNodes = []string{"jerry", "bobby", "billy"}

// drillFigures are what a drill comes to.
type drillFigures struct {
	Messages int `json:"messages"`
	Replied  int `json:"replied"`
	Lost     int `json:"lost"`
	Doubled  int `json:"doubled"`
	// Refused is what the gateways refused of each other, and the API and Consul of whom they knew.
	Refused   int            `json:"refused"`
	Rotations map[string]int `json:"rotations"`
	// Dead is how many old keys were tried and refused, by kind.
	Dead           map[string]int `json:"dead"`
	AuditLines     int            `json:"audit_lines"`
	SlowestAnswer  float64        `json:"slowest_answer_ms"`
	SlowestChange  float64        `json:"slowest_gateway_change_ms"`
	RotatingSecond float64        `json:"rotating_seconds"`
}

// drill is the mesh, the operator's desk and the clients.
type drill struct {
	t      *testing.T
	binary string
	c      *cluster.Cluster
	dir    string
	say    func(string, ...any)
	nodes  map[string]*drillNode
	env    []string // of the operator's commands

	token    atomic.Pointer[string] // of the API, as clients use it
	entries  []string               // of gateway.auth.tokens
	operator string                 // public key
	figures  drillFigures
	begun    time.Time // of the drill: while they joined, the gateways refused each other, as they should

	mu     sync.Mutex
	asked  map[string]bool // message id: replied
	broken []string
}

type drillNode struct {
	*daemon
	file, dir, consulToken string // the last one's file
	accessor               string
	log                    *lockedBuffer
}

// lockedBuffer is what a process says.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// clients ask until stop is closed: at each node one after the other for each agent.
func (d *drill) clients(stop <-chan struct{}, each int) *sync.WaitGroup {
	var wg sync.WaitGroup
	for _, n := range d.nodes {
		for _, agent := range drillNodes {
			for range each {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for {
						select {
						case <-stop:
							return
						default:
						}
						d.ask(n, agent)
					}
				}()
			}
		}
	}
	return &wg
}

// ask is one question, under one id until it is answered.
func (d *drill) ask(n *drillNode, agent string) {
	id, begin := envelope.NewID(), time.Now()
	var got struct {
		Text  string
		Facts struct {
			Replied, Dead bool
			Reason        string
		}
	}
	status := d.api(n, http.MethodPost, "/v1/messages", map[string]any{"to": agent, "text": id, "id": id, "wait": "replied", "timeout": "30s"}, &got)
	took := float64(time.Since(begin).Microseconds()) / 1000
	d.mu.Lock()
	defer d.mu.Unlock()
	d.figures.SlowestAnswer = max(d.figures.SlowestAnswer, took)
	d.asked[id] = got.Facts.Replied && got.Text == id
	if (status != http.StatusOK || !d.asked[id]) && len(d.broken) < 20 {
		d.broken = append(d.broken, fmt.Sprintf("%s asked %s: status %d, %+v", n.name, agent, status, got))
	}
	if status >= 400 && status < 500 {
		d.figures.Refused++
	}
}

// oldKeys is what was replaced, to be proven dead.
type oldKeys struct {
	gateway  map[string][]*trust.Key
	operator []*trust.Key
	api      []string
	consul   []string
}

// rotate replaces every key once.
func (d *drill) rotate(old *oldKeys, overlap time.Duration) {
	d.t.Helper()
	for _, agent := range drillNodes {
		n := d.nodes[agent+"-gateway"]
		before, err := trust.LoadKey(filepath.Join(n.dir, "identity.key"))
		if err != nil {
			d.t.Fatal(err)
		}
		begin := time.Now()
		r := into[struct {
			Key, Before string
			InUse       bool `json:"in_use"`
		}](d.t, d.run("keys", "rotate", "gateway", n.name, "--overlap", overlap.String(), "--json"))
		took := time.Since(begin)
		now, err := trust.LoadKey(filepath.Join(n.dir, "identity.key"))
		if err != nil || !r.InUse || r.Before != before.ID() || r.Key != now.ID() {
			d.t.Errorf("%s: %+v, its file holds %v, %v", n.name, r, now, err)
		}
		old.gateway[n.name] = append(old.gateway[n.name], before)
		d.figures.Rotations["gateway"]++
		d.figures.SlowestChange = max(d.figures.SlowestChange, float64(took.Milliseconds()))
		d.say("%s signs with %s after %s", n.name, r.Key, took.Round(time.Millisecond))
	}

	operatorKey := filepath.Join(d.dir, "operator.key")
	before, err := trust.LoadKey(operatorKey)
	if err != nil {
		d.t.Fatal(err)
	}
	d.run("keys", "rotate", "operator")
	old.operator = append(old.operator, before)
	d.figures.Rotations["operator"]++

	name := into[struct{ Name string }](d.t, []byte(d.entries[0])).Name
	r := into[struct {
		Token      string
		Entry, Old json.RawMessage
	}](d.t, d.run("keys", "rotate", "api", name, "--json", "--config", d.nodes["jerry-gateway"].file))
	configure := func(entries ...json.RawMessage) {
		d.entries = nil
		for _, e := range entries {
			d.entries = append(d.entries, string(e)+",")
		}
		for _, n := range d.nodes {
			var port int
			if _, err := fmt.Sscanf(n.url, "http://127.0.0.1:%d", &port); err != nil {
				d.t.Fatal(err)
			}
			d.configure(n, port)
		}
	}
	configure(r.Entry, r.Old)
	for _, n := range d.nodes {
		d.until(n.name+" knows the new token", func() bool { return d.api(n, http.MethodGet, "/v1/status", nil, nil, r.Token) == http.StatusOK })
	}
	oldToken := *d.token.Swap(&r.Token)
	// Questions that were asked with the old one are answered before it goes.
	d.settled()
	configure(r.Entry)
	d.entries = []string{string(r.Entry)}
	old.api = append(old.api, oldToken)
	d.figures.Rotations["api"]++

	for _, agent := range drillNodes {
		n := d.nodes[agent+"-gateway"]
		was, err := os.ReadFile(n.consulToken)
		if err != nil {
			d.t.Fatal(err)
		}
		next, accessor := d.consulToken(agent)
		used := strings.Count(n.log.String(), "a new Consul token is in use")
		replaceFile(d.t, n.consulToken, next)
		d.until(n.name+" uses the new Consul token", func() bool { return strings.Count(n.log.String(), "a new Consul token is in use") > used })
		if status, raw := d.consul(http.MethodDelete, "acl/token/"+n.accessor, "", d.c.Token()); status != http.StatusOK {
			d.t.Fatalf("delete a token: %d %s", status, raw)
		}
		n.accessor = accessor
		old.consul = append(old.consul, string(was))
		d.figures.Rotations["consul"]++
	}
}

// settled waits until as many questions as clients ask at a time have been answered after now.
func (d *drill) settled() {
	d.t.Helper()
	count := func() int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.asked)
	}
	from := count()
	d.until("the clients have gone on", func() bool { return count() > from+100 })
}

// logged is what the audit logs tell.
type logged struct {
	lines int
	acked map[string]int // by message
	bad   []string       // refusals, dead letters, gaps
}

func (d *drill) readLogs() logged {
	d.t.Helper()
	l := logged{acked: map[string]int{}}
	for _, n := range d.nodes {
		for line := range bytes.Lines(d.run("audit", "export", "--config", n.file)) {
			l.lines++
			a := into[struct {
				Kind string
				At   time.Time
				Data struct {
					Event     string
					MessageID string `json:"message_id"`
				}
			}](d.t, line)
			switch {
			case a.Data.Event == "acked":
				l.acked[a.Data.MessageID]++
			case a.At.Before(d.begun):
			case a.Kind == "lost", a.Data.Event == "refused", a.Data.Event == "dead-letter", a.Data.Event == "gap":
				l.bad = append(l.bad, n.name+": "+string(line))
			}
		}
	}
	return l
}

// count reads who was acked how often, and what was refused, from the audit logs, which must be whole.
func (d *drill) count() {
	d.t.Helper()
	for _, n := range d.nodes {
		if code, out, errOut := d.try("audit", "verify", "--config", n.file); code != 0 {
			d.t.Errorf("the audit log of %s: status %d: %s%s", n.name, code, out, errOut)
		}
	}
	var l logged
	deadline := time.Now().Add(10 * time.Second)
	d.until("the logs have what happened last", func() bool { // they are written beside the work
		l = d.readLogs()
		for id := range d.asked {
			if l.acked[id] == 0 {
				return time.Now().After(deadline)
			}
		}
		return true
	})
	d.figures.AuditLines = l.lines
	d.figures.Refused += len(l.bad)
	d.broken = append(d.broken, l.bad[:min(20, len(l.bad))]...)
	for id, replied := range d.asked {
		d.figures.Messages++
		if replied {
			d.figures.Replied++
		}
		if !replied || l.acked[id] == 0 {
			d.figures.Lost++
		}
		if l.acked[id] > 1 {
			d.figures.Doubled++
		}
	}
	for _, b := range d.broken {
		d.t.Error(b)
	}
}

// runDrill is the whole of it; each is how many clients ask each agent at each node, and least how many questions are asked.
func runDrill(t *testing.T, binary string, each, least int, overlap time.Duration, say func(string, ...any)) drillFigures {
	d := newDrill(t, binary, say)
	old := &oldKeys{gateway: map[string][]*trust.Key{}}
	d.begun = time.Now()
	stop := make(chan struct{})
	wg := d.clients(stop, each)
	func() {
		defer wg.Wait()
		defer close(stop)
		d.settled()
		begin := time.Now()
		for range 2 {
			d.rotate(old, overlap)
			d.settled()
		}
		d.figures.RotatingSecond = time.Since(begin).Seconds()
		asked := func() bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			return len(d.asked) >= least
		}
		for !asked() {
			d.settled() // each time bounded, however many there are
		}
	}()
	d.count()
	d.run("policy", "show") // status 1 when its signer is no operator any more
	d.proveDead(old)
	return d.figures
}

// TestRotationDrill is the short form; make rotation is the long one.
func TestRotationDrill(t *testing.T) {
	f := runDrill(t, builtBinary(t), 1, 1, 2*time.Second, t.Logf)
	judgeDrill(t, f)
}

func judgeDrill(t *testing.T, f drillFigures) {
	t.Helper()
	if f.Messages < 300 || f.Lost != 0 || f.Doubled != 0 || f.Refused != 0 || f.Replied != f.Messages {
		t.Errorf("%+v", f)
	}
	for kind, n := range map[string]int{"gateway": 6, "operator": 2, "api": 2, "consul": 6} {
		if f.Rotations[kind] != n || f.Dead[kind] < n {
			t.Errorf("%s: %d rotations, %d old keys proven dead, want %d", kind, f.Rotations[kind], f.Dead[kind], n)
		}
	}
	t.Logf("%+v", f)
}
