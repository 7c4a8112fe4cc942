package bus

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// bell is the value of a lane's bell key: the newest entry's number, and the entry
// itself when it is small and nobody was behind when it was written.
type bell struct {
	Seq uint64 `json:"seq"`
	// Count is the number of envelopes ever put into the lane.
	Count uint64 `json:"count"`
	// Items, Root and Signed are those of the entry that the bell names, when it is in a slot.
	Items  int             `json:"items,omitempty"`
	Root   []byte          `json:"root,omitempty"`
	Signed json.RawMessage `json:"signed,omitempty"`
	Entry  json.RawMessage `json:"entry,omitempty"`
}

// entry is what one write adds to a lane.
type entry struct {
	Seq   uint64        `json:"seq"`
	Count uint64        `json:"count"`
	At    envelope.Time `json:"at"`
	// Signed is one signature over everything else.
	Signed json.RawMessage `json:"signed,omitempty"`
	Items  []item          `json:"items"`
}

// item is one envelope in a lane with what its path added.
type item struct {
	Envelope json.RawMessage `json:"envelope"`
	itemMeta
	// tail is what stood behind the envelope, as it was signed; loose: the entry was not in the form that is signed.
	tail  []byte
	loose bool
}

// itemMeta is not under the sender's signature: whoever passes the envelope on adds to it.
type itemMeta struct {
	Hops []envelope.Hop `json:"hops,omitempty"`
	// AttemptID names the sender's try.
	AttemptID string `json:"attempt_id,omitempty"`
	// For is the agent that it is passed on to, when that is not the target_agent.
	For string `json:"for,omitempty"`
	// Spent is what those who passed it on took off its budget.
	Spent *envelope.Spent `json:"spent,omitempty"`
	// Keys let those read an encrypted payload whom it was passed on to.
	Keys []string `json:"keys,omitempty"`
	// Proof shows that its source sent it, when that is not who passes it on.
	Proof json.RawMessage `json:"proof,omitempty"`
}

// receipt is one fact about some messages that it became true of at the same time. The last
// one of a message is also its dedupe marker.
type receipt struct {
	IDs     []string       `json:"ids"`
	State   envelope.State `json:"state"`
	At      envelope.Time  `json:"at"`
	Gateway string         `json:"gateway"`
	Attempt int            `json:"attempt,omitempty"`
	Class   envelope.Class `json:"class,omitempty"`
	Error   string         `json:"error,omitempty"`
	// To is the agent that they were passed on to.
	To string `json:"to,omitempty"`
	// DeliveredAt is when the agent got (the first of) them, in receipts of a later state.
	DeliveredAt *envelope.Time `json:"delivered_at,omitempty"`
}

// decodeReceipt reads a receipt, which is JSON. The ids of many are cut out at once.
func decodeReceipt(raw []byte) (r receipt, err error) {
	const head = `{"ids":["`
	end := bytes.Index(raw, []byte(`"],`))
	if !bytes.HasPrefix(raw, []byte(head)) || end < len(head) || bytes.IndexByte(raw[:end], '\\') >= 0 || !utf8.Valid(raw[:end]) {
		err = json.Unmarshal(raw, &r)
		return r, err
	}
	ids := strings.Split(string(raw[len(head):end]), `","`)
	if bytes.Count(raw[len(head):end], []byte{'"'}) != 2*(len(ids)-1) {
		err = json.Unmarshal(raw, &r) // there is something else between them
		return r, err
	}
	err = json.Unmarshal(append([]byte{'{'}, raw[end+len(`"],`):]...), &r)
	r.IDs = ids
	return r, err
}

// receiptHead is the value of a lane's receipts key.
type receiptHead struct {
	// Cursor: every entry up to this one was taken; Count: the envelopes in them.
	Cursor uint64 `json:"cursor"`
	Count  uint64 `json:"count"`
	// Page is the number that this page of receipts will have in the ledger, and Last how many the page before it has, when
	// that is known: who has read so many of it need not look there again.
	Page     uint64            `json:"page"`
	Last     int               `json:"last,omitempty"`
	Receipts []json.RawMessage `json:"receipts"`
}

// decodeEntry reads an entry. The envelopes are cut out without being looked at: whoever
// decodes them does that, and doing it twice would be most of the receiver's work.
func decodeEntry(raw []byte) (entry, error) {
	if bytes.HasPrefix(raw, frameMagic) {
		return entry{}, fmt.Errorf("%w: its frame is damaged", errUnreadable)
	}
	if e, ok := cutEntry(raw); ok {
		return e, nil
	}
	var e entry
	err := json.Unmarshal(raw, &e)
	for i := range e.Items {
		e.Items[i].loose = true
	}
	return e, err
}

// cutEntry reads an entry as encodeSigned writes it, or reports that it is not one.
func cutEntry(raw []byte) (e entry, ok bool) {
	const mark, head = `,"items":[`, itemHead
	i := bytes.Index(raw, []byte(mark))
	if i < 0 || raw[len(raw)-1] != '}' || json.Unmarshal(append(raw[:i:i], '}'), &e) != nil {
		return e, false
	}
	rest := raw[i+len(mark) : len(raw)-1]
	for bytes.HasPrefix(rest, []byte(head)) {
		n := objectEnd(rest)
		if n < 0 {
			return e, false
		}
		env := rest[len(head):n]
		m := objectEnd(env)
		if m < 0 {
			return e, false
		}
		it := item{Envelope: env[:m:m], tail: env[m : len(env)-1]}
		if tail := env[m:]; len(tail) > 1 && (tail[0] != ',' || json.Unmarshal(append([]byte{'{'}, tail[1:]...), &it) != nil) {
			return e, false
		}
		if e.Items == nil {
			e.Items = make([]item, 0, len(rest)/n+1) // most are as long as the first
		}
		e.Items = append(e.Items, it)
		if rest = rest[n:]; len(rest) > 1 && rest[0] == ',' && rest[1] == '{' {
			rest = rest[1:]
		}
	}
	return e, string(rest) == "]"
}

// objectEnd returns the length of the JSON object that b starts with, going by brackets and
// strings alone, or -1.
func objectEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			for i++; ; i++ {
				n := bytes.IndexByte(b[min(i, len(b)):], '"')
				if n < 0 {
					return -1
				}
				i += n
				slashes := 0
				for j := i - 1; b[j] == '\\'; j-- {
					slashes++
				}
				if slashes%2 == 0 {
					break
				}
			}
		}
		if depth == 0 {
			return -1
		}
	}
	return -1
}

// pendingRecord is a message with a key of its own: worked on for longer than a moment,
// waiting for its retry, or waiting behind one that is.
type pendingRecord struct {
	Delivery envelope.Delivery `json:"delivery"`
	// Lane and Item give its place in the order of the source.
	Lane uint64 `json:"lane_seq"`
	Item int    `json:"item"`
	// From is the lane it came by: its source's, or that of who passed it on.
	From     string          `json:"from"`
	Envelope json.RawMessage `json:"envelope"`
	// Asked names the questions that the handling has sent.
	Asked []string `json:"asked,omitempty"`
	// Run is where a task is worked on.
	Run *taskRun `json:"run,omitempty"`
	// Proof shows that its source sent it.
	Proof json.RawMessage `json:"proof,omitempty"`
}

// decodePending reads a pending record and the message in it; a missing one is an error too.
func decodePending(p *Pair) (rec pendingRecord, env *envelope.Sealed, err error) {
	if p == nil {
		return rec, nil, errors.New("it is gone")
	}
	if err = json.Unmarshal(p.Value, &rec); err == nil {
		env, err = envelope.Decode(rec.Envelope)
	}
	return rec, env, err
}

// deadRecord is a dead letter: everything about a message that was given up.
type deadRecord struct {
	Delivery envelope.Delivery `json:"delivery"`
	// Envelope is as it was sealed; Raw instead of it when it could not be read.
	Envelope json.RawMessage `json:"envelope,omitempty"`
	Raw      string          `json:"raw,omitempty"`
	// From is the lane it came by, Lane and Item its place there: a redrive puts it back into its order.
	From string `json:"from"`
	Lane uint64 `json:"lane,omitempty"`
	Item int    `json:"item,omitempty"`
	// Proof shows that its source sent it.
	Proof json.RawMessage `json:"proof,omitempty"`
}

// resultRecord is the answer to a question that was asked through the API.
type resultRecord struct {
	Request string          `json:"request"`
	At      envelope.Time   `json:"at"`
	Reply   json.RawMessage `json:"reply"`
}

// mustEncode encodes our own records, which always encode.
func mustEncode(v any) []byte {
	b, err := envelope.Encode(v)
	if err != nil {
		panic(fmt.Sprintf("bus: %T does not encode: %v", v, err))
	}
	return b
}

// An item is itemHead, the canonical bytes as they are, and encodeTail of what the path added.
const itemHead = `{"envelope":`

var noMeta = []byte("}")

func encodeTail(meta itemMeta) []byte {
	if len(meta.Hops) > 0 || meta.AttemptID != "" || meta.For != "" || meta.Spent != nil || len(meta.Keys) > 0 || len(meta.Proof) > 0 {
		return append([]byte{','}, mustEncode(meta)[1:]...)
	}
	return noMeta
}

// joins reports whether two receipts differ in the message and its moments only.
func (r receipt) joins(o receipt) bool {
	return r.State == o.State && r.Attempt == o.Attempt && r.Class == o.Class && r.Error == o.Error && r.Gateway == o.Gateway && r.To == o.To &&
		(r.DeliveredAt == nil) == (o.DeliveredAt == nil)
}

// encodeSigned appends an entry to b, with its signature if there is one. The envelopes in it are encoded already: they are big
// and many, and encoding them again would be most of the sender's work.
func encodeSigned(b []byte, seq, count uint64, at envelope.Time, h *signedHead, items []laneItem) []byte {
	b = slices.Grow(b, 96+320+sizeOf(items)+len(items))
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"count":`...)
	b = strconv.AppendUint(b, count, 10)
	b = append(b, `,"at":`...)
	b = append(b, mustEncode(at)...)
	if h != nil {
		b = append(b, `,"signed":`...)
		b = trust.AppendStamp(b, &h.stamp)
	}
	b = append(b, `,"items":[`...)
	for i := range items {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, itemHead...)
		b = append(b, items[i].s.Canonical()...)
		b = append(b, items[i].tail...)
	}
	return append(b, `]}`...)
}

// encodeBell is the bell of an entry: with the entry in it, or with the head of one that is in its slot.
func encodeBell(seq, count uint64, inline []byte, h *signedHead) []byte {
	b := make([]byte, 0, 64+320+len(inline))
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"count":`...)
	b = strconv.AppendUint(b, count, 10)
	if inline != nil {
		b = append(b, `,"entry":`...)
		b = append(b, inline...)
	} else if h != nil {
		b = append(b, `,"items":`...)
		b = strconv.AppendInt(b, int64(h.Items), 10)
		b = append(b, `,"root":"`...)
		b = base64.StdEncoding.AppendEncode(b, h.Root[:])
		b = append(b, `","signed":`...)
		b = trust.AppendStamp(b, &h.stamp)
	}
	return append(b, '}')
}

func encodeHead(cursor, count, page uint64, last int, receipts [][]byte) []byte {
	n := 120
	for _, r := range receipts {
		n += len(r) + 1
	}
	b := make([]byte, 0, n)
	b = append(b, `{"cursor":`...)
	b = strconv.AppendUint(b, cursor, 10)
	b = append(b, `,"count":`...)
	b = strconv.AppendUint(b, count, 10)
	b = append(b, `,"page":`...)
	b = strconv.AppendUint(b, page, 10)
	if last > 0 {
		b = append(b, `,"last":`...)
		b = strconv.AppendInt(b, int64(last), 10)
	}
	b = append(b, `,"receipts":[`...)
	return append(appendJoined(b, receipts), `]}`...)
}

// appendJoined adds list to b, with commas between.
func appendJoined(b []byte, list [][]byte) []byte {
	for i, x := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, x...)
	}
	return b
}
