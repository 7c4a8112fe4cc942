package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Channel is one account at a chat vendor, connected under one term of ownership: it is made when this gateway begins
// to own the account, and never used after the term has ended. Everything that a vendor has beyond these two is an optional
// interface: [ChannelFinder], [ChannelPairer], [ChannelReactor].
//
// Errors of both methods say what is known with [NotSent], [Rejected] and [BadCredentials]; none contains a token.
type Channel interface {
	// Run connects, and hands every event to in, until ctx ends; then it returns nil with the connection closed, within a second.
	// It mends what the vendor's protocol mends (reconnect, resume, rate limits). What it cannot mend it returns: it is then
	// called again after a growing pause, but for [BadCredentials], which waits for a new configuration or an operator.
	Run(ctx context.Context, in Ingress) error

	// Post sends one message. It is called at the same time as Run, and by several goroutines, never at the same time for one
	// conversation. It calls p.Check immediately before the bytes leave and gives up when that fails. An error that says nothing of
	// its outcome leaves it unknown: the message may have been sent.
	Post(ctx context.Context, p Post) (Posted, error)
}

// ChannelFinder is a Channel that can ask its vendor whether a post was made: in its history, or by sending again under an id that
// the vendor (or the receiver's client) takes once.
type ChannelFinder interface {
	// Find returns what became of p, and false when the vendor says that there is no such post. An error leaves it open: for 10 minutes from
	// the post's beginning it is tried again, after what [NotSent] says, unless it is [ErrCannotFind] or one of [Rejected]: then the outcome is unknown for good.
	Find(ctx context.Context, p Post) (Posted, bool, error)
}

// ErrCannotFind: the vendor cannot be asked what became of a post, now or later.
var ErrCannotFind = errors.New("the vendor cannot be asked")

// ChannelPairer is a Channel whose account is linked by a person (a QR code).
type ChannelPairer interface {
	// Pair links the account. It calls show with each code to be shown, and returns when the account is linked, refused, or ctx ends.
	Pair(ctx context.Context, show func(PairingCode)) error
	// Logout unlinks the account at the vendor and forgets its credentials.
	Logout(ctx context.Context) error
}

// PairingCode is what a person scans or types to link an account.
type PairingCode struct {
	Code    string    `json:"code"`
	Expires time.Time `json:"expires"`
}

// ChannelReactor is a Channel that can show that a message was taken in, as a reaction to it.
type ChannelReactor interface {
	// React sets or takes back the mark "being worked on" on a message. Doing it twice does no harm; errors are only logged.
	React(ctx context.Context, to PostTarget, on bool) error
}

// Ingress takes in what a vendor says. Its methods are for any goroutine, until Run returns.
type Ingress interface {
	// Accept returns nil when the event is in the bus, on a majority of the servers' disks: only then may the vendor hear "got it".
	// The same id may come again, to any gateway: it is taken in once. An error says that it is not known to be there: do not acknowledge it.
	Accept(ctx context.Context, e ChannelEvent) error
	// Status tells what the connection is at; it is kept for people, and the last one counts.
	Status(s ChannelStatus)
	// Foreign raises the alarm: somebody else uses this account's credentials at the same time.
	Foreign(detail string)
}

// Kinds of peers, as in OpenClaw's bindings.
const (
	PeerDM      = "dm"      // one person
	PeerGroup   = "group"   // several, by invitation
	PeerChannel = "channel" // a room of a team
)

// ChannelPeer is who a conversation is held with.
type ChannelPeer struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
}

// ChannelEvent is something that somebody said to the account.
type ChannelEvent struct {
	// ID is the platform's own id of the event, unique within the account, the same in every redelivery.
	ID string `json:"id"`
	// Message is the platform's id of the message, which a reaction or a thread names; for an edit that of the edited one.
	Message string `json:"message,omitempty"`
	// Edited says that Text replaces what Message said before.
	Edited bool        `json:"edited,omitempty"`
	Peer   ChannelPeer `json:"peer"`
	// Thread is the platform's id of the thread; empty: none. Each thread is a conversation of its own.
	Thread string `json:"thread,omitempty"`
	// Team is the workspace, guild or the like.
	Team   string        `json:"team,omitempty"`
	Sender ChannelSender `json:"sender"`
	Text   string        `json:"text"`
	// Mentioned says that the account was addressed: in a DM always, elsewhere by name.
	Mentioned bool `json:"mentioned,omitempty"`
	// Files are noted, not fetched.
	Files []ChannelFile `json:"files,omitempty"`
	// At is the platform's stamp, for people.
	At time.Time `json:"at"`
}

// ChannelSender is who said it, as the platform tells.
type ChannelSender struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// ChannelFile is a file that came with an event.
type ChannelFile struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"` // media type
	Size int64  `json:"size,omitempty"` // bytes; 0: not told
}

// PostTarget is where a post goes.
type PostTarget struct {
	Peer   ChannelPeer `json:"peer"`
	Thread string      `json:"thread,omitempty"`
	// Message is what it answers or reacts to; empty: nothing.
	Message string `json:"message,omitempty"`
}

// Post is one message to be sent. The same post has the same ID whoever sends it and however often.
type Post struct {
	// ID is a UUID. A vendor's client message id or nonce is made of it.
	ID string `json:"id"`
	To PostTarget
	// Text is plain text with simple Markdown; the adapter makes of it what the vendor can show. A text that is longer than the vendor takes is
	// split by the caller, by [ChannelLimits].
	Text string
	// Check says whether this gateway may make the effect at this very moment.
	Check func() error
	// Since is when it was first meant to be sent: [ChannelFinder] need not look further back.
	Since time.Time
}

// Posted is the vendor's word that a post was taken.
type Posted struct {
	// Ref is the platform's id of the message.
	Ref string    `json:"ref"`
	At  time.Time `json:"at,omitzero"`
}

// ChannelLimits is what a vendor takes.
type ChannelLimits struct {
	// Text is how many characters a post may have.
	Text int
}

// ChannelState is what a connection is at.
type ChannelState string

// The states of a connection.
const (
	ChannelConnecting   ChannelState = "connecting"
	ChannelConnected    ChannelState = "connected"
	ChannelReconnecting ChannelState = "reconnecting"
	ChannelPairing      ChannelState = "pairing"    // waits for a person
	ChannelLoggedOut    ChannelState = "logged-out" // waits for new credentials
	ChannelStopped      ChannelState = "stopped"
)

// ChannelStatus is what a connection is at, for people.
type ChannelStatus struct {
	State ChannelState `json:"state"`
	// Detail is one line without secrets.
	Detail string `json:"detail,omitempty"`
	// Self is the account's own name or id at the vendor, once known.
	Self string `json:"self,omitempty"`
}

// ChannelDeps are what an adapter works with.
type ChannelDeps struct {
	// Account names it within its channel; "default" when the configuration names none.
	Account string
	// Settings is the account's block of the configuration, as it stands there: channels.<channel>, with what
	// accounts.<account> has over it. Secrets are in it.
	Settings json.RawMessage
	// Vault keeps what must go along with the account. Nil when no key for it is configured.
	Vault Vault
	// Logger is never nil.
	Logger hclog.Logger
}

// Vault keeps an account's credentials in the store, encrypted, under the lease: what a gateway writes that is not the
// account's owner any more is refused by the store, in the same transaction. So two gateways never go on from the same state.
type Vault interface {
	// Get returns nil without an error when there is nothing.
	Get(ctx context.Context, name string) ([]byte, error)
	// List returns all whose names begin with prefix.
	List(ctx context.Context, prefix string) (map[string][]byte, error)
	// Write sets and (where the value is nil) deletes, all or nothing, at most 60 names and 256 KiB together. It is on a majority of the servers' disks when
	// it returns. Errors: bus.ErrDeposed, bus.ErrUnavailable (the outcome is unknown), bus.ErrTooLarge.
	Write(ctx context.Context, values map[string][]byte) error
}

// ChannelFactory makes the adapter of an account. Its error is a mistake in the configuration, named by its key.
type ChannelFactory struct {
	New    func(ChannelDeps) (Channel, error)
	Limits ChannelLimits
	// NeedsVault says that the account cannot do without a Vault.
	NeedsVault bool
}

// Sentinels of a Channel, to be found with errors.Is.
var (
	errRejected       = errors.New("refused by the vendor")
	errBadCredentials = errors.New("credentials refused")
)

// NotSentError says that a post surely did not reach the vendor: it may be tried again.
type NotSentError struct {
	Cause error
	// After is when to try again, as the vendor says (a rate limit); 0: it does not.
	After time.Duration
}

func (e *NotSentError) Error() string { return fmt.Sprintf("not sent: %v", e.Cause) }
func (e *NotSentError) Unwrap() error { return e.Cause }

// NotSent makes a [NotSentError].
func NotSent(after time.Duration, cause error) error {
	return &NotSentError{Cause: cause, After: after}
}

// Rejected says that the vendor refused a post for good (no such room, not a member): trying again will not help.
func Rejected(cause error) error { return fmt.Errorf("%w: %w", errRejected, cause) }

// BadCredentials says that the vendor refuses the account: a person must act, and fix says how.
func BadCredentials(fix string, cause error) error {
	return fmt.Errorf("%w: %w (%s)", errBadCredentials, cause, fix)
}

// IsRejected reports whether err is made by [Rejected].
func IsRejected(err error) bool { return errors.Is(err, errRejected) }

// IsBadCredentials reports whether err is made by [BadCredentials].
func IsBadCredentials(err error) bool { return errors.Is(err, errBadCredentials) }
