package gateway

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/gatemesh/gatemesh/envelope/trust"
)

// AuditProblem is one thing that is wrong with an audit log, and where.
type AuditProblem struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // from 1
	Seq     uint64 `json:"seq,omitempty"`
	Message string `json:"message"`
}

func (p AuditProblem) String() string { return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message) }

// AuditReport is what VerifyAudit found.
type AuditReport struct {
	Files int    `json:"files"`
	Lines int    `json:"lines"`
	Marks int    `json:"marks"`
	First uint64 `json:"first_seq"`
	Last  uint64 `json:"last_seq"`
	// Head is the hash of the last line.
	Head string `json:"head"`
	// Unvouched are the lines after the last signature: true of a running gateway's last second, and of one
	// that was killed. Who can write the file may have cut off or changed what is not vouched for.
	Unvouched int `json:"unvouched"`
	// Inherited are the lines that a process found unsigned when it began, and that its own signatures cover since.
	Inherited int `json:"inherited"`
	// Lost are the lines that the log itself says are missing.
	Lost     int            `json:"lost"`
	Problems []AuditProblem `json:"problems"`
}

// maxAuditLine bounds a line, in bytes: an event holds no payload.
const maxAuditLine = 1 << 20

// maxAuditProblems bounds what is reported; the log is wrong from the first on.
const maxAuditProblems = 100

// VerifyAudit reads the log in dir and says of each line that was changed, removed, added or moved where that is.
// check judges the stamp of a mark. What it cannot see: whole files removed from the beginning (they go by age anyway: compare
// First), and lines removed from the end together with the marks that vouched for them (compare Last with what
// was seen before).
func VerifyAudit(dir string, check func(st *trust.Stamp, place string, object []byte) error) (AuditReport, error) {
	rep := AuditReport{Problems: []AuditProblem{}}
	files, err := auditFiles(dir)
	if err != nil {
		return rep, err
	}
	v := &auditVerifier{rep: &rep, check: check}
	for i, f := range files {
		if i > 0 && f.number != files[i-1].number+1 {
			v.problem(AuditProblem{File: f.name, Line: 1, Message: fmt.Sprintf("files %d to %d are missing before it", files[i-1].number+1, f.number-1)})
			v.have = false
		}
		if err := v.file(dir, f.name, i == len(files)-1); err != nil {
			return rep, err
		}
	}
	rep.Files = len(files)
	return rep, nil
}

type auditVerifier struct {
	rep   *AuditReport
	check func(*trust.Stamp, string, []byte) error
	have  bool // prev and seq are of the line before
	prev  string
	seq   uint64
	owner string
}

func (v *auditVerifier) problem(p AuditProblem) {
	if len(v.rep.Problems) < maxAuditProblems {
		v.rep.Problems = append(v.rep.Problems, p)
	}
}

func (v *auditVerifier) file(dir, name string, last bool) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, maxAuditLine)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			if len(line) > 0 && !last {
				v.problem(AuditProblem{File: name, Line: n, Message: "the file ends within a line"})
			}
			return nil // a running gateway may be writing the last one
		case errors.Is(err, bufio.ErrBufferFull):
			v.problem(AuditProblem{File: name, Line: n, Message: "the line is longer than any that a gateway writes"})
			return nil
		case err != nil:
			return fmt.Errorf("audit log: %w", err)
		}
		v.line(name, n, line[:len(line)-1])
	}
}

func (v *auditVerifier) line(file string, n int, line []byte) {
	bad := func(seq uint64, format string, args ...any) {
		v.problem(AuditProblem{file, n, seq, fmt.Sprintf(format, args...)})
	}
	rep := v.rep
	rep.Lines++
	var l AuditLine
	if err := json.Unmarshal(line, &l); err != nil || l.Seq == 0 || len(l.Prev) != len(auditGenesis) {
		bad(0, "the line is not one that a gateway writes: it was changed")
		v.prev = auditHash(line)
		v.seq++
		return
	}
	switch {
	case !v.have:
		rep.First = l.Seq
		if l.Seq == 1 && l.Prev != auditGenesis {
			bad(l.Seq, "the log does not begin here")
		}
	case l.Seq > v.seq+1:
		bad(l.Seq, "%d lines (%d to %d) are missing before it", l.Seq-v.seq-1, v.seq+1, l.Seq-1)
	case l.Seq <= v.seq:
		bad(l.Seq, "line %d stands behind %d: lines were moved or added", l.Seq, v.seq)
	case l.Prev != v.prev:
		bad(l.Seq, "it does not follow from the line before it, which was changed, or was put there")
	}
	v.have, v.seq, v.prev = true, l.Seq, auditHash(line)
	rep.Last, rep.Head = v.seq, v.prev
	rep.Unvouched++
	switch l.Kind {
	case AuditStart:
		var s auditStart
		if json.Unmarshal(l.Data, &s) == nil {
			v.owner = s.Gateway
			rep.Inherited += s.Unvouched
		}
	case AuditLost:
		var s auditLost
		if json.Unmarshal(l.Data, &s) == nil {
			rep.Lost += s.Lines
		}
	case AuditMark:
		object, st := trust.SplitRecord(line)
		switch {
		case st == nil:
			bad(l.Seq, "it should be signed and is not")
		default:
			if err := v.check(st, auditPlace(st.Gateway), object); err != nil {
				bad(l.Seq, "its signature does not count: %v", err)
				return
			}
			if v.owner != "" && st.Gateway != v.owner {
				bad(l.Seq, "it is signed by %s, but the log is of %s", st.Gateway, v.owner)
				return
			}
			rep.Marks++
			rep.Unvouched = 0
		}
	}
}

// ExportAudit writes the log in dir, oldest line first: the very bytes, so that hashes and signatures still fit.
func ExportAudit(w io.Writer, dir string) error {
	files, err := auditFiles(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.name)) // at most auditSegment and a batch
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			return fmt.Errorf("export the audit log: %w", err)
		}
	}
	return nil
}
