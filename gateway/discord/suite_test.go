package discord

import (
	"testing"

	"github.com/gatemesh/gatemesh/gateway/channeltest"
)

// What every channel's adapter must do, Discord's does.
func TestSuite(t *testing.T) {
	channeltest.Run(t, channeltest.Adapter{Factory: Factory(), Vendor: newVendor})
}
