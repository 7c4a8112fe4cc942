package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// acceptTimeout bounds how long the store may take to accept a message.
	acceptTimeout = 15 * time.Second
	// lookAgain is how often a message of which nothing is remembered here is looked up
	// while somebody waits for it.
	lookAgain = 2 * time.Second
)

// A waiting is what a request wants to wait for.
type waiting struct {
	what    string // "", or one of Wait*
	timeout time.Duration
}

// over reports whether waiting has come to its end.
func (w waiting) over(f bus.Facts) bool {
	switch w.what {
	case WaitDelivered:
		return f.Delivered || f.Dead
	case WaitAcked:
		return f.Acked || f.Dead
	case WaitReplied:
		return f.Replied || f.Dead
	}
	return true
}

func parseWaiting(what, timeout string) (waiting, error) {
	w := waiting{what, DefaultWait}
	switch what {
	case "", WaitDelivered, WaitAcked, WaitReplied:
	default:
		return w, badRequest("wait", "wait %q is not one of %s, %s, %s", clipText(what, 40), WaitDelivered, WaitAcked, WaitReplied)
	}
	if timeout == "" {
		return w, nil
	}
	d, err := time.ParseDuration(timeout)
	if err != nil || d <= 0 || d > MaxWait {
		return w, badRequest("timeout", "timeout %q is not a duration of more than 0 and at most %s, such as \"30s\"", clipText(timeout, 40), MaxWait)
	}
	if what == "" {
		return w, badRequest("timeout", "timeout without wait: say what to wait for")
	}
	w.timeout = d
	return w, nil
}

// patient gives a request the time to wait and returns its context, which also ends when the
// gateway stops.
func (g *Gateway) patient(w http.ResponseWriter, r *http.Request, wait time.Duration) (context.Context, context.CancelFunc) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(wait + 2*ioTimeout)) // it would end the context of the request
	_ = rc.SetWriteDeadline(time.Now().Add(wait + 2*ioTimeout))
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	stop := context.AfterFunc(g.waits, cancel)
	return ctx, func() { stop(); cancel() }
}

// postMessage is POST /v1/messages.
func (g *Gateway) postMessage(w http.ResponseWriter, r *http.Request) error {
	var req SendRequest
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	wait, err := parseWaiting(req.Wait, req.Timeout)
	if err != nil {
		return err
	}
	out, err := g.outgoing(&req, r)
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	if req.TTL == "" && b.IsQueue(out.To.Agent) {
		out.TTL = g.settings.Load().maxTTL // a task waits for a worker: that may take longer than an agent's answer
	}
	id, err := g.accept(r.Context(), b, out, req.Reply || wait.what == WaitReplied)
	if err != nil {
		return aboutMessage(err, id)
	}
	if wait.what == "" {
		tr, _, _ := b.Track(id)
		return writeJSON(w, http.StatusAccepted, statusOf(id, tr))
	}
	ctx, cancel := g.patient(w, r, wait.timeout)
	defer cancel()
	tr, err := b.Await(ctx, id, func(t bus.Track) bool { return wait.over(t.Facts) })
	if r.Context().Err() != nil {
		return r.Context().Err()
	}
	st := statusOf(id, tr)
	st.resolve(r.Context(), b)
	if err == nil {
		return writeJSON(w, http.StatusOK, st)
	}
	st.TimedOut = true
	return writeJSON(w, http.StatusAccepted, st)
}

// outgoing checks a request and turns it into a message.
func (g *Gateway) outgoing(req *SendRequest, r *http.Request) (bus.Outgoing, error) {
	s := g.settings.Load()
	out := bus.Outgoing{
		ID: req.ID, From: req.From, Capability: req.Capability, TTL: s.ttl, MaxHops: req.MaxHops,
		ConversationID: req.ConversationID, CorrelationID: req.CorrelationID, Traceparent: req.Traceparent,
		MaxAttempts: req.MaxAttempts, Terminal: req.Terminal, Budget: req.Budget, AttemptID: req.AttemptID,
	}
	if req.To == "" {
		return out, badRequest("to", "to is missing: agent, or agent@gateway")
	}
	var err error
	if out.To, err = envelope.ParseAddress(req.To); err != nil {
		return out, badRequest("to", "to: %v", err)
	}
	if req.Capability == capabilityCronOrder || req.Capability == capabilityCronRun {
		return out, badRequest("capability", "%s is the scheduler's own: jobs are added with POST /v1/cron (gatemesh cron add)", req.Capability)
	}
	if req.Capability == CapabilityEvent {
		return out, badRequest("capability", "%s is what a chat account says to itself of what it heard; to post there ask for %s", CapabilityEvent, CapabilityPost)
	}
	if agent.Continues(req.Capability) {
		return out, badRequest("capability", "%s is what an agent that thinks says to itself (sessions_spawn)", req.Capability)
	}
	if req.ID != "" && !isMessageID(req.ID) {
		return out, badRequest("id", "id %q is not a lower-case UUID", clipText(req.ID, 60))
	}
	switch {
	case req.Text != nil && req.Payload != nil:
		return out, badRequest("payload", "text and payload are both given: send one of them")
	case req.Text != nil:
		out.Payload = envelope.TextPayload(*req.Text)
	case req.Payload != nil:
		out.Payload = req.Payload
	default:
		return out, badRequest("text", "text or payload is missing")
	}
	if len(out.Payload) > s.maxPayload {
		return out, &APIError{status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Field: "payload",
			Message: fmt.Sprintf("the payload is %d bytes, at most %d (mesh.maxPayload)", len(out.Payload), s.maxPayload)}
	}
	if req.TTL != "" {
		d, err := time.ParseDuration(req.TTL)
		if err != nil || d < time.Millisecond || d > s.maxTTL {
			return out, badRequest("ttl", "ttl %q is not a duration of 1ms to %s (mesh.maxTTL), such as \"90s\"", clipText(req.TTL, 40), s.maxTTL)
		}
		out.TTL = d
	}
	if req.MaxHops < 0 || req.MaxHops > envelope.MaxHops {
		return out, badRequest("max_hops", "max_hops is %d, want 1 to %d", req.MaxHops, envelope.MaxHops)
	}
	if req.MaxAttempts < 0 || req.MaxAttempts > envelope.MaxAttempts {
		return out, badRequest("max_attempts", "max_attempts is %d, want 1 to %d", req.MaxAttempts, envelope.MaxAttempts)
	}
	for _, d := range []struct {
		name, value string
		into        *time.Duration
	}{{"ack_timeout", req.AckTimeout, &out.AckTimeout}, {"retry_delay", req.RetryDelay, &out.RetryDelay}} {
		if d.value == "" {
			continue
		}
		if *d.into, err = time.ParseDuration(d.value); err != nil || *d.into < time.Millisecond || *d.into > envelope.MaxTTL {
			return out, badRequest(d.name, "%s %q is not a duration of 1ms to %s, such as \"90s\"", d.name, clipText(d.value, 40), envelope.MaxTTL)
		}
	}
	if out.Task, err = req.task(time.Now()); err != nil {
		return out, err
	}
	if out.MaxHops == 0 {
		out.MaxHops = s.maxHops
	}
	if c := callerOf(r); c != nil && c.agent != "" {
		if out.From != "" && out.From != c.agent {
			return out, &APIError{status: http.StatusForbidden, Code: CodeRole, Field: "from", Message: "the token " + c.name + " speaks for the agent " + c.agent}
		}
		out.From = c.agent
	}
	if out.From == "" {
		out.From = DefaultFrom
	}
	if out.Traceparent == "" {
		// What is malformed is none, as the specification has it: a header is no place for other words of ours.
		if tp := r.Header.Get("traceparent"); traceparent.MatchString(tp) {
			out.Traceparent = tp
		}
	}
	return out, nil
}

// accept sends a message unless it was accepted here before under the same id.
func (g *Gateway) accept(ctx context.Context, b *bus.Bus, out bus.Outgoing, answer bool) (id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	if out.ID == "" {
		out.ID = envelope.NewID()
	} else {
		// Two requests with one id at the same time: the second sees what became of the first.
		unlock, err := g.ids.lock(ctx, out.ID)
		if err != nil {
			return out.ID, err
		}
		defer unlock()
		if tr, _, ok := b.Track(out.ID); ok && tr.Facts.Accepted && tr.Envelope != nil {
			if err := sameMessage(tr.Envelope, out, g.name); err != nil {
				return out.ID, err
			}
			return out.ID, nil
		}
	}
	send := b.Send
	if answer {
		send = b.AskAPI
	}
	_, err = send(ctx, out)
	return out.ID, err
}

// sameMessage refuses another message under an id that is taken.
func sameMessage(e *envelope.Sealed, out bus.Outgoing, gateway string) error {
	var payload bytes.Buffer
	if json.Compact(&payload, out.Payload) == nil && e.SourceGateway == gateway && e.SourceAgent == out.From && e.TargetAgent == out.To.Agent &&
		e.TargetGateway == out.To.Gateway && e.Capability == out.Capability && bytes.Equal(payload.Bytes(), e.Payload) {
		return nil
	}
	return &APIError{status: http.StatusConflict, Code: CodeConflict, Field: "id", Message: "another message has this id: choose a new one for a new message"}
}

// statusOf is what this gateway remembers of a message.
func statusOf(id string, tr bus.Track) MessageStatus {
	st := MessageStatus{Status: bus.Status{MessageID: id, Facts: tr.Facts, Envelope: tr.Envelope, Reply: tr.Reply, Events: tr.Events}}
	if st.Events == nil {
		st.Events = []bus.Event{}
	}
	for _, ev := range tr.Events {
		if ev.State != "" {
			st.State = ev.State
		}
	}
	st.answer()
	return st
}

func wholeStatus(s bus.Status) MessageStatus {
	st := MessageStatus{Status: s}
	st.answer()
	return st
}

// answer shows the answer as far as it is in memory. That of an encrypted one is readable at the gateway that asked, alone.
func (st *MessageStatus) answer() {
	switch r := st.Reply; {
	case r == nil:
	case r.Closed():
		st.Text = "(encrypted for " + strings.Join(r.Readers(), ", ") + ")"
	default:
		st.Text = agent.Text(r.Payload)
		if r.Encrypted() {
			st.ReplyPayload = r.Payload
		}
	}
}

// resolve fetches an answer that does not travel in its envelope, and decrypts it if this gateway may read it.
func (st *MessageStatus) resolve(ctx context.Context, b *bus.Bus) {
	if st.Reply == nil || !st.Reply.Claimed() && !st.Reply.Closed() {
		return
	}
	full, err := b.Resolve(ctx, st.Reply)
	if err != nil {
		st.Text = "(" + err.Error() + ")"
		return
	}
	st.Text, st.ReplyPayload = agent.Text(full.Payload), full.Payload
}

// getMessages is GET /v1/messages.
func (g *Gateway) getMessages(w http.ResponseWriter, r *http.Request) error {
	limit, err := intParam(r, "limit", 50, 1, 500)
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	list := []MessageStatus{}
	for _, s := range b.Recent(limit) {
		list = append(list, wholeStatus(s))
	}
	return writeJSON(w, http.StatusOK, MessagesResponse{list})
}

// getMessage is GET /v1/messages/{id}.
func (g *Gateway) getMessage(w http.ResponseWriter, r *http.Request) error {
	id, err := messageIDParam("id", r.PathValue("id"), false)
	if err != nil {
		return err
	}
	wait, err := parseWaiting(r.URL.Query().Get("wait"), r.URL.Query().Get("timeout"))
	if err != nil {
		return err
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	ctx, cancel := g.patient(w, r, wait.timeout)
	defer cancel()
	res, err := g.follow(ctx, r.Context(), b, id, wait)
	if err != nil {
		return err
	}
	if c := callerOf(r); c != nil && c.agent != "" && (res.Envelope == nil || res.Envelope.SourceAgent != c.agent && res.Envelope.TargetAgent != c.agent) {
		return bus.ErrNotFound // not that agent's
	}
	return writeJSON(w, http.StatusOK, res)
}

// follow waits for a message, whichever gateway sent it, until wait is over or ctx ends. Its error is the client's, or the store's.
func (g *Gateway) follow(ctx, client context.Context, b *bus.Bus, id string, wait waiting) (MessageStatus, error) {
	for {
		st, err := b.Lookup(ctx, id)
		if err != nil {
			return MessageStatus{}, err
		}
		timedOut := ctx.Err() != nil
		if wait.over(st.Facts) || timedOut {
			res := wholeStatus(*st)
			res.resolve(client, b)
			res.TimedOut = timedOut && !wait.over(st.Facts)
			return res, nil
		}
		if !g.awaitChange(ctx, b, id, wait) {
			// Time is up: what is remembered, without another look into the store.
			if client.Err() != nil {
				return MessageStatus{}, client.Err()
			}
			res := wholeStatus(*st)
			if tr, _, ok := b.Track(id); ok {
				res.Facts, res.Events = tr.Facts, append([]bus.Event{}, tr.Events...)
			}
			res.TimedOut = true
			return res, nil
		}
	}
}

// awaitChange waits until the message may be where it is waited for; false: time is up.
func (g *Gateway) awaitChange(ctx context.Context, b *bus.Bus, id string, wait waiting) bool {
	// What other gateways do to a message reaches our memory only if it is ours.
	look, cancel := context.WithTimeout(ctx, lookAgain)
	defer cancel()
	if _, err := b.Await(look, id, func(t bus.Track) bool { return wait.over(t.Facts) }); errors.Is(err, bus.ErrNotFound) {
		<-look.Done()
	}
	return ctx.Err() == nil
}

// messageIDParam checks an id in a URL. Ids of unreadable messages are no UUIDs.
func messageIDParam(field, id string, optional bool) (string, error) {
	if id == "" && optional {
		return "", nil
	}
	ok := id != "" && len(id) <= 128
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		// What stands in a path may be anything, a token that slipped: it is not said again.
		return "", badRequest(field, "not a message id: those are made of a-z, 0-9 and -, at most 128")
	}
	return id, nil
}

// traceparent is W3C Trace Context; versions after 00 may have more behind it.
var traceparent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[0-9a-f-]{1,64})?$`)

func isMessageID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i, c := range []byte(id) {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func intParam(r *http.Request, name string, def, least, most int) (int, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		return 0, badRequest(name, "%s=%q is not a number from %d to %d", name, clipText(s, 20), least, most)
	}
	return n, nil
}

// idLocks lets one request at a time work under a client's message id.
type idLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the holder is done
}

func (l *idLocks) lock(ctx context.Context, id string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, ok := l.held[id]
		if !ok {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			l.held[id] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, id)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
