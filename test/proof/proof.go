// Package proof writes what a proof found: the figures and whether the promise holds. It is for tests behind the build tag "proof", which
// "make prove" runs; they stand behind a tag and not behind t.Skip, as a test that always skips says nothing.
package proof

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var (
	dir    = flag.String("proof", "", "where the figures go: DIR/NAME.json")
	commit = flag.String("commit", "", "the commit to name in the figures")
)

// result is the file that a proof leaves behind. cmd/gatemesh writes the same for bench.
type result struct {
	Name    string  `json:"name"`
	Commit  string  `json:"commit"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	Figures any     `json:"figures"`
}

// Run runs f and writes what it returns to NAME.json, with what became of the test. A file of before is removed first: a proof that died left none.
// When f ends the test (t.Fatal) a file without figures says that the promise is broken.
func Run(t *testing.T, name string, f func() any) {
	t.Helper()
	if *dir == "" {
		t.Fatal("no -proof DIR: run it with make, which gives it (make help)")
	}
	path := filepath.Join(*dir, name+".json")
	if err := os.MkdirAll(*dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	r := result{Name: name, Commit: *commit}
	begin := time.Now()
	ended := false
	defer func() {
		r.OK, r.Seconds = ended && !t.Failed(), time.Since(begin).Seconds()
		b, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(path, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Errorf("the proof's figures are not written: %v", err)
		}
		t.Logf("%s", b)
	}()
	r.Figures = f()
	ended = true
}
