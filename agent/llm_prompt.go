package agent

import (
	"fmt"
	"os"
	"strings"

	"github.com/gatemesh/gatemesh/bus"
)

// workspaceFiles say who an agent is, as OpenClaw names them, in the order in which the model reads them.
var workspaceFiles = []string{"AGENTS.md", "SOUL.md", "IDENTITY.md", "USER.md", "TOOLS.md", "MEMORY.md"}

// Bounds of what the model is shown beside the conversation.
const (
	maxFile   = 16 << 10
	maxSystem = 48 << 10
	maxListed = 100
)

// system is the prompt that stands before every conversation. The files are read anew each time, so that a
// change counts at once; one that cannot be read is left out.
func (t *thinker) system(m *bus.Incoming) string {
	var b strings.Builder
	fmt.Fprintf(&b, "You are %s (agent id %q on gateway %q).", t.spec.DisplayName(), t.spec.ID, m.Gateway())
	if t.spec.Description != "" {
		fmt.Fprintf(&b, " %s", t.spec.Description)
	}
	fmt.Fprintf(&b, "\nThe message that you answer comes from %q. Answer in plain words; what you answer is sent to them.\n", m.Envelope().SourceAgent)
	if m.Attempt() > 1 {
		fmt.Fprintf(&b, "This is attempt %d at it: an earlier one was interrupted, and may have done some of it.\n", m.Attempt())
	}
	if isSub(m) {
		b.WriteString("This is a sub-session: you were given one task. Do it and answer with its result; nobody reads anything else, and nobody answers questions.\n")
	} else {
		b.WriteString("Agents that you can reach with sessions_send:\n")
		b.WriteString(t.listAgents())
	}
	b.WriteString(t.listSkills())
	for _, name := range workspaceFiles {
		text := t.workspaceFile(name)
		if text == "" || b.Len()+len(text) > maxSystem {
			continue
		}
		fmt.Fprintf(&b, "\n\n# %s\n%s", name, text)
	}
	return b.String()
}

func (t *thinker) workspaceFile(name string) string {
	dir := t.spec.Dir()
	if dir == "" {
		return ""
	}
	root, err := os.OpenRoot(dir) // a link must not lead out of the workspace
	if err != nil {
		return ""
	}
	defer func() { _ = root.Close() }()
	text, err := root.ReadFile(name)
	if err != nil {
		return ""
	}
	if len(text) > maxFile {
		return strings.ToValidUTF8(string(text[:maxFile]), "") + shortened
	}
	return strings.TrimSpace(string(text))
}

// listAgents is the directory, a line for each agent but this one.
func (t *thinker) listAgents() string {
	var b strings.Builder
	for i, a := range t.deps.Directory.Agents("") {
		if a.ID == t.spec.ID {
			continue
		}
		if i >= maxListed {
			b.WriteString("(and more: ask agents_list for a capability)\n")
			break
		}
		fmt.Fprintf(&b, "- %s", a.ID)
		if a.Name != "" && a.Name != a.ID {
			fmt.Fprintf(&b, " (%s)", a.Name)
		}
		if a.Gateway != "" {
			fmt.Fprintf(&b, " on %s", a.Gateway)
		}
		if a.Status != bus.StatusActive {
			b.WriteString(", not reachable now")
		}
		if len(a.Capabilities) > 0 {
			fmt.Fprintf(&b, ": %s", strings.Join(a.Capabilities, ", "))
		}
		if a.Description != "" {
			fmt.Fprintf(&b, ". %s", a.Description)
		}
		b.WriteByte('\n')
	}
	if b.Len() == 0 {
		return "none now\n"
	}
	return b.String()
}
