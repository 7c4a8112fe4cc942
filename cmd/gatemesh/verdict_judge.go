package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"
)

// The thresholds, set before the first whole run; the command's help says them to people.
const (
	verdictServed   = .99
	verdictTold     = 100 // of so many, one
	verdictRecovery = 10 * time.Second
	verdictThird    = 3
	verdictP95      = 500 * time.Millisecond
	verdictMemoryMB = 2048
	// verdictSlow is when somebody feels that something is wrong (the plan's bound for an answer).
	verdictSlow = 2 * time.Second
)

// A verdictReport is both forms, what was asked of three gateways, and what came of it.
type verdictReport struct {
	Go       bool                       `json:"go"`
	Criteria []verdictCriterion         `json:"criteria"`
	Forms    map[string]*verdictFigures `json:"forms"`
}

// A verdictCriterion is one threshold. One is the same of one gateway, empty when it does not matter there.
type verdictCriterion struct {
	What   string `json:"what"`
	Needed string `json:"needed"`
	Three  string `json:"three"`
	One    string `json:"one,omitempty"`
	OK     bool   `json:"ok"`
}

// verdictFigures are those of one form.
type verdictFigures struct {
	Name     string `json:"name"`
	Gateways int    `json:"gateways"`
	Asked    int    `json:"asked"`
	Served   int    `json:"served"` // with bobby's answer within 30 s
	// Told were answered with what became of the question, e.g. that nobody knows whether the program ran.
	Told int `json:"told"`
	// Lost: no answer, or one although nothing was done. Doubled: answered or done more than once.
	Lost    int                             `json:"lost"`
	Doubled int                             `json:"doubled"`
	Phases  map[string]*verdictPhaseFigures `json:"phases"`
	order   []string
	// What a quiet question costs, and what the gateways hold.
	GatewaysCPU float64 `json:"gateways_cpu_ms_a_question,omitempty"`
	ServersCPU  float64 `json:"servers_cpu_ms_a_question,omitempty"`
	Writes      float64 `json:"raft_entries_a_question"`
	MemoryMB    float64 `json:"gateways_memory_mb,omitempty"`
}

// verdictPhaseFigures are those of one phase, as the pages saw it.
type verdictPhaseFigures struct {
	Asked  int     `json:"asked"`
	Served int     `json:"served"`
	P50    float64 `json:"p50_ms"`
	P95    float64 `json:"p95_ms"`
	// Recovery is how long after the beginning somebody still waited for more than 2 s; 0: nobody did; -1: somebody still does.
	Recovery float64 `json:"recovery_s"`
}

func (x *verdictPhaseFigures) String() string {
	return fmt.Sprintf("%d of %d served, p50 %s, p95 %s, recovered after %s", x.Served, x.Asked, duration(x.P50), duration(x.P95), seconds(x.Recovery))
}

func duration(ms float64) string {
	if ms >= 1000 {
		return fmt.Sprintf("%.1f s", ms/1000)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

func seconds(s float64) string {
	if s < 0 {
		return "never"
	}
	return fmt.Sprintf("%.1f s", s)
}

// add takes in what came of a phase.
func (f *verdictFigures) add(phase verdictPhase, asked []*verdictAsked) *verdictPhaseFigures {
	x := &verdictPhaseFigures{Asked: len(asked)}
	f.Phases[phase.name] = x
	f.order = append(f.order, phase.name)
	var took sample
	for _, q := range asked {
		waited := q.took
		if waited == 0 {
			waited = verdictDrain
			x.Recovery = -1
		}
		took = append(took, waited)
		if q.noted && q.took <= verdictPatience {
			x.Served++
		}
		if q.took > verdictSlow && x.Recovery >= 0 {
			x.Recovery = max(x.Recovery, q.at.Add(q.took).Sub(asked[0].at).Seconds())
		}
	}
	f.Asked += x.Asked
	f.Served += x.Served
	if len(took) > 0 {
		x.P50, x.P95 = ms(took.quantile(.5)), ms(took.quantile(.95))
	}
	return x
}

// costs is what a quiet phase cost.
func (f *verdictFigures) costs(ctx context.Context, s *verdictSite, before verdictCost, questions int) error {
	after, err := s.cost(ctx)
	if err != nil {
		return err
	}
	n := float64(max(1, questions))
	f.GatewaysCPU = ms(after.gateways-before.gateways) / n
	f.ServersCPU = ms(after.servers-before.servers) / n
	f.Writes = float64(after.writes-before.writes) / n
	f.MemoryMB = math.Round(residentMB(s.pids()))
	return nil
}

// judge counts a question by what its page shows in the end and how often its work was done.
func (f *verdictFigures) judge(q *verdictAsked, answers, done int) {
	switch {
	case answers > 1 || done > 1:
		f.Doubled++
	case answers == 0 || q.noted && done == 0:
		f.Lost++
	case !q.noted:
		f.Told++
	}
}

func (f *verdictFigures) share() float64 { return float64(f.Served) / float64(max(1, f.Asked)) }

// judge holds three gateways to the thresholds. A short run has no other form beside it, and its machine is busy: it is not held to any time.
func (v *verdictReport) judge(short bool) {
	three, one := v.Forms[verdictMesh.key], v.Forms[verdictOne.key]
	add := func(ok bool, what, needed, three, one string) {
		v.Criteria = append(v.Criteria, verdictCriterion{What: what, Needed: needed, Three: three, One: one, OK: ok})
	}
	count := func(f *verdictFigures) string {
		if f == nil {
			return ""
		}
		return fmt.Sprintf("%d lost, %d doubled of %d", f.Lost, f.Doubled, f.Asked)
	}
	told := func(f *verdictFigures) string {
		if f == nil {
			return ""
		}
		return fmt.Sprintf("%d of %d", f.Told, f.Asked)
	}
	add(three.Lost == 0 && three.Doubled == 0 && three.Asked > 0, "lost, answered or done twice", "0", count(three), count(one))
	add(three.Told <= three.Asked/verdictTold, "answered, but with what became of it", "1 % at most", told(three), told(one))
	if !short {
		add(three.share() >= verdictServed && three.share() >= one.share(), "served within 30 s", "99 %, and no less than one gateway",
			fmt.Sprintf("%.2f %%", 100*three.share()), fmt.Sprintf("%.2f %%", 100*one.share()))
		for _, name := range []string{phaseCrash, phaseNode} {
			if three.Phases[name] == nil {
				continue // --faults
			}
			t, o := three.Phases[name].Recovery, one.Phases[name].Recovery
			ok := t >= 0 && t <= verdictRecovery.Seconds() && (o < 0 || t <= o/verdictThird)
			add(ok, "recovery: "+name, "10 s, and a third of one gateway's", seconds(t), seconds(o))
		}
		t, o := three.Phases[phaseQuiet].P95, one.Phases[phaseQuiet].P95
		add(t <= ms(verdictP95), "an answer when all is well, p95", "500 ms", duration(t), duration(o))
		add(three.MemoryMB < verdictMemoryMB, "memory of all gateways", "2048 MB", fmt.Sprintf("%.0f MB", three.MemoryMB), fmt.Sprintf("%.0f MB", one.MemoryMB))
	}
	v.Go = true
	for _, c := range v.Criteria {
		v.Go = v.Go && c.OK
	}
}

// print shows what each form did, and then the verdict.
func (v *verdictReport) print(p *printer, forms []verdictForm) {
	header := []string{"PHASE"}
	for _, form := range forms {
		name := strings.ToUpper(form.name)
		header = append(header, name+": SERVED", "P50", "P95", "RECOVERED AFTER")
	}
	t := newTable(header...)
	for _, name := range v.Forms[forms[0].key].order {
		row := []any{name}
		for _, form := range forms {
			x := v.Forms[form.key].Phases[name]
			row = append(row, fmt.Sprintf("%d/%d", x.Served, x.Asked), duration(x.P50), duration(x.P95), seconds(x.Recovery))
		}
		t.add(row...)
	}
	p.table(t, "")
	p.printf("\n")
	t = newTable("WHAT A QUIET QUESTION COSTS", "PROCESSOR: GATEWAYS", "SERVERS", "RAFT ENTRIES", "MEMORY OF GATEWAYS")
	for _, form := range forms {
		f := v.Forms[form.key]
		t.add(f.Name, fmt.Sprintf("%.1f ms", f.GatewaysCPU), fmt.Sprintf("%.1f ms", f.ServersCPU), fmt.Sprintf("%.1f", f.Writes), fmt.Sprintf("%.0f MB", f.MemoryMB))
	}
	p.table(t, "")
	p.printf("\n")
	t = newTable("THRESHOLD", "NEEDED", "THREE GATEWAYS", "ONE GATEWAY", "")
	for _, c := range v.Criteria {
		mark := cell{"ok", green}
		if !c.OK {
			mark = cell{"missed", red}
		}
		t.add(c.What, c.Needed, c.Three, c.One, mark)
	}
	p.table(t, "")
	said, colour := "GO: three gateways are worth it, by these thresholds", green
	switch {
	case len(forms) == 1 && v.Go:
		said = "OK: nothing was lost or done twice; what three gateways are worth needs the whole run"
	case len(forms) == 1:
		said, colour = "NOT OK: see above", red
	case !v.Go:
		said, colour = "NO GO: stay with one gateway, by these thresholds", red
	}
	p.printf("\n%s\n", p.paint(colour, said))
}
