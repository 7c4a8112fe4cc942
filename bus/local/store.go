package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/gatemesh/gatemesh/bus"
)

const (
	// maxOps and maxBytes are those of bus/consul (whose 512 KiB are JSON with the
	// values in base64).
	maxOps   = 64
	maxBytes = 368 << 10
	// maxKey bounds a key, in bytes. bbolt takes 32,768 and the lock records put a
	// session id before the key.
	maxKey = 16 << 10

	// lockWait is how long Open waits for the file: long enough for a predecessor
	// that is just closing it, short enough for an operator.
	lockWait = 500 * time.Millisecond

	// defaultMaxWait is Consul's default for a blocking query.
	defaultMaxWait = 5 * time.Minute
)

// ErrInUse: the file is open already, in another process or in this one.
var ErrInUse = errors.New("another process has this store open: stop it, or give this one a file of its own")

// Options are the settings of a store. The zero value is ready for use.
type Options struct {
	// MaxWait ends a Watch without a change; 0 means 5 minutes.
	MaxWait time.Duration
	// Log receives what no caller can be told: a session's end that cannot be
	// written. Nil discards it.
	Log *slog.Logger
}

// Store implements [bus.Store] on one file. See the package documentation.
type Store struct {
	path    string
	db      *bolt.DB
	log     *slog.Logger
	maxWait time.Duration

	closing   chan struct{} // closed by Close
	done      chan struct{} // closed by the committer as its last act
	closeOnce sync.Once
	closeErr  error

	// index is the last index given out, whether or not its commit succeeded; only
	// the committer uses it.
	index uint64

	mu       sync.Mutex
	work     sync.Cond // on mu: the queue has grown, or the store closes
	closed   bool
	queue    []*request
	sessions map[string]*session // the living ones, and those whose end is not written yet
	watches  map[*watch]struct{}
	deletes  deleteLog

	// commitFault, if any, is asked before a commit is written; tests set it, on
	// the committer's goroutine.
	commitFault func() error
}

var _ bus.Store = (*Store)(nil)

// Open opens the store at path. It creates the file (mode 0600) and its
// directory (0700) when they are missing, and ends the sessions that a dead
// process left in it.
//
// Errors: [ErrInUse] after half a second when the file is open elsewhere;
// otherwise the cause, with the path.
func Open(path string, opts Options) (*Store, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create store directory: %w", err)
	}
	_, statErr := os.Stat(path)
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: lockWait,
		// Of the two kinds this is the one whose cost does not grow with the free pages.
		FreelistType: bolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("open %s: %w", path, ErrInUse)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, berrors.ErrChecksum):
		return nil, fmt.Errorf("open %s: not a store file, or damaged; move it away or restore it from a backup: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("open store: %w", withFix(err, dir))
	}

	s := &Store{
		path:     path,
		db:       db,
		log:      opts.Log,
		maxWait:  opts.MaxWait,
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
		sessions: make(map[string]*session),
		watches:  make(map[*watch]struct{}),
	}
	s.work.L = &s.mu
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.maxWait <= 0 {
		s.maxWait = defaultMaxWait
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, withFix(err, dir)), db.Close())
	}
	if errors.Is(statErr, os.ErrNotExist) {
		// Without this a power cut could take the new file's name, and all of it.
		if err := syncDir(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("sync store directory: %w", err), db.Close())
		}
	}
	go s.commitLoop()
	return s, nil
}

// prepare brings the file into the state a new process may start from.
func (s *Store) prepare() error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it only says so
	dirty := false
	for _, name := range [][]byte{bucketMeta, bucketPairs, bucketSessions, bucketLocks} {
		if tx.Bucket(name) == nil {
			dirty = true
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
	}
	meta := tx.Bucket(bucketMeta)
	switch v := getUint(meta, keyFormat); v {
	case formatVersion:
	case 0:
		dirty = true
		if err := putUint(meta, keyFormat, formatVersion); err != nil {
			return err
		}
		// Index 0 means "from the start" to Watch, so no watch may ever return it.
		if err := putUint(meta, keyIndex, 1); err != nil {
			return err
		}
	default:
		return fmt.Errorf("file format %d, this build knows %d: use the build that wrote it", v, formatVersion)
	}

	b := s.newBatch(tx, getUint(meta, keyIndex))
	var dead []string
	c := b.sessions.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		dead = append(dead, string(k))
	}
	for _, id := range dead {
		if err := b.endSession(id); err != nil {
			return err
		}
	}
	if dirty || b.dirty {
		if err := b.commit(); err != nil {
			return err
		}
	}
	s.index = b.index
	// What was deleted before this moment is forgotten; a watch from before it
	// returns at once.
	s.deletes.floor = b.index
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get implements [bus.Store].
func (s *Store) Get(ctx context.Context, key string) (*bus.Pair, error) {
	var p *bus.Pair
	err := s.view(ctx, func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketPairs).Get([]byte(key))
		if v == nil {
			return nil
		}
		e, err := decode(key, v)
		if err != nil {
			return err
		}
		found := e.pair(key)
		p = &found
		return nil
	})
	return p, err
}

// Read implements [bus.Store].
func (s *Store) Read(ctx context.Context, key string) ([]byte, error) {
	p, err := s.Get(ctx, key)
	if err != nil || p == nil || len(p.Value) == 0 {
		return nil, err
	}
	return p.Value, nil
}

// List implements [bus.Store].
func (s *Store) List(ctx context.Context, prefix string) ([]bus.Pair, error) {
	var list []bus.Pair
	err := s.view(ctx, func(tx *bolt.Tx) (err error) {
		list, err = readAll(tx, prefix)
		return err
	})
	return list, err
}

// readAll returns the pairs below prefix, copied.
func readAll(tx *bolt.Tx, prefix string) ([]bus.Pair, error) {
	var list []bus.Pair
	err := scan(tx.Bucket(bucketPairs), prefix, func(key string, e *entry) {
		list = append(list, e.pair(key))
	})
	return list, err
}

// Keys implements [bus.Store]. What a cut key stands for is skipped, not read.
func (s *Store) Keys(ctx context.Context, prefix, separator string) ([]string, error) {
	var keys []string
	err := s.view(ctx, func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketPairs).Cursor()
		k, _ := c.Seek([]byte(prefix))
		for k != nil && bytes.HasPrefix(k, []byte(prefix)) {
			key := string(k)
			cut := -1
			if separator != "" {
				cut = strings.Index(key[len(prefix):], separator)
			}
			if cut < 0 {
				keys = append(keys, key)
				k, _ = c.Next()
				continue
			}
			key = key[:len(prefix)+cut+len(separator)]
			keys = append(keys, key)
			next := behind(key)
			if next == nil {
				break
			}
			k, _ = c.Seek(next)
		}
		return nil
	})
	return keys, err
}

// behind returns the least key that is greater than every key starting with
// prefix, or nil when there is none.
func behind(prefix string) []byte {
	b := []byte(prefix)
	for len(b) > 0 {
		if b[len(b)-1]++; b[len(b)-1] != 0 {
			return b
		}
		b = b[:len(b)-1]
	}
	return nil
}

// view runs fn on what is committed. fn must not wait for anything: a commit that
// needs a larger memory map waits for every reader.
func (s *Store) view(ctx context.Context, fn func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.closing:
		return bus.ErrClosed
	default:
	}
	return s.readError(s.db.View(fn))
}

// readError gives an error of a read or of one transaction its public form.
func (s *Store) readError(err error) error {
	switch {
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return bus.ErrClosed
	case errors.Is(err, errDamaged):
		return fmt.Errorf("%w: read %s (restore it from a backup): %w", bus.ErrUnavailable, s.path, err)
	default:
		return err
	}
}

// Limits implements [bus.Store]. They are Consul's, so that what works here works
// there. A key longer than 16 KiB is ErrTooLarge, too.
func (s *Store) Limits() bus.Limits {
	return bus.Limits{Ops: maxOps, Bytes: maxBytes}
}

// Describe implements [bus.Store].
func (s *Store) Describe() string { return "file " + s.path }

// Close implements [bus.Store]. It waits for the commit that is being written;
// transactions that still wait for theirs get ErrClosed and are not applied.
// Sessions are not ended now but by the next Open. Closing again is no error.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		close(s.closing)
		for _, sess := range s.sessions {
			sess.stopLocked()
		}
		s.work.Signal()
		s.mu.Unlock()
		<-s.done
		if err := s.db.Close(); err != nil {
			s.closeErr = fmt.Errorf("close %s: %w", s.path, err)
		}
	})
	return s.closeErr
}

// unavailable makes a failed commit's error.
func (s *Store) unavailable(err error) error {
	return fmt.Errorf("%w: write %s: %w", bus.ErrUnavailable, s.path, withFix(err, filepath.Dir(s.path)))
}

// withFix adds to err what an operator can do about it.
func withFix(err error, dir string) error {
	err = withErrno(err)
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("disk full: free space in %s: %w", dir, err)
	case errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("disk quota used up: free space in %s or raise the quota: %w", dir, err)
	case errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("file size limit reached: raise it (ulimit -f): %w", err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("read-only file system: remount %s writable: %w", dir, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("give this user read and write access to %s: %w", dir, err)
	default:
		return err
	}
}

// withErrno makes the cause findable by errors.Is where bbolt kept only its text,
// as it does when the file cannot grow.
func withErrno(err error) error {
	text := err.Error()
	for _, no := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EROFS, syscall.EIO} {
		if head, ok := strings.CutSuffix(text, no.Error()); ok && !errors.Is(err, no) {
			return fmt.Errorf("%s%w", head, no)
		}
	}
	return err
}
