package discord

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/discord/discordtest"
)

func TestEvents(t *testing.T) {
	bot := discordtest.User{ID: discordtest.BotID, Username: "gatemesh", Bot: true}
	bob := discordtest.User{ID: "700000000000000099", Username: "bob"}
	alice := gateway.ChannelSender{ID: discordtest.Alice, Name: "alice"}
	general := gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: discordtest.General}
	b := newBed(t)
	r := b.connected()
	for name, tc := range map[string]struct {
		said discordtest.Message
		want gateway.ChannelEvent
	}{
		"in a room": {discordtest.Message{Content: "hello"}, gateway.ChannelEvent{Peer: general, Team: discordtest.Guild, Text: "hello"}},
		"in a thread": {
			discordtest.Message{Channel: discordtest.Branch, Content: "hello"},
			gateway.ChannelEvent{Peer: general, Thread: discordtest.Branch, Team: discordtest.Guild, Text: "hello"},
		},
		"in a DM": {
			discordtest.Message{Channel: discordtest.AliceDM, Content: "hello"},
			gateway.ChannelEvent{Peer: gateway.ChannelPeer{Kind: gateway.PeerDM, ID: discordtest.Alice}, Mentioned: true, Text: "hello"},
		},
		"by name": {
			discordtest.Message{Content: "<@" + bot.ID + "> ask <@" + bob.ID + ">", Mentions: []discordtest.User{bot, bob}},
			gateway.ChannelEvent{Peer: general, Team: discordtest.Guild, Mentioned: true, Text: "ask @bob"},
		},
		"to another": {
			discordtest.Message{Content: "<@" + bob.ID + "> hello", Mentions: []discordtest.User{bob}},
			gateway.ChannelEvent{Peer: general, Team: discordtest.Guild, Text: "@bob hello"},
		},
		"as an answer": {discordtest.Message{Type: 19, Content: "yes"}, gateway.ChannelEvent{Peer: general, Team: discordtest.Guild, Text: "yes"}},
		"with files": {
			discordtest.Message{Files: []discordtest.Attachment{{ID: "1", Name: "a.png", Type: "image/png", Size: 123}}},
			gateway.ChannelEvent{Peer: general, Team: discordtest.Guild, Files: []gateway.ChannelFile{{Name: "a.png", Type: "image/png", Size: 123}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := b.fake.Say(tc.said)
			got := r.find(id)
			tc.want.ID, tc.want.Message, tc.want.Sender, tc.want.At = id, id, alice, got.At
			if !reflect.DeepEqual(got, tc.want) || got.At.IsZero() {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestEdit(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	id := say(b, "helo")
	b.fake.Unfurl(id) // a preview is no edit
	at := b.fake.Edit(id, "hello")
	edit := id + ":" + strconv.FormatInt(at.UnixMicro(), 10)
	r.want(id, edit)
	if e := r.find(edit); !e.Edited || e.Message != id || e.Text != "hello" {
		t.Errorf("%+v", e)
	}
}

func TestWhatNobodySaid(t *testing.T) {
	b := newBed(t)
	r := b.connected()
	for _, m := range []discordtest.Message{
		{Content: "a bot", Author: discordtest.User{ID: discordtest.OtherBot, Bot: true}},
		{Content: "the bot itself", Author: discordtest.User{ID: discordtest.BotID}},
		{Content: "a webhook", WebhookID: "5"},
		{Content: "somebody joined", Type: 7},
		{Content: "a thread was begun", Type: 18},
	} {
		b.fake.Say(m)
	}
	r.want(say(b, "a person"))
}

func TestSettings(t *testing.T) {
	for name, tc := range map[string]struct{ settings, want string }{
		"no token":        {`{}`, "channels.discord.token is missing"},
		"nothing":         {``, "channels.discord.token is missing"},
		"only the scheme": {`{"token":"Bot "}`, "channels.discord.token is missing"},
		"two words":       {`{"token":"` + canary + ` x"}`, "blanks"},
		"no text":         {`{"token":{"a":"` + canary + `"}}`, "must be texts"},
		"no JSON":         {`{"token":"` + canary, "must be texts"},
		"relative":        {`{"token":"` + canary + `","baseUrl":"discord.com"}`, "channels.discord.baseUrl"},
		"another scheme":  {`{"token":"` + canary + `","baseUrl":"ftp://x/` + canary + `"}`, "channels.discord.baseUrl"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Factory().New(gateway.ChannelDeps{Settings: json.RawMessage(tc.settings), Logger: hclog.NewNullLogger()})
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) {
				t.Errorf("%v: want %q, and no token", err, tc.want)
			}
		})
	}
	c, err := Factory().New(gateway.ChannelDeps{Settings: json.RawMessage(`{"enabled":true,"token":"Bot ` + canary + `"}`), Logger: hclog.NewNullLogger()})
	if err != nil || c.(*channel).token != canary || c.(*channel).base != "https://discord.com/api/v10" {
		t.Errorf("%+v, %v", c, err)
	}
	if n := Factory().Limits.Text; n != 2000 {
		t.Errorf("texts of %d characters, want 2000", n)
	}
}
