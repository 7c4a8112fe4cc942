package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// MaxLegs is how many messages one fan-out may have: they are accepted in one transaction.
const MaxLegs = 20

// Fan is one message for several agents.
type Fan struct {
	// ID makes sending again safe; empty: a new one.
	ID string
	// To are the agents; or, when it is empty, all that offer the message's capability now.
	To []envelope.Address
	// Message is what each of them gets; its To and ID are not used. A budget is shared out equally.
	Message Outgoing
}

// The outcomes of a whole fan-out.
const (
	FanPending = "pending" // a leg has no end yet
	FanDone    = "done"    // every leg worked
	FanPartial = "partial" // some legs were given up
	FanFailed  = "failed"  // every leg was given up
)

// FanStatus is a fan-out and its legs.
type FanStatus struct {
	ID      string        `json:"id"`
	Outcome string        `json:"outcome"`
	At      envelope.Time `json:"at"`
	Legs    []FanLeg      `json:"legs"`
}

// FanLeg is one message of a fan-out.
type FanLeg struct {
	To        string `json:"to"`
	MessageID string `json:"message_id"`
	// Facts are what is known of it; Reply is its answer.
	Facts Facts            `json:"facts"`
	Reply *envelope.Sealed `json:"reply,omitempty"`
}

// fanRecord is what the store keeps of a fan-out.
type fanRecord struct {
	ID     string        `json:"id"`
	At     envelope.Time `json:"at"`
	Wanted bool          `json:"wants_reply"`
	Legs   []fanLeg      `json:"legs"`
}

type fanLeg struct {
	To        string `json:"to"`
	MessageID string `json:"message_id"`
}

// ErrNobody: a fan-out to a capability that no agent offers.
var ErrNobody = errors.New("no agent offers the capability")

// SendAll sends a message to several agents: all legs are accepted, or none. Each has its own fate
// then ([Bus.FanOut]). With ask, the answers come to this gateway as those of AskAPI do. Errors: [ErrNobody],
// envelope.ErrInvalid (no or too many legs, one twice), and those of [Bus.Send].
func (b *Bus) SendAll(ctx context.Context, f Fan, ask bool) (*FanStatus, error) {
	if len(f.To) == 0 {
		if f.Message.Capability == "" {
			return nil, fmt.Errorf("%w: a fan-out needs agents or a capability", envelope.ErrInvalid)
		}
		for _, a := range b.Agents(f.Message.Capability) {
			f.To = append(f.To, envelope.Address{Agent: a.ID})
		}
		if len(f.To) == 0 {
			return nil, fmt.Errorf("%w: %s", ErrNobody, f.Message.Capability)
		}
	}
	if len(f.To) > MaxLegs {
		return nil, fmt.Errorf("%w: a fan-out to %d agents, at most %d", envelope.ErrInvalid, len(f.To), MaxLegs)
	}
	if f.ID == "" {
		f.ID = envelope.NewID()
	}
	shares := f.Message.Budget.Split(len(f.To))
	outs := make([]Outgoing, len(f.To))
	rec := fanRecord{ID: f.ID, Wanted: ask}
	var named []string
	for i, to := range f.To {
		if slices.Contains(named, to.Agent) {
			return nil, fmt.Errorf("%w: %s stands twice in the fan-out", envelope.ErrInvalid, to.Agent)
		}
		named = append(named, to.Agent)
		o := f.Message
		o.To, o.ID, o.Budget, o.CorrelationID = to, envelope.DerivedID(f.ID, "leg/"+to.Agent), shares[i], f.ID
		if ask {
			o.ReplyTo = b.cfg.Gateway
		}
		outs[i] = o
		rec.Legs = append(rec.Legs, fanLeg{To: to.String(), MessageID: o.ID})
	}
	_, err := b.sendAll(ctx, outs, func(all []*envelope.Sealed) []Op {
		rec.At = all[0].CreatedAt
		key := fanoutKey(b.cfg.Gateway, f.ID)
		return []Op{{Verb: OpSet, Key: key, Value: b.sign(trust.KindRecord, key, mustEncode(rec))}}
	})
	if err != nil {
		return nil, err
	}
	return b.fanStatus(ctx, &rec)
}

// FanOut tells what became of a fan-out: of this gateway's memory, and of the store for what is not in
// it. It is known as long as answers are kept. Errors: [ErrNotFound], or the store's.
func (b *Bus) FanOut(ctx context.Context, id string) (*FanStatus, error) {
	rec, err := b.fanRecordOf(ctx, id)
	if err != nil {
		return nil, err
	}
	return b.fanStatus(ctx, rec)
}

// fanRecordOf finds what was kept of a fan-out: this gateway's own first, so that another one's under the same id hides nothing.
func (b *Bus) fanRecordOf(ctx context.Context, id string) (*fanRecord, error) {
	own := fanoutKey(b.cfg.Gateway, id)
	if rec, err := b.openFan(ctx, own, b.cfg.Gateway); rec != nil || err != nil {
		return rec, err
	}
	var found *fanRecord
	keys, err := b.store.Keys(ctx, fanoutsRoot, "")
	if err != nil {
		return nil, fmt.Errorf("look for fan-out %s: %w", id, err)
	}
	for _, k := range keys {
		gw, ok := strings.CutSuffix(k[len(fanoutsRoot):], "/"+id)
		if !ok || k == own {
			continue
		}
		rec, err := b.openFan(ctx, k, gw)
		switch {
		case err != nil:
			return nil, err
		case rec != nil && found != nil:
			return nil, fmt.Errorf("%w: two gateways say that fan-out %s is theirs, %s one of them: ask at the one that accepted it", ErrNotFound, id, gw)
		case rec != nil:
			found = rec
		}
	}
	if found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("%w: fan-out %s", ErrNotFound, id)
}

// openFan reads a record that a gateway must have written; nil: there is none that can be believed.
func (b *Bus) openFan(ctx context.Context, key, gw string) (*fanRecord, error) {
	raw, err := b.store.Read(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if raw == nil {
		return nil, nil //nolint:nilnil // none
	}
	body, err := b.read(trust.KindRecord, key, raw, gw, "")
	if err != nil {
		b.refuse(key, raw, err, "@"+gw, "")
		return nil, nil //nolint:nilnil // as if it were not there
	}
	rec := &fanRecord{}
	if err := json.Unmarshal(body, rec); err != nil {
		return nil, fmt.Errorf("fan-out %s: %w: %w", key, errUnreadable, err)
	}
	return rec, nil
}

func (b *Bus) fanStatus(ctx context.Context, rec *fanRecord) (*FanStatus, error) {
	fs := &FanStatus{ID: rec.ID, At: rec.At}
	open, dead := 0, 0
	for _, l := range rec.Legs {
		leg := FanLeg{To: l.To, MessageID: l.MessageID}
		st, ok := b.remembered(l.MessageID)
		settled := ok && (st.Facts.Dead || st.Facts.Replied || st.Facts.Acked && !rec.Wanted)
		if !settled {
			found, err := b.Lookup(ctx, l.MessageID)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
			if err == nil {
				st = found
			}
		}
		leg.Facts, leg.Reply = st.Facts, st.Reply
		leg.Facts.Accepted = true
		switch {
		case leg.Facts.Dead:
			dead++
		case rec.Wanted && !leg.Facts.Replied || !leg.Facts.Acked && !leg.Facts.Replied:
			open++
		}
		fs.Legs = append(fs.Legs, leg)
	}
	switch {
	case open > 0:
		fs.Outcome = FanPending
	case dead == len(rec.Legs):
		fs.Outcome = FanFailed
	case dead > 0:
		fs.Outcome = FanPartial
	default:
		fs.Outcome = FanDone
	}
	return fs, nil
}

// AwaitFan waits until every leg has its end, or returns what is known with ctx's error.
func (b *Bus) AwaitFan(ctx context.Context, id string) (*FanStatus, error) {
	fs, err := b.FanOut(ctx, id)
	if err != nil {
		return nil, err
	}
	wanted := false
	if rec, err := b.fanRecordOf(ctx, id); err == nil {
		wanted = rec.Wanted
	}
	for _, l := range fs.Legs {
		_, werr := b.Await(ctx, l.MessageID, func(t Track) bool {
			return t.Facts.Dead || t.Facts.Replied || t.Facts.Acked && !wanted
		})
		if werr != nil && !errors.Is(werr, ErrNotFound) {
			err = werr
			break
		}
	}
	last, ferr := b.FanOut(context.WithoutCancel(ctx), id)
	if ferr != nil {
		return fs, ferr
	}
	return last, err
}
