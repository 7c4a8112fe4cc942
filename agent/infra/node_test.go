package infra

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestRealNode reads the machine that the test runs on.
func TestRealNode(t *testing.T) {
	c, err := New(Options{NoConsul: true, NoNomad: true, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	n := c.Node(t.Context())
	t.Log(n.Text())
	host, _ := os.Hostname()
	equal(t, "hostname", n.Hostname, host)
	equal(t, "errors", strings.Join(n.Errors, ";"), "")
	if n.Cores < 1 || n.Load1 == nil || n.MemoryUsedPercent == nil || n.DiskUsedPercent == nil || n.UptimeSeconds == nil {
		t.Fatalf("something is missing: %+v", n)
	}
	for what, p := range map[string]float64{"memory": *n.MemoryUsedPercent, "disk": *n.DiskUsedPercent} {
		if p <= 0 || p > 100 {
			t.Errorf("%s is %v %%", what, p)
		}
	}
}

func TestNodeThresholds(t *testing.T) {
	c := newChecker(t, Options{NoConsul: true, NoNomad: true})
	c.node.load1 = func(context.Context) (float64, error) { return 9, nil }
	c.node.memory = func(context.Context) (float64, uint64, error) { return 97.4, 1, nil }
	c.node.disk = func(context.Context, string) (float64, uint64, error) { return 92.6, 1, nil }
	n := c.Node(t.Context())
	equal(t, "status", n.Status, StatusAlert)
	equal(t, "problems", strings.Join(n.Problems, ", "), "node load 4.5 per core, node memory 97%, node disk 93%")
	equal(t, "text", n.Text(), "Node jerry: load 9.0 on 2 cores, memory 97%, disk 93%, up 3d4h (alert: node load 4.5 per core, node memory 97%, node disk 93%)")

	// At the limit is not above it; a negative limit never alerts.
	c.opts.MaxLoadPerCore, c.opts.MaxMemoryPercent, c.opts.MaxDiskPercent = 4.5, -1, -1
	equal(t, "at the limit", c.Node(t.Context()).Status, StatusOK)
}

func TestNodeUnknown(t *testing.T) {
	c := newChecker(t, Options{NoConsul: true, NoNomad: true})
	c.node.load1 = func(context.Context) (float64, error) { return 0, errors.New("not implemented yet") }
	n := c.Node(t.Context())
	equal(t, "problems", strings.Join(n.Problems, ", "), "node load unknown")
	equal(t, "errors", strings.Join(n.Errors, ", "), "load: not implemented yet")
	equal(t, "load", n.Load1, nil)
	mustContain(t, n.Text(), "memory 12%, disk 40%")

	real, err := New(Options{NoConsul: true, NoNomad: true, DiskPath: "/no/such/path"})
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, strings.Join(real.Node(t.Context()).Problems, ", "), "node disk unknown")
}

// TestHungDisk: a dead network file system holds one goroutine, not one for
// each check, and never the report.
func TestHungDisk(t *testing.T) {
	c := newChecker(t, Options{NoConsul: true, NoNomad: true, Timeout: 50 * time.Millisecond})
	release, calls := make(chan struct{}), make(chan struct{}, 10)
	c.node.disk = func(context.Context, string) (float64, uint64, error) {
		calls <- struct{}{}
		<-release
		return 40, 1, nil
	}
	for range 3 {
		n := c.Node(t.Context())
		equal(t, "problems", strings.Join(n.Problems, ", "), "node disk unknown")
		equal(t, "errors", strings.Join(n.Errors, ", "), "disk: no answer within 50ms")
		mustContain(t, n.Text(), "load 0.4 on 2 cores, memory 12%")
	}
	equal(t, "readings under way", len(calls), 1)
	close(release)
	c.opts.Timeout = 20 * time.Second
	equal(t, "it came back", c.Node(t.Context()).Status, StatusOK)
}
