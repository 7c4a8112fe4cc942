package test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The verdict's short form: three gateways lose and double nothing when questions are said twice, the gateway that has the agent is killed, and
// then its node is lost. Times are not judged on a machine that does other things.
func TestVerdict(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, builtBinary(t), "verdict", "--short", "--json")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // so that it ends its servers
	cmd.WaitDelay = 30 * time.Second
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CONSUL_") && !strings.HasPrefix(kv, "NOMAD_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, progress.String(), out.String())
	}
	var v struct {
		Go    bool
		Forms map[string]struct {
			Asked, Served, Lost, Doubled int
			Phases                       map[string]struct{ Asked, Served int }
		}
	}
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	three := v.Forms["three"]
	if !v.Go || three.Lost != 0 || three.Doubled != 0 {
		t.Errorf("%s", out.String())
	}
	for _, phase := range []string{"quiet", "duplicate", "crash", "node"} {
		if p := three.Phases[phase]; p.Asked < 10 || p.Served == 0 {
			t.Errorf("%s: %+v", phase, p)
		}
	}
}
