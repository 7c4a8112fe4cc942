package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

const (
	// headReceipts is how many messages may stand beside the cursor before the next write
	// moves them to the ledger: a bigger page costs every quick ack more bytes, a smaller
	// one more keys.
	headReceipts = 8
	// ledgerReceipts is how many that come at once go to the ledger at once, where they are written and read once, packed.
	ledgerReceipts = 64
	// dedupeReceipts is the stated bound of the dedupe memory, in messages per lane.
	dedupeReceipts = 16384
)

// source is the receiving end of one lane: (source gateway, this agent).
type source struct {
	agent, from string

	mu sync.Mutex
	// page is the receipts key as the store has it; the writer changes it.
	page page
	// entries are fetched and not yet all behind the cursor, in order.
	entries []*laneEntry
	// fetched is the newest entry that was read; only the lane's reader touches it. admitted is the newest whose messages are in their
	// conversations.
	fetched  uint64
	admitted atomic.Uint64
	// fresh: the lane has no cursor and nothing of it was read yet; its reader's too.
	fresh bool
	// mistrusted: there is a cursor, and it cannot be believed.
	mistrusted bool
	// head is what the newest bell that was believed names; its reader's too.
	head *signedHead
	// rung is the ModifyIndex of the bell that was followed to its end, or refused; its reader's too.
	rung uint64
	// careful is the newest entry whose messages the last owner may have died with.
	careful uint64
	// held and heldBytes are what is in memory of this lane; the inbox's mutex guards them.
	held, heldBytes int
	// seen is the dedupe memory; order holds its keys, oldest first.
	seen  map[string]envelope.State
	order []string
}

// laneEntry is one entry that was read from the lane.
type laneEntry struct {
	src        *source
	seq, count uint64
	// open is the number of its items that are not yet behind the cursor or in a
	// record of their own, as far as the store knows.
	open int
}

// page is the newest receipts and the cursor.
type page struct {
	index                 uint64
	value                 []byte // as it lies in the store
	body                  []byte // without its signature
	number, cursor, count uint64
	last                  int // receipts in the page before it; 0: not known
	receipts              [][]byte
	messages              int // in receipts
	ledger                []ledgerPage
}

type ledgerPage struct {
	number   uint64
	messages int
}

func (p *page) ledgerMessages() int {
	n := 0
	for _, l := range p.ledger {
		n += l.messages
	}
	return n
}

func (s *source) headBytes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.page.value)
}

// loadSource reads the receiving end of a lane, dedupe memory included.
func loadSource(ctx context.Context, b *Bus, agent, from string) (*source, error) {
	s := &source{agent: agent, from: from}
	err := s.reload(ctx, b)
	return s, err
}

// keep reports whether what lies in the store is not this owner's own newest page, and not a later one: then what it knows
// goes on to count, and the next write goes over it. A later one is that of a try whose answer was lost, or of who
// deposed it.
func (s *source) keep(h receiptHead, p *Pair, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var refused *trust.Refusal
	switch {
	case s.page.value == nil, err != nil && !errors.As(err, &refused):
		return false
	case err == nil && p != nil && h.Cursor >= s.page.cursor && h.Page >= s.page.number:
		return false
	}
	s.page.index = 0
	if p != nil {
		s.page.index = p.ModifyIndex
	}
	return true
}

// reload takes the page over as the store has it.
func (s *source) reload(ctx context.Context, b *Bus) error {
	h, pair, err := b.readHead(ctx, s.from, s.agent)
	if b.enforced() && s.keep(h, pair, err) {
		return nil
	}
	s.mistrusted = false
	if refused := (*trust.Refusal)(nil); errors.As(err, &refused) {
		// Nothing of it can be believed. The ledger and what still lies in the lane say where to begin.
		s.mistrusted = true
	} else if err != nil {
		return err
	}
	prefix := ledgerPrefix(s.from, s.agent)
	old, err := b.store.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("read ledger of %s from %s: %w", s.agent, s.from, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.page = page{number: h.Page, last: h.Last, cursor: h.Cursor, count: h.Count}
	if pair != nil {
		s.page.index, s.page.value = pair.ModifyIndex, pair.Value
		s.page.body, _ = trust.SplitRecord(pair.Value)
	}
	s.seen, s.order = map[string]envelope.State{}, nil
	for _, p := range old {
		var lp struct { // of each receipt what is remembered: there may be two thousand pages
			Receipts []struct {
				IDs   []string       `json:"ids"`
				State envelope.State `json:"state"`
			} `json:"receipts"`
		}
		n, ok := parsePadded(p.Key[len(prefix):])
		body, err := b.read(trust.KindReceipts, p.Key, p.Value, "", s.agent)
		if err != nil {
			b.refuse(p.Key, p.Value, err, "@"+s.from, s.agent)
			continue
		}
		if !ok || json.Unmarshal(body, &lp) != nil {
			b.log.Warn("ledger page is not readable; ignored", "key", p.Key)
			continue
		}
		messages := 0
		for _, r := range lp.Receipts {
			for _, id := range r.IDs {
				s.rememberLocked(id, r.State)
			}
			messages += len(r.IDs)
		}
		s.page.ledger = append(s.page.ledger, ledgerPage{n, messages})
		if n >= s.page.number {
			s.page.number, s.page.last = n+1, 0
		}
	}
	if mark := b.marks.get(takenMarks, s.from+"/"+s.agent); b.enforced() && mark > s.page.cursor {
		// True, or gone, and this node has seen more taken.
		key := receiptsKey(s.from, s.agent)
		b.refuse(key, s.page.value, &trust.Refusal{Reason: trust.Replay, Detail: fmt.Sprintf("it says that %d entries were taken, and %d were", s.page.cursor, mark)}, "@"+s.from, s.agent)
		s.page.cursor, s.mistrusted = mark, true
	}
	if s.mistrusted {
		s.page.number++ // the sender has read some of the page that is lost, and must not take this one for it
		s.page.last = 0
	}
	for _, r := range h.Receipts {
		s.page.receipts = append(s.page.receipts, r)
	}
	s.page.messages = s.rememberRawLocked(h.Receipts)
	return nil
}

// rememberRawLocked adds receipts to the dedupe memory, and returns how many messages they name.
func (s *source) rememberRawLocked(rs []json.RawMessage) int {
	n := 0
	for _, raw := range rs {
		var r receipt
		if json.Unmarshal(raw, &r) != nil {
			continue
		}
		for _, id := range r.IDs {
			s.rememberLocked(id, r.State)
		}
		n += len(r.IDs)
	}
	return n
}

func (s *source) remember(id string, st envelope.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rememberLocked(id, st)
}

func (s *source) rememberLocked(id string, st envelope.State) {
	if _, ok := s.seen[id]; !ok {
		id = strings.Clone(id) // it may be a part of its envelope's head, or of a page
		s.order = append(s.order, id)
		if len(s.order) > dedupeReceipts {
			delete(s.seen, s.order[0])
			s.order = s.order[1:]
		}
	}
	s.seen[id] = st
}

// known reports whether a message has a receipt.
func (s *source) known(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.seen[id]
	return ok
}

// commit makes a written page the current one.
func (s *source) commit(pw pageWrite, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.page = pw.next
	s.page.index = index
	s.entries = s.entries[pw.cursor:]
}
