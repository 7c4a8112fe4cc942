package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

func auditSigner() *trust.Signer {
	return &trust.Signer{Mesh: "m", Gateway: "jerry", Key: trust.NewKey()}
}

func checkedBy(s *trust.Signer) func(*trust.Stamp, string, []byte) error {
	return func(st *trust.Stamp, place string, object []byte) error {
		if !st.SignedBy(s.Key.Public(), trust.KindAudit, place, object) {
			return errors.New("not by this key")
		}
		return nil
	}
}

// auditOf writes a log of n events in each of several processes, and returns its directory.
func auditOf(t testing.TB, s *trust.Signer, processes, n int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), AuditDir)
	for p := range processes {
		a, err := openAudit(dir, 1<<30, s, "test", hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			a.event(bus.Event{Event: bus.EventAcked, At: envelope.At(time.Now()), Gateway: "jerry", MessageID: fmt.Sprintf("%d-%d", p, i), Text: "a text that is none of its business"})
		}
		a.order(auditOrder{What: "reload", Keys: []string{"mesh.policy.rules"}})
		if err := a.stop(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func verified(t *testing.T, dir string, s *trust.Signer) AuditReport {
	t.Helper()
	rep, err := VerifyAudit(dir, checkedBy(s))
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestAuditIsWhole(t *testing.T) {
	s := auditSigner()
	dir := auditOf(t, s, 3, 20)
	rep := verified(t, dir, s)
	if len(rep.Problems) > 0 || rep.First != 1 || rep.Last != uint64(rep.Lines) || rep.Unvouched != 0 || rep.Marks < 3 || rep.Lines < 3*(20+4) || rep.Inherited != 0 {
		t.Errorf("%+v", rep)
	}
	b := auditBytes(t, dir)
	if bytes.Contains(b, []byte("none of its business")) {
		t.Error("a payload's text is in the log")
	}
	if st, err := os.Stat(filepath.Join(dir, "audit-000001.jsonl")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", st.Mode(), err)
	}
	if rep := verified(t, dir, auditSigner()); len(rep.Problems) != 3 {
		t.Errorf("by another key: %+v", rep.Problems)
	}
}

func auditBytes(t testing.TB, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "audit-000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Whatever is done to the lines is found, and where.
func TestAuditTampering(t *testing.T) {
	s := auditSigner()
	dir := auditOf(t, s, 2, 10)
	whole := auditBytes(t, dir)
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	// rechain makes a line follow from others, as one who knows the format can.
	rechain := func(in []string) []string {
		prev, seq := auditGenesis, uint64(0)
		var out []string
		for _, text := range in {
			object, st := trust.SplitRecord([]byte(strings.TrimSuffix(text, "\n")))
			var l AuditLine
			if err := json.Unmarshal(object, &l); err != nil {
				t.Fatal(err)
			}
			seq++
			l.Seq, l.Prev = seq, prev
			line := auditJSON(l)
			if st != nil { // the old signature is all that he has
				stamp := string(auditJSON(st))
				line = append(line[:len(line)-1], `,"signed":`+stamp+"}"...)
			}
			prev = auditHash(line)
			out = append(out, string(line)+"\n")
		}
		return out
	}
	other := auditSigner()
	for name, tc := range map[string]struct {
		change func([]string) []string
		line   int // where the first problem is
		says   string
	}{
		"a line is changed": {func(l []string) []string { l[4] = strings.Replace(l[4], "acked", "faked", 1); return l }, 6, "changed"},
		"a mark is changed": {func(l []string) []string {
			i := slices.IndexFunc(l, func(s string) bool { return strings.Contains(s, `"kind":"mark"`) })
			l[i] = strings.Replace(l[i], `"at":"2`, `"at":"3`, 1)
			return l
		}, 0, "signature"},
		"a line is removed":             {func(l []string) []string { return slices.Delete(l, 4, 5) }, 5, "1 lines (5 to 5) are missing"},
		"three lines are removed":       {func(l []string) []string { return slices.Delete(l, 4, 7) }, 5, "3 lines (5 to 7) are missing"},
		"the first lines are removed":   {func(l []string) []string { return slices.Delete(l, 0, 2) }, 0, ""},
		"two lines are exchanged":       {func(l []string) []string { l[4], l[5] = l[5], l[4]; return l }, 5, "missing"},
		"a line is there twice":         {func(l []string) []string { return slices.Insert(l, 5, l[4]) }, 6, "stands behind"},
		"a line is no JSON":             {func(l []string) []string { l[4] = "gone\n"; return l }, 5, "not one that a gateway writes"},
		"a line is made very long":      {func(l []string) []string { l[4] = strings.Repeat("x", 2<<20) + "\n"; return l }, 5, "longer"},
		"changed, and all chained anew": {func(l []string) []string { l[4] = strings.Replace(l[4], "acked", "faked", 1); return rechain(l) }, 0, "signature"},
		"removed, and all chained anew": {func(l []string) []string { return rechain(slices.Delete(l, 4, 5)) }, 0, "signature"},
		"signed by somebody else's key": {func(l []string) []string {
			i := slices.IndexFunc(l, func(s string) bool { return strings.Contains(s, `"kind":"mark"`) })
			object, _ := trust.SplitRecord([]byte(strings.TrimSuffix(l[i], "\n")))
			l[i] = string(other.SignRecord(trust.KindAudit, auditPlace("jerry"), time.Now(), object)) + "\n"
			return l
		}, 0, "signature"},
		"a mark's signature is taken off": {func(l []string) []string {
			i := slices.IndexFunc(l, func(s string) bool { return strings.Contains(s, `"kind":"mark"`) })
			object, _ := trust.SplitRecord([]byte(strings.TrimSuffix(l[i], "\n")))
			l[i] = string(object) + "\n"
			return l
		}, 0, "should be signed"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), AuditDir)
			if err := os.Mkdir(bad, 0o700); err != nil {
				t.Fatal(err)
			}
			text := strings.Join(tc.change(slices.Clone(lines)), "")
			if err := os.WriteFile(filepath.Join(bad, "audit-000001.jsonl"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			rep := verified(t, bad, s)
			if tc.says == "" { // what retention does too: only first_seq tells
				if len(rep.Problems) != 0 || rep.First != 3 {
					t.Errorf("%+v", rep)
				}
				return
			}
			if len(rep.Problems) == 0 {
				t.Fatalf("nothing was found: %+v", rep)
			}
			if p := rep.Problems[0]; !strings.Contains(p.Message, tc.says) || tc.line > 0 && p.Line != tc.line {
				t.Errorf("%v, want %q at line %d", rep.Problems, tc.says, tc.line)
			}
		})
	}
}

// A process that was killed leaves lines that nobody signed, and perhaps half a line. The next one cuts that off, and says both.
func TestAuditAfterACrash(t *testing.T) {
	s := auditSigner()
	dir := auditOf(t, s, 1, 5)
	file := filepath.Join(dir, "audit-000001.jsonl")
	b := auditBytes(t, dir)
	cut := b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] // without its last mark
	if err := os.WriteFile(file, append(bytes.Clone(cut), `{"seq":99,"at":"20`...), 0o600); err != nil {
		t.Fatal(err)
	}
	before := verified(t, dir, s)
	if len(before.Problems) != 0 || before.Unvouched == 0 {
		t.Fatalf("after the crash: %+v", before)
	}
	a, err := openAudit(dir, 1<<30, s, "test", hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.stop(within(t)); err != nil {
		t.Fatal(err)
	}
	after := verified(t, dir, s)
	if len(after.Problems) != 0 || after.Unvouched != 0 || after.Inherited != before.Unvouched || !strings.Contains(string(auditBytes(t, dir)), `"torn":18`) {
		t.Errorf("after the next start: %+v", after)
	}
}

// drained waits until everything is on the disk.
func drained(t *testing.T, a *auditLog) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := within(t); ; {
		a.mu.Lock()
		n := len(a.queue)
		a.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d lines wait", n)
		}
	}
}

// Files are bounded, and one that is taken out of the middle is missed.
func TestAuditFiles(t *testing.T) {
	s := auditSigner()
	dir := filepath.Join(t.TempDir(), AuditDir)
	a, err := openAudit(dir, 4*auditSegment, s, "test", hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 200<<10)
	for i := range 8 * auditSegment / len(long) {
		a.event(bus.Event{Event: bus.EventFailed, Gateway: "jerry", Reason: long})
		if i%100 == 0 {
			drained(t, a)
		}
	}
	if err := a.stop(within(t)); err != nil {
		t.Fatal(err)
	}
	files, err := auditFiles(dir)
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	rep := verified(t, dir, s)
	if len(rep.Problems) != 0 || rep.First < 2 || rep.Lost != 0 {
		t.Errorf("%+v", rep)
	}
	if err := os.Remove(filepath.Join(dir, files[1].name)); err != nil {
		t.Fatal(err)
	}
	if rep := verified(t, dir, s); len(rep.Problems) == 0 || !strings.Contains(rep.Problems[0].Message, "missing") || rep.Problems[0].File != files[2].name {
		t.Errorf("a file was taken out: %+v", rep.Problems)
	}
}

// What cannot be written is counted, and the log says so itself when it can again.
func TestAuditSaysWhatItLost(t *testing.T) {
	s := auditSigner()
	dir := filepath.Join(t.TempDir(), AuditDir)
	a, err := openAudit(dir, 1<<30, s, "test", hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	a.end()
	<-a.done
	good := a.file
	// From here on the test is the writer, and its disk is gone: the file is closed.
	for range 7 {
		a.event(bus.Event{Event: bus.EventAcked, Gateway: "jerry"})
	}
	a.flush(true)
	if a.lost != 7 {
		t.Errorf("%d lines are lost, want 7", a.lost)
	}
	if a.openFile() != nil || a.file == good {
		t.Fatal("the file does not open")
	}
	a.event(bus.Event{Event: bus.EventAcked, Gateway: "jerry"})
	a.flush(true)
	if err := a.file.Close(); err != nil {
		t.Fatal(err)
	}
	rep := verified(t, dir, s)
	if rep.Lost != 7 || len(rep.Problems) != 0 || rep.Unvouched != 0 {
		t.Errorf("%+v", rep)
	}
	for range auditQueue + 5 {
		a.event(bus.Event{Event: bus.EventAcked})
	}
	if a.lost != 5 {
		t.Errorf("%d lines are lost where %d fit", a.lost, auditQueue)
	}
}

func BenchmarkAudit(b *testing.B) {
	a, err := openAudit(filepath.Join(b.TempDir(), AuditDir), 1<<30, auditSigner(), "test", hclog.NewNullLogger())
	if err != nil {
		b.Fatal(err)
	}
	a.end()
	<-a.done
	if err := a.openFile(); err != nil { // the benchmark is the writer
		b.Fatal(err)
	}
	ev := bus.Event{Event: bus.EventAcked, At: envelope.At(time.Now()), Gateway: "jerry", MessageID: envelope.NewID(), CorrelationID: envelope.NewID(), From: "user@jerry", To: "bobby", State: envelope.Acked, Millis: 3.2}
	for b.Loop() {
		a.event(ev)
		if len(a.queue) > 1000 {
			a.flush(false)
		}
	}
	if err := a.file.Close(); err != nil {
		b.Fatal(err)
	}
}
