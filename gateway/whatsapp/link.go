package whatsapp

import (
	"context"
	"errors"
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

// settling is how long after the end of a connection the library's goroutines may still be on their way to send.
const settling = 100 * time.Millisecond

// Why a connection ended.
var (
	errClosed = errors.New("closed") // by us
	errLost   = errors.New("the connection was lost")
)

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
	quiet    chan struct{} // closed when nothing of ours and, as far as can be known, of the library's sends any more
	alive    context.Context
	bury     context.CancelFunc

	posts gate

	mu     sync.Mutex
	conn   io.ReadWriteCloser
	dead   error
	checks map[*pending]bool
}

// pending is a post from when its encryption begins until the server has it.
type pending struct {
	check   func() error
	before  int  // writes of the credentials when it began
	left    bool // guarded by link.mu, as what follows: something left after the step of its ratchet was stored
	refused error
}

func newLink(dial context.Context, base http.RoundTripper, endpoint *url.URL, creds *credentials) *link {
	l := &link{dial: dial, base: base, endpoint: endpoint, creds: creds, up: make(chan struct{}), done: make(chan struct{}), quiet: make(chan struct{}),
		checks: map[*pending]bool{}}
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
	resp.Body = &wire{link: l, conn: conn, closed: make(chan struct{})}
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
	p := &pending{check: check, before: l.creds.written()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.checks[p] = true
	return p
}

// end says what the link knows of a post: stayed means that not a byte of it has left or will.
func (l *link) end(p *pending) (stayed bool, refused error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.checks, p)
	return l.dead != nil && !p.left, p.refused
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
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead != nil {
		return l.dead
	}
	// What leaves now may hold a post of which the step of the ratchet is stored, and no other.
	written := l.creds.written()
	for p := range l.checks {
		p.left = p.left || written > p.before
	}
	return nil
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

// wire is what the library takes for the network. When the connection is over it says so in Read alone, and late: the library's socket has
// no lock around the field that a send reads and the end of Read clears. A write that fails would have it closed at once as well.
type wire struct {
	link   *link
	conn   io.ReadWriteCloser
	ended  bool
	closed chan struct{} // the library has closed it
	once   sync.Once
}

// Write drops what may not leave and takes what cannot: the link is over then, and who waits for an answer hears that.
func (w *wire) Write(p []byte) (int, error) {
	if w.link.allow() == nil {
		if _, err := w.conn.Write(p); err != nil {
			w.link.close(errLost)
		}
	}
	return len(p), nil
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	w.link.close(errClosed)
	return nil
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.conn.Read(p)
	if err == nil || n > 0 {
		return n, err
	}
	if !w.ended {
		w.ended = true
		// The handshake may be over and its caller not know it yet: what is unreadable would then come before the last words.
		soon := time.NewTimer(lastWords)
		defer soon.Stop()
		select {
		case <-w.closed:
		case <-w.link.up:
			w.lastWords()
		case <-soon.C:
			if len(p) >= len(unreadable) {
				return copy(p, unreadable), nil
			}
		}
	}
	select {
	case <-w.closed:
	case <-w.link.quiet:
	}
	return 0, err
}

func (w *wire) lastWords() {
	t := time.NewTimer(lastWords)
	defer t.Stop()
	select {
	case <-t.C:
		w.link.close(errLost)
	case <-w.link.done:
	}
}

// unreadable is a WebSocket message that holds a frame of one byte: no answer to a handshake. The library waits for the answer for
// 20 seconds, with whatever context and even when the connection is gone; this ends that.
var unreadable = []byte{0x82, 4, 0, 0, 1, 0xff}
