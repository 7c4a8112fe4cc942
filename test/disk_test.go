package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// TestGatewayWithAFullDisk: Consul's disk is full. Who sends hears so in one line, from the API with 503 or 504 and from the client
// with status 4; nothing that was accepted is lost, and with space again it all goes on by itself.
func TestGatewayWithAFullDisk(t *testing.T) {
	disks := newDisks(t, 1)
	if disks == nil {
		t.Skip("filling a disk needs a file system of its own: root on Linux")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := cluster.ForTestWith(t, cluster.Options{Servers: 1, DataDirs: []string{disks[0].dir}})
	store, err := consul.New(consul.Options{Address: c.Addr(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	binary := builtBinary(t)
	d := startDaemon(t, binary, "bobby-gateway", c.Addr(0))
	d.until("owner of bob", func() bool { return d.owner("bob") == "bobby-gateway" })
	d.until("its check heard of", func() bool { // as long before a disk is full; it writes until then
		p, err := store.Get(ctx, bus.Root+"gateways/bobby-gateway/overseen")
		return err == nil && p != nil && string(p.Value) == "true"
	})
	send := func(text string) (int, map[string]any) {
		return d.call(http.MethodPost, "/v1/messages", map[string]any{"to": "bob", "text": text})
	}
	if status, v := send("before"); status >= 300 {
		t.Fatalf("before: %d %v", status, v)
	}

	if err := disks[0].fill(); err != nil {
		t.Fatal(err)
	}
	// Consul still has the rest of the file that its log is being written to: what is larger than that is refused.
	for k, size := 0, 256<<10; size > 1<<10; k++ {
		_, err := store.Txn(ctx, []bus.Op{{Verb: bus.OpSet, Key: ballastKey, Value: bytes.Repeat([]byte{byte('a' + k%26)}, size)}})
		switch {
		case ctx.Err() != nil:
			t.Fatal("the disk does not fill")
		case err != nil:
			size /= 4
			if !errors.Is(err, bus.ErrUnavailable) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the store says: %v", err)
			}
		}
	}
	noise := make([]byte, 60<<10)
	_, _ = rand.Read(noise)
	large := base64.StdEncoding.EncodeToString(noise)
	// 504: whether Consul kept it is not known, and the id in the answer makes sending again safe. 503: it is known not to.
	// A server that could not write its log steps down for a moment, and then says that there is no leader; who asks again
	// hears of the disk.
	d.until("the API naming the disk", func() bool {
		status, v := send(large)
		fault, _ := v["error"].(map[string]any)
		message, _ := fault["message"].(string)
		if status != http.StatusGatewayTimeout && status != http.StatusServiceUnavailable || message == "" || strings.Contains(message, "\n") {
			t.Fatalf("the API says %d %v", status, v)
		}
		return strings.Contains(message, "make space")
	})
	d.until("the client naming the disk", func() bool {
		cmd := exec.CommandContext(ctx, binary, "send", "--to", "bob", "--timeout", "20s", "-")
		cmd.Stdin = strings.NewReader(large)
		cmd.Env = append(os.Environ(), "GATEMESH_ADDR="+d.url)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 4 || strings.Count(strings.TrimSpace(string(out)), "\n") != 0 {
			t.Fatalf("the client: %v: %s", err, out)
		}
		return strings.Contains(string(out), "make space")
	})
	if status, _ := d.call(http.MethodGet, "/health", nil); status != http.StatusOK {
		t.Errorf("health is %d: a full disk somewhere else is no reason to restart a gateway", status)
	}

	if err := disks[0].free(); err != nil {
		t.Fatal(err)
	}
	d.until("accepting again", func() bool {
		status, _ := send("after")
		return status < 300
	})
	d.until("done with everything", func() bool {
		_, v := d.call(http.MethodGet, "/v1/inboxes/bob", nil)
		return v["waiting"] == float64(0)
	})
}
