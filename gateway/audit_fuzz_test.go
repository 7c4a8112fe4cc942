package gateway

import (
	"bytes"
	"testing"
)

// FuzzVerifyAudit: whatever is made of a log, what is found whole and vouched for stands in the true one, in that order.
func FuzzVerifyAudit(f *testing.F) {
	s := auditSigner()
	log := auditBytes(f, auditOf(f, s, 2, 3))
	lines := bytes.SplitAfter(log, []byte("\n"))
	f.Add(log)
	f.Add(log[:len(log)/2])
	f.Add(bytes.Join(lines[3:], nil))
	f.Add(bytes.Replace(log, []byte(`"0-1"`), []byte(`"0-9"`), 1))
	f.Add(append(append(append([]byte{}, lines[0]...), lines[2]...), lines[1]...))
	f.Add([]byte(`{"seq":1,"prev":"","kind":"mark","signed":{}}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		rep := AuditReport{}
		v := &auditVerifier{rep: &rep, check: checkedBy(s)}
		for n, line := range bytes.Split(text, []byte("\n")) {
			if len(line) > 0 {
				v.line("f", n+1, line)
			}
		}
		if rep.Marks == 0 || len(rep.Problems) > 0 {
			return
		}
		var vouched [][]byte
		for line := range bytes.Lines(text) {
			if line = bytes.TrimSuffix(line, []byte("\n")); len(line) > 0 {
				vouched = append(vouched, line)
			}
		}
		if !bytes.Contains(log, bytes.Join(vouched[:len(vouched)-rep.Unvouched], []byte("\n"))) {
			t.Fatalf("found whole:\n%s", text)
		}
	})
}
