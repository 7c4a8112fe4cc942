package bustest

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestModel visits every state of the protocol for two messages, two gateways and one or two faults of each
// kind at every step. "make model" does the same with more.
func TestModel(t *testing.T) {
	for name, m := range Models(false) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := m.Explore(nil)
			if err := e.Err(); err != nil {
				t.Error(err)
			}
			t.Logf("%d states, %d transitions, %d deep", e.States, e.Transitions, e.Depth)
		})
	}
}

// TestModelFindsMistakes: a protocol with any one of these mistakes is found broken.
func TestModelFindsMistakes(t *testing.T) {
	for _, mistake := range slices.Sorted(maps.Keys(Mutations)) {
		t.Run(Mutations[mistake], func(t *testing.T) {
			t.Parallel()
			e := FindMistake(mistake)
			if e == nil {
				t.Fatal("not found")
			}
			t.Logf("%d states, then %s", e.States, strings.ReplaceAll(e.Err().Error(), "\n", "\n      "))
		})
	}
}
