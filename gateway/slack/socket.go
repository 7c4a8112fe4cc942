package slack

import (
	"context"
	"encoding/json"
	"errors"
	"hash/fnv"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/slack-go/slack/socketmode"
)

const (
	// readLimit is the largest frame that is read, in bytes. An event holds a message's text and its blocks, twice for an edit.
	readLimit = 4 << 20
	// maxGarbage is how many frames in a row may make no sense before the connection is given up.
	maxGarbage = 10
	// ackWithin bounds the writing of an acknowledgement.
	ackWithin = time.Second
	// lanes is how many events are taken in at the same time, and laneRoom how many may wait in each. Those of one channel
	// go through one lane, so they stay in order.
	lanes    = 8
	laneRoom = 256
)

// socket is one Socket Mode connection. slack-go opens it and knows its messages; it is read here, because slack-go's own loop keeps
// to itself why Slack disconnects, and closes the old connection before it opens the new one.
type socket struct {
	ws      *websocket.Conn
	abort   func() // ends it at once
	goodbye time.Duration
	since   time.Time
	hello   socketmode.Request // set before helloed closes

	helloed chan struct{}
	replace chan string   // holds Slack's reason to leave
	ended   chan struct{} // closed by the reader
}

// delivery is an envelope and where its acknowledgement goes.
type delivery struct {
	on      *socket
	id      string
	payload json.RawMessage
}

// dial connects and starts reading.
func (r *run) dial(ctx context.Context, addr string) (*socket, error) {
	dctx, cancel := context.WithTimeout(ctx, r.timings.hello)
	defer cancel()
	wire := &wire{}
	over := r.http.Transport.(*http.Transport).Clone()
	over.DialContext = wire.dial
	ws, _, err := websocket.Dial(dctx, addr, &websocket.DialOptions{HTTPClient: &http.Client{Transport: over, CheckRedirect: stay}})
	if err != nil {
		over.CloseIdleConnections()
		return nil, r.clean("connecting", err, ticket(addr)...)
	}
	ws.SetReadLimit(readLimit)
	// Reading has a context of its own: when Run ends, what is being accepted is still acknowledged.
	rctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	abort := func() {
		stop()
		wire.cut()
	}
	s := &socket{
		ws: ws, abort: abort, goodbye: r.timings.goodbye, since: time.Now(),
		helloed: make(chan struct{}), replace: make(chan string, 1), ended: make(chan struct{}),
	}
	r.readers.Go(func() {
		defer close(s.ended)
		defer abort()
		err := r.read(rctx, s)
		r.log.Debug("slack: connection ended", "cause", r.clean("reading", err, ticket(addr)...))
		_ = ws.CloseNow()
		select {
		case <-s.helloed:
			r.open.Add(-1)
		default:
		}
	})
	r.readers.Go(func() { s.keepAlive(rctx, r.timings) })
	return s, nil
}

// wire is what lies beneath a socket. To cut it is the only way to end the library's closing handshake, which
// waits five seconds for an answer, early.
type wire struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.conns = append(w.conns, c)
	}
	return c, err
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
}

// ticket is what in a connection's URL lets one connect.
func ticket(addr string) []string {
	u, err := url.Parse(addr)
	if err != nil {
		return []string{addr}
	}
	return append([]string{addr, u.RawQuery}, u.Query()["ticket"]...)
}

// alive reports whether it is still read.
func (s *socket) alive() bool {
	if s == nil {
		return false
	}
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// close says goodbye and waits until it is not read any more.
func (s *socket) close() {
	t := time.AfterFunc(s.goodbye, s.abort) // Slack may not answer
	defer t.Stop()
	_ = s.ws.Close(websocket.StatusNormalClosure, "")
	<-s.ended
}

// keepAlive ends a connection whose other end does not answer.
func (s *socket) keepAlive(ctx context.Context, t timings) {
	tick := time.NewTicker(t.ping)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pctx, cancel := context.WithTimeout(ctx, t.pong)
		err := s.ws.Ping(pctx)
		cancel()
		if err != nil {
			s.abort()
			return
		}
	}
}

// read handles what Slack sends, until the connection ends.
func (r *run) read(ctx context.Context, s *socket) error {
	for garbage := 0; ; {
		_, b, err := s.ws.Read(ctx)
		if err != nil {
			return err
		}
		var req socketmode.Request
		if err := json.Unmarshal(b, &req); err != nil || req.Type == "" {
			garbage++
			r.log.Warn("slack: a frame makes no sense", "bytes", len(b), "in_a_row", garbage)
			if garbage == maxGarbage {
				return errors.New("nothing but garbage comes from Slack")
			}
			continue
		}
		garbage = 0
		r.frame(s, req)
	}
}

func (r *run) frame(s *socket, req socketmode.Request) {
	switch req.Type {
	case socketmode.RequestTypeHello:
		select {
		case <-s.helloed:
		default:
			s.hello = req
			r.open.Add(1)
			close(s.helloed)
		}
	case socketmode.RequestTypeDisconnect:
		select {
		case s.replace <- req.Reason:
		default: // it was said before
		}
	case socketmode.RequestTypeEventsAPI:
		r.sort(delivery{s, req.EnvelopeID, req.Payload})
	default:
		// Slash commands, buttons: the app has none by our manifest. Unacknowledged, the person would see an error for each.
		r.ack(s, req.EnvelopeID)
	}
}

// sort puts an event into its channel's lane. Nothing waits here: the pongs come the same way.
func (r *run) sort(d delivery) {
	h, err := readHead(d.payload)
	switch {
	case err != nil:
		r.log.Warn("slack: an event makes no sense", "envelope", d.id)
		return
	case h.Event.Type != "message" && h.Event.Type != "app_mention":
		r.ack(d.on, d.id)
		return
	}
	f := fnv.New32a()
	_, _ = f.Write([]byte(h.Event.Channel))
	select {
	case r.queues[f.Sum32()%lanes] <- d:
	default:
		r.log.Warn("slack: too many events wait, Slack will send this one again", "event", h.EventID)
	}
}

// startLanes starts what takes events in, until ctx ends. What waits then is left to Slack, which sends it to the next owner.
func (r *run) startLanes(ctx context.Context) {
	for range lanes {
		q := make(chan delivery, laneRoom)
		r.queues = append(r.queues, q)
		r.lanes.Go(func() {
			for ctx.Err() == nil {
				select {
				case d := <-q:
					r.take(ctx, d)
				case <-ctx.Done():
				}
			}
		})
	}
}

// take hands one event to the mesh and acknowledges it after that: Slack sends again what is not acknowledged.
func (r *run) take(ctx context.Context, d delivery) {
	me, err := r.whoami(ctx)
	if err != nil {
		return
	}
	e, ours, err := r.event(ctx, me, d.payload)
	if err != nil {
		r.log.Warn("slack: an event is not understood, Slack will send it again", "envelope", d.id, "cause", r.clean("reading an event", err))
		return
	}
	if ours {
		actx, cancel := context.WithTimeout(ctx, r.timings.accept)
		err = r.in.Accept(actx, e)
		cancel()
	}
	if err != nil {
		r.log.Warn("slack: an event was not taken in, Slack will send it again", "event", e.ID, "cause", err)
		return
	}
	r.ack(d.on, d.id)
}

// ack tells Slack that an envelope has arrived. When that fails the event comes again, and is known.
func (r *run) ack(s *socket, id string) {
	if id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), ackWithin)
	defer cancel()
	b, err := json.Marshal(socketmode.Response{EnvelopeID: id})
	if err == nil {
		err = s.ws.Write(ctx, websocket.MessageText, b)
	}
	if err != nil {
		r.log.Debug("slack: an acknowledgement did not go out", "envelope", id, "cause", r.clean("writing", err))
	}
}
