package whatsapp

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/gatemesh/gatemesh/gateway"
)

// observer is told what happens on one connection.
type observer struct {
	c         *channel
	in        gateway.Ingress
	ctx       context.Context
	session   *session
	connected atomic.Bool

	mu  sync.Mutex
	end error
}

func (o *observer) verdict() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.end
}

// judge ends the connection; the first verdict counts.
func (o *observer) judge(err error) {
	o.mu.Lock()
	if o.end == nil {
		o.end = err
	}
	o.mu.Unlock()
	o.session.link.close(err)
}

// handle is called by the library. That it returns false keeps a message from being acknowledged.
func (o *observer) handle(evt any) bool {
	if err := verdictOf(evt); err != nil {
		o.judge(err)
		return true
	}
	switch e := evt.(type) {
	case *events.Connected:
		o.connected.Store(true)
		o.c.setLive(o.session)
		o.in.Status(gateway.ChannelStatus{State: gateway.ChannelConnected, Self: o.session.client.Store.GetJID().ToNonAD().String()})
	case *events.KeepAliveTimeout:
		o.judge(errSilent)
	case *events.Message:
		return o.message(e)
	}
	return true
}

// message takes an event in. After one that could not be, none is: WhatsApp sends them all again, in order, to the next connection.
func (o *observer) message(e *events.Message) bool {
	if o.session.link.cause() != nil {
		return false
	}
	event, ok := o.c.event(o.ctx, e, o.session.client.Store.GetJID(), o.session.client.Store.GetLID())
	if !ok {
		return true
	}
	if err := o.in.Accept(o.ctx, event); err != nil {
		o.judge(errNotTakenIn)
		return false
	}
	return true
}

// event makes ours of theirs; false: it is nothing that somebody said to the account.
func (c *channel) event(ctx context.Context, e *events.Message, self, selfLID types.JID) (gateway.ChannelEvent, bool) {
	if e.Info.IsFromMe || e.Message == nil {
		return gateway.ChannelEvent{}, false
	}
	group := e.Info.Chat.Server == types.GroupServer
	if !group && e.Info.Chat.Server != types.DefaultUserServer && e.Info.Chat.Server != types.HiddenUserServer {
		return gateway.ChannelEvent{}, false // a status, a newsletter, a broadcast
	}
	msg, id, edited := e.Message, e.Info.ID, false
	if p := msg.GetProtocolMessage(); p != nil {
		if p.GetType() != waE2E.ProtocolMessage_MESSAGE_EDIT || p.GetEditedMessage() == nil {
			return gateway.ChannelEvent{}, false
		}
		msg, id, edited = p.GetEditedMessage(), p.GetKey().GetID(), true
	}
	text, quoted, files := content(msg)
	if text == "" && len(files) == 0 {
		return gateway.ChannelEvent{}, false
	}
	sender := c.person(ctx, e.Info.Sender, e.Info.SenderAlt)
	out := gateway.ChannelEvent{
		ID:      e.Info.Chat.String() + "/" + e.Info.ID, // as it came: the same in every redelivery
		Message: id,
		Edited:  edited,
		Peer:    gateway.ChannelPeer{Kind: gateway.PeerDM, ID: sender},
		Sender:  gateway.ChannelSender{ID: sender, Name: e.Info.PushName},
		Text:    text,
		Files:   files,
		At:      e.Info.Timestamp,
	}
	if !group {
		out.Mentioned = true
		return out, true
	}
	out.Peer = gateway.ChannelPeer{Kind: gateway.PeerGroup, ID: e.Info.Chat.String()}
	out.Message += "/" + e.Info.Sender.ToNonAD().String() // a reaction must name whose message it is
	out.Mentioned = addressed(quoted, self, selfLID)
	return out, true
}

// person is somebody's id: by the phone number where it is known, whatever a chat uses.
func (c *channel) person(ctx context.Context, jid, alt types.JID) string {
	jid, alt = jid.ToNonAD(), alt.ToNonAD()
	if jid.Server != types.HiddenUserServer {
		return jid.String()
	}
	if alt.Server == types.DefaultUserServer {
		return alt.String()
	}
	if pn, err := c.creds.GetPNForLID(ctx, jid); err == nil && !pn.IsEmpty() {
		return pn.ToNonAD().String()
	}
	return jid.String()
}

// addressed says whether a message in a group names the account, or answers a message of it.
func addressed(quoted *waE2E.ContextInfo, self, selfLID types.JID) bool {
	for _, s := range append(quoted.GetMentionedJID(), quoted.GetParticipant()) {
		jid, err := types.ParseJID(s)
		if err == nil && jid.User != "" && (jid.User == self.User && jid.Server == self.Server || jid.User == selfLID.User && jid.Server == selfLID.Server) {
			return true
		}
	}
	return false
}

// media is what the messages with a file have in common.
type media interface {
	GetMimetype() string
	GetFileLength() uint64
	GetContextInfo() *waE2E.ContextInfo
}

// content is what a message says, and what came with it.
func content(m *waE2E.Message) (text string, quoted *waE2E.ContextInfo, files []gateway.ChannelFile) {
	note := func(f media, name, caption string) {
		text, quoted = caption, f.GetContextInfo()
		files = []gateway.ChannelFile{{Name: name, Type: f.GetMimetype(), Size: int64(min(f.GetFileLength(), 1<<62))}}
	}
	switch {
	case m.GetConversation() != "":
		text = m.GetConversation()
	case m.ExtendedTextMessage != nil:
		text, quoted = m.ExtendedTextMessage.GetText(), m.ExtendedTextMessage.GetContextInfo()
	case m.ImageMessage != nil:
		note(m.ImageMessage, "image", m.ImageMessage.GetCaption())
	case m.VideoMessage != nil:
		note(m.VideoMessage, "video", m.VideoMessage.GetCaption())
	case m.AudioMessage != nil:
		note(m.AudioMessage, "audio", "")
	case m.StickerMessage != nil:
		note(m.StickerMessage, "sticker", "")
	case m.DocumentMessage != nil:
		name := m.DocumentMessage.GetFileName()
		if name == "" {
			name = "document"
		}
		note(m.DocumentMessage, name, m.DocumentMessage.GetCaption())
	}
	return strings.TrimSpace(text), quoted, files
}
