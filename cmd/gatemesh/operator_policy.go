package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// meshPolicy is the policy that the store has, judged.
type meshPolicy struct {
	policy *trust.Policy // nil: none
	by     ed25519.PublicKey
	index  uint64
}

// readPolicy takes in the policy that lies in the store.
func (o *operator) readPolicy(ctx context.Context) (m meshPolicy, err error) {
	p, err := o.store.Get(ctx, trust.PolicyKey)
	if err != nil {
		return m, fmt.Errorf("read the policy: %w", err)
	}
	if p == nil {
		return m, nil
	}
	m.index = p.ModifyIndex
	if m.policy, m.by, err = trust.DecodePolicy(p.Value); err != nil {
		return m, failf(exitFailed, "the policy in the store is spoilt: %w; gatemesh policy publish puts one in its place", err)
	}
	if m.policy.Mesh != o.mesh {
		return m, failf(exitUsage, "the store has the policy of the mesh %s, the configuration says %s (mesh.cluster.id)", m.policy.Mesh, o.mesh)
	}
	return m, nil
}

// policyAnchor is what this operator published last, beside his key.
func (o *operator) policyAnchor() (*trust.PolicyAnchor, error) {
	a, err := trust.OpenPolicyAnchor(o.path+".policy.json", o.mesh)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return a, nil
}

// publishPolicy signs rules as the next version and writes them. What lies in the store counts for nothing but its version: it
// may be anybody's.
func (o *operator) publishPolicy(ctx context.Context, rules []byte, by *trust.Key) (*trust.Policy, error) {
	now, err := o.readPolicy(ctx)
	if err != nil && now.index == 0 {
		return nil, err
	}
	anchor, err := o.policyAnchor()
	if err != nil {
		return nil, err
	}
	next := &trust.Policy{Mesh: o.mesh, Version: 1, IssuedAt: envelope.At(time.Now()), Rules: rules}
	if p := anchor.Policy(); p != nil {
		next.Version = p.Version + 1
	}
	if p := now.policy; p != nil && slices.Contains(o.set.Operators, trust.EncodePublic(now.by)) {
		next.Version = max(next.Version, p.Version+1)
	}
	raw, err := trust.SignPolicy(next, by)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	_, err = o.store.Txn(ctx, []bus.Op{{Verb: bus.OpCAS, Key: trust.PolicyKey, Value: raw, Index: now.index}})
	if refused := (*bus.TxnError)(nil); errors.As(err, &refused) {
		return nil, failf(exitFailed, "somebody changed the policy at the same time: do it again")
	}
	if err != nil {
		return nil, fmt.Errorf("write the policy: %w", err)
	}
	if err := anchor.Accept(raw, o.set, nil); err != nil {
		return nil, fmt.Errorf("the policy was published, but not remembered here: %w", err)
	}
	return next, nil
}

// signPolicyAnew has another operator's key sign the policy that one published before, when there is one. Both must be in the set.
func (o *operator) signPolicyAnew(ctx context.Context, old ed25519.PublicKey, next *trust.Key) error {
	now, err := o.readPolicy(ctx)
	if err != nil {
		return err
	}
	if now.policy == nil || !now.by.Equal(old) {
		return nil
	}
	// The one in the store may be an older one of his.
	rules := now.policy.Rules
	anchor, err := o.policyAnchor()
	if err != nil {
		return err
	}
	if p := anchor.Policy(); p != nil && p.Version > now.policy.Version {
		rules = p.Rules
	}
	_, err = o.publishPolicy(ctx, rules, next)
	return err
}
