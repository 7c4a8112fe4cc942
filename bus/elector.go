package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// ownerLock is the value of an agent's lock key.
type ownerLock struct {
	Agent   string        `json:"agent"`
	Gateway string        `json:"gateway"`
	Since   envelope.Time `json:"since"`
	// Session holds the lock: what was signed for one session says nothing of the next.
	Session string `json:"session,omitempty"`
}

// elector takes and gives up the inboxes that this gateway may serve.
type elector struct {
	b *Bus

	mu     sync.Mutex
	serves map[string]served
	terms  map[string]*inbox
	// owners is the last picture of all agent locks.
	owners map[string]Owner
	closed bool
	// live are the gateways that hold their names, handoffs what was said with the release of inboxes, and serving who says
	// that he may own what (agent, gateway, rank).
	live     map[string]bool
	handoffs map[string]heardHandoff
	serving  map[string]map[string]int
	// leading are the gateways whose own server leads; leadsSince is since when it is this one's, zero: it is not.
	leading    map[string]bool
	leadsSince time.Time
	// unseen are the gateways that say that their checks are not heard of yet; seenUnder is this one's session for which they are.
	unseen    map[string]bool
	seenUnder string
	// born is when this gateway began to look.
	born time.Time
	// changed is closed and replaced with every picture.
	changed chan struct{}
	// judged are the claims of the last picture; only see touches it, under seeing.
	judged map[string]judgedClaim
	seeing sync.Mutex
	// wake carries wake-ups (capacity 1).
	wake chan struct{}
}

type served struct {
	spec    AgentSpec
	handler Handler
	// freeSince is when this gateway first saw the inbox without an owner.
	freeSince time.Time
	// notBefore is when it takes the inbox again that it handed on.
	notBefore time.Time
	// wanted: an operator wants it here; from: who handed it to this gateway. They are set for the take only: the picture of after it
	// has no handoff any more.
	wanted bool
	from   string
}

// Owner is who drains an agent's inbox.
type Owner struct {
	Agent, Gateway string
	Since          time.Time
	// Token is the fencing token of the term.
	Token   uint64
	session string
}

func newElector(b *Bus) *elector {
	return &elector{b: b, serves: map[string]served{}, terms: map[string]*inbox{}, owners: map[string]Owner{}, born: time.Now(), changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

func (el *elector) kick() {
	select {
	case el.wake <- struct{}{}:
	default:
	}
}

func (el *elector) serve(spec AgentSpec, h Handler) {
	el.mu.Lock()
	el.serves[spec.ID] = served{spec: spec, handler: h}
	term := el.terms[spec.ID]
	el.mu.Unlock()
	if term != nil {
		term.described.Store(&spec) // what it says of itself changes now, the rest with the next term
	}
	el.b.registry.kick()
	el.kick()
}

// prime takes the inboxes that are free now, so that the agents of a fresh node are there
// when Start returns.
func (el *elector) prime(ctx context.Context) error {
	pairs, err := el.b.store.List(ctx, ownersPrefix)
	if err != nil {
		return fmt.Errorf("read owners: %w", err)
	}
	known, err := el.b.store.List(ctx, gatewaysPrefix)
	if err != nil {
		return fmt.Errorf("read the registry: %w", err)
	}
	el.b.registry.take(0, gatewaysPrefix, known)
	el.born = time.Now()
	el.see(pairs)
	el.reconcile(ctx)
	return nil
}

// see takes in a picture of all locks.
func (el *elector) see(pairs []Pair) {
	el.seeing.Lock()
	defer el.seeing.Unlock()
	owners, judged := map[string]Owner{}, map[string]judgedClaim{}
	for _, p := range pairs {
		agent, ok := strings.CutPrefix(p.Key, agentOwners)
		if !ok || p.Session == "" {
			continue
		}
		c := el.judged[p.Key]
		if now := (judgedClaim{index: p.ModifyIndex, session: p.Session, set: el.b.trustSet()}); c.index != now.index || c.session != now.session || c.set != now.set {
			c = now
			var err error
			if c.lock, err = el.claim(trust.KindOwner, agent, &p); err != nil {
				el.b.refuse(p.Key, p.Value, err, "", agent) // held it is all the same, by whomever
			}
		}
		judged[p.Key] = c
		v := c.lock
		owners[agent] = Owner{Agent: agent, Gateway: v.Gateway, Since: v.Since.Time, Token: p.ModifyIndex, session: p.Session}
	}
	live, handoffs := el.standing(pairs)
	el.mu.Lock()
	el.owners = owners
	el.live, el.handoffs = live, handoffs
	close(el.changed)
	el.changed = make(chan struct{})
	el.mu.Unlock()
	el.judged = judged
}

// judgedClaim is a claim and what it was judged by.
type judgedClaim struct {
	index   uint64
	session string
	set     *trust.Set
	lock    ownerLock
}

// claim reads who says that he owns an agent, or ran a term of it.
func (el *elector) claim(kind trust.Kind, agent string, p *Pair) (v ownerLock, err error) {
	body, st, err := el.b.open(kind, p.Key, p.Value, "", agent)
	if err != nil {
		return v, err
	}
	_ = json.Unmarshal(body, &v)
	if st != nil && el.b.enforced() && (v.Gateway != st.Gateway || v.Agent != agent || kind == trust.KindOwner && v.Session != p.Session) {
		return ownerLock{}, &trust.Refusal{Reason: trust.Replay, Gateway: st.Gateway, Key: st.Key, Detail: "it was signed for another term"}
	}
	return v, nil
}

// allowed reports whether the trust set lets this gateway own an inbox: what it would write as its owner would be refused.
// Changes of the set wake the elector.
func (el *elector) allowed(agent string) bool {
	return !el.b.enforced() || el.b.trusted() == nil && el.b.cfg.Trust.MayHost(el.b.cfg.Gateway, agent)
}

// candidates are the agents that this gateway may serve.
func (el *elector) candidates() []string {
	el.mu.Lock()
	defer el.mu.Unlock()
	return slices.Sorted(maps.Keys(el.serves))
}

// run follows the locks until ctx ends.
func (el *elector) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Add(1)
	go func() {
		defer wg.Done()
		el.b.watchForever(ctx, ownersPrefix, func(pairs []Pair) error {
			el.see(pairs)
			el.kick()
			return nil
		})
	}()
	wg.Add(1)
	go func() {
		defer wg.Done()
		el.probe(ctx)
	}()
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-el.wake:
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if next := el.reconcile(ctx); next > 0 {
			t.Reset(next)
		}
	}
}

// reconcile compares what is with what should be, and returns when to look again (0: at the next
// wake-up).
func (el *elector) reconcile(ctx context.Context) (again time.Duration) {
	session := el.b.session.id()
	now := time.Now()
	el.mu.Lock()
	var free []served
	var lines freeLines
	leaving := el.loadsLocked() // with what this pass hands on
	for _, id := range slices.Sorted(maps.Keys(el.serves)) {
		s := el.serves[id]
		o, owned := el.owners[id]
		term := el.terms[id]
		if term != nil && term.ctx.Err() != nil {
			if !term.idle() {
				again = 10 * time.Millisecond // the last term must be over before the next
				continue
			}
			delete(el.terms, id)
			term = nil
		}
		if term != nil {
			if term.intake.Err() == nil && !el.allowed(id) {
				// What it writes as the owner is refused from now on: let somebody else have the inbox.
				term.stopIn()
				to := el.nextWith(id, el.b.cfg.Gateway, leaving)
				el.b.run(func() {
					term.handover(el.b.life, to, "")
					el.kick()
				})
				continue
			}
			if to := el.awayLocked(term, now, leaving); to != "" && term.intake.Err() == nil {
				leaving[to]++
				term.stopIn()
				el.b.run(func() { el.handOn(term, to, "") })
				continue
			}
			if !owned || o.session != term.session {
				// The watch may be behind our own locking: only a picture that is
				// newer than the term can depose it, which its own session tells.
				if term.session != session || (owned && o.Token > term.term) {
					go term.depose(ErrDeposed)
				}
			}
			continue
		}
		if session == "" || el.closed || !el.allowed(id) {
			continue
		}
		if owned && o.session != session {
			s.freeSince, s.notBefore = time.Time{}, time.Time{} // who was named has it, and may lose it at once
			el.serves[id] = s
			continue
		}
		if s.freeSince.IsZero() {
			s.freeSince = now
			el.serves[id] = s
		}
		if el.namedLocked(id, now) {
			s.notBefore = time.Time{}
		}
		if lines == nil {
			lines = el.freeLinesLocked()
		}
		line, ok := lines[id]
		if !ok {
			line = el.lineLocked(id)
		}
		w := s.freeSince.Add(el.turnLocked(id, s, line, now)).Sub(now)
		if w = max(w, s.notBefore.Sub(now)); w > 0 && (!owned || now.Before(s.notBefore)) {
			if again == 0 || w < again {
				again = w
			}
			continue
		}
		s.wanted, s.from = false, ""
		if el.namedLocked(id, now) {
			s.wanted, s.from = el.handoffs[id].By != "", el.handoffs[id].From
		}
		free = append(free, s)
	}
	el.mu.Unlock()
	for _, s := range free {
		if err := el.take(ctx, s, session); err != nil {
			// Somebody else was first, which the watch will tell; or the last lock's delay is not over, and that is short.
			pause := takeAgain
			var refused *TxnError
			if !errors.As(err, &refused) {
				el.b.log.Warn("cannot take an inbox; trying again", "agent", s.spec.ID, "error", err)
				pause = urgent
			}
			if again == 0 || again > pause {
				again = pause
			}
		}
	}
	return again
}

// takeAgain is the pause before a refused lock is tried again.
const takeAgain = 20 * time.Millisecond

// take locks an agent's inbox and starts its term.
func (el *elector) take(ctx context.Context, s served, session string) error {
	now := envelope.At(el.b.now())
	claim := mustEncode(ownerLock{Agent: s.spec.ID, Gateway: el.b.cfg.Gateway, Since: now, Session: session})
	pairs, err := el.b.store.Txn(ctx, []Op{
		{Verb: OpCheckSession, Key: gatewayLockKey(el.b.cfg.Gateway), Session: session},
		{Verb: OpLock, Key: agentLockKey(s.spec.ID), Session: session, Value: el.b.sign(trust.KindOwner, agentLockKey(s.spec.ID), claim)},
		// The resident key: it makes the agent known for ever, and without it Consul would
		// wake the inbox's watch for unrelated writes.
		{Verb: OpSet, Key: inboxAboutKey(s.spec.ID), Value: mustEncode("Inbox of " + s.spec.ID + ": one bell per source gateway under from/. Waiting mail is in openclaw/lanes/<gateway>/" +
			s.spec.ID + "/, work in progress in openclaw/pending/" + s.spec.ID + "/.")},
		{Verb: OpGet, Key: termKey(s.spec.ID)},
		{Verb: OpSet, Key: termKey(s.spec.ID), Value: el.b.sign(trust.KindTerm, termKey(s.spec.ID), claim)},
		{Verb: OpDelete, Key: handoffKey(s.spec.ID)},
	})
	if err != nil {
		return fmt.Errorf("lock %s: %w", s.spec.ID, err)
	}
	ib := el.b.newInbox(s.spec, s.handler, session, pairs[1].ModifyIndex)
	ib.wanted, ib.from = s.wanted, s.from
	if ib.unclean = pairs[3].Key != ""; ib.unclean {
		// A forged one makes this owner careful, and nothing else.
		if _, err := el.claim(trust.KindTerm, s.spec.ID, &pairs[3]); err != nil {
			el.b.refuse(pairs[3].Key, pairs[3].Value, err, "", s.spec.ID)
		}
	}
	el.mu.Lock()
	if el.closed {
		el.mu.Unlock()
		ib.cancel(ErrStopped)
		ib.wg.Done()
		return nil
	}
	el.terms[s.spec.ID] = ib
	s.freeSince, s.wanted = time.Time{}, false
	el.serves[s.spec.ID] = s
	el.mu.Unlock()
	el.b.emit(Event{Event: EventOwned, At: now, Gateway: el.b.cfg.Gateway, To: s.spec.ID})
	ib.start()
	el.b.registry.kick()
	return nil
}

// idle reports whether nothing of the term runs any more.
func (ib *inbox) idle() bool {
	select {
	case <-ib.over():
		return true
	default:
		return false
	}
}

// owned lists the agents whose inboxes this gateway drains now.
func (el *elector) owned() []AgentSpec {
	el.mu.Lock()
	defer el.mu.Unlock()
	var list []AgentSpec
	for _, t := range el.terms {
		if t.ctx.Err() == nil {
			list = append(list, *t.described.Load())
		}
	}
	return list
}

// running lists the terms of this gateway.
func (el *elector) running() []*inbox {
	el.mu.Lock()
	defer el.mu.Unlock()
	var list []*inbox
	for _, t := range el.terms {
		if t.intake.Err() == nil {
			list = append(list, t)
		}
	}
	return list
}

func (el *elector) deposeAll(cause error) {
	el.mu.Lock()
	terms := make([]*inbox, 0, len(el.terms))
	for _, t := range el.terms {
		terms = append(terms, t)
	}
	el.mu.Unlock()
	for _, t := range terms {
		t.depose(cause)
	}
}

// handover ends all terms in order: no new work, running work gets until ctx ends, then the locks
// are released at once, so that a successor has them in milliseconds.
func (el *elector) handover(ctx context.Context) {
	el.mu.Lock()
	el.closed = true
	next, loads := make(map[*inbox]string, len(el.terms)), el.loadsLocked()
	for _, id := range slices.Sorted(maps.Keys(el.terms)) {
		next[el.terms[id]] = el.nextWith(id, el.b.cfg.Gateway, loads)
	}
	el.mu.Unlock()
	var wg sync.WaitGroup
	for t, to := range next {
		wg.Add(1)
		go func() {
			defer wg.Done()
			t.handover(ctx, to, "")
		}()
	}
	wg.Wait()
}

// handover ends one term in order, in favour of another gateway (empty: of nobody), as an operator wanted it (empty: nobody did).
func (ib *inbox) handover(ctx context.Context, to, by string) {
	if ib.ctx.Err() != nil {
		return
	}
	ib.stopIn()
	grace := time.NewTimer(ib.b.cfg.DrainGrace)
	defer grace.Stop()
	select {
	case <-ib.worked():
	case <-grace.C:
	case <-ctx.Done():
	}
	ib.stop()
	ib.moveOut(ctx)
	select {
	case <-ib.worked():
	case <-ctx.Done():
		ib.b.log.Warn("work did not stop in time; its messages go to the next owner as they are", "agent", ib.spec.ID)
	}
	// What the last handlers handed to the writer is ahead of this in its queue.
	flushed := make(chan error, 1)
	ops := []Op{{Verb: OpDelete, Key: agentLockKey(ib.spec.ID)}, {Verb: OpDelete, Key: termKey(ib.spec.ID)}}
	if to != "" {
		key := handoffKey(ib.spec.ID)
		h := handoff{Agent: ib.spec.ID, From: ib.b.cfg.Gateway, To: to, By: by, At: envelope.At(ib.b.now())}
		ops = append(ops, Op{Verb: OpSet, Key: key, Value: ib.b.sign(trust.KindOwner, key, mustEncode(h))})
	}
	ib.b.writer.submit(&unit{ctx: ctx, owner: ib, extra: ops, done: func(err error) { flushed <- err }})
	var err error
	select {
	case err = <-flushed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	ib.cancel(ErrStopped)
	if err != nil {
		ib.b.log.Warn("cannot release an inbox; its lock ends with the session", "agent", ib.spec.ID, "error", err)
		return
	}
	ib.b.emit(Event{Event: EventReleased, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, To: ib.spec.ID, Reason: released(to, by)})
}

func released(to, by string) string {
	switch {
	case to == "":
		return ""
	case by == "":
		return "for " + to
	default:
		return "for " + to + ", as " + by + " wants it"
	}
}
