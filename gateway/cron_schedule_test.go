package gateway

import (
	"strings"
	"testing"
	"time"
)

func at(t testing.TB, text string) time.Time {
	t.Helper()
	m, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// When jobs are due, over the changes of the clock too: what falls into the hour that is left out in spring is not due that day, and what falls into the hour that
// comes twice in autumn is due once.
func TestCronMoments(t *testing.T) {
	for name, c := range map[string]struct {
		job   CronJob
		after string
		want  string // in UTC, as hours and minutes with the day
	}{
		"every five minutes": {CronJob{Cron: "*/5 * * * *"}, "2026-11-25T10:02:00Z", "25 10:05, 25 10:10, 25 10:15"},
		"daily":              {CronJob{Cron: "@daily"}, "2026-11-25T10:02:00Z", "26 00:00, 27 00:00, 28 00:00"},
		"working days":       {CronJob{Cron: "30 7 * * 1-5", TZ: "Europe/Berlin"}, "2026-11-26T12:00:00Z", "27 06:30, 30 06:30, 01 06:30"},
		"spring":             {CronJob{Cron: "30 2 * * *", TZ: "Europe/Berlin"}, "2026-03-28T00:00:00Z", "28 01:30, 30 00:30, 31 00:30"},
		"after spring":       {CronJob{Cron: "30 3 * * *", TZ: "Europe/Berlin"}, "2026-03-28T00:00:00Z", "28 02:30, 29 01:30, 30 01:30"},
		"autumn":             {CronJob{Cron: "30 2 * * *", TZ: "Europe/Berlin"}, "2026-10-24T00:00:00Z", "24 00:30, 25 00:30, 26 01:30"},
		"hourly in autumn":   {CronJob{Cron: "30 * * * *", TZ: "Europe/Berlin"}, "2026-10-24T23:45:00Z", "25 00:30, 25 01:30, 25 02:30"},
		"a period":           {CronJob{Every: "90s", Created: at(t, "2026-11-25T10:00:00Z")}, "2026-11-25T10:00:10Z", "25 10:01, 25 10:03, 25 10:04"},
		"once":               {CronJob{At: "2026-11-25T12:00:00+01:00"}, "2026-11-25T10:00:00Z", "25 11:00"},
		"once, over":         {CronJob{At: "2026-11-25T12:00:00+01:00"}, "2026-11-25T11:00:00Z", ""},
	} {
		s, err := c.job.schedule()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for m := s.Next(at(t, c.after)); len(got) < 3 && !m.IsZero(); m = s.Next(m) {
			got = append(got, m.UTC().Format("02 15:04"))
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s: %s, want %s", name, text, c.want)
		}
	}
	for says, j := range map[string]CronJob{
		"one of":     {},
		"one of ":    {Cron: "* * * * *", Every: "1m"},
		"at least":   {Every: "10ms"},
		"a moment":   {At: "tomorrow"},
		"time zone":  {Cron: "* * * * *", TZ: "Mars/Olympus"},
		"cron \"":    {Cron: "61 * * * *"},
		"in tz":      {Cron: "TZ=UTC * * * * *"},
		"as every":   {Cron: "@every 5m"},
		"time zone ": {Cron: "* * * * *", TZ: "Local"},
	} {
		if _, err := j.schedule(); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(says)) {
			t.Errorf("%+v: %v, want %s", j, err, says)
		}
	}
}

// The rule for what was missed: the latest is made up for within an hour, the others are counted.
func TestCronMissed(t *testing.T) {
	five := CronJob{Cron: "*/5 * * * *"}
	daily := CronJob{Cron: "0 3 * * *"}
	minutes := CronJob{Every: "1s", Created: at(t, "2020-01-01T00:00:00Z")}
	for _, c := range []struct {
		job        CronJob
		after, now string
		fire       string
		skipped    int
		next       string
	}{
		{five, "2026-11-25T10:00:00Z", "2026-11-25T10:04:59Z", "", 0, "10:05:00"},
		{five, "2026-11-25T10:00:00Z", "2026-11-25T10:05:00Z", "10:05:00", 0, "10:10:00"},
		{five, "2026-11-25T10:00:00Z", "2026-11-25T10:17:00Z", "10:15:00", 2, "10:20:00"},
		{daily, "2026-11-24T03:00:00Z", "2026-11-25T03:59:00Z", "03:00:00", 0, "03:00:00"},
		{daily, "2026-11-23T03:00:00Z", "2026-11-25T09:00:00Z", "", 2, "03:00:00"},
		{minutes, "2020-01-01T00:00:00Z", "2026-11-25T10:00:00Z", "10:00:00", 13601, "10:00:01"},
	} {
		s, err := c.job.schedule()
		if err != nil {
			t.Fatal(err)
		}
		fire, skipped, next := due(s, at(t, c.after), at(t, c.now))
		got := ""
		if !fire.IsZero() {
			got = fire.UTC().Format(time.TimeOnly)
		}
		if got != c.fire || skipped != c.skipped || next.UTC().Format(time.TimeOnly) != c.next {
			t.Errorf("%+v: fire %q, skipped %d, next %s; want %q, %d, %s", c, got, skipped, next, c.fire, c.skipped, c.next)
		}
	}
}
