package main

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// deadLetterFlags select dead letters.
type deadLetterFlags struct{ q gateway.DeadLetterQuery }

func (a *app) selectFlags(c *cobra.Command) *deadLetterFlags {
	f := &deadLetterFlags{}
	fl := c.Flags()
	fl.StringVar(&f.q.Agent, "agent", "", "only those of this agent")
	fl.StringVar(&f.q.Class, "class", "", "only those of this cause, as expired")
	fl.StringVar(&f.q.From, "from", "", "only those from this gateway, or agent@gateway")
	fl.StringVar(&f.q.Contains, "contains", "", "only those whose reason has this text")
	fl.StringVar(&f.q.Before, "before", "", "given up before: RFC 3339, or how long ago, as 24h")
	fl.StringVar(&f.q.After, "after", "", "given up after: RFC 3339, or how long ago, as 1h")
	fl.IntVar(&f.q.Limit, "limit", 0, "at most so many, the oldest first")
	_ = c.RegisterFlagCompletionFunc("agent", a.completeAgents)
	var classes []string
	for _, cl := range envelope.Classes {
		if !cl.Retryable() {
			classes = append(classes, string(cl))
		}
	}
	_ = c.RegisterFlagCompletionFunc("class", cobra.FixedCompletions(classes, cobra.ShellCompDirectiveNoFileComp))
	return f
}

func (f *deadLetterFlags) values() url.Values {
	v := url.Values{}
	for name, s := range map[string]string{
		"agent": f.q.Agent, "class": f.q.Class, "from": f.q.From, "contains": f.q.Contains, "before": f.q.Before, "after": f.q.After,
	} {
		if s != "" {
			v.Set(name, s)
		}
	}
	if f.q.Limit > 0 {
		v.Set("limit", strconv.Itoa(f.q.Limit))
	}
	v["id"] = f.q.IDs
	return v
}

func (a *app) deadLetterCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List messages that were given up, and why",
		Args: cobra.NoArgs,
	}
	lf := a.selectFlags(list)
	list.RunE = body(func(cmd *cobra.Command, _ []string) error {
		return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
			dead, err := c.deadLetters(ctx, lf.values())
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printer().json(dead)
			}
			a.printDeadLetters(dead)
			return nil
		})
	})
	show := &cobra.Command{
		Use: "show ID", Short: "Show a dead letter: its path, every failure, and what is in the way of a redrive",
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				dead, err := c.deadLetters(ctx, url.Values{"id": args})
				if err != nil {
					return err
				}
				if len(dead) == 0 {
					return failf(exitUsage, "%q is no dead letter (gatemesh deadletter list; its whole id is needed)", args[0])
				}
				if a.asJSON {
					return a.printer().json(dead[0])
				}
				a.printDeadLetter(&dead[0])
				return nil
			})
		}),
	}
	redrive := &cobra.Command{
		Use: "redrive [ID...]", Short: "Queue dead letters again",
		Long: `Queue dead letters again: those named, or all that the flags select (--all for every one).

They keep their ids and their whole history; attempts count anew. What would be given up again at once
is left where it is and said: an expired one needs a new lifetime (--ttl), an unreadable one cannot.
The gateway that owns the agent does it. --dry-run only says what would happen.

` + exitHelp,
		Example: `  gatemesh deadletter redrive --class exhausted --agent bobby --dry-run
  gatemesh deadletter redrive --class expired --ttl 10m`,
	}
	a.orderCommand(redrive, "redrive")
	purge := &cobra.Command{
		Use: "purge [ID...]", Short: "Delete dead letters for good",
		Long: `Delete dead letters for good: those named, or all that the flags select (--all for every one).

` + exitHelp,
	}
	a.orderCommand(purge, "purge")
	return group("deadletter", "List, show, redrive and purge messages that were given up", list, show, redrive, purge)
}

// orderCommand is redrive and purge.
func (a *app) orderCommand(c *cobra.Command, what string) {
	f := a.selectFlags(c)
	o := gateway.DeadLetterOrder{}
	c.Flags().BoolVar(&o.All, "all", false, "every dead letter")
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would happen")
	c.Flags().StringVar(&o.By, "by", "", "who wants it; it stays in the record (default: operator)")
	if what == "redrive" {
		c.Flags().StringVar(&o.TTL, "ttl", "", "a new lifetime from now on, as 10m")
	}
	c.RunE = body(func(cmd *cobra.Command, args []string) error {
		o.DeadLetterQuery = f.q
		o.IDs = args
		if len(args) == 0 && !o.All && len(f.values()) == 1 { // the ids, of which there are none
			return failf(exitUsage, "say which ones: ids, --agent, --class, --from, --contains, --before, --after, or --all")
		}
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		c, err := a.client()
		if err != nil {
			return err
		}
		ctx, cancel := a.within(ctx, answerTimeout)
		defer cancel()
		res, err := c.orderDeadLetters(ctx, what, o)
		if err != nil {
			return err
		}
		if err := a.showOrder(res, what); err != nil {
			return err
		}
		if res.Left > 0 && !o.DryRun {
			return failf(exitFailed, "%d of %d dead letters are left", res.Left, res.Left+res.Done)
		}
		return nil
	})
}

func (a *app) showOrder(res *gateway.DeadLetterResults, what string) error {
	p := a.printer()
	if a.asJSON {
		return p.json(res)
	}
	t := newTable("ID", "AGENT", "CLASS", "OUTCOME")
	done := map[string]string{"redrive": "queued again", "purge": "deleted"}[what]
	if res.DryRun {
		done = "would be " + done
	}
	for _, r := range res.Results {
		said := cell{done, green}
		if !r.Done {
			said = cell{"left: " + r.Reason, yellow}
		}
		t.add(r.MessageID, r.Agent, r.Class, said)
	}
	p.table(t, "no dead letter fits")
	return nil
}

func (a *app) printDeadLetters(dead []bus.DeadLetter) {
	t := newTable("ID", "GIVEN UP", "FROM", "TO", "CLASS", "ATTEMPTS", "REASON")
	for _, d := range dead {
		from := d.From
		if d.Envelope != nil {
			from = d.Envelope.SourceAgent + "@" + d.Envelope.SourceGateway
		}
		t.add(d.MessageID, ago(d.At), from, d.Agent, cell{string(d.Class), red}, d.Delivery.Attempt, cut(d.Reason, 80))
	}
	a.printer().table(t, "no dead letters")
}

func (a *app) printDeadLetter(d *bus.DeadLetter) {
	p := a.printer()
	field := func(name, value string) {
		if value != "" {
			p.printf("%s %s\n", p.paint(bold, fmt.Sprintf("%-13s", name)), printable(value))
		}
	}
	field("message", d.MessageID)
	field("given up", fmt.Sprintf("%s (%s)", d.At.Local().Format(time.DateTime), ago(d.At)))
	field("class", string(d.Class))
	field("reason", d.Reason)
	if e := d.Envelope; e != nil {
		field("from", e.SourceAgent+"@"+e.SourceGateway)
		field("to", target(e))
		field("capability", e.Capability)
		field("conversation", e.ConversationID)
		field("made", fmt.Sprintf("%s, ttl %s", e.CreatedAt.Local().Format(time.DateTime), e.TTL.Duration()))
	}
	if len(d.Delivery.Hops) > 0 {
		field("path", envelope.PathText(d.Delivery.Hops, d.Agent))
	}
	for _, f := range d.Delivery.Failures {
		field(fmt.Sprintf("attempt %d", f.Attempt), fmt.Sprintf("%s at %s: %s: %s", f.Gateway, f.At.Local().Format(time.TimeOnly), f.Class, f.Error))
	}
	for _, e := range d.Delivery.Effects {
		field("effect", effectText(&e))
	}
	for _, r := range d.Delivery.Redrives {
		field("redriven", fmt.Sprintf("%s by %s, had died of %s: %s", r.At.Local().Format(time.DateTime), r.By, r.Class, r.Error))
	}
	switch {
	case d.Envelope != nil && d.Envelope.Encrypted():
		field("payload", bodyText(d.Envelope))
	case d.Envelope != nil && d.Envelope.Claimed():
		field("payload", fmt.Sprintf("%d bytes, beside its envelope", d.Envelope.PayloadSize))
	case d.Envelope != nil:
		field("payload", cut(envelope.PayloadText(d.Envelope.Payload), 400))
	default:
		field("raw", cut(d.Raw, 400))
	}
	if d.Hindrance != "" {
		field("redrive", "not as it is: "+d.Hindrance)
		return
	}
	field("redrive", "gatemesh deadletter redrive "+d.MessageID)
}
