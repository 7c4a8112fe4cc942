package gateway

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// DeadLetterQuery selects dead letters; every field narrows. It is the query of GET
// /v1/deadletters (agent, id, class, from, contains, before, after, limit) and part of the bodies
// of redrive and purge.
type DeadLetterQuery struct {
	Agent string `json:"agent,omitempty"`
	// IDs are message ids.
	IDs []string `json:"ids,omitempty"`
	// Class is the cause, as "expired".
	Class string `json:"class,omitempty"`
	// From is the source: gateway, or agent@gateway.
	From string `json:"from,omitempty"`
	// Contains is looked for in the reason.
	Contains string `json:"contains,omitempty"`
	// Before and After bound when it was given up: RFC 3339, or a Go duration ago ("24h").
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Limit is how many at most, oldest first; 0: 1000 in a listing, all in redrive and purge.
	Limit int `json:"limit,omitempty"`
}

// DeadLettersResponse is the answer of GET /v1/deadletters.
type DeadLettersResponse struct {
	DeadLetters []bus.DeadLetter `json:"dead_letters"`
}

// DeadLetterOrder is the body of POST /v1/deadletters/redrive and .../purge. One without any field of
// DeadLetterQuery is refused: say "all".
type DeadLetterOrder struct {
	DeadLetterQuery
	// All says that everything is meant.
	All bool `json:"all,omitempty"`
	// TTL (redrive) gives them a new lifetime from now on.
	TTL string `json:"ttl,omitempty"`
	// DryRun only says what would happen.
	DryRun bool `json:"dry_run,omitempty"`
	// By is who wants it; it stays in the record. Empty: DefaultFrom.
	By string `json:"by,omitempty"`
}

// DeadLetterResults is what became of each dead letter of an order.
type DeadLetterResults struct {
	DryRun  bool                   `json:"dry_run,omitempty"`
	Done    int                    `json:"done"`
	Left    int                    `json:"left"`
	Results []bus.DeadLetterResult `json:"results"`
}

const listedDeadLetters = 1000

func (q DeadLetterQuery) filter(now time.Time) (bus.DeadLetterFilter, error) {
	f := bus.DeadLetterFilter{Agent: q.Agent, IDs: q.IDs, Class: envelope.Class(q.Class), From: q.From, Contains: q.Contains, Limit: q.Limit}
	if q.Agent != "" && !envelope.ValidName(q.Agent) {
		return f, badRequest("agent", "an agent's id is made of a-z, 0-9 and -")
	}
	if f.Class != "" && !slices.Contains(envelope.Classes, f.Class) {
		words := make([]string, len(envelope.Classes))
		for i, c := range envelope.Classes {
			words[i] = string(c)
		}
		return f, badRequest("class", "class %q is not one of %s", clipText(q.Class, 40), strings.Join(words, ", "))
	}
	for _, id := range q.IDs {
		if _, err := messageIDParam("ids", id, false); err != nil {
			return f, err
		}
	}
	for _, t := range []struct {
		name, value string
		into        *time.Time
	}{{"before", q.Before, &f.Before}, {"after", q.After, &f.After}} {
		if t.value == "" {
			continue
		}
		if d, err := time.ParseDuration(t.value); err == nil && d >= 0 {
			*t.into = now.Add(-d)
		} else if at, err := time.Parse(time.RFC3339, t.value); err == nil {
			*t.into = at
		} else {
			return f, badRequest(t.name, "%s %q is neither RFC 3339 nor a duration ago, such as \"24h\"", t.name, clipText(t.value, 40))
		}
	}
	if q.Limit < 0 {
		return f, badRequest("limit", "limit is %d, want 0 or more", q.Limit)
	}
	return f, nil
}

func queryOf(v url.Values) DeadLetterQuery {
	return DeadLetterQuery{Agent: v.Get("agent"), IDs: v["id"], Class: v.Get("class"), From: v.Get("from"), Contains: v.Get("contains"), Before: v.Get("before"), After: v.Get("after")}
}

// getDeadLetters is GET /v1/deadletters.
func (g *Gateway) getDeadLetters(w http.ResponseWriter, r *http.Request) error {
	limit, err := intParam(r, "limit", listedDeadLetters, 1, listedDeadLetters)
	if err != nil {
		return err
	}
	f, err := queryOf(r.URL.Query()).filter(time.Now())
	if err != nil {
		return err
	}
	f.Limit = limit
	b, err := g.ready()
	if err != nil {
		return err
	}
	list, err := b.DeadLetters(r.Context(), f)
	if err != nil {
		return err
	}
	if c := callerOf(r); c != nil && c.agent != "" { // what came to that agent, and what is from it
		list = slices.DeleteFunc(list, func(d bus.DeadLetter) bool {
			return d.Agent != c.agent && (d.Envelope == nil || d.Envelope.SourceAgent != c.agent)
		})
	}
	return writeJSON(w, http.StatusOK, DeadLettersResponse{list})
}

// postDeadLetters is POST /v1/deadletters/redrive and /purge.
func (g *Gateway) postDeadLetters(do func(context.Context, *bus.Bus, bus.DeadLetterFilter, DeadLetterOrder, time.Duration) ([]bus.DeadLetterResult, error)) endpoint {
	return func(w http.ResponseWriter, r *http.Request) error {
		var o DeadLetterOrder
		if err := decodeBody(r, &o); err != nil {
			return err
		}
		f, err := o.filter(time.Now())
		if err != nil {
			return err
		}
		if f.Agent == "" && len(f.IDs) == 0 && f.Class == "" && f.From == "" && f.Contains == "" && f.Before.IsZero() && f.After.IsZero() && f.Limit == 0 && !o.All {
			return badRequest("all", "nothing narrows this: say which ones (agent, ids, class, from, contains, before, after), or all")
		}
		var ttl time.Duration
		if o.TTL != "" {
			if ttl, err = time.ParseDuration(o.TTL); err != nil || ttl < time.Millisecond || ttl > envelope.MaxTTL {
				return badRequest("ttl", "ttl %q is not a duration of 1ms to %s, such as \"10m\"", clipText(o.TTL, 40), envelope.MaxTTL)
			}
		}
		if o.By == "" {
			o.By = DefaultFrom
		}
		b, err := g.ready()
		if err != nil {
			return err
		}
		ctx, cancel := g.patient(w, r, DefaultWait)
		defer cancel()
		results, err := do(ctx, b, f, o, ttl)
		if err != nil {
			return err
		}
		res := DeadLetterResults{DryRun: o.DryRun, Results: results}
		for _, x := range results {
			if x.Done {
				res.Done++
			} else {
				res.Left++
			}
		}
		return writeJSON(w, http.StatusOK, res)
	}
}

func redrive(ctx context.Context, b *bus.Bus, f bus.DeadLetterFilter, o DeadLetterOrder, ttl time.Duration) ([]bus.DeadLetterResult, error) {
	return b.Redrive(ctx, f, bus.RedriveOptions{By: o.By, TTL: ttl, DryRun: o.DryRun})
}

func purge(ctx context.Context, b *bus.Bus, f bus.DeadLetterFilter, o DeadLetterOrder, ttl time.Duration) ([]bus.DeadLetterResult, error) {
	if ttl != 0 {
		return nil, badRequest("ttl", "ttl is for redrive: what is purged has no life left")
	}
	return b.Purge(ctx, f, o.By, o.DryRun)
}
