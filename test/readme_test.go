package test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeTranscript runs the demo of the README and compares what it prints with what the
// README says it prints. Ids, ports, times and the state of this machine differ from run to run,
// and so may the order in which gateways tell of what they do at the same time; everything else may not.
func TestReadmeTranscript(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(readme), "<!-- transcript")
	if !ok {
		t.Fatal("the README has no transcript")
	}
	_, rest, _ = strings.Cut(rest, "```\n")
	want, _, _ := strings.Cut(rest, "```")

	cmd := exec.Command(builtBinary(t), "demo", "--once")
	// Addresses where nothing listens, so that this machine's own servers stay out of it.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "NO_COLOR=1", "TMPDIR=" + t.TempDir()}
	got, err := cmd.Output()
	if err != nil {
		t.Fatalf("demo: %v", err)
	}
	w, g := normal(want), normal(string(got))
	for line, n := range w {
		if g[line] < n {
			t.Errorf("the README says, the demo does not: %q", line)
		}
	}
	for line, n := range g {
		if w[line] < n {
			t.Errorf("the demo says, the README does not: %q", line)
		}
	}
}

// normal counts the lines of a transcript without what differs from run to run.
func normal(s string) map[string]int {
	for _, r := range []struct{ re, with string }{
		{`127\.0\.0\.1:\d{4,5}  `, "127.0.0.1:PORT  "},
		{`(?m)^ *\d+ ms `, "N ms "},
		{`after \d+ ms`, "after N ms"},
		{`\b[0-9a-f]{8}\b`, "ID"},
		{`(?m)Node .*$`, "Node ..."},
		// A busy node is an alert of its own.
		{`(?m)\(on bobby-gateway\): .*$`, "(on bobby-gateway): ..."},
	} {
		s = regexp.MustCompile(r.re).ReplaceAllString(s, r.with)
	}
	lines := map[string]int{}
	for _, l := range strings.Split(s, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			lines[l]++
		}
	}
	return lines
}
