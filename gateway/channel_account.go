package gateway

import (
	"bytes"
	"context"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// What an account's inbox takes.
const (
	// CapabilityEvent is what somebody said: the account sends it to itself, before the vendor hears "got it".
	CapabilityEvent = "channel.event"
	// CapabilityPost asks the account to post something by itself ([PostRequest]).
	CapabilityPost = "channel.post"
)

const (
	// channelUnique is how long the platform's id of an event counts after the event was handled.
	channelUnique = 24 * time.Hour
	// statusEvery is how often what an account is at is written down while it changes, at most.
	statusEvery = 2 * time.Second
	// maxEventBytes bounds an event as it lies in the store.
	maxEventBytes = 64 << 10
	// credentialsAgain is how long an account whose credentials were refused rests before they are tried again: what was wrong may be mended at the
	// vendor (a scope, an intent, Socket Mode), with the same token, and nothing here would tell. It is long, because vendors lock out who insists.
	credentialsAgain = 5 * time.Minute
)

// AccountStatus is what an account is at, as its owner last wrote it down.
type AccountStatus struct {
	Channel string `json:"channel"`
	Account string `json:"account"`
	Inbox   string `json:"inbox"`
	Gateway string `json:"gateway,omitempty"` // its owner when this was written
	ChannelStatus
	Since      envelope.Time `json:"since,omitzero"` // of the state
	LastEvent  envelope.Time `json:"last_event_at,omitzero"`
	LastPost   envelope.Time `json:"last_post_at,omitzero"`
	LastError  string        `json:"last_error,omitempty"`
	ErrorAt    envelope.Time `json:"last_error_at,omitzero"`
	Unknown    int           `json:"unknown,omitempty"` // posts since the start of the owner's term of which nobody knows
	Foreign    string        `json:"foreign,omitempty"`
	ForeignAt  envelope.Time `json:"foreign_at,omitzero"`
	DeniedLast string        `json:"denied,omitempty"` // the last event that was not answered on purpose, and why
}

// account is an account of a channel that this gateway may own. It is the handler of the account's inbox.
type account struct {
	g       *Gateway
	cfg     ChannelAccount // as it was at the start: its names, and where it may live
	now     atomic.Pointer[accountConfig]
	factory ChannelFactory
	keys    []cipher.AEAD
	log     hclog.Logger
	inbox   string

	mu     sync.Mutex
	status AccountStatus
	term   uint64 // whose status it is
	// live is the connection of the term of now; nil: none. changed is closed and replaced whenever it or the status changes.
	live    *liveChannel
	changed chan struct{}
	// again wakes an account whose credentials were refused (capacity 1).
	again chan struct{}
	// code is what a person scans now. It is never written down.
	code    *PairingCode
	pairing bool

	patience time.Duration // findPatience; tests make it short
}

// accountConfig is what a reload may change of an account.
type accountConfig struct {
	ChannelAccount
	settings json.RawMessage // of the adapter; secrets are in it
	replaced chan struct{}   // closed when other settings are there
}

// Why a connection is followed by another one under the same term.
var (
	errNewSettings = errors.New("the account has new settings")
	errTryAgain    = errors.New("the account's credentials are tried again")
)

// liveChannel is a connection and the term it lives under.
type liveChannel struct {
	channel Channel
	term    *bus.Term
}

// newAccounts makes the accounts that this gateway may own. What an adapter finds wrong with its settings is found here.
func (g *Gateway) newAccounts(cfg *Config) error {
	keys, err := cfg.channelKeys()
	if err != nil {
		return err
	}
	g.accounts = map[string]*account{}
	for _, c := range cfg.ChannelAccounts() {
		if !c.Enabled || len(c.Gateways) > 0 && !slices.Contains(c.Gateways, g.name) {
			continue
		}
		f, ok := g.deps.Channels[c.Channel]
		if c.Channel == webchatName {
			f, ok = g.webchatFactory(), true
		}
		if !ok {
			g.log.Warn("this version has no such channel; it is left alone", "channel", c.Channel, "account", c.ID)
			continue
		}
		a := &account{
			g: g, cfg: c, factory: f, keys: keys, inbox: c.Inbox(), changed: make(chan struct{}), again: make(chan struct{}, 1),
			log: g.log.Named(c.Inbox()), patience: findPatience,
		}
		a.status = AccountStatus{Channel: c.Channel, Account: c.ID, Inbox: a.inbox}
		now, err := a.configured(cfg, c)
		if err != nil {
			return err
		}
		a.now.Store(now)
		g.accounts[a.inbox] = a
	}
	return nil
}

// configured is what cfg says of the account; the adapter judges its part of it.
func (a *account) configured(cfg *Config, c ChannelAccount) (*accountConfig, error) {
	settings, err := cfg.channelSettings(&c)
	if err != nil {
		return nil, err
	}
	if a.factory.NeedsVault && len(a.keys) == 0 {
		return nil, fmt.Errorf("%s: %s %w", c.path, c.Channel, ErrNoVault)
	}
	if _, err := a.factory.New(ChannelDeps{Account: c.ID, Settings: settings, Vault: a.vault(nil), Logger: a.log}); err != nil {
		return nil, err
	}
	return &accountConfig{c, settings, make(chan struct{})}, nil
}

// reloadAccounts reads what cfg says of the accounts that are here, and returns how to take it up. An account that came, went or was
// switched on or off waits for a restart; restart names the switches, which Reloadable cannot tell from what was never said.
func (g *Gateway) reloadAccounts(cfg *Config) (take func(), restart []string, err error) {
	next := map[*account]*accountConfig{}
	began := map[string]bool{}
	for _, c := range g.start.ChannelAccounts() {
		began[c.Inbox()] = c.Enabled
	}
	for _, c := range cfg.ChannelAccounts() {
		if was, there := began[c.Inbox()]; there && was != c.Enabled {
			restart = append(restart, cfgJoin(c.path, "enabled"))
		}
		a := g.accounts[c.Inbox()]
		if a == nil || !c.Enabled {
			continue
		}
		if next[a], err = a.configured(cfg, c); err != nil {
			return nil, nil, err
		}
	}
	return func() {
		for a, now := range next {
			before := a.now.Load()
			if bytes.Equal(before.settings, now.settings) {
				now.replaced = before.replaced
				a.now.Store(now)
				a.tryAgain()
				continue
			}
			a.now.Store(now)
			close(before.replaced)
		}
	}, restart, nil
}

// serveChannels offers the accounts to the bus.
func (g *Gateway) serveChannels(b *bus.Bus) error {
	for _, a := range g.accounts {
		spec := bus.AgentSpec{
			ID: a.inbox, Name: a.cfg.Channel + " " + a.cfg.ID, Description: "Account of a chat channel.", Capabilities: []string{CapabilityPost},
			Candidates: a.cfg.Gateways, Spread: len(a.cfg.Gateways) == 0, MaxConcurrent: 64, AckTimeout: longestAck, OneOrder: true, Unique: true, Eager: true,
		}
		if i := slices.Index(a.cfg.Gateways, g.name); i >= 0 {
			spec.Rank = i
		}
		if err := b.Serve(spec, a); err != nil {
			return fmt.Errorf("channel %s, account %s: %w", a.cfg.Channel, a.cfg.ID, err)
		}
	}
	return nil
}

// vault is nil when there is no key.
func (a *account) vault(t *bus.Term) Vault {
	if len(a.keys) == 0 {
		return nil
	}
	return &termVault{term: t, keys: a.keys}
}

// Reside implements bus.Resident: the vendor's connection lives as long as this gateway owns the account. Other settings end it and begin
// another one under the same term, so nobody else takes the account meanwhile; what is said in between the vendor keeps, as after any lost connection.
func (a *account) Reside(ctx context.Context, t *bus.Term) error {
	a.set(func() {
		if a.term == t.Token() {
			return // the connection of this term failed, and is begun again: what went wrong is still to be seen
		}
		a.term = t.Token()
		a.status = AccountStatus{Channel: a.cfg.Channel, Account: a.cfg.ID, Inbox: a.inbox, Gateway: a.g.name}
	})
	var wg sync.WaitGroup
	wctx, endStatus := context.WithCancel(ctx)
	wg.Go(func() { a.writeStatus(wctx, t) })
	defer func() {
		endStatus()
		wg.Wait()
	}()
	for {
		err := a.connect(ctx, t)
		if ctx.Err() != nil {
			return nil // the term is over
		}
		if !errors.Is(err, errNewSettings) && !errors.Is(err, errTryAgain) {
			return err
		}
		a.log.Info("connecting again", "why", err)
	}
}

// connect holds one connection: until the term is over, it fails, its settings count no more (errNewSettings), or its credentials were refused and are
// to be tried again (errTryAgain).
func (a *account) connect(ctx context.Context, t *bus.Term) error {
	now := a.now.Load()
	ch, err := a.factory.New(ChannelDeps{Account: a.cfg.ID, Settings: now.settings, Vault: a.vault(t), Logger: a.log})
	if err != nil {
		return err
	}
	if w, ok := ch.(*webchat); ok {
		w.term = t
	}
	a.set(func() { a.live = &liveChannel{ch, t} })
	defer a.set(func() { a.live, a.code = nil, nil })
	in := &ingress{a: a, t: t}
	in.Status(ChannelStatus{State: ChannelConnecting})

	run, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-now.replaced:
			end()
		case <-run.Done():
		}
	})
	err = ch.Run(run, in)
	replaced := ctx.Err() == nil && run.Err() != nil
	end()
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return nil
	case replaced:
		return errNewSettings
	case err == nil:
		err = errors.New("the connection ended")
	}
	a.failed(err)
	if !IsBadCredentials(err) {
		in.Status(ChannelStatus{State: ChannelReconnecting, Detail: clipText(err.Error(), 200)})
		return err
	}
	in.Status(ChannelStatus{State: ChannelLoggedOut, Detail: clipText(err.Error(), 200)})
	a.log.Error("the account cannot be used until somebody acts", "error", err)
	return a.rest(ctx, ch, now.replaced)
}

// rest waits, after a refusal of the credentials, until there is a reason to try them again: other settings, a reload with the same ones, a person who
// linked the account, or time. An account that is linked by a person is not tried by time: without that person it has no credentials.
func (a *account) rest(ctx context.Context, ch Channel, replaced <-chan struct{}) error {
	var timeUp <-chan time.Time
	if _, byPerson := ch.(ChannelPairer); !byPerson {
		t := time.NewTimer(credentialsAgain)
		defer t.Stop()
		timeUp = t.C
	}
	select {
	case <-replaced:
		return errNewSettings
	case <-a.again:
	case <-timeUp:
	case <-ctx.Done():
		return nil
	}
	return errTryAgain
}

// tryAgain wakes an account whose credentials were refused.
func (a *account) tryAgain() {
	select {
	case a.again <- struct{}{}:
	default:
	}
}

// set changes what others look at.
func (a *account) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *account) failed(err error) {
	a.set(func() { a.status.LastError, a.status.ErrorAt = clipText(err.Error(), 300), envelope.At(time.Now()) })
	a.g.metrics.channelErrors.WithLabelValues(a.cfg.Channel, a.cfg.ID).Inc()
}

// channel waits for the connection of the term that handles m.
func (a *account) channel(ctx context.Context, m *bus.Incoming) (Channel, error) {
	for {
		a.mu.Lock()
		live, changed := a.live, a.changed
		a.mu.Unlock()
		if live != nil && live.term.Token() == m.Term().Token() {
			return live.channel, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// writeStatus writes what the account is at to its room, as it changes.
func (a *account) writeStatus(ctx context.Context, t *bus.Term) {
	for {
		a.mu.Lock()
		s, changed := a.status, a.changed
		a.mu.Unlock()
		b, err := json.Marshal(s)
		if err == nil {
			err = t.Write(ctx, bus.RoomEntry{Name: statusName, Value: b})
		}
		if err != nil && ctx.Err() == nil {
			a.log.Debug("write the account's status", "error", err)
		}
		pause := time.NewTimer(statusEvery)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// statusName is where an account's status lies in its room.
const statusName = "status"

// ingress takes in what a vendor says during one term.
type ingress struct {
	a *account
	t *bus.Term
}

// Accept implements Ingress.
func (in *ingress) Accept(ctx context.Context, e ChannelEvent) error {
	out, err := in.a.outgoing(e)
	if err != nil {
		return err
	}
	if err := in.t.CaughtUp(ctx); err != nil { // what was said before is heard before
		return err
	}
	if _, err := in.t.Send(ctx, out); err != nil {
		return fmt.Errorf("take in an event: %w", err)
	}
	in.a.set(func() { in.a.status.LastEvent = envelope.At(time.Now()) })
	in.a.g.metrics.channelEvents.WithLabelValues(in.a.cfg.Channel, in.a.cfg.ID).Inc()
	return nil
}

// outgoing is the message that an event becomes. Its key and its conversation are made of the platform's names alone, so that they
// are the same whoever takes it in.
func (a *account) outgoing(e ChannelEvent) (bus.Outgoing, error) {
	if e.ID == "" || e.Peer.ID == "" || peerKind(e.Peer.Kind) == "" {
		return bus.Outgoing{}, fmt.Errorf("%w: an event of %s has no id, or no peer", envelope.ErrInvalid, a.inbox)
	}
	e.Text = clipText(e.Text, maxEventBytes/2)
	payload, err := json.Marshal(e)
	if err != nil {
		return bus.Outgoing{}, fmt.Errorf("%w: %w", envelope.ErrInvalid, err)
	}
	if len(payload) > maxEventBytes { // of escapes: what matters is kept
		e.Text, e.Files = clipText(e.Text, maxEventBytes/16), nil
		if payload, err = json.Marshal(e); err != nil {
			return bus.Outgoing{}, fmt.Errorf("%w: %w", envelope.ErrInvalid, err)
		}
	}
	// The id is new each time: of two with one id the bus would not know that one is a duplicate of the other.
	key := envelope.DerivedID(a.inbox, "event/"+e.ID)
	return bus.Outgoing{
		ID: envelope.NewID(), From: a.inbox, To: envelope.Address{Agent: a.inbox}, Capability: CapabilityEvent, Payload: payload, TTL: a.now.Load().AnswerWithin,
		ConversationID: a.conversation(e.Peer, e.Thread), MaxAttempts: channelAttempts,
		Task: &envelope.Task{UniqueKey: key, UniqueFor: envelope.MillisOf(channelUnique)},
	}, nil
}

// channelAttempts is how often an event is handled before it is given up; it expires before.
const channelAttempts = envelope.MaxAttempts

// conversation is the same for all that is said in one place.
func (a *account) conversation(p ChannelPeer, thread string) string {
	return envelope.DerivedID(a.inbox, "conversation/"+peerKind(p.Kind)+"\x00"+p.ID+"\x00"+thread)
}

// Status implements Ingress.
func (in *ingress) Status(s ChannelStatus) {
	a := in.a
	var before ChannelState
	a.set(func() {
		before = a.status.State
		if a.status.State != s.State {
			a.status.Since = envelope.At(time.Now())
		}
		if s.Self == "" {
			s.Self = a.status.Self
		}
		a.status.ChannelStatus = s
	})
	up := 0.0
	if s.State == ChannelConnected {
		up = 1
	}
	a.g.metrics.channelUp.WithLabelValues(a.cfg.Channel, a.cfg.ID).Set(up)
	if before != s.State {
		a.tell(EventChannel, "", string(s.State)+detailOf(s.Detail))
	}
}

func detailOf(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

// Foreign implements Ingress.
func (in *ingress) Foreign(detail string) {
	a := in.a
	a.set(func() { a.status.Foreign, a.status.ForeignAt = clipText(detail, 300), envelope.At(time.Now()) })
	a.g.metrics.channelForeign.WithLabelValues(a.cfg.Channel, a.cfg.ID).Inc()
	a.log.Error("somebody else uses this account's credentials at the same time: find out who, or give the account new ones", "detail", detail)
	a.tell(EventForeign, "", detail)
}

// Events of channels, beside the bus's own.
const (
	// EventChannel: the connection of an account changed its state.
	EventChannel = "channel"
	// EventForeign: somebody else uses an account's credentials.
	EventForeign = "foreign-connection"
	// EventUnanswered: something that was said is not answered on purpose; the reason says why.
	EventUnanswered = "unanswered"
)

// tell makes an event on the one path of events.
func (a *account) tell(kind, message, reason string) {
	a.g.observe(a.g.bus.Load(), bus.Event{Event: kind, At: envelope.At(time.Now()), Gateway: a.g.name, To: a.inbox, MessageID: message, Reason: clipText(reason, 300)})
}
