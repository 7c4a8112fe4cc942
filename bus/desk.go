package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// desk is the handler of a gateway's own inbox: it receives the answers to questions that
// clients asked through this gateway's API.
type desk struct{ b *Bus }

func (d desk) Handle(ctx context.Context, m *Incoming) error {
	e := m.Envelope()
	if e.InReplyTo == "" {
		return Never(envelope.ClassUndeliverable, errors.New("a gateway's own inbox takes answers only; send to an agent"))
	}
	if q := d.b.tracks.envelope(e.InReplyTo); q != nil {
		err := d.b.mayAnswer(ctx, q.TargetAgent, e)
		if refused := (*trust.Refusal)(nil); errors.As(err, &refused) {
			return Never(envelope.ClassUnauthorised, err)
		}
		if err != nil {
			return err
		}
	}
	key := resultKey(d.b.cfg.Gateway, e.InReplyTo)
	m.extra = append(m.extra, Op{Verb: OpSet, Key: key,
		Value: d.b.sign(trust.KindRecord, key, mustEncode(resultRecord{Request: e.InReplyTo, At: envelope.At(d.b.now()), Reply: e.Canonical()}))})
	m.after = func() { d.b.gotReply(e) }
	return nil
}

// maxEventText bounds Event.Text in bytes.
const maxEventText = 4 << 10

// gotReply makes an answer known to whoever waits for it.
func (b *Bus) gotReply(reply *envelope.Sealed) {
	b.tracks.replied(reply.InReplyTo, reply)
	ev := b.eventOf(EventReplied, &reply.Envelope)
	ev.MessageID, ev.InReplyTo = reply.InReplyTo, ""
	if !reply.Encrypted() { // events go to whoever listens
		ev.Text = reply.Text()
	}
	if len(ev.Text) > maxEventText {
		ev.Text = strings.ToValidUTF8(ev.Text[:maxEventText], "") + "..."
	}
	if q := b.tracks.envelope(reply.InReplyTo); q != nil {
		ev.Millis = float64(b.now().Sub(q.CreatedAt.Time).Microseconds()) / 1000
	}
	b.emit(ev)
}

// dropResults deletes answers that nobody needs any more: one transaction when there are any,
// nothing otherwise.
func (b *Bus) dropResults(ctx context.Context) {
	if time.Now().Before(b.outbox.resultsDue) {
		return
	}
	pairs, err := b.store.List(ctx, resultsPrefix(b.cfg.Gateway))
	if err != nil {
		return
	}
	next := time.Now().Add(b.cfg.ResultRetention / 4)
	var ops []Op
	for _, p := range pairs {
		var r resultRecord
		if json.Unmarshal(p.Value, &r) == nil && b.now().Sub(r.At.Time) < b.cfg.ResultRetention {
			continue
		}
		if len(ops) < b.store.Limits().Ops-1 {
			ops = append(ops, Op{Verb: OpDelete, Key: p.Key})
		}
	}
	if len(ops) > 0 {
		ops = append(ops, Op{Verb: OpCheckSession, Key: gatewayLockKey(b.cfg.Gateway), Session: b.session.id()})
		if _, err := b.store.Txn(ctx, ops); err != nil {
			b.log.Debug("delete old answers", "error", fmt.Sprint(err))
			next = time.Now()
		} else if len(ops) == b.store.Limits().Ops {
			next = time.Now()
		}
	}
	b.outbox.resultsDue = next
}
