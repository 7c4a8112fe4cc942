package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// raw is a connection on which a test says what it likes.
type raw struct {
	net.Conn
	t testing.TB
}

func (n *node) raw() *raw {
	n.t.Helper()
	var d net.Dialer
	c, err := d.DialContext(within(n.t), "tcp", n.Addr().String())
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(longest)); err != nil {
		n.t.Fatal(err)
	}
	return &raw{c, n.t}
}

func (c *raw) say(text string) *raw {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// answer is the status; 0: the connection was closed without one.
func (c *raw) answer() int {
	c.t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.t.Fatal("neither an answer nor an end")
	case err != nil:
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// closed waits for the end of the connection.
func (c *raw) closed() {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Error("the connection was left open")
	}
}

func TestDefaultLimits(t *testing.T) {
	l := defaultLimits
	if l.header <= 0 || l.header > time.Minute || l.request <= 0 || l.request > time.Minute || l.idle <= 0 || l.idle > 10*time.Minute || l.headerBytes > 1<<20 {
		t.Errorf("%+v", l)
	}
}

// What a client does too slowly, or too much of, ends its connection and nobody else's.
func TestLimits(t *testing.T) {
	start := func(l limits) *node {
		t.Helper()
		n := newNode(t, parseNode(t, "lone", nil, "secret-of-this-test", echoAgent("bobby")), Deps{Store: newStore(t)})
		n.limits = l
		if err := n.Start(within(t)); err != nil {
			t.Fatal(err)
		}
		n.waitAgent("bobby", "lone")
		return n
	}
	const short, long = 300 * time.Millisecond, time.Hour
	const host = "Host: 127.0.0.1\r\nAuthorization: Bearer secret-of-this-test\r\n"
	post := "POST /v1/messages HTTP/1.1\r\n" + host + "Content-Type: application/json\r\n"

	// Slow, from the first byte on. Each of the limits alone.
	n := start(limits{header: short, request: long, idle: long, headerBytes: defaultLimits.headerBytes})
	n.raw().closed()
	n.raw().say("GET /v1/agents HTTP/1.1\r\nHost: 127").closed()
	n = start(limits{header: long, request: short, idle: long, headerBytes: defaultLimits.headerBytes})
	n.raw().say(post + "Content-Length: 100\r\n\r\n{\"to\":").closed()
	n = start(limits{header: long, request: long, idle: short, headerBytes: defaultLimits.headerBytes})
	idle := n.raw().say("GET /health HTTP/1.1\r\n" + host + "\r\n")
	if got := idle.answer(); got != http.StatusOK {
		t.Errorf("before it idles: %d", got)
	}
	idle.closed()

	// Too much.
	n = start(defaultLimits)
	for what, tc := range map[string]struct {
		say  string
		want int
	}{
		"header":            {"GET /v1/agents HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 80<<10), http.StatusRequestHeaderFieldsTooLarge},
		"headers":           {"GET /v1/agents HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 20<<10), http.StatusRequestHeaderFieldsTooLarge},
		"path":              {"GET /" + strings.Repeat("x", 80<<10) + " HTTP/1.1\r\n" + host, http.StatusRequestHeaderFieldsTooLarge},
		"body, declared":    {post + "Content-Length: 1099511627776\r\n\r\n", http.StatusRequestEntityTooLarge},
		"body of an order":  {strings.Replace(post, "messages", "deadletters/purge", 1) + fmt.Sprintf("Content-Length: %d\r\n\r\n", MaxOrderBytes+1), http.StatusRequestEntityTooLarge},
		"body where none":   {"GET /v1/agents HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\nx", http.StatusRequestEntityTooLarge},
		"body, no token":    {strings.Replace(post, "secret-of", "wrong-one", 1) + "Content-Length: 1099511627776\r\n\r\n", http.StatusRequestEntityTooLarge},
		"body, no path":     {strings.Replace(post, "messages", "nothing", 1) + "Content-Length: 1099511627776\r\n\r\n", http.StatusRequestEntityTooLarge},
		"token":             {"GET /v1/agents HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + strings.Repeat("x", maxToken+1) + "\r\n\r\n", http.StatusUnauthorized},
		"two lengths":       {post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", http.StatusBadRequest},
		"length and chunks": {post + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", http.StatusBadRequest},
	} {
		c := n.raw()
		go func() { _, _ = io.WriteString(c, tc.say) }() // may be cut off
		if got := c.answer(); got != tc.want {
			t.Errorf("%s: %d, want %d", what, got, tc.want)
		}
		if tc.want == http.StatusRequestEntityTooLarge {
			c.closed()
		}
	}
	// A body without a length that does not end: answered when it is too long, and cut off.
	c := n.raw().say(post + "Transfer-Encoding: chunked\r\n\r\n" + "c\r\n{\"to\":\"bobby\r\n")
	over := make(chan struct{})
	go func() {
		defer close(over)
		chunk := "10000\r\n" + strings.Repeat("x", 1<<16) + "\r\n"
		for range 2 * MaxBodyBytes >> 16 {
			if _, err := io.WriteString(c, chunk); err != nil {
				return
			}
		}
		t.Error("all of an endless body was taken")
	}()
	if got := c.answer(); got != http.StatusRequestEntityTooLarge && got != 0 {
		t.Errorf("endless body: %d", got)
	}
	await(t, over, "the end of the sending")

	if st := n.ask("bobby", "still well?"); st.Text != "still well?" {
		t.Errorf("afterwards: %+v", st)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, ""), Deps{Store: newStore(t)})
	var there []*streamClient
	for range maxStreams {
		c, _, ok := n.hub.join(anyone, "", 0)
		if !ok {
			t.Fatalf("full with %d", len(there))
		}
		there = append(there, c)
	}
	_, resp, err := n.dial("", nil)
	if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one more: %v", err)
	}
	for _, c := range there {
		n.hub.leave(c)
	}
	n.stream("")
}
