package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Price is US dollars for a million tokens.
type Price struct{ In, Out float64 }

// Of is what the tokens cost.
func (p Price) Of(u Usage) float64 {
	return (p.In*float64(u.In) + p.Out*float64(u.Out)) / 1e6
}

// Choice is a model that an agent may use, with what is known of it.
type Choice struct {
	// Name is "provider/model".
	Name  string
	Model Model
	// ContextWindow is the tokens of prompt and answer together, MaxTokens those of the answer; 0: defaults.
	ContextWindow, MaxTokens int
	Price                    Price
}

// The defaults of a Choice.
const (
	DefaultContextWindow = 32_768
	DefaultMaxTokens     = 4_096
)

// Meter watches the calls of a Chain.
type Meter interface {
	// Before is asked before every call, retries included, with the most that it can cost. Its error ends
	// everything: the call is not made.
	Before(c Choice, most Usage) error
	// After is told what a call cost, also a failed one. Its error ends everything.
	After(c Choice, u Usage) error
}

// Chain is the models of an agent, the preferred one first. A call that fails for a passing reason is
// repeated after the vendor's hint, at most Attempts times; then the next model is asked. A prompt that is
// too long is trimmed.
type Chain struct {
	Choices []Choice
	// Attempts at one model; 0: 3.
	Attempts int
	// Timeout of one call; 0: 2 minutes.
	Timeout time.Duration
	// MostWait is the longest hint that is waited for; above it the next model is asked, or the error
	// returned with the hint. 0: 20 seconds.
	MostWait time.Duration
	// Called, if it is set, is told of each call.
	Called func(ModelCall)
}

// ModelCall is one call of a model and what came of it.
type ModelCall struct {
	// Model is "provider/model".
	Model string
	// Fault is empty when there was an answer, "cancelled" when nobody waited for one any more.
	Fault string
	Usage
	USD  float64
	Took time.Duration
}

const (
	defaultAttempts = 3
	defaultTimeout  = 2 * time.Minute
	defaultMostWait = 20 * time.Second
)

// Generate asks the models in their order. It returns the answer and whose it is. Errors: the Meter's, ctx's,
// else the *ModelError of the first model that failed for a passing reason, or of the first one.
func (c *Chain) Generate(ctx context.Context, p Prompt, meter Meter, onText func(string)) (*Completion, Choice, error) {
	if len(c.Choices) == 0 {
		return nil, Choice{}, errors.New("no model is configured")
	}
	var first *ModelError
	for _, choice := range c.Choices {
		done, err := c.ask(ctx, choice, p, meter, onText)
		var fault *ModelError
		switch {
		case err == nil:
			return done, choice, nil
		case !errors.As(err, &fault):
			return nil, choice, err
		case first == nil || !first.Fault.Passing() && fault.Fault.Passing():
			first = fault
		}
	}
	return nil, c.Choices[0], first
}

// preferring is the chain with a model ("provider/model") as the first one; as it is when it has none of that name.
func (c *Chain) preferring(model string) *Chain {
	at := slices.IndexFunc(c.Choices, func(x Choice) bool { return x.Name == model })
	if at <= 0 {
		return c
	}
	p := *c
	p.Choices = slices.Concat(c.Choices[at:at+1], c.Choices[:at], c.Choices[at+1:])
	return &p
}

// ask asks one model, more than once if that helps.
func (c *Chain) ask(ctx context.Context, choice Choice, p Prompt, meter Meter, onText func(string)) (*Completion, error) {
	wait := backoff.NewExponentialBackOff(backoff.WithInitialInterval(500*time.Millisecond),
		backoff.WithMaxInterval(8*time.Second), backoff.WithMaxElapsedTime(0))
	room := choice.room(p)
	for attempt, trimmed := 1, false; ; attempt++ {
		fitted, err := Trim(p, room)
		if err != nil {
			return nil, &ModelError{Fault: FaultTooLong, Model: choice.Name, Detail: err.Error()}
		}
		fitted.MaxTokens = choice.answer(p)
		done, err := c.once(ctx, choice, fitted, meter, onText)
		var fault *ModelError
		if err == nil || !errors.As(err, &fault) {
			return done, err
		}
		if fault.Fault == FaultTooLong && !trimmed {
			// Our count is an estimate, the vendor's is not.
			trimmed, room = true, room/2
			continue
		}
		d := max(wait.NextBackOff(), fault.After)
		if !fault.Fault.Passing() || attempt >= or(c.Attempts, defaultAttempts) || fault.After > or(c.MostWait, defaultMostWait) {
			return nil, err
		}
		if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
			return nil, err // the time ends before the wait does: better say so now
		}
		if err := pause(ctx, d); err != nil {
			return nil, err
		}
	}
}

// once makes one call, under the meter's eyes.
func (c *Chain) once(ctx context.Context, choice Choice, p Prompt, meter Meter, onText func(string)) (*Completion, error) {
	if meter != nil {
		if err := meter.Before(choice, Usage{In: int64(promptTokens(p)), Out: int64(p.MaxTokens)}); err != nil {
			return nil, err
		}
	}
	call, cancel := context.WithTimeout(ctx, or(c.Timeout, defaultTimeout))
	defer cancel()
	began := time.Now()
	done, err := choice.Model.Generate(call, p, onText)
	if err != nil && ctx.Err() == nil && errors.Is(call.Err(), context.DeadlineExceeded) {
		var fault *ModelError
		spent := Usage{In: int64(promptTokens(p))} // it may have been read, and is not told of
		if errors.As(err, &fault) && fault.Usage != (Usage{}) {
			spent = fault.Usage
		}
		err = &ModelError{Fault: FaultOutage, Model: choice.Name, Usage: spent, Detail: fmt.Sprintf("no answer within %s", or(c.Timeout, defaultTimeout))}
	}
	var used Usage
	var fault *ModelError
	switch {
	case err == nil:
		used = done.Usage
		if used == (Usage{}) { // some servers do not count
			used = Usage{In: int64(promptTokens(p)), Out: int64(completionTokens(done))}
			done.Usage = used
		}
	case errors.As(err, &fault):
		used = fault.Usage
	case ctx.Err() != nil:
		used = Usage{In: int64(promptTokens(p))} // cancelled on the way: the vendor counts what it read
	}
	if c.Called != nil {
		c.Called(ModelCall{Model: choice.Name, Fault: faultOf(err), Usage: used, USD: choice.Price.Of(used), Took: time.Since(began)})
	}
	if meter != nil && used != (Usage{}) {
		if merr := meter.After(choice, used); merr != nil {
			// The answer is there and paid for; only a next call is one too many.
			if err == nil {
				return done, nil
			}
			return nil, merr
		}
	}
	return done, err
}

func faultOf(err error) string {
	var fault *ModelError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &fault):
		return string(fault.Fault)
	}
	return "cancelled"
}

// answer is the bound of the answer.
func (c Choice) answer(p Prompt) int {
	most := or(c.MaxTokens, DefaultMaxTokens)
	if p.MaxTokens > 0 {
		most = min(most, p.MaxTokens)
	}
	return min(most, max(1, or(c.ContextWindow, DefaultContextWindow)/2))
}

// room is what is left of the context window for the prompt.
func (c Choice) room(p Prompt) int {
	return or(c.ContextWindow, DefaultContextWindow) - c.answer(p)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// or is v, or def when v is not positive.
func or[T int | time.Duration](v, def T) T {
	if v > 0 {
		return v
	}
	return def
}
