package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
)

// demoFigures is what a run of "gatemesh demo --once --json" shows.
type demoFigures struct {
	// FirstAnswerMS is from accepting the question until its answer is back.
	FirstAnswerMS float64 `json:"first_answer_ms"`
	// TotalSeconds is the whole run of the program: servers started and stopped included.
	TotalSeconds float64 `json:"total_s"`
	Events       int     `json:"events"`
	Gateways     int     `json:"gateways"`
	Messages     int     `json:"messages"`
	// The facts of the question and of what jerry asked bobby.
	Accepted  bool   `json:"accepted"`
	Delivered bool   `json:"delivered"`
	Acked     bool   `json:"acked"`
	Replied   bool   `json:"replied"`
	Answer    string `json:"answer"`
}

// readEvents reads the demo's output: every line is one event.
func readEvents(out []byte) ([]bus.Event, error) {
	var events []bus.Event
	for i, line := range bytes.Split(bytes.TrimSpace(out), []byte("\n")) {
		var ev bus.Event
		if err := json.Unmarshal(line, &ev); err != nil {
			return nil, fmt.Errorf("line %d is not an event: %w: %.100s", i+1, err, line)
		}
		if ev.Event == "" || ev.Gateway == "" || ev.At.IsZero() {
			return nil, fmt.Errorf("line %d lacks event, gateway or at: %.200s", i+1, line)
		}
		events = append(events, ev)
	}
	return events, nil
}

// judgeDemo says what the events show and which promises they break: the user's question
// to jerry and jerry's to bobby are accepted, delivered and acked, in this order, the
// latter at another gateway than it was accepted at; and the user has the answer.
func judgeDemo(events []bus.Event) (demoFigures, []string) {
	f := demoFigures{Events: len(events)}
	var broken []string
	find := func(name, id string) *bus.Event {
		for i := range events {
			if events[i].Event == name && events[i].MessageID == id {
				return &events[i]
			}
		}
		return nil
	}
	queued := func(ok func(bus.Event) bool) *bus.Event {
		for i := range events {
			if events[i].Event == bus.EventQueued && events[i].MessageID != "" && ok(events[i]) {
				return &events[i]
			}
		}
		return nil
	}
	gateways, messages := map[string]bool{}, map[string]bool{}
	for _, ev := range events {
		gateways[ev.Gateway] = true
		if ev.MessageID != "" {
			messages[ev.MessageID] = true
		}
		if ev.Event == bus.EventDeadLetter || ev.Event == bus.EventFailed || ev.Event == bus.EventRefused {
			broken = append(broken, fmt.Sprintf("%s: %s (%s) at %s", ev.Event, ev.MessageID, ev.Reason, ev.Gateway))
		}
	}
	f.Gateways, f.Messages = len(gateways), len(messages)

	question := queued(func(ev bus.Event) bool { return strings.HasPrefix(ev.To, "jerry") && ev.InReplyTo == "" })
	if question == nil {
		return f, append(broken, "no question to jerry was accepted")
	}
	asked := queued(func(ev bus.Event) bool {
		return strings.HasPrefix(ev.To, "bobby") && strings.HasPrefix(ev.From, "jerry") && ev.InReplyTo == ""
	})
	if asked == nil {
		return f, append(broken, "jerry asked bobby nothing")
	}
	f.Accepted, f.Delivered, f.Acked = true, true, true
	for what, q := range map[string]*bus.Event{"the question": question, "jerry's question": asked} {
		delivered, acked := find(bus.EventDelivered, q.MessageID), find(bus.EventAcked, q.MessageID)
		if f.Delivered = f.Delivered && delivered != nil; delivered == nil {
			broken = append(broken, what+" was not delivered")
		} else if delivered.At.Before(q.At.Time) {
			broken = append(broken, what+" was delivered before it was accepted")
		}
		if f.Acked = f.Acked && acked != nil; acked == nil {
			broken = append(broken, what+" was not acked")
		} else if delivered != nil && acked.At.Before(delivered.At.Time) {
			broken = append(broken, what+" was acked before it was delivered")
		}
		if q == asked && delivered != nil && delivered.Gateway == q.Gateway {
			broken = append(broken, what+" did not leave "+q.Gateway)
		}
	}
	replied := find(bus.EventReplied, question.MessageID)
	switch {
	case replied == nil:
		broken = append(broken, "the question was not replied to")
	case strings.TrimSpace(replied.Text) == "":
		broken = append(broken, "the answer is empty")
	default:
		f.Replied, f.Answer = true, strings.TrimSpace(replied.Text)
		f.FirstAnswerMS = float64(replied.At.Sub(question.At.Time).Microseconds()) / 1000
	}
	return f, broken
}

// TestJudgeDemo: the proof of the demo fails when the demo does.
func TestJudgeDemo(t *testing.T) {
	story := []string{
		`{"event":"owned","at":"2026-03-01T10:00:00.000Z","gateway":"bobby-gateway","to":"bobby"}`,
		`{"event":"queued","at":"2026-03-01T10:00:01.000Z","gateway":"jerry-gateway","message_id":"q","from":"user@jerry-gateway","to":"jerry"}`,
		`{"event":"delivered","at":"2026-03-01T10:00:01.001Z","gateway":"jerry-gateway","message_id":"q","to":"jerry"}`,
		`{"event":"queued","at":"2026-03-01T10:00:01.002Z","gateway":"jerry-gateway","message_id":"a","from":"jerry@jerry-gateway","to":"bobby"}`,
		`{"event":"delivered","at":"2026-03-01T10:00:01.003Z","gateway":"bobby-gateway","message_id":"a","to":"bobby"}`,
		`{"event":"acked","at":"2026-03-01T10:00:01.004Z","gateway":"bobby-gateway","message_id":"a","to":"bobby"}`,
		`{"event":"acked","at":"2026-03-01T10:00:01.006Z","gateway":"jerry-gateway","message_id":"q","to":"jerry"}`,
		`{"event":"replied","at":"2026-03-01T10:00:01.005Z","gateway":"jerry-gateway","message_id":"q","text":"all-healthy"}`,
	}
	for name, c := range map[string]struct {
		change func([]string) []string
		want   string // part of what is broken; "" is a good story
	}{
		"good":         {func(s []string) []string { return s }, ""},
		"no question":  {func(s []string) []string { return s[:1] }, "no question to jerry"},
		"nobody asked": {func(s []string) []string { return append(s[:3:3], s[6:]...) }, "asked bobby nothing"},
		"no delivery":  {func(s []string) []string { return append(s[:4:4], s[5:]...) }, "jerry's question was not delivered"},
		"no ack":       {func(s []string) []string { return append(s[:6:6], s[7:]...) }, "the question was not acked"},
		"no reply":     {func(s []string) []string { return s[:7] }, "was not replied to"},
		"empty":        {func(s []string) []string { s[7] = strings.Replace(s[7], "all-healthy", " ", 1); return s }, "answer is empty"},
		"order":        {func(s []string) []string { s[4] = strings.Replace(s[4], "01.003", "00.999", 1); return s }, "before it was accepted"},
		"one gateway":  {func(s []string) []string { s[4] = strings.Replace(s[4], "bobby-gateway", "jerry-gateway", 1); return s }, "did not leave"},
		"gave up":      {func(s []string) []string { s[5] = strings.Replace(s[5], "acked", "dead-letter", 1); return s }, "dead-letter"},
	} {
		events, err := readEvents([]byte(strings.Join(c.change(append([]string(nil), story...)), "\n")))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f, broken := judgeDemo(events)
		if got := strings.Join(broken, "; "); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if c.want == "" && (f.FirstAnswerMS != 5 || !f.Accepted || !f.Delivered || !f.Acked || !f.Replied || f.Events != 8 || f.Gateways != 2 || f.Messages != 2) {
			t.Errorf("%s: %+v", name, f)
		}
	}
	for name, out := range map[string]string{"text": "jerry asks", "no gateway": `{"event":"queued","at":"2026-03-01T10:00:01Z"}`, "nothing": ""} {
		if _, err := readEvents([]byte(out)); err == nil {
			t.Errorf("%s: taken for events", name)
		}
	}
}
