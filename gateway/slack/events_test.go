package slack

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
)

const me = "<@" + slacktest.BotUser + ">"

func TestEvents(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	_, root := s.Say(slacktest.Said{Channel: slacktest.General, Text: "before anybody listens", Bot: true})
	b := newBot(t, s.Settings(), quick()).start().connected()
	alice := gateway.ChannelSender{ID: slacktest.Alice, Name: "Alice"}
	for name, c := range map[string]struct {
		say  slacktest.Said
		want gateway.ChannelEvent // without what Slack stamps
	}{
		"channel": {
			slacktest.Said{Channel: slacktest.General, Text: "a &lt;b&gt; &amp; c"},
			gateway.ChannelEvent{Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: slacktest.General}, Text: "a <b> & c"},
		},
		"private channel, mention": {
			slacktest.Said{Channel: slacktest.Private, Text: me + " and <@" + slacktest.Bob + ">: hi"},
			gateway.ChannelEvent{Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: slacktest.Private}, Text: "@gatemesh and @Bob: hi", Mentioned: true},
		},
		"several people, mention": {
			slacktest.Said{Channel: slacktest.Talk, Text: me + " hi"},
			gateway.ChannelEvent{Peer: gateway.ChannelPeer{Kind: gateway.PeerGroup, ID: slacktest.Talk}, Text: "@gatemesh hi", Mentioned: true},
		},
		"direct message": {
			slacktest.Said{Channel: slacktest.Alice, Text: "hi"},
			gateway.ChannelEvent{Peer: gateway.ChannelPeer{Kind: gateway.PeerDM, ID: slacktest.Alice}, Text: "hi", Mentioned: true},
		},
		"thread": {
			slacktest.Said{Channel: slacktest.General, Text: "below", Thread: root},
			gateway.ChannelEvent{Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: slacktest.General}, Text: "below", Thread: root},
		},
		"files": {
			slacktest.Said{Channel: slacktest.General, Text: "see", Files: []slacktest.File{{ID: "F1", Name: "a.png", Mimetype: "image/png", Size: 12}}},
			gateway.ChannelEvent{
				Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: slacktest.General}, Text: "see",
				Files: []gateway.ChannelFile{{Name: "a.png", Type: "image/png", Size: 12}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := len(b.events(0))
			channel, ts := s.Say(c.say)
			key := slacktest.Key(channel, ts, "")
			until(t, s, "acknowledgement", func() bool { return s.Acked(key) })
			want := c.want
			want.ID, want.Message, want.At, want.Team, want.Sender = key, ts, stamp(ts), slacktest.Team, alice
			for _, e := range b.events(n + 1)[n:] { // a mention comes twice, as one event
				if !reflect.DeepEqual(e, want) {
					t.Errorf("got  %+v\nwant %+v", e, want)
				}
			}
		})
	}
}

// What the account itself and other bots write is no event, nor is what nobody wrote.
func TestNoEvents(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick()).start().connected()
	if _, err := b.Post(within(t), gateway.Post{ID: "p", To: gateway.PostTarget{Peer: gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: slacktest.General}}, Text: me}); err != nil {
		t.Fatal(err)
	}
	_, own := slacktest.General, s.Posts()[0].TS
	channel, ts := s.Say(slacktest.Said{Channel: slacktest.General, Text: me + " I am a bot", Bot: true})
	s.Emit("join", map[string]any{"type": "message", "subtype": "channel_join", "channel": channel, "channel_type": "channel", "user": slacktest.Alice, "text": "joined", "ts": "1.1"})
	s.Emit("upload", map[string]any{"type": "message", "channel": channel, "channel_type": "channel", "user": slacktest.BotUser, "text": "mine", "ts": "1.3"})
	s.Emit("reaction", map[string]any{"type": "reaction_added", "user": slacktest.Alice, "item": map[string]any{"channel": channel, "ts": ts}})
	s.Emit("new", map[string]any{"type": "something_of_next_year", "channel": channel})
	s.Emit("deleted", map[string]any{"type": "message", "subtype": "message_deleted", "channel": channel, "channel_type": "channel", "deleted_ts": ts, "ts": "1.2"})
	for _, key := range []string{slacktest.Key(channel, own, ""), slacktest.Key(channel, ts, ""), "join", "upload", "reaction", "new", "deleted"} {
		until(t, s, "acknowledgement of "+key, func() bool { return s.Acked(key) })
	}
	if got := b.events(0); len(got) > 0 {
		t.Errorf("events: %+v", got)
	}
}

func TestEdits(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick()).start().connected()
	channel, ts := s.Say(slacktest.Said{Channel: slacktest.Bob, Text: "frist"})
	s.Say(slacktest.Said{Channel: slacktest.Bob, Text: "a reply", Thread: ts, Bot: true}) // so it begins a thread
	edit := s.Edit(channel, ts, "first")
	s.Unfurl(channel, ts)
	same := slacktest.Key(channel, ts, s.Edit(channel, ts, "first"))
	key := slacktest.Key(channel, ts, edit)
	until(t, s, "acknowledgement", func() bool { return s.Acked(key) && s.Acked(same) && s.Acked(slacktest.Key(channel, ts, "")) })
	got := b.events(2)
	if len(got) != 2 {
		t.Fatalf("%d events, a link's unfolding is none, nor is an edit that changes nothing: %+v", len(got), got)
	}
	if e := got[1]; !e.Edited || e.ID != key || e.ID == got[0].ID || e.Message != ts || e.Text != "first" || e.Peer != got[0].Peer || e.Thread != "" || !e.At.Equal(stamp(edit)) {
		t.Errorf("edit: %+v, of %+v", e, got[0])
	}
}

// Slack hears "got it" when the event is in the mesh, not before, and not when it is not.
func TestAcknowledgeAfterAccept(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick())
	entered, leave := make(chan struct{}), make(chan error)
	b.accept = func(ctx context.Context, _ gateway.ChannelEvent) error {
		entered <- struct{}{}
		select {
		case err := <-leave:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b.start().connected()
	channel, ts := s.Say(slacktest.Said{Channel: slacktest.General, Text: "x"})
	key := slacktest.Key(channel, ts, "")
	<-entered
	// What is acknowledged later on the same connection tells that nothing was before.
	s.Emit("another", map[string]any{"type": "reaction_added", "user": slacktest.Alice})
	until(t, s, "acknowledgement of another", func() bool { return s.Acked("another") })
	if s.Acked(key) {
		t.Fatal("acknowledged before it was accepted")
	}
	leave <- errors.New("no quorum")
	_, ts = s.Say(slacktest.Said{Channel: slacktest.General, Text: "in the same lane", Bot: true})
	until(t, s, "acknowledgement of another", func() bool { return s.Acked(slacktest.Key(channel, ts, "")) })
	if s.Acked(key) {
		t.Fatal("acknowledged although it was not accepted")
	}
	s.Redeliver(key)
	<-entered
	leave <- nil
	until(t, s, "acknowledgement", func() bool { return s.Acked(key) })
	if n := s.Deliveries(key); n != 2 {
		t.Errorf("%d deliveries", n)
	}
}

// An event that one gateway does not take goes to another one, with the same id.
func TestRedeliveredToAnother(t *testing.T) {
	s := newSlack(t, slacktest.Config{AckWithin: 20 * time.Millisecond, Retries: make([]time.Duration, 1000)})
	first, second := newBot(t, s.Settings(), quick()), newBot(t, s.Settings(), quick())
	refused := make(chan string, 2000)
	first.accept = func(_ context.Context, e gateway.ChannelEvent) error {
		refused <- e.ID
		return errors.New("deposed")
	}
	first.start().connected()
	channel, ts := s.Say(slacktest.Said{Channel: slacktest.General, Text: "x"})
	key := slacktest.Key(channel, ts, "")
	<-refused
	second.start()
	if e := second.events(1)[0]; e.ID != key {
		t.Errorf("%+v", e)
	}
	until(t, s, "acknowledgement", func() bool { return s.Acked(key) })
	first.stop()
	if err := first.ended(); err != nil {
		t.Error(err)
	}
}

// Whatever is heard twice has the same id both times: after a lost acknowledgement, and when Slack repeats itself.
func TestHeardTwice(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick())
	var once sync.Once
	b.accept = func(ctx context.Context, _ gateway.ChannelEvent) (err error) {
		once.Do(func() { // the acknowledgement of what is accepted here has nowhere to go
			s.Cut()
			err = s.Until(ctx, func() bool { return s.Connections() == 0 || s.Connects() > 1 })
		})
		return err
	}
	b.start().connected()
	channel, ts := s.Say(slacktest.Said{Channel: slacktest.General, Text: me + " x"})
	edit := s.Edit(channel, ts, "y")
	first, edited := slacktest.Key(channel, ts, ""), slacktest.Key(channel, ts, edit)
	until(t, s, "acknowledgement", func() bool { return s.Acked(first) && s.Acked(edited) })
	s.Redeliver(first)
	s.Redeliver(edited)
	until(t, s, "acknowledgement", func() bool { return s.Acked(first) && s.Acked(edited) })
	count := map[string]int{}
	for _, e := range b.events(0) {
		count[e.ID]++
	}
	if len(count) != 2 || count[first] < 2 || count[edited] < 2 {
		t.Errorf("heard %v", count)
	}
}

// Those of one conversation stay in order, whatever the others do.
func TestOrder(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	b := newBot(t, s.Settings(), quick()).start().connected()
	var want []string
	for range 50 {
		channel, ts := s.Say(slacktest.Said{Channel: slacktest.General, Text: "x"})
		s.Say(slacktest.Said{Channel: slacktest.Bob, Text: "y"})
		want = append(want, slacktest.Key(channel, ts, ""))
	}
	var got []string
	for _, e := range b.events(100) {
		if e.Peer.ID == slacktest.General {
			got = append(got, e.ID)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestNamesAreAskedOnce(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	s.Fail("users.info", slacktest.Fault{Status: 500})
	b := newBot(t, s.Settings(), quick()).start().connected()
	for range 3 {
		s.Say(slacktest.Said{Channel: slacktest.General, User: slacktest.Bob, Text: "x"})
	}
	for _, e := range b.events(3) {
		if e.Sender != (gateway.ChannelSender{ID: slacktest.Bob}) {
			t.Errorf("%+v", e.Sender)
		}
	}
	if n := s.Requests("users.info"); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// A mention alone does not say what kind of channel it is in. Slack is asked once, and again when it could not say.
func TestKindIsAskedOnce(t *testing.T) {
	s := newSlack(t, slacktest.Config{})
	s.Fail("conversations.info", slacktest.Fault{Status: 500})
	b := newBot(t, s.Settings(), quick()).start().connected()
	mention := func(key string) {
		s.Emit(key, map[string]any{"type": "app_mention", "channel": slacktest.Talk, "user": slacktest.Alice, "text": me, "ts": key})
	}
	mention("1.000001")
	until(t, s, "the question", func() bool { return s.Requests("conversations.info") == 1 })
	mention("1.000002")
	until(t, s, "acknowledgement", func() bool { return s.Acked("1.000002") })
	if s.Acked("1.000001") {
		t.Error("acknowledged although it was not understood")
	}
	s.Redeliver("1.000001")
	for _, e := range b.events(2) {
		if e.Peer != (gateway.ChannelPeer{Kind: gateway.PeerGroup, ID: slacktest.Talk}) {
			t.Errorf("%+v", e.Peer)
		}
	}
	if n := s.Requests("conversations.info"); n != 2 {
		t.Errorf("asked %d times", n)
	}
}
