package discordtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/coder/websocket"
)

// A session is what Discord keeps of a client, connected or not.
type session struct {
	id  string
	seq int64
	log []frame // every event, for a resume
	on  *conn
}

// A frame is one thing to be said on a connection.
type frame struct {
	op    int
	kind  string
	seq   int64
	data  any
	raw   string
	close int
}

// A conn is one WebSocket connection.
type conn struct {
	ws      *websocket.Conn
	out     chan frame
	cut     context.CancelFunc
	session *session
}

// cutLocked ends the connection without a word.
func (c *conn) cutLocked() { c.cut() }

// sendLocked never blocks: a client that reads nothing for so long is cut off.
func (c *conn) sendLocked(f frame) {
	select {
	case c.out <- f:
	default:
		c.cut()
	}
}

// dispatchLocked gives an event to every session, connected or not.
func (s *Server) dispatchLocked(kind string, data any) {
	for _, ses := range s.sessions {
		ses.dispatch(kind, data)
	}
}

func (ses *session) dispatch(kind string, data any) {
	ses.seq++
	f := frame{kind: kind, seq: ses.seq, data: data}
	ses.log = append(ses.log, f)
	if ses.on != nil {
		ses.on.sendLocked(f)
	}
}

func (s *Server) serveGateway(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	refuse, beat := s.lose, s.heartbeat
	s.mu.Unlock()
	if refuse {
		http.Error(w, "not now", http.StatusServiceUnavailable)
		return
	}
	ws, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	ws.SetReadLimit(1 << 16)
	ctx, cut := context.WithCancel(s.ctx)
	defer cut()
	c := &conn{ws: ws, out: make(chan frame, 4096), cut: cut}
	s.mu.Lock()
	s.conns[c] = true
	s.connects++
	c.sendLocked(frame{op: 10, data: map[string]any{"heartbeat_interval": beat.Milliseconds()}})
	s.mu.Unlock()
	s.work.Go(func() { c.write(ctx) })
	s.read(ctx, c)
	s.mu.Lock()
	delete(s.conns, c)
	if c.session != nil && c.session.on == c {
		c.session.on = nil
	}
	s.mu.Unlock()
	_ = ws.CloseNow()
}

func (c *conn) write(ctx context.Context) {
	defer c.cut()
	for {
		select {
		case <-ctx.Done():
			_ = c.ws.CloseNow()
			return
		case f := <-c.out:
			if f.close != 0 {
				_ = c.ws.Close(websocket.StatusCode(f.close), "the fake says so")
				return
			}
			b := []byte(f.raw)
			if f.raw == "" {
				b, _ = json.Marshal(map[string]any{"op": f.op, "t": null(f.kind), "s": null(f.seq), "d": f.data})
			}
			if c.ws.Write(ctx, websocket.MessageText, b) != nil {
				return
			}
		}
	}
}

// null is what Discord sends where there is nothing.
func null[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

// read takes what a client says until the connection ends.
func (s *Server) read(ctx context.Context, c *conn) {
	for {
		_, b, err := c.ws.Read(ctx)
		if err != nil {
			// A client that closes with 1000 or 1001 ends its session; one that is cut off can resume.
			if code := websocket.CloseStatus(err); code == websocket.StatusNormalClosure || code == websocket.StatusGoingAway {
				s.mu.Lock()
				if c.session != nil && c.session.on == c {
					delete(s.sessions, c.session.id)
				}
				s.mu.Unlock()
			}
			return
		}
		var m struct {
			Op int             `json:"op"`
			D  json.RawMessage `json:"d"`
		}
		s.mu.Lock()
		if json.Unmarshal(b, &m) != nil {
			c.sendLocked(frame{close: 4002})
		} else {
			s.takeLocked(c, m.Op, m.D)
		}
		s.mu.Unlock()
	}
}

func (s *Server) takeLocked(c *conn, op int, d json.RawMessage) {
	var hello struct {
		Token   string `json:"token"`
		Intents int    `json:"intents"`
		Session string `json:"session_id"`
		Seq     int64  `json:"seq"`
	}
	switch op {
	case 1:
		s.beats++
		var seq int64
		if ses := c.session; ses != nil && json.Unmarshal(d, &seq) == nil {
			ses.log = slices.DeleteFunc(ses.log, func(f frame) bool { return f.seq <= seq }) // what the client has need not be kept
		}
		if !s.deaf {
			c.sendLocked(frame{op: 11})
		}
		return
	case 2, 6:
		if json.Unmarshal(d, &hello) != nil {
			c.sendLocked(frame{close: 4002})
			return
		}
	default:
		c.sendLocked(frame{close: 4001})
		return
	}
	switch {
	case hello.Token != s.Token || s.revoked:
		c.sendLocked(frame{close: 4004})
	case s.code != 0:
		c.sendLocked(frame{close: s.code})
	case op == 2:
		s.identifyLocked(c)
	default:
		s.resumeLocked(c, hello.Session, hello.Seq)
	}
}

func (s *Server) identifyLocked(c *conn) {
	s.identifies++
	s.starts--
	ses := &session{id: "session-" + s.nextIDLocked(), on: c}
	s.sessions[ses.id], c.session = ses, ses
	ses.dispatch("READY", map[string]any{
		"v": 10, "user": User{ID: BotID, Username: "gatemesh", Bot: true}, "session_id": ses.id,
		"resume_gateway_url": s.wsURL(), "guilds": []any{map[string]any{"id": Guild, "unavailable": true}},
	})
	var rooms, threads []Channel
	for _, ch := range s.channels {
		switch ch.Type {
		case 0:
			rooms = append(rooms, *ch)
		case 11:
			threads = append(threads, *ch)
		}
	}
	ses.dispatch("GUILD_CREATE", map[string]any{"id": Guild, "name": "the guild", "channels": rooms, "threads": threads})
}

func (s *Server) resumeLocked(c *conn, id string, seq int64) {
	ses := s.sessions[id]
	if ses == nil {
		c.sendLocked(frame{op: 9, data: false})
		return
	}
	if seq > ses.seq {
		c.sendLocked(frame{close: 4007})
		return
	}
	if ses.on != nil && ses.on != c {
		ses.on.cutLocked() // a session has one connection
	}
	ses.on, c.session = c, ses
	s.resumes++
	for _, f := range ses.log {
		if f.seq > seq {
			c.sendLocked(f)
		}
	}
	ses.dispatch("RESUMED", map[string]any{})
}

func (s *Server) wsURL() string { return "ws" + s.URL[len("http"):] + "/gateway" }

// stamp is how Discord counts seconds in a rate limit.
func stamp(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
