package slacktest

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/slack-go/slack"
	"github.com/slack-go/slack/slackevents"
	"github.com/slack-go/slack/socketmode"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run runs slack-go's own Socket Mode loop, unchanged, until the test ends.
func run(t *testing.T, cfg Config) (context.Context, *Server, *socketmode.Client) {
	t.Helper()
	s, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	client := socketmode.New(slack.New(s.BotToken(), slack.OptionAppLevelToken(s.AppToken()), slack.OptionAPIURL(s.URL())))
	ended := make(chan struct{})
	running, stop := context.WithCancel(ctx)
	go func() {
		defer close(ended)
		_ = client.RunContext(running)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
		cancel()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return ctx, s, client
}

// slack-go's loop is content with the fake: it is not made to fit gatemesh's reader.
func TestSlackGo(t *testing.T) {
	ctx, s, client := run(t, Config{})
	next := func(want socketmode.EventType) socketmode.Event {
		for {
			select {
			case e := <-client.Events:
				if e.Type == want {
					return e
				}
			case <-ctx.Done():
				t.Fatalf("no %s", want)
			}
		}
	}
	if n := next(socketmode.EventTypeHello).Request.NumConnections; n != 1 {
		t.Errorf("hello tells of %d connections", n)
	}
	channel, ts := s.Say(Said{Channel: Bob, Text: "hi"})
	e := next(socketmode.EventTypeEventsAPI)
	m, ok := e.Data.(slackevents.EventsAPIEvent).InnerEvent.Data.(*slackevents.MessageEvent)
	if !ok || m.Channel != channel || m.TimeStamp != ts || m.User != Bob || m.Text != "hi" || !m.IsIM() {
		t.Errorf("%+v", e.Data)
	}
	if err := client.Ack(*e.Request); err != nil {
		t.Fatal(err)
	}
	if err := s.Until(ctx, func() bool { return s.Acked(Key(channel, ts, "")) }); err != nil {
		t.Errorf("not acknowledged: %v", err)
	}
	s.Disconnect("refresh_requested")
	next(socketmode.EventTypeHello)
	if _, _, err := client.PostMessageContext(ctx, channel, slack.MsgOptionText("hello", true)); err != nil || len(s.PostsIn(channel)) != 1 {
		t.Errorf("post: %v, %+v", err, s.PostsIn(channel))
	}
}

// What nobody acknowledges is sent three times more, and then given up.
func TestGivesUp(t *testing.T) {
	ctx, s, _ := run(t, Config{AckWithin: time.Millisecond, Retries: []time.Duration{0, time.Millisecond, time.Millisecond}})
	channel, ts := s.Say(Said{Channel: General, Text: "x"})
	if err := s.Until(ctx, func() bool { return s.Lost() == 1 }); err != nil {
		t.Fatal("never given up")
	}
	if n := s.Deliveries(Key(channel, ts, "")); n != 4 {
		t.Errorf("%d deliveries", n)
	}
}
