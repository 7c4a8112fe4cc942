package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// maxTurns bounds the calls of a model that one message may cause, retries aside.
const maxTurns = 12

// thinker is an agent that thinks: it asks its model, does what that wants done, and asks again, until there is
// an answer in words.
//
// What the model is shown: the files of the workspace that say who it is, the agents it can reach, and the
// conversation so far. Of a message that is handled again it asks the model anew, which may answer otherwise; a
// question to another agent that is the same at the same step is not asked twice ([bus.Incoming.Ask]).
//
// A failure that passes is an error, tried again after the vendor's hint; one that does not is told to who asked.
type thinker struct {
	spec  Spec
	deps  Deps
	chain *Chain
	sets  []Toolset
}

// NewLLM makes the llm runner's factory, with the vendors that its models may be of and the tools that its agents may have
// beside those of the mesh.
func NewLLM(vendors Vendors, sources ...ToolSource) Factory {
	return func(spec Spec, deps Deps) (bus.Handler, error) {
		if deps.Directory == nil {
			return nil, errors.New("it needs a directory of agents")
		}
		if len(spec.Models) == 0 {
			return nil, errors.New("it has no model: set the agent's model to provider/model")
		}
		chain, err := vendors.Chain(spec.Models)
		if err != nil {
			return nil, err
		}
		chain.Timeout, chain.Called = spec.Runner.Timeout, deps.ModelCalled
		if deps.Logger == nil {
			deps.Logger = hclog.NewNullLogger()
		}
		t := &thinker{spec: spec, deps: deps, chain: chain}
		for _, source := range sources {
			set, err := source(spec, deps)
			if err != nil {
				return nil, err
			}
			if set != nil {
				t.sets = append(t.sets, set)
			}
		}
		return t, nil
	}
}

// Handle implements bus.Handler.
func (t *thinker) Handle(ctx context.Context, m *bus.Incoming) error {
	e := &m.Envelope().Envelope
	switch {
	case e.Capability == CapabilitySpawn:
		return t.supervise(ctx, m)
	case e.InReplyTo != "" && isSub(m):
		return nil // the answer of a run that nobody waits for any more
	}
	s, err := openSession(ctx, t.spec.ID, t.spec.RunRetention, m)
	if err != nil {
		return err
	}
	run, err := t.beginRun(ctx, m, s)
	if err != nil {
		return err
	}
	text := Text(e.Payload)
	if cmd := strings.TrimSpace(text); cmd == "/reset" || cmd == "/new" {
		if err := s.reset(m); err != nil {
			return err
		}
		return sayText(m, "This conversation begins anew.")
	}
	tn, err := openTurn(ctx, m, s, text)
	if err != nil {
		return err
	}
	meter := &budgetMeter{ctx: ctx, m: m, session: s}
	bounded, stop := run.bound(ctx)
	defer stop()
	answer, err := t.think(bounded, tn, meter, run)
	switch {
	case err != nil && ctx.Err() == nil && errors.Is(context.Cause(bounded), errRunTime):
		return t.runOver(tn, run)
	case err != nil:
		return t.failed(ctx, tn, err)
	}
	s.add(ChatMessage{Role: RoleAssistant, Text: answer})
	if err := s.keep(m, tn.over()...); err != nil {
		return err
	}
	return t.say(m, answer)
}

// say answers, and where the message is the announcement of a run that a chat asked for, says it there.
func (t *thinker) say(m *bus.Incoming, text string) error {
	if err := t.post(m, text); err != nil {
		return err
	}
	return sayText(m, text)
}

// think is the loop: model, tools, model.
func (t *thinker) think(ctx context.Context, tn *turn, meter Meter, run *runOrder) (string, error) {
	box, chain := t.tools(tn.m), t.chain
	if run != nil && run.Model != "" {
		chain = chain.preferring(run.Model)
	}
	p := Prompt{System: t.system(tn.m), Tools: box.definitions()}
	for {
		if len(tn.open()) > 0 {
			if err := tn.call(ctx, box); err != nil {
				return "", err
			}
		}
		if tn.rec.Steps >= maxTurns {
			return fmt.Sprintf("I stopped after %d steps without an answer: the model kept calling tools.", maxTurns), nil
		}
		p.Messages = tn.s.messages
		done, _, err := chain.Generate(ctx, p, meter, nil)
		if err != nil {
			return "", err
		}
		tn.rec.Steps++
		if len(done.Calls) == 0 {
			if strings.TrimSpace(done.Text) == "" {
				return "(The model gave an empty answer.)", nil
			}
			return done.Text, nil
		}
		tn.add(ChatMessage{Role: RoleAssistant, Text: done.Text, Calls: done.Calls})
	}
}

// failed makes of an error what the bus is to do.
func (t *thinker) failed(ctx context.Context, tn *turn, err error) error {
	m, s := tn.m, tn.s
	if cause := context.Cause(ctx); cause != nil {
		s.saveCost(m)
		return cause
	}
	var fault *ModelError
	var budget *envelope.BudgetError
	switch {
	case errors.As(err, &budget):
		return t.giveUp(tn, fmt.Sprintf("I stopped: %v.", budget))
	case !errors.As(err, &fault):
		s.saveCost(m)
		return err
	case fault.Fault.Passing():
		t.deps.Logger.Warn("no model answers", "message", m.Envelope().MessageID, "error", fault)
		s.saveCost(m)
		if fault.After > 0 {
			return bus.RetryAfter(fault.After, fault)
		}
		return fault // the bus's own backoff
	case fault.Fault == FaultTooLong:
		return t.giveUp(tn, "I cannot answer: "+errNoRoom.Error()+".")
	}
	t.deps.Logger.Error("the model refuses", "message", m.Envelope().MessageID, "error", fault)
	s.saveCost(m)
	// Who asked learns of it by the dead letter's notice, the operator by its reason.
	return bus.Never(envelope.ClassUndeliverable, fmt.Errorf("agent %s cannot think: %w: look at models.providers and the agent's model", t.spec.ID, fault))
}

// giveUp tells who asked, and forgets what led here but not what it cost.
func (t *thinker) giveUp(tn *turn, text string) error {
	tn.s.forgetTurn()
	if err := tn.s.keep(tn.m, tn.over()...); err != nil {
		return err
	}
	return t.say(tn.m, text)
}

// budgetMeter takes calls off the message's budget, the dearest that one can get before it is made.
type budgetMeter struct {
	ctx     context.Context //nolint:containedctx // it lives as long as one Handle
	m       *bus.Incoming
	session *session
}

func (b *budgetMeter) Before(c Choice, most Usage) error {
	if err := b.m.Working(); err != nil {
		return err
	}
	if err := b.m.Guard(); err != nil {
		return err
	}
	left := b.m.Budget()
	if left == nil {
		return nil
	}
	if left.Tokens != nil && *left.Tokens < most.Total() {
		return &envelope.BudgetError{Reason: fmt.Sprintf("the next call of %s may take %d tokens, %d are left", c.Name, most.Total(), *left.Tokens)}
	}
	if usd := c.Price.Of(most); left.USD != nil && *left.USD < usd {
		return &envelope.BudgetError{Reason: fmt.Sprintf("the next call of %s may cost %.4f dollars, %.4f are left", c.Name, usd, *left.USD)}
	}
	return nil
}

func (b *budgetMeter) After(c Choice, u Usage) error {
	b.session.spent(c, u)
	err := b.m.Spend(u.Total(), c.Price.Of(u))
	var over *envelope.BudgetError
	if errors.As(err, &over) && b.m.Budget() != nil {
		// Spend takes nothing when there is not enough: a vendor that counts more than we did takes all.
		left := b.m.Budget()
		tokens, usd := u.Total(), c.Price.Of(u)
		if left.Tokens != nil {
			tokens = min(tokens, *left.Tokens)
		}
		if left.USD != nil {
			usd = min(usd, *left.USD)
		}
		_ = b.m.Spend(tokens, usd) // err says it already
	}
	return err
}

// sayText replies with text, shortened when it does not fit.
func sayText(m *bus.Incoming, text string) error {
	err := m.Reply(envelope.TextPayload(text))
	if errors.Is(err, bus.ErrTooLarge) || errors.Is(err, envelope.ErrInvalid) {
		const most = 4 << 10
		return m.Reply(envelope.TextPayload(strings.ToValidUTF8(text[:min(len(text), most)], "") + "\n(The answer is too large to be passed on; this is its beginning.)"))
	}
	return err
}

// untilReply is how long a question of ours may wait.
func untilReply(m *bus.Incoming, want time.Duration) time.Duration {
	left := time.Until(m.Envelope().ExpiresAt())
	return max(time.Second, min(want, left-min(2*time.Second, left/10)))
}
