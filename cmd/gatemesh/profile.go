package main

import (
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/gatemesh/gatemesh/gateway"
)

// A profile is a gateway of its own beside others of the same person: its own configuration (~/.openclaw-NAME/openclaw.json), state, port and accounts, as OpenClaw's
// --profile has it. It keeps its messages in an embedded store unless its configuration says otherwise: it is a laptop's, not a node's of the mesh.

var profileName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// The ports of profiles: below the range of those that systems give out.
const firstProfilePort, profilePorts = 19000, 700

// profileOf is the profile of this run; "": none.
func (a *app) profileOf() (string, error) {
	name := a.profile
	if name == "" {
		name = a.getenv("GATEMESH_PROFILE", "OPENCLAW_PROFILE")
	}
	if name == "" || name == "default" {
		return "", nil
	}
	if !profileName.MatchString(name) {
		return "", failf(exitUsage, "--profile %q: small letters, digits and -, at most 32", name)
	}
	return name, nil
}

// profileDir is where a profile's configuration and state are.
func (a *app) profileDir(name string) string {
	home := a.getenv("HOME")
	if home == "" {
		home, _ = os.UserHomeDir()
	}
	return filepath.Join(home, ".openclaw-"+name)
}

// profilePort is where a profile's gateway listens unless its configuration says otherwise.
func profilePort(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return firstProfilePort + int(h.Sum32()%profilePorts)
}

// asProfile gives a configuration the defaults of a profile, where the file says nothing.
func (a *app) asProfile(cfg *gateway.Config) error {
	name, err := a.profileOf()
	if name == "" || err != nil {
		return err
	}
	host, _ := os.Hostname()
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	id := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(host, "-"), "-")
	if id = strings.Trim(id[:min(len(id), 20)]+"-"+name, "-"); len(id) > 50 {
		id = name
	}
	for _, d := range [][2]string{
		{"mesh.store", "local"},
		{"mesh.dataDir", filepath.Join(a.profileDir(name), "gatemesh")},
		{"mesh.gateway", id + "-gateway"},
		{"gateway.port", strconv.Itoa(profilePort(name))},
	} {
		if cfg.Origin(d[0]).Kind == gateway.OriginDefault {
			if err := cfg.Set(d[0], d[1], "--profile "+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// profileClient is where the gateway of the profile is, and the token that its configuration has for its own machine. A configuration that cannot be
// read says nothing.
func (a *app) profileClient() (addr, token string, err error) {
	name, err := a.profileOf()
	if name == "" || err != nil {
		return "", "", err
	}
	port, scheme := profilePort(name), "http"
	if cfg, _, err := gateway.LoadConfig(filepath.Join(a.profileDir(name), "openclaw.json"), a.env); err == nil {
		if cfg.Origin("gateway.port").Kind != gateway.OriginDefault {
			port = cfg.Gateway.Port
		}
		token = cfg.Gateway.Auth.Token
		if cfg.Gateway.TLS.Enabled {
			scheme = "https"
		}
	}
	return scheme + "://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), token, nil
}
