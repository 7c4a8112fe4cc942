package main

import (
	"context"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) stateCommand() *cobra.Command {
	return group("state", "What all agents know: recent events and the current focus",
		a.stateEventsCommand(), a.stateRecordCommand(), a.stateFocusCommand())
}

func (a *app) stateEventsCommand() *cobra.Command {
	var limit int
	var clearAll bool
	c := &cobra.Command{
		Use: "events", Short: "List what happened lately, oldest first",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > bus.MaxRecentEvents {
				return failf(exitUsage, "--limit is %d, want 1 to %d", limit, bus.MaxRecentEvents)
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				if clearAll {
					cleared, err := c.clearEvents(ctx)
					if err == nil && a.asJSON {
						return a.printer().json(cleared)
					}
					return err
				}
				events, err := c.stateEvents(ctx, limit)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(events)
				}
				t := newTable("WHEN", "AGENT", "EVENT")
				for _, e := range events {
					t.add(ago(e.Timestamp), e.Agent, e.Event)
				}
				a.printer().table(t, "no events yet (gatemesh state record --agent AGENT TEXT)")
				return nil
			})
		}),
	}
	c.Flags().IntVar(&limit, "limit", bus.MaxRecentEvents, "only the newest")
	c.Flags().BoolVar(&clearAll, "clear", false, "empty the list, whatever it holds")
	return c
}

func (a *app) stateRecordCommand() *cobra.Command {
	var req gateway.EventRequest
	c := &cobra.Command{
		Use: "record TEXT...", Short: "Add an event to what all agents know",
		Args: cobra.ArbitraryArgs,
		RunE: body(func(cmd *cobra.Command, args []string) error {
			req.Event = strings.Join(args, " ")
			switch {
			case strings.TrimSpace(req.Event) == "":
				return failf(exitUsage, "no text: say what happened")
			case len(req.Event) > bus.MaxEventBytes:
				return failf(exitUsage, "the text is %d bytes, at most %d", len(req.Event), bus.MaxEventBytes)
			case !envelope.ValidName(req.Agent):
				return failf(exitUsage, "--agent %q is not the name of an agent", req.Agent)
			}
			if req.ID == "" {
				req.ID = envelope.NewID()
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				e, err := c.recordEvent(ctx, req)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(e)
				}
				a.printer().printf("%s\n", printable(e.ID))
				return nil
			})
		}),
	}
	c.Flags().StringVar(&req.Agent, "agent", "", "who did it")
	c.Flags().StringVar(&req.ID, "id", "", "an id that makes recording again safe (default: a new one)")
	_ = c.RegisterFlagCompletionFunc("agent", a.completeAgents)
	return c
}

func (a *app) stateFocusCommand() *cobra.Command {
	var clearIt bool
	c := &cobra.Command{
		Use: "focus [TEXT...]", Short: "Show, or set, what everybody is at",
		Args: cobra.ArbitraryArgs,
		RunE: body(func(cmd *cobra.Command, args []string) error {
			text, method := strings.Join(args, " "), http.MethodGet
			switch {
			case clearIt && len(args) > 0:
				return failf(exitUsage, "--clear and a text: one of the two")
			case clearIt:
				method = http.MethodDelete
			case len(args) > 0 && strings.TrimSpace(text) == "":
				return failf(exitUsage, "the text is empty: --clear removes the focus")
			case len(text) > bus.MaxFocusBytes:
				return failf(exitUsage, "the text is %d bytes, at most %d", len(text), bus.MaxFocusBytes)
			case len(args) > 0:
				method = http.MethodPut
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				f, err := c.focus(ctx, method, text)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(f)
				}
				if f.Focus != "" {
					a.printer().printf("%s\n", printable(f.Focus))
				}
				return nil
			})
		}),
	}
	c.Flags().BoolVar(&clearIt, "clear", false, "remove it")
	return c
}
