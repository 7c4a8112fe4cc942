package agent

import (
	"context"

	"github.com/gatemesh/gatemesh/bus"
)

// NewEcho makes a runner that replies with the payload that came, byte for byte.
func NewEcho(Spec, Deps) (bus.Handler, error) {
	return bus.HandlerFunc(func(_ context.Context, m *bus.Incoming) error {
		return m.Reply(m.Envelope().Payload)
	}), nil
}
