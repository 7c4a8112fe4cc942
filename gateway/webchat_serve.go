package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// maxChatClients bounds the pages that are open at one gateway.
	maxChatClients = 512
	// maxChatText bounds what a person says at once, in bytes.
	maxChatText = 16000
	// chatFrame bounds a frame from a page.
	chatFrame = 4*maxChatText + 1024
)

// ChatFrame is what GET /v1/webchat sends: one of an entry, a gap (what came between is not kept any more) and a refusal.
type ChatFrame struct {
	Entry *ChatEntry `json:"entry,omitempty"`
	Gap   bool       `json:"gap,omitempty"`
	// Accepted is the id of what is safe in the store; it comes as an entry when its turn is there.
	Accepted string `json:"accepted,omitempty"`
	// Refused is the id of what was not taken. Final: sending it again does not help.
	Refused string `json:"refused,omitempty"`
	Final   bool   `json:"final,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// ChatSaid is what a page sends. The same id is the same message, on whatever gateway and however often.
type ChatSaid struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

// chats are the pages that are open here.
type chats struct {
	g       *Gateway
	account *account // nil: no webchat here

	mu      sync.Mutex
	clients map[*chatClient]struct{}
	closed  bool
	wg      sync.WaitGroup
	life    context.Context
	end     context.CancelFunc
}

type chatClient struct {
	conversation string
	// wake carries wake-ups (capacity 1).
	wake chan struct{}
}

func newChats(g *Gateway) *chats {
	c := &chats{g: g, clients: map[*chatClient]struct{}{}}
	for _, a := range g.accounts {
		if a.cfg.Channel == webchatName && (c.account == nil || a.cfg.Default) {
			c.account = a
		}
	}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

// close sends the pages away; they go on at another gateway.
func (c *chats) close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	over := make(chan struct{})
	go func() {
		c.wg.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *chats) join(conversation string) (*chatClient, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.clients) >= maxChatClients {
		return nil, false
	}
	cl := &chatClient{conversation: conversation, wake: make(chan struct{}, 1)}
	c.clients[cl] = struct{}{}
	c.wg.Add(1)
	return cl, true
}

func (c *chats) leave(cl *chatClient) {
	c.mu.Lock()
	delete(c.clients, cl)
	c.mu.Unlock()
	c.wg.Done()
}

// follow wakes the pages whose conversations changed, whoever owns the account.
func (c *chats) follow() {
	b := c.g.bus.Load()
	if c.account == nil || b == nil {
		return
	}
	var seen uint64
	for c.g.life.Err() == nil {
		err := b.WatchRoom(c.g.life, c.account.inbox, bellName, func(entries []bus.RoomEntry) error {
			var now bell
			if len(entries) > 0 {
				_ = json.Unmarshal(entries[0].Value, &now)
			}
			missed := now.N - seen
			all := now.N < seen || missed > uint64(len(now.Changed))
			if all {
				missed = uint64(len(now.Changed))
			}
			seen = now.N
			c.ring(all, now.Changed[:missed])
			return nil
		})
		if err != nil && c.g.life.Err() == nil {
			c.g.log.Warn("watch the conversations; trying again", "error", err)
			_ = sleep(c.g.life, time.Second)
		}
	}
}

func (c *chats) ring(all bool, conversations []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for cl := range c.clients {
		if all || slices.Contains(conversations, cl.conversation) {
			select {
			case cl.wake <- struct{}{}:
			default:
			}
		}
	}
}

// parseConversation takes the id of a conversation on our own page: a UUID in its usual form.
func parseConversation(s string) (string, error) {
	if u, err := uuid.Parse(s); err != nil || u.String() != s {
		return "", errors.New("a conversation is named by a UUID in small letters")
	}
	return s, nil
}

// getWebchat is GET /v1/webchat.
func (g *Gateway) getWebchat(w http.ResponseWriter, r *http.Request) error {
	conversation, err := parseConversation(r.URL.Query().Get("conversation"))
	if err != nil {
		return badRequest("conversation", "%v", err)
	}
	after, err := strconv.ParseUint("0"+r.URL.Query().Get("after"), 10, 63)
	if err != nil {
		return badRequest("after", "after is the number of the last entry that the page shows")
	}
	if g.chats.account == nil {
		return &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: "this gateway has no webchat: set channels.webchat"}
	}
	if r.Header.Get("Upgrade") == "" {
		return badRequest("", "this is a WebSocket: connect with ws:// or wss://; the page is at /chat")
	}
	b, err := g.ready()
	if err != nil {
		return err
	}
	if g.cutOff() {
		return &APIError{status: http.StatusServiceUnavailable, Code: CodeNotReady, Message: "this gateway cannot reach its store now: try another one"}
	}
	who := callerOf(r)
	if e := g.guard.Load().checkListener(r); e != nil {
		g.denied(r, who, e)
		return e
	}
	cl, ok := g.chats.join(conversation)
	if !ok {
		return &APIError{status: http.StatusServiceUnavailable, Code: CodeBusy, Message: "too many chats are open here, or the gateway stops: try another one"}
	}
	defer g.chats.leave(cl)
	hs := &handshake{ResponseWriter: w}
	conn, err := websocket.Accept(hs, r, &websocket.AcceptOptions{Subprotocols: []string{StreamProtocol}, InsecureSkipVerify: true}) // checkListener has looked at the origin
	switch {
	case err == nil:
	case hs.code != 0:
		return &APIError{status: hs.code, Code: CodeInvalid, Message: "not a WebSocket's handshake: connect with ws:// or wss://"}
	default:
		return nil // the client is gone
	}
	conn.SetReadLimit(chatFrame)
	(&chatSession{g: g, b: b, conn: conn, cl: cl, who: who, last: after}).run()
	return nil
}

// chatSession is one open page.
type chatSession struct {
	g    *Gateway
	b    *bus.Bus
	conn *websocket.Conn
	cl   *chatClient
	who  *caller
	last uint64
}

func (s *chatSession) run() {
	ctx, cancel := context.WithCancel(s.g.chats.life)
	said := make(chan ChatSaid)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer cancel()
		for {
			_, data, err := s.conn.Read(ctx)
			var x ChatSaid
			if err != nil || json.Unmarshal(data, &x) != nil {
				return
			}
			select {
			case said <- x:
			case <-ctx.Done():
				return
			}
		}
	})
	reader.Go(func() {
		defer cancel()
		s.untilCutOff(ctx)
	})
	defer func() {
		if s.g.chats.life.Err() != nil {
			_ = s.conn.Close(websocket.StatusGoingAway, "the gateway stops")
		}
		cancel()
		_ = s.conn.CloseNow()
		reader.Wait()
	}()
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for err := s.show(ctx); err == nil; {
		select {
		case <-s.cl.wake:
			err = s.show(ctx)
		case x := <-said:
			f := s.take(ctx, x)
			if err = s.send(ctx, f); err == nil && f.Refused != "" && !f.Final {
				// What was said after it must not be taken before it: the page comes back, here or elsewhere, and says all of it again, in order.
				_ = s.conn.Close(websocket.StatusTryAgainLater, "say it again, and what came after it")
				return
			}
		case <-ping.C:
			if !s.holds() {
				_ = s.conn.Close(websocket.StatusPolicyViolation, "this token may not chat any more")
				return
			}
			pctx, end := context.WithTimeout(ctx, frameTimeout)
			err = s.conn.Ping(pctx)
			end()
		case <-ctx.Done():
			return
		}
	}
}

// untilCutOff ends the connection when nothing can be taken in here and nothing new be shown: the page may reach another gateway.
func (s *chatSession) untilCutOff(ctx context.Context) {
	t := time.NewTicker(reachEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if s.g.cutOff() {
				_ = s.conn.Close(websocket.StatusTryAgainLater, "this gateway cannot reach its store now: try another one")
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (s *chatSession) holds() bool {
	return s.g.guard.Load().holds(s.who) && !s.who.expired(time.Now())
}

// show sends what the page does not have yet.
func (s *chatSession) show(ctx context.Context) error {
	entries, err := s.b.Room(ctx, s.g.chats.account.inbox, chatPrefix+s.cl.conversation)
	if err != nil {
		return err
	}
	var tr transcript
	if len(entries) > 0 {
		if err := json.Unmarshal(entries[0].Value, &tr); err != nil {
			return err
		}
	}
	for _, e := range tr.Entries {
		if e.Seq <= s.last {
			continue
		}
		if e.Seq > s.last+1 {
			if err := s.send(ctx, ChatFrame{Gap: true}); err != nil {
				return err
			}
		}
		if err := s.send(ctx, ChatFrame{Entry: &e}); err != nil {
			return err
		}
		s.last = e.Seq
	}
	return nil
}

// take puts what somebody said into the bus.
func (s *chatSession) take(ctx context.Context, x ChatSaid) ChatFrame {
	refuse := func(final bool, format string, args ...any) ChatFrame {
		return ChatFrame{Refused: clipText(x.ID, 64), Final: final, Reason: fmt.Sprintf(format, args...)}
	}
	if _, err := parseConversation(x.ID); err != nil {
		return refuse(true, "a message is named by a UUID in small letters")
	}
	if strings.TrimSpace(x.Text) == "" || len(x.Text) > maxChatText {
		return refuse(true, "a message has 1 to %d bytes", maxChatText)
	}
	if !s.holds() {
		return refuse(false, "this token may not chat any more")
	}
	name := s.who.name
	if name == "" {
		name = DefaultFrom
	}
	a := s.g.chats.account
	out, err := a.outgoing(ChannelEvent{
		ID: s.cl.conversation + "/" + x.ID, Message: x.ID, Peer: ChannelPeer{Kind: PeerDM, ID: s.cl.conversation},
		Sender: ChannelSender{ID: name, Name: name}, Text: x.Text, Mentioned: true, At: envelope.At(time.Now()).Time,
	})
	if err == nil {
		sctx, cancel := context.WithTimeout(ctx, acceptTimeout)
		defer cancel()
		_, err = s.b.Send(sctx, out)
	}
	if err != nil {
		e, known := apiError(err)
		if !known {
			s.g.log.Error("take in a chat message", "error", err)
		}
		return refuse(errors.Is(err, envelope.ErrInvalid), "not accepted, it is sent again by itself: %s", e.Message)
	}
	a.g.metrics.channelEvents.WithLabelValues(a.cfg.Channel, a.cfg.ID).Inc()
	return ChatFrame{Accepted: x.ID}
}

func (s *chatSession) send(ctx context.Context, f ChatFrame) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, frameTimeout)
	defer cancel()
	return s.conn.Write(ctx, websocket.MessageText, b)
}
