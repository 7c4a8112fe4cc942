package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// A signature says who speaks, and the trust set for which agents. Whether somebody may speak of one message, its fate or its answer, is
// said here: the agent that it was sent to, and those to whom that one passed it on.

// mayTellOf judges a receipt of agent about a message of this gateway's: without this, whoever may host any agent could have a sender believe
// that mail to another one was handled. It is asked of messages that are in memory; for others nobody here waits.
func (b *Bus) mayTellOf(e *envelope.Envelope, agent string) error {
	if e.TargetAgent == agent || !b.enforced() {
		return nil
	}
	tr, _, _ := b.tracks.get(e.MessageID)
	if tr.Facts.PassedOn != "" || slices.ContainsFunc(tr.Events, func(ev Event) bool { return ev.Event == EventForwarded }) {
		return nil // by the agent that it was for, or by this very gateway
	}
	return &trust.Refusal{Reason: trust.NotHost, Detail: fmt.Sprintf("message %s was for %s, and nobody passed it on", e.MessageID, e.TargetAgent)}
}

// mayAnswer judges an answer to a question that was put to agent. One from somebody else counts when the question was passed on; its
// receipt says so, and may be read later than the answer.
func (b *Bus) mayAnswer(ctx context.Context, agent string, answer *envelope.Sealed) error {
	if !b.enforced() || answer.SourceAgent == agent {
		return nil
	}
	if tr, _, _ := b.tracks.get(answer.InReplyTo); tr.Facts.PassedOn != "" {
		return nil
	}
	ok, err := b.passedOnBy(ctx, agent, answer.InReplyTo)
	if err != nil || ok {
		return err
	}
	return &trust.Refusal{Reason: trust.NotHost, Detail: fmt.Sprintf("the question %s was put to %s, and %s answers it", answer.InReplyTo, agent, answer.SourceAgent)}
}

// passedOnBy reports whether the owner of agent's inbox has told that it passed a message on. It reads all receipts: of what is asked again
// after a takeover, somebody else was told.
func (b *Bus) passedOnBy(ctx context.Context, agent, id string) (bool, error) {
	st := &Status{MessageID: id, Envelope: &envelope.Sealed{Envelope: envelope.Envelope{TargetAgent: agent}}}
	if _, err := b.findReceipt(ctx, st); err != nil {
		return false, fmt.Errorf("look whether %s passed %s on: %w", agent, id, err)
	}
	return st.Facts.PassedOn != "", nil
}

// believed returns an answer that waits for the question out, if it is one; what is none is forgotten, and told of.
func (m *Incoming) believed(ctx context.Context, out Outgoing) (*envelope.Sealed, error) {
	j, b := m.j, m.j.ib.b
	j.mu.Lock()
	ans := j.answers[out.ID]
	j.mu.Unlock()
	if ans == nil {
		return nil, nil //nolint:nilnil // none yet
	}
	err := b.mayAnswer(ctx, out.To.Agent, ans)
	var refused *trust.Refusal
	if !errors.As(err, &refused) {
		return ans, err
	}
	b.refuse("answer "+ans.MessageID, ans.Canonical(), err, ans.SourceAgent+"@"+ans.SourceGateway, j.ib.spec.ID)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.answers[out.ID] == ans {
		delete(j.answers, out.ID)
	}
	return nil, nil //nolint:nilnil // as if none had come
}
