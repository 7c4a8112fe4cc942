package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of skills.
const (
	// MaxSkill is the bytes of one skill's file, maxSkills how many a workspace may have.
	MaxSkill  = 64 << 10
	maxSkills = 64
	// maxSkillLine bounds a description.
	maxSkillLine = 1 << 10
)

// Skill is what a file skills/NAME/SKILL.md of a workspace teaches an agent: Markdown behind a front matter in YAML, as OpenClaw has it.
type Skill struct {
	// Name is how it is called; empty in the file: that of its directory.
	Name string `yaml:"name" json:"name"`
	// Description is when to use it, in a line.
	Description string `yaml:"description" json:"description"`
	// Schedule, if there is one, is when the agent is told to use it: five fields as cron has them, "@daily" and the like, or "@every 30m". TimeZone is its time zone; empty: UTC.
	Schedule string `yaml:"schedule" json:"schedule,omitempty"`
	TimeZone string `yaml:"timezone" json:"timezone,omitempty"`
	// Agent is the one that it is for; empty: whoever has the workspace.
	Agent string `yaml:"agent" json:"agent,omitempty"`
	// Text is what follows the front matter.
	Text string `yaml:"-" json:"text,omitempty"`
	// File is where it is, in the workspace.
	File string `yaml:"-" json:"file"`
}

// SkillProblem is a skill that cannot be read, and why.
type SkillProblem struct {
	File    string `json:"file"`
	Problem string `json:"problem"`
}

var skillName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// Skills reads the skills of an agent from its workspace, by name. A workspace without any is no problem; one that is not there is. They are read anew
// whenever they are needed, so that a file that is changed counts at once. A link does not lead out of the workspace.
func (s Spec) Skills() (list []Skill, problems []SkillProblem) {
	dir := s.Dir()
	if dir == "" {
		return nil, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, []SkillProblem{{File: ".", Problem: "the workspace cannot be read: " + plainPathError(err)}}
	}
	defer func() { _ = root.Close() }()
	entries, err := fs.ReadDir(root.FS(), "skills")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, []SkillProblem{{File: "skills", Problem: plainPathError(err)}}
	}
	for _, e := range entries {
		file := path.Join("skills", e.Name(), "SKILL.md")
		one, err := readSkill(root, file, e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // a directory of something else
		case err == nil && len(list) == maxSkills:
			err = fmt.Errorf("there are more than %d", maxSkills)
		case err == nil && slices.ContainsFunc(list, func(x Skill) bool { return x.Name == one.Name }):
			err = fmt.Errorf("there is a skill %s already", one.Name)
		}
		if err != nil {
			problems = append(problems, SkillProblem{file, plainPathError(err)})
			continue
		}
		if one.Agent == "" || one.Agent == s.ID {
			list = append(list, one)
		}
	}
	slices.SortFunc(list, func(a, b Skill) int { return strings.Compare(a.Name, b.Name) })
	return list, problems
}

// plainPathError is an error without the path that the file's name says already.
func plainPathError(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

func readSkill(root *os.Root, file, dir string) (Skill, error) {
	st, err := root.Stat(file)
	if err != nil {
		return Skill{}, err
	}
	if st.Size() > MaxSkill {
		return Skill{}, fmt.Errorf("it has %d bytes, at most %d", st.Size(), MaxSkill)
	}
	raw, err := root.ReadFile(file)
	if err != nil {
		return Skill{}, err
	}
	s, err := ParseSkill(raw, dir)
	s.File = file
	return s, err
}

// ParseSkill reads the text of a skill that lies in a directory of this name.
func ParseSkill(raw []byte, dir string) (s Skill, err error) {
	text := bytes.ReplaceAll(bytes.TrimPrefix(raw, []byte("\uFEFF")), []byte("\r\n"), []byte("\n"))
	head, ok := bytes.CutPrefix(text, []byte("---\n"))
	if !ok {
		return s, errors.New("it does not begin with a front matter: a line of ---, name and description, a line of ---")
	}
	head, body, ok := bytes.Cut(head, []byte("\n---\n"))
	if !ok {
		if head, ok = bytes.CutSuffix(head, []byte("\n---")); !ok {
			return s, errors.New("its front matter has no end: a line of ---")
		}
	}
	if err := yaml.Unmarshal(head, &s); err != nil {
		return Skill{}, fmt.Errorf("its front matter is not readable: %s", strings.Join(strings.Fields(err.Error()), " "))
	}
	if s.Name == "" {
		s.Name = dir
	}
	s.Description = strings.Join(strings.Fields(s.Description), " ")
	s.Text = strings.TrimSpace(strings.ToValidUTF8(string(body), "\uFFFD"))
	switch {
	case !skillName.MatchString(s.Name):
		return s, fmt.Errorf("name %q: want small letters, digits, - and _, at most 63", clip(s.Name, 80))
	case s.Description == "":
		return s, errors.New("description is missing: when to use it")
	case len(s.Description) > maxSkillLine:
		return s, fmt.Errorf("description has %d bytes, at most %d", len(s.Description), maxSkillLine)
	}
	return s, nil
}

func clip(text string, most int) string {
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}

// listSkills is what the model is told of the agent's skills.
func (t *thinker) listSkills() string {
	skills, _ := t.spec.Skills()
	if len(skills) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\nSkills: before you do what one is for, read it with skills_read.\n")
	for _, s := range skills {
		fmt.Fprintf(&b, "- %s: %s\n", s.Name, s.Description)
	}
	return b.String()
}

// readsSkills is skills_read, for an agent that has some.
func (t *thinker) readsSkills() []Tool {
	if skills, _ := t.spec.Skills(); len(skills) == 0 {
		return nil
	}
	return []Tool{{ToolDef: ToolDef{"skills_read", "Reads one of your skills: how to do what it is for.", json.RawMessage(`{
			"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "description": "The skill's name"}}}`)}, Run: t.readSkill}}
}

func (t *thinker) readSkill(_ context.Context, c *Call) (ToolOutput, error) {
	var in struct {
		Name string `json:"name"`
	}
	if err := c.Decode(&in); err != nil {
		return Failed("%v", err), nil
	}
	skills, _ := t.spec.Skills()
	for _, s := range skills {
		if s.Name == in.Name {
			return ToolOutput{Text: s.Text}, nil
		}
	}
	return Failed("there is no skill %q", clip(in.Name, 80)), nil
}
