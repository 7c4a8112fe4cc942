package discord

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/gateway"
)

const (
	vaultName = "discord/resume"
	// maxRooms is how many channels' last messages are kept: some 30 KiB in the Vault.
	maxRooms = 500
	// lookBack is how far back a gateway reads that knows nothing of its predecessor.
	lookBack = 5 * time.Minute
	// furthest is how far back it reads at most.
	furthest = 24 * time.Hour
	// epoch is where Discord's ids begin to count milliseconds.
	epoch = 1420070400000
)

// place is the last message of a channel that is in the bus, or that nobody had to take.
type place struct {
	Last uint64 `json:"l"`
	DM   bool   `json:"d,omitempty"`
}

// position is where an account stopped: what the next owner goes on from.
type position struct {
	// Bot tells one token from another, without showing it: a session is of no use to another bot.
	Bot     string           `json:"bot,omitempty"`
	Session string           `json:"session,omitempty"`
	URL     string           `json:"url,omitempty"`
	Seq     int64            `json:"seq,omitempty"`
	Me      string           `json:"me,omitempty"`
	Name    string           `json:"name,omitempty"`
	Rooms   map[string]place `json:"rooms,omitempty"`
	// Floor is the id up to which nothing is read again in a channel that is not in Rooms.
	Floor uint64 `json:"floor,omitempty"`
}

// memory is a position, kept in the Vault as it was up to some seconds ago. That is enough: what is heard twice is taken in once.
type memory struct {
	mu     sync.Mutex
	p      position
	dirty  chan struct{} // one place: there is something to save
	urgent chan struct{} // one place: now
}

func newMemory(token string) *memory {
	sum := sha256.Sum256([]byte(token))
	return &memory{p: position{Bot: hex.EncodeToString(sum[:8]), Rooms: map[string]place{}}, dirty: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
}

// load goes on from where the last owner stopped.
func (m *memory) load(ctx context.Context, v gateway.Vault) error {
	b, err := v.Get(ctx, vaultName)
	if err != nil || b == nil {
		return err
	}
	var p position
	if json.Unmarshal(b, &p) != nil {
		return nil // of another build, or spoilt: as if there were none
	}
	if p.Rooms == nil {
		p.Rooms = map[string]place{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case p.Bot != m.p.Bot: // what another bot heard says nothing of this one
	case m.p.Floor == 0: // a Run that is called again knows better
		m.p = p
	}
	return nil
}

// begin sets the floor of an account that has none.
func (m *memory) begin(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p.Floor == 0 {
		m.p.Floor = snowflakeAt(now.Add(-lookBack))
	}
}

// keepSaved writes what changed into the Vault, until ctx ends.
func (m *memory) keepSaved(ctx context.Context, v gateway.Vault, every time.Duration, log hclog.Logger) {
	t := time.NewTimer(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.dirty:
		}
		t.Reset(every)
		select {
		case <-ctx.Done():
			return
		case <-m.urgent:
		case <-t.C:
		}
		m.mu.Lock()
		b, err := json.Marshal(m.p)
		m.mu.Unlock()
		if err == nil {
			err = v.Write(ctx, map[string][]byte{vaultName: b})
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("where this account stands at Discord is not saved; its next owner reads more again", "error", err)
			m.changed(false)
		}
	}
}

// changed rings the one who saves; now: without waiting for more.
func (m *memory) changed(now bool) {
	select {
	case m.dirty <- struct{}{}:
	default:
	}
	if now {
		select {
		case m.urgent <- struct{}{}:
		default:
		}
	}
}

func (m *memory) self() self {
	m.mu.Lock()
	defer m.mu.Unlock()
	return self{m.p.Me, m.p.Name}
}

func (m *memory) setSelf(s self) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Me, m.p.Name = s.id, s.name
}

// session returns what can be resumed; an empty id: nothing.
func (m *memory) session() (id, url string, seq int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.p.Session, m.p.URL, m.p.Seq
}

// setSession is for a new one, and with an empty id for one that ended.
func (m *memory) setSession(id, url string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Session, m.p.URL, m.p.Seq = id, url, 0
	m.changed(true)
}

// failedAt makes the next connection go where new sessions begin. The session itself is kept: there, too, it can be resumed.
func (m *memory) failedAt() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.URL = ""
}

// accepted says that everything up to seq is in the bus.
func (m *memory) accepted(seq int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Seq = max(m.p.Seq, seq)
	m.changed(false)
}

// seq is the last event that is in the bus.
func (m *memory) seq() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.p.Seq
}

// saw says that a message need not be read again, nor any before it in its channel.
func (m *memory) saw(channel, message string, dm bool) {
	id, err := strconv.ParseUint(message, 10, 64)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.p.Rooms[channel]; ok && old.Last >= id {
		return
	}
	m.p.Rooms[channel] = place{Last: id, DM: dm}
	if len(m.p.Rooms) > maxRooms {
		oldest, at := "", ^uint64(0)
		for ch, p := range m.p.Rooms {
			if p.Last < at {
				oldest, at = ch, p.Last
			}
		}
		delete(m.p.Rooms, oldest)
		m.p.Floor = max(m.p.Floor, at)
	}
	m.changed(false)
}

// since is the message after which a channel is to be read.
func (m *memory) since(channel string, now time.Time) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.p.Floor
	if p, ok := m.p.Rooms[channel]; ok {
		last = p.Last
	}
	return max(last, snowflakeAt(now.Add(-furthest)))
}

// dms are the DM channels that are known: Discord lists them to no bot.
func (m *memory) dms() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []string
	for ch, p := range m.p.Rooms {
		if p.DM {
			found = append(found, ch)
		}
	}
	return found
}

// snowflakeAt is the lowest id of that time.
func snowflakeAt(t time.Time) uint64 {
	return uint64(max(t.UnixMilli()-epoch, 0)) << 22
}

// snowflakeTime is when an id was given.
func snowflakeTime(id string) time.Time {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(int64(n>>22) + epoch).UTC()
}
