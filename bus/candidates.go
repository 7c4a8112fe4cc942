package bus

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

const (
	// rankDelay is how much longer each further choice waits before it takes a free inbox.
	rankDelay = 300 * time.Millisecond
	// unseenDelay is how much longer yet a gateway waits whose failure would be noticed late (Candidate.Unseen), while there is another one whose
	// would not: that one may be slow, and what this one gets it may keep for half a minute after its end.
	unseenDelay = 2 * time.Second
	// settling is for how long after its own start a gateway leaves the time of their turns to better choices that are not
	// there: they may be starting too. Later, who is not there costs nothing.
	settling = 3 * time.Second
	// handoffFor is how long a handoff is heeded, from when it was heard of: the named one has that long to take the inbox when
	// an operator wants it, and for as long the one that gave it up does not take it back.
	handoffFor = 5 * time.Second
)

// Candidate is a gateway that may own an inbox.
type Candidate struct {
	Gateway string `json:"gateway"`
	// Rank orders the choices; of one rank who has the fewest duties comes first, and of those a hash of both names decides, so that inboxes spread.
	Rank int `json:"rank"`
	// Live: it holds its session now.
	Live bool `json:"live"`
	// Leads: its own server leads the store's, so that its loss would take longest to get over. Of one rank it comes last.
	Leads bool `json:"leads,omitempty"`
	// Unseen: it came a moment ago, and the store was not seen yet to hear of what its checks find: its failure would be noticed late. Of one
	// rank it comes last, even after who leads.
	Unseen bool `json:"unseen,omitempty"`
	// late is Unseen; of one that is not there nothing is known, and it is taken for no worse than this gateway.
	late  bool
	load  int
	score uint64
}

// handoff is the value of the key that is written with the release of an inbox: who is to take it.
type handoff struct {
	Agent string        `json:"agent"`
	From  string        `json:"from"`
	To    string        `json:"to,omitempty"`
	By    string        `json:"by,omitempty"` // the operator that wanted it
	At    envelope.Time `json:"at"`
}

// heardHandoff is one as this gateway heard of it.
type heardHandoff struct {
	handoff
	index uint64
	heard time.Time
}

func handoffKey(agent string) string { return handoffsPrefix + agent }

// standing takes the live gateways and the handoffs out of a picture of all locks. Only see calls it.
func (el *elector) standing(pairs []Pair) (live map[string]bool, handoffs map[string]heardHandoff) {
	live, handoffs = map[string]bool{}, map[string]heardHandoff{}
	for i := range pairs {
		p := &pairs[i]
		if gw, ok := strings.CutPrefix(p.Key, gatewayLocks); ok && p.Session != "" {
			live[gw] = true
		}
		agent, ok := strings.CutPrefix(p.Key, handoffsPrefix)
		if !ok {
			continue
		}
		if old, known := el.handoffs[agent]; known && old.index == p.ModifyIndex {
			handoffs[agent] = old
			continue
		}
		h := heardHandoff{index: p.ModifyIndex, heard: time.Now()}
		body, err := el.b.read(trust.KindOwner, p.Key, p.Value, "", agent)
		if err == nil {
			err = json.Unmarshal(body, &h.handoff)
		}
		if err != nil || h.Agent != agent {
			el.b.refuse(p.Key, p.Value, cmp.Or(err, errUnreadable), "", agent)
			h.handoff = handoff{} // as if there were none
		}
		handoffs[agent] = h
	}
	return live, handoffs
}

// published takes in who says of himself that he may own what.
func (el *elector) published(serving map[string]map[string]int, leading, unseen map[string]bool) {
	el.mu.Lock()
	el.serving, el.leading, el.unseen = serving, leading, unseen
	el.mu.Unlock()
	el.kick()
}

func (s *AgentSpec) rank() int {
	if s.Spread {
		return 0
	}
	return max(0, s.Rank)
}

// ranks are what this gateway may own, as the registry shows it.
func (el *elector) ranks() map[string]int {
	el.mu.Lock()
	defer el.mu.Unlock()
	all := make(map[string]int, len(el.serves))
	for id, s := range el.serves {
		if id != el.b.cfg.Gateway {
			all[id] = s.spec.rank()
		}
	}
	return all
}

// lineWith lists who may own an inbox, best choice first, where gateways have so many duties besides; el.mu is held.
func (el *elector) lineWith(id string, l loads) []Candidate {
	ranks := map[string]int{}
	for gw, rank := range el.serving[id] {
		ranks[gw] = rank
	}
	if s, ok := el.serves[id]; ok {
		for i, gw := range s.spec.Candidates {
			ranks[gw] = i
			if s.spec.Spread {
				ranks[gw] = 0
			}
		}
		ranks[el.b.cfg.Gateway] = s.spec.rank()
	}
	line, late := make([]Candidate, 0, len(ranks)), el.unseenLocked(el.b.cfg.Gateway)
	for gw, rank := range ranks {
		if el.b.enforced() && !el.b.cfg.Trust.MayHost(gw, id) {
			continue
		}
		h := sha256.Sum256([]byte(id + "\x00" + gw))
		c := Candidate{Gateway: gw, Rank: rank, Live: el.live[gw], Leads: el.leadingLocked(gw), late: late, load: l[gw], score: binary.BigEndian.Uint64(h[:])}
		if c.Live {
			c.Unseen = el.unseenLocked(gw)
			c.late = c.Unseen
		}
		line = append(line, c)
	}
	slices.SortFunc(line, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(a.Rank, b.Rank), compareBool(a.late, b.late), compareBool(a.Leads, b.Leads), cmp.Compare(a.load, b.load), cmp.Compare(b.score, a.score), cmp.Compare(a.Gateway, b.Gateway))
	})
	return line
}

func (el *elector) leadingLocked(gw string) bool {
	if gw == el.b.cfg.Gateway {
		return !el.leadsSince.IsZero()
	}
	return el.leading[gw] && el.live[gw]
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// namedLocked reports whether an inbox was released for this gateway; el.mu is held.
func (el *elector) namedLocked(id string, now time.Time) bool {
	h := el.handoffs[id]
	return h.From != "" && h.To == el.b.cfg.Gateway && now.Sub(h.heard) < handoffFor
}

// turnLocked is how long after it became free this gateway takes an inbox, by the line for it; el.mu is held.
func (el *elector) turnLocked(id string, s served, line []Candidate, now time.Time) time.Duration {
	me := el.b.cfg.Gateway
	h := el.handoffs[id]
	fresh := h.From != "" && now.Sub(h.heard) < handoffFor
	if el.namedLocked(id, now) {
		return 0
	}
	starting := now.Sub(el.born) < settling
	before, behind := 0, 0
	mine, better := false, false
	for _, c := range line {
		switch {
		case c.Gateway == me:
			mine = true
		case fresh && (c.Gateway == h.From || c.Gateway == h.To) || !c.Live && !starting:
		case mine:
			behind++
		default:
			before++
			better = better || c.Live && !c.Unseen
		}
	}
	if starting {
		before = max(before, s.spec.rank()) // those that have not said yet that they may own it
	}
	turn := time.Duration(before) * rankDelay
	if better && el.unseenLocked(me) {
		turn += unseenDelay
	}
	switch {
	case fresh && h.From == me:
		return max(handoffFor, time.Duration(before+behind+1)*rankDelay)
	case fresh && el.live[h.To] && h.By != "":
		return turn + handoffFor
	case fresh && el.live[h.To]:
		return turn + rankDelay
	}
	return turn
}

// OwnerInfo is a duty (an inbox), who owns it and who may.
type OwnerInfo struct {
	Duty string `json:"duty"`
	// Owner is empty while there is none; Since and Token are those of its term.
	Owner string        `json:"owner,omitempty"`
	Since envelope.Time `json:"since,omitzero"`
	Token uint64        `json:"token,omitempty"`
	// Candidates may own it, best choice first; Next is who takes it when its owner gives it up; empty: nobody is there.
	Candidates []Candidate `json:"candidates"`
	Next       string      `json:"next,omitempty"`
}

// Duties lists what is owned and what may be, by name. A gateway's own inbox is its own, and not among them.
func (b *Bus) Duties() []OwnerInfo {
	el := b.elector
	el.mu.Lock()
	defer el.mu.Unlock()
	ids := map[string]bool{}
	for id := range el.serving {
		ids[id] = true
	}
	for id := range el.serves {
		ids[id] = true
	}
	for id := range el.owners {
		ids[id] = true
	}
	list, lines, loads := make([]OwnerInfo, 0, len(ids)), el.freeLinesLocked(), el.loadsLocked()
	for id := range ids {
		o := el.owners[id]
		if id == b.cfg.Gateway || el.live[id] || o.Gateway == id {
			continue
		}
		line, free := lines[id]
		if !free {
			line = el.lineWith(id, loads.without(o.Gateway))
		}
		info := OwnerInfo{Duty: id, Owner: o.Gateway, Token: o.Token, Candidates: line, Next: firstBut(line, o.Gateway)}
		if o.Token != 0 {
			info.Since = envelope.At(o.Since)
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b OwnerInfo) int { return cmp.Compare(a.Duty, b.Duty) })
	return list
}

// opTransfer has an inbox's owner hand it on.
const opTransfer = ReservedCapability + "owner.transfer"

// ErrCannotOwn: who is to have the duty may not, or is not there.
var ErrCannotOwn = errors.New("it cannot be handed over")

// ErrNoOwner: nobody owns the duty, so there is nobody to hand it over.
var ErrNoOwner = errors.New("nobody owns it")

// TransferOptions say how a duty changes hands.
type TransferOptions struct {
	// To is who is to have it; empty: whoever is next.
	To string
	// By is the operator.
	By string
	// Force takes it from an owner that does not answer, at once: what that one was at is not waited for, and goes on at the
	// next one as after a crash.
	Force bool
}

// OwnerChange is what became of a transfer.
type OwnerChange struct {
	Duty string `json:"duty"`
	From string `json:"from"`
	// To has it now; Token is that of its term.
	To    string `json:"to"`
	Token uint64 `json:"token"`
}

type transferOrder struct {
	To string `json:"to,omitempty"`
	By string `json:"by"`
	// Token is the term that is to end: a later one is not meant.
	Token uint64 `json:"token"`
}

type transferAnswer struct {
	To string `json:"to,omitempty"`
	// Reason says why not.
	Reason string `json:"reason,omitempty"`
}

// Transfer has a duty change hands, and waits until the next owner has it: its owner begins nothing new, gives what runs
// its time, writes what came of it, and releases the lock with the name of who is to take it. Errors: [ErrNoOwner], [ErrUnknownAgent],
// [ErrCannotOwn], the store's, or that the owner does not answer.
func (b *Bus) Transfer(ctx context.Context, duty string, o TransferOptions) (OwnerChange, error) {
	// Asked of the store: the picture here may be one of before this gateway was cut off, and say that it is done already.
	pairs, err := b.store.List(ctx, ownersPrefix)
	if err != nil {
		return OwnerChange{}, fmt.Errorf("read owners: %w", err)
	}
	b.elector.see(pairs)
	b.elector.mu.Lock()
	was, owned := b.elector.owners[duty]
	line := b.elector.lineLocked(duty)
	b.elector.mu.Unlock()
	switch {
	case !owned && len(line) == 0:
		return OwnerChange{}, fmt.Errorf("%w: no gateway may own %s, as far as the registry says", ErrUnknownAgent, duty)
	case !owned:
		return OwnerChange{}, fmt.Errorf("%w: %s waits for one of %s to start", ErrNoOwner, duty, names(line))
	case was.Gateway == duty:
		return OwnerChange{}, fmt.Errorf("%w: %s is a gateway's own inbox", ErrCannotOwn, duty)
	case was.Gateway == o.To && o.To != "":
		return OwnerChange{Duty: duty, From: o.To, To: o.To, Token: was.Token}, nil
	}
	if err := mayTake(duty, was.Gateway, o.To, line); err != nil {
		return OwnerChange{}, err
	}
	if o.To != "" && !o.Force {
		if err := b.awaitOverseen(ctx, o.To); err != nil {
			return OwnerChange{}, err
		}
	}
	if o.Force {
		if err := b.seize(ctx, duty, was, o); err != nil {
			return OwnerChange{}, err
		}
	} else {
		var ans transferAnswer
		if err := b.askOwner(ctx, opTransfer, duty, transferOrder{To: o.To, By: o.By, Token: was.Token}, &ans); err != nil {
			return OwnerChange{}, fmt.Errorf("%w; if %s is dead or hangs, --force takes %s from it", err, was.Gateway, duty)
		}
		if ans.Reason != "" {
			return OwnerChange{}, fmt.Errorf("%w: %s does not hand over %s: %s", ErrCannotOwn, was.Gateway, duty, ans.Reason)
		}
	}
	now, err := b.awaitOwner(ctx, duty, was.Token)
	if err != nil {
		return OwnerChange{}, fmt.Errorf("%s gave up %s, and nobody has taken it yet: %w", was.Gateway, duty, err)
	}
	return OwnerChange{Duty: duty, From: was.Gateway, To: now.Gateway, Token: now.Token}, nil
}

func names(line []Candidate) string {
	list := make([]string, 0, len(line))
	for _, c := range line {
		list = append(list, c.Gateway)
	}
	return strings.Join(list, ", ")
}

// mayTake says why a gateway cannot take a duty from its owner; to may be empty: then whoever is there.
func mayTake(duty, owner, to string, line []Candidate) error {
	i := slices.IndexFunc(line, func(c Candidate) bool {
		return c.Gateway == to || to == "" && c.Live && c.Gateway != owner
	})
	switch {
	case i < 0 && to == "":
		return fmt.Errorf("%w: nobody else that may own %s is there (%s)", ErrCannotOwn, duty, names(line))
	case i < 0:
		return fmt.Errorf("%w: %s may not own %s: it may be one of %s", ErrCannotOwn, to, duty, names(line))
	case !line[i].Live:
		return fmt.Errorf("%w: %s is not there: start it first", ErrCannotOwn, to)
	}
	return nil
}

// awaitOwner waits for a later term of a duty than token.
func (b *Bus) awaitOwner(ctx context.Context, duty string, token uint64) (Owner, error) {
	for {
		b.elector.mu.Lock()
		o, changed := b.elector.owners[duty], b.elector.changed
		b.elector.mu.Unlock()
		if o.Token > token {
			return o, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Owner{}, ctx.Err()
		}
	}
}

// seize takes the lock from an owner that does not answer. It is refused everything from that moment on.
func (b *Bus) seize(ctx context.Context, duty string, was Owner, o TransferOptions) error {
	key := handoffKey(duty)
	h := handoff{Agent: duty, From: was.Gateway, To: o.To, By: o.By, At: envelope.At(b.now())}
	_, err := b.store.Txn(ctx, []Op{
		{Verb: OpCheckSession, Key: gatewayLockKey(b.cfg.Gateway), Session: b.session.id()},
		{Verb: OpCheckIndex, Key: agentLockKey(duty), Index: was.Token},
		{Verb: OpDelete, Key: agentLockKey(duty)},
		{Verb: OpSet, Key: key, Value: b.sign(trust.KindOwner, key, mustEncode(h))},
	})
	var refused *TxnError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("take %s from %s: it changed hands meanwhile: look again (gatemesh owner list): %w", duty, was.Gateway, err)
	case errors.Is(err, ErrForbidden):
		return fmt.Errorf("take %s from %s: only gateways that may own it may do that: ask one of them: %w", duty, was.Gateway, err)
	case err != nil:
		return fmt.Errorf("take %s from %s: %w", duty, was.Gateway, err)
	}
	return nil
}

// transfer carries out an order to hand the inbox on: after its answer is written.
func (ib *inbox) transfer(m *Incoming) error {
	var order transferOrder
	if err := json.Unmarshal(m.Envelope().Payload, &order); err != nil {
		return Never(envelope.ClassPoison, fmt.Errorf("order is not readable: %w", err))
	}
	el, me := ib.b.elector, ib.b.cfg.Gateway
	el.mu.Lock()
	line, to := el.lineLocked(ib.spec.ID), order.To
	if to == "" {
		to = el.nextLocked(ib.spec.ID, me)
	}
	el.mu.Unlock()
	var ans transferAnswer
	switch err := mayTake(ib.spec.ID, me, to, line); {
	case ib.spec.ID == me:
		ans.Reason = "it is a gateway's own inbox"
	case order.Token != ib.term:
		ans.Reason = "its owner changed meanwhile"
	case to == me:
		ans.Reason = me + " has it"
	case err != nil:
		ans.Reason = err.Error()
	default:
		ans.To = to
		m.after = func() { ib.b.run(func() { el.handOn(ib, to, order.By) }) }
	}
	return m.Reply(mustEncode(ans))
}

// handOn ends a term in order, in favour of another gateway.
func (el *elector) handOn(ib *inbox, to, by string) {
	el.mu.Lock()
	if s, ok := el.serves[ib.spec.ID]; ok {
		s.notBefore = time.Now().Add(handoffFor)
		el.serves[ib.spec.ID] = s
	}
	el.mu.Unlock()
	ib.handover(el.b.life, to, by)
	el.kick()
}
