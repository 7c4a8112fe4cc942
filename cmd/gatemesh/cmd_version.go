package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/envelope"
)

// version and commit are set by `make build` (-ldflags "-X main.version=v1.2.3").
var version, commit string

// versionInfo is what "version --json" prints.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Schema   string `json:"schema"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildVersion() versionInfo {
	v := versionInfo{Version: version, Revision: commit, Schema: envelope.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		dirty := ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && v.Revision == "":
				v.Revision = s.Value[:min(12, len(s.Value))]
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "+dirty"
			}
		}
		if commit == "" && v.Revision != "" {
			v.Revision += dirty
		}
		if v.Version == "" && info.Main.Version != "(devel)" {
			v.Version = info.Main.Version
		}
	}
	if v.Version == "" {
		v.Version = "devel"
	}
	return v
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this binary and of the envelope schema it writes",
		Args: cobra.NoArgs,
		RunE: body(func(*cobra.Command, []string) error {
			v := buildVersion()
			if a.asJSON {
				return a.printer().json(v)
			}
			revision := ""
			if v.Revision != "" {
				revision = " (" + v.Revision + ")"
			}
			_, err := fmt.Fprintf(a.out, "gatemesh %s%s, envelope schema %s, %s %s\n", v.Version, revision, v.Schema, v.Go, v.Platform)
			return err
		}),
	}
}
