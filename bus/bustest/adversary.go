package bustest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// Who attacks, in the words of the threat model.
const (
	// Writer reads and writes anything in the store, and holds no key.
	Writer = "A"
	// Thief also has the key of one gateway.
	Thief = "B"
)

// What came of an attack.
const (
	// Refused: nothing was believed, and nothing legitimate was lost.
	Refused = "refused"
	// Harmless: it changed nothing, or was undone.
	Harmless = "no effect"
	// Denied: mail was lost by it, and its sender was told.
	Denied = "denial, told"
	// Breached: something forged was believed, or mail was lost or doubled in silence.
	Breached = "BREACHED"
)

// Attack is one thing that an adversary tried.
type Attack struct {
	Name string `json:"name"`
	// By is [Writer] or [Thief]; Tried says what they did.
	By    string `json:"by"`
	Tried string `json:"tried"`
	// Outcome is what came of it, and Seen where it was noticed.
	Outcome string   `json:"outcome"`
	Seen    []string `json:"seen"`
}

// Campaign is what an adversary achieved, and what became of the traffic beside.
type Campaign struct {
	Attacks []Attack `json:"attacks"`
	// Sent, Lost and Doubled are of a mesh in the same store that nobody attacked.
	Sent    int `json:"sent"`
	Lost    int `json:"lost"`
	Doubled int `json:"doubled"`
}

// Adversary plays all attacks on a store, one after another, with traffic beside them, and fails where one succeeds or is
// not noticed. progress, if not nil, is told of each.
func Adversary(t *testing.T, open func(t *testing.T) func() bus.Store, progress func(Attack)) Campaign {
	var c Campaign
	opened := asAnybody(open)
	beside := newWorld(t, opened(t))
	stop := beside.traffic(&c)
	for _, scene := range attacks {
		t.Run(scene.name, func(t *testing.T) {
			w := newWorld(t, opened(t))
			w.book = &book{scene: scene.name}
			defer func() {
				w.book.close(w)
				c.Attacks = append(c.Attacks, w.book.attacks...)
				for _, a := range w.book.attacks {
					if progress != nil {
						progress(a)
					}
				}
			}()
			scene.run(w)
		})
	}
	stop()
	if c.Lost != 0 || c.Doubled != 0 {
		t.Errorf("traffic beside the attacks: of %d messages %d were lost and %d doubled", c.Sent, c.Lost, c.Doubled)
	}
	return c
}

func newWorld(t *testing.T, open func(string) bus.Store) *world {
	w := &world{T: t, open: open, tag: strings.ReplaceAll(uuid.NewString()[:8], "-", "")}
	_, w.slow = w.open("").(bus.Registrar)
	w.trust = newTrusted(w.tag)
	return w
}

// traffic has messages go both ways until stop is called, which counts.
func (w *world) traffic(c *Campaign) (stop func()) {
	left, right := w.node("left"), w.node("right")
	var atLeft, atRight tally
	left.serve("l", atLeft.handle)
	right.serve("r", atRight.handle)
	end := make(chan struct{})
	var wg sync.WaitGroup
	sent := make([][]string, 2)
	for i, way := range []struct {
		from *node
		to   string
	}{{left, "r"}, {right, "l"}} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				text := fmt.Sprintf("%s %d", way.to, n)
				ctx, cancel := context.WithTimeout(context.Background(), longest)
				s, err := way.from.Send(ctx, way.from.out(way.to, text))
				if err == nil {
					_, err = way.from.Await(ctx, s.MessageID, acked)
				}
				cancel()
				if err != nil {
					w.Errorf("traffic beside the attacks: %s: %v", text, err)
					return
				}
				sent[i] = append(sent[i], text)
			}
		}()
	}
	return func() {
		close(end)
		wg.Wait()
		for i, got := range []*tally{&atRight, &atLeft} {
			got.mu.Lock()
			for _, text := range sent[i] {
				c.Sent++
				switch n := got.got[text]; {
				case n == 0:
					c.Lost++
				case n > 1:
					c.Doubled++
				}
			}
			got.mu.Unlock()
		}
	}
}

// book is where the attacks of a scene are written down.
type book struct {
	scene   string
	attacks []Attack
	failed  bool
	silent  bool
}

// attack begins an attack and ends the one before it. Outside of a campaign it does nothing.
func (w *world) attack(by, name, tried string) {
	if w.book == nil {
		return
	}
	w.book.close(w)
	w.book.attacks = append(w.book.attacks, Attack{Name: w.book.scene + ": " + name, By: by, Tried: tried, Seen: []string{}})
	w.book.silent = false
}

// close judges the attack that is under way: by what failed since it began, and by who noticed it.
func (b *book) close(w *world) {
	if len(b.attacks) == 0 || b.attacks[len(b.attacks)-1].Outcome == Breached {
		b.failed = w.Failed()
		return
	}
	a := &b.attacks[len(b.attacks)-1]
	switch {
	case w.Failed() && !b.failed:
		a.Outcome = Breached
	case a.Outcome != "":
	case len(a.Seen) > 0:
		a.Outcome = Refused
	case b.silent:
		a.Outcome = Harmless
	default:
		w.Errorf("attack %q was noticed nowhere", a.Name)
		a.Outcome = Breached
	}
	b.failed = w.Failed()
}

// seen notes where an attack was noticed.
func (w *world) seen(where string) {
	if w.book == nil || len(w.book.attacks) == 0 {
		return
	}
	a := &w.book.attacks[len(w.book.attacks)-1]
	if !slices.Contains(a.Seen, where) {
		a.Seen = append(a.Seen, where)
	}
}

// harmless says that the attack changes nothing that anybody would have to be told of.
func (w *world) harmless() {
	if w.book != nil {
		w.book.silent = true
	}
}

// denied says that the attack cost mail, and that its sender knows.
func (w *world) denied(sender *node, class envelope.Class) {
	if w.book == nil || len(w.book.attacks) == 0 {
		return
	}
	w.book.attacks[len(w.book.attacks)-1].Outcome = Denied
	w.seen(fmt.Sprintf("receipt of %s at %s", class, strings.TrimSuffix(sender.Gateway(), "-"+w.tag)))
}

// gives waits until a message is dead for its sender, as the class says.
func (n *node) gives(id string, class envelope.Class) {
	n.w.Helper()
	if tr := n.until(id, dead); tr.Facts.Class != class {
		n.w.Errorf("message %s: class %s, want %s (%s)", id, tr.Facts.Class, class, tr.Facts.Reason)
	}
	n.w.denied(n, class)
}
