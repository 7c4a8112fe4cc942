package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
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

func (c *client) sessions(ctx context.Context, id string) ([]gateway.SessionInfo, error) {
	out := gateway.SessionsResponse{Sessions: []gateway.SessionInfo{}}
	err := c.do(ctx, http.MethodGet, "v1/sessions", query("agent", id), nil, &out)
	return out.Sessions, err
}

func (c *client) session(ctx context.Context, id, conversation string) (out agent.Session, err error) {
	err = c.do(ctx, http.MethodGet, "v1/sessions/"+url.PathEscape(id)+"/"+url.PathEscape(conversation), nil, nil, &out)
	return out, err
}

func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}
