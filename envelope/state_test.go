package envelope

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// legal is the state machine once more, written down independently of Transitions:
// row from, column to, both in the order of States.
var legal = [5][5]bool{
	//           queued delivered acked failed dead
	/* queued */ {false, true, false, false, true},
	/* delivered */ {false, false, true, true, true},
	/* acked */ {false, false, false, false, false},
	/* failed */ {true, false, false, false, true},
	/* dead-letter */ {true, false, false, false, false},
}

func TestMoveMatrix(t *testing.T) {
	if want := []State{"queued", "delivered", "acked", "failed", "dead-letter"}; !slices.Equal(States, want) {
		t.Fatalf("States is %q, want %q", States, want)
	}
	all := append(slices.Clone(States), "", "QUEUED", "replied")
	for i, from := range all {
		for j, to := range all {
			want := i < len(legal) && j < len(legal) && legal[i][j]
			if got := CanMove(from, to); got != want {
				t.Errorf("CanMove(%q, %q) = %v", from, to, got)
			}
			d := Delivery{State: from, RetryCount: 2, Attempt: 3, NextAttemptAt: ptr(At(noon))}
			before := d
			err := d.Move(to, At(noon))
			switch {
			case want && (err != nil || d.State != to):
				t.Errorf("Move %q to %q: %v, now %q", from, to, err, d.State)
			case !want:
				var illegal *IllegalMoveError
				if !errors.As(err, &illegal) || *illegal != (IllegalMoveError{from, to}) {
					t.Errorf("Move %q to %q: got error %v", from, to, err)
				}
				if !reflect.DeepEqual(d, before) {
					t.Errorf("refused move %q to %q changed %+v to %+v", from, to, before, d)
				}
			}
		}
	}
}

func TestTransitionsTable(t *testing.T) {
	seen := map[[2]State]bool{}
	for _, tr := range Transitions {
		if seen[[2]State{tr.From, tr.To}] {
			t.Errorf("%s -> %s stands twice", tr.From, tr.To)
		}
		seen[[2]State{tr.From, tr.To}] = true
		if !slices.Contains(States, tr.From) || !slices.Contains(States, tr.To) || tr.When == "" {
			t.Errorf("bad transition %+v", tr)
		}
		want := "owner"
		if tr.From.Terminal() {
			want = "operator"
		}
		if tr.By != want {
			t.Errorf("%s -> %s is made by %q, want %q", tr.From, tr.To, tr.By, want)
		}
	}
	for _, s := range States {
		if want := s == "acked" || s == "dead-letter"; s.Terminal() != want {
			t.Errorf("%s.Terminal() = %v", s, !want)
		}
	}
}

// TestTableInDoc: the package comment lists the table, line by line.
func TestTableInDoc(t *testing.T) {
	line := regexp.MustCompile(`^\t(\S+) +-> (\S+) +(\S+) +(\S.*)$`)
	var got, want []string
	for _, l := range docLines(t) {
		if strings.Contains(l, "->") {
			m := line.FindStringSubmatch(l)
			if m == nil {
				t.Fatalf("doc.go: cannot read %q", l)
			}
			got = append(got, strings.Join(m[1:], " | "))
		}
	}
	for _, tr := range Transitions {
		want = append(want, fmt.Sprintf("%s | %s | %s | %s", tr.From, tr.To, tr.By, tr.When))
	}
	if !slices.Equal(got, want) {
		t.Errorf("doc.go lists\n%s\nTransitions holds\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestFieldsInDoc: the package comment explains every field of the envelope, in order.
func TestFieldsInDoc(t *testing.T) {
	field := regexp.MustCompile(`^\t([a-z0-9_]+) {2,}\S`)
	var got, want []string
	for _, l := range docLines(t) {
		if m := field.FindStringSubmatch(l); m != nil && !strings.Contains(l, "->") {
			got = append(got, m[1])
		}
	}
	for f := range reflect.TypeFor[Envelope]().Fields() {
		want = append(want, strings.Split(f.Tag.Get("json"), ",")[0])
	}
	if !slices.Equal(got, want) {
		t.Errorf("doc.go explains\n%q\nEnvelope has\n%q", got, want)
	}
}

func docLines(t *testing.T) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(f.Doc.Text(), "\n")
}

func TestMoveStamps(t *testing.T) {
	d := Delivery{State: Queued, QueuedAt: ptr(At(noon))}
	at := func(min int) Time { return At(noon.Add(time.Duration(min) * time.Minute)) }
	move := func(to State, min int) {
		t.Helper()
		if err := d.Move(to, at(min)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want Delivery) {
		t.Helper()
		if !reflect.DeepEqual(d, want) {
			t.Fatalf("got  %+v\nwant %+v", d, want)
		}
	}
	move(Delivered, 1)
	check(Delivery{State: Delivered, Attempt: 1, QueuedAt: ptr(at(0)), DeliveredAt: ptr(at(1))})
	move(Failed, 2)
	check(Delivery{State: Failed, Attempt: 1, RetryCount: 1, QueuedAt: ptr(at(0)), DeliveredAt: ptr(at(1))})
	move(Queued, 3)
	d.NextAttemptAt = ptr(at(4))
	copied := d
	move(Delivered, 5)
	check(Delivery{State: Delivered, Attempt: 2, RetryCount: 1, QueuedAt: ptr(at(3)), DeliveredAt: ptr(at(5))})
	if !copied.QueuedAt.Equal(at(3).Time) || !copied.DeliveredAt.Equal(at(1).Time) || copied.NextAttemptAt == nil {
		t.Errorf("moving d changed its copy %+v", copied)
	}
	move(Failed, 6)
	move(Queued, 7)
	d.NextAttemptAt = ptr(at(8))
	move(DeadLetter, 9)
	check(Delivery{State: DeadLetter, Attempt: 2, RetryCount: 2, QueuedAt: ptr(at(7)), DeliveredAt: ptr(at(5)), DeadAt: ptr(at(9))})
	move(Queued, 10)
	check(Delivery{State: Queued, Attempt: 2, RetryCount: 2, QueuedAt: ptr(at(10)), DeliveredAt: ptr(at(5))})
	move(Delivered, 11)
	move(Acked, 12)
	check(Delivery{State: Acked, Attempt: 3, RetryCount: 2, QueuedAt: ptr(at(10)), DeliveredAt: ptr(at(11)), AckedAt: ptr(at(12))})
}

// TestRandomWalks: whatever is tried, a delivery stays on the table.
func TestRandomWalks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Delivery{State: Queued}
		attempts, failures := 0, 0
		for i, to := range rapid.SliceOfN(rapid.SampledFrom(States), 0, 60).Draw(t, "walk") {
			from := d.State
			err := d.Move(to, At(noon.Add(time.Duration(i)*time.Second)))
			if ok := legal[slices.Index(States, from)][slices.Index(States, to)]; ok != (err == nil) {
				t.Fatalf("%s -> %s: %v", from, to, err)
			}
			if err != nil {
				to = from
			} else if from.Terminal() && (from != DeadLetter || to != Queued) {
				t.Fatalf("left %s for %s", from, to)
			}
			if err == nil && to == Delivered {
				attempts++
			}
			if err == nil && to == Failed {
				failures++
			}
			if err == nil && from == Failed && to == Queued {
				d.NextAttemptAt = ptr(At(noon))
			}
			switch {
			case d.State != to:
				t.Fatalf("%s -> %s ended in %s", from, to, d.State)
			case d.Attempt != attempts || d.RetryCount != failures:
				t.Fatalf("attempt %d and retry_count %d, want %d and %d", d.Attempt, d.RetryCount, attempts, failures)
			case (d.AckedAt != nil) != (d.State == Acked), (d.DeadAt != nil) != (d.State == DeadLetter),
				d.NextAttemptAt != nil && d.State != Queued, d.State == Delivered && d.DeliveredAt == nil:
				t.Fatalf("times do not fit the state: %+v", d)
			}
		}
	})
}

func TestFailKeepsFirstAndNewest(t *testing.T) {
	var d Delivery
	for i := 1; i <= maxFailures+5; i++ {
		d.Attempt = i
		before, want := d, slices.Clone(d.Failures)
		d.Fail("gw-bobby", At(noon), ClassTimeout, fmt.Sprintf("attempt %d", i))
		other := before
		other.Fail("gw-billy", At(noon), ClassRetry, "the other copy")
		if !slices.Equal(before.Failures, want) {
			t.Fatalf("attempt %d changed the failures of a copy:\n%+v\n%+v", i, before.Failures, want)
		}
		last := d.Failures[len(d.Failures)-1]
		if want := (Failure{i, "gw-bobby", At(noon), ClassTimeout, fmt.Sprintf("attempt %d", i)}); last != want {
			t.Fatalf("recorded %+v, want %+v", last, want)
		}
		if d.Class != last.Class || d.LastError != last.Error {
			t.Fatalf("class %q and error %q are not the last failure's", d.Class, d.LastError)
		}
	}
	var got []int
	for _, f := range d.Failures {
		got = append(got, f.Attempt)
	}
	if want := []int{1, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21}; !slices.Equal(got, want) {
		t.Errorf("kept the attempts %v, want %v", got, want)
	}
	// A record that another build let grow is cut as well.
	d.Failures = slices.Repeat(d.Failures, 3)
	d.Fail("gw-bobby", At(noon), ClassRetry, "more")
	if len(d.Failures) != maxFailures || d.Failures[0].Attempt != 1 || d.Failures[maxFailures-1].Error != "more" {
		t.Errorf("kept %d failures: %+v", len(d.Failures), d.Failures)
	}
	d.Fail("gw-bobby", At(noon), ClassRetry, strings.Repeat("é", maxError))
	if n := len(d.LastError); n > maxError || n < maxError-4 {
		t.Errorf("last error is %d bytes, at most %d", n, maxError)
	}
}

func TestClasses(t *testing.T) {
	retried := map[Class]bool{"retry": true, "timeout": true, "crashed": true}
	for _, c := range append(slices.Clone(Classes), "", "from a newer minor") {
		if c.Retryable() != retried[c] {
			t.Errorf("%q.Retryable() = %v", c, c.Retryable())
		}
	}
	src, err := parser.ParseFile(token.NewFileSet(), "state.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for name, o := range src.Scope.Objects {
		if strings.HasPrefix(name, "Class") && o.Kind.String() == "const" {
			n++
		}
	}
	if n != len(Classes) {
		t.Errorf("state.go declares %d classes, Classes lists %d", n, len(Classes))
	}
}
