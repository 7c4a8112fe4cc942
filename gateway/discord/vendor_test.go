package discord

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/channeltest"
	"github.com/gatemesh/gatemesh/gateway/discord/discordtest"
)

// vendor is the fake of Discord as the suite of all channels wants it.
type vendor struct{ *discordtest.Server }

var _ channeltest.Vendor = vendor{}

func newVendor(t testing.TB) channeltest.Vendor {
	t.Helper()
	s, err := discordtest.New(canary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return vendor{s}
}

func (v vendor) Settings() json.RawMessage {
	b, _ := json.Marshal(Settings{Token: v.Token, BaseURL: v.URL})
	return b
}

func (v vendor) Secrets() []string { return []string{v.Token} }

func (v vendor) Peer(kind string) (gateway.ChannelPeer, bool) {
	switch kind {
	case gateway.PeerDM:
		return gateway.ChannelPeer{Kind: kind, ID: discordtest.Alice}, true
	case gateway.PeerChannel:
		return gateway.ChannelPeer{Kind: kind, ID: discordtest.General}, true
	}
	return gateway.ChannelPeer{}, false // a bot is in no group DM
}

func (v vendor) Say(s channeltest.Said) string {
	m := discordtest.Message{Channel: s.Peer.ID, Content: s.Text}
	if s.Peer.Kind == gateway.PeerDM {
		m.Channel = discordtest.AliceDM
	}
	if s.Thread != "" {
		m.Channel = v.Thread(s.Thread, s.Peer.ID)
	}
	if s.Mention {
		m.Content = "<@" + discordtest.BotID + "> " + s.Text
		m.Mentions = []discordtest.User{{ID: discordtest.BotID, Username: "gatemesh", Bot: true}}
	}
	return v.Server.Say(m)
}

func (v vendor) Acknowledged(string) (acknowledged, ok bool) { return false, false }

func (v vendor) Posts() []channeltest.VendorPost {
	var posts []channeltest.VendorPost
	for _, m := range v.Posted() {
		p := channeltest.VendorPost{Ref: m.ID, Peer: m.Channel, Text: m.Content}
		switch parent := v.Parent(m.Channel); {
		case m.Channel == discordtest.AliceDM:
			p.Peer = discordtest.Alice
		case parent != "":
			p.Peer, p.Thread = parent, m.Channel
		}
		posts = append(posts, p)
	}
	return posts
}

func (v vendor) Requests() int    { return v.Counts().Requests }
func (v vendor) Connections() int { return v.Counts().Open }
func (v vendor) Connects() int    { return v.Counts().Connects }

func (v vendor) Misbehave(f channeltest.Fault) bool {
	switch f {
	case channeltest.FaultDrop:
		v.Cut()
	case channeltest.FaultInvalidSession:
		v.Forget()
		v.Cut()
	case channeltest.FaultGarbage:
		v.Raw("<html>" + v.Token)
	case channeltest.FaultCredentials:
		v.Revoke()
	case channeltest.FaultRateLimit:
		v.FailPosts(discordtest.PostFault{Status: 429, After: time.Second})
	case channeltest.FaultRejected:
		v.FailPosts(discordtest.PostFault{Status: 404, Code: 10003})
	case channeltest.FaultServer:
		v.FailPosts(discordtest.PostFault{Status: 500})
	case channeltest.FaultLostReply:
		v.FailPosts(discordtest.PostFault{Lose: true})
	case channeltest.FaultPostGarbage:
		v.FailPosts(discordtest.PostFault{Garbage: true})
	case channeltest.FaultSlow:
		v.FailPosts(discordtest.PostFault{Hang: true})
	default:
		return false
	}
	return true
}
