package infra

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
)

// consulAgent is a real Consul agent of the test's own.
type consulAgent struct {
	*agentProc
	address  string // http
	serfPort int
	client   *consulapi.Client
}

// startConsul runs a development server with more settings laid over it.
func startConsul(t testing.TB, name, token string, more map[string]any) *consulAgent {
	t.Helper()
	return startConsulUntil(t, name, token, more, func(ctx context.Context, client *consulapi.Client) error {
		q := (&consulapi.QueryOptions{}).WithContext(ctx)
		// A management token works only once the leader has set it up.
		nodes, _, err := client.Catalog().Nodes(q)
		if err == nil && len(nodes) == 0 {
			err = errors.New("no node in the catalog yet")
		}
		return err
	})
}

// startConsulUntil lets ready decide when the agent is.
func startConsulUntil(t testing.TB, name, token string, more map[string]any, ready func(context.Context, *consulapi.Client) error) *consulAgent {
	t.Helper()
	binary := tool(t, "consul", "GATEMESH_CONSUL_BIN")
	a := &consulAgent{}
	a.agentProc = startRetry(t, 4, func(dir string, ports []int) (*agentProc, error) {
		cfg := map[string]any{
			"node_name": name,
			"bind_addr": "127.0.0.1",
			"ports": map[string]int{
				"http": ports[0], "server": ports[1], "serf_lan": ports[2], "serf_wan": ports[3],
				"dns": -1, "grpc": -1, "grpc_tls": -1,
			},
			// A dead member is noticed at once instead of after seconds.
			"gossip_lan": map[string]any{
				"probe_interval": "200ms", "probe_timeout": "100ms", "gossip_interval": "50ms", "suspicion_mult": 2,
			},
			"leave_on_terminate": true,
		}
		mode := []string{"-dev"}
		for k, v := range more {
			cfg[k] = v
		}
		if _, ok := more["server"]; ok {
			mode = nil
			cfg["data_dir"] = dir
		}
		data, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "consul.json")
		writeFile(t, file, string(data))
		a.address = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
		a.serfPort = ports[2]
		a.client, err = consulapi.NewClient(&consulapi.Config{Address: a.address, Token: token, Transport: newTransport()})
		if err != nil {
			t.Fatal(err)
		}
		args := append([]string{"agent", "-config-file=" + file, "-log-level=warn"}, mode...)
		return start(t, dir, binary, args, func(ctx context.Context) error {
			return ready(ctx, a.client)
		})
	})
	return a
}

func TestRealConsul(t *testing.T) {
	t.Parallel()
	one := startConsul(t, "one", "", nil)
	c := newChecker(t, Options{Consul: &consulapi.Config{Address: one.address}, NoNomad: true, IgnoreCheck: func(id string) bool { return id == "check:probe" }})
	agent := one.client.Agent()
	register := func(id, name, check, status string) {
		t.Helper()
		err := agent.ServiceRegister(&consulapi.AgentServiceRegistration{ID: id, Name: name, Check: &consulapi.AgentServiceCheck{
			CheckID: "check:" + id, Name: check, TTL: "10m", Status: status,
		}})
		if err != nil {
			t.Fatal(err)
		}
	}

	r := waitFor(t, c, "a fresh Consul", resultIs("all-healthy"))
	equal(t, "detail", r.Detail, "consul: 1 member, 1 service; nomad: absent (not configured); node: load 0.4 on 2 cores, memory 12%, disk 40%")
	equal(t, "agent", r.Consul.Agent, "one")
	equal(t, "status", r.Consul.Status, StatusOK)
	if r.Consul.Version == "" || r.Consul.Leader == "" || r.Alert || len(r.Absent) != 1 {
		t.Errorf("version, leader, alert or absent wrong: %+v", r)
	}

	register("web-1", "web", "http", "critical")
	register("web-2", "web", "http", "warning")
	register("db-1", "db", "disk", "warning")
	register("ok-1", "fine", "http", "passing")
	register("probe", "probed", "nobody's trouble", "warning")
	r = waitFor(t, c, "two services fail", resultIs("alert: 0 failed allocations, 2 unhealthy services"))
	equal(t, "services", r.Consul.Services, 5)
	equalNames(t, "unhealthy", r.Consul.UnhealthyServices, "db (warning: disk on one)", "web (critical: http on one, +1)")
	equal(t, "status", r.Consul.Status, StatusAlert)
	t.Logf("sample:\n%s\n%s", r.Text(), r.Detail)

	for _, id := range []string{"check:web-1", "check:web-2", "check:db-1"} {
		if err := agent.UpdateTTL(id, "fine again", "passing"); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, c, "all pass again", resultIs("all-healthy"))

	if err := agent.EnableServiceMaintenance("web-1", "new disk"); err != nil {
		t.Fatal(err)
	}
	r = waitFor(t, c, "maintenance is seen and no alert", func(r Report) bool {
		return r.Consul.Maintenance.Count == 1 && r.Result == "all-healthy"
	})
	equalNames(t, "maintenance", r.Consul.Maintenance, "web on one")

	if err := agent.CheckRegister(&consulapi.AgentCheckRegistration{
		ID: "ssd", Name: "ssd wear", AgentServiceCheck: consulapi.AgentServiceCheck{TTL: "10m", Status: "critical"},
	}); err != nil {
		t.Fatal(err)
	}
	r = waitFor(t, c, "a node's own check fails", resultIs("alert: 0 failed allocations, 0 unhealthy services, 1 failing node checks"))
	equalNames(t, "node checks", r.Consul.UnhealthyNodeChecks, "one (critical: ssd wear)")
	if err := agent.CheckDeregister("ssd"); err != nil {
		t.Fatal(err)
	}

	join := func(name string) *consulAgent {
		return startConsul(t, name, "", map[string]any{
			"server": false, "retry_join": []string{fmt.Sprintf("127.0.0.1:%d", one.serfPort)}, "retry_interval": "1s",
		})
	}
	two := join("two")
	waitFor(t, c, "a second member", func(r Report) bool { return r.Consul.Members == 2 && r.Result == "all-healthy" })
	two.kill()
	r = waitFor(t, c, "the second member died", resultIs("alert: 0 failed allocations, 0 unhealthy services, 1 failed members"))
	equalNames(t, "failed", r.Consul.FailedMembers, "two")
	// Its serf check turns critical a moment later, and is not said twice.
	if err := agent.ForceLeave("two"); err != nil {
		t.Fatal(err)
	}
	r = waitFor(t, c, "it is told to have left", func(r Report) bool {
		return r.Consul.LeftMembers.Count == 1 && r.Result == "all-healthy"
	})
	equalNames(t, "left", r.Consul.LeftMembers, "two")

	one.kill()
	r = c.Check(t.Context())
	equal(t, "result of a dead server", r.Result, "alert: 0 failed allocations, 0 unhealthy services, consul unreachable")
	equal(t, "status of a dead server", r.Consul.Status, StatusUnreachable)
}

// TestRealConsulForbidden: what the token may not see is never called healthy,
// whether Consul refuses it or leaves it out in silence.
func TestRealConsulForbidden(t *testing.T) {
	t.Parallel()
	const root = "5e1f7c0a-0000-4000-8000-c0ffee000001"
	s := startConsul(t, "one", root, map[string]any{
		"primary_datacenter": "dc1",
		"acl": map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]string{
			"initial_management": root, "agent": root,
		}},
	})
	check := func(token string) Report {
		return newChecker(t, Options{Consul: &consulapi.Config{Address: s.address, Token: token}, NoNomad: true}).Check(t.Context())
	}
	limited := func(name, rules string) string {
		policy, _, err := s.client.ACL().PolicyCreate(&consulapi.ACLPolicy{Name: name, Rules: rules}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, _, err := s.client.ACL().TokenCreate(&consulapi.ACLToken{Policies: []*consulapi.ACLLink{{ID: policy.ID}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return token.SecretID
	}
	rooted := newChecker(t, Options{Consul: &consulapi.Config{Address: s.address, Token: root}, NoNomad: true})
	waitFor(t, rooted, "the management token sees everything", resultIs("all-healthy"))

	const forbiddenLine = "alert: 0 failed allocations, 0 unhealthy services, consul forbidden"
	for name, token := range map[string]string{
		"no token":                "",
		"unknown token":           "5e1f7c0a-0000-4000-8000-c0ffee00dead",
		"agent and nodes only":    limited("no-services", `agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`),
		"some of the services":    limited("some", `agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" } service "web" { policy = "read" }`),
		"everything but nodes":    limited("no-nodes", `agent_prefix "" { policy = "read" } service_prefix "" { policy = "read" }`),
		"everything but the self": limited("no-agent", `node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }`),
	} {
		r := check(token)
		t.Logf("%s: %s %v", name, r.Consul.Status, r.Consul.Errors)
		equal(t, name+": status", r.Consul.Status, StatusForbidden)
		equal(t, name+": result", r.Result, forbiddenLine)
		equal(t, name+": alert", r.Alert, true)
	}
	r := check(limited("reader", `agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }`))
	equal(t, "a token that reads everything", r.Result, "all-healthy")
	mustContain(t, r.Detail, "consul: 1 member, 1 service")
}

// TestRealConsulWithoutLeader: one of three servers is there.
func TestRealConsulWithoutLeader(t *testing.T) {
	t.Parallel()
	s := startConsulUntil(t, "one", "", map[string]any{"server": true, "bootstrap_expect": 3}, func(ctx context.Context, client *consulapi.Client) error {
		_, err := client.Status().LeaderWithQueryOptions((&consulapi.QueryOptions{}).WithContext(ctx))
		return err
	})
	c := newChecker(t, Options{Consul: &consulapi.Config{Address: s.address}, NoNomad: true, Timeout: time.Second})
	r := c.Check(t.Context())
	t.Logf("%s %v", r.Result, r.Consul.Errors)
	equal(t, "result", r.Result, "alert: 0 failed allocations, 0 unhealthy services, consul has no leader, consul check incomplete")
	equal(t, "agent", r.Consul.Agent, "one")
	equal(t, "members", r.Consul.Members, 1)
}
