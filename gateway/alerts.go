package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// alertPoster has the alerts of agents that watch posted in a chat channel, and hands everything else on. The order to post is sent in the transaction
// that acks the alert, to the account's inbox, wherever that is; so an alert is posted once.
type alertPoster struct {
	inbox string
	to    PostTarget
	next  bus.Handler
}

func newAlertPoster(c AlertsConfig, next bus.Handler) *alertPoster {
	kind, id, _ := strings.Cut(c.To, ":") // Validate has looked at it
	return &alertPoster{inbox: c.inbox(), to: PostTarget{Peer: ChannelPeer{Kind: peerKind(kind), ID: id}}, next: next}
}

func (c AlertsConfig) inbox() string {
	return (&ChannelAccount{Channel: c.Channel, ID: cmp.Or(c.Account, "default")}).Inbox()
}

// Handle implements bus.Handler.
func (p *alertPoster) Handle(ctx context.Context, m *bus.Incoming) error {
	e := m.Envelope()
	if e.Capability != agent.CapabilityAlert {
		return p.next.Handle(ctx, m)
	}
	order := PostRequest{To: p.to, Text: agent.Text(e.Payload)}
	if _, err := m.Send(bus.Outgoing{
		To: envelope.Address{Agent: p.inbox}, Capability: CapabilityPost, Payload: mustJSON(order), ConversationID: envelope.DerivedID(p.inbox, "alerts"),
		TTL: max(time.Until(e.ExpiresAt()).Truncate(time.Second), time.Second),
	}); err != nil {
		return fmt.Errorf("have an alert posted by %s: %w", p.inbox, err)
	}
	return nil
}

// placeOf is the chat that a message was said in.
func placeOf(e *envelope.Sealed) (agent.Place, bool) {
	var q Question
	if !strings.HasPrefix(e.SourceAgent, channelInbox) || json.Unmarshal(e.Payload, &q) != nil || q.Peer.ID == "" {
		return agent.Place{}, false
	}
	return agent.Place{Inbox: e.SourceAgent, To: mustJSON(PostTarget{Peer: q.Peer, Thread: q.Thread})}, true
}

// postAt is the order to say a text in a chat, by itself.
func postAt(p agent.Place, text string) bus.Outgoing {
	var to PostTarget
	_ = json.Unmarshal(p.To, &to) // placeOf wrote it
	return bus.Outgoing{To: envelope.Address{Agent: p.Inbox}, Capability: CapabilityPost, Payload: mustJSON(PostRequest{To: to, Text: text}),
		ConversationID: envelope.DerivedID(p.Inbox, string(p.To)), TTL: time.Hour}
}

// alerts refuses a place that is none.
func (v *configValidator) alerts(path string, c AlertsConfig, runner string) {
	if c == (AlertsConfig{}) {
		return
	}
	if runner == runnerMailbox {
		v.errorf(path, "an agent with the runner mailbox fetches its alerts like all its messages")
		return
	}
	if _, known := v.cfg.Channels[c.Channel]; !known {
		v.errorf(path+".channel", "there is no channel %s under channels", v.show(path+".channel", c.Channel))
		return
	}
	inbox := c.inbox()
	if !slices.ContainsFunc(v.cfg.ChannelAccounts(), func(a ChannelAccount) bool { return a.Inbox() == inbox }) {
		v.errorf(path+".account", "the channel %s has no account %s", c.Channel, v.show(path+".account", cmp.Or(c.Account, "default")))
	}
	if kind, id, _ := strings.Cut(c.To, ":"); peerKind(kind) == "" || id == "" {
		v.errorf(path+".to", "%s: want channel:ID, group:ID or dm:ID, by the platform's id", v.show(path+".to", c.To))
	}
}
