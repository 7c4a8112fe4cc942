package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Confidentiality is what holds for the payloads of a capability.
type Confidentiality int

const (
	// InTheClear: payloads lie in the store as they are.
	InTheClear Confidentiality = iota
	// Encrypt: this gateway encrypts what it sends, and takes what was not.
	Encrypt
	// RequireEncrypted: it also refuses what was not.
	RequireEncrypted
)

// ErrNoEncryptionKey: a gateway that may own the target's inbox has no key that could be encrypted for. Nothing was written.
var ErrNoEncryptionKey = errors.New("the payload cannot be encrypted")

func (b *Bus) confidentiality(capability string) Confidentiality {
	if b.cfg.Confidential == nil || strings.HasPrefix(capability, ReservedCapability) {
		return InTheClear // what gateways tell each other has no payload of anybody's; a task's order is marked by who makes it
	}
	return b.cfg.Confidential(capability)
}

// encrypts reports whether a message's payload is to be encrypted: by its capability, or because it comes of something that was.
func (b *Bus) encrypts(o *Outgoing) bool {
	return o.secret || b.confidentiality(o.Capability) >= Encrypt
}

// sealEncrypted is envelope.Seal with the payload encrypted for every gateway that may own the target's inbox.
func (b *Bus) sealEncrypted(e envelope.Envelope) (*envelope.Sealed, error) {
	plain, err := envelope.Plain(e.Payload)
	if err != nil {
		return nil, err
	}
	e.SchemaVersion = envelope.EncryptedVersion
	key, err := b.readers.sending(envelope.Address{Agent: e.TargetAgent, Gateway: e.TargetGateway})
	if err != nil {
		return nil, err
	}
	c, cipher, err := key.Encrypt(e.Binding(), plain)
	if err != nil {
		return nil, err
	}
	if n := len(cipher) + 2; n > envelope.MaxClaim {
		return nil, fmt.Errorf("payload is %d bytes encrypted, at most %d: %w", n, envelope.MaxClaim, ErrTooLarge)
	}
	e.Encryption = c
	return envelope.SealEncrypted(e, cipher, plain)
}

// contentKey is the key of an encrypted message; more are the keys that those who passed it on added.
func (b *Bus) contentKey(s *envelope.Sealed, more []string) (trust.ContentKey, error) {
	err := trust.ErrNotForHere
	if b.cfg.Keyring != nil {
		var key trust.ContentKey
		if key, err = b.cfg.Keyring.Unwrap(s.SourceGateway, s.Encryption, s.Binding(), more); err == nil {
			return key, nil
		}
	}
	if errors.Is(err, trust.ErrNotForHere) {
		readers := append(s.Readers(), (&envelope.Encryption{Keys: more}).Readers()...)
		return nil, fmt.Errorf("%w, %s, but for %s, with the keys that they had when it was sent: have one of them own the inbox, or have it sent again",
			err, b.cfg.Gateway, strings.Join(readers, ", "))
	}
	return nil, &cipherError{err}
}

// openWith decrypts a message that was loaded.
func openWith(s *envelope.Sealed, key trust.ContentKey) (*envelope.Sealed, error) {
	text, ok := s.Cipher()
	if !ok {
		return nil, &cipherError{errors.New("the payload is no ciphertext")}
	}
	plain, err := key.OpenPayload(s.Binding(), text)
	if err != nil {
		return nil, &cipherError{err}
	}
	open, err := s.Opened(plain)
	if err != nil {
		return nil, &cipherError{fmt.Errorf("what was encrypted is no payload: %w", err)}
	}
	return open, nil
}

// cipherError is a payload that nobody can read any more.
type cipherError struct{ cause error }

func (e *cipherError) Error() string { return e.cause.Error() }
func (e *cipherError) Unwrap() error { return e.cause }

// Class is unreadable: another try decrypts the same.
func (e *cipherError) Class() envelope.Class { return envelope.ClassUnreadable }

// decrypt gives the handler the payload. The owner of a queue does not read its tasks: their workers do.
func (m *Incoming) decrypt() (err error) {
	j := m.j
	if !m.env.Closed() || j.ib.queue != nil {
		return nil
	}
	b := j.ib.b
	key, err := b.contentKey(j.env, j.del.Keys)
	if err == nil {
		var open *envelope.Sealed
		if open, err = openWith(m.env, key); err == nil {
			m.env, m.key = open, key
			return nil
		}
	}
	if spoilt := (*cipherError)(nil); errors.As(err, &spoilt) {
		ev := b.refusal(pendingKey(j.ib.spec.ID, j.env.MessageID), &trust.Refusal{Reason: trust.Unreadable, Gateway: j.src.from, Detail: err.Error()}, "@"+j.src.from, j.ib.spec.ID)
		ev.MessageID, ev.Class = j.env.MessageID, envelope.ClassUnreadable
		b.emit(ev)
	}
	return err
}

// inTheClear says why a message that was not encrypted must not be handed over, if so.
func (b *Bus) inTheClear(e *envelope.Envelope) error {
	if e.Encrypted() || b.confidentiality(e.Capability) < RequireEncrypted {
		return nil
	}
	what := "messages without a capability"
	if e.Capability != "" {
		what = "the capability " + e.Capability
	}
	return fmt.Errorf("its payload lies in the clear, and %s takes encrypted ones only for %s: set mesh.confidentiality on %s", b.cfg.Gateway, what, e.SourceGateway)
}

// rewrap makes the key of a message that is passed on readable where it goes.
func (m *Incoming) rewrap(to envelope.Address) ([]string, error) {
	if !m.j.env.Encrypted() {
		return nil, nil
	}
	list, err := m.j.ib.b.readers.of(to)
	if err != nil {
		return nil, err
	}
	return trust.WrapKey(m.key, m.j.env.Binding(), list.readers)
}

// EncryptionKey is what is known of the key that payloads for a gateway are encrypted for.
type EncryptionKey struct {
	Gateway string `json:"gateway"`
	// Key is its id; empty: there is none that counts, and Reason says why.
	Key    string        `json:"key,omitempty"`
	Signed envelope.Time `json:"signed,omitzero"`
	Reason string        `json:"reason,omitempty"`
}

// EncryptionKeys lists the keys of all gateways in the trust set; nil: this gateway does not encrypt, or knows no set.
func (b *Bus) EncryptionKeys() []EncryptionKey {
	set := b.trustSet()
	if set == nil || b.cfg.Keyring == nil {
		return nil
	}
	b.readers.mu.Lock()
	defer b.readers.mu.Unlock()
	b.readers.judgeLocked(set)
	list := []EncryptionKey{}
	for _, m := range set.Gateways {
		k := EncryptionKey{Gateway: m.Name}
		if why := b.readers.missingLocked(m.Name); why != "" {
			k.Reason = why
		} else {
			r := b.readers.known[m.Name]
			k.Key, k.Signed = r.reader.ID, envelope.At(r.signed)
		}
		list = append(list, k)
	}
	return list
}

// keepEncryptionKey publishes this gateway's key, and another one when its time has come.
func (b *Bus) keepEncryptionKey(ctx context.Context) {
	for {
		if !wait(ctx, b.cfg.Heartbeat) {
			return
		}
		b.publishKey(ctx)
	}
}

// republish is how old the signature under a published key gets before it is signed anew.
const republish = 24 * time.Hour

func (b *Bus) publishKey(ctx context.Context) {
	if err := b.tryPublishKey(ctx); err != nil && ctx.Err() == nil {
		b.log.Warn("this gateway's encryption key is not published: nobody can encrypt for it", "error", err,
			"fix", "gatemesh acl policy prints the rules that this gateway needs")
	}
}

func (b *Bus) tryPublishKey(ctx context.Context) error {
	s := b.cfg.Signer
	made, err := b.cfg.Keyring.Tend(s.Key.ID(), b.now())
	if err != nil {
		return err
	}
	if made {
		b.log.Info("made an encryption key", "key", b.cfg.Keyring.ID())
	}
	key := trust.EncryptionKeysPrefix + s.Gateway
	body := b.cfg.Keyring.Statement(s.Gateway)
	p, err := b.store.Get(ctx, key)
	if err != nil {
		return err
	}
	if p != nil {
		old, st := trust.SplitRecord(p.Value)
		if st != nil && bytes.Equal(old, body) && st.SignedBy(s.Key.Public(), trust.KindEncryption, key, body) && b.now().Sub(st.At.Time).Abs() < republish {
			return nil
		}
	}
	_, err = b.store.Txn(ctx, []Op{
		{Verb: OpCheckSession, Key: gatewayLockKey(s.Gateway), Session: b.session.id()},
		{Verb: OpSet, Key: key, Value: b.sign(trust.KindEncryption, key, body)},
	})
	return err
}
