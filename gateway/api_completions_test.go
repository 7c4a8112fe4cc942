package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
)

// openAI is the official client of a node, which asks once and not again.
func (n *node) openAI(token string, opts ...option.RequestOption) openai.Client {
	return openai.NewClient(append([]option.RequestOption{
		option.WithBaseURL("http://" + n.Addr().String() + "/v1/"), option.WithAPIKey(token), option.WithHTTPClient(n.client), option.WithMaxRetries(0),
	}, opts...)...)
}

func asked(model, question string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)}}
}

// teller answers with what it was asked, in which conversation, by whom, and how often anything was asked so far.
func teller(count *atomic.Int64) agent.Factory {
	return func(agent.Spec, agent.Deps) (bus.Handler, error) {
		return bus.HandlerFunc(func(_ context.Context, m *bus.Incoming) error {
			e := m.Envelope()
			if e.Text() == "fail" {
				return bus.Never("poison", errors.New("it is not to be"))
			}
			b, err := json.Marshal(told{e.Text(), e.ConversationID, e.SourceAgent + "@" + e.SourceGateway, count.Add(1)})
			if err != nil {
				return err
			}
			text, err := json.Marshal(string(b))
			if err != nil {
				return err
			}
			return m.Reply(text)
		}), nil
	}
}

type told struct {
	Text, Conversation, From string
	Count                    int64
}

func tellerNodes(t *testing.T, count *atomic.Int64, names ...string) []*node {
	store := newStore(t)
	var nodes []*node
	for i, name := range names {
		agents := []config{{"id": "billy", "runner": "echo"}}
		if i > 0 {
			agents = []config{{"id": "own-" + name, "runner": "echo"}}
		}
		nodes = append(nodes, startNode(t, parseNode(t, name, nil, "a-token-that-nobody-guesses-"+name, agents...), Deps{Store: store, Runners: runners(agent.Runners{"echo": teller(count)})}))
	}
	for _, n := range nodes {
		n.waitAgent("billy", names[0])
	}
	return nodes
}

func tell(t *testing.T, c openai.Client, p openai.ChatCompletionNewParams, opts ...option.RequestOption) told {
	t.Helper()
	res, err := c.Chat.Completions.New(within(t), p, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Choices) != 1 || res.Choices[0].FinishReason != "stop" || res.Choices[0].Message.Role != "assistant" || res.Model != p.Model {
		t.Errorf("%s", res.RawJSON())
	}
	return toldIn(t, res.Choices[0].Message.Content)
}

func toldIn(t *testing.T, text string) (out told) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

// OpenAI's own client asks an agent on another gateway: whole and streamed, with and without a conversation, and again under one key.
func TestCompletions(t *testing.T) {
	var count atomic.Int64
	nodes := tellerNodes(t, &count, "home", "edge", "other")
	edge, other := nodes[1].openAI(nodes[1].token), nodes[2].openAI(nodes[2].token)

	list, err := edge.Models.List(within(t))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range list.Data {
		ids = append(ids, m.ID)
	}
	if want := []string{"openclaw/default", "openclaw/billy", "openclaw/own-edge", "openclaw/own-other"}; !slices.Equal(ids, want) {
		t.Errorf("models %q, want %q", ids, want)
	}
	if m, err := edge.Models.Get(within(t), "openclaw/billy"); err != nil || m.OwnedBy != "home" {
		t.Errorf("%+v, %v", m, err)
	}

	first := tell(t, edge, asked("openclaw/billy", "well?"))
	if first.Text != "well?" || first.From != "operator@edge" {
		t.Errorf("%+v", first)
	}
	if again := tell(t, edge, asked("openclaw:billy", "well?")); again.Conversation == first.Conversation || again.Count != 2 {
		t.Errorf("a new question: %+v after %+v", again, first)
	}
	if byHeader := tell(t, edge, asked("gpt-4o", "hm?"), option.WithHeader("x-openclaw-agent-id", "billy"), option.WithHeader("x-openclaw-session-key", "agent:billy:main")); byHeader.Conversation != "main" {
		t.Errorf("%+v", byHeader)
	}

	// What was said before goes along, unless the agent remembers it.
	long := asked("openclaw/billy", "and now?")
	long.Messages = append([]openai.ChatCompletionMessageParamUnion{openai.SystemMessage("be kind"), openai.UserMessage("one"), openai.AssistantMessage("two")}, long.Messages...)
	if got := tell(t, edge, long).Text; got != "system: be kind\n\nuser: one\n\nassistant: two\n\nuser: and now?" {
		t.Errorf("%q", got)
	}
	long.User = openai.String("ann")
	kept := tell(t, edge, long)
	if kept.Text != "and now?" || tell(t, edge, long).Conversation != kept.Conversation {
		t.Errorf("%+v", kept)
	}
	long.User = openai.String("bea")
	if tell(t, edge, long).Conversation == kept.Conversation {
		t.Error("two users have one conversation")
	}

	// One key is one question, at every gateway.
	key := option.WithHeader("Idempotency-Key", "order-7")
	one := tell(t, edge, asked("openclaw/billy", "once"), key)
	for _, c := range []openai.Client{edge, other} {
		got, err := c.Chat.Completions.New(within(t), asked("openclaw/billy", "once"), key)
		if err != nil {
			t.Fatal(err)
		}
		if toldIn(t, got.Choices[0].Message.Content) != one {
			t.Errorf("another answer under one key: %s", got.RawJSON())
		}
	}
	for _, tr := range nodes[2].bus.Load().Recent(100) {
		if tr.Envelope != nil && tr.Envelope.SourceGateway == "other" {
			t.Errorf("the key was asked a second time: %+v", tr)
		}
	}
	refusedAs(t, edge, asked("openclaw/billy", "another"), 409, CodeConflict, key)

	// A stream.
	s := edge.Chat.Completions.NewStreaming(within(t), openai.ChatCompletionNewParams{
		Model: "openclaw/billy", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("streamed")},
		StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
	})
	var acc openai.ChatCompletionAccumulator
	for s.Next() {
		if !acc.AddChunk(s.Current()) {
			t.Errorf("a piece of another answer: %s", s.Current().RawJSON())
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if c := acc.Choices[0]; toldIn(t, c.Message.Content).Text != "streamed" || c.FinishReason != "stop" {
		t.Errorf("%+v", acc)
	}
	s = edge.Chat.Completions.NewStreaming(within(t), asked("openclaw/billy", "fail"))
	for s.Next() {
		if c := s.Current(); len(c.Choices) > 0 && c.Choices[0].Delta.Content != "" {
			t.Errorf("an answer to what failed: %s", c.RawJSON())
		}
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), CodeGivenUp) {
		t.Errorf("a stream that failed: %v", err)
	}
}

func refusedAs(t *testing.T, c openai.Client, p openai.ChatCompletionNewParams, status int, code string, opts ...option.RequestOption) {
	t.Helper()
	_, err := c.Chat.Completions.New(within(t), p, opts...)
	var e *openai.Error
	if !errors.As(err, &e) || e.StatusCode != status || e.Code != code || e.Message == "" || e.Type == "" {
		t.Errorf("%v, want %d %s", err, status, code)
	}
}

// Refusals come in OpenAI's shape, by the same rules as everywhere.
func TestCompletionsRefuse(t *testing.T) {
	reader, readerToken := tokenOf(t, "the-reader", "read")
	sender, senderToken := tokenOf(t, "the-sender", "send")
	slow, slowToken := tokenOf(t, "the-slow", "send")
	slow.MaxRequests = 1
	cfg := withTokens(t, reader, sender, slow)
	n := startNode(t, cfg, Deps{Store: newStore(t)})
	c := n.openAI(senderToken)
	id := cfg.AgentsHere()[0].ID
	ok := asked("openclaw/"+id, "well?")
	if _, err := c.Chat.Completions.New(within(t), ok); err != nil {
		t.Fatal(err)
	}
	refusedAs(t, n.openAI("wrong"), ok, 401, CodeUnauthorized)
	refusedAs(t, n.openAI(readerToken), ok, 403, CodeRole)
	refusedAs(t, c, asked("gpt-4o", "well?"), 404, CodeUnknownAgent)
	refusedAs(t, c, asked("openclaw/nobody", "well?"), 404, CodeUnknownAgent)
	refusedAs(t, c, asked("openclaw/"+id, "  "), 400, CodeInvalid)
	refusedAs(t, c, openai.ChatCompletionNewParams{Model: ok.Model, Messages: []openai.ChatCompletionMessageParamUnion{openai.AssistantMessage("I")}}, 400, CodeInvalid)
	refusedAs(t, c, ok, 400, CodeInvalid, option.WithJSONSet("n", 2))
	refusedAs(t, c, ok, 400, CodeInvalid, option.WithJSONSet("tools", []map[string]any{{"type": "function", "function": map[string]any{"name": "f"}}}))
	refusedAs(t, c, ok, 400, CodeInvalid, option.WithJSONSet("messages", []map[string]any{{"role": "user", "content": []map[string]any{{"type": "image_url"}}}}))
	refusedAs(t, c, ok, 400, CodeInvalid, option.WithHeader("x-openclaw-session-key", "agent:other:main"))
	refusedAs(t, c, ok, 400, CodeInvalid, option.WithHeader("Idempotency-Key", strings.Repeat("k", 256)))
	limited := n.openAI(slowToken)
	var e *openai.Error
	for range 50 {
		if _, err := limited.Models.List(within(t)); errors.As(err, &e) {
			break
		}
	}
	if e == nil || e.StatusCode != http.StatusTooManyRequests || e.Type != "rate_limit_error" {
		t.Errorf("a token over its rate: %v", e)
	}
	if r := n.do(http.MethodPost, "/v1/chat/completions", `{"model":`, bearer(senderToken)); r.status != 400 || !strings.Contains(string(r.body), `"type":"invalid_request_error"`) {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// A client that goes away leaves its question behind: under the same key the answer is there.
func TestCompletionsClientGone(t *testing.T) {
	g := newGate()
	n := startNode(t, parseNode(t, "lone", nil, "", config{"id": "slow", "runner": "echo"}), Deps{Store: newStore(t), Runners: runners(agent.Runners{"echo": g.factory})})
	c := n.openAI("none")
	key := option.WithHeader("Idempotency-Key", "mine")
	for _, stream := range []bool{false, true} {
		ctx, cancel := context.WithCancel(within(t))
		gone := make(chan error, 1)
		go func() {
			if stream {
				s := c.Chat.Completions.NewStreaming(ctx, asked("openclaw/slow", "still there?"), key)
				for s.Next() {
					cancel()
				}
				gone <- s.Err()
				return
			}
			_, err := c.Chat.Completions.New(ctx, asked("openclaw/slow", "still there?"), key)
			gone <- err
		}()
		if !stream {
			await(t, g.entered, "the question")
			cancel()
		}
		if err := await(t, gone, "the client to go"); !errors.Is(err, context.Canceled) {
			t.Errorf("the client that went: %v", err)
		}
	}
	close(g.leave)
	res, err := c.Chat.Completions.New(within(t), asked("openclaw/slow", "still there?"), key)
	if err != nil || res.Choices[0].Message.Content != "still there?" {
		t.Errorf("%+v, %v", res, err)
	}
	if len(g.entered) > 0 {
		t.Error("it was asked twice")
	}
}
