package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// TestPolicyOfDuties: the rules cover the inboxes of chat accounts and of the scheduler, for the gateways that may have them alone.
func TestPolicyOfDuties(t *testing.T) {
	file := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"), `{
  mesh: { gateway: "one" }, cron: { enabled: true },
  channels: { webchat: {}, slack: { gateways: ["two"] }, discord: { enabled: false } },
  agents: { list: [{ id: "bob", gateways: ["one", "two"] }] },
}`)
	for gateway, want := range map[string]map[string]bool{
		"one": {"openclaw/duties/cron/": true, "openclaw/duties/channel-webchat-default/": true, "openclaw/duties/channel-slack-default/": false, "channel-discord": false},
		"two": {"openclaw/duties/cron/": true, "openclaw/duties/channel-webchat-default/": true, "openclaw/duties/channel-slack-default/": true, "channel-discord": false},
	} {
		out := must(t, nil, "acl", "policy", "--config", file, "--gateway", gateway, "--node", "n")
		for key, may := range want {
			if strings.Contains(out, key) != may {
				t.Errorf("%s and %s: %v\n%s", gateway, key, !may, out)
			}
		}
	}
}

// TestShippedPolicies: what lies in nomad/acl is what the command makes of nomad/openclaw.json.
func TestShippedPolicies(t *testing.T) {
	shipped := filepath.Join("..", "..", "nomad")
	for name, args := range map[string][]string{
		"jerry":   {"--config", filepath.Join(shipped, "openclaw.json"), "--node", "jerry"},
		"bobby":   {"--config", filepath.Join(shipped, "openclaw.json"), "--node", "bobby"},
		"billy":   {"--config", filepath.Join(shipped, "openclaw.json"), "--node", "billy"},
		"janitor": {"--role", "janitor"}, "operator": {"--role", "operator"}, "viewer": {"--role", "viewer"},
	} {
		r := gatemesh(t, nil, "", append([]string{"acl", "policy"}, args...)...)
		if r.code != exitOK {
			t.Fatalf("%s: %s", name, r.errOut)
		}
		file := filepath.Join(shipped, "acl", name+".hcl")
		if *update {
			if err := os.WriteFile(file, []byte(r.out), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || r.out != string(want) {
			t.Errorf("%s is not what the command makes (go test ./cmd/gatemesh -run TestShippedPolicies -update): %v\n%s", file, err, firstDifference(r.out, string(want)))
		}
	}
	if files, err := filepath.Glob(filepath.Join(shipped, "acl", "*")); err != nil || len(files) != 6 {
		t.Errorf("files in nomad/acl: %v %v", files, err)
	}
}

// TestPolicyFromFlags: without a file the flags say the same, and a name that a variable should have made is refused.
func TestPolicyFromFlags(t *testing.T) {
	shipped := filepath.Join("..", "..", "nomad")
	want, err := os.ReadFile(filepath.Join(shipped, "acl", "jerry.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	r := gatemesh(t, nil, "", "acl", "policy", "--gateway", "jerry-gateway", "--node", "jerry", "--agent", "billy=billy-gateway",
		"--agent", "bobby=jerry-gateway,billy-gateway,bobby-gateway", "--agent", "jerry=jerry-gateway,bobby-gateway,billy-gateway")
	if r.out != string(want) {
		t.Errorf("flags and file differ: %s%s", r.errOut, firstDifference(r.out, string(want)))
	}
	r = gatemesh(t, nil, "", "acl", "policy", "--gateway", "a", "--node", "n", "--queue", "jobs=b", "--worker", "jobs=a,b", "--gateways", "c")
	for _, rule := range []string{`key "openclaw/tasks/jobs/workers/of/a" { policy = "write" }`, `key "openclaw/inbox/jobs/from/a" { policy = "write" }`} {
		if !strings.Contains(r.out, rule) {
			t.Errorf("no %s in\n%s%s", rule, r.out, r.errOut)
		}
	}
	if strings.Contains(r.out, "workers/about") || strings.Contains(r.out, "unique") {
		t.Error("a worker may write what is the queue's owner's")
	}
	r = gatemesh(t, nil, "", "acl", "policy", "--config", filepath.Join(shipped, "openclaw.json"))
	if r.code != exitUsage || !strings.Contains(r.errOut, "${NODE} is what --node says") {
		t.Errorf("a name without its variable: status %d, %s", r.code, r.errOut)
	}
}

// TestGatewayUnderItsPolicy is the runbook's way on a Consul that denies by default and wants certificates: rules from
// the configuration, a policy, a token. The gateway starts with a token that is no good, says what to do, and
// goes on by itself when it was done.
func TestGatewayUnderItsPolicy(t *testing.T) {
	c := cluster.ForTestWith(t, cluster.Options{ACL: true, MutualTLS: true, Servers: 1, Names: []string{"jerry"}})
	dir, certs := t.TempDir(), c.Certificates()
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), `{
  mesh: { gateway: "node-gateway", log: { json: true } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  agents: { list: [ { id: "echo", runner: "echo" }, { id: "infra", runner: { kind: "checks", checks: ["consul"] } } ] },
}
`)
	token := writeFile(t, filepath.Join(dir, "token"), "00000000-0000-4000-8000-000000000000")
	env := []string{
		"CONSUL_HTTP_ADDR=" + c.Addr(0), "CONSUL_CACERT=" + certs.CA, "CONSUL_CLIENT_CERT=" + certs.ClientCert, "CONSUL_CLIENT_KEY=" + certs.ClientKey,
	}
	own := append(slices.Clone(env), "CONSUL_HTTP_TOKEN_FILE="+token)
	p := launch(t, own, "gateway", "--config", file)
	line, _ := p.wait(0, "the store cannot be used")
	for _, part := range []string{"ACL not found", "consul acl token create", token} {
		if !strings.Contains(line, part) {
			t.Errorf("no %q in %s", part, line)
		}
	}

	rules := writeFile(t, filepath.Join(dir, "jerry.hcl"), must(t, nil, "acl", "policy", "--config", file, "--node", "jerry"))
	consul, err := cluster.Find()
	if err != nil {
		t.Fatal(err)
	}
	operator := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), consul, args...)
		cmd.Env = append(append(os.Environ(), env...), "CONSUL_HTTP_TOKEN="+c.Token())
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("consul %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	operator("acl", "policy", "create", "-name", "gatemesh-jerry", "-rules", "@"+rules)
	type made struct{ SecretID, AccessorID string }
	give := func() made {
		t.Helper()
		m := parse[made](t, operator("acl", "token", "create", "-policy-name", "gatemesh-jerry", "-format=json"))
		if err := os.Rename(writeFile(t, token+".new", m.SecretID+"\n"), token); err != nil {
			t.Fatal(err)
		}
		return m
	}
	old := give()
	_, at := p.wait(0, "the store answers now")
	line, _ = p.wait(0, "gateway is up")
	up := parse[struct{ URL string }](t, line)
	own = append(own, "GATEMESH_ADDR="+up.URL, "GATEMESH_TOKEN=the-token-of-this-test")
	served(t, own, "echo")
	served(t, own, "infra")
	if out := must(t, own, "ask", "--to", "echo", "hello there"); out != "hello there\n" {
		t.Errorf("answer %q", out)
	}
	if out := must(t, own, "ask", "--to", "infra", "look"); strings.Contains(out, "forbidden") || !strings.Contains(out, "consul") && !strings.Contains(out, "Consul") {
		t.Errorf("the check: %s", out)
	}
	found, _ := examine(t, own, "--config", file)
	wantFindings(t, found, map[string]string{"gateway": statusOK, "consul": statusOK, "consul sessions": statusOK, "consul KV": statusOK})

	// The token is replaced, the rules are said again, and the old token is dead.
	now := give()
	p.wait(at, "a new Consul token is in use")
	operator("acl", "token", "delete", "-accessor-id", old.AccessorID)
	operator("acl", "policy", "update", "-name", "gatemesh-jerry", "-rules", "@"+rules)
	if out := must(t, own, "ask", "--to", "echo", "hello again"); out != "hello again\n" {
		t.Errorf("answer %q", out)
	}
	dead := exec.CommandContext(t.Context(), consul, "acl", "token", "read", "-self", "-token", old.SecretID)
	dead.Env = append(os.Environ(), env...)
	if out, err := dead.CombinedOutput(); err == nil || !strings.Contains(string(out), "ACL not found") {
		t.Errorf("the old token lives: %v %s", err, out)
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
	if text := p.text(); strings.Contains(text, old.SecretID) || strings.Contains(text, now.SecretID) || strings.Contains(text, "00000000-0000-4000") {
		t.Error("the log holds a token")
	}
}
