package slack

import (
	"encoding/json"
	"testing"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/channeltest"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
)

// vendor is the fake of Slack as the suite of all channels sees it.
type vendor struct{ *slacktest.Server }

var _ channeltest.Vendor = vendor{}

func newVendor(t testing.TB) channeltest.Vendor { return vendor{newSlack(t, slacktest.Config{})} }

func (v vendor) Settings() json.RawMessage { return v.Server.Settings() }

func (v vendor) Secrets() []string { return []string{v.AppToken(), v.BotToken()} }

func (v vendor) Peer(kind string) (gateway.ChannelPeer, bool) {
	id, ok := map[string]string{gateway.PeerDM: slacktest.Alice, gateway.PeerGroup: slacktest.Talk, gateway.PeerChannel: slacktest.General}[kind]
	return gateway.ChannelPeer{Kind: kind, ID: id}, ok
}

func (v vendor) Say(s channeltest.Said) string {
	text := s.Text
	if s.Mention {
		text = me + " " + text
	}
	channel, ts := v.Server.Say(slacktest.Said{Channel: s.Peer.ID, Text: text, Thread: s.Thread})
	return slacktest.Key(channel, ts, "")
}

func (v vendor) Acknowledged(event string) (acknowledged, ok bool) { return v.Acked(event), true }

func (v vendor) Posts() []channeltest.VendorPost {
	var posts []channeltest.VendorPost
	for _, p := range v.Server.Posts() {
		peer := p.Channel
		if p.User != "" {
			peer = p.User
		}
		posts = append(posts, channeltest.VendorPost{Ref: p.TS, Peer: peer, Thread: p.Thread, Text: p.Text})
	}
	return posts
}

func (v vendor) Requests() int { return v.Server.Requests("chat.postMessage") }

func (v vendor) Misbehave(f channeltest.Fault) bool {
	post := map[channeltest.Fault]slacktest.Fault{
		channeltest.FaultRateLimit:   {Status: 429, RetryAfter: 1},
		channeltest.FaultRejected:    {Code: "channel_not_found"},
		channeltest.FaultServer:      {Status: 500, Body: "<html>"},
		channeltest.FaultLostReply:   {Applied: true, Cut: true},
		channeltest.FaultPostGarbage: {Applied: true, Body: "<html>"},
		channeltest.FaultSlow:        {Applied: true, Hang: true},
	}
	switch f {
	case channeltest.FaultDrop:
		v.Cut()
	case channeltest.FaultGarbage:
		v.SendRaw("}{")
	case channeltest.FaultCredentials:
		v.Refuse("invalid_auth")
	default: // Slack resumes nothing, so it has no invalid session either
		fault, ok := post[f]
		if ok {
			v.Fail("chat.postMessage", fault)
		}
		return ok
	}
	return true
}

// The suite's view of the fake and the adapter's agree.
func TestVendor(t *testing.T) {
	v := newVendor(t)
	b := newBot(t, v.Settings(), quick()).start().connected()
	for i, kind := range []string{gateway.PeerDM, gateway.PeerGroup, gateway.PeerChannel} {
		peer, ok := v.Peer(kind)
		if !ok {
			t.Fatalf("no %s", kind)
		}
		id := v.Say(channeltest.Said{Peer: peer, Text: "x", Mention: kind == gateway.PeerDM})
		if e := b.events(i + 1)[i]; e.ID != id || e.Peer != peer {
			t.Errorf("%+v, not %s of %+v", e, id, peer)
		}
		if _, err := b.Post(within(t), gateway.Post{ID: kind, To: gateway.PostTarget{Peer: peer}, Text: "y"}); err != nil {
			t.Fatal(err)
		}
		if p := v.Posts(); len(p) != i+1 || p[i].Peer != peer.ID || v.Requests() != i+1 {
			t.Errorf("posts %+v", p)
		}
	}
	if v.Misbehave(channeltest.FaultInvalidSession) || !v.Misbehave(channeltest.FaultDrop) {
		t.Error("Slack resumes nothing, and may drop a connection")
	}
}
