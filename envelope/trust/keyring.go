package trust

import (
	"crypto/hpke"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// EncryptionKeyLife is how old a gateway's encryption key gets before another one follows it. What it published of it counts
	// as long, from its signature on.
	EncryptionKeyLife = 30 * 24 * time.Hour
	// encryptionKeyKept is how long a private key is kept after another one followed: the longest delay and life of a message,
	// and the time for which a sender may still go by the old one.
	encryptionKeyKept = envelope.MaxDelay + envelope.MaxTTL + EncryptionKeyLife
	// maxKeyring bounds the file, in bytes; keys follow each other once a month or with the identity.
	maxKeyring = 64 << 10
)

// Keyring holds the private keys that payloads for a gateway are encrypted for: the newest one, which it publishes, and
// older ones, which mail may still wait for. Safe for concurrent use. Nothing of it is ever printed.
type Keyring struct {
	path string

	mu   sync.Mutex
	keys []heldPrivate // oldest first
	// seen are wrapped keys that were unwrapped before.
	seen map[unwrapped]ContentKey
}

// unwrapped is a wrapped key, and what it is bound to.
type unwrapped struct{ info, wrapped string }

// maxUnwrapped bounds what is remembered of other gateways' sending keys.
const maxUnwrapped = 1024

func (k *Keyring) recall(u unwrapped) ContentKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.seen[u]
}

func (k *Keyring) remember(u unwrapped, key ContentKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.seen == nil || len(k.seen) >= maxUnwrapped {
		k.seen = map[unwrapped]ContentKey{}
	}
	k.seen[u] = key
}

type heldPrivate struct {
	id      string
	private hpke.PrivateKey
	made    envelope.Time
	// identity is the id of the gateway's own key when it was made.
	identity string
}

// savedKey is one key in the file.
type savedKey struct {
	Private  []byte        `json:"private"`
	Made     envelope.Time `json:"made"`
	Identity string        `json:"identity"`
}

// OpenKeyring reads the keys from a file of mode 0600, or begins one. An empty path: they live as long as the
// process. Call [Keyring.Tend] before anything else.
func OpenKeyring(path string) (*Keyring, error) {
	k := &Keyring{path: path}
	if path == "" {
		return k, nil
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read encryption keys: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("file %s can be read by others (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	if info.Size() > maxKeyring {
		return nil, fmt.Errorf("read encryption keys: %s has %d bytes, at most %d", path, info.Size(), maxKeyring)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read encryption keys: %w", err)
	}
	var saved []savedKey
	if json.Unmarshal(text, &saved) != nil {
		return nil, fmt.Errorf("encryption keys in %s are not readable: put the file back from a copy, or remove it (mail that is encrypted for this gateway and waits is lost with it)", path)
	}
	for _, s := range saved {
		private, err := kem().NewPrivateKey(s.Private)
		if err != nil {
			return nil, fmt.Errorf("encryption keys in %s: one is none", path)
		}
		k.keys = append(k.keys, held(private, s.Made, s.Identity))
	}
	return k, nil
}

func held(private hpke.PrivateKey, made envelope.Time, identity string) heldPrivate {
	return heldPrivate{ReaderID(private.PublicKey().Bytes()), private, made, identity}
}

// Tend makes a key when there is none, when the newest is older than [EncryptionKeyLife], and when the gateway's own key is
// another one than when it was made; and forgets keys that nothing can be waiting for. It reports whether a key was made.
func (k *Keyring) Tend(identity string, now time.Time) (made bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys := slices.Clone(k.keys)
	if n := len(keys); n == 0 || keys[n-1].identity != identity || now.Sub(keys[n-1].made.Time) > EncryptionKeyLife {
		private, err := kem().GenerateKey()
		if err != nil {
			return false, fmt.Errorf("make an encryption key: %w", err)
		}
		keys, made = append(keys, held(private, envelope.At(now), identity)), true
	}
	n := len(keys)
	// A key is in use until the one after it was made.
	for len(keys) > 1 && now.Sub(keys[1].made.Time) > encryptionKeyKept {
		keys = keys[1:]
	}
	if !made && len(keys) == n {
		return false, nil
	}
	if err := k.save(keys); err != nil {
		return false, err
	}
	k.keys, k.seen = keys, nil
	return made, nil
}

func (k *Keyring) save(keys []heldPrivate) error {
	if k.path == "" {
		return nil
	}
	var saved []savedKey
	for _, h := range keys {
		private, err := h.private.Bytes()
		if err != nil {
			return fmt.Errorf("write encryption keys: %w", err)
		}
		saved = append(saved, savedKey{private, h.made, h.identity})
	}
	text, err := envelope.Encode(saved)
	if err == nil {
		err = WriteState(k.path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write encryption keys: %w", err)
	}
	return nil
}

func (k *Keyring) newest() heldPrivate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[len(k.keys)-1]
}

// ID names the newest key.
func (k *Keyring) ID() string { return k.newest().id }

func (k *Keyring) find(id string) hpke.PrivateKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.keys {
		if h.id == id {
			return h.private
		}
	}
	return nil
}

// String keeps the keys out of logs.
func (k *Keyring) String() string { return "encryption keys" }

// GoString is [Keyring.String], for %#v.
func (k *Keyring) GoString() string { return k.String() }

// MarshalJSON refuses: nothing that is written as JSON may hold a private key.
func (k *Keyring) MarshalJSON() ([]byte, error) {
	return nil, errors.New("encryption keys are not written as JSON")
}
