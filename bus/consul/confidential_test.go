package consul

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// TestConfidentialDelivery: with every payload encrypted delivery is what it was, and neither a snapshot of Consul nor what its
// server has on its disk, log included, shows one. Payloads that were not encrypted are found in both.
func TestConfidentialDelivery(t *testing.T) {
	c := newRealm(t, cluster.Options{Servers: 1, Config: manyClients})
	bustest.ConfidentialDelivery(t, func(t *testing.T) func() bus.Store {
		return func() bus.Store { return open(t, Options{Address: c.Addr(0), Token: c.Token()}) }
	})
	client, err := api.NewClient(&api.Config{Address: c.Addr(0), Token: c.Token()})
	if err != nil {
		t.Fatal(err)
	}
	snapshot, _, err := client.Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Close()
	unzipped, err := gzip.NewReader(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	for files := tar.NewReader(unzipped); ; {
		_, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		raw, rerr := io.ReadAll(files)
		if err != nil || rerr != nil {
			t.Fatal(err, rerr)
		}
		shown = append(shown, bustest.Exposed(raw, bustest.CanarySecret, bustest.CanaryPlain)...)
	}
	exposed(t, "the snapshot", shown)

	shown = nil
	err = filepath.WalkDir(c.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // the server writes meanwhile
		}
		raw, err := os.ReadFile(path)
		shown = append(shown, bustest.Exposed(raw, bustest.CanarySecret, bustest.CanaryPlain)...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	exposed(t, "the server's disk", shown)
}

// exposed: the search finds what is in the clear, and nothing else.
func exposed(t *testing.T, where string, shown []string) {
	t.Helper()
	plain := false
	for _, text := range shown {
		if text == bustest.CanarySecret {
			t.Errorf("%s shows an encrypted payload", where)
		}
		plain = plain || text == bustest.CanaryPlain
	}
	if !plain {
		t.Errorf("%s does not show what is in the clear either: the search proves nothing", where)
	}
}
