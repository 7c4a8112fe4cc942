package a2aserver

import (
	"encoding/json"
	"fmt"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// task is what the mesh knows of a message, as A2A says it. What was for another agent is no task of this one.
func (s *server) task(st gateway.MessageStatus) (*a2a.Task, error) {
	t := &a2a.Task{ID: a2a.TaskID(st.MessageID), ContextID: st.MessageID, Status: a2a.TaskStatus{State: a2a.TaskStateSubmitted}}
	switch {
	case st.Envelope != nil:
		if st.Envelope.TargetAgent != s.agent {
			return nil, fmt.Errorf("%w: it is not this agent's", a2a.ErrTaskNotFound)
		}
		t.ContextID = st.Envelope.ConversationID
	case st.Reply != nil: // the question is not kept as long as the answer
		t.ContextID = st.Reply.ConversationID
	}
	f := st.Facts
	switch {
	case f.Dead:
		t.Status.State = a2a.TaskStateFailed
		switch f.Class {
		case envelope.ClassUnauthorised:
			t.Status.State = a2a.TaskStateRejected
		case envelope.ClassCancelled:
			t.Status.State = a2a.TaskStateCanceled
		}
		t.Status.Message = s.say(st.MessageID, t.ContextID, string(f.Class)+": "+f.Reason)
	case f.Replied:
		t.Status.State = a2a.TaskStateCompleted
		a := &a2a.Artifact{ID: a2a.ArtifactID(envelope.DerivedID(st.MessageID, "artifact")), Name: "answer", Parts: a2a.ContentParts{a2a.NewTextPart(st.Text)}}
		if data := object(st); data != nil {
			a.Parts = append(a.Parts, a2a.NewDataPart(data))
		}
		t.Artifacts = []*a2a.Artifact{a}
	case f.Delivered || f.Acked:
		t.Status.State = a2a.TaskStateWorking
	}
	if n := len(st.Events); n > 0 {
		at := st.Events[n-1].At.Time
		t.Status.Timestamp = &at
	}
	return t, nil
}

// object is an answer that is more than its text.
func object(st gateway.MessageStatus) map[string]any {
	payload := st.ReplyPayload
	if payload == nil && st.Reply != nil && !st.Reply.Closed() {
		payload = st.Reply.Payload
	}
	var o map[string]any
	if len(payload) == 0 || payload[0] != '{' || json.Unmarshal(payload, &o) != nil {
		return nil
	}
	return o
}

// say is a message of the agent about a task, always the same one.
func (s *server) say(task, conversation, text string) *a2a.Message {
	return &a2a.Message{ID: envelope.DerivedID(task, "status"), TaskID: a2a.TaskID(task), ContextID: conversation, Role: a2a.MessageRoleAgent, Parts: a2a.ContentParts{a2a.NewTextPart(text)}}
}
