package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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

// consul asks the servers themselves, as who may do everything.
func (d *drill) consul(method, path, body, token string) (int, []byte) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.c.Addr(0)+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("X-Consul-Token", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, raw
}

// consulToken makes a token with a policy.
func (d *drill) consulToken(policy string) (secret, accessor string) {
	d.t.Helper()
	status, raw := d.consul(http.MethodPut, "acl/token", fmt.Sprintf(`{"Policies":[{"Name":%q}]}`, policy), d.c.Token())
	var made struct{ SecretID, AccessorID string }
	if err := json.Unmarshal(raw, &made); err != nil || status != http.StatusOK {
		d.t.Fatalf("make a token: %d %s", status, raw)
	}
	return made.SecretID, made.AccessorID
}

// run is one command of the operator. It must work.
func (d *drill) run(args ...string) []byte {
	d.t.Helper()
	code, out, errOut := d.try(args...)
	if code != 0 {
		d.t.Fatalf("gatemesh %s: status %d: %s%s", strings.Join(args, " "), code, out, errOut)
	}
	return out
}

func (d *drill) try(args ...string) (code int, out []byte, errOut string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.binary, append(args, "--timeout", "60s")...)
	cmd.Env = append(slices.Clone(d.env), "GATEMESH_TOKEN="+*d.token.Load())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		d.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.String()
}

func into[T any](t *testing.T, raw []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return v
}

// configure writes a node's configuration, as one that is edited: by renaming.
func (d *drill) configure(n *drillNode, port int) {
	d.t.Helper()
	agent, _, _ := strings.Cut(n.name, "-")
	text := fmt.Sprintf(`{
		gateway: { port: %d, auth: { rateLimit: { exemptLoopback: true }, tokens: [ %s ] } },
		agents: { list: [ { id: %q, runner: "echo", gateways: [%q] } ] },
		mesh: { gateway: %q, dataDir: %q, cluster: { id: "drill" }, heartbeatInterval: "1s", log: { json: true },
			consul: { address: %q, tokenFile: %q }, trust: { mode: "enforce", operatorKeys: [%q] } },
	}`, port, strings.Join(d.entries, "\n"), agent, n.name, n.name, n.dir, d.c.Addr(slices.Index(drillNodes, agent)), n.consulToken, d.operator)
	replaceFile(d.t, n.file, text)
}

func replaceFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// newDrill starts everything: an operator, who lets three gateways in and signs what they may ask of each other.
func newDrill(t *testing.T, binary string, say func(string, ...any)) *drill {
	t.Helper()
	d := &drill{t: t, binary: binary, say: say, dir: t.TempDir(), nodes: map[string]*drillNode{}, asked: map[string]bool{},
		figures: drillFigures{Rotations: map[string]int{}, Dead: map[string]int{}}}
	d.c = cluster.ForTestWith(t, cluster.Options{Servers: len(drillNodes), Names: drillNodes, ACL: true})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for _, p := range append(slices.Clone(drillNodes), "operator") {
		rules, err := os.ReadFile(filepath.Join("..", "nomad", "acl", p+".hcl"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(map[string]string{"Name": p, "Rules": string(rules)})
		if err != nil {
			t.Fatal(err)
		}
		if status, raw := d.consul(http.MethodPut, "acl/policy", string(body), d.c.Token()); status != http.StatusOK {
			t.Fatalf("policy %s: %d %s", p, status, raw)
		}
	}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); !strings.HasPrefix(name, "CONSUL_") && !strings.HasPrefix(name, "GATEMESH_") && !strings.HasPrefix(name, "OPENCLAW_") {
			d.env = append(d.env, kv)
		}
	}
	desk := filepath.Join(d.dir, "desk.json5")
	token, _ := d.consulToken("operator")
	replaceFile(t, filepath.Join(d.dir, "desk.token"), token)
	replaceFile(t, desk, fmt.Sprintf(`{ mesh: { cluster: { id: "drill" }, dataDir: %q, consul: { address: %q, tokenFile: %q } } }`, filepath.Join(d.dir, "desk"), d.c.Addr(0), filepath.Join(d.dir, "desk.token")))
	d.env = append(d.env, "GATEMESH_CONFIG="+desk, "GATEMESH_OPERATOR_KEY_FILE="+filepath.Join(d.dir, "operator.key"))
	none := ""
	d.token.Store(&none)
	d.until("the operator's token is known everywhere", func() bool { code, _, _ := d.try("trust", "init"); return code == 0 })
	d.operator = into[struct {
		Operators []struct{ Public string }
	}](t, d.run("trust", "list", "--json")).Operators[0].Public
	first := into[struct {
		Token string
		Entry json.RawMessage
	}](t, d.run("token", "create", "--name", "clients", "--role", "operate", "--json"))
	d.entries = []string{string(first.Entry)}
	d.token.Store(&first.Token)
	for _, agent := range drillNodes {
		d.startNode(agent)
	}
	d.until("all ask to join", func() bool {
		for _, r := range into[[]struct {
			Gateway, Key string
		}](t, d.run("trust", "pending", "--json")) {
			agent, _, _ := strings.Cut(r.Gateway, "-")
			if strings.Contains(d.nodes[r.Gateway].log.String(), r.Key) { // what its own log names
				d.run("trust", "approve", r.Gateway, "--key", r.Key, "--agents", agent)
			}
		}
		return len(into[struct{ Gateways []any }](t, d.run("trust", "list", "--json")).Gateways) == len(drillNodes)
	})
	rules := filepath.Join(d.dir, "rules.json5")
	replaceFile(t, rules, "{ rules: [ { name: 'all of us', from: '*@*-gateway', to: '*' } ] }")
	d.run("policy", "publish", rules)
	for _, n := range d.nodes {
		d.until(n.name+" is ready and knows all agents", func() bool {
			var keys struct {
				Policy uint64 `json:"policy_version"`
			}
			return d.api(n, http.MethodGet, "/v1/keys", nil, &keys) == http.StatusOK && keys.Policy > 0 && d.knows(n)
		})
	}
	return d
}

// knows reports whether a node sees every agent.
func (d *drill) knows(n *drillNode) bool {
	var list struct {
		Agents []struct{ Status string }
	}
	if d.api(n, http.MethodGet, "/ready", nil, nil) != http.StatusOK || d.api(n, http.MethodGet, "/v1/agents", nil, &list) != http.StatusOK {
		return false
	}
	active := 0
	for _, a := range list.Agents {
		if a.Status == "active" {
			active++
		}
	}
	return active == len(drillNodes)
}

func (d *drill) startNode(agent string) {
	d.t.Helper()
	dir := filepath.Join(d.dir, agent)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	n := &drillNode{file: filepath.Join(dir, "openclaw.json"), dir: filepath.Join(dir, "data"), consulToken: filepath.Join(dir, "consul.token"), log: &lockedBuffer{}}
	var secret string
	secret, n.accessor = d.consulToken(agent)
	replaceFile(d.t, n.consulToken, secret)
	port := freePort(d.t)
	n.daemon = &daemon{t: d.t, name: agent + "-gateway", url: fmt.Sprintf("http://127.0.0.1:%d", port)}
	d.nodes[n.name] = n
	d.configure(n, port)
	d.launch(n)
	d.t.Cleanup(func() {
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
		<-n.done
		if d.t.Failed() {
			text := n.log.String()
			d.t.Logf("%s said:\n%s", n.name, text[max(0, len(text)-20000):])
		}
	})
}

// launch starts a node's process.
func (d *drill) launch(n *drillNode) {
	d.t.Helper()
	n.done = make(chan struct{})
	n.cmd = exec.Command(d.binary, "gateway", "--config", n.file)
	n.cmd.Env = d.env
	n.cmd.Stderr = n.log
	if err := n.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = cmd.Wait()
	}(n.cmd, n.done)
}

// freePort is below the ports that the system gives away by itself, so that it is still free in a moment.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		p := 20000 + rand.IntN(4000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p)); err == nil {
			_ = l.Close()
			return p
		}
	}
	t.Fatal("no free port")
	return 0
}

// until waits for what comes by itself.
func (d *drill) until(what string, so func() bool) {
	d.t.Helper()
	deadline := time.After(90 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			d.t.Fatalf("still not: %s", what)
		}
	}
}

// api asks a gateway with the clients' token, or with others.
func (d *drill) api(n *drillNode, method, path string, in, out any, token ...string) int {
	d.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			d.t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.url+path, body)
	if err != nil {
		d.t.Fatal(err)
	}
	token = append(token, *d.token.Load())
	req.Header.Set("Authorization", "Bearer "+token[0])
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0
	}
	if out != nil && resp.StatusCode < 300 {
		if err := json.Unmarshal(raw, out); err != nil {
			return 0
		}
	}
	return resp.StatusCode
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
		d.until("so many questions were asked", func() bool {
			// 90 s each time, however many there are.
			for i := 0; i < 80 && !asked(); i++ {
				d.settled()
			}
			return asked()
		})
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
