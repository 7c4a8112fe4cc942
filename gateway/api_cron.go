package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// CronResponse answers GET /v1/cron.
type CronResponse struct {
	Jobs []CronState `json:"jobs"`
}

// CronState is a job and what is known of it.
type CronState struct {
	CronJob
	// Next is its next moment; none: it is over, or switched off.
	Next    envelope.Time `json:"next_at,omitzero"`
	LastRun *CronRun      `json:"last_run,omitempty"`
}

// CronRunsResponse answers GET /v1/cron/{job}/runs, the newest last.
type CronRunsResponse struct {
	Runs []CronRun `json:"runs"`
}

// cronAnswer is what the scheduler says to an order.
type cronAnswer struct {
	Job   *CronJob `json:"job,omitempty"`
	Error string   `json:"error,omitempty"`
}

// cronReady is the bus, if there is a scheduler.
func (g *Gateway) cronReady() (*bus.Bus, error) {
	if g.cron == nil {
		return nil, &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: "there is no scheduler: set cron.enabled in the configuration of the gateways that may have it"}
	}
	return g.ready()
}

// getCron is GET /v1/cron.
func (g *Gateway) getCron(w http.ResponseWriter, r *http.Request) error {
	b, err := g.cronReady()
	if err != nil {
		return err
	}
	jobs, err := readJobs(b.Room(r.Context(), CronInbox, jobPrefix))
	if err != nil {
		return err
	}
	resp := CronResponse{Jobs: []CronState{}}
	now := time.Now()
	for _, j := range jobs {
		st := CronState{CronJob: j}
		if s, err := j.schedule(); err == nil && j.Enabled {
			if next := s.Next(now); !next.IsZero() {
				st.Next = envelope.At(next)
			}
		}
		runs, err := cronRuns(r.Context(), b, j.ID)
		if err != nil {
			return err
		}
		if len(runs) > 0 {
			st.LastRun = &runs[len(runs)-1]
		}
		resp.Jobs = append(resp.Jobs, st)
	}
	return writeJSON(w, http.StatusOK, resp)
}

func cronRuns(ctx context.Context, b *bus.Bus, id string) ([]CronRun, error) {
	entries, err := b.Room(ctx, CronInbox, runsPrefix+id)
	if err != nil {
		return nil, err
	}
	runs := []CronRun{}
	for _, e := range entries {
		if e.Name == runsPrefix+id {
			_ = json.Unmarshal(e.Value, &runs)
		}
	}
	return runs, nil
}

// getCronRuns is GET /v1/cron/{job}/runs.
func (g *Gateway) getCronRuns(w http.ResponseWriter, r *http.Request) error {
	b, err := g.cronReady()
	if err != nil {
		return err
	}
	jobs, err := readJobs(b.Room(r.Context(), CronInbox, jobPrefix))
	if err != nil {
		return err
	}
	name := r.PathValue("job")
	i := slices.IndexFunc(jobs, func(j CronJob) bool { return j.ID == name || j.Name == name })
	if i < 0 {
		return &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: "there is no job " + clipText(name, 80)}
	}
	runs, err := cronRuns(r.Context(), b, jobs[i].ID)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, CronRunsResponse{runs})
}

// postCron is POST /v1/cron: it adds a job, when the scheduler has it on a majority of the disks. The same id again is the same job.
func (g *Gateway) postCron(w http.ResponseWriter, r *http.Request) error {
	var j CronJob
	if err := decodeBody(r, &j); err != nil {
		return err
	}
	if j.ID == "" {
		j.ID = envelope.NewID()
	}
	if j.Session == "" {
		j.Session = cronIsolated
	}
	j.Skill = "" // the skills' own
	j.Enabled, j.Created = true, time.Now().UTC().Truncate(time.Millisecond)
	switch {
	case !isMessageID(j.ID):
		return badRequest("id", "id is not a lower-case UUID")
	case strings.TrimSpace(j.Name) == "" || len(j.Name) > 80 || strings.ContainsFunc(j.Name, func(c rune) bool { return c < ' ' || c == '/' }):
		return badRequest("name", "name is missing, longer than 80 bytes, or holds / or a control character")
	case !envelope.ValidName(j.Agent):
		return badRequest("agent", "agent %q is not the name of an agent", clipText(j.Agent, 60))
	case strings.TrimSpace(j.Message) == "":
		return badRequest("message", "message is missing: what is said to the agent")
	case len(j.Message) > 16<<10:
		return badRequest("message", "message is %d bytes, at most %d", len(j.Message), 16<<10)
	case j.Session != cronIsolated && j.Session != cronMain:
		return badRequest("session", "session %q is not isolated or main", clipText(j.Session, 40))
	}
	if j.Timeout != "" {
		if d, err := time.ParseDuration(j.Timeout); err != nil || d < time.Second || d > cronLongest {
			return badRequest("timeout", "timeout %q is not a duration of 1s to %s", clipText(j.Timeout, 40), cronLongest)
		}
	}
	if _, err := j.schedule(); err != nil {
		return badRequest("cron", "%v", err)
	}
	return g.orderCron(w, r, cronOrder{What: "add", Job: j})
}

// postCronOrder is POST /v1/cron/{job}/{order}: run, enable, disable; and DELETE /v1/cron/{job}.
func (g *Gateway) postCronOrder(w http.ResponseWriter, r *http.Request) error {
	what := r.PathValue("order")
	if r.Method == http.MethodDelete {
		what = "remove"
	} else if what != "run" && what != "enable" && what != "disable" {
		return badRequest("order", "want run, enable or disable")
	}
	return g.orderCron(w, r, cronOrder{What: what, Job: CronJob{ID: r.PathValue("job")}})
}

// orderCron hands an order to the scheduler, wherever it is, and waits for its word.
func (g *Gateway) orderCron(w http.ResponseWriter, r *http.Request, o cronOrder) error {
	b, err := g.cronReady()
	if err != nil {
		return err
	}
	o.By = "operator"
	if c := callerOf(r); c != nil && c.name != "" {
		o.By = c.name
	}
	ctx, cancel := g.patient(w, r, time.Minute)
	defer cancel()
	id, err := g.accept(ctx, b, bus.Outgoing{
		ID: envelope.NewID(), From: CronInbox, To: envelope.Address{Agent: CronInbox}, Capability: capabilityCronOrder, Payload: mustJSON(o), TTL: time.Minute,
	}, true)
	if err != nil {
		return aboutMessage(err, id)
	}
	tr, err := b.Await(ctx, id, func(t bus.Track) bool { return t.Facts.Replied || t.Facts.Dead })
	switch {
	case err != nil:
		return &APIError{status: http.StatusGatewayTimeout, Code: CodeTimeout, Message: "the scheduler did not answer in time; it may still do it", MessageID: id}
	case tr.Facts.Dead:
		return &APIError{status: http.StatusConflict, Code: CodeConflict, Message: "the order was given up: " + tr.Facts.Reason, MessageID: id}
	}
	var a cronAnswer
	reply, err := b.Resolve(ctx, tr.Reply)
	if err == nil {
		err = json.Unmarshal(reply.Payload, &a)
	}
	switch {
	case err != nil:
		return err
	case a.Error != "":
		return &APIError{status: http.StatusConflict, Code: CodeConflict, Message: a.Error}
	case a.Job == nil:
		return errors.New("the scheduler said nothing")
	}
	return writeJSON(w, http.StatusOK, CronState{CronJob: *a.Job})
}
