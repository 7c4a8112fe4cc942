package main

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) cronCommand() *cobra.Command {
	c := group("cron", "List jobs and their runs, add and remove them",
		a.cronListCommand(), a.cronAddCommand(), a.cronRunsCommand(),
		a.cronOrderCommand("rm", "Remove a job", http.MethodDelete, ""),
		a.cronOrderCommand("run", "Run a job now, beside its schedule", http.MethodPost, "/run"),
		a.cronOrderCommand("enable", "Switch a job on; what was missed meanwhile is not made up for", http.MethodPost, "/enable"),
		a.cronOrderCommand("disable", "Switch a job off", http.MethodPost, "/disable"))
	c.Long = `List jobs and their runs, add and remove them. A job says something to an agent at its moments; one gateway of those with
cron.enabled has the scheduler, and another one when that dies. Each moment is run once. Of the moments that nobody was there for, the latest
is made up for if it is at most an hour ago; the others are counted. Runs of one job never overlap.`
	return c
}

func (c *client) cron(ctx context.Context) ([]gateway.CronState, error) {
	out := gateway.CronResponse{Jobs: []gateway.CronState{}}
	err := c.do(ctx, http.MethodGet, "/v1/cron", nil, nil, &out)
	return out.Jobs, err
}

func (a *app) cronListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the jobs, when each is next and what came of its last run",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				jobs, err := c.cron(ctx)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(jobs)
				}
				t := newTable("NAME", "WHEN", "AGENT", "SESSION", "NEXT", "LAST RUN", "RESULT")
				for _, j := range jobs {
					next, last, result := "-", "-", "-"
					switch {
					case !j.Enabled:
						next = "off"
					case !j.Next.IsZero():
						next = j.Next.Local().Format(time.DateTime)
					}
					if r := j.LastRun; r != nil {
						last, result = ago(r.Ended), r.Text
						if !r.OK {
							result = "FAILED: " + r.Text
						}
					}
					t.add(j.Name, whenOf(j.CronJob), j.Agent, j.Session, next, last, result)
				}
				a.printer().table(t, "no jobs (gatemesh cron add)")
				return nil
			})
		}),
	}
}

func whenOf(j gateway.CronJob) string {
	switch {
	case j.Every != "":
		return "every " + j.Every
	case j.At != "":
		return "at " + j.At
	case j.TZ != "":
		return j.Cron + " " + j.TZ
	}
	return j.Cron
}

func (a *app) cronAddCommand() *cobra.Command {
	var j gateway.CronJob
	c := &cobra.Command{
		Use:   "add --name NAME --agent AGENT --message TEXT (--cron EXPR [--tz ZONE] | --every DURATION | --at MOMENT)",
		Short: "Add a job",
		Example: `  gatemesh cron add --name heartbeat --cron "*/5 * * * *" --session isolated --agent bobby --message "check the infrastructure"
  gatemesh cron add --name report --cron "0 8 * * 1-5" --tz Europe/Berlin --agent jerry --message "what happened since yesterday?"`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				var st gateway.CronState
				if err := c.do(ctx, http.MethodPost, "/v1/cron", nil, j, &st); err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(st)
				}
				a.printer().printf("added %s (%s)\n", printable(st.Name), st.ID)
				return nil
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&j.Name, "name", "", "what it is called")
	f.StringVar(&j.Cron, "cron", "", "five fields as cron has them (minute first, day of the week last), or @daily and the like")
	f.StringVar(&j.TZ, "tz", "", "time zone of --cron, as Europe/Berlin (default UTC)")
	f.StringVar(&j.Every, "every", "", "a period, as 30m")
	f.StringVar(&j.At, "at", "", "one moment, as 2027-01-31T08:00:00+01:00")
	f.StringVar(&j.Session, "session", "isolated", "isolated: each run is a conversation of its own; main: all are in the agent's conversation main")
	f.StringVar(&j.Agent, "agent", "", "who is told")
	f.StringVar(&j.Message, "message", "", "what is said")
	f.StringVar(&j.Timeout, "run-timeout", "", "how long the agent may take (default 10m)")
	for _, name := range []string{"name", "agent", "message"} {
		_ = c.MarkFlagRequired(name)
	}
	_ = c.RegisterFlagCompletionFunc("session", cobra.FixedCompletions([]string{"isolated", "main"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) cronRunsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "runs JOB", Short: "Show the last runs of a job",
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				var out gateway.CronRunsResponse
				if err := c.do(ctx, http.MethodGet, "/v1/cron/"+url.PathEscape(args[0])+"/runs", nil, nil, &out); err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(out.Runs)
				}
				t := newTable("SCHEDULED", "STARTED", "TOOK", "GATEWAY", "BY", "MISSED", "RESULT")
				for _, r := range out.Runs {
					result := r.Text
					if !r.OK {
						result = "FAILED: " + r.Text
					}
					t.add(r.Scheduled.Local().Format(time.DateTime), r.Started.Local().Format(time.DateTime), r.Ended.Sub(r.Started.Time).Round(time.Millisecond).String(), r.Gateway, r.By, count(r.Skipped), result)
				}
				a.printer().table(t, "it has not run yet")
				return nil
			})
		}),
	}
}

func (a *app) cronOrderCommand(use, short, method, order string) *cobra.Command {
	return &cobra.Command{
		Use: use + " JOB", Short: short,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				var st gateway.CronState
				if err := c.do(ctx, method, "/v1/cron/"+url.PathEscape(args[0])+order, nil, nil, &st); err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(st)
				}
				return nil
			})
		}),
	}
}
