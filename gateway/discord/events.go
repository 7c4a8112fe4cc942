package discord

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/bwmarrin/discordgo"

	"github.com/gatemesh/gatemesh/gateway"
)

// bring brings the events to the bus, one after the other, until the connection ends. Only then does the sequence number go on that a resume and the
// heartbeats name: so what is not in the bus comes again.
func (l *link) bring(ctx context.Context, events <-chan *discordgo.Event) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if err := l.take(ctx, e); err != nil {
				return err
			}
			l.c.memory.accepted(e.Sequence)
		}
	}
}

// take handles one event. What cannot be read is named in the log and left: it will not be better the next time.
func (l *link) take(ctx context.Context, e *discordgo.Event) error {
	c := l.c
	switch e.Type {
	case "READY":
		return read(l, e, func(r *discordgo.Ready) error { return l.begun(ctx, r, e.RawData) })
	case "RESUMED":
		l.connected("resumed")
	case "GUILD_CREATE":
		return read(l, e, func(g *discordgo.GuildCreate) error { return l.enter(ctx, g.Guild) })
	case "CHANNEL_CREATE", "CHANNEL_UPDATE", "THREAD_CREATE", "THREAD_UPDATE":
		return read(l, e, func(ch *discordgo.Channel) error { c.rooms.set(ch.ID, roomFrom(ch)); return nil })
	case "CHANNEL_DELETE", "THREAD_DELETE":
		return read(l, e, func(ch *discordgo.Channel) error { c.rooms.drop(ch.ID); return nil })
	case "MESSAGE_CREATE":
		return read(l, e, func(m *discordgo.Message) error {
			l.checkForeign(m, nonceIn(e.RawData))
			return l.heard(ctx, m, false)
		})
	case "MESSAGE_UPDATE":
		return read(l, e, func(m *discordgo.Message) error { return l.heard(ctx, m, true) })
	}
	return nil
}

// read decodes an event for its handler.
func read[T any](l *link, e *discordgo.Event, handle func(*T) error) error {
	v := new(T)
	if err := json.Unmarshal(e.RawData, v); err != nil {
		l.c.log.Warn("an event of Discord's cannot be read and is left out", "account", l.c.account, "type", e.Type, "error", l.c.scrub(err.Error()))
		return nil
	}
	return handle(v)
}

// connected tells people.
func (l *link) connected(how string) {
	l.in.Status(gateway.ChannelStatus{State: gateway.ChannelConnected, Detail: how, Self: l.c.memory.self().name})
}

// begun notes the new session, and reads what was missed in the DMs. The guilds' rooms follow as each guild is named.
func (l *link) begun(ctx context.Context, r *discordgo.Ready, raw json.RawMessage) error {
	var more struct {
		URL string `json:"resume_gateway_url"`
	}
	_ = json.Unmarshal(raw, &more)
	if r.User == nil || r.SessionID == "" || more.URL == "" {
		return &closedError{why: "Discord's READY lacks the session"}
	}
	l.c.memory.setSelf(self{r.User.ID, r.User.Username})
	l.c.memory.setSession(r.SessionID, more.URL)
	l.connected("new session")
	for _, id := range l.c.memory.dms() {
		if err := l.catchUp(ctx, id, ""); err != nil {
			return err
		}
	}
	return nil
}

// enter notes a guild's rooms, and reads what was missed in them, once a session.
func (l *link) enter(ctx context.Context, g *discordgo.Guild) error {
	if g == nil {
		return nil
	}
	all := append(append([]*discordgo.Channel(nil), g.Channels...), g.Threads...)
	for _, ch := range all {
		if ch != nil {
			ch.GuildID = g.ID
			l.c.rooms.set(ch.ID, roomFrom(ch))
		}
	}
	if !l.fresh || l.guild[g.ID] {
		return nil
	}
	l.guild[g.ID] = true
	for _, ch := range all {
		if ch == nil {
			continue
		}
		last, err := strconv.ParseUint(ch.LastMessageID, 10, 64)
		if err != nil || last <= l.c.memory.since(ch.ID, time.Now()) {
			continue
		}
		if err := l.catchUp(ctx, ch.ID, g.ID); err != nil {
			return err
		}
		l.c.memory.saw(ch.ID, ch.LastMessageID, false) // and is not read again where the bot may not read, or the last one was deleted
	}
	return nil
}

// heard brings a message to the bus, when it is one of a person.
func (l *link) heard(ctx context.Context, m *discordgo.Message, edited bool) error {
	c := l.c
	dm := m.GuildID == ""
	if forPeople(m, c.memory.self().id) && (!edited || m.EditedTimestamp != nil) {
		e, err := c.event(ctx, m, edited)
		if err != nil {
			return err
		}
		if dm {
			c.rooms.setDM(m.Author.ID, m.ChannelID)
		}
		// The bus may be out of reach. Nothing is dropped: the connection waits, and when it ends Discord tells all again.
		err = c.patiently(ctx, func() error { return l.in.Accept(ctx, e) })
		if err != nil {
			return err
		}
	}
	if !edited {
		c.memory.saw(m.ChannelID, m.ID, dm)
	}
	return nil
}

// forPeople reports whether a message is something that a person said.
func forPeople(m *discordgo.Message, me string) bool {
	return m.ID != "" && m.Author != nil && !m.Author.Bot && m.Author.ID != me && m.WebhookID == "" && spoken(m.Type)
}

// spoken leaves out what Discord itself says: somebody joined, something was pinned.
func spoken(t discordgo.MessageType) bool {
	return t == discordgo.MessageTypeDefault || t == discordgo.MessageTypeReply
}

// event makes the channel event of a message.
func (c *channel) event(ctx context.Context, m *discordgo.Message, edited bool) (gateway.ChannelEvent, error) {
	e := gateway.ChannelEvent{
		ID: m.ID, Message: m.ID, Team: m.GuildID, Sender: gateway.ChannelSender{ID: m.Author.ID, Name: m.Author.Username}, At: m.Timestamp,
	}
	if edited {
		e.ID, e.Edited = m.ID+":"+strconv.FormatInt(m.EditedTimestamp.UnixMicro(), 10), true
	}
	me := c.memory.self().id
	if m.GuildID == "" {
		e.Peer, e.Mentioned = gateway.ChannelPeer{Kind: gateway.PeerDM, ID: m.Author.ID}, true
	} else {
		where, err := c.lookUp(ctx, m.ChannelID, m.GuildID)
		if err != nil {
			return e, err
		}
		e.Peer = gateway.ChannelPeer{Kind: gateway.PeerChannel, ID: m.ChannelID}
		if where.thread() && where.parent != "" {
			e.Peer.ID, e.Thread = where.parent, m.ChannelID
		}
	}
	for _, u := range m.Mentions {
		e.Mentioned = e.Mentioned || u != nil && u.ID == me
	}
	if r := m.ReferencedMessage; r != nil && r.Author != nil && r.Author.ID == me {
		e.Mentioned = true
	}
	e.Text = text(m, me)
	for _, f := range m.Attachments {
		if f != nil {
			e.Files = append(e.Files, gateway.ChannelFile{Name: f.Filename, Type: f.ContentType, Size: int64(f.Size)})
		}
	}
	return e, nil
}

// text is what a message says: without the account's own name in front, and with the others' names as people read them.
func text(m *discordgo.Message, me string) string {
	said := strings.TrimSpace(m.Content)
	for _, name := range []string{"<@" + me + ">", "<@!" + me + ">"} {
		said = strings.TrimSpace(strings.TrimPrefix(said, name))
	}
	for _, u := range m.Mentions {
		if u != nil {
			said = strings.NewReplacer("<@"+u.ID+">", "@"+u.Username, "<@!"+u.ID+">", "@"+u.Username).Replace(said)
		}
	}
	return said
}

// nonceIn reads the nonce of a message; discordgo's has none.
func nonceIn(raw json.RawMessage) string {
	var m struct {
		Nonce any `json:"nonce"`
	}
	_ = json.Unmarshal(raw, &m)
	s, _ := m.Nonce.(string)
	return s
}

// patience is the longest pause before the bus is tried again.
const patience = 2 * time.Second

// patiently does something again until it succeeds, ctx ends, or Discord refuses it for good.
func (c *channel) patiently(ctx context.Context, do func() error) error {
	wait := c.backoff(min(c.timing.most, patience))
	for {
		err := do()
		if err == nil || ctx.Err() != nil || gone(err) || unauthorized(err) {
			return err
		}
		pause := max(wait.NextBackOff(), pauseOf(err))
		c.log.Warn("not done yet; trying again", "account", c.account, "error", err, "after", pause)
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}
