package consul

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
)

// failure is an error of this store: its kind (a sentinel of bus, or nil) and its
// cause can both be found with errors.Is and errors.As. The text holds no secrets.
type failure struct {
	text  string
	kind  error
	cause error
}

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() []error {
	var all []error
	for _, err := range []error{f.kind, f.cause} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// fail decides what an error of Consul's client means. It is the only place that
// does, and is called once for each call that failed.
func (s *Store) fail(c *call, err error) error {
	switch {
	case s.closed.Err() != nil:
		return bus.ErrClosed
	case c.caller.Err() != nil:
		return fmt.Errorf("%s: %w", c.what, c.caller.Err())
	case c.answer.status >= 400:
		return s.refused(c, err)
	case errors.Is(c.ctx.Err(), context.DeadlineExceeded):
		// The cause would make it look like the caller's own deadline.
		return s.failed(c, bus.ErrUnavailable, nil, fmt.Sprintf("no answer within %s", c.timeout), hintAddress)
	}
	// Refused or reset connections, TLS failures, an answer cut off in the middle.
	return s.failed(c, bus.ErrUnavailable, err, textOf(err), hintConnection(err))
}

// hintConnection names what mends a connection that did not come about.
func hintConnection(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	text := err.Error()
	switch {
	case errors.As(err, &unknown):
		return "CONSUL_CACERT must name the file of the authority that signed Consul's certificate"
	case errors.As(err, &host):
		return "CONSUL_TLS_SERVER_NAME must be a name in Consul's certificate, as server.dc1.consul"
	case errors.As(err, &invalid):
		return "Consul's own certificate is no good any more: consul tls cert create makes one"
	case strings.Contains(text, "remote error: tls: "):
		// What servers say of ours: none, one of another authority, one that has expired.
		return "Consul does not take our certificate: CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY must name one of an authority that it trusts"
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return "Consul speaks plain HTTP there: unset CONSUL_HTTP_SSL, or name its HTTPS port in CONSUL_HTTP_ADDR"
	}
	return hintAddress
}

// Remedies that end an error's text.
const (
	hintAddress = "is Consul running there? CONSUL_HTTP_ADDR names another"
	// Consul's text before it names what is missing.
	hintRules = "gatemesh acl policy prints the rules that a gateway needs; consul acl policy update -name NAME -rules @FILE gives them to CONSUL_HTTP_TOKEN's policy, and no restart is needed"
	hintToken = "the token was deleted, or never was: consul acl token create -policy-name NAME makes one"
	hintNone  = "no token was given: name its file in CONSUL_HTTP_TOKEN_FILE"
)

// textUnknownToken is what Consul says of a token that is not there.
const textUnknownToken = "ACL not found"

// hintForbidden names the command that mends a refusal.
func (s *Store) hintForbidden(text string) string {
	switch {
	case strings.Contains(text, textUnknownToken) && s.token.file != "":
		return hintToken + "; write it to " + s.token.file + ", and it is used without a restart"
	case strings.Contains(text, textUnknownToken):
		return hintToken + " for CONSUL_HTTP_TOKEN; it needs a restart, which CONSUL_HTTP_TOKEN_FILE does not"
	case strings.Contains(text, "anonymous token"):
		return hintNone
	}
	return hintRules
}

// refused maps an answer with an error status.
func (s *Store) refused(c *call, err error) error {
	text := textOf(err)
	status := c.answer.status
	switch {
	case status == http.StatusForbidden, status == http.StatusUnauthorized, denied(text):
		return s.failed(c, bus.ErrForbidden, err, text, s.hintForbidden(text))
	case status == http.StatusRequestEntityTooLarge, status < 500 && oversize(text):
		return s.failed(c, bus.ErrTooLarge, err, text, "")
	case strings.Contains(text, "invalid session"):
		return s.failed(c, bus.ErrNoSession, err, text, "")
	case status == http.StatusTooManyRequests && strings.Contains(text, "connections"):
		return s.failed(c, bus.ErrUnavailable, err, text, "raise limits.http_max_conns_per_client on the Consul agent, or run fewer watches")
	case strings.Contains(text, "Invalid Session TTL"):
		// Consul says 500 to what no later try will change.
		return s.failed(c, nil, err, text, "")
	case status == http.StatusTooManyRequests, status >= 500:
		return s.failed(c, bus.ErrUnavailable, err, text, hintStatus(text))
	default:
		return s.failed(c, nil, err, text, hintStatus(text))
	}
}

func hintStatus(text string) string {
	if strings.Contains(text, "segment is sealed") {
		// Consul's own trouble: its disk was full in the moment when its log began a new file, and it never tries again.
		return "a Consul server's log is stuck since its disk was full: restart that server"
	}
	if strings.Contains(text, "no space left on device") {
		return "the disk of a Consul server is full: make space there, and it goes on by itself"
	}
	if strings.Contains(text, "No cluster leader") {
		return "have the servers a majority? CONSUL_HTTP_ADDR names another"
	}
	if strings.Contains(text, "HTTP request to an HTTPS server") {
		return "Consul speaks TLS there: CONSUL_HTTP_SSL=true, and CONSUL_CACERT names its authority's file"
	}
	return ""
}

// failed builds the error, without secrets.
func (s *Store) failed(c *call, kind, cause error, text, hint string) error {
	f := &failure{kind: kind, cause: cause}
	switch {
	case kind != nil:
		f.text = fmt.Sprintf("%v: consul at %s: %s: %s", kind, s.addr, c.what, text)
	default:
		f.text = fmt.Sprintf("consul at %s: %s: %s", s.addr, c.what, text)
	}
	if hint != "" {
		f.text += " (" + hint + ")"
	}
	for _, secret := range c.answer.secrets {
		f.text = strings.ReplaceAll(f.text, secret, "<hidden>")
		if cause != nil && strings.Contains(cause.Error(), secret) {
			f.cause = nil // whatever it is, it must not be printed
		}
	}
	return f
}

// filtered is the error of an answer from which the token's rules took something.
func (s *Store) filtered(c *call) error {
	return s.failed(c, bus.ErrForbidden, nil, "the token may read only a part of it", hintRules)
}

// textOf says an error of the API client in fewer words, and on one line.
func textOf(err error) string { return strings.Join(strings.Fields(words(err)), " ") }

func words(err error) string {
	var status api.StatusError
	if errors.As(err, &status) {
		return fmt.Sprintf("answer %d: %s", status.Code, status.Body)
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error() // without the URL: the address is in the text already
	}
	return strings.TrimPrefix(err.Error(), "Failed request: ")
}

func denied(text string) bool {
	return strings.Contains(text, "Permission denied") || strings.Contains(text, textUnknownToken)
}

func oversize(text string) bool {
	return strings.Contains(text, "too large") || strings.Contains(text, "exceeds") || strings.Contains(text, "too many operations")
}
