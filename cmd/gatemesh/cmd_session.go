package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) sessionsCommand() *cobra.Command {
	return group("sessions", "List, show and reset what agents remember of their conversations",
		a.sessionsListCommand(), a.sessionsShowCommand(), a.sessionsResetCommand())
}

func (a *app) sessionsListCommand() *cobra.Command {
	var only string
	c := &cobra.Command{
		Use: "list", Short: "List the sessions, the newest first",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				sessions, err := c.sessions(ctx, only)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(sessions)
				}
				t := newTable("SESSION", "UPDATED", "MESSAGES", "FORGOTTEN", "RUN", "LABEL", "OF")
				for _, s := range sessions {
					t.add(s.Key, ago(envelope.At(s.Updated)), fmt.Sprint(s.Messages), fmt.Sprint(s.Forgotten), s.Status, s.Label, s.SpawnedBy)
				}
				a.printer().table(t, "no sessions (one begins with the first message to an agent that thinks: an agent with a model)")
				return nil
			})
		}),
	}
	c.Flags().StringVar(&only, "agent", "", "only those of this agent")
	return c
}

func (a *app) sessionsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show SESSION", Short: "Show what an agent remembers of a conversation",
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			id, conversation, err := sessionKey(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				s, err := c.session(ctx, id, conversation)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(s)
				}
				for _, m := range s.Messages {
					if m.Text != "" {
						a.printer().printf("%s: %s\n", m.Role, printableText(m.Text))
					}
					for _, call := range m.Calls {
						a.printer().printf("%s calls %s %s\n", m.Role, printable(call.Name), printable(string(call.Arguments)))
					}
					for _, r := range m.Results {
						a.printer().printf("%s: %s\n", m.Role, printableText(r.Text))
					}
				}
				return nil
			})
		}),
	}
}

func (a *app) sessionsResetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reset SESSION", Short: "Have an agent forget a conversation",
		Long: `Have an agent forget a conversation. It does so in its turn, behind the messages that came before; what
it cost stays known. In a chat, the message /reset does the same.

` + exitHelp,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			id, conversation, err := sessionKey(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				if _, err := c.session(ctx, id, conversation); err != nil {
					return err // a message to a conversation that is not there would begin one
				}
				payload, err := json.Marshal("/reset")
				if err != nil {
					return err
				}
				st, err := c.send(ctx, gateway.SendRequest{To: id, Payload: payload, ConversationID: conversation, Wait: gateway.WaitReplied}, callTimeout)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(st)
				}
				a.printer().printf("%s is forgotten\n", args[0])
				return nil
			})
		}),
	}
}

// sessionKey reads agent:<id>:<conversation>.
func sessionKey(key string) (id, conversation string, err error) {
	parts := strings.SplitN(key, ":", 3)
	if len(parts) != 3 || parts[0] != "agent" || !envelope.ValidName(parts[1]) || parts[2] == "" {
		return "", "", failf(exitUsage, "%q is not a session: want agent:<id>:<conversation> (gatemesh sessions list)", key)
	}
	return parts[1], agent.SessionName(parts[2]), nil
}

func (a *app) costCommand() *cobra.Command {
	var only, day, by string
	c := &cobra.Command{
		Use: "cost", Short: "Show what agents' models cost: tokens and US dollars by day, agent and model",
		Long: `Show what the models of agents cost, by the prices in models.providers. Days are UTC. A model without a
price costs nothing. Costs are kept for 62 days. What an attempt cost that failed counts, too.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"", "conversation"}, by) {
				return failf(exitUsage, "--by %q is not conversation", by)
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				costs, err := c.costs(ctx, only, day)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(costs)
				}
				a.printCosts(costs, by == "conversation")
				return nil
			})
		}),
	}
	c.Flags().StringVar(&only, "agent", "", "only those of this agent")
	c.Flags().StringVar(&day, "day", "", "only this day, as 2027-01-31")
	c.Flags().StringVar(&by, "by", "", "conversation: a line for each conversation")
	return c
}

// costLine is what a line of the table is for.
type costLine struct{ day, agent, model, conversation string }

func (a *app) printCosts(costs []agent.Cost, conversations bool) {
	var order []costLine
	sums := map[costLine]agent.ModelCost{}
	var total agent.ModelCost
	for _, c := range costs {
		for model, mc := range c.Models {
			at := costLine{c.Day, c.Agent, model, ""}
			if conversations {
				at.conversation = c.Conversation
			}
			if _, ok := sums[at]; !ok {
				order = append(order, at)
			}
			sums[at] = sums[at].Plus(mc)
			total = total.Plus(mc)
		}
	}
	slices.SortFunc(order, func(x, y costLine) int {
		return cmp.Or(cmp.Compare(y.day, x.day), cmp.Compare(x.agent, y.agent), cmp.Compare(x.model, y.model), cmp.Compare(x.conversation, y.conversation))
	})
	heads := []string{"DAY", "AGENT", "MODEL", "CALLS", "TOKENS IN", "TOKENS OUT", "USD"}
	if conversations {
		heads = append(heads, "CONVERSATION")
	}
	t := newTable(heads...)
	line := func(at costLine, mc agent.ModelCost) {
		cells := []any{at.day, at.agent, at.model, fmt.Sprint(mc.Calls), fmt.Sprint(mc.In), fmt.Sprint(mc.Out), fmt.Sprintf("%.4f", mc.USD)}
		if conversations {
			cells = append(cells, at.conversation)
		}
		t.add(cells...)
	}
	for _, at := range order {
		line(at, sums[at])
	}
	if len(order) > 1 {
		line(costLine{day: "total"}, total)
	}
	a.printer().table(t, "no costs are known (they come with the first call of a model)")
}

func (c *client) sessions(ctx context.Context, id string) ([]gateway.SessionInfo, error) {
	out := gateway.SessionsResponse{Sessions: []gateway.SessionInfo{}}
	err := c.do(ctx, http.MethodGet, "v1/sessions", query("agent", id), nil, &out)
	return out.Sessions, err
}

func (c *client) session(ctx context.Context, id, conversation string) (out agent.Session, err error) {
	err = c.do(ctx, http.MethodGet, "v1/sessions/"+url.PathEscape(id)+"/"+url.PathEscape(conversation), nil, nil, &out)
	return out, err
}

func (c *client) costs(ctx context.Context, id, day string) ([]agent.Cost, error) {
	out := gateway.CostsResponse{Costs: []agent.Cost{}}
	err := c.do(ctx, http.MethodGet, "v1/costs", query("agent", id, "day", day), nil, &out)
	return out.Costs, err
}

// query is a query of the pairs that have a value.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}
