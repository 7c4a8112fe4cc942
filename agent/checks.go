package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// Finding is the outcome of a check and, as JSON, the payload of its reply.
type Finding struct {
	// Text is the whole outcome for people; [Text] finds it.
	Text string `json:"text"`
	// Result is the one line: "all-healthy", or "alert: ...".
	Result string `json:"result"`
	// Report has everything, for programs. Nil: left out.
	Report any `json:"report,omitempty"`
}

// ErrNotOffered is wrapped by a check that does not know the capability it was asked for.
var ErrNotOffered = errors.New("capability not offered")

// CheckFunc does the check that capability names ("": the usual one). What is wrong
// with what it looked at is a Finding; an error means that it could not look, and is tried
// again (except [ErrNotOffered]).
type CheckFunc func(ctx context.Context, capability string) (Finding, error)

// Checks makes a handler that answers every message with a check, and watches what the checks find: see [Runner].Alert.
func Checks(check CheckFunc, spec Spec, deps Deps) bus.Handler {
	w := &watcher{spec: spec, deps: deps}
	return bus.HandlerFunc(func(ctx context.Context, m *bus.Incoming) error {
		f, err := check(ctx, m.Envelope().Capability)
		switch {
		case errors.Is(err, ErrNotOffered):
			return bus.Never(envelope.ClassUndeliverable, err)
		case err != nil:
			return err
		case ctx.Err() != nil:
			// The check was cut short: what it found says nothing.
			return ctx.Err()
		}
		if err := w.observe(ctx, m, f); err != nil {
			return err
		}
		return replyFinding(m.Reply, f)
	})
}

// replyFinding leaves the report out when it does not fit: the text is what matters.
func replyFinding(reply func([]byte) error, f Finding) error {
	payload, err := encode(f)
	if err != nil {
		return bus.Never(envelope.ClassPoison, fmt.Errorf("encode the check's report: %w", err))
	}
	err = reply(payload)
	if f.Report == nil || !errors.Is(err, bus.ErrTooLarge) && !errors.Is(err, envelope.ErrInvalid) {
		return err
	}
	f.Report = nil
	f.Text += "\n(The full report is too large for a message and was left out.)"
	if payload, err = encode(f); err != nil {
		return err
	}
	return reply(payload)
}

func encode(v any) (json.RawMessage, error) { return envelope.Encode(v) }
