package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Model is one language model at one provider. It is safe for concurrent use.
type Model interface {
	// Generate asks once, without any retry. onText, if not nil, gets the answer's text in pieces as
	// they come; after an error what it got is worth nothing. Errors are *ModelError, or ctx's.
	Generate(ctx context.Context, p Prompt, onText func(string)) (*Completion, error)
}

// Prompt is what a model is asked.
type Prompt struct {
	System   string
	Messages []ChatMessage
	Tools    []ToolDef
	// MaxTokens is how long the answer may get; it must be positive.
	MaxTokens int
}

// Role is whose words a ChatMessage has.
type Role string

// The roles. Results of tools are a RoleTool message.
const (
	RoleUser      Role = "user"
	RoleAssistant Role = "assistant"
	RoleTool      Role = "tool"
)

// ChatMessage is one message of a conversation with a model. The JSON form is what rests in a transcript.
type ChatMessage struct {
	Role Role   `json:"role"`
	Text string `json:"text,omitempty"`
	// Calls (assistant) are the tools that it wants called; the next message has their Results (tool).
	Calls   []ToolCall   `json:"calls,omitempty"`
	Results []ToolResult `json:"results,omitempty"`
}

// ToolDef tells a model of a tool. Schema is the JSON Schema of its arguments, an object.
type ToolDef struct {
	Name, Description string
	Schema            json.RawMessage
}

// ToolCall is a model's wish. Arguments is a JSON object.
type ToolCall struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments"`
}

// ToolResult is what a call gave.
type ToolResult struct {
	CallID string `json:"callId"`
	Text   string `json:"text"`
	Failed bool   `json:"failed,omitempty"`
}

// Usage is the tokens of one or more calls, as the vendor counts them. Cached tokens count as In.
type Usage struct {
	In  int64 `json:"in"`
	Out int64 `json:"out"`
}

// Add returns the sum.
func (u Usage) Add(v Usage) Usage { return Usage{u.In + v.In, u.Out + v.Out} }

// Total is all tokens.
func (u Usage) Total() int64 { return u.In + u.Out }

// Completion is a model's answer: text, or calls of tools, or both.
type Completion struct {
	Text  string
	Calls []ToolCall
	Usage Usage
	// Cut: it ended because MaxTokens was reached.
	Cut bool
}

// Fault classifies what went wrong with a model, once, where the vendor's answer arrives.
type Fault string

// The faults.
const (
	// FaultRateLimited and FaultOverloaded come with a hint when to come again, if the vendor gave one.
	FaultRateLimited Fault = "rate-limited"
	FaultOverloaded  Fault = "overloaded"
	// FaultOutage is a 5xx, no connection, or no answer in time.
	FaultOutage Fault = "outage"
	// FaultCutStream is an answer that broke off; FaultMalformedCall one whose tool call is no JSON object.
	FaultCutStream     Fault = "cut-stream"
	FaultMalformedCall Fault = "malformed-tool-call"
	// FaultGarbage is an answer that nobody understands.
	FaultGarbage Fault = "garbage"
	// FaultTooLong is a prompt beyond the model's context window.
	FaultTooLong Fault = "context-too-long"
	// FaultBadRequest and FaultAuth do not go away by themselves.
	FaultBadRequest Fault = "bad-request"
	FaultAuth       Fault = "auth"
)

// Passing reports whether the same call may work later.
func (f Fault) Passing() bool {
	switch f {
	case FaultTooLong, FaultBadRequest, FaultAuth:
		return false
	}
	return true
}

// ModelError is a call that gave no usable answer. Its text holds no key.
type ModelError struct {
	Fault Fault
	// Model is "provider/model".
	Model string
	// Status is the HTTP status; 0: there was none.
	Status int
	// After is the vendor's hint when to come again; 0: none.
	After time.Duration
	// Usage is what the call cost all the same, as far as that is known.
	Usage Usage
	// Detail is the vendor's own text, shortened.
	Detail string
}

func (e *ModelError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "model %s: %s", e.Model, e.Fault)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (HTTP %d)", e.Status)
	}
	if e.Detail != "" {
		fmt.Fprintf(&b, ": %s", e.Detail)
	}
	return b.String()
}

// FaultOfStatus is the fault that a vendor's HTTP status and error text mean.
func FaultOfStatus(status int, text string) Fault {
	text = strings.ToLower(text)
	switch {
	case status == 401 || status == 403:
		return FaultAuth
	case status == 429:
		return FaultRateLimited
	case status == 529 || status == 503:
		return FaultOverloaded
	case status >= 500 || status == 408 || status == 409:
		return FaultOutage
	case status == 413 || strings.Contains(text, "context_length") || strings.Contains(text, "context length") ||
		strings.Contains(text, "prompt is too long") || strings.Contains(text, "context window"):
		return FaultTooLong
	}
	return FaultBadRequest
}

// Detail makes a vendor's text fit for a log: one line, at most 200 bytes, without the key.
func Detail(text, key string) string {
	if key != "" {
		text = strings.ReplaceAll(text, key, "(key)")
	}
	text = strings.Join(strings.Fields(text), " ")
	const most = 200
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// CheckCalls returns what is wrong with the calls of an answer, or nil.
func CheckCalls(calls []ToolCall) error {
	for _, c := range calls {
		var o map[string]json.RawMessage
		switch {
		case c.Name == "" || c.ID == "":
			return errors.New("a tool call without a name or an id")
		case json.Unmarshal(c.Arguments, &o) != nil || o == nil:
			return fmt.Errorf("the arguments of %s are no JSON object", c.Name)
		}
	}
	return nil
}

// Hint is when a vendor wants to be asked again, by its headers; 0: it did not say.
func Hint(header func(string) string) time.Duration {
	if ms, err := strconv.ParseFloat(header("Retry-After-Ms"), 64); err == nil && ms > 0 {
		return boundHint(ms / 1000)
	}
	text := header("Retry-After")
	if s, err := strconv.ParseFloat(text, 64); err == nil && s > 0 {
		return boundHint(s)
	}
	if at, err := time.Parse("Mon, 02 Jan 2006 15:04:05 GMT", text); err == nil {
		return boundHint(time.Until(at).Seconds())
	}
	return 0
}

// boundHint takes no hint beyond a day: a number that large is a mistake.
func boundHint(seconds float64) time.Duration {
	return time.Duration(min(max(seconds, 0), 86_400) * float64(time.Second))
}

// ModelSpec is a model as the configuration has it. APIKey is a secret: it has no place in logs and errors.
type ModelSpec struct {
	Provider, ID string
	// API is the protocol: a key of [Vendors].
	API, BaseURL, APIKey     string
	ContextWindow, MaxTokens int
	Price                    Price
}

// Name is "provider/model".
func (s ModelSpec) Name() string { return s.Provider + "/" + s.ID }

// The protocols of OpenClaw's configuration that are spoken.
const (
	APIOpenAI    = "openai-completions"
	APIAnthropic = "anthropic-messages"
)

// Vendors makes models, by protocol.
type Vendors map[string]func(ModelSpec) (Model, error)

// Chain makes the models of an agent. The error names what is not spoken here.
func (v Vendors) Chain(specs []ModelSpec) (*Chain, error) {
	c := &Chain{}
	for _, s := range specs {
		vendor, ok := v[s.API]
		if !ok {
			return nil, fmt.Errorf("model %s: the protocol %q is not spoken here: set models.providers.%s.api to %s or %s", s.Name(), s.API, s.Provider, APIOpenAI, APIAnthropic)
		}
		m, err := vendor(s)
		if err != nil {
			return nil, fmt.Errorf("model %s: %w", s.Name(), err)
		}
		c.Choices = append(c.Choices, Choice{Name: s.Name(), Model: m, ContextWindow: s.ContextWindow, MaxTokens: s.MaxTokens, Price: s.Price})
	}
	return c, nil
}
