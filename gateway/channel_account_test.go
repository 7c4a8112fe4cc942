package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// refusedAccount is an account whose vendor refuses its credentials until ok says otherwise.
type refusedAccount struct {
	*script
	ok   func() bool
	runs atomic.Int32
}

func (r *refusedAccount) Run(ctx context.Context, in Ingress) error {
	r.runs.Add(1)
	if r.ok() {
		return r.script.Run(ctx, in)
	}
	return BadCredentials("switch it on", errors.New("not allowed"))
}

// linked is one that a person links.
type linked struct{ *refusedAccount }

func (linked) Pair(context.Context, func(PairingCode)) error { return nil }
func (linked) Logout(context.Context) error                  { return nil }

func accountOf(t testing.TB, ch Channel) *account {
	t.Helper()
	f := ChannelFactory{New: func(ChannelDeps) (Channel, error) { return ch, nil }}
	g, err := New(parseChannels(t, "one", config{"channels": config{"test": config{}}}), Deps{Store: newStore(t), Channels: map[string]ChannelFactory{"test": f}, Runners: runners(nil)})
	if err != nil {
		t.Fatal(err)
	}
	return g.accounts["channel-test-default"]
}

// What was refused may be mended at the vendor alone: it is tried again after some minutes. Where a person is needed, that one is waited for.
func TestRefusedCredentialsAreTriedAgain(t *testing.T) {
	for name, person := range map[string]bool{"token": false, "person": true} {
		t.Run(name, func(t *testing.T) {
			r := &refusedAccount{script: &script{in: make(chan Ingress, 1)}, ok: func() bool { return false }}
			var ch Channel = r
			if person {
				ch = linked{r}
			}
			a := accountOf(t, ch)
			synctest.Test(t, func(t *testing.T) {
				a.changed, a.again = make(chan struct{}), make(chan struct{}, 1) // of this bubble
				now := *a.now.Load()
				now.replaced = make(chan struct{})
				a.now.Store(&now)
				ctx, end := context.WithCancel(t.Context())
				over := make(chan error, 1)
				go func() { over <- a.connect(ctx, nil) }()
				time.Sleep(credentialsAgain - time.Second)
				synctest.Wait()
				if len(over) != 0 {
					t.Fatal("too early: vendors lock out who insists")
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if again := len(over) == 1; again == person {
					t.Fatalf("tried again: %v", again)
				}
				if person {
					a.tryAgain()
				}
				if err := <-over; !errors.Is(err, errTryAgain) {
					t.Error(err)
				}
				end()
			})
		})
	}
}

// After a reload it is tried at once, also with the same settings: what was wrong was mended elsewhere.
func TestReloadTriesRefusedCredentials(t *testing.T) {
	var ok atomic.Bool
	r := &refusedAccount{script: &script{in: make(chan Ingress, 1)}, ok: ok.Load}
	f := ChannelFactory{New: func(ChannelDeps) (Channel, error) { return r, nil }}
	cfg := func() *Config { return parseChannels(t, "one", config{"channels": config{"test": config{}}}) }
	n := startNode(t, cfg(), Deps{Store: newStore(t), Channels: map[string]ChannelFactory{"test": f}, Runners: runners(nil)})
	a := n.accounts["channel-test-default"]
	n.accountIs(a, ChannelLoggedOut)
	ok.Store(true)
	if _, _, err := n.Reload(cfg()); err != nil {
		t.Fatal(err)
	}
	await(t, r.in, "the connection")
	n.accountIs(a, ChannelConnected)
	var list ChannelsResponse
	n.do(http.MethodGet, "/v1/channels", "").into(t, &list)
	if !strings.Contains(list.Channels[0].LastError, "switch it on") {
		t.Errorf("what went wrong under this ownership is forgotten: %+v", list.Channels[0])
	}
}

// accountIs waits for a state.
func (n *node) accountIs(a *account, s ChannelState) {
	n.t.Helper()
	ctx := within(n.t)
	for {
		a.mu.Lock()
		now, changed := a.status.State, a.changed
		a.mu.Unlock()
		if now == s {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			n.t.Fatalf("the account is %s, not %s", now, s)
		}
	}
}

// failing ends its first connections with an error.
type failing struct {
	*script
	left atomic.Int32
}

func (f *failing) Run(ctx context.Context, in Ingress) error {
	if n := f.left.Add(-1); n >= 0 {
		in.Foreign(fmt.Sprintf("of before %d", n))
		return errors.New("banned for some time")
	}
	return f.script.Run(ctx, in)
}

// A connection that fails is begun again under the same ownership, and what was seen before stays to be seen.
func TestStatusOutlivesAConnection(t *testing.T) {
	ch := &failing{script: &script{in: make(chan Ingress, 1)}}
	ch.left.Store(1)
	f := ChannelFactory{New: func(ChannelDeps) (Channel, error) { return ch, nil }}
	n := startNode(t, parseChannels(t, "one", config{"channels": config{"test": config{}}}), Deps{Store: newStore(t), Channels: map[string]ChannelFactory{"test": f}, Runners: runners(nil)})
	await(t, ch.in, "the connection")
	n.accountIs(n.accounts["channel-test-default"], ChannelConnected)
	var list ChannelsResponse
	n.do(http.MethodGet, "/v1/channels", "").into(t, &list)
	if s := list.Channels[0]; s.Foreign == "" || !strings.Contains(s.LastError, "banned") {
		t.Errorf("%+v", s)
	}
}
