package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// ToolEffect says what it means to call a tool a second time because its message is handled again.
type ToolEffect int

// The classes of effect.
const (
	// EffectNone: the tool looks at things. It is called again.
	EffectNone ToolEffect = iota
	// EffectMesh: what it does goes through the mesh, which does it once for each step of a message. It is called again.
	EffectMesh
	// EffectOutside: it may change something that nobody keeps from being changed twice. It is called once: see [turn].
	EffectOutside
)

// Tool is something that a model can have done. It is safe for concurrent use.
type Tool struct {
	ToolDef
	Effect ToolEffect
	// Timeout bounds one call; 0: 60 seconds. A call that is over it is told to the model as failed. Negative: the tool
	// bounds itself.
	Timeout time.Duration
	// Run does it. The output is for the model, also when it failed; an error is for the bus, and ends the handling.
	Run func(ctx context.Context, c *Call) (ToolOutput, error)
}

// Call is one call of a tool.
type Call struct {
	// Message is the one whose handling the model is at.
	Message *bus.Incoming
	// Arguments is a JSON object, as the model gave it.
	Arguments json.RawMessage
	// Session is the key of the conversation, as [SessionKey] makes it.
	Session string

	turn *turn
}

// Decode reads the arguments into v. Its error is for the model.
func (c *Call) Decode(v any) error {
	if err := json.Unmarshal(c.Arguments, v); err != nil {
		return fmt.Errorf("wrong arguments: %w", err)
	}
	return nil
}

// ToolOutput is what a call gave, for the model. It is cut to [MaxToolOutput].
type ToolOutput struct {
	Text   string
	Failed bool
	// Undone: surely nothing was done, so that the call does not count.
	Undone bool
}

// Failed is an output that says why nothing was done.
func Failed(format string, args ...any) ToolOutput {
	return ToolOutput{Text: fmt.Sprintf(format, args...), Failed: true, Undone: true}
}

// Bounds of tools.
const (
	// MaxToolOutput is the bytes of an output that the model is shown: the beginning and the end of a longer one.
	MaxToolOutput = 32 << 10
	// defaultToolTimeout is that of a tool that names none.
	defaultToolTimeout = 60 * time.Second
	// maxCallsAtOnce is how many calls of one answer of a model are done.
	maxCallsAtOnce = 8
)

// A Toolset is tools that an agent may have beside those of the mesh. What it returns may differ from message to message.
type Toolset interface {
	Tools() []Tool
}

// ToolSource makes the toolset of one agent; nil: it has none for it. Its error is a mistake in the configuration.
type ToolSource func(Spec, Deps) (Toolset, error)

// ToolPolicy is which tools an agent may use, as OpenClaw's tools.profile, allow, alsoAllow and deny. An agent's tools are those that
// every one of its policies lets pass.
type ToolPolicy struct {
	// Profile is a set to begin with: "minimal", "messaging", "coding" or "full"; "": full.
	Profile string
	// Allow, if there is any, replaces the profile's set; AlsoAllow is added to it; Deny wins over all. Entries are names, names with *,
	// and groups ([ToolGroups]).
	Allow, AlsoAllow, Deny []string
}

// ToolGroups are OpenClaw's groups, as far as their tools are here.
var ToolGroups = map[string][]string{
	"group:sessions":  {"sessions_list", "sessions_history", "sessions_send", "sessions_spawn"},
	"group:messaging": {"sessions_send", "agents_list"},
	"group:agents":    {"agents_list"},
	"group:runtime":   {"exec"},
	"group:mcp":       {"*__*"},
}

// toolProfiles are OpenClaw's profiles, as far as their tools are here.
var toolProfiles = map[string][]string{
	"minimal":   {"agents_list", "skills_read"},
	"messaging": {"group:messaging", "sessions_list", "sessions_history", "skills_read"},
	"coding":    {"group:runtime", "group:sessions", "agents_list", "skills_read"},
	"full":      {"*"},
}

// ToolProfiles are the names that [ToolPolicy].Profile may have.
func ToolProfiles() []string { return []string{"minimal", "messaging", "coding", "full"} }

// Allows reports whether the policy lets a tool pass.
func (p ToolPolicy) Allows(name string) bool {
	allow := p.Allow
	if len(allow) == 0 {
		allow = toolProfiles[p.Profile]
		if p.Profile == "" {
			allow = toolProfiles["full"]
		}
	}
	return !namesTool(p.Deny, name) && (namesTool(allow, name) || namesTool(p.AlsoAllow, name))
}

func namesTool(list []string, name string) bool {
	return slices.ContainsFunc(list, func(entry string) bool {
		if group, ok := ToolGroups[entry]; ok {
			return namesTool(group, name)
		}
		return matchTool(entry, name)
	})
}

// matchTool compares a name with a pattern in which * stands for any text.
func matchTool(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	first, last := parts[0], parts[len(parts)-1]
	if !strings.HasPrefix(name, first) {
		return false
	}
	name = name[len(first):]
	for _, part := range parts[1 : len(parts)-1] {
		at := strings.Index(name, part)
		if at < 0 {
			return false
		}
		name = name[at+len(part):]
	}
	return strings.HasSuffix(name, last)
}

// toolbox is the tools of one handling.
type toolbox []Tool

func (b toolbox) definitions() []ToolDef {
	defs := make([]ToolDef, 0, len(b))
	for _, t := range b {
		defs = append(defs, t.ToolDef)
	}
	return defs
}

func (b toolbox) find(name string) *Tool {
	for i := range b {
		if b[i].Name == name {
			return &b[i]
		}
	}
	return nil
}

// pick is the tools of the sets that all policies let pass. Of two with one name the first counts.
func pick(policies []ToolPolicy, sets ...[]Tool) toolbox {
	var box toolbox
	for _, set := range sets {
		for _, t := range set {
			allowed := !slices.ContainsFunc(policies, func(p ToolPolicy) bool { return !p.Allows(t.Name) })
			if allowed && box.find(t.Name) == nil {
				box = append(box, t)
			}
		}
	}
	return box
}

// run calls a tool within its bounds.
func (t *Tool) run(ctx context.Context, c *Call) (ToolOutput, error) {
	bounded := ctx
	if t.Timeout >= 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, or(t.Timeout, defaultToolTimeout))
		defer cancel()
	}
	out, err := t.Run(bounded, c)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return ToolOutput{}, cause
	}
	if err != nil && errors.Is(bounded.Err(), context.DeadlineExceeded) {
		return ToolOutput{Text: fmt.Sprintf("no result within %s; whether it was done is not known", or(t.Timeout, defaultToolTimeout)), Failed: true}, nil
	}
	out.Text = cutMiddle(out.Text, MaxToolOutput)
	return out, err
}

// cutMiddle keeps the beginning and the end of a text that is too long.
func cutMiddle(text string, most int) string {
	if len(text) <= most {
		return strings.ToValidUTF8(text, "\uFFFD")
	}
	head, tail := text[:most/2], text[len(text)-most/2:]
	return strings.ToValidUTF8(fmt.Sprintf("%s\n(%d bytes are left out here)\n%s", head, len(text)-most, tail), "\uFFFD")
}
