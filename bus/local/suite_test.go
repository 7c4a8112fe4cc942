package local

import (
	"path/filepath"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
)

func TestStore(t *testing.T) {
	bustest.Store(t, func(t *testing.T) bus.Store { return open(t, filepath.Join(t.TempDir(), "mesh.db")) })
}

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
