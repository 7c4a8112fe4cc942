//go:build proof

package test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/test/proof"
)

// adversaryFigures is what TestProofAdversary came to.
type adversaryFigures struct {
	Attacks int `json:"attacks"`
	// Refused are those that changed nothing, or were undone; Denied cost mail whose sender was told.
	Refused  int `json:"refused"`
	Denied   int `json:"denied_and_told"`
	Breached int `json:"breached"`
	// Noticed were seen by somebody: in an event, a dead letter, a receipt. The rest had no effect that anybody could see.
	Noticed int `json:"noticed"`
	// Beside is the traffic of others in the same store meanwhile.
	Beside        int              `json:"messages_beside"`
	BesideLost    int              `json:"lost_beside"`
	BesideDoubled int              `json:"doubled_beside"`
	Table         []bustest.Attack `json:"table"`
}

// fewestAttacks is how many there must be for the campaign to say something.
const fewestAttacks = 40

// TestProofAdversary has somebody who may write anything into the store, and who has the key of one gateway, do what he can, on three
// Consul servers.
func TestProofAdversary(t *testing.T) {
	proof.Run(t, "adversary", func() any {
		c := cluster.ForTestWith(t, cluster.Options{Servers: 3, Config: "limits { http_max_conns_per_client = 4000 }"})
		n := 0
		store := func(t *testing.T) func() bus.Store {
			return func() bus.Store {
				s, err := consul.New(consul.Options{Address: c.Addr(n % 3), Token: c.Token()})
				if err != nil {
					t.Fatal(err)
				}
				n++
				t.Cleanup(func() { _ = s.Close() })
				return s
			}
		}
		campaign := bustest.Adversary(t, store, func(a bustest.Attack) {
			fmt.Fprintf(os.Stderr, "%-12s %s  %s: %s [%s]\n", a.Outcome, a.By, a.Name, a.Tried, strings.Join(a.Seen, "; "))
		})
		f := adversaryFigures{Attacks: len(campaign.Attacks), Table: campaign.Attacks, Beside: campaign.Sent, BesideLost: campaign.Lost, BesideDoubled: campaign.Doubled}
		for _, a := range campaign.Attacks {
			switch a.Outcome {
			case bustest.Refused, bustest.Harmless:
				f.Refused++
			case bustest.Denied:
				f.Denied++
			default:
				f.Breached++
			}
			if len(a.Seen) > 0 {
				f.Noticed++
			}
		}
		if f.Attacks < fewestAttacks || f.Breached > 0 || f.Beside == 0 {
			t.Errorf("%d attacks (at least %d), %d breached, %d messages beside", f.Attacks, fewestAttacks, f.Breached, f.Beside)
		}
		return f
	})
}
