package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) messageCommand() *cobra.Command {
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List the newest messages that this gateway remembers",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return failf(exitUsage, "--limit %d: at least 1", limit)
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				messages, err := c.messages(ctx, limit)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(messages)
				}
				a.printMessages(messages)
				return nil
			})
		}),
	}
	list.Flags().IntVar(&limit, "limit", 20, "how many at most")

	return group("message", "List, show and cancel messages", list, a.showCommand("message"), a.messageCancelCommand())
}

func (a *app) messageCancelCommand() *cobra.Command {
	var o gateway.TaskOrder
	c := &cobra.Command{
		Use: "cancel ID", Short: "Give a message up",
		Long: `Give a message up that has not ended: it becomes a dead letter of class "cancelled", and who sent it is told.
One that waits is never begun. Of one that is worked on the handler is stopped as far as it listens; what it did
outside of the mesh stays done, and what it asked other agents goes on. When it may have made an effect of which
nobody knows, the class is "unknown". The gateway that owns the inbox does it.

` + exitHelp,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			c, err := a.client()
			if err != nil {
				return err
			}
			st, err := c.find(ctx, args[0])
			if err != nil {
				return err
			}
			res, err := c.cancelMessage(ctx, st.MessageID, o, a.timeoutOr(gateway.DefaultWait))
			switch {
			case hasCode(err, gateway.CodeTimeout):
				return failf(exitTimeout, "%w (who owns it: gatemesh inbox; what became of it: gatemesh message show %s)", err, st.MessageID)
			case err != nil:
				return err
			}
			if a.asJSON {
				return a.printer().json(res)
			}
			if res.Class == envelope.ClassUnknown {
				a.printer().printf("%s stopped; it may have had an effect (gatemesh message show %s)\n", res.MessageID, res.MessageID)
				return nil
			}
			a.printer().printf("%s cancelled\n", res.MessageID)
			return nil
		}),
	}
	c.Flags().StringVar(&o.By, "by", "", "who wants it; it stays in the record (default: operator)")
	return c
}

// showCommand shows a message, which may be a task.
func (a *app) showCommand(what string) *cobra.Command {
	var follow bool
	show := &cobra.Command{
		Use: "show ID", Short: "Show a " + what + ": its timeline, its body and its answer",
		Long: `Show a ` + what + `: what is known of it, its timeline, its body and its answer. ID is the whole id
or, for what this gateway remembers, its last characters (as the timelines show them).

--follow stays and prints what happens until the message is answered, done or given up.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			if follow {
				return a.followMessage(cmd.Context(), args[0])
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				st, err := c.find(ctx, args[0])
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(st)
				}
				a.printMessage(st)
				return nil
			})
		}),
	}
	show.Flags().BoolVar(&follow, "follow", false, "stay until it is answered, done or given up")
	return show
}

// effectText is one line of the ledger of what was done outside of the mesh.
func effectText(e *envelope.Effect) string {
	s := fmt.Sprintf("%s: %s, intended by %s at %s (attempt %d)", e.Name, e.State, e.Gateway, e.At.Local().Format("15:04:05.000"), e.Attempt)
	if e.SettledAt != nil {
		s += fmt.Sprintf(", settled by %s at %s", e.SettledBy, e.SettledAt.Local().Format("15:04:05.000"))
	}
	if e.Ref != "" {
		s += ", known there as " + e.Ref
	}
	return s
}

func (a *app) printMessages(messages []gateway.MessageStatus) {
	t := newTable("ID", "MADE", "FROM", "TO", "CAPABILITY", "STATE", "FACTS")
	for _, m := range messages {
		from, to, capability, made := "", "", "", ""
		if e := m.Envelope; e != nil {
			from, to, capability = e.SourceAgent+"@"+e.SourceGateway, target(e), e.Capability
			made = e.CreatedAt.Local().Format("15:04:05.000")
		} else if len(m.Events) > 0 {
			ev := m.Events[0]
			from, to, capability, made = ev.From, ev.To, ev.Capability, ev.At.Local().Format("15:04:05.000")
		}
		t.add(m.MessageID, made, from, to, capability, cell{string(m.State), stateColour(m.State)}, m.Facts)
	}
	a.printer().table(t, "no messages yet (send one: gatemesh ask \"...\")")
}

func target(e *envelope.Sealed) string {
	return envelope.Address{Agent: e.TargetAgent, Gateway: e.TargetGateway}.String()
}

func stateColour(s envelope.State) colour {
	switch s {
	case envelope.Acked:
		return green
	case envelope.Failed, envelope.DeadLetter:
		return red
	case envelope.Delivered:
		return blue
	}
	return yellow
}

func (a *app) printMessage(st *gateway.MessageStatus) {
	p := a.printer()
	field := func(name, value string) {
		if value != "" {
			p.printf("%s %s\n", p.paint(bold, fmt.Sprintf("%-13s", name)), printable(value))
		}
	}
	field("message", st.MessageID)
	field("known", st.Facts.String())
	field("state", string(st.State))
	if e := st.Envelope; e != nil {
		field("from", e.SourceAgent+"@"+e.SourceGateway)
		field("to", target(e))
		field("capability", e.Capability)
		field("made", e.CreatedAt.Local().Format(time.RFC3339Nano)+", lives "+e.TTL.Duration().String())
		if t := e.Task; t != nil {
			if t.Priority != nil {
				field("priority", strconv.Itoa(*t.Priority))
			}
			if t.NotBefore != nil {
				field("not before", t.NotBefore.Local().Format(time.RFC3339))
			}
			field("unique key", t.UniqueKey)
		}
		field("conversation", e.ConversationID)
		if e.CorrelationID != e.MessageID {
			field("part of", e.CorrelationID)
		}
		field("answers", e.InReplyTo)
	}
	if d := st.Delivery; d != nil {
		field("owner", d.Owner)
		if d.RetryCount > 0 {
			field("attempts", fmt.Sprintf("%d, %d failed; last error: %s", d.Attempt, d.RetryCount, d.LastError))
		}
		if d.NextAttemptAt != nil {
			field("next attempt", d.NextAttemptAt.Local().Format("15:04:05.000"))
		}
		for _, e := range d.Effects {
			field("effect", effectText(&e))
		}
	}
	if st.Facts.Reason != "" {
		field("reason", string(st.Facts.Class)+": "+st.Facts.Reason)
	}
	field("found in", st.Where)
	if len(st.Events) > 0 {
		p.printf("\n%s\n", p.paint(bold, "timeline"))
		tl := a.messageTimeline(p, st)
		for _, ev := range st.Events {
			tl.print(ev)
		}
	}
	if e := st.Envelope; e != nil {
		p.printf("\n%s\n%s\n", p.paint(bold, "body"), indent(bodyText(e)))
	}
	if r := st.Reply; r != nil {
		p.printf("\n%s from %s@%s\n%s\n", p.paint(bold, "answer"), r.SourceAgent, r.SourceGateway, indent(st.Text))
	}
}

// bodyText is the payload for people. An encrypted one is for its handler alone: nobody is shown it afterwards.
func bodyText(e *envelope.Sealed) string {
	if e.Encrypted() {
		return "(encrypted for " + strings.Join(e.Readers(), ", ") + ")"
	}
	return e.Text()
}

// messageTimeline counts from when the message was made.
func (a *app) messageTimeline(p *printer, st *gateway.MessageStatus) *timeline {
	start := time.Time{}
	switch {
	case st.Envelope != nil:
		start = st.Envelope.CreatedAt.Time
	case len(st.Events) > 0:
		start = st.Events[0].At.Time
	}
	return newTimeline(p, start)
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(printableText(s), "\n"), "\n", "\n  ")
}

// followMessage prints a message's events as they come, until its end. The stream is
// opened before the message is read, so nothing falls between; what both have is shown once.
func (a *app) followMessage(ctx context.Context, id string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	ctx, cancel := a.within(ctx, answerTimeout)
	defer cancel()
	st, err := c.find(ctx, id)
	if err != nil {
		return err
	}
	s, err := c.stream(ctx, st.MessageID, 0)
	if err != nil {
		return err
	}
	defer s.close()
	if st, err = c.message(ctx, st.MessageID); err != nil {
		return err
	}
	p := a.printer()
	tl := a.messageTimeline(p, st)
	seen := map[string]bool{}
	show := func(ev bus.Event) error {
		key := ev.Event + ev.Gateway + ev.At.String() + string(ev.State)
		if seen[key] {
			return nil
		}
		seen[key] = true
		if a.asJSON {
			return p.jsonLine(ev)
		}
		tl.print(ev)
		return nil
	}
	wantsAnswer := st.Envelope != nil && st.Envelope.ReplyTo != ""
	ended := settled(st.Facts, wantsAnswer)
	for _, ev := range st.Events {
		if err := show(ev); err != nil {
			return err
		}
	}
	for !ended {
		ev, err := s.next(ctx)
		if err != nil {
			return a.followEnded(ctx, c, st.MessageID, err)
		}
		if ev.MessageID != st.MessageID {
			continue
		}
		if err := show(ev.Event); err != nil {
			return err
		}
		// Only the gateway knows all facts of it: a receipt may tell what another one did.
		if st, err = c.message(ctx, st.MessageID); err != nil {
			return a.followEnded(ctx, c, ev.MessageID, err)
		}
		ended = settled(st.Facts, wantsAnswer)
	}
	if st.Facts.Dead {
		return failf(exitFailed, "message %s was given up (%s: %s)", st.MessageID, st.Facts.Class, st.Facts.Reason)
	}
	return nil
}

// settled reports whether nothing more will happen to a message.
func settled(f bus.Facts, wantsAnswer bool) bool {
	return f.Dead || f.Replied || f.Acked && !wantsAnswer
}

func (a *app) followEnded(ctx context.Context, c *client, id string, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if ctx.Err() == context.Canceled {
		return quiet(exitFailed)
	}
	facts := "not known"
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if st, err := c.message(late, id); err == nil {
		facts = st.Facts.String()
	}
	return failf(exitTimeout, "message %s is not finished after %s: it is %s", id, a.timeoutOr(answerTimeout), facts)
}
