package main

import (
	"testing"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/gateway"
)

// A part that an agent was not told to look at is no trouble of its.
func TestCheckOptions(t *testing.T) {
	for _, c := range []struct {
		checks                           []string
		noConsul, noNomad, noNode, alone bool
	}{
		{nil, false, false, false, false},
		{[]string{"consul"}, false, true, true, false},
		{[]string{"consul", "nomad"}, false, false, true, false},
		{[]string{"nomad", "node"}, true, false, false, false},
		{[]string{"node"}, true, true, false, true},
	} {
		o, alone := checkOptions(agent.Runner{Checks: c.checks}, gateway.ConsulConfig{})
		quiet := o.MaxDiskPercent < 0 && o.MaxMemoryPercent < 0 && o.MaxLoadPerCore < 0
		if o.NoConsul != c.noConsul || o.NoNomad != c.noNomad || quiet != c.noNode || alone != c.alone {
			t.Errorf("%q: %+v, the node alone: %v", c.checks, o, alone)
		}
	}
}
