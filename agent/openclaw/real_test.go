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
)

// TestRealOpenClaw asks an agent of a real OpenClaw gateway, cuts it off, and kills it with -9 in the middle of a turn: each message is answered or told of as unknown.
func TestRealOpenClaw(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a real OpenClaw takes a minute to start")
	}
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
	first := begin(t, b, "hello", 10*time.Minute)
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
		}
		return reply, tr.Facts.Reason, tr.Facts.Class == envelope.ClassUnknown
	}
	if reply, why, _ := end(first); reply != "the model has answered" {
		t.Fatalf("%q %s", reply, why)
	}
	t.Logf("the first answer came %s after it was ready", time.Since(took).Round(time.Millisecond))
	for i := range 3 {
		began := time.Now()
		if reply, why, _ := end(begin(t, b, fmt.Sprintf("question %d", i), time.Minute)); reply != "the model has answered" {
			t.Errorf("%q %s", reply, why)
		}
		t.Logf("answered after %s", time.Since(began).Round(time.Millisecond))
	}
	id := begin(t, b, "please wait", 10*time.Minute)
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
	t.Logf("cut off in the middle of a turn: answered %s after the model", time.Since(began).Round(time.Millisecond))
	id = begin(t, b, "please hold", 10*time.Minute)
	select {
	case <-inTurn:
	case <-time.After(time.Minute):
		t.Fatal("there is no turn")
	}
	p.Kill()
	p.Restart()
	began = time.Now()
	reply, why, unknown := end(id)
	t.Logf("killed in the middle of the turn: after %s %q, unknown %v: %s (the model was asked %d times)", time.Since(began).Round(time.Second), reply, unknown, why, hung.Load())
	if reply == "" && !unknown {
		t.Errorf("it is neither answered nor unknown: %s", why)
	}
	if reply, why, _ := end(begin(t, b, "and now?", 5*time.Minute)); reply != "the model has answered" {
		t.Errorf("afterwards: %q %s", reply, why)
	}
}
