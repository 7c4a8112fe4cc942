package bus

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// door lets so many handlers of an inbox run at the same time. Who waits is let in by priority, then by age;
// that is exact among the messages that wait here, which are those that the owner has read from their lanes.
type door struct {
	mu sync.Mutex
	// places is how many there are, and free how many nobody has: less than none after places were taken away.
	places  int
	free    int
	waiting waiters
	used    sync.Pool // of waiters that were let in
	arrived uint64
}

func newDoor(places int) *door {
	d := &door{places: places, free: places}
	d.used.New = func() any { return &waiter{in: make(chan struct{}, 1)} }
	return d
}

// waiter is one message at the door.
type waiter struct {
	priority int
	created  time.Time
	arrived  uint64
	at       int           // its place in the heap; -1: let in
	in       chan struct{} // has room for the one that lets in
}

// enter waits for a place, and reports whether there was one before ctx ended.
func (d *door) enter(ctx context.Context, j *job) bool {
	if ctx.Err() != nil {
		return false
	}
	d.mu.Lock()
	if d.free > 0 {
		d.free--
		d.mu.Unlock()
		return true
	}
	d.arrived++
	w := d.used.Get().(*waiter)
	w.priority, w.created, w.arrived = j.env.Priority(), j.env.CreatedAt.Time, d.arrived
	heap.Push(&d.waiting, w)
	d.mu.Unlock()
	j.mu.Lock()
	j.atDoor = true
	j.mu.Unlock()
	defer func() {
		j.mu.Lock()
		j.atDoor = false
		j.mu.Unlock()
	}()
	select {
	case <-w.in:
		d.used.Put(w)
		return true
	case <-ctx.Done():
	}
	d.mu.Lock()
	let := w.at < 0
	if !let {
		heap.Remove(&d.waiting, w.at)
	}
	d.mu.Unlock()
	if let {
		d.leave()
	}
	return false
}

// leave gives a place to the first who waits.
func (d *door) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free++
	d.letInLocked()
}

// resize changes how many places there are. Who is in stays in.
func (d *door) resize(places int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free += places - d.places
	d.places = places
	d.letInLocked()
}

// push takes a place whether there is one or not, for what runs already.
func (d *door) push() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free--
}

func (d *door) size() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.places
}

func (d *door) letInLocked() {
	for d.free > 0 && len(d.waiting) > 0 {
		d.free--
		heap.Pop(&d.waiting).(*waiter).in <- struct{}{}
	}
}

// waiters is a heap: who goes first is at its top.
type waiters []*waiter

func (q waiters) Len() int { return len(q) }

func (q waiters) Less(a, b int) bool {
	x, y := q[a], q[b]
	switch {
	case x.priority != y.priority:
		return x.priority > y.priority
	case !x.created.Equal(y.created):
		return x.created.Before(y.created)
	}
	return x.arrived < y.arrived
}

func (q waiters) Swap(a, b int) {
	q[a], q[b] = q[b], q[a]
	q[a].at, q[b].at = a, b
}

func (q *waiters) Push(x any) {
	w := x.(*waiter)
	w.at = len(*q)
	*q = append(*q, w)
}

func (q *waiters) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	w.at = -1
	(*q)[last] = nil
	*q = (*q)[:last]
	return w
}

// delayed is what is to be begun later. One goroutine waits for all of it, so that what waits costs
// its header and nothing more.
type delayed struct {
	due  alarms
	kick chan struct{} // capacity 1; nil until the first alarm
}

type alarm struct {
	at    time.Time
	begin func() // called with ib.mu held
}

// delayLocked calls begin at a moment, unless intake ends before.
func (ib *inbox) delayLocked(at time.Time, begin func()) {
	if ib.delayed.kick == nil {
		ib.delayed.kick = make(chan struct{}, 1)
		ib.wg.Add(1)
		go func() {
			defer ib.wg.Done()
			ib.runDelayed(ib.delayed.kick)
		}()
	}
	heap.Push(&ib.delayed.due, alarm{at, begin})
	select {
	case ib.delayed.kick <- struct{}{}:
	default:
	}
}

func (ib *inbox) runDelayed(kick <-chan struct{}) {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-kick:
		case <-t.C:
		case <-ib.intake.Done():
			return
		}
		ib.mu.Lock()
		for len(ib.delayed.due) > 0 && !ib.b.now().Before(ib.delayed.due[0].at) {
			heap.Pop(&ib.delayed.due).(alarm).begin()
		}
		if len(ib.delayed.due) > 0 {
			t.Reset(ib.delayed.due[0].at.Sub(ib.b.now()))
		}
		ib.mu.Unlock()
	}
}

type alarms []alarm

func (q alarms) Len() int           { return len(q) }
func (q alarms) Less(a, b int) bool { return q[a].at.Before(q[b].at) }
func (q alarms) Swap(a, b int)      { q[a], q[b] = q[b], q[a] }
func (q *alarms) Push(x any)        { *q = append(*q, x.(alarm)) }
func (q *alarms) Pop() any {
	last := len(*q) - 1
	a := (*q)[last]
	(*q)[last] = alarm{}
	*q = (*q)[:last]
	return a
}
