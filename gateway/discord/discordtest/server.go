package discordtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// NonceWindow is how long the fake returns the same message for the same nonce. Discord says "the past few minutes".
const NonceWindow = 3 * time.Minute

// The one guild of the fake, with its rooms, and the people in it.
const (
	Guild    = "700000000000000001"
	General  = "700000000000000002" // a text channel
	Ops      = "700000000000000003" // another
	Branch   = "700000000000000004" // a thread of General
	BotID    = "700000000000000010"
	Alice    = "700000000000000011"
	AliceDM  = "700000000000000012" // Alice's DM channel with the bot
	OtherBot = "700000000000000013"
)

// epoch is where Discord's ids begin to count milliseconds.
const epoch = 1420070400000

// User is a person or a bot.
type User struct {
	ID       string `json:"id"`
	Username string `json:"username"`
	Bot      bool   `json:"bot,omitempty"`
}

// Channel is a room, a thread or a DM.
type Channel struct {
	ID       string `json:"id"`
	Type     int    `json:"type"` // 0 text, 1 DM, 11 public thread
	GuildID  string `json:"guild_id,omitempty"`
	ParentID string `json:"parent_id,omitempty"`
	Name     string `json:"name,omitempty"`
	Last     string `json:"last_message_id,omitempty"`
	With     []User `json:"recipients,omitempty"`
}

// Reference is what a reply names.
type Reference struct {
	Message string `json:"message_id"`
	Channel string `json:"channel_id,omitempty"`
}

// Attachment is a file of a message.
type Attachment struct {
	ID   string `json:"id"`
	Name string `json:"filename"`
	Type string `json:"content_type,omitempty"`
	Size int    `json:"size"`
	URL  string `json:"url"`
}

// Message is a message as people see it.
type Message struct {
	ID        string       `json:"id"`
	Channel   string       `json:"channel_id"`
	Guild     string       `json:"guild_id,omitempty"`
	Type      int          `json:"type"`
	Content   string       `json:"content"`
	Author    User         `json:"author"`
	At        time.Time    `json:"timestamp"`
	Edited    *time.Time   `json:"edited_timestamp"`
	Mentions  []User       `json:"mentions"`
	Files     []Attachment `json:"attachments"`
	Reference *Reference   `json:"message_reference,omitempty"`
	WebhookID string       `json:"webhook_id,omitempty"`
	// Nonce is told in the event and in the answer to the post, never in a history.
	Nonce string `json:"nonce,omitempty"`
}

// Server is the fake. Its methods are for any goroutine.
type Server struct {
	// URL is its address, to be set as channels.discord.baseUrl.
	URL string
	// Token is the bot's.
	Token string

	web  *http.Server
	stop context.CancelFunc
	ctx  context.Context
	work sync.WaitGroup

	mu        sync.Mutex
	heartbeat time.Duration
	starts    int // identifies left
	lastID    int64
	channels  map[string]*Channel
	history   map[string][]*Message
	nonces    map[string]*Message
	reactions map[string]bool
	posted    []Message
	sessions  map[string]*session
	conns     map[*conn]bool
	connects  int
	requests  int
	beats     int
	identifies,
	resumes int
	faults  []PostFault
	reads   []PostFault
	revoked bool
	deaf    bool // acknowledges no heartbeat
	code    int  // close code for every new connection
	lose    bool // takes no connection
}

// New starts a fake with one guild, two rooms, a thread, and one person who may write to the bot.
func New(token string) (*Server, error) {
	ctx, stop := context.WithCancel(context.Background())
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		stop()
		return nil, fmt.Errorf("discordtest: %w", err)
	}
	s := &Server{
		URL: "http://" + l.Addr().String(), Token: token, ctx: ctx, stop: stop,
		heartbeat: 5 * time.Second, starts: 1000,
		channels: map[string]*Channel{
			General: {ID: General, GuildID: Guild, Name: "general"},
			Ops:     {ID: Ops, GuildID: Guild, Name: "ops"},
			Branch:  {ID: Branch, Type: 11, GuildID: Guild, ParentID: General, Name: "a thread"},
			AliceDM: {ID: AliceDM, Type: 1, With: []User{{ID: Alice, Username: "alice"}}},
		},
		history: map[string][]*Message{}, nonces: map[string]*Message{}, reactions: map[string]bool{},
		sessions: map[string]*session{}, conns: map[*conn]bool{},
	}
	s.web = &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	s.work.Go(func() { _ = s.web.Serve(l) })
	return s, nil
}

// Close ends it, with all connections. It waits.
func (s *Server) Close() error {
	s.stop()
	err := s.web.Close()
	s.work.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// nextIDLocked gives ids that grow, with the time in them as in Discord's.
func (s *Server) nextIDLocked() string {
	id := (time.Now().UnixMilli() - epoch) << 22
	s.lastID = max(s.lastID+1, id)
	return strconv.FormatInt(s.lastID, 10)
}

// Say lets somebody say something, and returns the message's id. What is empty is filled in: Alice says it, in General.
func (s *Server) Say(m Message) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sayLocked(m).ID
}

func (s *Server) sayLocked(m Message) *Message {
	if m.Channel == "" {
		m.Channel = General
	}
	if m.Author.ID == "" {
		m.Author = User{ID: Alice, Username: "alice"}
	}
	if m.ID == "" {
		m.ID = s.nextIDLocked()
	}
	if m.At.IsZero() {
		m.At = time.Now().UTC()
	}
	if m.Mentions == nil {
		m.Mentions = []User{}
	}
	if m.Files == nil {
		m.Files = []Attachment{}
	}
	if c := s.channels[m.Channel]; c != nil {
		m.Guild, c.Last = c.GuildID, m.ID
	}
	s.history[m.Channel] = append(s.history[m.Channel], &m)
	s.dispatchLocked("MESSAGE_CREATE", m)
	return &m
}

// Thread returns a thread of a room, and begins it when there is none of that id. Every client is told.
func (s *Server) Thread(id, parent string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels[id] == nil {
		c := &Channel{ID: id, Type: 11, GuildID: Guild, ParentID: parent, Name: "a thread"}
		s.channels[id] = c
		s.dispatchLocked("THREAD_CREATE", *c)
	}
	return id
}

// Parent is the room that a thread belongs to; empty for what is no thread.
func (s *Server) Parent(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.channels[id]; c != nil {
		return c.ParentID
	}
	return ""
}

// Edit changes what a message says, and returns the stamp of the edit.
func (s *Server) Edit(id, content string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UTC()
	for _, m := range s.findLocked(id) {
		m.Content, m.Edited = content, &now
		s.dispatchLocked("MESSAGE_UPDATE", *m)
	}
	return now
}

// Unfurl repeats a message as an update without an edit: Discord does it when it has a preview of a link.
func (s *Server) Unfurl(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.findLocked(id) {
		s.dispatchLocked("MESSAGE_UPDATE", *m)
	}
}

// Redeliver sends a message's event once more, to every session.
func (s *Server) Redeliver(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.findLocked(id) {
		s.dispatchLocked("MESSAGE_CREATE", *m)
	}
}

// findLocked returns the message of that id, or nothing.
func (s *Server) findLocked(id string) []*Message {
	for _, all := range s.history {
		for _, m := range all {
			if m.ID == id {
				return []*Message{m}
			}
		}
	}
	return nil
}

// Posted are the bot's messages in the order in which people see them.
func (s *Server) Posted() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Message(nil), s.posted...)
}

// Reacted reports whether the bot's reaction is on a message.
func (s *Server) Reacted(message string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reactions[message]
}

// Counts is what the fake has seen so far.
type Counts struct {
	Open       int // connections that are open
	Connects   int // connections ever made
	Identifies int
	Resumes    int // that succeeded
	Requests   int // attempts to post, those whose body came
	Beats      int // heartbeats
}

// Counts returns what it has seen so far.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Counts{Open: len(s.conns), Connects: s.connects, Identifies: s.identifies, Resumes: s.resumes, Requests: s.requests, Beats: s.beats}
}

// Starts sets how many new sessions the token may begin; a foreign client uses some up.
func (s *Server) Starts(change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starts += change
}

// Heartbeat sets the interval that new connections are told.
func (s *Server) Heartbeat(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heartbeat = d
}
