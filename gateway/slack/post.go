package slack

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/slack-go/slack"

	"github.com/gatemesh/gatemesh/gateway"
)

// The metadata of a message by which Find knows a post of ours. Users do not see it.
const (
	markType = "gatemesh_post"
	markID   = "post_id"
)

const (
	// pageSize is what Slack recommends at most for a page of history.
	pageSize = 200
	// maxPages bounds a search: 10,000 messages.
	maxPages = 50
	// clockSkew is how much earlier than [gateway.Post.Since] a search begins: Since is a gateway's clock, a message's stamp is Slack's.
	clockSkew = time.Minute
)

// Post implements [gateway.Channel].
func (a *account) Post(ctx context.Context, p gateway.Post) (gateway.Posted, error) {
	defer a.hangUp()
	text := mrkdwn(p.Text)
	switch n := utf8.RuneCountInString(text); {
	case strings.TrimSpace(text) == "":
		return gateway.Posted{}, gateway.Rejected(errors.New("chat.postMessage: the text is empty"))
	case n > textMax:
		return gateway.Posted{}, gateway.Rejected(fmt.Errorf("chat.postMessage: %d characters, Slack cuts off after %d", n, textMax))
	}
	channel, err := a.channel(ctx, p.To.Peer)
	if err != nil {
		return gateway.Posted{}, err
	}
	opts := []slack.MsgOption{
		slack.MsgOptionText(text, false), // mrkdwn has escaped it
		slack.MsgOptionMetadata(slack.SlackMetadata{EventType: markType, EventPayload: map[string]any{markID: p.ID}}),
	}
	if p.To.Thread != "" {
		opts = append(opts, slack.MsgOptionTS(p.To.Thread))
	}
	g := &gate{http: a.http, check: p.Check}
	_, ts, err := a.client(g).PostMessageContext(ctx, channel, opts...)
	left, refused := g.state()
	switch {
	case err == nil && ts != "":
		return gateway.Posted{Ref: ts, At: stamp(ts)}, nil
	case err == nil:
		return gateway.Posted{}, errors.New("chat.postMessage: Slack's answer names no message: whether it was taken is not known")
	case !left && refused != nil:
		return gateway.Posted{}, gateway.NotSent(0, fmt.Errorf("chat.postMessage: given up before it left: %w", refused))
	}
	return gateway.Posted{}, a.explain("chat.postMessage", err, left)
}

// channel is the id of the conversation that a peer is posted to: of a person, the direct messages with it. Nothing is posted
// yet, so its errors never say "unknown".
func (a *account) channel(ctx context.Context, p gateway.ChannelPeer) (string, error) {
	if p.ID == "" {
		return "", gateway.Rejected(errors.New("no peer to post to"))
	}
	if p.Kind != gateway.PeerDM || strings.HasPrefix(p.ID, "D") {
		return p.ID, nil
	}
	if id, ok := a.ims.get(p.ID); ok {
		return id, nil
	}
	im, _, _, err := a.client(a.http).OpenConversationContext(ctx, &slack.OpenConversationParameters{Users: []string{p.ID}})
	if err != nil {
		return "", a.explain("conversations.open", err, false)
	}
	if im == nil || im.ID == "" {
		return "", gateway.NotSent(0, errors.New("conversations.open: Slack's answer names no channel"))
	}
	a.ims.put(p.ID, im.ID, cacheFor)
	return im.ID, nil
}

// Find implements [gateway.ChannelFinder] by Slack's history. False means that the history had no such post at that moment: a request
// that was still on its way then may be taken later.
func (a *account) Find(ctx context.Context, p gateway.Post) (gateway.Posted, bool, error) {
	defer a.hangUp()
	channel, err := a.channel(ctx, p.To.Peer)
	if err != nil {
		return gateway.Posted{}, false, err
	}
	me, err := a.whoami(ctx)
	if err != nil {
		return gateway.Posted{}, false, err
	}
	oldest := ""
	if !p.Since.IsZero() {
		oldest = strconv.FormatInt(p.Since.Add(-clockSkew).Unix(), 10) + ".000000"
	}
	search := a.history
	if p.To.Thread != "" {
		search = a.replies
	}
	cursor := ""
	for range maxPages {
		msgs, next, err := search(ctx, channel, p.To.Thread, oldest, cursor)
		if err != nil {
			return gateway.Posted{}, false, a.explain("looking for the post in Slack's history", err, true)
		}
		for _, m := range msgs {
			if m.Metadata.EventType == markType && m.Metadata.EventPayload[markID] == p.ID && me.wrote(m.User, m.BotID) {
				return gateway.Posted{Ref: m.Timestamp, At: stamp(m.Timestamp)}, true, nil
			}
		}
		if next == "" {
			return gateway.Posted{}, false, nil
		}
		cursor = next
	}
	return gateway.Posted{}, false, fmt.Errorf("%w: not among the %d messages of Slack's history since %s", gateway.ErrCannotFind, maxPages*pageSize, p.Since.UTC().Format(time.RFC3339))
}

func (a *account) history(ctx context.Context, channel, _, oldest, cursor string) ([]slack.Message, string, error) {
	r, err := a.client(a.http).GetConversationHistoryContext(ctx, &slack.GetConversationHistoryParameters{
		ChannelID: channel, Oldest: oldest, Cursor: cursor, Limit: pageSize, Inclusive: true, IncludeAllMetadata: true,
	})
	if err != nil {
		return nil, "", err
	}
	return page(r.Messages, r.HasMore, r.ResponseMetaData.NextCursor)
}

func (a *account) replies(ctx context.Context, channel, thread, oldest, cursor string) ([]slack.Message, string, error) {
	msgs, more, next, err := a.client(a.http).GetConversationRepliesContext(ctx, &slack.GetConversationRepliesParameters{
		ChannelID: channel, Timestamp: thread, Oldest: oldest, Cursor: cursor, Limit: pageSize, Inclusive: true, IncludeAllMetadata: true,
	})
	if answer, ok := asType[slack.SlackErrorResponse](err); ok && answer.Err == "thread_not_found" {
		// The parent was deleted: Slack then posts a reply as a message of its own.
		return a.history(ctx, channel, "", oldest, cursor)
	}
	if err != nil {
		return nil, "", err
	}
	return page(msgs, more, next)
}

// page checks an answer: "there is no such post" must not follow from one that is JSON, and none of Slack's.
func page(msgs []slack.Message, more bool, next string) ([]slack.Message, string, error) {
	switch {
	case msgs == nil:
		return nil, "", errors.New("the answer has no messages")
	case !more:
		return msgs, "", nil
	case next == "":
		return nil, "", errors.New("the answer says that there is more, and not where")
	}
	return msgs, next, nil
}

// React implements [gateway.ChannelReactor].
func (a *account) React(ctx context.Context, to gateway.PostTarget, on bool) error {
	defer a.hangUp()
	name := *a.set.AckReaction
	if name == "" || to.Message == "" {
		return nil
	}
	channel, err := a.channel(ctx, to.Peer)
	if err != nil {
		return err
	}
	item, api := slack.NewRefToMessage(channel, to.Message), a.client(a.http)
	doing, already := "reactions.add", "already_reacted"
	if on {
		err = api.AddReactionContext(ctx, name, item)
	} else {
		doing, already = "reactions.remove", "no_reaction"
		err = api.RemoveReactionContext(ctx, name, item)
	}
	if answer, ok := asType[slack.SlackErrorResponse](err); ok && answer.Err == already {
		return nil
	}
	if err != nil {
		return a.explain(doing, err, true)
	}
	return nil
}

// stamp is the time in a message's id: seconds and, after the point, what makes it unique, which counts as microseconds.
func stamp(ts string) time.Time {
	sec, frac, _ := strings.Cut(ts, ".")
	s, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return time.Time{}
	}
	us, err := strconv.ParseInt(frac, 10, 64)
	if err != nil || len(frac) != 6 {
		us = 0
	}
	return time.Unix(s, us*int64(time.Microsecond)).UTC()
}
