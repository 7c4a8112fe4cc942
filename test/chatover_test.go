package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/discord/discordtest"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
	"github.com/gatemesh/gatemesh/gateway/whatsapp"
	"github.com/gatemesh/gatemesh/gateway/whatsapp/whatsapptest"
)

// Three gateways are processes of the real binary, each with a Consul server of its own behind a cable. The four chat accounts spread over
// them, and one agent that may run on each answers. The vendors' fakes are here, in the test's process: they outlive every gateway and are
// the outside from which everything is counted.

// failCut cuts the owner off from Consul, while it still reaches the vendor.
const failCut = "partition"

// The phone numbers of the account and of who writes to it.
const (
	chatBot = "15550001"
	chatAnn = "15550002"
)

var chatInboxes = []string{"channel-slack-default", "channel-discord-default", "channel-whatsapp-default", "channel-webchat-default"}

type chatMesh struct {
	t       *testing.T
	binary  string
	dir     string
	key     string // of the vault
	cluster *cluster.Cluster
	nodes   [3]*chatNode
	rng     *rand.Rand

	slack    *slacktest.Server
	discord  *discordtest.Server
	whatsapp *whatsapptest.Server
	people   []*chatPerson

	mu        sync.Mutex
	connected []chatConnected
	windows   []time.Duration
	changed   chan struct{}

	took map[string][]time.Duration
}

// chatConnected is a line of a gateway's log: it holds the connection of an account.
type chatConnected struct {
	inbox string
	node  int
	at    time.Time
}

type chatNode struct {
	m     *chatMesh
	n     int
	cable *cluster.Cable
	cmd   *exec.Cmd
	gone  chan struct{}

	keep io.Writer // the whole log, where GATEMESH_KEEP_LOGS names a directory: for whoever looks for a lost message

	mu   sync.Mutex
	url  string
	last []string // of its log
}

func newChatMesh(t *testing.T, binary string, seed uint64) *chatMesh {
	t.Helper()
	m := &chatMesh{
		t: t, binary: binary, dir: t.TempDir(), rng: rand.New(rand.NewPCG(seed, 0)), changed: make(chan struct{}), took: map[string][]time.Duration{},
		cluster: cluster.ForTestWith(t, cluster.Options{Servers: 3, Config: "performance { raft_multiplier = 5 }"}),
	}
	out, err := exec.Command(binary, "channels", "key").Output()
	if err != nil {
		t.Fatal(err)
	}
	m.key = strings.TrimSpace(string(out))
	m.vendors()
	for i := range m.nodes {
		m.nodes[i] = &chatNode{m: m, n: i, cable: cluster.CableForTest(t, m.cluster.Addr(i))}
		if dir := os.Getenv("GATEMESH_KEEP_LOGS"); dir != "" {
			f, err := os.Create(filepath.Join(dir, nodeName(i)+".log"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			m.nodes[i].keep = f
		}
		m.nodes[i].start()
	}
	t.Cleanup(func() {
		for _, n := range m.nodes {
			if t.Failed() {
				t.Logf("node %d, last lines:\n%s", n.n, n.lines())
			}
			n.end(syscall.SIGKILL)
		}
	})
	return m
}

// connect links what must be linked, and waits until all accounts are connected.
func (m *chatMesh) connect() {
	m.t.Helper()
	m.link()
	for _, inbox := range chatInboxes {
		m.await(0, inbox+" is connected", func(c chatConnected) bool { return c.inbox == inbox })
	}
}

// vendors starts the fakes. Slack sends again what was not acknowledged for longer than the real one, so that it outlasts every failover.
func (m *chatMesh) vendors() {
	var err error
	fail := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	m.slack, err = slacktest.Start(slacktest.Config{AckWithin: time.Second, Retries: []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second}})
	fail(err)
	m.t.Cleanup(func() { _ = m.slack.Close() })
	m.discord, err = discordtest.New("discord-token-of-this-test")
	fail(err)
	m.t.Cleanup(func() { _ = m.discord.Close() })
	m.t.Setenv(whatsapp.TestVendors, "1")
	m.whatsapp, err = whatsapptest.Start("127.0.0.1:0")
	fail(err)
	m.t.Cleanup(m.whatsapp.Close)
}

func (n *chatNode) config() string {
	m := n.m
	return fmt.Sprintf(`{
  mesh: { gateway: %q, dataDir: %q, consul: { address: %q }, channelKeys: [%q], log: { json: true, level: "debug" },
    policy: { default: "allow" } },
  gateway: { port: 0, auth: { mode: "none" } },
  agents: { list: [{ id: "echo", runner: "echo", gateways: ["node-0", "node-1", "node-2"] }] },
  channels: { slack: %s, discord: { token: %q, baseUrl: %q }, whatsapp: %s, webchat: {} },
}`, nodeName(n.n), filepath.Join(m.dir, nodeName(n.n)), n.cable.Addr(), m.key, m.slack.Settings(), m.discord.Token, m.discord.URL, m.whatsapp.Settings())
}

func (n *chatNode) start() {
	m := n.m
	m.t.Helper()
	file := filepath.Join(m.dir, nodeName(n.n)+".json")
	if err := os.WriteFile(file, []byte(n.config()), 0o600); err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(m.binary, "gateway", "--config", file)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CONSUL_") && !strings.HasPrefix(kv, "NOMAD_") && !strings.HasPrefix(kv, "GATEMESH_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, whatsapp.TestVendors+"=1")
	log, err := cmd.StderrPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	up := make(chan struct{})
	n.cmd, n.gone = cmd, make(chan struct{})
	go func() {
		defer close(n.gone)
		n.read(log, up)
		_ = cmd.Wait()
	}()
	select {
	case <-up:
	case <-n.gone:
		m.t.Fatalf("node %d ended at its start:\n%s", n.n, n.lines())
	case <-time.After(60 * time.Second):
		m.t.Fatalf("node %d is not up:\n%s", n.n, n.lines())
	}
}

// read follows the log.
func (n *chatNode) read(log io.Reader, up chan struct{}) {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l struct {
			Message string    `json:"@message"`
			Level   string    `json:"@level"`
			At      time.Time `json:"@timestamp"`
			Reason  string    `json:"reason"`
			To      string    `json:"to"`
			URL     string    `json:"url"`
			Window  float64   `json:"window_ms"`
		}
		if json.Unmarshal(lines.Bytes(), &l) != nil {
			continue // cut short by a kill
		}
		if n.keep != nil {
			_, _ = fmt.Fprintln(n.keep, lines.Text())
		}
		if l.Level != "debug" {
			n.mu.Lock()
			n.last = append(n.last[max(0, len(n.last)-100):], lines.Text())
			n.mu.Unlock()
		}
		switch {
		case l.URL != "" && l.Message == "gateway is up":
			n.mu.Lock()
			n.url = l.URL
			n.mu.Unlock()
			close(up)
		case l.Message == gateway.EventChannel && strings.HasPrefix(l.Reason, string(gateway.ChannelConnected)):
			n.m.note(func() { n.m.connected = append(n.m.connected, chatConnected{l.To, n.n, l.At}) })
		case l.Window > 0:
			n.m.note(func() { n.m.windows = append(n.m.windows, time.Duration(l.Window*float64(time.Millisecond))) })
		}
	}
}

func (n *chatNode) lines() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.last, "\n")
}

func (n *chatNode) address() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.url
}

// end ends the process, and waits.
func (n *chatNode) end(sig syscall.Signal) {
	_ = n.cmd.Process.Signal(syscall.SIGCONT)
	_ = n.cmd.Process.Signal(sig)
	<-n.gone
}

func (m *chatMesh) note(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *chatMesh) mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.connected)
}

// await returns the first connection from a mark on that fits.
func (m *chatMesh) await(from int, what string, fits func(chatConnected) bool) chatConnected {
	m.t.Helper()
	deadline := time.After(90 * time.Second)
	for {
		m.mu.Lock()
		for ; from < len(m.connected); from++ {
			if c := m.connected[from]; fits(c) {
				m.mu.Unlock()
				return c
			}
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			m.t.Fatalf("still not: %s", what)
		}
	}
}

// api asks a gateway; a status of 400 or more is an error.
func (n *chatNode) api(method, path, body string, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.address()+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(b))
	}
	return json.Unmarshal(b, into)
}

// link has a person link the account of WhatsApp with a phone, through whichever gateway owns it.
func (m *chatMesh) link() {
	m.t.Helper()
	linked := make(chan error, 1)
	soonOr(m.t, "no code to link WhatsApp with", func() bool {
		for _, n := range m.nodes {
			var r gateway.PairResponse
			if n.api(http.MethodPost, "/v1/channels/channel-whatsapp-default/pair", "{}", &r) == nil && r.Code != nil {
				go func() { linked <- m.whatsapp.Scan(m.t.Context(), r.Code.Code, chatBot) }()
				return true
			}
		}
		return false
	})
	if err := <-linked; err != nil {
		m.t.Fatal(err)
	}
}

// owner is who has an account by the latest term that any gateway knows: one that was in trouble a moment ago may not have heard of it.
func (m *chatMesh) owner(inbox string) (node int, token uint64) {
	m.t.Helper()
	soonOr(m.t, "nobody owns "+inbox, func() bool {
		node, token = 0, 0
		for _, n := range m.nodes {
			var r gateway.OwnersResponse
			if n.api(http.MethodGet, "/v1/owners", "", &r) != nil {
				continue
			}
			for _, o := range r.Owners {
				var at int
				if _, err := fmt.Sscanf(o.Owner, "node-%d", &at); err == nil && o.Duty == inbox && o.Token > token {
					node, token = at, o.Token
				}
			}
		}
		return token > 0
	})
	return node, token
}

// place has an operator move an account to a node, and waits until it is connected there.
func (m *chatMesh) place(inbox string, to int) {
	m.t.Helper()
	was, _ := m.owner(inbox)
	if was == to {
		return
	}
	from := m.mark()
	if m.pin(inbox, to) {
		m.await(from, inbox+" is moved", func(c chatConnected) bool { return c.inbox == inbox && c.node == to })
	}
}

// pin has an operator move an account to a node, where it stays. It is false when it was there before anybody moved it.
func (m *chatMesh) pin(inbox string, to int) bool {
	m.t.Helper()
	there := false
	soonOr(m.t, "nobody moves "+inbox, func() bool {
		var c bus.OwnerChange
		err := m.nodes[to].api(http.MethodPost, "/v1/owners/"+inbox+"/transfer", fmt.Sprintf(`{"to":%q,"by":"test"}`, nodeName(to)), &c)
		if err != nil { // refused, because it is there by now, or because it cannot be yet
			now, _ := m.owner(inbox)
			there = now == to
		}
		return err == nil || there
	})
	return !there
}

// fail ends the owner of an account, waits until another one holds its connection, and brings everything back.
func (m *chatMesh) fail(kind, inbox string) {
	m.t.Helper()
	leader, err := m.cluster.Leader(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	to := m.rng.IntN(3)
	if kind == failNode && to == leader {
		to = (to + 1 + m.rng.IntN(2)) % 3
	}
	m.place(inbox, to)
	// Checks, timers and what is under way do not stand at the same place each time.
	<-time.After(time.Duration(300+m.rng.IntN(1200)) * time.Millisecond)
	was, _ := m.owner(inbox)
	n := m.nodes[was]
	from := m.mark()
	for _, p := range m.people {
		if p.inbox == inbox {
			p.burst()
		}
	}
	at := time.Now()
	switch kind {
	case failGraceful:
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
	case failCrash:
		_ = n.cmd.Process.Kill()
	case failNode:
		if err := m.cluster.Kill(was); err != nil {
			m.t.Fatal(err)
		}
		_ = n.cmd.Process.Kill()
	case failStop:
		_ = n.cmd.Process.Signal(syscall.SIGSTOP)
	case failCut:
		n.cable.Set(cluster.CableHangs)
	}
	next := m.await(from, fmt.Sprintf("another one than node %d holds %s after %s", was, inbox, kind), func(c chatConnected) bool {
		return c.inbox == inbox && c.node != was && c.at.After(at)
	})
	m.took[kind] = append(m.took[kind], next.at.Sub(at))
	m.t.Logf("%s of node %d with %s: connected again on node %d after %s", kind, was, inbox, next.node, next.at.Sub(at).Round(time.Millisecond))
	switch kind {
	case failStop:
		_ = n.cmd.Process.Signal(syscall.SIGCONT)
	case failCut:
		n.cable.Set(cluster.CableWhole)
	default:
		<-n.gone
		if kind == failNode {
			if err := m.cluster.Restart(m.t.Context(), was); err != nil {
				m.t.Fatal(err)
			}
			soonOr(m.t, "not all servers vote again", func() bool { return voting(m.cluster.Addr(was)) == len(m.nodes) })
		}
		n.start()
	}
	soonOr(m.t, fmt.Sprintf("node %d is not ready again", was), func() bool {
		var r struct{ Status string }
		return n.api(http.MethodGet, "/ready", "", &r) == nil
	})
}
