package discord

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/discord/discordtest"
)

func TestPost(t *testing.T) {
	for name, tc := range map[string]struct {
		to   gateway.PostTarget
		room string
	}{
		"room":   {gateway.PostTarget{Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: discordtest.Ops}}, discordtest.Ops},
		"thread": {gateway.PostTarget{Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: discordtest.General}, Thread: discordtest.Branch}, discordtest.Branch},
		"dm":     {gateway.PostTarget{Peer: gateway.ChannelPeer{Kind: gateway.PeerDM, ID: discordtest.Alice}}, discordtest.AliceDM},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			c := b.open()
			p := newPost("hello @everyone")
			p.To = tc.to
			p.To.Message = b.fake.Say(discordtest.Message{Channel: tc.room, Content: "question"})
			first, err := c.Post(within(t), p)
			if err != nil {
				t.Fatal(err)
			}
			again, err := b.open().Post(within(t), p) // another owner, the same post
			if err != nil || again.Ref != first.Ref || first.Ref == "" || first.At.IsZero() {
				t.Errorf("first %+v, again %+v, %v: want the same message", first, again, err)
			}
			seen := b.fake.Posted()
			if len(seen) != 1 || seen[0].ID != first.Ref || seen[0].Channel != tc.room || seen[0].Content != p.Text {
				t.Fatalf("people see %+v", seen)
			}
			if ref := seen[0].Reference; ref == nil || ref.Message != p.To.Message {
				t.Errorf("it answers %+v, want %s", ref, p.To.Message)
			}
		})
	}
}

// What each answer of Discord's means for a post.
func TestPostOutcomes(t *testing.T) {
	const (
		notSent  = "not sent"
		rejected = "rejected"
		bad      = "bad credentials"
		unknown  = "unknown"
	)
	for name, tc := range map[string]struct {
		fault discordtest.PostFault
		want  string
		seen  int // messages that people see
	}{
		"rate limit":            {discordtest.PostFault{Status: 429, After: 1500 * time.Millisecond}, notSent, 0},
		"global rate limit":     {discordtest.PostFault{Status: 429, After: 1500 * time.Millisecond, Global: true}, notSent, 0},
		"rate limit of a proxy": {discordtest.PostFault{Status: 429, After: 1500 * time.Millisecond, Page: true}, notSent, 0},
		"missing access":        {discordtest.PostFault{Status: 403, Code: 50001}, rejected, 0},
		"missing permissions":   {discordtest.PostFault{Status: 403, Code: 50013}, rejected, 0},
		"closed DM":             {discordtest.PostFault{Status: 403, Code: 50007}, rejected, 0},
		"unknown channel":       {discordtest.PostFault{Status: 404, Code: 10003}, rejected, 0},
		"made, then deleted":    {discordtest.PostFault{Status: 404, Code: 10008}, unknown, 0},
		"bad form":              {discordtest.PostFault{Status: 400, Code: 50035}, rejected, 0},
		"a page of a proxy":     {discordtest.PostFault{Status: 403, Page: true}, notSent, 0},
		"unauthorized":          {discordtest.PostFault{Status: 401}, bad, 0},
		"timed out":             {discordtest.PostFault{Status: 408}, unknown, 0},
		"500":                   {discordtest.PostFault{Status: 500}, unknown, 0},
		"502":                   {discordtest.PostFault{Status: 502, Page: true}, unknown, 0},
		"503":                   {discordtest.PostFault{Status: 503}, unknown, 0},
		"lost reply":            {discordtest.PostFault{Lose: true}, unknown, 1},
		"garbage":               {discordtest.PostFault{Garbage: true}, unknown, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.fake.FailPosts(tc.fault)
			p := newPost("hello")
			checks := 0
			p.Check = func() error { checks++; return nil }
			_, err := b.open().Post(within(t), p)
			if err == nil {
				t.Fatal("no error")
			}
			var ns *gateway.NotSentError
			got := unknown
			switch {
			case errors.As(err, &ns):
				got = notSent
			case gateway.IsRejected(err):
				got = rejected
			case gateway.IsBadCredentials(err):
				got = bad
			}
			if got != tc.want {
				t.Errorf("%v: taken for %s, want %s", err, got, tc.want)
			}
			if ns != nil && (ns.After < tc.fault.After || ns.After > 2*tc.fault.After) {
				t.Errorf("again after %v, want %v", ns.After, tc.fault.After)
			}
			b.noSecret(fmt.Sprintf("%v %+v %#v", err, err, err))
			if n := b.fake.Counts().Requests; n != 1 || checks != 1 {
				t.Errorf("%d requests after %d checks, want 1 after 1: nothing is retried behind the check", n, checks)
			}
			if n := len(b.fake.Posted()); n != tc.seen {
				t.Errorf("people see %d messages, want %d", n, tc.seen)
			}
		})
	}
}

// A limit that is not over costs no request and no waiting.
func TestRateLimitIsKept(t *testing.T) {
	for _, global := range []bool{false, true} {
		t.Run(fmt.Sprint("global ", global), func(t *testing.T) {
			b := newBed(t)
			c := b.open()
			b.fake.FailPosts(discordtest.PostFault{Status: 429, After: time.Hour, Global: global})
			p := newPost("hello")
			if _, err := c.Post(within(t), p); err == nil {
				t.Fatal("no error")
			}
			if global {
				p.To.Peer.ID = discordtest.Ops // every room is meant
			}
			_, err := c.Post(within(t), p)
			var ns *gateway.NotSentError
			if !errors.As(err, &ns) || ns.After < 59*time.Minute {
				t.Errorf("%v: want not sent, and again in an hour", err)
			}
			if n := b.fake.Counts().Requests; n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
		})
	}
}

func TestCheckStopsThePost(t *testing.T) {
	b := newBed(t)
	c := b.open()
	deposed := errors.New("deposed")
	p := newPost("hello")
	connected := false
	p.Check = func() error { return deposed }
	_, err := c.Post(within(t), p)
	var ns *gateway.NotSentError
	if !errors.As(err, &ns) {
		t.Errorf("%v: want not sent", err)
	}
	if n := len(b.fake.Posted()); n != 0 {
		t.Errorf("people see %d messages, want none", n)
	}
	// The check comes after the dialling: a slow network does not make it stale.
	tr := c.rest.Client.Transport.(wire).next.(*http.Transport)
	tr.CloseIdleConnections()
	dial := tr.DialContext
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		connected = err == nil
		return conn, err
	}
	p.Check = func() error {
		if !connected {
			t.Error("the check came before the connection")
		}
		return nil
	}
	if _, err := c.Post(within(t), p); err != nil {
		t.Error(err)
	}
}

func TestPostWithoutANetwork(t *testing.T) {
	b := newBed(t)
	c := b.open()
	_ = b.fake.Close()
	_, err := c.Post(within(t), newPost("hello"))
	var ns *gateway.NotSentError
	if !errors.As(err, &ns) {
		t.Errorf("%v: want not sent", err)
	}
}

// An answer that does not come leaves the post unknown; asked by its nonce, Discord tells.
func TestSlowPost(t *testing.T) {
	b := newBed(t)
	c := b.open()
	b.fake.FailPosts(discordtest.PostFault{Hang: true})
	p := newPost("hello")
	ctx, cancel := context.WithCancel(within(t))
	go func() {
		eventually(t, "the post", func() bool { return len(b.fake.Posted()) == 1 })
		cancel()
	}()
	_, err := c.Post(ctx, p)
	var ns *gateway.NotSentError
	if err == nil || errors.As(err, &ns) || gateway.IsRejected(err) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v: want unknown, for the context ended", err)
	}
	got, ok, err := b.open().Find(within(t), p)
	if err != nil || !ok || got.Ref != b.fake.Posted()[0].ID || len(b.fake.Posted()) != 1 {
		t.Errorf("%+v, %v, %v: want the one message", got, ok, err)
	}
}

func TestFind(t *testing.T) {
	long := time.Now().Add(-time.Hour)
	t.Run("not made yet, by its nonce", func(t *testing.T) {
		b := newBed(t)
		p := newPost("hello")
		got, ok, err := b.open().Find(within(t), p)
		if err != nil || !ok || len(b.fake.Posted()) != 1 || got.Ref != b.fake.Posted()[0].ID {
			t.Errorf("%+v, %v, %v: want it made", got, ok, err)
		}
	})
	t.Run("refused when asked by its nonce", func(t *testing.T) {
		b := newBed(t)
		b.fake.FailPosts(discordtest.PostFault{Status: 403, Code: 50001})
		_, ok, err := b.open().Find(within(t), newPost("hello"))
		if err == nil || ok || gateway.IsRejected(err) {
			t.Errorf("%v, %v: want unknown: the refusal is of this attempt", ok, err)
		}
	})
	t.Run("not now, by its nonce", func(t *testing.T) {
		b := newBed(t)
		b.fake.FailPosts(discordtest.PostFault{Status: 429, After: 7 * time.Second})
		_, ok, err := b.open().Find(within(t), newPost("hello"))
		var later *gateway.NotSentError
		if ok || !errors.As(err, &later) || later.After < 6*time.Second {
			t.Errorf("%v, %v: want to ask again when Discord wants", ok, err)
		}
	})
	t.Run("seen by this gateway", func(t *testing.T) {
		b := newBed(t)
		r := b.connected()
		p := newPost("hello")
		p.Since = long
		made, err := b.open().Post(within(t), p)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the post's event", func() bool { return r.sent.known(made.Ref) })
		b.fake.ForgetNonces()
		got, ok, err := r.Find(within(t), p)
		if err != nil || !ok || got.Ref != made.Ref || len(b.fake.Posted()) != 1 {
			t.Errorf("%+v, %v, %v: want %s", got, ok, err, made.Ref)
		}
	})
	t.Run("long ago, nothing there", func(t *testing.T) {
		b := newBed(t)
		say(b, "somebody else")
		p := newPost("hello")
		p.Since = long
		_, ok, err := b.open().Find(within(t), p)
		if err != nil || ok || b.fake.Counts().Requests != 0 {
			t.Errorf("%v, %v: want that there is none, without a post", ok, err)
		}
	})
	t.Run("long ago, may be it", func(t *testing.T) {
		b := newBed(t)
		p := newPost("hello")
		p.Since = long
		if _, err := b.open().Post(within(t), p); err != nil {
			t.Fatal(err)
		}
		_, ok, err := b.open().Find(within(t), p)
		if !errors.Is(err, gateway.ErrCannotFind) || ok || len(b.fake.Posted()) != 1 {
			t.Errorf("%v, %v: want unknown for good", ok, err)
		}
	})
	t.Run("long ago, only what is known", func(t *testing.T) {
		b := newBed(t)
		c := b.open()
		if _, err := c.Post(within(t), newPost("hello")); err != nil {
			t.Fatal(err)
		}
		p := newPost("hello")
		p.Since = long
		if _, ok, err := c.Find(within(t), p); err != nil || ok {
			t.Errorf("%v, %v: want that there is none: the other one's nonce is known", ok, err)
		}
	})
	t.Run("long ago, another answer", func(t *testing.T) {
		b := newBed(t)
		other := newPost("hello")
		other.To.Message = say(b, "another question")
		if _, err := b.open().Post(within(t), other); err != nil {
			t.Fatal(err)
		}
		p := newPost("hello")
		p.Since, p.To.Message = long, say(b, "the question")
		_, ok, err := b.open().Find(within(t), p)
		if err != nil || ok {
			t.Errorf("%v, %v: want that there is none: that one answers another message", ok, err)
		}
	})
	t.Run("history not to be read", func(t *testing.T) {
		b := newBed(t)
		b.fake.FailReads(discordtest.PostFault{Status: 403, Code: 50001})
		p := newPost("hello")
		p.Since = long
		if _, ok, err := b.open().Find(within(t), p); !errors.Is(err, gateway.ErrCannotFind) || ok {
			t.Errorf("%v, %v: want unknown for good", ok, err)
		}
	})
}

func TestReact(t *testing.T) {
	b := newBed(t)
	c := b.open()
	id := say(b, "please")
	to := gateway.PostTarget{Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: discordtest.General}, Message: id}
	for _, on := range []bool{true, true, false, false} {
		if err := c.React(within(t), to, on); err != nil || b.fake.Reacted(id) != on {
			t.Errorf("%v: reacted %v, want %v", err, b.fake.Reacted(id), on)
		}
	}
	to.Peer.ID = "404"
	if err := c.React(within(t), to, true); err == nil {
		t.Error("no error in a room that is not there")
	} else {
		b.noSecret(err.Error())
	}
}

func TestNonce(t *testing.T) {
	n, err := nonceOf("0190b3c4-7e1f-7a3b-8c4d-0123456789ab")
	if err != nil || len(n) > 25 || !ours(n) {
		t.Errorf("%q, %v", n, err)
	}
	for _, foreign := range []string{"", "gm", "123456789012345678", strings.ToUpper(n), n[2:]} {
		if ours(foreign) {
			t.Errorf("%q is taken for ours", foreign)
		}
	}
	if _, err := newBed(t).open().Post(within(t), gateway.Post{ID: "no uuid", Check: allowed}); !gateway.IsRejected(err) {
		t.Errorf("%v: want rejected", err)
	}
}
