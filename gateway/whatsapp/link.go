package whatsapp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// lastWords is how long the end of a connection is kept from the library: what the server said last (why it closes) goes
// through a queue that is thrown away with the connection.
const lastWords = 200 * time.Millisecond

// storing is how long a write of the credentials may hold up what wants to leave.
const storing = 5 * time.Second

// errClosed is why a connection that we closed ended.
var errClosed = errors.New("closed")

// A link is the transport of one connection, below the library's encryption: all that leaves goes through its Write, and before
// that the credentials are stored and every post that is under way is asked whether it may still be made. What is refused
// there has not left, and nothing leaves after it.
type link struct {
	dial     context.Context // ends the dialing, not the connection
	base     http.RoundTripper
	endpoint *url.URL // nil: where the library wants to go
	creds    *credentials
	up       chan struct{} // closed when the handshake is over, either way
	done     chan struct{} // closed with the connection
	alive    context.Context
	bury     context.CancelFunc

	mu     sync.Mutex
	conn   io.ReadWriteCloser
	dead   error
	checks map[*pending]bool
}

// pending is a post from when its encryption begins until the server has it.
type pending struct {
	check   func() error
	refused error // guarded by link.mu
}

func newLink(dial context.Context, base http.RoundTripper, endpoint *url.URL, creds *credentials) *link {
	l := &link{dial: dial, base: base, endpoint: endpoint, creds: creds, up: make(chan struct{}), done: make(chan struct{}), checks: map[*pending]bool{}}
	l.alive, l.bury = context.WithCancel(context.WithoutCancel(dial))
	return l
}

// RoundTrip is the WebSocket's handshake.
func (l *link) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(l.dial)
	if l.endpoint != nil {
		r.URL, r.Host = l.endpoint, l.endpoint.Host
	}
	resp, err := l.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols {
		return resp, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead != nil {
		_ = conn.Close()
		return nil, l.dead
	}
	l.conn = conn
	resp.Body = &wire{link: l, conn: conn}
	return resp, nil
}

// close ends the connection. The first cause counts.
func (l *link) close(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead != nil {
		return
	}
	l.dead = cause
	if l.conn != nil {
		_ = l.conn.Close() // it is over either way
	}
	close(l.done)
	l.bury()
}

// cause returns why the connection ended; nil: it did not.
func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

func (l *link) begin(check func() error) *pending {
	p := &pending{check: check}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.checks[p] = true
	return p
}

// end returns why the post was refused; nil: it was not.
func (l *link) end(p *pending) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.checks, p)
	return p.refused
}

// allow is called before each byte that leaves.
func (l *link) allow() error {
	if err := l.cause(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.alive, storing)
	defer cancel()
	if err := l.creds.flush(ctx); err != nil {
		l.refuse(err)
		return err
	}
	l.mu.Lock()
	checks := make([]*pending, 0, len(l.checks))
	for p := range l.checks {
		checks = append(checks, p)
	}
	l.mu.Unlock()
	for _, p := range checks {
		if err := p.check(); err != nil {
			l.refuse(err)
			return err
		}
	}
	return l.cause()
}

// refuse ends the connection, with what was about to leave.
func (l *link) refuse(err error) {
	l.mu.Lock()
	for p := range l.checks {
		p.refused = err
	}
	l.mu.Unlock()
	l.close(err)
}

// wire is what the library takes for the network.
type wire struct {
	link   *link
	conn   io.ReadWriteCloser
	lasted bool
}

func (w *wire) Write(p []byte) (int, error) {
	if err := w.link.allow(); err != nil {
		return 0, fmt.Errorf("nothing may leave: %w", err)
	}
	return w.conn.Write(p)
}

func (w *wire) Close() error {
	w.link.close(errClosed)
	return nil
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.conn.Read(p)
	if err == nil || n > 0 {
		return n, err
	}
	if w.lasted {
		<-w.link.up // the library closes its socket first: to find it closed at the same time is a data race in it
		return n, err
	}
	w.lasted = true
	select {
	case <-w.link.up:
	default:
		if len(p) >= len(unreadable) {
			return copy(p, unreadable), nil
		}
	}
	t := time.NewTimer(lastWords)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.link.done:
	}
	return 0, err
}

// unreadable is a WebSocket message that holds a frame of one byte: no answer to a handshake. The library waits for the answer for
// 20 seconds, with whatever context and even when the connection is gone; this ends that.
var unreadable = []byte{0x82, 4, 0, 0, 1, 0xff}
