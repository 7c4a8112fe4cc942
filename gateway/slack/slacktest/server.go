package slacktest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The workspace and its app.
const (
	Team    = "T01TEAM"
	App     = "A01APP"
	BotUser = "U01GATEMESH"
	BotName = "gatemesh"
	Bot     = "B01GATEMESH"
)

// What is there from the beginning. Each person has direct messages with the app.
const (
	Alice   = "U02ALICE"
	Bob     = "U03BOB"
	General = "C01GENERAL" // a public channel
	Private = "C02PRIVATE" // a private channel
	Talk    = "G03TALK"    // direct messages of several people
)

// Kinds of channels, as Slack's events call them.
const (
	KindChannel = "channel"
	KindPrivate = "group"
	KindIM      = "im"
	KindTalk    = "mpim"
)

// Config is how a fake behaves. The zero value is Slack's documented behaviour.
type Config struct {
	// AppToken and BotToken are the tokens that it takes; made up when empty.
	AppToken, BotToken string
	// AckWithin is how long a delivery may go without its acknowledgement; default 3 s.
	AckWithin time.Duration
	// Retries are the pauses before an event is sent again that was not acknowledged; after the last one it is
	// given up. Default: none, 1 min, 5 min.
	Retries []time.Duration
}

// Server is a fake Slack.
type Server struct {
	cfg    Config
	listen net.Listener
	http   *http.Server
	ctx    context.Context // ends when the server closes
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{} // closed at every change, and made anew
	lastTS   time.Time
	users    map[string]string // id to name
	channels map[string]*channel
	posts    []Post
	events   []*event
	conns    map[*conn]bool
	tickets  map[string]string // to the token that it was opened with
	tokens   []tokens          // the last are those of now
	refusal  string            // error code for everybody
	foreign  int
	connects int
	requests map[string]int
	faults   map[string][]Fault
}

type channel struct {
	id, kind, user string
	archived, left bool
	messages       []*message
}

// message is what lies in a channel.
type message struct {
	ts, user, bot, text, thread, edited string
	metadata                            json.RawMessage
	files                               []File
	reactions                           []string
	root                                bool // there are replies to it
}

// Post is a message of the app, as people see it.
type Post struct {
	Channel, User  string // User: in direct messages, the person
	TS, Thread     string
	Text, Metadata string
}

// Start starts a fake on a port of the loopback.
func Start(cfg Config) (*Server, error) {
	if cfg.AppToken == "" {
		cfg.AppToken = "xapp-1-" + uuid.NewString()
	}
	if cfg.BotToken == "" {
		cfg.BotToken = "xoxb-" + uuid.NewString()
	}
	if cfg.AckWithin == 0 {
		cfg.AckWithin = 3 * time.Second
	}
	if cfg.Retries == nil {
		cfg.Retries = []time.Duration{0, time.Minute, 5 * time.Minute}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("slacktest: %w", err)
	}
	s := &Server{
		cfg: cfg, listen: l, changed: make(chan struct{}), conns: map[*conn]bool{}, tickets: map[string]string{}, tokens: []tokens{{app: cfg.AppToken, bot: cfg.BotToken}},
		users: map[string]string{BotUser: BotName}, channels: map[string]*channel{}, requests: map[string]int{}, faults: map[string][]Fault{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.AddUser(Alice, "Alice")
	s.AddUser(Bob, "Bob")
	s.AddChannel(General, KindChannel)
	s.AddChannel(Private, KindPrivate)
	s.AddChannel(Talk, KindTalk)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/{method}", s.serveAPI)
	mux.HandleFunc("GET /link/", s.serveLink)
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: time.Minute, BaseContext: func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	s.wg.Go(func() { _ = s.http.Serve(pausableListener{l}) })
	return s, nil
}

// Close ends it and all its connections.
func (s *Server) Close() error {
	s.mu.Lock() // from now on nobody joins
	s.stop()
	s.mu.Unlock()
	err := s.http.Close()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// URL is the base of its Web API: channels.slack.apiUrl.
func (s *Server) URL() string { return "http://" + s.listen.Addr().String() + "/api/" }

// tokens are a pair that was given out.
type tokens struct {
	app, bot string
	revoked  bool
}

// AppToken and BotToken are the newest that it takes.
func (s *Server) AppToken() string { return s.newest().app }

// BotToken is the token of the Web API.
func (s *Server) BotToken() string { return s.newest().bot }

func (s *Server) newest() tokens {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[len(s.tokens)-1]
}

// Rotate gives out new tokens; those of before go on to count until [Server.RevokeOld].
func (s *Server) Rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = append(s.tokens, tokens{app: "xapp-1-" + uuid.NewString(), bot: "xoxb-" + uuid.NewString()})
}

func (s *Server) tokensOfLocked(token string) (tokens, bool) {
	for _, t := range s.tokens {
		if token == t.app || token == t.bot {
			return t, true
		}
	}
	return tokens{}, false
}

// Settings is the block channels.slack that points an adapter here.
func (s *Server) Settings() json.RawMessage {
	b, err := json.Marshal(map[string]string{"mode": "socket", "appToken": s.AppToken(), "botToken": s.BotToken(), "apiUrl": s.URL()})
	if err != nil {
		panic(err) // strings
	}
	return b
}

// Changed is closed at the next change of anything that can be asked of the server.
func (s *Server) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Until waits until ok holds; it is asked again at every change.
func (s *Server) Until(ctx context.Context, ok func() bool) error {
	for {
		changed := s.Changed()
		if ok() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Server) changeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// AddUser adds a person and the direct messages with them.
func (s *Server) AddUser(id, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[id] = name
	im := "D" + id[1:]
	s.channels[im] = &channel{id: im, kind: KindIM, user: id}
}

// AddChannel adds a channel that the app is in.
func (s *Server) AddChannel(id, kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels[id] = &channel{id: id, kind: kind}
}

// Archive archives a channel.
func (s *Server) Archive(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels[id].archived = true
}

// Leave takes the app out of a channel.
func (s *Server) Leave(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels[id].left = true
}

// Posts are the app's messages as people see them, oldest first.
func (s *Server) Posts() []Post {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Post(nil), s.posts...)
}

// PostsIn are those in one channel.
func (s *Server) PostsIn(channel string) []Post {
	var in []Post
	for _, p := range s.Posts() {
		if p.Channel == channel {
			in = append(in, p)
		}
	}
	return in
}

// Reactions are the app's reactions to a message.
func (s *Server) Reactions(channel, ts string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.channels[channel].find(ts); m != nil {
		return append([]string(nil), m.reactions...)
	}
	return nil
}

// Requests counts the calls of a method, whatever they were answered.
func (s *Server) Requests(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[method]
}

func (c *channel) add(m *message) {
	c.messages = append(c.messages, m)
	if root := c.find(m.thread); root != nil {
		root.root = true
	}
}

func (c *channel) find(ts string) *message {
	if c == nil {
		return nil
	}
	for _, m := range c.messages {
		if m.ts == ts {
			return m
		}
	}
	return nil
}

// stampLocked is a new message's id: Slack's are unique in their channel; these are in the workspace.
func (s *Server) stampLocked() string {
	now := time.Now().Truncate(time.Microsecond)
	if !now.After(s.lastTS) {
		now = s.lastTS.Add(time.Microsecond)
	}
	s.lastTS = now
	return fmt.Sprintf("%d.%06d", now.Unix(), now.Nanosecond()/1000)
}

// imLocked is the channel that an id stands for: of a person, the direct messages with them.
func (s *Server) imLocked(id string) *channel {
	if strings.HasPrefix(id, "U") {
		id = "D" + id[1:]
	}
	return s.channels[id]
}
