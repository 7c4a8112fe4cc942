package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

func cronNode(t *testing.T, d Deps, name string) *node {
	t.Helper()
	bob := echoAgent("bob")
	bob["gateways"] = []string{"three"}
	return startNode(t, parseChannels(t, name, config{"cron": config{"enabled": true, "maxConcurrentRuns": 2}}, bob), d)
}

func (n *node) cronRuns(job string) []CronRun {
	n.t.Helper()
	var r CronRunsResponse
	n.do(http.MethodGet, "/v1/cron/"+job+"/runs", "").into(n.t, &r)
	return r.Runs
}

// runsOf waits until a job has run so often.
func (n *node) runsOf(job string, least int) []CronRun {
	n.t.Helper()
	ctx := within(n.t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		runs := n.cronRuns(job)
		if len(runs) >= least {
			return runs
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.t.Fatalf("%s ran %d times, want %d: %+v", job, len(runs), least, runs)
		}
	}
}

// TestCron: jobs are added and changed through any gateway, run once at each moment, also when the scheduler's gateway ends and two gateways sent the
// same moment; and only the gateways themselves speak to the scheduler.
func TestCron(t *testing.T) {
	s := newStore(t)
	three := cronNode(t, Deps{Store: s}, "three")
	one := cronNode(t, Deps{Store: s}, "one")
	add := func(n *node, body string) response {
		t.Helper()
		return n.do(http.MethodPost, "/v1/cron", body)
	}
	id := envelope.NewID()
	job := fmt.Sprintf(`{"id":%q,"name":"beat","every":"1s","agent":"bob","message":"well?"}`, id)
	var st CronState
	add(one, job).into(t, &st)
	add(three, job).into(t, &st) // asked again
	if st.ID != id || st.Session != cronIsolated || !st.Enabled {
		t.Errorf("%+v", st)
	}
	runs := one.runsOf("beat", 2)
	if r := runs[0]; !r.OK || r.Text != "well?" || r.By != "" || r.Gateway == "" || !r.Scheduled.Equal(st.Created.Add(time.Second)) {
		t.Errorf("%+v of a job of %s", r, st.Created)
	}

	// The same moment, sent by somebody who came to it as well.
	b := three.bus.Load()
	again := three.cron.outgoing(cronDue{Job: st.CronJob, At: runs[0].Scheduled})
	if _, err := b.Send(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	owner, other := one, three
	if b.OwnerOf(CronInbox) == "three" {
		owner, other = three, one
	}
	if owner == one { // bob lives on three, which therefore stays
		if err := owner.Stop(within(t)); err != nil {
			t.Fatal(err)
		}
	} else {
		other.do(http.MethodPost, "/v1/owners/cron/release", `{}`)
	}
	before := len(other.cronRuns("beat"))
	runs = other.runsOf("beat", before+2)
	var moments []string
	for _, r := range runs {
		moments = append(moments, r.Scheduled.UTC().Format(time.RFC3339Nano))
		if !r.OK {
			t.Errorf("%+v", r)
		}
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(moments))); !slices.Equal(sorted, moments) {
		t.Errorf("moments %q", moments)
	}

	// Off, on, now, away.
	other.do(http.MethodPost, "/v1/cron/beat/disable", "").into(t, &st)
	if st.Enabled {
		t.Errorf("%+v", st)
	}
	other.do(http.MethodPost, "/v1/cron/beat/run", "").into(t, &st)
	ctx := within(t)
	for {
		runs = other.cronRuns("beat")
		if runs[len(runs)-1].By == "operator" {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("it does not run by hand: %+v", runs)
		}
	}
	// An agent that is not there is the run's result, not the scheduler's trouble.
	add(other, `{"name":"nobody","at":"2099-01-01T00:00:00Z","agent":"nobody","message":"x","session":"main"}`).into(t, &st)
	other.do(http.MethodPost, "/v1/cron/nobody/run", "").into(t, &st)
	if r := other.runsOf("nobody", 1)[0]; r.OK || !strings.Contains(r.Text, "unknown agent") {
		t.Errorf("%+v", r)
	}
	other.do(http.MethodDelete, "/v1/cron/beat", "").into(t, &st)
	var list CronResponse
	other.do(http.MethodGet, "/v1/cron", "").into(t, &list)
	if len(list.Jobs) != 1 || list.Jobs[0].Name != "nobody" || list.Jobs[0].LastRun == nil || list.Jobs[0].Next.IsZero() {
		t.Errorf("%+v", list)
	}

	for body, says := range map[string]string{
		`{"name":"x","agent":"bob","message":"m"}`:                                                   "one of cron, every and at",
		`{"name":"x","agent":"Bob!","message":"m","every":"1m"}`:                                     "not the name of an agent",
		`{"name":"","agent":"bob","message":"m","every":"1m"}`:                                       "name is missing",
		`{"name":"a/b","agent":"bob","message":"m","every":"1m"}`:                                    "name",
		`{"name":"x","agent":"bob","message":" ","every":"1m"}`:                                      "message is missing",
		`{"name":"x","agent":"bob","message":"m","every":"1m","session":"other"}`:                    "isolated or main",
		`{"name":"x","agent":"bob","message":"m","every":"1m","timeout":"1ms"}`:                      "timeout",
		`{"name":"x","agent":"bob","message":"m","cron":"* * * *"}`:                                  "cron",
		`{"name":"nobody","agent":"bob","message":"m","every":"1m"}`:                                 "there is a job",
		`{"id":"x","name":"x","agent":"bob","message":"m","every":"1m"}`:                             "lower-case UUID",
		`{"name":"x","agent":"bob","message":"` + strings.Repeat("m", 16<<10+1) + `","every":"1m"}`:  "at most",
		`{"name":"x","agent":"bob","message":"m","every":"1m","tz":"x","at":"2099-01-01T00:00:00Z"}`: "one of",
		`{"name":"x","agent":"bob","message":"m","cron":"0 0 * * *","tz":"Nowhere"}`:                 "not a time zone",
	} {
		if r := add(other, body); r.status < 400 || r.status >= 500 || !strings.Contains(string(r.body), says) {
			t.Errorf("%.80s: %d %s", body, r.status, r.body)
		}
	}
	for _, path := range []string{"/v1/cron/beat/run", "/v1/cron/nothing/enable"} {
		if r := other.do(http.MethodPost, path, ""); r.status != http.StatusConflict {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
	}
	if r := other.do(http.MethodPost, "/v1/cron/nobody/explode", ""); r.status != http.StatusBadRequest {
		t.Errorf("%d", r.status)
	}
	order, err := json.Marshal(cronOrder{What: "remove", Job: CronJob{ID: "nobody"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, capability := range []string{capabilityCronOrder, capabilityCronRun} {
		if r := other.do(http.MethodPost, "/v1/messages", fmt.Sprintf(`{"from":"cron","to":"cron","capability":%q,"payload":%s}`, capability, order)); r.status != http.StatusBadRequest {
			t.Errorf("a client says %s: %d %s", capability, r.status, r.body)
		}
	}
	if r := startNode(t, parseNode(t, "lone", nil, ""), Deps{Store: newStore(t)}).do(http.MethodGet, "/v1/cron", ""); r.status != http.StatusNotFound || !strings.Contains(string(r.body), "cron.enabled") {
		t.Errorf("without a scheduler: %d %s", r.status, r.body)
	}
}
