package whatsapp_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/channeltest"
	"github.com/gatemesh/gatemesh/gateway/whatsapp"
	"github.com/gatemesh/gatemesh/gateway/whatsapp/whatsapptest"
)

func TestSuite(t *testing.T) {
	channeltest.Run(t, channeltest.Adapter{Factory: whatsapp.Factory(), Vendor: newVendor, Acknowledges: true, Vault: linked})
}

// vendor is the fake of WhatsApp as the suite of all channels sees it: one person, one group, and the account.
type vendor struct {
	*whatsapptest.Server
	t       testing.TB
	ann     *whatsapptest.Person
	group   string
	refused bool
}

var _ channeltest.Vendor = (*vendor)(nil)

func newVendor(t testing.TB) channeltest.Vendor {
	s := newServer(t)
	return &vendor{Server: s, t: t, ann: person(t, s, annPhone), group: s.Group("120363000000000001", botPhone, annPhone).String()}
}

// linked is the vault of an account that a phone has linked, and perhaps unlinked again.
func linked(t testing.TB, of channeltest.Vendor) gateway.Vault {
	v := of.(*vendor)
	vault := bot(t, v.Server).Own()
	if v.refused {
		v.Remove(botPhone)
	}
	return vault
}

func (v *vendor) Settings() json.RawMessage { return v.Server.Settings() }

// Secrets: the settings have none, and TestLogShowsNoKeys is about what passes.
func (v *vendor) Secrets() []string { return nil }

func (v *vendor) Peer(kind string) (gateway.ChannelPeer, bool) {
	id, ok := map[string]string{gateway.PeerDM: v.ann.JID(), gateway.PeerGroup: v.group}[kind]
	return gateway.ChannelPeer{Kind: kind, ID: id}, ok
}

func (v *vendor) Say(s channeltest.Said) string {
	to, text := s.Peer, s.Text
	if s.Peer.Kind == gateway.PeerDM {
		to = dm(botPhone)
	}
	if s.Mention {
		text = "@" + botPhone + " " + text
	}
	return s.Peer.ID + "/" + say(v.t, v.ann, to, text)
}

func (v *vendor) Redeliver(event string) { v.Server.Redeliver(botPhone, message(event)) }

func (v *vendor) Acknowledged(event string) (acknowledged, ok bool) {
	return v.Server.Acknowledged(botPhone, message(event)), true
}

// message is the id of an event's message.
func message(event string) string {
	_, id, _ := strings.Cut(event, "/")
	return id
}

// Posts have no text: the server cannot read them.
func (v *vendor) Posts() (posts []channeltest.VendorPost) {
	for _, m := range v.Sent(botPhone) {
		if m.Taken {
			posts = append(posts, channeltest.VendorPost{Ref: m.ID, Peer: m.To.String()})
		}
	}
	return posts
}

func (v *vendor) Requests() int    { return len(v.Sent(botPhone)) }
func (v *vendor) Connections() int { return v.Server.Connections(botPhone) }
func (v *vendor) Connects() int    { return v.Server.Connects(botPhone) }

func (v *vendor) Misbehave(f channeltest.Fault) bool {
	post := map[channeltest.Fault]whatsapptest.Fault{
		channeltest.FaultRateLimit:   whatsapptest.FaultRateLimit,
		channeltest.FaultRejected:    whatsapptest.FaultRejected,
		channeltest.FaultServer:      whatsapptest.FaultServer,
		channeltest.FaultLostReply:   whatsapptest.FaultLostReply,
		channeltest.FaultPostGarbage: whatsapptest.FaultGarbage,
		channeltest.FaultSlow:        whatsapptest.FaultSlow,
	}
	switch f {
	case channeltest.FaultDrop:
		v.Drop(botPhone)
	case channeltest.FaultGarbage:
		v.Garbage(botPhone)
	case channeltest.FaultCredentials:
		v.refused = true
		v.Remove(botPhone)
	default: // WhatsApp resumes nothing, so it has no invalid session either
		fault, ok := post[f]
		if ok {
			v.Server.Misbehave(botPhone, fault)
		}
		return ok
	}
	return true
}
