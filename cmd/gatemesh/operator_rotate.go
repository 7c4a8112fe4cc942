package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
	"github.com/gatemesh/gatemesh/gateway"
)

// lookAgain is how often the operator's side looks whether something has come.
const lookAgain = 100 * time.Millisecond

// rotateGateway has a gateway's key followed by the one that it asks for. key is its id, when it is known from elsewhere;
// else the gateway's API is asked.
func (o *operator) rotateGateway(ctx context.Context, name, key string, overlap, keep time.Duration) (rotation, error) {
	r := rotation{Gateway: name}
	if err := o.needsSet(); err != nil {
		return r, err
	}
	if o.set.Member(name) == nil {
		return r, failf(exitUsage, "trust set %d has no gateway %s: gatemesh trust list", o.set.Version, name)
	}
	var api *client
	if key == "" {
		var err error
		if api, err = o.gatewayAPI(ctx, name); err != nil {
			return r, err
		}
		defer api.close()
		var keys gateway.KeysResponse
		if err := api.do(ctx, http.MethodPost, "/v1/keys/rotate", nil, nil, &keys); err != nil {
			return r, err
		}
		if keys.Gateway != name {
			return r, failf(exitUsage, "%s is the gateway %s, not %s: name its own with --addr", api.addr(), printable(keys.Gateway), name)
		}
		if keys.Next == nil {
			return r, failf(exitFailed, "%s signs with %s and asks for no other: it believes everybody (mesh.trust), so it needs no operator", name, keys.Now.Key)
		}
		key = keys.Next.Key
	}
	req, err := o.awaitRequest(ctx, name, key)
	if err != nil {
		return r, err
	}
	now := time.Now()
	if r.Before, err = req.Vouched(o.set, now); err != nil {
		return r, failf(exitFailed, "%s asks for the key %s, but no key of its own that counts vouches for it: %w; if that is no surprise (its old key is lost): gatemesh trust approve %s --key %s", name, key, err, name, key)
	}
	if err := o.set.Follow(name, req.Public, now, overlap, keep); err != nil {
		return r, &exitError{exitFailed, err}
	}
	if err := o.publish(ctx); err != nil {
		return r, err
	}
	r.Key, r.Public, r.Version, r.Ends = key, req.Public, o.set.Version, envelope.At(now.Add(overlap))
	if api != nil {
		r.InUse, err = o.awaitUse(ctx, api, key)
	}
	return r, err
}

// gatewayAPI is a client of a gateway's API: where --addr says, or where the gateway itself says, signed. What stands in the
// store unsigned is not asked: it would be told the token. GATEMESH_ADDR is whichever gateway the operator talks to else.
func (o *operator) gatewayAPI(ctx context.Context, name string) (*client, error) {
	if o.a.addr != "" {
		return o.a.client()
	}
	v := trust.NewVerifier(o.mesh, true)
	v.Use(o.set)
	at, st, err := bus.SignedGateway(ctx, o.store, v, name)
	if err != nil {
		return nil, failf(exitFailed, "where %s can be reached is not known: %w; name it with --addr", name, err)
	}
	if st == nil || at == "" {
		return nil, failf(exitFailed, "%s never registered: name its address with --addr", name)
	}
	token := o.a.token
	if token == "" {
		token = o.a.getenv("GATEMESH_TOKEN", "OPENCLAW_GATEWAY_TOKEN")
	}
	return newClient(at, token, o.a.getenv("GATEMESH_CACERT"))
}

// awaitRequest waits until a gateway's request for a key lies in the store.
func (o *operator) awaitRequest(ctx context.Context, name, key string) (*trust.JoinRequest, error) {
	place := trust.RequestsPrefix + name
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	for {
		p, err := o.store.Get(ctx, place)
		if err != nil {
			return nil, fmt.Errorf("read the request of %s: %w", name, err)
		}
		other := "it asks for nothing"
		if p != nil {
			r, st, err := trust.DecodeJoinRequest(place, o.mesh, p.Value)
			switch {
			case err != nil:
				other = err.Error()
			case st.Key == key:
				return r, nil
			default:
				other = "the request there is for the key " + st.Key
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, failf(exitTimeout, "the request of %s for the key %s did not come: %s; somebody else may be writing there", name, key, other)
		}
	}
}

// awaitUse waits until a gateway signs with a key.
func (o *operator) awaitUse(ctx context.Context, api *client, key string) (bool, error) {
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	for {
		var keys gateway.KeysResponse
		err := api.do(ctx, http.MethodPost, "/v1/keys/rotate", url.Values{"next": {key}}, nil, &keys)
		if err == nil && keys.Now.Key == key {
			return true, nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return false, failf(exitTimeout, "trust set %d names the key, but the gateway does not sign with it yet (%w); it takes it up with a heartbeat: gatemesh keys list", o.set.Version, errors.Join(err, ctx.Err()))
		}
	}
}

// rotateOperator replaces the operator's key, or goes on with what was begun. It returns the old one's id and the new key.
func (o *operator) rotateOperator(ctx context.Context) (old string, next *trust.Key, err error) {
	nextPath := o.path + ".next"
	if err := o.read(ctx); err != nil {
		return "", nil, err
	}
	if err := o.needsSet(); err != nil {
		return "", nil, err
	}
	if _, err := o.anchor.Accept(o.raw); err != nil {
		return "", nil, failf(exitFailed, "the trust set in the store is not what was signed here: %w; gatemesh trust publish puts the newest one back", err)
	}
	if next, _, err = trust.LoadOrMakeKey(nextPath); err != nil {
		return "", nil, &exitError{exitUsage, err}
	}
	mine, its := trust.EncodePublic(o.key.Public()), trust.EncodePublic(next.Public())
	old = o.key.ID()
	switch has := slices.Contains(o.set.Operators, mine); {
	case !has && slices.Contains(o.set.Operators, its): // it was stopped before the files were changed
	case !has:
		return "", nil, failf(exitUsage, "trust set %d does not name the key in %s (%s) as an operator's", o.set.Version, o.path, old)
	default:
		if !slices.Contains(o.set.Operators, its) {
			o.set.Operators = append(o.set.Operators, its)
			if err := o.publish(ctx); err != nil {
				return "", nil, err
			}
		}
		// While both count: nobody finds the policy signed by an operator of before.
		if err := o.signPolicyAnew(ctx, o.key.Public(), next); err != nil {
			return "", nil, err
		}
		o.set.Operators = slices.DeleteFunc(o.set.Operators, func(s string) bool { return s == mine })
		if err := o.publish(ctx, next); err != nil {
			return "", nil, err
		}
	}
	kept := o.path + "." + old + ".old"
	if err := os.Link(o.path, kept); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", nil, fmt.Errorf("keep the old key: %w", err)
	}
	return old, next, trust.MoveKey(nextPath, o.path)
}
