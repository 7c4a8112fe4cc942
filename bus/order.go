package bus

import (
	"slices"
	"sort"
	"sync"
	"time"
)

// gathering holds back what waits in the lanes when a term begins, until all of them have been read.
type gathering struct {
	mu sync.Mutex
	// open: lanes are still read for the first time.
	open bool
	// left are the lanes that have not been read yet.
	left map[string]bool
	jobs []*job
}

// begin names the lanes that mail can wait in, once.
func (ib *inbox) beginGathering(from []string) {
	g := &ib.gather
	g.mu.Lock()
	g.left = map[string]bool{}
	for _, f := range from {
		g.left[f] = true
	}
	none := len(g.left) == 0
	g.mu.Unlock()
	if none {
		ib.endGathering()
	}
}

// gathered notes that what waited in a lane has been read, or as much of it as memory holds.
func (ib *inbox) gathered(from string) {
	g := &ib.gather
	g.mu.Lock()
	was := g.left[from]
	delete(g.left, from)
	last := was && len(g.left) == 0
	g.mu.Unlock()
	if last {
		ib.endGathering()
	}
}

// endGathering hands what waited to its conversations, oldest first.
func (ib *inbox) endGathering() {
	g := &ib.gather
	g.mu.Lock()
	jobs := g.jobs
	g.jobs, g.open = nil, false
	ib.b.tracks.beginAll(jobs)
	for _, j := range inOneOrder(jobs) {
		ib.admitted(j)
	}
	g.mu.Unlock()
	ib.patient(jobs)
	close(ib.caughtUp)
}

// taken hands messages that were read to their conversations, or keeps them until all lanes have been read.
func (ib *inbox) takenIn(jobs []*job) {
	if len(jobs) == 0 {
		return
	}
	if ib.spec.OneOrder {
		g := &ib.gather
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.open {
			g.jobs = append(g.jobs, jobs...)
			return
		}
	}
	ib.b.tracks.beginAll(jobs)
	for _, j := range jobs {
		ib.admitted(j)
	}
	ib.patient(jobs)
}

// admitted gives a message that was read its place.
func (ib *inbox) admitted(j *job) {
	due := j.del.NextAttemptAt == nil
	ib.dispatch(j)
	if !due {
		j.parkWaiting() // the lane goes on without it, and its memory is free until then
	}
}

// patient gives messages records of their own if they still wait in a moment.
func (ib *inbox) patient(jobs []*job) {
	if len(jobs) == 0 {
		return
	}
	time.AfterFunc(patience, func() {
		for _, j := range jobs {
			j.parkWaiting()
		}
	})
}

// inOneOrder merges messages of several lanes: within a lane its order stays, and of the first ones of all lanes the
// one that was made first (by its sender's clock) comes next.
func inOneOrder(jobs []*job) []*job {
	byLane := map[*source][]*job{}
	var lanes []*source
	for _, j := range jobs {
		if byLane[j.src] == nil {
			lanes = append(lanes, j.src)
		}
		byLane[j.src] = append(byLane[j.src], j)
	}
	sort.Slice(lanes, func(a, b int) bool { return lanes[a].from < lanes[b].from })
	for _, l := range lanes {
		slices.SortStableFunc(byLane[l], placeInLane)
	}
	if len(lanes) == 1 {
		return byLane[lanes[0]]
	}
	all := make([]*job, 0, len(jobs))
	for len(all) < len(jobs) {
		var next *source
		for _, l := range lanes {
			if rest := byLane[l]; len(rest) > 0 && (next == nil || rest[0].env.CreatedAt.Before(byLane[next][0].env.CreatedAt.Time)) {
				next = l
			}
		}
		all, byLane[next] = append(all, byLane[next][0]), byLane[next][1:]
	}
	return all
}

func placeInLane(a, b *job) int {
	switch {
	case a.lane != b.lane && a.lane < b.lane:
		return -1
	case a.lane != b.lane:
		return 1
	default:
		return a.item - b.item
	}
}
