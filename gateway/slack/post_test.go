package slack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
)

// to is where a post goes in these tests.
func to(kind, id, thread string) gateway.PostTarget {
	return gateway.PostTarget{Peer: gateway.ChannelPeer{Kind: kind, ID: id}, Thread: thread}
}

var general = to(gateway.PeerChannel, slacktest.General, "")

// outcome is what an error of Post says.
func outcome(err error) string {
	var ns *gateway.NotSentError
	switch {
	case err == nil:
		return "sent"
	case errors.As(err, &ns):
		return "not sent, after " + ns.After.String()
	case gateway.IsRejected(err):
		return "rejected"
	case gateway.IsBadCredentials(err):
		return "bad credentials"
	}
	return "unknown"
}

func TestPost(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick())
	_, root := s.Say(slacktest.Said{Channel: slacktest.General, Text: "root"})
	for name, c := range map[string]struct {
		to   gateway.PostTarget
		want slacktest.Post
	}{
		"channel": {general, slacktest.Post{Channel: slacktest.General}},
		"thread":  {to(gateway.PeerChannel, slacktest.General, root), slacktest.Post{Channel: slacktest.General, Thread: root}},
		"person":  {to(gateway.PeerDM, slacktest.Bob, ""), slacktest.Post{Channel: "D03BOB", User: slacktest.Bob}},
		"several": {to(gateway.PeerGroup, slacktest.Talk, ""), slacktest.Post{Channel: slacktest.Talk}},
	} {
		t.Run(name, func(t *testing.T) {
			n, checks := len(s.Posts()), 0
			got, err := b.Post(within(t), gateway.Post{ID: "id of " + name, To: c.to, Text: "**a** <b>", Check: func() error { checks++; return nil }})
			if err != nil {
				t.Fatal(err)
			}
			want := c.want
			want.TS, want.Text = got.Ref, "*a* &lt;b&gt;"
			want.Metadata = `{"event_type":"gatemesh_post","event_payload":{"post_id":"id of ` + name + `"}}`
			if p := s.Posts(); len(p) != n+1 || p[n] != want {
				t.Errorf("people see %+v, not %+v", p[n:], want)
			}
			if checks != 1 || got.At.IsZero() || !got.At.Equal(stamp(got.Ref)) {
				t.Errorf("checks %d, posted %+v", checks, got)
			}
		})
	}
}

// What an error says of the post is true, for every answer that Slack and what is in between may give.
func TestOutcomes(t *testing.T) {
	code := func(c string) slacktest.Fault { return slacktest.Fault{Code: c} }
	for name, c := range map[string]struct {
		fault slacktest.Fault
		want  string
		seen  int // posts that people see
	}{
		"rate limit":           {slacktest.Fault{Status: 429, RetryAfter: 7}, "not sent, after 7s", 0},
		"rate limit, untold":   {slacktest.Fault{Status: 429}, "not sent, after 0s", 0},
		"ratelimited":          {code("ratelimited"), "not sent, after 0s", 0},
		"channel_not_found":    {code("channel_not_found"), "rejected", 0},
		"not_in_channel":       {code("not_in_channel"), "rejected", 0},
		"is_archived":          {code("is_archived"), "rejected", 0},
		"msg_too_long":         {code("msg_too_long"), "rejected", 0},
		"code of next year":    {code("of_next_year"), "rejected", 0},
		"invalid_auth":         {code("invalid_auth"), "bad credentials", 0},
		"token_revoked":        {code("token_revoked"), "bad credentials", 0},
		"missing_scope":        {slacktest.Fault{Code: "missing_scope", Needed: "chat:write"}, "bad credentials", 0},
		"fatal_error":          {slacktest.Fault{Code: "fatal_error", Applied: true}, "unknown", 1},
		"internal_error":       {code("internal_error"), "unknown", 0},
		"500":                  {slacktest.Fault{Status: 500, Body: "<html>"}, "unknown", 0},
		"503, taken":           {slacktest.Fault{Status: 503, Applied: true}, "unknown", 1},
		"400":                  {slacktest.Fault{Status: 400}, "not sent, after 0s", 0},
		"401":                  {slacktest.Fault{Status: 401}, "not sent, after 0s", 0},
		"403":                  {slacktest.Fault{Status: 403}, "not sent, after 0s", 0},
		"404":                  {slacktest.Fault{Status: 404}, "not sent, after 0s", 0},
		"408":                  {slacktest.Fault{Status: 408}, "unknown", 0},
		"302":                  {slacktest.Fault{Status: 302}, "not sent, after 0s", 0},
		"garbage":              {slacktest.Fault{Body: "}{"}, "unknown", 0},
		"garbage, taken":       {slacktest.Fault{Body: "<html>", Applied: true}, "unknown", 1},
		"nothing of Slack's":   {slacktest.Fault{Body: "{}"}, "unknown", 0},
		"not ok, no reason":    {slacktest.Fault{Body: `{"ok":false}`}, "unknown", 0},
		"reply lost":           {slacktest.Fault{Applied: true, Cut: true}, "unknown", 1},
		"connection cut":       {slacktest.Fault{Cut: true}, "unknown", 0},
		"slow, then all right": {slacktest.Fault{Delay: 30 * time.Millisecond}, "sent", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSlack(t, slacktest.Config{})
			b := newBot(t, s.Settings(), quick())
			s.Fail("chat.postMessage", c.fault)
			_, err := b.Post(within(t), gateway.Post{ID: "p", To: general, Text: "x"})
			if got := outcome(err); got != c.want {
				t.Errorf("%s, not %s: %v", got, c.want, err)
			}
			if n, asked := len(s.Posts()), s.Requests("chat.postMessage"); n != c.seen || asked != 1 {
				t.Errorf("people see %d posts after %d requests", n, asked)
			}
			if err != nil {
				noSecret(t, s, err.Error()+b.log.String())
			}
		})
	}
}

func TestOutcomesWithoutAnAnswer(t *testing.T) {
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		b := newBot(t, json.RawMessage(`{"appToken":"xapp-a","botToken":"xoxb-b","apiUrl":"http://`+l.Addr().String()+`/api"}`), quick())
		checked := false
		_, err = b.Post(within(t), gateway.Post{ID: "p", To: general, Text: "x", Check: func() error { checked = true; return nil }})
		if outcome(err) != "not sent, after 0s" || checked {
			t.Errorf("checked before anything could leave: %t; %v", checked, err)
		}
	})
	t.Run("no patience", func(t *testing.T) {
		s := newSlack(t, slacktest.Config{})
		b := newBot(t, s.Settings(), quick())
		s.Fail("chat.postMessage", slacktest.Fault{Hang: true, Applied: true})
		ctx, cancel := context.WithCancel(within(t))
		go func() {
			_ = s.Until(within(t), func() bool { return len(s.Posts()) == 1 })
			cancel()
		}()
		_, err := b.Post(ctx, gateway.Post{ID: "p", To: general, Text: "x"})
		if outcome(err) != "unknown" || !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("not allowed any more", func(t *testing.T) {
		s := newSlack(t, slacktest.Config{})
		b := newBot(t, s.Settings(), quick())
		deposed := errors.New("deposed")
		_, err := b.Post(within(t), gateway.Post{ID: "p", To: general, Text: "x", Check: func() error { return deposed }})
		if outcome(err) != "not sent, after 0s" || !errors.Is(err, deposed) {
			t.Errorf("%v", err)
		}
		if n := s.Requests("chat.postMessage"); n != 0 {
			t.Errorf("%d requests arrived", n)
		}
	})
	t.Run("a person that is not there", func(t *testing.T) {
		s := newSlack(t, slacktest.Config{})
		b := newBot(t, s.Settings(), quick())
		_, err := b.Post(within(t), gateway.Post{ID: "p", To: to(gateway.PeerDM, "U99", ""), Text: "x"})
		if outcome(err) != "rejected" {
			t.Errorf("%v", err)
		}
		s.Fail("conversations.open", slacktest.Fault{Cut: true})
		_, err = b.Post(within(t), gateway.Post{ID: "p", To: to(gateway.PeerDM, slacktest.Bob, ""), Text: "x"})
		if outcome(err) != "not sent, after 0s" {
			t.Errorf("nothing was posted yet: %v", err)
		}
	})
	for name, text := range map[string]string{"empty": " \n", "too long": strings.Repeat("x", textMax+1)} {
		t.Run(name, func(t *testing.T) {
			s := newSlack(t, slacktest.Config{})
			_, err := newBot(t, s.Settings(), quick()).Post(within(t), gateway.Post{ID: "p", To: general, Text: text})
			if outcome(err) != "rejected" || len(s.Posts()) != 0 {
				t.Errorf("%v", err)
			}
		})
	}
}

// A redirect is not followed: it would carry the token to whoever is named in it.
func TestRedirect(t *testing.T) {
	s, elsewhere := newSlack(t, slacktest.Config{}), newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick())
	s.Fail("chat.postMessage", slacktest.Fault{Status: 307, Location: elsewhere.URL() + "chat.postMessage"})
	_, err := b.Post(within(t), gateway.Post{ID: "p", To: general, Text: "x"})
	if outcome(err) != "not sent, after 0s" || elsewhere.Requests("chat.postMessage") != 0 {
		t.Errorf("%v; %d requests elsewhere", err, elsewhere.Requests("chat.postMessage"))
	}
}

// Another app's message is none of ours, whatever it carries.
func TestFindOursOnly(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick())
	s.Say(slacktest.Said{Channel: slacktest.General, Text: "x", Bot: true, Metadata: `{"event_type":"gatemesh_post","event_payload":{"post_id":"p"}}`})
	if _, found, err := b.Find(within(t), gateway.Post{ID: "p", To: general}); found || err != nil {
		t.Errorf("%t, %v", found, err)
	}
}

// After a lost reply the post is found, by another gateway too.
func TestFind(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	_, root := s.Say(slacktest.Said{Channel: slacktest.General, Text: "root"})
	began := time.Now()
	for name, where := range map[string]gateway.PostTarget{
		"channel": general, "thread": to(gateway.PeerChannel, slacktest.General, root), "person": to(gateway.PeerDM, slacktest.Bob, ""),
		"thread whose root is gone": to(gateway.PeerChannel, slacktest.Private, "1.000001"),
	} {
		t.Run(name, func(t *testing.T) {
			p := gateway.Post{ID: "found in " + name, To: where, Text: "x", Since: began}
			s.Fail("chat.postMessage", slacktest.Fault{Applied: true, Cut: true})
			if name == "thread whose root is gone" {
				s.Fail("conversations.replies", slacktest.Fault{Code: "thread_not_found"})
				p.To.Thread = "" // Slack posts it so
			}
			if _, err := newBot(t, s.Settings(), quick()).Post(within(t), p); outcome(err) != "unknown" {
				t.Fatal(err)
			}
			p.To = where
			for range 250 { // more than a page
				s.Say(slacktest.Said{Channel: slacktest.General, Text: "later"})
				s.Say(slacktest.Said{Channel: slacktest.General, Text: "later", Thread: root})
			}
			heir := newBot(t, s.Settings(), quick())
			got, found, err := heir.Find(within(t), p)
			posts := s.Posts()
			if err != nil || !found || got.Ref != posts[len(posts)-1].TS || got.At.IsZero() {
				t.Errorf("%+v, %t, %v", got, found, err)
			}
			p.ID = "another"
			if _, found, err = heir.Find(within(t), p); err != nil || found {
				t.Errorf("found what was never posted: %v", err)
			}
		})
	}
}

// "There is no such post" is said only when Slack said so.
func TestFindUnknown(t *testing.T) {
	for name, f := range map[string]slacktest.Fault{
		"500": {Status: 500}, "429": {Status: 429, RetryAfter: 1}, "garbage": {Body: "}{"}, "nothing of Slack's": {Body: "{}"},
		"not ok": {Body: `{"ok":false}`}, "no next page": {Body: `{"ok":true,"has_more":true,"messages":[]}`}, "cut": {Cut: true}, "scope": {Code: "missing_scope", Needed: "channels:history"},
	} {
		for _, method := range []string{"conversations.history", "conversations.replies", "auth.test"} {
			t.Run(name+" "+method, func(t *testing.T) {
				s := newSlack(t, slacktest.Config{})
				b := newBot(t, s.Settings(), quick())
				s.Fail(method, f)
				thread := ""
				if method == "conversations.replies" {
					_, thread = s.Say(slacktest.Said{Channel: slacktest.General, Text: "root"})
				}
				_, found, err := b.Find(within(t), gateway.Post{ID: "p", To: to(gateway.PeerChannel, slacktest.General, thread), Since: time.Now()})
				if err == nil || found {
					t.Fatalf("%t, %v", found, err)
				}
				noSecret(t, s, err.Error())
			})
		}
	}
}

func TestReact(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick())
	channel, ts := s.Say(slacktest.Said{Channel: slacktest.Bob, Text: "x"})
	where := to(gateway.PeerDM, slacktest.Bob, "")
	where.Message = ts
	for _, on := range []bool{true, true, false, false} {
		if err := b.React(within(t), where, on); err != nil {
			t.Errorf("%t: %v", on, err)
		}
		if got := fmt.Sprint(s.Reactions(channel, ts)); on != (got == "[eyes]") || !on && got != "[]" {
			t.Errorf("%t: reactions %s", on, got)
		}
	}
	s.Refuse("token_revoked")
	if err := b.React(within(t), where, true); !gateway.IsBadCredentials(err) {
		t.Errorf("%v", err)
	}
}
