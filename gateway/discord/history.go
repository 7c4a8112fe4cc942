package discord

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/bwmarrin/discordgo"
)

const (
	page     = 100 // messages; Discord's most
	maxPages = 10
)

// catchUp brings to the bus what was said in a channel since its last known message. What the connection then tells again is taken in once.
func (l *link) catchUp(ctx context.Context, room, guild string) error {
	c := l.c
	var found []*discordgo.Message
	var whole bool
	err := c.patiently(ctx, func() (err error) {
		found, whole, err = c.history(ctx, room, c.memory.since(room, time.Now()))
		return err
	})
	switch {
	case gone(err):
		// No warning: a guild names its private rooms to every bot.
		c.log.Debug("a channel's history cannot be read: the bot needs the permissions View Channels and Read Message History there",
			"account", c.account, "channel", room, "error", err)
		return nil
	case err != nil:
		return err
	}
	if !whole {
		c.log.Warn("too much was said in a channel meanwhile; the rest is not read", "account", c.account, "channel", room, "read", len(found))
	}
	for _, m := range found {
		m.GuildID = guild // a history does not name it
		if err := l.heard(ctx, m, false); err != nil {
			return err
		}
	}
	return nil
}

// history reads the messages after an id, oldest first, 1,000 at most; whole is false when there are more.
func (c *channel) history(ctx context.Context, room string, after uint64) (found []*discordgo.Message, whole bool, err error) {
	path := "/channels/" + url.PathEscape(room) + "/messages"
	for range maxPages {
		var got []*discordgo.Message
		query := fmt.Sprintf("?limit=%d&after=%d", page, after)
		if err := c.do(ctx, "GET", path+query, "GET "+path, nil, &got, nil); err != nil {
			return nil, false, err
		}
		for i := len(got) - 1; i >= 0; i-- { // the newest comes first
			m := got[i]
			if m == nil {
				continue
			}
			if id, err := strconv.ParseUint(m.ID, 10, 64); err == nil && id > after {
				after = id
				found = append(found, m)
			}
		}
		if len(got) < page {
			return found, true, nil
		}
	}
	return found, false, nil
}
