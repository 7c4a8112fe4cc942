package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

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
