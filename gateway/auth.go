package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// guard decides who may use the API. It keeps a hash of the token, so that comparing takes the
// same time whatever is given, and no dump of it shows the token.
type guard struct {
	open bool
	hash [sha256.Size]byte
}

func newGuard(auth AuthConfig) *guard {
	if auth.Mode != "token" {
		return &guard{open: true}
	}
	return &guard{hash: sha256.Sum256([]byte(auth.Token))}
}

func (g *guard) required() bool { return !g.open }

// check refuses who may not: nil is yes.
func (g *guard) check(r *http.Request) *APIError {
	if g.open {
		return nil
	}
	given, ok := givenToken(r)
	sum := sha256.Sum256([]byte(given))
	if ok && subtle.ConstantTimeCompare(sum[:], g.hash[:]) == 1 {
		return nil
	}
	if !ok {
		return &APIError{status: http.StatusUnauthorized, Code: CodeUnauthorized, Message: "this gateway wants a token: send Authorization: Bearer TOKEN"}
	}
	return &APIError{status: http.StatusUnauthorized, Code: CodeUnauthorized, Message: "the token is not this gateway's (gateway.auth.token)"}
}

// givenToken finds the token: in the header, or in a WebSocket's subprotocols. Never in
// the URL: that ends up in logs.
func givenToken(r *http.Request) (string, bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") && token != "" {
		return strings.TrimSpace(token), true
	}
	for _, list := range r.Header.Values("Sec-WebSocket-Protocol") {
		for _, p := range strings.Split(list, ",") {
			coded, ok := strings.CutPrefix(strings.TrimSpace(p), StreamTokenPrefix)
			if !ok {
				continue
			}
			token, err := base64.RawURLEncoding.DecodeString(coded)
			return string(token), err == nil
		}
	}
	return "", false
}

// checkHost protects a gateway without a token, which listens on loopback only, against DNS
// rebinding: a page whose name was made to point at 127.0.0.1 comes with that name as
// Host.
func (g *guard) checkHost(r *http.Request) *APIError {
	if !g.open || localHost(r.Host) {
		return nil
	}
	return &APIError{status: http.StatusForbidden, Code: CodeForbidden,
		Message: "a gateway without a token answers to localhost and 127.0.0.1 only: use that name, or set gateway.auth.token"}
}

func localHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
