package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the gateway: is it ready, its store, what it owns",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				st, err := c.status(ctx)
				if err != nil {
					return err
				}
				p := a.printer()
				if a.asJSON {
					return p.json(st)
				}
				ready := p.paint(green, "ready")
				if !st.Ready {
					ready = p.paint(red, "not ready: "+printable(st.Reason))
				}
				for _, f := range [][2]string{
					{"gateway", printable(st.Gateway)}, {"state", ready}, {"version", printable(st.Version)}, {"url", printable(st.URL)},
					{"store", printable(st.Store)}, {"started", ago(st.Started)}, {"owns", printable(strings.Join(st.Owned, ", "))},
					{"streams", fmt.Sprint(st.Streams)},
				} {
					if f[1] == "" {
						f[1] = "-"
					}
					p.printf("%s %s\n", p.paint(bold, fmt.Sprintf("%-8s", f[0])), f[1])
				}
				return nil
			})
		}),
	}
}

func (a *app) eventsCommand() *cobra.Command {
	var replay int
	var message string
	c := &cobra.Command{
		Use: "events", Short: "Follow what happens at the gateway, until Ctrl-C",
		Long: `Follow what happens at the gateway, until Ctrl-C: each transition of each message, who owns which
inbox, and whether the store answers. With --json each event is one line of JSON.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			const mostReplayed = 1000
			if replay < 0 || replay > mostReplayed {
				return failf(exitUsage, "--replay %d: from 0 to %d", replay, mostReplayed)
			}
			return a.followEvents(cmd.Context(), message, replay)
		}),
	}
	c.Flags().IntVar(&replay, "replay", 0, "begin with up to this many earlier events")
	c.Flags().StringVar(&message, "message", "", "only what belongs to this message")
	return c
}

func (a *app) followEvents(ctx context.Context, message string, replay int) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	s, err := c.stream(ctx, message, replay)
	if err != nil {
		return err
	}
	defer s.close()
	p := a.printer()
	tl := newTimeline(p, noStart)
	last := uint64(0)
	for {
		ev, err := s.next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil // asked to end
			}
			return err
		}
		if last != 0 && ev.Seq > last+1 && message == "" {
			fmt.Fprintf(a.err, "gatemesh: %d events were missed: this terminal was too slow\n", ev.Seq-last-1)
		}
		last = ev.Seq
		if a.asJSON {
			if err := p.jsonLine(ev); err != nil {
				return err
			}
			continue
		}
		tl.print(ev.Event)
	}
}
