package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/gatemesh/gatemesh/envelope/trust"
)

// marks are how far this gateway's lanes had come, on its own disk. A signed bell or cursor of last week is true and was
// said; only who remembers more can tell. They are written every few seconds, so what happened since then is not in
// them, and another node has none: see "What is not promised".
type marks struct {
	path string

	mu    sync.Mutex
	m     markFile
	dirty bool
}

type markFile struct {
	// Sent is the newest entry of the lane to an agent; Taken the cursor of a lane, by "<gateway>/<agent>".
	Sent  map[string]uint64 `json:"sent"`
	Taken map[string]uint64 `json:"taken"`
}

// maxMarks bounds the file: 8 MiB are some 100,000 lanes.
const maxMarks = 8 << 20

// rollbackJump is added to the newest mark when a lane was put back to an older state: beyond anything that was sent since
// the mark was written.
const rollbackJump = 1 << 20

// openMarks reads the file; with an empty path nothing is kept. A file that cannot be read is an error: going on without it is what
// somebody who spoilt it wants.
func openMarks(path string) (*marks, error) {
	k := &marks{path: path, m: markFile{map[string]uint64{}, map[string]uint64{}}}
	if path == "" {
		return k, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil && len(raw) > maxMarks {
		err = fmt.Errorf("it has %d bytes, at most %d", len(raw), maxMarks)
	}
	if err == nil {
		err = json.Unmarshal(raw, &k.m)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w (if its loss is explained, remove the file: nothing is known then of lanes that are put back)", path, err)
	}
	if k.m.Sent == nil {
		k.m.Sent = map[string]uint64{}
	}
	if k.m.Taken == nil {
		k.m.Taken = map[string]uint64{}
	}
	return k, nil
}

func (k *marks) raise(in func(*markFile) map[string]uint64, lane string, n uint64) {
	if k.path == "" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if m := in(&k.m); n > m[lane] {
		m[lane] = n
		k.dirty = true
	}
}

func (k *marks) get(in func(*markFile) map[string]uint64, lane string) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return in(&k.m)[lane]
}

func sentMarks(f *markFile) map[string]uint64  { return f.Sent }
func takenMarks(f *markFile) map[string]uint64 { return f.Taken }

// save writes the file if anything changed.
func (k *marks) save() error {
	k.mu.Lock()
	if !k.dirty {
		k.mu.Unlock()
		return nil
	}
	raw, err := json.Marshal(&k.m)
	k.dirty = false
	k.mu.Unlock()
	if err == nil {
		err = trust.WriteState(k.path, raw)
	}
	if err != nil {
		k.mu.Lock()
		k.dirty = true
		k.mu.Unlock()
		return fmt.Errorf("keep how far the lanes have come: %w", err)
	}
	return nil
}
