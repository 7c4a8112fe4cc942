package channeltest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/gateway"
)

// longest bounds every wait; nothing is expected to come near it.
const longest = 30 * time.Second

// Run holds an adapter to what [gateway.Channel] promises. The caller's TestMain looks for goroutines that are left.
func Run(t *testing.T, a Adapter) {
	for name, f := range map[string]func(*testing.T, Adapter){
		"TakenIn": takenIn, "Refused": refused, "Redelivered": redelivered, "Reconnects": reconnects, "Outcomes": outcomes, "Check": check, "Credentials": credentials,
	} {
		t.Run(name, func(t *testing.T) { f(t, a) })
	}
}

// connection is an adapter that runs against a fake.
type connection struct {
	t       *testing.T
	v       Vendor
	channel gateway.Channel
	log     *syncBuffer
	end     context.CancelFunc
	over    chan error

	mu     sync.Mutex
	events []gateway.ChannelEvent
	state  gateway.ChannelStatus
	// refuse makes Accept fail that often.
	refuse  int
	changed chan struct{}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Accept implements gateway.Ingress.
func (c *connection) Accept(_ context.Context, e gateway.ChannelEvent) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.changedLocked()
	if c.refuse > 0 {
		c.refuse--
		return errors.New("the store does not answer")
	}
	c.events = append(c.events, e)
	return nil
}

// Status implements gateway.Ingress.
func (c *connection) Status(s gateway.ChannelStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = s
	c.changedLocked()
}

// Foreign implements gateway.Ingress.
func (c *connection) Foreign(string) {}

func (c *connection) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// open starts an adapter and waits until it says that it is connected.
func open(t *testing.T, a Adapter) *connection {
	t.Helper()
	c := start(t, a, a.Vendor(t))
	c.until("connected", func() bool { return c.state.State == gateway.ChannelConnected })
	return c
}

func start(t *testing.T, a Adapter, v Vendor) *connection {
	t.Helper()
	c := &connection{t: t, v: v, log: &syncBuffer{}, over: make(chan error, 1), changed: make(chan struct{})}
	var vault gateway.Vault
	if a.Vault != nil {
		vault = a.Vault(t, v)
	}
	var err error
	if c.channel, err = a.Factory.New(gateway.ChannelDeps{
		Account: "default", Settings: v.Settings(), Vault: vault,
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: c.log}),
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.end = cancel
	go func() { c.over <- c.channel.Run(ctx, c) }()
	t.Cleanup(c.close)
	return c
}

// close ends the connection as the end of a term does, and looks for tokens in the log.
func (c *connection) close() {
	c.end()
	began := time.Now()
	select {
	case err := <-c.over:
		if err != nil && !gateway.IsBadCredentials(err) {
			c.t.Errorf("Run at the end of its term: %v", err)
		}
		if d := time.Since(began); d > time.Second {
			c.t.Errorf("Run took %s to end, at most 1s", d)
		}
	case <-time.After(longest):
		c.t.Error("Run does not end")
	}
	c.clean("the log", c.log.String())
}

func (c *connection) clean(where, text string) {
	for _, secret := range c.v.Secrets() {
		if secret != "" && strings.Contains(text, secret) {
			c.t.Errorf("%s shows a secret", where)
		}
	}
}

// until waits for something that is told by the adapter or seen at the vendor.
func (c *connection) until(what string, fits func() bool) {
	c.t.Helper()
	deadline := time.After(longest)
	tick := time.NewTicker(20 * time.Millisecond) // the fake has no word for what it saw
	defer tick.Stop()
	for {
		c.mu.Lock()
		ok, changed := fits(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-deadline:
			c.t.Fatalf("waited in vain for: %s (state %+v)\n%s", what, c.state, c.log)
		}
	}
}

// has counts the events with an id; c.mu is held.
func (c *connection) has(id string) (n int) {
	for _, e := range c.events {
		if e.ID == id {
			n++
		}
	}
	return n
}

func (c *connection) peer() gateway.ChannelPeer {
	for _, kind := range []string{gateway.PeerDM, gateway.PeerChannel, gateway.PeerGroup} {
		if p, ok := c.v.Peer(kind); ok {
			return p
		}
	}
	c.t.Fatal("the vendor has nobody to talk to")
	panic("not reached")
}

// takenIn: what is said in each kind of place comes in whole, and the vendor hears "got it".
func takenIn(t *testing.T, a Adapter) {
	c := open(t, a)
	for _, kind := range []string{gateway.PeerDM, gateway.PeerGroup, gateway.PeerChannel} {
		p, ok := c.v.Peer(kind)
		if !ok {
			continue
		}
		id := c.v.Say(Said{Peer: p, Text: "hello " + kind, Mention: kind != gateway.PeerDM})
		c.until("the event of a "+kind, func() bool { return c.has(id) > 0 })
		c.mu.Lock()
		e := c.events[slices.IndexFunc(c.events, func(e gateway.ChannelEvent) bool { return e.ID == id })]
		c.mu.Unlock()
		if !strings.Contains(e.Text, "hello "+kind) || e.Peer.Kind != kind || !e.Mentioned || e.Sender.ID == "" || e.At.IsZero() {
			t.Errorf("%s: %+v", kind, e)
		}
		if _, ok := c.v.Acknowledged(id); ok {
			c.until("the acknowledgement", func() bool { done, _ := c.v.Acknowledged(id); return done })
		}
	}
}

// refused: what was not taken in is not acknowledged, and comes again.
func refused(t *testing.T, a Adapter) {
	if !a.Acknowledges {
		t.Skip("the vendor has no word for it")
	}
	c := open(t, a)
	c.mu.Lock()
	c.refuse = 1
	c.mu.Unlock()
	id := c.v.Say(Said{Peer: c.peer(), Text: "hello"})
	c.until("the refusal", func() bool { return c.refuse == 0 })
	if done, _ := c.v.Acknowledged(id); done {
		t.Error("acknowledged what is not in the bus")
	}
	c.v.Redeliver(id)
	c.until("the event again", func() bool { return c.has(id) > 0 })
}

// redelivered: the same event has the same id, also on another connection.
func redelivered(t *testing.T, a Adapter) {
	c := open(t, a)
	id := c.v.Say(Said{Peer: c.peer(), Text: "hello"})
	c.until("the event", func() bool { return c.has(id) > 0 })
	before := c.v.Connects()
	c.v.Misbehave(FaultDrop)
	c.until("another connection", func() bool { return c.v.Connects() > before && c.state.State == gateway.ChannelConnected })
	c.v.Redeliver(id)
	next := c.v.Say(Said{Peer: c.peer(), Text: "next"})
	c.until("the next event", func() bool { return c.has(next) > 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.ID != id && e.ID != next {
			t.Errorf("an event of another id: %+v", e)
		}
	}
}

// reconnects: whatever becomes of the connection, what is said then comes in.
func reconnects(t *testing.T, a Adapter) {
	for _, f := range []Fault{FaultDrop, FaultInvalidSession, FaultGarbage} {
		t.Run(string(f), func(t *testing.T) {
			c := open(t, a)
			before := c.v.Connects()
			if !c.v.Misbehave(f) {
				t.Skip("the vendor's protocol has no such thing")
			}
			if f == FaultInvalidSession { // what is said before there is another one, some vendors keep for nobody
				c.until("another session", func() bool { return c.v.Connects() > before && c.state.State == gateway.ChannelConnected })
			}
			id := c.v.Say(Said{Peer: c.peer(), Text: "after " + string(f)})
			c.until("the event", func() bool { return c.has(id) > 0 })
		})
	}
}

// outcomes: what Post says of a failure is what happened.
func outcomes(t *testing.T, a Adapter) {
	for f, want := range map[Fault]string{
		"": "posted", FaultRateLimit: "not sent", FaultRejected: "rejected", FaultServer: "not posted", FaultLostReply: "unknown",
		FaultPostGarbage: "unknown", FaultSlow: "unknown",
	} {
		t.Run(string("fault "+f), func(t *testing.T) {
			c := open(t, a)
			if f != "" && !c.v.Misbehave(f) {
				t.Skip("the vendor's protocol has no such thing")
			}
			wait := longest
			if f == FaultSlow {
				wait = 2 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			p := c.post("answer")
			posted, err := c.channel.Post(ctx, p)
			var notSent *gateway.NotSentError
			got := "unknown"
			switch {
			case err == nil:
				got = "posted"
			case errors.As(err, &notSent):
				got = "not sent"
			case gateway.IsRejected(err):
				got = "rejected"
			}
			if err != nil {
				c.clean("the error", err.Error())
			}
			there := len(c.v.Posts())
			switch {
			case slices.Contains(a.Known, f): // the adapter may know better, but must be right
				if got == "posted" && there != 1 || got == "not sent" && there != 0 {
					t.Errorf("%s, and there are %d posts", got, there)
				}
			case want == "not posted" && got != "posted" && there == 0:
			case want == "not sent" && got == "posted" && there == 1: // it waited as long as the vendor wanted
			case got != want:
				t.Errorf("%s (%v), want %s", got, err, want)
			}
			if got == "posted" && posted.Ref == "" {
				t.Error("no reference")
			}
			if got == "posted" && there != 1 {
				t.Errorf("posted, and there are %d", there)
			}
		})
	}
}

func (c *connection) post(text string) gateway.Post {
	return gateway.Post{ID: uuid.NewString(), To: gateway.PostTarget{Peer: c.peer()}, Text: text, Check: func() error { return nil }, Since: time.Now()}
}

// check: nothing leaves when the gateway may not post any more.
func check(t *testing.T, a Adapter) {
	c := open(t, a)
	p := c.post("too late")
	deposed := errors.New("deposed")
	asked := 0
	p.Check = func() error { asked++; return deposed }
	before := c.v.Requests()
	_, err := c.channel.Post(t.Context(), p)
	var notSent *gateway.NotSentError
	if asked == 0 || !errors.As(err, &notSent) {
		t.Errorf("asked %d times: %v", asked, err)
	}
	if c.v.Requests() != before || len(c.v.Posts()) != 0 {
		t.Error("it left all the same")
	}
}

// credentials: an account that the vendor refuses waits for a person, and says how to mend it without showing what was refused.
func credentials(t *testing.T, a Adapter) {
	v := a.Vendor(t)
	if !v.Misbehave(FaultCredentials) {
		t.Skip("the vendor's protocol has no such thing")
	}
	c := start(t, a, v)
	select {
	case err := <-c.over:
		if !gateway.IsBadCredentials(err) {
			t.Errorf("Run: %v", err)
		} else {
			c.clean("the error", err.Error())
		}
		c.over <- nil
	case <-time.After(longest):
		t.Errorf("Run goes on with credentials that are refused; its log:\n%s", c.log)
	}
}
