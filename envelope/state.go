package envelope

import (
	"fmt"
	"slices"
)

// State is where a delivery stands. The words are the plan's.
type State string

// The states of a delivery.
const (
	// Queued: in the store, nobody works on it.
	Queued State = "queued"
	// Delivered: the target's owner has handed it to the agent.
	Delivered State = "delivered"
	// Acked: the agent is done, and the owner has recorded it. Terminal.
	Acked State = "acked"
	// Failed: an attempt ended without success; a retry or the dead letter follows.
	Failed State = "failed"
	// DeadLetter: it will not be tried again unless an operator redrives it. Terminal.
	DeadLetter State = "dead-letter"
)

// Terminal reports whether the bus itself never leaves the state.
func (s State) Terminal() bool { return s == Acked || s == DeadLetter }

// Transition is one legal move.
type Transition struct {
	From, To State
	// By names who may make it, When what causes it.
	By, When string
}

// Transitions is the state machine, whole. A delivery that is created starts as Queued.
var Transitions = []Transition{
	{Queued, Delivered, "owner", "the agent gets it"},
	{Queued, DeadLetter, "owner", "expired, unknown version, too many hops or undeliverable before any attempt"},
	{Delivered, Acked, "owner", "the agent is done"},
	{Delivered, Failed, "owner", "the agent failed, took too long, or its process died"},
	{Delivered, DeadLetter, "owner", "the agent said never, it expired while worked on, or nobody knows whether an effect of it was made"},
	{Failed, Queued, "owner", "retry, after the backoff"},
	{Failed, DeadLetter, "owner", "attempts exhausted or expired"},
	{DeadLetter, Queued, "operator", "redrive"},
}

// States lists all states in the order of a normal life.
var States = []State{Queued, Delivered, Acked, Failed, DeadLetter}

// CanMove reports whether the table has the move.
func CanMove(from, to State) bool {
	for _, t := range Transitions {
		if t.From == from && t.To == to {
			return true
		}
	}
	return false
}

// An IllegalMoveError is a move that the table does not have.
type IllegalMoveError struct{ From, To State }

func (e *IllegalMoveError) Error() string {
	return fmt.Sprintf("a delivery cannot go from %s to %s", e.From, e.To)
}

// Class says why a delivery failed, decided once, where the failure is seen.
type Class string

// The classes of failure. The first three are tried again, the others never.
const (
	// ClassRetry: may work next time.
	ClassRetry Class = "retry"
	// ClassTimeout: the handler did not finish within the ack timeout.
	ClassTimeout Class = "timeout"
	// ClassCrashed: the process that worked on it died.
	ClassCrashed Class = "crashed"

	// ClassExhausted: every allowed attempt failed.
	ClassExhausted Class = "exhausted"
	// ClassExpired: its TTL passed.
	ClassExpired Class = "expired"
	// ClassPoison: it cannot be read or the agent refuses it for good.
	ClassPoison Class = "poison"
	// ClassVersion: unknown major schema version.
	ClassVersion Class = "unknown-version"
	// ClassHops: too many hops.
	ClassHops Class = "hops"
	// ClassUnauthorised: the sender may not ask this of the agent.
	ClassUnauthorised Class = "unauthorised"
	// ClassBudget: its causal chain has nothing left to spend.
	ClassBudget Class = "budget"
	// ClassUndeliverable: it cannot be handled where it arrived.
	ClassUndeliverable Class = "undeliverable"
	// ClassCancelled: an operator gave it up.
	ClassCancelled Class = "cancelled"
	// ClassUnknown: whether an effect of it outside of the mesh was made cannot be found out.
	ClassUnknown Class = "unknown"
	// ClassUnreadable: its payload is encrypted, and cannot be decrypted where it arrived.
	ClassUnreadable Class = "unreadable"
)

// Classes lists all classes.
var Classes = []Class{
	ClassRetry, ClassTimeout, ClassCrashed,
	ClassExhausted, ClassExpired, ClassPoison, ClassVersion, ClassHops, ClassUnauthorised, ClassBudget, ClassUndeliverable, ClassCancelled, ClassUnknown, ClassUnreadable,
}

// Retryable reports whether another attempt can help.
func (c Class) Retryable() bool {
	switch c {
	case ClassRetry, ClassTimeout, ClassCrashed:
		return true
	default:
		return false
	}
}

// Delivery is what happened to an envelope since it was sealed. Its times are
// stamped by the gateway that did the thing, on its own clock.
type Delivery struct {
	State State `json:"state"`
	// RetryCount counts the attempts that failed (the plan's retry_count).
	RetryCount int `json:"retry_count"`
	// Attempt is the number of the current or last attempt, from 1.
	Attempt int `json:"attempt,omitempty"`
	// Crashes counts the attempts that ended with the process that made them.
	Crashes int `json:"crashes,omitempty"`
	// Hops are the agents that passed it, or its cause, on, in order.
	Hops []Hop `json:"hops,omitempty"`
	// For is the agent that it was passed on to, when that is not its target_agent.
	For string `json:"for,omitempty"`
	// Keys are the keys of an encrypted payload for the readers that those who passed it on added, as in [Encryption].
	Keys []string `json:"keys,omitempty"`
	// AttemptID is the sender's name for the try by which it came.
	AttemptID string `json:"attempt_id,omitempty"`
	// Spent is what was taken off its budget so far.
	Spent *Spent `json:"spent,omitempty"`
	// Owner is the gateway that works on it.
	Owner       string `json:"owner,omitempty"`
	QueuedAt    *Time  `json:"queued_at,omitempty"`
	DeliveredAt *Time  `json:"delivered_at,omitempty"`
	AckedAt     *Time  `json:"acked_at,omitempty"`
	// NextAttemptAt is when a queued retry becomes due.
	NextAttemptAt *Time  `json:"next_attempt_at,omitempty"`
	DeadAt        *Time  `json:"dead_at,omitempty"`
	Class         Class  `json:"class,omitempty"`
	LastError     string `json:"last_error,omitempty"`
	// ExpiresAt is the end of life that a redrive gave it, in place of created_at + ttl.
	ExpiresAt *Time `json:"expires_at,omitempty"`
	// Redrives are its returns from the dead letters, oldest first.
	Redrives []Redrive `json:"redrives,omitempty"`
	// Failures keeps the last attempts that failed, oldest first.
	Failures []Failure `json:"failures,omitempty"`
	// Effects is the ledger of what its handling does outside of the mesh.
	Effects []Effect `json:"effects,omitempty"`
}

// Hop is one agent on the path, and the gateway where it was.
type Hop struct {
	Gateway string `json:"gateway"`
	Agent   string `json:"agent"`
	At      Time   `json:"at"`
}

// Redrive is one return from the dead letters: who wanted it, and what the message had died of.
type Redrive struct {
	At      Time   `json:"at"`
	By      string `json:"by"`
	Gateway string `json:"gateway"`
	DeadAt  *Time  `json:"dead_at,omitempty"`
	Class   Class  `json:"class,omitempty"`
	Error   string `json:"error"`
}

// Failure is one attempt that did not work.
type Failure struct {
	Attempt int    `json:"attempt"`
	Gateway string `json:"gateway"`
	At      Time   `json:"at"`
	Class   Class  `json:"class"`
	Error   string `json:"error"`
}

// maxFailures bounds Delivery.Failures: the first one and the newest are kept.
const maxFailures = 16

// maxError bounds a recorded error text, in bytes.
const maxError = 1024

// Move takes the delivery to another state at the given moment, or returns
// *IllegalMoveError and changes nothing.
func (d *Delivery) Move(to State, at Time) error {
	if !CanMove(d.State, to) {
		return &IllegalMoveError{From: d.State, To: to}
	}
	d.State = to
	switch to {
	case Queued:
		d.QueuedAt = &at
		d.DeadAt = nil
	case Delivered:
		d.DeliveredAt = &at
		d.Attempt++
		d.NextAttemptAt = nil
	case Acked:
		d.AckedAt = &at
	case DeadLetter:
		d.DeadAt = &at
		d.NextAttemptAt = nil
	case Failed:
		d.RetryCount++
	}
	return nil
}

// Fail records a failed attempt beside the state.
func (d *Delivery) Fail(gateway string, at Time, class Class, err string) {
	d.Class, d.LastError = class, clip(err, maxError)
	if class == ClassCrashed {
		d.Crashes++
	}
	f := Failure{Attempt: d.Attempt, Gateway: gateway, At: at, Class: class, Error: d.LastError}
	old := d.Failures
	if n := len(old); n >= maxFailures {
		old = slices.Concat(old[:1], old[n-maxFailures+2:])
	}
	// A new array: copies of d share the old one.
	d.Failures = append(slices.Clip(old), f)
}

// Handover gives a delivery back before its attempt ended, because its owner stops. It goes
// through failed to queued without counting against the attempts.
func (d *Delivery) Handover(gateway string, at Time) error {
	if err := d.Move(Failed, at); err != nil {
		return err
	}
	d.RetryCount--
	d.Fail(gateway, at, ClassRetry, "handed over: the gateway stops")
	return d.Move(Queued, at)
}

// Redrive takes a dead letter back to the queue with all its history; attempts that failed no longer count
// against it. A given end of life replaces the envelope's.
func (d *Delivery) Redrive(by, gateway string, at Time, expires *Time) error {
	was := Redrive{At: at, By: by, Gateway: gateway, DeadAt: d.DeadAt, Class: d.Class, Error: d.LastError}
	if err := d.Move(Queued, at); err != nil {
		return err
	}
	old := d.Redrives
	if n := len(old); n >= maxFailures {
		old = slices.Concat(old[:1], old[n-maxFailures+2:])
	}
	d.Redrives = append(slices.Clip(old), was)
	d.waive(by, at)
	d.RetryCount, d.Crashes, d.Class, d.LastError, d.NextAttemptAt = 0, 0, "", "", nil
	if expires != nil {
		d.ExpiresAt = expires
	}
	return nil
}

// Clip shortens an error text to what a delivery records.
func Clip(text string) string { return clip(text, maxError) }
