package gateway

import (
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway/dashboard"
)

// ioTimeout bounds reading a request and writing its answer; waiting on purpose comes on top.
const ioTimeout = 30 * time.Second

// endpoint answers a request, or returns an error that writeError turns into the answer.
type endpoint func(http.ResponseWriter, *http.Request) error

// handler is the whole HTTP side. What a request passes, from outside: counting and
// panics, foreign hosts, foreign pages, the token, the route.
func (g *Gateway) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f endpoint) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				g.writeError(w, r, err)
			}
		})
	}
	handle("GET /health", g.getHealth)
	handle("GET /ready", g.getReady)
	mux.Handle("GET /metrics", g.metrics.handler())
	mux.Handle("GET /{$}", dashboard.Handler())
	mux.Handle("GET /dashboard/", dashboard.Handler())
	handle("GET /v1/status", g.getStatus)
	handle("POST /v1/messages", g.postMessage)
	handle("GET /v1/messages", g.getMessages)
	handle("GET /v1/messages/{id}", g.getMessage)
	handle("GET /v1/agents", g.getAgents)
	handle("GET /v1/gateways", g.getGateways)
	handle("GET /v1/inboxes", g.getInboxes)
	handle("GET /v1/inboxes/{agent}", g.getInbox)
	handle("POST /v1/fanouts", g.postFanout)
	handle("GET /v1/fanouts/{id}", g.getFanout)
	handle("GET /v1/deadletters", g.getDeadLetters)
	handle("POST /v1/deadletters/redrive", g.postDeadLetters(redrive))
	handle("POST /v1/deadletters/purge", g.postDeadLetters(purge))
	handle("GET /v1/state/events", g.getStateEvents)
	handle("POST /v1/state/events", g.postStateEvent)
	handle("DELETE /v1/state/events", g.deleteStateEvents)
	handle("GET /v1/state/focus", g.getFocus)
	handle("PUT /v1/state/focus", g.putFocus)
	handle("DELETE /v1/state/focus", g.deleteFocus)
	handle("GET /v1/queues", g.getQueues)
	handle("GET /v1/queues/{queue}/tasks", g.getTasks)
	handle("POST /v1/queues/{queue}/tasks/{id}/cancel", g.postCancel)
	handle("GET /v1/events", g.getEvents)

	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		if err := g.guard.checkHost(r); err != nil {
			g.writeError(rec, r, err)
			return
		}
		if err := cross.Check(r); err != nil {
			g.writeError(rec, r, &APIError{status: http.StatusForbidden, Code: CodeForbidden, Message: "a page of another site may not send to this gateway"})
			return
		}
		if strings.HasPrefix(r.URL.Path, "/v1/") {
			if err := g.guard.check(r); err != nil {
				rec.Header().Set("WWW-Authenticate", `Bearer realm="gatemesh"`)
				g.writeError(rec, r, err)
				return
			}
		}
		if h, pattern := mux.Handler(r); pattern == "" {
			g.noRoute(rec, r, h)
			return
		}
		mux.ServeHTTP(rec, r)
	})
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

func (g *Gateway) getStatus(w http.ResponseWriter, _ *http.Request) error {
	s := StatusResponse{Gateway: g.name, Version: g.deps.Version, URL: g.url, Store: g.deps.Store.Describe(), Started: envelope.At(g.began), Ready: true, Owned: []string{}}
	if err := g.Ready(); err != nil {
		s.Ready, s.Reason = false, err.Error()
	}
	s.Streams, _ = g.hub.stats()
	if b := g.bus.Load(); b != nil {
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
