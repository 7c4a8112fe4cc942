package infra

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
)

// nomadPart is a configured Nomad client.
type nomadPart struct {
	client   *nomadapi.Client
	address  string // without credentials
	explicit bool   // somebody said that Nomad is there
	clean    *scrubber
}

// newNomadPart makes the client; fromEnv says that the environment names an
// address.
func newNomadPart(given *nomadapi.Config, fromEnv bool, maxAnswer int) (*nomadPart, error) {
	p := &nomadPart{explicit: fromEnv}
	env := nomadapi.DefaultConfig()
	// Field by field: a Config that a client was made of remembers its address.
	cfg := &nomadapi.Config{}
	if given == nil {
		given = env
	} else {
		p.explicit = fromEnv || given.Address != ""
	}
	cfg.Address, cfg.Region, cfg.SecretID = given.Address, given.Region, given.SecretID
	cfg.HttpAuth, cfg.TLSConfig, cfg.Headers = given.HttpAuth, given.TLSConfig, given.Headers
	if cfg.Address == "" {
		cfg.Address = env.Address
	}

	address, secrets := userinfo(cfg.Address)
	secrets = append(secrets, cfg.SecretID)
	if a := cfg.HttpAuth; a != nil {
		secrets = append(secrets, a.Password, a.Username+":"+a.Password)
	}
	for _, values := range cfg.Headers {
		secrets = append(secrets, values...)
	}
	p.address, p.clean = address, newScrubber(secrets...)

	if !strings.HasPrefix(cfg.Address, "unix://") { // the library dials sockets with a client of its own
		transport := newTransport()
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12} // ConfigureTLS fills it
		cfg.HttpClient = &http.Client{Transport: transport}
		if err := nomadapi.ConfigureTLS(cfg.HttpClient, cfg.TLSConfig); err != nil {
			return nil, scrubbedError(err, p.clean)
		}
		guard(cfg.HttpClient, maxAnswer)
	}
	client, err := nomadapi.NewClient(cfg)
	if err != nil {
		return nil, scrubbedError(err, p.clean)
	}
	p.client = client
	return p, nil
}

// The parts of Nomad's answers that are used. Values, not pointers: an answer
// full of nulls then does no harm.
type (
	nomadNode struct {
		ID, Name, Status, SchedulingEligibility string
		Drain                                   bool
	}
	nomadJob struct {
		ID, Namespace, Type, Status string
		Stop                        bool
		JobModifyIndex              uint64
		SubmitTime                  int64
		JobSummary                  struct {
			Summary map[string]struct{ Queued, Running int }
		}
	}
	nomadAlloc struct {
		ID, Name, Namespace, NodeName, JobID, JobType string
		DesiredStatus, ClientStatus, NextAllocation   string
		CreateIndex                                   uint64
	}
)

func (c *Checker) checkNomad(ctx context.Context) NomadReport {
	start := c.now()
	r := NomadReport{Status: StatusAbsent, Errors: []string{}}
	r.fill(newScrubber(), nomadAnswers{}, start, c.opts)
	if c.nomad == nil {
		return r
	}
	ctx, cancel := c.partContext(ctx)
	defer cancel()
	defer c.nomad.client.Close() // a socket's idle connections
	r.Address = c.nomad.address
	get := func(ctx context.Context, path string, out any, params map[string]string) error {
		q := (&nomadapi.QueryOptions{Params: params}).WithContext(ctx)
		_, err := c.nomad.client.Raw().Query(path, out, q)
		return err
	}
	everywhere := map[string]string{"namespace": "*"}

	var a nomadAnswers
	noLeader := false
	q := newQuestions(ctx)
	q.ask("leader", func(ctx context.Context) error {
		// Stale: the server that is asked says what it knows. The usual way it would
		// hold the question for 5 s, longer than we wait, when there is no leader.
		err := get(ctx, "/v1/status/leader", &a.leader, map[string]string{"stale": ""})
		noLeader = err == nil && a.leader == ""
		return err
	})
	q.ask("namespaces", func(ctx context.Context) error {
		// Lists are filtered in silence for a token that sees no namespace; the
		// namespace "default" always exists.
		var namespaces []struct{ Name string }
		err := get(ctx, "/v1/namespaces", &namespaces, nil)
		if err == nil && len(namespaces) == 0 {
			err = errFiltered
		}
		return err
	})
	q.ask("nodes", func(ctx context.Context) error {
		return get(ctx, "/v1/nodes", &a.nodes, nil)
	})
	q.ask("jobs", func(ctx context.Context) error {
		return get(ctx, "/v1/jobs", &a.jobs, everywhere)
	})
	q.ask("allocations", func(ctx context.Context) error {
		return get(ctx, "/v1/allocations", &a.allocs, map[string]string{
			"namespace":   "*",
			"task_states": "false",
			"filter":      `(ClientStatus == "failed" or ClientStatus == "lost") and DesiredStatus == "run"`,
		})
	})
	o := q.conclude("nomad", c.nomad.explicit, c.nomad.clean, func() ([]string, int) {
		r.fill(c.nomad.clean, a, start, c.opts)
		var problems []string
		if n := r.DownNodes.Count; n > 0 {
			problems = append(problems, fmt.Sprintf("%d down nodes", n))
		}
		if n := r.DeadJobs.Count; n > 0 {
			problems = append(problems, fmt.Sprintf("%d dead jobs", n))
		}
		if n := r.PendingJobs.Count; n > 0 {
			problems = append(problems, fmt.Sprintf("%d pending jobs", n))
		}
		if noLeader {
			problems = append(problems, "nomad has no leader")
		}
		return problems, r.FailedAllocations.Count
	})
	r.Status, r.Errors, r.problems = o.status, o.errors, o.problems
	r.TookMS = c.now().Sub(start).Milliseconds()
	return r
}

// nomadAnswers are the answers of one check; what was not answered is empty.
type nomadAnswers struct {
	leader string
	nodes  []nomadNode
	jobs   []nomadJob
	allocs []nomadAlloc
}

// fill sorts the answers into the lists of the report.
func (r *NomadReport) fill(clean *scrubber, a nomadAnswers, now time.Time, opts Options) {
	r.Leader = clean.name(a.leader)
	var down, ineligible []string
	r.Nodes, r.ReadyNodes = len(a.nodes), 0
	for _, n := range a.nodes {
		switch n.Status {
		case "down", "disconnected":
			down = append(down, fmt.Sprintf("%s (%s, %s)", n.Name, short(n.ID), n.Status))
		case "ready":
			r.ReadyNodes++
			if n.Drain {
				ineligible = append(ineligible, n.Name+" (draining)")
			} else if n.SchedulingEligibility == "ineligible" {
				ineligible = append(ineligible, n.Name)
			}
		}
	}

	var dead, pending []string
	jobs := map[string]nomadJob{}
	r.Jobs, r.RunningAllocations = 0, 0
	for _, j := range a.jobs {
		name := inNamespace(j.Namespace, j.ID)
		jobs[name] = j
		queued := 0
		for _, g := range j.JobSummary.Summary {
			queued += g.Queued
			r.RunningAllocations += g.Running
		}
		if j.Stop {
			continue
		}
		r.Jobs++
		old := now.Sub(time.Unix(0, j.SubmitTime)) >= opts.PendingAfter
		switch {
		case j.Status == "dead":
			if j.Type == "service" || j.Type == "system" {
				dead = append(dead, name)
			}
		case (j.Status == "pending" || queued > 0) && old:
			text := name
			if queued > 0 {
				text += fmt.Sprintf(" (%d without a place)", queued)
			}
			pending = append(pending, text)
		}
	}

	var failed []string
	for _, al := range a.allocs {
		// An old server may ignore the filter.
		if al.DesiredStatus != "run" || (al.ClientStatus != "failed" && al.ClientStatus != "lost") || al.NextAllocation != "" {
			continue
		}
		if j, ok := jobs[inNamespace(al.Namespace, al.JobID)]; ok {
			batch := al.JobType == "batch" || al.JobType == "sysbatch"
			if j.Stop || (batch && al.CreateIndex < j.JobModifyIndex) {
				continue // nobody wants it any more; Nomad keeps the record
			}
		}
		text := fmt.Sprintf("%s (%s on %s", inNamespace(al.Namespace, al.Name), short(al.ID), al.NodeName)
		if al.ClientStatus != "failed" {
			text += ", " + al.ClientStatus
		}
		failed = append(failed, text+")")
	}
	r.DownNodes = clean.list(down, opts.MaxNames)
	r.IneligibleNodes = clean.list(ineligible, opts.MaxNames)
	r.DeadJobs = clean.list(dead, opts.MaxNames)
	r.PendingJobs = clean.list(pending, opts.MaxNames)
	r.FailedAllocations = clean.list(failed, opts.MaxNames)
}

// inNamespace names a thing as people do: the default namespace is not said.
func inNamespace(namespace, name string) string {
	if namespace == "" || namespace == "default" {
		return name
	}
	return namespace + "/" + name
}

// short is an id as Nomad's own CLI shows it.
func short(id string) string { return id[:min(len(id), 8)] }
