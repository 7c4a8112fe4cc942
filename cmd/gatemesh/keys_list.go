package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
	"github.com/gatemesh/gatemesh/gateway"
)

// keyLine is a line of "keys list". The JSON names are stable.
type keyLine struct {
	// Kind is operator, gateway, api or consul.
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Key names the key without giving it away: its id, or the accessor of a Consul token.
	Key string `json:"key,omitempty"`
	// State is in-use, valid (believed, and not in use), waiting (for the operator), ended, expired or revoked.
	State string `json:"state"`
	// Since is when it began to count, Until when it ends or did; zero: not known, without end.
	Since envelope.Time `json:"since,omitzero"`
	Until envelope.Time `json:"until,omitzero"`
	Note  string        `json:"note,omitempty"`
}

// The states of a key.
const (
	keyInUse   = "in-use"
	keyValid   = "valid"
	keyWaiting = "waiting"
	keyEnded   = "ended"
	keyExpired = "expired"
	keyRevoked = "revoked"
)

func (a *app) keysListCommand() *cobra.Command {
	f := &trustFlags{}
	c := &cobra.Command{
		Use: "list", Short: "Show every key and token: its age, its end, and which one is in use",
		Long: `Show every key and token that the store and this configuration know of: operators, gateways, those who wait for the operator, the
tokens of the API and Consul's. Secrets are shown nowhere. A gateway's key is in use when the gateway's registry entry is signed
with it. When a gateway is named (--addr, GATEMESH_ADDR), it is asked when each of its tokens was used last.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			list, err := a.listKeys(cmd.Context(), f)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printer().json(list)
			}
			t := newTable("KIND", "NAME", "KEY", "STATE", "SINCE", "UNTIL", "NOTE")
			for _, l := range list {
				since, until := "", ""
				if !l.Since.IsZero() {
					since = ago(l.Since)
				}
				if !l.Until.IsZero() {
					until = l.Until.UTC().Format(time.RFC3339)
				}
				color := map[string]colour{keyInUse: green, keyWaiting: yellow, keyRevoked: red, keyExpired: red}[l.State]
				t.add(l.Kind, l.Name, l.Key, cell{l.State, color}, since, until, l.Note)
			}
			a.printer().table(t, "no trust set and no tokens: everybody is believed, and everybody on this machine may use the API")
			return nil
		}),
	}
	c.Flags().StringVar(&f.config, "config", "", configFlagHelp)
	_ = c.MarkFlagFilename("config", "json", "json5")
	return c
}

func (a *app) listKeys(ctx context.Context, f *trustFlags) ([]keyLine, error) {
	cfg, _, err := a.loadConfig(a.configPath(f.config), nil)
	if err != nil {
		return nil, err
	}
	list := []keyLine{}
	look := a.withStore
	if cfg.Mesh.Store == "local" && a.namesGateway() {
		look = func(context.Context, *trustFlags, func(context.Context, *operator) error) error { return nil } // it has the store
	}
	err = look(ctx, f, func(ctx context.Context, o *operator) error {
		if err := o.read(ctx); err != nil {
			return err
		}
		if o.set == nil {
			return nil
		}
		lines, err := o.keyLines(ctx, time.Now())
		list = append(list, lines...)
		return err
	})
	if err != nil {
		return nil, err
	}
	list = append(list, a.tokenLines(ctx, cfg.Gateway.Auth, time.Now())...)
	if line, err := a.consulLine(ctx, cfg); err != nil {
		return nil, err
	} else if line != nil {
		list = append(list, *line)
	}
	return list, nil
}

// namesGateway reports whether it was said which gateway to ask.
func (a *app) namesGateway() bool { return a.addr != "" || a.getenv("GATEMESH_ADDR") != "" }

// keyLines are the keys of the trust set, and those that wait.
func (o *operator) keyLines(ctx context.Context, now time.Time) ([]keyLine, error) {
	list := []keyLine{}
	for _, text := range o.set.Operators {
		l := keyLine{Kind: "operator", Name: "operator", Key: idOf(text), State: keyValid}
		for _, by := range o.by {
			if trust.EncodePublic(by) == text {
				l.State, l.Note = keyInUse, fmt.Sprintf("signed trust set %d", o.set.Version)
			}
		}
		list = append(list, l)
	}
	v := trust.NewVerifier(o.mesh, true)
	v.Use(o.set)
	for _, m := range o.set.Gateways {
		_, st, err := bus.SignedGateway(ctx, o.store, v, m.Name)
		note := ""
		switch {
		case err != nil:
			note = "its registry entry is not believed: " + err.Error()
		case st == nil:
			note = "it never registered"
		}
		for _, k := range m.Keys {
			l := keyLine{Kind: "gateway", Name: m.Name, Key: idOf(k.Public), State: keyValid, Note: note}
			if !k.NotBefore.IsZero() {
				l.Since = envelope.At(k.NotBefore.Add(trust.Slack))
			}
			if k.NotAfter != nil {
				l.Until = envelope.At(k.NotAfter.Add(trust.Slack))
			}
			switch {
			case k.NotAfter != nil && l.Until.Before(now):
				l.State = keyEnded
			case st != nil && st.Key == l.Key:
				l.State = keyInUse
			}
			list = append(list, l)
		}
	}
	waiting, _, err := o.requests(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range waiting {
		note := r.Problem
		if note == "" {
			note = "asks to be let in: gatemesh trust pending"
			if o.set.Member(r.Gateway) != nil {
				note = "asks to follow: gatemesh keys rotate gateway " + r.Gateway + " --key ID"
			}
		}
		list = append(list, keyLine{Kind: "gateway", Name: r.Gateway, Key: r.Key, State: keyWaiting, Since: r.At, Note: note})
	}
	for _, r := range o.set.Revoked {
		list = append(list, keyLine{Kind: "gateway", Name: r.Gateway, Key: r.Key, State: keyRevoked, Until: r.At})
	}
	return list, nil
}

// tokenLines are the tokens of the API: of the configuration, or with their last use when a gateway was named.
func (a *app) tokenLines(ctx context.Context, auth gateway.AuthConfig, now time.Time) []keyLine {
	infos := []gateway.TokenInfo{}
	var asked bool
	var why error
	if a.namesGateway() {
		keys, err := a.askKeys(ctx)
		if asked, why = err == nil, err; asked {
			infos = keys.Tokens
		}
	}
	if !asked {
		if auth.Mode == "token" && auth.Token != "" {
			infos = append(infos, gateway.TokenInfo{Name: "gateway.auth.token", Role: "operate"})
		}
		for _, t := range auth.Tokens {
			info := gateway.TokenInfo{Name: t.Name, Role: t.Role}
			if end, err := time.Parse(time.RFC3339, t.Expires); err == nil {
				info.Expires = envelope.At(end)
			}
			infos = append(infos, info)
		}
	}
	list := []keyLine{}
	for _, t := range infos {
		l := keyLine{Kind: "api", Name: t.Name, State: keyValid, Until: t.Expires, Note: "role " + t.Role}
		switch {
		case !t.Expires.IsZero() && !t.Expires.After(now):
			l.State = keyExpired
		case !t.LastUsed.IsZero():
			l.State = keyInUse
		}
		switch {
		case asked:
			l.Note += ", used last: " + ago(t.LastUsed)
		case why != nil:
			l.Note += ", used last: not known, " + why.Error()
		}
		list = append(list, l)
	}
	return list
}

// askKeys asks the gateway that was named.
func (a *app) askKeys(ctx context.Context) (keys gateway.KeysResponse, err error) {
	c, err := a.client()
	if err != nil {
		return keys, err
	}
	defer c.close()
	ctx, cancel := a.within(ctx, callTimeout)
	defer cancel()
	err = c.do(ctx, http.MethodGet, "/v1/keys", nil, nil, &keys)
	return keys, err
}

// consulLine is Consul's token, as Consul itself knows it; nil: there is none.
func (a *app) consulLine(ctx context.Context, cfg *gateway.Config) (*keyLine, error) {
	if cfg.Mesh.Store == "local" {
		return nil, nil //nolint:nilnil // there is no such token
	}
	s, err := openStore(cfg, hclog.NewNullLogger())
	if err != nil {
		return nil, err
	}
	defer s.Close()
	c, ok := s.(*consul.Store)
	if !ok {
		return nil, nil //nolint:nilnil // there is no such token
	}
	ctx, cancel := a.within(ctx, callTimeout)
	defer cancel()
	info, err := c.Token(ctx)
	switch {
	case err != nil:
		return &keyLine{Kind: "consul", Name: "this configuration's", State: keyExpired, Note: err.Error()}, nil
	case info == nil:
		return nil, nil //nolint:nilnil // Consul asks for none
	}
	l := &keyLine{Kind: "consul", Name: "this configuration's", Key: info.Accessor, State: keyInUse, Since: envelope.At(info.Created), Note: "from the configuration or a variable: a new one needs a restart"}
	if info.File != "" {
		l.Note = "from " + info.File + ", which is read again when it changes"
	}
	if !info.Expires.IsZero() {
		l.Until = envelope.At(info.Expires)
	}
	return l, nil
}
