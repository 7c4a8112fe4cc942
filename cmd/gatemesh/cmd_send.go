package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// answerTimeout is how long a command waits for what another agent does.
const answerTimeout = 60 * time.Second

// maxBody bounds what is read as a message's body: a little more than a payload may have,
// so that the gateway's own refusal is what people see.
const maxBody = envelope.MaxClaim + 64<<10

// sendFlags are the flags of send and ask.
type sendFlags struct {
	to, from, capability, ttl, conversation, id, file, wait string
	ackTimeout, retryDelay, deadline, attemptID             string
	delay, at, unique, uniqueFor                            string
	maxHops, maxAttempts, priority                          int
	messages, tokens                                        int64
	usd                                                     float64
	jsonBody, terminal, all                                 bool
}

func (a *app) messageFlags(c *cobra.Command, f *sendFlags) {
	fl := c.Flags()
	fl.StringVar(&f.to, "to", f.to, "agent, or agent@gateway; several with commas are a fan-out")
	fl.BoolVar(&f.all, "all", false, "every agent that offers --capability gets it (a fan-out)")
	fl.StringVar(&f.from, "from", "", "on whose behalf (default: the gateway's choice)")
	priorityFlags(c, f)
	fl.StringVar(&f.capability, "capability", "", "what is asked of the agent, as infra.check")
	fl.StringVar(&f.ttl, "ttl", "", "life of the message, as 30s (default: the gateway's)")
	fl.IntVar(&f.maxHops, "max-hops", 0, "hops it may make (default: the gateway's)")
	fl.BoolVar(&f.terminal, "terminal", false, "must be handled where it arrives, never passed on")
	fl.IntVar(&f.maxAttempts, "max-attempts", 0, "how often the agent may try (default: its gateway's)")
	fl.StringVar(&f.ackTimeout, "ack-timeout", "", "how long an attempt may go without a sign of life, as 30s (default: its gateway's)")
	fl.StringVar(&f.retryDelay, "retry-delay", "", "wait after the first failed attempt, as 5s (default: its gateway's)")
	fl.Int64Var(&f.messages, "budget-messages", -1, "messages that it and all it causes may send")
	fl.Int64Var(&f.tokens, "budget-tokens", -1, "model tokens that it and all it causes may spend")
	fl.Float64Var(&f.usd, "budget-usd", -1, "US dollars that it and all it causes may spend")
	fl.StringVar(&f.deadline, "deadline", "", "when all of it must be over, as 2m from now")
	fl.StringVar(&f.attemptID, "attempt-id", "", "your name for this try under --id")
	fl.StringVar(&f.conversation, "conversation", "", "conversation id: order is kept within one")
	fl.StringVar(&f.id, "id", "", "message id (UUID): sending again under the same id is safe")
	fl.StringVar(&f.file, "file", "", `read the body from a file ("-": standard input)`)
	fl.BoolVar(&f.jsonBody, "json-body", false, "the body is JSON and is sent as such, not as text")
	for _, name := range []string{"budget-messages", "budget-tokens", "budget-usd"} {
		fl.Lookup(name).DefValue = "" // unlimited
	}
	_ = c.RegisterFlagCompletionFunc("to", a.completeAgents)
	_ = c.MarkFlagFilename("file")
}

// noPriority is --priority that was not given.
const noPriority = math.MinInt

// priorityFlags are those of send, ask and task add.
func priorityFlags(c *cobra.Command, f *sendFlags) {
	c.Flags().IntVar(&f.priority, "priority", noPriority, "0 to 9: what matters more is handled first")
	c.Flags().Lookup("priority").DefValue = strconv.Itoa(envelope.DefaultPriority)
	c.Flags().StringVar(&f.delay, "delay", "", "not before this time from now has passed, as 10m; its ttl begins then")
}

var waitWords = []string{"none", "accepted", "delivered", "acked", "replied"}

func (a *app) sendCommand() *cobra.Command {
	f := &sendFlags{}
	c := &cobra.Command{
		Use:   "send --to AGENT[@GATEWAY] [BODY...]",
		Short: "Send a message to an agent",
		Long: `Send a message to an agent, and say what became of it so far.

The body is the arguments, --file, or standard input when it is piped (or BODY is "-").
It is sent as text, or with --json-body as the JSON that it is.

--wait says how long to stay: none and accepted return when the gateway has the message
safe in the store; delivered, acked and replied wait for that (--timeout, default 60s).

` + exitHelp,
		Example: `  gatemesh send --to bobby --capability infra.check "check everything"
  echo '{"disk":"/"}' | gatemesh send --to billy --json-body --wait acked`,
		RunE: body(func(cmd *cobra.Command, args []string) error {
			if f.to == "" && !f.all {
				return failf(exitUsage, "send needs --to AGENT (gatemesh agents lists them)")
			}
			return a.send(cmd.Context(), f, args, f.wait == "replied")
		}),
	}
	a.messageFlags(c, f)
	c.Flags().StringVar(&f.wait, "wait", "accepted", "none, accepted, delivered, acked or replied")
	_ = c.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions(waitWords, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) askCommand() *cobra.Command {
	f := &sendFlags{to: "jerry", wait: "replied"}
	c := &cobra.Command{
		Use:   "ask [--to AGENT] QUESTION...",
		Short: "Ask an agent and print its answer",
		Long: `Ask an agent, wait for the answer (--timeout, default 60s) and print its text.

If none comes in time, what is known of the question is printed and the status is 3; the
question goes on, and "gatemesh message show ID" finds its answer later.

` + exitHelp,
		Example: `  gatemesh ask "Ask Bobby to check the infrastructure"
  gatemesh ask --to billy@billy-gateway "how is your node?"`,
		RunE: body(func(cmd *cobra.Command, args []string) error { return a.send(cmd.Context(), f, args, true) }),
	}
	a.messageFlags(c, f)
	return c
}

// send is both commands. With answer, the reply's text is what is printed.
func (a *app) send(ctx context.Context, f *sendFlags, args []string, answer bool) error {
	if f.all || strings.Contains(f.to, ",") {
		return a.fanOut(ctx, f, args)
	}
	res, wait, err := a.sendOne(ctx, f, args)
	if err != nil {
		return err
	}
	return a.showSent(res, f.wait, answer, wait)
}

// sendOne sends to one target and waits as the flags say; wait is how long that was to take at most.
func (a *app) sendOne(ctx context.Context, f *sendFlags, args []string) (res *gateway.MessageStatus, wait time.Duration, err error) {
	req, err := a.sendRequest(f, args)
	if err != nil {
		return nil, 0, err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	c, err := a.client()
	if err != nil {
		return nil, 0, err
	}
	wait = a.timeoutOr(callTimeout)
	if waits(f.wait) {
		wait = a.timeoutOr(answerTimeout)
	}
	if res, err = c.send(ctx, req, wait); err != nil {
		return nil, 0, notKnown(err, req.ID)
	}
	return res, wait, nil
}

func (a *app) sendRequest(f *sendFlags, args []string) (gateway.SendRequest, error) {
	var zero gateway.SendRequest
	if !slices.Contains(waitWords, f.wait) {
		return zero, failf(exitUsage, "--wait %q: use one of %s", f.wait, strings.Join(waitWords, ", "))
	}
	if _, err := envelope.ParseAddress(f.to); err != nil {
		return zero, failf(exitUsage, "--to %q: %w (write agent or agent@gateway)", f.to, err)
	}
	if f.ttl != "" {
		if d, err := time.ParseDuration(f.ttl); err != nil || d <= 0 {
			return zero, failf(exitUsage, "--ttl %q: write a duration, as 30s or 5m", f.ttl)
		}
	}
	if f.maxHops < 0 || f.maxHops > envelope.MaxHops {
		return zero, failf(exitUsage, "--max-hops %d: from 1 to %d", f.maxHops, envelope.MaxHops)
	}
	if f.maxAttempts < 0 || f.maxAttempts > envelope.MaxAttempts {
		return zero, failf(exitUsage, "--max-attempts %d: from 1 to %d", f.maxAttempts, envelope.MaxAttempts)
	}
	for _, d := range [][2]string{{"--ack-timeout", f.ackTimeout}, {"--retry-delay", f.retryDelay}, {"--deadline", f.deadline}} {
		if v, err := time.ParseDuration(d[1]); d[1] != "" && (err != nil || v <= 0) {
			return zero, failf(exitUsage, "%s %q: write a duration, as 30s or 5m", d[0], d[1])
		}
	}
	if f.priority != noPriority && (f.priority < 0 || f.priority > envelope.MaxPriority) {
		return zero, failf(exitUsage, "--priority %d: from 0 to %d", f.priority, envelope.MaxPriority)
	}
	for _, d := range [][2]string{{"--delay", f.delay}, {"--unique-for", f.uniqueFor}} {
		if v, err := time.ParseDuration(d[1]); d[1] != "" && (err != nil || v < 0) {
			return zero, failf(exitUsage, "%s %q: write a duration, as 10m or 24h", d[0], d[1])
		}
	}
	text, err := a.readBody(f.file, args)
	if err != nil {
		return zero, err
	}
	payload := envelope.TextPayload(text)
	if f.jsonBody {
		if payload = json.RawMessage(strings.TrimSpace(text)); !json.Valid(payload) {
			return zero, failf(exitUsage, "--json-body: the body is not JSON (leave the flag out to send it as text)")
		}
	}
	req := gateway.SendRequest{
		ID: f.id, To: f.to, From: f.from, Capability: f.capability, Payload: payload,
		TTL: f.ttl, MaxHops: f.maxHops, ConversationID: f.conversation,
		MaxAttempts: f.maxAttempts, AckTimeout: f.ackTimeout, RetryDelay: f.retryDelay, Terminal: f.terminal, AttemptID: f.attemptID, Budget: f.budget(),
		Delay: f.delay, NotBefore: f.at, UniqueKey: f.unique, UniqueFor: f.uniqueFor,
	}
	if f.priority != noPriority {
		req.Priority = &f.priority
	}
	if req.ID == "" {
		req.ID = envelope.NewID() // known before the gateway answers, so that trying again is safe
	}
	if waits(f.wait) {
		req.Wait, req.Timeout = f.wait, a.timeoutOr(answerTimeout).String()
	}
	return req, nil
}

// budget is what the flags allow, or nil.
func (f *sendFlags) budget() *envelope.Budget {
	var b envelope.Budget
	if f.messages >= 0 {
		b.Messages = &f.messages
	}
	if f.tokens >= 0 {
		b.Tokens = &f.tokens
	}
	if f.usd >= 0 {
		b.USD = &f.usd
	}
	if d, err := time.ParseDuration(f.deadline); err == nil {
		at := envelope.At(time.Now().Add(d))
		b.Deadline = &at
	}
	if b == (envelope.Budget{}) {
		return nil
	}
	return &b
}

// fanOut sends to several agents, and says what became of each.
func (a *app) fanOut(ctx context.Context, f *sendFlags, args []string) error {
	req := gateway.FanRequest{}
	if f.all {
		if f.capability == "" {
			return failf(exitUsage, "--all needs --capability: every agent that offers it gets the message")
		}
	} else {
		req.Agents = strings.Split(f.to, ",")
		for _, to := range req.Agents {
			if _, err := envelope.ParseAddress(to); err != nil {
				return failf(exitUsage, "--to %q: %w (write agents with commas between them)", f.to, err)
			}
		}
	}
	one := *f
	one.to = "any" // each leg has its own
	var err error
	if req.SendRequest, err = a.sendRequest(&one, args); err != nil {
		return err
	}
	req.To = ""
	ctx, stop := interruptible(ctx)
	defer stop()
	c, err := a.client()
	if err != nil {
		return err
	}
	wait := a.timeoutOr(callTimeout)
	if waits(f.wait) {
		wait = a.timeoutOr(answerTimeout)
	}
	res, err := c.fanOut(ctx, req, wait)
	if err != nil {
		return notKnown(err, req.ID)
	}
	return a.showFan(res, waits(f.wait))
}

func (a *app) showFan(res *gateway.FanResponse, waited bool) error {
	p := a.printer()
	if a.asJSON {
		if err := p.json(res); err != nil {
			return err
		}
	} else {
		t := newTable("AGENT", "MESSAGE", "FACTS", "ANSWER")
		for _, l := range res.Legs {
			said := res.Texts[l.To]
			if l.Facts.Dead {
				said = fmt.Sprintf("%s: %s", l.Facts.Class, l.Facts.Reason)
			}
			t.add(l.To, l.MessageID, l.Facts, cut(said, 100))
		}
		p.table(t, "no legs")
	}
	switch {
	case res.Outcome == bus.FanFailed, res.Outcome == bus.FanPartial:
		return failf(exitFailed, "fan-out %s is %s", res.ID, res.Outcome)
	case waited && res.Outcome == bus.FanPending:
		return failf(exitTimeout, "fan-out %s is not over yet; its legs go on (gatemesh message show ID)", res.ID)
	}
	return nil
}

// readBody finds the body: arguments, a file, or standard input.
func (a *app) readBody(file string, args []string) (string, error) {
	stdin := file == "-" || len(args) == 1 && args[0] == "-" && file == ""
	var r io.Reader
	switch {
	case file != "" && len(args) > 0:
		return "", failf(exitUsage, "the body is given twice: as an argument and with --file")
	case stdin, file == "" && len(args) == 0 && !isTerminal(a.in):
		r = a.in
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", failf(exitUsage, "read the body: %w", err)
		}
		defer f.Close()
		r = f
	case len(args) == 0:
		return "", failf(exitUsage, `no body: give it as an argument, with --file, or pipe it in`)
	default:
		return strings.Join(args, " "), nil
	}
	b, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	if err != nil {
		return "", failf(exitFailed, "read the body: %w", err)
	}
	if len(b) > maxBody {
		return "", failf(exitUsage, "the body is larger than %d KiB, the most a message carries: send a reference instead", envelope.MaxClaim>>10)
	}
	if strings.TrimSpace(string(b)) == "" {
		return "", failf(exitUsage, "no body: give it as an argument, with --file, or pipe it in")
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// showSent prints the outcome and gives it its status.
func (a *app) showSent(res *gateway.MessageStatus, wait string, answer bool, waited time.Duration) error {
	p := a.printer()
	if a.asJSON {
		if err := p.json(res); err != nil {
			return err
		}
	}
	switch {
	case res.Facts.Dead && !reached(res, wait):
		return failf(exitFailed, "message %s was given up (%s: %s); what happened: gatemesh message show %s",
			res.MessageID, res.Facts.Class, res.Facts.Reason, res.MessageID)
	case !reached(res, wait):
		return failf(exitTimeout, "not %s within %s; message %s is %s; look again: gatemesh message show %s",
			wait, waited, res.MessageID, res.Facts, res.MessageID)
	case a.asJSON:
	case answer && res.Reply != nil:
		p.printf("%s\n", strings.TrimRight(printableText(res.Text), "\n"))
	default:
		p.printf("%s %s\n", res.MessageID, res.Facts)
	}
	return nil
}

// waits reports whether the gateway shall hold its answer back.
func waits(wait string) bool { return wait != "none" && wait != "accepted" }

// notKnown adds how to go on when a request was sent and its answer never came.
func notKnown(err error, id string) error {
	var known *apiError
	var op *net.OpError
	if exitCode(err) != exitUnavailable || errors.As(err, &known) || errors.As(err, &op) && op.Op == "dial" {
		return err
	}
	return failf(exitUnavailable, "%w; if it was sent, it is %s", err, id)
}

// reached reports whether what the caller waited for is a fact.
func reached(res *gateway.MessageStatus, wait string) bool {
	switch wait {
	case "delivered":
		return res.Facts.Delivered || res.Facts.Acked || res.Facts.Replied
	case "acked":
		return res.Facts.Acked
	case "replied":
		return res.Facts.Replied && res.Reply != nil
	}
	return true
}

// completeAgents offers the agents that a gateway knows, if one answers quickly.
func (a *app) completeAgents(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	agents, err := c.agents(ctx, "")
	if err != nil && !errors.Is(err, context.Canceled) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, ag := range agents {
		if strings.HasPrefix(ag.ID, typed) {
			out = append(out, fmt.Sprintf("%s\t%s", ag.ID, printable(strings.Join(ag.Capabilities, ", "))))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
