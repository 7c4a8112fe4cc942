package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/bus"
)

// parseChannels is parseNode with channels and bindings.
func parseChannels(t testing.TB, name string, extra config, agents ...config) *Config {
	t.Helper()
	c := config{
		"mesh":    config{"gateway": name, "store": "local", "policy": config{"default": "allow"}, "retry": config{"initial": "10ms", "max": "100ms"}},
		"gateway": config{"port": 0, "auth": config{"mode": "none"}}, "agents": config{"list": agents},
	}
	for k, v := range extra {
		c[k] = v
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cfg, _, err := ParseConfig(name+".json", b, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func (n *node) chat(conversation string, after uint64) *websocket.Conn {
	n.t.Helper()
	c, _, err := websocket.Dial(within(n.t), fmt.Sprintf("ws://%s/v1/webchat?conversation=%s&after=%d", n.Addr(), conversation, after), &websocket.DialOptions{HTTPClient: n.client, Subprotocols: []string{StreamProtocol}})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func say(t testing.TB, c *websocket.Conn, id, text string) {
	t.Helper()
	b, _ := json.Marshal(ChatSaid{ID: id, Text: text})
	if err := c.Write(within(t), websocket.MessageText, b); err != nil {
		t.Fatal(err)
	}
}

// entries reads until n entries have come.
func entries(t testing.TB, c *websocket.Conn, n int) (list []ChatEntry) {
	t.Helper()
	for len(list) < n {
		_, b, err := c.Read(within(t))
		if err != nil {
			t.Fatalf("after %v: %v", list, err)
		}
		var f ChatFrame
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatal(err)
		}
		if f.Refused != "" {
			t.Fatalf("refused: %s", f.Reason)
		}
		if f.Entry != nil {
			list = append(list, *f.Entry)
		}
	}
	return list
}

// A conversation is the same on every gateway, what is said twice is answered once, and it goes on when the account's owner stops.
func TestWebchat(t *testing.T) {
	s := newStore(t)
	bob := echoAgent("bob")
	bob["gateways"] = []string{"two"}
	extra := config{"channels": config{"webchat": config{}}}
	two := startNode(t, parseChannels(t, "two", extra, bob), Deps{Store: s})
	one := startNode(t, parseChannels(t, "one", extra, bob), Deps{Store: s})
	const conversation = "6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d01"
	const first, second = "6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d02", "6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d03"
	a, b := one.chat(conversation, 0), two.chat(conversation, 0)
	say(t, a, first, "hello")
	say(t, b, first, "hello") // as a page does that came back to another gateway
	for _, c := range []*websocket.Conn{a, b} {
		got := entries(t, c, 2)
		if got[0].Seq != 1 || got[0].ID != first || got[0].Who != "user" || got[1].Seq != 2 || got[1].Who != "agent" || got[1].Text != "hello" {
			t.Errorf("%+v", got)
		}
	}
	owner, other, oc := one, two, b
	if two.bus.Load().OwnerOf("channel-webchat-default") == "two" {
		owner, other, oc = two, one, a
	}
	if owner == two {
		// bob runs on two alone: let the account move without stopping it.
		other.do(http.MethodPost, "/v1/owners/channel-webchat-default/transfer", `{"to":"one"}`)
	} else if err := one.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	say(t, oc, second, "again")
	if got := entries(t, oc, 2); got[0].Seq != 3 || got[0].ID != second || got[1].Seq != 4 || got[1].Text != "again" {
		t.Errorf("%+v", got)
	}
	// Who comes back with what he shows already gets the rest.
	if got := entries(t, other.chat(conversation, 3), 1); got[0].Seq != 4 {
		t.Errorf("%+v", got)
	}
}

// script is an adapter whose posts do what the test says. It stands for a vendor here, because what is tested is what the pipeline
// makes of each outcome; the adapters' own tests have the wire.
type script struct {
	mu    sync.Mutex
	posts []Post
	in    chan Ingress
	post  func(n int, p Post) error
	find  func(p Post) (bool, error)
}

func (s *script) Run(ctx context.Context, in Ingress) error {
	in.Status(ChannelStatus{State: ChannelConnected, Self: "me"})
	select {
	case s.in <- in:
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

func (s *script) Post(_ context.Context, p Post) (Posted, error) {
	if err := p.Check(); err != nil {
		return Posted{}, NotSent(0, err)
	}
	s.mu.Lock()
	s.posts = append(s.posts, p)
	n := len(s.posts)
	s.mu.Unlock()
	if s.post != nil {
		if err := s.post(n, p); err != nil {
			return Posted{}, err
		}
	}
	return Posted{Ref: fmt.Sprint(n), At: time.Now()}, nil
}

func (s *script) texts() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.posts {
		list = append(list, p.Text)
	}
	return list
}

// finding is a script that can be asked.
type finding struct{ *script }

func (f finding) Find(_ context.Context, p Post) (Posted, bool, error) {
	ok, err := f.find(p)
	return Posted{Ref: "found"}, ok, err
}

func scripted(t testing.TB, s *script, extra config, agents ...config) (*node, Ingress) {
	t.Helper()
	s.in = make(chan Ingress, 8)
	f := ChannelFactory{Limits: ChannelLimits{Text: 20}, New: func(ChannelDeps) (Channel, error) {
		if s.find != nil {
			return finding{s}, nil
		}
		return s, nil
	}}
	c := config{"channels": config{"test": config{}}}
	for k, v := range extra {
		c[k] = v
	}
	n := startNode(t, parseChannels(t, "one", c, agents...), Deps{Store: newStore(t), Channels: map[string]ChannelFactory{"test": f}, Runners: runners(nil)})
	return n, await(t, s.in, "the connection")
}

// over waits for the end of the message of an event.
func (n *node) over(event string) bus.Track {
	n.t.Helper()
	out, err := n.accounts["channel-test-default"].outgoing(ChannelEvent{ID: event, Peer: ChannelPeer{PeerDM, "u"}})
	if err != nil {
		n.t.Fatal(err)
	}
	id := ""
	for _, st := range n.bus.Load().Recent(100) { // newest first: of duplicates the first one is handled
		if tr, _, ok := n.bus.Load().Track(st.MessageID); ok && tr.Envelope != nil && tr.Envelope.UniqueKey() == out.Task.UniqueKey {
			id = st.MessageID
		}
	}
	tr, err := n.bus.Load().Await(within(n.t), id, func(t bus.Track) bool { return t.Facts.Acked || t.Facts.Dead })
	if err != nil {
		n.t.Fatal(err)
	}
	return tr
}

func dm(id, text string) ChannelEvent {
	return ChannelEvent{ID: id, Message: "m" + id, Peer: ChannelPeer{PeerDM, "u"}, Sender: ChannelSender{ID: "u"}, Text: text, Mentioned: true}
}

// lostFirst loses sight of the first post.
func lostFirst(n int, _ Post) error {
	if n == 1 {
		return errors.New("lost")
	}
	return nil
}

func TestChannelOutcomes(t *testing.T) {
	for name, tc := range map[string]struct {
		post  func(n int, p Post) error
		find  func(p Post) (bool, error)
		texts string // of all attempts
		class string // of the dead letter; empty: acked
	}{
		"taken": {texts: "hello"},
		"not sent": {texts: "hello|hello", post: func(n int, _ Post) error {
			if n == 1 {
				return NotSent(0, errors.New("busy"))
			}
			return nil
		}},
		"rejected":             {texts: "hello", class: "undeliverable", post: func(int, Post) error { return Rejected(errors.New("no such room")) }},
		"lost, not asked":      {texts: "hello|note", class: "unknown", post: lostFirst},
		"lost, as is the note": {texts: "hello|note", class: "unknown", post: func(int, Post) error { return errors.New("lost") }},
		"lost, the note waits": {texts: "hello|note|note", class: "unknown", post: func(n int, _ Post) error {
			return []error{errors.New("lost"), NotSent(0, errors.New("busy")), nil}[n-1]
		}},
		"lost, no note allowed": {texts: "hello|note", class: "unknown", post: func(n int, _ Post) error { return []error{errors.New("lost"), Rejected(errors.New("left"))}[n-1] }},
		"lost, found": {texts: "hello", post: func(int, Post) error { return errors.New("lost") },
			find: func(Post) (bool, error) { return true, nil }},
		"lost, not there": {texts: "hello|hello", post: func(n int, _ Post) error {
			if n == 1 {
				return errors.New("lost")
			}
			return nil
		}, find: func(Post) (bool, error) { return false, nil }},
		"lost, cannot tell": {texts: "hello|note", class: "unknown", post: lostFirst,
			find: func(Post) (bool, error) { return false, fmt.Errorf("%w: too long ago", ErrCannotFind) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &script{post: tc.post, find: tc.find}
			n, in := scripted(t, s, nil, echoAgent("bob"))
			for range 2 { // redelivered
				if err := in.Accept(within(t), dm("1", "hello")); err != nil {
					t.Fatal(err)
				}
			}
			tr := n.over("1")
			note := fmt.Sprintf(unknownNote, tr.Envelope.MessageID)
			if got := strings.ReplaceAll(strings.Join(s.texts(), "|"), note, "note"); got != tc.texts || string(tr.Facts.Class) != tc.class {
				t.Errorf("posted %q, class %q (%s)", got, tr.Facts.Class, tr.Facts.Reason)
			}
			for _, p := range s.posts {
				if p.ID != s.posts[0].ID && p.Text != note {
					t.Error("another id for the same post")
				}
			}
		})
	}
}

// A long answer comes in parts, in order; nobody to answer is said in one line; what is not for the account is noted.
func TestChannelAnswers(t *testing.T) {
	s := &script{}
	n, in := scripted(t, s, config{"channels": config{"test": config{"allowFrom": []any{"u", 7}}}}, echoAgent("bob"))
	for _, e := range []ChannelEvent{
		dm("1", "one two three four five six seven"),
		{ID: "2", Peer: ChannelPeer{PeerDM, "u"}, Sender: ChannelSender{ID: "stranger"}, Text: "let me in"},
		{ID: "3", Peer: ChannelPeer{PeerChannel, "room"}, Sender: ChannelSender{ID: "u"}, Text: "not for you"},
	} {
		if err := in.Accept(within(t), e); err != nil {
			t.Fatal(err)
		}
		n.over(e.ID)
	}
	if got := strings.Join(s.texts(), "|"); got != "one two three four|five six seven" {
		t.Errorf("%q", got)
	}
	r := n.send(SendRequest{To: "channel-test-default", Payload: json.RawMessage(`{"to":{"peer":{"kind":"direct","id":"u"}},"text":"by myself"}`), Capability: CapabilityPost, Wait: WaitReplied, Timeout: longest.String()})
	if got := s.texts(); r.Reply == nil || got[len(got)-1] != "by myself" {
		t.Errorf("%+v %q", r, got)
	}
	var list ChannelsResponse
	n.do(http.MethodGet, "/v1/channels", "").into(t, &list)
	if len(list.Channels) != 1 || list.Channels[0].State != ChannelConnected || list.Channels[0].Self != "me" || list.Channels[0].LastPost.IsZero() {
		t.Errorf("%+v", list)
	}
	in.Foreign("from elsewhere")
	n.do(http.MethodGet, "/v1/channels", "").into(t, &list)
	if list.Channels[0].Foreign != "from elsewhere" || !strings.Contains(string(n.do(http.MethodGet, "/metrics", "").body), `gatemesh_channel_foreign_total{account="default",channel="test"} 1`) {
		t.Errorf("%+v", list)
	}
}

func TestChannelNoAnswer(t *testing.T) {
	s := &script{}
	n, in := scripted(t, s, nil)
	if err := in.Accept(within(t), dm("1", "anybody?")); err != nil {
		t.Fatal(err)
	}
	n.over("1")
	if got := strings.Join(s.texts(), " "); !strings.HasPrefix(got, "Sorry, there is no") {
		t.Errorf("%q", got)
	}
}

// What cannot be taken in ends the page's connection, so that what was said after it is not taken before it.
func TestWebchatKeepsTheOrder(t *testing.T) {
	bob := echoAgent("bob")
	bob["gateways"] = []string{"two"} // who is not there, so that the first one waits
	cfg := parseChannels(t, "one", config{"channels": config{"webchat": config{}}}, bob)
	cfg.Mesh.MaxInbox = 1
	one := startNode(t, cfg, Deps{Store: newStore(t)})
	const conversation = "6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d01"
	ids := []string{"6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d02", "6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d03", "6f1c7d52-9b1a-4c38-8f0e-2b9b9a3c1d04"}
	c := one.chat(conversation, 0)
	for _, id := range ids {
		say(t, c, id, id)
	}
	accepted, refused := "", ""
	for {
		_, b, err := c.Read(within(t))
		if err != nil {
			if code := websocket.CloseStatus(err); code != websocket.StatusTryAgainLater {
				t.Errorf("%v", err)
			}
			break
		}
		var f ChatFrame
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatal(err)
		}
		accepted += f.Accepted
		refused += f.Refused
	}
	if accepted != ids[0] || refused != ids[1] {
		t.Errorf("accepted %s, refused %s", accepted, refused)
	}
}
