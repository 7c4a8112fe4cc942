package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// AgentSpec describes an agent that this gateway may serve.
type AgentSpec struct {
	// ID names the agent and its inbox.
	ID, Name, Description, Workspace string
	// Capabilities are what others may ask of it, as "infra.check".
	Capabilities []string
	// Rank orders the gateways that may serve the agent: 0 goes first, each further one
	// waits rankDelay longer before it takes a free inbox.
	Rank int
	// Candidates are all gateways that may own it, best choice first, as far as they are known beforehand; nil: those that
	// the registry names. Of several with the same rank who has the fewest duties is the first choice.
	Candidates []string
	// Spread: all candidates have the same rank, so that inboxes spread over them.
	Spread bool
	// MaxConcurrent bounds the conversations worked on at once; 0 means 32.
	MaxConcurrent int
	// AckTimeout bounds one attempt; 0 means 10 minutes.
	AckTimeout time.Duration
	// OneOrder: the messages of a conversation come one after another whatever gateway they are from. Those that wait when a
	// term begins come first, in the order of their lanes, and between lanes in the order of their created_at (which is as
	// good as the clocks of their senders; per lane the newest that memory holds are left out); then as they arrive.
	OneOrder bool
	// Unique: task.unique_key and task.unique_for count in this inbox, as in a queue, from whatever gateway the
	// messages are: one whose key an unfinished message has, or a finished one for its time, is acked without being
	// handled, and its reply says {"duplicate_of": id}. A message that ended as unknown keeps its key too.
	Unique bool
	// Eager: a [Resident] begins with the term, beside the reading of what waits; see [Term.CaughtUp].
	Eager bool
	// Waits picks messages whose handler does nothing but wait for answers ([Incoming.Ask]). They take no place of MaxConcurrent: what they
	// wait for may need one in this very inbox. Nil: none. It must not look at the payload.
	Waits func(*envelope.Envelope) bool
}

// A Handler does an agent's work.
type Handler interface {
	// Handle works on one message. Messages of one conversation come one after another, in
	// order; different conversations come at the same time. Returning nil acks; the
	// reply and what was sent through m go out in the same transaction. Other
	// results: [RetryAfter], [Never], any other error (retried after a backoff). ctx ends at
	// the ack timeout and when this gateway no longer owns the agent; a handler
	// that goes on then works for nothing: its outcome is refused.
	Handle(ctx context.Context, m *Incoming) error
}

// HandlerFunc makes a function a Handler.
type HandlerFunc func(ctx context.Context, m *Incoming) error

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, m *Incoming) error { return f(ctx, m) }

const (
	// quick is how long an answer may take without a write of its own: below it, "delivered"
	// travels in the receipt.
	quick = 10 * time.Millisecond
	// patience is how long a message may wait behind others of its conversation before it gets
	// a record of its own, so that the lane's cursor can go on.
	patience = time.Second
	// heldItems and heldBytes bound what is in memory of one lane; the rest waits in the store.
	// The bound is per lane so that one source's backlog never holds up another's mail.
	heldItems = 2048
	heldBytes = 16 << 20
	// fetchSlots is how many slots are read at once.
	fetchSlots = 4
)

// inbox is one term of owning an agent: it ends with the ownership and is never reused.
type inbox struct {
	b       *Bus
	spec    AgentSpec
	handler Handler
	// described is the spec as the registry shows it.
	described atomic.Pointer[AgentSpec]
	// term is the fencing token: the lock's ModifyIndex when it was taken.
	term uint64
	// session is the one that holds the lock.
	session string

	// ctx ends with the ownership. When the inbox is handed over, intake ends first (nothing
	// new is begun) and work, which handlers run under, some time later.
	ctx       context.Context
	cancel    context.CancelCauseFunc
	work      context.Context
	stop      context.CancelFunc
	intake    context.Context
	stopIn    context.CancelFunc
	wg        sync.WaitGroup // everything that runs for this term
	overOnce  sync.Once
	overClose chan struct{}
	workOver  chan struct{}
	// residence ends the handler's own work, which is in resident; caughtUp is closed when what waited has been read.
	residence context.Context
	leaveHome context.CancelFunc
	resident  sync.WaitGroup
	caughtUp  chan struct{}
	gather    gathering
	// wanted: an operator gave it to this gateway; from: the gateway that handed it on to this one, if one did.
	wanted bool
	from   string
	// began is when the lock was surely this term's, on the monotonic clock.
	began    time.Time
	door     *door         // bounds concurrent handlers
	suspects chan struct{} // one at a time of those that a process died with
	// leftBehind counts handlers that ignored the end of their ctx.
	leftBehind atomic.Int32
	// unclean: the last term did not end in order, so attempts of it may not be recorded.
	unclean bool

	mu      sync.Mutex
	sources map[string]*source
	bells   map[string]chan Pair
	convs   map[convKey]*conversation
	// active holds every message in memory by its key; duplicates of these are recognised
	// before they have a receipt.
	active map[envelope.MessageKey]*job
	// asks finds the job that waits for an answer, by the question's id.
	asks map[string]*job
	// room is closed when a message leaves; nil while nobody waits for that.
	room chan struct{}
	// delayed are the conversations whose first message is not due yet.
	delayed delayed
	// spilled counts the messages that wait in the store alone.
	spilled int
	crew    crew
	// queue is set when this is the inbox of a task queue, and unique when unique keys count in it.
	queue  *queueTerm
	unique *uniqueKeys
}

func (b *Bus) newInbox(spec AgentSpec, h Handler, session string, term uint64) *inbox {
	if spec.MaxConcurrent <= 0 {
		spec.MaxConcurrent = 32
	}
	if spec.AckTimeout <= 0 {
		spec.AckTimeout = 10 * time.Minute
	}
	ib := &inbox{
		b: b, spec: spec, handler: h, session: session, term: term,
		door: newDoor(spec.MaxConcurrent), suspects: make(chan struct{}, 1),
		sources: map[string]*source{}, bells: map[string]chan Pair{}, convs: map[convKey]*conversation{},
		active: map[envelope.MessageKey]*job{}, asks: map[string]*job{},
	}
	ib.began, ib.caughtUp, ib.gather.open = time.Now(), make(chan struct{}), true
	if _, ok := h.(taskQueue); ok {
		ib.door, ib.queue = newDoor(0), newQueueTerm(ib)
	}
	if ib.queue != nil || spec.Unique {
		ib.unique = newUniqueKeys(ib)
	}
	ib.described.Store(&spec)
	ib.ctx, ib.cancel = context.WithCancelCause(b.life)
	ib.work, ib.stop = context.WithCancel(ib.ctx)
	ib.intake, ib.stopIn = context.WithCancel(ib.work)
	ib.residence, ib.leaveHome = context.WithCancel(ib.ctx)
	ib.overClose, ib.workOver = make(chan struct{}), make(chan struct{})
	ib.wg.Add(1) // for start, before anybody can wait
	return ib
}

func (ib *inbox) start() {
	go func() {
		defer ib.wg.Done()
		if err := ib.run(); err != nil && ib.intake.Err() == nil {
			ib.b.log.Warn("inbox stopped; trying again", "agent", ib.spec.ID, "error", err)
			ib.depose(err)
		}
	}()
}

// over is closed when nothing of the term runs any more.
func (ib *inbox) over() <-chan struct{} {
	ib.overOnce.Do(func() {
		go func() {
			ib.wg.Wait()
			close(ib.workOver)
			ib.resident.Wait()
			close(ib.overClose)
		}()
	})
	return ib.overClose
}

// worked is closed when nothing of the term runs any more but the handler's own work.
func (ib *inbox) worked() <-chan struct{} {
	ib.over()
	return ib.workOver
}

// depose ends the term at once: the lock is gone or can no longer be trusted.
func (ib *inbox) depose(cause error) {
	if ib.ctx.Err() == nil {
		ib.cancel(cause)
		ib.b.emit(Event{Event: EventDeposed, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, To: ib.spec.ID, Reason: cause.Error()})
		ib.b.elector.kick()
	}
}

// run loads what the last owner left and then takes what comes.
func (ib *inbox) run() error {
	if ib.spec.Eager {
		ib.moveIn()
	}
	if ib.queue != nil {
		if err := ib.queue.start(); err != nil {
			return err
		}
	}
	if err := ib.loadPending(); err != nil {
		return err
	}
	if !ib.spec.Eager {
		ib.moveIn()
	}
	first := true
	return ib.b.watch(ib.intake, inboxPrefix(ib.spec.ID), func(pairs []Pair) error {
		var lanes []string
		for _, p := range pairs {
			if from := sourceOfBell(ib.spec.ID, p.Key); from != "" {
				lanes = append(lanes, from)
			}
		}
		if first {
			first = false
			ib.beginGathering(lanes)
		}
		for _, p := range pairs {
			if from := sourceOfBell(ib.spec.ID, p.Key); from != "" {
				ib.announce(from, p)
			}
		}
		runtime.Gosched() // the lanes are read first, then the next change is asked for: that takes a while
		return nil
	})
}

// announce hands a bell to the loop of its lane, starting it the first time. Lanes are
// read side by side: a full one waits alone.
func (ib *inbox) announce(from string, p Pair) {
	ib.mu.Lock()
	bells := ib.bells[from]
	if bells == nil {
		bells = make(chan Pair, 1)
		ib.bells[from] = bells
		ib.wg.Add(1)
		go func() {
			defer ib.wg.Done()
			ib.readLane(from, bells)
		}()
	}
	ib.mu.Unlock()
	select {
	case <-bells: // an older bell that nobody has looked at yet says less
	default:
	}
	bells <- p
}

// readLane follows one lane's bells until the term ends.
func (ib *inbox) readLane(from string, bells <-chan Pair) {
	var last Pair
	retry := newBackoff()
	for {
		select {
		case last = <-bells:
		case <-ib.intake.Done():
			return
		}
		for {
			s, err := ib.source(from)
			if err == nil {
				err = ib.ring(s, last)
			}
			if err == nil || ib.intake.Err() != nil {
				retry.Reset()
				ib.gathered(from)
				break
			}
			if !errors.Is(err, ErrUnavailable) {
				ib.gathered(from) // the others do not wait for it
				ib.b.log.Warn("cannot read a lane; trying again", "agent", ib.spec.ID, "from", from, "error", err)
			}
			ib.b.storeDown(err)
			ib.b.pause(ib.intake, retry, err)
		}
	}
}

// source returns the receiving end of a lane, loading it the first time.
func (ib *inbox) source(from string) (*source, error) {
	ib.mu.Lock()
	s := ib.sources[from]
	ib.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := loadSource(ib.intake, ib.b, ib.spec.ID, from)
	if err != nil {
		return nil, err
	}
	s.fetched = s.page.cursor
	s.admitted.Store(s.fetched)
	s.fresh = s.page.index == 0 || s.mistrusted
	ib.mu.Lock()
	ib.sources[from] = s
	ib.mu.Unlock()
	return s, nil
}

// ring reads what a bell announces.
func (ib *inbox) ring(s *source, p Pair) error {
	from := s.from
	if s.rung == p.ModifyIndex {
		return nil // a wake-up brings the bells of all sources
	}
	var bl bell
	if err := json.Unmarshal(p.Value, &bl); err != nil {
		ib.b.emit(Event{Event: EventRefused, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, From: "@" + from, To: ib.spec.ID,
			Class: envelope.ClassPoison, Reason: "bell is not readable: " + err.Error()})
		return nil //nolint:nilerr // said in the event; its writer mends it with the next message
	}
	head, err := ib.b.checkBell(from, ib.spec.ID, &bl)
	if err != nil {
		// Nothing that it says is so. Its writer puts the right one back.
		ib.b.refuse(p.Key, p.Value, err, "@"+from, ib.spec.ID)
		s.rung = p.ModifyIndex
		return nil
	}
	s.head = head
	if s.fresh {
		// The lane is new, or its cursor was deleted by hand: begin with the oldest that the bell speaks of. A slot
		// beyond the bell is no beginning: it is put before the transaction that names it, and that brings
		// what is only in the bell now into a slot before it.
		first, err := ib.nextSlot(from, 1)
		if err != nil {
			return err
		}
		if first > 0 && first <= bl.Seq {
			s.fetched = max(s.fetched, first-1)
		}
		s.fresh = false
	}
	if ib.unclean && s.careful == 0 {
		// What the last owner can have been at when it died: no more than it held, and nothing
		// that came since.
		s.careful = min(bl.Seq, s.fetched+heldItems)
	}
	for s.fetched < bl.Seq {
		if s.fetched+1 == bl.Seq && len(bl.Entry) > 0 {
			if err := ib.admit(s, bl.Seq, bl.Entry); err != nil {
				return err
			}
			s.admitted.Store(s.fetched)
			continue
		}
		last := min(bl.Seq, s.fetched+fetchSlots)
		if len(bl.Entry) > 0 {
			last = min(last, bl.Seq-1)
		}
		values, err := ib.readSlots(from, s.fetched+1, last)
		if err != nil {
			return fmt.Errorf("read lane from %s: %w", from, err)
		}
		for _, v := range values {
			if len(v.entry) == 0 {
				if err := ib.gap(s, bl); err != nil {
					return err
				}
				s.admitted.Store(s.fetched)
				break
			}
			err := ib.admit(s, s.fetched+1, v.entry)
			v.done()
			if err != nil {
				return err
			}
			s.admitted.Store(s.fetched)
		}
	}
	s.rung = p.ModifyIndex
	return nil
}

// nextSlot returns the number of the oldest slot of a lane from n on, or 0.
func (ib *inbox) nextSlot(from string, n uint64) (uint64, error) {
	prefix := lanePrefix(from, ib.spec.ID)
	keys, err := ib.b.store.Keys(ib.intake, prefix, "")
	if err != nil {
		return 0, fmt.Errorf("list lane from %s: %w", from, err)
	}
	for _, k := range keys {
		if m, ok := parsePadded(k[len(prefix):]); ok && m >= n {
			return m, nil
		}
	}
	return 0, nil
}

// gap goes over entries that are missing: somebody deleted them. One event tells of all.
func (ib *inbox) gap(s *source, bl bell) error {
	first := s.fetched + 1
	next, err := ib.nextSlot(s.from, first)
	if err != nil {
		return err
	}
	if next == first {
		return nil // it came back between two reads
	}
	last := bl.Seq
	if len(bl.Entry) > 0 {
		last = bl.Seq - 1
	}
	if next > 0 && next <= bl.Seq {
		last = next - 1
	}
	ib.b.emit(Event{Event: EventGap, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, From: "@" + s.from, To: ib.spec.ID,
		Reason: fmt.Sprintf("entries %d to %d of %s are missing: somebody deleted them", first, last, lanePrefix(s.from, ib.spec.ID))})
	le := &laneEntry{src: s, seq: last, open: 1}
	s.mu.Lock()
	s.fetched = last
	le.count = s.page.count
	s.entries = append(s.entries, le)
	s.mu.Unlock()
	r := receipt{State: envelope.DeadLetter, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, Class: envelope.ClassUndeliverable, Error: "its entry is missing from the store: somebody deleted it"}
	for n := first; n <= min(last, first+maxMissing-1); n++ {
		r.IDs = append(r.IDs, entryID(s.from, n))
	}
	ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, taken: []*laneEntry{le}, receipts: []ownedReceipt{{s, r}}, done: func(error) {}})
	return nil
}

// maxMissing bounds how many entries of one gap the sender is told of. Numbers that were left out on purpose (laneJump) are among
// them; nothing was in those, and the sender knows.
const maxMissing = 16

// readSlots reads the slots first to last of a lane, side by side.
func (ib *inbox) readSlots(from string, first, last uint64) ([]slotValue, error) {
	values := make([]slotValue, last-first+1)
	g, ctx := errgroup.WithContext(ib.intake)
	for i := range values {
		g.Go(func() (err error) {
			values[i], err = ib.b.readSlotOnce(ctx, slotKey(from, ib.spec.ID, first+uint64(i)))
			return err
		})
	}
	return values, g.Wait()
}

// admit takes one entry into memory and hands its messages to their conversations. It
// waits while the inbox holds all it may. It keeps nothing of raw.
func (ib *inbox) admit(s *source, seq uint64, raw []byte) error {
	if err := ib.waitForRoom(s, len(raw)); err != nil {
		return err
	}
	le := &laneEntry{src: s, seq: seq}
	e, err := decodeEntry(raw)
	var said *saidEntry
	if err == nil {
		said, err = ib.b.checkEntry(s.from, ib.spec.ID, &e, s.headOf(seq))
		if err == nil && e.Seq != seq && ib.b.enforced() {
			err = &trust.Refusal{Reason: trust.Replay, Gateway: s.from, Key: said.stamp.Key, Detail: fmt.Sprintf("entry %d lies where %d belongs", e.Seq, seq)}
		}
	}
	if refused := (*trust.Refusal)(nil); errors.As(err, &refused) {
		// What its gateway put here is gone: the lane goes on without it, and the sender is told by a receipt.
		ib.b.refuse(slotKey(s.from, ib.spec.ID, seq), raw, err, "@"+s.from, ib.spec.ID)
		ib.bury(le, s, string(raw), entryID(s.from, seq), envelope.ClassUnauthorised, fmt.Errorf("entry %d is refused: %w", seq, err))
		return nil
	}
	if err != nil || e.Seq != seq {
		if err == nil {
			err = fmt.Errorf("it says it is entry %d", e.Seq)
		}
		if ib.b.enforced() {
			ib.b.refuse(slotKey(s.from, ib.spec.ID, seq), raw, err, "@"+s.from, ib.spec.ID)
		}
		ib.bury(le, s, string(raw), entryID(s.from, seq), envelope.ClassPoison, fmt.Errorf("entry %d is not readable: %w", seq, err))
		return nil
	}
	type decoded struct {
		env *envelope.Sealed
		err error
	}
	envs := make([]decoded, len(e.Items))
	var keys []string
	for i := range e.Items {
		d := &envs[i]
		if d.env, d.err = envelope.Decode(e.Items[i].Envelope); d.err == nil && ib.unique != nil {
			keys = append(keys, d.env.UniqueKey())
		}
	}
	if err := ib.unique.look(keys); err != nil {
		return err
	}
	le.open = len(e.Items)
	s.mu.Lock()
	le.count = max(e.Count, s.page.count)
	s.fetched = seq
	s.entries = append(s.entries, le)
	s.mu.Unlock()
	if len(e.Items) == 0 {
		ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, taken: []*laneEntry{le}, done: func(error) {}})
		return nil
	}
	jobs := make([]*job, 0, len(e.Items))
	for i, it := range e.Items {
		env, err := envs[i].env, envs[i].err
		if err != nil {
			class := envelope.ClassPoison
			if v := (*envelope.VersionError)(nil); errors.As(err, &v) {
				class = envelope.ClassVersion
			}
			ib.buryItem(le, s, it, i, class, err)
			continue
		}
		j := &job{ib: ib, src: s, entry: le, lane: seq, item: i, env: env,
			del: envelope.Delivery{State: envelope.Queued, Hops: it.Hops, QueuedAt: &e.At, AttemptID: it.AttemptID, For: it.For, Spent: it.Spent, Keys: it.Keys}}
		if err := j.misplaced(); err != nil {
			ib.buryItem(le, s, it, i, envelope.ClassUndeliverable, err)
			continue
		}
		if j.said, j.proof = said, it.Proof; said != nil && len(it.Proof) > 0 && env.SourceGateway == s.from {
			j.proof = nil // a message of its own needs none
		}
		if err := ib.b.checkItem(j, it.Proof, e.At); err != nil {
			ib.b.refuse(fmt.Sprintf("%s item %d", slotKey(s.from, ib.spec.ID, seq), i), it.Envelope, err, "@"+s.from, ib.spec.ID)
			ib.buryItem(le, s, it, i, envelope.ClassUnauthorised, err)
			continue
		}
		if ib.duplicate(j) {
			ib.b.emit(j.event(EventDuplicate))
			ib.b.writer.submit(&unit{ctx: ib.ctx, owner: ib, taken: []*laneEntry{le}, done: func(error) {}})
			continue
		}
		if at := env.NotBefore(); at.After(ib.b.now()) {
			next := envelope.At(at)
			j.del.NextAttemptAt = &next
		}
		if seq <= s.careful {
			j.careful = true
		}
		ib.claimUnique(j)
		jobs = append(jobs, j)
	}
	ib.enter(jobs...)
	ib.takenIn(jobs)
	return nil
}

// headOf is the head of an entry that the bell named, nil for another one.
func (s *source) headOf(seq uint64) *signedHead {
	if s.head == nil || s.head.Seq != seq {
		return nil
	}
	return s.head
}

// duplicate reports whether the message has been taken before, and otherwise marks it
// as being here.
func (ib *inbox) duplicate(j *job) bool {
	if j.src.known(j.env.MessageID) {
		return true
	}
	ib.mu.Lock()
	defer ib.mu.Unlock()
	if ib.active[j.env.Key()] != nil {
		return true
	}
	ib.active[j.env.Key()] = j
	return false
}

func (ib *inbox) enter(jobs ...*job) {
	ib.mu.Lock()
	defer ib.mu.Unlock()
	for _, j := range jobs {
		j.size = len(j.env.Canonical())
		j.src.held++
		j.src.heldBytes += j.size
		ib.active[j.env.Key()] = j
	}
}

// leave forgets a message that reached its end.
func (ib *inbox) leave(j *job) {
	ib.mu.Lock()
	defer ib.mu.Unlock()
	if ib.active[j.env.Key()] != j {
		return
	}
	delete(ib.active, j.env.Key())
	ib.freeUnique(j)
	for _, c := range j.asked {
		delete(ib.asks, c)
	}
	if j.spilled {
		ib.spilled--
		return
	}
	ib.freeLocked(j)
}

// freeLocked gives back the memory that a message held.
func (ib *inbox) freeLocked(j *job) {
	j.src.held--
	j.src.heldBytes -= j.size
	if ib.room != nil {
		close(ib.room)
		ib.room = nil
	}
}

func (ib *inbox) waitForRoom(s *source, n int) error {
	for {
		ib.mu.Lock()
		ok := s.held < heldItems && (s.heldBytes+n <= heldBytes || s.held == 0)
		if !ok && ib.room == nil {
			ib.room = make(chan struct{})
		}
		room := ib.room
		ib.mu.Unlock()
		if ok {
			return ib.intake.Err()
		}
		ib.gathered(s.from) // more of it does not fit: nobody can wait for that
		select {
		case <-room:
		case <-ib.intake.Done():
			return ib.intake.Err()
		}
	}
}

// loadPending takes over the messages that have records of their own, in the order of
// their lanes, before anything newer of their conversations is read.
func (ib *inbox) loadPending() error {
	prefix := pendingPrefix(ib.spec.ID)
	pairs, err := ib.b.store.List(ib.intake, prefix)
	if err != nil {
		return fmt.Errorf("read pending of %s: %w", ib.spec.ID, err)
	}
	byID := map[string]*job{}
	var jobs []*job
	for _, p := range pairs {
		id, rest, _ := strings.Cut(p.Key[len(prefix):], "/")
		if rest != "" {
			j := byID[id]
			child, ok := strings.CutPrefix(rest, "answers/")
			body, err := ib.b.read(trust.KindRecord, p.Key, p.Value, "", ib.spec.ID)
			if err != nil {
				ib.b.refuse(p.Key, p.Value, err, "", ib.spec.ID)
				continue
			}
			env, err := envelope.Decode(body)
			if j == nil || !ok || err != nil {
				ib.b.log.Warn("answer without its question; left alone", "key", p.Key)
				continue
			}
			at := p.ModifyIndex
			j.answers[child] = env
			j.stored = append(j.stored, storedAnswer{p.Key, &at})
			continue
		}
		rec, env, err := ib.b.openPending(&p, ib.spec.ID)
		if refused := (*trust.Refusal)(nil); errors.As(err, &refused) {
			ib.b.refuse(p.Key, p.Value, err, "", ib.spec.ID)
			continue
		}
		if err != nil {
			ib.b.emit(Event{Event: EventRefused, At: envelope.At(ib.b.now()), Gateway: ib.b.cfg.Gateway, To: ib.spec.ID, MessageID: id,
				Class: envelope.ClassPoison, Reason: fmt.Sprintf("pending record is not readable, left where it is (%s): %v", p.Key, err)})
			continue
		}
		from := rec.From
		if from == "" {
			from = env.SourceGateway
		}
		s, err := ib.source(from)
		if err != nil {
			return err
		}
		j := &job{ib: ib, src: s, lane: rec.Lane, item: rec.Item, env: env, del: rec.Delivery, asked: rec.Asked, run: rec.Run, proof: rec.Proof, at: p.ModifyIndex, parked: true, recorded: rec.Delivery.Attempt, careful: ib.unclean,
			answers: map[string]*envelope.Sealed{}}
		byID[id] = j
		jobs = append(jobs, j)
	}
	sort.SliceStable(jobs, func(a, b int) bool {
		if jobs[a].src != jobs[b].src {
			return jobs[a].src.from < jobs[b].src.from
		}
		if jobs[a].lane != jobs[b].lane {
			return jobs[a].lane < jobs[b].lane
		}
		return jobs[a].item < jobs[b].item
	})
	if ib.spec.OneOrder {
		jobs = inOneOrder(jobs)
	}
	keys := make([]string, len(jobs))
	for i, j := range jobs {
		keys[i] = j.env.UniqueKey()
	}
	if err := ib.unique.look(keys); err != nil {
		return err
	}
	for _, j := range jobs {
		ib.claimUnique(j)
		ib.enter(j)
		ib.mu.Lock()
		for _, c := range j.asked {
			if j.answers[c] == nil {
				ib.asks[c] = j
			}
		}
		ib.mu.Unlock()
		ib.b.tracks.begin(j.env)
		due := j.due() <= 0
		if ib.toConversation(j) > 0 || !due {
			j.spill()
		}
	}
	return nil
}
