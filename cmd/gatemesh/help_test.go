package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestHelp keeps the help of all our commands in one file, so that a change of the
// interface is seen in review.
func TestHelp(t *testing.T) {
	var out, unused bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &out, err: &unused, env: func(string) (string, bool) { return "", false }}
	root := a.rootCommand()
	root.SetOut(&out)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "completion" || c.Name() == "help" {
			return // cobra's own
		}
		out.WriteString("$ " + c.CommandPath() + " --help\n")
		if c.Short == "" {
			t.Errorf("%s has no short description", c.CommandPath())
		}
		c.InitDefaultHelpFlag()
		if err := c.Help(); err != nil {
			t.Errorf("%s: %v", c.CommandPath(), err)
		}
		out.WriteString("\n")
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	golden := filepath.Join("testdata", "help.golden")
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("the help differs from %s: look at the difference, then go test ./cmd/gatemesh -run TestHelp -update\n%s", golden, firstDifference(out.String(), string(want)))
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "is   " + g[i] + "\nwas  " + w[i]
		}
	}
	return "one is longer"
}
