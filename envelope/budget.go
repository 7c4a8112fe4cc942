package envelope

import (
	"fmt"
	"math"
	"time"
)

// A BudgetError says what of a causal chain's budget is spent.
type BudgetError struct{ Reason string }

func (e *BudgetError) Error() string { return "budget: " + e.Reason }

// Class is [ClassBudget]: trying again does not fill it.
func (e *BudgetError) Class() Class { return ClassBudget }

// Spent is what was taken off a budget.
type Spent struct {
	Messages int64   `json:"messages,omitempty"`
	Tokens   int64   `json:"tokens,omitempty"`
	USD      float64 `json:"usd,omitempty"`
}

// Exhausted refuses, as *[BudgetError], any further work: no tokens or dollars are left, or the deadline has
// passed. No messages left is not that: the message itself was paid for by who sent it, it
// may only cause no other. A nil budget is unlimited, here and below.
func (b *Budget) Exhausted(now time.Time) error {
	switch {
	case b == nil:
		return nil
	case b.Tokens != nil && *b.Tokens <= 0:
		return &BudgetError{"no tokens are left"}
	case b.USD != nil && *b.USD <= 0:
		return &BudgetError{"no US dollars are left"}
	case b.Deadline != nil && now.After(b.Deadline.Time):
		return &BudgetError{fmt.Sprintf("its deadline was %s", b.Deadline.Format(time.RFC3339))}
	}
	return nil
}

// Debit returns what is left. Messages are refused before they are sent (*[BudgetError], nothing is
// debited); tokens and dollars are known only once they are spent, so they stop at 0, and
// Exhausted says so next.
func (b *Budget) Debit(messages, tokens int64, usd float64) (*Budget, error) {
	if b == nil {
		return nil, nil //nolint:nilnil // unlimited
	}
	if b.Messages != nil && *b.Messages < messages {
		return nil, &BudgetError{fmt.Sprintf("%d messages are left, %d are needed", *b.Messages, messages)}
	}
	return b.Less(Spent{messages, tokens, usd}), nil
}

// Less returns what is left after s, nothing below 0.
func (b *Budget) Less(s Spent) *Budget {
	return b.each(
		func(n int64) int64 { return max(0, n-s.Messages) },
		func(n int64) int64 { return max(0, n-s.Tokens) },
		func(f float64) float64 { return max(0, f-s.USD) })
}

// None is b with nothing left of what it limits.
func (b *Budget) None() *Budget {
	zero := func(int64) int64 { return 0 }
	return b.each(zero, zero, func(float64) float64 { return 0 })
}

// AtMost returns b with no more of anything than limit has.
func (b *Budget) AtMost(limit *Budget) *Budget {
	if limit == nil {
		return b
	}
	return b.each(
		func(n int64) int64 { return min(n, or(limit.Messages, math.MaxInt64)) },
		func(n int64) int64 { return min(n, or(limit.Tokens, math.MaxInt64)) },
		func(f float64) float64 { return min(f, or(limit.USD, math.MaxFloat64)) })
}

// Split returns n shares that together are no more than b; the deadline is everybody's.
func (b *Budget) Split(n int) []*Budget {
	shares := make([]*Budget, n)
	if b == nil || n == 0 {
		return shares
	}
	parts := int64(n)
	for i := range shares {
		rest := func(all int64) int64 {
			if i == 0 {
				return all/parts + all%parts
			}
			return all / parts
		}
		// Rounded down a little, so that the shares' sum cannot round up over the whole.
		shares[i] = b.each(rest, rest, func(f float64) float64 { return f / float64(n) * (1 - 1e-12) })
		if n == 1 {
			shares[0] = b.each(rest, rest, func(f float64) float64 { return f })
		}
	}
	return shares
}

// Join adds back what is left of shares.
func (b *Budget) Join(shares ...*Budget) *Budget {
	for _, s := range shares {
		if s == nil {
			continue
		}
		b = b.each(
			func(n int64) int64 { return saturate(n, or(s.Messages, 0)) },
			func(n int64) int64 { return saturate(n, or(s.Tokens, 0)) },
			func(f float64) float64 { return min(f+or(s.USD, 0), math.MaxFloat64) })
	}
	return b
}

func saturate(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// each returns a copy with the limits that are set changed.
func (b *Budget) each(messages, tokens func(int64) int64, usd func(float64) float64) *Budget {
	if b == nil {
		return nil
	}
	c := Budget{Deadline: b.Deadline}
	if b.Messages != nil {
		n := messages(*b.Messages)
		c.Messages = &n
	}
	if b.Tokens != nil {
		n := tokens(*b.Tokens)
		c.Tokens = &n
	}
	if b.USD != nil {
		f := usd(*b.USD)
		c.USD = &f
	}
	return &c
}
