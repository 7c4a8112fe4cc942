package gateway

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSkillJobs: the schedule of a skill is a job, which follows the file, whichever gateway has the agent; an operator's word about it stays, and what cannot be a schedule
// harms nothing else.
func TestSkillJobs(t *testing.T) {
	workspace := t.TempDir()
	skill := func(name, text string) {
		t.Helper()
		dir := filepath.Join(workspace, "skills", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "SKILL.md"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := newStore(t)
	start := func(name string) *node {
		bob := echoAgent("bob")
		bob["gateways"], bob["workspace"] = []string{"one", "two"}, workspace
		return startNode(t, parseChannels(t, name, config{"cron": config{"enabled": true}}, bob), Deps{Store: s})
	}
	one, two := start("one"), start("two")
	jobs := func() (list []CronState) {
		var r CronResponse
		two.do(http.MethodGet, "/v1/cron", "").into(t, &r)
		return r.Jobs
	}
	until := func(what string, ok func([]CronState) bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(jobs()); <-time.After(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("still not: %s: %+v", what, jobs())
			}
			one.lookAtSkills()
			two.lookAtSkills()
		}
	}
	skill("beat", "---\ndescription: Every five minutes.\nschedule: \"*/5 * * * *\"\ntimezone: Europe/Berlin\n---\nDo it.")
	skill("plain", "---\ndescription: Without a schedule.\n---\nx")
	skill("odd", "---\ndescription: Not a schedule.\nschedule: often\n---\nx")
	skill("broken", "no front matter")
	until("it is a job", func(l []CronState) bool { return len(l) == 1 })
	first := jobs()[0]
	if first.Cron != "*/5 * * * *" || first.TZ != "Europe/Berlin" || first.Agent != "bob" || first.Skill != "beat" || first.Name != "skill bob beat" || !strings.Contains(first.Message, "Every five minutes.") || !first.Enabled {
		t.Errorf("%+v", first)
	}
	two.do(http.MethodPost, "/v1/cron/"+first.ID+"/disable", "").into(t, &CronState{})
	skill("beat", "---\ndescription: Every second.\nschedule: \"@every 1s\"\n---\nDo it.")
	until("it follows the file", func(l []CronState) bool { return len(l) == 1 && l[0].Every == "1s" })
	if now := jobs()[0]; now.ID != first.ID || now.Enabled {
		t.Errorf("an operator switched it off: %+v", now)
	}
	two.do(http.MethodPost, "/v1/cron/"+first.ID+"/enable", "").into(t, &CronState{})
	if r := two.runsOf(first.ID, 2)[0]; !r.OK || !strings.Contains(r.Text, "your skill beat: Every second.") {
		t.Errorf("%+v", r)
	}
	var r SkillsResponse
	two.do(http.MethodGet, "/v1/skills", "").into(t, &r)
	if len(r.Skills) != 3 || r.Skills[0].Of != "bob" || r.Skills[0].Name != "beat" || r.Skills[0].Text != "Do it." || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Problem, "front matter") {
		t.Errorf("%+v", r)
	}
	// Another gateway has the agent: nothing changes. Without the file there is no job.
	if err := one.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	until("it stays", func(l []CronState) bool {
		return two.bus.Load().OwnerOf("bob") == "two" && len(l) == 1 && l[0].Every == "1s"
	})
	if err := os.RemoveAll(filepath.Join(workspace, "skills", "beat")); err != nil {
		t.Fatal(err)
	}
	until("it is gone", func(l []CronState) bool { return len(l) == 0 })
}
