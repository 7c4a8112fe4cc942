package slack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
)

// hears checks that events arrive.
func hears(t testing.TB, s *slacktest.Server, b *bot) {
	t.Helper()
	n := len(b.events(0))
	channel, ts := s.Say(slacktest.Said{Channel: slacktest.General, Text: "do you hear"})
	key := slacktest.Key(channel, ts, "")
	until(t, s, "acknowledgement", func() bool { return s.Acked(key) })
	if e := b.events(n + 1)[n]; e.ID != key {
		t.Errorf("heard %+v", e)
	}
}

func TestReconnect(t *testing.T) {
	for name, misbehave := range map[string]func(s *slacktest.Server){
		"cut":            func(s *slacktest.Server) { s.Cut() },
		"warning":        func(s *slacktest.Server) { s.Disconnect("warning") },
		"refresh":        func(s *slacktest.Server) { s.Disconnect("refresh_requested") },
		"unknown reason": func(s *slacktest.Server) { s.Disconnect("of next year") },
		"garbage": func(s *slacktest.Server) {
			for range maxGarbage {
				s.SendRaw("}{")
			}
		},
		"too much": func(s *slacktest.Server) { s.SendRaw(`"` + strings.Repeat("x", readLimit) + `"`) },
		"trouble meanwhile": func(s *slacktest.Server) {
			s.Fail("apps.connections.open", slacktest.Fault{Status: 500}, slacktest.Fault{Status: 429, RetryAfter: 1}, slacktest.Fault{Body: "<html>"},
				slacktest.Fault{Cut: true}, slacktest.Fault{Code: "internal_error"}, slacktest.Fault{Body: "{}"}, slacktest.Fault{Status: 404})
			s.Cut()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSlack(t, slacktest.Config{})
			b := newBot(t, s.Settings(), quick()).start().connected()
			hears(t, s, b)
			misbehave(s)
			until(t, s, "a new connection", func() bool { return s.Connects() == 2 })
			b.connected()
			hears(t, s, b)
			until(t, s, "the end of the old connection", func() bool { return s.Connections() == 1 })
			if len(b.alarms()) > 0 {
				t.Errorf("alarm about a reconnect of our own: %v", b.alarms())
			}
		})
	}
}

// A few frames that make no sense do no harm.
func TestGarbage(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick()).start().connected()
	for _, frame := range []string{"", "}{", "null", "7", `{"type":7}`, `{"type":"events_api"}`, `{"type":"events_api","envelope_id":"x","payload":7}`,
		`{"type":"events_api","envelope_id":"x","payload":{"type":"event_callback","event":{"type":"message","channel":7}}}`,
		`{"type":"events_api","envelope_id":"x","payload":{"type":"event_callback","event":{"type":"message","subtype":"message_changed","channel":"C1"}}}`,
		`{"type":"events_api","envelope_id":"x","payload":{"type":"event_callback","event":{"type":"message","channel":"C1","blocks":[7]}}}`,
		`{"type":"slash_commands","envelope_id":"x","payload":{}}`, `{"type":"of next year"}`} {
		s.SendRaw(frame)
	}
	hears(t, s, b)
	if n := s.Connects(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// On a warning the new connection is there before the old one ends: there is always one to deliver to.
func TestOverlap(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	tm := quick()
	tm.linger = time.Hour
	b := newBot(t, s.Settings(), tm).start().connected()
	s.Disconnect("refresh_requested")
	until(t, s, "two connections", func() bool { return s.Connections() == 2 })
	hears(t, s, b)
	b.stop()
	if err := b.ended(); err != nil {
		t.Error(err)
	}
	if n := s.Connections(); n != 0 {
		until(t, s, "no connection", func() bool { return s.Connections() == 0 })
	}
}

func TestForeign(t *testing.T) {
	t.Run("stays", func(t *testing.T) {
		s := newSlack(t, slacktest.Config{})
		s.SetForeign(1)
		tm := quick()
		tm.grace = time.Millisecond
		b := newBot(t, s.Settings(), tm).start()
		b.until("alarm", func() bool { return len(b.foreign) > 0 })
		if d := b.alarms()[0]; !strings.Contains(d, "counts 3") || !strings.Contains(d, "2 of them ours") {
			t.Errorf("%s", d)
		}
	})
	t.Run("goes within the grace", func(t *testing.T) {
		s := newSlack(t, slacktest.Config{})
		s.SetForeign(1)
		tm := quick()
		tm.grace, tm.linger = 200*time.Millisecond, time.Hour
		b := newBot(t, s.Settings(), tm).start().connected()
		s.SetForeign(0) // the predecessor's connection has ended
		until(t, s, "the second count", func() bool { return s.Connects() == 2 })
		hears(t, s, b)
		s.Disconnect("warning")
		until(t, s, "another connection", func() bool { return s.Connects() > 2 })
		hears(t, s, b)
		if len(b.alarms()) > 0 {
			t.Errorf("alarm: %v", b.alarms())
		}
	})
	t.Run("comes later", func(t *testing.T) {
		s := newSlack(t, slacktest.Config{})
		tm := quick()
		tm.grace, tm.probe = time.Millisecond, 20*time.Millisecond
		b := newBot(t, s.Settings(), tm).start().connected()
		s.SetForeign(2)
		b.until("alarm", func() bool { return len(b.foreign) > 0 })
		hears(t, s, b)
	})
	t.Run("ten", func(t *testing.T) {
		s := newSlack(t, slacktest.Config{})
		s.SetForeign(10)
		b := newBot(t, s.Settings(), quick()).start()
		b.until("alarm", func() bool { return len(b.foreign) > 0 })
		s.SetForeign(0)
		b.connected()
		hears(t, s, b)
	})
}

func TestBadCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(s *slacktest.Server)
		fix   string
	}{
		"invalid_auth":  {func(s *slacktest.Server) { s.Refuse("invalid_auth") }, "channels.slack.botToken"},
		"token_revoked": {func(s *slacktest.Server) { s.Refuse("token_revoked") }, "install the app"},
		"link_disabled": {func(s *slacktest.Server) { s.Disconnect("link_disabled") }, "Socket Mode on"},
		"scope": {func(s *slacktest.Server) {
			s.Fail("apps.connections.open", slacktest.Fault{Code: "missing_scope", Needed: "connections:write"})
			s.Cut()
		}, "add the scope connections:write"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSlack(t, slacktest.Config{})
			b := newBot(t, s.Settings(), quick()).start().connected()
			c.spoil(s)
			err := b.ended()
			if !gateway.IsBadCredentials(err) || !strings.Contains(err.Error(), c.fix) {
				t.Fatalf("Run: %v", err)
			}
			noSecret(t, s, err.Error()+b.log.String())
			b.until("logged out", func() bool { return b.state() == gateway.ChannelLoggedOut })
		})
	}
}

// Run ends at once, with nothing left running, whatever it was at (TestMain looks for what is left).
func TestStop(t *testing.T) {
	for name, at := range map[string]func(t *testing.T, s *slacktest.Server, b *bot){
		"connected": func(_ *testing.T, _ *slacktest.Server, b *bot) { b.start().connected() },
		"peer does not say goodbye": func(_ *testing.T, s *slacktest.Server, b *bot) {
			b.start().connected()
			s.Mute()
		},
		"not answered": func(t *testing.T, s *slacktest.Server, b *bot) {
			s.Fail("auth.test", slacktest.Fault{Hang: true})
			b.start()
			until(t, s, "request", func() bool { return s.Requests("auth.test") == 1 })
		},
		"pausing": func(_ *testing.T, s *slacktest.Server, b *bot) {
			s.Fail("apps.connections.open", slacktest.Fault{Status: 429, RetryAfter: 3600})
			b.start()
			b.until("trouble", func() bool { return b.state() == gateway.ChannelReconnecting })
		},
		"accepting": func(_ *testing.T, s *slacktest.Server, b *bot) {
			entered := make(chan struct{})
			b.accept = func(ctx context.Context, _ gateway.ChannelEvent) error {
				close(entered)
				<-ctx.Done()
				// The connection does not end before this does.
				within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 50*time.Millisecond)
				defer cancel()
				_ = s.Until(within, func() bool { return s.Connections() == 0 })
				return nil // it was written all the same
			}
			b.start().connected()
			s.Say(slacktest.Said{Channel: slacktest.General, Text: "x"})
			<-entered
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSlack(t, slacktest.Config{})
			b := newBot(t, s.Settings(), quick())
			at(t, s, b)
			began := time.Now()
			b.stop()
			if err := b.ended(); err != nil {
				t.Errorf("Run: %v", err)
			}
			if d := time.Since(began); d > time.Second {
				t.Errorf("took %s", d)
			}
			if name == "peer does not say goodbye" {
				s.Cut() // nor does it see the end
			}
			until(t, s, "no connection", func() bool { return s.Connections() == 0 })
			if name == "accepting" {
				// It is acknowledged although Run was to end, so that the next owner need not hear it again.
				if s.Lost() != 0 || !s.Acked(slacktest.Key(slacktest.General, b.events(1)[0].Message, "")) {
					t.Error("what was accepted was not acknowledged")
				}
			}
			b.until("stopped", func() bool { return b.state() == gateway.ChannelStopped })
		})
	}
}

// No status and no log shows the ticket with which one connects.
func TestTicketIsSecret(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	s.Fail("link", slacktest.Fault{Cut: true}, slacktest.Fault{Status: 403, Body: "no"}, slacktest.Fault{Status: 500})
	b := newBot(t, s.Settings(), quick()).start().connected()
	hears(t, s, b)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.statuses) < 5 {
		t.Errorf("not all failures were told: %+v", b.statuses)
	}
	noSecret(t, s, fmt.Sprintf("%+v", b.statuses)+b.log.String())
}

// A connection whose other end has died is replaced.
func TestDeadPeer(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	tm := quick()
	tm.ping, tm.pong = 5*time.Millisecond, 50*time.Millisecond
	b := newBot(t, s.Settings(), tm).start().connected()
	s.Mute()
	until(t, s, "a new connection", func() bool { return s.Connects() >= 2 })
	b.connected()
	hears(t, s, b)
}

// The pauses between tries grow, and are drawn: many gateways must not come back together.
func TestPauses(t *testing.T) {
	p := newPause(defaultTimings)
	var last time.Duration
	distinct := map[time.Duration]bool{}
	for range 20 {
		last = p.NextBackOff()
		distinct[last] = true
		if last > defaultTimings.longestPause*3/2 {
			t.Errorf("a pause of %s", last)
		}
	}
	if last < defaultTimings.longestPause/2 || len(distinct) < 15 {
		t.Errorf("the last pause is %s, %d different ones", last, len(distinct))
	}
}

// The end of a connection does not wait for an other end that says no goodbye, whatever is being read at that moment.
func TestSilentGoodbye(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		for err == nil { // it talks, and does not listen
			err = ws.Write(r.Context(), websocket.MessageText, []byte(`{"type":"hello","num_connections":1}`))
		}
	}))
	defer srv.Close()
	tm := quick()
	tm.goodbye = 5 * time.Millisecond
	b := newBot(t, json.RawMessage(`{"appToken":"xapp-a","botToken":"xoxb-b"}`), tm)
	r := &run{account: b.account}
	for range 20 {
		s, err := r.dial(within(t), "ws"+strings.TrimPrefix(srv.URL, "http")+"/link/?ticket=x")
		if err != nil {
			t.Fatal(err)
		}
		<-s.helloed
		began := time.Now()
		s.close()
		if d := time.Since(began); d > 3*time.Second {
			t.Fatalf("took %s", d)
		}
	}
	r.readers.Wait()
}

// Slack's Retry-After counts when it is longer than the pause.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &run{pause: newPause(defaultTimings)}
		began := time.Now()
		r.wait(t.Context(), gateway.NotSent(time.Hour, errors.New("ratelimited")))
		if d := time.Since(began); d != time.Hour {
			t.Errorf("waited %s", d)
		}
		r.wait(t.Context(), gateway.NotSent(0, errors.New("cut")))
		if d := time.Since(began) - time.Hour; d < defaultTimings.firstPause/2 || d > 4*defaultTimings.firstPause {
			t.Errorf("waited %s", d)
		}
	})
}
