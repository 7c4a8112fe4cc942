package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) costCommand() *cobra.Command {
	var only, day, by string
	c := &cobra.Command{
		Use: "cost", Short: "Show what agents' models cost: tokens and US dollars by day, agent and model",
		Long: `Show what the models of agents cost, by the prices in models.providers. Days are UTC. A model without a
price costs nothing. Costs are kept for 62 days. What an attempt cost that failed counts, too.

--by agent says what each agent comes to in 30 days if it goes on as it did: the average of the days from its first one on, today
as a whole one.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"", "conversation", "agent"}, by) {
				return failf(exitUsage, "--by %q is not conversation or agent", by)
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *client) error {
				costs, err := c.costs(ctx, only, day)
				if err != nil {
					return err
				}
				switch {
				case by == "agent" && a.asJSON:
					return a.printer().json(estimates(costs, time.Now()))
				case by == "agent":
					a.printEstimates(estimates(costs, time.Now()))
					return nil
				case a.asJSON:
					return a.printer().json(costs)
				}
				a.printCosts(costs, by == "conversation")
				return nil
			})
		}),
	}
	c.Flags().StringVar(&only, "agent", "", "only those of this agent")
	c.Flags().StringVar(&day, "day", "", "only this day, as 2027-01-31")
	c.Flags().StringVar(&by, "by", "", "conversation: a line for each; agent: what each comes to in 30 days")
	return c
}

const noCosts = "no costs are known (they come with the first call of a model)"

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
	a.printer().table(t, noCosts)
}

// costEstimate is what an agent comes to if it goes on as it did.
type costEstimate struct {
	Agent string `json:"agent"`
	// Days are those from its first costs on, today included; the averages are over them.
	Days         int     `json:"days"`
	Calls        int64   `json:"calls"`
	Tokens       int64   `json:"tokens"`
	USD          float64 `json:"usd"`
	TokensPerDay float64 `json:"tokens_per_day"`
	USDPerDay    float64 `json:"usd_per_day"`
	USDPer30Days float64 `json:"usd_per_30_days"`
}

// estimates are in the order of their agents, and the sum last ("total").
func estimates(costs []agent.Cost, now time.Time) []costEstimate {
	sums, first := map[string]agent.ModelCost{}, map[string]string{}
	for _, c := range costs {
		for _, mc := range c.Models {
			sums[c.Agent] = sums[c.Agent].Plus(mc)
		}
		if at, ok := first[c.Agent]; !ok || c.Day < at {
			first[c.Agent] = c.Day
		}
	}
	list, total := []costEstimate{}, costEstimate{Agent: "total"}
	for id, mc := range sums {
		e := costEstimate{Agent: id, Days: 1, Calls: mc.Calls, Tokens: mc.In + mc.Out, USD: mc.USD}
		if began, err := time.Parse(time.DateOnly, first[id]); err == nil {
			e.Days = max(1, int(now.UTC().Sub(began)/(24*time.Hour))+1)
		}
		e.TokensPerDay, e.USDPerDay = float64(e.Tokens)/float64(e.Days), e.USD/float64(e.Days)
		e.USDPer30Days = 30 * e.USDPerDay
		list = append(list, e)
		total.Days = max(total.Days, e.Days)
		total.Calls, total.Tokens, total.USD = total.Calls+e.Calls, total.Tokens+e.Tokens, total.USD+e.USD
		total.TokensPerDay, total.USDPerDay, total.USDPer30Days = total.TokensPerDay+e.TokensPerDay, total.USDPerDay+e.USDPerDay, total.USDPer30Days+e.USDPer30Days
	}
	slices.SortFunc(list, func(x, y costEstimate) int { return cmp.Compare(x.Agent, y.Agent) })
	if len(list) == 0 {
		return list
	}
	return append(list, total)
}

func (a *app) printEstimates(list []costEstimate) {
	t := newTable("AGENT", "DAYS", "CALLS", "TOKENS", "USD", "TOKENS A DAY", "USD A DAY", "USD IN 30 DAYS")
	for _, e := range list {
		t.add(e.Agent, fmt.Sprint(e.Days), fmt.Sprint(e.Calls), fmt.Sprint(e.Tokens), fmt.Sprintf("%.4f", e.USD), fmt.Sprintf("%.0f", e.TokensPerDay), fmt.Sprintf("%.4f", e.USDPerDay), fmt.Sprintf("%.2f", e.USDPer30Days))
	}
	a.printer().table(t, noCosts)
}

func (c *client) costs(ctx context.Context, id, day string) ([]agent.Cost, error) {
	out := gateway.CostsResponse{Costs: []agent.Cost{}}
	err := c.do(ctx, http.MethodGet, "v1/costs", query("agent", id, "day", day), nil, &out)
	return out.Costs, err
}

// query is a query of the pairs that have a value.
