package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// Outgoing is a message to be sent. To, From and Payload are required; the rest has
// defaults.
type Outgoing struct {
	// ID makes sending again safe: the same id is the same message. Empty: a new one.
	ID      string
	To      envelope.Address
	From    string
	Payload json.RawMessage
	// Capability is what is asked of the agent.
	Capability string
	// TTL and MaxHops; 0: the bus's defaults.
	TTL     time.Duration
	MaxHops int
	// ConversationID; empty: a conversation of its own.
	ConversationID string
	CorrelationID  string
	InReplyTo      string
	// ReplyTo is the agent that wants the answer; empty: none.
	ReplyTo     string
	Terminal    bool
	Budget      *envelope.Budget
	Traceparent string
	// MaxAttempts, AckTimeout and RetryDelay ask the receiver for other numbers than its own; 0: its own.
	MaxAttempts            int
	AckTimeout, RetryDelay time.Duration
	// Task says how much it matters and when it may be handled; nil: as everything else.
	Task *envelope.Task
	// Branch ([Incoming.Send] and [Incoming.Ask]): the message begins something of its own at its target, which may be on the path already;
	// one to the handler's own agent adds no hop. So the path does not keep such messages from following each other for ever: whoever sends them has to.
	Branch bool
	// AttemptID names this try of the sender; at most 64 characters. Another try of the same ID is no other message.
	AttemptID string

	// reserved: made by the bus itself, so its budget is filled in and its capability may be one of the mesh.
	reserved bool
	// secret: it comes of an encrypted message, and is encrypted itself.
	secret bool
}

// ReservedCapability begins the capabilities that the bus answers itself; nobody else may send them.
const ReservedCapability = "mesh."

// seal fills the defaults and fixes the bytes.
func (b *Bus) seal(o Outgoing) (*envelope.Sealed, error) {
	if o.ID == "" {
		o.ID = envelope.NewID()
	}
	if o.TTL == 0 {
		o.TTL = b.cfg.TTL
	}
	if o.MaxHops == 0 {
		o.MaxHops = b.cfg.MaxHops
	}
	if o.ConversationID == "" {
		o.ConversationID = o.ID
	}
	if o.CorrelationID == "" {
		o.CorrelationID = o.ID
	}
	most := b.cfg.MaxPayload
	if strings.HasPrefix(o.Capability, ReservedCapability) {
		most = envelope.MaxClaim // the mesh's own: a whole message may be in it
	}
	if len(o.Payload) > most {
		return nil, fmt.Errorf("payload is %d bytes, at most %d: %w", len(o.Payload), most, ErrTooLarge)
	}
	if !o.reserved && strings.HasPrefix(o.Capability, ReservedCapability) {
		return nil, fmt.Errorf("%w: capability %q: those that begin with %q are the mesh's own", envelope.ErrInvalid, o.Capability, ReservedCapability)
	}
	if len(o.AttemptID) > 64 {
		return nil, fmt.Errorf("%w: attempt_id is %d bytes, at most 64", envelope.ErrInvalid, len(o.AttemptID))
	}
	if o.Task != nil && o.Task.NotBefore != nil {
		if ahead := o.Task.NotBefore.Sub(b.now()); ahead > envelope.MaxDelay {
			return nil, fmt.Errorf("%w: task.not_before is %s ahead, at most %s", envelope.ErrInvalid, ahead.Round(time.Second), envelope.MaxDelay)
		}
	}
	e := envelope.Envelope{
		SchemaVersion: envelope.Version, MessageID: o.ID, CorrelationID: o.CorrelationID, ConversationID: o.ConversationID,
		InReplyTo: o.InReplyTo, ReplyTo: o.ReplyTo, SourceGateway: b.cfg.Gateway, SourceAgent: o.From,
		TargetGateway: o.To.Gateway, TargetAgent: o.To.Agent, Capability: o.Capability, Payload: o.Payload,
		CreatedAt: envelope.At(b.now()), TTL: envelope.MillisOf(o.TTL), MaxHops: o.MaxHops, Terminal: o.Terminal,
		Budget: o.Budget, Task: o.Task, Traceparent: o.Traceparent,
		MaxAttempts: o.MaxAttempts, AckTimeout: envelope.MillisOf(o.AckTimeout), RetryDelay: envelope.MillisOf(o.RetryDelay),
	}
	if b.encrypts(&o) {
		return b.sealEncrypted(e)
	}
	if len(o.Payload) > envelope.MaxPayload {
		s, _, err := envelope.SealClaim(e)
		return s, err
	}
	return envelope.Seal(e)
}

// Send puts a message into its target's inbox. When it returns nil the message is accepted: it
// is durable in the store. Errors: envelope.ErrInvalid, [ErrTooLarge], [ErrUnknownAgent], [ErrInboxFull],
// [ErrExpired], *envelope.BudgetError (nothing is left, so nothing was dispatched),
// [ErrNoEncryptionKey], [ErrStopped], [ErrUnavailable] (nothing was written), [ErrOutcomeUnknown] (it may
// have been; the returned envelope has the id to look for or to send again).
func (b *Bus) Send(ctx context.Context, o Outgoing) (*envelope.Sealed, error) {
	all, err := b.sendAll(ctx, []Outgoing{o}, nil)
	if len(all) == 0 {
		return nil, err
	}
	return all[0], err
}

// sendAll puts messages into their targets' inboxes in one transaction, with extra.
func (b *Bus) sendAll(ctx context.Context, outs []Outgoing, extra func([]*envelope.Sealed) []Op) ([]*envelope.Sealed, error) {
	return b.sendOwned(ctx, nil, outs, extra)
}

// sendOwned is sendAll for the owner of an inbox: refused when that is somebody else then. nil: for anybody.
func (b *Bus) sendOwned(ctx context.Context, owner *inbox, outs []Outgoing, extra func([]*envelope.Sealed) []Op) ([]*envelope.Sealed, error) {
	all := make([]*envelope.Sealed, len(outs))
	u := &unit{ctx: ctx, owner: owner}
	for i := range outs {
		o := &outs[i]
		if o.Budget != nil {
			if err := o.Budget.Exhausted(b.now()); err != nil {
				return nil, err
			}
		}
		s, err := b.seal(*o)
		if errors.Is(err, ErrNoEncryptionKey) {
			// Nobody can read what is for nobody.
			if terr := b.checkTarget(ctx, o.To); terr != nil {
				err = terr
			}
		}
		if err != nil {
			return nil, err
		}
		all[i] = s
		u.send(&outgoing{o: *o, s: s})
	}
	if b.stopping.Load() && owner == nil {
		return nil, ErrStopped
	}
	if err := b.trusted(); err != nil {
		return nil, err
	}
	for i := range outs {
		to := outs[i].To
		if err := b.checkTarget(ctx, to); err != nil {
			return nil, err
		}
		if err := b.roomFor(to.Agent); err != nil {
			return nil, err
		}
	}
	if b.writer.full() {
		return nil, fmt.Errorf("%w: %d MiB wait to be written already", ErrUnavailable, queueBytes>>20)
	}
	var ref trackRef
	for _, s := range all {
		if err := b.putPayload(ctx, s); err != nil {
			return nil, err
		}
		ref = b.tracks.begin(s)
	}
	if extra != nil {
		u.extra = extra(all)
	}
	done := b.outcomes.Get().(chan error)
	u.done = func(err error) {
		if err == nil {
			if len(all) == 1 {
				b.sentAt(ref, all[0], u.at)
			} else {
				for _, s := range all {
					b.sent(s, u.at)
				}
			}
		}
		done <- err
	}
	b.writer.submit(u)
	select {
	case err := <-done:
		b.outcomes.Put(done)
		return all, err
	case <-ctx.Done():
		return all, b.outcomeUnknown(ctx.Err()) // somebody may write to done later
	}
}

// roomFor refuses a message for an inbox that holds all it may of this gateway. Replies are never refused.
func (b *Bus) roomFor(agent string) error {
	l := b.outbox.shared(agent)
	sent, taken := l.sent.Load(), l.taken.Load()
	if sent < taken || sent-taken < uint64(b.cfg.MaxInbox) {
		return nil
	}
	owner := b.OwnerOf(agent)
	return &InboxFullError{Agent: agent, Waiting: sent - taken, Owner: owner}
}

// sent makes acceptance known. It may run after others took the message: at, the time of its
// entry, is what puts the events in order.
func (b *Bus) sent(s *envelope.Sealed, at envelope.Time) { b.sentAt(b.tracks.begin(s), s, at) }

// sentAt is sent for who knows where the timeline is.
func (b *Bus) sentAt(ref trackRef, s *envelope.Sealed, at envelope.Time) {
	ev := b.eventAt(EventQueued, &s.Envelope, at.Time)
	ev.State, ev.Millis = envelope.Queued, float64(at.Sub(s.CreatedAt.Time).Milliseconds())
	b.emitAt(ref, &ev)
}

// AskAPI sends a question for a client of this gateway; its answer comes to the gateway's own
// inbox and is kept for ResultRetention. Wait for it with Await.
func (b *Bus) AskAPI(ctx context.Context, o Outgoing) (*envelope.Sealed, error) {
	o.ReplyTo = b.cfg.Gateway
	return b.Send(ctx, o)
}

// Await waits until done says so of a message of this gateway, and returns what is known of it then,
// or with ctx's error when ctx ends first.
func (b *Bus) Await(ctx context.Context, id string, done func(Track) bool) (Track, error) {
	return b.tracks.wait(ctx, id, done)
}

// Track returns what this gateway remembers of a message, and a channel that is closed at
// the next change.
func (b *Bus) Track(id string) (Track, <-chan struct{}, bool) { return b.tracks.get(id) }

// Recent lists what this gateway remembers of the newest messages, newest first.
func (b *Bus) Recent(limit int) []Status {
	list := []Status{}
	for _, id := range b.tracks.recent(limit) {
		if st, ok := b.remembered(id); ok {
			list = append(list, *st)
		}
	}
	return list
}

// outbox learns what became of what this gateway sent.
type outbox struct {
	b *Bus

	mu    sync.Mutex
	lanes map[string]*laneShared
	// read is how far the receipts of each agent were read; only follow touches it.
	read map[string]readMark
	// resultsDue is when old answers are looked for next; only sweep touches it.
	resultsDue time.Time
}

type readMark struct {
	page uint64
	n    int
}

// known takes in how far the receiver is.
func (l *laneShared) known(h receiptHead) {
	raise(&l.cursor, h.Cursor)
	raise(&l.taken, h.Count)
}

func newOutbox(b *Bus) *outbox {
	return &outbox{b: b, lanes: map[string]*laneShared{}, read: map[string]readMark{}}
}

func (o *outbox) shared(to string) *laneShared {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.lanes[to]
	if l == nil {
		l = &laneShared{}
		o.lanes[to] = l
	}
	return l
}

// prepare writes the resident key of the receipts, without which Consul would wake their
// watch for unrelated writes.
func (o *outbox) prepare(ctx context.Context) error {
	key := receiptsAboutKey(o.b.cfg.Gateway)
	value := mustEncode("Receipts for what " + o.b.cfg.Gateway + " sent: from/<agent> holds the cursor of the lane and the newest ones, openclaw/ledger/ the older.")
	p, err := o.b.store.Get(ctx, key)
	if err == nil && (p == nil || !bytes.Equal(p.Value, value)) {
		_, err = o.b.store.Txn(ctx, []Op{{Verb: OpSet, Key: key, Value: value}})
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	// Receipts from before this start belong to messages that nobody here waits for.
	pairs, err := o.b.store.List(ctx, receiptsPrefix(o.b.cfg.Gateway))
	if err != nil {
		return fmt.Errorf("read receipts: %w", err)
	}
	for _, p := range pairs {
		if agent, h, ok := o.parse(p); ok {
			o.read[agent] = readMark{h.Page, len(h.Receipts)}
			o.shared(agent).known(h)
		}
	}
	return nil
}

func (o *outbox) parse(p Pair) (agent string, h receiptHead, ok bool) {
	prefix := receiptsPrefix(o.b.cfg.Gateway) + "from/"
	if len(p.Key) <= len(prefix) || p.Key[:len(prefix)] != prefix {
		return "", h, false
	}
	agent = p.Key[len(prefix):]
	body, err := o.b.read(trust.KindReceipts, p.Key, p.Value, "", agent)
	if err != nil {
		o.b.refuse(p.Key, p.Value, err, "", agent)
		return "", h, false
	}
	if err := json.Unmarshal(body, &h); err != nil {
		o.b.log.Warn("receipts are not readable; waiting for the next", "key", p.Key, "error", err)
		return "", receiptHead{}, false
	}
	if was := o.shared(agent).cursor.Load(); o.b.enforced() && h.Cursor < was {
		o.b.refuse(p.Key, p.Value, &trust.Refusal{Reason: trust.Replay, Detail: fmt.Sprintf("it says that %d entries were taken, and %d were", h.Cursor, was)}, "", agent)
		return "", receiptHead{}, false
	}
	return agent, h, true
}

// follow reads receipts as they come.
func (o *outbox) follow(ctx context.Context) {
	last := map[string]uint64{}
	o.b.watchForever(ctx, receiptsPrefix(o.b.cfg.Gateway), func(pairs []Pair) error {
		for _, p := range pairs {
			if last[p.Key] == p.ModifyIndex {
				continue
			}
			agent, h, ok := o.parse(p)
			if !ok {
				continue
			}
			if err := o.receipts(ctx, agent, h); err != nil {
				return err
			}
			last[p.Key] = p.ModifyIndex
		}
		return nil
	})
}

// receipts takes in what one agent's owner wrote since the last look.
func (o *outbox) receipts(ctx context.Context, agent string, h receiptHead) error {
	o.shared(agent).known(h)
	from := o.read[agent]
	if h.Page < from.page || h.Page == from.page && len(h.Receipts) < from.n {
		from = readMark{} // the key was deleted or restored: everything in it is news
		from.page = h.Page
	}
	// Wake-ups merge: pages may have gone to the ledger unseen.
	first := from.page
	if h.Last > 0 && h.Page == from.page+1 && from.n >= h.Last {
		first = h.Page // all of it was read while it was the newest
	}
	for n := first; n < h.Page; n += fetchSlots {
		values, err := o.b.readPages(ctx, agent, n, min(n+fetchSlots, h.Page))
		if err != nil {
			return fmt.Errorf("read ledger of %s: %w", agent, err)
		}
		for i, value := range values {
			page := n + uint64(i)
			key := ledgerKey(o.b.cfg.Gateway, agent, page)
			if len(value) == 0 {
				continue
			}
			var old receiptHead
			body, err := o.b.read(trust.KindReceipts, key, value, "", agent)
			if err != nil {
				o.b.refuse(key, value, err, "", agent)
			}
			if err != nil || json.Unmarshal(body, &old) != nil {
				continue
			}
			skip := 0
			if page == from.page {
				skip = min(from.n, len(old.Receipts))
			}
			o.tell(agent, old.Receipts[skip:])
		}
	}
	skip := 0
	if h.Page == from.page {
		skip = min(from.n, len(h.Receipts))
	}
	o.tell(agent, h.Receipts[skip:])
	o.shared(agent).drop(h.Cursor)
	o.read[agent] = readMark{h.Page, len(h.Receipts)}
	return nil
}

// readPages reads pages of a ledger of what this gateway sent, side by side.
func (b *Bus) readPages(ctx context.Context, agent string, first, end uint64) ([][]byte, error) {
	values := make([][]byte, end-first)
	g, ctx := errgroup.WithContext(ctx)
	for i := range values {
		g.Go(func() (err error) {
			values[i], err = b.store.Read(ctx, ledgerKey(b.cfg.Gateway, agent, first+uint64(i)))
			return err
		})
	}
	return values, g.Wait()
}

// named puts the messages of an entry that was lost in the place of its number, if this process sent them.
func (o *outbox) named(agent string, ids []string) []string {
	lost := func(id string) []string {
		rest, ours := strings.CutPrefix(id, o.b.cfg.Gateway)
		num, ok := strings.CutPrefix(rest, "-")
		if !ours || !ok {
			return nil
		}
		if seq, isNum := parsePadded(num); isNum {
			return o.shared(agent).in(seq)
		}
		return nil
	}
	if !slices.ContainsFunc(ids, func(id string) bool { return lost(id) != nil }) {
		return ids
	}
	var list []string
	for _, id := range ids {
		if in := lost(id); in != nil {
			list = append(list, in...)
		} else {
			list = append(list, id)
		}
	}
	return list
}

func (o *outbox) tell(agent string, receipts []json.RawMessage) {
	now := o.b.now()
	for _, raw := range receipts {
		r, err := decodeReceipt(raw)
		if err != nil {
			o.b.log.Warn("receipt is not readable", "agent", agent, "error", err)
			continue
		}
		for _, id := range o.named(agent, r.IDs) {
			ev := Event{Event: EventReceipt, At: envelope.At(now), Gateway: o.b.cfg.Gateway, MessageID: id, To: agent}
			e, ref := o.b.tracks.find(id)
			if e != nil {
				ev = o.b.eventAt(EventReceipt, &e.Envelope, now)
				if err := o.b.mayTellOf(&e.Envelope, agent); err != nil {
					o.b.refuse(receiptsKey(o.b.cfg.Gateway, agent)+" of "+id, raw, err, "", agent)
					continue
				}
			}
			ev.State, ev.Attempt, ev.Class, ev.Reason, ev.By, ev.PassedOn = r.State, r.Attempt, r.Class, r.Error, r.Gateway, r.To
			o.b.emitAt(ref, &ev)
		}
	}
}

// sweepEvery is how often lanes that are not written to any more are looked at for slots that the
// receiver has taken. Looking costs no write, and without such slots nothing else happens.
const sweepEvery = 5 * time.Second

func (o *outbox) sweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		o.mu.Lock()
		var idle []string
		for to, l := range o.lanes {
			if l.waiting.Load() > 0 {
				idle = append(idle, to)
			}
		}
		o.mu.Unlock()
		for _, to := range idle {
			o.sweepLane(ctx, to)
		}
		if o.b.enforced() {
			o.mendBells(ctx)
		}
		if err := o.b.marks.save(); err != nil {
			o.b.log.Warn("a restart may not notice lanes that were put back", "error", err)
		}
		o.b.dropResults(ctx)
	}
}

// mendBells has the bells looked at that announce what nobody has taken: one that somebody changed keeps its mail from being
// found, and an idle sender would never know.
func (o *outbox) mendBells(ctx context.Context) {
	o.mu.Lock()
	lanes := maps.Clone(o.lanes)
	o.mu.Unlock()
	for to, l := range lanes {
		mine := l.bell.Load()
		if mine == nil || l.sent.Load() <= l.taken.Load() {
			continue
		}
		p, err := o.b.store.Get(ctx, bellKey(to, o.b.cfg.Gateway))
		if err != nil || p != nil && bytes.Equal(p.Value, *mine) || l.bell.Load() != mine {
			continue
		}
		o.b.writer.submit(&unit{ctx: ctx, mend: to, done: func(error) {}})
	}
}

// sweepLane deletes the taken slots of one lane, as long as that gets anywhere.
func (o *outbox) sweepLane(ctx context.Context, to string) {
	l := o.shared(to)
	for before := int64(-1); ctx.Err() == nil; {
		n := l.waiting.Load()
		if n == 0 || n == before {
			return
		}
		before = n
		done := make(chan error, 1)
		o.b.writer.submit(&unit{ctx: ctx, sweep: to, done: func(err error) { done <- err }})
		if err := <-done; err != nil && !errors.Is(err, ErrStopped) {
			o.b.log.Debug("sweep lane", "to", to, "error", err)
			return
		}
	}
}
