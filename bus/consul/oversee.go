package consul

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
)

// Oversees implements bus.Overseer. The agent asks a check; sessions hang from what the servers' catalog says of it, and the agent tells the
// catalog. An agent that has just started may not do so for up to 30 s: when its first synchronisation fails, it tries again after 15 to 30 s, and
// what its checks find meanwhile goes nowhere (Consul's agent/ae; a server fails at it when Raft's leader speaks to it before it has
// joined the gossip, one restart in twenty). Nor is a session a proof: the catalog may still say what it said before the agent's end.
//
// So another check of the service is registered, which asks the same address, begins as a warning and has to be seen in the catalog as
// passing: usually within a second. Then it is removed. These are three writes. The service's own check must have passed, too: an agent
// that has just started takes it for critical until it has asked, and has nothing to tell if it stays so. Programs that register something at
// the same agent in that very moment have it pass on everything, and can make it look well.
//
// It needs service:write for the service, and node:read and service:read to see it.
func (s *Store) Oversees(ctx context.Context, checks []string) error {
	for _, svc := range s.services.all() {
		for _, id := range checks {
			if id == checkID(svc) && svc.HealthURL != "" {
				if err := s.oversees(ctx, svc); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *Store) oversees(ctx context.Context, svc bus.Service) (err error) {
	c, err := s.begin(ctx, "ask whether the catalog hears of "+svc.ID, s.timeout)
	if err != nil {
		return err
	}
	defer c.end()
	// A name that was never used: the agent keeps the state of a check that it knows.
	probe := checkID(svc) + probeMark + uuid.NewString()
	s.forgetProbes(c, svc)
	reg := &api.AgentCheckRegistration{ID: probe, ServiceID: svc.ID, Name: "does the catalog hear of " + svc.Name, AgentServiceCheck: *agentCheck(svc)}
	reg.CheckID = ""
	reg.Interval, reg.Status, reg.DeregisterCriticalServiceAfter = probeEvery.String(), api.HealthWarning, ""
	opts := c.query()
	if err := s.calls.Agent().CheckRegisterOpts(reg, opts); err != nil {
		return s.fail(c, err)
	}
	defer func() {
		// Also when the caller has gone. What is left all the same goes with the next registration, which replaces all checks.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeEnd)
		defer cancel()
		_ = s.calls.Agent().CheckDeregisterOpts(probe, (&api.QueryOptions{}).WithContext(end))
	}()
	seen := false
	for index := uint64(0); ; {
		q := c.query()
		q.WaitIndex, q.WaitTime = index, s.timeout
		all, meta, err := s.watches.Health().Checks(svc.Name, q)
		switch {
		case err != nil && c.caller.Err() == nil && s.closed.Err() == nil && c.ctx.Err() != nil:
			return s.failed(c, bus.ErrUnavailable, nil, "the Consul agent of this node has not told the catalog what it found", "after the start of an agent that takes up to 30 s")
		case err != nil:
			return s.fail(c, err)
		case meta.ResultsFilteredByACLs:
			return s.filtered(c)
		}
		found := false
		for _, h := range all {
			if h.CheckID != probe {
				continue
			}
			if h.Status == api.HealthPassing {
				return s.passes(c, svc)
			}
			found = true
		}
		if seen && !found {
			return s.failed(c, bus.ErrUnavailable, nil, "the service was registered anew meanwhile", "")
		}
		seen = found
		if index = meta.LastIndex; index == 0 {
			index = 1 // 0 would not wait
		}
	}
}

// passes waits until the agent itself has found that a service's check passes.
func (s *Store) passes(c *call, svc bus.Service) error {
	for {
		all, err := s.calls.Agent().ChecksWithFilterOpts(fmt.Sprintf("CheckID == %q", checkID(svc)), c.query())
		if err != nil {
			return s.fail(c, err)
		}
		if own := all[checkID(svc)]; own != nil && own.Status == api.HealthPassing {
			return nil
		}
		if !sleep(c.ctx, checkPauseMax) {
			return s.failed(c, bus.ErrUnavailable, nil, "the Consul agent of this node has not seen the gateway's check pass", "is the gateway's health address right?")
		}
	}
}

const (
	// probeMark is in the ids of checks that only find out whether the catalog hears of them.
	probeMark = ":heard:"
	// probeEvery is the shortest interval that Consul takes.
	probeEvery = time.Second
	// probeEnd is how long removing such a check may take.
	probeEnd = 2 * time.Second
)

// forgetProbes removes those that an earlier try could not.
func (s *Store) forgetProbes(c *call, svc bus.Service) {
	all, err := s.calls.Agent().ChecksWithFilterOpts(fmt.Sprintf("ServiceID == %q", svc.ID), c.query())
	if err != nil {
		return
	}
	for id := range all {
		if strings.HasPrefix(id, checkID(svc)+probeMark) {
			_ = s.calls.Agent().CheckDeregisterOpts(id, c.query())
		}
	}
}

// IsProbe reports whether a check only finds out whether the catalog hears of its agent: it is a warning for a moment, and nobody's trouble.
func IsProbe(checkID string) bool { return strings.Contains(checkID, probeMark) }

// checkID is the id of a service's check.
func checkID(svc bus.Service) string { return "service:" + svc.ID }
