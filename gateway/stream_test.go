package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/bus"
)

func TestStream(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, "secret", echoAgent("bobby")), Deps{Store: newStore(t)})
	live := n.stream("")
	st := n.ask("bobby", "hello")
	seen := map[string]StreamEvent{}
	var last uint64
	for seen[bus.EventReplied].Seq == 0 {
		ev := readEvent(t, live)
		if last != 0 && ev.Seq != last+1 {
			t.Errorf("seq %d after %d", ev.Seq, last)
		}
		last = ev.Seq
		if ev.MessageID == st.MessageID {
			seen[ev.Event.Event] = ev
		}
	}
	for _, name := range []string{bus.EventQueued, bus.EventDelivered, bus.EventAcked, bus.EventReplied} {
		if ev, ok := seen[name]; !ok || ev.Gateway != "lone" || ev.At.IsZero() {
			t.Errorf("%s: %+v", name, ev)
		}
	}
	if seen[bus.EventReplied].Text != "hello" {
		t.Errorf("text: %+v", seen[bus.EventReplied])
	}

	// Who comes later gets what was, in the same order, and only what they want.
	other := n.send(SendRequest{To: "bobby", Text: text("other"), Wait: WaitAcked})
	replay := n.stream("?replay=1000&message=" + st.MessageID)
	first := readEvent(t, replay)
	// Queued and delivered are made by two goroutines of one bus: either may come first.
	if first.MessageID != st.MessageID || first.Event.Event != bus.EventQueued && first.Event.Event != bus.EventDelivered {
		t.Errorf("replay begins with %+v", first)
	}
	for prev := first; prev.Event.Event != bus.EventReplied; {
		ev := readEvent(t, replay)
		if ev.Seq <= prev.Seq || ev.MessageID == other.MessageID {
			t.Errorf("replay: %+v after %+v", ev, prev)
		}
		prev = ev
	}
	if n := len(n.hubEvents(2)); n != 2 {
		t.Errorf("replay=2 gives %d", n)
	}
}

// hubEvents is what a client gets at once that asks for so many.
func (n *node) hubEvents(replay int) []StreamEvent {
	c, old, ok := n.hub.join(anyone, "", replay)
	if !ok {
		return nil
	}
	n.hub.leave(c)
	return old
}

func TestStreamRing(t *testing.T) {
	h := newHub()
	for range ringEvents + 10 {
		h.publish(bus.Event{Event: bus.EventQueued})
	}
	c, old, _ := h.join(anyone, "", ringEvents)
	h.leave(c)
	if len(old) != ringEvents || old[0].Seq != 11 || old[len(old)-1].Seq != ringEvents+10 {
		t.Errorf("%d events from %d to %d", len(old), old[0].Seq, old[len(old)-1].Seq)
	}
}

// A client that does not read is cut off; the others get everything.
func TestStreamSlowClient(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, ""), Deps{Store: newStore(t)})
	slow, fast := n.stream(""), n.stream("")
	big := strings.Repeat("x", maxEventText)
	readTo := func(c *websocket.Conn, seq uint64) {
		for readEvent(t, c).Seq < seq {
		}
	}
	// The kernel takes some megabytes before the stream has to wait for the client.
	for cut := uint64(0); cut == 0; _, cut = n.hub.stats() {
		for range clientEvents / 2 {
			n.hub.publish(bus.Event{Event: bus.EventReplied, Text: big})
		}
		n.hub.mu.Lock()
		seq := n.hub.seq
		n.hub.mu.Unlock()
		readTo(fast, seq)
	}
	var err error
	for err == nil {
		_, _, err = slow.Read(within(t))
	}
	if code := websocket.CloseStatus(err); code != websocket.StatusPolicyViolation || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("the slow client sees %v", err)
	}
	n.hub.publish(bus.Event{Event: bus.EventGap})
	if ev := readEvent(t, fast); ev.Event.Event != bus.EventGap {
		t.Errorf("the fast client sees %+v", ev)
	}
}

func TestStreamEndsWithGateway(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, ""), Deps{Store: newStore(t)})
	c := n.stream("")
	stopped := make(chan error, 1)
	go func() { stopped <- n.Stop(within(t)) }()
	var err error
	for err == nil {
		_, _, err = c.Read(within(t))
	}
	if websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the client sees %v", err)
	}
	if err := await(t, stopped, "the stop"); err != nil {
		t.Error(err)
	}
}

func TestStreamRefuses(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, "secret"), Deps{Store: newStore(t)})
	coded := StreamTokenPrefix + base64.RawURLEncoding.EncodeToString([]byte("secret"))
	bearer := http.Header{"Authorization": {"Bearer secret"}}
	foreign := http.Header{"Authorization": {"Bearer secret"}, "Origin": {"https://evil.example"}}
	own := http.Header{"Authorization": {"Bearer secret"}, "Origin": {"http://" + n.Addr().String()}}
	for name, tc := range map[string]struct {
		query  string
		opts   *websocket.DialOptions
		status int
	}{
		"header":         {"", &websocket.DialOptions{HTTPHeader: bearer}, 101},
		"subprotocol":    {"", &websocket.DialOptions{Subprotocols: []string{StreamProtocol, coded}}, 101},
		"own page":       {"", &websocket.DialOptions{HTTPHeader: own}, 101},
		"no token":       {"", &websocket.DialOptions{HTTPHeader: http.Header{}}, 401},
		"token in URL":   {"?token=secret", &websocket.DialOptions{HTTPHeader: http.Header{}}, 401},
		"wrong token":    {"", &websocket.DialOptions{Subprotocols: []string{StreamProtocol, coded + "x"}}, 401},
		"foreign origin": {"", &websocket.DialOptions{HTTPHeader: foreign}, 403},
		"bad replay":     {"?replay=1001", &websocket.DialOptions{HTTPHeader: bearer}, 400},
		"bad message":    {"?message=../x", &websocket.DialOptions{HTTPHeader: bearer}, 400},
	} {
		c, resp, err := n.dial(tc.query, tc.opts)
		if resp == nil || resp.StatusCode != tc.status {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if tc.status != 101 {
			continue
		}
		if p := c.Subprotocol(); p != "" && p != StreamProtocol {
			t.Errorf("%s: the token came back as subprotocol", name)
		}
		// Nothing is expected from a client.
		if err := c.Write(within(t), websocket.MessageText, []byte("hi")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for err == nil {
			_, _, err = c.Read(within(t))
		}
		if errors.Is(err, context.DeadlineExceeded) || websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
			t.Errorf("%s: a client that talks sees %v", name, err)
		}
	}
	// What is wrong with a handshake is said in our form, without what the client sent.
	r := n.do(http.MethodGet, "/v1/events", "", func(r *http.Request) {
		for k, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "a-token-that-slipped"} {
			r.Header.Set(k, v)
		}
	})
	if e := r.err(t); r.status != http.StatusBadRequest || e.Code != CodeInvalid || strings.Contains(string(r.body)+n.log.String(), "slipped") {
		t.Errorf("a bad handshake: %d %s", r.status, r.body)
	}
	if r := n.do(http.MethodGet, "/v1/events", ""); r.status != http.StatusBadRequest {
		t.Errorf("plain GET: %d", r.status)
	}
}
