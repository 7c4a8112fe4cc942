package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// An operator changes the trust set: he holds the key that signs it, and remembers beside it what he signed last, so that
// whoever can write the store cannot make him build on an older set.
type operator struct {
	a     *app
	store bus.Store
	mesh  string

	path   string // of the key
	key    *trust.Key
	made   bool
	anchor *trust.Anchor

	// raw, set and index are what the store has; set is nil when it has nothing.
	raw   []byte
	set   *trust.Set
	by    []ed25519.PublicKey
	index uint64
	// operators are those of the set that the store has.
	operators []string
}

func (a *app) operatorKeyPath(flag string) string {
	if flag != "" {
		return flag
	}
	if p := a.getenv("GATEMESH_OPERATOR_KEY_FILE"); p != "" {
		return p
	}
	home := a.getenv("HOME")
	if home == "" {
		home, _ = os.UserHomeDir()
	}
	return filepath.Join(home, ".config", "gatemesh", "operator.key")
}

// withStore opens the configured store for f.
func (a *app) withStore(ctx context.Context, f *trustFlags, do func(ctx context.Context, o *operator) error) error {
	cfg, _, err := a.loadConfig(a.configPath(f.config), nil)
	if err != nil {
		return err
	}
	s, err := openStore(cfg, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	defer s.Close()
	ctx, cancel := a.within(ctx, callTimeout)
	defer cancel()
	err = do(ctx, &operator{a: a, store: s, mesh: cfg.Mesh.Cluster.ID})
	var known *exitError
	if !errors.As(err, &known) && (errors.Is(err, bus.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)) {
		err = failf(exitUnavailable, "%s: %w", s.Describe(), err)
	}
	return err
}

// withOperator is withStore with the operator's key, which is made when it may be.
func (a *app) withOperator(ctx context.Context, f *trustFlags, makeKey bool, do func(ctx context.Context, o *operator) error) error {
	path := a.operatorKeyPath(f.operatorKey)
	return a.withStore(ctx, f, func(ctx context.Context, o *operator) (err error) {
		o.path = path
		if makeKey {
			o.key, o.made, err = trust.LoadOrMakeKey(path)
		} else {
			o.key, err = trust.LoadKey(path)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return failf(exitUsage, "no operator's key at %s: gatemesh trust init makes one, or name another file with --operator-key", path)
		case err != nil:
			return &exitError{exitUsage, err}
		}
		if o.anchor, err = trust.OpenAnchor(path+".trust-set.json", o.mesh, []ed25519.PublicKey{o.key.Public()}); err != nil {
			return &exitError{exitUsage, err}
		}
		return do(ctx, o)
	})
}

// asOperator is withOperator with the set that the store has, which must be one that he would have signed on.
func (a *app) asOperator(ctx context.Context, f *trustFlags, makeKey bool, do func(ctx context.Context, o *operator) error) error {
	return a.withOperator(ctx, f, makeKey, func(ctx context.Context, o *operator) error {
		if err := o.read(ctx); err != nil {
			return err
		}
		if o.set != nil {
			if _, err := o.anchor.Accept(o.raw); err != nil {
				return failf(exitFailed, "the trust set in the store is not what was signed here: %w; gatemesh trust publish puts the newest one back", err)
			}
			if !slices.Contains(o.set.Operators, trust.EncodePublic(o.key.Public())) {
				return failf(exitUsage, "trust set %d does not name the key in %s (%s) as an operator's", o.set.Version, o.path, o.key.ID())
			}
		}
		return do(ctx, o)
	})
}

// asReader is withStore with the set that the store has; no key is needed.
func (a *app) asReader(ctx context.Context, f *trustFlags, do func(ctx context.Context, o *operator) error) error {
	return a.withStore(ctx, f, func(ctx context.Context, o *operator) error {
		if err := o.read(ctx); err != nil {
			return err
		}
		if err := o.needsSet(); err != nil {
			return err
		}
		return do(ctx, o)
	})
}

func (o *operator) needsSet() error {
	if o.set == nil {
		return failf(exitFailed, "the mesh %s has no trust set: gatemesh trust init makes the first, gatemesh trust publish puts one back that is gone", o.mesh)
	}
	return nil
}

// read takes in what the store has.
func (o *operator) read(ctx context.Context) error {
	p, err := o.store.Get(ctx, trust.SetKey)
	if err != nil {
		return fmt.Errorf("read the trust set: %w", err)
	}
	if p == nil {
		return nil
	}
	o.index, o.raw = p.ModifyIndex, p.Value
	if o.set, o.by, err = trust.DecodeSet(p.Value); err != nil {
		return failf(exitFailed, "the trust set in the store is spoilt: %w; gatemesh trust publish puts the newest one back", err)
	}
	o.operators = slices.Clone(o.set.Operators)
	if o.set.Mesh != o.mesh {
		return failf(exitUsage, "the store has the trust set of the mesh %s, the configuration says %s (mesh.cluster.id)", o.set.Mesh, o.mesh)
	}
	return nil
}

// publish signs the set as the next version and writes it, unless somebody else did meanwhile. One that changes the
// operators lies in the store a second time, for those who were away while they changed. also are further keys that sign.
func (o *operator) publish(ctx context.Context, also ...*trust.Key) error {
	o.set.Version++
	o.set.IssuedAt = envelope.At(time.Now())
	raw, err := trust.SignSet(o.set, append([]*trust.Key{o.key}, also...)...)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	var way []bus.Op
	if o.operators != nil && !slices.Equal(o.operators, o.set.Operators) {
		way = []bus.Op{{Verb: bus.OpSet, Key: trust.OperatorsKey(o.set.Version), Value: raw}}
	}
	if err := o.put(ctx, raw, way...); err != nil {
		return err
	}
	o.operators = slices.Clone(o.set.Operators)
	if _, err := o.anchor.Accept(raw); err != nil {
		return fmt.Errorf("the set was published, but not remembered here: %w", err)
	}
	o.raw, o.by = raw, []ed25519.PublicKey{o.key.Public()}
	return nil
}

func (o *operator) put(ctx context.Context, raw []byte, more ...bus.Op) error {
	done, err := o.store.Txn(ctx, append([]bus.Op{{Verb: bus.OpCAS, Key: trust.SetKey, Value: raw, Index: o.index}}, more...))
	if refused := (*bus.TxnError)(nil); errors.As(err, &refused) {
		return failf(exitFailed, "somebody changed the trust set at the same time: do it again")
	}
	if err != nil {
		return fmt.Errorf("write the trust set: %w", err)
	}
	o.index = done[0].ModifyIndex // of the next one
	return nil
}

// putBack writes the newest set that was signed here.
func (o *operator) putBack(ctx context.Context) error {
	raw := o.anchor.Signed()
	if raw == nil {
		return failf(exitUsage, "no trust set was signed with %s: gatemesh trust init", o.path)
	}
	p, err := o.store.Get(ctx, trust.SetKey)
	if err != nil {
		return fmt.Errorf("read the trust set: %w", err)
	}
	if p != nil {
		if _, err := o.anchor.Accept(p.Value); err == nil && !bytes.Equal(p.Value, raw) {
			return failf(exitFailed, "the store has a newer set, by an operator that this one named: nothing to put back")
		}
		o.index = p.ModifyIndex
	}
	if err := o.put(ctx, raw); err != nil {
		return err
	}
	if o.set, o.by, err = trust.DecodeSet(raw); err != nil {
		return err
	}
	if o.a.asJSON {
		return o.a.printer().json(o.view())
	}
	o.a.printer().printf("trust set %d is in the store again\n", o.set.Version)
	return nil
}

func (o *operator) publishAndShow(ctx context.Context) error {
	if err := o.publish(ctx); err != nil {
		return err
	}
	if o.a.asJSON {
		return o.a.printer().json(o.view())
	}
	o.show()
	return nil
}

// admit adds a key of a gateway.
func (o *operator) admit(ctx context.Context, name, public string, agents []string) error {
	o.add(name, public, agents)
	return o.publishAndShow(ctx)
}

func (o *operator) add(name, public string, agents []string) {
	o.set.Put(name, trust.MemberKey{Public: public}, agents)
}

// givenToken is a token that the operator made and nobody has used.
type givenToken struct {
	Secret string   `json:"secret"`
	Agents []string `json:"agents"`
}

// tokens reads the tokens that can still be used, from beside the key.
func (o *operator) tokens() (list []givenToken, err error) {
	raw, err := os.ReadFile(o.path + ".tokens.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return nil, failf(exitUsage, "tokens beside the operator's key: %w", err)
	}
	return slices.DeleteFunc(list, func(g givenToken) bool {
		t, err := trust.ParseToken(g.Secret)
		return err != nil || time.Now().After(t.Expires)
	}), nil
}

func (o *operator) keepTokens(list []givenToken) error {
	raw, err := json.Marshal(list) //nolint:gosec // G117: the secrets are what is kept, in a file of mode 0600
	if err == nil {
		err = trust.WriteState(o.path+".tokens.json", raw)
	}
	return err
}

func (o *operator) giveToken(name string, agents []string, ttl time.Duration) error {
	list, err := o.tokens()
	if err != nil {
		return err
	}
	t := trust.NewToken(name, time.Now().Add(ttl), o.key.Public())
	if err := o.keepTokens(append(list, givenToken{t.Secret(), append([]string{}, agents...)})); err != nil {
		return err
	}
	if o.a.asJSON {
		return o.a.printer().json(map[string]any{"gateway": name, "token": t.Secret(), "expires": envelope.At(t.Expires), "agents": append([]string{}, agents...)})
	}
	o.a.printer().printf("%s\n", t.Secret())
	return nil
}

// requests reads who asks to join, by gateway.
func (o *operator) requests(ctx context.Context) ([]pendingRequest, []*trust.JoinRequest, error) {
	pairs, err := o.store.List(ctx, trust.RequestsPrefix)
	if err != nil {
		return nil, nil, fmt.Errorf("read requests: %w", err)
	}
	list, reqs := []pendingRequest{}, []*trust.JoinRequest{}
	for _, p := range pairs {
		line := pendingRequest{Gateway: strings.TrimPrefix(p.Key, trust.RequestsPrefix), Agents: []string{}}
		r, st, err := trust.DecodeJoinRequest(p.Key, o.mesh, p.Value)
		if err != nil {
			line.Problem = err.Error()
		} else {
			line.Key, line.Public, line.Agents, line.At = st.Key, r.Public, r.Agents, st.At
			if o.member(r) {
				continue // it was let in
			}
		}
		list, reqs = append(list, line), append(reqs, r)
	}
	return list, reqs, nil
}

func (o *operator) member(r *trust.JoinRequest) bool {
	if o.set == nil {
		return false
	}
	m := o.set.Member(r.Gateway)
	return m != nil && slices.ContainsFunc(m.Keys, func(k trust.MemberKey) bool { return k.Public == r.Public })
}

func (o *operator) pending(ctx context.Context) ([]pendingRequest, error) {
	list, reqs, err := o.requests(ctx)
	if err != nil {
		return nil, err
	}
	given, err := o.tokens()
	if err != nil {
		return nil, err
	}
	for i, r := range reqs {
		if r != nil {
			list[i].Token = o.tokenOf(given, r) >= 0
		}
	}
	return list, nil
}

// tokenOf returns which token lets a request in, or -1.
func (o *operator) tokenOf(given []givenToken, r *trust.JoinRequest) int {
	return slices.IndexFunc(given, func(g givenToken) bool {
		t, err := trust.ParseToken(g.Secret)
		return err == nil && t.Admits(o.mesh, r, time.Now()) == nil
	})
}

// approve lets in who asks, when the key is the one that was named.
func (o *operator) approve(ctx context.Context, name, key string, agents []string) error {
	list, _, err := o.requests(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(r pendingRequest) bool { return r.Gateway == name })
	switch {
	case i < 0:
		return failf(exitUsage, "%s does not ask to join: gatemesh trust pending", name)
	case list[i].Problem != "":
		return failf(exitFailed, "the request of %s cannot be used: %s", name, list[i].Problem)
	case key != list[i].Key && key != list[i].Public:
		return failf(exitFailed, "%s asks with the key %s, not %s: somebody else asks in its name, or it has a new key", name, list[i].Key, key)
	}
	return o.admit(ctx, name, list[i].Public, agents)
}

// approveTokens lets in all who show a token, and uses the tokens up first: one that was used and not published must be
// made anew, one that was published and not used up could be used twice.
func (o *operator) approveTokens(ctx context.Context) error {
	_, reqs, err := o.requests(ctx)
	if err != nil {
		return err
	}
	given, err := o.tokens()
	if err != nil {
		return err
	}
	in := 0
	for _, r := range reqs {
		if r == nil {
			continue
		}
		if i := o.tokenOf(given, r); i >= 0 {
			o.add(r.Gateway, r.Public, given[i].Agents)
			given = slices.Delete(given, i, i+1)
			in++
		}
	}
	if in == 0 {
		if o.a.asJSON {
			return o.a.printer().json(o.view())
		}
		o.a.printer().printf("nobody who asks shows a token that can be used\n")
		return nil
	}
	if err := o.keepTokens(given); err != nil {
		return err
	}
	return o.publishAndShow(ctx)
}

// trustView is what "trust list --json" prints.
type trustView struct {
	Mesh      string             `json:"mesh"`
	Version   uint64             `json:"version"`
	IssuedAt  envelope.Time      `json:"issued_at"`
	SignedBy  []string           `json:"signed_by"`
	Operators []trustKeyView     `json:"operators"`
	Gateways  []trustMemberView  `json:"gateways"`
	Revoked   []trust.Revocation `json:"revoked"`
}

type trustKeyView struct {
	Key       string         `json:"key"`
	Public    string         `json:"public"`
	NotBefore *envelope.Time `json:"not_before,omitempty"`
	NotAfter  *envelope.Time `json:"not_after,omitempty"`
}

type trustMemberView struct {
	Gateway string         `json:"gateway"`
	Agents  []string       `json:"agents"`
	Keys    []trustKeyView `json:"keys"`
}

func idOf(public string) string {
	p, err := trust.ParsePublic(public)
	if err != nil {
		return "?"
	}
	return trust.KeyID(p)
}

func (o *operator) view() trustView {
	s := o.set
	v := trustView{Mesh: s.Mesh, Version: s.Version, IssuedAt: s.IssuedAt, SignedBy: []string{}, Operators: []trustKeyView{}, Gateways: []trustMemberView{}, Revoked: s.Revoked}
	for _, p := range o.by {
		v.SignedBy = append(v.SignedBy, trust.KeyID(p))
	}
	for _, text := range s.Operators {
		v.Operators = append(v.Operators, trustKeyView{Key: idOf(text), Public: text})
	}
	for _, m := range s.Gateways {
		line := trustMemberView{Gateway: m.Name, Agents: m.Agents, Keys: []trustKeyView{}}
		for _, k := range m.Keys {
			v := trustKeyView{Key: idOf(k.Public), Public: k.Public, NotAfter: k.NotAfter}
			if !k.NotBefore.IsZero() {
				v.NotBefore = &k.NotBefore
			}
			line.Keys = append(line.Keys, v)
		}
		v.Gateways = append(v.Gateways, line)
	}
	return v
}

func (o *operator) show() {
	v, p := o.view(), o.a.printer()
	var operators []string
	for _, k := range v.Operators {
		operators = append(operators, k.Key)
	}
	p.printf("trust set %d of the mesh %s, signed by %s %s; operators: %s\n", v.Version, v.Mesh, strings.Join(v.SignedBy, ", "), ago(v.IssuedAt), strings.Join(operators, ", "))
	t := newTable("GATEWAY", "KEY", "AGENTS", "UNTIL")
	for _, m := range v.Gateways {
		for _, k := range m.Keys {
			until := ""
			if k.NotAfter != nil {
				until = k.NotAfter.Format(time.RFC3339)
			}
			t.add(m.Gateway, k.Key, strings.Join(m.Agents, ", "), until)
		}
	}
	p.table(t, "no gateway is in it yet (gatemesh trust pending, gatemesh trust enroll)")
	if len(v.Revoked) == 0 {
		return
	}
	p.printf("\n")
	t = newTable("REVOKED", "GATEWAY", "WHEN")
	for _, r := range v.Revoked {
		t.add(r.Key, r.Gateway, ago(r.At))
	}
	p.table(t, "")
}
