package bus

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/gatemesh/gatemesh/envelope"
)

// maxCheckNote bounds each text of a [CheckNote], in bytes.
const maxCheckNote = 4 << 10

// CheckNote is what an agent says of the check that it made last, beside its registry entry and for people (plan, "Consul KV schema"): it is not
// signed, and decides nothing.
type CheckNote struct {
	Result string `json:"last_check_result"`
	// Alert, when it is not empty, is what was wrong; it stays until the next one.
	Alert string        `json:"last_alert,omitempty"`
	At    envelope.Time `json:"last_check"`
}

// NoteCheck writes the note of an agent whose inbox this gateway has: one write. Errors: [ErrDeposed], [ErrTooLarge], envelope.ErrInvalid, those of the store.
func (b *Bus) NoteCheck(ctx context.Context, agent string, n CheckNote) (CheckNote, error) {
	n.At = envelope.At(b.now())
	switch {
	case b.OwnerOf(agent) != b.cfg.Gateway:
		return n, fmt.Errorf("%w: the inbox of %s is not this gateway's", ErrDeposed, agent)
	case n.Result == "" || !utf8.ValidString(n.Result) || !utf8.ValidString(n.Alert):
		return n, fmt.Errorf("%w: a note of a check says what came of it", envelope.ErrInvalid)
	case len(n.Result) > maxCheckNote || len(n.Alert) > maxCheckNote:
		return n, fmt.Errorf("a note of a check has at most %d bytes: %w", maxCheckNote, ErrTooLarge)
	}
	prefix := agentsPrefix + agent + "/"
	at := n.At.UTC().Format(time.RFC3339)
	ops := []Op{{Verb: OpSet, Key: prefix + "last_check", Value: []byte(at)}, {Verb: OpSet, Key: prefix + "last_check_result", Value: []byte(n.Result)}}
	if n.Alert != "" {
		ops = append(ops, Op{Verb: OpSet, Key: prefix + "last_alert", Value: []byte(at + " " + n.Alert)})
	}
	if _, err := b.store.Txn(ctx, ops); err != nil {
		return n, fmt.Errorf("note of %s: %w", agent, err)
	}
	return n, nil
}
