package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/gateway"
)

// A real gateway's log is whole, after an orderly end and after kill -9; one changed letter in it is found.
func TestAuditOfAGateway(t *testing.T) {
	dir := t.TempDir()
	store := fmt.Sprintf("store: 'local', dataDir: %q", filepath.Join(dir, "data"))
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), daemonConfig(store, "info"))
	at := []string{"--config", file}
	verify := func(code int, more ...string) gateway.AuditReport {
		t.Helper()
		r := gatemesh(t, nil, "", append([]string{"audit", "verify", "--json"}, append(at, more...)...)...)
		if r.code != code {
			t.Fatalf("status %d, want %d: %s%s", r.code, code, r.out, r.errOut)
		}
		if code == exitUsage {
			oneLine(t, r)
			return gateway.AuditReport{}
		}
		return parse[gateway.AuditReport](t, r.out)
	}
	verify(exitUsage)
	for _, how := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
		p, env := startDaemon(t, file)
		served(t, env, "echo")
		must(t, env, "ask", "--to", "echo", "a-secret-text")
		p.end(how)
		verify(exitOK)
	}
	rep := verify(exitOK)
	if rep.Marks < 2 || rep.Unvouched != 0 || rep.Lost != 0 || rep.Inherited == 0 {
		t.Errorf("%+v", rep)
	}
	out := must(t, nil, append([]string{"audit", "export"}, at...)...)
	if n := strings.Count(out, "\n"); n != rep.Lines || strings.Contains(out, "a-secret-text") {
		t.Errorf("%d lines were exported of %d", n, rep.Lines)
	}
	for _, event := range []string{"queued", "delivered", "acked", "owned", "released"} {
		if !strings.Contains(out, `"event":"`+event+`"`) {
			t.Errorf("no event %s in the log", event)
		}
	}
	log := filepath.Join(dir, "data", gateway.AuditDir, "audit-000001.jsonl")
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, log, strings.Replace(string(text), `"event":"acked"`, `"event":"acket"`, 1))
	if rep := verify(exitFailed); len(rep.Problems) == 0 || rep.Problems[0].Line == 0 {
		t.Errorf("%+v", rep)
	}
	verify(exitUsage, "--key", "nonsense")
}
