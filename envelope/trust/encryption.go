package trust

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/gatemesh/gatemesh/envelope"
)

// EncryptionSuite names the algorithms of encrypted payloads: HPKE (RFC 9180) of X25519, HKDF-SHA256 and AES-256-GCM for
// the keys, AES-256-GCM for the payload.
const EncryptionSuite = "x25519-hkdf-sha256-aes256gcm"

// What is encrypted is bound to what it is: no wrapped key counts as another kind of it, from another sender or under
// another header.
const (
	bindSending = "gatemesh/sending-key/v1\n"
	bindKey     = "gatemesh/payload-key/v1\n"
	bindPayload = "gatemesh/payload/v1\n"
)

// ErrNotForHere: the payload is encrypted, and none of the keys that it is encrypted for is here.
var ErrNotForHere = errors.New("the payload is not encrypted for this gateway")

// ErrCipher: what is encrypted was changed, or put under another header than its own.
var ErrCipher = errors.New("the payload does not decrypt")

// ContentKey is the key of one message's payload. It prints as nothing.
type ContentKey []byte

// String keeps the key out of logs.
func (ContentKey) String() string { return "content key" }

// GoString is [ContentKey.String], for %#v.
func (ContentKey) GoString() string { return "content key" }

// Reader is the public key of a gateway that payloads are encrypted for.
type Reader struct {
	Gateway, ID string
	public      hpke.PublicKey
}

// ReaderID names a public key: the first 16 hexadecimal digits of its SHA-256.
func ReaderID(public []byte) string {
	h := sha256.Sum256(public)
	return hex.EncodeToString(h[:8])
}

func kem() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// SendingKey is what a gateway encrypts with for the same readers for a while: wrapping a key for each of them costs a hundred
// times what encrypting a message does. Every message has a key of its own, made of this one, a random salt and the header.
type SendingKey struct {
	secret ContentKey
	// Keys are the key as its readers get it. Do not change them.
	Keys []string
}

// NewSendingKey makes a key of a gateway for readers.
func NewSendingKey(from string, readers []*Reader) (*SendingKey, error) {
	secret := make(ContentKey, 32)
	_, _ = rand.Read(secret) // never fails
	keys, err := wrap(secret, []byte(bindSending+from), readers)
	if err != nil {
		return nil, err
	}
	return &SendingKey{secret, keys}, nil
}

// messageKey is the key of one message.
func (k ContentKey) messageKey(salt string, binding []byte) (ContentKey, error) {
	raw, err := base64.RawStdEncoding.Strict().DecodeString(salt)
	if err != nil {
		return nil, fmt.Errorf("%w: its salt is not base64", ErrCipher)
	}
	key, err := hkdf.Key(sha256.New, k, raw, bindPayload+string(binding), 32)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCipher, err)
	}
	return key, nil
}

// Encrypt encrypts a payload; binding is [envelope.Envelope.Binding] of the envelope that it is for.
func (k *SendingKey) Encrypt(binding, plain []byte) (c *envelope.Encryption, text string, err error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	c = &envelope.Encryption{Suite: EncryptionSuite, Salt: base64.RawStdEncoding.EncodeToString(salt), Keys: k.Keys}
	key, err := k.secret.messageKey(c.Salt, binding)
	if err != nil {
		return nil, "", err
	}
	gcm, err := key.gcm()
	if err != nil {
		return nil, "", err
	}
	// The key is used once, so its nonce need not differ from anything.
	sealed := gcm.Seal(nil, make([]byte, gcm.NonceSize()), plain, append([]byte(bindPayload), binding...)) //nolint:gosec // see above
	return c, base64.RawStdEncoding.EncodeToString(sealed), nil
}

func (k ContentKey) gcm() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, fmt.Errorf("%w: its key has %d bytes", ErrCipher, len(k))
	}
	return cipher.NewGCM(block)
}

// WrapKey encrypts one message's own key for further readers.
func WrapKey(key ContentKey, binding []byte, readers []*Reader) ([]string, error) {
	return wrap(key, append([]byte(bindKey), binding...), readers)
}

func wrap(key ContentKey, info []byte, readers []*Reader) ([]string, error) {
	keys := make([]string, len(readers))
	for i, r := range readers {
		wrapped, err := hpke.Seal(r.public, hpke.HKDFSHA256(), hpke.AES256GCM(), info, key)
		if err != nil {
			return nil, fmt.Errorf("encrypt for %s: %w", r.Gateway, err)
		}
		keys[i] = r.Gateway + "/" + r.ID + "/" + base64.RawStdEncoding.EncodeToString(wrapped)
	}
	return keys, nil
}

// OpenPayload decrypts what [SendingKey.Encrypt] made. Errors: [ErrCipher].
func (k ContentKey) OpenPayload(binding []byte, text string) ([]byte, error) {
	sealed, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: it is not base64", ErrCipher)
	}
	gcm, err := k.gcm()
	if err != nil {
		return nil, err
	}
	plain, err := gcm.Open(sealed[:0], make([]byte, gcm.NonceSize()), sealed, append([]byte(bindPayload), binding...))
	if err != nil {
		return nil, fmt.Errorf("%w: it was changed, or belongs to another message", ErrCipher)
	}
	return plain, nil
}

// Unwrap finds the key of a message of a gateway: among those that it was encrypted for, or those that others who passed it on
// added. Errors: [ErrNotForHere], [ErrCipher].
func (k *Keyring) Unwrap(from string, c *envelope.Encryption, binding []byte, more []string) (ContentKey, error) {
	if c.Suite != EncryptionSuite {
		return nil, fmt.Errorf("%w: its suite is %s, this build knows %s: upgrade this gateway", ErrCipher, c.Suite, EncryptionSuite)
	}
	key, err := k.unwrap(bindKey+string(binding), more)
	if err == nil {
		return key, nil
	}
	secret, serr := k.unwrap(bindSending+from, c.Keys)
	switch {
	case serr == nil:
		return secret.messageKey(c.Salt, binding)
	case errors.Is(serr, ErrNotForHere):
		return nil, err
	}
	return nil, serr
}

// unwrap finds this gateway's among wrapped keys.
func (k *Keyring) unwrap(info string, keys []string) (ContentKey, error) {
	spoilt := false
	for _, w := range keys {
		_, rest, _ := strings.Cut(w, "/")
		id, text, _ := strings.Cut(rest, "/")
		private := k.find(id)
		if private == nil {
			continue
		}
		// Most messages come with a key that one before came with.
		known := unwrapped{info, w}
		if key := k.recall(known); key != nil {
			return key, nil
		}
		wrapped, err := base64.RawStdEncoding.Strict().DecodeString(text)
		if err == nil {
			var key []byte
			if key, err = hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info), wrapped); err == nil && len(key) == 32 {
				k.remember(known, key)
				return key, nil
			}
		}
		spoilt = true
	}
	if spoilt {
		return nil, fmt.Errorf("%w: its key for this gateway was changed, or belongs to another message", ErrCipher)
	}
	return nil, ErrNotForHere
}

// EncryptionKeysPrefix is below which gateways publish the keys that others encrypt for; each writes the key of its name.
const EncryptionKeysPrefix = "openclaw/encryption-keys/"

// publishedKey is the signed record there.
type publishedKey struct {
	Gateway string        `json:"gateway"`
	Suite   string        `json:"suite"`
	Key     string        `json:"key"`
	Public  []byte        `json:"public"`
	Made    envelope.Time `json:"made"`
}

// Statement is what a gateway publishes of its newest key, to be signed as [KindEncryption].
func (k *Keyring) Statement(gateway string) []byte {
	n := k.newest()
	body, err := envelope.Encode(publishedKey{gateway, EncryptionSuite, n.id, n.private.PublicKey().Bytes(), n.made})
	if err != nil {
		panic("trust: a public key does not encode: " + err.Error())
	}
	return body
}

// DecodeReader reads a gateway's statement, whose signature was judged. Errors: *[Refusal].
func DecodeReader(gateway string, body []byte) (*Reader, error) {
	bad := func(format string, args ...any) error { return refuse(Malformed, gateway, "", format, args...) }
	var p publishedKey
	if len(body) > maxKeyText || json.Unmarshal(body, &p) != nil {
		return nil, bad("encryption key is not readable")
	}
	switch {
	case p.Gateway != gateway:
		return nil, refuse(WrongGateway, gateway, "", "it is the encryption key of %s", p.Gateway)
	case p.Suite != EncryptionSuite:
		return nil, bad("encryption key is for %q, this build knows %s", p.Suite, EncryptionSuite)
	case p.Key != ReaderID(p.Public):
		return nil, bad("encryption key is not the one that it names")
	}
	public, err := kem().NewPublicKey(p.Public)
	if err != nil {
		return nil, bad("encryption key is not one")
	}
	// A point of small order would make a secret that everybody knows; HPKE refuses it when it encrypts.
	if _, _, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES256GCM(), nil); err != nil {
		return nil, bad("encryption key is not one")
	}
	return &Reader{Gateway: gateway, ID: p.Key, public: public}, nil
}
