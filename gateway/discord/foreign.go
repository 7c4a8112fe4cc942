package discord

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/bwmarrin/discordgo"

	"github.com/gatemesh/gatemesh/gateway"
)

// alarmEvery is how often foreign posts raise the alarm at most: a program that posts does it often.
const alarmEvery = time.Minute

// starts is how many sessions the token may still begin today, as this gateway counts.
type starts struct {
	sync.Mutex
	known bool
	n     int
	alarm time.Time // the last one about a post
}

// mayBegin asks where the gateway is and whether a new session may be begun, and counts it.
func (c *channel) mayBegin(ctx context.Context, in gateway.Ingress) (string, error) {
	g, err := c.gatewayBot(ctx)
	if err != nil {
		return "", err
	}
	limit := g.SessionStartLimit
	c.compare(limit.Remaining, in)
	if limit.Total > 0 && limit.Remaining == 0 {
		after := time.Duration(limit.ResetAfter) * time.Millisecond
		return "", &pauseError{fmt.Errorf("discord: the token has begun all of its %d sessions of today", limit.Total), min(after, time.Hour)}
	}
	c.starts.Lock()
	c.starts.n--
	c.starts.Unlock()
	return g.URL, nil
}

func (c *channel) gatewayBot(ctx context.Context) (*discordgo.GatewayBotResponse, error) {
	var g discordgo.GatewayBotResponse
	if err := c.do(ctx, "GET", "/gateway/bot", "GET gateway", nil, &g, nil); err != nil {
		return nil, err
	}
	if g.URL == "" {
		return nil, &apiError{what: "GET /gateway/bot", status: 200, text: "the answer has no address"}
	}
	return &g, nil
}

// compare raises the alarm when more sessions were begun with the token than this gateway began. Discord gives back all of them once a day.
func (c *channel) compare(remaining int, in gateway.Ingress) {
	c.starts.Lock()
	missing := c.starts.n - remaining
	known := c.starts.known
	c.starts.known, c.starts.n = true, remaining
	c.starts.Unlock()
	if known && missing > 0 {
		in.Foreign(fmt.Sprintf("%d sessions were begun with this bot's token that this gateway did not begin: "+
			"reset the token at the developer portal if no other program of yours uses it", missing))
	}
}

// watchForeign looks at the sessions from time to time.
func (c *channel) watchForeign(ctx context.Context, in gateway.Ingress) {
	for sleep(ctx, c.timing.watch) {
		if id, _, _ := c.memory.session(); id == "" {
			continue // between sessions it is not clear which were counted
		}
		if g, err := c.gatewayBot(ctx); err == nil {
			c.compare(g.SessionStartLimit.Remaining, in)
		}
	}
}

// checkForeign notes the bot's own posts, and raises the alarm at one that no gateway of a mesh has made.
func (l *link) checkForeign(m *discordgo.Message, nonce string) {
	if m.Author == nil || m.Author.ID != l.c.memory.self().id || m.WebhookID != "" || !spoken(m.Type) {
		return
	}
	if ours(nonce) {
		l.c.sent.add(nonce, m.ID)
		return
	}
	if l.c.sent.known(m.ID) {
		return // posted here, told again
	}
	l.c.starts.Lock()
	quiet := time.Since(l.c.starts.alarm) < alarmEvery
	if !quiet {
		l.c.starts.alarm = time.Now()
	}
	l.c.starts.Unlock()
	if quiet {
		return
	}
	l.in.Foreign(fmt.Sprintf("message %s in channel %s was posted with this bot's token by a program that is not gatemesh", m.ID, m.ChannelID))
}
