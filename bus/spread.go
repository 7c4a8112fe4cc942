package bus

import (
	"maps"
	"slices"
)

// loads are how many duties each gateway has. A hash alone spreads many duties evenly; a mesh has a handful, and with those it puts all
// on one gateway now and then.
type loads map[string]int

// loadsLocked counts what is owned now. A gateway's own inbox is no duty. el.mu is held.
func (el *elector) loadsLocked() loads {
	l := loads{}
	for id, o := range el.owners {
		if id != o.Gateway {
			l[o.Gateway]++
		}
	}
	return l
}

// without is the loads as if a gateway had one duty less.
func (l loads) without(gw string) loads {
	if l[gw] == 0 {
		return l
	}
	l = maps.Clone(l)
	l[gw]--
	return l
}

// freeLines are the lines for all inboxes that are free, as if they were taken one after the other, by name, each by the first that is there. Gateways with the
// same picture make the same plan, so nobody has to ask.
type freeLines map[string][]Candidate

// freeLinesLocked makes the plan of now. el.mu is held.
func (el *elector) freeLinesLocked() freeLines {
	free := map[string]bool{}
	for id := range el.serving {
		free[id] = true
	}
	for id := range el.serves {
		free[id] = true
	}
	lines, l := freeLines{}, el.loadsLocked()
	for _, id := range slices.Sorted(maps.Keys(free)) {
		if _, owned := el.owners[id]; owned || id == el.b.cfg.Gateway || el.live[id] {
			continue
		}
		line := el.lineWith(id, l)
		lines[id] = line
		if gw := firstBut(line, ""); gw != "" {
			l[gw]++
		}
	}
	return lines
}

// lineLocked lists who may own an inbox, best choice first; el.mu is held.
func (el *elector) lineLocked(id string) []Candidate {
	o, owned := el.owners[id]
	if !owned {
		if line, ok := el.freeLinesLocked()[id]; ok {
			return line
		}
	}
	return el.lineWith(id, el.loadsLocked().without(o.Gateway))
}

// nextLocked is who takes an inbox when its owner gives it up; "": nobody that is there. el.mu is held.
func (el *elector) nextLocked(id, owner string) string {
	return firstBut(el.lineLocked(id), owner)
}

// nextWith is nextLocked where several inboxes change hands at once: what each gets counts for the next one. el.mu is held.
func (el *elector) nextWith(id, owner string, l loads) string {
	to := firstBut(el.lineWith(id, l), owner)
	if to != "" {
		l[to]++
	}
	return to
}

// firstBut is the first in line that is there and is not the one that gives it up; "": nobody.
func firstBut(line []Candidate, owner string) string {
	for _, c := range line {
		if c.Live && c.Gateway != owner {
			return c.Gateway
		}
	}
	return ""
}
