package gateway

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// AuditConfig is the audit log.
type AuditConfig struct {
	Enabled bool        `json:"enabled" def:"true" doc:"Keep a hash-chained, signed log of every transition, refusal, change of ownership, decision of the policy and order of an operator, in mesh.dataDir/audit. Without a directory for state there is none."`
	MaxSize ConfigBytes `json:"maxSize" def:"256MiB" min:"1MiB" doc:"How much of it is kept, in bytes; the oldest file goes first."`
}

// AuditLine is one line of the audit log: JSON, and nothing but the line feed after it.
//
// Prev is the SHA-256 of the line before, so a line cannot be changed, taken out, put in or moved without changing all
// that follow. A line of kind mark carries a stamp of the gateway's key over itself, and with it over everything before.
type AuditLine struct {
	Seq  uint64        `json:"seq"`
	At   envelope.Time `json:"at"`
	Kind AuditKind     `json:"kind"`
	Prev string        `json:"prev"`
	// Data is the event, the order, or how much was lost.
	Data json.RawMessage `json:"data,omitempty"`
}

// AuditKind is what a line tells of.
type AuditKind string

// The kinds of lines.
const (
	AuditStart  AuditKind = "start"  // a process began to write: auditStart
	AuditEvent  AuditKind = "event"  // a transition, a refusal, a change of ownership: bus.Event without texts
	AuditOrder  AuditKind = "order"  // somebody changed something through the API, or the configuration: auditOrder
	AuditPolicy AuditKind = "policy" // what the policy said of a message, allowed or not: auditDecision
	AuditLost   AuditKind = "lost"   // the disk was too slow or full, and so much is missing here: auditLost
	AuditMark   AuditKind = "mark"   // the gateway vouches for everything up to here; signed
	AuditStop   AuditKind = "stop"   // the process stopped in order; a mark follows
)

type auditStart struct {
	Gateway string `json:"gateway"`
	Version string `json:"version"`
	Key     string `json:"key"`
	// Torn is what a process that died left of a line, in bytes; it was cut off. Unvouched are the lines before this one that
	// nobody had signed: a process that is killed leaves those of its last second, and anybody could have added some.
	Torn      int64 `json:"torn,omitempty"`
	Unvouched int   `json:"unvouched,omitempty"`
}

type auditOrder struct {
	What   string   `json:"what"`           // "POST /v1/deadletters/redrive", "reload"
	Who    string   `json:"who,omitempty"`  // the token's name
	Remote string   `json:"from,omitempty"` // the address it came from
	Status int      `json:"status,omitempty"`
	Keys   []string `json:"keys,omitempty"` // of the configuration that changed
}

type auditDecision struct {
	MessageID  string `json:"message_id,omitempty"`
	From       string `json:"from"`
	To         string `json:"to"`
	Capability string `json:"capability,omitempty"`
	Size       int    `json:"size"`
	Again      bool   `json:"again,omitempty"` // it was asked before: a retry
	Allowed    bool   `json:"allowed"`
	Rule       string `json:"rule,omitempty"`
	Reason     string `json:"reason"`
}

type auditLost struct {
	Lines int    `json:"lines"`
	Why   string `json:"why"`
}

const (
	// auditSegment is how long a file of the log grows, in bytes.
	auditSegment = 16 << 20
	// auditMarkLines and auditMarkTime are the most that is not vouched for: a signature costs 20 µs, and every line
	// having one would cost more than all the rest.
	auditMarkLines = 4096
	auditMarkTime  = time.Second
	// auditQueue bounds the lines that wait for the disk, in memory.
	auditQueue = 1 << 16
)

var auditGenesis = strings.Repeat("0", 2*sha256.Size)

// auditPlace is what a mark is signed for.
func auditPlace(gateway string) string { return "audit/" + gateway }

// auditLog writes the audit log. Its methods may be called concurrently, and on nil: then there is none.
type auditLog struct {
	dir    string
	max    int64
	signer *trust.Signer
	log    hclog.Logger

	mu    sync.Mutex
	queue []auditItem
	lost  int
	why   string
	// wake carries wake-ups (capacity 1), not lines.
	wake chan struct{}
	done chan struct{}
	end  context.CancelFunc

	// What follows is the writer's.
	file   *os.File
	number int   // of the file
	size   int64 // of the file, as this process knows it
	seq    uint64
	prev   string
	bare   int // lines since the last mark
	marked time.Time
}

type auditItem struct {
	at   time.Time
	kind AuditKind
	data any
}

// openAudit goes on with the log in dir, or begins one.
func openAudit(dir string, limit int64, signer *trust.Signer, version string, log hclog.Logger) (*auditLog, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	a := &auditLog{dir: dir, max: limit, signer: signer, log: log, prev: auditGenesis, wake: make(chan struct{}, 1), done: make(chan struct{})}
	files, err := auditFiles(dir)
	if err != nil {
		return nil, err
	}
	start := auditStart{Gateway: signer.Gateway, Version: version, Key: signer.Current().ID()}
	if len(files) == 0 {
		a.number = 1
	} else {
		last := files[len(files)-1]
		a.number = last.number
		if start.Torn, start.Unvouched, err = a.resume(filepath.Join(dir, last.name)); err != nil {
			return nil, err
		}
	}
	if err := a.openFile(); err != nil {
		return nil, err
	}
	a.marked = time.Now()
	a.put(AuditStart, start)
	ctx, end := context.WithCancel(context.Background())
	a.end = end
	go a.run(ctx)
	return a, nil
}

// openAudit begins the audit log, where there is to be one. That it cannot be written keeps a gateway from starting when the
// configuration asks for it, and is only said when it is there by default.
func (g *Gateway) openAudit() error {
	c, dir := g.start.Mesh.Audit, g.deps.StateDir
	if !c.Enabled || dir == "" || strings.HasPrefix(dir, "~") {
		return nil
	}
	a, err := openAudit(filepath.Join(dir, AuditDir), int64(c.MaxSize), g.identity.signer, g.deps.Version, g.log.Named("audit"))
	switch {
	case err == nil:
		g.audit = a
		g.steps = append(g.steps, step{"audit log", a.stop}) // the last to end
	case g.start.source.explicit("mesh.audit.enabled"):
		return fmt.Errorf("%w (mesh.audit.enabled asks for it; mend mesh.dataDir, or say false)", err)
	default:
		g.log.Error("there is no audit log: mend mesh.dataDir", "error", err)
	}
	return nil
}

// audited records a request that changed something. Messages record themselves, by their transitions.
func (g *Gateway) audited(r *http.Request, status int) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead || g.audit == nil {
		return
	}
	switch r.Pattern {
	case "POST /v1/messages", "POST /v1/fanouts", completionsRoute:
		return
	}
	o := auditOrder{What: r.Method + " " + r.URL.Path, Remote: r.RemoteAddr, Status: status}
	if c := callerOf(r); c != nil {
		o.Who = c.name
	}
	g.audit.order(o)
}

// resume finds where the chain ends in the newest file, and cuts off what a crash left of a line.
func (a *auditLog) resume(path string) (torn int64, unvouched int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("audit log: %w", err)
	}
	defer f.Close()
	whole := int64(0)
	r := bufio.NewReaderSize(f, 1<<16)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			torn = int64(len(line))
			break
		}
		if err != nil {
			return 0, 0, fmt.Errorf("audit log: %w", err)
		}
		whole += int64(len(line))
		unvouched++
		var l AuditLine
		if err := json.Unmarshal(line, &l); err != nil {
			continue // verify will say so; the chain goes on with its bytes
		}
		a.seq, a.prev = l.Seq, auditHash(line[:len(line)-1])
		if l.Kind == AuditMark {
			unvouched = 0
		}
	}
	if torn > 0 {
		if err := f.Truncate(whole); err != nil {
			return 0, 0, fmt.Errorf("audit log: %w", err)
		}
	}
	return torn, unvouched, nil
}

func auditHash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

type auditFile struct {
	name   string
	number int
}

// auditFiles lists the files of a log, oldest first.
func auditFiles(dir string) ([]auditFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	var files []auditFile
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), "audit-")
		if text, ok2 := strings.CutSuffix(text, ".jsonl"); ok && ok2 {
			if n, err := strconv.Atoi(text); err == nil && n > 0 {
				files = append(files, auditFile{e.Name(), n})
			}
		}
	}
	slices.SortFunc(files, func(x, y auditFile) int { return x.number - y.number })
	return files, nil
}

func (a *auditLog) openFile() error {
	f, err := os.OpenFile(filepath.Join(a.dir, fmt.Sprintf("audit-%06d.jsonl", a.number)), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("audit log: %w", err), f.Close())
	}
	a.file, a.size = f, st.Size()
	return nil
}

// event records what the bus did. Texts of answers are no business of this log.
func (a *auditLog) event(ev bus.Event) {
	if a != nil {
		ev.Text = ""
		a.put(AuditEvent, ev)
	}
}

func (a *auditLog) order(o auditOrder) {
	if a != nil {
		a.put(AuditOrder, o)
	}
}

// decision records what the policy said. That a gateway's own agents and clients may ask each other while no rule is about it is no decision.
func (a *auditLog) decision(self string, i bus.Invocation, v Verdict) {
	if a == nil || v.Allowed && v.Rule == "" && !i.Operator && i.From.Gateway == self {
		return
	}
	a.put(AuditPolicy, auditDecision{
		MessageID: i.MessageID, From: i.From.String(), To: i.To, Capability: i.Capability, Size: i.Size, Again: i.Again, Allowed: v.Allowed, Rule: v.Rule, Reason: v.Reason,
	})
}

func (a *auditLog) put(kind AuditKind, data any) {
	item := auditItem{time.Now(), kind, data}
	a.mu.Lock()
	if len(a.queue) >= auditQueue {
		a.lost++
		a.why = "the disk is slower than the mesh"
	} else {
		a.queue = append(a.queue, item)
	}
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends, and then what is left.
func (a *auditLog) run(ctx context.Context) {
	defer close(a.done)
	tick := time.NewTimer(auditMarkTime)
	tick.Stop()
	for {
		select {
		case <-a.wake:
		case <-tick.C:
		case <-ctx.Done():
			a.put(AuditStop, nil)
			a.flush(true)
			if err := a.file.Close(); err != nil {
				a.log.Error("audit log", "error", err)
			}
			return
		}
		a.flush(false)
		if a.bare > 0 {
			tick.Reset(max(0, auditMarkTime-time.Since(a.marked)))
		}
	}
}

// flush writes what waits, and a mark when one is due.
func (a *auditLog) flush(mark bool) {
	a.mu.Lock()
	items, lost, why := a.queue, a.lost, a.why
	a.queue, a.lost, a.why = nil, 0, ""
	a.mu.Unlock()
	if lost > 0 {
		a.log.Error("audit log: lines are missing, and the log says so", "lines", lost, "why", why)
		items = append(items, auditItem{time.Now(), AuditLost, auditLost{lost, why}})
	}
	seq, prev, bare := a.seq, a.prev, a.bare
	var b []byte
	for _, it := range items {
		b = a.append(b, it)
		a.bare++
		if a.bare >= auditMarkLines {
			b = a.appendMark(b)
		}
	}
	if a.bare > 0 && (mark || time.Since(a.marked) >= auditMarkTime) {
		b = a.appendMark(b)
	}
	if len(b) == 0 {
		return
	}
	if err := a.write(b); err != nil {
		// The chain goes on from what is on the disk.
		a.seq, a.prev, a.bare = seq, prev, bare
		a.log.Error("audit log: cannot write; it goes on when that works again", "dir", a.dir, "error", err)
		a.mu.Lock()
		a.lost += len(items)
		a.why = err.Error()
		a.mu.Unlock()
	}
}

// append adds one line, without a mark, to b.
func (a *auditLog) append(b []byte, it auditItem) []byte {
	l := AuditLine{Seq: a.seq + 1, At: envelope.At(it.at), Kind: it.kind, Prev: a.prev}
	if it.data != nil {
		l.Data = auditJSON(it.data)
	}
	return a.chain(b, auditJSON(l))
}

func (a *auditLog) appendMark(b []byte) []byte {
	now := time.Now()
	l := AuditLine{Seq: a.seq + 1, At: envelope.At(now), Kind: AuditMark, Prev: a.prev}
	b = a.chain(b, a.signer.SignRecord(trust.KindAudit, auditPlace(a.signer.Gateway), now, auditJSON(l)))
	a.bare, a.marked = 0, now
	return b
}

func (a *auditLog) chain(b, line []byte) []byte {
	a.seq++
	a.prev = auditHash(line)
	return append(append(b, line...), '\n')
}

// auditJSON encodes what this file defines, which always encodes.
func auditJSON(v any) []byte {
	b, err := envelope.Encode(v)
	if err != nil {
		panic(fmt.Sprintf("audit: %T does not encode: %v", v, err))
	}
	return b
}

// write appends whole lines, and syncs. What was written in part is cut off again.
func (a *auditLog) write(b []byte) error {
	if st, err := a.file.Stat(); err != nil {
		return err
	} else if st.Size() != a.size {
		a.log.Error("audit log: somebody else changed the file while it was open; gatemesh audit verify says where", "file", a.file.Name(), "bytes", st.Size(), "expected", a.size)
		a.size = st.Size()
	}
	if a.size > 0 && a.size+int64(len(b)) > auditSegment {
		if err := a.rotate(); err != nil {
			return err
		}
	}
	if _, err := a.file.Write(b); err != nil {
		return errors.Join(err, a.file.Truncate(a.size))
	}
	a.size += int64(len(b))
	return a.file.Sync()
}

// rotate begins a new file and drops the oldest ones that are too many.
func (a *auditLog) rotate() error {
	old := a.file
	a.number++
	if err := a.openFile(); err != nil {
		a.number--
		return err
	}
	if err := old.Close(); err != nil {
		a.log.Error("audit log", "error", err)
	}
	files, err := auditFiles(a.dir)
	if err != nil {
		return err
	}
	for keep := max(2, int(a.max/auditSegment)); len(files) > keep; files = files[1:] {
		if err := os.Remove(filepath.Join(a.dir, files[0].name)); err != nil {
			a.log.Error("audit log", "error", err)
		}
	}
	return nil
}

// stop writes what is left, within ctx.
func (a *auditLog) stop(ctx context.Context) error {
	if a == nil {
		return nil
	}
	a.end()
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("audit log: %w", ctx.Err())
	}
}
