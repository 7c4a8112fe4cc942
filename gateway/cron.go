package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// CronInbox is the inbox of the scheduler: a duty that one gateway has at a time.
const CronInbox = "cron"

// What the scheduler's inbox takes, from itself alone.
const (
	capabilityCronOrder = "cron.order" // a job is added, removed, switched on or off, or is to run now
	capabilityCronRun   = "cron.run"   // a job is due
)

const (
	jobPrefix, firedPrefix, runsPrefix = "job/", "fired/", "runs/"
	// maxJobs bounds the jobs, and keptRuns the runs that are remembered of each.
	maxJobs, keptRuns = 500, 20
	// cronKeyLife is how long a moment of a job stays known after its run.
	cronKeyLife = 48 * time.Hour
	// maxRunText bounds what is remembered of an answer, in bytes.
	maxRunText = 2 << 10
)

// CronRun is one run of a job.
type CronRun struct {
	Scheduled envelope.Time `json:"scheduled_at"`
	Started   envelope.Time `json:"started_at"`
	Ended     envelope.Time `json:"ended_at"`
	Gateway   string        `json:"gateway"`
	// By is who wanted it, when it was not the clock.
	By string `json:"by,omitempty"`
	// OK: the agent answered. Text is its answer, or why there is none.
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	// Skipped counts the moments before it that were missed and not made up for.
	Skipped int `json:"skipped,omitempty"`
}

// cronFired is what the scheduler has dealt with of a job.
type cronFired struct {
	At      time.Time `json:"at"`
	Skipped int       `json:"skipped,omitempty"` // since the last run
}

// cronOrder is the payload of capabilityCronOrder.
type cronOrder struct {
	What string  `json:"what"` // add, remove, enable, disable, run
	Job  CronJob `json:"job"`
	By   string  `json:"by,omitempty"`
}

// cronDue is the payload of capabilityCronRun.
type cronDue struct {
	Job     CronJob       `json:"job"`
	At      envelope.Time `json:"at"`
	By      string        `json:"by,omitempty"`
	Skipped int           `json:"skipped,omitempty"`
}

// scheduler is the handler of the inbox cron. A moment of a job becomes a message of the scheduler to itself, whose unique key is made of job and
// moment: so it is handled once, whichever gateways came to send it, and its run is an attempt like any other, which asks the agent once.
type scheduler struct {
	g   *Gateway
	log hclog.Logger

	mu sync.Mutex
	// kick is closed and replaced when a job changes.
	kick chan struct{}
}

func newScheduler(g *Gateway) *scheduler {
	return &scheduler{g: g, log: g.log.Named(CronInbox), kick: make(chan struct{})}
}

// serveCron offers the scheduler to the bus.
func (g *Gateway) serveCron(b *bus.Bus) error {
	if g.cron == nil {
		return nil
	}
	return b.Serve(bus.AgentSpec{
		ID: CronInbox, Name: "Cron", Description: "Scheduler of the mesh's jobs.", Spread: true, MaxConcurrent: g.start.Cron.MaxConcurrentRuns,
		AckTimeout: longestAck, OneOrder: true, Unique: true,
	}, g.cron)
}

func (s *scheduler) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.kick)
	s.kick = make(chan struct{})
}

// Reside implements bus.Resident: it sends itself a message at each moment that is due.
func (s *scheduler) Reside(ctx context.Context, t *bus.Term) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		kick := s.kick
		s.mu.Unlock()
		next, err := s.look(ctx, t, time.Now())
		if err != nil {
			return err
		}
		wait := time.Minute // a clock that was set is noticed
		if !next.IsZero() {
			wait = min(wait, max(0, time.Until(next)))
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-kick:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// look deals with everything that is due, and says when the next job is.
func (s *scheduler) look(ctx context.Context, t *bus.Term, now time.Time) (next time.Time, err error) {
	jobs, err := readJobs(t.List(ctx, jobPrefix))
	if err != nil {
		return next, err
	}
	fired, err := t.List(ctx, firedPrefix)
	if err != nil {
		return next, err
	}
	dealt := map[string]cronFired{}
	for _, e := range fired {
		var f cronFired
		if json.Unmarshal(e.Value, &f) == nil {
			dealt[strings.TrimPrefix(e.Name, firedPrefix)] = f
		}
	}
	for _, j := range jobs {
		f, known := dealt[j.ID]
		delete(dealt, j.ID)
		sched, err := j.schedule()
		if err != nil || !j.Enabled {
			continue // an order has refused the one; of the other nothing is missed
		}
		if !known {
			f.At = j.Created
		}
		moment, skipped, then := due(sched, f.At, now)
		if !then.IsZero() && (next.IsZero() || then.Before(next)) {
			next = then
		}
		if moment.IsZero() && skipped == 0 {
			continue
		}
		f.Skipped += skipped
		if !moment.IsZero() {
			if err := s.send(ctx, t, cronDue{Job: j, At: envelope.At(moment), Skipped: f.Skipped}); err != nil {
				return next, err
			}
			f.At, f.Skipped = moment, 0
		} else {
			f.At = now
		}
		if err := t.Write(ctx, bus.RoomEntry{Name: firedPrefix + j.ID, Value: mustJSON(f)}); err != nil {
			return next, err // sent again by whoever comes next, and handled once
		}
	}
	for id := range dealt { // of jobs that are gone
		if err := t.Write(ctx, bus.RoomEntry{Name: firedPrefix + id}, bus.RoomEntry{Name: runsPrefix + id}); err != nil {
			return next, err
		}
	}
	return next, nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structures
	}
	return b
}

func (s *scheduler) send(ctx context.Context, t *bus.Term, d cronDue) error {
	_, err := t.Send(ctx, s.outgoing(d))
	return err
}

// outgoing is the message that a moment becomes. Runs of one job are one conversation: they come one after the other.
func (s *scheduler) outgoing(d cronDue) bus.Outgoing {
	key := fmt.Sprintf("%s/%d/%s", d.Job.ID, d.At.UnixMilli(), d.By)
	return bus.Outgoing{
		ID: envelope.NewID(), From: CronInbox, To: envelope.Address{Agent: CronInbox}, Capability: capabilityCronRun, Payload: mustJSON(d),
		TTL: cronLongest, ConversationID: "job-" + d.Job.ID,
		Task: &envelope.Task{UniqueKey: envelope.DerivedID(CronInbox, key), UniqueFor: envelope.MillisOf(cronKeyLife)},
	}
}

// Handle implements bus.Handler.
func (s *scheduler) Handle(ctx context.Context, m *bus.Incoming) error {
	e := m.Envelope()
	if e.SourceAgent == CronInbox {
		switch e.Capability {
		case capabilityCronOrder:
			return s.order(ctx, m)
		case capabilityCronRun:
			return s.run(ctx, m)
		}
	}
	return bus.Never(envelope.ClassUndeliverable, errors.New("the scheduler takes nothing: gatemesh cron add"))
}

// order changes the jobs, in the transaction that acks it. What is wrong with it is its answer.
func (s *scheduler) order(ctx context.Context, m *bus.Incoming) error {
	var o cronOrder
	if err := json.Unmarshal(m.Envelope().Payload, &o); err != nil {
		return bus.Never(envelope.ClassPoison, err)
	}
	jobs, err := readJobs(m.Term().List(ctx, jobPrefix))
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return m.Reply(mustJSON(cronAnswer{Error: fmt.Sprintf(format, args...)}))
	}
	i := slices.IndexFunc(jobs, func(j CronJob) bool { return j.ID == o.Job.ID || o.What != "add" && j.Name == o.Job.ID })
	if o.What == "add" {
		switch {
		case i >= 0: // asked before
			return m.Reply(mustJSON(cronAnswer{Job: &jobs[i]}))
		case slices.ContainsFunc(jobs, func(j CronJob) bool { return j.Name == o.Job.Name }):
			return refuse("there is a job %q already", o.Job.Name)
		case len(jobs) >= maxJobs:
			return refuse("there are %d jobs, as many as there may be", len(jobs))
		}
		if err := m.Keep(bus.RoomEntry{Name: jobPrefix + o.Job.ID, Value: mustJSON(o.Job)}); err != nil {
			return err
		}
		defer s.soon()
		return m.Reply(mustJSON(cronAnswer{Job: &o.Job}))
	}
	if i < 0 {
		return refuse("there is no job %q", clipText(o.Job.ID, 80))
	}
	job := jobs[i]
	entry := bus.RoomEntry{Name: jobPrefix + job.ID}
	switch o.What {
	case "remove":
	case "enable", "disable":
		job.Enabled = o.What == "enable"
		if job.Enabled {
			job.Created = m.Envelope().CreatedAt.Time // what was missed meanwhile is not made up for
			if err := m.Keep(bus.RoomEntry{Name: firedPrefix + job.ID, Value: mustJSON(cronFired{At: job.Created})}); err != nil {
				return err
			}
		}
		entry.Value = mustJSON(job)
	case "run":
		// By the term, not by the message: that would be a loop. Its key makes one run of an order that is handled again.
		if err := s.send(ctx, m.Term(), cronDue{Job: job, At: m.Envelope().CreatedAt, By: o.By}); err != nil {
			return err
		}
		return m.Reply(mustJSON(cronAnswer{Job: &job}))
	default:
		return refuse("%q is no order", o.What)
	}
	if err := m.Keep(entry); err != nil {
		return err
	}
	defer s.soon()
	return m.Reply(mustJSON(cronAnswer{Job: &job}))
}

// soon has the schedule looked at when the order that changed it is acked, which is a moment after its handler.
func (s *scheduler) soon() {
	s.g.run(func() {
		for range 3 { // it is only a wake-up: a look in between sees the old jobs
			if sleep(s.g.life, 100*time.Millisecond) != nil {
				return
			}
			s.changed()
		}
	})
}

// run asks the agent, once, and remembers what came of it.
func (s *scheduler) run(ctx context.Context, m *bus.Incoming) error {
	var d cronDue
	if err := json.Unmarshal(m.Envelope().Payload, &d); err != nil {
		return bus.Never(envelope.ClassPoison, err)
	}
	jobs, err := readJobs(m.Term().List(ctx, jobPrefix))
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(jobs, func(j CronJob) bool { return j.ID == d.Job.ID && (j.Enabled || d.By != "") }) {
		return nil // it was removed or switched off after its moment
	}
	timeout, err := time.ParseDuration(d.Job.Timeout)
	if err != nil || timeout <= 0 {
		timeout = cronTimeout
	}
	run := CronRun{Scheduled: d.At, Started: envelope.At(time.Now()), Gateway: m.Gateway(), By: d.By, Skipped: d.Skipped}
	conversation := cronMain
	if d.Job.Session != cronMain {
		conversation = fmt.Sprintf("%s%s-%d", agent.RunPrefix, d.Job.ID, d.At.UnixMilli())
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := m.Ask(bounded, bus.Outgoing{To: envelope.Address{Agent: d.Job.Agent}, Payload: envelope.TextPayload(d.Job.Message), TTL: timeout, ConversationID: conversation})
	var dead *bus.DeadLetterError
	var late *bus.NoAnswerError
	switch {
	case err == nil:
		run.OK, run.Text = true, clipText(agent.Text(answer.Payload), maxRunText)
	case errors.As(err, &dead), errors.Is(err, bus.ErrUnknownAgent), errors.As(err, &late) && ctx.Err() == nil:
		run.Text = clipText(err.Error(), maxRunText)
		s.log.Warn("a job got no answer", "job", d.Job.Name, "agent", d.Job.Agent, "error", err)
	default:
		return err // this gateway's trouble: whoever handles it next goes on
	}
	run.Ended = envelope.At(time.Now())
	entry, err := m.Term().Get(ctx, runsPrefix+d.Job.ID)
	if err != nil {
		return err
	}
	var runs []CronRun
	if entry != nil {
		_ = json.Unmarshal(entry.Value, &runs)
	}
	runs = append(runs, run)
	return m.Keep(bus.RoomEntry{Name: runsPrefix + d.Job.ID, Value: mustJSON(runs[max(0, len(runs)-keptRuns):])})
}

// readJobs reads what a list of the room has; what is no job is left out.
func readJobs(entries []bus.RoomEntry, err error) ([]CronJob, error) {
	if err != nil {
		return nil, err
	}
	jobs := make([]CronJob, 0, len(entries))
	for _, e := range entries {
		var j CronJob
		if json.Unmarshal(e.Value, &j) == nil && jobPrefix+j.ID == e.Name {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b CronJob) int { return strings.Compare(a.Name, b.Name) })
	return jobs, nil
}
