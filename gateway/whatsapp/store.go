package whatsapp

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.mau.fi/whatsmeow/store"

	"github.com/gatemesh/gatemesh/gateway"
)

// What one write of the vault may hold.
const (
	batchNames = 60
	batchBytes = 200 << 10 // 256 KiB less what encryption and encoding may add to it
)

// errStore marks a failure of the vault: nothing may leave the connection any more.
var errStore = errors.New("credentials not stored")

// credentials are an account's keys and ratchets: rows of the vault, with all of them in memory. The library changes them in
// memory; [credentials.flush] writes what has changed, and the connection calls it before each byte that leaves (see link).
// So everything that a message or an acknowledgement rests on is on a majority of the servers' disks before it leaves, in one write.
//
// A write that fails, or whose outcome is unknown, breaks them for good: what is in memory may not be what is stored. They must be loaded again.
type credentials struct {
	store.NoopStore // what is not kept: see doc.go

	vault gateway.Vault

	// ratchet is held while one message is decrypted, and while one is encrypted: both read sessions, step them on and write them back. It is
	// taken before step, and what is encrypted may wait for the server meanwhile (keys of new devices), which step must not.
	ratchet sync.Mutex
	// step is held while one message is decrypted, and while rows are written: a step of a ratchet and the plaintext that it
	// gave are never in different writes.
	step sync.Mutex

	mu       sync.Mutex // guards what follows
	rows     map[string][]byte
	stored   map[string]bool // names that the vault has, or may have
	dirty    map[string]bool
	migrated map[string]bool // phone numbers whose sessions were moved to their hidden ids
	broken   error
	writes   int
}

func newCredentials(v gateway.Vault) *credentials {
	return &credentials{vault: v, rows: map[string][]byte{}, stored: map[string]bool{}, dirty: map[string]bool{}, migrated: map[string]bool{}}
}

// load reads everything anew and forgets what was not written.
func (c *credentials) load(ctx context.Context) error {
	rows, err := c.vault.List(ctx, "")
	if err != nil {
		return fmt.Errorf("%w: reading them: %w", errStore, err)
	}
	c.step.Lock()
	defer c.step.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rows, c.stored, c.dirty, c.migrated, c.broken = map[string][]byte{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, nil
	for name, value := range rows {
		c.rows[name], c.stored[name] = value, true
	}
	return nil
}

// flush writes what has changed. It costs nothing when nothing has.
func (c *credentials) flush(ctx context.Context) error {
	c.step.Lock()
	defer c.step.Unlock()
	names, err := c.take()
	if err != nil {
		return err
	}
	for len(names) > 0 {
		var batch map[string][]byte
		batch, names = c.batch(names)
		if err := c.vault.Write(ctx, batch); err != nil {
			return c.broke(err)
		}
		c.mu.Lock()
		c.writes++
		for name, value := range batch {
			c.stored[name] = value != nil
		}
		c.mu.Unlock()
	}
	return nil
}

// written counts the writes.
func (c *credentials) written() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

// broke remembers that a write failed.
func (c *credentials) broke(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = fmt.Errorf("%w: %w", errStore, err)
	return c.broken
}

// take returns the names to be written, in the order in which they may be: when they do not fit one write, a plaintext is
// stored before the ratchet that cannot give it again, and the device goes before its keys.
func (c *credentials) take() ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return nil, c.broken
	}
	var names []string
	for name := range c.dirty {
		if _, has := c.rows[name]; has || c.stored[name] {
			names = append(names, name)
		}
	}
	clear(c.dirty)
	rank := func(name string) int {
		switch {
		case name == rowDevice:
			return 0
		case strings.HasPrefix(name, rowEvent):
			return 1
		}
		return 2
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) })
	return names, nil
}

func (c *credentials) batch(names []string) (batch map[string][]byte, rest []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch = map[string][]byte{}
	size := 0
	for i, name := range names {
		size += len(name) + len(c.rows[name])
		if i > 0 && (i == batchNames || size > batchBytes) {
			return batch, names[i:]
		}
		batch[name] = c.rows[name] // nil deletes
	}
	return batch, nil
}

// failed returns why nothing may leave any more.
func (c *credentials) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

func (c *credentials) get(name string) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rows[name]
}

func (c *credentials) put(name string, value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set(name, value)
}

// set is put, for who holds mu. A nil value deletes.
func (c *credentials) set(name string, value []byte) {
	old, has := c.rows[name]
	switch {
	case value == nil && !has, value != nil && has && bytes.Equal(old, value):
		return
	case value == nil:
		delete(c.rows, name)
	default:
		c.rows[name] = bytes.Clone(value)
	}
	c.dirty[name] = true
}

func (c *credentials) deletePrefix(prefix string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.rows {
		if strings.HasPrefix(name, prefix) {
			c.set(name, nil)
		}
	}
}

// wipe forgets everything, here and in the vault.
func (c *credentials) wipe(ctx context.Context) error {
	c.deletePrefix("")
	return c.flush(ctx)
}
