package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/bus"
)

const (
	// ringEvents is how many events are kept for replay.
	ringEvents = 1000
	// clientEvents is how many events may wait for one client. Facts may not merge: who is
	// further behind is cut off and can come back for the replay.
	clientEvents = 256
	// maxStreams bounds the clients: each may hold clientEvents.
	maxStreams = 1024
	// pingEvery finds clients that are gone without a word.
	pingEvery = 30 * time.Second
	// frameTimeout bounds the writing of one frame.
	frameTimeout = 10 * time.Second
)

// hub hands events to the clients of the stream. It never waits for one.
type hub struct {
	mu      sync.Mutex
	seq     uint64
	ring    []StreamEvent // at most ringEvents, oldest first at ring[next]
	next    int
	clients map[*streamClient]struct{}
	closed  bool
	dropped uint64
	wg      sync.WaitGroup // the clients' handlers
}

// streamClient is one connection. The hub sends on events and closes gone; nobody
// closes events.
type streamClient struct {
	who     *caller
	message string
	events  chan StreamEvent
	gone    chan struct{}
	// why is set before gone is closed.
	code websocket.StatusCode
	why  string
}

func newHub() *hub { return &hub{clients: map[*streamClient]struct{}{}} }

// publish numbers an event, keeps it and hands it out.
func (h *hub) publish(ev bus.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	se := StreamEvent{Seq: h.seq, Event: ev}
	if len(h.ring) < ringEvents {
		h.ring = append(h.ring, se)
	} else {
		h.ring[h.next] = se
		h.next = (h.next + 1) % ringEvents
	}
	for c := range h.clients {
		if !c.wants(se) {
			continue
		}
		select {
		case c.events <- se:
		default:
			h.dropped++
			h.endLocked(c, websocket.StatusPolicyViolation, "too slow: "+strconv.Itoa(clientEvents)+" events were waiting; connect again with ?replay")
		}
	}
}

func (c *streamClient) wants(ev StreamEvent) bool {
	return c.message == "" || ev.MessageID == c.message || ev.CorrelationID == c.message || ev.InReplyTo == c.message
}

func (h *hub) endLocked(c *streamClient, code websocket.StatusCode, why string) {
	if _, ok := h.clients[c]; ok {
		delete(h.clients, c)
		c.code, c.why = code, why
		close(c.gone)
	}
}

// join adds a client and returns the replay, with nothing between it and what follows. False:
// the hub is closed, or full.
func (h *hub) join(who *caller, message string, replay int) (*streamClient, []StreamEvent, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.clients) >= maxStreams {
		return nil, nil, false
	}
	c := &streamClient{who: who, message: message, events: make(chan StreamEvent, clientEvents), gone: make(chan struct{})}
	var old []StreamEvent
	for i := range h.ring {
		if ev := h.ring[(h.next+i)%len(h.ring)]; c.wants(ev) {
			old = append(old, ev)
		}
	}
	old = slices.Clone(old[max(0, len(old)-replay):])
	h.clients[c] = struct{}{}
	h.wg.Add(1)
	return c, old, true
}

// leave ends a client's part; its handler calls it as its last act.
func (h *hub) leave(c *streamClient) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
	h.wg.Done()
}

// revoke sends away whom holds does not know any more.
func (h *hub) revoke(holds func(*caller) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.clients {
		if !holds(c.who) {
			h.endLocked(c, websocket.StatusPolicyViolation, "this token may not listen any more")
		}
	}
}

func (h *hub) stats() (clients int, dropped uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.clients), h.dropped
}

// close says goodbye to all clients and waits until they are gone.
func (h *hub) close(ctx context.Context) error {
	h.mu.Lock()
	h.closed = true
	for c := range h.clients {
		h.endLocked(c, websocket.StatusGoingAway, "the gateway stops")
	}
	h.mu.Unlock()
	end := make(chan struct{})
	go func() {
		h.wg.Wait()
		close(end)
	}()
	select {
	case <-end:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// getEvents is GET /v1/events.
func (g *Gateway) getEvents(w http.ResponseWriter, r *http.Request) error {
	message, err := messageIDParam("message", r.URL.Query().Get("message"), true)
	if err != nil {
		return err
	}
	replay, err := intParam(r, "replay", 0, 0, ringEvents)
	if err != nil {
		return err
	}
	if r.Header.Get("Upgrade") == "" {
		return badRequest("", "this is a WebSocket: connect with ws:// or wss://")
	}
	who := callerOf(r)
	if e := g.guard.Load().checkListener(r); e != nil {
		g.denied(r, who, e)
		return e
	}
	// Joined first: whoever knows that the stream is open misses nothing that they cause.
	c, old, ok := g.hub.join(who, message, replay)
	switch {
	case !ok && !g.stopped():
		return &APIError{status: http.StatusServiceUnavailable, Code: CodeBusy, Message: "too many clients listen already: " + strconv.Itoa(maxStreams)}
	case !ok:
		return bus.ErrStopped
	}
	defer g.hub.leave(c)
	// A reload that came in between has looked for this client before it was there.
	if u := g.guard.Load(); !u.holds(who) {
		g.hub.revoke(u.holds)
	}
	// checkListener has looked at the origin.
	hs := &handshake{ResponseWriter: w}
	conn, err := websocket.Accept(hs, r, &websocket.AcceptOptions{Subprotocols: []string{StreamProtocol}, InsecureSkipVerify: true})
	switch {
	case err == nil:
	case hs.code != 0:
		return &APIError{status: hs.code, Code: CodeInvalid, Message: "not a WebSocket's handshake: connect with ws:// or wss://"}
	default:
		return nil // the client is gone
	}
	g.stream(conn, c, old)
	return nil
}

// handshake keeps the answer of a handshake that failed to itself: it quotes what the client sent.
type handshake struct {
	http.ResponseWriter
	code int // of the failure
}

func (h *handshake) WriteHeader(code int) {
	if code != http.StatusSwitchingProtocols {
		h.code = code
		return
	}
	h.ResponseWriter.WriteHeader(code)
}

func (h *handshake) Write(b []byte) (int, error) {
	if h.code != 0 {
		return len(b), nil
	}
	return h.ResponseWriter.Write(b)
}

// Unwrap lets the upgrade through.
func (h *handshake) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// stream writes until the client leaves or is sent away.
func (g *Gateway) stream(conn *websocket.Conn, c *streamClient, old []StreamEvent) {
	// Not the request's context: it is of no use after the upgrade.
	ctx, cancel := context.WithCancel(context.Background())
	// Reading is how pongs and the client's goodbye are noticed. (Conn.CloseRead would do, but
	// after a client that talks it waits 15 s for itself.)
	inbound := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		_, _, err := conn.Reader(ctx)
		inbound <- err
	})
	defer func() {
		cancel()
		_ = conn.CloseNow()
		reader.Wait()
	}()
	for _, ev := range old {
		if writeFrame(ctx, conn, ev) != nil {
			return
		}
	}
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	var expired <-chan time.Time
	if !c.who.ends.IsZero() {
		t := time.NewTimer(time.Until(c.who.ends))
		defer t.Stop()
		expired = t.C
	}
	for {
		select {
		case <-c.gone: // before whatever else is there to do
			_ = conn.Close(c.code, c.why)
			return
		default:
		}
		select {
		case ev := <-c.events:
			if writeFrame(ctx, conn, ev) != nil {
				return
			}
		case <-ping.C:
			pctx, cancel := context.WithTimeout(ctx, frameTimeout)
			err := conn.Ping(pctx)
			cancel()
			if err != nil {
				return
			}
		case err := <-inbound:
			if err == nil {
				_ = conn.Close(websocket.StatusPolicyViolation, "this stream takes nothing from its clients")
			}
			return
		case <-expired:
			_ = conn.Close(websocket.StatusPolicyViolation, "the token has expired")
			return
		case <-c.gone:
		}
	}
}

func writeFrame(ctx context.Context, conn *websocket.Conn, ev StreamEvent) error {
	b, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, frameTimeout)
	defer cancel()
	return conn.Write(ctx, websocket.MessageText, b)
}
