package gateway

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// maxToken bounds a token in bytes; nothing longer is hashed.
const maxToken = 512

// guard decides who may use the API. A reload replaces it as a whole.
type guard struct {
	open    bool
	callers []*caller
	origins []string
	cross   *http.CrossOriginProtection
	tries   tries
}

// caller is one token, or (anyone) all those who need none.
type caller struct {
	name string
	role role
	hash tokenHash
	ends time.Time // zero: never
	// agent is the one that it speaks for; empty: anybody.
	agent string
	// guessable: a person chose it, so how often it may be tried matters.
	guessable bool
	limit     *rate.Limiter // nil: none
	// used is when it was let in last, in Unix milliseconds; 0: not yet.
	used atomic.Int64
}

// anyone is who calls a gateway without tokens.
var anyone = &caller{role: roleOperate}

func newGuard(c GatewayConfig) *guard {
	r := c.Auth.RateLimit
	g := &guard{
		open: c.Auth.Mode != "token", origins: c.ControlUI.AllowedOrigins, cross: http.NewCrossOriginProtection(),
		tries: tries{most: r.MaxAttempts, window: time.Duration(r.WindowMs) * time.Millisecond, exemptLoopback: r.ExemptLoopback},
	}
	for _, o := range g.origins {
		_ = g.cross.AddTrustedOrigin(o) // Validate has looked at it
	}
	if g.open {
		return g
	}
	if t := c.Auth.Token; t != "" {
		g.callers = append(g.callers, &caller{name: "gateway.auth.token", role: roleOperate, hash: hashOf(t), guessable: guessable(t)})
	}
	for _, t := range c.Auth.Tokens {
		sum, _ := hex.DecodeString(t.SHA256)
		k := &caller{name: t.Name, role: roleNamed(t.Role), hash: tokenHash(sum), agent: t.Agent}
		k.ends, _ = t.ends()
		if t.MaxRequests > 0 {
			k.limit = rate.NewLimiter(rate.Limit(t.MaxRequests), t.MaxRequests)
		}
		g.callers = append(g.callers, k)
	}
	return g
}

// find compares with every token, however early it could stop: the time says nothing about which tokens there
// are. With sure it finds only those that cannot be guessed.
func (g *guard) find(h tokenHash, sure bool) *caller {
	found := -1
	for i, c := range g.callers {
		same := subtle.ConstantTimeCompare(h[:], c.hash[:])
		if sure && c.guessable {
			same = 0
		}
		found = subtle.ConstantTimeSelect(same, i, found)
	}
	if found < 0 {
		return nil
	}
	return g.callers[found]
}

// holds reports whether c may still do what it could when it came: for who stays for long.
func (g *guard) holds(c *caller) bool {
	if g.open {
		return true
	}
	now := g.find(c.hash, false)
	return now != nil && now.role.may(roleRead) && now.ends.Equal(c.ends) && now.agent == c.agent
}

// admit says who calls, or refuses: too many refused requests from there (429), no token of ours (401), a role
// that is not enough (403), too many requests of this token (429). Whose token was refused it says too, where
// that is known.
//
// How often an address may try is asked before its token is looked at, except for tokens that cannot be guessed:
// no limit makes those safer, and with one anybody behind the same address (another user of this machine, all
// that a proxy or NAT hides) could keep their holders out. A token that a person chose waits with the
// others, since for it the limit is the protection; tries come back all the time, so who has the right one is
// slowed down while somebody guesses, and never out for good.
func (g *Gateway) admit(r *http.Request, need role) (*caller, *APIError) {
	u := g.guard.Load()
	if need == roleOpen || u.open && need != roleNobody {
		return anyone, nil
	}
	given, ok := givenToken(r)
	ok = ok && len(given) <= maxToken
	now := time.Now()
	var c *caller
	var h tokenHash
	if ok {
		h = hashOf(given)
		c = u.find(h, true)
	}
	if c == nil {
		counted := &g.wrong
		if !ok {
			counted = &g.missing // who gives none guesses nothing, and must not use up the tries of who does
		}
		if wait := counted.judge(u.tries, r.RemoteAddr, now, func() bool {
			if ok {
				c = u.find(h, false)
			}
			return c != nil
		}); wait > 0 {
			e := refuse(http.StatusTooManyRequests, CodeRateLimited, deniedAttempts, "too many refused requests from this address: wait, and send the right token")
			e.retry = wait
			return nil, e
		}
	}
	switch {
	case !ok:
		return nil, refuse(http.StatusUnauthorized, CodeUnauthorized, deniedNoToken, "this gateway wants a token: send Authorization: Bearer TOKEN")
	case c == nil:
		return nil, refuse(http.StatusUnauthorized, CodeUnauthorized, deniedToken, "the token is not this gateway's (gateway.auth)")
	case c.expired(now):
		return c, refuse(http.StatusUnauthorized, CodeUnauthorized, deniedExpired, "the token "+c.name+" has expired: ask for its successor")
	case !c.role.may(need):
		return c, refuse(http.StatusForbidden, CodeRole, deniedRole, fmt.Sprintf("this needs the role %s, and the token %s has the role %s", need, c.name, c.role))
	case c.limit != nil && !c.limit.AllowN(now, 1):
		e := refuse(http.StatusTooManyRequests, CodeRateLimited, deniedRate, fmt.Sprintf("the token %s may make %g requests a second", c.name, float64(c.limit.Limit())))
		e.retry = time.Second
		return c, e
	}
	c.used.Store(now.UnixMilli())
	return c, nil
}

func (c *caller) expired(now time.Time) bool { return !c.ends.IsZero() && !now.Before(c.ends) }

// Why a request was refused before its route saw it: the label of a metric.
const (
	deniedAttempts = "attempts"
	deniedNoToken  = "no_token"
	deniedToken    = "wrong_token"
	deniedExpired  = "expired_token"
	deniedRole     = "role"
	deniedRate     = "token_rate"
	deniedHost     = "host"
	deniedOrigin   = "origin"
	deniedSize     = "size"
)

var deniedReasons = []string{deniedAttempts, deniedNoToken, deniedToken, deniedExpired, deniedRole, deniedRate, deniedHost, deniedOrigin, deniedSize}

func refuse(status int, code, why, message string) *APIError {
	return &APIError{status: status, Code: code, Message: message, denied: why}
}

// checkReload refuses to open the API to others: a reload changes who may come in, but not where we listen.
func (g *Gateway) checkReload(c *Config) error {
	if g.listener != nil && c.Gateway.Auth.Mode != "token" && !loopbackAddr(g.listener.Addr()) {
		return errors.New("gateway.auth.mode: this process listens on " + g.listener.Addr().String() + ", which others can reach, and goes on asking for a token: restart it to change gateway.bind as well")
	}
	return nil
}

// setGuard takes up who may come in, and sends the streams of those away who may not any more. A request that was
// let in before ends as it would.
func (g *Gateway) setGuard(c GatewayConfig, changed []string) {
	if !slices.ContainsFunc(changed, func(k string) bool {
		return strings.HasPrefix(k, "gateway.auth.") || strings.HasPrefix(k, "gateway.controlUi.")
	}) {
		return // the counts of what tokens ask for go on
	}
	u := newGuard(c)
	for _, before := range g.guard.Load().callers {
		if now := u.find(before.hash, false); now != nil {
			now.used.Store(before.used.Load())
		}
	}
	g.guard.Store(u)
	g.hub.revoke(u.holds)
}

func loopbackAddr(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return !ok || tcp.IP.IsLoopback()
}

// checkOrigin refuses pages of other sites: whatever their user's browser knows is not theirs. Programs send no
// Origin.
func (g *guard) checkOrigin(r *http.Request) *APIError {
	if g.cross.Check(r) != nil {
		return refuse(http.StatusForbidden, CodeForbidden, deniedOrigin, "a page of another site may not send to this gateway (gateway.controlUi.allowedOrigins)")
	}
	return nil
}

// checkListener is checkOrigin for a WebSocket, which is opened by GET and which browsers let every page open.
func (g *guard) checkListener(r *http.Request) *APIError {
	o := r.Header.Get("Origin")
	if o == "" || slices.Contains(g.origins, o) {
		return nil
	}
	if u, err := url.Parse(o); err == nil && strings.EqualFold(u.Host, r.Host) {
		return nil
	}
	return refuse(http.StatusForbidden, CodeForbidden, deniedOrigin, "a page of another site may not listen to this gateway (gateway.controlUi.allowedOrigins)")
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
			// One spelling alone: decoding passes over line breaks and left-over bits.
			return string(token), err == nil && base64.RawURLEncoding.EncodeToString(token) == coded
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
	return refuse(http.StatusForbidden, CodeForbidden, deniedHost,
		"a gateway without a token answers to localhost and 127.0.0.1 only: use that name, or set gateway.auth")
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
