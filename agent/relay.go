package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// relay is a hub without a model: it finds whom a question is for, asks, and hands the
// answer back with the name of who gave it.
//
// Whom it asks, the first rule that fits: the agent that the question names first (by id or
// name; not itself, and not who asks); the configured one (runner.to); an active agent with the
// message's own capability, with a capability that the question names, or
// with the one that its words suggest ([keywords]). Otherwise it says what can be asked for.
//
// Every end is a reply: an answer, or what is known of the question that got none. Only
// what may work next time (the store) is an error.
type relay struct {
	spec Spec
	dir  Directory
}

// NewRelay makes the relay runner. It needs a Directory.
func NewRelay(spec Spec, deps Deps) (bus.Handler, error) {
	if deps.Directory == nil {
		return nil, errors.New("it needs a directory of agents")
	}
	if spec.Runner.To == spec.ID && spec.ID != "" {
		return nil, errors.New("runner.to is the agent itself: name another one")
	}
	return &relay{spec: spec, dir: deps.Directory}, nil
}

// Handle implements bus.Handler.
func (r *relay) Handle(ctx context.Context, m *bus.Incoming) error {
	e := &m.Envelope().Envelope
	question := Text(e.Payload)
	c, ok := r.choose(question, e.Capability, e.SourceAgent)
	if !ok {
		return r.say(m, r.help())
	}
	if e.Terminal {
		return bus.Never(envelope.ClassUndeliverable, fmt.Errorf("%s is a relay, and the message is terminal: it must not be passed on", r.spec.ID))
	}
	if err := m.Guard(); err != nil {
		return err
	}

	wait, cancel := context.WithDeadline(ctx, r.deadline(ctx, m))
	defer cancel()
	answer, err := m.Ask(wait, bus.Outgoing{
		To:         envelope.Address{Agent: c.agent, Gateway: c.gateway},
		Capability: c.capability,
		Payload:    envelope.TextPayload(question),
		// A conversation of its own, the same for all of this one: if the question came round to
		// us again in this one, it would wait behind the message that waits for its answer.
		ConversationID: envelope.DerivedID(e.ConversationID, r.spec.ID),
		// The question is good for nothing once who asked has given up.
		TTL: max(time.Until(e.ExpiresAt()), time.Second),
	})
	if err == nil {
		return r.say(m, fmt.Sprintf("%s (on %s): %s", c.name, answer.SourceGateway, Text(answer.Payload)))
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause // this gateway stops, or the time for an answer is over: not ours to tell
	}
	text, ok := r.explain(c, err)
	if !ok {
		return fmt.Errorf("ask %s: %w", c.agent, err)
	}
	return r.say(m, text)
}

// say replies with text, shortened when it does not fit.
func (r *relay) say(m *bus.Incoming, text string) error {
	err := m.Reply(envelope.TextPayload(text))
	if errors.Is(err, bus.ErrTooLarge) || errors.Is(err, envelope.ErrInvalid) {
		const most = 4 << 10
		return m.Reply(envelope.TextPayload(strings.ToValidUTF8(text[:min(len(text), most)], "") + "\n(The answer is too large to be passed on; this is its beginning.)"))
	}
	return err
}

// deadline leaves time to say that there is no answer while somebody still listens.
func (r *relay) deadline(ctx context.Context, m *bus.Incoming) time.Time {
	now := time.Now()
	end := m.Envelope().ExpiresAt()
	if d := now.Add(m.AckTimeout()); d.Before(end) {
		end = d
	}
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	end = end.Add(-min(2*time.Second, end.Sub(now)/10))
	if t := r.spec.Runner.Timeout; t > 0 && now.Add(t).Before(end) {
		end = now.Add(t)
	}
	return end
}

// explain says what is known of a question without an answer; false: the error is worth
// another attempt.
func (r *relay) explain(c choice, err error) (string, bool) {
	var noAnswer *bus.NoAnswerError
	var dead *bus.DeadLetterError
	var hops *envelope.HopsError
	var budget *envelope.BudgetError
	switch {
	case errors.As(err, &hops):
		return fmt.Sprintf("I did not ask %s: the question would go round in a circle or too far (%v).", c.name, hops), true
	case errors.As(err, &budget):
		return fmt.Sprintf("I did not ask %s: %v.", c.name, budget), true
	case errors.Is(err, bus.ErrInboxFull):
		return fmt.Sprintf("I cannot ask %s now: %v.", c.name, err), true
	case errors.As(err, &noAnswer):
		f := noAnswer.Facts
		return fmt.Sprintf("No answer from %s so far. What is known of my question: accepted %s, delivered %s, acked %s. It goes on; its answer, if one comes, is found under %s.",
			c.name, yesNo(f.Accepted), yesNo(f.Delivered), yesNo(f.Acked), noAnswer.MessageID), true
	case errors.As(err, &dead):
		return fmt.Sprintf("%s did not answer: my question was accepted, then given up (%s: %s). It lies in the dead letters under %s.",
			c.name, dead.Class, dead.Reason, dead.MessageID), true
	case errors.Is(err, bus.ErrUnknownAgent):
		return fmt.Sprintf("I cannot ask %s: %v.\n%s", c.name, err, r.help()), true
	case errors.Is(err, envelope.ErrInvalid), errors.Is(err, bus.ErrTooLarge):
		return fmt.Sprintf("I cannot pass this on to %s: %v.", c.name, err), true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, bus.ErrOutcomeUnknown):
		// Not even whether it was accepted is known; asking again is safe (same id).
		return "", false
	}
	return "", false
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
