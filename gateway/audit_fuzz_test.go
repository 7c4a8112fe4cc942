package gateway

import (
	"bytes"
	"encoding/base64"
	"os"
	"testing"

	"github.com/gatemesh/gatemesh/envelope/trust"
)

// fixedAuditSigner signed testdata/audit: a log of two processes. A fuzzer's workers are processes of their own, which must believe the same.
func fixedAuditSigner(t testing.TB) *trust.Signer {
	t.Helper()
	key, err := trust.ParseKey([]byte(base64.StdEncoding.EncodeToString(make([]byte, 32))))
	if err != nil {
		t.Fatal(err)
	}
	return &trust.Signer{Mesh: "m", Gateway: "jerry", Key: key}
}

// FuzzVerifyAudit: whatever is made of a log, what is found whole and vouched for stands in the true one, in that order.
func FuzzVerifyAudit(f *testing.F) {
	s := fixedAuditSigner(f)
	log, err := os.ReadFile("testdata/audit/audit-000001.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	if rep, err := VerifyAudit("testdata/audit", checkedBy(s)); err != nil || rep.Marks == 0 || rep.Unvouched > 0 || len(rep.Problems) > 0 {
		f.Fatalf("a log that was true is not any more: %+v, %v", rep, err)
	}
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
