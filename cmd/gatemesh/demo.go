package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// demoStart bounds the start of the three gateways (Consul's is bounded apart).
const demoStart = 60 * time.Second

type demoOptions struct {
	once, existing  bool
	store, question string
	port            int
}

func (a *app) demoCommand() *cobra.Command {
	o := demoOptions{}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run three gateways on this machine, ask one question, show the whole timeline",
		Long: `Run three gateways, jerry, bobby and billy, on this machine. A user's question goes to agent jerry
through jerry's HTTP API; jerry asks bobby, who really checks the infrastructure that it can see;
jerry passes the answer on. Each step is shown as it happens. Then ask on: here, or from another
terminal.

--store local   one process, one embedded store in a temporary directory (default)
--store consul  three gateway processes on a three-server Consul that is started for the occasion,
                or with --existing on the one at CONSUL_HTTP_ADDR (names and keys of the demo's own,
                removed at the end; nothing else there is touched)

With --json, each event is one line of JSON on standard output (event, message_id, gateway, at, ...).

` + exitHelp,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), o) }),
	}
	f := c.Flags()
	f.BoolVar(&o.once, "once", false, "end after the first answer (status 1 when none comes within 60 s)")
	f.StringVar(&o.store, "store", "local", "local or consul")
	f.BoolVar(&o.existing, "existing", false, "with --store consul: use the Consul at CONSUL_HTTP_ADDR")
	f.StringVar(&o.question, "question", "", `what to ask (default "Ask Bobby to check the infrastructure")`)
	f.IntVar(&o.port, "port", 0, "port of jerry's gateway; bobby's and billy's are the next two (default: free ones)")
	_ = c.RegisterFlagCompletionFunc("store", cobra.FixedCompletions([]string{"local", "consul"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// A demo is one run: its nodes and where it talks to people.
type demo struct {
	a     *app
	opt   demoOptions
	p     *printer // for people; discarded with --json
	dir   string   // everything on disk; removed at the end
	nodes []*demoNode
	feed  *feed
	// died gets the error of a node that ended by itself.
	died chan error
	// stops are undone in reverse.
	stops []func() error
}

func (a *app) demo(ctx context.Context, o demoOptions) (err error) {
	switch {
	case o.store != "local" && o.store != "consul":
		return failf(exitUsage, "--store %q: local or consul", o.store)
	case o.existing && o.store != "consul":
		return failf(exitUsage, "--existing goes with --store consul")
	case o.existing && a.getenv("CONSUL_HTTP_ADDR") == "":
		return failf(exitUsage, "--existing needs CONSUL_HTTP_ADDR (as http://127.0.0.1:8500)")
	case o.port < 0 || o.port > 65533:
		return failf(exitUsage, "--port %d: from 1 to 65533 (three ports are used)", o.port)
	}
	d := &demo{a: a, opt: o, p: a.printer(), died: make(chan error, len(demoNames))}
	if a.asJSON {
		d.p = &printer{w: a.err}
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	defer func() {
		// A second signal ends the cleaning up, too.
		stop()
		if e := d.stop(); err == nil {
			err = e
		}
	}()
	if d.dir, err = os.MkdirTemp("", "gatemesh-demo-"); err != nil {
		return err
	}
	d.stops = append(d.stops, func() error { return os.RemoveAll(d.dir) })
	err = d.run(ctx)
	if ctx.Err() != nil && !o.once {
		return nil // asked to stop: that is how a demo ends
	}
	return err
}

func (d *demo) stop() error {
	var errs []error
	for i := len(d.stops) - 1; i >= 0; i-- {
		errs = append(errs, d.stops[i]())
	}
	return errors.Join(errs...)
}

func (d *demo) run(ctx context.Context) error {
	start := d.startLocal
	if d.opt.store == "consul" {
		start = d.startConsul
	}
	if err := start(ctx); err != nil {
		return err
	}
	if err := d.waitReady(ctx); err != nil {
		return err
	}
	f, err := d.follow(ctx)
	if err != nil {
		return err
	}
	d.feed = f
	d.stops = append(d.stops, func() error { f.stop(); return nil })
	for _, n := range d.nodes {
		d.p.printf("  %s %s  %s\n", d.p.paint(bold, fmt.Sprintf("%-13s", n.gateway)), n.addr, d.p.paint(dim, "serves "+n.agent))
	}
	question := d.opt.question
	if question == "" {
		question = "Ask Bobby to check the infrastructure"
		if d.opt.existing {
			question = "Ask " + d.nodes[1].agent + " to check the infrastructure"
		}
	}
	res, err := d.ask(ctx, question)
	if err != nil || d.opt.once {
		return err
	}
	d.goOn(res)
	return d.stay(ctx)
}

// errNoAnswer is one more way to fail: the status is 1, whatever the reason.
func (d *demo) ask(ctx context.Context, question string) (*gateway.MessageStatus, error) {
	jerry := d.nodes[0]
	id := envelope.NewID()
	d.p.printf("\n%s %s -> %s: %s\n\n", d.p.paint(bold, "question"), "user", jerry.agent, printable(question))
	d.feed.show(id, time.Now())
	started := time.Now()
	wait := d.a.timeoutOr(answerTimeout)
	type outcome struct {
		res *gateway.MessageStatus
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		res, err := jerry.client.send(ctx, gateway.SendRequest{
			ID: id, To: jerry.agent, From: "user", Text: &question, Wait: gateway.WaitReplied, Timeout: wait.String(), TTL: wait.String(),
		}, wait)
		done <- outcome{res, err}
	}()
	var o outcome
	select {
	case o = <-done:
	case err := <-d.died:
		return nil, err
	}
	if o.err != nil {
		return nil, d.failed(ctx, o.err)
	}
	took := time.Since(started)
	d.feed.settle(ctx)
	switch {
	case o.res.Facts.Dead:
		return nil, failf(exitFailed, "the question was given up (%s: %s)", o.res.Facts.Class, o.res.Facts.Reason)
	case o.res.Reply == nil:
		return nil, failf(exitFailed, "no answer within %s; the question is %s", wait, o.res.Facts)
	}
	d.p.printf("\n%s after %.0f ms\n%s\n", d.p.paint(bold, "answer"), millis(took), indent(o.res.Text))
	return o.res, nil
}

// failed makes any failure of the demo status 1, and says what the nodes said last.
func (d *demo) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return quiet(exitFailed)
	}
	return &exitError{exitFailed, err}
}

// goOn says how to go on, with commands that work from another terminal.
func (d *demo) goOn(res *gateway.MessageStatus) {
	jerry := d.nodes[0]
	env := "GATEMESH_ADDR=" + jerry.addr + " " + thisBinary()
	d.p.printf("\n%s from another terminal:\n", d.p.paint(bold, "go on"))
	for _, l := range [][2]string{
		{"ask again", fmt.Sprintf("%s ask --to %s \"How is your node, %s?\"", env, jerry.agent, demoNames[2].name)},
		{"list agents", env + " agents"},
		{"show the message", env + " message show " + res.MessageID},
		{"what is wrong", env + " doctor"},
		{"open the page", jerry.addr + "/"},
		{"stop", "Ctrl-C here"},
	} {
		d.p.printf("  %s %s\n", d.p.paint(bold, fmt.Sprintf("%-16s", l[0])), l[1])
	}
}

// thisBinary is how to call this program from anywhere.
func thisBinary() string {
	exe, err := os.Executable()
	if err != nil {
		return "gatemesh"
	}
	if found, err := exec.LookPath("gatemesh"); err == nil {
		if a, err := filepath.EvalSymlinks(found); err == nil {
			if b, err := filepath.EvalSymlinks(exe); err == nil && a == b {
				return "gatemesh"
			}
		}
	}
	if strings.ContainsAny(exe, " '\"\\$") {
		return "'" + strings.ReplaceAll(exe, "'", `'\''`) + "'"
	}
	return exe
}

// stay runs until somebody has had enough: a prompt on a terminal, else until a signal.
func (d *demo) stay(ctx context.Context) error {
	if isTerminal(d.a.in) && isTerminal(d.a.out) && !d.a.asJSON {
		return d.prompt(ctx)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-d.died:
		return err
	}
}

// waitReady waits until every node accepts messages and every agent has its owner.
func (d *demo) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoStart)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	reason := "no gateway answered"
	for {
		ready, err := d.ready(ctx)
		if ready {
			return nil
		}
		if err != nil {
			reason = err.Error()
		}
		select {
		case err := <-d.died:
			return err
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return quiet(exitFailed)
			}
			return failf(exitFailed, "the gateways were not ready within %s: %s", demoStart, reason)
		case <-tick.C:
		}
	}
}

func (d *demo) ready(ctx context.Context) (bool, error) {
	for _, n := range d.nodes {
		st, err := n.client.status(ctx)
		if err != nil {
			return false, err
		}
		if !st.Ready {
			return false, fmt.Errorf("%s: %s", n.gateway, st.Reason)
		}
	}
	// Each of them must know all of them: the relay looks into its own gateway's registry.
	for _, n := range d.nodes {
		agents, err := n.client.agents(ctx, "")
		if err != nil {
			return false, err
		}
		active := map[string]bool{}
		for _, ag := range agents {
			active[ag.ID] = ag.Status == "active"
		}
		for _, m := range d.nodes {
			if !active[m.agent] {
				return false, fmt.Errorf("%s does not see agent %s yet", n.gateway, m.agent)
			}
		}
	}
	return true, nil
}
