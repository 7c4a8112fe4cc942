// Package anthropic asks a model that speaks Anthropic's messages. It streams, and repeats nothing by
// itself: that is agent.Chain's.
package anthropic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	sdk "github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"

	"github.com/gatemesh/gatemesh/agent"
)

type model struct {
	client   sdk.Client
	id, name string
	key      string
}

// New makes the model. client nil: a plain one, which follows redirects. BaseURL is without a version, as https://api.anthropic.com.
func New(spec agent.ModelSpec, client *http.Client) (agent.Model, error) {
	if spec.BaseURL == "" {
		return nil, fmt.Errorf("it has no base URL: set models.providers.%s.baseUrl", spec.Provider)
	}
	if client == nil {
		client = &http.Client{} // calls end with their context
	}
	base := strings.TrimSuffix(strings.TrimRight(spec.BaseURL, "/"), "/v1")
	opts := []option.RequestOption{
		option.WithoutEnvironmentDefaults(), // its key must not go to another provider
		option.WithBaseURL(base + "/"),
		option.WithHTTPClient(client), option.WithMaxRetries(0), option.WithAPIKey(spec.APIKey),
	}
	return &model{client: sdk.NewClient(opts...), id: spec.ID, name: spec.Name(), key: spec.APIKey}, nil
}

// Generate implements agent.Model.
func (m *model) Generate(ctx context.Context, p agent.Prompt, onText func(string)) (*agent.Completion, error) {
	params, err := m.params(p)
	if err != nil {
		return nil, m.fault(agent.FaultBadRequest, err.Error(), agent.Usage{})
	}
	stream := m.client.Messages.NewStreaming(ctx, params)
	defer func() { _ = stream.Close() }()
	var acc sdk.Message
	// The SDK mends broken arguments to {} when their block ends, so they are gathered here as they came.
	args := map[int64]*strings.Builder{}
	begun, finished := false, false
	for stream.Next() {
		ev := stream.Current()
		begun = begun || ev.Type == "message_start"
		finished = finished || ev.Type == "message_stop"
		if err := acc.Accumulate(ev); err != nil {
			return nil, m.fault(agent.FaultGarbage, err.Error(), usage(&acc))
		}
		if ev.Type != "content_block_delta" {
			continue
		}
		switch ev.Delta.Type {
		case "text_delta":
			if onText != nil && ev.Delta.Text != "" {
				onText(ev.Delta.Text)
			}
		case "input_json_delta":
			if args[ev.Index] == nil {
				args[ev.Index] = &strings.Builder{}
			}
			args[ev.Index].WriteString(ev.Delta.PartialJSON)
		}
	}
	if err := stream.Err(); err != nil {
		return nil, m.failed(ctx, err, &acc, begun)
	}
	switch {
	case !begun:
		return nil, m.fault(agent.FaultGarbage, "the answer is no stream of message events", usage(&acc))
	case !finished:
		return nil, m.fault(agent.FaultCutStream, "the answer broke off", usage(&acc))
	}
	return m.completion(&acc, args)
}

func (m *model) completion(acc *sdk.Message, args map[int64]*strings.Builder) (*agent.Completion, error) {
	done := &agent.Completion{Usage: usage(acc), Cut: acc.StopReason == sdk.StopReasonMaxTokens}
	for i, b := range acc.Content {
		switch b.Type {
		case "text":
			done.Text += b.Text
		case "tool_use":
			input := "{}"
			if a := args[int64(i)]; a != nil && strings.TrimSpace(a.String()) != "" {
				input = a.String()
			} else if len(b.Input) > 0 {
				input = string(b.Input)
			}
			done.Calls = append(done.Calls, agent.ToolCall{ID: b.ID, Name: b.Name, Arguments: json.RawMessage(input)})
		}
	}
	if err := agent.CheckCalls(done.Calls); err != nil {
		return nil, m.fault(agent.FaultMalformedCall, err.Error(), done.Usage)
	}
	return done, nil
}

func (m *model) params(p agent.Prompt) (sdk.MessageNewParams, error) {
	out := sdk.MessageNewParams{Model: m.id, MaxTokens: int64(p.MaxTokens)}
	if p.System != "" {
		out.System = []sdk.TextBlockParam{{Text: p.System}}
	}
	for _, msg := range p.Messages {
		var blocks []sdk.ContentBlockParamUnion
		if msg.Text != "" {
			blocks = append(blocks, sdk.NewTextBlock(msg.Text))
		}
		for _, c := range msg.Calls {
			blocks = append(blocks, sdk.NewToolUseBlock(c.ID, c.Arguments, c.Name))
		}
		for _, r := range msg.Results {
			blocks = append(blocks, sdk.NewToolResultBlock(r.CallID, r.Text, r.Failed))
		}
		switch {
		case len(blocks) == 0: // it refuses empty messages
		case msg.Role == agent.RoleAssistant:
			out.Messages = append(out.Messages, sdk.NewAssistantMessage(blocks...))
		default:
			out.Messages = append(out.Messages, sdk.NewUserMessage(blocks...))
		}
	}
	for _, t := range p.Tools {
		var schema struct {
			Properties any      `json:"properties"`
			Required   []string `json:"required"`
		}
		if err := json.Unmarshal(t.Schema, &schema); err != nil {
			return out, fmt.Errorf("the schema of tool %s: %w", t.Name, err)
		}
		out.Tools = append(out.Tools, sdk.ToolUnionParam{OfTool: &sdk.ToolParam{
			Name: t.Name, Description: sdk.String(t.Description),
			InputSchema: sdk.ToolInputSchemaParam{Properties: schema.Properties, Required: schema.Required},
		}})
	}
	return out, nil
}

func usage(acc *sdk.Message) agent.Usage {
	u := acc.Usage
	return agent.Usage{In: u.InputTokens + u.CacheCreationInputTokens + u.CacheReadInputTokens, Out: u.OutputTokens}
}

// failed classifies the SDK's error. Its cause is not wrapped: it holds the request, and with it the key.
func (m *model) failed(ctx context.Context, err error, acc *sdk.Message, begun bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var api *sdk.Error
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &api):
		var body struct {
			Error struct{ Type, Message string } `json:"error"`
		}
		_ = json.Unmarshal([]byte(api.RawJSON()), &body) // garbage: the status says enough
		f := m.fault(agent.FaultOfStatus(api.StatusCode, body.Error.Message), body.Error.Message, usage(acc))
		f.Status = api.StatusCode
		if body.Error.Type == "overloaded_error" { // in a stream that began with 200
			f.Fault = agent.FaultOverloaded
		} else if begun || api.StatusCode < 400 {
			f.Fault = agent.FaultOutage
		}
		if api.Response != nil {
			f.After = agent.Hint(api.Response.Header.Get)
		}
		return f
	case errors.As(err, &syntax):
		return m.fault(agent.FaultGarbage, "the stream holds what is no JSON", usage(acc))
	case begun:
		return m.fault(agent.FaultCutStream, err.Error(), usage(acc))
	}
	return m.fault(agent.FaultOutage, err.Error(), usage(acc))
}

func (m *model) fault(f agent.Fault, detail string, u agent.Usage) *agent.ModelError {
	return &agent.ModelError{Fault: f, Model: m.name, Detail: agent.Detail(detail, m.key), Usage: u}
}
