package main

import (
	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/discord"
	"github.com/gatemesh/gatemesh/gateway/slack"
	"github.com/gatemesh/gatemesh/gateway/whatsapp"
)

// channels are the vendors whose chat channels this binary knows.
func channels() map[string]gateway.ChannelFactory {
	return map[string]gateway.ChannelFactory{"slack": slack.Factory(), "discord": discord.Factory(), "whatsapp": whatsapp.Factory()}
}
