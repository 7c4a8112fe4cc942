package main

import (
	"context"
	"strconv"
	"time"

	"github.com/skip2/go-qrcode"
	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) channelsCommand() *cobra.Command {
	return group("channels", "Look at the accounts of chat channels, link and unlink them",
		a.channelsListCommand(), a.channelsStatusCommand(), a.channelsPairCommand(), a.channelsLogoutCommand(), a.channelsKeyCommand())
}

func (a *app) channelsListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the accounts, who owns each and what it is at",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.channels(ctx)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(list)
				}
				t := newTable("ACCOUNT", "OWNER", "STATE", "SELF", "SINCE", "LAST EVENT", "LAST POST", "UNKNOWN", "DETAIL")
				for _, s := range list {
					t.add(accountName(s), s.Gateway, string(s.State), s.Self, whenSet(s.Since), whenSet(s.LastEvent), whenSet(s.LastPost), count(s.Unknown), alarmOf(s))
				}
				a.printer().table(t, "no accounts (set channels.webchat, channels.slack, ... in the configuration)")
				return nil
			})
		}),
	}
}

func accountName(s gateway.AccountStatus) string {
	if s.Channel == "" {
		return s.Inbox
	}
	return s.Channel + "/" + s.Account
}

func whenSet(t envelope.Time) string {
	if t.IsZero() {
		return "-"
	}
	return ago(t)
}

func count(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// alarmOf is what somebody should see at once.
func alarmOf(s gateway.AccountStatus) string {
	if foreignNow(s) {
		return "SOMEBODY ELSE USES THIS ACCOUNT (" + whenSet(s.ForeignAt) + "): " + s.Foreign
	}
	return s.Detail
}

// unknownRemedy is the command that shows posts of which nobody knows whether they were made.
func unknownRemedy(s gateway.AccountStatus) string {
	return "gatemesh deadletter list --agent " + s.Inbox + " --class unknown"
}

// foreignFor is how long an alarm about a foreign connection stands. While they stay the adapters raise it anew within some minutes, where the vendor lets
// them see it; so a later one is history.
const foreignFor = time.Hour

// foreignNow reports whether somebody else may be using the account's credentials still.
func foreignNow(s gateway.AccountStatus) bool {
	return s.Foreign != "" && (s.ForeignAt.IsZero() || time.Since(s.ForeignAt.Time) < foreignFor)
}

// withAge says when something happened before what it was.
func withAge(what string, at envelope.Time) string {
	if what == "" || at.IsZero() {
		return what
	}
	return whenSet(at) + ": " + what
}

func (a *app) channelsStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status ACCOUNT", Short: "Say what one account is at (channel/account, or channel alone)",
		Long: `Say what one account is at. The status is 1 when it is not connected, or somebody else used its credentials within the last hour.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				s, err := c.accountNamed(ctx, args[0])
				if err != nil {
					return err
				}
				out := a.printer()
				if a.asJSON {
					err = out.json(s)
				} else {
					for _, line := range [][2]string{
						{"account", accountName(*s)}, {"inbox", s.Inbox}, {"owner", s.Gateway}, {"state", string(s.State)}, {"detail", s.Detail}, {"self", s.Self},
						{"since", whenSet(s.Since)}, {"last event", whenSet(s.LastEvent)}, {"last post", whenSet(s.LastPost)}, {"last error", withAge(s.LastError, s.ErrorAt)},
						{"not answered", s.DeniedLast}, {"foreign", withAge(s.Foreign, s.ForeignAt)},
					} {
						if line[1] != "" && line[1] != "-" {
							out.printf("%-13s %s\n", line[0], printable(line[1]))
						}
					}
					if s.Unknown > 0 {
						out.printf("%-13s %s: %s\n", "unknown", plural(s.Unknown, "post"), unknownRemedy(*s))
					}
				}
				if err == nil && (s.State != gateway.ChannelConnected || foreignNow(*s)) {
					err = quiet(exitFailed)
				}
				return err
			})
		}),
	}
}

// accountNamed finds an account by channel/account, by its channel alone or by its inbox.
func (c *client) accountNamed(ctx context.Context, name string) (*gateway.AccountStatus, error) {
	list, err := c.channels(ctx)
	if err != nil {
		return nil, err
	}
	var found []gateway.AccountStatus
	for _, s := range list {
		if name == s.Inbox || name == accountName(s) || name == s.Channel {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 1:
		return &found[0], nil
	case 0:
		return nil, failf(exitUsage, "there is no account %q (gatemesh channels list)", name)
	}
	return nil, failf(exitUsage, "%s has %d accounts: name one, as %s", name, len(found), accountName(found[0]))
}

func (a *app) channelsPairCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pair ACCOUNT", Short: "Link an account by a code that its owner scans (WhatsApp)",
		Long: `Link an account: the code is shown here until somebody has scanned it (WhatsApp: Linked devices, Link a device).
It must be asked of the gateway that owns the account; another one says which that is.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			ctx, cancel := a.within(ctx, 5*time.Minute)
			defer cancel()
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.accountNamed(ctx, args[0])
			if err != nil {
				return err
			}
			return a.followPairing(ctx, c, s.Inbox)
		}),
	}
}

func (a *app) followPairing(ctx context.Context, c *client, inbox string) error {
	shown := ""
	for {
		p, err := c.pair(ctx, inbox, shown)
		if err != nil {
			return err
		}
		out := a.printer()
		switch {
		case a.asJSON:
			if err := out.json(p); err != nil || p.Linked {
				return err
			}
		case p.Linked:
			out.printf("linked %s\n", printable(p.Self))
			return nil
		case p.Code != nil && p.Code.Code != shown:
			q, err := qrcode.New(p.Code.Code, qrcode.Low)
			if err != nil {
				return failf(exitFailed, "the code cannot be drawn: %w", err)
			}
			out.printf("%s\nscan it before %s\n", q.ToSmallString(false), p.Code.Expires.Local().Format(time.TimeOnly))
		}
		if p.Code != nil {
			shown = p.Code.Code
		}
	}
}

func (a *app) channelsLogoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout ACCOUNT", Short: "Unlink an account at the vendor and forget its credentials",
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				s, err := c.accountNamed(ctx, args[0])
				if err != nil {
					return err
				}
				gone, err := c.logout(ctx, s.Inbox)
				if err == nil && a.asJSON {
					return a.printer().json(gone)
				}
				return err
			})
		}),
	}
}

func (a *app) channelsKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "key", Short: "Make a key for mesh.channelKeys, which encrypts the channels' credentials in the store",
		Args: cobra.NoArgs,
		RunE: body(func(*cobra.Command, []string) error {
			a.printer().printf("%s\n", gateway.NewChannelKey())
			return nil
		}),
	}
}

func (a *app) routeCommand() *cobra.Command {
	var file string
	var set []string
	var live bool
	var q gateway.RouteQuery
	explain := &cobra.Command{
		Use:   "explain --channel NAME [--account ID] [--peer-kind dm|group|channel --peer ID] [--team ID]",
		Short: "Say which agent answers a message, and by which binding",
		Long: `Say which agent answers what somebody says on a channel, by which binding, and why not by the others. It reads the
configuration of this node; with --live the running gateway is asked, which may not have taken up the file yet.

Status 0: an agent answers. 1: nobody does. 2: bad input or configuration.`,
		Example: `  gatemesh route explain --channel slack
  gatemesh route explain --channel discord --peer-kind dm --peer 123456789012345678`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			if (q.Peer.ID == "") != (q.Peer.Kind == "") {
				return failf(exitUsage, "--peer and --peer-kind go together")
			}
			var r gateway.Route
			if live {
				err := a.call(cmd.Context(), func(ctx context.Context, c *client) error {
					got, err := c.route(ctx, q)
					if err == nil {
						r = *got
					}
					return err
				})
				if err != nil {
					return err
				}
			} else {
				cfg, _, err := a.loadConfig(a.configPath(file), set)
				if err != nil {
					return err
				}
				if r, err = gateway.NewRouter(cfg).Explain(q); err != nil {
					return failf(exitUsage, "%w", err)
				}
			}
			return a.printRoute(r)
		}),
	}
	f := explain.Flags()
	f.StringVar(&file, "config", "", configFlagHelp)
	f.StringArrayVar(&set, "set", nil, "override a key (repeatable)")
	f.BoolVar(&live, "live", false, "ask the running gateway instead of the file")
	f.StringVar(&q.Channel, "channel", "", "name of the channel, as slack")
	f.StringVar(&q.Account, "account", "", "account of the channel (default: its default account)")
	f.StringVar(&q.Peer.Kind, "peer-kind", "", "dm, group or channel")
	f.StringVar(&q.Peer.ID, "peer", "", "id of the person, group or room")
	f.StringVar(&q.Team, "team", "", "workspace or guild")
	_ = explain.MarkFlagFilename("config", "json", "json5")
	_ = explain.MarkFlagRequired("channel")
	return group("route", "Explain which agent answers on a channel", explain)
}

func (a *app) printRoute(r gateway.Route) error {
	out := a.printer()
	var err error
	if a.asJSON {
		err = out.json(r)
	} else {
		who := r.Agent
		if who == "" {
			who = "nobody"
		}
		out.printf("%s: %s\n", printable(who), printable(r.Reason))
		for _, o := range r.Others {
			out.printf("  not bindings[%d] (%s): %s\n", o.Binding-1, printable(o.Agent), printable(o.Reason))
		}
	}
	if err == nil && r.Agent == "" {
		err = quiet(exitFailed)
	}
	return err
}
