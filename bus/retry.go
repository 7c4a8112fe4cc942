package bus

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/gatemesh/gatemesh/envelope"
)

// RetryPolicy says how failed attempts are repeated.
type RetryPolicy struct {
	// MaxAttempts counts the first one too; 0 means 5.
	MaxAttempts int
	// Initial is the delay after the first failure (0: 1 s); it doubles up to Max (0: 1 min).
	// Each delay is drawn from 50 % to 100 % of that, so that failures do not march in step.
	Initial, Max time.Duration
}

func (p RetryPolicy) withDefaults() RetryPolicy {
	if p.MaxAttempts <= 0 {
		p.MaxAttempts = 5
	}
	if p.Initial <= 0 {
		p.Initial = time.Second
	}
	if p.Max <= 0 {
		p.Max = time.Minute
	}
	return p
}

// of is the policy for one message: what its sender asked for, else the defaults.
func (p RetryPolicy) of(e *envelope.Envelope) RetryPolicy {
	if e.MaxAttempts > 0 {
		p.MaxAttempts = e.MaxAttempts
	}
	if d := e.RetryDelay.Duration(); d > 0 {
		p.Initial, p.Max = d, max(p.Max, d)
	}
	return p
}

func (p RetryPolicy) delay(failures int) time.Duration {
	d := p.Max
	if shift := failures - 1; shift < 30 && p.Initial<<shift < p.Max {
		d = p.Initial << shift
	}
	return d/2 + rand.N(d/2+1)
}

// newBackoff is the pause between tries at a store that does not answer: 20 ms to 2 s with
// jitter, without end.
func newBackoff() *backoff.ExponentialBackOff { return newBackoffUpTo(2 * time.Second) }

// urgent is the longest such pause of what a failover waits for: the picture of all locks, and the writer.
const urgent = 150 * time.Millisecond

func newBackoffUpTo(most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 20 * time.Millisecond
	b.MaxInterval = most
	b.MaxElapsedTime = 0
	b.Reset()
	return b
}

// pause waits before the next try, or until ctx ends.
func (b *Bus) pause(ctx context.Context, wait *backoff.ExponentialBackOff, cause error) {
	d := wait.NextBackOff()
	b.log.Debug("store: trying again", "in", d, "cause", cause)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
