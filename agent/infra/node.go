package infra

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"
)

// nodePart reads the own node. The functions are the operating system's; tests
// replace them.
type nodePart struct {
	hostname func() (string, error)
	uptime   func(context.Context) (uint64, error)
	load1    func(context.Context) (float64, error)
	memory   func(context.Context) (usedPercent float64, total uint64, err error)
	disk     func(ctx context.Context, path string) (usedPercent float64, total uint64, err error)
	cores    int

	// diskTurn holds one token: at most one reading of the disk is on its way.
	// A dead network file system blocks it for ever, and no deadline reaches
	// into the kernel.
	diskTurn chan struct{}
}

func newNodePart() *nodePart {
	return &nodePart{
		hostname: os.Hostname,
		uptime:   host.UptimeWithContext,
		load1: func(ctx context.Context) (float64, error) {
			a, err := load.AvgWithContext(ctx)
			if err != nil {
				return 0, err
			}
			return a.Load1, nil
		},
		memory: func(ctx context.Context) (float64, uint64, error) {
			m, err := mem.VirtualMemoryWithContext(ctx)
			if err != nil {
				return 0, 0, err
			}
			return m.UsedPercent, m.Total, nil
		},
		disk: func(ctx context.Context, path string) (float64, uint64, error) {
			d, err := disk.UsageWithContext(ctx, path)
			if err != nil {
				return 0, 0, err
			}
			return d.UsedPercent, d.Total, nil
		},
		cores:    runtime.NumCPU(),
		diskTurn: make(chan struct{}, 1),
	}
}

// Node measures the node that the Checker runs on, within Options.Timeout.
func (c *Checker) Node(ctx context.Context) NodeReport {
	start := c.now()
	ctx, cancel := c.partContext(ctx)
	defer cancel()
	n := c.node
	r := NodeReport{
		Status: StatusOK, CheckedAt: start.UTC(), Cores: n.cores, DiskPath: c.opts.DiskPath,
		Problems: []string{}, Errors: []string{},
	}
	q := newQuestions(ctx)
	q.ask("hostname", func(context.Context) error {
		h, err := n.hostname()
		r.Hostname = newScrubber().name(h)
		return err
	})
	q.ask("uptime", func(ctx context.Context) error {
		up, err := n.uptime(ctx)
		if err == nil {
			r.UptimeSeconds = &up
		}
		return err
	})
	q.ask("load", func(ctx context.Context) error {
		l, err := n.load1(ctx)
		if err == nil {
			r.Load1, r.Load1PerCore = rounded(l), rounded(l/float64(max(n.cores, 1)))
		}
		return err
	})
	q.ask("memory", func(ctx context.Context) error {
		used, total, err := n.memory(ctx)
		if err == nil {
			r.MemoryUsedPercent, r.MemoryTotalBytes = rounded(used), &total
		}
		return err
	})
	q.ask("disk", func(ctx context.Context) error {
		used, total, err := n.readDisk(ctx, c.opts.DiskPath)
		if err == nil {
			r.DiskUsedPercent, r.DiskTotalBytes = rounded(used), &total
		}
		return err
	})
	q.wg.Wait()

	over := func(what string, value *float64, limit float64, format string) {
		if value != nil && limit >= 0 && *value > limit {
			r.Problems = append(r.Problems, fmt.Sprintf("node "+what+" "+format, *value))
		}
	}
	over("load", r.Load1PerCore, c.opts.MaxLoadPerCore, "%.1f per core")
	over("memory", r.MemoryUsedPercent, c.opts.MaxMemoryPercent, "%.0f%%")
	over("disk", r.DiskUsedPercent, c.opts.MaxDiskPercent, "%.0f%%")
	r.Errors = q.words(newScrubber(), false)
	unread := make([]string, 0, len(q.failed))
	for name := range q.failed {
		unread = append(unread, "node "+name+" unknown")
	}
	slices.Sort(unread)
	r.Problems = append(r.Problems, unread...)
	if len(r.Problems) > 0 {
		r.Status = StatusAlert
	}
	r.TookMS = c.now().Sub(start).Milliseconds()
	return r
}

// readDisk is n.disk under a deadline.
func (n *nodePart) readDisk(ctx context.Context, path string) (float64, uint64, error) {
	select {
	case n.diskTurn <- struct{}{}:
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	type answer struct {
		used  float64
		total uint64
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		used, total, err := n.disk(ctx, path)
		<-n.diskTurn
		done <- answer{used, total, err}
	}()
	select {
	case a := <-done:
		return a.used, a.total, a.err
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
}

// rounded keeps two decimals: more would be noise in a report.
func rounded(v float64) *float64 {
	v = math.Round(v*100) / 100
	return &v
}

// rootPath is the root of the file system that holds the working directory:
// "/", or the volume on Windows.
func rootPath() string {
	dir, err := os.Getwd()
	if err != nil {
		return "/"
	}
	return filepath.VolumeName(dir) + string(filepath.Separator)
}
