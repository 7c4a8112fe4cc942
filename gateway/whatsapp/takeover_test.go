package whatsapp_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/whatsapp"
	"github.com/gatemesh/gatemesh/gateway/whatsapp/whatsapptest"
)

const (
	botPhone = "491700000001"
	annPhone = "491700000002"
	bobPhone = "491700000003"
)

// longest bounds every wait: what does not come by then does not come.
const longest = 10 * time.Second

// within is a context that ends with the wait.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	t.Cleanup(cancel)
	return ctx
}

// desk is an ingress that keeps what it is told.
type desk struct {
	mu      sync.Mutex
	events  []gateway.ChannelEvent
	states  []gateway.ChannelStatus
	foreign []string
	refuse  error
	changed chan struct{}
}

func newDesk() *desk { return &desk{changed: make(chan struct{})} }

func (d *desk) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *desk) Accept(_ context.Context, e gateway.ChannelEvent) (err error) {
	d.change(func() {
		if err = d.refuse; err == nil {
			d.events = append(d.events, e)
		}
	})
	return err
}
func (d *desk) Status(s gateway.ChannelStatus) { d.change(func() { d.states = append(d.states, s) }) }
func (d *desk) Foreign(s string)               { d.change(func() { d.foreign = append(d.foreign, s) }) }

// until waits for what the desk was told.
func (d *desk) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := time.NewTimer(longest)
	defer late.Stop()
	for {
		d.mu.Lock()
		done, changed := ok(), d.changed
		d.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-late.C:
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Fatalf("waited in vain for %s; states %v, events %v", what, d.states, d.events)
		}
	}
}

func (d *desk) state(s gateway.ChannelState) func() bool {
	return func() bool { return len(d.states) > 0 && d.states[len(d.states)-1].State == s }
}

func (d *desk) texts() []string {
	var out []string
	for _, e := range d.events {
		out = append(out, e.Text)
	}
	return out
}

// owner is one gateway that has the account.
type owner struct {
	*desk
	ch     gateway.Channel
	cancel context.CancelFunc
	ended  chan error
}

func newServer(t testing.TB) *whatsapptest.Server {
	t.Helper()
	s, err := whatsapptest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func newChannel(t testing.TB, settings []byte, v gateway.Vault) gateway.Channel {
	t.Helper()
	ch, err := whatsapp.Factory().New(gateway.ChannelDeps{Account: "default", Settings: settings, Vault: v, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// own runs the account until the test ends or stop is called.
func own(t testing.TB, s *whatsapptest.Server, v gateway.Vault) *owner {
	t.Helper()
	return ownWith(t, s.Settings(), v)
}

func ownWith(t testing.TB, settings []byte, v gateway.Vault) *owner {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o := &owner{desk: newDesk(), ch: newChannel(t, settings, v), cancel: cancel, ended: make(chan error, 1)}
	go func() { o.ended <- o.ch.Run(ctx, o) }()
	t.Cleanup(func() { cancel() })
	return o
}

// end waits for Run to end by itself.
func (o *owner) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-o.ended:
		return err
	case <-time.After(longest):
		t.Fatalf("Run does not end by itself; %+v", o.states)
		return nil
	}
}

// stop ends Run, which it must within a second.
func (o *owner) stop(t testing.TB) error {
	t.Helper()
	o.cancel()
	select {
	case err := <-o.ended:
		return err
	case <-time.After(time.Second):
		t.Fatal("Run did not end within a second")
		return nil
	}
}

func (o *owner) connected(t testing.TB) *owner {
	t.Helper()
	o.until(t, "a connection", o.state(gateway.ChannelConnected))
	return o
}

func post(to gateway.ChannelPeer, text string) gateway.Post {
	return gateway.Post{ID: uuid.NewString(), To: gateway.PostTarget{Peer: to}, Text: text, Check: func() error { return nil }, Since: time.Now()}
}

func dm(phone string) gateway.ChannelPeer {
	return gateway.ChannelPeer{Kind: gateway.PeerDM, ID: phone + "@s.whatsapp.net"}
}

func person(t testing.TB, s *whatsapptest.Server, phone string) *whatsapptest.Person {
	t.Helper()
	p, err := s.Person(within(t), phone)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// bot links the account and returns its store.
func bot(t testing.TB, s *whatsapptest.Server) *whatsapptest.Store {
	t.Helper()
	store := whatsapptest.NewStore()
	if err := s.Link(within(t), botPhone, s.Settings(), store.Own()); err != nil {
		t.Fatal(err)
	}
	return store
}

func say(t testing.TB, p *whatsapptest.Person, to gateway.ChannelPeer, text string) string {
	t.Helper()
	id, err := p.Say(within(t), to, text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustPost(t testing.TB, o *owner, p gateway.Post) gateway.Posted {
	t.Helper()
	posted, err := o.ch.Post(within(t), p)
	if err != nil {
		t.Fatal(err)
	}
	return posted
}

func hears(t testing.TB, p *whatsapptest.Person, texts ...string) {
	t.Helper()
	if err := p.Wait(within(t), len(texts)); err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range p.Heard() {
		have = append(have, e.Text)
	}
	if !slices.Equal(have, texts) {
		t.Fatalf("%s heard %q, not %q", p.Phone, have, texts)
	}
}

func (o *owner) hears(t testing.TB, texts ...string) {
	t.Helper()
	o.until(t, strings.Join(texts, ", "), func() bool { return len(o.events) >= len(texts) })
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Equal(o.texts(), texts) {
		t.Fatalf("heard %q, not %q", o.texts(), texts)
	}
}

// A successor goes on with the same session, in both directions; who was deposed cannot send, and nothing of it leaves.
func TestTakeover(t *testing.T) {
	s := newServer(t)
	ann := person(t, s, annPhone)
	store := bot(t, s)
	a := own(t, s, store.Own()).connected(t)
	for _, text := range []string{"one", "two"} {
		say(t, ann, dm(botPhone), text)
	}
	a.hears(t, "one", "two")
	mustPost(t, a, post(dm(annPhone), "first"))
	hears(t, ann, "first")

	// a is dropped without warning: it keeps its connection and what it has in memory.
	v := store.Own()
	sent := len(s.Sent(botPhone))
	_, err := a.ch.Post(within(t), post(dm(annPhone), "from the deposed"))
	if !errors.Is(err, bus.ErrDeposed) {
		t.Fatalf("the deposed owner's post: %v", err)
	}
	var not *gateway.NotSentError
	if !errors.As(err, &not) {
		t.Errorf("the deposed owner's post is not said to be not sent: %v", err)
	}
	if now := len(s.Sent(botPhone)); now != sent {
		t.Fatalf("the deposed owner sent %d messages", now-sent)
	}

	b := own(t, s, v).connected(t)
	say(t, ann, dm(botPhone), "three")
	b.hears(t, "three")
	mustPost(t, b, post(dm(annPhone), "second"))
	hears(t, ann, "first", "second")
	say(t, ann, dm(botPhone), "four")
	b.hears(t, "three", "four")
	if err := b.stop(t); err != nil {
		t.Error(err)
	}
	if err := a.stop(t); err != nil && !errors.Is(err, bus.ErrDeposed) {
		t.Error(err)
	}
}
