//go:build linux && proof

package openclaw

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/agent/openclaw/openclawtest"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/test/proof"
)

// runnerFigures is what bin/proof/openclaw-runner.json holds.
type runnerFigures struct {
	Questions int       `json:"questions"`
	Answered  int       `json:"answered"`
	Unknown   int       `json:"unknown"`
	AnswerMS  []float64 `json:"answer_ms"` // of those that nothing disturbed; the first one waited until OpenClaw was there
	// CutOffAsked is how often the model was asked in a turn during which the connection was lost; one is promised.
	CutOffAsked   int32   `json:"cut_off_asked"`
	CutOffAfterMS float64 `json:"cut_off_after_ms"` // the answer came that long after the model's
	KilledAfterMS float64 `json:"killed_after_ms"`  // the message was over that long after the kill
}

// TestProofOpenClawRunner asks an agent of a real OpenClaw gateway, cuts it off, and kills it with -9 in the middle of a turn: each message is answered or told of as unknown.
func TestProofOpenClawRunner(t *testing.T) {
	proof.Run(t, "openclaw-runner", func() any {
		var f runnerFigures
		askRealOpenClaw(t, &f)
		if f.Questions == 0 || f.Answered+f.Unknown != f.Questions {
			t.Errorf("%d questions, %d answered, %d unknown", f.Questions, f.Answered, f.Unknown)
		}
		return f
	})
}

func askRealOpenClaw(t *testing.T, f *runnerFigures) {
	model := modeltest.NewServer(t, agent.APIOpenAI)
	var hung, waits atomic.Int32
	inTurn, slow := make(chan struct{}, 10), make(chan struct{})
	model.Answer(func(r modeltest.Request) modeltest.Step {
		if strings.Contains(r.Body, "please wait") && waits.Add(1) == 1 {
			inTurn <- struct{}{}
			<-slow
		}
		if i := strings.LastIndex(r.Body, "please hold"); i >= 0 && hung.Add(1) == 1 {
			inTurn <- struct{}{}
			return modeltest.Step{Hang: true}
		}
		return modeltest.Step{Text: "the model has answered"}
	})
	p := openclawtest.Start(t, openclawtest.Config{Model: model.BaseURL(), Key: modeltest.Key, Agents: []string{"claw"}, Tools: `profile: "minimal"`})
	b, peer := gatewayAndPeer(t, "one", newStore(t), agent.Runner{URL: p.URL(), Token: openclawtest.Token, To: "claw"})
	// It is not there yet, so the first question waits.
	ask := func(text string, ttl time.Duration) string {
		f.Questions++
		return begin(t, b, text, ttl)
	}
	first := ask("hello", 10*time.Minute)
	p.Ready()
	took := time.Now()
	end := func(id string) (string, string, bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
		defer cancel()
		tr, err := b.Await(ctx, id, busEnd)
		if err != nil {
			t.Fatalf("%v: %+v", err, tr.Facts)
		}
		reply := ""
		if tr.Reply != nil {
			reply = agent.Text(tr.Reply.Payload)
			f.Answered++
		} else if tr.Facts.Class == envelope.ClassUnknown {
			f.Unknown++
		}
		return reply, tr.Facts.Reason, tr.Facts.Class == envelope.ClassUnknown
	}
	if reply, why, _ := end(first); reply != "the model has answered" {
		t.Fatalf("%q %s", reply, why)
	}
	f.AnswerMS = append(f.AnswerMS, ms(time.Since(took)))
	t.Logf("the first answer came %s after it was ready", time.Since(took).Round(time.Millisecond))
	for i := range 3 {
		began := time.Now()
		if reply, why, _ := end(ask(fmt.Sprintf("question %d", i), time.Minute)); reply != "the model has answered" {
			t.Errorf("%q %s", reply, why)
		}
		f.AnswerMS = append(f.AnswerMS, ms(time.Since(began)))
		t.Logf("answered after %s", time.Since(began).Round(time.Millisecond))
	}
	id := ask("please wait", 10*time.Minute)
	<-inTurn
	peer.mu.Lock()
	cut := peer.conn
	peer.mu.Unlock()
	cut.close()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		peer.mu.Lock()
		again := peer.conn != cut
		peer.mu.Unlock()
		if again {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not connect again")
		}
	}
	close(slow)
	began := time.Now()
	if reply, why, _ := end(id); reply != "the model has answered" || waits.Load() != 1 {
		t.Errorf("cut off in the middle of a turn: %q %s, the model was asked %d times", reply, why, waits.Load())
	}
	f.CutOffAsked, f.CutOffAfterMS = waits.Load(), ms(time.Since(began))
	t.Logf("cut off in the middle of a turn: answered %s after the model", time.Since(began).Round(time.Millisecond))
	id = ask("please hold", 10*time.Minute)
	select {
	case <-inTurn:
	case <-time.After(time.Minute):
		t.Fatal("there is no turn")
	}
	p.Kill()
	p.Restart()
	began = time.Now()
	reply, why, unknown := end(id)
	f.KilledAfterMS = ms(time.Since(began))
	t.Logf("killed in the middle of the turn: after %s %q, unknown %v: %s (the model was asked %d times)", time.Since(began).Round(time.Second), reply, unknown, why, hung.Load())
	if reply == "" && !unknown {
		t.Errorf("it is neither answered nor unknown: %s", why)
	}
	if reply, why, _ := end(ask("and now?", 5*time.Minute)); reply != "the model has answered" {
		t.Errorf("afterwards: %q %s", reply, why)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
