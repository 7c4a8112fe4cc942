package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// binary is the real thing, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "gatemesh-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "gatemesh")
		build := exec.Command("go", "build", "-o", binary, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if raceEnabled { // needs cgo
			build = exec.Command("go", "build", "-race", "-o", binary, ".")
		}
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build gatemesh: %v\n%s", err, out)
			return 1
		}
		code := m.Run()
		if code == 0 {
			if err := goleak.Find(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		return code
	}())
}

// testTimeout ends a command that hangs.
const testTimeout = 90 * time.Second

// A result is what a command left behind.
type result struct {
	code        int
	out, errOut string
}

// cleanEnv is the environment without what would point at a real mesh.
func cleanEnv(t testing.TB, extra ...string) []string {
	t.Helper()
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "GATEMESH_") && name != "GATEMESH_CONSUL_BIN",
			strings.HasPrefix(name, "OPENCLAW_"), strings.HasPrefix(name, "CONSUL_"), strings.HasPrefix(name, "NOMAD_"), name == "HOME":
			continue
		}
		env = append(env, kv)
	}
	// Else a binary that is built with -race waits a second before it ends.
	env = append(env, "HOME="+t.TempDir(), "GORACE=atexit_sleep_ms=0")
	return append(env, extra...)
}

// command prepares the binary with a clean environment; env is NAME=VALUE.
func command(ctx context.Context, t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(ctx, binary, args...)
	c.Env = cleanEnv(t, env...)
	return c
}

// gatemesh runs the binary to its end.
func gatemesh(t testing.TB, env []string, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	c := command(ctx, t, env, args...)
	var out, errOut bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &errOut
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("gatemesh %s: %v", strings.Join(args, " "), err)
	}
	if ctx.Err() != nil {
		t.Fatalf("gatemesh %s: still running after %s\n%s%s", strings.Join(args, " "), testTimeout, out.String(), errOut.String())
	}
	return result{c.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// must is gatemesh that succeeds and says nothing on standard error.
func must(t testing.TB, env []string, args ...string) string {
	t.Helper()
	r := gatemesh(t, env, "", args...)
	if r.code != exitOK || r.errOut != "" {
		t.Fatalf("gatemesh %s: status %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.errOut)
	}
	return r.out
}

// oneLine checks the form of every error: one line, after our name.
func oneLine(t testing.TB, r result) {
	t.Helper()
	if !strings.HasPrefix(r.errOut, "gatemesh: ") || strings.Count(r.errOut, "\n") != 1 || !strings.HasSuffix(r.errOut, "\n") {
		t.Errorf("want one line on standard error, found %q", r.errOut)
	}
}
