package local

import (
	"testing"

	"github.com/gatemesh/gatemesh/bus/bustest"
)

func TestAdversary(t *testing.T) {
	c := bustest.Adversary(t, shared, func(a bustest.Attack) {
		t.Logf("%-14s %s %-55s %v", a.Outcome, a.By, a.Name, a.Seen)
	})
	t.Logf("%d attacks, %d beside", len(c.Attacks), c.Sent)
}
