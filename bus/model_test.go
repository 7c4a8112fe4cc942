package bus_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/local"
)

// TestRandomRuns plays random runs of real gateways, in fake time, against the model of the protocol. A run that
// fails is made smaller and printed with its seed; play it again with
//
//	go test ./bus -run TestRandomRuns -rapid.seed=SEED
//
// or with -rapid.failfile=FILE, as the failure says. -rapid.checks=N plays more of them.
func TestRandomRuns(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		run := bustest.DrawRun(rt, 20)
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
		if err != nil {
			rt.Fatal(err)
		}
	})
}
