package infra

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

// answers are the bodies of a fake server by path; a healthy server's are laid
// below. A func is a handler of its own.
type answers map[string]any

var (
	healthyConsul = answers{
		"/v1/agent/self":            `{"Config":{"NodeName":"one","Version":"1.22.7"}}`,
		"/v1/status/leader":         `"127.0.0.1:8300"`,
		"/v1/agent/members":         `[{"Name":"one","Status":1}]`,
		"/v1/catalog/services":      `{"consul":[]}`,
		"/v1/health/state/critical": `[]`,
		"/v1/health/state/warning":  `[]`,
	}
	healthyNomad = answers{
		"/v1/status/leader": `"127.0.0.1:4647"`,
		"/v1/namespaces":    `[{"Name":"default"}]`,
		"/v1/nodes":         `[{"ID":"aaaaaaaa-1","Name":"jerry","Status":"ready","SchedulingEligibility":"eligible"}]`,
		"/v1/jobs":          `[]`,
		"/v1/allocations":   `[]`,
	}
)

// fake is a server at the wire.
func fake(t testing.TB, base, over answers) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := over[r.URL.Path]
		if !ok {
			a, ok = over["*"]
		}
		if !ok {
			a, ok = base[r.URL.Path]
		}
		switch a := a.(type) {
		case http.HandlerFunc:
			a(w, r)
		case string:
			_, _ = io.WriteString(w, a)
		default:
			if !ok {
				http.NotFound(w, r)
				return
			}
			if err := json.NewEncoder(w).Encode(a); err != nil {
				t.Error(err)
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func respond(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// hang answers when the caller has given up.
var hang http.HandlerFunc = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func consulAt(address string) *consulapi.Config { return &consulapi.Config{Address: address} }
func nomadAt(address string) *nomadapi.Config   { return &nomadapi.Config{Address: address} }

// checkBoth checks two fakes.
func checkBoth(t testing.TB, consul, nomad answers, more ...func(*Options)) Report {
	t.Helper()
	opts := Options{
		Consul:  consulAt(fake(t, healthyConsul, consul)),
		Nomad:   nomadAt(fake(t, healthyNomad, nomad)),
		Timeout: 5 * time.Second,
	}
	for _, m := range more {
		m(&opts)
	}
	return newChecker(t, opts).Check(t.Context())
}

func TestAllHealthy(t *testing.T) {
	r := checkBoth(t, nil, nil)
	equal(t, "result", r.Summary(), "all-healthy")
	equal(t, "text", r.Text(), strings.Join([]string{
		"all-healthy",
		"Consul: 1 member, 1 service",
		"Nomad: 1 of 1 node ready, 0 jobs, 0 allocations running",
		"Node jerry: load 0.4 on 2 cores, memory 12%, disk 40%, up 3d4h",
	}, "\n"))
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "null") {
		t.Errorf("a list is null: %s", data)
	}
	var back Report
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	equal(t, "round trip", back.Text(), r.Text())
}

// TestJSONNames freezes the names: skills and dashboards read them.
func TestJSONNames(t *testing.T) {
	data, err := json.Marshal(checkBoth(t, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(data, &top); err != nil {
		t.Fatal(err)
	}
	names := func(raw json.RawMessage) string {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		var out []string
		for k := range m {
			out = append(out, k)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	equal(t, "report", names(data), "absent alert checked_at consul detail failed_allocations node nomad problems result took_ms unhealthy_services")
	equal(t, "consul", names(top["consul"]), "address agent errors failed_members leader left_members maintenance members services status took_ms unhealthy_node_checks unhealthy_services version")
	equal(t, "nomad", names(top["nomad"]), "address dead_jobs down_nodes errors failed_allocations ineligible_nodes jobs leader nodes pending_jobs ready_nodes running_allocations status took_ms")
	equal(t, "node", names(top["node"]), "checked_at cores disk_path disk_total_bytes disk_used_percent errors hostname load1 load1_per_core memory_total_bytes memory_used_percent problems status took_ms uptime_seconds")
}

// unasked makes the parts ones that nobody configured.
func unasked(c *Checker) *Checker {
	c.consul.explicit, c.nomad.explicit = false, false
	return c
}

func TestAbsent(t *testing.T) {
	nothing := closedAddress(t)
	both := Options{Consul: consulAt(nothing), Nomad: nomadAt(nothing)}
	r := unasked(newChecker(t, both)).Check(t.Context())
	equal(t, "both: result", r.Result, "absent: no Consul or Nomad answered; node ok")
	equal(t, "both: alert", r.Alert, false)
	equal(t, "both: status", r.Consul.Status, StatusAbsent)
	mustContain(t, r.Detail, "consul: absent (nothing answers at "+nothing+")", "nomad: absent (nothing answers at "+nothing+")")
	equal(t, "both: absent", strings.Join(r.Absent, " "), "consul nomad")

	c := unasked(newChecker(t, both))
	c.node.memory = func(context.Context) (float64, uint64, error) { return 97.2, 1, nil }
	r = c.Check(t.Context())
	equal(t, "both, node in trouble", r.Result, "alert: 0 failed allocations, 0 unhealthy services, node memory 97%, no Consul or Nomad answered")

	one := both
	one.Consul = consulAt(fake(t, healthyConsul, nil))
	r = unasked(newChecker(t, one)).Check(t.Context())
	equal(t, "nomad only: result", r.Result, "all-healthy")
	equal(t, "nomad only: absent", strings.Join(r.Absent, " "), "nomad")
	mustContain(t, r.Text(), "Nomad: absent (nothing answers at "+nothing+")")

	r = newChecker(t, Options{NoConsul: true, NoNomad: true}).Check(t.Context())
	equal(t, "left out", r.Result, "absent: no Consul or Nomad answered; node ok")
	equal(t, "left out: detail", r.Detail, "consul: absent (not configured); nomad: absent (not configured); node: load 0.4 on 2 cores, memory 12%, disk 40%")
}

// TestEnvironment: the servers of the environment, and its addresses make them
// servers that should be there.
func TestEnvironment(t *testing.T) {
	var consulToken, nomadToken atomic.Value
	t.Setenv("CONSUL_HTTP_ADDR", fake(t, healthyConsul, answers{"/v1/status/leader": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		consulToken.Store(r.Header.Get("X-Consul-Token"))
		_, _ = io.WriteString(w, `"x"`)
	})}))
	t.Setenv("NOMAD_ADDR", fake(t, healthyNomad, answers{"/v1/status/leader": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nomadToken.Store(r.Header.Get("X-Nomad-Token"))
		_, _ = io.WriteString(w, `"x"`)
	})}))
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, "first-token\n")
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", file)
	t.Setenv("NOMAD_TOKEN", "nomad-token")
	c := newChecker(t, Options{})
	equal(t, "result", c.Check(t.Context()).Result, "all-healthy")
	equal(t, "consul token", consulToken.Load(), any("first-token"))
	equal(t, "nomad token", nomadToken.Load(), any("nomad-token"))

	writeFile(t, file, "rotated-token\n")
	c.Check(t.Context())
	equal(t, "rotated consul token", consulToken.Load(), any("rotated-token"))

	nothing := closedAddress(t)
	t.Setenv("CONSUL_HTTP_ADDR", nothing)
	t.Setenv("NOMAD_ADDR", nothing)
	r := newChecker(t, Options{}).Check(t.Context())
	equal(t, "unreachable", r.Result, "alert: 0 failed allocations, 0 unhealthy services, consul unreachable, nomad unreachable")
	mustContain(t, r.Detail, "consul: unreachable at "+nothing+" (", "connection refused")

	t.Setenv("CONSUL_HTTP_TOKEN_FILE", filepath.Join(t.TempDir(), "missing"))
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a missing token file: got %v", err)
	}
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", "")
	t.Setenv("NOMAD_CACERT", filepath.Join(t.TempDir(), "no-ca.pem"))
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "Nomad") {
		t.Errorf("a missing CA: got %v", err)
	}
}

// TestTokenFileGone: a token file that vanishes is named, and the last token
// goes on working.
func TestTokenFileGone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, "first-token")
	c := newChecker(t, Options{Consul: &consulapi.Config{Address: fake(t, healthyConsul, nil), TokenFile: file}, NoNomad: true})
	c.consul.tokenFile += "-gone"
	r := c.Check(t.Context())
	equal(t, "result", r.Result, "alert: 0 failed allocations, 0 unhealthy services, consul check incomplete")
	mustContain(t, strings.Join(r.Consul.Errors, "\n"), "token: read the token file (the last token is used)")
}

func TestDeadline(t *testing.T) {
	begin := time.Now()
	r := checkBoth(t, answers{"*": hang}, answers{"/v1/jobs": hang, "/v1/allocations": []map[string]any{
		{"ID": "0123456789", "Name": "web.web[0]", "NodeName": "bobby", "DesiredStatus": "run", "ClientStatus": "failed"},
	}}, func(o *Options) { o.Timeout = 200 * time.Millisecond })
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	equal(t, "result", r.Result, "alert: 1 failed allocations, 0 unhealthy services, consul unreachable, nomad check incomplete")
	equal(t, "consul errors", strings.Join(r.Consul.Errors, "; "), "no answer within 200ms")
	equal(t, "nomad errors", strings.Join(r.Nomad.Errors, "; "), "jobs: no answer within 200ms")
	equalNames(t, "failed allocations", r.Nomad.FailedAllocations, "web.web[0] (01234567 on bobby)")
}

// TestHangIsNotAbsent: something swallows the question at the default address.
func TestHangIsNotAbsent(t *testing.T) {
	c := newChecker(t, Options{Consul: consulAt(fake(t, nil, answers{"*": hang})), NoNomad: true, Timeout: 100 * time.Millisecond})
	c.consul.explicit = false
	equal(t, "status", c.Check(t.Context()).Consul.Status, StatusUnreachable)
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newChecker(t, Options{Consul: consulAt(fake(t, healthyConsul, nil)), NoNomad: true}).Check(ctx)
	equal(t, "errors", strings.Join(r.Consul.Errors, "; "), "the check was cancelled")
}

func TestGarbage(t *testing.T) {
	for _, body := range []string{"", "null", "{}", "[]", `"x"`, "17", "<html>nginx</html>", `[{"Name":`, `[null]`, `[[]]`, `{"a":{}}`, "\x00\xff"} {
		r := checkBoth(t, answers{"*": body}, answers{"*": body})
		if !r.Alert || r.Consul.Status == StatusOK || r.Nomad.Status == StatusOK {
			t.Errorf("%q passes for healthy: %s\n%s", body, r.Result, r.Detail)
		}
		_ = r.Text()
		for path := range healthyConsul {
			_ = checkBoth(t, answers{path: body}, nil).Text()
		}
		for path := range healthyNomad {
			_ = checkBoth(t, nil, answers{path: body}).Text()
		}
	}
}

func TestStatusCodes(t *testing.T) {
	for code, want := range map[int]Status{
		http.StatusUnauthorized: StatusForbidden, http.StatusForbidden: StatusForbidden,
		http.StatusNotFound: StatusUnreachable, http.StatusTooManyRequests: StatusUnreachable,
		http.StatusInternalServerError: StatusUnreachable, http.StatusServiceUnavailable: StatusUnreachable,
		http.StatusFound: StatusUnreachable,
	} {
		r := checkBoth(t, answers{"*": respond(code, "sorry")}, answers{"*": respond(code, "sorry")})
		equal(t, fmt.Sprint("consul ", code), r.Consul.Status, want)
		equal(t, fmt.Sprint("nomad ", code), r.Nomad.Status, want)
		equal(t, fmt.Sprint("alert ", code), r.Alert, true)
		mustContain(t, strings.Join(append(r.Consul.Errors, r.Nomad.Errors...), "\n"), fmt.Sprintf("answered %d: ", code))
	}
}

// TestOneQuestionFails: every question alone; the others' findings stay.
func TestOneQuestionFails(t *testing.T) {
	broken := respond(http.StatusInternalServerError, "boom")
	members := `[{"Name":"one","Status":1},{"Name":"two","Status":4}]`
	critical := `[{"Node":"one","Name":"http","Status":"critical","ServiceName":"web"}]`
	for path := range healthyConsul {
		over := answers{"/v1/agent/members": members, "/v1/health/state/critical": critical}
		over[path] = broken
		r := checkBoth(t, over, nil)
		equal(t, path+": status", r.Consul.Status, StatusAlert)
		mustContain(t, r.Result, "consul check incomplete")
		equal(t, path+": errors", len(r.Consul.Errors), 1)
		if path != "/v1/agent/members" {
			mustContain(t, r.Result, "1 failed members")
		}
		if path != "/v1/health/state/critical" {
			mustContain(t, r.Result, "1 unhealthy services")
		}
	}
	for path := range healthyNomad {
		over := answers{"/v1/nodes": `[{"ID":"abc","Name":"billy","Status":"down"}]`, "/v1/jobs": `[{"ID":"web","Type":"service","Status":"dead"}]`}
		over[path] = broken
		r := checkBoth(t, nil, over)
		equal(t, path+": status", r.Nomad.Status, StatusAlert)
		mustContain(t, r.Result, "nomad check incomplete")
		if path != "/v1/nodes" {
			mustContain(t, r.Result, "1 down nodes")
		}
		if path != "/v1/jobs" {
			mustContain(t, r.Result, "1 dead jobs")
		}
	}
}

// TestNomadJudgement: which jobs, nodes and allocations are trouble.
func TestNomadJudgement(t *testing.T) {
	now := time.Now()
	young, old := now.Add(-time.Minute).UnixNano(), now.Add(-10*time.Minute).UnixNano()
	type m = map[string]any
	queued := m{"Summary": m{"g": m{"Queued": 2, "Running": 3}}}
	alloc := func(name, job, kind, client, desired string, more m) m {
		a := m{"ID": name + "-12345678", "Name": name, "JobID": job, "JobType": kind, "Namespace": "default",
			"NodeName": "jerry", "ClientStatus": client, "DesiredStatus": desired, "CreateIndex": 10}
		for k, v := range more {
			a[k] = v
		}
		return a
	}
	r := checkBoth(t, nil, answers{
		"/v1/nodes": []m{
			{"ID": "1", "Name": "up", "Status": "ready", "SchedulingEligibility": "eligible"},
			{"ID": "2", "Name": "gone", "Status": "down", "SchedulingEligibility": "ineligible"},
			{"ID": "3", "Name": "cut", "Status": "disconnected"},
			{"ID": "4", "Name": "drain", "Status": "ready", "SchedulingEligibility": "ineligible", "Drain": true},
			{"ID": "5", "Name": "off", "Status": "ready", "SchedulingEligibility": "ineligible"},
			{"ID": "6", "Name": "new", "Status": "initializing"},
		},
		"/v1/jobs": []m{
			{"ID": "dead-service", "Type": "service", "Status": "dead", "SubmitTime": old},
			{"ID": "dead-system", "Type": "system", "Status": "dead", "SubmitTime": old, "Namespace": "ops"},
			{"ID": "dead-batch", "Type": "batch", "Status": "dead", "SubmitTime": old},
			{"ID": "stopped", "Type": "service", "Status": "dead", "Stop": true, "SubmitTime": old},
			{"ID": "pending-old", "Type": "service", "Status": "pending", "SubmitTime": old},
			{"ID": "pending-young", "Type": "service", "Status": "pending", "SubmitTime": young},
			{"ID": "half", "Type": "service", "Status": "running", "SubmitTime": old, "JobSummary": queued},
			{"ID": "rolling", "Type": "service", "Status": "running", "SubmitTime": young, "JobSummary": queued},
			{"ID": "again", "Type": "batch", "Status": "dead", "JobModifyIndex": 20},
		},
		"/v1/allocations": []m{
			alloc("a", "half", "service", "failed", "run", nil),
			alloc("b", "half", "service", "lost", "run", nil),
			alloc("c", "purged", "service", "failed", "run", m{"Namespace": "ops"}),
			alloc("replaced", "half", "service", "failed", "run", m{"NextAllocation": "x"}),
			alloc("unwanted", "half", "service", "failed", "stop", nil),
			alloc("fine", "half", "service", "running", "run", nil),
			alloc("of-stopped", "stopped", "service", "failed", "run", nil),
			alloc("superseded", "again", "batch", "failed", "run", nil),
			alloc("current", "again", "batch", "failed", "run", m{"CreateIndex": 21}),
		},
	})
	equal(t, "result", r.Result, "alert: 4 failed allocations, 0 unhealthy services, 2 down nodes, 2 dead jobs, 2 pending jobs")
	equalNames(t, "failed", r.Nomad.FailedAllocations, "a (a-123456 on jerry)", "b (b-123456 on jerry, lost)", "current (current- on jerry)", "ops/c (c-123456 on jerry)")
	equalNames(t, "down", r.Nomad.DownNodes, "cut (3, disconnected)", "gone (2, down)")
	equalNames(t, "ineligible", r.Nomad.IneligibleNodes, "drain (draining)", "off")
	equalNames(t, "dead", r.Nomad.DeadJobs, "dead-service", "ops/dead-system")
	equalNames(t, "pending", r.Nomad.PendingJobs, "half (2 without a place)", "pending-old")
	equal(t, "ready", r.Nomad.ReadyNodes, 3)
	equal(t, "jobs", r.Nomad.Jobs, 8)
	equal(t, "running", r.Nomad.RunningAllocations, 6)
}

// TestConsulSerfCheckIsSaidOnce: a dead member's serf check is the same fact.
func TestConsulSerfCheckIsSaidOnce(t *testing.T) {
	critical := `[{"Node":"two","CheckID":"serfHealth","Name":"Serf Health Status","Status":"critical"}]`
	r := checkBoth(t, answers{"/v1/agent/members": `[{"Name":"one","Status":1},{"Name":"two","Status":4}]`, "/v1/health/state/critical": critical}, nil)
	equal(t, "known as a member", r.Result, "alert: 0 failed allocations, 0 unhealthy services, 1 failed members")
	r = checkBoth(t, answers{"/v1/health/state/critical": critical}, nil)
	equal(t, "not known as a failed member", r.Result, "alert: 0 failed allocations, 0 unhealthy services, 1 failing node checks")
}

// TestBounds: 27 names, long names, control characters, and the order.
func TestBounds(t *testing.T) {
	var checks []map[string]string
	for i := range 27 {
		checks = append(checks, map[string]string{"Node": "n", "Name": "c", "Status": "critical", "ServiceName": fmt.Sprintf("svc-%02d", 26-i)})
	}
	r := checkBoth(t, answers{"/v1/health/state/critical": checks}, nil)
	equal(t, "result", r.Result, "alert: 0 failed allocations, 27 unhealthy services")
	l := r.Consul.UnhealthyServices
	equal(t, "names", len(l.Names), 20)
	equal(t, "more", l.More, 7)
	equal(t, "first", l.Names[0], "svc-00 (critical: c on n)")
	mustContain(t, r.Text(), "svc-19 (critical: c on n) and 7 more")

	evil := strings.Repeat("ä", 5000) + "\n@everyone\x1b[31m"
	for i := range checks {
		checks[i]["ServiceName"] += evil
		checks[i]["Node"] = evil
	}
	r = checkBoth(t, answers{"/v1/health/state/critical": checks, "/v1/agent/self": map[string]any{"Config": map[string]any{"NodeName": evil}}}, nil)
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 8000 || len(r.Text()) > 8000 {
		t.Errorf("%d bytes of JSON, %d of text", len(data), len(r.Text()))
	}
	if strings.ContainsAny(r.Text(), "\x1b") || strings.Contains(r.Text(), "\n@everyone") {
		t.Errorf("control characters came through: %q", r.Text())
	}
}

// TestEndlessAnswer: a server that never stops talking is cut off.
func TestEndlessAnswer(t *testing.T) {
	endless := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `["`)
		chunk := strings.Repeat("x", 1<<20)
		for {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	})
	r := checkBoth(t, answers{"/v1/agent/members": endless}, answers{"/v1/jobs": endless}, func(o *Options) { o.Timeout, o.maxAnswer = 20*time.Second, 1<<20 })
	equal(t, "consul", strings.Join(r.Consul.Errors, ";"), "members: the answer is larger than 1024 KiB")
	equal(t, "nomad", strings.Join(r.Nomad.Errors, ";"), "jobs: the answer is larger than 1024 KiB")
}

// TestCanary: no secret appears anywhere, even when the server gives it back in
// every shape it can; and no redirect carries it away.
func TestCanary(t *testing.T) {
	const consulToken, nomadToken, password = "canary-consul-5f6d/+", "canary-nomad-77aa\"x", "canary pass+word"
	secrets := []string{"canary", "5f6d", "77aa", "pass+word", "Y2FuYXJ5", "pass%20word", "pass%2Bword"}
	clean := func(what, text string) {
		t.Helper()
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s: %q is in %s", what, s, text)
			}
		}
	}
	// Everything that came is given back, in an error or as a name.
	echo := func(r *http.Request) string {
		_, pass, _ := r.BasicAuth()
		return strings.Join([]string{
			r.Header.Get("X-Consul-Token"), r.Header.Get("X-Nomad-Token"), pass, r.Header.Get("Authorization"),
			fmt.Sprintf("%q", r.Header.Get("X-Nomad-Token")), r.Header.Get("X-Canary"),
		}, " ")
	}
	asError := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { respond(code, echo(r))(w, r) }
	}
	asName := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := []any{map[string]any{"ServiceName": echo(r), "Name": echo(r), "Node": echo(r), "Status": "critical", "ID": echo(r), "Type": "service"}}
		if strings.Contains(r.URL.Path, "jobs") {
			body[0].(map[string]any)["Status"] = "dead"
		}
		_ = json.NewEncoder(w).Encode(body)
	})
	var asked atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(thief.Close)
	away := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL+"/?t="+r.Header.Get("X-Consul-Token")+r.Header.Get("X-Nomad-Token"), http.StatusTemporaryRedirect)
	})
	garbage := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, echo(r)) })

	check := func(what, consul, nomad string) {
		t.Helper()
		c := newChecker(t, Options{
			Consul: &consulapi.Config{Address: consul, Token: consulToken, HttpAuth: &consulapi.HttpBasicAuth{Username: "bobby", Password: password}},
			Nomad: &nomadapi.Config{Address: nomad, SecretID: nomadToken, HttpAuth: &nomadapi.HttpBasicAuth{Username: "bobby", Password: password},
				Headers: http.Header{"X-Canary": {"canary-header"}}},
			Timeout: 2 * time.Second,
		})
		r := c.Check(t.Context())
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		clean(what, string(data))
		clean(what, r.Text())
		clean(what, fmt.Sprintf("%+v", r))
	}
	for what, h := range map[string]http.HandlerFunc{
		"403": asError(403), "500": asError(500), "names": asName, "redirect": away, "garbage": garbage,
	} {
		check(what, fake(t, nil, answers{"*": h}), fake(t, nil, answers{"*": h}))
	}
	withUser := func(address string) string {
		return strings.Replace(address, "://", "://bobby:canary%20pass%2Bword@", 1)
	}
	check("closed port", closedAddress(t), withUser(closedAddress(t)))
	check("credentials in the address", fake(t, nil, answers{"*": asError(403)}), withUser(fake(t, nil, answers{"*": asError(403)})))
	equal(t, "the redirect was followed", asked.Load(), int32(0))

	for what, opts := range map[string]Options{
		"consul credentials": {Consul: consulAt("http://bobby:canary@127.0.0.1:8500")},
		"consul scheme":      {Consul: &consulapi.Config{Address: "ftp://127.0.0.1", Token: consulToken}},
		"nomad address":      {Nomad: nomadAt("http://bobby:canary@127.0.0.1:port")},
		"nomad certificate":  {Nomad: &nomadapi.Config{SecretID: nomadToken, TLSConfig: &nomadapi.TLSConfig{ClientCertPEM: []byte("canary")}}},
		"timeout":            {Timeout: -1},
		"names":              {MaxNames: -1},
	} {
		_, err := New(opts)
		if err == nil {
			t.Errorf("%s: no error", what)
			continue
		}
		clean(what, fmt.Sprintf("%v %+v %#v", err, err, errors.Unwrap(err)))
	}
}

func TestDeterministic(t *testing.T) {
	consul := answers{"/v1/health/state/critical": []map[string]string{
		{"Node": "b", "Name": "y", "Status": "critical", "ServiceName": "web"},
		{"Node": "a", "Name": "x", "Status": "critical", "ServiceName": "web"},
		{"Node": "a", "Name": "x", "Status": "critical", "ServiceName": "db"},
	}, "/v1/agent/self": respond(500, "boom"), "/v1/status/leader": respond(500, "boom")}
	c := newChecker(t, Options{Consul: consulAt(fake(t, healthyConsul, consul)), NoNomad: true})
	c.now = func() time.Time { return time.Unix(1771243200, 0) }
	var first string
	for i := range 20 {
		data, err := json.Marshal(c.Check(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = string(data)
		}
		equal(t, "report", string(data), first)
	}
}

func TestConcurrentChecks(t *testing.T) {
	c := newChecker(t, Options{Consul: consulAt(fake(t, healthyConsul, nil)), Nomad: nomadAt(fake(t, healthyNomad, nil)), Timeout: 20 * time.Second})
	results := make(chan string)
	for range 8 {
		go func() { results <- c.Check(t.Context()).Result }()
	}
	for range 8 {
		equal(t, "result", <-results, "all-healthy")
	}
}
