package infra

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
)

// nomadAgent is a real Nomad of the test's own: server and client in one.
type nomadAgent struct {
	*agentProc
	address string
	client  *nomadapi.Client
}

// startNomad runs one with more settings laid over it; ready decides when it is.
func startNomad(t testing.TB, more map[string]any, ready func(context.Context, *nomadapi.Client) error) *nomadAgent {
	t.Helper()
	binary := tool(t, "nomad", "GATEMESH_NOMAD_BIN")
	a := &nomadAgent{}
	a.agentProc = startRetry(t, 3, func(dir string, ports []int) (*agentProc, error) {
		at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
		cfg := map[string]any{
			"name":      "jerry",
			"data_dir":  filepath.Join(dir, "data"),
			"bind_addr": "127.0.0.1",
			"ports":     map[string]int{"http": ports[0], "rpc": ports[1], "serf": ports[2]},
			"advertise": map[string]string{"http": at(0), "rpc": at(1), "serf": at(2)},
			"server":    map[string]any{"enabled": true, "bootstrap_expect": 1},
			"client": map[string]any{
				"enabled": true, "network_interface": "lo", "servers": []string{at(1)},
				"min_dynamic_port": 25000, "max_dynamic_port": 25100,
			},
			"plugin":               []any{map[string]any{"raw_exec": []any{map[string]any{"config": []any{map[string]any{"enabled": true}}}}}},
			"disable_update_check": true,
			// Nobody's Consul: a Nomad that finds one on 8500 would register there.
			"consul": map[string]any{"address": "127.0.0.1:1", "auto_advertise": false, "server_auto_join": false, "client_auto_join": false},
		}
		for k, v := range more {
			cfg[k] = v
		}
		data, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "nomad.json")
		writeFile(t, file, string(data))
		a.address = "http://" + at(0)
		a.client, err = nomadapi.NewClient(&nomadapi.Config{Address: a.address})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.client.Close)
		return start(t, dir, binary, []string{"agent", "-config=" + file, "-log-level=warn"}, func(ctx context.Context) error {
			return ready(ctx, a.client)
		})
	})
	return a
}

// stopJobs ends the tasks: they are not children of the agent, and would outlive
// it. After a successful test there are none.
func (a *nomadAgent) stopJobs() {
	select {
	case <-a.done:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	jobs, _, err := a.client.Jobs().List((&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return
	}
	for _, j := range jobs {
		_, _, _ = a.client.Jobs().Deregister(j.ID, false, (&nomadapi.WriteOptions{}).WithContext(ctx))
	}
	q := &nomadapi.QueryOptions{Filter: `ClientStatus == "running"`, WaitTime: time.Second}
	for ctx.Err() == nil {
		running, meta, err := a.client.Allocations().List(q.WithContext(ctx))
		if err != nil || len(running) == 0 {
			return
		}
		q.WaitIndex = meta.LastIndex
	}
}

// nodeReady wants one client node that takes work.
func nodeReady(ctx context.Context, client *nomadapi.Client) error {
	nodes, _, err := client.Nodes().List((&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Status == "ready" && n.Drivers["raw_exec"] != nil && n.Drivers["raw_exec"].Healthy {
			return nil
		}
	}
	return errors.New("no client node is ready yet")
}

// rawExecJob runs one command, never restarted and never rescheduled.
func rawExecJob(kind, id, command string, args ...string) *nomadapi.Job {
	zero, no, mode := 0, false, "fail"
	interval := 5 * time.Second
	task := nomadapi.NewTask("main", "raw_exec").SetConfig("command", command).SetConfig("args", args)
	cpu, memory := 20, 16
	task.Resources = &nomadapi.Resources{CPU: &cpu, MemoryMB: &memory}
	group := nomadapi.NewTaskGroup(id, 1).AddTask(task)
	group.RestartPolicy = &nomadapi.RestartPolicy{Attempts: &zero, Mode: &mode, Interval: &interval}
	group.ReschedulePolicy = &nomadapi.ReschedulePolicy{Attempts: &zero, Unlimited: &no}
	disk, files, size := 10, 1, 1
	task.LogConfig = &nomadapi.LogConfig{MaxFiles: &files, MaxFileSizeMB: &size}
	group.EphemeralDisk = &nomadapi.EphemeralDisk{SizeMB: &disk}
	if kind == nomadapi.JobTypeService {
		return nomadapi.NewServiceJob(id, id, "global", 50).AddDatacenter("dc1").AddTaskGroup(group)
	}
	return nomadapi.NewBatchJob(id, id, "global", 50).AddDatacenter("dc1").AddTaskGroup(group)
}

func TestRealNomad(t *testing.T) {
	t.Parallel()
	nomad := startNomad(t, nil, nodeReady)
	t.Cleanup(nomad.stopJobs) // runs before the agent is killed
	opts := Options{Nomad: &nomadapi.Config{Address: nomad.address}, NoConsul: true}
	c := newChecker(t, opts)
	jobs := nomad.client.Jobs()
	register := func(job *nomadapi.Job) {
		t.Helper()
		if _, _, err := jobs.Register(job, nil); err != nil {
			t.Fatal(err)
		}
	}
	stop := func(id string) {
		t.Helper()
		if _, _, err := jobs.Deregister(id, false, nil); err != nil {
			t.Fatal(err)
		}
	}

	r := waitFor(t, c, "a fresh Nomad", resultIs("all-healthy"))
	equal(t, "detail", r.Detail, "consul: absent (not configured); nomad: 1 of 1 node ready, 0 jobs, 0 allocations running; node: load 0.4 on 2 cores, memory 12%, disk 40%")

	register(rawExecJob(nomadapi.JobTypeBatch, "backup", "/bin/false"))
	r = waitFor(t, c, "a batch job fails", resultIs("alert: 1 failed allocations, 0 unhealthy services"))
	equal(t, "failed", r.Nomad.FailedAllocations.Count, 1)
	mustContain(t, r.Nomad.FailedAllocations.String(), "backup.backup[0] (", " on jerry)")
	t.Logf("sample:\n%s\n%s", r.Text(), r.Detail)

	// The corrected job supersedes the failure, whose record stays for hours.
	register(rawExecJob(nomadapi.JobTypeBatch, "backup", "/bin/true"))
	waitFor(t, c, "the corrected job", resultIs("all-healthy"))

	register(rawExecJob(nomadapi.JobTypeService, "web", "/bin/false"))
	r = waitFor(t, c, "a service fails for good", resultIs("alert: 1 failed allocations, 0 unhealthy services, 1 dead jobs"))
	equalNames(t, "dead", r.Nomad.DeadJobs, "web")
	stop("web")
	waitFor(t, c, "the operator stopped it", resultIs("all-healthy"))

	register(rawExecJob(nomadapi.JobTypeService, "fine", "/bin/sleep", "60"))
	waitFor(t, c, "a running service", func(r Report) bool { return r.Nomad.RunningAllocations == 1 && r.Result == "all-healthy" })

	homeless := rawExecJob(nomadapi.JobTypeService, "homeless", "/bin/sleep", "60").
		Constrain(nomadapi.NewConstraint("${node.unique.name}", "=", "nobody"))
	register(homeless)
	opts.PendingAfter = -1
	impatient := newChecker(t, opts)
	r = waitFor(t, impatient, "a job without a place", func(r Report) bool {
		return r.Nomad.PendingJobs.String() == "homeless (1 without a place)" // after the scheduler's look
	})
	equal(t, "pending", r.Result, "alert: 0 failed allocations, 0 unhealthy services, 1 pending jobs")
	equal(t, "it is too young for the usual patience", c.Check(t.Context()).Result, "all-healthy")
	stop("homeless")

	nodes, _, err := nomad.client.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nomad.client.Nodes().ToggleEligibility(nodes[0].ID, false, nil); err != nil {
		t.Fatal(err)
	}
	r = waitFor(t, c, "an ineligible node is seen and no alert", func(r Report) bool {
		return r.Nomad.IneligibleNodes.Count == 1 && r.Result == "all-healthy"
	})
	equalNames(t, "ineligible", r.Nomad.IneligibleNodes, "jerry")

	stop("fine")
	waitFor(t, c, "nothing runs any more", func(r Report) bool { return r.Nomad.RunningAllocations == 0 })
	nomad.kill()
	equal(t, "result of a dead server", c.Check(t.Context()).Result, "alert: 0 failed allocations, 0 unhealthy services, nomad unreachable")
}

// TestRealNomadForbidden: an ACL system that nobody has set up shows an
// anonymous caller nothing.
func TestRealNomadForbidden(t *testing.T) {
	t.Parallel()
	nomad := startNomad(t, map[string]any{
		"acl":    map[string]any{"enabled": true},
		"client": map[string]any{"enabled": false},
	}, func(ctx context.Context, client *nomadapi.Client) error {
		var leader string
		_, err := client.Raw().Query("/v1/status/leader", &leader, (&nomadapi.QueryOptions{}).WithContext(ctx))
		if err == nil && leader == "" {
			err = errors.New("no leader yet")
		}
		return err
	})
	check := func(token string) Report {
		return newChecker(t, Options{Nomad: &nomadapi.Config{Address: nomad.address, SecretID: token}, NoConsul: true}).Check(t.Context())
	}
	const forbiddenLine = "alert: 0 failed allocations, 0 unhealthy services, nomad forbidden"
	r := check("")
	t.Logf("anonymous: %v", r.Nomad.Errors)
	equal(t, "anonymous: status", r.Nomad.Status, StatusForbidden)
	equal(t, "anonymous: result", r.Result, forbiddenLine)
	equal(t, "unknown token: result", check("5e1f7c0a-0000-4000-8000-c0ffee00dead").Result, forbiddenLine)

	root, _, err := nomad.client.ACLTokens().Bootstrap(nil)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "management token: result", check(root.SecretID).Result, "all-healthy")

	w := (&nomadapi.WriteOptions{AuthToken: root.SecretID})
	if _, err := nomad.client.ACLPolicies().Upsert(&nomadapi.ACLPolicy{Name: "nodes", Rules: `node { policy = "read" }`}, w); err != nil {
		t.Fatal(err)
	}
	token, _, err := nomad.client.ACLTokens().Create(&nomadapi.ACLToken{Name: "nodes", Type: "client", Policies: []string{"nodes"}}, w)
	if err != nil {
		t.Fatal(err)
	}
	r = check(token.SecretID)
	t.Logf("no namespace: %v", r.Nomad.Errors)
	equal(t, "a token that sees no namespace", r.Result, forbiddenLine)
}

// TestRealNomadWithoutLeader: one of three servers is there. Its API answers, and
// holds every ordinary read for five seconds.
func TestRealNomadWithoutLeader(t *testing.T) {
	t.Parallel()
	nomad := startNomad(t, map[string]any{
		"server": map[string]any{"enabled": true, "bootstrap_expect": 3},
		"client": map[string]any{"enabled": false},
	}, func(ctx context.Context, client *nomadapi.Client) error {
		var peers []string
		_, err := client.Raw().Query("/v1/status/peers", &peers, (&nomadapi.QueryOptions{AllowStale: true}).WithContext(ctx))
		return err
	})
	c := newChecker(t, Options{Nomad: &nomadapi.Config{Address: nomad.address}, NoConsul: true, Timeout: time.Second})
	r := c.Check(t.Context())
	t.Logf("%s %v", r.Result, r.Nomad.Errors)
	equal(t, "result", r.Result, "alert: 0 failed allocations, 0 unhealthy services, nomad has no leader, nomad check incomplete")
	equal(t, "status", r.Nomad.Status, StatusAlert)
}
