package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// A DeadLetter is a message that was given up, with everything known of it.
type DeadLetter struct {
	Agent     string `json:"agent"`
	MessageID string `json:"message_id"`
	// From is the gateway in whose lane it came.
	From     string            `json:"from"`
	Class    envelope.Class    `json:"class"`
	Reason   string            `json:"reason"`
	At       envelope.Time     `json:"at"`
	Delivery envelope.Delivery `json:"delivery"`
	// Envelope is nil when it could not be read; Raw is what was there then.
	Envelope *envelope.Sealed `json:"envelope,omitempty"`
	Raw      string           `json:"raw,omitempty"`
	// Hindrance says why a redrive without a new lifetime would be refused; empty: it would not.
	Hindrance string `json:"hindrance,omitempty"`

	proof []byte
	lane  uint64
	item  int
}

// DeadLetterFilter selects dead letters; the zero value selects all.
type DeadLetterFilter struct {
	Agent string
	IDs   []string
	Class envelope.Class
	// From is the source gateway or agent@gateway.
	From string
	// Before and After bound when it was given up.
	Before, After time.Time
	// Contains is looked for in the reason.
	Contains string
	// Limit bounds how many are returned; 0: all.
	Limit int
}

func (f DeadLetterFilter) fits(d *DeadLetter) bool {
	source := d.From
	if d.Envelope != nil {
		source = d.Envelope.SourceAgent + "@" + d.Envelope.SourceGateway
	}
	return (len(f.IDs) == 0 || slices.Contains(f.IDs, d.MessageID)) &&
		(f.Class == "" || f.Class == d.Class) &&
		(f.From == "" || f.From == d.From || f.From == source || strings.HasSuffix(source, "@"+f.From)) &&
		(f.Before.IsZero() || d.At.Before(f.Before)) && (f.After.IsZero() || d.At.After(f.After)) &&
		strings.Contains(d.Reason, f.Contains)
}

// DeadLetters lists dead letters, oldest first. It reads every one of the agents it looks at: for people.
func (b *Bus) DeadLetters(ctx context.Context, f DeadLetterFilter) ([]DeadLetter, error) {
	prefix := deadRoot
	if f.Agent != "" {
		prefix += f.Agent + "/"
	}
	keys, err := b.store.Keys(ctx, prefix, "")
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	list := []DeadLetter{}
	for _, k := range keys {
		agent, id, _ := strings.Cut(k[len(deadRoot):], "/")
		if len(f.IDs) > 0 && !slices.Contains(f.IDs, id) {
			continue
		}
		raw, err := b.store.Read(ctx, k)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", k, err)
		}
		if len(raw) == 0 {
			continue // it went meanwhile
		}
		d := b.decodeDead(agent, id, raw)
		if f.fits(&d) {
			list = append(list, d)
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].At.Before(list[j].At.Time) })
	if f.Limit > 0 && len(list) > f.Limit {
		list = list[:f.Limit]
	}
	return list, nil
}

func (b *Bus) decodeDead(agent, id string, raw []byte) DeadLetter {
	d := DeadLetter{Agent: agent, MessageID: id}
	var rec deadRecord
	key := deadKey(agent, id)
	body, st, err := b.open(trust.KindRecord, key, raw, "", agent)
	if err != nil {
		b.refuse(key, raw, err, "", agent)
		d.Class, d.Reason, d.Raw = envelope.ClassUnauthorised, "the dead letter itself is refused: "+err.Error(), envelope.Clip(string(raw))
		d.Hindrance = "who wrote it may not"
		return d
	}
	if err := json.Unmarshal(body, &rec); err != nil {
		d.Class, d.Reason, d.Raw = envelope.ClassPoison, "the dead letter itself is not readable: "+err.Error(), envelope.Clip(string(raw))
		d.Hindrance = "it is not readable"
		return d
	}
	d.proof, d.lane, d.item = rec.Proof, rec.Lane, rec.Item
	d.From, d.Delivery, d.Class, d.Reason, d.Raw = rec.From, rec.Delivery, rec.Delivery.Class, rec.Delivery.LastError, rec.Raw
	if rec.Delivery.DeadAt != nil {
		d.At = *rec.Delivery.DeadAt
	}
	if env, err := envelope.Decode(rec.Envelope); err == nil {
		d.Envelope = env
	}
	if d.Hindrance = d.hindrance(b.now(), nil); d.Hindrance == "" {
		if err := b.checkSource(d.Envelope, rec.Proof, st); err != nil {
			b.refuse(key, raw, err, "", agent)
			d.Hindrance = "who sent it cannot be shown: " + err.Error()
			d.Envelope = nil
		}
	}
	return d
}

// hindrance says why the message would die again at once, if so; expires is a new end of life.
func (d *DeadLetter) hindrance(now time.Time, expires *envelope.Time) string {
	e := d.Envelope
	switch {
	case e == nil:
		return "it cannot be read"
	case d.Delivery.State != envelope.DeadLetter:
		return "its record says " + string(d.Delivery.State)
	}
	if e.TargetAgent != d.Agent && d.Delivery.For != d.Agent {
		return "it is for agent " + e.TargetAgent
	}
	if expires == nil {
		expires = d.Delivery.ExpiresAt
	}
	if e.ExpiredWith(now, envelope.DefaultSkew, expires) {
		return fmt.Sprintf("its lifetime is over since %s: give it a new one (--ttl)", e.ExpiresAt().Format(time.RFC3339))
	}
	if e.InReplyTo == "" {
		if err := envelope.CheckPath(d.Delivery.Hops, d.Agent, e.MaxHops); err != nil {
			return err.Error()
		}
	}
	left := e.Budget
	if d.Delivery.Spent != nil {
		left = left.Less(*d.Delivery.Spent)
	}
	if err := left.Exhausted(now); err != nil {
		return err.Error()
	}
	if d.Class == envelope.ClassUndeliverable && e.TargetGateway != "" {
		return "it is pinned to " + e.TargetGateway
	}
	return ""
}

// The operations on dead letters that an agent's owner carries out.
const (
	opRedrive = ReservedCapability + "deadletter.redrive"
	opPurge   = ReservedCapability + "deadletter.purge"
	// opAdvice tells a gateway that a message of its that was passed on is dead.
	opAdvice = ReservedCapability + "advice"
)

// deadOrder is what is asked of the owner.
type deadOrder struct {
	IDs []string `json:"ids"`
	By  string   `json:"by"`
	// TTL is a new lifetime in milliseconds, counted from the redrive; 0: as it is.
	TTL envelope.Millis `json:"ttl,omitempty"`
}

// DeadLetterResult is what became of one dead letter of an order.
type DeadLetterResult struct {
	Agent     string         `json:"agent"`
	MessageID string         `json:"message_id"`
	Class     envelope.Class `json:"class,omitempty"`
	Done      bool           `json:"done"`
	// Reason says why it was not done.
	Reason string `json:"reason,omitempty"`
}

type deadOrderAnswer struct {
	Results []DeadLetterResult `json:"results"`
}

const (
	// orderSize is how many dead letters one order names, and orderBytes how much they may hold: the
	// owner carries it out in one transaction.
	orderSize  = 16
	orderBytes = 192 << 10
)

// RedriveOptions say how dead letters are queued again.
type RedriveOptions struct {
	// By is who wants it; it stays in the message's record.
	By string
	// TTL is a new lifetime from now on; 0: as it is.
	TTL time.Duration
	// DryRun only says what would happen.
	DryRun bool
}

// Redrive queues dead letters again: same id, all history kept, attempts counted anew. Those that would
// die at once are left, and said; so are those of the class unknown when neither id nor class names them: redriving those is to say
// that their effects are to be made again. The owners of the agents do it, each as a message of its own kind, so an
// agent that nobody owns has its orders waiting until ctx ends.
func (b *Bus) Redrive(ctx context.Context, f DeadLetterFilter, o RedriveOptions) ([]DeadLetterResult, error) {
	var expires *envelope.Time
	if o.TTL > 0 {
		t := envelope.At(b.now().Add(o.TTL))
		expires = &t
	}
	return b.order(ctx, opRedrive, f, deadOrder{By: o.By, TTL: envelope.MillisOf(o.TTL)}, o.DryRun, func(d *DeadLetter) string {
		if d.Class == envelope.ClassUnknown && len(f.IDs) == 0 && f.Class != envelope.ClassUnknown {
			return "it may have had its effect, and a redrive makes it again: name it by its id, or its class"
		}
		return d.hindrance(b.now(), expires)
	})
}

// Purge deletes dead letters for good.
func (b *Bus) Purge(ctx context.Context, f DeadLetterFilter, by string, dryRun bool) ([]DeadLetterResult, error) {
	return b.order(ctx, opPurge, f, deadOrder{By: by}, dryRun, func(*DeadLetter) string { return "" })
}

func (b *Bus) order(ctx context.Context, op string, f DeadLetterFilter, order deadOrder, dryRun bool, hindered func(*DeadLetter) string) ([]DeadLetterResult, error) {
	if len(order.By) > 128 {
		return nil, fmt.Errorf("%w: by is %d bytes, at most 128", envelope.ErrInvalid, len(order.By))
	}
	list, err := b.DeadLetters(ctx, f)
	if err != nil {
		return nil, err
	}
	results := []DeadLetterResult{}
	byAgent := map[string][]string{}
	classes := map[string]envelope.Class{}
	for i := range list {
		d := &list[i]
		r := DeadLetterResult{Agent: d.Agent, MessageID: d.MessageID, Class: d.Class, Reason: hindered(d)}
		if dryRun || r.Reason != "" {
			r.Done = r.Reason == ""
			results = append(results, r)
			continue
		}
		classes[d.MessageID] = d.Class
		byAgent[d.Agent] = append(byAgent[d.Agent], d.MessageID)
	}
	agents := make([]string, 0, len(byAgent))
	for a := range byAgent {
		agents = append(agents, a)
	}
	slices.Sort(agents)
	for _, agent := range agents {
		for ids := byAgent[agent]; len(ids) > 0; {
			order.IDs = ids[:min(len(ids), orderSize)]
			got, err := b.orderOne(ctx, op, agent, order)
			if err != nil {
				return results, err
			}
			if len(got) == 0 {
				return results, fmt.Errorf("the owner of %s answered nothing to %s", agent, op)
			}
			for i := range got {
				got[i].Agent, got[i].Class = agent, classes[got[i].MessageID]
			}
			results = append(results, got...)
			ids = ids[min(len(got), len(ids)):]
		}
	}
	return results, nil
}

// orderOne asks an agent's owner, which may do only the first few of what is named.
func (b *Bus) orderOne(ctx context.Context, op, agent string, order deadOrder) ([]DeadLetterResult, error) {
	var ans deadOrderAnswer
	err := b.askOwner(ctx, op, agent, order, &ans)
	return ans.Results, err
}

// askOwner has an agent's owner carry out what only the bus itself may ask, and waits for its answer.
func (b *Bus) askOwner(ctx context.Context, op, agent string, order, answer any) error {
	ttl := 30 * time.Second
	if end, ok := ctx.Deadline(); ok {
		ttl = max(time.Until(end), time.Second)
	}
	s, err := b.Send(ctx, Outgoing{
		To: envelope.Address{Agent: agent}, From: b.cfg.Gateway, ReplyTo: b.cfg.Gateway, Capability: op, Payload: mustEncode(order), TTL: ttl, reserved: true,
	})
	if err != nil {
		return fmt.Errorf("ask the owner of %s: %w", agent, err)
	}
	tr, err := b.Await(ctx, s.MessageID, func(t Track) bool { return t.Facts.Replied || t.Facts.Dead })
	switch {
	case err != nil && b.OwnerOf(agent) == "":
		return fmt.Errorf("nobody owns %s now, so nothing of it can be changed: start a gateway that may run it: %w", agent, err)
	case err != nil:
		return fmt.Errorf("the owner of %s does not answer: %w", agent, err)
	case tr.Facts.Dead:
		return &DeadLetterError{MessageID: s.MessageID, Agent: agent, Class: tr.Facts.Class, Reason: tr.Facts.Reason}
	}
	if err := json.Unmarshal(tr.Reply.Payload, answer); err != nil {
		return fmt.Errorf("the owner of %s answered something else: %w", agent, err)
	}
	return nil
}

// operate carries out what only the bus itself may ask.
func (ib *inbox) operate(ctx context.Context, m *Incoming) error {
	e := m.Envelope()
	if e.SourceAgent != e.SourceGateway {
		return Never(envelope.ClassUnauthorised, fmt.Errorf("%s is asked by gateways only, not by %s", e.Capability, e.SourceAgent))
	}
	switch e.Capability {
	case opAdvice:
		return ib.b.advised(m)
	case opRun:
		return ib.b.runOrder(ctx, m)
	case opStopRun:
		return ib.stopRun(m)
	case opCancel:
		return ib.cancelTask(ctx, m)
	case opTransfer:
		return ib.transfer(m)
	}
	var order deadOrder
	if err := json.Unmarshal(e.Payload, &order); err != nil {
		return Never(envelope.ClassPoison, fmt.Errorf("order is not readable: %w", err))
	}
	var ans deadOrderAnswer
	var jobs []*job
	size := 0
	for _, id := range order.IDs {
		raw, err := ib.b.store.Read(ctx, deadKey(ib.spec.ID, id))
		if err != nil {
			return err
		}
		if size += len(raw); len(ans.Results) > 0 && size > orderBytes || len(ans.Results) == orderSize {
			break // the rest is asked for again
		}
		r := DeadLetterResult{MessageID: id}
		switch {
		case len(raw) == 0:
			r.Reason = "it is no dead letter any more"
		case e.Capability == opPurge:
			r.Done = true
			m.extra = append(m.extra, Op{Verb: OpDelete, Key: deadKey(ib.spec.ID, id)})
		case e.Capability == opRedrive:
			j, err := ib.revive(id, raw, order)
			if err != nil {
				r.Reason = err.Error()
				break
			}
			// It may have been cancelled while older ones of its conversation wait, which the next owner must find before it.
			if !ib.keptBefore(j) {
				if m.Attempt() < 4 {
					return RetryAfter(patience/4, errors.New("older messages of its conversation are not in order yet"))
				}
				r.Reason = "older messages of its conversation have not been read yet, or are between two attempts: try again"
				break
			}
			r.Done = true
			jobs = append(jobs, j)
			m.extra = append(m.extra, Op{Verb: OpDelete, Key: deadKey(ib.spec.ID, id)})
			m.pending = append(m.pending, j.recordLocked())
			m.told = append(m.told, ownedReceipt{j.src, receipt{IDs: []string{id}, State: envelope.Queued, At: *j.del.QueuedAt, Gateway: ib.b.cfg.Gateway}})
		default:
			return Never(envelope.ClassUndeliverable, fmt.Errorf("this build does not know %s: upgrade the gateway", e.Capability))
		}
		ans.Results = append(ans.Results, r)
	}
	purged := ans.Results
	m.after = func() {
		for _, j := range jobs {
			ib.rejoin(j, order.By)
		}
		if e.Capability != opPurge {
			return
		}
		for _, r := range purged {
			if r.Done {
				ib.b.emit(Event{Event: EventPurged, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, MessageID: r.MessageID, To: ib.spec.ID, Reason: "by " + order.By})
			}
		}
	}
	return m.Reply(mustEncode(ans))
}

// revive makes a job out of a dead letter; the caller writes its record.
func (ib *inbox) revive(id string, raw []byte, order deadOrder) (*job, error) {
	d := ib.b.decodeDead(ib.spec.ID, id, raw)
	now := envelope.At(ib.b.now())
	var expires *envelope.Time
	if order.TTL > 0 {
		t := envelope.At(now.Add(order.TTL.Duration()))
		expires = &t
	}
	if why := d.hindrance(now.Time, expires); why != "" {
		return nil, errors.New(why)
	}
	s, err := ib.source(d.From)
	if err != nil {
		return nil, err
	}
	if err := ib.unique.look([]string{d.Envelope.UniqueKey()}); err != nil {
		return nil, err
	}
	del := d.Delivery
	if err := del.Redrive(order.By, ib.b.cfg.Gateway, now, expires); err != nil {
		return nil, err
	}
	return &job{ib: ib, src: s, lane: d.lane, item: d.item, env: d.Envelope, del: del, proof: d.proof, parked: true, recorded: del.Attempt, answers: map[string]*envelope.Sealed{}}, nil
}

// rejoin puts a message that was written to the queue again back to work.
func (ib *inbox) rejoin(j *job, by string) {
	if ib.ctx.Err() != nil {
		return // the next owner finds its record
	}
	ib.b.tracks.begin(j.env)
	ev := j.event(EventRedriven)
	ev.State, ev.Reason = envelope.Queued, "by "+by
	ib.b.emit(ev)
	ib.claimUnique(j)
	ib.enter(j)
	ib.toConversation(j)
}

// maxDead is how many dead letters of one agent are kept.
const maxDead = 1000

// dropDead deletes the dead letters of this inbox that are older than they are kept, and the oldest of too many.
func (ib *inbox) dropDead(ctx context.Context) error {
	keys, err := ib.b.store.Keys(ctx, deadRoot+ib.spec.ID+"/", "")
	if err != nil || len(keys) == 0 {
		return err
	}
	list, err := ib.b.DeadLetters(ctx, DeadLetterFilter{Agent: ib.spec.ID})
	if err != nil {
		return err
	}
	for i, d := range list {
		var why string
		switch {
		case ib.b.now().Sub(d.At.Time) > ib.b.cfg.DeadRetention && !d.At.IsZero():
			why = fmt.Sprintf("kept for %s", ib.b.cfg.DeadRetention)
		case len(list)-i > maxDead:
			why = fmt.Sprintf("the newest %d are kept", maxDead)
		default:
			continue
		}
		done := make(chan error, 1)
		ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, extra: []Op{{Verb: OpDelete, Key: deadKey(ib.spec.ID, d.MessageID)}}, done: func(err error) { done <- err }})
		if err := <-done; err != nil {
			return err
		}
		ib.b.emit(Event{Event: EventPurged, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, MessageID: d.MessageID, To: ib.spec.ID, Class: d.Class, Reason: why})
	}
	return nil
}

// advice tells a sender of the end of a message that was passed on: the lane it died in is not its own.
type advice struct {
	MessageID string         `json:"message_id"`
	Agent     string         `json:"agent"`
	Gateway   string         `json:"gateway"`
	Class     envelope.Class `json:"class"`
	Reason    string         `json:"reason"`
}

// advise makes the message that tells the sender.
func (b *Bus) advise(j *job, class envelope.Class, cause error) *envelope.Sealed {
	e := &j.env.Envelope
	a := advice{e.MessageID, j.ib.spec.ID, b.cfg.Gateway, class, envelope.Clip(cause.Error())}
	s, err := b.seal(Outgoing{
		ID: envelope.DerivedID(e.MessageID, "advice/"+fmt.Sprint(len(j.del.Redrives))), To: envelope.Address{Agent: e.SourceGateway}, From: b.cfg.Gateway,
		CorrelationID: e.CorrelationID, Capability: opAdvice, Payload: mustEncode(a), Terminal: true, TTL: time.Hour, reserved: true,
	})
	if err != nil {
		panic(fmt.Sprintf("bus: an advice does not seal: %v", err)) // all of it is ours
	}
	return s
}

// advised takes in the end of a message that was passed on.
func (b *Bus) advised(m *Incoming) error {
	var a advice
	if err := json.Unmarshal(m.Envelope().Payload, &a); err != nil {
		return Never(envelope.ClassPoison, fmt.Errorf("advice is not readable: %w", err))
	}
	m.after = func() {
		ev := Event{Event: EventReceipt, At: envelope.At(b.now()), Gateway: b.cfg.Gateway, MessageID: a.MessageID, To: a.Agent}
		if e := b.tracks.envelope(a.MessageID); e != nil {
			ev = b.eventOf(EventReceipt, &e.Envelope)
		}
		ev.State, ev.Class, ev.Reason, ev.By = envelope.DeadLetter, a.Class, "passed on to "+a.Agent+": "+a.Reason, a.Gateway
		b.emit(ev)
	}
	return nil
}
