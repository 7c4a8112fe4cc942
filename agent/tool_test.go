package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

func TestToolPolicy(t *testing.T) {
	all := []string{"agents_list", "sessions_list", "sessions_history", "sessions_send", "sessions_spawn", "exec", "files__read", "files__write"}
	for name, c := range map[string]struct {
		policies []ToolPolicy
		want     []string
	}{
		"none":                    {nil, all},
		"empty":                   {[]ToolPolicy{{}}, all},
		"full":                    {[]ToolPolicy{{Profile: "full"}}, all},
		"minimal":                 {[]ToolPolicy{{Profile: "minimal"}}, []string{"agents_list"}},
		"messaging":               {[]ToolPolicy{{Profile: "messaging"}}, []string{"agents_list", "sessions_list", "sessions_history", "sessions_send"}},
		"deny wins":               {[]ToolPolicy{{Allow: []string{"exec"}, Deny: []string{"exec"}}}, nil},
		"allow replaces":          {[]ToolPolicy{{Profile: "minimal", Allow: []string{"exec"}}}, []string{"exec"}},
		"also":                    {[]ToolPolicy{{Profile: "minimal", AlsoAllow: []string{"files__r*"}}}, []string{"agents_list", "files__read"}},
		"group":                   {[]ToolPolicy{{Deny: []string{"group:mcp", "group:sessions"}}}, []string{"agents_list", "exec"}},
		"stars":                   {[]ToolPolicy{{Allow: []string{"*s_s*d*", "files__*te"}}}, []string{"sessions_send", "files__write"}},
		"both policies must pass": {[]ToolPolicy{{Profile: "messaging"}, {Allow: []string{"sessions_send", "exec"}}}, []string{"sessions_send"}},
	} {
		var tools []Tool
		for _, n := range all {
			tools = append(tools, Tool{ToolDef: ToolDef{Name: n}})
		}
		var got []string
		for _, d := range pick(c.policies, tools, tools).definitions() {
			got = append(got, d.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// counted is a tool with effects outside, which says how often it was called.
func counted(run func(n int) (ToolOutput, error)) (Tool, *[]string) {
	var calls []string
	return Tool{ToolDef: ToolDef{"write", "writes", json.RawMessage(`{"type":"object"}`)}, Effect: EffectOutside, Run: func(_ context.Context, c *Call) (ToolOutput, error) {
		calls = append(calls, string(c.Arguments))
		return run(len(calls))
	}}, &calls
}

func done(text string) func(int) (ToolOutput, error) {
	return func(int) (ToolOutput, error) { return ToolOutput{Text: text}, nil }
}

// A message that is handled again after the model failed goes on behind what was done already, questions included.
func TestTurnGoesOn(t *testing.T) {
	tool, calls := counted(done("written"))
	w := &wise{}
	failed := false
	w.answer = func(_ int, p Prompt) (*Completion, error) {
		switch n := len(p.Messages); {
		case n == 1 || n == 5:
			return wants("sessions_send", `{"sessionKey":"bobby","message":"how many?"}`), nil
		case n == 3:
			return wants("write", `{"what":"it"}`), nil
		case n == 7 && !failed:
			failed = true
			return nil, errors.New("the process is in trouble")
		}
		return answersText(p.Messages[2].Results[0].Text + p.Messages[4].Results[0].Text + last(p).Text), nil
	}
	asked := 0
	m := thinking(t, w, Spec{}, func(_ context.Context, m *bus.Incoming) error {
		asked++
		return m.Reply(envelope.TextPayload(fmt.Sprint("answer ", asked)))
	}, tool)
	tr := m.say("talk", "go")
	if tr.Reply == nil {
		t.Fatalf("no answer: %+v", tr.Facts)
	}
	got := Text(tr.Reply.Payload)
	// The attempt that failed wrote the turn down at the call; the question behind it is the same question again, not the first one.
	for _, want := range []string{"answer 1", "written", "answer 2"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("the model was told %s", got)
		}
	}
	if len(*calls) != 1 || asked != 2 {
		t.Errorf("the tool was called %d times, bobby asked %d times; want 1 and 2", len(*calls), asked)
	}
	if n := len(w.prompts()); n != 6 {
		t.Errorf("the model was asked %d times, want 6: four, and again from the call on", n)
	}
	m.noTurns()
}

// noTurns checks that nothing rests of turns that are over.
func (m *mesh) noTurns() {
	m.t.Helper()
	if left, err := m.Room(within(m.t), "jerry", TurnsPrefix); err != nil || len(left) != 0 {
		m.t.Errorf("turns are left over: %+v, %v", left, err)
	}
}

// A call that was on its way when the handling broke off is not made again, and the model is told.
func TestTurnDoesNotRepeatACall(t *testing.T) {
	tool, calls := counted(func(int) (ToolOutput, error) { return ToolOutput{}, errors.New("killed in the middle") })
	w := &wise{answer: func(_ int, p Prompt) (*Completion, error) {
		if len(p.Messages) == 1 {
			return wants("write", `{}`), nil
		}
		return answersText(last(p).Text), nil
	}}
	m := thinking(t, w, Spec{}, nil, tool)
	tr := m.say("talk", "go")
	if tr.Reply == nil || !strings.Contains(Text(tr.Reply.Payload), "It is not known whether this call was carried out") {
		t.Errorf("got %+v", tr)
	}
	if len(*calls) != 1 || len(w.prompts()) != 2 {
		t.Errorf("%d calls, the model was asked %d times", len(*calls), len(w.prompts()))
	}
	if s := w.prompts()[1].System; !strings.Contains(s, "attempt 2") {
		t.Errorf("the model is not told that it is asked again: %s", s)
	}
	m.noTurns()
}

// What surely did nothing is no effect, and can be called as often as one likes.
func TestTurnUndoneCalls(t *testing.T) {
	tool, calls := counted(func(n int) (ToolOutput, error) {
		if n < 4 {
			return Failed("not this way"), nil
		}
		return ToolOutput{Text: "written"}, nil
	})
	w := &wise{answer: func(n int, p Prompt) (*Completion, error) {
		if n < 5 {
			return wants("write", fmt.Sprintf(`{"n":%d}`, n)), nil
		}
		return answersText(last(p).Text), nil
	}}
	tr := thinking(t, w, Spec{}, nil, tool).say("talk", "go")
	if tr.Reply == nil || Text(tr.Reply.Payload) != "written" || len(*calls) != 4 {
		t.Errorf("%q: %+v", *calls, tr)
	}
}

func TestToolBounds(t *testing.T) {
	long := strings.Repeat("x", MaxToolOutput) + strings.Repeat("y", MaxToolOutput) + "\xff"
	tool := Tool{Run: func(context.Context, *Call) (ToolOutput, error) { return ToolOutput{Text: long}, nil }}
	out, err := tool.run(t.Context(), &Call{})
	if err != nil || len(out.Text) > MaxToolOutput+100 || !strings.HasPrefix(out.Text, "xxx") || !strings.HasSuffix(out.Text, "yy\uFFFD") || !strings.Contains(out.Text, "bytes are left out") {
		t.Errorf("%d bytes, %v", len(out.Text), err)
	}
	synctest.Test(t, func(t *testing.T) {
		tool := Tool{Run: func(ctx context.Context, _ *Call) (ToolOutput, error) { <-ctx.Done(); return ToolOutput{}, ctx.Err() }}
		began := time.Now()
		out, err := tool.run(t.Context(), &Call{})
		if err != nil || !out.Failed || out.Undone || time.Since(began) != defaultToolTimeout {
			t.Errorf("a call that hangs: %+v, %v after %s", out, err, time.Since(began))
		}
		stop := errors.New("the gateway stops")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(stop)
		if _, err := tool.run(ctx, &Call{}); !errors.Is(err, stop) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

// An agent is not offered, and cannot call, what its policy does not let pass.
func TestThinkerKeepsToItsTools(t *testing.T) {
	tool, calls := counted(done("written"))
	w := &wise{answer: func(n int, p Prompt) (*Completion, error) {
		if n == 1 {
			return wants("write", `{}`), nil
		}
		return answersText(last(p).Text), nil
	}}
	tr := thinking(t, w, Spec{Tools: []ToolPolicy{{Deny: []string{"write"}}}}, nil, tool).say("talk", "go")
	if tr.Reply == nil || !strings.Contains(Text(tr.Reply.Payload), "there is no tool") || len(*calls) != 0 {
		t.Errorf("%d calls, %+v", len(*calls), tr)
	}
	for _, d := range w.prompts()[0].Tools {
		if d.Name == "write" {
			t.Error("it is offered")
		}
	}
}
