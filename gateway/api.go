package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// ioTimeout bounds reading a request and writing its answer; waiting on purpose comes on top.
const ioTimeout = 30 * time.Second

// handler is the whole HTTP side. What a request passes, from outside: counting and
// panics, foreign hosts, foreign pages, its size, the tries of its address, its token and role, the route.
func (g *Gateway) handler() http.Handler {
	mux := http.NewServeMux()
	routes := map[string]route{}
	for _, rt := range g.routes() {
		mux.Handle(rt.pattern, rt.serve)
		routes[rt.pattern] = rt
	}
	var whole http.Handler
	// Servers of other protocols use the whole API with the tokens of their callers, so it is the API that asks for the role.
	mount := func(server func(http.Handler) http.Handler, longest time.Duration, body int64, patterns ...string) {
		if server == nil {
			return
		}
		serve := server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { whole.ServeHTTP(w, r) }))
		for _, pattern := range patterns {
			rt := route{pattern, roleRead, body, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := g.patient(w, r, longest)
				defer cancel()
				serve.ServeHTTP(w, r.WithContext(ctx))
			})}
			mux.Handle(rt.pattern, rt.serve)
			routes[rt.pattern] = rt
		}
	}
	mount(g.deps.MCP, longestTool, MaxBodyBytes, "POST /mcp")
	mount(g.deps.A2A, MaxWait, MaxBodyBytes, "GET /a2a/{agent}/.well-known/agent-card.json", "POST /a2a/{agent}")
	if g.deps.OpenClaw != nil {
		serve := g.deps.OpenClaw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { whole.ServeHTTP(w, r) }))
		routes[openClawRoute] = route{openClawRoute, roleOpen, 0, g.serveOpenClaw(serve)}
	}
	whole = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		began := time.Now()
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
				g.log.Error("panic in the API", "method", r.Method, "route", r.Pattern, "panic", p, "stack", string(debug.Stack()))
				if rec.code == 0 {
					g.writeError(rec, r, internalError())
				}
			}
			route := r.Pattern
			if route == "" {
				route = "none"
			}
			g.metrics.request(route, rec.status(), time.Since(began))
		}()
		rec.Header().Set("X-Content-Type-Options", "nosniff")
		var h http.Handler
		if h, r.Pattern = mux.Handler(r); g.wantsOpenClaw(r) {
			r.Pattern = openClawRoute
		}
		rt, known := routes[r.Pattern]
		if !known {
			rt = route{role: roleOpen, body: MaxOrderBytes}
			if below(r.URL.Path, "/v1") {
				rt.role = roleRead // which paths there are is not for everybody
			}
		}
		c, err := g.check(rec, r, rt)
		switch {
		case err != nil:
			g.denied(r, c, err)
			g.writeError(rec, r, err)
		case !known:
			g.noRoute(rec, r, h)
		case rt.pattern == openClawRoute:
			rt.serve.ServeHTTP(rec, r)
		default:
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
			mux.ServeHTTP(rec, r)
			g.audited(r, rec.status())
		}
	})
	return whole
}

// longestTool bounds one call of a tool at /mcp.
const longestTool = 6 * time.Minute

// check is all that a request must pass before its route sees it, the cheapest first.
func (g *Gateway) check(w *recorder, r *http.Request, rt route) (*caller, *APIError) {
	u := g.guard.Load()
	if err := u.checkHost(r); err != nil {
		return nil, err
	}
	if err := u.checkOrigin(r); err != nil {
		return nil, err
	}
	if r.ContentLength > rt.body {
		w.Header().Set("Connection", "close") // it is not read
		message := "this takes no body"
		if rt.body > 0 {
			message = fmt.Sprintf("the body is larger than %d bytes", rt.body)
		}
		return nil, refuse(http.StatusRequestEntityTooLarge, CodeTooLarge, deniedSize, message)
	}
	// With the writer below ours, which closes the connection of a client that goes on sending.
	r.Body = http.MaxBytesReader(w.ResponseWriter, r.Body, rt.body)
	c, err := g.admit(r, rt.role)
	if err == nil && c.agent != "" && strings.Contains(rt.pattern, " /v1/") && !agentRoutes[rt.pattern] {
		return c, refuse(http.StatusForbidden, CodeRole, deniedRole, "the token "+c.name+" speaks for the agent "+c.agent+": it sends, fetches and looks at what is that agent's, and no more")
	}
	switch {
	case err == nil:
	case err.status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="gatemesh"`)
	case err.Code == CodeRole:
		w.Header().Set("WWW-Authenticate", `Bearer realm="gatemesh", error="insufficient_scope", scope="`+rt.role.String()+`"`)
	}
	return c, err
}

// denied tells operators of a refusal; c may be nil. Nothing that the client wrote is logged, only where it calls
// from: it may have put a token anywhere.
func (g *Gateway) denied(r *http.Request, c *caller, e *APIError) {
	g.metrics.denied.WithLabelValues(e.denied).Inc()
	level := hclog.Debug // there can be any number of them
	if e.denied == deniedToken || e.denied == deniedExpired || e.denied == deniedRole {
		level = hclog.Warn
	}
	who := "?"
	if c != nil {
		who = c.name
	}
	g.log.Log(level, "request refused", "why", e.denied, "caller", who, "remote", r.RemoteAddr, "route", r.Pattern, "status", e.status)
}

// callerKey is where a request's context has its *caller.
type callerKey struct{}

func callerOf(r *http.Request) *caller {
	c, _ := r.Context().Value(callerKey{}).(*caller)
	return c
}

// below reports whether a path, however it is written, is dir or below it.
func below(p, dir string) bool {
	p = path.Clean("/" + p)
	return p == dir || strings.HasPrefix(p, dir+"/")
}

// noRoute says in JSON what the mux would say in text.
func (g *Gateway) noRoute(w http.ResponseWriter, r *http.Request, h http.Handler) {
	probe := &discard{header: http.Header{}}
	h.ServeHTTP(probe, r)
	if probe.code == http.StatusMethodNotAllowed {
		allow := probe.header.Get("Allow")
		w.Header().Set("Allow", allow)
		g.writeError(w, r, &APIError{status: probe.code, Code: CodeMethodNotAllowed, Message: "this path takes " + allow})
		return
	}
	g.writeError(w, r, &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: "no such path; the API is below /v1"})
}

// recorder remembers the status for metrics.
type recorder struct {
	http.ResponseWriter
	code int
}

func (w *recorder) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Flush is for those who ask for a http.Flusher.
func (w *recorder) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

// Unwrap lets http.ResponseController and the WebSocket upgrade through.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) status() int {
	if w.code == 0 {
		return http.StatusOK
	}
	return w.code
}

// discard learns a handler's status.
type discard struct {
	header http.Header
	code   int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(code int)        { d.code = code }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

func writeJSON(w http.ResponseWriter, code int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // who is gone needs no answer
	return nil
}

// ready returns the bus, or why there is none.
func (g *Gateway) ready() (*bus.Bus, error) {
	b := g.bus.Load()
	switch {
	case g.stopped():
		return nil, bus.ErrStopped
	case b == nil:
		return nil, &APIError{status: http.StatusServiceUnavailable, Code: CodeNotReady, Message: "the gateway is not ready: " + *g.reason.Load()}
	}
	return b, nil
}

func (g *Gateway) getHealth(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, ProbeResponse{Status: "ok", Gateway: g.name, Version: g.deps.Version})
}

func (g *Gateway) getReady(w http.ResponseWriter, _ *http.Request) error {
	if err := g.Ready(); err != nil {
		return writeJSON(w, http.StatusServiceUnavailable, ProbeResponse{Status: "not-ready", Gateway: g.name, Version: g.deps.Version, Reason: err.Error()})
	}
	return writeJSON(w, http.StatusOK, ProbeResponse{Status: "ready", Gateway: g.name, Version: g.deps.Version})
}

func (g *Gateway) getStatus(w http.ResponseWriter, r *http.Request) error {
	who := callerOf(r)
	s := StatusResponse{Caller: who.name, Agent: who.agent, Role: who.role.String(), Gateway: g.name, Version: g.deps.Version, URL: g.url, Store: g.deps.Store.Describe(), Started: envelope.At(g.began), Ready: true, Owned: []string{}}
	if err := g.Ready(); err != nil {
		s.Ready, s.Reason = false, err.Error()
	}
	s.DefaultAgent = g.router.Load().Default()
	s.Streams, _ = g.hub.stats()
	s.Key, s.Trust, s.TrustVersion = g.identity.state()
	s.KeyEnds = g.identity.keyEnds()
	if next := g.identity.next.Load(); next != nil {
		s.NextKey = next.ID()
	}
	s.Confidentiality = g.confidentiality.Load().Mode
	if b := g.bus.Load(); b != nil {
		s.EncryptionKeys = b.EncryptionKeys()
		for _, o := range b.Owners() {
			if o.Gateway == g.name && o.Agent != g.name {
				s.Owned = append(s.Owned, o.Agent)
			}
		}
	}
	return writeJSON(w, http.StatusOK, s)
}

func (g *Gateway) getAgents(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, AgentsResponse{b.Agents(r.URL.Query().Get("capability"))})
}

func (g *Gateway) getGateways(w http.ResponseWriter, _ *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, GatewaysResponse{b.Gateways()})
}

func (g *Gateway) getInboxes(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	list, err := b.Inboxes(r.Context(), "")
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, InboxesResponse{list})
}

func (g *Gateway) getInbox(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	agent := r.PathValue("agent")
	if !envelope.ValidName(agent) {
		return badRequest("agent", "an agent's id is made of a-z, 0-9 and -")
	}
	list, err := b.Inboxes(r.Context(), agent)
	if err != nil {
		return err
	}
	for _, i := range list {
		if i.Agent == agent {
			return writeJSON(w, http.StatusOK, i)
		}
	}
	return &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: "agent " + agent + " has no inbox: no gateway has ever served it"}
}
