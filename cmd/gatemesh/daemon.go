package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/gateway"
)

// drainTime bounds handing over: what is not done then is found by the next owner.
const drainTime = 30 * time.Second

func (a *app) gatewayCommand() *cobra.Command {
	var file string
	var set []string
	var port int
	c := &cobra.Command{
		Use:   "gateway --config FILE",
		Short: "Run this node's gateway",
		Long: `Run this node's gateway until SIGTERM or SIGINT: it then takes no more messages, finishes what it can,
hands its inboxes over and ends, within 30 seconds. A second signal ends it at once.

SIGHUP, or a change of the file or of mesh.identity.keyFile, reloads the configuration: what can be taken up is, the rest is
named in the log and needs a restart. A configuration that is wrong changes nothing.

The log goes to standard error (mesh.log.json: one JSON object a line).

Exit status: 0 clean stop, 2 bad configuration, 1 anything else.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("port") {
				set = append(set, "gateway.port="+strconv.Itoa(port))
			}
			d := &daemon{a: a, path: a.configPath(file), set: set}
			return d.run(cmd.Context())
		}),
	}
	c.Flags().StringVar(&file, "config", "", configFlagHelp)
	c.Flags().StringArrayVar(&set, "set", nil, "override a key, as --set gateway.port=18790 (repeatable)")
	c.Flags().IntVar(&port, "port", 0, "port to listen on, as --set gateway.port=18790")
	_ = c.MarkFlagFilename("config", "json", "json5")
	return c
}

// A daemon is one gateway process: its configuration, signals and end.
type daemon struct {
	a    *app
	path string
	set  []string
	log  hclog.Logger
}

func (d *daemon) run(ctx context.Context) error {
	cfg, warnings, err := d.a.loadConfig(d.path, d.set)
	if err != nil {
		return err
	}
	d.log = newLogger(d.a, cfg.Mesh.Log)
	d.warn(slices.Concat(warnings, cfg.Warnings(), cfg.Unused()))

	stop := make(chan os.Signal, 2)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(stop)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	n, err := newNode(cfg, d.log)
	if err != nil {
		return err
	}
	// A signal ends the start, too: it may be waiting for the store.
	starting, cancelStart := context.WithCancel(ctx)
	defer cancelStart()
	started := make(chan error, 1)
	go func() { started <- n.Start(starting) }()
	select {
	case err = <-started:
		if err != nil {
			return errors.Join(err, n.store.Close())
		}
	case s := <-stop:
		d.log.Info("stopping before the start was done", "signal", s.String())
		cancelStart()
		if err = <-started; err != nil {
			return n.store.Close()
		}
		return d.stop(n, stop)
	}

	changed := watchFile(ctx, d.path, d.log)
	var key <-chan struct{}
	if file := cfg.Mesh.Identity.KeyFile; file != "" {
		key = watchFile(ctx, file, d.log)
	}
	for {
		select {
		case s := <-stop:
			d.log.Info("stopping: draining and handing over", "signal", s.String(), "within", drainTime.String())
			return d.stop(n, stop)
		case <-hangup:
			d.reload(n, "SIGHUP")
		case <-changed:
			d.reload(n, "the file has changed")
		case <-key:
			d.reload(n, "mesh.identity.keyFile has changed")
		case <-n.Done():
			return errors.Join(n.Wait(), n.store.Close())
		}
	}
}

// stop hands over within drainTime. A second signal ends the process at once: the store
// frees what it held when its session's TTL has passed.
func (d *daemon) stop(n *node, second <-chan os.Signal) error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTime)
		defer cancel()
		done <- n.stop(ctx)
	}()
	select {
	case err := <-done:
		if err != nil {
			return failf(exitFailed, "stop: %w", err)
		}
		d.log.Info("stopped")
		return nil
	case s := <-second:
		return failf(exitFailed, "second signal (%s): ended at once, without handing over", s)
	}
}

// reload takes up a changed configuration, or says why not.
func (d *daemon) reload(n *node, why string) {
	cfg, warnings, err := d.a.loadConfig(d.path, d.set)
	if err != nil {
		d.log.Error("configuration not reloaded; the old one stays", "file", d.path, "error", err)
		return
	}
	d.log.Info("reading the configuration again", "file", d.path, "why", why)
	_, restart, err := n.Reload(cfg)
	if err != nil {
		d.log.Error("configuration not reloaded; the old one stays", "file", d.path, "error", err)
		return
	}
	d.warn(slices.Concat(warnings, cfg.Warnings()))
	if len(restart) > 0 {
		d.log.Warn("some changes need a restart of the gateway", "keys", strings.Join(restart, ", "))
	}
}

func (d *daemon) warn(warnings []gateway.Warning) {
	for _, w := range warnings {
		if w.Severity == gateway.SeverityWarning {
			d.log.Warn("configuration", "at", w.String())
		} else {
			d.log.Debug("configuration", "at", w.String())
		}
	}
}

func newLogger(a *app, c gateway.LogConfig) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "gatemesh", Level: hclog.LevelFromString(c.Level), Output: a.err, JSONFormat: c.JSON,
	})
}
