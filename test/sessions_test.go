package test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// TestConversationMoves: an agent with a model that may run on two gateways is killed with its node twice: while nobody asks, and in the middle of a
// turn. The other gateway goes on with the same conversation, and every question is answered once.
func TestConversationMoves(t *testing.T) {
	binary := builtBinary(t)
	c := cluster.ForTest(t, 1)
	thinking := make(chan struct{}, 8) // the model was asked something that it does not answer
	server := modeltest.NewServer(t, agent.APIOpenAI)
	server.Answer(func(r modeltest.Request) modeltest.Step {
		var heard []string
		for _, word := range []string{"apples", "pears", "plums"} {
			if strings.Contains(r.Body, word) {
				heard = append(heard, word)
			}
		}
		if strings.Contains(r.Body, "plums") && len(thinking) == 0 {
			thinking <- struct{}{}
			return modeltest.Step{Hang: true}
		}
		return modeltest.Step{Text: "I heard of " + strings.Join(heard, ", ")}
	})
	start := func(name string) *daemon {
		t.Helper()
		port := freePort(t)
		return startGateway(t, binary, name, port, fmt.Sprintf(`{
			gateway: { port: %d },
			models: { providers: { stub: { baseUrl: %q, apiKey: %q, api: "openai-completions", models: [{ id: "m", contextWindow: 8000, maxTokens: 500 }] } } },
			agents: { list: [{ id: "jerry", model: "stub/m", gateways: ["one", "two"] }] },
			mesh: { gateway: %q, store: "consul", consul: { address: %q }, policy: { default: "allow" }, dataDir: %q },
		}`, port, server.BaseURL(), modeltest.Key, name, c.Addr(0), t.TempDir()))
	}
	ask := func(d *daemon, text string) string {
		t.Helper()
		status, v := d.call(http.MethodPost, "/v1/messages", map[string]any{"to": "jerry", "text": text, "conversation_id": "fruit", "wait": "replied", "timeout": "60s"})
		if status != http.StatusOK {
			t.Fatalf("%s: status %d: %v", text, status, v)
		}
		return fmt.Sprint(v["text"])
	}
	one := start("one")
	one.until("owner of jerry", func() bool { return one.owner("jerry") == "one" })
	two := start("two")
	if got := ask(two, "I have apples"); got != "I heard of apples" {
		t.Errorf("%q", got)
	}
	_ = one.cmd.Process.Kill()
	<-one.done
	if got := ask(two, "and pears"); got != "I heard of apples, pears" {
		t.Errorf("after the death of one: %q", got)
	}
	one = start("one")
	answer := make(chan string, 1)
	go func() { answer <- ask(one, "and plums") }()
	select {
	case <-thinking:
	case <-time.After(60 * time.Second):
		t.Fatal("the model is not asked")
	}
	thinking <- struct{}{} // from now on it answers
	_ = two.cmd.Process.Kill()
	if got := <-answer; got != "I heard of apples, pears, plums" {
		t.Errorf("after a death in the middle of a turn: %q", got)
	}
	_, v := one.call(http.MethodGet, "/v1/sessions/jerry/fruit", nil)
	var said []string
	list, _ := v["messages"].([]any)
	for _, x := range list {
		said = append(said, fmt.Sprint(x.(map[string]any)["role"], ": ", x.(map[string]any)["text"]))
	}
	if got := strings.Join(said, "; "); got != "user: I have apples; assistant: I heard of apples; user: and pears; assistant: I heard of apples, pears; user: and plums; assistant: I heard of apples, pears, plums" {
		t.Errorf("the session: %s\n%v", got, v)
	}
}
