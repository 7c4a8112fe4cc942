package gateway

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// CronJob is one job: what is said to which agent, and when. One of Cron, Every and At says when.
type CronJob struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Cron is five fields as cron has them (minute first, day of the week last), or @daily and the like, in the time zone TZ.
	Cron string `json:"cron,omitempty"`
	// TZ is a name as Europe/Berlin; empty: UTC.
	TZ string `json:"tz,omitempty"`
	// Every is a duration of at least a second, counted from when the job was added.
	Every string `json:"every,omitempty"`
	// At is one moment (RFC 3339).
	At      string `json:"at,omitempty"`
	Agent   string `json:"agent"`
	Message string `json:"message"`
	// Session is isolated (each run is a conversation of its own) or main (all runs are in the agent's conversation main).
	Session string `json:"session"`
	Enabled bool   `json:"enabled"`
	// Timeout is how long the agent may take; empty: 10m.
	Timeout string `json:"timeout,omitempty"`
	// Skill is the agent's skill whose schedule it is; whoever changes it changes the skill's file.
	Skill   string    `json:"skill,omitempty"`
	Created time.Time `json:"created_at"`
}

// Kinds of a job's session, as OpenClaw's.
const (
	cronIsolated = "isolated"
	cronMain     = "main"
)

const (
	// cronGrace is how late a missed moment is still made up for.
	cronGrace = time.Hour
	// cronTimeout is how long an agent may take, and cronLongest the most that a job may give it.
	cronTimeout, cronLongest = 10 * time.Minute, 24 * time.Hour
	// maxMissed bounds how many missed moments are counted one by one.
	maxMissed = 10_000
)

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// schedule says when a job is due. Its moments do not depend on who computes them: two gateways come to the same.
func (j *CronJob) schedule() (cron.Schedule, error) {
	said := 0
	for _, s := range []string{j.Cron, j.Every, j.At} {
		if s != "" {
			said++
		}
	}
	if said != 1 {
		return nil, errors.New("say when: one of cron, every and at")
	}
	switch {
	case j.Every != "":
		d, err := time.ParseDuration(j.Every)
		if err != nil || d < time.Second {
			return nil, fmt.Errorf("every %q is not a duration of at least 1s, such as \"30m\"", clipText(j.Every, 40))
		}
		return everySchedule{j.Created, d}, nil
	case j.At != "":
		at, err := time.Parse(time.RFC3339, j.At)
		if err != nil {
			return nil, fmt.Errorf("at %q is not a moment such as \"2027-01-31T08:00:00+01:00\"", clipText(j.At, 40))
		}
		return onceSchedule{at}, nil
	}
	if strings.Contains(j.Cron, "TZ=") {
		return nil, errors.New("cron: name the time zone in tz")
	}
	loc, err := time.LoadLocation(j.TZ)
	if err != nil || j.TZ == "Local" {
		return nil, fmt.Errorf("tz %q is not a time zone such as \"Europe/Berlin\"", clipText(j.TZ, 60))
	}
	s, err := cronParser.Parse(j.Cron)
	if err != nil {
		return nil, fmt.Errorf("cron %q: %w", clipText(j.Cron, 60), err)
	}
	if spec, ok := s.(*cron.SpecSchedule); ok {
		spec.Location = loc
		if spec.Hour&everyHour == 0 {
			return namedHour{spec}, nil
		}
	}
	if _, ok := s.(cron.ConstantDelaySchedule); ok {
		return nil, errors.New("cron: say @every as every")
	}
	return s, nil
}

// everyHour is how the library marks a star, so that a job of every hour is told from one that names hours.
const everyHour = 1 << 63

// namedHour is due once at each hour that it names, also in the night in which that hour comes twice: at the first of the two.
type namedHour struct{ *cron.SpecSchedule }

func (s namedHour) Next(t time.Time) time.Time {
	for n := s.SpecSchedule.Next(t); ; n = s.SpecSchedule.Next(n) {
		if n.IsZero() || !secondTime(n.In(s.Location)) {
			return n
		}
	}
}

// secondTime reports whether a clock on the wall showed the same time shortly before.
func secondTime(t time.Time) bool {
	_, now := t.Zone()
	_, before := t.Add(-3 * time.Hour).Zone()
	back := time.Duration(before-now) * time.Second
	return back > 0 && t.Add(-back).Format(time.DateTime) == t.Format(time.DateTime)
}

// everySchedule is due each period after the beginning.
type everySchedule struct {
	from   time.Time
	period time.Duration
}

func (s everySchedule) Next(t time.Time) time.Time {
	if t.Before(s.from) {
		return s.from.Add(s.period)
	}
	return s.from.Add(t.Sub(s.from).Truncate(s.period) + s.period)
}

// onceSchedule is due once.
type onceSchedule struct{ at time.Time }

func (s onceSchedule) Next(t time.Time) time.Time {
	if t.Before(s.at) {
		return s.at
	}
	return time.Time{}
}

// due says what is to be done at now, when the moment after was the last one that was dealt with: fire is the moment that is due (zero: none), skipped
// how many before it are not made up for, and next when to look again (zero: never). Of several missed moments the latest is made up for, if it is at most
// cronGrace ago.
func due(s cron.Schedule, after, now time.Time) (fire time.Time, skipped int, next time.Time) {
	for at := s.Next(after); ; at = s.Next(at) {
		if at.IsZero() || at.After(now) {
			next = at
			break
		}
		if !fire.IsZero() {
			skipped++
		}
		fire = at
		if skipped == maxMissed { // it was away for long: what came later counts
			after, skipped = now.Add(-cronGrace), skipped+1
			if s.Next(after).After(at) {
				at = after
			}
		}
	}
	if !fire.IsZero() && now.Sub(fire) > cronGrace {
		fire, skipped = time.Time{}, skipped+1
	}
	return fire, skipped, next
}
