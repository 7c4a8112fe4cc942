package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// headReceipts is how many messages may stand beside the cursor before the next write
	// moves them to the ledger: a bigger page costs every quick ack more bytes, a smaller
	// one more keys.
	headReceipts = 8
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
	// fetched is the newest entry that was read; only the lane's reader touches it.
	fetched uint64
	// fresh: the lane has no cursor and nothing of it was read yet; its reader's too.
	fresh bool
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
	value                 []byte
	number, cursor, count uint64
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

// reload takes the page over as the store has it.
func (s *source) reload(ctx context.Context, b *Bus) error {
	h, pair, err := b.readHead(ctx, s.from, s.agent)
	if err != nil {
		return err
	}
	prefix := ledgerPrefix(s.from, s.agent)
	old, err := b.store.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("read ledger of %s from %s: %w", s.agent, s.from, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.page = page{number: h.Page, cursor: h.Cursor, count: h.Count}
	if pair != nil {
		s.page.index, s.page.value = pair.ModifyIndex, pair.Value
	}
	s.seen, s.order = map[string]envelope.State{}, nil
	for _, p := range old {
		var lp receiptHead
		n, ok := parsePadded(p.Key[len(prefix):])
		if !ok || json.Unmarshal(p.Value, &lp) != nil {
			b.log.Warn("ledger page is not readable; ignored", "key", p.Key)
			continue
		}
		s.page.ledger = append(s.page.ledger, ledgerPage{n, s.rememberRawLocked(lp.Receipts)})
		s.page.number = max(s.page.number, n+1)
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
