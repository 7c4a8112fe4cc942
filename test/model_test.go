//go:build proof

package test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/test/proof"
)

// modelFigures is what TestProofModel came to.
type modelFigures struct {
	States         int    `json:"states"`
	Transitions    int    `json:"transitions"`
	Depth          int    `json:"depth"`
	Mutations      int    `json:"mutations"`
	MutationsFound int    `json:"mutations_found"`
	RandomRuns     int64  `json:"random_runs"`
	Operations     int64  `json:"operations"`
	Seed           uint64 `json:"seed"`
}

// TestProofModel visits every state of the big models, looks for each mistake, and plays -rapid.checks random runs
// of the real bus.
func TestProofModel(t *testing.T) {
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "model: "+format+"\n", args...) }
	proof.Run(t, "model", func() any {
		f := modelFigures{Mutations: len(bustest.Mutations), Seed: modelSeed(t)}
		models := bustest.Models(true)
		for _, name := range slices.Sorted(maps.Keys(models)) {
			begin := time.Now()
			e := models[name].Explore(nil)
			say("%s: %d states, %d transitions, %d deep, %s", name, e.States, e.Transitions, e.Depth, time.Since(begin).Round(time.Millisecond))
			if err := e.Err(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			f.States, f.Transitions, f.Depth = f.States+e.States, f.Transitions+e.Transitions, max(f.Depth, e.Depth)
		}
		for _, mistake := range slices.Sorted(maps.Keys(bustest.Mutations)) {
			if bustest.FindMistake(mistake) == nil {
				t.Errorf("not found: %s", bustest.Mutations[mistake])
				continue
			}
			f.MutationsFound++
		}
		say("%d of %d mistakes found", f.MutationsFound, f.Mutations)
		say("random runs from seed %d", f.Seed)
		var runs, operations atomic.Int64
		dir := t.TempDir()
		// A subtest, so that what fails in it lets the figures be written.
		t.Run("RandomRuns", func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				run := bustest.DrawRun(rt, 30)
				path := filepath.Join(dir, "mesh.db")
				defer os.Remove(path)
				var err error
				synctest.Test(t, func(t *testing.T) {
					s, oerr := local.Open(path, local.Options{})
					if oerr != nil {
						t.Fatal(oerr)
					}
					defer s.Close()
					err = run.Play(t.Context(), func() bus.Store { return s }, true)
				})
				operations.Add(int64(run.Operations()))
				if n := runs.Add(1); n%500 == 0 {
					say("%d runs, %d operations", n, operations.Load())
				}
				if err != nil {
					rt.Fatal(err)
				}
			})
		})
		f.RandomRuns, f.Operations = runs.Load(), operations.Load()
		return f
	})
}

// modelSeed is the seed of the random runs; 0 on the command line means one of the clock's.
func modelSeed(t *testing.T) uint64 {
	t.Helper()
	seed := flag.Lookup("rapid.seed")
	if seed.Value.String() == "0" {
		if err := seed.Value.Set(fmt.Sprint(uint64(time.Now().UnixNano()) & 0xffffffff)); err != nil {
			t.Fatal(err)
		}
	}
	return seed.Value.(flag.Getter).Get().(uint64)
}
