package slacktest

import (
	"context"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
)

// maxConnections is how many Socket Mode connections an app may have.
const maxConnections = 10

// conn is a Socket Mode connection.
type conn struct {
	token string // the app token that it was opened with
	ws    *websocket.Conn
	out   chan []byte
	cut   context.CancelFunc
	raw   *pausable
}

// pausable is a connection that can stop taking anything in, as that of a process under SIGSTOP.
type pausable struct {
	net.Conn
	paused, closed chan struct{}
	pause, close   sync.Once
}

func (p *pausable) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	select {
	case <-p.paused:
		<-p.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

// Close implements net.Conn.
func (p *pausable) Close() error {
	p.close.Do(func() { close(p.closed) })
	return p.Conn.Close()
}

type pausableListener struct{ net.Listener }

func (l pausableListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &pausable{Conn: c, paused: make(chan struct{}), closed: make(chan struct{})}, nil
}

// connKey is where a request's context has its connection.
type connKey struct{}

func (s *Server) serveLink(w http.ResponseWriter, r *http.Request) {
	if f := s.fault("link"); f != nil {
		if f.Cut {
			panic(http.ErrAbortHandler)
		}
		http.Error(w, f.Body, f.Status)
		return
	}
	s.mu.Lock()
	token, known := s.tickets[r.FormValue("ticket")]
	delete(s.tickets, r.FormValue("ticket"))
	known = known && s.ctx.Err() == nil
	if known {
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if !known {
		http.Error(w, "invalid ticket", http.StatusForbidden)
		return
	}
	defer s.wg.Done()
	c := &conn{token: token, out: make(chan []byte, 4096), raw: r.Context().Value(connKey{}).(*pausable)}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // slack-go comes with the Origin of api.slack.com
	})
	if err != nil {
		return
	}
	defer func() { _ = ws.CloseNow() }()
	ctx, cut := context.WithCancel(s.ctx)
	defer cut()
	c.ws, c.cut = ws, cut
	if !s.join(c) {
		_ = ws.Close(websocket.StatusNormalClosure, "")
		return
	}
	defer s.leave(c)
	s.wg.Go(func() {
		defer cut()
		for {
			select {
			case <-ctx.Done():
				return
			case b := <-c.out:
				if ws.Write(ctx, websocket.MessageText, b) != nil {
					return
				}
			}
		}
	})
	for {
		_, b, err := ws.Read(ctx)
		if err != nil {
			return
		}
		s.heard(c, b)
	}
}

// join says hello, or why not.
func (s *Server) join(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connects++
	s.changeLocked()
	if len(s.conns)+s.foreign >= maxConnections {
		ctx, cancel := context.WithTimeout(s.ctx, time.Second)
		defer cancel()
		_ = c.ws.Write(ctx, websocket.MessageText, encode(answer{"type": "disconnect", "reason": "too_many_websockets", "debug_info": answer{"host": "fake"}}))
		return false
	}
	s.conns[c] = true
	c.send(answer{
		"type": "hello", "num_connections": len(s.conns) + s.foreign, "connection_info": answer{"app_id": App},
		"debug_info": answer{"host": "fake", "build_number": 1, "approximate_connection_time": 18060},
	})
	for _, e := range s.events {
		if !e.acked && !e.dropped && e.envelope == "" && e.timer == nil {
			s.deliverLocked(e)
		}
	}
	return true
}

// leave gives what was on a connection to the others.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	for _, e := range s.events {
		if e.last == c && e.envelope != "" && !e.acked {
			s.deliverLocked(e)
		}
	}
	s.changeLocked()
}

// deliverLocked sends an event to one connection, another one than before if it can; without any it waits for the next one.
func (s *Server) deliverLocked(e *event) {
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	e.envelope = ""
	candidates := slices.Collect(maps.Keys(s.conns))
	if len(candidates) > 1 {
		candidates = slices.DeleteFunc(candidates, func(c *conn) bool { return c == e.last })
	}
	if len(candidates) == 0 || s.ctx.Err() != nil {
		return
	}
	c := candidates[rand.N(len(candidates))]
	e.last, e.envelope = c, uuid.NewString()
	env := answer{
		"type": "events_api", "envelope_id": e.envelope, "accepts_response_payload": false, "retry_attempt": e.attempts, "retry_reason": "",
		"payload": answer{
			"token": "verification", "team_id": Team, "api_app_id": App, "type": "event_callback", "event_id": e.id,
			"event_time": time.Now().Unix(), "event": e.inner,
			"authorizations": []answer{{"team_id": Team, "user_id": BotUser, "is_bot": true}},
		},
	}
	if e.attempts > 0 {
		env["retry_reason"] = "timeout"
	}
	e.attempts++
	c.send(env)
	envelope := e.envelope
	e.timer = time.AfterFunc(s.cfg.AckWithin, func() { s.tooLate(e, envelope) })
}

// tooLate sends an event again after a pause, or gives it up.
func (s *Server) tooLate(e *event, envelope string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.acked || e.envelope != envelope || s.ctx.Err() != nil {
		return
	}
	e.envelope, e.timer = "", nil
	if e.late >= len(s.cfg.Retries) {
		e.dropped = true
	} else {
		e.timer = time.AfterFunc(s.cfg.Retries[e.late], func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !e.acked && e.envelope == "" {
				s.deliverLocked(e)
				s.changeLocked()
			}
		})
	}
	e.late++
	s.changeLocked()
}

// heard takes an acknowledgement. One that came too late counts for nothing.
func (s *Server) heard(c *conn, b []byte) {
	var ack struct {
		EnvelopeID string `json:"envelope_id"`
	}
	if json.Unmarshal(b, &ack) != nil || ack.EnvelopeID == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.envelope == ack.EnvelopeID && e.last == c {
			e.acked, e.envelope = true, ""
			e.timer.Stop()
			e.timer = nil
			s.changeLocked()
			return
		}
	}
}

func encode(a answer) []byte {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // maps of strings
	}
	return b
}

// send puts a message on its way; a connection that does not take them is cut.
func (c *conn) send(a answer) { c.say(encode(a)) }

func (c *conn) say(b []byte) {
	select {
	case c.out <- b:
	default:
		c.cut()
	}
}

// Connections counts the open connections; Connects all that were ever made.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Connects counts all connections that were ever made.
func (s *Server) Connects() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connects
}

// RevokeOld takes the tokens of before the last [Server.Rotate] back, and ends their connections.
func (s *Server) RevokeOld() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.tokens[:len(s.tokens)-1] {
		s.tokens[i].revoked = true
	}
	for c := range s.conns {
		if t, _ := s.tokensOfLocked(c.token); t.revoked {
			c.cut()
		}
	}
}

// ConnectionsOf counts the connections that were opened with an app token.
func (s *Server) ConnectionsOf(appToken string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.token == appToken {
			n++
		}
	}
	return n
}

// Cut ends all connections without a word.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.cut()
	}
}

// Disconnect asks all connections to leave: "warning", "refresh_requested", "link_disabled", "too_many_websockets".
func (s *Server) Disconnect(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.send(answer{"type": "disconnect", "reason": reason, "debug_info": answer{"host": "fake"}})
	}
}

// SendRaw says something on all connections.
func (s *Server) SendRaw(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.say([]byte(text))
	}
}

// Mute lets all open connections go on existing without taking anything in, as after a node or a NAT in between has died.
func (s *Server) Mute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.raw.pause.Do(func() { close(c.raw.paused) })
	}
}

// SetForeign sets how many connections others have that use the app's token. They take no events.
func (s *Server) SetForeign(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.foreign = n
}
