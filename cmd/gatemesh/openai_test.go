package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
)

// TestOpenAI: OpenAI's own client asks agents as models: whole and streamed, in a conversation that is remembered and in one that is brought along, and
// again under one key; what is wrong it hears as an error of the API.
func TestOpenAI(t *testing.T) {
	server := modeltest.NewServer(t, agent.APIOpenAI)
	server.Answer(func(r modeltest.Request) modeltest.Step {
		return modeltest.Step{Text: fmt.Sprint("apples ", strings.Count(r.Body, "apples"), ", pears ", strings.Count(r.Body, "pears"))}
	})
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true }, service: { register: false } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  cron: { enabled: true }, channels: { webchat: {} },
  models: { providers: { stub: { baseUrl: %q, apiKey: %q, api: "openai-completions", models: [{ id: "m", contextWindow: 8000, maxTokens: 500 }] } } },
  agents: { list: [{ id: "jerry", model: "stub/m", default: true }, { id: "echo", runner: "echo" }] },
}
`, filepath.Join(dir, "data"), server.BaseURL(), modeltest.Key))
	p, env := startDaemon(t, file)
	served(t, env, "jerry")
	served(t, env, "echo")
	url, _ := strings.CutPrefix(env[0], "GATEMESH_ADDR=")
	client := func(token string) openai.Client {
		return openai.NewClient(option.WithBaseURL(url+"/v1/"), option.WithAPIKey(token), option.WithMaxRetries(0))
	}
	c := client("the-token-of-this-test")
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()

	list, err := c.Models.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range list.Data {
		names = append(names, m.ID)
	}
	if got := strings.Join(names, " "); got != "openclaw/default openclaw/echo openclaw/jerry" {
		t.Errorf("models %q", got)
	}
	said := func(texts ...string) (all []openai.ChatCompletionMessageParamUnion) {
		for i, text := range texts {
			if i%2 == 0 {
				all = append(all, openai.UserMessage(text))
			} else {
				all = append(all, openai.AssistantMessage(text))
			}
		}
		return all
	}
	ask := func(model, user string, messages []openai.ChatCompletionMessageParamUnion, opts ...option.RequestOption) string {
		t.Helper()
		req := openai.ChatCompletionNewParams{Model: model, Messages: messages}
		if user != "" {
			req.User = openai.String(user)
		}
		r, err := c.Chat.Completions.New(ctx, req, opts...)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Choices) != 1 || r.Choices[0].FinishReason != "stop" || r.Model != model {
			t.Errorf("%+v", r)
		}
		return r.Choices[0].Message.Content
	}
	if got := ask("openclaw/echo", "", said("hello")); got != "hello" {
		t.Errorf("%q", got)
	}
	if got := ask("openclaw:echo", "", said("one", "two", "three")); got != "user: one\n\nassistant: two\n\nuser: three" {
		t.Errorf("%q", got)
	}
	if got := ask("openclaw/jerry", "anna", said("apples")); got != "apples 1, pears 0" {
		t.Errorf("%q", got)
	}
	if got := ask("openclaw", "anna", said("apples", "so you said", "pears")); got != "apples 2, pears 2" { // what it remembers, its own answer included, and the last word alone
		t.Errorf("%q", got)
	}
	before := len(server.Requests())
	first := ask("openclaw/jerry", "", said("apples and pears"), option.WithHeader("Idempotency-Key", "k1"))
	if again := ask("openclaw/jerry", "", said("apples and pears"), option.WithHeader("Idempotency-Key", "k1")); again != first || len(server.Requests()) != before+1 {
		t.Errorf("%q, and again %q by %d calls", first, again, len(server.Requests())-before)
	}

	stream := c.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{Model: "openclaw/echo", Messages: said("in pieces")})
	text, end := "", ""
	for stream.Next() {
		for _, ch := range stream.Current().Choices {
			text += ch.Delta.Content
			end += ch.FinishReason
		}
	}
	if stream.Err() != nil || text != "in pieces" || end != "stop" {
		t.Errorf("%q %q %v", text, end, stream.Err())
	}

	for _, x := range []struct {
		token, model string
		messages     []openai.ChatCompletionMessageParamUnion
		status       int
		says         string
	}{
		{"the-token-of-this-test", "gpt-5", said("x"), 404, "there is no model"},
		{"the-token-of-this-test", "openclaw/nobody", said("x"), 404, "nobody"},
		{"the-token-of-this-test", "openclaw/echo", said(" "), 400, "the last message is empty"},
		{"wrong-token-of-this-test", "openclaw/echo", said("x"), 401, "token"},
	} {
		wrong := client(x.token)
		_, err := wrong.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: x.model, Messages: x.messages})
		var e *openai.Error
		if !errors.As(err, &e) || e.StatusCode != x.status || !strings.Contains(e.Message, x.says) {
			t.Errorf("%s: %v", x.model, err)
		}
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}
