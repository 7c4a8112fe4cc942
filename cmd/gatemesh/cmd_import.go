package main

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/gateway"
)

// importReport is what "import openclaw --json" prints.
type importReport struct {
	File string `json:"file"`
	// OK: a gateway starts with the file, once the variables are set.
	OK        bool              `json:"ok"`
	Problems  []importRemark    `json:"problems"`
	Agents    []importedAgent   `json:"agents"`
	Channels  []importedChannel `json:"channels"`
	Bindings  int               `json:"bindings"`
	Variables []string          `json:"variables"` // that the file names and that are not set here
	Ignored   []importRemark    `json:"ignored"`
	Warnings  []importRemark    `json:"warnings"`
}

type importRemark struct {
	Key    string `json:"key"`
	Line   int    `json:"line,omitempty"`
	Reason string `json:"reason"`
}

type importedAgent struct {
	ID       string   `json:"id"`
	Runner   string   `json:"runner"`
	Model    string   `json:"model,omitempty"`
	Gateways []string `json:"gateways"`
}

type importedChannel struct {
	Inbox     string `json:"inbox"`
	Connected bool   `json:"connected"`
}

func (a *app) importCommand() *cobra.Command {
	openclaw := &cobra.Command{
		Use: "openclaw FILE", Short: "Say what this version makes of an openclaw.json of OpenClaw's, and what it leaves alone",
		Long: `Read an openclaw.json of OpenClaw's, and say what this version makes of it: which agents would run and how, which accounts would be
connected, which variables it needs, and which keys it leaves alone and why. Nothing is written: a gateway takes the file as it is (gatemesh gateway
--config FILE), with a mesh block added for what OpenClaw does not have. Both shapes are read, agents.list and agents.entries.

Status 0: a gateway starts with it. 2: it does not, and why.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(_ *cobra.Command, args []string) error {
			r, err := a.importOpenClaw(args[0])
			if err != nil {
				return err
			}
			return a.showImport(r)
		}),
	}
	return group("import", "Take over the configuration of another program", openclaw)
}

func (a *app) importOpenClaw(file string) (*importReport, error) {
	r := &importReport{File: file, Problems: []importRemark{}, Agents: []importedAgent{}, Channels: []importedChannel{}, Variables: []string{}, Ignored: []importRemark{}, Warnings: []importRemark{}}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failf(exitUsage, "no file at %s", file)
	}
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	cfg, warnings, err := gateway.LoadConfig(file, func(name string) (string, bool) {
		v, ok := a.env(name)
		if ok || !strings.Contains(string(text), "${"+name+"}") {
			return v, ok
		}
		if !slices.Contains(r.Variables, name) {
			r.Variables = append(r.Variables, name)
		}
		if strings.HasSuffix(name, "_URL") {
			return "http://" + unset + ".invalid", true
		}
		return unset, true
	})
	slices.Sort(r.Variables)
	if err == nil {
		cfg.Normalize()
		err = cfg.Validate()
	}
	var list *gateway.ConfigError
	switch {
	case errors.As(err, &list):
		for _, p := range list.Problems {
			r.Problems = append(r.Problems, importRemark{p.Path, p.Line, p.Message})
		}
		return r, nil
	case err != nil:
		return nil, &exitError{exitUsage, err}
	}
	r.OK = true
	for _, w := range warnings {
		r.Ignored = append(r.Ignored, importRemark{w.Path, w.Line, w.Message})
	}
	for _, w := range cfg.Unused() {
		r.Ignored = append(r.Ignored, importRemark{w.Path, w.Line, ignoredBecause(w.Path)})
	}
	for _, w := range cfg.Warnings() {
		r.Warnings = append(r.Warnings, importRemark{w.Path, w.Line, w.Message})
	}
	for _, g := range cfg.Agents.List {
		r.Agents = append(r.Agents, importedAgent{g.ID, g.Runner.Kind, g.Model.Primary, g.Gateways})
	}
	for _, c := range cfg.ChannelAccounts() {
		r.Channels = append(r.Channels, importedChannel{c.Inbox(), c.Enabled})
	}
	r.Bindings = len(cfg.Bindings)
	return r, nil
}

// ignoredBecause says why a key of OpenClaw's is left alone.
func ignoredBecause(key string) string {
	for _, x := range []struct{ part, why string }{
		{"sandbox.scope", "each run is confined for itself"},
		{"tailscale", "the gateway listens where gateway.bind says; put Tailscale Serve before it"},
		{"skills", "skills are read from the agents' workspaces (gatemesh skills)"},
		{"logging", "the log is mesh.log"},
		{"update", "OpenClaw's own updates"},
	} {
		if strings.Contains(key, x.part) {
			return x.why
		}
	}
	return "OpenClaw's own; not used by this version"
}

func (a *app) showImport(r *importReport) error {
	p := a.printer()
	if a.asJSON {
		if err := p.json(r); err != nil {
			return err
		}
	} else {
		if r.OK {
			p.printf("%s: %s\n", r.File, p.paint(green, "a gateway starts with it"))
		} else {
			p.printf("%s: %s\n", r.File, p.paint(red, "no gateway starts with it"))
			for _, x := range r.Problems {
				p.printf("  line %d  %s: %s\n", x.Line, x.Key, printable(x.Reason))
			}
		}
		for _, x := range r.Warnings {
			p.printf("  line %d  %s: %s\n", x.Line, x.Key, printable(x.Reason))
		}
		if len(r.Agents) > 0 {
			t := newTable("AGENT", "RUNNER", "MODEL", "RUNS AT")
			for _, g := range r.Agents {
				t.add(g.ID, g.Runner, g.Model, strings.Join(g.Gateways, ", "))
			}
			p.printf("\n")
			p.table(t, "")
		}
		if len(r.Channels) > 0 {
			t := newTable("ACCOUNT", "CONNECTED")
			for _, c := range r.Channels {
				t.add(c.Inbox, map[bool]string{true: "yes", false: "no (enabled: false)"}[c.Connected])
			}
			p.printf("\n")
			p.table(t, "")
		}
		if len(r.Variables) > 0 {
			p.printf("\nvariables to be set: %s\n", strings.Join(r.Variables, ", "))
		}
		if len(r.Ignored) > 0 {
			t := newTable("LEFT ALONE", "LINE", "WHY")
			for _, x := range r.Ignored {
				t.add(x.Key, count(x.Line), x.Reason)
			}
			p.printf("\n")
			p.table(t, "")
		}
	}
	if !r.OK {
		return quiet(exitUsage)
	}
	return nil
}
