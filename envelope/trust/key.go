package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Key is a private key. It prints as its id; the secret leaves it only through [Key.PEM].
type Key struct {
	id      string
	private ed25519.PrivateKey
}

// NewKey makes a key.
func NewKey() *Key {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(fmt.Sprintf("trust: no randomness: %v", err)) // crypto/rand never fails on what Go runs on
	}
	return keyOf(private)
}

func keyOf(private ed25519.PrivateKey) *Key {
	return &Key{KeyID(private.Public().(ed25519.PublicKey)), private}
}

// KeyID names a public key: the first 16 hexadecimal digits of its SHA-256.
func KeyID(public ed25519.PublicKey) string {
	h := sha256.Sum256(public)
	return hex.EncodeToString(h[:8])
}

// ID names the key.
func (k *Key) ID() string { return k.id }

// Public is the other half.
func (k *Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// String is the id: a key in a log line must not be the secret.
func (k *Key) String() string { return "key " + k.id }

// GoString is [Key.String], for %#v.
func (k *Key) GoString() string { return k.String() }

// MarshalJSON refuses: nothing that is written as JSON may hold a private key.
func (k *Key) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a private key is not written as JSON")
}

// PEM is the key as PKCS #8.
func (k *Key) PEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		panic(fmt.Sprintf("trust: an Ed25519 key does not encode: %v", err))
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// maxKeyText is more than any form of a key needs.
const maxKeyText = 4096

// ParseKey reads a key: PKCS #8 as PEM, or its 32 byte seed in base64. Its errors never quote what it was given.
func ParseKey(text []byte) (*Key, error) {
	if len(text) > maxKeyText {
		return nil, fmt.Errorf("key is %d bytes, at most %d", len(text), maxKeyText)
	}
	text = bytes.TrimSpace(text)
	if block, rest := pem.Decode(text); block != nil {
		if block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, errors.New("key is PEM, but not one single PRIVATE KEY (PKCS #8)")
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("key is not readable PKCS #8")
		}
		private, ok := parsed.(ed25519.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("key is %T, want Ed25519 (openssl genpkey -algorithm ed25519)", parsed)
		}
		return keyOf(private), nil
	}
	seed, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, errors.New("key is neither PEM nor the base64 of a 32 byte seed")
	}
	return keyOf(ed25519.NewKeyFromSeed(seed)), nil
}

// LoadKey reads a key's file. One that others can read is refused.
func LoadKey(path string) (*Key, error) { return loadKeys(path, ParseKey) }

// LoadKeys is LoadKey for a file that may hold two keys, see [ParseKeys].
func LoadKeys(path string) ([]*Key, error) { return loadKeys(path, ParseKeys) }

func loadKeys[T any](path string, parse func([]byte) (T, error)) (none T, err error) {
	f, err := os.Open(path)
	if err != nil {
		return none, fmt.Errorf("read key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return none, fmt.Errorf("read key: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return none, fmt.Errorf("key file %s can be read by others (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	text := make([]byte, 2*maxKeyText+1)
	n, err := f.Read(text)
	if err != nil {
		return none, fmt.Errorf("read key %s: %w", path, err)
	}
	k, err := parse(text[:n])
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// MoveKey puts a key's file in the place of another, which is gone then. Either name always holds a whole key.
func MoveKey(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("put the new key in place: %w", err)
	}
	return syncDir(filepath.Dir(to))
}

// LoadOrMakeKey is LoadKey, or makes the file when there is none; made says so.
func LoadOrMakeKey(path string) (k *Key, made bool, err error) {
	if k, err = LoadKey(path); !errors.Is(err, fs.ErrNotExist) {
		return k, false, err
	}
	k = NewKey()
	switch err = WriteKey(path, k); {
	case errors.Is(err, fs.ErrExist): // another process was quicker
		k, err = LoadKey(path)
		return k, false, err
	case err != nil:
		return nil, false, err
	}
	return k, true, nil
}

// WriteKey writes a new key file that only its owner can read. It never writes over one. The file appears whole or not
// at all: one that is half written would keep a gateway from starting for good.
func WriteKey(path string, k *Key) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	tmp, err := writeTemp(dir, k.PEM())
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	defer os.Remove(tmp) //nolint:errcheck // its other name stays
	// A link is made only where nothing stands, as O_EXCL would.
	if err := os.Link(tmp, path); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return syncDir(dir)
}

// writeTemp writes a file of mode 0600 to the disk, under a name that nobody looks for.
func writeTemp(dir string, text []byte) (name string, err error) {
	f, err := os.CreateTemp(dir, ".gatemesh-*") // O_EXCL, mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// WriteState writes a file of mode 0600 to the disk, whole or not at all, in the place of one that may be there.
func WriteState(path string, text []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := writeTemp(dir, text)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// EncodePublic is a public key as text: base64.
func EncodePublic(public ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(public) }

// ParsePublic reads a public key: base64 as [EncodePublic] writes it, or PKIX as PEM.
func ParsePublic(text string) (ed25519.PublicKey, error) {
	if len(text) > maxKeyText {
		return nil, fmt.Errorf("public key is %d bytes, at most %d", len(text), maxKeyText)
	}
	text = strings.TrimSpace(text)
	if block, _ := pem.Decode([]byte(text)); block != nil {
		if block.Type != "PUBLIC KEY" {
			return nil, errors.New("that is PEM, but no PUBLIC KEY; never hand out a private one")
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		public, ok := parsed.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("public key is %T, want Ed25519", parsed)
		}
		return public, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, errors.New("public key: want the base64 of 32 bytes")
	}
	return b, nil
}
