//go:build proof

package test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/test/proof"
)

var (
	channelsEach = flag.Int("channels.each", 50, "how often an owner is ended in each way")
	channelsWays = flag.String("channels.ways", strings.Join([]string{failGraceful, failCrash, failStop, failCut, failNode}, ","), "in which ways")
	channelsSeed = flag.Uint64("channels.seed", 1, "seed of the order and the moments")
)

// TestProofFailover ends owners of all four channels -channels.each times in each way, under traffic.
func TestProofFailover(t *testing.T) {
	proof.Run(t, "failover", func() any {
		counts := map[string]int{}
		for _, way := range strings.Split(*channelsWays, ",") {
			counts[way] = *channelsEach
		}
		f := driveChannels(t, *binary, counts, *channelsSeed, func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "failover: "+format+"\n", args...)
		})
		promise := maps.Clone(failoverPromise)
		promise[failCut] = promise[failNode]
		for kind, most := range promise {
			if got := f.Kinds[kind].P95; got > most {
				t.Errorf("%s: %.0f ms in 95 of 100, promised are %.0f", kind, got, most)
			}
		}
		return f
	})
}
