package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// defaultAddr is where a gateway listens unless its configuration says otherwise.
const defaultAddr = "http://127.0.0.1:18789"

// An app is one run of the binary: where it reads and writes, and the flags that every
// command has.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) (string, bool)

	addr, token string
	profile     string
	asJSON      bool
	timeout     time.Duration
}

func newApp() *app {
	return &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.LookupEnv}
}

// run executes one command line and returns the exit status.
func run(args []string, a *app) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(context.Background())
	if err != nil && exitCode(err) == exitUsage && !errors.As(err, new(*exitError)) {
		err = fmt.Errorf("%s (see: gatemesh --help)", strings.Join(strings.Fields(err.Error()), " "))
	}
	if err != nil {
		report(a.err, err)
	}
	return exitCode(err)
}

const exitHelp = `Exit status:
  0  done
  1  it did not work (doctor: something fails)
  2  bad flags, bad input or bad configuration
  3  waited in vain; what is known of the message was printed
  4  the gateway, or the store behind it, cannot be reached now
`

// rootCommand assembles the tree. A further command is a file with a method that returns
// it, and a line here.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "gatemesh",
		Short: "Carry work between agents that live on different nodes",
		Long: `gatemesh carries work between agents that live on different nodes.

  gatemesh demo                       three gateways on this machine, one question, the whole timeline
  gatemesh gateway --config FILE      run one node's gateway
  gatemesh ask "check the disks"      ask an agent through a running gateway
  gatemesh doctor                     what is wrong, and the command that mends it

` + exitHelp,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return cmd.Help()
		},
		Args: cobra.NoArgs,
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	flags := root.PersistentFlags()
	flags.StringVar(&a.addr, "addr", "", "URL of the gateway to talk to (GATEMESH_ADDR; default "+defaultAddr+")")
	flags.StringVar(&a.token, "token", "", "its token (better: GATEMESH_TOKEN, then OPENCLAW_GATEWAY_TOKEN)")
	flags.StringVar(&a.profile, "profile", "", "a gateway of its own beside others: configuration and state in ~/.openclaw-NAME, an embedded store, a port of its own (GATEMESH_PROFILE, OPENCLAW_PROFILE)")
	flags.BoolVar(&a.asJSON, "json", false, "print JSON (shapes: go doc ./cmd/gatemesh)")
	flags.DurationVar(&a.timeout, "timeout", 0, "how long to wait (default 10s; 60s for an answer)")

	root.AddGroup(&cobra.Group{ID: "mesh", Title: "Ask and look (against a running gateway):"},
		&cobra.Group{ID: "node", Title: "Run a node:"},
		&cobra.Group{ID: "try", Title: "Try it:"})
	a.add(root, "mesh", a.sendCommand(), a.askCommand(), a.messageCommand(), a.taskCommand(), a.ownerCommand(), a.channelsCommand(), a.cronCommand(), a.skillsCommand(), a.routeCommand(), a.sessionsCommand(), a.costCommand(), a.deadLetterCommand(), a.agentsCommand(), a.gatewaysCommand(),
		a.inboxCommand(), a.stateCommand(), a.statusCommand(), a.eventsCommand(), a.doctorCommand())
	a.add(root, "node", a.gatewayCommand(), a.configCommand(), a.importCommand(), a.tokenCommand(), a.policyCommand(), a.trustCommand(), a.mcpCommand(), a.keysCommand(), a.auditCommand(), a.aclCommand())
	a.add(root, "try", a.demoCommand(), a.benchCommand(), a.verdictCommand())
	a.add(root, "", a.versionCommand())
	strictDefaults(root)
	return root
}

// strictDefaults makes cobra's own commands refuse what they do not know, as all others do.
func strictDefaults(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			refuseUnknown(c)
		case "help":
			show := c.Run
			c.Run, c.RunE = nil, func(cmd *cobra.Command, args []string) error {
				if found, rest, err := root.Find(args); err != nil || found == root && len(rest) > 0 {
					return fmt.Errorf("unknown help topic %q", strings.Join(args, " "))
				}
				show(cmd, args)
				return nil
			}
		}
	}
}

func (a *app) add(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// body makes f a RunE whose errors carry their exit status.
func body(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return failed(f(cmd, args)) }
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(subs...)
	refuseUnknown(c)
	return c
}

// refuseUnknown makes a group refuse what it does not hold. Cobra prints help and succeeds.
func refuseUnknown(c *cobra.Command) {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		var names []string
		for _, s := range cmd.Commands() {
			if s.IsAvailableCommand() {
				names = append(names, s.Name())
			}
		}
		if len(args) == 0 {
			return fmt.Errorf("%s needs one of: %s", cmd.CommandPath(), strings.Join(names, ", "))
		}
		return fmt.Errorf("unknown command %q for %q: one of %s", args[0], cmd.CommandPath(), strings.Join(names, ", "))
	}
}

// interruptible is a context that ends with SIGINT or SIGTERM.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}

// getenv returns the first variable of names that is not empty.
func (a *app) getenv(names ...string) string {
	for _, n := range names {
		if v, _ := a.env(n); v != "" {
			return v
		}
	}
	return ""
}

func (a *app) printer() *printer { return newPrinter(a.out, a.env) }

// within is ctx bounded by --timeout, or by def when that was not given.
func (a *app) within(ctx context.Context, def time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeoutOr(def))
}

func (a *app) timeoutOr(def time.Duration) time.Duration {
	if a.timeout > 0 {
		return a.timeout
	}
	return def
}
