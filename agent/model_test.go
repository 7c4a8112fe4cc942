package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// played is a model that plays a script, the last step again and again.
type played struct {
	steps []func(context.Context, Prompt) (*Completion, error)
	seen  []Prompt
}

func (p *played) Generate(ctx context.Context, prompt Prompt, _ func(string)) (*Completion, error) {
	p.seen = append(p.seen, prompt)
	return p.steps[min(len(p.seen), len(p.steps))-1](ctx, prompt)
}

func says(text string) func(context.Context, Prompt) (*Completion, error) {
	return func(context.Context, Prompt) (*Completion, error) {
		return &Completion{Text: text, Usage: Usage{In: 10, Out: 5}}, nil
	}
}

func fails(f Fault, after time.Duration) func(context.Context, Prompt) (*Completion, error) {
	return func(context.Context, Prompt) (*Completion, error) {
		return nil, &ModelError{Fault: f, Model: "p/m", After: after}
	}
}

func hangs(ctx context.Context, _ Prompt) (*Completion, error) { <-ctx.Done(); return nil, ctx.Err() }

func chainOf(models ...*played) *Chain {
	c := &Chain{}
	for i, m := range models {
		c.Choices = append(c.Choices, Choice{Name: fmt.Sprintf("p/m%d", i), Model: m})
	}
	return c
}

func TestChainRetriesAndFallsBack(t *testing.T) {
	type script = []func(context.Context, Prompt) (*Completion, error)
	for name, c := range map[string]struct {
		first, second script
		text          string
		fault         Fault
		asked         [2]int
		least, most   time.Duration
	}{
		"at once":                      {script{says("a")}, script{says("b")}, "a", "", [2]int{1, 0}, 0, 0},
		"the hint is waited for":       {script{fails(FaultRateLimited, 7*time.Second), says("a")}, script{says("b")}, "a", "", [2]int{2, 0}, 7 * time.Second, 7 * time.Second},
		"overload and a cut stream":    {script{fails(FaultOverloaded, 0), fails(FaultCutStream, 0), says("a")}, script{says("b")}, "a", "", [2]int{3, 0}, 100 * time.Millisecond, 5 * time.Second},
		"an outage goes on":            {script{fails(FaultOutage, 0)}, script{says("b")}, "b", "", [2]int{3, 1}, 100 * time.Millisecond, 5 * time.Second},
		"a long hint goes on at once":  {script{fails(FaultRateLimited, time.Hour)}, script{says("b")}, "b", "", [2]int{1, 1}, 0, 0},
		"a wrong key goes on at once":  {script{fails(FaultAuth, 0)}, script{says("b")}, "b", "", [2]int{1, 1}, 0, 0},
		"silence":                      {script{hangs}, script{says("b")}, "b", "", [2]int{3, 1}, 6 * time.Minute, 7 * time.Minute},
		"what passes is told of first": {script{fails(FaultAuth, 0)}, script{fails(FaultRateLimited, time.Hour)}, "", FaultRateLimited, [2]int{1, 1}, 0, 0},
		"all are wrong":                {script{fails(FaultBadRequest, 0)}, script{fails(FaultAuth, 0)}, "", FaultBadRequest, [2]int{1, 1}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := &played{steps: c.first}, &played{steps: c.second}
				begun := time.Now()
				got, _, err := chainOf(a, b).Generate(t.Context(), Prompt{Messages: []ChatMessage{{Role: RoleUser, Text: "?"}}}, nil, nil)
				took := time.Since(begun)
				var f *ModelError
				if c.fault != "" && (!errors.As(err, &f) || f.Fault != c.fault) || c.fault == "" && (err != nil || got.Text != c.text) {
					t.Errorf("got %+v, %v", got, err)
				}
				if asked := [2]int{len(a.seen), len(b.seen)}; asked != c.asked {
					t.Errorf("asked %v times, want %v", asked, c.asked)
				}
				if took < c.least || took > c.most {
					t.Errorf("took %s, want %s to %s", took, c.least, c.most)
				}
			})
		})
	}
}

func TestChainStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(3*time.Second, func() { cancel(stop) })
		begun := time.Now()
		m := &played{steps: []func(context.Context, Prompt) (*Completion, error){fails(FaultRateLimited, 10*time.Second)}}
		_, _, err := chainOf(m).Generate(ctx, Prompt{}, nil, nil)
		if !errors.Is(err, stop) || time.Since(begun) != 3*time.Second {
			t.Errorf("got %v after %s", err, time.Since(begun))
		}
	})
}

// metered refuses what costs more than most, and adds up the rest.
type metered struct {
	most    int64
	used    Usage
	refused int
}

var errDear = errors.New("too dear")

func (m *metered) Before(_ Choice, u Usage) error {
	if u.Total() > m.most {
		m.refused++
		return errDear
	}
	return nil
}
func (m *metered) After(_ Choice, u Usage) error { m.used = m.used.Add(u); return nil }

func TestChainMakesNoCallThatIsTooDear(t *testing.T) {
	m := &played{steps: []func(context.Context, Prompt) (*Completion, error){says("a")}}
	c := chainOf(m)
	c.Choices[0].MaxTokens = 500
	meter := &metered{most: 499}
	if _, _, err := c.Generate(t.Context(), Prompt{}, meter, nil); !errors.Is(err, errDear) || len(m.seen) != 0 {
		t.Fatalf("asked %d times: %v", len(m.seen), err)
	}
	meter.most = 600
	if _, _, err := c.Generate(t.Context(), Prompt{}, meter, nil); err != nil || meter.used != (Usage{10, 5}) || m.seen[0].MaxTokens != 500 {
		t.Fatalf("used %+v: %v", meter.used, err)
	}
}

func TestTrimKeepsTurnsWhole(t *testing.T) {
	turn := func(n int) []ChatMessage {
		id := fmt.Sprint("c", n)
		return []ChatMessage{
			{Role: RoleUser, Text: fmt.Sprint("question ", n, strings.Repeat(" x", 100))},
			{Role: RoleAssistant, Calls: []ToolCall{{ID: id, Name: "t", Arguments: json.RawMessage(`{}`)}}},
			{Role: RoleTool, Results: []ToolResult{{CallID: id, Text: strings.Repeat("r", 300)}}},
			{Role: RoleAssistant, Text: "answer"},
		}
	}
	var p Prompt
	for n := range 10 {
		p.Messages = append(p.Messages, turn(n)...)
	}
	for room := 250; room < 2500; room += 50 {
		got, err := Trim(p, room)
		if err != nil {
			t.Fatalf("room %d: %v", room, err)
		}
		if n := promptTokens(got); n > room {
			t.Errorf("room %d: %d tokens", room, n)
		}
		if len(got.Messages)%4 != 0 || got.Messages[0].Role != RoleUser || !strings.HasPrefix(got.Messages[len(got.Messages)-4].Text, "question 9") {
			t.Errorf("room %d: a turn was torn: %d messages", room, len(got.Messages))
		}
	}
	if _, err := Trim(p, 20); !errors.Is(err, errNoRoom) {
		t.Errorf("what the user asked was shortened: %v", err)
	}
	long := Prompt{Messages: turn(1)}
	long.Messages[2].Results[0].Text = strings.Repeat("r", 30_000)
	got, err := Trim(long, 1000)
	if err != nil || promptTokens(got) > 1000 || !strings.HasSuffix(got.Messages[2].Results[0].Text, shortened) {
		t.Errorf("a long result: %d tokens, %v", promptTokens(got), err)
	}
	if len(long.Messages[2].Results[0].Text) != 30_000 {
		t.Error("the caller's own messages were changed")
	}
}

func TestPriceOfTheMesh(t *testing.T) {
	// A day of three agents at 3 dollars a million tokens, and a month of it.
	price := Price{In: 3, Out: 3}
	total := 0.0
	for tokens, month := range map[int64]float64{500_000: 45, 200_000: 18, 300_000: 27} {
		got := 30 * price.Of(Usage{In: tokens * 4 / 5, Out: tokens / 5})
		if fmt.Sprintf("%.6f", got) != fmt.Sprintf("%.6f", month) {
			t.Errorf("%d tokens a day: %f dollars a month, want %f", tokens, got, month)
		}
		total += got
	}
	if fmt.Sprintf("%.6f", total) != "90.000000" {
		t.Errorf("all: %f", total)
	}
}

func TestDetailHidesTheKey(t *testing.T) {
	if got := Detail("wrong\nkey sk-1 "+strings.Repeat("x", 500), "sk-1"); strings.Contains(got, "sk-1") || strings.Contains(got, "\n") || len(got) > 220 {
		t.Errorf("got %q", got)
	}
}
