package main

import (
	"fmt"

	"github.com/gatemesh/gatemesh/gateway"
)

// channels looks at the accounts of chat channels: each that is not connected, and what its owner noticed.
func (d *doctor) channels(accounts []gateway.AccountStatus) {
	well := true
	warn := func(check, detail, fix string) {
		well = false
		d.warn(check, detail, fix)
	}
	for _, a := range accounts {
		check := "channel " + accountName(a)
		at := ""
		if a.Gateway != "" {
			at = " at " + a.Gateway
		}
		why := ""
		if a.Detail != "" {
			why = ": " + a.Detail
		}
		switch a.State {
		case gateway.ChannelConnected:
		case gateway.ChannelPairing:
			warn(check, "waits for somebody to link it"+at, "gatemesh channels pair "+accountName(a))
		case gateway.ChannelLoggedOut:
			well = false
			fix := "mend what it names at the vendor: it is tried again within 5 minutes, at once after SIGHUP to " + orStar(a.Gateway) +
				"; or put new ones into channels." + a.Channel + " on every node: they are taken up without a restart"
			if a.Channel == "whatsapp" {
				fix = "gatemesh channels pair " + accountName(a)
			}
			d.fail(check, "the vendor refuses its credentials"+at+why, fix)
		case gateway.ChannelStopped:
			warn(check, "nobody has it: nothing that is said there is heard", "start a gateway that has channels."+a.Channel+" configured, or look for its account in the logs")
		default:
			warn(check, string(a.State)+at+why, "gatemesh channels status "+accountName(a)+"; the log of "+orStar(a.Gateway)+" says why")
		}
		fix := "find out who runs the same token, or give the account another one in channels." + a.Channel
		switch {
		case foreignNow(a):
			well = false
			d.fail(check, "somebody else uses its credentials: "+withAge(a.Foreign, a.ForeignAt), fix)
		case a.Foreign != "":
			warn(check, "somebody else used its credentials: "+withAge(a.Foreign, a.ForeignAt), fix)
		}
		if a.Unknown > 0 {
			warn(check, fmt.Sprintf("%s of which nobody knows whether the vendor took them", plural(a.Unknown, "post")),
				unknownRemedy(a)+", look there, and redrive or purge each")
		}
	}
	if well && len(accounts) > 0 {
		d.ok("channels", plural(len(accounts), "account")+", connected")
	}
}
