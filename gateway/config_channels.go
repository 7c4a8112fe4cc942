package gateway

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"
)

// BindingConfig routes what is said on a channel to an agent.
type BindingConfig struct {
	AgentID string      `json:"agentId" cfg:"id" doc:"The agent that answers."`
	Match   MatchConfig `json:"match" doc:"What it answers: all that is said must fit."`
	_       struct{}    `accept:"type comment acp"`
}

// MatchConfig is what a binding matches.
type MatchConfig struct {
	Channel   string     `json:"channel" doc:"Name of the channel."`
	AccountID string     `json:"accountId" doc:"Account of the channel. Empty: its default account; *: any."`
	Peer      PeerConfig `json:"peer" doc:"One correspondent."`
	GuildID   string     `json:"guildId" doc:"Discord: the server."`
	TeamID    string     `json:"teamId" doc:"Slack: the workspace."`
	Roles     []string   `json:"roles" doc:"Discord: roles of who asks. Not known to this version, which refuses a binding that names some."`
}

// PeerConfig is one correspondent of a channel.
type PeerConfig struct {
	Kind string `json:"kind" doc:"dm (or direct), group or channel."`
	ID   string `json:"id" doc:"Id in the channel."`
}

// ChannelConfig is one chat channel. What is not named here is its adapter's.
type ChannelConfig struct {
	Enabled        bool                            `json:"enabled" doc:"Whether its accounts are connected. Not said: true."`
	Accounts       map[string]ChannelAccountConfig `json:"accounts" doc:"Its accounts by id; each has what the channel says, and its own over it. Empty: one, with the id default."`
	DefaultAccount string                          `json:"defaultAccount" doc:"The account that a binding without accountId is about. Empty: default, else the only one, else the first in the alphabet."`
	Gateways       []string                        `json:"gateways" doc:"Gateways that may own the accounts, the preferred one first. Empty: all that have it configured."`
	DMPolicy       string                          `json:"dmPolicy" cfg:"live" enum:"|open|allowlist|disabled|pairing" doc:"Who is answered in direct messages: all, those of allowFrom, nobody. Empty: open, or allowlist when there is an allowFrom. pairing is OpenClaw's and read as allowlist: there are no pairing codes here."`
	AllowFrom      []any                           `json:"allowFrom" cfg:"live" doc:"Ids of who is answered in direct messages; * is all."`
	GroupPolicy    string                          `json:"groupPolicy" cfg:"live" enum:"|open|allowlist|disabled" doc:"Who is answered in groups and rooms: all, those of groupAllowFrom (else allowFrom), nobody. Empty: open."`
	GroupAllowFrom []any                           `json:"groupAllowFrom" cfg:"live" doc:"Ids of who is answered in groups and rooms."`
	RequireMention bool                            `json:"requireMention" cfg:"live" doc:"Whether groups and rooms are answered only when the account is named. Not said: true."`
	AnswerWithin   time.Duration                   `json:"answerWithin" cfg:"live" min:"1m" max:"24h" doc:"How long the answer to a message may take; then its sender is told that there is none. Empty: 1h."`
	Token          string                          `json:"token" cfg:"secret,live" doc:"Bot token."`
	BotToken       string                          `json:"botToken" cfg:"secret,live" doc:"Bot token, where the channel calls it so."`
	AppToken       string                          `json:"appToken" cfg:"secret,live" doc:"App token."`
	Rest           map[string]any                  `json:"<key>" cfg:"rest,live" doc:"Any other key of the channel's adapter."`
}

// ChannelAccountConfig is one account of a channel: what differs from the channel.
type ChannelAccountConfig struct {
	Enabled        bool           `json:"enabled" doc:"Whether it is connected."`
	Gateways       []string       `json:"gateways" doc:"Gateways that may own it."`
	DMPolicy       string         `json:"dmPolicy" cfg:"live" enum:"|open|allowlist|disabled|pairing" doc:"Who is answered in direct messages."`
	AllowFrom      []any          `json:"allowFrom" cfg:"live" doc:"Ids of who is answered in direct messages."`
	GroupPolicy    string         `json:"groupPolicy" cfg:"live" enum:"|open|allowlist|disabled" doc:"Who is answered in groups and rooms."`
	GroupAllowFrom []any          `json:"groupAllowFrom" cfg:"live" doc:"Ids of who is answered in groups and rooms."`
	RequireMention bool           `json:"requireMention" cfg:"live" doc:"Whether groups and rooms are answered only when it is named."`
	AnswerWithin   time.Duration  `json:"answerWithin" cfg:"live" min:"1m" max:"24h" doc:"How long an answer may take."`
	Token          string         `json:"token" cfg:"secret,live" doc:"Bot token."`
	BotToken       string         `json:"botToken" cfg:"secret,live" doc:"Bot token, where the channel calls it so."`
	AppToken       string         `json:"appToken" cfg:"secret,live" doc:"App token."`
	Rest           map[string]any `json:"<key>" cfg:"rest,live" doc:"Any other key of the channel's adapter."`
}

// defaultAccount is the id of an account that has no name.
const defaultAccount = "default"

// ChannelAccount is one account of a channel as it is configured, with what its channel says.
type ChannelAccount struct {
	Channel, ID string
	Enabled     bool
	// Default: bindings without an accountId are about it.
	Default        bool
	Gateways       []string
	DMPolicy       string
	AllowFrom      []string
	GroupPolicy    string
	GroupAllowFrom []string
	RequireMention bool
	AnswerWithin   time.Duration
	settings       map[string]any
	path           string
}

// channelInbox begins the names of accounts' inboxes.
const channelInbox = "channel-"

// Inbox is the name of the account's inbox in the mesh.
func (a *ChannelAccount) Inbox() string { return channelInbox + a.Channel + "-" + a.ID }

// channelInherit are the fields in which an account follows its channel.
var channelInherit = []string{"Gateways", "DMPolicy", "AllowFrom", "GroupPolicy", "GroupAllowFrom", "AnswerWithin", "Token", "BotToken", "AppToken"}

// ChannelAccounts are the accounts of all channels, by name. Call Normalize first.
func (c *Config) ChannelAccounts() []ChannelAccount {
	var all []ChannelAccount
	for _, name := range slices.Sorted(maps.Keys(c.Channels)) {
		ch := c.Channels[name]
		ids := slices.Sorted(maps.Keys(ch.Accounts))
		if len(ids) == 0 {
			ids = []string{defaultAccount}
		}
		def := ch.DefaultAccount
		if def == "" {
			if def = ids[0]; slices.Contains(ids, defaultAccount) {
				def = defaultAccount
			}
		}
		for _, id := range ids {
			all = append(all, c.channelAccount(name, ch, id, id == def))
		}
	}
	return all
}

// channelFlag is a boolean that is true unless somebody says otherwise, first in the account, then in its channel.
func (c *Config) channelFlag(own, channel bool, ownPath, path, key string) bool {
	switch {
	case c.source.explicit(cfgJoin(ownPath, key)):
		return own
	case c.source.explicit(cfgJoin(path, key)):
		return channel
	}
	return true
}

func (c *Config) channelAccount(name string, ch ChannelConfig, id string, isDefault bool) ChannelAccount {
	path := cfgJoin("channels", name)
	ownPath := cfgJoin(path+".accounts", id)
	own, named := ch.Accounts[id]
	if !named {
		ownPath = path
	}
	enabled := c.channelFlag(own.Enabled, ch.Enabled, ownPath, path, "enabled")
	if !named {
		enabled = c.channelFlag(ch.Enabled, ch.Enabled, path, path, "enabled")
	}
	mention := c.channelFlag(own.RequireMention, ch.RequireMention, ownPath, path, "requireMention")
	if !named {
		mention = c.channelFlag(ch.RequireMention, ch.RequireMention, path, path, "requireMention")
	}
	o, of := reflect.ValueOf(&own).Elem(), reflect.ValueOf(ch)
	for _, f := range channelInherit {
		if v := o.FieldByName(f); v.IsZero() {
			v.Set(of.FieldByName(f))
		}
	}
	settings := maps.Clone(ch.Rest)
	if settings == nil {
		settings = map[string]any{}
	}
	maps.Copy(settings, own.Rest)
	for key, value := range map[string]string{"token": own.Token, "botToken": own.BotToken, "appToken": own.AppToken} {
		if value != "" {
			settings[key] = value
		}
	}
	a := ChannelAccount{
		Channel: name, ID: id, Enabled: enabled, Default: isDefault, Gateways: own.Gateways, DMPolicy: own.DMPolicy,
		AllowFrom: channelIDs(own.AllowFrom), GroupPolicy: own.GroupPolicy, GroupAllowFrom: channelIDs(own.GroupAllowFrom),
		RequireMention: mention, AnswerWithin: own.AnswerWithin, settings: settings, path: ownPath,
	}
	if a.DMPolicy == "" {
		a.DMPolicy = "open"
		if len(a.AllowFrom) > 0 && !slices.Contains(a.AllowFrom, "*") {
			a.DMPolicy = "allowlist"
		}
	}
	if a.DMPolicy == "pairing" {
		a.DMPolicy = "allowlist"
	}
	if a.GroupPolicy == "" {
		a.GroupPolicy = "open"
	}
	if a.GroupAllowFrom == nil {
		a.GroupAllowFrom = a.AllowFrom
	}
	if a.AnswerWithin == 0 {
		a.AnswerWithin = time.Hour
	}
	return a
}

func channelIDs(list []any) (ids []string) {
	for _, x := range list {
		if f, ok := x.(float64); ok && f == float64(int64(f)) {
			ids = append(ids, fmt.Sprint(int64(f)))
			continue
		}
		ids = append(ids, fmt.Sprint(x))
	}
	return ids
}

// Settings is the block that the account's adapter reads. An environment variable that a secret names must be set.
func (c *Config) channelSettings(a *ChannelAccount) (json.RawMessage, error) {
	resolved, err := c.resolveSecrets(a.settings, a.path)
	if err != nil {
		return nil, err
	}
	return json.Marshal(resolved)
}

// resolveSecrets puts values where OpenClaw's {source, id} stands.
func (c *Config) resolveSecrets(v any, path string) (any, error) {
	switch v := v.(type) {
	case map[string]any:
		source, isRef := v["source"].(string)
		id, hasID := v["id"].(string)
		if isRef && hasID {
			if source != "env" {
				return nil, fmt.Errorf("%s: secrets from source %q are not supported by this version: use env", path, cfgShort(source))
			}
			value, _ := c.source.env(id)
			if value == "" {
				return nil, fmt.Errorf("%s: environment variable %s is not set", path, cfgShort(id))
			}
			return value, nil
		}
		out := make(map[string]any, len(v))
		for key, x := range v {
			var err error
			if out[key], err = c.resolveSecrets(x, cfgJoin(path, key)); err != nil {
				return nil, err
			}
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			var err error
			if out[i], err = c.resolveSecrets(x, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return v, nil
}

// channels checks bindings and channels, but for what only an adapter knows.
func (v *configValidator) channels() {
	for i, b := range v.cfg.Bindings {
		path := fmt.Sprintf("bindings[%d]", i)
		switch {
		case b.AgentID == "":
			v.errorf(path, "agentId is missing: the agent that answers")
		case b.Match.Channel == "":
			v.errorf(path+".match", "channel is missing")
		case len(b.Match.Roles) > 0:
			v.errorf(path+".match.roles", "roles are not known to this version, and without them the binding would fit too much")
		}
		if p := b.Match.Peer; p != (PeerConfig{}) {
			if peerKind(p.Kind) == "" {
				v.errorf(path+".match.peer.kind", "%s is not one of dm, group, channel", v.show(path+".match.peer.kind", p.Kind))
			}
			if p.ID == "" {
				v.errorf(path+".match.peer", "id is missing")
			}
		}
	}
	for name, ch := range v.cfg.Channels {
		path := cfgJoin("channels", name)
		v.structure(reflect.ValueOf(ch), path)
		v.names(path+".gateways", ch.Gateways)
		for id, a := range ch.Accounts {
			p := cfgJoin(path+".accounts", id)
			v.structure(reflect.ValueOf(a), p)
			v.names(p+".gateways", a.Gateways)
		}
		if _, ok := ch.Accounts[ch.DefaultAccount]; ch.DefaultAccount != "" && !ok {
			v.errorf(path+".defaultAccount", "there is no account %s", v.show(path+".defaultAccount", ch.DefaultAccount))
		}
	}
	for _, a := range v.cfg.ChannelAccounts() {
		if !cfgIDPattern.MatchString(a.ID) || !cfgIDPattern.MatchString(a.Channel) || len(a.Inbox()) > 63 {
			v.errorf(a.path, "%q is no name for an inbox: want small letters, digits and '-', at most 63 together", a.Inbox())
		}
	}
	for i, key := range v.cfg.Mesh.ChannelKeys {
		if _, err := parseChannelKey(key); err != nil {
			v.errorf(fmt.Sprintf("mesh.channelKeys[%d]", i), "%v", err)
		}
	}
}

// peerKind is the kind that is meant, or "". OpenClaw writes a direct message both ways.
func peerKind(s string) string {
	switch s {
	case "direct", PeerDM:
		return PeerDM
	case PeerGroup, PeerChannel:
		return s
	}
	return ""
}
