package slacktest

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/google/uuid"
)

// File is a file that comes with a message.
type File struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Mimetype string `json:"mimetype"`
	Size     int    `json:"size"`
}

// Said is what somebody writes.
type Said struct {
	// Channel is where: a channel's id, or a person's for the direct messages with them.
	Channel string
	// User is who; default Alice, in direct messages their person.
	User string
	// Text is in Slack's notation. <@U01GATEMESH> mentions the app.
	Text string
	// Thread is the ts of the message it replies to.
	Thread string
	Files  []File
	// Bot says that another app wrote it.
	Bot bool
	// Metadata is the message's metadata, as JSON.
	Metadata string
}

// Key names the events of a message: its channel and ts, and the ts of the edit for those of an edit.
func Key(channel, ts, edited string) string {
	return strings.TrimSuffix(channel+":"+ts+":"+edited, ":")
}

// event is one event on its way to the app.
type event struct {
	id, key  string
	inner    answer
	attempts int // deliveries so far
	late     int // of them not acknowledged in time
	acked    bool
	dropped  bool
	envelope string // of the delivery that goes on
	last     *conn
	timer    *time.Timer
}

// Say lets somebody write a message, and returns its channel and ts.
func (s *Server) Say(said Said) (channel, ts string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.imLocked(said.Channel)
	m := &message{ts: s.stampLocked(), user: said.User, text: said.Text, thread: said.Thread, files: said.Files}
	if m.user == "" {
		m.user = Alice
		if c.user != "" {
			m.user = c.user
		}
	}
	if said.Metadata != "" {
		m.metadata = json.RawMessage(said.Metadata)
	}
	if said.Bot {
		m.bot = "B09OTHER"
	}
	c.add(m)
	s.announceLocked(c, m)
	s.changeLocked()
	return c.id, m.ts
}

// Edit lets the author change a message, and returns the edit's ts.
func (s *Server) Edit(channel, ts, text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[channel]
	m := c.find(ts)
	was := m.show(false)
	m.text, m.edited = text, s.stampLocked()
	s.changedMessageLocked(c, m, was)
	return m.edited
}

// Unfurl lets Slack unfold a link in a message: an event like an edit's, without one.
func (s *Server) Unfurl(channel, ts string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[channel]
	m := c.find(ts)
	s.changedMessageLocked(c, m, m.show(false))
}

func (s *Server) changedMessageLocked(c *channel, m *message, was answer) {
	now := s.stampLocked()
	s.emitLocked(Key(c.id, m.ts, m.edited), answer{
		"type": "message", "subtype": "message_changed", "hidden": true, "channel": c.id, "channel_type": c.kind,
		"ts": now, "event_ts": now, "message": m.show(false), "previous_message": was,
	})
	s.changeLocked()
}

// announceLocked makes the events of a new message.
func (s *Server) announceLocked(c *channel, m *message) {
	in := m.show(false)
	in["channel"], in["channel_type"], in["event_ts"], in["team"] = c.id, c.kind, m.ts, Team
	if len(m.files) > 0 {
		in["subtype"] = "file_share"
	}
	s.emitLocked(Key(c.id, m.ts, ""), in)
	if c.kind != KindIM && strings.Contains(m.text, "<@"+BotUser+">") {
		mention := m.show(false)
		mention["type"], mention["channel"], mention["event_ts"], mention["team"] = "app_mention", c.id, m.ts, Team
		s.emitLocked(Key(c.id, m.ts, ""), mention)
	}
}

// Emit sends an event of any kind.
func (s *Server) Emit(key string, inner map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.emitLocked(key, inner)
	s.changeLocked()
}

func (s *Server) emitLocked(key string, inner answer) {
	e := &event{id: "Ev" + strings.ToUpper(uuid.NewString()[24:]), key: key, inner: inner}
	s.events = append(s.events, e)
	s.deliverLocked(e)
}

// Redeliver sends the events of a message once more, acknowledged or not.
func (s *Server) Redeliver(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.key == key {
			e.acked, e.dropped = false, false
			s.deliverLocked(e)
		}
	}
	s.changeLocked()
}

// Acked reports whether all events of a message are acknowledged.
func (s *Server) Acked(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := false
	for _, e := range s.events {
		if e.key == key {
			found = true
			if !e.acked {
				return false
			}
		}
	}
	return found
}

// Deliveries counts how often the events of a message were sent.
func (s *Server) Deliveries(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.events {
		if e.key == key {
			n += e.attempts
		}
	}
	return n
}

// Lost counts the events that were given up.
func (s *Server) Lost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.events {
		if e.dropped {
			n++
		}
	}
	return n
}
