package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// Spec is an agent: who it is and what answers for it.
type Spec struct {
	// ID is its address; Name is for people (empty: the ID).
	ID, Name, Description, Workspace string
	// Capabilities are what others may ask of it, as "infra.check".
	Capabilities []string
	// Models (llm) are those that it may ask, the preferred one first.
	Models []ModelSpec
	// Tools (llm) are the policies that a tool must pass; none: all tools.
	Tools []ToolPolicy
	// SessionsOf (llm) are other agents whose conversations it may read: names, * for any text.
	SessionsOf []string
	// RunRetention (llm) is how long the session of an isolated run of a job is kept after it; 0: as long as every other one.
	RunRetention time.Duration
	// SpawnAgents (llm) are other agents that it may start sub-sessions of: names, * for any text.
	SpawnAgents []string
	// Exec (llm) is whether and how it may run programs.
	Exec   ExecSpec
	Runner Runner
}

// What [ExecSpec].Security may be: OpenClaw's words.
const (
	ExecDeny      = "deny"
	ExecAllowlist = "allowlist"
	ExecFull      = "full"
)

// What [ExecSpec].Sandbox may be: OpenClaw's words.
const (
	SandboxOff     = "off"
	SandboxNonMain = "non-main"
	SandboxAll     = "all"
)

// What [ExecSpec].Access may be: OpenClaw's words.
const (
	AccessNone      = "none"
	AccessRead      = "ro"
	AccessReadWrite = "rw"
)

// ExecSpec is how an agent's programs run, as OpenClaw's tools.exec and sandbox.
type ExecSpec struct {
	// Security: deny (also ""), allowlist (those in SafeBins, by their bare names) or full.
	Security string
	SafeBins []string
	// Timeout is the longest time that one may take; 0: 60 seconds.
	Timeout time.Duration
	// Sandbox: off (also ""), non-main (all sessions but agent:<id>:main) or all. Access is what a confined program may do with the workspace:
	// none, ro or rw (also ""); Network is whether it may make TCP connections.
	Sandbox, Access string
	Network         bool
}

// DisplayName is the name for people.
func (s Spec) DisplayName() string {
	if s.Name != "" {
		return s.Name
	}
	return s.ID
}

// Dir is the workspace's directory, with a leading ~ resolved; "": none.
func (s Spec) Dir() string {
	rest, ok := strings.CutPrefix(s.Workspace, "~/")
	if !ok {
		return s.Workspace
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, rest)
}

// Runner says what answers. A field that its kind does not use is ignored.
type Runner struct {
	// Kind names the factory: "echo", "relay", "checks", "llm".
	Kind string
	// To (relay) is the agent that is asked when a question names none.
	To string
	// Timeout (relay) is how long to wait for an answer; 0: until shortly before the
	// question's TTL or the ack timeout. For checks it bounds one check, for llm one call of a model; 0: its own default.
	Timeout time.Duration
	// Alert (checks) is the agent that is told when a check finds something wrong after one that did not, and when all is well again: once each.
	// Empty: nobody.
	Alert string
	// Checks (checks) are the parts to look at: consul, nomad, node. Empty: all.
	Checks []string
	// Nomad (checks) says how to reach it; empty fields: the environment.
	Nomad Nomad
	// Command (exec) is the program that does the work, and its arguments; Repeat: it may run again for a message in whose run it was cut off.
	Command []string
	Repeat  bool
	// URL (a2a) is where the remote agent is, Token what it knows this gateway by; Token is a secret. ResendSameID (a2a): it takes a message id once.
	URL, Token   string
	ResendSameID bool
	// Options is whatever else the configuration has.
	Options map[string]any
}

// Nomad is how to reach Nomad. Token is a secret: it has no place in logs and errors.
type Nomad struct{ Address, Token string }

// Directory is all that a runner needs of the registry.
type Directory interface {
	// Agents lists the known agents that have the capability, by id; all of them for "".
	Agents(capability string) []bus.AgentInfo
}

// Deps are what runners work with.
type Deps struct {
	// Gateway is the one that runs the agent.
	Gateway   string
	Directory Directory
	// NoteCheck writes what an agent's check found beside its registry entry ([bus.Bus.NoteCheck]). It may be nil.
	NoteCheck func(ctx context.Context, agent string, n bus.CheckNote) error
	// Room reads the room of an agent's inbox ([bus.Bus.Room]). Nil: an agent cannot look at sessions.
	Room func(ctx context.Context, agent, prefix string) ([]bus.RoomEntry, error)
	// Place finds out in which chat a message was said; false: in none. Post is the order to say a text there. Nil: there are no chats.
	Place func(*envelope.Sealed) (Place, bool)
	Post  func(Place, string) bus.Outgoing
	// ModelCalled is told of each call of a model. It may be nil.
	ModelCalled func(ModelCall)
	// Logger may be nil.
	Logger hclog.Logger
}

// Place is somewhere in a chat: the account's inbox, and where in that, as the account knows it.
type Place struct {
	Inbox string          `json:"inbox"`
	To    json.RawMessage `json:"to,omitempty"`
}

// Factory makes the handler of one agent. Its error is a mistake in the configuration.
type Factory func(Spec, Deps) (bus.Handler, error)

// Runners finds factories by kind.
type Runners map[string]Factory

// Builtin returns the runners that need nothing from outside: echo and relay.
func Builtin() Runners { return Runners{"echo": NewEcho, "relay": NewRelay} }

// New makes the handler of an agent. The error names the kinds there are.
func (r Runners) New(spec Spec, deps Deps) (bus.Handler, error) {
	f, ok := r[spec.Runner.Kind]
	if !ok {
		kinds := make([]string, 0, len(r))
		for k := range r {
			kinds = append(kinds, k)
		}
		slices.Sort(kinds)
		return nil, fmt.Errorf("agent %s: runner kind %q is not known: set runner.kind to one of %s", spec.ID, spec.Runner.Kind, strings.Join(kinds, ", "))
	}
	if deps.Logger == nil {
		deps.Logger = hclog.NewNullLogger()
	}
	h, err := f(spec, deps)
	if err != nil {
		return nil, fmt.Errorf("agent %s: runner %s: %w", spec.ID, spec.Runner.Kind, err)
	}
	return h, nil
}

// Text is a payload as a person reads it: the string, the "text" of an object that has one
// (a [Finding] does), else the JSON.
func Text(payload json.RawMessage) string {
	var o struct {
		Text *string `json:"text"`
	}
	if len(payload) > 0 && payload[0] == '{' && json.Unmarshal(payload, &o) == nil && o.Text != nil {
		return *o.Text
	}
	return envelope.PayloadText(payload)
}
