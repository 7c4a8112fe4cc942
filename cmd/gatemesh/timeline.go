package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// eventColours are those of the timeline; what is not named here is plain.
var eventColours = map[string]colour{
	bus.EventQueued: yellow, bus.EventDelivered: blue, bus.EventAcked: green, bus.EventReplied: bold,
	bus.EventFailed: red, bus.EventRetry: yellow, bus.EventDeadLetter: red, bus.EventRefused: red, bus.EventGap: red,
	bus.EventReceipt: dim, bus.EventDuplicate: dim, bus.EventEffect: cyan, bus.EventOwned: cyan, bus.EventReleased: cyan, bus.EventDeposed: red,
	bus.EventStoreDown: red, bus.EventStoreUp: green,
}

// A timeline prints events, one a line: time, gateway, what happened, which message, from
// and to, and why.
type timeline struct {
	p *printer
	// start is what the milliseconds count from; zero: the time of day is shown.
	start time.Time
	// gateways widens the column of names.
	gateways int
}

// noStart makes a timeline show the time of day.
var noStart time.Time

func newTimeline(p *printer, start time.Time, gateways ...string) *timeline {
	t := &timeline{p: p, start: start, gateways: 13}
	for _, g := range gateways {
		t.gateways = max(t.gateways, len(g))
	}
	return t
}

func (t *timeline) print(ev bus.Event) { t.p.printf("%s\n", t.line(ev)) }

func (t *timeline) line(ev bus.Event) string {
	when := ev.At.Local().Format("15:04:05.000")
	// Events have whole milliseconds, so the first may seem to be before the start.
	if !t.start.IsZero() {
		when = fmt.Sprintf("%8.0f ms", max(0, millis(ev.At.Sub(t.start))))
	}
	parts := []string{
		t.p.paint(dim, when),
		fmt.Sprintf("%-*s", t.gateways, printable(ev.Gateway)),
		t.p.paint(eventColours[ev.Event], fmt.Sprintf("%-11s", printable(ev.Event))),
	}
	if ev.MessageID != "" {
		parts = append(parts, t.p.paint(dim, shortID(ev.MessageID)))
	}
	parts = append(parts, printable(eventRoute(ev)))
	if ev.Capability != "" && ev.Event == bus.EventQueued {
		parts = append(parts, "["+printable(ev.Capability)+"]")
	}
	if note := eventNote(ev); note != "" {
		parts = append(parts, t.p.paint(dim, printable(note)))
	}
	return strings.TrimRight(strings.Join(parts, "  "), " ")
}

// eventRoute says between whom: from -> to, without the gateway that the line names already.
func eventRoute(ev bus.Event) string {
	from, _, _ := strings.Cut(ev.From, "@")
	switch {
	case from == "" && ev.To == "":
		return ""
	case from == "":
		return ev.To
	}
	return from + " -> " + ev.To
}

// eventNote is what an event has to say beside its name.
func eventNote(ev bus.Event) string {
	var notes []string
	switch {
	case ev.Event == bus.EventReceipt && ev.State != "":
		notes = append(notes, string(ev.State)+" by "+ev.By)
	case ev.By != "" && ev.By != ev.Gateway:
		notes = append(notes, "by "+ev.By)
	}
	if ev.InReplyTo != "" {
		notes = append(notes, "answers "+shortID(ev.InReplyTo))
	}
	if ev.Attempt > 1 {
		notes = append(notes, fmt.Sprintf("attempt %d", ev.Attempt))
	}
	if ev.Class != "" {
		notes = append(notes, string(ev.Class))
	}
	if ev.Reason != "" {
		notes = append(notes, ev.Reason)
	}
	return strings.Join(notes, ", ")
}

// shortID is the end of an id: that part is random, while ids made in one second
// begin alike. "message show" takes it.
func shortID(id string) string {
	if len(id) <= 8 {
		return id
	}
	return id[len(id)-8:]
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
