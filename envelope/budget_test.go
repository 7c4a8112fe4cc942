package envelope

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func anyBudget() *rapid.Generator[*Budget] {
	return rapid.Custom(func(t *rapid.T) *Budget {
		n := rapid.Ptr(rapid.Int64Range(0, 1000), true)
		return &Budget{Messages: n.Draw(t, "messages"), Tokens: n.Draw(t, "tokens"), USD: rapid.Ptr(rapid.Float64Range(0, 100), true).Draw(t, "usd")}
	})
}

// more reports whether a has more of something than b allows.
func more(a, b *Budget) bool {
	return b.Messages != nil && or(a.Messages, 1<<62) > *b.Messages || b.Tokens != nil && or(a.Tokens, 1<<62) > *b.Tokens ||
		b.USD != nil && or(a.USD, 1e300) > *b.USD
}

// TestBudgetIsConserved: however a budget is shared out, spent and given back, nobody has more than
// there was.
func TestBudgetIsConserved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole := anyBudget().Draw(t, "budget")
		shares := whole.Split(rapid.IntRange(1, 7).Draw(t, "shares"))
		if more(whole.None().Join(shares...), whole) {
			t.Fatal("the shares are more than the whole")
		}
		for i, s := range shares {
			left, err := s.Debit(rapid.Int64Range(0, 3).Draw(t, "messages"), rapid.Int64Range(0, 100).Draw(t, "tokens"), rapid.Float64Range(0, 10).Draw(t, "usd"))
			if err == nil {
				if more(left, s) {
					t.Fatal("a debit adds")
				}
				shares[i] = left
			} else if b := (*BudgetError)(nil); !errors.As(err, &b) || b.Class() != ClassBudget {
				t.Fatalf("Debit: %v", err)
			}
		}
		if more(whole.None().Join(shares...), whole) {
			t.Fatal("more came back than was given")
		}
		if limit := anyBudget().Draw(t, "limit"); more(whole.AtMost(limit), whole) {
			t.Fatal("AtMost adds")
		}
	})
}

func TestBudgetExhausted(t *testing.T) {
	for _, c := range []struct {
		b    *Budget
		want string
	}{
		{nil, ""},
		{&Budget{}, ""},
		{&Budget{Messages: ptr(int64(0))}, ""},
		{&Budget{Tokens: ptr(int64(1)), USD: ptr(0.01), Deadline: ptr(At(noon))}, ""},
		{&Budget{Tokens: ptr(int64(0))}, "budget: no tokens are left"},
		{&Budget{USD: ptr(0.0)}, "budget: no US dollars are left"},
		{&Budget{Deadline: ptr(At(noon.Add(-time.Second)))}, "budget: its deadline was 2026-02-03T11:59:59Z"},
	} {
		got := ""
		if err := c.b.Exhausted(noon); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.b, got, c.want)
		}
	}
	if _, err := (&Budget{Messages: ptr(int64(1))}).Debit(2, 0, 0); err == nil {
		t.Error("two messages were taken off a budget of one")
	}
	left, err := (&Budget{Messages: ptr(int64(1)), Tokens: ptr(int64(5))}).Debit(1, 9, 0)
	if err != nil || *left.Messages != 0 || *left.Tokens != 0 || left.USD != nil {
		t.Errorf("Debit: %+v, %v", left, err)
	}
}
