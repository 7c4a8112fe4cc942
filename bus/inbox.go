package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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

// maxMissing bounds how many entries of one gap the sender is told of. Numbers that were left out on purpose (laneJump) are among
// them; nothing was in those, and the sender knows.
const maxMissing = 16

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
