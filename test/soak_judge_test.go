package test

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// harvest reads what became of messages whose senders were away when they were told.
func (s *soak) harvest(store bus.Store) {
	ctx := s.t.Context()
	for _, prefix := range []string{"receipts/", "ledger/"} {
		pairs, err := store.List(ctx, bus.Root+prefix)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, p := range pairs {
			var head struct {
				Receipts []struct {
					IDs   []string       `json:"ids"`
					State envelope.State `json:"state"`
					Class envelope.Class `json:"class"`
				} `json:"receipts"`
			}
			if json.Unmarshal(p.Value, &head) != nil {
				continue // the resident key
			}
			s.mu.Lock()
			for _, r := range head.Receipts {
				for _, id := range r.IDs {
					m := s.messages[id]
					if m == nil {
						continue
					}
					switch r.State {
					case envelope.Acked:
						m.accepted = true
						if m.ackedAt.IsZero() {
							m.ackedAt = time.Now()
						}
					case envelope.DeadLetter:
						m.accepted, m.dead = true, string(r.Class)
					}
				}
			}
			s.mu.Unlock()
		}
	}
}

// answers finds the answers that were told to a process that died before it could tell us.
func (s *soak) answers(store bus.Store) {
	keys, err := store.Keys(s.t.Context(), bus.Root+"results/", "")
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		if m := s.messages[k[strings.LastIndex(k, "/")+1:]]; m != nil {
			m.stored = true
		}
	}
}

// footprint waits until nothing is on its way any more, and weighs what is left.
func (s *soak) footprint(store bus.Store) (keys, ledger int) {
	ctx := s.t.Context()
	deadline := time.Now().Add(150 * time.Second) // the reconciler comes every minute, and twice for some
	for {
		pairs, err := store.List(ctx, bus.Root)
		if err != nil {
			s.t.Fatal(err)
		}
		keys, ledger = 0, 0
		moving := map[string]int{}
		for _, p := range pairs {
			room, _, _ := strings.Cut(strings.TrimPrefix(p.Key, bus.Root), "/")
			if room == "results" || room == "blobs" || room == "deadletters" {
				continue // kept for a stated time
			}
			if room == "ledger" {
				ledger++
				continue
			}
			keys++
			if room == "lanes" || room == "pending" {
				moving[room]++
			}
		}
		if len(moving) == 0 {
			return keys, ledger
		}
		if time.Now().After(deadline) {
			s.problem("after the drain there are still %v", moving)
			return keys, ledger
		}
		s.idle(500 * time.Millisecond)
	}
}

// judge counts.
func (s *soak) judge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.figures
	f.DeadLetters = map[string]int{}
	for id, m := range s.messages {
		word, _, _ := strings.Cut(m.order.Text, " ")
		if !m.accepted {
			s.problem("%s (%s) was never accepted", id, m.order.Text)
			continue
		}
		f.Accepted++
		acked, dead := !m.ackedAt.IsZero(), m.dead != ""
		switch {
		case !acked && !dead:
			f.Lost++
			s.problem("%s (%s) from node-%d to %s has no end", id, m.order.Text, m.node, m.order.To)
		case acked && dead:
			f.Doubled++
			s.problem("%s (%s) is acked and dead", id, m.order.Text)
		case m.late > 0 || m.replies > 1:
			f.Doubled++
			s.problem("%s (%s): %d answers, %d effects after its ack", id, m.order.Text, m.replies, m.late)
		}
		if dead {
			f.DeadLetters[m.dead]++
			if word != "fails" && word != "never" {
				s.problem("%s (%s) died of %s", id, m.order.Text, m.dead)
			}
			continue
		}
		if acked {
			f.Acked++
			if m.replies == 0 && !m.stored {
				f.Lost++
				s.problem("%s (%s) is acked, and its answer is nowhere", id, m.order.Text)
			}
			if len(m.effects) == 0 {
				s.problem("%s (%s) is acked and had no effect", id, m.order.Text)
			}
			f.RepeatedByCrash += max(0, len(m.effects)-1)
		}
	}
	for conv, texts := range s.order {
		n := -1
		for _, text := range texts {
			var k int
			_, num, _ := strings.Cut(text, " ")
			if _, err := fmt.Sscan(num, &k); err != nil || k <= n {
				s.problem("conversation %s: %q came after number %d", conv, text, n)
			}
			n = k
		}
	}
}
