package bus

import (
	"fmt"
	"strings"

	"github.com/gatemesh/gatemesh/envelope"
)

// Invocation is what a policy decides about: one message, where it arrived.
type Invocation struct {
	MessageID string
	// From is who asks: the agent that sent the message first, and the gateway it was sent through. Forwarding
	// does not change it.
	From envelope.Address
	// To is the agent (or queue) that it is for now, and Gateway where that runs.
	To, Gateway string
	Capability  string
	// Size of the payload in bytes.
	Size int
	// Operator: an order of whoever operates the mesh (dead letters, tasks), not work for the agent.
	Operator bool
	// Again: the policy was asked about this message before (a retry). What is counted by messages counts it once.
	Again bool
}

// permitted asks the policy, before every attempt: a redriven message and one that waited are judged by the
// policy of now.
func (j *job) permitted() error {
	cfg := &j.ib.b.cfg
	if cfg.Authorize == nil || j.ib.spec.ID == cfg.Gateway {
		return nil // a gateway's own inbox takes answers and advice only
	}
	e := &j.env.Envelope
	i := Invocation{
		MessageID: e.MessageID, From: envelope.Address{Agent: e.SourceAgent, Gateway: e.SourceGateway}, To: j.ib.spec.ID, Gateway: cfg.Gateway,
		Capability: e.Capability, Size: e.PlainSize(), Again: j.del.Attempt > 0,
		Operator: e.InReplyTo == "" && strings.HasPrefix(e.Capability, ReservedCapability),
	}
	if err := cfg.Authorize(i); err != nil {
		return fmt.Errorf("not allowed: %w", err)
	}
	return nil
}
