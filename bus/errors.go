package bus

import (
	"errors"
	"fmt"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// Sentinels of the bus.
var (
	// ErrUnknownAgent: no gateway has ever served the agent.
	ErrUnknownAgent = errors.New("unknown agent")
	// ErrOutcomeUnknown: the store did not say in time whether it took the message. It
	// may have. Send it again under the same id, or look the id up: both are safe.
	ErrOutcomeUnknown = errors.New("not known whether the message was accepted")
	// ErrStopped: the bus is stopping or stopped.
	ErrStopped = errors.New("gateway is stopping")
	// ErrDeposed: another gateway owns the agent now; what was done is not recorded.
	ErrDeposed = errors.New("no longer the owner")
	// ErrReplaced: another process runs under this gateway's name.
	ErrReplaced = errors.New("another process took over this gateway's name")
	// ErrHandover: an Ask ended because this gateway stops. A handler returns it as it is: the message
	// goes to the next owner, where the same Ask goes on.
	ErrHandover = errors.New("handed over: the gateway stops")
	// ErrLeaseLost: the handler gave no sign of life within the ack timeout, or returned already; what it
	// does with the message now is refused.
	ErrLeaseLost = errors.New("the lease on the message is lost")
	// ErrExpired: the message's lifetime is over.
	ErrExpired = errors.New("expired")
	// ErrInboxFull: the inbox holds all that it may of this gateway; see *InboxFullError.
	ErrInboxFull = errors.New("inbox is full")
	// ErrNotFound: no trace of the message.
	ErrNotFound = errors.New("message not found")
)

// An InboxFullError refuses a message because too many wait already.
type InboxFullError struct {
	Agent   string
	Waiting uint64
	// Owner drains the inbox; empty: nobody does.
	Owner string
}

func (e *InboxFullError) Error() string {
	owner := "nobody owns it now: start a gateway that may run " + e.Agent
	if e.Owner != "" {
		owner = "its owner is " + e.Owner
	}
	return fmt.Sprintf("inbox of %s is full: %d messages of this gateway wait in it; %s (the bound is mesh.maxInbox)", e.Agent, e.Waiting, owner)
}

// Is makes it an ErrInboxFull.
func (e *InboxFullError) Is(target error) bool { return target == ErrInboxFull }

// Retry makes a handler's failure be retried at once; the attempt counts.
func Retry(cause error) error { return RetryAfter(0, cause) }

// RetryAfter makes a handler's failure be retried after d instead of the backoff.
func RetryAfter(d time.Duration, cause error) error { return &retryAfter{d, cause} }

type retryAfter struct {
	after time.Duration
	cause error
}

func (e *retryAfter) Error() string { return e.cause.Error() }
func (e *retryAfter) Unwrap() error { return e.cause }

// Never makes a handler's failure final: the message goes to the dead letters
// with the class.
func Never(class envelope.Class, cause error) error { return &never{class, cause} }

type never struct {
	class envelope.Class
	cause error
}

func (e *never) Error() string { return e.cause.Error() }
func (e *never) Unwrap() error { return e.cause }

// IsNever reports whether a handler's failure is made by [Never].
func IsNever(err error) bool { return errors.As(err, new(*never)) }

// A DeadLetterError is the end of a message that was given up.
type DeadLetterError struct {
	MessageID string
	Agent     string
	Class     envelope.Class
	Reason    string
}

func (e *DeadLetterError) Error() string {
	return fmt.Sprintf("message %s to %s was given up (%s): %s", e.MessageID, e.Agent, e.Class, e.Reason)
}

// A NoAnswerError says what is known of a question whose answer did not come in time.
// The question goes on: its answer, if any, is found under its id.
type NoAnswerError struct {
	MessageID string
	Agent     string
	Facts     Facts
	Cause     error
}

func (e *NoAnswerError) Error() string {
	return fmt.Sprintf("no answer from %s yet to %s (%s); it may still come: message show %s", e.Agent, e.MessageID, e.Facts, e.MessageID)
}

func (e *NoAnswerError) Unwrap() error { return e.Cause }
