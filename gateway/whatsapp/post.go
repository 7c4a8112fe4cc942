package whatsapp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"

	"github.com/gatemesh/gatemesh/gateway"
)

// What to wait when WhatsApp does not say it.
const (
	afterRateLimit = 30 * time.Second
	notConnected   = time.Second
)

// messageID is the id of a post's message, made of the post's own: whoever sends it again sends the same message. It has the
// form of those that WhatsApp's web client makes.
func messageID(post string) types.MessageID {
	sum := sha256.Sum256([]byte("gatemesh whatsapp " + post))
	return fmt.Sprintf("3EB0%X", sum[:9])
}

// Post implements [gateway.Channel].
func (c *channel) Post(ctx context.Context, p gateway.Post) (gateway.Posted, error) {
	to, err := target(p.To.Peer)
	if err != nil {
		return gateway.Posted{}, gateway.Rejected(err)
	}
	return c.send(ctx, to, textMessage(p.Text, to.Server == types.GroupServer), messageID(p.ID), p.Check)
}

// errNotAsked is Find's answer unless the account's settings say otherwise.
var errNotAsked = fmt.Errorf("%w: WhatsApp keeps no history, and the account's settings do not let the message be sent again (resendSameId)", gateway.ErrCannotFind)

// Find implements [gateway.ChannelFinder]. Where the settings allow it the post is sent again, under the same id; see doc.go for
// who sees it twice. Otherwise the outcome stays unknown.
func (c *channel) Find(ctx context.Context, p gateway.Post) (gateway.Posted, bool, error) {
	if !c.resend {
		return gateway.Posted{}, false, errNotAsked
	}
	posted, err := c.Post(ctx, p)
	return posted, err == nil, err
}

// React implements [gateway.ChannelReactor].
func (c *channel) React(ctx context.Context, to gateway.PostTarget, on bool) error {
	chat, err := target(to.Peer)
	if err != nil {
		return err
	}
	id, whose, _ := strings.Cut(to.Message, "/")
	sender := chat
	if whose != "" {
		if sender, err = types.ParseJID(whose); err != nil {
			return fmt.Errorf("message %q: no such sender", to.Message)
		}
	}
	mark := ""
	if on {
		mark = "👀"
	}
	s := c.current()
	if s == nil {
		return errors.New("not connected")
	}
	_, err = c.send(ctx, chat, s.client.BuildReaction(chat, sender, id, mark), s.client.GenerateMessageID(), func() error { return nil })
	return err
}

// target is where a post goes: a person or a group.
func target(p gateway.ChannelPeer) (types.JID, error) {
	jid, err := types.ParseJID(p.ID)
	if err != nil || jid.User == "" || !strings.Contains(p.ID, "@") {
		return types.JID{}, fmt.Errorf("%q is no WhatsApp id: it looks like 491701234567@s.whatsapp.net or 1203630@g.us", p.ID)
	}
	switch {
	case jid.Server == types.GroupServer && p.Kind != gateway.PeerDM:
	case (jid.Server == types.DefaultUserServer || jid.Server == types.HiddenUserServer) && p.Kind != gateway.PeerGroup:
	default:
		return types.JID{}, fmt.Errorf("%q is no %s", p.ID, p.Kind)
	}
	return jid.ToNonAD(), nil
}

func (c *channel) send(ctx context.Context, to types.JID, m *waE2E.Message, id types.MessageID, check func() error) (posted gateway.Posted, err error) {
	err = gateway.NotSent(notConnected, errors.New("not connected to WhatsApp"))
	if s := c.current(); s != nil {
		s.link.posts.pass(func() bool {
			posted, err = c.sendOn(ctx, s, to, m, id, check)
			return true
		})
	}
	return posted, err
}

// sendOn sends on one connection, and ends with it.
func (c *channel) sendOn(ctx context.Context, s *session, to types.JID, m *waE2E.Message, id types.MessageID, check func() error) (gateway.Posted, error) {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.link.alive, cancel)()
	if err := check(); err != nil {
		return gateway.Posted{}, gateway.NotSent(0, err)
	}
	if to.Server != types.GroupServer {
		// Without a device there is nobody to encrypt for, and the library would send an empty message.
		devices, err := s.client.GetUserDevices(ctx, []types.JID{to})
		if err != nil {
			return gateway.Posted{}, notSent(err)
		}
		if len(devices) == 0 {
			return gateway.Posted{}, gateway.Rejected(fmt.Errorf("%s is not on WhatsApp", to))
		}
	}
	// From here on the link asks before each byte that leaves, the message's own among them.
	under := s.link.begin(check)
	ctx, encrypted := s.link.creds.encrypting(ctx)
	defer encrypted()
	resp, err := s.client.SendMessage(ctx, to, m, whatsmeow.SendRequestExtra{ID: id, Timeout: c.timeout})
	stayed, refused := s.link.end(under)
	switch {
	case err == nil:
		return gateway.Posted{Ref: id, At: resp.Timestamp}, nil
	case errors.Is(err, whatsmeow.ErrServerReturnedError):
		return gateway.Posted{}, returned(err)
	case stayed && refused != nil:
		return gateway.Posted{}, gateway.NotSent(0, refused)
	case stayed && caller.Err() == nil:
		return gateway.Posted{}, gateway.NotSent(notConnected, s.link.cause())
	case resp.DebugTimings.Send == 0: // it did not come to sending
		return gateway.Posted{}, notSent(err)
	}
	return gateway.Posted{}, fmt.Errorf("whether WhatsApp has the message is not known: %w", outcome(caller, s.link, err))
}

// outcome is an error without the library's words, which may show a frame.
func outcome(ctx context.Context, l *link, err error) error {
	switch cause := l.cause(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case cause != nil:
		return cause
	case errors.Is(err, whatsmeow.ErrMessageTimedOut):
		return whatsmeow.ErrMessageTimedOut
	}
	return errors.New(plain(err))
}

// returned judges the server's word about a message.
func returned(err error) error {
	code := 0
	_, _ = fmt.Sscanf(strings.TrimPrefix(err.Error(), whatsmeow.ErrServerReturnedError.Error()), "%d", &code) // 0 says nothing
	return judge(code, fmt.Errorf("WhatsApp refused the message with %d", code))
}

// notSent judges why a message did not come to be sent.
func notSent(err error) error {
	var iq *whatsmeow.IQError
	switch {
	case errors.Is(err, errStore):
		return gateway.NotSent(0, err)
	case errors.Is(err, whatsmeow.ErrNotInGroup), errors.Is(err, whatsmeow.ErrGroupNotFound):
		return gateway.Rejected(errors.New("the account is not in that group"))
	case errors.As(err, &iq) && iq.Code == 429:
		return gateway.NotSent(afterRateLimit, errors.New("WhatsApp answered 429: too many requests"))
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return gateway.NotSent(0, err)
	}
	return gateway.NotSent(notConnected, errors.New(plain(err)))
}

func judge(code int, cause error) error {
	switch {
	case code == 429:
		return gateway.NotSent(afterRateLimit, cause)
	case code >= 500 || code < 400:
		return gateway.NotSent(0, cause)
	}
	return gateway.Rejected(cause)
}

// mention is how WhatsApp writes that somebody in a group is addressed.
var mention = regexp.MustCompile(`(?:^|[^\w])@(\d{5,20})\b`)

func textMessage(text string, group bool) *waE2E.Message {
	text = format(text)
	if !group {
		return &waE2E.Message{Conversation: proto.String(text)}
	}
	var named []string
	for _, m := range mention.FindAllStringSubmatch(text, -1) {
		named = append(named, types.NewJID(m[1], types.DefaultUserServer).String())
	}
	if named == nil {
		return &waE2E.Message{Conversation: proto.String(text)}
	}
	return &waE2E.Message{ExtendedTextMessage: &waE2E.ExtendedTextMessage{
		Text: proto.String(text), ContextInfo: &waE2E.ContextInfo{MentionedJID: named},
	}}
}

// What WhatsApp writes otherwise than Markdown. Lists, quotes, code and _italic_ are the same.
var (
	bold    = regexp.MustCompile(`\*\*([^*\n]+)\*\*`)
	struck  = regexp.MustCompile(`~~([^~\n]+)~~`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *#*$`)
	anchor  = regexp.MustCompile(`\[([^\]\n]+)\]\((https?://[^)\s]+)\)`)
)

// format makes WhatsApp's marks of Markdown's, outside of code.
func format(text string) string {
	parts := strings.Split(text, "```")
	for i := range parts {
		if i%2 == 1 {
			continue
		}
		s := heading.ReplaceAllString(parts[i], "**$1**")
		s = anchor.ReplaceAllString(s, "$1 ($2)")
		s = struck.ReplaceAllString(s, "~$1~")
		parts[i] = bold.ReplaceAllString(s, "*$1*")
	}
	return strings.Join(parts, "```")
}
