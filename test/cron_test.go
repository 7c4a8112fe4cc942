package test

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// TestCronTakeover: the gateway that has the scheduler is killed with -9 while a job runs every second; another one goes on, and each moment was run once or is
// counted as missed.
func TestCronTakeover(t *testing.T) {
	binary := builtBinary(t)
	c := cluster.ForTest(t, 3)
	start := func(name string, i int) *daemon {
		port := freePort(t)
		return startGateway(t, binary, name, port, fmt.Sprintf(`{
			gateway: { port: %d },
			cron: { enabled: true },
			agents: { list: [{ id: "bob", runner: "echo", gateways: ["one", "two", "three"] }] },
			mesh: { gateway: %q, consul: { address: %q }, policy: { rules: [{ from: "cron", to: "bob" }] }, dataDir: %q },
		}`, port, name, c.Addr(i), t.TempDir()))
	}
	nodes := map[string]*daemon{"one": start("one", 0), "two": start("two", 1), "three": start("three", 2)}
	witness := nodes["three"]
	status, v := 0, map[string]any(nil)
	witness.until("taking a job", func() bool {
		status, v = witness.call(http.MethodPost, "/v1/cron", map[string]any{"name": "beat", "every": "1s", "agent": "bob", "message": "well?"})
		return status == http.StatusOK
	})
	created, err := time.Parse(time.RFC3339, fmt.Sprint(v["created_at"]))
	if err != nil {
		t.Fatal(err)
	}
	runs := func() (list []map[string]any) {
		_, v := witness.call(http.MethodGet, "/v1/cron/beat/runs", nil)
		all, _ := v["runs"].([]any)
		for _, x := range all {
			list = append(list, x.(map[string]any))
		}
		return list
	}
	witness.until("running it", func() bool { return len(runs()) >= 2 })
	owner := ""
	_, v = witness.call(http.MethodGet, "/v1/owners", nil)
	for _, x := range v["owners"].([]any) {
		if o := x.(map[string]any); o["duty"] == "cron" {
			owner = fmt.Sprint(o["owner"])
		}
	}
	if owner == "three" {
		witness = nodes["one"]
	}
	_ = nodes[owner].cmd.Process.Signal(syscall.SIGKILL)
	<-nodes[owner].done
	witness.until("running it elsewhere", func() bool {
		list := runs()
		return len(list) > 0 && list[len(list)-1]["gateway"] != owner && len(list) >= 6
	})
	// Without a gap: each second after the first one was run, or counted with the run after it.
	next := created.Add(time.Second)
	for _, r := range runs() {
		at, err := time.Parse(time.RFC3339, fmt.Sprint(r["scheduled_at"]))
		if err != nil {
			t.Fatal(err)
		}
		skipped, _ := r["skipped"].(float64)
		if want := next.Add(time.Duration(skipped) * time.Second); !at.Equal(want) || r["ok"] != true {
			t.Errorf("a run of %s with %v missed before it, want %s: %v", at, skipped, want, r)
		}
		next = at.Add(time.Second)
	}
}
