package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
)

func writeSkill(t *testing.T, workspace, dir, text string) {
	t.Helper()
	at := filepath.Join(workspace, "skills", dir)
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "SKILL.md"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSkills(t *testing.T) {
	ws := t.TempDir()
	spec := Spec{ID: "bobby", Workspace: ws}
	if list, problems := spec.Skills(); len(list)+len(problems) != 0 {
		t.Errorf("none: %v %v", list, problems)
	}
	writeSkill(t, ws, "a-check", "---\nname: infrastructure-heartbeat\ndescription: >\n  Look at\n  everything.\nschedule: \"*/5 * * * *\" # often\nagent: bobby\nmetadata: { x: 1 }\n---\n\n## How\n\nLook.\n")
	writeSkill(t, ws, "by-its-directory", "---\r\ndescription: Something.\r\n---\r\nText.\r\n---\r\nmore")
	writeSkill(t, ws, "empty", "---\ndescription: Nothing.\n---")
	writeSkill(t, ws, "of-jerry", "---\ndescription: Not Bobby's.\nagent: jerry\n---\nx")
	for dir, text := range map[string]string{
		"bad-none":   "# no front matter",
		"bad-end":    "---\ndescription: x\n",
		"bad-yaml":   "---\ndescription: [x\n---\n",
		"bad-name":   "---\nname: A b\ndescription: x\n---\n",
		"bad-nodesc": "---\nname: x\n---\n",
		"bad-twice":  "---\nname: infrastructure-heartbeat\ndescription: again\n---\n",
		"bad-size":   "---\ndescription: x\n---\n" + strings.Repeat("x", MaxSkill),
	} {
		writeSkill(t, ws, dir, text)
	}
	if err := os.MkdirAll(filepath.Join(ws, "skills", "no-skill"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "SKILL.md")
	if err := os.WriteFile(outside, []byte("---\ndescription: stolen\n---\nsecret"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(ws, "skills", "link"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(ws, "skills", "link", "SKILL.md")); err != nil {
		t.Fatal(err)
	}
	list, problems := spec.Skills()
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != "by-its-directory empty infrastructure-heartbeat" {
		t.Errorf("skills: %s", got)
	}
	if s := list[2]; s.Description != "Look at everything." || s.Schedule != "*/5 * * * *" || s.Text != "## How\n\nLook." || s.File != "skills/a-check/SKILL.md" {
		t.Errorf("%+v", s)
	}
	if s := list[0]; s.Text != "Text.\n---\nmore" {
		t.Errorf("%+v", s)
	}
	said := map[string]string{}
	for _, p := range problems {
		said[strings.Split(p.File, "/")[1]] = p.Problem
	}
	for dir, want := range map[string]string{
		"bad-none": "front matter", "bad-end": "no end", "bad-yaml": "not readable", "bad-name": "A b", "bad-nodesc": "description is missing", "bad-size": "at most", "link": "escapes",
	} {
		if !strings.Contains(said[dir], want) {
			t.Errorf("%s: %q", dir, said[dir])
		}
	}
	if len(problems) != 8 { // of the two with one name the second
		t.Errorf("%d problems: %v", len(problems), problems)
	}
	if _, problems := (Spec{ID: "x", Workspace: filepath.Join(ws, "gone")}).Skills(); len(problems) != 1 {
		t.Errorf("no workspace: %v", problems)
	}
}

// A model is told of the skills and reads one; a skill that is changed counts with the next message.
func TestThinkerReadsSkills(t *testing.T) {
	ws := t.TempDir()
	writeSkill(t, ws, "deploy", "---\ndescription: How to deploy.\n---\nFirst version.")
	w := &wise{}
	w.answer = func(_ int, p Prompt) (*Completion, error) {
		if last(p).Text == "" {
			return wants("skills_read", `{"name":"deploy"}`), nil
		}
		return answersText(last(p).Text), nil
	}
	m := thinking(t, w, Spec{Workspace: ws}, nil)
	ask := func() string {
		return string(m.ask(bus.Outgoing{To: to("jerry"), Payload: []byte(`"go"`), ConversationID: "c" + t.Name() + string(rune('a'+len(w.prompts())))}).Reply.Payload)
	}
	if got := ask(); !strings.Contains(got, "First version.") {
		t.Errorf("%s", got)
	}
	if system := w.prompts()[0].System; !strings.Contains(system, "- deploy: How to deploy.") {
		t.Errorf("%s", system)
	}
	writeSkill(t, ws, "deploy", "---\ndescription: How to deploy now.\n---\nSecond version.")
	if got := ask(); !strings.Contains(got, "Second version.") {
		t.Errorf("%s", got)
	}
	out, err := (&thinker{spec: Spec{ID: "jerry", Workspace: ws}}).readSkill(context.Background(), &Call{Arguments: []byte(`{"name":"../x"}`)})
	if err != nil || !out.Undone {
		t.Errorf("%+v %v", out, err)
	}
}

func FuzzParseSkill(f *testing.F) {
	f.Add([]byte("---\nname: x\ndescription: y\nschedule: \"@daily\"\n---\ntext"))
	f.Add([]byte("---\na: &a [*a]\n---\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseSkill(raw, "dir")
		if err == nil && (s.Description == "" || !skillName.MatchString(s.Name)) {
			t.Errorf("%+v", s)
		}
	})
}
