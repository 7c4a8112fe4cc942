package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

func noEnv(string) (string, bool) { return "", false }

func TestTable(t *testing.T) {
	rows := newTable("AGENT", "STATUS")
	rows.add("bobby", cell{"active", green})
	rows.add("x\x1b[31m\n", "")
	var out bytes.Buffer
	p := newPrinter(&out, noEnv)
	p.table(rows, "none")
	if got, want := out.String(), "AGENT\tSTATUS\nbobby\tactive\nx\uFFFD[31m \t-\n"; got != want {
		t.Errorf("plain:\n%q, want\n%q", got, want)
	}
	out.Reset()
	p.terminal, p.colour = true, true
	p.table(rows, "none")
	if got, want := out.String(), "\x1b[1mAGENT\x1b[0m    \x1b[1mSTATUS\x1b[0m\nbobby    \x1b[32mactive\x1b[0m\nx\uFFFD[31m   -\n"; got != want {
		t.Errorf("terminal:\n%q, want\n%q", got, want)
	}
	out.Reset()
	p.table(newTable("A"), "no agents")
	if out.String() != "no agents\n" {
		t.Errorf("empty: %q", out.String())
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain text, größer, 日本":     "plain text, größer, 日本",
		"a\x1b]0;title\a":            "a\uFFFD]0;title\uFFFD",
		"a\nb\tc\r":                  "a b c ",
		"a\u202Etxt.exe\u2066\u009b": "a\uFFFDtxt.exe\uFFFD\uFFFD",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
	if got := printableText("a\r\nb\x1b\n"); got != "a\nb\uFFFD\n" {
		t.Errorf("printableText: %q", got)
	}
}

func TestTimelineLine(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ms int) envelope.Time { return envelope.At(start.Add(time.Duration(ms) * time.Millisecond)) }
	tl := newTimeline(newPrinter(&bytes.Buffer{}, noEnv), start)
	const id = "0190aaaa-0000-7000-8000-0000deadbeef"
	for _, c := range []struct {
		ev   bus.Event
		want string
	}{
		{bus.Event{Event: bus.EventQueued, At: at(3), Gateway: "jerry-gateway", MessageID: id, From: "jerry@jerry-gateway", To: "bobby", Capability: "infra.check"},
			"       3 ms  jerry-gateway  queued       deadbeef  jerry -> bobby  [infra.check]"},
		{bus.Event{Event: bus.EventFailed, At: at(12), Gateway: "bobby-gateway", MessageID: id, From: "jerry@jerry-gateway", To: "bobby", Attempt: 2, Class: "retry", Reason: "no\nway"},
			"      12 ms  bobby-gateway  failed       deadbeef  jerry -> bobby  attempt 2, retry, no way"},
		{bus.Event{Event: bus.EventReceipt, At: at(13), Gateway: "jerry-gateway", MessageID: id, From: "jerry@jerry-gateway", To: "bobby", State: envelope.Acked, By: "bobby-gateway"},
			"      13 ms  jerry-gateway  receipt      deadbeef  jerry -> bobby  acked by bobby-gateway"},
		{bus.Event{Event: bus.EventOwned, At: at(14), Gateway: "billy-gateway", To: "billy"},
			"      14 ms  billy-gateway  owned        billy"},
	} {
		if got := tl.line(c.ev); got != c.want {
			t.Errorf("line\n%q, want\n%q", got, c.want)
		}
	}
}

func TestShortID(t *testing.T) {
	if got := shortID("0190aaaa-0000-7000-8000-0000deadbeef"); got != "deadbeef" {
		t.Error(got)
	}
	if got := shortID("x"); got != "x" {
		t.Error(got)
	}
}

func TestIndent(t *testing.T) {
	if got := indent("a\nb\n"); got != "  a\n  b" {
		t.Errorf("%q", got)
	}
	if got := cut(strings.Repeat("ä", 10), 4); got != "äää…" {
		t.Errorf("%q", got)
	}
}

func TestInOrder(t *testing.T) {
	at := func(ms int) envelope.Time { return envelope.At(time.UnixMilli(int64(ms))) }
	events := []bus.Event{
		{Event: bus.EventDelivered, MessageID: "b", Gateway: "two", At: at(5)},
		{Event: bus.EventAcked, MessageID: "b", Gateway: "two", At: at(5)},
		{Event: bus.EventQueued, MessageID: "a", Gateway: "one", At: at(1)},
		{Event: bus.EventReceipt, MessageID: "a", Gateway: "one", At: at(5)},
		{Event: bus.EventQueued, MessageID: "b", Gateway: "one", At: at(6)},
	}
	inOrder(events)
	var got []string
	for _, ev := range events {
		got = append(got, ev.Event+" "+ev.MessageID)
	}
	if want := "queued a, queued b, delivered b, acked b, receipt a"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
}
