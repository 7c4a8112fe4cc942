package test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
)

// TestInfrastructureHeartbeat: Bobby looks at the infrastructure by schedule, and Jerry has what changed posted in Slack. A service of a real Consul fails, the gateway that owns
// Bobby is killed with -9, the service is well again: one alert and one all-clear are posted, and what was found last is beside Bobby's registry entry. So it is with an allocation of
// a real Nomad, whose task is replaced by one that fails.
func TestInfrastructureHeartbeat(t *testing.T) {
	binary := builtBinary(t)
	c := cluster.ForTest(t, 3)
	nomad, err := nomadapi.NewClient(&nomadapi.Config{Address: startNomad(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nomad.Close)
	soonOr(t, "Nomad has no node", func() bool {
		nodes, _, err := nomad.Nodes().List(nil)
		return err == nil && len(nodes) == 1 && nodes[0].Status == nomadapi.NodeStatusReady
	})
	runShop(t, nomad, "/bin/sleep")
	soonOr(t, "Nomad does not run the job", func() bool {
		list, _, err := nomad.Jobs().Allocations("shop", false, nil)
		running := 0
		for _, a := range list {
			if a.ClientStatus == nomadapi.AllocClientStatusRunning {
				running++
			}
		}
		return err == nil && running == 2
	})
	slack, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slack.Close() })
	// The skill that ships, looking every second instead of every five minutes.
	workspace := t.TempDir()
	if out, err := exec.Command(binary, "skills", "init", "--workspace", workspace).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	skill := filepath.Join(workspace, "skills", "infrastructure-heartbeat", "SKILL.md")
	text, err := os.ReadFile(skill)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(skill, []byte(strings.Replace(string(text), `"*/5 * * * *"`, `"@every 1s"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(name string, i int) *daemon {
		port := freePort(t)
		return startGateway(t, binary, name, port, fmt.Sprintf(`{
			gateway: { port: %d },
			cron: { enabled: true },
			channels: { slack: %s },
			agents: { list: [
				{ id: "bobby", workspace: %q, gateways: ["one", "two", "three"], runner: { kind: "checks", checks: ["consul", "nomad"], alert: "jerry" } },
				{ id: "jerry", gateways: ["three", "two", "one"], runner: "echo", alerts: { channel: "slack", to: "channel:%s" } },
			] },
			mesh: { gateway: %q, consul: { address: %q }, dataDir: %q, policy: { rules: [
				{ from: "cron", to: "bobby" }, { from: "bobby", to: "jerry", capability: "infra.alert" }, { from: "jerry", to: "channel-slack-default", capability: "channel.post" },
			] } },
		}`, port, slack.Settings(), workspace, slacktest.General, name, c.Addr(i), t.TempDir()), "CONSUL_HTTP_ADDR="+c.Addr(2), "NOMAD_ADDR="+nomad.Address())
	}
	nodes := map[string]*daemon{"one": start("one", 0), "two": start("two", 1), "three": start("three", 2)}
	witness := nodes["three"]
	consul, err := consulapi.NewClient(&consulapi.Config{Address: c.Addr(2)})
	if err != nil {
		t.Fatal(err)
	}
	note := func(key string) string {
		p, _, err := consul.KV().Get("openclaw/agents/bobby/"+key, nil)
		if err != nil || p == nil {
			return ""
		}
		return string(p.Value)
	}
	posts := func() (list []string) {
		for _, p := range slack.Posts() {
			first, _, _ := strings.Cut(p.Text, "\n")
			list = append(list, p.Channel+" "+first)
		}
		return list
	}
	owner := func(duty string) string {
		_, v := witness.call(http.MethodGet, "/v1/owners", nil)
		list, _ := v["owners"].([]any)
		for _, x := range list {
			if o := x.(map[string]any); o["duty"] == duty {
				return fmt.Sprint(o["owner"])
			}
		}
		return ""
	}
	witness.until("the gateways' own services are well", func() bool {
		bad, _, err := consul.Health().State("critical", nil)
		return err == nil && len(bad) == 0 && owner("bobby") == "one" && owner("channel-slack-default") != ""
	})
	jobs := func() string {
		_, v := witness.call(http.MethodGet, "/v1/cron", nil)
		return fmt.Sprint(v["jobs"])
	}
	witness.until("the skill's schedule is a job", func() bool { return strings.Contains(jobs(), "every:1s") })
	witness.until("a check found all well", func() bool { return note("last_check_result") == "all-healthy" })

	// A service fails.
	if err := consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{Name: "web", Check: &consulapi.AgentServiceCheck{TTL: "1h", Status: "critical"}}); err != nil {
		t.Fatal(err)
	}
	witness.until("the alert is posted", func() bool { return len(posts()) > 0 })
	_ = nodes["one"].cmd.Process.Signal(syscall.SIGKILL)
	<-nodes["one"].done
	witness.until("another one has Bobby", func() bool { o := owner("bobby"); return o != "" && o != "one" })
	since := note("last_check")
	witness.until("it goes on to look", func() bool { return note("last_check") > since })
	if result := note("last_check_result"); !strings.HasPrefix(result, "alert: ") || !strings.Contains(note("last_alert"), "unhealthy services") {
		t.Errorf("%q %q", result, note("last_alert"))
	}
	// It is well again, and so is the gateway that died.
	start("one", 0)
	if err := consul.Agent().ServiceDeregister("web"); err != nil {
		t.Fatal(err)
	}
	witness.until("the all-clear is posted", func() bool { return len(posts()) > 1 })
	looksOn := func() {
		t.Helper()
		since := time.Now().UTC().Add(2 * time.Second).Format(time.RFC3339)
		witness.until("it goes on to look after it", func() bool { return note("last_check") > since })
	}
	looksOn()
	// An allocation fails.
	runShop(t, nomad, "/bin/false")
	witness.until("Nomad's alert is posted", func() bool { return len(posts()) > 2 })
	looksOn()
	if result := note("last_check_result"); result != "alert: 1 failed allocations, 0 unhealthy services" {
		t.Errorf("%q", result)
	}
	runShop(t, nomad, "/bin/sleep")
	witness.until("Nomad's all-clear is posted", func() bool { return len(posts()) > 3 })
	looksOn()
	got := posts()
	alert, clear := slacktest.General+" bobby: alert: ", slacktest.General+" bobby: all clear again"
	if len(got) != 4 || !strings.Contains(got[0], alert) || !strings.Contains(got[1], clear) || !strings.Contains(got[2], alert+"1 failed allocations") || !strings.Contains(got[3], clear) {
		t.Errorf("posted: %q", got)
	}
}
