package bus

import (
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// The names of events. Each transition of a message is exactly one event at the gateway
// that makes it; a receipt is the sender learning of it.
const (
	// EventQueued: accepted, durable in the store (at the source gateway).
	EventQueued = "queued"
	// EventDelivered: handed to the agent (at the owner).
	EventDelivered = "delivered"
	// EventAcked: done and recorded (at the owner).
	EventAcked = "acked"
	// EventFailed: one attempt did not work (at the owner).
	EventFailed = "failed"
	// EventRetry: queued again (at the owner).
	EventRetry = "retry"
	// EventDeadLetter: given up, with class and reason (at the owner).
	EventDeadLetter = "dead-letter"
	// EventForwarded: passed on to another agent (at the gateway that did).
	EventForwarded = "forwarded"
	// EventEffect: the ledger of what the handling does outside of the mesh changed (at the owner).
	EventEffect = "effect"
	// EventPurged: a dead letter was removed, by an operator or by its retention (at the owner).
	EventPurged = "purged"
	// EventRedriven: a dead letter was queued again by an operator (at the owner).
	EventRedriven = "redriven"
	// EventStray: messages wait where nobody works on them (at the source gateway).
	EventStray = "stray"
	// EventReceipt: the source gateway learned a state of its message.
	EventReceipt = "receipt"
	// EventReplied: the answer reached whoever waits (at the asking gateway).
	EventReplied = "replied"
	// EventDuplicate: came again and was recognised; nothing was done.
	EventDuplicate = "duplicate"
	// EventRefused: something in the store could not be read, or is not believed; it was set aside.
	EventRefused = "refused"
	// EventGap: entries of a lane are missing; somebody deleted them.
	EventGap = "gap"
	// EventOwned, EventReleased, EventDeposed: ownership of an agent moved.
	EventOwned    = "owned"
	EventReleased = "released"
	EventDeposed  = "deposed"
	// EventStoreDown and EventStoreUp: the store stopped or began answering.
	EventStoreDown = "store-down"
	EventStoreUp   = "store-up"
)

// Event is one thing that happened, as logs, metrics, the stream and the timeline show it.
// The JSON names are stable.
type Event struct {
	Event         string         `json:"event"`
	At            envelope.Time  `json:"at"`
	Gateway       string         `json:"gateway"`
	MessageID     string         `json:"message_id,omitempty"`
	CorrelationID string         `json:"correlation_id,omitempty"`
	InReplyTo     string         `json:"in_reply_to,omitempty"`
	From          string         `json:"from,omitempty"` // agent@gateway
	To            string         `json:"to,omitempty"`   // agent
	Capability    string         `json:"capability,omitempty"`
	State         envelope.State `json:"state,omitempty"`
	Attempt       int            `json:"attempt,omitempty"`
	Class         envelope.Class `json:"class,omitempty"`
	Reason        string         `json:"reason,omitempty"`
	// Refusal is why something was not believed (the words are trust.Reason's), and Key the id of the key that it names.
	Refusal string `json:"refusal,omitempty"`
	Key     string `json:"key,omitempty"`
	// PassedOn is the agent to which the message went on, in the receipt that says so.
	PassedOn string `json:"passed_on,omitempty"`
	// By is the gateway that made the transition a receipt tells of.
	By string `json:"by,omitempty"`
	// Millis is the time since the message was made, by this gateway's clock.
	Millis float64 `json:"ms,omitempty"`
	// Effect is the name of an effect outside of the mesh, EffectState what is known of it now, and WindowMillis for how long
	// the ownership had not been confirmed when that was recorded.
	Effect       string               `json:"effect,omitempty"`
	EffectState  envelope.EffectState `json:"effect_state,omitempty"`
	WindowMillis float64              `json:"window_ms,omitempty"`
	// Text is the payload of a reply, for people; at most 4 KiB.
	Text string `json:"text,omitempty"`
}

// eventOf fills what every event of a message says.
func (b *Bus) eventOf(name string, e *envelope.Envelope) Event { return b.eventAt(name, e, b.now()) }

func (b *Bus) eventAt(name string, e *envelope.Envelope, now time.Time) Event {
	return Event{
		Event: name, At: envelope.At(now), Gateway: b.cfg.Gateway,
		MessageID: e.MessageID, CorrelationID: e.CorrelationID, InReplyTo: e.InReplyTo,
		From: e.SourceAgent + "@" + e.SourceGateway, To: e.TargetAgent, Capability: e.Capability,
		Millis: float64(now.Sub(e.CreatedAt.Time).Microseconds()) / 1000,
	}
}

// emit is the one path of events: the timeline first, so that whoever is woken by the
// observer can already read it.
func (b *Bus) emit(ev Event) { b.emitAt(trackRef{}, &ev) }

// emitAt is emit for who knows where the timeline is.
func (b *Bus) emitAt(ref trackRef, ev *Event) {
	if ev.MessageID != "" {
		b.tracks.note(ref, ev)
	}
	if b.cfg.Observe != nil {
		b.cfg.Observe(*ev)
	}
}

// emit tells of the message.
func (j *job) emit(ev *Event) { j.ib.b.emitAt(j.track, ev) }
