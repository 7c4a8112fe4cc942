package discord

import (
	"context"
	"fmt"
	"net/url"
	"sync"

	"github.com/bwmarrin/discordgo"

	"github.com/gatemesh/gatemesh/gateway"
)

// A room is what is known of one of Discord's channels: a text channel, a thread, a DM.
type room struct {
	kind   discordgo.ChannelType
	parent string // of a thread
	guild  string
}

func (r room) thread() bool {
	return r.kind == discordgo.ChannelTypeGuildPublicThread || r.kind == discordgo.ChannelTypeGuildPrivateThread || r.kind == discordgo.ChannelTypeGuildNewsThread
}

func roomFrom(c *discordgo.Channel) room {
	return room{kind: c.Type, parent: c.ParentID, guild: c.GuildID}
}

// rooms are those that are known. Only what is asked for is kept beyond what Discord tells by itself.
type rooms struct {
	mu  sync.Mutex
	by  map[string]room
	dms map[string]string // person -> DM channel
}

func (r *rooms) set(id string, v room) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[string]room{}
	}
	r.by[id] = v
}

func (r *rooms) drop(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.by, id)
}

func (r *rooms) get(id string) (room, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.by[id]
	return v, ok
}

func (r *rooms) setDM(person, channel string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dms == nil {
		r.dms = map[string]string{}
	}
	r.dms[person] = channel
}

func (r *rooms) dm(person string) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.dms[person]
	return v, ok
}

// roomOf returns the channel that a post goes to. A DM is opened when it is not known; that is the same one every time, and shows nothing to anybody.
func (c *channel) roomOf(ctx context.Context, to gateway.PostTarget) (string, error) {
	switch {
	case to.Thread != "":
		return to.Thread, nil
	case to.Peer.Kind != gateway.PeerDM:
		if to.Peer.ID == "" {
			return "", fmt.Errorf("discord: no channel is named")
		}
		return to.Peer.ID, nil
	}
	if id, ok := c.rooms.dm(to.Peer.ID); ok {
		return id, nil
	}
	var made discordgo.Channel
	if err := c.do(ctx, "POST", "/users/@me/channels", "dm", map[string]string{"recipient_id": to.Peer.ID}, &made, nil); err != nil {
		return "", err
	}
	if made.ID == "" {
		return "", fmt.Errorf("discord: open a DM: the answer has no id")
	}
	c.rooms.setDM(to.Peer.ID, made.ID)
	return made.ID, nil
}

// lookUp returns what a channel is, and asks when it does not know. What is not to be seen counts as a plain channel.
func (c *channel) lookUp(ctx context.Context, id, guild string) (room, error) {
	if r, ok := c.rooms.get(id); ok {
		return r, nil
	}
	var got discordgo.Channel
	err := c.patiently(ctx, func() error {
		return c.do(ctx, "GET", "/channels/"+url.PathEscape(id), "GET channel", nil, &got, nil)
	})
	switch {
	case gone(err):
		return room{guild: guild}, nil
	case err != nil:
		return room{}, err
	}
	r := roomFrom(&got)
	c.rooms.set(id, r)
	return r, nil
}

// self is who the bot is.
type self struct{ id, name string }

// whoAmI asks, unless a session has told.
func (c *channel) whoAmI(ctx context.Context) (self, error) {
	if me := c.memory.self(); me.id != "" {
		return me, nil
	}
	var u discordgo.User
	if err := c.do(ctx, "GET", "/users/@me", "GET me", nil, &u, nil); err != nil {
		return self{}, err
	}
	c.memory.setSelf(self{u.ID, u.Username})
	return self{u.ID, u.Username}, nil
}
