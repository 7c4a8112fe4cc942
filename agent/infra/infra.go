package infra

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

// Options are the settings of a Checker. The zero value checks what the
// environment names, with the defaults given here.
type Options struct {
	// Consul says where and how to ask Consul. Nil: the environment decides
	// (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE,
	// CONSUL_CACERT ...). A non-empty Address here or in the environment makes
	// Consul something that should be there: silence is then an alert. HttpClient
	// and Transport are ignored.
	Consul *consulapi.Config
	// Nomad is the same for Nomad (NOMAD_ADDR, NOMAD_TOKEN, NOMAD_CACERT ...).
	// HttpClient is ignored.
	Nomad *nomadapi.Config
	// NoConsul and NoNomad leave a part out; it is reported as absent.
	NoConsul, NoNomad bool

	// IgnoreCheck picks checks of Consul, by id, that are nobody's trouble. Nil: none.
	IgnoreCheck func(id string) bool

	// Timeout bounds each of the three parts. Default 3 s.
	Timeout time.Duration
	// DiskPath is the path whose file system is measured. Default: the root of
	// the file system that holds the working directory.
	DiskPath string
	// MaxLoadPerCore is the one-minute load per core above which the node is in
	// trouble. Default 4; negative: never.
	MaxLoadPerCore float64
	// MaxMemoryPercent is the same for used memory. Default 95; negative: never.
	MaxMemoryPercent float64
	// MaxDiskPercent is the same for the used disk. Default 90; negative: never.
	MaxDiskPercent float64
	// PendingAfter is how old a job's registration must be before its waiting
	// for a place is trouble. Default 5 min; negative: at once.
	PendingAfter time.Duration
	// MaxNames bounds every list of names in a report. Default 20.
	MaxNames int

	// maxAnswer is how many bytes of one answer are read: 16 MiB, less in tests.
	maxAnswer int
}

func (o *Options) setDefaults() {
	if o.Timeout == 0 {
		o.Timeout = 3 * time.Second
	}
	if o.DiskPath == "" {
		o.DiskPath = rootPath()
	}
	if o.MaxLoadPerCore == 0 {
		o.MaxLoadPerCore = 4
	}
	if o.MaxMemoryPercent == 0 {
		o.MaxMemoryPercent = 95
	}
	if o.MaxDiskPercent == 0 {
		o.MaxDiskPercent = 90
	}
	if o.PendingAfter == 0 {
		o.PendingAfter = 5 * time.Minute
	}
	if o.MaxNames == 0 {
		o.MaxNames = 20
	}
	if o.maxAnswer == 0 {
		o.maxAnswer = 16 << 20
	}
}

func (o *Options) validate() error {
	if o.Timeout < 0 {
		return fmt.Errorf("timeout is %v: give a positive duration", o.Timeout)
	}
	if o.MaxNames < 0 {
		return fmt.Errorf("max names is %d: give a positive number", o.MaxNames)
	}
	return nil
}

// Checker asks Consul, Nomad and the own node. It holds no connection between
// two checks, so there is nothing to close, and may be used by many goroutines.
type Checker struct {
	opts   Options
	consul *consulPart
	nomad  *nomadPart
	node   *nodePart
	now    func() time.Time
}

// New prepares a Checker. It connects to nothing; it fails on settings that can
// never work, such as an unreadable certificate or token file.
func New(opts Options) (*Checker, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("infra: %w", err)
	}
	c := &Checker{opts: opts, node: newNodePart(), now: time.Now}
	var err error
	if !opts.NoConsul {
		if c.consul, err = newConsulPart(opts.Consul, os.Getenv(consulapi.HTTPAddrEnvName) != "", opts.maxAnswer); err != nil {
			return nil, fmt.Errorf("infra: configure the Consul client: %w", err)
		}
	}
	if !opts.NoNomad {
		if c.nomad, err = newNomadPart(opts.Nomad, os.Getenv("NOMAD_ADDR") != "", opts.maxAnswer); err != nil {
			return nil, fmt.Errorf("infra: configure the Nomad client: %w", err)
		}
	}
	return c, nil
}

// Check asks everything, at the same time, and returns after Options.Timeout at
// the latest. It cannot fail as a whole: what went wrong is in the report.
// A cancelled ctx makes the parts that were not finished unreachable.
func (c *Checker) Check(ctx context.Context) Report {
	start := c.now()
	r := Report{CheckedAt: start.UTC()}
	var wg sync.WaitGroup
	wg.Go(func() { r.Consul = c.checkConsul(ctx) })
	wg.Go(func() { r.Nomad = c.checkNomad(ctx) })
	wg.Go(func() { r.Node = c.Node(ctx) })
	wg.Wait()
	r.conclude()
	r.TookMS = c.now().Sub(start).Milliseconds()
	return r
}

// partContext gives one part its own deadline.
func (c *Checker) partContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.opts.Timeout,
		fmt.Errorf("no answer within %v", c.opts.Timeout))
}

var errCancelled = errors.New("the check was cancelled")
