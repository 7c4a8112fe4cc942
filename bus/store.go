package bus

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Store is the small set of operations that delivery and ownership need. Two
// implementations exist: bus/consul and bus/local; bus/bustest is the contract
// that both pass.
//
// Keys are clean UTF-8 paths: no leading slash, no empty, "." or ".." element, nothing escaped. All reads are consistent (never
// stale). Methods are safe for concurrent use.
//
// Errors: [ErrUnavailable] (try again later; a write may or may not have been
// applied), *[TxnError] (a transaction was refused as a whole, nothing was
// written), [ErrTooLarge], [ErrNoSession], [ErrForbidden], [ErrClosed], or the
// context's error. Test with errors.Is and errors.As.
type Store interface {
	// Get returns the pair at key, or nil without an error when there is none.
	Get(ctx context.Context, key string) (*Pair, error)

	// Read returns the value at key and nothing else of it, or nil when there is none (or
	// an empty one): the cheap way to a big value.
	Read(ctx context.Context, key string) ([]byte, error)

	// List returns every pair whose key starts with prefix, in key order.
	List(ctx context.Context, prefix string) ([]Pair, error)

	// Keys returns the keys that start with prefix, in order, without their values.
	// With a separator, keys are cut after its first occurrence behind the
	// prefix, and each cut key is named once (as a directory listing does).
	Keys(ctx context.Context, prefix, separator string) ([]string, error)

	// Txn applies all ops or none, in one step that is durable when Txn returns.
	// It returns one Pair for every op: what the op wrote (without its value) or,
	// for OpGet, what it read (Key empty when there is none); for checks and
	// deletes a Pair with only Key set. All keys that it writes get one ModifyIndex; later ops
	// see what earlier ones wrote. A refused transaction returns *TxnError. Limits apply ([Limits]).
	Txn(ctx context.Context, ops []Op) ([]Pair, error)

	// Put writes one key by compare-and-swap, as a transaction of one OpCAS would, and reports
	// whether it did. A big value is much cheaper this way than in a transaction
	// (Consul takes it as it is, instead of as base64 inside JSON), and may have up to
	// 512 KiB less 4 KiB.
	Put(ctx context.Context, key string, value []byte, index uint64) (bool, error)

	// Watch waits until something below prefix has changed since the watch index
	// after, then returns what is below prefix now and the index to pass next time. With
	// after 0 it returns at once. It may return early with nothing changed, and
	// several changes may come as one: a watch carries wake-ups, not facts. The index is never
	// 0. Keep a resident key below the prefix: without one the watch may wake for anything.
	// The returned index may be lower than after (the store was restored); callers
	// only ever pass back what they were given.
	Watch(ctx context.Context, prefix string, after uint64) ([]Pair, uint64, error)

	// NewSession creates a session. Keys locked by it are deleted when it ends
	// (destroyed, its TTL passed without renewal, or its check turned critical). For a moment
	// after that the lock may still be refused (Consul's lock-delay, here 1 ms): try again.
	NewSession(ctx context.Context, opt SessionOptions) (string, error)

	// RenewSession restarts the TTL. ErrNoSession: it has ended.
	RenewSession(ctx context.Context, id string) error

	// DestroySession ends the session; ending one that has ended is no error.
	DestroySession(ctx context.Context, id string) error

	// Limits returns what one transaction may hold.
	Limits() Limits

	// Describe names the store for people, without secrets ("consul at
	// http://127.0.0.1:8500", "file data/mesh.db").
	Describe() string

	// Close releases connections and files. Watches return ErrClosed.
	Close() error
}

// Pair is one stored key.
type Pair struct {
	Key   string
	Value []byte
	// CreateIndex and ModifyIndex grow over the whole store, not per key.
	CreateIndex, ModifyIndex uint64
	// Session holds the key's lock; empty when unlocked.
	Session string
}

// Verb is what an Op does.
type Verb uint8

// The verbs of a transaction. Each is one of Consul's KV transaction verbs.
const (
	// OpSet writes Value whatever is there (a lock on the key stays). Writing the bytes that
	// a key holds already keeps its ModifyIndex and wakes nobody; so it is with OpCAS and OpLock.
	OpSet Verb = iota + 1
	// OpCAS writes Value if the key's ModifyIndex is Index; Index 0: if there is no such key.
	OpCAS
	// OpGet reads the key; a missing key is not an error.
	OpGet
	// OpDelete deletes the key; a missing key is not an error.
	OpDelete
	// OpDeleteCAS deletes the key if its ModifyIndex is Index; a missing key is not an error.
	OpDeleteCAS
	// OpDeleteTree deletes every key that starts with Key.
	OpDeleteTree
	// OpLock writes Value and locks the key with Session; refused while another
	// session holds it. Locking again with the same session only writes.
	OpLock
	// OpUnlock writes Value and releases the lock that Session holds; refused
	// when it does not hold it.
	OpUnlock
	// OpCheckSession refuses the transaction unless Session holds the key's lock; an empty
	// Session is always refused.
	OpCheckSession
	// OpCheckIndex refuses the transaction unless the key's ModifyIndex is Index.
	OpCheckIndex
	// OpCheckNotExists refuses the transaction if there is such a key.
	OpCheckNotExists
)

var verbNames = [...]string{"?", "set", "cas", "get", "delete", "delete-cas", "delete-tree", "lock", "unlock", "check-session", "check-index", "check-not-exists"}

func (v Verb) String() string {
	if int(v) < len(verbNames) {
		return verbNames[v]
	}
	return verbNames[0]
}

// Op is one operation of a transaction.
type Op struct {
	Verb    Verb
	Key     string
	Value   []byte
	Index   uint64
	Session string
}

// Writes reports whether the op can change the store.
func (o Op) Writes() bool {
	switch o.Verb {
	case OpGet, OpCheckSession, OpCheckIndex, OpCheckNotExists:
		return false
	default:
		return true
	}
}

// Limits bounds one transaction and one value.
type Limits struct {
	// Ops is the number of operations (Consul: 64 is safe on every version).
	Ops int
	// Bytes is the sum of all values (368 KiB: with 64 keys of up to 150 bytes, and in
	// base64, just below the 512 KiB that Consul takes).
	Bytes int
}

// SessionOptions describes a session.
type SessionOptions struct {
	// Name is shown to operators.
	Name string
	// TTL ends the session when it is not renewed in time. Consul accepts 10 s to
	// 24 h, and may take up to twice the TTL to notice.
	TTL time.Duration
	// Checks are service checks of this node whose failure ends the session at
	// once, by id. A store without checks ignores them.
	Checks []string
}

// Sentinels of every Store.
var (
	// ErrUnavailable: the store cannot be reached or has no leader. For a write: its
	// outcome is unknown.
	ErrUnavailable = errors.New("store unavailable")
	// ErrNoSession: the session has ended.
	ErrNoSession = errors.New("session has ended")
	// ErrTooLarge: a value or transaction is over the store's limit; nothing was written.
	ErrTooLarge = errors.New("too large for the store")
	// ErrForbidden: the store's access rules refuse it; trying again will not help.
	ErrForbidden = errors.New("not allowed by the store's access rules")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store is closed")
)

// TxnError says which operations refused a transaction. Nothing was written.
type TxnError struct {
	Failed []FailedOp
}

// FailedOp is one operation that refused.
type FailedOp struct {
	Op   int // its place in the transaction
	What string
}

func (e *TxnError) Error() string {
	if len(e.Failed) == 0 {
		return "transaction refused"
	}
	return fmt.Sprintf("transaction refused: op %d: %s", e.Failed[0].Op, e.Failed[0].What)
}

// Refused reports whether op number i is among the refusing ones.
func (e *TxnError) Refused(i int) bool {
	for _, f := range e.Failed {
		if f.Op == i {
			return true
		}
	}
	return false
}

// A Registrar is a Store that also keeps a service catalog.
type Registrar interface {
	// RegisterService makes the gateway known with a health check and returns
	// the check's id, to which a session can be bound.
	RegisterService(ctx context.Context, svc Service) (checkID string, err error)
	// DeregisterService removes it.
	DeregisterService(ctx context.Context, id string) error
}

// A Led is a Store whose servers have a leader.
type Led interface {
	// Leads reports whether the server that this store asks is the one that leads.
	Leads(ctx context.Context) (bool, error)
}

// An Overseer is a Store that hears of what the checks find from somebody else, who may be late with it.
type Overseer interface {
	// Oversees returns nil once what these checks find was seen to reach the store by itself: from then on a gateway that fails loses its session by its
	// check. It may wait, and write. Nil is no promise for later: whoever passes it on may stop doing so.
	Oversees(ctx context.Context, checks []string) error
}

// A Reachable is a Store that is asked through an agent, which may be there while its servers cannot decide anything.
type Reachable interface {
	// Reach returns nil when the agent answers, whatever it answers.
	Reach(ctx context.Context) error
}

// Service is a gateway's entry in the catalog.
type Service struct {
	ID, Name string
	Address  string
	Port     int
	Tags     []string
	Meta     map[string]string
	// HealthURL is asked every Interval; anything but 2xx is critical.
	HealthURL string
	Interval  time.Duration
}

// storeAs is the store, or the one that it wraps (by a method Unwrap), as something that not every store can do; nil: it cannot.
func storeAs[T any](s Store) T {
	for s != nil {
		if t, ok := s.(T); ok {
			return t
		}
		w, ok := s.(interface{ Unwrap() Store })
		if !ok {
			break
		}
		s = w.Unwrap()
	}
	var none T
	return none
}
