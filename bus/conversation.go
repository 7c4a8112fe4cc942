package bus

import (
	"time"
)

// conversation is the messages of one (source gateway, conversation), or of one conversation, which are handled one after another.
type conversation struct {
	key   convKey
	queue []*job
	// first is where a queue begins that mostly holds no other.
	first [1]*job
	// last is the newest that was put in, in the queue or out of it.
	last *job
	// asleep: nothing of it is handled before its first message is due.
	asleep bool
}

// convKey names a conversation of an inbox; from is empty where it is one for all gateways.
type convKey struct{ from, id string }

func (ib *inbox) conversationOf(j *job) convKey {
	if ib.spec.OneOrder {
		return convKey{id: j.env.ConversationID}
	}
	return convKey{j.src.from, j.env.ConversationID}
}

// toConversation puts a message behind the others of its conversation, and returns how many those are.
func (ib *inbox) toConversation(j *job) int {
	key := ib.conversationOf(j)
	ib.mu.Lock()
	defer ib.mu.Unlock()
	c := ib.convs[key]
	if c != nil {
		j.mu.Lock()
		j.ahead = c.last
		j.mu.Unlock()
		c.queue, c.last = append(c.queue, j), j
		return len(c.queue)
	}
	c = &conversation{key: key, first: [1]*job{j}, last: j}
	c.queue = c.first[:]
	ib.convs[key] = c
	if d := j.due(); d > 0 {
		c.asleep = true
		ib.delayLocked(ib.b.now().Add(d), func() {
			if c.asleep {
				c.asleep, j.waited = false, true
				ib.converse(c)
			}
		})
		return 0
	}
	ib.converse(c)
	return 0
}

// crew are goroutines that have handled a conversation and wait for another one: a new goroutine for each message would spend
// a twentieth of what a message costs on growing its stack. ib.mu guards them.
type crew struct {
	idle []chan *conversation
	// least is how many were idle at the least since they were last looked at: those are too many.
	least int
	look  *time.Timer
}

const (
	// maxIdle bounds them; idleFor is how often those go of which nobody had need.
	maxIdle = 512
	idleFor = 5 * time.Second
)

// converse handles the messages of a conversation until there are none left; ib.mu is held.
func (ib *inbox) converse(c *conversation) {
	w := &ib.crew
	if n := len(w.idle); n > 0 {
		w.idle[n-1] <- c // it has room for one
		w.idle = w.idle[:n-1]
		w.least = min(w.least, n-1)
		return
	}
	ib.wg.Add(1)
	go ib.converseFrom(c, nil, nil)
}

// converseFrom handles conversations, beginning with what came of an attempt at a message of the first one if that runs already. It counts in
// ib.wg until another goroutine goes on in its place: that one counts then.
func (ib *inbox) converseFrom(c *conversation, at *job, o *outcome) {
	var next chan *conversation
	for c != nil {
		if at != nil && at.handle(o) {
			return
		}
		at, o = nil, nil
		for {
			ib.mu.Lock()
			if len(c.queue) == 0 || ib.intake.Err() != nil {
				delete(ib.convs, c.key)
				break
			}
			j := c.queue[0]
			c.queue[0] = nil // a conversation that goes on for ever must not keep it
			c.queue = c.queue[1:]
			ib.mu.Unlock()
			j.conv = c
			if j.handle(nil) {
				return
			}
		}
		if next == nil {
			next = make(chan *conversation, 1)
		}
		waits := ib.waitLocked(next)
		ib.mu.Unlock()
		if c = nil; !waits {
			break
		}
		select {
		case c = <-next:
		case <-ib.intake.Done():
			ib.mu.Lock()
			ib.crew.forget(next)
			ib.mu.Unlock()
			select {
			case c = <-next: // it was given one before
			default:
			}
		}
	}
	ib.wg.Done()
}

// waitLocked puts a worker among those that wait, and reports whether it is to wait.
func (ib *inbox) waitLocked(next chan *conversation) bool {
	w := &ib.crew
	if ib.intake.Err() != nil || len(w.idle) >= maxIdle {
		return false
	}
	w.idle = append(w.idle, next)
	if w.look == nil {
		w.look = time.AfterFunc(idleFor, ib.thin)
	}
	return true
}

// forget takes a worker out of those that wait, if it is among them.
func (w *crew) forget(next chan *conversation) {
	for i, x := range w.idle {
		if x == next {
			w.idle = append(w.idle[:i], w.idle[i+1:]...)
			return
		}
	}
}

// thin ends the workers of which nobody had need.
func (ib *inbox) thin() {
	ib.mu.Lock()
	defer ib.mu.Unlock()
	w := &ib.crew
	n := min(w.least, len(w.idle))
	for _, next := range w.idle[:n] {
		next <- nil
	}
	w.idle = append([]chan *conversation(nil), w.idle[n:]...)
	w.least, w.look = len(w.idle), nil
	if w.least > 0 && ib.intake.Err() == nil {
		w.look = time.AfterFunc(idleFor, ib.thin)
	}
}
