package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// QueueSpec describes a task queue that this gateway may own. A queue is an inbox: a task is a message to
// it, and all of the delivery contract holds for tasks. Its owner does no work; it hands tasks to workers.
type QueueSpec struct {
	// ID names the queue and its inbox.
	ID, Description string
	// Rank is as AgentSpec.Rank.
	Rank int
	// AckTimeout is how long a worker may go without a sign of life when the task names no time; 0: 10 minutes.
	AckTimeout time.Duration
}

// WorkerSpec makes this gateway a worker of a queue.
type WorkerSpec struct {
	Queue string
	// Agent is on whose behalf the work is done: what the handler sends is from it.
	Agent string
	// Slots is how many tasks are worked on at the same time; 0: 1, at most 128.
	Slots int
}

const maxSlots = 128

// QueueCapability is what the registry shows of a queue, which is in it like an agent.
const QueueCapability = "task.queue"

// ServeQueue makes this gateway a candidate for owning a queue, before or after Start.
func (b *Bus) ServeQueue(spec QueueSpec) error {
	return b.Serve(AgentSpec{ID: spec.ID, Description: spec.Description, Rank: spec.Rank, AckTimeout: spec.AckTimeout, Capabilities: []string{QueueCapability}}, taskQueue{})
}

// Work makes this gateway a worker of a queue, before or after Start. The handler sees tasks as it would see
// messages: its reply is the task's result, what it sends leaves when the task is done, its errors are retried elsewhere.
func (b *Bus) Work(spec WorkerSpec, h Handler) error {
	if !envelope.ValidName(spec.Queue) || !envelope.ValidName(spec.Agent) {
		return fmt.Errorf("worker %q of queue %q: want names of 1 to 63 of a-z, 0-9 and -", spec.Agent, spec.Queue)
	}
	if spec.Slots <= 0 {
		spec.Slots = 1
	}
	if spec.Slots > maxSlots {
		return fmt.Errorf("worker of queue %s: %d slots, at most %d", spec.Queue, spec.Slots, maxSlots)
	}
	b.workers.add(spec, h)
	return nil
}

// announcement is the value of a worker's key. The key is locked by the gateway's session and goes with it.
type announcement struct {
	Gateway string `json:"gateway"`
	// Worker is new with each announcement: what was handed to another one is not worked on any more.
	Worker string `json:"worker"`
	// Slots is 0 while the gateway stops.
	Slots int           `json:"slots"`
	Since envelope.Time `json:"since"`
}

// workers announces this gateway where it works, again with each new session.
type workers struct {
	b    *Bus
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	byQueue map[string]*worker
	retired bool
}

type worker struct {
	spec    WorkerSpec
	handler Handler
	// What was announced last, and under which session.
	said    announcement
	session string
}

func newWorkers(b *Bus) *workers {
	return &workers{b: b, wake: make(chan struct{}, 1), byQueue: map[string]*worker{}}
}

func (ws *workers) kick() {
	select {
	case ws.wake <- struct{}{}:
	default:
	}
}

func (ws *workers) add(spec WorkerSpec, h Handler) {
	ws.mu.Lock()
	ws.byQueue[spec.Queue] = &worker{spec: spec, handler: h}
	ws.mu.Unlock()
	ws.kick()
}

// current returns the worker of a queue if it is still the one that was announced as id.
func (ws *workers) current(queue, id string) *worker {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w := ws.byQueue[queue]; w != nil && w.said.Worker == id && !ws.retired {
		return w
	}
	return nil
}

// run announces until ctx ends. Now and then it looks whether the keys are still there: somebody may have
// deleted them.
func (ws *workers) run(ctx context.Context) {
	retry := newBackoff()
	look := time.NewTicker(ws.b.cfg.Heartbeat)
	defer look.Stop()
	for {
		ws.b.session.mu.Lock()
		session, changed := ws.b.session.current, ws.b.session.changed
		ws.b.session.mu.Unlock()
		var err error
		if session != "" {
			err = ws.announce(ctx, session)
		}
		if err != nil && ctx.Err() == nil {
			ws.b.log.Debug("cannot announce a worker; trying again", "error", err)
			ws.b.pause(ctx, retry, err)
			continue
		}
		retry.Reset()
		select {
		case <-ws.wake:
		case <-look.C:
			ws.look(ctx)
		case <-changed: // also at every renewal, which costs nothing here
		case <-ctx.Done():
			return
		}
	}
}

// look finds announcements that somebody deleted, and has them made anew.
func (ws *workers) look(ctx context.Context) {
	ws.mu.Lock()
	all := map[*worker]string{}
	for _, w := range ws.byQueue {
		if w.session != "" && !ws.retired {
			all[w] = w.session
		}
	}
	ws.mu.Unlock()
	for w, session := range all {
		p, err := ws.b.store.Get(ctx, workerKey(w.spec.Queue, ws.b.cfg.Gateway))
		if err != nil {
			return // it is looked at again
		}
		ws.mu.Lock()
		if w.session == session && (p == nil || p.Session != session) {
			w.session = ""
		}
		ws.mu.Unlock()
	}
}

// announce writes what is not there.
func (ws *workers) announce(ctx context.Context, session string) error {
	ws.mu.Lock()
	var due []*worker
	for _, w := range ws.byQueue {
		if !ws.retired && w.session != session {
			due = append(due, w)
		}
	}
	ws.mu.Unlock()
	for _, w := range due {
		said := announcement{Gateway: ws.b.cfg.Gateway, Worker: uuid.NewString(), Slots: w.spec.Slots, Since: envelope.At(ws.b.now())}
		ws.mu.Lock()
		w.said = said // before anybody can hand it work
		ws.mu.Unlock()
		if err := ws.write(ctx, w.spec.Queue, said, session); err != nil {
			return err
		}
		ws.mu.Lock()
		w.session = session
		ws.mu.Unlock()
	}
	return nil
}

func (ws *workers) write(ctx context.Context, queue string, said announcement, session string) error {
	gw := ws.b.cfg.Gateway
	_, err := ws.b.store.Txn(ctx, []Op{
		{Verb: OpCheckSession, Key: gatewayLockKey(gw), Session: session},
		{Verb: OpLock, Key: workerKey(queue, gw), Session: session, Value: ws.b.sign(trust.KindRegistry, workerKey(queue, gw), mustEncode(said))},
	})
	if err != nil {
		return fmt.Errorf("announce the worker of %s: %w", queue, err)
	}
	return nil
}

// announcedLocked are the workers whose keys are in the store.
func (ws *workers) announcedLocked() (all []worker) {
	for _, w := range ws.byQueue {
		if w.session != "" {
			all = append(all, *w)
		}
	}
	return all
}

// retire says that this gateway takes no more tasks: it stops. What it works on goes on for now.
func (ws *workers) retire(ctx context.Context) {
	ws.mu.Lock()
	ws.retired = true
	all := ws.announcedLocked()
	ws.mu.Unlock()
	for _, w := range all {
		w.said.Slots = 0
		if err := ws.write(ctx, w.spec.Queue, w.said, w.session); err != nil {
			ws.b.log.Debug("cannot retire a worker; its key ends with the session", "queue", w.spec.Queue, "error", err)
		}
	}
}

// queueTerm is what the owner of a queue knows beyond its inbox.
type queueTerm struct {
	ib *inbox

	mu      sync.Mutex
	workers map[string]*taskWorker // by gateway
	// changed is closed and replaced when a worker comes, goes or is free again.
	changed chan struct{}
}

// taskWorker is one announcement of a gateway, as the queue's owner sees it. Who picked it reads Gateway and Worker
// without the lock, so of an announcement that is written again only Slots is taken in.
type taskWorker struct {
	announcement
	running int
	// gone is closed when the announcement is not there any more.
	gone chan struct{}
}

func newQueueTerm(ib *inbox) *queueTerm {
	return &queueTerm{ib: ib, workers: map[string]*taskWorker{}, changed: make(chan struct{})}
}

// start reads what the last owner left, before any task is looked at, and follows the workers.
func (t *queueTerm) start() error {
	ib, b := t.ib, t.ib.b
	about, err := b.store.Get(ib.intake, workersAboutKey(ib.spec.ID))
	if err != nil {
		return fmt.Errorf("read workers of %s: %w", ib.spec.ID, err)
	}
	if about == nil {
		// The resident key: without one Consul would wake the watch for unrelated writes.
		b.writer.submit(&unit{ctx: ib.ctx, owner: ib, done: func(error) {}, extra: []Op{{Verb: OpSet, Key: workersAboutKey(ib.spec.ID),
			Value: mustEncode("Workers of the queue " + ib.spec.ID + ": one key a gateway under of/, which goes with its session. Tasks are in openclaw/pending/" + ib.spec.ID + "/ and in the lanes.")}}})
	}
	pairs, err := b.store.List(ib.intake, workersPrefix(ib.spec.ID))
	if err != nil {
		return fmt.Errorf("read workers of %s: %w", ib.spec.ID, err)
	}
	t.see(pairs)
	ib.wg.Add(1)
	go func() {
		defer ib.wg.Done()
		b.watchForever(ib.intake, workersPrefix(ib.spec.ID), func(pairs []Pair) error {
			t.see(pairs)
			return nil
		})
	}()
	return nil
}

// announcements reads the keys of workers that are alive.
func (b *Bus) announcements(queue string, pairs []Pair) map[string]announcement {
	all := map[string]announcement{}
	for _, p := range pairs {
		gw, ok := strings.CutPrefix(p.Key, workerKey(queue, ""))
		if !ok || p.Session == "" {
			continue
		}
		body, err := b.read(trust.KindRegistry, p.Key, p.Value, gw, "")
		if err != nil {
			b.refuse(p.Key, p.Value, err, "", queue)
			continue
		}
		var a announcement
		if json.Unmarshal(body, &a) == nil && p.Key == workerKey(queue, a.Gateway) && a.Slots >= 0 && a.Slots <= maxSlots {
			all[a.Gateway] = a
		}
	}
	return all
}

// see takes in a picture of the workers: those that went are told to whoever waits for them, and there are as
// many places for tasks as there are slots.
func (t *queueTerm) see(pairs []Pair) {
	now := t.ib.b.announcements(t.ib.spec.ID, pairs)
	t.mu.Lock()
	defer t.mu.Unlock()
	for gw, w := range t.workers {
		if now[gw].Worker != w.Worker {
			close(w.gone)
			delete(t.workers, gw)
		}
	}
	slots := 0
	for gw, a := range now {
		if w := t.workers[gw]; w != nil {
			w.Slots = a.Slots
		} else {
			t.workers[gw] = &taskWorker{announcement: a, gone: make(chan struct{})}
		}
		slots += a.Slots
	}
	t.notifyLocked()
	t.ib.door.resize(slots)
}

func (t *queueTerm) notifyLocked() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// pick takes a slot of the worker with the most free ones, waiting for one until ctx ends.
func (t *queueTerm) pick(ctx context.Context) (*taskWorker, error) {
	for {
		t.mu.Lock()
		var best *taskWorker
		for _, w := range t.workers {
			if n := w.Slots - w.running; n > 0 && (best == nil || n > best.Slots-best.running || n == best.Slots-best.running && w.Gateway < best.Gateway) {
				best = w
			}
		}
		if best != nil {
			best.running++
			t.mu.Unlock()
			return best, nil
		}
		changed := t.changed
		t.mu.Unlock()
		select {
		case <-changed:
		case <-t.ib.intake.Done():
			return nil, ErrHandover
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// rejoin finds the worker that an earlier owner handed a task to; nil: it is gone.
func (t *queueTerm) rejoin(r *taskRun) *taskWorker {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.workers[r.Gateway]
	if w == nil || w.Worker != r.Worker {
		return nil
	}
	w.running++
	return w
}

func (t *queueTerm) release(w *taskWorker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.running--
	t.notifyLocked()
}

// Errors between a queue's owner and its handling; they never leave the bus.
var (
	errWorkerLost = errors.New("the worker died")
	// errGivenBack: the task goes to another worker, and the attempt does not count.
	errGivenBack = errors.New("the worker gave it back")
	// errOver: the message ended while it waited.
	errOver = errors.New("it has ended")
)
