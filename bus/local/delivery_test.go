package local

import (
	"path/filepath"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
)

// shared opens one file for all clients of a subtest.
func shared(t *testing.T) func() bus.Store {
	s := open(t, filepath.Join(t.TempDir(), "mesh.db"))
	return func() bus.Store { return s }
}

func TestDelivery(t *testing.T) { bustest.Delivery(t, shared) }

func TestSignedDelivery(t *testing.T) { bustest.SignedDelivery(t, shared) }

func TestConfidentialDelivery(t *testing.T) { bustest.ConfidentialDelivery(t, shared) }
