package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) taskCommand() *cobra.Command {
	return group("task", "Add tasks to a queue, list and cancel them", a.taskAddCommand(), a.taskListCommand(),
		a.showCommand("task"), a.taskCancelCommand(), a.taskQueuesCommand())
}

// queueFlag is --queue.
func (a *app) queueFlag(c *cobra.Command, into *string, usage string) {
	c.Flags().StringVar(into, "queue", "", usage)
	_ = c.RegisterFlagCompletionFunc("queue", a.completeQueues)
}

func needQueue(command, queue string) error {
	switch {
	case queue == "":
		return failf(exitUsage, "%s needs --queue QUEUE (gatemesh task queues lists them)", command)
	case !envelope.ValidName(queue):
		return failf(exitUsage, "--queue %q is not the name of a queue (gatemesh task queues lists them)", queue)
	}
	return nil
}

func (a *app) taskAddCommand() *cobra.Command {
	f := &sendFlags{wait: "accepted"}
	var wait bool
	c := &cobra.Command{
		Use:   "add --queue QUEUE [BODY...]",
		Short: "Add a task to a queue",
		Long: `Add a task to a queue: one of its workers does it, one at a time, the most important first.

The body is the arguments, --file, or standard input when it is piped (or BODY is "-").
A task that waits longer than --ttl is given up; with --delay or --at that time begins then.
With --unique there is one unfinished task of that name in the queue (and for --unique-for after
its end): adding it again does nothing, and --wait says of which task it is a duplicate.

--wait stays until the task is done (--timeout, default 60s) and prints its result; without it
the command returns when the task is safe in the store.

` + exitHelp,
		Example: `  gatemesh task add --queue nightly --priority 8 --wait "check everything"
  gatemesh task add --queue nightly --at 2026-01-31T02:00:00Z --unique backup --unique-for 20h "back up"`,
		RunE: body(func(cmd *cobra.Command, args []string) error {
			if err := needQueue("task add", f.to); err != nil {
				return err
			}
			if wait {
				f.wait = "replied"
			}
			return a.addTask(cmd.Context(), f, args)
		}),
	}
	a.queueFlag(c, &f.to, "the queue (gatemesh task queues lists them)")
	priorityFlags(c, f)
	fl := c.Flags()
	fl.StringVar(&f.at, "at", "", "not before this moment, as 2026-01-31T02:00:00Z (RFC 3339)")
	fl.StringVar(&f.unique, "unique", "", "a name that only one task of the queue has at a time")
	fl.StringVar(&f.uniqueFor, "unique-for", "", "how long after its end --unique still holds, as 24h")
	fl.StringVar(&f.from, "from", "", "on whose behalf (default: the gateway's choice)")
	fl.StringVar(&f.capability, "capability", "", "what is asked of the worker, as infra.check")
	fl.StringVar(&f.ttl, "ttl", "", "how long it may take until it is done, as 12h (default: the gateway's mesh.maxTTL)")
	fl.IntVar(&f.maxAttempts, "max-attempts", 0, "how often workers may try (default: the queue's)")
	fl.StringVar(&f.ackTimeout, "ack-timeout", "", "how long a worker may go without a sign of life, as 30s (default: the queue's)")
	fl.StringVar(&f.id, "id", "", "message id (UUID): adding again under the same id is safe")
	fl.StringVar(&f.file, "file", "", `read the body from a file ("-": standard input)`)
	fl.BoolVar(&f.jsonBody, "json-body", false, "the body is JSON and is sent as such, not as text")
	fl.BoolVar(&wait, "wait", false, "stay until it is done, and print its result")
	_ = c.MarkFlagFilename("file")
	f.messages, f.tokens, f.usd = -1, -1, -1 // no budget
	return c
}

func (a *app) addTask(ctx context.Context, f *sendFlags, args []string) error {
	switch at, err := time.Parse(time.RFC3339, f.at); {
	case f.at != "" && err != nil:
		return failf(exitUsage, "--at %q: write a time as 2026-01-31T02:00:00Z or 2026-01-31T02:00:00+02:00", f.at)
	case f.at != "" && f.delay != "":
		return failf(exitUsage, "--at and --delay are both given: use one of them")
	case f.at != "" && time.Until(at) > envelope.MaxDelay:
		return failf(exitUsage, "--at %s is more than %s ahead", f.at, envelope.MaxDelay)
	case f.uniqueFor != "" && f.unique == "":
		return failf(exitUsage, "--unique-for needs --unique NAME")
	}
	res, wait, err := a.sendOne(ctx, f, args)
	if hasCode(err, gateway.CodeUnknownAgent) {
		return failf(exitUsage, "there is no queue %s (gatemesh task queues lists them)", f.to)
	}
	if err != nil {
		return err
	}
	if of := duplicateOf(res); of != "" && !a.asJSON {
		a.printer().printf("a duplicate of %s, which is not done again (gatemesh task show %s)\n", of, of)
		return nil
	}
	return a.showSent(res, f.wait, true, wait)
}

// duplicateOf is the task that has the unique key already, if that is what the queue answered.
func duplicateOf(res *gateway.MessageStatus) string {
	var d map[string]string
	if res.Reply == nil {
		return ""
	}
	payload := res.Reply.Payload
	if res.ReplyPayload != nil {
		payload = res.ReplyPayload
	}
	if json.Unmarshal(payload, &d) != nil || len(d) != 1 {
		return ""
	}
	return d["duplicate_of"]
}

func (a *app) taskListCommand() *cobra.Command {
	var queue, state string
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List the unfinished tasks, the most important first",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			switch {
			case queue != "" && !envelope.ValidName(queue):
				return needQueue("task list", queue)
			case state != "" && !slices.Contains(gateway.TaskStates, state):
				return failf(exitUsage, "--state %q: use one of %s", state, strings.Join(gateway.TaskStates, ", "))
			case limit < 1:
				return failf(exitUsage, "--limit %d: at least 1", limit)
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.listTasks(ctx, c, queue, state, limit)
			})
		}),
	}
	a.queueFlag(c, &queue, "only those of this queue")
	c.Flags().StringVar(&state, "state", "", "only those that are "+strings.Join(gateway.TaskStates, ", "))
	c.Flags().IntVar(&limit, "limit", 100, "how many of each queue at most")
	_ = c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(gateway.TaskStates, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) listTasks(ctx context.Context, c *client, queue, state string, limit int) error {
	names := []string{queue}
	if queue == "" {
		queues, err := c.queues(ctx)
		if err != nil {
			return err
		}
		names = nil
		for _, q := range queues {
			names = append(names, q.Queue)
		}
	}
	all, left := []bus.TaskInfo{}, 0
	for _, name := range names {
		res, err := c.tasks(ctx, name, state, limit)
		if err != nil {
			return err
		}
		all, left = append(all, res.Tasks...), left+res.Total-len(res.Tasks)
	}
	p := a.printer()
	if a.asJSON {
		return p.json(all)
	}
	t := newTable("ID", "QUEUE", "STATE", "PRIORITY", "FROM", "CAPABILITY", "MADE", "DUE", "ATTEMPT", "WORKER", "LAST ERROR")
	for _, x := range all {
		due, attempt := "", ""
		if x.DueAt != nil {
			due = x.DueAt.Local().Format(time.DateTime)
		}
		if x.Attempt > 0 {
			attempt = fmt.Sprint(x.Attempt)
		}
		t.add(x.MessageID, x.Queue, cell{x.State, taskColour(x.State)}, x.Priority, x.From, x.Capability, ago(x.MadeAt), due, attempt, x.Worker, cut(x.LastError, 60))
	}
	p.table(t, "no unfinished tasks")
	if left > 0 {
		fmt.Fprintf(a.err, "gatemesh: %s more (--limit)\n", plural(left, "task"))
	}
	return nil
}

func taskColour(state string) colour {
	switch state {
	case bus.TaskRunning:
		return blue
	case bus.TaskRetrying:
		return red
	}
	return yellow
}

func (a *app) taskCancelCommand() *cobra.Command {
	var queue string
	var o gateway.TaskOrder
	c := &cobra.Command{
		Use: "cancel ID --queue QUEUE", Short: "Give a task up",
		Long: `Give an unfinished task up: it becomes a dead letter of class "cancelled", and who added it is told.
A worker that has begun is stopped as far as it listens. The gateway that owns the queue does it.

` + exitHelp,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			if err := needQueue("task cancel", queue); err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			c, err := a.client()
			if err != nil {
				return err
			}
			res, err := c.cancelTask(ctx, queue, args[0], o, a.timeoutOr(gateway.DefaultWait))
			switch {
			case hasCode(err, gateway.CodeTimeout):
				return failf(exitTimeout, "%w (who owns it: gatemesh task queues; what became of it: gatemesh task show %s)", err, args[0])
			case hasCode(err, gateway.CodeNotFound):
				return failf(exitUsage, "%w (gatemesh task list; its whole id is needed)", err)
			case err != nil:
				return err
			}
			if a.asJSON {
				return a.printer().json(res)
			}
			a.printer().printf("%s cancelled\n", res.MessageID)
			return nil
		}),
	}
	a.queueFlag(c, &queue, "the queue of the task")
	c.Flags().StringVar(&o.By, "by", "", "who wants it; it stays in the record (default: operator)")
	return c
}

func (a *app) taskQueuesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "queues", Short: "List the queues, what waits in them and who works",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				queues, err := c.queues(ctx)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(queues)
				}
				t := newTable("QUEUE", "OWNER", "WAITING", "DELAYED", "RUNNING", "WORKERS (SLOTS)")
				for _, q := range queues {
					var workers []string
					for _, w := range q.Workers {
						workers = append(workers, fmt.Sprintf("%s (%d)", w.Gateway, w.Slots))
					}
					t.add(q.Queue, q.Owner, q.Waiting, q.Delayed, q.Running, strings.Join(workers, ", "))
				}
				a.printer().table(t, "no queues are known (one appears when a gateway keeps it: mesh.queues in its configuration)")
				return nil
			})
		}),
	}
}

// completeQueues offers the queues that a gateway knows, if one answers quickly.
func (a *app) completeQueues(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	queues, err := c.queues(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, q := range queues {
		if strings.HasPrefix(q.Queue, typed) {
			out = append(out, fmt.Sprintf("%s\t%d waiting", q.Queue, q.Waiting))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
