package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// SkillsResponse answers GET /v1/skills: those of the agents whose inboxes this gateway may have, from their workspaces on this node.
type SkillsResponse struct {
	Skills   []AgentSkill        `json:"skills"`
	Problems []AgentSkillProblem `json:"problems"`
}

// AgentSkill is a skill of an agent.
type AgentSkill struct {
	Of string `json:"of"` // the agent
	agent.Skill
}

// AgentSkillProblem is a file that should be a skill of an agent, and is not.
type AgentSkillProblem struct {
	Of string `json:"of"`
	agent.SkillProblem
}

// getSkills is GET /v1/skills.
func (g *Gateway) getSkills(w http.ResponseWriter, _ *http.Request) error {
	resp := SkillsResponse{Skills: []AgentSkill{}, Problems: []AgentSkillProblem{}}
	for _, spec := range g.specsHere() {
		list, problems := spec.Skills()
		for _, s := range list {
			resp.Skills = append(resp.Skills, AgentSkill{spec.ID, s})
		}
		for _, p := range problems {
			resp.Problems = append(resp.Problems, AgentSkillProblem{spec.ID, p})
		}
	}
	return writeJSON(w, http.StatusOK, resp)
}

// specsHere are the agents with a workspace that this gateway may run, as they are configured now.
func (g *Gateway) specsHere() []agent.Spec { return *g.skilled.Load() }

// takeSkills takes up which agents have a workspace.
func (g *Gateway) takeSkills(cfg *Config) {
	list := []agent.Spec{}
	for _, a := range cfg.AgentsHere() {
		if a.Workspace != "" {
			list = append(list, specOf(cfg, a))
		}
	}
	g.skilled.Store(&list)
	g.lookAtSkills()
}

// skillsEvery is how often the schedules of skills are compared with the jobs.
const skillsEvery = 15 * time.Second

// lookAtSkills has the schedules looked at now.
func (g *Gateway) lookAtSkills() {
	select {
	case g.skillsChanged <- struct{}{}:
	default:
	}
}

// keepSkillJobs makes a job of each skill that has a schedule, until ctx ends: by the gateway that has the agent's inbox, for its own node's
// workspace is the one that counts then.
func (g *Gateway) keepSkillJobs(ctx context.Context, b *bus.Bus) {
	t := time.NewTicker(skillsEvery)
	defer t.Stop()
	told := map[string]string{} // what was said already
	say := func(of, text string) {
		if told[of] != text {
			told[of] = text
			if text != "" {
				g.log.Warn("the schedule of a skill does not count", "skill", of, "why", text)
			}
		}
	}
	for {
		g.skillJobs(ctx, b, say)
		select {
		case <-t.C:
		case <-g.skillsChanged:
		case <-ctx.Done():
			return
		}
	}
}

func (g *Gateway) skillJobs(ctx context.Context, b *bus.Bus, say func(of, text string)) {
	var jobs []CronJob
	for _, spec := range g.specsHere() {
		if b.OwnerOf(spec.ID) != g.name {
			continue
		}
		skills, problems := spec.Skills()
		for _, p := range problems {
			say(spec.ID+" "+p.File, p.Problem)
		}
		if g.cron == nil {
			for _, s := range skills {
				if s.Schedule != "" {
					say(spec.ID+" "+s.Name, "there is no scheduler: set cron.enabled")
				}
			}
			continue
		}
		if jobs == nil {
			var err error
			if jobs, err = readJobs(b.Room(ctx, CronInbox, jobPrefix)); err != nil {
				return // the store is away; later
			}
		}
		wanted := map[string]bool{}
		for _, s := range skills {
			if s.Schedule == "" {
				continue
			}
			j := skillJob(spec.ID, s)
			wanted[j.ID] = true
			if _, err := j.schedule(); err != nil {
				say(spec.ID+" "+s.Name, err.Error())
				continue
			}
			i := slices.IndexFunc(jobs, func(k CronJob) bool { return k.ID == j.ID })
			if i >= 0 && sameSkillJob(jobs[i], j) {
				say(spec.ID+" "+s.Name, "")
				continue
			}
			var err error
			if i >= 0 {
				j.Enabled = jobs[i].Enabled
				err = g.orderJob(ctx, b, cronOrder{What: "remove", Job: j, By: "skill"})
			}
			if err == nil {
				err = g.orderJob(ctx, b, cronOrder{What: "add", Job: j, By: "skill"})
			}
			if err != nil && ctx.Err() == nil {
				say(spec.ID+" "+s.Name, err.Error())
			}
		}
		for _, j := range jobs {
			if j.Skill != "" && j.Agent == spec.ID && !wanted[j.ID] {
				if err := g.orderJob(ctx, b, cronOrder{What: "remove", Job: j, By: "skill"}); err != nil && ctx.Err() == nil {
					say(spec.ID+" "+j.Skill, err.Error())
				}
			}
		}
	}
}

// skillJob is the job that a skill's schedule becomes. The same skill is the same job, whichever gateway has the agent.
func skillJob(of string, s agent.Skill) CronJob {
	j := CronJob{
		ID: envelope.DerivedID(of, "skill/"+s.Name), Name: "skill " + of + " " + s.Name, TZ: s.TimeZone, Agent: of, Skill: s.Name, Session: cronIsolated, Enabled: true,
		Created: time.Now().UTC().Truncate(time.Millisecond), Message: fmt.Sprintf("It is time for your skill %s: %s", s.Name, s.Description),
	}
	if every, ok := strings.CutPrefix(s.Schedule, "@every "); ok {
		j.Every, j.TZ = strings.TrimSpace(every), ""
	} else {
		j.Cron = s.Schedule
	}
	return j
}

func sameSkillJob(a, b CronJob) bool {
	a.Created, a.Enabled = b.Created, b.Enabled // an operator may have switched it off
	return a == b
}

// orderJob has the scheduler carry out an order, wherever it is.
func (g *Gateway) orderJob(ctx context.Context, b *bus.Bus, o cronOrder) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s, err := b.AskAPI(ctx, bus.Outgoing{
		ID: envelope.NewID(), From: CronInbox, To: envelope.Address{Agent: CronInbox}, Capability: capabilityCronOrder, Payload: mustJSON(o), TTL: time.Minute,
	})
	if err != nil {
		return err
	}
	tr, err := b.Await(ctx, s.MessageID, func(t bus.Track) bool { return t.Facts.Replied || t.Facts.Dead })
	switch {
	case err != nil:
		return err
	case tr.Facts.Dead:
		return fmt.Errorf("the scheduler gave the order up: %s", tr.Facts.Reason)
	}
	var a cronAnswer
	reply, err := b.Resolve(ctx, tr.Reply)
	if err == nil {
		err = json.Unmarshal(reply.Payload, &a)
	}
	switch {
	case err != nil:
		return err
	case a.Error != "":
		return fmt.Errorf("the scheduler: %s", a.Error)
	}
	return nil
}
