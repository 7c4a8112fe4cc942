package slack

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/slack-go/slack"

	"github.com/gatemesh/gatemesh/gateway"
)

// textLimit is how many characters Slack's guidance for chat.postMessage gives a message's text. Slack takes more (and
// cuts off what is beyond [textMax]), but breaks a longer one into several messages.
const textLimit = 4000

// textMax is where Slack cuts a text off without an error.
const textMax = 40000

// apiTimeout bounds one call of the Web API, from dialling to the last byte of the answer.
const apiTimeout = 30 * time.Second

// Factory makes adapters for the channel "slack".
func Factory() gateway.ChannelFactory {
	return gateway.ChannelFactory{
		New:    func(d gateway.ChannelDeps) (gateway.Channel, error) { return open(d, defaultTimings) },
		Limits: gateway.ChannelLimits{Text: textLimit},
	}
}

// settings are the keys of channels.slack that this adapter reads; others are OpenClaw's and mean nothing here.
type settings struct {
	// Mode is how Slack's events arrive: "socket", the default, is the only one.
	Mode string `json:"mode"`
	// AppToken (xapp-...) opens Socket Mode connections.
	AppToken string `json:"appToken"`
	// BotToken (xoxb-...) calls the Web API; Token is its older name.
	BotToken string `json:"botToken"`
	Token    string `json:"token"`
	// APIURL is where the Web API is; default https://slack.com/api/. GovSlack is at https://slack-gov.com/api/.
	APIURL string `json:"apiUrl"`
	// AckReaction is the emoji's name that marks a message as being worked on; default "eyes"; empty: none.
	AckReaction *string `json:"ackReaction"`
}

// defaultReaction marks a message as being worked on.
const defaultReaction = "eyes"

// parseSettings reads and checks an account's block. Errors name the key, never its value.
func parseSettings(account string, raw json.RawMessage) (settings, error) {
	key := "channels.slack"
	if account != "" && account != "default" {
		key += ".accounts." + account
	}
	var s settings
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &s); err != nil {
			if te, ok := asType[*json.UnmarshalTypeError](err); ok {
				return s, fmt.Errorf("%s.%s: a string is wanted, not a %s", key, te.Field, te.Value)
			}
			return s, fmt.Errorf("%s: not a JSON object", key)
		}
	}
	if s.BotToken == "" {
		s.BotToken = s.Token
	}
	if s.APIURL == "" {
		s.APIURL = slack.APIURL
	}
	if s.AckReaction == nil {
		name := defaultReaction
		s.AckReaction = &name
	}
	u, err := url.Parse(s.APIURL)
	switch {
	case s.Mode != "" && s.Mode != "socket":
		return s, fmt.Errorf("%s.mode: only \"socket\" is known: gatemesh reads Slack's events over Socket Mode", key)
	case s.AppToken == "":
		return s, fmt.Errorf("%s.appToken is missing: the app-level token (xapp-...) with connections:write, from the app's page Basic Information", key)
	case s.BotToken == "":
		return s, fmt.Errorf("%s.botToken is missing: the Bot User OAuth Token (xoxb-...), from the app's page OAuth & Permissions", key)
	case strings.HasPrefix(s.AppToken, "xoxb-") || strings.HasPrefix(s.BotToken, "xapp-"):
		return s, fmt.Errorf("%s: appToken and botToken are interchanged: the app token begins with xapp-, the bot token with xoxb-", key)
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.RawQuery != "" || u.User != nil:
		return s, fmt.Errorf("%s.apiUrl: a URL like %s is wanted", key, slack.APIURL)
	}
	if !strings.HasSuffix(s.APIURL, "/") {
		s.APIURL += "/" // slack-go appends the method's name
	}
	reaction := strings.Trim(*s.AckReaction, ":")
	s.AckReaction = &reaction
	return s, nil
}

// account is one Slack app in one workspace.
type account struct {
	set     settings
	log     hclog.Logger
	timings timings
	http    *http.Client
	secrets []string // what no error may show

	runs  atomic.Int32         // calls of Run that go on
	self  atomic.Pointer[self] // who we are, once known
	names cache                // user id to name
	kinds cache                // channel id to kind of peer
	ims   cache                // user id to the channel of the direct messages with it
}

// self is what auth.test says of the bot token.
type self struct{ user, bot, team, name string }

var (
	_ gateway.ChannelFinder  = (*account)(nil)
	_ gateway.ChannelReactor = (*account)(nil)
)

func open(d gateway.ChannelDeps, t timings) (*account, error) {
	set, err := parseSettings(d.Account, d.Settings)
	if err != nil {
		return nil, err
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.IdleConnTimeout = time.Minute
	a := &account{
		set: set, log: d.Logger, timings: t,
		http:    &http.Client{Transport: base, Timeout: apiTimeout, CheckRedirect: stay},
		secrets: []string{set.AppToken, set.BotToken},
	}
	a.names.max, a.kinds.max, a.ims.max = cacheSize, cacheSize, cacheSize
	return a, nil
}

// stay follows no redirect: it would carry the token to whoever is named in it.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// client is slack-go's client over d.
func (a *account) client(d doer) *slack.Client {
	return slack.New(a.set.BotToken, slack.OptionAPIURL(a.set.APIURL), slack.OptionAppLevelToken(a.set.AppToken), slack.OptionHTTPClient(d))
}

// hangUp leaves no idle connection behind once nobody runs the account: nothing else would close it.
func (a *account) hangUp() {
	if a.runs.Load() == 0 {
		a.http.CloseIdleConnections()
	}
}

// cacheSize is how many entries a cache holds: then it begins anew.
const cacheSize = 4096

// cacheFor is how long an entry counts: people rename themselves.
const cacheFor = time.Hour

// cache remembers what Slack said of an id.
type cache struct {
	max int
	mu  sync.Mutex
	m   map[string]cached
}

type cached struct {
	value string
	until time.Time
}

func (c *cache) get(id string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.m[id]
	if !ok || time.Now().After(e.until) {
		return "", false
	}
	return e.value, true
}

func (c *cache) put(id, value string, keep time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= c.max {
		c.m = map[string]cached{}
	}
	c.m[id] = cached{value, time.Now().Add(keep)}
}
