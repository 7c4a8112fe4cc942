package slack

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/slack-go/slack"
	"github.com/slack-go/slack/slackevents"

	"github.com/gatemesh/gatemesh/gateway"
)

// lookupWithin bounds the questions who the people of an event are and what its channel is: Slack sends an event again that
// is not acknowledged within three seconds.
const lookupWithin = time.Second

// forgetAfter is how long a person stays nameless whose name could not be had.
const forgetAfter = time.Minute

// head is what must be known of an event before it is read.
type head struct {
	EventID string `json:"event_id"`
	Event   struct {
		Type    string `json:"type"`
		Channel string `json:"channel"`
	} `json:"event"`
}

func readHead(payload json.RawMessage) (head, error) {
	var h head
	err := json.Unmarshal(payload, &h)
	return h, err
}

// event makes of a payload of the Events API what the mesh takes in, and false of what is none of its business: what bots, this one
// included, have written; what is not a message. An error means that it is not known yet: the payload must come again.
func (a *account) event(ctx context.Context, me *self, payload json.RawMessage) (gateway.ChannelEvent, bool, error) {
	outer, err := slackevents.ParseEvent(payload, slackevents.OptionNoVerifyToken())
	if err != nil {
		return gateway.ChannelEvent{}, false, err
	}
	var m message
	switch in := outer.InnerEvent.Data.(type) {
	case *slackevents.MessageEvent:
		m = fromMessage(in)
	case *slackevents.AppMentionEvent:
		m = message{
			channel: in.Channel, user: in.User, bot: in.BotID, text: in.Text, ts: in.TimeStamp, thread: in.ThreadTimeStamp, files: in.Files,
		}
		if in.Edited != nil {
			m.edited = in.Edited.TimeStamp
		}
	}
	if !m.counts() || me.wrote(m.user, m.bot) {
		return gateway.ChannelEvent{}, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupWithin)
	defer cancel()
	peer, err := a.peer(ctx, m)
	if err != nil {
		return gateway.ChannelEvent{}, false, err
	}
	e := gateway.ChannelEvent{
		ID: m.id(), Message: m.ts, Edited: m.edited != "", Peer: peer, Thread: m.thread, Team: outer.TeamID,
		Sender:    gateway.ChannelSender{ID: m.user, Name: a.name(ctx, m.user)},
		Mentioned: peer.Kind == gateway.PeerDM || mentions(m.text, me.user),
		At:        stamp(m.ts),
	}
	e.Text = plain(m.text, func(id string) string {
		if id == me.user {
			return me.name
		}
		if n := a.name(ctx, id); n != "" {
			return n
		}
		return id
	})
	for _, f := range m.files {
		e.Files = append(e.Files, gateway.ChannelFile{Name: f.Name, Type: f.Mimetype, Size: int64(f.Size)})
	}
	if e.Edited {
		e.At = stamp(m.edited)
	}
	return e, true, nil
}

// message is what somebody wrote, however Slack wrapped it.
type message struct {
	channel, kind, user, bot, text, ts, thread, edited string
	files                                              []slack.File
}

// fromMessage is empty for what says nothing new.
func fromMessage(in *slackevents.MessageEvent) message {
	m := message{channel: in.Channel, kind: in.ChannelType}
	was, now := in.PreviousMessage, in.Message
	switch in.SubType {
	case "", "file_share", "thread_broadcast", "me_message":
	case "message_changed":
		// It also comes when Slack unfolds a link or learns of a reply. An edit is what a person did, and is stamped.
		if now.Edited == nil || now.SubType == "tombstone" {
			return message{}
		}
		if was != nil && (was.Text == now.Text || was.Edited != nil && was.Edited.Timestamp == now.Edited.Timestamp) {
			return message{}
		}
		m.edited = now.Edited.Timestamp
	default:
		return message{}
	}
	m.user, m.bot, m.text, m.ts, m.thread, m.files = now.User, now.BotID, now.Text, now.Timestamp, now.ThreadTimestamp, now.Files
	if now.SubType == "bot_message" {
		m.bot = "?"
	}
	return m
}

// counts reports whether a person wrote it. The account's id is compared elsewhere: it may not be known here.
func (m *message) counts() bool {
	if m.thread == m.ts {
		m.thread = "" // the first message of a thread belongs to the conversation in which it was written
	}
	return m.channel != "" && m.ts != "" && m.user != "" && m.user != "USLACKBOT" && m.bot == ""
}

// id is the same for the message event and the app_mention event of one message, which have an event_id each.
func (m *message) id() string {
	id := m.channel + ":" + m.ts
	if m.edited != "" {
		id += ":" + m.edited
	}
	return id
}

// mentions reports whether a text names a person.
func mentions(text, user string) bool {
	return user != "" && (strings.Contains(text, "<@"+user+">") || strings.Contains(text, "<@"+user+"|"))
}

// wrote reports whether a message is one of ours.
func (s *self) wrote(user, bot string) bool {
	return user != "" && user == s.user || bot != "" && bot == s.bot
}

// peer says who a message's conversation is held with. An app_mention does not say what kind of channel it is in, and must
// not end in another conversation than the message event of the same message.
func (a *account) peer(ctx context.Context, m message) (gateway.ChannelPeer, error) {
	kind := m.kind
	if kind == "" && strings.HasPrefix(m.channel, "D") {
		kind = slackevents.ChannelTypeIM
	}
	if kind == "" {
		known, ok := a.kinds.get(m.channel)
		if !ok {
			var err error
			if known, err = a.askKind(ctx, m.channel); err != nil {
				return gateway.ChannelPeer{}, err
			}
			a.kinds.put(m.channel, known, cacheFor)
		}
		kind = known
	}
	if m.kind != "" {
		a.kinds.put(m.channel, m.kind, cacheFor)
	}
	switch kind {
	case slackevents.ChannelTypeIM:
		a.ims.put(m.user, m.channel, cacheFor)
		return gateway.ChannelPeer{Kind: gateway.PeerDM, ID: m.user}, nil
	case slackevents.ChannelTypeMPIM:
		return gateway.ChannelPeer{Kind: gateway.PeerGroup, ID: m.channel}, nil
	default: // public and private channels
		return gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: m.channel}, nil
	}
}

// askKind asks Slack what a channel is. What Slack refuses to say counts as a channel: without mpim:read no message event of a
// group comes either, with which it would have to agree.
func (a *account) askKind(ctx context.Context, channel string) (string, error) {
	c, err := a.client(a.http).GetConversationInfoContext(ctx, &slack.GetConversationInfoInput{ChannelID: channel})
	switch v, _ := judge(err); {
	case err == nil && c.IsMpIM:
		return slackevents.ChannelTypeMPIM, nil
	case err == nil && c.IsIM:
		return slackevents.ChannelTypeIM, nil
	case err == nil || v == rejected || v == badCredentials:
		return slackevents.ChannelTypeChannel, nil
	}
	return "", a.clean("conversations.info", err)
}

// name is how a person is called; empty when that cannot be had: it is for people, nothing depends on it.
func (a *account) name(ctx context.Context, user string) string {
	if n, ok := a.names.get(user); ok {
		return n
	}
	u, err := a.client(a.http).GetUserInfoContext(ctx, user)
	if err != nil {
		a.log.Debug("slack: no name for a user", "user", user, "cause", a.clean("users.info", err))
		a.names.put(user, "", forgetAfter)
		return ""
	}
	n := u.Profile.DisplayName
	for _, other := range []string{u.Profile.RealName, u.RealName, u.Name} {
		if n == "" {
			n = other
		}
	}
	a.names.put(user, n, cacheFor)
	return n
}

// whoami asks once who the bot token is.
func (a *account) whoami(ctx context.Context) (*self, error) {
	if s := a.self.Load(); s != nil {
		return s, nil
	}
	r, err := a.client(a.http).AuthTestContext(ctx)
	if err != nil {
		return nil, a.explain("auth.test", err, false)
	}
	if r.UserID == "" {
		return nil, gateway.NotSent(0, fmt.Errorf("auth.test: Slack's answer names no user"))
	}
	s := &self{user: r.UserID, bot: r.BotID, team: r.Team, name: r.User}
	a.self.Store(s)
	return s, nil
}
