//go:build proof

package test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/test/proof"
)

// Proofs drive the built binary; "make prove" runs them.
var binary = flag.String("binary", "", "the gatemesh to prove something of")

// demoAnswerWithin is the promise of the issue, "first answer within seconds", in figures.
const demoAnswerWithin = 5 * time.Second

func TestProofDemo(t *testing.T) {
	proof.Run(t, "demo", func() any {
		figures := map[string]*demoFigures{}
		for _, store := range []string{"local", "consul"} {
			figures[store] = runDemo(t, store)
		}
		return figures
	})
}

func runDemo(t *testing.T, store string) *demoFigures {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, *binary, "demo", "--once", "--json", "--store", store)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it ends its servers
	cmd.WaitDelay = 30 * time.Second
	// A developer's own servers must not take part.
	for _, kv := range os.Environ() {
		if n, _, _ := strings.Cut(kv, "="); !strings.HasPrefix(n, "CONSUL_") && !strings.HasPrefix(n, "NOMAD_") &&
			(!strings.HasPrefix(n, "GATEMESH_") || n == "GATEMESH_CONSUL_BIN") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	total := time.Since(begin)
	if err != nil {
		t.Errorf("%s: the demo ended with %v:\n%s", store, err, stderr.String())
		return &demoFigures{TotalSeconds: total.Seconds()}
	}
	events, err := readEvents(stdout.Bytes())
	if err != nil {
		t.Errorf("%s: %v", store, err)
		return &demoFigures{TotalSeconds: total.Seconds()}
	}
	f, broken := judgeDemo(events)
	f.TotalSeconds = total.Seconds()
	if f.Gateways != 3 {
		broken = append(broken, "not three gateways took part")
	}
	if f.Replied && f.FirstAnswerMS > float64(demoAnswerWithin.Milliseconds()) {
		broken = append(broken, "the first answer took longer than "+demoAnswerWithin.String())
	}
	for _, b := range broken {
		t.Errorf("%s: %s", store, b)
	}
	if len(broken) > 0 {
		t.Logf("%s: the events:\n%s", store, stdout.String())
	}
	return &f
}

// TestProofRotation replaces every key twice under load: ROTATION_MESSAGES questions (20,000) at least.
func TestProofRotation(t *testing.T) {
	least := 20_000
	if text := os.Getenv("ROTATION_MESSAGES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("ROTATION_MESSAGES=%q: want a whole number", text)
		}
		least = n
	}
	proof.Run(t, "rotation", func() any {
		f := runDrill(t, *binary, 4, least, 10*time.Second, func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "rotation: "+format+"\n", args...)
		})
		judgeDrill(t, f)
		return f
	})
}

// TestProofSoak is the long run: SOAK_MESSAGES messages (100,000) under faults from SOAK_SEED.
func TestProofSoak(t *testing.T) {
	number := func(name string, otherwise uint64) uint64 {
		text := os.Getenv(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil || n == 0 {
			t.Fatalf("%s=%q: want a whole number", name, text)
		}
		return n
	}
	messages, seed := number("SOAK_MESSAGES", 100_000), number("SOAK_SEED", uint64(time.Now().UnixNano())&0xffffff)
	proof.Run(t, "soak", func() any {
		f := runSoak(t, int(messages), 350, seed, func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "soak: "+format+"\n", args...)
		})
		if f.Lost != 0 || f.Doubled != 0 {
			t.Errorf("lost %d, doubled %d", f.Lost, f.Doubled)
		}
		return f
	})
}
