package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// TaskInfo is an unfinished task as the store has it.
type TaskInfo struct {
	MessageID string `json:"message_id"`
	Queue     string `json:"queue"`
	// State is one of the Task constants.
	State      string         `json:"state"`
	Priority   int            `json:"priority"`
	From       string         `json:"from"` // agent@gateway
	Capability string         `json:"capability,omitempty"`
	UniqueKey  string         `json:"unique_key,omitempty"`
	MadeAt     envelope.Time  `json:"made_at"`
	DueAt      *envelope.Time `json:"due_at,omitempty"`
	Attempt    int            `json:"attempt,omitempty"`
	// Worker is the gateway that works on it.
	Worker    string `json:"worker,omitempty"`
	LastError string `json:"last_error,omitempty"`
}

// The states of a task, for people: all are queued or delivered in the words of the envelope.
const (
	TaskWaiting  = "waiting"  // for a worker
	TaskDelayed  = "delayed"  // its time has not come
	TaskRunning  = "running"  // at a worker
	TaskRetrying = "retrying" // failed, and its next attempt is not due yet
)

// QueueInfo is the state of one task queue.
type QueueInfo struct {
	Queue string `json:"queue"`
	// Owner hands out the tasks; empty: nobody does now.
	Owner string `json:"owner"`
	// Waiting counts the tasks that wait for a worker, Delayed those whose time has not come (retries too), Running
	// those at a worker.
	Waiting int          `json:"waiting"`
	Delayed int          `json:"delayed"`
	Running int          `json:"running"`
	Workers []WorkerInfo `json:"workers"`
}

// WorkerInfo is one worker of a queue.
type WorkerInfo struct {
	Gateway string `json:"gateway"`
	// Slots is how many tasks it works on at the same time; 0: it is stopping.
	Slots int           `json:"slots"`
	Since envelope.Time `json:"since"`
}

// IsQueue reports whether the registry knows a task queue of that name.
func (b *Bus) IsQueue(name string) bool {
	b.registry.mu.Lock()
	defer b.registry.mu.Unlock()
	return slices.Contains(b.registry.agents[name].Capabilities, QueueCapability)
}

// maxTaskSlots bounds what Tasks reads of one lane, in slots.
const maxTaskSlots = 64

// Tasks lists the unfinished tasks of a queue, highest priority first, then oldest. It reads the queue's records,
// and of each lane what its owner has not taken, up to 64 entries: for people.
func (b *Bus) Tasks(ctx context.Context, queue string) ([]TaskInfo, error) {
	prefix := pendingPrefix(queue)
	list := []TaskInfo{}
	seen := map[envelope.MessageKey]bool{}
	add := func(e *envelope.Envelope, d *envelope.Delivery, run *taskRun) {
		if seen[e.Key()] || e.InReplyTo != "" || strings.HasPrefix(e.Capability, ReservedCapability) {
			return
		}
		seen[e.Key()] = true
		list = append(list, taskInfo(queue, e, d, run, b.now()))
	}
	records := func() error {
		pairs, err := b.store.List(ctx, prefix)
		if err != nil {
			return fmt.Errorf("read tasks of %s: %w", queue, err)
		}
		for _, p := range pairs {
			if strings.Contains(p.Key[len(prefix):], "/") {
				continue
			}
			if rec, env, err := b.openPending(&p, queue); err == nil {
				add(&env.Envelope, &rec.Delivery, rec.Run)
			}
		}
		return nil
	}
	if err := records(); err != nil {
		return nil, err
	}
	bells, err := b.store.List(ctx, inboxPrefix(queue))
	if err != nil {
		return nil, fmt.Errorf("read lanes of %s: %w", queue, err)
	}
	for _, p := range bells {
		from := sourceOfBell(queue, p.Key)
		if from == "" {
			continue
		}
		if err := b.tasksInLane(ctx, queue, from, p, seen, add); err != nil {
			return nil, err
		}
	}
	// Once more: a task that went from its lane into a record meanwhile was in neither place when that was read.
	if err := records(); err != nil {
		return nil, err
	}
	sort.SliceStable(list, func(i, j int) bool {
		if list[i].Priority != list[j].Priority {
			return list[i].Priority > list[j].Priority
		}
		return list[i].MadeAt.Before(list[j].MadeAt.Time)
	})
	return list, nil
}

// tasksInLane finds the tasks that the owner has not taken yet: in the bell and the slots behind the cursor.
func (b *Bus) tasksInLane(ctx context.Context, queue, from string, bp Pair, seen map[envelope.MessageKey]bool, add func(*envelope.Envelope, *envelope.Delivery, *taskRun)) error {
	var bl bell
	if json.Unmarshal(bp.Value, &bl) != nil {
		return nil //nolint:nilerr // its writer mends it
	}
	head, _, err := b.readHead(ctx, from, queue)
	if err != nil {
		return fmt.Errorf("read cursor of %s: %w", queue, err)
	}
	// Of an entry that is taken in part, the receipts know which messages have ended.
	for _, raw := range head.Receipts {
		var r receipt
		if json.Unmarshal(raw, &r) == nil && (r.State == envelope.Acked || r.State == envelope.DeadLetter) {
			for _, id := range r.IDs {
				seen[envelope.MessageKey{Gateway: from, ID: id}] = true
			}
		}
	}
	entries := 0
	for n := head.Cursor + 1; n <= bl.Seq && entries < maxTaskSlots; n++ {
		entries++
		raw := []byte(bl.Entry)
		if n < bl.Seq || len(raw) == 0 {
			if raw, err = b.readSlot(ctx, slotKey(from, queue, n)); err != nil {
				return fmt.Errorf("read lane of %s: %w", queue, err)
			}
		}
		e, err := decodeEntry(raw)
		if err != nil {
			continue
		}
		for _, it := range e.Items {
			if env, err := envelope.Decode(it.Envelope); err == nil {
				add(&env.Envelope, &envelope.Delivery{State: envelope.Queued}, nil)
			}
		}
	}
	return nil
}

func taskInfo(queue string, e *envelope.Envelope, d *envelope.Delivery, run *taskRun, now time.Time) TaskInfo {
	t := TaskInfo{
		MessageID: e.MessageID, Queue: queue, State: TaskWaiting, Priority: e.Priority(), From: e.SourceAgent + "@" + e.SourceGateway,
		Capability: e.Capability, UniqueKey: e.UniqueKey(), MadeAt: e.CreatedAt, Attempt: d.Attempt, LastError: d.LastError,
	}
	if at := e.NotBefore(); at.After(now) {
		due := envelope.At(at)
		t.State, t.DueAt = TaskDelayed, &due
	}
	if at := d.NextAttemptAt; at != nil && at.After(now) {
		t.DueAt = at
		if d.RetryCount > 0 {
			t.State = TaskRetrying
		}
	}
	if run != nil {
		t.State, t.Worker, t.DueAt = TaskRunning, run.Gateway, nil
	}
	return t
}

// Queues lists the task queues of the mesh. It reads as [Bus.Tasks] does, for each of them.
func (b *Bus) Queues(ctx context.Context) ([]QueueInfo, error) {
	dirs, err := b.store.Keys(ctx, tasksRoot, "/")
	if err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	list := []QueueInfo{}
	for _, d := range dirs {
		queue := strings.TrimSuffix(d[len(tasksRoot):], "/")
		if !envelope.ValidName(queue) {
			continue
		}
		q := QueueInfo{Queue: queue, Owner: b.OwnerOf(queue), Workers: []WorkerInfo{}}
		pairs, err := b.store.List(ctx, workersPrefix(queue))
		if err != nil {
			return nil, fmt.Errorf("read workers of %s: %w", queue, err)
		}
		for _, a := range b.announcements(queue, pairs) {
			q.Workers = append(q.Workers, WorkerInfo{Gateway: a.Gateway, Slots: a.Slots, Since: a.Since})
		}
		sort.Slice(q.Workers, func(i, j int) bool { return q.Workers[i].Gateway < q.Workers[j].Gateway })
		tasks, err := b.Tasks(ctx, queue)
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			switch t.State {
			case TaskRunning:
				q.Running++
			case TaskWaiting:
				q.Waiting++
			default:
				q.Delayed++
			}
		}
		list = append(list, q)
	}
	return list, nil
}
