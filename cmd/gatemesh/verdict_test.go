package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// good is a report in which three gateways keep every threshold.
func good() *verdictReport {
	phases := func(recovery, p95 float64) map[string]*verdictPhaseFigures {
		all := map[string]*verdictPhaseFigures{}
		for _, name := range []string{phaseQuiet, phaseCrash, phaseNode} {
			all[name] = &verdictPhaseFigures{Asked: 100, Served: 100, P95: p95, Recovery: recovery}
		}
		return all
	}
	order := []string{phaseQuiet, phaseCrash, phaseNode}
	return &verdictReport{Forms: map[string]*verdictFigures{
		verdictMesh.key: {Asked: 300, Served: 300, Phases: phases(6, 100), order: order, MemoryMB: 200},
		verdictOne.key:  {Asked: 300, Served: 200, Phases: phases(60, 100), order: order, MemoryMB: 80},
	}}
}

// Each threshold decides: whatever is missed, it is no go, and the miss is named.
func TestVerdictJudges(t *testing.T) {
	if v := good(); !judged(v, false).Go || len(v.Criteria) != 7 {
		t.Fatalf("%+v", v)
	}
	for what, spoil := range map[string]func(three, one *verdictFigures){
		"lost":               func(three, _ *verdictFigures) { three.Lost = 1 },
		"done twice":         func(three, _ *verdictFigures) { three.Doubled = 1 },
		"answered, but":      func(three, _ *verdictFigures) { three.Told = 4 },
		"served":             func(three, _ *verdictFigures) { three.Served = 296 },
		"served within 30 s": func(_, one *verdictFigures) { one.Served = 301 },
		"recovery: crash":    func(three, _ *verdictFigures) { three.Phases[phaseCrash].Recovery = 10.1 },
		"recovery: node":     func(three, _ *verdictFigures) { three.Phases[phaseNode].Recovery = -1 },
		"recovery: node ":    func(_, one *verdictFigures) { one.Phases[phaseNode].Recovery = 17 },
		"when all is well":   func(three, _ *verdictFigures) { three.Phases[phaseQuiet].P95 = 501 },
		"memory":             func(three, _ *verdictFigures) { three.MemoryMB = 2048 },
	} {
		v := good()
		spoil(v.Forms[verdictMesh.key], v.Forms[verdictOne.key])
		judged(v, false)
		missed := ""
		for _, c := range v.Criteria {
			if !c.OK {
				missed += c.What + ";"
			}
		}
		if v.Go || !strings.Contains(missed, strings.TrimSuffix(what, " ")) {
			t.Errorf("%s: go %v, missed %q", what, v.Go, missed)
		}
		var out bytes.Buffer
		v.print(newPrinter(&out, func(string) (string, bool) { return "", false }), []verdictForm{verdictOne, verdictMesh})
		if !strings.Contains(out.String(), "NO GO") || !strings.Contains(out.String(), "missed") {
			t.Errorf("%s: it does not say so:\n%s", what, out.String())
		}
	}
	nothing := &verdictReport{Forms: map[string]*verdictFigures{verdictMesh.key: {Phases: map[string]*verdictPhaseFigures{}}}}
	if judged(nothing, true).Go {
		t.Error("nobody asked anything, and it is a go")
	}
}

func judged(v *verdictReport, short bool) *verdictReport {
	v.judge(short)
	return v
}

func TestVerdictCountsQuestions(t *testing.T) {
	for _, x := range []struct {
		noted               bool
		answers, done       int
		lost, doubled, told int
	}{
		{true, 1, 1, 0, 0, 0},
		{false, 1, 0, 0, 0, 1},
		{false, 1, 1, 0, 0, 1}, // nobody knew, and it was done
		{false, 0, 0, 1, 0, 0},
		{false, 0, 1, 1, 0, 0}, // done, and nobody told
		{true, 1, 0, 1, 0, 0},  // answered for nothing
		{true, 2, 1, 0, 1, 0},
		{true, 1, 2, 0, 1, 0},
	} {
		var f verdictFigures
		f.judge(&verdictAsked{noted: x.noted}, x.answers, x.done)
		if f.Lost != x.lost || f.Doubled != x.doubled || f.Told != x.told {
			t.Errorf("%+v: %+v", x, f)
		}
	}
}

// Recovery is the last moment at which somebody who waited for more than 2 s had the answer, from the beginning of the phase.
func TestVerdictPhase(t *testing.T) {
	begin := time.Now()
	at := func(asked, took time.Duration, noted bool) *verdictAsked {
		return &verdictAsked{at: begin.Add(asked), took: took, noted: noted}
	}
	for _, x := range []struct {
		asked    []*verdictAsked
		served   int
		recovery float64
	}{
		{[]*verdictAsked{at(0, time.Second, true), at(time.Second, 2*time.Second, true)}, 2, 0},
		{[]*verdictAsked{at(0, 5*time.Second, true), at(2*time.Second, 4*time.Second, true), at(9*time.Second, time.Second, true)}, 3, 6},
		{[]*verdictAsked{at(0, 40*time.Second, true), at(2*time.Second, 31*time.Second, true), at(5*time.Second, 30*time.Second, true)}, 1, 40},
		{[]*verdictAsked{at(0, time.Second, false), at(time.Second, time.Second, true)}, 1, 0},
		{[]*verdictAsked{at(0, 0, false), at(time.Second, 5*time.Second, true)}, 1, -1},
	} {
		f := &verdictFigures{Phases: map[string]*verdictPhaseFigures{}}
		got := f.add(verdictPhase{name: "x"}, x.asked)
		if got.Served != x.served || got.Recovery != x.recovery || f.Asked != len(x.asked) || f.Served != x.served {
			t.Errorf("%v: %+v", x.asked, got)
		}
	}
}

func TestVerdictRefusesBadFlags(t *testing.T) {
	for _, args := range [][]string{{"verdict", "--repair", "1s"}, {"verdict", "--restart", "0"}, {"verdict", "now"}, {"verdict", "--faults", "flood"}} {
		var out, errs bytes.Buffer
		a := newApp()
		a.out, a.err = &out, &errs
		if code := run(args, a); code != exitUsage {
			t.Errorf("%q: status %d, %s", args, code, errs.String())
		}
	}
}
