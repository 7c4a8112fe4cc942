package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/gateway"
)

// configPath is the file that --config names, or where OpenClaw keeps its own.
func (a *app) configPath(flag string) string {
	if flag != "" {
		return flag
	}
	if name, err := a.profileOf(); name != "" && err == nil {
		return filepath.Join(a.profileDir(name), "openclaw.json")
	}
	if p := a.getenv("GATEMESH_CONFIG", "OPENCLAW_CONFIG_PATH"); p != "" {
		return p
	}
	home := a.getenv("HOME")
	if home == "" {
		home, _ = os.UserHomeDir()
	}
	return filepath.Join(home, ".openclaw", "openclaw.json")
}

const configFlagHelp = "configuration file (GATEMESH_CONFIG, OPENCLAW_CONFIG_PATH; default ~/.openclaw/openclaw.json)"

// loadConfig reads, completes and checks a configuration. set are KEY=VALUE overrides.
func (a *app) loadConfig(path string, set []string) (*gateway.Config, []gateway.Warning, error) {
	if _, err := a.profileOf(); err != nil {
		return nil, nil, err
	}
	cfg, warnings, err := gateway.LoadConfig(path, a.env)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, failf(exitUsage, "no configuration at %s: write {} there for the defaults, or name another file with --config", path)
	case err != nil:
		return nil, warnings, &exitError{exitUsage, err}
	}
	if err := a.asProfile(cfg); err != nil {
		return nil, warnings, err
	}
	for _, kv := range set {
		key, value, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, warnings, failf(exitUsage, "--set %q: write KEY=VALUE, as --set gateway.port=18790", kv)
		}
		if err := cfg.Set(key, value, "--set"); err != nil {
			return nil, warnings, &exitError{exitUsage, err}
		}
	}
	cfg.Normalize()
	if err := cfg.Validate(); err != nil {
		return nil, warnings, &exitError{exitUsage, err}
	}
	return cfg, warnings, nil
}

func (a *app) configCommand() *cobra.Command {
	var file string
	var set []string
	flags := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&file, "config", "", configFlagHelp)
		c.Flags().StringArrayVar(&set, "set", nil, "override a key, as --set gateway.port=18790 (repeatable)")
		_ = c.MarkFlagFilename("config", "json", "json5")
		return c
	}
	return group("config", "Check, show and explain the configuration",
		flags(&cobra.Command{
			Use: "validate", Short: "Say what is wrong with a configuration, with line and column",
			Args: cobra.NoArgs,
			RunE: body(func(*cobra.Command, []string) error { return a.validateConfig(a.configPath(file), set) }),
		}),
		flags(&cobra.Command{
			Use: "show", Short: "Print the effective configuration and where each value comes from; secrets are hidden",
			Args: cobra.NoArgs,
			RunE: body(func(*cobra.Command, []string) error {
				cfg, _, err := a.loadConfig(a.configPath(file), set)
				if err != nil {
					return err
				}
				if a.asJSON {
					return cfg.Show(a.out, "json")
				}
				return cfg.Show(a.out, "origins")
			}),
		}),
		&cobra.Command{
			Use: "reference", Short: "Print every key with type, default and meaning, as a Markdown table",
			Args: cobra.NoArgs,
			RunE: body(func(*cobra.Command, []string) error {
				a.printer().printf("%s", gateway.ConfigReference())
				return nil
			}),
		},
	)
}

// configReport is what "config validate --json" prints.
type configReport struct {
	File     string         `json:"file"`
	OK       bool           `json:"ok"`
	Problems []configRemark `json:"problems"`
	Warnings []configRemark `json:"warnings"`
}

type configRemark struct {
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Key      string `json:"key,omitempty"`
	Message  string `json:"message"`
	Severity string `json:"severity"`
}

func remark(p gateway.ConfigProblem, severity string) configRemark {
	return configRemark{p.File, p.Line, p.Col, p.Path, p.Message, severity}
}

func (a *app) validateConfig(path string, set []string) error {
	cfg, warnings, err := a.loadConfig(path, set)
	if cfg != nil {
		warnings = slices.Concat(warnings, cfg.Warnings(), cfg.Unused())
	}
	p := a.printer()
	if a.asJSON {
		r := configReport{File: path, OK: err == nil, Problems: []configRemark{}, Warnings: []configRemark{}}
		for _, w := range warnings {
			r.Warnings = append(r.Warnings, remark(w.ConfigProblem, string(w.Severity)))
		}
		if problems := (*gateway.ConfigError)(nil); errors.As(err, &problems) {
			for _, x := range problems.Problems {
				r.Problems = append(r.Problems, remark(x, "error"))
			}
		} else if err != nil {
			r.Problems = append(r.Problems, configRemark{File: path, Message: err.Error(), Severity: "error"})
		}
		if jsonErr := p.json(r); jsonErr != nil {
			return jsonErr
		}
		if err != nil {
			return quiet(exitUsage)
		}
		return nil
	}
	for _, w := range warnings {
		p.printf("%s %s\n", p.paint(severityColour(w.Severity), string(w.Severity)+":"), printable(w.String()))
	}
	if err != nil {
		return err
	}
	p.printf("%s: ok: gateway %s, store %s, agents here: %s\n", path, cfg.Mesh.Gateway, cfg.Mesh.Store, agentNames(cfg))
	return nil
}

func severityColour(s gateway.Severity) colour {
	if s == gateway.SeverityWarning {
		return yellow
	}
	return dim
}

func agentNames(cfg *gateway.Config) string {
	var ids []string
	for _, ag := range cfg.AgentsHere() {
		ids = append(ids, ag.ID)
	}
	if len(ids) == 0 {
		return "none"
	}
	return strings.Join(ids, ", ")
}
