package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/gatemesh/gatemesh/agent/infra"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// TestInfraCheckOnRealServers breaks a real Consul service and a real Nomad allocation, and mends both: the
// check says so in the plan's words.
func TestInfraCheckOnRealServers(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a Consul server and a Nomad agent")
	}
	consulConfig := consulapi.DefaultConfig()
	consulConfig.Address = cluster.ForTest(t, 1).Addr(0)
	consulClient, err := consulapi.NewClient(consulConfig)
	if err != nil {
		t.Fatal(err)
	}
	nomadConfig := &nomadapi.Config{Address: startNomad(t)}
	nomadClient, err := nomadapi.NewClient(nomadConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nomadClient.Close)
	// A busy or full machine is not what is tested here.
	checker, err := infra.New(infra.Options{Consul: consulConfig, Nomad: nomadConfig, MaxLoadPerCore: -1, MaxMemoryPercent: -1, MaxDiskPercent: -1})
	if err != nil {
		t.Fatal(err)
	}
	says := func(want string) infra.Report {
		t.Helper()
		var got infra.Report
		deadline := time.Now().Add(45 * time.Second)
		for got.Result != want {
			if time.Now().After(deadline) {
				t.Fatalf("the check says %q, want %q\n%s", got.Result, want, got.Text())
			}
			<-time.After(200 * time.Millisecond)
			got = checker.Check(t.Context())
		}
		return got
	}
	says("all-healthy")

	err = consulClient.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{
		Name: "traefik", Check: &consulapi.AgentServiceCheck{CheckID: "traefik-up", TTL: "10m", Status: "critical"},
	})
	if err != nil {
		t.Fatal(err)
	}
	says("alert: 0 failed allocations, 1 unhealthy services")
	runShop(t, nomadClient, "/bin/false")
	r := says("alert: 1 failed allocations, 1 unhealthy services")
	if text := r.Text(); !strings.Contains(text, "traefik") || !strings.Contains(text, "shop.db[0]") {
		t.Errorf("the report names neither service nor allocation:\n%s", text)
	}
	if err := consulClient.Agent().UpdateTTL("traefik-up", "", "passing"); err != nil {
		t.Fatal(err)
	}
	says("alert: 1 failed allocations, 0 unhealthy services")
	runShop(t, nomadClient, "/bin/sleep")
	if r := says("all-healthy"); r.Nomad.Jobs != 1 || r.Consul.Services != 2 {
		t.Errorf("the healthy report is %+v", r)
	}
}

// runShop runs a job whose database is a program; the web beside it keeps the job alive.
func runShop(t *testing.T, client *nomadapi.Client, database string) {
	t.Helper()
	never := 0
	job := nomadapi.NewServiceJob("shop", "shop", "global", 50)
	for group, command := range map[string]string{"web": "/bin/sleep", "db": database} {
		g := nomadapi.NewTaskGroup(group, 1).AddTask(nomadapi.NewTask(group, "raw_exec").SetConfig("command", command).SetConfig("args", []string{"3600"}))
		g.RestartPolicy = &nomadapi.RestartPolicy{Attempts: &never, Mode: new("fail")}
		g.ReschedulePolicy = &nomadapi.ReschedulePolicy{Attempts: &never, Unlimited: new(false)}
		job.AddTaskGroup(g)
	}
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
}

// startNomad runs a Nomad agent, server and client in one, and returns its address.
func startNomad(t *testing.T) string {
	t.Helper()
	var ports [3]int
	var free []net.Listener
	for i := range ports { // all held before any is let go, so that they differ
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = l.Addr().(*net.TCPAddr).Port
		free = append(free, l)
	}
	for _, l := range free {
		_ = l.Close()
	}
	dir := t.TempDir()
	config := fmt.Sprintf(`
data_dir = %q
bind_addr = "127.0.0.1"
name = "jerry"
disable_update_check = true
ports { http = %[2]d
  rpc = %[3]d
  serf = %[4]d }
advertise { http = "127.0.0.1:%[2]d"
  rpc = "127.0.0.1:%[3]d"
  serf = "127.0.0.1:%[4]d" }
server { enabled = true
  bootstrap_expect = 1 }
client { enabled = true
  network_interface = "lo"
  options = { "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean" } }
plugin "raw_exec" { config { enabled = true } }
consul { auto_advertise = false
  server_auto_join = false
  client_auto_join = false }
`, filepath.Join(dir, "data"), ports[0], ports[1], ports[2])
	file := filepath.Join(dir, "nomad.hcl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "nomad.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nomadBinary(t), "agent", "-config", file)
	cmd.Stdout, cmd.Stderr = log, log
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_CA_BUNDLE=") && !strings.HasPrefix(v, "NOMAD_") && !strings.HasPrefix(v, "CONSUL_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	t.Cleanup(func() {
		stopNomadJobs(address, dir)
		_ = cmd.Process.Signal(os.Interrupt)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = cmd.Wait()
		}()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		_ = log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("nomad, last of its log:\n%s", b[max(0, len(b)-4000):])
		}
	})
	return address
}

// stopNomadJobs ends what runs, because raw_exec tasks outlive their agent, and has Nomad clear what it mounted
// below dir.
func stopNomadJobs(address, dir string) {
	client, err := nomadapi.NewClient(&nomadapi.Config{Address: address})
	if err != nil {
		return
	}
	defer client.Close()
	if _, _, err := client.Jobs().Deregister("shop", true, nil); err != nil {
		return
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(200 * time.Millisecond) {
		_ = client.System().GarbageCollect()
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil || !strings.Contains(string(mounts), dir) {
			return
		}
	}
}
