// Package channeltest is the suite that every chat channel's adapter passes, each against a fake of its vendor that speaks the
// vendor's protocol and misbehaves on demand.
//
// An adapter's test calls [Run] with its factory and a function that starts the fake. What only one vendor has is tested beside it.
package channeltest

import (
	"encoding/json"
	"testing"

	"github.com/gatemesh/gatemesh/gateway"
)

// Vendor is a fake of a vendor at the wire: a server that the vendor's real client library talks to. Its methods are for any goroutine.
type Vendor interface {
	// Settings is the account's block of the configuration that points an adapter here, secrets included.
	Settings() json.RawMessage
	// Secrets are the texts in Settings (and in what the vendor answers) that no error and no log may show.
	Secrets() []string
	// Peer is somebody or some room of that kind whom the account may hear and write to; false when this vendor has none of it.
	Peer(kind string) (gateway.ChannelPeer, bool)
	// Say lets somebody say something to the account, and returns the id that [gateway.ChannelEvent.ID] must have. It does not wait: the
	// fake delivers the event to one open connection, or to the next one, as its vendor does.
	Say(s Said) (event string)
	// Redeliver delivers an event once more, on whatever connection is open.
	Redeliver(event string)
	// Acknowledged says whether the vendor heard "got it" for an event; ok is false when its protocol has no such word.
	Acknowledged(event string) (acknowledged, ok bool)
	// Posts are the messages that the account has posted and that the people there see, in order.
	Posts() []VendorPost
	// Requests counts the attempts to post that reached the vendor, whatever it answered.
	Requests() int
	// Connections counts the open connections; Connects all that were ever made.
	Connections() int
	Connects() int
	// Misbehave makes the vendor commit a fault; false when its protocol has no such thing.
	Misbehave(f Fault) bool
}

// Said is what somebody says.
type Said struct {
	Peer gateway.ChannelPeer
	// Thread of the peer; empty: none.
	Thread string
	Text   string
	// Mention addresses the account by name, as the vendor writes it.
	Mention bool
}

// VendorPost is a message that the vendor took.
type VendorPost struct {
	Ref    string
	Peer   string
	Thread string
	Text   string
}

// Fault is a way to misbehave. Those that are about posts apply to the next attempt alone, but for [FaultCredentials].
type Fault string

// The faults.
const (
	// FaultDrop cuts every open connection; the next one is welcome, and may resume.
	FaultDrop Fault = "drop"
	// FaultInvalidSession cuts every open connection and refuses to resume it.
	FaultInvalidSession Fault = "invalid session"
	// FaultGarbage says something on every open connection that is not the protocol.
	FaultGarbage Fault = "garbage"
	// FaultCredentials refuses the account from now on, connected or not.
	FaultCredentials Fault = "credentials refused"
	// FaultRateLimit refuses the next post because there were too many, for a second.
	FaultRateLimit Fault = "rate limit"
	// FaultRejected refuses the next post for good: no such room (4xx).
	FaultRejected Fault = "rejected"
	// FaultServer answers the next post as a server in trouble (5xx), without having taken it.
	FaultServer Fault = "server error"
	// FaultLostReply takes the next post and cuts the connection before it says so.
	FaultLostReply Fault = "lost reply"
	// FaultPostGarbage takes the next post and answers what nobody can read.
	FaultPostGarbage Fault = "garbage in reply"
	// FaultSlow takes the next post and does not answer within the caller's patience (at least a minute).
	FaultSlow Fault = "slow"
)

// Adapter is what the suite is run against.
type Adapter struct {
	Factory gateway.ChannelFactory
	// Vendor starts a fake, ended by t.Cleanup.
	Vendor func(t testing.TB) Vendor
	// Acknowledges says that the vendor must not hear "got it" before Accept returned nil.
	Acknowledges bool
	// Known are faults of a post whose outcome this adapter can tell although the suite takes it for unknown.
	Known []Fault
	// Vault makes an account's vault when the factory needs one; nil: one in memory.
	Vault func(t testing.TB, v Vendor) gateway.Vault
}
