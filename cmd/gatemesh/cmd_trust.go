package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// trustFlags are what every command of the operator takes.
type trustFlags struct {
	config, operatorKey string
	agents              []string
}

func (f *trustFlags) bind(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&f.config, "config", "", configFlagHelp)
	c.Flags().StringVar(&f.operatorKey, "operator-key", "", "file of the operator's key (GATEMESH_OPERATOR_KEY_FILE; default ~/.config/gatemesh/operator.key)")
	_ = c.MarkFlagFilename("config", "json", "json5")
	_ = c.MarkFlagFilename("operator-key")
	return c
}

func (f *trustFlags) bindAgents(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.agents, "agents", nil, "agents and queues that it may host, as bobby,q-* (* stands for any characters)")
}

func (f *trustFlags) checkAgents() error {
	for _, p := range f.agents {
		if !trust.ValidPattern(p) {
			return failf(exitUsage, "--agents %q is neither an agent's name nor one in which * stands for any characters", p)
		}
	}
	return nil
}

func (a *app) trustCommand() *cobra.Command {
	c := group("trust", "Say which gateways are believed, and which agents each may host",
		a.trustInitCommand(), a.trustEnrollCommand(), a.trustPendingCommand(), a.trustApproveCommand(), a.trustListCommand(),
		a.trustRevokeCommand(), a.trustOperatorCommand(), a.trustPublishCommand(), a.trustExportCommand())
	c.Long = `Say which gateways are believed, and which agents each may host.

The trust set names them. It lies in the store, where everybody reads it, and is signed by the operator's key,
which no gateway holds: these commands are for the operator's own machine, and need the store (mesh.consul, as a
gateway has it) but no gateway. Gateways keep the newest set that they have seen and never go back.

  gatemesh trust init                             the operator's key, and the first set
  gatemesh trust pending                          who asks to join (gateways do by themselves)
  gatemesh trust approve NAME --key ID            let one in, after comparing the key with what its log says
  gatemesh trust enroll NAME --new-token          or give it a one-time token beforehand
  gatemesh trust revoke NAME                      and out again

Then put the operator's public key, which init prints, into mesh.trust.operatorKeys of every gateway.`
	return c
}

func (a *app) trustInitCommand() *cobra.Command {
	f := &trustFlags{}
	return f.bind(&cobra.Command{
		Use: "init", Short: "Make the operator's key and the first trust set",
		Long: `Make the operator's key (or use the one that is there) and put the first trust set into the store. It names no
gateway yet: approve or enroll them before mesh.trust.operatorKeys is set anywhere, or they are refused meanwhile.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.asOperator(cmd.Context(), f, true, func(ctx context.Context, o *operator) error {
				if o.set != nil {
					return failf(exitFailed, "the mesh %s has trust set %d already: gatemesh trust list", o.mesh, o.set.Version)
				}
				if set := o.anchor.Set(); set != nil {
					return failf(exitFailed, "trust set %d was published before and is gone from the store: gatemesh trust publish puts it back", set.Version)
				}
				o.set = &trust.Set{Mesh: o.mesh, Operators: []string{trust.EncodePublic(o.key.Public())}, Gateways: []trust.Member{}, Revoked: []trust.Revocation{}}
				if err := o.publish(ctx); err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(o.view())
				}
				p := a.printer()
				if o.made {
					p.printf("made the operator's key in %s: keep it off the nodes, and a copy of it safe\n", o.path)
				}
				p.printf("trust set 1 of the mesh %s is in the store\n", o.mesh)
				p.printf("%s\n", trust.EncodePublic(o.key.Public()))
				return nil
			})
		}),
	})
}

func (a *app) trustEnrollCommand() *cobra.Command {
	f := &trustFlags{}
	var public, file string
	var newToken bool
	var ttl time.Duration
	c := f.bind(&cobra.Command{
		Use: "enroll GATEWAY", Short: "Add a gateway by its public key, or make a one-time token for it",
		Long: `Add a gateway, or another key of one, to the trust set: by its public key (--public, or --file with base64 or PEM). With
--new-token nothing is added yet: a token is printed, for mesh.trust.enrollToken (GATEMESH_ENROLL_TOKEN) of that
gateway. It asks to join with it when it starts, and "gatemesh trust approve --tokens", run by the operator before
the token ends, lets it in. The token also tells the gateway which operator to believe. It is used once.

Nobody is let in while the operator is away: only his key can sign.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if err := f.checkAgents(); err != nil {
				return err
			}
			if err := checkGatewayName(name); err != nil {
				return err
			}
			if !newToken == (public == "" && file == "") || public != "" && file != "" {
				return failf(exitUsage, "say one of --public TEXT, --file FILE and --new-token (who asked by itself: gatemesh trust approve %s)", name)
			}
			if newToken && (ttl < time.Minute || ttl > 30*24*time.Hour) {
				return failf(exitUsage, "--ttl is %s, want 1m to 720h", ttl)
			}
			if file != "" {
				text, err := os.ReadFile(file)
				if err != nil {
					return &exitError{exitUsage, err}
				}
				public = string(text)
			}
			if !newToken {
				key, err := trust.ParsePublic(public)
				if err != nil {
					return &exitError{exitUsage, err}
				}
				public = trust.EncodePublic(key)
			}
			return a.asOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				if err := o.needsSet(); err != nil {
					return err
				}
				if newToken {
					return o.giveToken(name, f.agents, ttl)
				}
				return o.admit(ctx, name, public, f.agents)
			})
		}),
	})
	f.bindAgents(c)
	c.Flags().StringVar(&public, "public", "", "its public key in base64")
	c.Flags().StringVar(&file, "file", "", "file with its public key")
	c.Flags().BoolVar(&newToken, "new-token", false, "make a one-time token instead")
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token can be used")
	_ = c.MarkFlagFilename("file")
	return c
}

func checkGatewayName(name string) error {
	if !envelope.ValidName(name) {
		return failf(exitUsage, "%q is not the name of a gateway: 1 to 63 of a-z, 0-9 and -", name)
	}
	return nil
}

// pendingRequest is a line of "trust pending". The JSON names are stable.
type pendingRequest struct {
	Gateway string        `json:"gateway"`
	Key     string        `json:"key"`
	Public  string        `json:"public"`
	Agents  []string      `json:"agents"`
	At      envelope.Time `json:"at"`
	// Token is set when it shows a token that can be used.
	Token bool `json:"token"`
	// Problem is why it cannot be approved.
	Problem string `json:"problem,omitempty"`
}

func (a *app) trustPendingCommand() *cobra.Command {
	f := &trustFlags{}
	return f.bind(&cobra.Command{
		Use: "pending", Short: "List the gateways that ask to join",
		Long: `List the gateways that ask to join. Whoever can write the store can ask in any name, so compare the key with what
the gateway itself says ("this gateway's key" in its log) before you approve it.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.asOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				list, err := o.pending(ctx)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printer().json(list)
				}
				t := newTable("GATEWAY", "KEY", "ASKED", "AGENTS", "TOKEN", "PROBLEM")
				for _, r := range list {
					t.add(r.Gateway, r.Key, ago(r.At), strings.Join(r.Agents, ", "), map[bool]string{true: "yes"}[r.Token], cell{r.Problem, red})
				}
				a.printer().table(t, "nobody asks to join (a gateway does by itself while it is not in the trust set)")
				return nil
			})
		}),
	})
}

func (a *app) trustApproveCommand() *cobra.Command {
	f := &trustFlags{}
	var key string
	var tokens bool
	c := f.bind(&cobra.Command{
		Use: "approve [GATEWAY --key ID]", Short: "Let a gateway in that asks to join, or all that show a token",
		Args: cobra.MaximumNArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			if err := f.checkAgents(); err != nil {
				return err
			}
			if tokens == (len(args) == 1) || tokens && (key != "" || len(f.agents) > 0) {
				return failf(exitUsage, "say GATEWAY --key ID for one (gatemesh trust pending lists them), or --tokens alone for all that show a token")
			}
			if !tokens {
				if err := checkGatewayName(args[0]); err != nil {
					return err
				}
				if key == "" {
					return failf(exitUsage, "--key is missing: the key's id as the gateway's own log shows it; anybody may ask in the name of %s", args[0])
				}
			}
			return a.asOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				if err := o.needsSet(); err != nil {
					return err
				}
				if tokens {
					return o.approveTokens(ctx)
				}
				return o.approve(ctx, args[0], key, f.agents)
			})
		}),
	})
	f.bindAgents(c)
	c.Flags().StringVar(&key, "key", "", "the id of its key, or the whole public key, known from elsewhere than the store")
	c.Flags().BoolVar(&tokens, "tokens", false, "all that show a token that can be used; each is used up")
	return c
}

func (a *app) trustListCommand() *cobra.Command {
	f := &trustFlags{}
	return f.bind(&cobra.Command{
		Use: "list", Short: "Show the trust set that lies in the store",
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.asReader(cmd.Context(), f, func(_ context.Context, o *operator) error {
				if a.asJSON {
					return a.printer().json(o.view())
				}
				o.show()
				return nil
			})
		}),
	})
}

func (a *app) trustRevokeCommand() *cobra.Command {
	f := &trustFlags{}
	var key string
	var after time.Duration
	c := f.bind(&cobra.Command{
		Use: "revoke GATEWAY", Short: "Take a gateway, or one of its keys, out of the trust set",
		Long: `Take a gateway, or one of its keys, out of the trust set. Gateways refuse everything that a revoked key has signed,
whenever it did, as soon as they see the set: also what still waits in the store, and the cursors that it wrote.
That is for a key that others may have. To change a key in order, add the new one first (enroll), give it to the
gateway, and let the old one end: --key ID --after 24h. What the old one signed until then stays believed.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			if err := checkGatewayName(args[0]); err != nil {
				return err
			}
			if after < 0 || after > 0 && key == "" {
				return failf(exitUsage, "--after ends one key (--key ID) so much later, and is not negative")
			}
			return a.asOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				if err := o.needsSet(); err != nil {
					return err
				}
				if after > 0 {
					if !o.set.Retire(args[0], key, time.Now().Add(after)) {
						return failf(exitUsage, "trust set %d has no such gateway or key: gatemesh trust list", o.set.Version)
					}
					return o.publishAndShow(ctx)
				}
				if !o.set.Revoke(args[0], key, time.Now()) {
					return failf(exitUsage, "trust set %d has no such gateway or key: gatemesh trust list", o.set.Version)
				}
				return o.publishAndShow(ctx)
			})
		}),
	})
	c.Flags().StringVar(&key, "key", "", "the id of one key; without it, all of the gateway go")
	c.Flags().DurationVar(&after, "after", 0, "let the key end then, in order, instead of revoking it")
	return c
}

func (a *app) trustOperatorCommand() *cobra.Command {
	f := &trustFlags{}
	var next, drop string
	c := f.bind(&cobra.Command{
		Use: "operator", Short: "Name another operator's key, or take one out",
		Long: `Name another key that may sign trust sets (--add), or take one out (--drop). The set is signed by the key that signs now, so
gateways follow it from one to the next. Drop the old one only when every gateway has seen the set that names the
new one: a gateway that missed it knows neither, and must be told anew.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			if (next == "") == (drop == "") {
				return failf(exitUsage, "say one of --add PUBLIC-KEY and --drop ID")
			}
			if next != "" {
				public, err := trust.ParsePublic(next)
				if err != nil {
					return &exitError{exitUsage, err}
				}
				next = trust.EncodePublic(public)
			}
			return a.asOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				if err := o.needsSet(); err != nil {
					return err
				}
				if next != "" && !slices.Contains(o.set.Operators, next) {
					o.set.Operators = append(o.set.Operators, next)
				}
				if drop != "" {
					n := len(o.set.Operators)
					o.set.Operators = slices.DeleteFunc(o.set.Operators, func(text string) bool {
						public, err := trust.ParsePublic(text)
						return err == nil && trust.KeyID(public) == drop
					})
					if len(o.set.Operators) == n || n == 1 {
						return failf(exitUsage, "%q is no operator's key, or the last one: gatemesh trust list", drop)
					}
				}
				return o.publishAndShow(ctx)
			})
		}),
	})
	c.Flags().StringVar(&next, "add", "", "public key in base64")
	c.Flags().StringVar(&drop, "drop", "", "the id of a key")
	return c
}

func (a *app) trustPublishCommand() *cobra.Command {
	f := &trustFlags{}
	return f.bind(&cobra.Command{
		Use: "publish", Short: "Put the newest trust set that was signed here back into the store",
		Long: `Put the newest trust set that was signed here back into the store, as it is: after somebody deleted or changed it
there, or after the store was restored from an older snapshot.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.withOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				return o.putBack(ctx)
			})
		}),
	})
}

func (a *app) trustExportCommand() *cobra.Command {
	f := &trustFlags{}
	return f.bind(&cobra.Command{
		Use: "export", Short: "Print the signed trust set, byte for byte",
		Long: `Print the signed trust set, byte for byte. As mesh.dataDir/trust-set.json of a gateway it is what that gateway goes by.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.asReader(cmd.Context(), f, func(_ context.Context, o *operator) error {
				a.printer().printf("%s\n", o.raw)
				return nil
			})
		}),
	})
}
