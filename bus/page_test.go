package bus

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// limited is a store of which only the limits are asked.
type limited struct{ Store }

func (limited) Limits() Limits { return Limits{Ops: 64, Bytes: 368 << 10} }

// TestLedgerFitsATransaction: many receipts at once go to the ledger, and what they push out of the dedupe memory is deleted as there is room
// for it. Pages of eight messages are pushed out by the dozen.
func TestLedgerFitsATransaction(t *testing.T) {
	b := signingBus(t)
	b.store = limited{}
	var err error
	if b.packer, err = newPacker(); err != nil {
		t.Fatal(err)
	}
	w := newWriter(b)
	s := &source{from: "jerry", agent: "bob", seen: map[string]envelope.State{}}
	for n := range uint64(dedupeReceipts/headReceipts + 1) {
		s.page.ledger = append(s.page.ledger, ledgerPage{n, headReceipts})
		s.page.number = n + 1
	}
	const many = 512
	at := envelope.At(fuzzTime)
	for round := range 100 {
		r := receipt{State: envelope.Acked, At: at, Gateway: "jerry", Attempt: 1}
		for range many {
			r.IDs = append(r.IDs, envelope.NewID())
		}
		p := &plan{freed: map[*lane]int{}, resolved: map[*laneEntry]int{}, witness: -1}
		p.appendPage(b, s, []receipt{r}, false)
		w.cleanup(p)
		if len(p.ops) > b.store.Limits().Ops {
			t.Fatalf("round %d: %d operations", round, len(p.ops))
		}
		var set []Op
		for _, op := range p.ops {
			if op.Verb == OpSet {
				set = append(set, op)
			}
		}
		if len(set) != 1 || len(set[0].Value) > many*len(r.IDs[0])*2/3 {
			t.Fatalf("round %d: %d pages were written, of %d bytes", round, len(set), len(set[0].Value))
		}
		body, err := b.read(trust.KindReceipts, set[0].Key, set[0].Value, "", "bob")
		if err != nil {
			t.Fatal(err)
		}
		var h receiptHead
		if err := json.Unmarshal(body, &h); err != nil {
			t.Fatal(err)
		}
		if got, err := decodeReceipt(h.Receipts[0]); err != nil || !slices.Equal(got.IDs, r.IDs) {
			t.Fatalf("round %d: the page says %v of %d messages", round, err, len(got.IDs))
		}
		pw := p.pages[0]
		if len(pw.next.receipts) != 0 || pw.next.number != s.page.number+1 {
			t.Fatalf("round %d: %d receipts beside the cursor, page %d after %d", round, len(pw.next.receipts), pw.next.number, s.page.number)
		}
		s.commit(pw, 1)
	}
	if n := s.page.ledgerMessages(); n < dedupeReceipts || n > dedupeReceipts+many {
		t.Errorf("the ledger has %d messages, the memory %d", n, dedupeReceipts)
	}
}
