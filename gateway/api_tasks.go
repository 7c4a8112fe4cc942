package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// TaskStates are what a task that is not finished can be.
var TaskStates = []string{bus.TaskWaiting, bus.TaskDelayed, bus.TaskRunning, bus.TaskRetrying}

const (
	// listedTasks is how many tasks an answer has when nobody says how many; mostTasks is the most.
	listedTasks, mostTasks = 1000, 10_000
	// longestBy bounds the name of who wants something, in bytes.
	longestBy = 128
)

// task is what the request says of the task; nil: nothing. A delay counts from now.
func (req *SendRequest) task(now time.Time) (*envelope.Task, error) {
	t := envelope.Task{Priority: req.Priority, UniqueKey: req.UniqueKey}
	if p := req.Priority; p != nil && (*p < 0 || *p > envelope.MaxPriority) {
		return nil, badRequest("priority", "priority is %d, want 0 to %d", *p, envelope.MaxPriority)
	}
	var at time.Time
	switch {
	case req.Delay != "" && req.NotBefore != "":
		return nil, badRequest("not_before", "delay and not_before are both given: send one of them")
	case req.Delay != "":
		d, err := time.ParseDuration(req.Delay)
		if err != nil || d < 0 || d > envelope.MaxDelay {
			return nil, badRequest("delay", "delay %q is not a duration of 0 to %s, such as \"10m\"", clipText(req.Delay, 40), envelope.MaxDelay)
		}
		if d > 0 {
			at = now.Add(d)
		}
	case req.NotBefore != "":
		var err error
		if at, err = time.Parse(time.RFC3339, req.NotBefore); err != nil {
			return nil, badRequest("not_before", "not_before %q is no RFC 3339 time, such as %q", clipText(req.NotBefore, 40), "2026-01-31T06:00:00Z")
		}
		if at.Sub(now) > envelope.MaxDelay {
			return nil, badRequest("not_before", "not_before is more than %s ahead", envelope.MaxDelay)
		}
	}
	if !at.IsZero() {
		e := envelope.At(at)
		t.NotBefore = &e
	}
	if req.UniqueFor != "" {
		d, err := time.ParseDuration(req.UniqueFor)
		switch {
		case err != nil || d < time.Millisecond || d > envelope.MaxTTL:
			return nil, badRequest("unique_for", "unique_for %q is not a duration of 1ms to %s, such as \"24h\"", clipText(req.UniqueFor, 40), envelope.MaxTTL)
		case req.UniqueKey == "":
			return nil, badRequest("unique_for", "unique_for without unique_key: say what there shall be one of")
		}
		t.UniqueFor = envelope.MillisOf(d)
	}
	if t == (envelope.Task{}) {
		return nil, nil
	}
	return &t, nil
}

// getQueues is GET /v1/queues.
func (g *Gateway) getQueues(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	list, err := b.Queues(r.Context())
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].Workers == nil {
			list[i].Workers = []bus.WorkerInfo{}
		}
	}
	return writeJSON(w, http.StatusOK, QueuesResponse{append([]bus.QueueInfo{}, list...)})
}

func queueParam(r *http.Request) (string, error) {
	queue := r.PathValue("queue")
	if !envelope.ValidName(queue) {
		return "", badRequest("queue", "a queue's id is made of a-z, 0-9 and -")
	}
	return queue, nil
}

// getTasks is GET /v1/queues/{queue}/tasks.
func (g *Gateway) getTasks(w http.ResponseWriter, r *http.Request) error {
	queue, err := queueParam(r)
	if err != nil {
		return err
	}
	limit, err := intParam(r, "limit", listedTasks, 1, mostTasks)
	if err != nil {
		return err
	}
	state := r.URL.Query().Get("state")
	if state != "" && !slices.Contains(TaskStates, state) {
		return badRequest("state", "state %q is not one of %s", clipText(state, 40), strings.Join(TaskStates, ", "))
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	tasks, err := b.Tasks(r.Context(), queue)
	if err != nil && !noTrace(err) {
		return err
	}
	if len(tasks) == 0 {
		if err := knownQueue(r, b, queue); err != nil {
			return err
		}
	}
	res := TasksResponse{Tasks: []bus.TaskInfo{}}
	for _, t := range tasks {
		if state != "" && t.State != state {
			continue
		}
		if res.Total++; res.Total <= limit {
			res.Tasks = append(res.Tasks, t)
		}
	}
	return writeJSON(w, http.StatusOK, res)
}

func noTrace(err error) bool {
	return errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrUnknownAgent)
}

// knownQueue tells an empty queue from a mistyped one.
func knownQueue(r *http.Request, b *bus.Bus, queue string) error {
	queues, err := b.Queues(r.Context())
	if err != nil {
		return err
	}
	if slices.ContainsFunc(queues, func(q bus.QueueInfo) bool { return q.Queue == queue }) {
		return nil
	}
	return &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: "there is no queue " + queue + ": no gateway has ever kept it (mesh.queues)"}
}

// postCancel is POST /v1/queues/{queue}/tasks/{id}/cancel.
func (g *Gateway) postCancel(w http.ResponseWriter, r *http.Request) error {
	queue, err := queueParam(r)
	if err != nil {
		return err
	}
	id, err := messageIDParam("id", r.PathValue("id"), false)
	if err != nil {
		return err
	}
	o, wait, err := cancelOrder(r)
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	ctx, cancel := g.patient(w, r, wait)
	defer cancel()
	switch err := b.CancelTask(ctx, queue, id, o.By); {
	case err == nil:
		return writeJSON(w, http.StatusOK, TaskCancelled{Queue: queue, MessageID: id, By: o.By})
	case r.Context().Err() != nil:
		return r.Context().Err()
	case noTrace(err):
		if err := knownQueue(r, b, queue); err != nil {
			return err
		}
		return &APIError{status: http.StatusNotFound, Code: CodeNotFound, MessageID: id,
			Message: fmt.Sprintf("queue %s has no unfinished task %s, or its owner has not read it yet", queue, id)}
	case ctx.Err() != nil:
		return &APIError{status: http.StatusGatewayTimeout, Code: CodeTimeout, MessageID: id, Message: err.Error()}
	default:
		return aboutMessage(err, id)
	}
}

// cancelOrder reads a TaskOrder, and how long to wait.
func cancelOrder(r *http.Request) (o TaskOrder, wait time.Duration, err error) {
	if err := decodeBody(r, &o); err != nil {
		return o, 0, err
	}
	w, err := parseWaiting(WaitAcked, o.Timeout)
	if err != nil {
		return o, 0, err
	}
	if o.By == "" {
		o.By = DefaultFrom
	}
	if len(o.By) > longestBy || strings.ContainsFunc(o.By, unicode.IsControl) {
		return o, 0, badRequest("by", "by %q is more than %d bytes or holds control characters", clipText(o.By, 40), longestBy)
	}
	return o, w.timeout, nil
}

// AskedBy is the correlation id of a message by which a token shows that it sent it: with that it may cancel the message without the role operate.
func AskedBy(token, id string) string { return envelope.DerivedID("asked-by/"+token, id) }

// mayCancel refuses who has not the role to take away from others, unless it is his own.
func mayCancel(r *http.Request, b *bus.Bus, id string) error {
	c := callerOf(r)
	if c == nil || c.role >= roleOperate {
		return nil
	}
	st, err := b.Lookup(r.Context(), id)
	switch {
	case err != nil:
		return aboutMessage(err, id)
	case st.Envelope == nil || st.Envelope.CorrelationID != AskedBy(c.name, id):
		return &APIError{status: http.StatusForbidden, Code: CodeRole, MessageID: id,
			Message: fmt.Sprintf("this needs the role %s, and the token %s has the role %s: it gives up what it asked itself by A2A, and no more", roleOperate, c.name, c.role)}
	}
	return nil
}

// postMessageCancel is POST /v1/messages/{id}/cancel.
func (g *Gateway) postMessageCancel(w http.ResponseWriter, r *http.Request) error {
	id, err := messageIDParam("id", r.PathValue("id"), false)
	if err != nil {
		return err
	}
	o, wait, err := cancelOrder(r)
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	if err := mayCancel(r, b, id); err != nil {
		return err
	}
	ctx, cancel := g.patient(w, r, wait)
	defer cancel()
	class, err := b.CancelMessage(ctx, id, o.By)
	switch {
	case err == nil:
		return writeJSON(w, http.StatusOK, MessageCancelled{MessageID: id, Class: class, By: o.By})
	case r.Context().Err() != nil:
		return r.Context().Err()
	case ctx.Err() != nil:
		return &APIError{status: http.StatusGatewayTimeout, Code: CodeTimeout, MessageID: id, Message: err.Error()}
	}
	return aboutMessage(err, id)
}
