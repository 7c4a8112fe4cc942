package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Term is one time of owning an inbox: from when this gateway took its lock until it lost or released it. What is
// written through a Term is refused by the store once the lock is somebody else's, or nobody's.
type Term struct{ ib *inbox }

// Term is the one in which the message is handled.
func (m *Incoming) Term() *Term { return &Term{m.j.ib} }

// Agent is whose inbox it is.
func (t *Term) Agent() string { return t.ib.spec.ID }

// Gateway is the one that owns it.
func (t *Term) Gateway() string { return t.ib.b.cfg.Gateway }

// Token is the term's fencing token: later terms of the inbox, on whichever gateway, have higher ones.
func (t *Term) Token() uint64 { return t.ib.term }

// Trusted says, without asking anybody, whether the term can still be this gateway's: [ErrDeposed] when its session is
// older than it is believed, or when this process was stopped for a while. It is no lock: see [Permit] for what to do
// before an effect outside of the mesh.
func (t *Term) Trusted() error {
	if s := t.ib.b.session; t.ib.ctx.Err() != nil || !s.trusted() || s.id() != t.ib.session {
		return ErrDeposed
	}
	return nil
}

// Verify asks the store whether the term still has its lock; what it answers was so after the call began. Errors:
// [ErrDeposed] (the term ends with it), [ErrUnavailable].
func (t *Term) Verify(ctx context.Context) error {
	if err := t.Trusted(); err != nil {
		return err
	}
	p, err := t.ib.b.store.Get(ctx, agentLockKey(t.ib.spec.ID))
	if err != nil {
		return fmt.Errorf("verify the ownership of %s: %w", t.ib.spec.ID, err)
	}
	if p == nil || p.Session != t.ib.session {
		t.ib.depose(ErrDeposed)
		return ErrDeposed
	}
	return nil
}

// Send sends a message if, in the same moment, the term still has its lock. From defaults to the owned agent.
// Errors are those of [Bus.Send], and [ErrDeposed]. It works until the lock is released, also while the gateway stops.
func (t *Term) Send(ctx context.Context, out Outgoing) (*envelope.Sealed, error) {
	if out.From == "" {
		out.From = t.ib.spec.ID
	}
	if t.ib.ctx.Err() != nil {
		return nil, ErrDeposed
	}
	all, err := t.ib.b.sendOwned(ctx, t.ib, []Outgoing{out}, nil)
	if len(all) == 0 {
		return nil, err
	}
	return all[0], err
}

// Bounds of what one [Term.Write] may hold, and of a name in an inbox's room.
const (
	MaxRoomWrites = 60
	maxRoomBytes  = 256 << 10
	maxRoomName   = 200
)

// RoomEntry is a named value in the room of an inbox: a small place in the store for what its owners hand on to each
// other. A value that is a JSON object or array stays legible there and comes back compact; any other is kept byte for byte.
type RoomEntry struct {
	Name string
	// Value nil in a write: the entry is deleted.
	Value []byte
}

// roomRecord is what lies in the store.
type roomRecord struct {
	JSON  json.RawMessage `json:"json,omitempty"`
	Bytes []byte          `json:"bytes,omitempty"`
}

// Get reads an entry of the inbox's room; nil: there is none.
func (t *Term) Get(ctx context.Context, name string) (*RoomEntry, error) {
	if err := checkRoomName(name); err != nil {
		return nil, err
	}
	p, err := t.ib.b.store.Get(ctx, roomKey(t.ib.spec.ID, name))
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", name, t.ib.spec.ID, err)
	}
	if p == nil {
		return nil, nil //nolint:nilnil // documented
	}
	return t.ib.b.openRoom(t.ib.spec.ID, p)
}

// List reads the entries whose names begin with prefix, in the order of their names. One that is not believed is left
// out, and told of as an event.
func (t *Term) List(ctx context.Context, prefix string) ([]RoomEntry, error) {
	return t.ib.b.Room(ctx, t.ib.spec.ID, prefix)
}

// Room is [Term.List] for whoever only reads: any gateway may.
func (b *Bus) Room(ctx context.Context, agent, prefix string) ([]RoomEntry, error) {
	pairs, err := b.store.List(ctx, roomKey(agent, prefix))
	if err != nil {
		return nil, fmt.Errorf("list %s of %s: %w", prefix, agent, err)
	}
	list := make([]RoomEntry, 0, len(pairs))
	for i := range pairs {
		if e, err := b.openRoom(agent, &pairs[i]); err == nil {
			list = append(list, *e)
		}
	}
	return list, nil
}

// WatchRoom calls changed with the entries below a name of an inbox's room, now and whenever they changed, until ctx ends or changed fails. It rides
// out outages. Watch an entry that exists and is small: each wake reads all of them.
func (b *Bus) WatchRoom(ctx context.Context, agent, prefix string, changed func([]RoomEntry) error) error {
	return b.watch(ctx, roomKey(agent, prefix), func(pairs []Pair) error {
		list := make([]RoomEntry, 0, len(pairs))
		for i := range pairs {
			if e, err := b.openRoom(agent, &pairs[i]); err == nil {
				list = append(list, *e)
			}
		}
		return changed(list)
	})
}

// Write writes and deletes entries of the inbox's room in one transaction, if the term still has its lock: at most
// [MaxRoomWrites] entries of 256 KiB together. Errors: [ErrDeposed], [ErrTooLarge], envelope.ErrInvalid; when ctx ends
// first, [ErrOutcomeUnknown].
func (t *Term) Write(ctx context.Context, entries ...RoomEntry) error {
	if len(entries) == 0 {
		return nil
	}
	ops, err := t.ib.roomOps(entries)
	if err != nil {
		return err
	}
	return t.ib.write(ctx, ops)
}

// Keep writes and deletes entries of the inbox's room in the transaction that acks the message; if that
// never happens, they are never written. Bounds and errors are those of [Term.Write], and [ErrLeaseLost].
func (m *Incoming) Keep(entries ...RoomEntry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.lease.alive() {
		return ErrLeaseLost
	}
	ops, err := m.j.ib.roomOps(entries)
	if err != nil {
		return err
	}
	m.extra = append(m.extra, ops...)
	return nil
}

// roomOps are the operations that write entries.
func (ib *inbox) roomOps(entries []RoomEntry) ([]Op, error) {
	if len(entries) > MaxRoomWrites {
		return nil, fmt.Errorf("%w: %d entries in one write, at most %d", ErrTooLarge, len(entries), MaxRoomWrites)
	}
	ops, size := make([]Op, 0, len(entries)), 0
	for _, e := range entries {
		if err := checkRoomName(e.Name); err != nil {
			return nil, err
		}
		key := roomKey(ib.spec.ID, e.Name)
		if e.Value == nil {
			ops = append(ops, Op{Verb: OpDelete, Key: key})
			continue
		}
		var rec roomRecord
		if s := strings.TrimSpace(string(e.Value)); s != "" && (s[0] == '{' || s[0] == '[') && json.Valid(e.Value) {
			rec.JSON = e.Value
		} else {
			rec.Bytes = e.Value
		}
		value := ib.b.sign(trust.KindRecord, key, mustEncode(rec))
		if size += len(value); size > maxRoomBytes {
			return nil, fmt.Errorf("%w: one write to the room of %s holds at most %d KiB", ErrTooLarge, ib.spec.ID, maxRoomBytes>>10)
		}
		ops = append(ops, Op{Verb: OpSet, Key: key, Value: value})
	}
	return ops, nil
}

// write has the owner's ops written, or refused with [ErrDeposed].
func (ib *inbox) write(ctx context.Context, ops []Op) error {
	if ib.ctx.Err() != nil {
		return ErrDeposed
	}
	done := make(chan error, 1)
	ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, extra: ops, done: func(err error) { done <- err }})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ib.b.outcomeUnknown(ctx.Err())
	}
}

func (b *Bus) openRoom(agent string, p *Pair) (*RoomEntry, error) {
	body, err := b.read(trust.KindRecord, p.Key, p.Value, "", agent)
	if err != nil {
		b.refuse(p.Key, p.Value, err, "", agent)
		return nil, fmt.Errorf("%s is not believed: %w", p.Key, err)
	}
	var rec roomRecord
	if err := json.Unmarshal(body, &rec); err != nil {
		b.refuse(p.Key, p.Value, err, "", agent)
		return nil, fmt.Errorf("%s is not readable: %w", p.Key, err)
	}
	e := &RoomEntry{Name: p.Key[len(roomKey(agent, "")):], Value: rec.Bytes}
	if rec.JSON != nil {
		e.Value = rec.JSON
	}
	if e.Value == nil {
		e.Value = []byte{}
	}
	return e, nil
}

func checkRoomName(name string) error {
	ok := name != "" && len(name) <= maxRoomName && name[0] != '/' && name[len(name)-1] != '/' && !strings.Contains(name, "//") && !strings.Contains(name, "..")
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./", r))
	}
	if !ok {
		return fmt.Errorf("%w: %q names no entry of a room: want 1 to %d of a-z, A-Z, 0-9, -, _, . and single /", envelope.ErrInvalid, name, maxRoomName)
	}
	return nil
}
