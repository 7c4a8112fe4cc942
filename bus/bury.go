package bus

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// buryItem sends an item that cannot be handled to the dead letters.
func (ib *inbox) buryItem(le *laneEntry, s *source, it item, i int, class envelope.Class, cause error) {
	var head struct {
		MessageID string `json:"message_id"`
	}
	id := fmt.Sprintf("%s-%s-%d", s.from, padded(le.seq), i)
	if json.Unmarshal(it.Envelope, &head) == nil && validID(head.MessageID) {
		id = head.MessageID
	}
	ib.bury(le, s, string(it.Envelope), id, class, cause)
}

func validID(id string) bool {
	return len(id) == 36 && !strings.ContainsAny(id, "/ \n")
}

// buriedBytes bounds the dead letter of what cannot be read; what is longer keeps its beginning.
const buriedBytes = 256 << 10

// bury writes a dead letter for something that has no job.
func (ib *inbox) bury(le *laneEntry, s *source, raw, id string, class envelope.Class, cause error) {
	now := envelope.At(ib.b.now())
	d := envelope.Delivery{State: envelope.DeadLetter, DeadAt: &now, Class: class, LastError: cause.Error(), Owner: ib.b.cfg.Gateway}
	if len(raw) > envelope.MaxEncoded {
		raw = raw[:envelope.MaxEncoded]
	}
	record := mustEncode(deadRecord{Delivery: d, Raw: strings.ToValidUTF8(raw, "\uFFFD"), From: s.from})
	if len(record) > buriedBytes {
		// Zeros take six bytes each as JSON: a record that the store refuses would hold the lane up for ever.
		record = mustEncode(deadRecord{Delivery: d, Raw: strings.ToValidUTF8(raw[:buriedBytes/16], "\uFFFD"), From: s.from})
	}
	if le.open == 0 { // a whole entry, not one of its items
		s.mu.Lock()
		le.open, le.count = 1, s.page.count
		s.fetched = le.seq
		s.entries = append(s.entries, le)
		s.mu.Unlock()
	}
	ev := Event{Event: EventDeadLetter, At: now, Gateway: ib.b.cfg.Gateway, MessageID: id, From: "@" + s.from, To: ib.spec.ID,
		State: envelope.DeadLetter, Class: class, Reason: cause.Error()}
	ib.b.writer.submit(&unit{
		ctx: ib.ctx, owner: ib, taken: []*laneEntry{le},
		receipts: []ownedReceipt{{s, receipt{IDs: []string{id}, State: envelope.DeadLetter, At: now, Gateway: ib.b.cfg.Gateway, Class: class, Error: cause.Error()}}},
		extra:    []Op{{Verb: OpSet, Key: deadKey(ib.spec.ID, id), Value: ib.b.sign(trust.KindRecord, deadKey(ib.spec.ID, id), record)}},
		done: func(err error) {
			if err == nil {
				ib.b.emit(ev)
			}
		},
	})
}
