//go:build proof

package test

import (
	"flag"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/test/proof"
)

var (
	failoverEach = flag.Int("failover.each", 50, "how often an owner is ended in each way")
	failoverWays = flag.String("failover.ways", strings.Join([]string{failGraceful, failCrash, failNode, failStop}, ","), "in which ways")
	failoverSeed = flag.Uint64("failover.seed", 1, "seed of the order and the moments")
)

// The promised times, in milliseconds, 95 of 100.
var failoverPromise = map[string]float64{failGraceful: 250, failCrash: 3000, failNode: 10_000}

// TestProofFailoverBus ends owners of a duty -failover.each times in each way, on three Consul servers with stock settings.
func TestProofFailoverBus(t *testing.T) {
	proof.Run(t, "failover-bus", func() any {
		n := *failoverEach
		counts := map[string]int{}
		for _, way := range strings.Split(*failoverWays, ",") {
			counts[way] = n
		}
		f := driveFailovers(t, counts, *failoverSeed)
		for kind, most := range failoverPromise {
			if got := f.Kinds[kind].P95; got > most {
				t.Errorf("%s: %.0f ms in 95 of 100, promised are %.0f", kind, got, most)
			}
		}
		return f
	})
}
