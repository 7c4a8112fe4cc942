package trust

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
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

// What is encrypted is bound to what it is: no wrapped key counts as a payload, nor under another header.
const (
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

// EncryptPayload encrypts a payload under a new key, and that for each reader. binding is [envelope.Envelope.Binding].
func EncryptPayload(binding, plain []byte, readers []*Reader) (text string, keys []string, err error) {
	key := make(ContentKey, 32)
	_, _ = rand.Read(key) // never fails
	if keys, err = WrapKey(key, binding, readers); err != nil {
		return "", nil, err
	}
	gcm, err := key.gcm()
	if err != nil {
		return "", nil, err
	}
	// The key is used once, so its nonce need not differ from anything.
	sealed := gcm.Seal(nil, make([]byte, gcm.NonceSize()), plain, append([]byte(bindPayload), binding...)) //nolint:gosec // see above
	return base64.RawStdEncoding.EncodeToString(sealed), keys, nil
}

func (k ContentKey) gcm() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, fmt.Errorf("%w: its key has %d bytes", ErrCipher, len(k))
	}
	return cipher.NewGCM(block)
}

// WrapKey encrypts a message's key for readers.
func WrapKey(key ContentKey, binding []byte, readers []*Reader) ([]string, error) {
	keys := make([]string, len(readers))
	info := append([]byte(bindKey), binding...)
	for i, r := range readers {
		wrapped, err := hpke.Seal(r.public, hpke.HKDFSHA256(), hpke.AES256GCM(), info, key)
		if err != nil {
			return nil, fmt.Errorf("encrypt for %s: %w", r.Gateway, err)
		}
		keys[i] = r.Gateway + "/" + r.ID + "/" + base64.RawStdEncoding.EncodeToString(wrapped)
	}
	return keys, nil
}

// OpenPayload decrypts what [EncryptPayload] made. Errors: [ErrCipher].
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

// Unwrap finds the key of a message among those that it is encrypted for. Errors: [ErrNotForHere], [ErrCipher].
func (k *Keyring) Unwrap(suite string, binding []byte, keys []string) (ContentKey, error) {
	if suite != EncryptionSuite {
		return nil, fmt.Errorf("%w: its suite is %s, this build knows %s: upgrade this gateway", ErrCipher, suite, EncryptionSuite)
	}
	info := append([]byte(bindKey), binding...)
	spoilt := false
	for _, w := range keys {
		_, rest, _ := strings.Cut(w, "/")
		id, text, _ := strings.Cut(rest, "/")
		private := k.find(id)
		if private == nil {
			continue
		}
		wrapped, err := base64.RawStdEncoding.Strict().DecodeString(text)
		if err == nil {
			var key []byte
			if key, err = hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), info, wrapped); err == nil && len(key) == 32 {
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
