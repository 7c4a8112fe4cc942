package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

type verdictOptions struct {
	short   bool
	faults  []string // by name; empty: all
	restart time.Duration
	repair  time.Duration
	proof   string
	commit  string
}

func (a *app) verdictCommand() *cobra.Command {
	o := verdictOptions{}
	c := &cobra.Command{
		Use:   "verdict",
		Short: "Break one gateway, and three, in the same ways, and say which is worth it",
		Long: `Compare one gateway that has all agents with three that share them (Option 3 and Option 2 of the plan): the same
binary, agents, people and faults on three Consul servers, only the configuration differs. Takes about eight minutes.

People ask on the gateway's own page, four questions a second: jerry has bobby run a program, which leaves a line in
a file, and the answer comes back on the page. Meanwhile, on the node that has jerry:

  quiet      nothing happens
  drop       its gateway's connections to Consul are reset once a second
  duplicate  each question is said twice, on two pages
  delay      whatever passes between it and Consul takes 100 ms longer, each way
  partition  its gateway is cut off from Consul for 15 s, and nobody tells it
  update     its gateway is stopped in order and started anew
  crash      its gateway is killed, and started again after --restart (15 s, as the Nomad job says)
  node       it is lost with its Consul server, and back after --repair

Counted from outside: what each page shows in the end, and the lines in the file. A question counts as served when
bobby's answer came within 30 s; recovery is how long after the beginning of a fault somebody still waited for more
than 2 s. The thresholds were set before the first whole run. For three gateways:

  nothing lost, nothing answered or done twice, whatever happens; and at most 1 of 100 answered with no more than
  what became of it (that nobody knows whether the program ran, because it was killed with its gateway)
  99 of 100 questions served, and no smaller part than with one gateway
  recovery from the crash and from the loss of the node within 10 s, and within a third of what one gateway takes
  an answer within 500 ms in 95 of 100 when nothing happens (the plan's bound for asking another agent)
  less than 2 GB for all gateways together

With --faults only what was asked for is played and judged. Exit status 0: go. 1: no go, or the comparison could not be made; what was missed is said.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error { return a.verdict(cmd.Context(), o) }),
	}
	f := c.Flags()
	f.StringSliceVar(&o.faults, "faults", nil, "only these, and quiet (default: all): "+strings.Join(verdictFaults(), ", "))
	f.BoolVar(&o.short, "short", false, "a quick run, with three gateways alone, that judges no times")
	f.DurationVar(&o.restart, "restart", 15*time.Second, "when a gateway that was killed is started again")
	f.DurationVar(&o.repair, "repair", time.Minute, "when a node that was lost is back")
	f.StringVar(&o.proof, "proof", "", "write the figures to this file")
	f.StringVar(&o.commit, "commit", "", "the commit to name in the figures")
	_ = c.RegisterFlagCompletionFunc("faults", cobra.FixedCompletions(verdictFaults(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

// A verdictForm is one of the two ways to run the same agents.
type verdictForm struct {
	key, name string
	gateways  []string
}

var (
	verdictOne  = verdictForm{"one", "one gateway", []string{"jerry-gateway"}}
	verdictMesh = verdictForm{"three", "three gateways", []string{"jerry-gateway", "bobby-gateway", "billy-gateway"}}
)

func (a *app) verdict(ctx context.Context, o verdictOptions) (err error) {
	if o.restart < time.Second || o.repair < 5*time.Second {
		return failf(exitUsage, "--restart and --repair: at least 1s and 5s")
	}
	for _, name := range o.faults {
		if !slices.Contains(verdictFaults(), name) {
			return failf(exitUsage, "--faults %q: one of %s", name, strings.Join(verdictFaults(), ", "))
		}
	}
	begin := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(a.err, "[%6.1fs] %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	forms := []verdictForm{verdictOne, verdictMesh}
	if o.short {
		forms = []verdictForm{verdictMesh}
		o.restart, o.repair = min(o.restart, 5*time.Second), min(o.repair, 12*time.Second)
	}
	v := &verdictReport{Forms: map[string]*verdictFigures{}}
	for _, form := range forms {
		f, err := a.verdictOf(ctx, form, o, say)
		if ctx.Err() != nil {
			return quiet(exitFailed)
		}
		if err != nil {
			return failf(exitFailed, "%s: %w", form.name, err)
		}
		v.Forms[form.key] = f
	}
	v.judge(o.short)
	if o.proof != "" {
		if err := writeProof(o.proof, proof{Name: "verdict", Commit: o.commit, OK: v.Go, Seconds: time.Since(begin).Seconds(), Figures: v}); err != nil {
			return err
		}
	}
	if a.asJSON {
		if err := a.printer().json(v); err != nil {
			return err
		}
	} else {
		v.print(a.printer(), forms)
	}
	if !v.Go {
		return quiet(exitFailed)
	}
	return nil
}

// verdictOf plays all faults with one form.
func (a *app) verdictOf(ctx context.Context, form verdictForm, o verdictOptions, say func(string, ...any)) (_ *verdictFigures, err error) {
	dir, err := os.MkdirTemp("", "gatemesh-verdict-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s := &verdictSite{form: form, dir: dir, effects: filepath.Join(dir, "effects"), failed: make(chan error, 1), say: func(format string, args ...any) {
		say("%s: %s", form.name, fmt.Sprintf(format, args...))
	}}
	defer func() {
		if e := s.stop(); err == nil {
			err = e
		}
	}()
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	p := &verdictPeople{s: s}
	f := &verdictFigures{Name: form.name, Gateways: len(form.gateways), Phases: map[string]*verdictPhaseFigures{}}
	for _, phase := range verdictPhases(o) {
		if phase.name != phaseQuiet && (o.short && phase.long || len(o.faults) > 0 && !slices.Contains(o.faults, phase.name)) {
			continue
		}
		s.say("%s", phase.what)
		var cost verdictCost
		if phase.name == phaseQuiet {
			if cost, err = s.cost(ctx); err != nil {
				return nil, err
			}
		}
		asked, err := p.during(ctx, phase)
		if err != nil {
			return nil, err
		}
		x := f.add(phase, asked)
		if phase.name == phaseQuiet {
			if err := f.costs(ctx, s, cost, len(asked)); err != nil {
				return nil, err
			}
		}
		s.say("%s", x)
	}
	s.say("counting what the pages and the file say in the end")
	if err := p.audit(ctx, f); err != nil {
		return nil, err
	}
	return f, nil
}
