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

// What gateways ask each other about tasks.
const (
	// opRun: the queue's owner has a worker's gateway work on a task.
	opRun = ReservedCapability + "task.run"
	// opStopRun: it does not want the result any more.
	opStopRun = ReservedCapability + "task.stop"
	// opCancel: an operator has the owner of an inbox or a queue give a message or a task up.
	opCancel = ReservedCapability + "task.cancel"
)

// taskRun is where a task is worked on. It stands in the task's record, written with the order itself, so that
// the next owner of the queue waits for the same worker instead of starting another one.
type taskRun struct {
	Gateway  string `json:"gateway"`
	Worker   string `json:"worker"`
	Question string `json:"question"`
}

// taskOrder is the payload of opRun.
type taskOrder struct {
	Queue  string `json:"queue"`
	Worker string `json:"worker"`
	// Attempt is which one of the task this is.
	Attempt int             `json:"attempt"`
	Task    json.RawMessage `json:"task"`
	// Key is that of an encrypted task; the order is encrypted, too, then.
	Key trust.ContentKey `json:"key,omitempty"`
}

// taskWork is the run of a task in the hands of a worker's handler.
type taskWork struct {
	agent   string
	attempt int
	result  json.RawMessage
}

// The outcomes of a run.
const (
	taskDone    = "done"
	taskRetry   = "retry"
	taskTimeout = "timeout"
	taskNever   = "never"
	// taskBack: it was not worked on, or the gateway stops: the attempt does not count.
	taskBack = "given-back"
)

// taskVerdict is the answer to opRun.
type taskVerdict struct {
	Outcome string          `json:"outcome"`
	Result  json.RawMessage `json:"result,omitempty"`
	Class   envelope.Class  `json:"class,omitempty"`
	Error   string          `json:"error,omitempty"`
	// RetryAfter in milliseconds; nil: the queue's backoff.
	RetryAfter *envelope.Millis `json:"retry_after,omitempty"`
}

// taskQueue is the handler of a queue's inbox: it has workers do the work.
type taskQueue struct{}

// needsNoPlace: orders are carried out beside the work, which they may be there to stop or to move; so are, in a queue, all messages that are not work at a worker,
// and a handler that only waits for others needs none.
func (j *job) needsNoPlace() bool {
	e := &j.env.Envelope
	switch {
	case e.InReplyTo == "" && strings.HasPrefix(e.Capability, ReservedCapability):
		return e.Capability != opRun
	case j.ib.queue != nil:
		return j.duplicateOf != "" || e.InReplyTo != ""
	}
	return j.ib.spec.Waits != nil && j.ib.spec.Waits(e)
}

// running is where the task is worked on, or nil.
func (j *job) running() *taskRun {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.run
}

func (j *job) setRun(r *taskRun) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.run = r
}

// Handle implements Handler.
func (taskQueue) Handle(ctx context.Context, m *Incoming) error {
	j := m.j
	switch {
	case m.Envelope().InReplyTo != "":
		return nil // the answer of a run that nobody waits for any more
	case j.duplicateOf != "":
		return m.Reply(mustEncode(map[string]string{"duplicate_of": j.duplicateOf}))
	}
	v, err := j.ib.queue.work(ctx, m)
	if err != nil {
		return err
	}
	j.setRun(nil)
	switch v.Outcome {
	case taskDone:
		m.extra = append(m.extra, j.ib.keepUnique(j)...)
		if len(v.Result) == 0 {
			return nil
		}
		return m.Reply(v.Result)
	case taskBack:
		return fmt.Errorf("%w: %s", errGivenBack, v.Error)
	case taskNever:
		return Never(v.Class, errors.New(v.Error))
	case taskTimeout:
		err = fmt.Errorf("%w at its worker: %s", ErrLeaseLost, v.Error)
	default:
		err = errors.New(v.Error)
	}
	if v.RetryAfter != nil {
		err = RetryAfter(v.RetryAfter.Duration(), err)
	}
	return err
}

// work has a worker do the task, or goes on waiting for the one that an earlier owner chose.
func (t *queueTerm) work(ctx context.Context, m *Incoming) (v taskVerdict, err error) {
	j := m.j
	run := j.running()
	var w *taskWorker
	if run == nil {
		m.lease.pause()
		w, err = t.pick(ctx)
		m.lease.renew()
		if err != nil {
			return v, err
		}
		run = &taskRun{Gateway: w.Gateway, Worker: w.Worker, Question: envelope.NewID()}
		j.setRun(run)
	} else if w = t.rejoin(run); w == nil {
		return t.afterLoss(ctx, m, run)
	}
	defer t.release(w)
	wait, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-w.gone:
			cancel(errWorkerLost)
		case <-wait.Done():
		}
	}()
	v, err = t.await(wait, m, run)
	if err == nil {
		return v, nil
	}
	switch cause := context.Cause(wait); {
	case errors.Is(err, ErrHandover) || ctx.Err() != nil:
		return v, err // the next owner goes on with the run
	case errors.Is(cause, errWorkerLost):
		return t.afterLoss(ctx, m, run)
	}
	j.setRun(nil)
	return v, err
}

// await asks the worker, once however often it is called for the same run, and waits for its answer.
func (t *queueTerm) await(ctx context.Context, m *Incoming, run *taskRun) (v taskVerdict, err error) {
	j := m.j
	b := t.ib.b
	life := j.env.ExpiresAt().Sub(b.now())
	if at := j.del.ExpiresAt; at != nil {
		life = at.Sub(b.now())
	}
	order := taskOrder{Queue: t.ib.spec.ID, Worker: run.Worker, Attempt: m.Attempt(), Task: j.env.Canonical()}
	if j.env.Encrypted() {
		if order.Key, err = b.contentKey(j.env, j.del.Keys); err != nil {
			return v, err
		}
	}
	ans, err := m.Ask(ctx, Outgoing{
		ID: run.Question, ConversationID: run.Question, To: envelope.Address{Agent: run.Gateway}, From: b.cfg.Gateway,
		Capability: opRun, Payload: mustEncode(order),
		TTL: min(max(life, time.Second), envelope.MaxTTL), MaxHops: envelope.MaxHops, AckTimeout: j.ackTimeout(), Terminal: true, reserved: true,
	})
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(ans.Payload, &v); err != nil {
		return v, fmt.Errorf("the verdict of %s is not readable: %w", run.Gateway, err)
	}
	return v, nil
}

// afterLoss finds out what a worker that is gone left: its session ended with its announcement, so what it had
// not recorded by then is never recorded.
func (t *queueTerm) afterLoss(ctx context.Context, m *Incoming, run *taskRun) (v taskVerdict, err error) {
	retry := newBackoff()
	for {
		st, err := t.ib.b.Lookup(ctx, run.Question)
		switch {
		case err == nil && st.Facts.Acked:
			return t.await(ctx, m, run) // its answer is on the way
		case err == nil || errors.Is(err, ErrNotFound):
			m.j.setRun(nil)
			return v, Retry(fmt.Errorf("%w: %s is gone, or was started anew", errWorkerLost, run.Gateway))
		case ctx.Err() != nil:
			return v, err
		}
		t.ib.b.pause(ctx, retry, err)
	}
}

// giveBack queues a task again without counting the attempt.
func (j *job) giveBack(cause error) {
	now := envelope.At(j.ib.b.now())
	j.mu.Lock()
	err := j.del.Handover(j.ib.b.cfg.Gateway, now)
	j.mu.Unlock()
	if err != nil {
		return
	}
	ev := j.event(EventRetry)
	ev.State, ev.Reason = envelope.Queued, cause.Error()
	j.ib.b.emit(ev)
}

// runOrder is a worker at work: it hands the task to the handler. What follows from the handler's result is
// verdict's to say.
func (b *Bus) runOrder(ctx context.Context, m *Incoming) error {
	var o taskOrder
	if err := json.Unmarshal(m.Envelope().Payload, &o); err != nil {
		return Never(envelope.ClassPoison, fmt.Errorf("task order is not readable: %w", err))
	}
	w := b.workers.current(o.Queue, o.Worker)
	if w == nil {
		m.task = &taskWork{}
		return fmt.Errorf("%w: %s was started anew, or stops", errGivenBack, b.cfg.Gateway)
	}
	task, err := envelope.Decode(o.Task)
	if err != nil {
		return Never(envelope.ClassPoison, fmt.Errorf("the task of the order is not readable: %w", err))
	}
	if task, err = b.load(ctx, task); err != nil {
		return err
	}
	if err := b.inTheClear(&task.Envelope); err != nil {
		return Never(envelope.ClassUnauthorised, err)
	}
	if task.Encrypted() {
		if task, err = openWith(task, o.Key); err != nil {
			return err
		}
		m.key = o.Key
	}
	m.env, m.task = task, &taskWork{agent: w.spec.Agent, attempt: o.Attempt}
	if err := w.handler.Handle(ctx, m); err != nil {
		return err
	}
	return m.conclude(taskVerdict{Outcome: taskDone, Result: m.task.result})
}

// conclude answers the order, whatever became of the lease.
func (m *Incoming) conclude(v taskVerdict) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.replyLocked(mustEncode(v))
}

// verdict makes the failure of a run its answer: whether and where it is tried again is for the queue's owner to
// say, who counts the attempts. What the handler meant to send is not sent.
func (m *Incoming) verdict(err error) error {
	v := taskVerdict{Outcome: taskRetry, Error: envelope.Clip(err.Error())}
	var r *retryAfter
	if errors.As(err, &r) {
		after := envelope.MillisOf(r.after)
		v.RetryAfter = &after
	}
	class, final := finalClass(err)
	switch {
	case errors.Is(err, errGivenBack) || errors.Is(err, ErrHandover) || m.j.ib.work.Err() != nil:
		v.Outcome = taskBack
	case final:
		v.Outcome, v.Class = taskNever, class
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrLeaseLost):
		v.Outcome = taskTimeout
	}
	m.mu.Lock()
	m.out, m.reply = nil, false
	m.mu.Unlock()
	return m.conclude(v)
}

// stopRun ends the run of a task whose result nobody wants.
func (ib *inbox) stopRun(m *Incoming) error {
	var o cancelOrder
	if err := json.Unmarshal(m.Envelope().Payload, &o); err != nil {
		return Never(envelope.ClassPoison, fmt.Errorf("order is not readable: %w", err))
	}
	if j := ib.find(o.ID, m.j); j != nil {
		j.mu.Lock()
		attempt := j.lease
		j.mu.Unlock()
		if attempt != nil {
			attempt.end(errCancelled)
		}
	}
	return nil
}

// find returns the message in memory that is no answer and has an id, but for one.
func (ib *inbox) find(id string, but *job) *job {
	ib.mu.Lock()
	defer ib.mu.Unlock()
	for _, j := range ib.active {
		if j.env.MessageID == id && j.env.InReplyTo == "" && j != but {
			return j
		}
	}
	return nil
}
