package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
)

// TestOwnerCommands runs the owner commands against one gateway; moving duties between several is the gateway's and the bus's test.
func TestOwnerCommands(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true }, service: { register: false } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  agents: { list: [{ id: "echo", runner: "echo", gateways: ["node-gateway", "other-gateway"] }] },
}
`, filepath.Join(dir, "data")))
	p, env := startDaemon(t, file)
	until(t, "it owns its agent", func() bool { return strings.Contains(must(t, env, "owner", "list"), "echo\tnode-gateway\t") })
	out := must(t, env, "owner", "list")
	if !strings.HasSuffix(out, "\t-\tnode-gateway, (other-gateway)\n") {
		t.Errorf("%q", out)
	}
	list := parse[[]bus.OwnerInfo](t, must(t, env, "owner", "list", "--json"))
	if len(list) != 1 || list[0].Duty != "echo" || list[0].Token == 0 || len(list[0].Candidates) != 2 {
		t.Errorf("%+v", list)
	}
	if out := must(t, env, "owner", "transfer", "echo", "--to", "node-gateway"); out != "echo is owned by node-gateway already\n" {
		t.Errorf("%q", out)
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"owner", "transfer", "echo"}, exitUsage, "needs --to"},
		{[]string{"owner", "transfer", "ECHO", "--to", "other-gateway"}, exitUsage, "not the name of a duty"},
		{[]string{"owner", "transfer", "echo", "--to", "other-gateway"}, exitUsage, "not there: start it first"},
		{[]string{"owner", "release", "echo"}, exitUsage, "nobody else that may own echo is there"},
		{[]string{"owner", "release", "nothing"}, exitUsage, "no gateway may own nothing"},
	} {
		r := gatemesh(t, env, "", tc.args...)
		if r.code != tc.code || !strings.Contains(r.errOut, tc.says) || strings.Count(r.errOut, "\n") != 1 {
			t.Errorf("%v: status %d: %q", tc.args, r.code, r.errOut)
		}
	}
	if r := gatemesh(t, env, "", "__complete", "owner", "release", ""); !strings.Contains(r.out, "echo\towned by node-gateway") {
		t.Errorf("%+v", r)
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}
