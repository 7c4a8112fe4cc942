package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// consul asks the servers themselves, as who may do everything.
func (d *drill) consul(method, path, body, token string) (int, []byte) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.c.Addr(0)+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("X-Consul-Token", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, raw
}

// consulToken makes a token with a policy.
func (d *drill) consulToken(policy string) (secret, accessor string) {
	d.t.Helper()
	status, raw := d.consul(http.MethodPut, "acl/token", fmt.Sprintf(`{"Policies":[{"Name":%q}]}`, policy), d.c.Token())
	var made struct{ SecretID, AccessorID string }
	if err := json.Unmarshal(raw, &made); err != nil || status != http.StatusOK {
		d.t.Fatalf("make a token: %d %s", status, raw)
	}
	return made.SecretID, made.AccessorID
}

// run is one command of the operator. It must work.
func (d *drill) run(args ...string) []byte {
	d.t.Helper()
	code, out, errOut := d.try(args...)
	if code != 0 {
		d.t.Fatalf("gatemesh %s: status %d: %s%s", strings.Join(args, " "), code, out, errOut)
	}
	return out
}

func (d *drill) try(args ...string) (code int, out []byte, errOut string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.binary, append(args, "--timeout", "60s")...)
	cmd.Env = append(slices.Clone(d.env), "GATEMESH_TOKEN="+*d.token.Load())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		d.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.String()
}

func into[T any](t *testing.T, raw []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return v
}

// configure writes a node's configuration, as one that is edited: by renaming.
func (d *drill) configure(n *drillNode, port int) {
	d.t.Helper()
	agent, _, _ := strings.Cut(n.name, "-")
	text := fmt.Sprintf(`{
		gateway: { port: %d, auth: { rateLimit: { exemptLoopback: true }, tokens: [ %s ] } },
		agents: { list: [ { id: %q, runner: "echo", gateways: [%q] } ] },
		mesh: { gateway: %q, dataDir: %q, cluster: { id: "drill" }, heartbeatInterval: "1s", log: { json: true },
			consul: { address: %q, tokenFile: %q }, trust: { mode: "enforce", operatorKeys: [%q] } },
	}`, port, strings.Join(d.entries, "\n"), agent, n.name, n.name, n.dir, d.c.Addr(slices.Index(drillNodes, agent)), n.consulToken, d.operator)
	replaceFile(d.t, n.file, text)
}

func replaceFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// newDrill starts everything: an operator, who lets three gateways in and signs what they may ask of each other.
func newDrill(t *testing.T, binary string, say func(string, ...any)) *drill {
	t.Helper()
	d := &drill{t: t, binary: binary, say: say, dir: t.TempDir(), nodes: map[string]*drillNode{}, asked: map[string]bool{},
		figures: drillFigures{Rotations: map[string]int{}, Dead: map[string]int{}}}
	d.c = cluster.ForTestWith(t, cluster.Options{Servers: len(drillNodes), Names: drillNodes, ACL: true})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for _, p := range append(slices.Clone(drillNodes), "operator") {
		rules, err := os.ReadFile(filepath.Join("..", "nomad", "acl", p+".hcl"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(map[string]string{"Name": p, "Rules": string(rules)})
		if err != nil {
			t.Fatal(err)
		}
		if status, raw := d.consul(http.MethodPut, "acl/policy", string(body), d.c.Token()); status != http.StatusOK {
			t.Fatalf("policy %s: %d %s", p, status, raw)
		}
	}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); !strings.HasPrefix(name, "CONSUL_") && !strings.HasPrefix(name, "GATEMESH_") && !strings.HasPrefix(name, "OPENCLAW_") {
			d.env = append(d.env, kv)
		}
	}
	desk := filepath.Join(d.dir, "desk.json5")
	token, _ := d.consulToken("operator")
	replaceFile(t, filepath.Join(d.dir, "desk.token"), token)
	replaceFile(t, desk, fmt.Sprintf(`{ mesh: { cluster: { id: "drill" }, dataDir: %q, consul: { address: %q, tokenFile: %q } } }`, filepath.Join(d.dir, "desk"), d.c.Addr(0), filepath.Join(d.dir, "desk.token")))
	d.env = append(d.env, "GATEMESH_CONFIG="+desk, "GATEMESH_OPERATOR_KEY_FILE="+filepath.Join(d.dir, "operator.key"))
	none := ""
	d.token.Store(&none)
	d.until("the operator's token is known everywhere", func() bool { code, _, _ := d.try("trust", "init"); return code == 0 })
	d.operator = into[struct {
		Operators []struct{ Public string }
	}](t, d.run("trust", "list", "--json")).Operators[0].Public
	first := into[struct {
		Token string
		Entry json.RawMessage
	}](t, d.run("token", "create", "--name", "clients", "--role", "operate", "--json"))
	d.entries = []string{string(first.Entry)}
	d.token.Store(&first.Token)
	for _, agent := range drillNodes {
		d.startNode(agent)
	}
	d.until("all ask to join", func() bool {
		for _, r := range into[[]struct {
			Gateway, Key string
		}](t, d.run("trust", "pending", "--json")) {
			agent, _, _ := strings.Cut(r.Gateway, "-")
			if strings.Contains(d.nodes[r.Gateway].log.String(), r.Key) { // what its own log names
				d.run("trust", "approve", r.Gateway, "--key", r.Key, "--agents", agent)
			}
		}
		return len(into[struct{ Gateways []any }](t, d.run("trust", "list", "--json")).Gateways) == len(drillNodes)
	})
	rules := filepath.Join(d.dir, "rules.json5")
	replaceFile(t, rules, "{ rules: [ { name: 'all of us', from: '*@*-gateway', to: '*' } ] }")
	d.run("policy", "publish", rules)
	for _, n := range d.nodes {
		d.until(n.name+" is ready and knows all agents", func() bool {
			var keys struct {
				Policy uint64 `json:"policy_version"`
			}
			return d.api(n, http.MethodGet, "/v1/keys", nil, &keys) == http.StatusOK && keys.Policy > 0 && d.knows(n)
		})
	}
	return d
}

// knows reports whether a node sees every agent.
func (d *drill) knows(n *drillNode) bool {
	var list struct {
		Agents []struct{ Status string }
	}
	if d.api(n, http.MethodGet, "/ready", nil, nil) != http.StatusOK || d.api(n, http.MethodGet, "/v1/agents", nil, &list) != http.StatusOK {
		return false
	}
	active := 0
	for _, a := range list.Agents {
		if a.Status == "active" {
			active++
		}
	}
	return active == len(drillNodes)
}

func (d *drill) startNode(agent string) {
	d.t.Helper()
	dir := filepath.Join(d.dir, agent)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	n := &drillNode{file: filepath.Join(dir, "openclaw.json"), dir: filepath.Join(dir, "data"), consulToken: filepath.Join(dir, "consul.token"), log: &lockedBuffer{}}
	var secret string
	secret, n.accessor = d.consulToken(agent)
	replaceFile(d.t, n.consulToken, secret)
	port := freePort(d.t)
	n.daemon = &daemon{t: d.t, name: agent + "-gateway", url: fmt.Sprintf("http://127.0.0.1:%d", port)}
	d.nodes[n.name] = n
	d.configure(n, port)
	d.launch(n)
	d.t.Cleanup(func() {
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
		<-n.done
		if d.t.Failed() {
			text := n.log.String()
			d.t.Logf("%s said:\n%s", n.name, text[max(0, len(text)-20000):])
		}
	})
}

// launch starts a node's process.
func (d *drill) launch(n *drillNode) {
	d.t.Helper()
	n.done = make(chan struct{})
	n.cmd = exec.Command(d.binary, "gateway", "--config", n.file)
	n.cmd.Env = d.env
	n.cmd.Stderr = n.log
	if err := n.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = cmd.Wait()
	}(n.cmd, n.done)
}

// freePort is below the ports that the system gives away by itself, so that it is still free in a moment.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		p := 20000 + rand.IntN(4000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p)); err == nil {
			_ = l.Close()
			return p
		}
	}
	t.Fatal("no free port")
	return 0
}

// until waits for what comes by itself.
func (d *drill) until(what string, so func() bool) {
	d.t.Helper()
	deadline := time.After(90 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			d.t.Fatalf("still not: %s", what)
		}
	}
}

// api asks a gateway with the clients' token, or with others.
func (d *drill) api(n *drillNode, method, path string, in, out any, token ...string) int {
	d.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			d.t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.url+path, body)
	if err != nil {
		d.t.Fatal(err)
	}
	token = append(token, *d.token.Load())
	req.Header.Set("Authorization", "Bearer "+token[0])
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0
	}
	if out != nil && resp.StatusCode < 300 {
		if err := json.Unmarshal(raw, out); err != nil {
			return 0
		}
	}
	return resp.StatusCode
}
