package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// A daemon is one `gatemesh gateway` process.
type daemon struct {
	token string // what it is asked with
	t     *testing.T
	name  string
	url   string
	cmd   *exec.Cmd
	done  chan struct{}
}

// startDaemon starts a gateway against one Consul server; bob may run on bobby-gateway first
// and on jerry-gateway second.
func startDaemon(t *testing.T, binary, name, consul string) *daemon {
	t.Helper()
	port := freePort(t)
	config := fmt.Sprintf(`{
		gateway: { port: %d },
		agents: { list: [
			{ id: "bob", runner: { kind: "echo" }, capabilities: ["echo"], gateways: ["bobby-gateway", "jerry-gateway"] },
		] },
		mesh: { gateway: %q, store: "consul", consul: { address: %q }, log: { level: "warn" }, policy: { default: "allow" }, dataDir: %q },
	}`, port, name, consul, t.TempDir())
	return startGateway(t, binary, name, port, config)
}

// startGateway starts a process of the real binary and waits until it is ready. It is stopped in order when the test ends; env comes on top of the test's own.
func startGateway(t *testing.T, binary, name string, port int, config string, env ...string) *daemon {
	t.Helper()
	path := filepath.Join(t.TempDir(), "openclaw.json")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, name: name, url: fmt.Sprintf("http://127.0.0.1:%d", port), done: make(chan struct{})}
	d.cmd = exec.Command(binary, "gateway", "--config", path)
	d.cmd.Env = append(os.Environ(), env...)
	var log bytes.Buffer
	d.cmd.Stderr = &log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.done)
		_ = d.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		<-d.done
		if t.Failed() {
			t.Logf("%s said:\n%s", name, log.String())
		}
	})
	d.until("ready", func() bool {
		resp, err := http.Get(d.url + "/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return d
}

// until asks again and again, for another process's state, until it fits.
func (d *daemon) until(what string, fits func() bool) time.Duration {
	d.t.Helper()
	begin := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(90 * time.Second)
	for !fits() {
		select {
		case <-tick.C:
		case <-d.done:
			d.t.Fatalf("%s ended while it was waited for: %s", d.name, what)
		case <-deadline:
			d.t.Fatalf("%s: still not %s", d.name, what)
		}
	}
	return time.Since(begin)
}

func (d *daemon) call(method, path string, body any) (int, map[string]any) {
	d.t.Helper()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			d.t.Fatal(err)
		}
		r = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 90*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, d.url+path, r)
	if err != nil {
		d.t.Fatal(err)
	}
	if r != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if d.token != "" {
		req.Header.Set("Authorization", "Bearer "+d.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	var v map[string]any
	_ = json.NewDecoder(resp.Body).Decode(&v)
	return resp.StatusCode, v
}

func (d *daemon) owner(agent string) string {
	_, v := d.call(http.MethodGet, "/v1/agents", nil)
	list, _ := v["agents"].([]any)
	for _, x := range list {
		if a := x.(map[string]any); a["agent"] == agent && a["status"] == "active" {
			return fmt.Sprint(a["gateway"])
		}
	}
	return ""
}

// TestTakeover: real processes on three real Consul servers; the owner of bob is killed with -9
// while questions come in. The other gateway takes bob over, and every accepted question is
// answered, once, whoever is asked about it.
func TestTakeover(t *testing.T) {
	binary := builtBinary(t)
	c := cluster.ForTest(t, 3)
	bobby := startDaemon(t, binary, "bobby-gateway", c.Addr(0))
	jerry := startDaemon(t, binary, "jerry-gateway", c.Addr(1))
	billy := startDaemon(t, binary, "billy-gateway", c.Addr(2))
	billy.until("seeing bob on bobby-gateway", func() bool { return billy.owner("bob") == "bobby-gateway" })

	const n = 150
	var wg sync.WaitGroup
	ids := make([]string, n)
	killed := make(chan struct{})
	for i := range n {
		if i == n/3 {
			go func() {
				defer close(killed)
				_ = bobby.cmd.Process.Kill()
			}()
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			status, v := billy.call(http.MethodPost, "/v1/messages", map[string]any{
				"to": "bob", "text": fmt.Sprint(i), "reply": true, "conversation_id": fmt.Sprint(i % 10),
			})
			if status != http.StatusOK && status != http.StatusAccepted {
				t.Errorf("question %d: status %d %v", i, status, v)
				return
			}
			ids[i] = fmt.Sprint(v["message_id"])
		}()
	}
	wg.Wait()
	<-killed
	took := jerry.until("owner of bob", func() bool { return jerry.owner("bob") == "jerry-gateway" })
	t.Logf("bob has a new owner %s after the questions were in", took.Round(time.Millisecond))
	for i, id := range ids {
		if id == "" {
			continue
		}
		var v map[string]any
		jerry.until("answered "+id, func() bool {
			_, v = jerry.call(http.MethodGet, "/v1/messages/"+id, nil)
			facts, _ := v["facts"].(map[string]any)
			return facts["replied"] == true && v["state"] == "acked"
		})
		reply, _ := v["reply"].(map[string]any)
		if reply["payload"] != fmt.Sprint(i) {
			t.Errorf("question %d: answered with %v", i, reply["payload"])
		}
	}
	_, v := billy.call(http.MethodGet, "/v1/inboxes/bob", nil)
	if b := v; b["waiting"] != 0.0 || b["pending"] != 0.0 || b["dead_letters"] != 0.0 || b["owner"] != "jerry-gateway" {
		t.Errorf("inbox: %v", b)
	}
	_, v = jerry.call(http.MethodGet, "/v1/gateways", nil)
	for _, x := range v["gateways"].([]any) {
		if g := x.(map[string]any); (g["gateway"] == "bobby-gateway") != (g["status"] == "unreachable") {
			t.Errorf("gateway: %v", g)
		}
	}
}
