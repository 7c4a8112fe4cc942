package discordtest

import "time"

// PostFault is what happens to a request: the first that is set counts.
type PostFault struct {
	// Status refuses it with this status and Code.
	Status int
	Code   int // Discord's own code
	// After and Global belong to status 429.
	After  time.Duration
	Global bool
	// Page says that the refusal is a web page, as of a proxy in between, not Discord's JSON.
	Page bool
	// Lose takes the post and cuts the connection before it says so.
	Lose bool
	// Garbage takes the post and answers what is no JSON.
	Garbage bool
	// Hang takes the post and does not answer before the client or the fake ends.
	Hang bool
}

// FailPosts makes the next posts fail, one fault each.
func (s *Server) FailPosts(f ...PostFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f...)
}

// FailReads makes the next readings of a history fail, one fault each.
func (s *Server) FailReads(f ...PostFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = append(s.reads, f...)
}

// Cut ends every open connection at once, without a close frame. The sessions can be resumed.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.cutLocked()
	}
}

// CloseAll ends every open connection with a close code.
func (s *Server) CloseAll(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.sendLocked(frame{close: code})
	}
}

// Forget ends all sessions: none can be resumed.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
}

// Invalidate says "invalid session" on every open connection (op 9).
func (s *Server) Invalidate(resumable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if !resumable && c.session != nil {
			delete(s.sessions, c.session.id)
		}
		c.sendLocked(frame{op: 9, data: resumable})
	}
}

// AskReconnect asks every client to connect anew and resume (op 7).
func (s *Server) AskReconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.sendLocked(frame{op: 7})
	}
}

// Raw says something on every open connection, as it is.
func (s *Server) Raw(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.sendLocked(frame{raw: text})
	}
}

// Revoke refuses the token from now on, connected or not.
func (s *Server) Revoke() {
	s.mu.Lock()
	s.revoked = true
	s.mu.Unlock()
	s.CloseAll(4004)
}

// RefuseWith closes every new connection with a code after its identify; 0 ends that.
func (s *Server) RefuseWith(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code = code
}

// Deafen leaves heartbeats without an answer, or ends that.
func (s *Server) Deafen(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = on
}

// Refuse takes no WebSocket connection (HTTP 503), or ends that.
func (s *Server) Refuse(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose = on
}
