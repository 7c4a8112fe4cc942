package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// postTimeout bounds one post.
	postTimeout = 30 * time.Second
	// sayMargin is what is left of an event's life when its sender is told that there is no answer.
	sayMargin = 20 * time.Second
	// maxParts is how many posts one text becomes at most, but for the one that says so; each is an effect of the message.
	maxParts = envelope.MaxEffects - 4
	// reactTimeout bounds a reaction, which nobody waits for.
	reactTimeout = 5 * time.Second
)

// Question is the payload that an agent gets for what somebody said on a channel. Its text is what a runner reads.
type Question struct {
	Text    string        `json:"text"`
	Channel string        `json:"channel"`
	Account string        `json:"account"`
	Peer    ChannelPeer   `json:"peer"`
	Thread  string        `json:"thread,omitempty"`
	Team    string        `json:"team,omitempty"`
	Sender  ChannelSender `json:"sender"`
	Message string        `json:"message,omitempty"`
	// Edited: the text replaces what the message said before.
	Edited    bool          `json:"edited,omitempty"`
	Mentioned bool          `json:"mentioned,omitempty"`
	Files     []ChannelFile `json:"files,omitempty"`
	At        time.Time     `json:"at"`
}

// PostRequest is the payload of a message with [CapabilityPost] to an account's inbox: something to be said there without having been asked.
type PostRequest struct {
	To   PostTarget `json:"to"`
	Text string     `json:"text"`
}

// PostReply is its answer: the platform's ids of the posts.
type PostReply struct {
	Refs []string `json:"refs"`
}

// Handle implements bus.Handler.
func (a *account) Handle(ctx context.Context, m *bus.Incoming) error {
	e := m.Envelope()
	switch {
	case e.Capability == CapabilityEvent && e.SourceAgent == a.inbox:
		var ev ChannelEvent
		if err := json.Unmarshal(e.Payload, &ev); err != nil {
			return bus.Never(envelope.ClassPoison, fmt.Errorf("not an event of a channel: %w", err))
		}
		return a.event(ctx, m, ev)
	case e.Capability == CapabilityPost:
		return a.postRequest(ctx, m)
	}
	return bus.Never(envelope.ClassUndeliverable, fmt.Errorf("%s is an account of a channel: it takes the capability %s", a.inbox, CapabilityPost))
}

// event answers one thing that somebody said. However often it runs, and wherever, the agent is asked once, and each part of
// its answer is posted once, or told of as unknown.
func (a *account) event(ctx context.Context, m *bus.Incoming, e ChannelEvent) error {
	if why := a.unwanted(e); why != "" {
		a.set(func() { a.status.DeniedLast = why })
		a.tell(EventUnanswered, m.Envelope().MessageID, why)
		return nil
	}
	ch, err := a.channel(ctx, m)
	if err != nil {
		return err
	}
	to := PostTarget{Peer: e.Peer, Thread: e.Thread, Message: e.Message}
	if w, ok := ch.(*webchat); ok {
		if err := w.heard(ctx, e); err != nil {
			return err
		}
	}
	a.react(ctx, ch, to, true)
	text, sorry, err := a.answer(ctx, m, e)
	if err != nil {
		return err
	}
	name := "answer"
	if sorry {
		name = "sorry"
	}
	_, err = a.say(ctx, m, ch, name, to, text)
	if errors.Is(err, errPostUnknown) {
		err = a.tellUnknown(ctx, m, ch, to, err)
	}
	if err == nil || bus.IsNever(err) {
		a.react(ctx, ch, to, false)
	}
	return err
}

// unwanted says why an event is not answered; "" when it is.
func (a *account) unwanted(e ChannelEvent) string {
	c := a.now.Load()
	policy, from, key := c.DMPolicy, c.AllowFrom, "allowFrom"
	if peerKind(e.Peer.Kind) != PeerDM {
		policy, from, key = c.GroupPolicy, c.GroupAllowFrom, "groupAllowFrom"
		if c.RequireMention && !e.Mentioned {
			return "not addressed to the account (requireMention)"
		}
	}
	switch {
	case policy == "disabled":
		return "the account answers nobody there (" + map[bool]string{true: "dmPolicy", false: "groupPolicy"}[key == "allowFrom"] + ": disabled)"
	case policy == "allowlist" && !slices.Contains(from, "*") && !slices.Contains(from, e.Sender.ID):
		return fmt.Sprintf("%s is not in %s", clipText(e.Sender.ID, 60), key)
	case strings.TrimSpace(e.Text) == "" && len(e.Files) == 0:
		return "it says nothing"
	}
	return ""
}

// react shows that a message is being worked on. Nobody waits for it, and nothing depends on it.
func (a *account) react(ctx context.Context, ch Channel, to PostTarget, on bool) {
	r, ok := ch.(ChannelReactor)
	if !ok || to.Message == "" {
		return
	}
	a.g.run(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reactTimeout)
		defer cancel()
		if err := r.React(ctx, to, on); err != nil {
			a.log.Debug("reaction", "on", on, "error", err)
		}
	})
}

// answer asks the agent that the bindings name, and says what to tell the sender. sorry: that there is no answer. Once that was begun to be said
// it is what is said.
func (a *account) answer(ctx context.Context, m *bus.Incoming, e ChannelEvent) (text string, sorry bool, err error) {
	env := m.Envelope()
	noAnswer := func(agent, why string) (string, bool, error) {
		a.log.Warn("no answer for a channel", "message_id", env.MessageID, "agent", agent, "why", why)
		return fmt.Sprintf("Sorry, there is no answer to this. (Reference %s)", env.MessageID), true, nil
	}
	if slices.ContainsFunc(m.Effects(), func(f bus.Effect) bool {
		return strings.HasPrefix(f.Name, "sorry/") && f.State != envelope.EffectFailed
	}) {
		return noAnswer("", "said before")
	}
	route := a.g.router.Load().Route(RouteQuery{Channel: a.cfg.Channel, Account: a.cfg.ID, Peer: e.Peer, Team: e.Team})
	if route.Agent == "" {
		return noAnswer("", route.Reason)
	}
	payload, err := json.Marshal(Question{
		Text: e.Text, Channel: a.cfg.Channel, Account: a.cfg.ID, Peer: e.Peer, Thread: e.Thread, Team: e.Team, Sender: e.Sender,
		Message: e.Message, Edited: e.Edited, Mentioned: e.Mentioned, Files: e.Files, At: e.At,
	})
	if err != nil {
		return "", false, bus.Never(envelope.ClassPoison, err)
	}
	end := env.ExpiresAt().Add(-sayMargin)
	wait, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	reply, err := m.Ask(wait, bus.Outgoing{
		To: envelope.Address{Agent: route.Agent}, Payload: payload, ConversationID: envelope.DerivedID(env.ConversationID, "ask"),
		TTL: max(time.Until(end), time.Second),
	})
	var dead *bus.DeadLetterError
	var hops *envelope.HopsError
	var budget *envelope.BudgetError
	switch {
	case err == nil:
		if text := strings.TrimSpace(agent.Text(reply.Payload)); text != "" {
			return text, false, nil
		}
		return noAnswer(route.Agent, "the answer is empty")
	case ctx.Err() != nil:
		return "", false, context.Cause(ctx)
	case errors.Is(err, bus.ErrHandover), errors.Is(err, bus.ErrLeaseLost), errors.Is(err, bus.ErrDeposed):
		return "", false, err
	case errors.As(err, &dead), errors.As(err, &hops), errors.As(err, &budget), errors.Is(err, bus.ErrInboxFull), errors.Is(err, bus.ErrTooLarge), errors.Is(err, envelope.ErrInvalid):
		return noAnswer(route.Agent, err.Error())
	case !time.Now().Before(end):
		return noAnswer(route.Agent, err.Error())
	}
	return "", false, fmt.Errorf("ask %s for %s: %w", route.Agent, a.inbox, err) // the store, or nobody serves it yet
}

// postRequest posts what an agent wants to say by itself.
func (a *account) postRequest(ctx context.Context, m *bus.Incoming) error {
	var p PostRequest
	if err := json.Unmarshal(m.Envelope().Payload, &p); err != nil || p.To.Peer.ID == "" || peerKind(p.To.Peer.Kind) == "" || strings.TrimSpace(p.Text) == "" {
		return bus.Never(envelope.ClassPoison, errors.New(`want {"to": {"peer": {"kind": "dm|group|channel", "id": ...}, "thread": ...}, "text": ...}`))
	}
	p.To.Peer.Kind = peerKind(p.To.Peer.Kind)
	ch, err := a.channel(ctx, m)
	if err != nil {
		return err
	}
	refs, err := a.say(ctx, m, ch, "post", p.To, p.Text)
	if err != nil {
		return err
	}
	if m.Envelope().ReplyTo == "" {
		return nil
	}
	b, err := json.Marshal(PostReply{refs})
	if err != nil {
		return err
	}
	return m.Reply(b)
}

// say posts a text in as many parts as the vendor wants, in order, each an effect of its own.
func (a *account) say(ctx context.Context, m *bus.Incoming, ch Channel, name string, to PostTarget, text string) ([]string, error) {
	parts := splitText(text, a.factory.Limits.Text)
	if len(parts) > maxParts {
		a.log.Warn("an answer is too long for the channel; its end is left out", "message_id", m.Envelope().MessageID, "parts", len(parts), "posted", maxParts)
		parts = append(parts[:maxParts:maxParts], "(The rest is too long to be posted.)")
	}
	refs := make([]string, 0, len(parts))
	for i, part := range parts {
		ref, err := a.effect(ctx, m, ch, fmt.Sprintf("%s/%d", name, i+1), to, part)
		if err != nil {
			return refs, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// effect makes one post, once.
func (a *account) effect(ctx context.Context, m *bus.Incoming, ch Channel, name string, to PostTarget, text string) (string, error) {
	p := Post{ID: envelope.DerivedID(m.Envelope().MessageID, name), To: to, Text: text, Since: time.Now()}
	if e, ok := m.Effect(name); ok {
		switch {
		case e.State.Made():
			return e.Ref, nil
		case e.State == envelope.EffectUnknown:
			return "", bus.Never(envelope.ClassUnknown, fmt.Errorf("%s: %w", name, errPostUnknown))
		case e.State == envelope.EffectIntent:
			p.Since = e.At.Time
			if ref, made, err := a.find(ctx, m, ch, e, p); made || err != nil {
				return ref, err
			}
		}
	}
	permit, err := m.Intend(ctx, name, nil)
	if err != nil {
		return "", err
	}
	p.Check = func() error {
		if err := permit.Check(); !errors.Is(err, bus.ErrEffectWindow) {
			return err
		}
		return permit.Renew(ctx) // the post waited for its turn
	}
	pctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	posted, err := ch.Post(pctx, p)
	if err == nil {
		a.posted(posted.At)
		return posted.Ref, permit.Settle(envelope.EffectConfirmed, posted.Ref)
	}
	a.failed(err)
	var notSent *NotSentError
	switch {
	case errors.As(err, &notSent), IsBadCredentials(err):
		_ = permit.Settle(envelope.EffectFailed, "") // else the next attempt finds out
		return "", later(err, err)
	case IsRejected(err):
		_ = permit.Settle(envelope.EffectFailed, "")
		return "", bus.Never(envelope.ClassUndeliverable, err)
	}
	return "", fmt.Errorf("post to %s (it may have been made): %w", a.inbox, err) // the next attempt asks the vendor
}

func (a *account) posted(at time.Time) {
	if at.IsZero() {
		at = time.Now()
	}
	a.set(func() { a.status.LastPost = envelope.At(at) })
	a.g.metrics.channelPosts.WithLabelValues(a.cfg.Channel, a.cfg.ID).Inc()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
