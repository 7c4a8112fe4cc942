package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Router says which agent answers what is said on a channel, as OpenClaw's bindings do: of those that fit, the most specific one;
// of equals the first of the file; else the default agent.
type Router struct {
	bindings []BindingConfig
	accounts map[string]string // default account by channel
	def      string
	defWhy   string
}

// RouteQuery is what a message is routed by.
type RouteQuery struct {
	Channel string      `json:"channel"`
	Account string      `json:"account"`
	Peer    ChannelPeer `json:"peer"`
	// Team is the workspace or the guild.
	Team string `json:"team,omitempty"`
}

// Route is the agent that answers, and why.
type Route struct {
	Agent string `json:"agent"` // empty: nobody
	// Binding is the number of the binding from 1; 0: none fits, it is the default agent.
	Binding int    `json:"binding,omitempty"`
	Reason  string `json:"reason"`
	// Others are the bindings that were looked at, and why each does not decide.
	Others []RouteOther `json:"others,omitempty"`
}

// RouteOther is a binding that does not decide.
type RouteOther struct {
	Binding int    `json:"binding"`
	Agent   string `json:"agent"`
	Reason  string `json:"reason"`
}

// NewRouter reads the bindings of a configuration. Call Normalize first.
func NewRouter(c *Config) *Router {
	r := &Router{bindings: slices.Clone(c.Bindings), accounts: map[string]string{}}
	for _, a := range c.ChannelAccounts() {
		if a.Default {
			r.accounts[a.Channel] = a.ID
		}
	}
	for _, a := range c.Agents.List {
		if a.Default {
			r.def, r.defWhy = a.ID, "no binding fits; it is the default agent (agents: default)"
			return r
		}
	}
	if len(c.Agents.List) > 0 {
		r.def, r.defWhy = c.Agents.List[0].ID, "no binding fits; it is the first agent of the file, and none is the default"
	}
	return r
}

// account is the account that is meant when none is named.
func (r *Router) account(channel, account string) string {
	return cmp.Or(account, r.accounts[channel], defaultAccount)
}

// The tiers of bindings, the most specific first. A binding may say more than its tier: all that it says must fit.
const (
	tierPeer = iota
	tierGuild
	tierTeam
	tierAccount
	tierChannel
)

var tierNames = []string{"names the peer", "names the guild", "names the team", "names the account", "is for the whole channel"}

func tierOf(m MatchConfig) int {
	switch {
	case m.Peer.ID != "":
		return tierPeer
	case m.GuildID != "":
		return tierGuild
	case m.TeamID != "":
		return tierTeam
	case m.AccountID != "*":
		return tierAccount
	}
	return tierChannel
}

// misfit says why a binding does not fit; "" when it does.
func (r *Router) misfit(m MatchConfig, q RouteQuery) string {
	account := m.AccountID
	if account == "" {
		account = r.account(q.Channel, "")
	}
	switch {
	case m.Channel != q.Channel:
		return "for the channel " + m.Channel
	case account != "*" && account != q.Account:
		if m.AccountID == "" {
			return fmt.Sprintf("names no account, so it is for %s, the default one (accountId \"*\" is any)", account)
		}
		return "for the account " + account
	case m.Peer.ID != "" && (peerKind(m.Peer.Kind) != peerKind(q.Peer.Kind) || m.Peer.ID != q.Peer.ID):
		return fmt.Sprintf("for the peer %s %s", peerKind(m.Peer.Kind), m.Peer.ID)
	case m.GuildID != "" && m.GuildID != q.Team:
		return "for the guild " + m.GuildID
	case m.TeamID != "" && m.TeamID != q.Team:
		return "for the team " + m.TeamID
	}
	return ""
}

// Default is the agent that answers where no binding says otherwise; empty: there is none.
func (r *Router) Default() string { return r.def }

// Explain is Route for a question that a person asks: an empty account is the default one. Its errors are about the question.
func (r *Router) Explain(q RouteQuery) (Route, error) {
	if q.Channel == "" {
		return Route{}, errors.New("which channel?")
	}
	if q.Peer != (ChannelPeer{}) && (q.Peer.ID == "" || peerKind(q.Peer.Kind) == "") {
		return Route{}, errors.New("a peer has an id, and a kind: dm, group or channel")
	}
	q.Account = r.account(q.Channel, q.Account)
	return r.Route(q), nil
}

// Route says who answers. It is the same for the same question until the configuration changes.
func (r *Router) Route(q RouteQuery) Route {
	best := -1
	var others []RouteOther
	for i, b := range r.bindings {
		if why := r.misfit(b.Match, q); why != "" {
			others = append(others, RouteOther{i + 1, b.AgentID, why})
			continue
		}
		if best < 0 || tierOf(b.Match) < tierOf(r.bindings[best].Match) {
			best = i
		}
	}
	if best < 0 {
		if r.def == "" {
			return Route{Reason: "no binding fits, and there is no agent in the file", Others: others}
		}
		return Route{Agent: r.def, Reason: r.defWhy, Others: others}
	}
	for i, b := range r.bindings {
		if i != best && r.misfit(b.Match, q) == "" {
			why := "fits too, and is less specific"
			if tierOf(b.Match) == tierOf(r.bindings[best].Match) {
				why = "fits as well, and stands behind"
			}
			others = append(others, RouteOther{i + 1, b.AgentID, why})
		}
	}
	slices.SortFunc(others, func(a, b RouteOther) int { return a.Binding - b.Binding })
	b := r.bindings[best]
	return Route{Agent: b.AgentID, Binding: best + 1, Reason: fmt.Sprintf("bindings[%d] fits and %s: nothing more specific fits", best, tierNames[tierOf(b.Match)]), Others: others}
}
