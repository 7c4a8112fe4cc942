package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/gateway"
)

// A client talks to one gateway's API. Its errors carry their exit status.
type client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// client makes one from --addr and --token, or their variables.
func (a *app) client() (*client, error) {
	addr := a.addr
	if addr == "" {
		addr = a.getenv("GATEMESH_ADDR")
	}
	token := a.token
	if token == "" {
		token = a.getenv("GATEMESH_TOKEN", "OPENCLAW_GATEWAY_TOKEN")
	}
	if addr == "" {
		at, own, err := a.profileClient()
		if err != nil {
			return nil, err
		}
		if addr = at; token == "" {
			token = own
		}
	}
	if addr == "" {
		addr = defaultAddr
	}
	return newClient(addr, token, a.getenv("GATEMESH_CACERT"))
}

// newClient makes a client; cacert is a PEM file with the CA of the gateway's certificate, "" for the system's.
func newClient(addr, token, cacert string) (*client, error) {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err == nil {
		switch u.Scheme {
		case "ws":
			u.Scheme = "http"
		case "wss":
			u.Scheme = "https"
		}
	}
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, failf(exitUsage, "the gateway's address is not a URL: write it like %s (--addr, GATEMESH_ADDR)", defaultAddr)
	}
	if strings.ContainsAny(token, "\r\n") {
		return nil, failf(exitUsage, "the token holds a line break: check --token, GATEMESH_TOKEN and OPENCLAW_GATEWAY_TOKEN")
	}
	// With a configuration of our own Go speaks HTTP/1.1 alone, which a WebSocket needs.
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if cacert != "" {
		pem, err := os.ReadFile(cacert)
		if err != nil {
			return nil, failf(exitUsage, "GATEMESH_CACERT: %w", err)
		}
		if secure.RootCAs = x509.NewCertPool(); !secure.RootCAs.AppendCertsFromPEM(pem) {
			return nil, failf(exitUsage, "GATEMESH_CACERT: %s holds no certificate in PEM", cacert)
		}
	}
	return &client{base: u, token: token, http: &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSClientConfig: secure, MaxIdleConnsPerHost: 4},
		// A redirect would carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (c *client) addr() string { return strings.TrimSuffix(c.base.Redacted(), "/") }

func (c *client) close() { c.http.CloseIdleConnections() }

func (c *client) url(path string, query url.Values) string {
	u := *c.base
	u = *u.JoinPath(path)
	u.RawQuery = query.Encode()
	return u.String()
}

// do sends one request and decodes the answer into out.
func (c *client) do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	_, err := c.exchange(ctx, method, path, query, in, out)
	return err
}

// maxAnswer bounds an answer. The largest lists 500 messages with 256 KiB payloads.
const maxAnswer = 512 << 20

// exchange is do, and returns the answer's header too.
func (c *client) exchange(ctx context.Context, method, path string, query url.Values, in, out any) (http.Header, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url(path, query), body)
	if err != nil {
		return nil, failf(exitUsage, "%w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "gatemesh/"+buildVersion().Version)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return resp.Header, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 300 {
		return resp.Header, c.refused(resp, b)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return resp.Header, failf(exitUnavailable, "%s does not answer like a gateway (%s): check --addr and GATEMESH_ADDR", c.addr(), resp.Status)
	}
	return resp.Header, nil
}

// unreachable says why there was no answer, without the URL's query and userinfo.
func (c *client) unreachable(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return quiet(exitFailed)
	case errors.Is(err, context.DeadlineExceeded) || isTimeout(err):
		return failf(exitUnavailable, "gateway at %s did not answer in time (see: gatemesh doctor)", c.addr())
	}
	var op *net.OpError
	switch untrusted := (*tls.CertificateVerificationError)(nil); {
	case errors.As(err, &untrusted):
		return failf(exitUnavailable, "gateway at %s shows a certificate that cannot be verified: %w (GATEMESH_CACERT names the file of its CA)", c.addr(), untrusted.Err)
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, new(tls.RecordHeaderError)):
		return failf(exitUnavailable, "gateway at %s does not speak TLS: write http:// (--addr, GATEMESH_ADDR)", c.addr())
	case errors.As(err, &op) && op.Op != "remote error":
		err = op
	default:
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
	}
	return failf(exitUnavailable, "gateway at %s cannot be reached: %w (start one: gatemesh gateway --config FILE; or name it: --addr, GATEMESH_ADDR)", c.addr(), err)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// refused turns an error answer into an error: the gateway's words, and our status.
func (c *client) refused(resp *http.Response, body []byte) error {
	var r gateway.ErrorResponse
	if json.Unmarshal(body, &r) != nil || r.Error.Code == "" {
		if resp.StatusCode < 400 {
			return failf(exitUnavailable, "%s sends us elsewhere (%s, %s): use that address", c.addr(), resp.Status, printable(resp.Header.Get("Location")))
		}
		if c.base.Scheme == "http" && bytes.Contains(body, []byte("HTTP request to an HTTPS server")) {
			return failf(exitUnavailable, "gateway at %s speaks TLS: write https:// (--addr, GATEMESH_ADDR)", c.addr())
		}
		return failf(exitUnavailable, "%s does not answer like a gateway (%s): check --addr and GATEMESH_ADDR", c.addr(), resp.Status)
	}
	e := r.Error
	text := e.Message
	if e.Field != "" && !strings.Contains(text, e.Field) {
		text = e.Field + ": " + text
	}
	switch e.Code {
	case gateway.CodeUnauthorized:
		text += " (give it with GATEMESH_TOKEN or --token; the gateway knows its tokens by gateway.auth)"
	case gateway.CodeRole:
		text += " (another token: GATEMESH_TOKEN, --token; gatemesh token create makes one)"
	case gateway.CodeUnknownAgent:
		text += " (gatemesh agents lists the known ones)"
	case gateway.CodeOutcomeUnknown:
		text += fmt.Sprintf(" (send it again with --id %s: that is safe)", e.MessageID)
	}
	api := &apiError{code: e.Code, messageID: e.MessageID, text: text}
	switch {
	case e.Code == gateway.CodeSpoiled:
		return &exitError{exitFailed, api}
	case e.Code == gateway.CodeRateLimited:
		return &exitError{exitUnavailable, api}
	case resp.StatusCode < 500:
		return &exitError{exitUsage, api}
	case resp.StatusCode == http.StatusInternalServerError:
		return &exitError{exitFailed, api}
	}
	return &exitError{exitUnavailable, api}
}

// apiError is the gateway's refusal; code is one of gateway.Code*.
type apiError struct{ code, messageID, text string }

func (e *apiError) Error() string { return e.text }

func hasCode(err error, code string) bool {
	var e *apiError
	return errors.As(err, &e) && e.code == code
}

// send posts a message. The request is held open as long as the gateway waits, and a bit
// longer, so that it is the gateway that says what is known when time is up.
func (c *client) send(ctx context.Context, req gateway.SendRequest, wait time.Duration) (*gateway.MessageStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+callTimeout)
	defer cancel()
	var out gateway.MessageStatus
	if err := c.do(ctx, http.MethodPost, "v1/messages", nil, req, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *client) messages(ctx context.Context, limit int) ([]gateway.MessageStatus, error) {
	out := gateway.MessagesResponse{Messages: []gateway.MessageStatus{}}
	err := c.do(ctx, http.MethodGet, "v1/messages", url.Values{"limit": {strconv.Itoa(limit)}}, nil, &out)
	return out.Messages, err
}

func (c *client) message(ctx context.Context, id string) (*gateway.MessageStatus, error) {
	var out gateway.MessageStatus
	if err := c.do(ctx, http.MethodGet, "v1/messages/"+url.PathEscape(id), nil, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// find is message for an id that may be cut short, as the timelines print it.
func (c *client) find(ctx context.Context, id string) (*gateway.MessageStatus, error) {
	const whole, least = 36, 4
	id = strings.ToLower(strings.TrimSpace(id))
	if len(id) >= whole {
		return c.message(ctx, id)
	}
	if len(id) < least {
		return nil, failf(exitUsage, "message id %q is too short: at least the last %d characters (gatemesh message list)", id, least)
	}
	const mostListed = 500
	known, err := c.messages(ctx, mostListed)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range known {
		if strings.HasSuffix(m.MessageID, id) || strings.HasPrefix(m.MessageID, id) {
			found = append(found, m.MessageID)
		}
	}
	switch len(found) {
	case 0:
		return nil, failf(exitUsage, "no message here ends in %q (gatemesh message list; a message of another gateway needs its whole id)", id)
	case 1:
		return c.message(ctx, found[0])
	}
	return nil, failf(exitUsage, "%d messages end in %q: write more of the id (%s)", len(found), id, strings.Join(found[:2], ", "))
}

func (c *client) fanOut(ctx context.Context, req gateway.FanRequest, wait time.Duration) (*gateway.FanResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+callTimeout)
	defer cancel()
	var out gateway.FanResponse
	if err := c.do(ctx, http.MethodPost, "v1/fanouts", nil, req, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *client) deadLetters(ctx context.Context, q url.Values) ([]bus.DeadLetter, error) {
	out := gateway.DeadLettersResponse{DeadLetters: []bus.DeadLetter{}}
	err := c.do(ctx, http.MethodGet, "v1/deadletters", q, nil, &out)
	return out.DeadLetters, err
}

// orderDeadLetters posts a redrive or a purge.
func (c *client) orderDeadLetters(ctx context.Context, what string, o gateway.DeadLetterOrder) (*gateway.DeadLetterResults, error) {
	var out gateway.DeadLetterResults
	if err := c.do(ctx, http.MethodPost, "v1/deadletters/"+what, nil, o, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *client) queues(ctx context.Context) ([]bus.QueueInfo, error) {
	out := gateway.QueuesResponse{Queues: []bus.QueueInfo{}}
	err := c.do(ctx, http.MethodGet, "v1/queues", nil, nil, &out)
	return out.Queues, err
}

func (c *client) tasks(ctx context.Context, queue, state string, limit int) (*gateway.TasksResponse, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if state != "" {
		query.Set("state", state)
	}
	out := gateway.TasksResponse{Tasks: []bus.TaskInfo{}}
	if err := c.do(ctx, http.MethodGet, "v1/queues/"+url.PathEscape(queue)+"/tasks", query, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// cancelTask has the queue's owner give a task up; like send it leaves it to the gateway to say that time is up.
func (c *client) cancelTask(ctx context.Context, queue, id string, o gateway.TaskOrder, wait time.Duration) (*gateway.TaskCancelled, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+callTimeout)
	defer cancel()
	o.Timeout = wait.String()
	var out gateway.TaskCancelled
	if err := c.do(ctx, http.MethodPost, "v1/queues/"+url.PathEscape(queue)+"/tasks/"+url.PathEscape(id)+"/cancel", nil, o, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// cancelMessage has the owner of a message's inbox give it up.
func (c *client) cancelMessage(ctx context.Context, id string, o gateway.TaskOrder, wait time.Duration) (*gateway.MessageCancelled, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+callTimeout)
	defer cancel()
	o.Timeout = wait.String()
	var out gateway.MessageCancelled
	if err := c.do(ctx, http.MethodPost, "v1/messages/"+url.PathEscape(id)+"/cancel", nil, o, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *client) channels(ctx context.Context) ([]gateway.AccountStatus, error) {
	out := gateway.ChannelsResponse{Channels: []gateway.AccountStatus{}}
	err := c.do(ctx, http.MethodGet, "v1/channels", nil, nil, &out)
	return out.Channels, err
}

func (c *client) pair(ctx context.Context, inbox, shown string) (*gateway.PairResponse, error) {
	var out gateway.PairResponse
	if err := c.do(ctx, http.MethodPost, "v1/channels/"+url.PathEscape(inbox)+"/pair", nil, gateway.ChannelOrder{Shown: shown}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *client) logout(ctx context.Context, inbox string) (*gateway.LoggedOutResponse, error) {
	var out gateway.LoggedOutResponse
	if err := c.do(ctx, http.MethodPost, "v1/channels/"+url.PathEscape(inbox)+"/logout", nil, gateway.ChannelOrder{}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *client) route(ctx context.Context, q gateway.RouteQuery) (*gateway.Route, error) {
	query := url.Values{"channel": {q.Channel}}
	for key, value := range map[string]string{"account": q.Account, "peer_kind": q.Peer.Kind, "peer": q.Peer.ID, "team": q.Team} {
		if value != "" {
			query.Set(key, value)
		}
	}
	var out gateway.Route
	if err := c.do(ctx, http.MethodGet, "v1/route", query, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *client) owners(ctx context.Context) ([]bus.OwnerInfo, error) {
	out := gateway.OwnersResponse{Owners: []bus.OwnerInfo{}}
	err := c.do(ctx, http.MethodGet, "v1/owners", nil, nil, &out)
	return out.Owners, err
}

// moveDuty has a duty change hands (how: transfer or release); like send it leaves it to the gateway to say that time is up.
func (c *client) moveDuty(ctx context.Context, duty, how string, o gateway.OwnerOrder, wait time.Duration) (*bus.OwnerChange, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+callTimeout)
	defer cancel()
	o.Timeout = wait.String()
	var out bus.OwnerChange
	if err := c.do(ctx, http.MethodPost, "v1/owners/"+url.PathEscape(duty)+"/"+how, nil, o, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *client) agents(ctx context.Context, capability string) ([]bus.AgentInfo, error) {
	query := url.Values{}
	if capability != "" {
		query.Set("capability", capability)
	}
	out := gateway.AgentsResponse{Agents: []bus.AgentInfo{}}
	err := c.do(ctx, http.MethodGet, "v1/agents", query, nil, &out)
	return out.Agents, err
}

func (c *client) gateways(ctx context.Context) ([]bus.GatewayInfo, error) {
	out := gateway.GatewaysResponse{Gateways: []bus.GatewayInfo{}}
	err := c.do(ctx, http.MethodGet, "v1/gateways", nil, nil, &out)
	return out.Gateways, err
}

// inboxes lists all inboxes, or only one agent's.
func (c *client) inboxes(ctx context.Context, agent string) ([]bus.InboxInfo, error) {
	if agent != "" {
		var one bus.InboxInfo
		if err := c.do(ctx, http.MethodGet, "v1/inboxes/"+url.PathEscape(agent), nil, nil, &one); err != nil {
			return nil, err
		}
		return []bus.InboxInfo{one}, nil
	}
	out := gateway.InboxesResponse{Inboxes: []bus.InboxInfo{}}
	err := c.do(ctx, http.MethodGet, "v1/inboxes", nil, nil, &out)
	return out.Inboxes, err
}

func (c *client) stateEvents(ctx context.Context, limit int) ([]bus.StateEvent, error) {
	out := gateway.RecentEventsResponse{Events: []bus.StateEvent{}}
	err := c.do(ctx, http.MethodGet, "v1/state/events", url.Values{"limit": {strconv.Itoa(limit)}}, nil, &out)
	return out.Events, err
}

func (c *client) clearEvents(ctx context.Context) (out gateway.ClearedResponse, err error) {
	err = c.do(ctx, http.MethodDelete, "v1/state/events", nil, nil, &out)
	return out, err
}

func (c *client) recordEvent(ctx context.Context, req gateway.EventRequest) (out bus.StateEvent, err error) {
	err = c.do(ctx, http.MethodPost, "v1/state/events", nil, req, &out)
	return out, err
}

// focus asks with GET, says with PUT and removes with DELETE.
func (c *client) focus(ctx context.Context, method, text string) (out gateway.FocusState, err error) {
	var in any
	if method == http.MethodPut {
		in = gateway.FocusState{Focus: text}
	}
	err = c.do(ctx, method, "v1/state/focus", nil, in, &out)
	return out, err
}

func (c *client) status(ctx context.Context) (*gateway.StatusResponse, error) {
	var out gateway.StatusResponse
	if err := c.do(ctx, http.MethodGet, "v1/status", nil, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// health asks the open probe; the header has the gateway's clock.
func (c *client) health(ctx context.Context) (*gateway.ProbeResponse, http.Header, error) {
	var out gateway.ProbeResponse
	header, err := c.exchange(ctx, http.MethodGet, "health", nil, nil, &out)
	return &out, header, err
}
