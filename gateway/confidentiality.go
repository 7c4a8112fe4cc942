package gateway

import (
	"fmt"
	"path"
	"strings"
	"sync/atomic"

	"github.com/gatemesh/gatemesh/bus"
)

// ConfidentialityConfig says which payloads are encrypted for the gateways that may run their target, so that whoever reads the
// store sees headers only.
type ConfidentialityConfig struct {
	Mode         string   `json:"mode" def:"off" enum:"off|encrypt|require" doc:"off: payloads lie in the store as they are. encrypt: this gateway encrypts what it sends, and takes both. require: it also refuses what is not encrypted. Needs a trust set. Say encrypt on every node before the first says require."`
	Capabilities []string `json:"capabilities" def:"*" doc:"The capabilities that this is about: patterns, in which * is any text. A message without one is matched by * only. Answers have the capability of their question."`
}

func (c ConfidentialityConfig) level() bus.Confidentiality {
	switch c.Mode {
	case "encrypt":
		return bus.Encrypt
	case "require":
		return bus.RequireEncrypted
	}
	return bus.InTheClear
}

// of is what holds for a capability.
func (c ConfidentialityConfig) of(capability string) bus.Confidentiality {
	for _, pattern := range c.Capabilities {
		// A capability may hold slashes, and a star is any text.
		if ok, _ := path.Match(flat(pattern), flat(capability)); ok {
			return c.level()
		}
	}
	return bus.InTheClear
}

func flat(s string) string { return strings.ReplaceAll(s, "/", "\x00") }

func (v *configValidator) confidentiality() {
	m := v.cfg.Mesh
	for i, pattern := range m.Confidentiality.Capabilities {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			v.errorf(fmt.Sprintf("mesh.confidentiality.capabilities[%d]", i), "%q is not a pattern of capabilities: * is any text, ? one letter, [abc] one of these", pattern)
		}
	}
	if m.Confidentiality.level() != bus.InTheClear && m.Trust.Mode != "enforce" && len(m.Trust.OperatorKeys) == 0 && m.Trust.EnrollToken == "" {
		v.errorf("mesh.confidentiality.mode", "%q in an open mesh would encrypt for whoever says that he is a gateway: set mesh.trust.operatorKeys (gatemesh trust init prints one)", m.Confidentiality.Mode)
	}
}

// liveConfidentiality is that of the last configuration.
type liveConfidentiality struct {
	atomic.Pointer[ConfidentialityConfig]
}

func (l *liveConfidentiality) set(cfg *Config) {
	c := cfg.Mesh.Confidentiality
	l.Store(&c)
}

func (l *liveConfidentiality) of(capability string) bus.Confidentiality {
	return l.Load().of(capability)
}
