package gateway

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
)

// tokens checks who may come in. No message shows a hash: somebody may have put the token itself in its place.
func (v *configValidator) tokens() {
	auth := v.cfg.Gateway.Auth
	if strings.ContainsFunc(auth.Token, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		v.errorf("gateway.auth.token", "holds white space, which no HTTP header can carry (a line feed at its end?)")
	}
	if len(auth.Token) > maxToken {
		v.errorf("gateway.auth.token", "%d characters, at most %d are looked at", len(auth.Token), maxToken)
	}
	for i, t := range auth.Tokens {
		path := fmt.Sprintf("gateway.auth.tokens[%d]", i)
		before := auth.Tokens[:i]
		if t.Name == "" {
			v.errorf(path, "name is missing: who has this token")
		} else if slices.ContainsFunc(before, func(b TokenConfig) bool { return b.Name == t.Name }) {
			v.errorf(path+".name", "%q is there already; the second token of a rotation needs a name of its own", t.Name)
		}
		if _, err := t.ends(); err != nil {
			v.errorf(path+".expires", "%s is not a time like 2027-01-31T00:00:00Z", v.show(path+".expires", t.Expires))
		}
		sum, err := hex.DecodeString(t.SHA256)
		switch {
		case t.SHA256 == "":
			v.errorf(path, "sha256 is missing: the hash of the token (gatemesh token hash)")
		case strings.HasPrefix(t.SHA256, TokenPrefix):
			v.errorf(path+".sha256", "this is a token, not its hash: gatemesh token hash reads it and prints the hash; make a new one if others have read this file")
		case err != nil || len(sum) != len(tokenHash{}):
			v.errorf(path+".sha256", "not a SHA-256: %d characters, want 64 of 0 to 9 and a to f (gatemesh token hash)", len(t.SHA256))
		case tokenHash(sum) == hashOf(""):
			v.errorf(path+".sha256", "the hash of nothing: the token was empty when it was hashed")
		case slices.ContainsFunc(before, func(b TokenConfig) bool { return strings.EqualFold(b.SHA256, t.SHA256) }):
			v.errorf(path+".sha256", "another entry has this token already: one token, one role")
		case auth.Token != "" && tokenHash(sum) == hashOf(auth.Token):
			v.errorf(path+".sha256", "this is gateway.auth.token (%s), which may do everything: say it once", v.cfg.Origin("gateway.auth.token"))
		}
	}
	for i, o := range v.cfg.Gateway.ControlUI.AllowedOrigins {
		path := fmt.Sprintf("gateway.controlUi.allowedOrigins[%d]", i)
		if strings.Contains(o, "@") {
			v.errorf(path, "an origin holds no user and no password")
		} else if u, err := url.Parse(o); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Scheme+"://"+u.Host != o {
			v.errorf(path, "%s is not an origin: write https://HOST or https://HOST:PORT, with nothing behind it", v.show(path, o))
		}
	}
}

// tls checks that there is a certificate where one is needed.
func (v *configValidator) tls() {
	c := v.cfg.Gateway.TLS
	if c.Enabled && (c.CertPath == "" || c.KeyPath == "") {
		v.errorf("gateway.tls", "enabled needs certPath and keyPath: gatemesh makes no certificate itself")
	}
}

// ends is when the token expires; the zero time is never.
func (t TokenConfig) ends() (time.Time, error) {
	if t.Expires == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.RFC3339, t.Expires)
}

// Warnings names what is allowed and not wise: to be reached by others without TLS or around Tailscale, a token that can be
// guessed, one that has expired; an agent whose model has no key. Call Normalize first.
func (c *Config) Warnings() []Warning {
	v := &configValidator{cfg: c}
	g := c.Gateway
	if !g.TLS.Enabled && !c.loopback() {
		v.errorf("gateway.bind", "%q without TLS: tokens and messages cross the network readable; set gateway.tls, or stay on loopback behind a proxy or Tailscale Serve that has it", g.Bind)
	}
	if mode := g.Tailscale.Mode; !c.loopback() && (mode == "serve" || mode == "funnel") {
		v.errorf("gateway.tailscale.mode", "%q hands requests to 127.0.0.1, and with gateway.bind %q the gateway can be reached around it, with a token but without Tailscale: say bind \"loopback\", or tailscale.mode \"off\"", mode, g.Bind)
	}
	if !g.TLS.Enabled && (g.TLS.CertPath != "" || g.TLS.KeyPath != "") {
		v.errorf("gateway.tls", "there is a certificate, but TLS is off: set gateway.tls.enabled")
	}
	if g.Auth.Mode == "none" && len(g.Auth.Tokens) > 0 {
		v.errorf("gateway.auth.mode", "there are tokens, but \"none\" lets everybody on this machine in without")
	}
	if t := g.Auth.Token; g.Auth.Mode == "token" && t != "" && guessable(t) {
		v.errorf("gateway.auth.token", "%d characters can be guessed: make one with gatemesh token create", len(t))
	}
	for i, t := range g.Auth.Tokens {
		if end, err := t.ends(); err == nil && !end.IsZero() && !end.After(time.Now()) {
			v.errorf(fmt.Sprintf("gateway.auth.tokens[%d].expires", i), "the token %s has expired: nobody comes in with it", t.Name)
		}
	}
	v.keyless()
	warnings := make([]Warning, 0, len(v.problems))
	for _, p := range v.problems {
		warnings = append(warnings, Warning{p, SeverityWarning})
	}
	return warnings
}

// loopback reports whether only this machine can reach the port. What is no address counts as open.
func (c *Config) loopback() bool {
	if c.Gateway.Bind == "loopback" {
		return true
	}
	ip, err := netip.ParseAddr(c.Gateway.Bind)
	return err == nil && ip.Unmap().IsLoopback()
}
