package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
	"github.com/gatemesh/gatemesh/gateway"
)

func (a *app) keysCommand() *cobra.Command {
	rotate := group("rotate", "Replace a key or a token without a restart", a.rotateGatewayCommand(), a.rotateOperatorCommand(), a.rotateAPICommand())
	c := group("keys", "Show and replace keys and tokens", a.keysListCommand(), rotate)
	c.Long = `Show and replace keys and tokens. Nothing here needs a restart, and nothing that was accepted is lost or refused.

  gatemesh keys list                     every key and token: its age, its end, which one is in use
  gatemesh keys rotate gateway NAME      a gateway's key: made by the gateway, signed for by its old one, let in by you
  gatemesh keys rotate operator          the operator's key
  gatemesh keys rotate api NAME          a token of the API

Consul's token is replaced by writing another one into its file (mesh.consul.tokenFile).
A key that others may know must be revoked, not rotated: gatemesh trust revoke.`
	return c
}

// The defaults of a rotation.
const (
	// keyOverlap is how long the old key of a gateway may still sign. The gateway changes keys with its next look at the set, a
	// heartbeat later; the hour is for a store that cannot be reached and for clocks. What the old key signed before
	// its end stays believed, so nothing that waits in lanes and records hangs on it.
	keyOverlap = time.Hour
	// keyKeep is how long a key that has ended stays in the set at least: longer than anything it signed can wait (30 days of delay, a
	// day of life, 7 days as a dead letter).
	keyKeep = 40 * 24 * time.Hour
)

// rotation is what "keys rotate gateway --json" prints. The names are stable.
type rotation struct {
	Gateway string `json:"gateway"`
	Key     string `json:"key"`
	Public  string `json:"public"`
	// Before is the key that vouched for it; what that one signs after Ends is refused.
	Before  string        `json:"before"`
	Ends    envelope.Time `json:"ends"`
	Version uint64        `json:"trust_version"`
	// InUse: the gateway signs with the new key. Not asked for with --key.
	InUse bool `json:"in_use"`
}

func (a *app) rotateGatewayCommand() *cobra.Command {
	f := &trustFlags{}
	var key string
	var overlap, keep time.Duration
	c := f.bind(&cobra.Command{
		Use: "gateway NAME", Short: "Replace the key of a gateway while it runs",
		Long: `Replace the key of a gateway while it runs. The gateway makes the new key beside the old one and asks for it, signed by both;
this command asks it to (over its API: the URL that it signed, or --addr; its token may operate), compares what it
answers with what lies in the store, signs the next trust set, and waits until the gateway signs with the new key.

With --key ID the API is not needed: for a gateway that asks by itself, because its mesh.identity.keyFile has changed. Its log
names the key. It takes it up with its next heartbeat.

What the old key signs is refused from --overlap on; what it signed before stays believed. For a key that others may know
that is not enough: gatemesh trust revoke NAME --key ID, after this.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(cmd *cobra.Command, args []string) error {
			if err := checkGatewayName(args[0]); err != nil {
				return err
			}
			if overlap < 0 || keep < 0 {
				return failf(exitUsage, "--overlap and --keep are not negative")
			}
			return a.asOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				r, err := o.rotateGateway(ctx, args[0], key, overlap, keep)
				if err != nil {
					return err
				}
				p := a.printer()
				if a.asJSON {
					return p.json(r)
				}
				if r.InUse {
					p.printf("%s signs with the key %s now (trust set %d)\n", r.Gateway, r.Key, r.Version)
				} else {
					p.printf("trust set %d names the key %s; %s takes it up with its next heartbeat (gatemesh keys list)\n", r.Version, r.Key, r.Gateway)
				}
				p.printf("what its old key %s signs after %s is refused\n", r.Before, r.Ends.Format(time.RFC3339))
				return nil
			})
		}),
	})
	c.Flags().StringVar(&key, "key", "", "the id of the key that it asks for, known from elsewhere than the store")
	c.Flags().DurationVar(&overlap, "overlap", keyOverlap, "how long the old key may still sign")
	c.Flags().DurationVar(&keep, "keep", keyKeep, "how long a key that has ended stays in the set at least")
	return c
}

func (a *app) rotateOperatorCommand() *cobra.Command {
	f := &trustFlags{}
	return f.bind(&cobra.Command{
		Use: "operator", Short: "Replace the operator's key",
		Long: `Replace the operator's key. A new one is made beside the old (FILE.next); the next trust set names it, signed by the old; the
one after that drops the old, signed by both; the mesh's policy, if there is one, is signed anew; then the new key's file takes
the place of the old, which stays as FILE.ID.old. Stopped at any point, run it again: it goes on.

Gateways follow from set to set, also those that were away or have only the old key in mesh.trust.operatorKeys.
Put the new one there all the same, for gateways that come with an empty disk. Other machines that sign with the
old key need the new file.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			return a.withOperator(cmd.Context(), f, false, func(ctx context.Context, o *operator) error {
				old, next, err := o.rotateOperator(ctx)
				if err != nil {
					return err
				}
				p := a.printer()
				if a.asJSON {
					return p.json(map[string]any{"key": next.ID(), "public": trust.EncodePublic(next.Public()), "before": old, "trust_version": o.set.Version})
				}
				p.printf("the operator's key is %s now, in %s (trust set %d)\n", next.ID(), o.path, o.set.Version)
				p.printf("%s\n", trust.EncodePublic(next.Public()))
				p.printf("put it into mesh.trust.operatorKeys; the old one, %s.%s.old, signs nothing any more: destroy it\n", o.path, old)
				return nil
			})
		}),
	})
}

// newAPIToken is what "keys rotate api --json" prints.
type newAPIToken struct {
	Token string     `json:"token"`
	Entry tokenEntry `json:"entry"`
	// Old is what becomes of the old one's entry.
	Old tokenEntry `json:"old"`
}

func (a *app) rotateAPICommand() *cobra.Command {
	var file, expires string
	var overlap time.Duration
	c := &cobra.Command{
		Use: "api NAME", Short: "Make the successor of a token of the API, and the lines of the configuration that replace it",
		Long: `Make the successor of a token of gateway.auth.tokens, with the same role. The first line is the token, shown this once. The second
is its entry; the third is the old one's, with the moment at which it ends (--overlap). Put both in the place of
the old line, on each gateway that has it: a running one takes them up by itself. Hand the token out. When
"gatemesh keys list" shows that the old one is not used any more, remove its line; else it ends by itself.`,
		Args: cobra.ExactArgs(1),
		RunE: body(func(_ *cobra.Command, args []string) error {
			cfg, _, err := a.loadConfig(a.configPath(file), nil)
			if err != nil {
				return err
			}
			tokens := cfg.Gateway.Auth.Tokens
			i := slices.IndexFunc(tokens, func(t gateway.TokenConfig) bool { return t.Name == args[0] })
			if i < 0 {
				return failf(exitUsage, "gateway.auth.tokens has no %q (gatemesh keys list); gateway.auth.token itself is replaced by an entry there: gatemesh token create", args[0])
			}
			if overlap < 0 {
				return failf(exitUsage, "--overlap is negative")
			}
			old := tokenEntry{Name: tokens[i].Name, Role: tokens[i].Role, SHA256: tokens[i].SHA256, Expires: time.Now().Add(overlap).UTC().Format(time.RFC3339)}
			next := tokenEntry{Name: successor(args[0], func(name string) bool {
				return slices.ContainsFunc(tokens, func(t gateway.TokenConfig) bool { return t.Name == name })
			}), Role: old.Role}
			if next.Expires, err = expiry(expires, time.Now()); err != nil {
				return err
			}
			token := gateway.NewToken()
			if next.SHA256, err = gateway.HashToken(token); err != nil {
				return err
			}
			p := a.printer()
			if a.asJSON {
				return p.json(newAPIToken{token, next, old})
			}
			p.printf("%s\n%s\n%s\n", token, next.line(), old.line())
			return nil
		}),
	}
	c.Flags().StringVar(&file, "config", "", configFlagHelp)
	c.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the old token still lets in")
	c.Flags().StringVar(&expires, "expires", "", "when the new one ends: 2027-01-31T00:00:00Z, or how long it lives, as 720h (default: never)")
	_ = c.MarkFlagFilename("config", "json", "json5")
	return c
}

// successor is a name for the token that follows: ci, ci-2, ci-3.
func successor(name string, taken func(string) bool) string {
	base, n := name, 2
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		if m, err := strconv.Atoi(name[i+1:]); err == nil && m > 1 {
			base, n = name[:i], m+1
		}
	}
	base = base[:min(len(base), 56)]
	for ; taken(fmt.Sprintf("%s-%d", base, n)); n++ {
	}
	return fmt.Sprintf("%s-%d", base, n)
}
