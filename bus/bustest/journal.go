package bustest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// journal is every transaction that a store took, from all its clients.
type journal struct {
	mu   sync.Mutex
	txns []journalTxn
}

type journalTxn struct {
	index uint64
	ops   []bus.Op
}

// journaled is a client of a store whose transactions are noted.
type journaled struct {
	bus.Store
	j *journal
}

// Unwrap returns the store inside.
func (s journaled) Unwrap() bus.Store { return s.Store }

// Txn implements [bus.Store].
func (s journaled) Txn(ctx context.Context, ops []bus.Op) ([]bus.Pair, error) {
	pairs, err := s.Store.Txn(ctx, ops)
	if err != nil {
		return pairs, err
	}
	var index uint64
	for _, p := range pairs {
		index = max(index, p.ModifyIndex)
	}
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	s.j.txns = append(s.j.txns, journalTxn{index, slices.Clone(ops)})
	return pairs, nil
}

// observed is what the journal tells of one message.
type observed struct {
	index        int // in the run
	id           string
	conversation string
	acked, dead  bool
	buried       bool // was a dead letter once
	rec          *modelRecord
	place        string              // of its first entry; empty: it was never in the lane
	replies      map[string]struct{} // places of its replies and questions
	asked        map[string]struct{}
	past         map[string]struct{} // places of what it asked before it was redriven
}

// view is what the model calls it.
func (o *observed) view() modelView {
	v := modelView{Replies: uint8(len(o.replies)), Asked: uint8(len(o.asked))}
	switch {
	case o.dead:
		v.Place = modelDead
	case o.acked:
		v.Place = modelAcked
	case o.rec != nil:
		v.Place, v.Retries, v.Crashes = modelKept+o.rec.State, o.rec.Retries, o.rec.Crashes
	case o.place != "":
		v.Place = modelQueued
	}
	return v
}

// journalReader follows the journal and holds each step against the model.
type journalReader struct {
	agent, helper, sender string
	byID                  map[string]*observed
	permitted             func(o *observed) map[[2]modelView]bool
	wrong                 []string
	steps                 int
}

func (r *journalReader) add(format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

// read goes through all transactions in the order of the store.
func (r *journalReader) read(j *journal) {
	j.mu.Lock()
	txns := slices.Clone(j.txns)
	j.mu.Unlock()
	slices.SortStableFunc(txns, func(a, b journalTxn) int {
		switch {
		case a.index < b.index:
			return -1
		case a.index > b.index:
			return 1
		}
		return 0
	})
	for _, t := range txns {
		before := map[string]modelView{}
		for id, o := range r.byID {
			before[id] = o.view()
		}
		acked := map[string]bool{}
		for id, o := range r.byID {
			acked[id] = o.acked
		}
		fenced := slices.ContainsFunc(t.ops, func(op bus.Op) bool {
			return op.Verb == bus.OpCheckSession && op.Key == bus.Root+"owners/agents/"+r.agent
		})
		for _, op := range t.ops {
			if r.take(op) && !fenced {
				r.add("index %d: %s %s without a check of the owner's lock", t.index, op.Verb, op.Key)
			}
		}
		for id, o := range r.byID {
			after := o.view()
			if after == before[id] {
				continue
			}
			r.steps++
			if !r.permitted(o)[[2]modelView{before[id], after}] {
				r.add("index %d: message %d went from %q to %q, which no step of the model does", t.index, o.index+1, before[id], after)
			}
			if o.acked && !acked[id] {
				r.order(o)
			}
		}
	}
}

// order checks that nothing older of the conversation is without an end.
func (r *journalReader) order(o *observed) {
	for _, other := range r.byID {
		if other.conversation == o.conversation && other.place != "" && other.place < o.place && !other.acked && !other.buried {
			r.add("message %d was acked before message %d, which is older and of the same conversation, had an end", o.index+1, other.index+1)
		}
	}
}

// take notes one operation, and reports whether only an owner may do it.
func (r *journalReader) take(op bus.Op) (owners bool) {
	rest, ours := strings.CutPrefix(op.Key, bus.Root)
	if !ours || !op.Writes() {
		return false
	}
	room, rest, _ := strings.Cut(rest, "/")
	written := op.Verb == bus.OpSet || op.Verb == bus.OpCAS
	switch part := strings.Split(rest, "/"); room {
	case "inbox", "lanes":
		if !written || len(part) != 3 {
			return false
		}
		to, from, raw := part[1], part[0], op.Value
		if room == "inbox" {
			to, from = part[0], part[2]
			var b struct {
				Entry json.RawMessage `json:"entry"`
			}
			if json.Unmarshal(op.Value, &b) != nil || len(b.Entry) == 0 {
				return false
			}
			raw = b.Entry
		}
		r.entry(from, to, raw)
	case "receipts":
		if part[len(part)-1] == r.agent && written {
			r.receipts(op.Value)
			return true
		}
	case "pending", "deadletters":
		o := r.byID[part[min(1, len(part)-1)]]
		if part[0] != r.agent || o == nil || len(part) != 2 {
			return part[0] == r.agent
		}
		switch {
		case room == "deadletters":
			if o.dead && !written { // a new life: what it asks is another question
				maps.Copy(o.past, o.asked)
				clear(o.asked)
			}
			o.dead = written
			o.buried = o.buried || written
		case !written:
			o.rec = nil
		default:
			o.rec = r.record(op.Value)
		}
		return true
	}
	return false
}

func (r *journalReader) record(raw []byte) *modelRecord {
	var rec struct {
		Delivery struct {
			State   envelope.State `json:"state"`
			Retries uint8          `json:"retry_count"`
			Crashes uint8          `json:"crashes"`
		} `json:"delivery"`
	}
	if err := json.Unmarshal(raw, &rec); err != nil {
		r.add("a pending record is not readable: %v", err)
	}
	state := map[envelope.State]uint8{envelope.Queued: modelQueued, envelope.Delivered: modelDelivered, envelope.Failed: modelFailed}[rec.Delivery.State]
	return &modelRecord{State: state, Retries: rec.Delivery.Retries, Crashes: rec.Delivery.Crashes}
}

// entry notes what an entry carries. It may be seen twice, in the bell and then in its slot.
func (r *journalReader) entry(from, to string, raw []byte) {
	var e struct {
		Seq   uint64
		Items []struct{ Envelope envelope.Envelope }
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		r.add("an entry from %s to %s is not readable: %v", from, to, err)
		return
	}
	for i, it := range e.Items {
		place := fmt.Sprintf("%s/%s/%08d/%04d", from, to, e.Seq, i)
		env := &it.Envelope
		switch {
		case to == r.agent && r.byID[env.MessageID] != nil:
			if o := r.byID[env.MessageID]; o.place == "" {
				o.place = place
			}
		case to == r.sender && r.byID[env.InReplyTo] != nil:
			r.byID[env.InReplyTo].replies[place] = struct{}{}
		case to == r.helper && r.byID[env.CorrelationID] != nil:
			if o := r.byID[env.CorrelationID]; !hasKey(o.past, place) {
				o.asked[place] = struct{}{}
			}
		}
	}
}

// receipts notes what a page says; the last word on each message counts.
func (r *journalReader) receipts(raw []byte) {
	var h struct {
		Receipts []struct {
			IDs   []string       `json:"ids"`
			State envelope.State `json:"state"`
		} `json:"receipts"`
	}
	if err := json.Unmarshal(raw, &h); err != nil {
		r.add("receipts are not readable: %v", err)
	}
	for _, rc := range h.Receipts {
		for _, id := range rc.IDs {
			if o := r.byID[id]; o != nil {
				o.acked = rc.State == envelope.Acked
			}
		}
	}
}

func hasKey(m map[string]struct{}, key string) bool {
	_, ok := m[key]
	return ok
}
