package whatsapptest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"go.mau.fi/whatsmeow/types"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/whatsapp"
)

// patience is how long a person waits for the server, and is waited for.
const patience = 10 * time.Second

// Store is what an account's owners share, in memory. Only the newest owner may write.
type Store struct {
	mu     sync.Mutex
	rows   map[string][]byte
	owner  int
	writes int
	names  int
	fail   error
}

// NewStore returns an empty one.
func NewStore() *Store { return &Store{rows: map[string][]byte{}} }

// Own makes a new owner's vault, and deposes the one before.
func (s *Store) Own() gateway.Vault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owner++
	return &ownedVault{store: s, owner: s.owner}
}

// Fail lets every write fail with err; nil: no more.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// Writes counts the writes, and the names in them.
func (s *Store) Writes() (writes, names int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes, s.names
}

// Rows are what is stored.
func (s *Store) Rows() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.rows)
}

type ownedVault struct {
	store *Store
	owner int
}

func (v *ownedVault) Get(_ context.Context, name string) ([]byte, error) {
	return v.store.Rows()[name], nil
}

func (v *ownedVault) List(_ context.Context, prefix string) (map[string][]byte, error) {
	rows := v.store.Rows()
	maps.DeleteFunc(rows, func(name string, _ []byte) bool { return !strings.HasPrefix(name, prefix) })
	return rows, nil
}

func (v *ownedVault) Write(ctx context.Context, values map[string][]byte) error {
	s := v.store
	s.mu.Lock()
	defer s.mu.Unlock()
	size := 0
	for name, value := range values {
		size += len(name) + len(value)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case v.owner != s.owner:
		return bus.ErrDeposed
	case s.fail != nil:
		return s.fail
	case len(values) > 60 || size > 256<<10:
		return bus.ErrTooLarge
	}
	s.writes++
	s.names += len(values)
	for name, value := range values {
		if value == nil {
			delete(s.rows, name)
		} else {
			s.rows[name] = value
		}
	}
	return nil
}

// Link links an account that is kept in v to a phone number, as a person does: by scanning the code that is shown.
func (s *Server) Link(ctx context.Context, phone string, settings json.RawMessage, v gateway.Vault) error {
	ch, err := whatsapp.Factory().New(gateway.ChannelDeps{Account: phone, Settings: settings, Vault: v, Logger: hclog.NewNullLogger()})
	if err != nil {
		return err
	}
	return s.Pair(ctx, ch, phone)
}

// Pair links a channel to a phone number.
func (s *Server) Pair(ctx context.Context, ch gateway.Channel, phone string) error {
	pairer, ok := ch.(gateway.ChannelPairer)
	if !ok {
		return errors.New("the channel cannot be linked")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	scanned := make(chan error, 1)
	var once sync.Once
	var scan sync.WaitGroup
	err := pairer.Pair(ctx, func(code gateway.PairingCode) {
		once.Do(func() {
			scan.Go(func() {
				err := s.Scan(ctx, code.Code, phone)
				if err != nil {
					cancel()
				}
				scanned <- err
			})
		})
	})
	scan.Wait()
	select {
	case failed := <-scanned:
		return errors.Join(err, failed)
	default:
		return errors.Join(err, errors.New("no code was shown"))
	}
}

// Person is somebody with WhatsApp: the real client library, with its own keys.
type Person struct {
	Phone  string
	ch     gateway.Channel
	cancel context.CancelFunc
	ended  chan error

	mu        sync.Mutex
	connected chan struct{}
	heard     []gateway.ChannelEvent
	known     map[string]bool
	changed   chan struct{}
}

// Person brings somebody with a phone number, connected. Close ends them.
func (s *Server) Person(ctx context.Context, phone string) (*Person, error) {
	v := NewStore().Own()
	if err := s.Link(ctx, phone, s.Settings(), v); err != nil {
		return nil, fmt.Errorf("linking %s: %w", phone, err)
	}
	ch, err := whatsapp.Factory().New(gateway.ChannelDeps{Account: phone, Settings: s.Settings(), Vault: v, Logger: hclog.NewNullLogger()})
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &Person{Phone: phone, ch: ch, cancel: cancel, ended: make(chan error, 1), connected: make(chan struct{}), known: map[string]bool{}, changed: make(chan struct{})}
	go func() { p.ended <- ch.Run(run, p) }()
	select {
	case <-p.connected:
		return p, nil
	case err := <-p.ended:
		cancel()
		return nil, fmt.Errorf("%s cannot connect: %w", phone, err)
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), p.Close())
	}
}

// Close ends the person's connection.
func (p *Person) Close() error {
	p.cancel()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(patience):
		return fmt.Errorf("%s does not stop", p.Phone)
	}
}

// JID is the person's id.
func (p *Person) JID() string { return types.NewJID(p.Phone, types.DefaultUserServer).String() }

// Say sends a message and returns its id; the event's is the chat's id, a slash, and this.
func (p *Person) Say(ctx context.Context, to gateway.ChannelPeer, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	posted, err := p.ch.Post(ctx, gateway.Post{ID: uuid.NewString(), To: gateway.PostTarget{Peer: to}, Text: text, Check: func() error { return nil }})
	return posted.Ref, err
}

// Heard are the messages that the person sees, in order: one that comes again under its id is seen once, as in WhatsApp's own clients.
func (p *Person) Heard() []gateway.ChannelEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]gateway.ChannelEvent(nil), p.heard...)
}

// Wait waits until the person has heard n messages.
func (p *Person) Wait(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		have, changed := len(p.heard), p.changed
		p.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s heard %d of %d: %w", p.Phone, have, n, ctx.Err())
		}
	}
}

// Accept implements [gateway.Ingress].
func (p *Person) Accept(_ context.Context, e gateway.ChannelEvent) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[e.ID] {
		return nil
	}
	p.known[e.ID] = true
	p.heard = append(p.heard, e)
	close(p.changed)
	p.changed = make(chan struct{})
	return nil
}

// Status implements [gateway.Ingress].
func (p *Person) Status(s gateway.ChannelStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.State == gateway.ChannelConnected {
		select {
		case <-p.connected:
		default:
			close(p.connected)
		}
	}
}

// Foreign implements [gateway.Ingress].
func (p *Person) Foreign(string) {}
