// Package openclawgw lets OpenClaw's own clients (`openclaw health`, `openclaw gateway call`, `openclaw agent`, `openclaw tui`) work against a gateway of
// the mesh: OpenClaw's WebSocket protocol, version 4, at the root of the gateway's port. The agent answers from whichever gateway it lives on.
//
// A client says who it is with the gateway's token; a device identity, when it sends one, must be right, and gives no rights of its own: there is no pairing.
// Each request of a client is requests to the gateway's own API with that token. A run is a message of the mesh whose id follows from the token's name and
// the idempotencyKey, so that asking again, also at another gateway, gives the same answer. The session agent:bobby:main is the conversation
// "main" of bobby.
//
// What there is: the methods of the table in methods.go. Everything else is answered with "unknown method", as OpenClaw does. An answer comes whole, in one delta.
package openclawgw

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

const (
	// Protocol is the version that is spoken.
	Protocol = 4
	// tickEvery is how often a connected client hears that the gateway is there.
	tickEvery = 15 * time.Second
	// connectTime bounds how long a client takes to say who it is, frameTime the writing of a frame.
	connectTime = 10 * time.Second
	frameTime   = 10 * time.Second
	// firstFrame bounds the frame that says who a client is, in bytes; maxFrame the others.
	firstFrame = 64 << 10
	maxFrame   = gateway.MaxOrderBytes
	// maxRequests is how many requests of one client are worked on at once; more wait.
	maxRequests = 32
)

// frame is what goes over the wire: a request, its answer, or an event.
type frame struct {
	Type    string     `json:"type"`
	ID      string     `json:"id,omitempty"`
	OK      *bool      `json:"ok,omitempty"`
	Payload any        `json:"payload,omitempty"`
	Error   *wireError `json:"error,omitempty"`
	Event   string     `json:"event,omitempty"`
	Seq     uint64     `json:"seq,omitempty"`
}

type request struct {
	Type   string          `json:"type"`
	ID     string          `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

// Handler serves the protocol. api is the gateway's whole API. It works until the client goes, or the request's context ends.
func Handler(version string, api http.Handler) http.Handler {
	boot := envelope.NewID()
	began := time.Now()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Who calls has looked at the origin.
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return // Accept has answered
		}
		// Not the request's context: a read whose context ends cuts the connection, and the client is to be told why.
		ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
		c := &connection{conn: conn, ctx: ctx, request: r, api: api, version: version, boot: boot, began: began, id: envelope.NewID(), slots: make(chan struct{}, maxRequests)}
		told := make(chan struct{})
		stop := context.AfterFunc(r.Context(), func() {
			defer close(told)
			_ = conn.Close(websocket.StatusServiceRestart, "service restart")
			cancel()
		})
		defer func() {
			if !stop() {
				<-told
			}
			cancel()
			_ = conn.CloseNow()
			c.wg.Wait()
		}()
		c.run()
	})
}

// connection is one client.
type connection struct {
	conn    *websocket.Conn
	ctx     context.Context //nolint:containedctx // it lives as long as the connection
	request *http.Request
	api     http.Handler
	version string
	boot    string
	began   time.Time
	id      string

	call   gateway.Call // nil until the client has said who it is
	caller string

	mu    sync.Mutex // of writing
	seq   uint64
	slots chan struct{}
	wg    sync.WaitGroup
}

// run works for the client until it goes.
func (c *connection) run() {
	if !c.connect() {
		return
	}
	c.conn.SetReadLimit(maxFrame)
	c.wg.Go(c.tick)
	for {
		r, err := c.read(c.ctx)
		if err != nil {
			return
		}
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			return
		}
		c.wg.Go(func() {
			defer func() { <-c.slots }()
			c.serve(r)
		})
	}
}

// read returns the next request. What is none ends the connection.
func (c *connection) read(ctx context.Context) (r request, err error) {
	_, b, err := c.conn.Read(ctx)
	if err != nil {
		return r, err
	}
	if json.Unmarshal(b, &r) != nil || r.Type != "req" || r.ID == "" || r.Method == "" {
		_ = c.conn.Close(websocket.StatusPolicyViolation, "invalid request frame")
		return r, errors.New("not a request")
	}
	return r, nil
}

// tick says that the gateway is there, and sends a client away whose token is not known any more.
func (c *connection) tick() {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-c.ctx.Done():
			return
		}
		var refused *refusal
		if err := c.get("/v1/status", &gateway.StatusResponse{}); errors.As(err, &refused) && refused.status == http.StatusUnauthorized {
			_ = c.conn.Close(websocket.StatusPolicyViolation, "this token may not come in any more")
			return
		}
		c.event("tick", map[string]any{"ts": time.Now().UnixMilli()})
	}
}

// serve answers one request.
func (c *connection) serve(r request) {
	m, ok := methods[r.Method]
	if !ok {
		c.fail(r.ID, invalid("unknown method: %s", clip(r.Method)))
		return
	}
	answer, err := m(c, r)
	switch {
	case err != nil:
		c.fail(r.ID, err)
	case answer != nil:
		c.answer(r.ID, answer)
	}
}

func (c *connection) answer(id string, payload any) {
	ok := true
	c.write(frame{Type: "res", ID: id, OK: &ok, Payload: payload})
}

func (c *connection) fail(id string, err error) {
	ok := false
	c.write(frame{Type: "res", ID: id, OK: &ok, Error: wire(err)})
}

// event tells the client of something, in the order of the numbers.
func (c *connection) event(name string, payload any) {
	c.write(frame{Type: "event", Event: name, Payload: payload})
}

// write sends a frame. A client that does not take it is gone.
func (c *connection) write(f frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.Type == "event" && c.call != nil {
		c.seq++
		f.Seq = c.seq
	}
	b, err := json.Marshal(f)
	if err != nil {
		return // values of ours: never
	}
	ctx, cancel := context.WithTimeout(c.ctx, frameTime)
	defer cancel()
	if c.conn.Write(ctx, websocket.MessageText, b) != nil {
		_ = c.conn.CloseNow()
	}
}
