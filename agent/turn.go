package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// TurnsPrefix is where turns rest that have called tools with outside effects and are not over: in the room of the
// agent's inbox, one for each message.
const TurnsPrefix = "turns/"

const (
	// toolEffect begins the ledger's names for calls of tools.
	toolEffect = "tool/"
	// maxTurn is the bytes of a turn in the store.
	maxTurn = 128 << 10
)

// maxOutside is how many calls with outside effects one message may cause.
const maxOutside = envelope.MaxEffects - 2

// turn is the handling of one message, from what was asked to the answer.
//
// Before a tool with an outside effect runs, the turn is written down, and that the call is about to be made is put into
// the message's ledger ([bus.Incoming.Intend]); its result is written down after it. So when the message is handled again, after a crash
// or a failure of the model, the model is not asked anew for what it said already, and a call is not made twice: of one that was on its way
// the model is told that nobody knows whether it was made. A turn without such calls leaves nothing, and begins anew.
//
// A task of a queue has no place to write it: there, calls are made again, and the model is told so.
type turn struct {
	rec turnRecord
	s   *session
	m   *bus.Incoming
	// kept: the store has it.
	kept bool
}

// turnRecord is what lies in the store.
type turnRecord struct {
	MessageID string        `json:"messageId"`
	Messages  []ChatMessage `json:"messages"`
	// Partial are the results of the calls of the last message, as far as there are any.
	Partial []ToolResult `json:"partial,omitempty"`
	// Steps counts the model's answers, Outside the calls that are in the ledger, Asks the questions to other agents.
	Steps   int `json:"steps"`
	Outside int `json:"outside"`
	Asks    int `json:"asks,omitempty"`
	// Spawns are the runs that begin when the turn is over.
	Spawns []spawned `json:"spawns,omitempty"`
	// Running is the call that was about to be made.
	Running string    `json:"running,omitempty"`
	At      time.Time `json:"at"`
}

func (t *turn) name() string {
	id := t.m.Envelope().MessageID
	if !roomName.MatchString(id) {
		id = envelope.DerivedID(id, "turn")
	}
	return TurnsPrefix + id
}

// openTurn takes up what an earlier attempt of the message wrote down, or begins with the text.
func openTurn(ctx context.Context, m *bus.Incoming, s *session, text string) (*turn, error) {
	t := &turn{s: s, m: m, rec: turnRecord{MessageID: m.Envelope().MessageID}}
	t.rec.Outside = outsideEffects(m)
	if s.foreign || m.Attempt() == 1 && t.rec.Outside == 0 {
		t.add(ChatMessage{Role: RoleUser, Text: text})
		return t, nil
	}
	e, err := m.Term().Get(ctx, t.name())
	if err != nil {
		return nil, err
	}
	var rec turnRecord
	if e != nil && json.Unmarshal(e.Value, &rec) == nil && rec.MessageID == t.rec.MessageID && len(rec.Messages) > 0 {
		t.rec, t.kept = rec, true
		for _, msg := range rec.Messages {
			s.add(msg)
		}
		m.SkipAsks(rec.Asks)
		for _, sp := range rec.Spawns {
			if err := sp.send(m); err != nil {
				return nil, err
			}
		}
		if err := t.settle(ctx); err != nil {
			return nil, err
		}
	} else {
		t.add(ChatMessage{Role: RoleUser, Text: text})
	}
	if err := t.settleOthers(); err != nil {
		return nil, err
	}
	return t, nil
}

// outsideEffects is how many calls of tools are in the message's ledger.
func outsideEffects(m *bus.Incoming) (n int) {
	for _, e := range m.Effects() {
		if strings.HasPrefix(e.Name, toolEffect) {
			n++
		}
	}
	return n
}

// settleOthers closes what is open in the ledger and was answered for: its result was written down before the ledger was.
func (t *turn) settleOthers() error {
	for _, e := range t.m.Effects() {
		if !strings.HasPrefix(e.Name, toolEffect) || !e.State.Open() {
			continue
		}
		if err := t.m.Settle(e.Name, envelope.EffectSent, "interrupted"); err != nil {
			return err
		}
	}
	return nil
}

// settle finds out what is known of the call that was running when the earlier attempt ended.
func (t *turn) settle(ctx context.Context) error {
	id := t.rec.Running
	if id == "" {
		return nil
	}
	name := t.effect()
	e, known := t.m.Effect(name)
	if !known || e.State == envelope.EffectFailed || e.State == envelope.EffectWaived {
		// It surely was not made, or an operator wants it made again.
		t.rec.Outside--
		t.rec.Running = ""
		return nil
	}
	r := ToolResult{CallID: id, Failed: true, Text: "This call was made, but its result was lost when the work was interrupted. Do not simply call it again: look first what it did."}
	if e.State.Open() {
		r.Text = "It is not known whether this call was carried out, or how far: the work was interrupted. Do not simply call it again: look first what it did."
		// For all that may depend on it, it counts as made.
		if err := t.m.Settle(name, envelope.EffectSent, "interrupted"); err != nil {
			return err
		}
	}
	t.rec.Partial, t.rec.Running = append(t.rec.Partial, r), ""
	return t.write(ctx)
}

// add puts a message into the turn and the conversation.
func (t *turn) add(m ChatMessage) {
	t.rec.Messages = append(t.rec.Messages, m)
	t.s.add(m)
}

// open are the calls of the model's last answer that want their results.
func (t *turn) open() []ToolCall {
	last := t.rec.Messages[len(t.rec.Messages)-1]
	return last.Calls
}

// effect is the ledger's name for the newest outside call.
func (t *turn) effect() string { return fmt.Sprintf("%s%d", toolEffect, t.rec.Outside) }

// errLongTurn is a turn that does not fit into the store.
var errLongTurn = errors.New("the turn is too long to be written down")

// write puts the turn into the store, its results as short as it takes.
func (t *turn) write(ctx context.Context) error {
	rec := t.rec
	rec.At = time.Now().UTC()
	for most := maxKeptResult; ; most /= 4 {
		rec.Messages = shortForStore(t.rec.Messages, most)
		rec.Partial = shortResults(t.rec.Partial, most)
		value := mustJSON(rec)
		switch {
		case len(value) <= maxTurn:
			t.kept = true
			return t.m.Term().Write(ctx, bus.RoomEntry{Name: t.name(), Value: value})
		case most < 64:
			return errLongTurn
		}
	}
}

// call makes the calls of the model's last answer, one after another and in their order, as far as they have no results.
func (t *turn) call(ctx context.Context, box toolbox) error {
	calls := t.open()
	for _, c := range calls[len(t.rec.Partial):] {
		out, err := t.callOne(ctx, box, c, len(t.rec.Partial))
		if err != nil {
			return err
		}
		t.rec.Partial = append(t.rec.Partial, ToolResult{CallID: c.ID, Text: out.Text, Failed: out.Failed})
		if t.rec.Running != "" {
			t.rec.Running = ""
			if err := t.write(ctx); err != nil {
				return err
			}
		}
	}
	results := t.rec.Partial
	t.rec.Partial = nil
	t.add(ChatMessage{Role: RoleTool, Results: results})
	return nil
}

func (t *turn) callOne(ctx context.Context, box toolbox, c ToolCall, n int) (ToolOutput, error) {
	tool := box.find(c.Name)
	switch {
	case n >= maxCallsAtOnce:
		return Failed("not called: at most %d calls at once", maxCallsAtOnce), nil
	case tool == nil:
		return Failed("there is no tool %q", c.Name), nil
	}
	if err := t.m.Guard(); err != nil {
		return ToolOutput{}, err
	}
	call := &Call{Message: t.m, Arguments: c.Arguments, Session: t.s.rec.Key, turn: t}
	if tool.Effect != EffectOutside || t.s.foreign {
		before := t.m.Asked()
		out, err := tool.run(ctx, call)
		t.rec.Asks += t.m.Asked() - before
		return out, err
	}
	return t.outside(ctx, tool, call, c)
}

// outside makes a call that must not be made twice.
func (t *turn) outside(ctx context.Context, tool *Tool, call *Call, c ToolCall) (ToolOutput, error) {
	if t.rec.Outside >= maxOutside {
		return Failed("not called: one message may cause %d calls of tools that change something", maxOutside), nil
	}
	t.rec.Outside++
	t.rec.Running = c.ID
	switch err := t.write(ctx); {
	case errors.Is(err, errLongTurn):
		t.rec.Outside--
		t.rec.Running = ""
		return Failed("not called: %v; begin a new conversation", err), nil
	case err != nil:
		return ToolOutput{}, err
	}
	permit, err := t.m.Intend(ctx, t.effect(), map[string]string{"tool": c.Name, "call": c.ID})
	if err != nil {
		return ToolOutput{}, err
	}
	if err := permit.Check(); err != nil {
		return ToolOutput{}, errors.Join(err, permit.Settle(envelope.EffectFailed, ""))
	}
	out, err := tool.run(ctx, call)
	if err != nil {
		// Nobody knows how far it came; the next attempt tells the model.
		return ToolOutput{}, err
	}
	if out.Undone {
		defer func() { t.rec.Outside-- }() // the name is free again
		return out, permit.Settle(envelope.EffectFailed, "")
	}
	return out, permit.Settle(envelope.EffectSent, c.Name)
}

// over is the entry that clears the turn away, for the transaction that acks the message.
func (t *turn) over() []bus.RoomEntry {
	if t == nil || !t.kept {
		return nil
	}
	return []bus.RoomEntry{{Name: t.name()}}
}
