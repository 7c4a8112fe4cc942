package discord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bwmarrin/discordgo"
	"github.com/cenkalti/backoff/v4"
	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/gateway"
)

// defaultBase is where Discord's API is, without the version.
const defaultBase = "https://discord.com"

// apiPath is the version that this package speaks.
const apiPath = "/api/v10"

// Settings is channels.discord (and what channels.discord.accounts.<account> has over it), as far as it is this adapter's.
type Settings struct {
	// Token is the bot's token, from the page Bot of the developer portal; with or without "Bot " before it.
	Token string `json:"token"`
	// BaseURL is where the API is instead of https://discord.com: a proxy, or a fake for tests. The token is sent there.
	BaseURL string `json:"baseUrl"`
}

// timing is what tests shorten.
type timing struct {
	retry  time.Duration // first pause before a retry; it grows
	most   time.Duration // the longest pause
	pause  time.Duration // before a new session after "invalid session": up to five times as long, as Discord asks
	begin  time.Duration // between two identifies: Discord takes one in five seconds
	steady time.Duration // a connection that lived so long makes the pauses short again
	save   time.Duration // between two writes to the Vault
	watch  time.Duration // between two looks at how many sessions were begun
	silent time.Duration // how long the gateway may take for hello, and for READY
}

var usual = timing{
	retry: 100 * time.Millisecond, most: 30 * time.Second, pause: time.Second, begin: 5 * time.Second, steady: 10 * time.Second,
	save: 2 * time.Second, watch: 5 * time.Minute, silent: 15 * time.Second,
}

// Factory makes the adapter of a Discord account.
func Factory() gateway.ChannelFactory {
	return gateway.ChannelFactory{
		New:    func(d gateway.ChannelDeps) (gateway.Channel, error) { return open(d, usual) },
		Limits: gateway.ChannelLimits{Text: 2000},
	}
}

// A channel is one bot.
type channel struct {
	account string
	token   string
	base    string // of the REST API, with the version
	vault   gateway.Vault
	log     hclog.Logger
	timing  timing

	rest    *discordgo.Session // REST alone; see doc.go
	idle    func()             // closes the connections that nobody uses
	running atomic.Bool
	begun   time.Time // the last identify; Run's own
	starts  starts

	memory *memory
	rooms  rooms
	sent   sent
}

var (
	_ gateway.Channel        = (*channel)(nil)
	_ gateway.ChannelFinder  = (*channel)(nil)
	_ gateway.ChannelReactor = (*channel)(nil)
)

// open reads the settings. It connects to nothing.
func open(d gateway.ChannelDeps, t timing) (*channel, error) {
	var s Settings
	if len(d.Settings) > 0 {
		if err := json.Unmarshal(d.Settings, &s); err != nil {
			// The error of json may quote the value, and that may be the token.
			return nil, errors.New("channels.discord: token and baseUrl must be texts")
		}
	}
	token := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(s.Token)+" ", "Bot "))
	if token == "" {
		return nil, errors.New("channels.discord.token is missing: make a bot at https://discord.com/developers/applications and set the token of its page Bot")
	}
	if strings.ContainsAny(token, " \t\r\n") {
		return nil, errors.New("channels.discord.token has blanks in it: it is one word")
	}
	if s.BaseURL == "" {
		s.BaseURL = defaultBase
	}
	u, err := url.Parse(s.BaseURL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("channels.discord.baseUrl must be a whole address, as https://discord.com")
	}
	rest, err := discordgo.New("Bot " + token)
	if err != nil {
		return nil, fmt.Errorf("channels.discord: %w", err)
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	rest.Client = &http.Client{
		Transport: wire{tr}, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	rest.LogLevel = -1 // it would write to the process's global log
	rest.ShouldRetryOnRateLimit, rest.MaxRestRetries = false, 0
	return &channel{
		account: d.Account, token: token, base: strings.TrimRight(s.BaseURL, "/") + apiPath, vault: d.Vault, log: d.Logger, timing: t,
		rest: rest, idle: tr.CloseIdleConnections, memory: newMemory(token),
	}, nil
}

// Run implements [gateway.Channel].
func (c *channel) Run(ctx context.Context, in gateway.Ingress) error {
	c.running.Store(true)
	defer c.idle()
	defer c.running.Store(false)
	defer in.Status(gateway.ChannelStatus{State: gateway.ChannelStopped})

	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	if c.vault != nil {
		if err := c.memory.load(ctx, c.vault); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read where the account %s stopped: %w", c.account, err)
		}
		beside.Go(func() { c.memory.keepSaved(ctx, c.vault, c.timing.save, c.log) })
	}
	c.memory.begin(time.Now())
	beside.Go(func() { c.watchForeign(ctx, in) })

	wait := c.backoff(c.timing.most)
	for state := gateway.ChannelConnecting; ; state = gateway.ChannelReconnecting {
		in.Status(gateway.ChannelStatus{State: state, Self: c.memory.self().name})
		began := time.Now()
		err := c.session(ctx, in)
		if ctx.Err() != nil {
			return nil
		}
		if fatal := c.fatal(err); fatal != nil {
			return fatal
		}
		if time.Since(began) > c.timing.steady {
			wait.Reset()
		}
		pause := max(wait.NextBackOff(), pauseOf(err))
		c.log.Warn("the connection to Discord ended; connecting again", "account", c.account, "why", err, "after", pause)
		in.Status(gateway.ChannelStatus{State: gateway.ChannelReconnecting, Detail: err.Error(), Self: c.memory.self().name})
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// fatal says what only a person can mend; nil: try again.
func (c *channel) fatal(err error) error {
	var closed *closedError
	switch {
	case unauthorized(err):
		return badToken(err)
	case !errors.As(err, &closed):
		return nil
	}
	switch closed.code {
	case 4004:
		return badToken(err)
	case 4014:
		return gateway.BadCredentials("switch on MESSAGE CONTENT INTENT on the page Bot of https://discord.com/developers/applications", err)
	case 4013:
		return gateway.BadCredentials("Discord does not know the intents that this build asks for: update gatemesh", err)
	case 4010, 4011:
		return gateway.BadCredentials("the bot is in more guilds than one connection may serve: take it out of some", err)
	case 4012:
		return gateway.BadCredentials("Discord has switched off version 10 of its API: update gatemesh", err)
	}
	return nil
}

func badToken(err error) error {
	return gateway.BadCredentials("set channels.discord.token to the token of the page Bot of https://discord.com/developers/applications", err)
}

// backoff grows from the first pause to the longest, for ever.
func (c *channel) backoff(most time.Duration) *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(c.timing.retry), backoff.WithMaxInterval(most),
		backoff.WithMultiplier(2), backoff.WithMaxElapsedTime(0))
}

// sleep waits, and reports whether it was not for nothing: false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
