// Package openai asks a model that speaks OpenAI's chat completions: OpenAI itself, LiteLLM, Z.AI,
// OpenRouter, LM Studio. It streams, and repeats nothing by itself: that is agent.Chain's.
package openai

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	sdk "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/shared"

	"github.com/gatemesh/gatemesh/agent"
)

type model struct {
	chat      sdk.ChatCompletionService
	id, name  string
	key       string
	hasServer bool
}

// New makes the model. client nil: a plain one, which follows redirects. BaseURL is with its version, as https://api.openai.com/v1.
func New(spec agent.ModelSpec, client *http.Client) (agent.Model, error) {
	if spec.BaseURL == "" {
		return nil, fmt.Errorf("it has no base URL: set models.providers.%s.baseUrl", spec.Provider)
	}
	if client == nil {
		client = &http.Client{} // calls end with their context
	}
	// The service and not the client: that would add OpenAI's key and headers from the environment, which must not
	// go to another provider.
	opts := []option.RequestOption{
		option.WithBaseURL(strings.TrimRight(spec.BaseURL, "/") + "/"),
		option.WithHTTPClient(client), option.WithMaxRetries(0),
	}
	if spec.APIKey != "" {
		opts = append(opts, option.WithAPIKey(spec.APIKey))
	}
	return &model{
		chat: sdk.NewChatCompletionService(opts...), id: spec.ID, name: spec.Name(), key: spec.APIKey,
		hasServer: strings.HasPrefix(spec.BaseURL, "https://api.openai.com/"),
	}, nil
}

// Generate implements agent.Model.
func (m *model) Generate(ctx context.Context, p agent.Prompt, onText func(string)) (*agent.Completion, error) {
	params, err := m.params(p)
	if err != nil {
		return nil, m.fault(agent.FaultBadRequest, err.Error(), agent.Usage{})
	}
	stream := m.chat.NewStreaming(ctx, params)
	defer func() { _ = stream.Close() }()
	var acc sdk.ChatCompletionAccumulator
	finished := false
	for stream.Next() {
		chunk := stream.Current()
		if !acc.AddChunk(chunk) {
			return nil, m.fault(agent.FaultGarbage, "a chunk of the stream does not fit", usage(&acc))
		}
		for _, c := range chunk.Choices {
			finished = finished || c.FinishReason != ""
			if onText != nil && c.Delta.Content != "" {
				onText(c.Delta.Content)
			}
		}
	}
	if err := stream.Err(); err != nil {
		return nil, m.failed(ctx, err, &acc)
	}
	switch {
	case len(acc.Choices) == 0:
		return nil, m.fault(agent.FaultGarbage, "the answer is no stream of chat completion chunks", usage(&acc))
	case !finished:
		return nil, m.fault(agent.FaultCutStream, "the answer broke off", usage(&acc))
	}
	return m.completion(&acc)
}

func (m *model) completion(acc *sdk.ChatCompletionAccumulator) (*agent.Completion, error) {
	c := acc.Choices[0]
	done := &agent.Completion{Text: c.Message.Content, Usage: usage(acc), Cut: c.FinishReason == "length"}
	if done.Text == "" {
		done.Text = c.Message.Refusal
	}
	for _, t := range c.Message.ToolCalls {
		args := t.Function.Arguments
		if strings.TrimSpace(args) == "" {
			args = "{}"
		}
		done.Calls = append(done.Calls, agent.ToolCall{ID: t.ID, Name: t.Function.Name, Arguments: json.RawMessage(args)})
	}
	if err := agent.CheckCalls(done.Calls); err != nil {
		return nil, m.fault(agent.FaultMalformedCall, err.Error(), done.Usage)
	}
	return done, nil
}

func (m *model) params(p agent.Prompt) (sdk.ChatCompletionNewParams, error) {
	out := sdk.ChatCompletionNewParams{
		Model:         m.id,
		StreamOptions: sdk.ChatCompletionStreamOptionsParam{IncludeUsage: sdk.Bool(true)},
	}
	if m.hasServer {
		out.MaxCompletionTokens = sdk.Int(int64(p.MaxTokens)) // its newer models refuse max_tokens
	} else {
		out.MaxTokens = sdk.Int(int64(p.MaxTokens))
	}
	if p.System != "" {
		out.Messages = append(out.Messages, sdk.SystemMessage(p.System))
	}
	for _, msg := range p.Messages {
		switch msg.Role {
		case agent.RoleUser:
			out.Messages = append(out.Messages, sdk.UserMessage(msg.Text))
		case agent.RoleAssistant:
			out.Messages = append(out.Messages, assistant(msg))
		case agent.RoleTool:
			for _, r := range msg.Results {
				out.Messages = append(out.Messages, sdk.ToolMessage(r.Text, r.CallID))
			}
		}
	}
	for _, t := range p.Tools {
		var schema map[string]any
		if err := json.Unmarshal(t.Schema, &schema); err != nil {
			return out, fmt.Errorf("the schema of tool %s: %w", t.Name, err)
		}
		out.Tools = append(out.Tools, sdk.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
			Name: t.Name, Description: sdk.String(t.Description), Parameters: schema,
		}))
	}
	return out, nil
}

func assistant(msg agent.ChatMessage) sdk.ChatCompletionMessageParamUnion {
	out := sdk.ChatCompletionAssistantMessageParam{}
	if msg.Text != "" || len(msg.Calls) == 0 {
		out.Content.OfString = sdk.String(msg.Text)
	}
	for _, c := range msg.Calls {
		out.ToolCalls = append(out.ToolCalls, sdk.ChatCompletionMessageToolCallUnionParam{OfFunction: &sdk.ChatCompletionMessageFunctionToolCallParam{
			ID: c.ID, Function: sdk.ChatCompletionMessageFunctionToolCallFunctionParam{Name: c.Name, Arguments: string(c.Arguments)},
		}})
	}
	return sdk.ChatCompletionMessageParamUnion{OfAssistant: &out}
}

func usage(acc *sdk.ChatCompletionAccumulator) agent.Usage {
	return agent.Usage{In: acc.Usage.PromptTokens, Out: acc.Usage.CompletionTokens}
}

// failed classifies the SDK's error. Its cause is not wrapped: it holds the request, and with it the key.
func (m *model) failed(ctx context.Context, err error, acc *sdk.ChatCompletionAccumulator) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var api *sdk.Error
	var inStream *ssestream.StreamError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &api):
		f := m.fault(agent.FaultOfStatus(api.StatusCode, api.Code+" "+api.Message), api.Message, agent.Usage{})
		f.Status = api.StatusCode
		if api.Response != nil {
			f.After = agent.Hint(api.Response.Header.Get)
		}
		return f
	case errors.As(err, &inStream):
		return m.fault(agent.FaultOutage, inStream.Message, usage(acc))
	case errors.As(err, &syntax):
		return m.fault(agent.FaultGarbage, "the stream holds what is no JSON", usage(acc))
	case len(acc.Choices) > 0:
		return m.fault(agent.FaultCutStream, err.Error(), usage(acc))
	}
	return m.fault(agent.FaultOutage, err.Error(), usage(acc))
}

func (m *model) fault(f agent.Fault, detail string, u agent.Usage) *agent.ModelError {
	return &agent.ModelError{Fault: f, Model: m.name, Detail: agent.Detail(detail, m.key), Usage: u}
}
