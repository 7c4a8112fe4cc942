package openclaw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	protocol = 4
	// connectTimeout bounds the way to hello-ok, writeTimeout one frame.
	connectTimeout, writeTimeout = 15 * time.Second, 10 * time.Second
	// maxFrame is the largest frame that is read.
	maxFrame = 32 << 20
)

// errLost: the connection ended; what was asked on it may have been done.
var errLost = errors.New("the connection to the OpenClaw gateway was lost")

// conn is one connection to an OpenClaw gateway.
type conn struct {
	ws *websocket.Conn
	// boot names the gateway's process: what it was told it knows as long as it is the same one.
	boot string

	mu      sync.Mutex
	next    int
	waiting map[string]chan response // nil: it is over
	done    chan struct{}
}

// frame is what is on the wire.
type frame struct {
	Type    string          `json:"type"`
	ID      string          `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"`
	Event   string          `json:"event,omitempty"`
	Params  any             `json:"params,omitempty"`
	OK      bool            `json:"ok,omitempty"`
	Payload json.RawMessage `json:"payload,omitempty"`
	Error   *remoteError    `json:"error,omitempty"`
}

type response struct {
	payload json.RawMessage
	err     error
}

// remoteError is an answer that says no.
type remoteError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *remoteError) Error() string {
	return fmt.Sprintf("the OpenClaw gateway says %s: %s", e.Code, clip(e.Message))
}

// dial connects as a backend client with the gateway's token, which needs no device identity on loopback.
func dial(ctx context.Context, url, token, version string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}})
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %s", clip(err.Error()))
	}
	ws.SetReadLimit(maxFrame)
	c := &conn{ws: ws, waiting: map[string]chan response{}, done: make(chan struct{})}
	if err := c.hello(ctx, token, version); err != nil {
		_ = ws.CloseNow()
		return nil, err
	}
	go c.read() //nolint:gosec // it lives as long as the connection, not as the dialing
	return c, nil
}

// hello is the handshake: the gateway speaks first.
func (c *conn) hello(ctx context.Context, token, version string) error {
	for {
		f, err := c.readFrame(ctx)
		if err != nil {
			return fmt.Errorf("connect: %s", clip(err.Error()))
		}
		switch {
		case f.Type == "event" && f.Event == "connect.challenge":
			err := c.write(ctx, frame{Type: "req", ID: "connect", Method: "connect", Params: map[string]any{
				"minProtocol": protocol, "maxProtocol": protocol, "role": "operator", "scopes": []string{"operator.read", "operator.write"},
				"client": map[string]string{"id": "gateway-client", "mode": "backend", "platform": "linux", "version": version},
				"auth":   map[string]string{"token": token},
			}})
			if err != nil {
				return err
			}
		case f.Type == "res" && f.ID == "connect":
			if !f.OK {
				if f.Error == nil {
					f.Error = &remoteError{Code: "UNKNOWN"}
				}
				return f.Error
			}
			var hello struct {
				Server struct {
					BootID string `json:"bootId"`
					ConnID string `json:"connId"`
				} `json:"server"`
			}
			if err := json.Unmarshal(f.Payload, &hello); err != nil {
				return fmt.Errorf("hello-ok is not readable: %w", err)
			}
			if c.boot = hello.Server.BootID; c.boot == "" {
				c.boot = "connection " + hello.Server.ConnID // an older one does not say: each connection is as if it had restarted
			}
			return nil
		}
	}
}

func (c *conn) readFrame(ctx context.Context) (f frame, err error) {
	_, data, err := c.ws.Read(ctx)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return f, fmt.Errorf("a frame is not readable: %w", err)
	}
	return f, nil
}

func (c *conn) write(ctx context.Context, f frame) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return c.ws.Write(ctx, websocket.MessageText, data)
}

// read hands answers to who waits, until the connection ends.
func (c *conn) read() {
	for {
		f, err := c.readFrame(context.Background())
		if err != nil {
			break
		}
		if f.Type != "res" {
			continue // events are for people who watch
		}
		r := response{payload: f.Payload}
		if !f.OK {
			if f.Error == nil {
				f.Error = &remoteError{Code: "UNKNOWN"}
			}
			r.err = f.Error
		}
		c.mu.Lock()
		if ch := c.waiting[f.ID]; ch != nil {
			select {
			case ch <- r:
			default: // more answers than anybody waits for
			}
		}
		c.mu.Unlock()
	}
	_ = c.ws.CloseNow()
	c.mu.Lock()
	c.waiting = nil
	c.mu.Unlock()
	close(c.done)
}

// close ends the connection and waits for that.
func (c *conn) close() {
	_ = c.ws.CloseNow()
	<-c.done
}

// ask sends a request. Its answers, of which there may be two, come on the channel; end is called when nobody waits for more.
func (c *conn) ask(ctx context.Context, method string, params any) (answers <-chan response, end func(), err error) {
	ch := make(chan response, 4)
	c.mu.Lock()
	if c.waiting == nil {
		c.mu.Unlock()
		return nil, nil, errLost
	}
	c.next++
	id := fmt.Sprintf("%s-%d", method, c.next)
	c.waiting[id] = ch
	c.mu.Unlock()
	end = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, id)
	}
	if err := c.write(ctx, frame{Type: "req", ID: id, Method: method, Params: params}); err != nil {
		end()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		return nil, nil, errLost
	}
	return ch, end, nil
}

// call is ask for one answer.
func (c *conn) call(ctx context.Context, method string, params, out any) error {
	answers, end, err := c.ask(ctx, method, params)
	if err != nil {
		return err
	}
	defer end()
	select {
	case r := <-answers:
		if r.err != nil {
			return r.err
		}
		return json.Unmarshal(r.payload, out)
	case <-c.done:
		return errLost
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func clip(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.ToValidUTF8(text[:min(len(text), 300)], "")
}
