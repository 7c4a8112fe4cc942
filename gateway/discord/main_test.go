package discord

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/discord/discordtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// longest bounds every wait; nothing is expected to come near it.
	longest = 20 * time.Second
	// canary is the bot's token. The fake repeats it in whatever it can.
	canary = "CANARY-token.of-the.bot"
)

var quick = timing{
	retry: 5 * time.Millisecond, most: 50 * time.Millisecond, pause: 2 * time.Millisecond, begin: time.Millisecond, steady: time.Minute,
	save: 5 * time.Millisecond, watch: 10 * time.Millisecond, silent: 5 * time.Second,
}

// bed is one account at the fake.
type bed struct {
	t     *testing.T
	fake  *discordtest.Server
	vault gateway.Vault
	log   *safeBuffer
	time  timing
}

func newBed(t *testing.T) *bed {
	t.Helper()
	fake, err := discordtest.New(canary)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, fake: fake, log: &safeBuffer{}, time: quick}
	t.Cleanup(func() {
		if err := fake.Close(); err != nil {
			t.Error(err)
		}
		b.noSecret(b.log.String())
	})
	return b
}

// noSecret fails the test when a text has the token in it.
func (b *bed) noSecret(text string) {
	b.t.Helper()
	if strings.Contains(text, canary) {
		b.t.Errorf("the token is shown: %s", text)
	}
}

func (b *bed) open() *channel {
	b.t.Helper()
	settings, err := json.Marshal(Settings{Token: canary, BaseURL: b.fake.URL})
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := open(gateway.ChannelDeps{
		Account: "default", Settings: settings, Vault: b.vault, Logger: hclog.New(&hclog.LoggerOptions{Output: b.log, Level: hclog.Trace}),
	}, b.time)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// run is a channel that runs.
type run struct {
	*channel
	*ingress
	stop func() error // ends it and returns what Run returned
}

func (b *bed) run() *run {
	b.t.Helper()
	return b.runWith(newIngress(b))
}

func (b *bed) runWith(in *ingress) *run {
	b.t.Helper()
	c := b.open()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- c.Run(ctx, in) }()
	var once sync.Once
	var err error
	r := &run{channel: c, ingress: in, stop: func() error {
		once.Do(func() {
			cancel()
			select {
			case err = <-result:
			case <-time.After(time.Second):
				b.t.Error("Run did not end within a second")
				err = <-result
			}
			if err != nil {
				b.noSecret(err.Error())
			}
		})
		return err
	}}
	b.t.Cleanup(func() { _ = r.stop() })
	return r
}

// connected runs and waits for the connection.
func (b *bed) connected() *run {
	b.t.Helper()
	r := b.run()
	r.until(gateway.ChannelConnected)
	return r
}

// ingress takes everything in, unless fail says otherwise.
type ingress struct {
	b       *bed
	mu      sync.Mutex
	fail    func(context.Context, gateway.ChannelEvent) error
	events  []gateway.ChannelEvent
	states  []gateway.ChannelStatus
	foreign []string
}

func newIngress(b *bed) *ingress { return &ingress{b: b} }

func (i *ingress) Accept(ctx context.Context, e gateway.ChannelEvent) error {
	i.mu.Lock()
	fail := i.fail
	i.mu.Unlock()
	if fail != nil {
		if err := fail(ctx, e); err != nil {
			return err
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.events = append(i.events, e)
	return nil
}

func (i *ingress) Status(s gateway.ChannelStatus) {
	i.b.noSecret(s.Detail)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.states = append(i.states, s)
}

func (i *ingress) Foreign(detail string) {
	i.b.noSecret(detail)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.foreign = append(i.foreign, detail)
}

func (i *ingress) setFail(f func(context.Context, gateway.ChannelEvent) error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fail = f
}

func (i *ingress) alarms() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.foreign)
}

// times counts how often a state was told.
func (i *ingress) times(s gateway.ChannelState) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := 0
	for _, is := range i.states {
		if is.State == s {
			n++
		}
	}
	return n
}

func (i *ingress) until(s gateway.ChannelState) {
	i.b.t.Helper()
	eventually(i.b.t, "the state "+string(s), func() bool { return i.times(s) > 0 })
}

// ids are the events' ids, each once, in the order of the first arrival.
func (i *ingress) ids() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var ids []string
	for _, e := range i.events {
		if !slices.Contains(ids, e.ID) {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

// want waits for these events, each at least once, in this order.
func (i *ingress) want(ids ...string) {
	i.b.t.Helper()
	eventually(i.b.t, "all events", func() bool { return len(i.ids()) >= len(ids) })
	if got := i.ids(); !slices.Equal(got, ids) {
		i.b.t.Fatalf("events %v, want %v", got, ids)
	}
}

func (i *ingress) find(id string) gateway.ChannelEvent {
	i.b.t.Helper()
	var found gateway.ChannelEvent
	eventually(i.b.t, "the event "+id, func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		for _, e := range i.events {
			if e.ID == id {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// eventually polls, with a deadline.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(longest), time.NewTicker(2*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v for %s", longest, what)
		}
	}
}

// memoryVault is a vault for one process.
type memoryVault struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (v *memoryVault) Get(_ context.Context, name string) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.m[name], nil
}

func (v *memoryVault) List(context.Context, string) (map[string][]byte, error) {
	return nil, errors.New("not used")
}

func (v *memoryVault) Write(_ context.Context, values map[string][]byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k, b := range values {
		if v.m == nil {
			v.m = map[string][]byte{}
		}
		v.m[k] = b
	}
	return nil
}

// saved is the position in the vault.
func (v *memoryVault) saved() position {
	v.mu.Lock()
	defer v.mu.Unlock()
	var p position
	_ = json.Unmarshal(v.m[vaultName], &p)
	return p
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func allowed() error { return nil }

// newPost is a post to the room General.
func newPost(text string) gateway.Post {
	return gateway.Post{
		ID: uuid.NewString(), To: gateway.PostTarget{Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: discordtest.General}},
		Text: text, Check: allowed, Since: time.Now(),
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	t.Cleanup(cancel)
	return ctx
}
