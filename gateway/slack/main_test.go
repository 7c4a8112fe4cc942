package slack

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// longest bounds every wait; nothing is expected to come near it.
const longest = 20 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	t.Cleanup(cancel)
	return ctx
}

// quick are the adapter's waits in tests: nothing that a test does not ask for happens by itself.
func quick() timings {
	return timings{
		firstPause: time.Millisecond, longestPause: 20 * time.Millisecond, settled: time.Hour, hello: 5 * time.Second,
		ping: time.Hour, pong: time.Hour, linger: 10 * time.Millisecond, grace: time.Hour, probe: time.Hour,
		goodbye: 200 * time.Millisecond, accept: longest,
	}
}

func newSlack(t testing.TB, cfg slacktest.Config) *slacktest.Server {
	t.Helper()
	s, err := slacktest.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the fake: %v", err)
		}
	})
	return s
}

// logBuffer holds an adapter's log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// bot is an adapter under test and what the mesh heard of it.
type bot struct {
	*account
	t    testing.TB
	log  *logBuffer
	done chan error // what Run returned
	stop context.CancelFunc

	mu       sync.Mutex
	changed  chan struct{}
	accept   func(context.Context, gateway.ChannelEvent) error
	accepted []gateway.ChannelEvent
	statuses []gateway.ChannelStatus
	foreign  []string
}

func newBot(t testing.TB, settings json.RawMessage, tm timings) *bot {
	t.Helper()
	b := &bot{t: t, log: &logBuffer{}, changed: make(chan struct{}), done: make(chan error, 1)}
	var err error
	b.account, err = open(gateway.ChannelDeps{
		Account: "default", Settings: settings, Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: b.log}),
	}, tm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the adapter:\n%s", b.log)
		}
	})
	return b
}

// start runs it until the test ends.
func (b *bot) start() *bot {
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.done <- b.Run(ctx, b)
	}()
	b.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return b
}

// connected waits until it is.
func (b *bot) connected() *bot {
	b.t.Helper()
	b.until("connected", func() bool {
		return b.state() == gateway.ChannelConnected
	})
	return b
}

// state is the last status told; the lock is held.
func (b *bot) state() gateway.ChannelState {
	if n := len(b.statuses); n > 0 {
		return b.statuses[n-1].State
	}
	return ""
}

func (b *bot) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.changed)
	b.changed = make(chan struct{})
}

// Accept implements gateway.Ingress.
func (b *bot) Accept(ctx context.Context, e gateway.ChannelEvent) error {
	b.mu.Lock()
	accept := b.accept
	b.mu.Unlock()
	if accept != nil {
		if err := accept(ctx, e); err != nil {
			return err
		}
	}
	b.set(func() { b.accepted = append(b.accepted, e) })
	return nil
}

// Status implements gateway.Ingress.
func (b *bot) Status(s gateway.ChannelStatus) {
	b.set(func() { b.statuses = append(b.statuses, s) })
}

// Foreign implements gateway.Ingress.
func (b *bot) Foreign(detail string) {
	b.set(func() { b.foreign = append(b.foreign, detail) })
}

// until waits until ok, which is called with the lock held.
func (b *bot) until(what string, ok func() bool) {
	b.t.Helper()
	ctx := within(b.t)
	for {
		b.mu.Lock()
		yes, changed := ok(), b.changed
		b.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			b.t.Fatalf("waited in vain: %s (accepted %+v, statuses %+v, foreign %v)", what, b.accepted, b.statuses, b.foreign)
		}
	}
}

// events waits for n events.
func (b *bot) events(n int) []gateway.ChannelEvent {
	b.t.Helper()
	b.until("events", func() bool { return len(b.accepted) >= n })
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]gateway.ChannelEvent(nil), b.accepted...)
}

// alarms are the foreign connections it told of.
func (b *bot) alarms() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.foreign...)
}

// until waits for something on the fake's side.
func until(t testing.TB, s *slacktest.Server, what string, ok func() bool) {
	t.Helper()
	if err := s.Until(within(t), ok); err != nil {
		t.Fatalf("waited in vain: %s", what)
	}
}

// ended waits for the end of Run.
func (b *bot) ended() error {
	b.t.Helper()
	select {
	case err := <-b.done:
		return err
	case <-within(b.t).Done():
		b.t.Fatal("Run does not end")
		return nil
	}
}

// noSecret fails if a text shows one of the fake's tokens, or a connection's ticket.
func noSecret(t testing.TB, s *slacktest.Server, text string) {
	t.Helper()
	for _, secret := range []string{s.AppToken(), s.BotToken(), "ticket="} {
		if strings.Contains(text, secret) {
			t.Errorf("shows %q: %s", secret, text)
		}
	}
}
