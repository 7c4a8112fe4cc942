package discord

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/bwmarrin/discordgo"
	"github.com/google/uuid"

	"github.com/gatemesh/gatemesh/gateway"
)

// nonceWindow is how long after a post was first meant to be sent Discord surely still knows its nonce. Discord says "the past few minutes"; this is
// less than any reading of that.
const nonceWindow = 90 * time.Second

// noncePrefix marks the posts of a mesh among the bot's messages.
const noncePrefix = "gm"

// working is the reaction that says that a message was taken in.
const working = "👀"

// outgoing is a message to be made, as far as it is used here: discordgo's own has no nonce.
type outgoing struct {
	Content string `json:"content"`
	Nonce   string `json:"nonce"`
	Enforce bool   `json:"enforce_nonce"`
	// Allowed is empty, but there: what a model writes notifies nobody.
	Allowed struct {
		Parse []string `json:"parse"`
	} `json:"allowed_mentions"`
	Reference *reference `json:"message_reference,omitempty"`
}

type reference struct {
	Message string `json:"message_id"`
	// Must is false: an answer to a message that was deleted meanwhile is posted as a plain message.
	Must bool `json:"fail_if_not_exists"`
}

// nonceOf makes the nonce of a post, of 24 characters: Discord takes 25, a UUID as it is written has 36.
func nonceOf(id string) (string, error) {
	u, err := uuid.Parse(id)
	if err != nil {
		return "", fmt.Errorf("discord: the post's id is no UUID: %w", err)
	}
	return noncePrefix + base64.RawURLEncoding.EncodeToString(u[:]), nil
}

// ours reports whether a nonce is one of a mesh, this gateway's or another's.
func ours(nonce string) bool {
	rest, ok := strings.CutPrefix(nonce, noncePrefix)
	b, err := base64.RawURLEncoding.DecodeString(rest)
	return ok && err == nil && len(b) == 16
}

// Post implements [gateway.Channel]. Sent again within some minutes, by whomever, the same post gives the same message.
func (c *channel) Post(ctx context.Context, p gateway.Post) (gateway.Posted, error) {
	nonce, err := nonceOf(p.ID)
	if err != nil {
		return gateway.Posted{}, gateway.Rejected(err)
	}
	room, err := c.roomOf(ctx, p.To)
	if err != nil {
		var api *apiError
		switch {
		case !errors.As(err, &api):
			return gateway.Posted{}, gateway.NotSent(0, err)
		case api.status == 0 || api.status >= 500:
			// Opening a DM tells nobody anything: the post itself was not sent.
			return gateway.Posted{}, gateway.NotSent(0, api)
		}
		return gateway.Posted{}, api.outcome()
	}
	out := outgoing{Content: p.Text, Nonce: nonce, Enforce: true}
	out.Allowed.Parse = []string{}
	if p.To.Message != "" {
		out.Reference = &reference{Message: p.To.Message}
	}
	path := "/channels/" + url.PathEscape(room) + "/messages"
	var made discordgo.Message
	if err := c.do(ctx, "POST", path, "POST "+path, out, &made, p.Check); err != nil {
		var api *apiError
		if errors.As(err, &api) {
			return gateway.Posted{}, api.outcome()
		}
		return gateway.Posted{}, err
	}
	if made.ID == "" {
		return gateway.Posted{}, fmt.Errorf("discord: POST %s: the answer has no id", path)
	}
	c.sent.add(nonce, made.ID)
	return gateway.Posted{Ref: made.ID, At: made.Timestamp}, nil
}

// Find implements [gateway.ChannelFinder].
//
// While Discord surely knows the nonce it sends the post again: what was made already is given back, and what was not is made now. Later it reads what the bot
// said there since: when nothing of it can be this post, there is none. Otherwise it cannot tell: a history has no nonces, and two messages with the
// same words prove nothing.
func (c *channel) Find(ctx context.Context, p gateway.Post) (gateway.Posted, bool, error) {
	nonce, err := nonceOf(p.ID)
	if err != nil {
		return gateway.Posted{}, false, err
	}
	if id, ok := c.sent.message(nonce); ok {
		return gateway.Posted{Ref: id, At: snowflakeTime(id)}, true, nil
	}
	if age := time.Since(p.Since); age > -nonceWindow && age < nonceWindow {
		got, err := c.Post(ctx, p)
		if err != nil {
			// Only the text, and when to ask again: that this attempt was refused, or not sent, says nothing of an earlier one.
			return gateway.Posted{}, false, again(err, errors.New("ask by the nonce: "+err.Error()))
		}
		return got, true, nil
	}
	if p.Since.IsZero() {
		return gateway.Posted{}, false, fmt.Errorf("%w: it is not known since when to look for the post", gateway.ErrCannotFind)
	}
	return c.findInHistory(ctx, p)
}

// again gives err, of a question that may be asked again, the pause that Discord wants before.
func again(cause, err error) error {
	var api *apiError
	if errors.As(cause, &api) && api.after > 0 {
		return gateway.NotSent(api.after, err)
	}
	return err
}

// findInHistory answers with false, or not at all.
func (c *channel) findInHistory(ctx context.Context, p gateway.Post) (gateway.Posted, bool, error) {
	me, err := c.whoAmI(ctx)
	if err != nil {
		return gateway.Posted{}, false, err
	}
	room, err := c.roomOf(ctx, p.To)
	if err != nil {
		return gateway.Posted{}, false, err
	}
	// Half a minute for clocks that differ.
	msgs, whole, err := c.history(ctx, room, snowflakeAt(p.Since.Add(-30*time.Second)))
	switch {
	case gone(err):
		return gateway.Posted{}, false, fmt.Errorf("%w: %w (the bot needs the permissions View Channels and Read Message History there)", gateway.ErrCannotFind, err)
	case err != nil:
		return gateway.Posted{}, false, again(err, err)
	case !whole:
		return gateway.Posted{}, false, fmt.Errorf("%w: too much was said there since to look through", gateway.ErrCannotFind)
	}
	for _, m := range msgs {
		if m.Author == nil || m.Author.ID != me.id || c.sent.known(m.ID) {
			continue
		}
		// A reply keeps what it answers, but for a message that was gone already.
		if ref := m.MessageReference; ref == nil || p.To.Message == "" || ref.MessageID == p.To.Message {
			return gateway.Posted{}, false, fmt.Errorf("%w: message %s may be this post; Discord's history keeps no nonce to tell", gateway.ErrCannotFind, m.ID)
		}
	}
	return gateway.Posted{}, false, nil
}

// React implements [gateway.ChannelReactor].
func (c *channel) React(ctx context.Context, to gateway.PostTarget, on bool) error {
	room, err := c.roomOf(ctx, to)
	if err != nil {
		return err
	}
	method := "PUT"
	if !on {
		method = "DELETE"
	}
	path := "/channels/" + url.PathEscape(room) + "/messages/" + url.PathEscape(to.Message) + "/reactions/" + url.PathEscape(working) + "/@me"
	return c.do(ctx, method, path, "reactions "+room, nil, nil, nil)
}

// sent remembers which messages are which posts, as far as this gateway saw it: the latest of them.
type sent struct {
	mu       sync.Mutex
	messages map[string]string // nonce -> message
	nonces   map[string]string // message -> nonce
	order    []string          // nonces, oldest first
}

// maxSent is how many are remembered.
const maxSent = 4096

func (s *sent) add(nonce, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.messages == nil {
		s.messages, s.nonces = map[string]string{}, map[string]string{}
	}
	if _, ok := s.messages[nonce]; ok {
		return
	}
	s.messages[nonce], s.nonces[message] = message, nonce
	s.order = append(s.order, nonce)
	if len(s.order) > maxSent {
		old := s.order[0]
		s.order = s.order[1:]
		delete(s.nonces, s.messages[old])
		delete(s.messages, old)
	}
}

func (s *sent) message(nonce string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.messages[nonce]
	return m, ok
}

// known reports whether a message is a post whose nonce is known: of another post, when it was not found by its own.
func (s *sent) known(message string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.nonces[message]
	return ok
}
