package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/gateway"
)

// shippedSkills are those that come with this program: skills/NAME/SKILL.md.
//
//go:embed skills
var shippedSkills embed.FS

func (a *app) skillsCommand() *cobra.Command {
	c := group("skills", "List and show the skills of agents, and write those that come with this program", a.skillsListCommand(), a.skillsShowCommand(), a.skillsInitCommand())
	c.Long = `List and show the skills of agents, and write those that come with this program. A skill is a file skills/NAME/SKILL.md in an agent's workspace: Markdown
behind a front matter with name, description, and, if it is to be used by itself, schedule (five fields as cron has them, in UTC or in timezone; or "@every 30m"). It counts as
soon as it is there: an agent that thinks is told of it and reads it, and a schedule becomes a job (gatemesh cron list) within 15 s.`
	return c
}

func (c *client) skills(ctx context.Context) (gateway.SkillsResponse, error) {
	out := gateway.SkillsResponse{Skills: []gateway.AgentSkill{}, Problems: []gateway.AgentSkillProblem{}}
	err := c.do(ctx, http.MethodGet, "/v1/skills", nil, nil, &out)
	return out, err
}

func (a *app) skillsListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the skills of the agents of this gateway, and the files that should be skills and are not",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				r, err := c.skills(ctx)
				if err != nil {
					return err
				}
				for i := range r.Skills {
					r.Skills[i].Text = ""
				}
				if a.asJSON {
					return a.printer().json(r)
				}
				t := newTable("AGENT", "SKILL", "SCHEDULE", "DESCRIPTION")
				for _, s := range r.Skills {
					t.add(s.Of, s.Name, strings.TrimSpace(s.Schedule+" "+s.TimeZone), s.Description)
				}
				p := a.printer()
				p.table(t, "no skills (gatemesh skills init)")
				for _, x := range r.Problems {
					p.printf("%s: %s: %s: %s\n", p.paint(red, "not a skill"), x.Of, x.File, printable(x.Problem))
				}
				return nil
			})
		}),
	}
}

func (a *app) skillsShowCommand() *cobra.Command {
	var of string
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a skill of an agent of this gateway",
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				r, err := c.skills(ctx)
				if err != nil {
					return err
				}
				i := slices.IndexFunc(r.Skills, func(s gateway.AgentSkill) bool { return s.Name == args[0] && (of == "" || s.Of == of) })
				if i < 0 {
					return failf(exitFailed, "no skill %q: gatemesh skills list", args[0])
				}
				if a.asJSON {
					return a.printer().json(r.Skills[i])
				}
				s := r.Skills[i]
				a.printer().printf("%s of %s (%s)\n%s\n", s.Name, s.Of, s.File, printable(s.Description))
				if s.Schedule != "" {
					a.printer().printf("schedule: %s %s\n", s.Schedule, s.TimeZone)
				}
				a.printer().printf("\n%s\n", s.Text)
				return nil
			})
		}),
	}
	cmd.Flags().StringVar(&of, "agent", "", "the agent whose skill it is, if several have it")
	return cmd
}

type writtenSkill struct {
	Name    string `json:"name"`
	File    string `json:"file"`
	Written bool   `json:"written"` // else it was there already
}

func (a *app) skillsInitCommand() *cobra.Command {
	var workspace string
	var force bool
	cmd := &cobra.Command{
		Use: "init [NAME...]", Short: "Write skills that come with this program into a workspace",
		Long: `Write skills that come with this program (infrastructure-heartbeat; without names: all of them) into a workspace. A file that is there already is left
alone, unless with --force.`,
		RunE: body(func(_ *cobra.Command, args []string) error {
			if workspace == "" {
				return failf(exitUsage, "name the agent's workspace: --workspace DIR")
			}
			known, err := shippedSkillNames()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = known
			}
			list := []writtenSkill{}
			for _, name := range args {
				if !slices.Contains(known, name) {
					return failf(exitUsage, "no skill %q comes with this program: %s", name, strings.Join(known, ", "))
				}
				w, err := writeSkill(name, workspace, force)
				if err != nil {
					return failf(exitFailed, "write the skill %s: %w", name, err)
				}
				list = append(list, w)
			}
			if a.asJSON {
				return a.printer().json(list)
			}
			for _, w := range list {
				a.printer().printf("%s: %s\n", w.File, map[bool]string{true: "written", false: "there already, left alone (--force)"}[w.Written])
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&workspace, "workspace", "", "directory of the agent")
	cmd.Flags().BoolVar(&force, "force", false, "write over what is there")
	return cmd
}

func shippedSkillNames() ([]string, error) {
	entries, err := fs.ReadDir(shippedSkills, "skills")
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func writeSkill(name, workspace string, force bool) (w writtenSkill, err error) {
	text, err := shippedSkills.ReadFile("skills/" + name + "/SKILL.md")
	if err != nil {
		return w, err
	}
	if _, err := agent.ParseSkill(text, name); err != nil {
		return w, err // a test reads them all
	}
	w = writtenSkill{Name: name, File: filepath.Join(workspace, "skills", name, "SKILL.md"), Written: true}
	if err := os.MkdirAll(filepath.Dir(w.File), 0o750); err != nil {
		return w, err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(w.File, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		w.Written = false
		return w, nil
	}
	if err != nil {
		return w, err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return w, fmt.Errorf("%s: %w", w.File, err)
	}
	return w, nil
}
