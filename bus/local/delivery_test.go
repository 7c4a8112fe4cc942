package local

import (
	"path/filepath"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
)

func TestDelivery(t *testing.T) {
	bustest.Delivery(t, func(t *testing.T) func() bus.Store {
		s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
		return func() bus.Store { return s }
	})
}
