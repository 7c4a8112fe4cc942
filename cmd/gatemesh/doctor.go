package main

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/gateway"
)

// finding is one line of "doctor". The JSON names are stable.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, warn or fail
	Detail string `json:"detail"`
	// Fix is the command, or the change, that mends it.
	Fix string `json:"fix,omitempty"`
}

const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"
)

// doctorReport is what "doctor --json" prints.
type doctorReport struct {
	OK     bool      `json:"ok"` // nothing fails
	Checks []finding `json:"checks"`
}

// A doctor collects findings. One check that fails may make the next ones pointless; it
// never hides the ones of another part.
type doctor struct {
	a       *app
	report  doctorReport
	file    string // configuration; "" when there is none
	cfg     *gateway.Config
	started time.Time
	trusts  uint64 // version of the trust set that the gateway goes by
}

func (d *doctor) ok(check, detail string) {
	d.report.Checks = append(d.report.Checks, finding{check, statusOK, detail, ""})
}

func (d *doctor) warn(check, detail, fix string) {
	d.report.Checks = append(d.report.Checks, finding{check, statusWarn, detail, fix})
}

func (d *doctor) fail(check, detail, fix string) {
	d.report.Checks = append(d.report.Checks, finding{check, statusFail, detail, fix})
	d.report.OK = false
}

func (a *app) doctorCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "doctor", Short: "Say what is wrong, and the command that mends it",
		Long: `Look at the configuration, the gateway, its store and the mesh; say for each whether it is ok, and
else the command that mends it. Nothing is changed (a key that proves the store writable is
written below openclaw/doctor/ and removed at once). Status 1 when something fails.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			d := &doctor{a: a, report: doctorReport{OK: true, Checks: []finding{}}, started: time.Now()}
			d.config(file)
			if err := d.gateway(ctx); err != nil {
				return err
			}
			d.store(ctx)
			d.binaries()
			if err := ctx.Err(); err != nil {
				return err
			}
			return d.show()
		}),
	}
	c.Flags().StringVar(&file, "config", "", configFlagHelp)
	_ = c.MarkFlagFilename("config", "json", "json5")
	return c
}

func (d *doctor) show() error {
	p := d.a.printer()
	if d.a.asJSON {
		if err := p.json(d.report); err != nil {
			return err
		}
	} else {
		colours := map[string]colour{statusOK: green, statusWarn: yellow, statusFail: red}
		for _, f := range d.report.Checks {
			pad := "    "[:4-len(f.Status)]
			p.printf("%s%s  %s: %s\n", p.paint(colours[f.Status], f.Status), pad, f.Check, printable(f.Detail))
			if f.Fix != "" {
				p.printf("      %s\n", p.paint(bold, "fix: ")+printable(f.Fix))
			}
		}
	}
	if !d.report.OK {
		return quiet(exitFailed)
	}
	return nil
}

// config reads the configuration, if there is one. Only a node needs one.
func (d *doctor) config(flag string) {
	path := d.a.configPath(flag)
	cfg, warnings, err := d.a.loadConfig(path, nil)
	named := flag != "" || d.a.getenv("GATEMESH_CONFIG", "OPENCLAW_CONFIG_PATH") != ""
	switch {
	case err != nil && !named && notThere(path):
		d.ok("config", "none at "+path+" (only a node that runs a gateway needs one)")
		return
	case err != nil:
		d.fail("config", err.Error(), "gatemesh config validate --config "+path)
		return
	}
	d.file, d.cfg = path, cfg
	for _, w := range cfg.Warnings() {
		d.warn(w.Path, w.Message, "edit "+path+"; a running gateway takes it up, gateway.bind and gateway.tls with a restart")
	}
	d.secretFiles()
	bad := 0
	for _, w := range warnings {
		if w.Severity == gateway.SeverityWarning {
			bad++
		}
	}
	if bad > 0 {
		d.warn("config", plural(bad, "warning")+" in "+path, "gatemesh config validate --config "+path)
		return
	}
	d.ok("config", path+" is valid")
	if p := cfg.Mesh.Policy; cfg.Mesh.Store == "consul" && p.Default == "deny" && len(p.Rules) == 0 {
		d.warn("policy", "agents of other gateways may ask nothing of the agents here: mesh.policy has no rules", "add rules to mesh.policy.rules in "+path+" (gatemesh policy explain says what holds)")
	}
}

// secretFiles looks for secrets in files that every user of this machine can read.
func (d *doctor) secretFiles() {
	files := map[string]string{}
	for _, key := range []string{"gateway.auth.token", "mesh.consul.token"} {
		if o := d.cfg.Origin(key); o.Kind == gateway.OriginFile && len(o.Vars) == 0 {
			files[d.file] = key
		}
	}
	if t := d.cfg.Gateway.TLS; t.Enabled {
		files[t.KeyPath] = "the key of gateway.tls"
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if st, err := os.Stat(file); err == nil && st.Mode().Perm()&0o006 != 0 {
			d.warn("secrets", "everybody on this machine can read "+file+", which holds "+files[file], "chmod o= "+file)
		}
	}
}

// binaries looks for what only the demo needs.
func (d *doctor) binaries() {
	if path, err := cluster.Find(); err != nil {
		d.warn("consul binary", err.Error(), "make tools (only gatemesh demo --store consul and the tests need it)")
	} else {
		d.ok("consul binary", path)
	}
	if path, err := exec.LookPath("nomad"); err != nil {
		d.ok("nomad binary", "none on PATH (only the runbook uses it)")
	} else {
		d.ok("nomad binary", path)
	}
}

// within bounds one part of the examination.
func (d *doctor) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return d.a.within(ctx, callTimeout)
}
