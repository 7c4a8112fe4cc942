package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Status is everything the mesh knows of one message.
type Status struct {
	MessageID string `json:"message_id"`
	Facts     Facts  `json:"facts"`
	// State is the last one known; empty when only the answer is left.
	State    envelope.State     `json:"state,omitempty"`
	Delivery *envelope.Delivery `json:"delivery,omitempty"`
	Envelope *envelope.Sealed   `json:"envelope,omitempty"`
	Reply    *envelope.Sealed   `json:"reply,omitempty"`
	// Where is the key that says so.
	Where string `json:"where,omitempty"`
	// Events are what this gateway remembers; another gateway may know more.
	Events []Event `json:"events"`
}

// Lookup finds a message: in this gateway's memory, then in the store, so that any gateway
// finds what any gateway handled. Beyond memory it reads whole prefixes (pending records, dead
// letters, ledgers, lanes): it is for people, not for hot paths.
func (b *Bus) Lookup(ctx context.Context, id string) (*Status, error) {
	st, found := b.remembered(id)
	stored, err := b.lookupStore(ctx, st)
	if err != nil && !found {
		return nil, err
	}
	if !found && !stored {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return st, nil
}

// remembered is what this gateway's memory has of a message, and whether that is anything.
func (b *Bus) remembered(id string) (*Status, bool) {
	st := &Status{MessageID: id, Events: []Event{}}
	tr, _, _ := b.tracks.get(id)
	st.Facts, st.Envelope, st.Reply, st.Events = tr.Facts, tr.Envelope, tr.Reply, append(st.Events, tr.Events...)
	for _, ev := range tr.Events {
		if ev.State != "" {
			st.State = ev.State
		}
	}
	return st, len(tr.Events) > 0
}

func (b *Bus) lookupStore(ctx context.Context, st *Status) (found bool, err error) {
	if st.Reply == nil {
		if err := b.findResult(ctx, st); err != nil {
			return false, err
		}
		found = st.Reply != nil
	}
	for _, find := range []func(context.Context, *Status) (bool, error){b.findRecord(deadRoot), b.findRecord(pendingRoot), b.findReceipt} {
		ok, err := find(ctx, st)
		if err != nil || ok {
			return found || ok, err
		}
	}
	// An owner that has read a message and not begun it knows the envelope, and has nothing to tell of it.
	if found || st.Envelope != nil && len(st.Events) > 0 {
		return found, nil
	}
	return b.findInLanes(ctx, st)
}

func (b *Bus) findResult(ctx context.Context, st *Status) error {
	keys, err := b.store.Keys(ctx, resultsRoot, "")
	if err != nil {
		return fmt.Errorf("look for the answer: %w", err)
	}
	for _, k := range keys {
		if !strings.HasSuffix(k, "/"+st.MessageID) {
			continue
		}
		p, err := b.store.Get(ctx, k)
		if err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if p == nil {
			continue
		}
		gw, _, _ := strings.Cut(k[len(resultsRoot):], "/")
		body, err := b.read(trust.KindRecord, k, p.Value, gw, "")
		if err != nil {
			b.refuse(k, p.Value, err, "", "")
			continue
		}
		var r resultRecord
		if json.Unmarshal(body, &r) != nil {
			continue
		}
		if env, err := envelope.Decode(r.Reply); err == nil {
			st.Reply = env
			st.Facts.Replied, st.Facts.Accepted = true, true
		}
	}
	return nil
}

// findRecord looks for a key of the message's own below root.
func (b *Bus) findRecord(root string) func(context.Context, *Status) (bool, error) {
	return func(ctx context.Context, st *Status) (bool, error) {
		keys, err := b.store.Keys(ctx, root, "")
		if err != nil {
			return false, fmt.Errorf("list %s: %w", root, err)
		}
		for _, k := range keys {
			if !strings.HasSuffix(k, "/"+st.MessageID) || strings.Contains(k, "/answers/") {
				continue
			}
			p, err := b.store.Get(ctx, k)
			if err != nil {
				return false, fmt.Errorf("read %s: %w", k, err)
			}
			var rec struct {
				Delivery envelope.Delivery `json:"delivery"`
				Envelope json.RawMessage   `json:"envelope"`
			}
			if p == nil {
				continue
			}
			agent, _, _ := strings.Cut(k[len(root):], "/")
			body, err := b.read(trust.KindRecord, k, p.Value, "", agent)
			if err != nil {
				b.refuse(k, p.Value, err, "", agent)
				continue
			}
			if json.Unmarshal(body, &rec) != nil {
				continue
			}
			st.Where, st.Delivery, st.State = k, &rec.Delivery, rec.Delivery.State
			if env, err := envelope.Decode(rec.Envelope); err == nil {
				st.Envelope = env
			}
			st.Facts.Accepted = true
			st.Facts.Delivered = st.Facts.Delivered || rec.Delivery.DeliveredAt != nil
			if rec.Delivery.State == envelope.DeadLetter {
				st.Facts.Dead, st.Facts.Class, st.Facts.Reason = true, rec.Delivery.Class, rec.Delivery.LastError
			}
			return true, nil
		}
		return false, nil
	}
}

// findReceipt looks through the receipts and ledgers of all lanes.
func (b *Bus) findReceipt(ctx context.Context, st *Status) (bool, error) {
	found := false
	for _, root := range []string{receiptsRoot, ledgerRoot} {
		pairs, err := b.store.List(ctx, root)
		if err != nil {
			return false, fmt.Errorf("read %s: %w", root, err)
		}
		for _, p := range pairs {
			if p.Value = b.packer.unpack(p.Value, nil); !bytes.Contains(p.Value, []byte(st.MessageID)) {
				continue
			}
			agent := p.Key[strings.LastIndexByte(p.Key, '/')+1:] // openclaw/receipts/<gw>/from/<agent>
			if root == ledgerRoot {
				agent = path.Base(path.Dir(p.Key)) // openclaw/ledger/<gw>/<agent>/<page>
			}
			body, err := b.read(trust.KindReceipts, p.Key, p.Value, "", agent)
			if err != nil {
				b.refuse(p.Key, p.Value, err, "", agent)
				continue
			}
			var h receiptHead
			if json.Unmarshal(body, &h) != nil {
				continue
			}
			for _, raw := range h.Receipts {
				var r receipt
				if json.Unmarshal(raw, &r) != nil || !slices.Contains(r.IDs, st.MessageID) {
					continue
				}
				if e := st.Envelope; b.enforced() && e != nil && e.TargetAgent != agent && st.Facts.PassedOn == "" {
					continue // whoever owns another inbox knows nothing of it
				}
				found = true
				st.Where, st.State = p.Key, r.State
				st.Facts.apply(&Event{State: r.State, Class: r.Class, Reason: r.Error, PassedOn: r.To})
				st.Delivery = &envelope.Delivery{State: r.State, Attempt: r.Attempt, Owner: r.Gateway, Class: r.Class, LastError: r.Error, DeliveredAt: r.DeliveredAt}
				at := r.At
				switch r.State {
				case envelope.Acked:
					st.Delivery.AckedAt = &at
				case envelope.Delivered:
					st.Delivery.DeliveredAt = &at
				case envelope.DeadLetter:
					st.Delivery.DeadAt = &at
				}
			}
		}
		if found {
			return true, nil
		}
	}
	return false, nil
}

// maxSlotsRead bounds what findInLanes reads, in slots: a long backlog is not searched to its end.
const maxSlotsRead = 500

// findInLanes looks at what still waits: in the bells, then in the slots, oldest first.
func (b *Bus) findInLanes(ctx context.Context, st *Status) (bool, error) {
	bells, err := b.store.List(ctx, inboxRoot)
	if err != nil {
		return false, fmt.Errorf("read bells: %w", err)
	}
	for _, p := range bells {
		var bl bell
		if json.Unmarshal(p.Value, &bl) == nil && len(bl.Entry) > 0 && findInEntry(st, p.Key, bl.Entry) {
			return true, nil
		}
	}
	keys, err := b.store.Keys(ctx, lanesRoot, "")
	if err != nil {
		return false, fmt.Errorf("list lanes: %w", err)
	}
	for _, k := range keys[:min(len(keys), maxSlotsRead)] {
		value, err := b.readSlot(ctx, k)
		if err != nil {
			return false, fmt.Errorf("read %s: %w", k, err)
		}
		if findInEntry(st, k, value) {
			return true, nil
		}
	}
	return false, nil
}

func findInEntry(st *Status, key string, value []byte) bool {
	if !bytes.Contains(value, []byte(st.MessageID)) {
		return false
	}
	e, err := decodeEntry(value)
	if err != nil {
		return false
	}
	for _, it := range e.Items {
		env, err := envelope.Decode(it.Envelope)
		if err != nil || env.MessageID != st.MessageID {
			continue
		}
		at := e.At
		st.Where, st.Envelope, st.State = key, env, envelope.Queued
		st.Facts.Accepted = true
		st.Delivery = &envelope.Delivery{State: envelope.Queued, QueuedAt: &at, Hops: it.Hops}
		return true
	}
	return false
}

// InboxInfo is the state of one agent's inbox.
type InboxInfo struct {
	Agent string `json:"agent"`
	// Owner drains it; empty: nobody does now.
	Owner string `json:"owner"`
	// Waiting is the number of envelopes in lanes behind the cursor.
	Waiting uint64 `json:"waiting"`
	// Pending is the number of messages with a record of their own: worked on, or waiting
	// for a retry.
	Pending     int        `json:"pending"`
	DeadLetters int        `json:"dead_letters"`
	Lanes       []LaneInfo `json:"lanes"`
}

// LaneInfo is one source of an inbox.
type LaneInfo struct {
	From string `json:"from"`
	// Seq is the newest entry, Cursor the newest that was taken.
	Seq     uint64 `json:"seq"`
	Cursor  uint64 `json:"cursor"`
	Waiting uint64 `json:"waiting"`
}

// Inboxes lists the inboxes with what waits in them, or only one agent's. It reads bells and cursors,
// never mail.
func (b *Bus) Inboxes(ctx context.Context, agent string) ([]InboxInfo, error) {
	prefix := inboxRoot
	if agent != "" {
		prefix = inboxPrefix(agent)
	}
	bells, err := b.store.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("read inboxes: %w", err)
	}
	heads, err := b.store.List(ctx, receiptsRoot)
	if err != nil {
		return nil, fmt.Errorf("read cursors: %w", err)
	}
	taken := map[string]receiptHead{}
	for _, p := range heads {
		var h receiptHead
		if json.Unmarshal(p.Value, &h) == nil {
			taken[p.Key] = h
		}
	}
	byAgent := map[string]*InboxInfo{}
	get := func(a string) *InboxInfo {
		if byAgent[a] == nil {
			byAgent[a] = &InboxInfo{Agent: a, Lanes: []LaneInfo{}}
		}
		return byAgent[a]
	}
	for _, p := range bells {
		a, rest, ok := strings.Cut(p.Key[len(inboxRoot):], "/")
		if !ok {
			continue
		}
		info := get(a)
		from, isBell := strings.CutPrefix(rest, "from/")
		var bl bell
		if !isBell || json.Unmarshal(p.Value, &bl) != nil {
			continue
		}
		h := taken[receiptsKey(from, a)]
		l := LaneInfo{From: from, Seq: bl.Seq, Cursor: h.Cursor}
		if bl.Count > h.Count {
			l.Waiting = bl.Count - h.Count
		}
		info.Waiting += l.Waiting
		info.Lanes = append(info.Lanes, l)
	}
	for root, count := range map[string]func(*InboxInfo){
		pendingRoot: func(i *InboxInfo) { i.Pending++ }, deadRoot: func(i *InboxInfo) { i.DeadLetters++ },
	} {
		p := root
		if agent != "" {
			p += agent + "/"
		}
		keys, err := b.store.Keys(ctx, p, "")
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", p, err)
		}
		for _, k := range keys {
			if a, rest, ok := strings.Cut(k[len(root):], "/"); ok && !strings.Contains(rest, "/") {
				count(get(a))
			}
		}
	}
	owners := map[string]string{}
	for _, o := range b.Owners() {
		owners[o.Agent] = o.Gateway
	}
	list := make([]InboxInfo, 0, len(byAgent))
	for _, i := range byAgent {
		i.Owner = owners[i.Agent]
		list = append(list, *i)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Agent < list[j].Agent })
	return list, nil
}
