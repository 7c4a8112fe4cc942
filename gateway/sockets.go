package gateway

import (
	"context"
	"net/http"
	"strings"
	"sync"
)

// maxSockets bounds the clients of OpenClaw's protocol that are connected to one gateway.
const maxSockets = 256

// openClawRoute is how the root is called, in metrics, when a WebSocket is asked for there.
const openClawRoute = "GET /{$} websocket"

// sockets are connections that a server of another protocol has taken over from the HTTP server.
type sockets struct {
	mu     sync.Mutex
	n      int
	closed bool
	wg     sync.WaitGroup
	life   context.Context
	end    context.CancelFunc
}

func newSockets() *sockets {
	s := &sockets{}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

func (s *sockets) join() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.n >= maxSockets {
		return false
	}
	s.n++
	s.wg.Add(1)
	return true
}

func (s *sockets) leave() {
	s.mu.Lock()
	s.n--
	s.mu.Unlock()
	s.wg.Done()
}

// close ends the connections, and waits for those who serve them.
func (s *sockets) close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	over := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wantsOpenClaw reports whether a request for the root is a client of OpenClaw's protocol; without an upgrade it is for the page.
func (g *Gateway) wantsOpenClaw(r *http.Request) bool {
	return g.deps.OpenClaw != nil && r.URL.Path == "/" && r.Method == http.MethodGet && strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// serveOpenClaw hands a connection over. Its client says who it is inside, so everybody may open one; what is asked there passes the API.
func (g *Gateway) serveOpenClaw(server http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e := g.guard.Load().checkListener(r); e != nil {
			g.denied(r, nil, e)
			g.writeError(w, r, e)
			return
		}
		if !g.sockets.join() {
			g.writeError(w, r, &APIError{status: http.StatusServiceUnavailable, Code: CodeBusy, Message: "too many clients are connected, or the gateway stops: try another one"})
			return
		}
		defer g.sockets.leave()
		server.ServeHTTP(w, r.WithContext(g.sockets.life))
	})
}
