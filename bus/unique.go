package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// uniqueKeys is who has the unique keys of an inbox: an unfinished message, or a finished one for a while. What is not in
// memory is asked of the store when a message with the key comes, and not read when a term begins: there may be a day's worth.
type uniqueKeys struct {
	ib *inbox

	mu    sync.Mutex
	holds map[string]uniqueHold
}

// uniqueHold is also the value of the key that keeps a finished message's unique key.
type uniqueHold struct {
	Key       string `json:"unique_key"`
	MessageID string `json:"message_id"`
	// Until is when the key is free again; zero: when the message is finished.
	Until envelope.Time `json:"until,omitzero"`
}

func newUniqueKeys(ib *inbox) *uniqueKeys {
	return &uniqueKeys{ib: ib, holds: map[string]uniqueHold{}}
}

// look reads what the store has of those unique keys that are not in memory ("" is none), before their messages are claimed. Only
// this term writes them: what is absent now stays so until one of its own messages is finished, and that one is in memory then.
func (q *uniqueKeys) look(keys []string) error {
	if q == nil {
		return nil
	}
	ib, b := q.ib, q.ib.b
	places := map[string]string{} // key of the store: unique key
	q.mu.Lock()
	for _, k := range keys {
		if _, ok := q.holds[k]; !ok && k != "" {
			places[uniqueKey(ib.spec.ID, k)] = k
		}
	}
	q.mu.Unlock()
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(places)), b.store.Limits().Ops) {
		ops := make([]Op, len(chunk))
		for i, place := range chunk {
			ops[i] = Op{Verb: OpGet, Key: place}
		}
		pairs, err := b.store.Txn(ib.intake, ops)
		if err != nil {
			return fmt.Errorf("read unique keys of %s: %w", ib.spec.ID, err)
		}
		for _, p := range pairs {
			if p.Key == "" {
				continue
			}
			body, err := b.read(trust.KindRecord, p.Key, p.Value, "", ib.spec.ID)
			if err != nil {
				b.refuse(p.Key, p.Value, err, "", ib.spec.ID) // else a message would be taken for one that was done
				continue
			}
			var h uniqueHold
			if json.Unmarshal(body, &h) != nil || h.Key != places[p.Key] {
				continue
			}
			q.mu.Lock()
			if _, ok := q.holds[h.Key]; !ok {
				q.holds[h.Key] = h
			}
			q.mu.Unlock()
		}
	}
	return nil
}

// claimUnique notes the unique key of a message, or that another one has it. Order is that of reading, and records
// of messages at work come before lanes; so of two messages one is handled, whichever owner decides.
func (ib *inbox) claimUnique(j *job) {
	key := j.env.UniqueKey()
	if ib.unique == nil || key == "" {
		return
	}
	q := ib.unique
	q.mu.Lock()
	defer q.mu.Unlock()
	h, held := q.holds[key]
	if held && h.MessageID != j.env.MessageID && (h.Until.IsZero() || ib.b.now().Before(h.Until.Time)) {
		j.duplicateOf = h.MessageID
		return
	}
	q.holds[key] = uniqueHold{Key: key, MessageID: j.env.MessageID}
}

// keepUnique makes a finished message's unique key last, in the transaction that finishes it.
func (ib *inbox) keepUnique(j *job) []Op {
	e := &j.env.Envelope
	if ib.unique == nil || e.UniqueKey() == "" || e.Task.UniqueFor <= 0 || j.duplicateOf != "" {
		return nil
	}
	h := uniqueHold{Key: e.UniqueKey(), MessageID: e.MessageID, Until: envelope.At(ib.b.now().Add(e.Task.UniqueFor.Duration()))}
	q := ib.unique
	q.mu.Lock()
	q.holds[h.Key] = h
	q.mu.Unlock()
	place := uniqueKey(ib.spec.ID, h.Key)
	return []Op{{Verb: OpSet, Key: place, Value: ib.b.sign(trust.KindRecord, place, mustEncode(h))}}
}

func uniqueKey(inbox, key string) string {
	h := sha256.Sum256([]byte(key))
	return uniquePrefix(inbox) + hex.EncodeToString(h[:16])
}

// freeUnique forgets the key of a message that ended, unless it is kept for a while. ib.mu is held.
func (ib *inbox) freeUnique(j *job) {
	key := j.env.UniqueKey()
	if ib.unique == nil || key == "" {
		return
	}
	q := ib.unique
	q.mu.Lock()
	defer q.mu.Unlock()
	if h := q.holds[key]; h.MessageID == j.env.MessageID && h.Until.IsZero() {
		delete(q.holds, key)
	}
}

// dropUnique deletes the unique keys that are free again.
func (ib *inbox) dropUnique(ctx context.Context) error {
	if ib.unique == nil {
		return nil
	}
	pairs, err := ib.b.store.List(ctx, uniquePrefix(ib.spec.ID))
	if err != nil {
		return fmt.Errorf("read unique keys of %s: %w", ib.spec.ID, err)
	}
	var ops []Op
	q := ib.unique
	q.mu.Lock()
	for _, p := range pairs {
		var h uniqueHold
		if json.Unmarshal(p.Value, &h) == nil && ib.b.now().Before(h.Until.Time) {
			continue
		}
		if now := q.holds[h.Key]; now.MessageID == h.MessageID {
			delete(q.holds, h.Key)
		}
		if len(ops) < ib.b.store.Limits().Ops/2 {
			ops = append(ops, Op{Verb: OpDeleteCAS, Key: p.Key, Index: p.ModifyIndex})
		}
	}
	q.mu.Unlock()
	if len(ops) == 0 {
		return nil
	}
	done := make(chan error, 1)
	ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, extra: ops, done: func(err error) { done <- err }})
	return <-done
}
