package trust

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// pinned is a file of mode 0600 with the newest signed thing of a kind that was accepted, and the same in memory.
type pinned struct {
	what string // for people
	path string // "": memory alone

	mu  sync.Mutex
	raw []byte // nil: nothing yet
}

// read returns what the file holds; nil when there is none.
func (p *pinned) read() ([]byte, error) {
	if p.path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the pinned %s: %w", p.what, err)
	}
	return raw, nil
}

// Signed is the newest that was accepted, as it was signed, or nil.
func (p *pinned) Signed() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.raw)
}

// keepLocked makes raw the newest: on the disk first.
func (p *pinned) keepLocked(raw []byte, version uint64) error {
	if p.path != "" {
		if err := WriteState(p.path, raw); err != nil {
			return fmt.Errorf("pin %s %d: %w", p.what, version, err)
		}
	}
	p.raw = bytes.Clone(raw)
	return nil
}
