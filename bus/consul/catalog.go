package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
)

// deregisterAfter is when Consul forgets a gateway whose check stayed critical: long
// after a weekend's outage was noticed.
const deregisterAfter = 72 * time.Hour

// RegisterService implements bus.Registrar, at the asked agent: it must be the
// agent of the gateway's own node. Registering again replaces the entry. The check
// starts as passing and is asked every Interval (10 s if 0), each time for at most
// twice that, within 2 to 10 s; a gateway that is down is seen at the next
// question, one that hangs after the time-out.
//
// Without a HealthURL there is no check, and the returned id is empty.
func (s *Store) RegisterService(ctx context.Context, svc bus.Service) (string, error) {
	if svc.ID == "" || svc.Name == "" {
		return "", errors.New("register service: it needs an id and a name")
	}
	check, err := s.register(ctx, svc)
	if err == nil {
		s.services.Lock()
		s.services.byID[svc.ID] = svc
		s.services.Unlock()
	}
	return check, err
}

// register tells the agent.
func (s *Store) register(ctx context.Context, svc bus.Service) (string, error) {
	c, err := s.begin(ctx, "register service "+svc.ID, s.timeout)
	if err != nil {
		return "", err
	}
	defer c.end()
	reg := &api.AgentServiceRegistration{
		ID: svc.ID, Name: svc.Name,
		Address: svc.Address, Port: svc.Port,
		Tags: svc.Tags, Meta: svc.Meta,
	}
	id := ""
	if svc.HealthURL != "" {
		id = checkID(svc)
		reg.Check = agentCheck(svc)
	}
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}
	if err := s.calls.Agent().ServiceRegisterOpts(reg, opts.WithContext(c.ctx)); err != nil {
		return "", s.fail(c, err)
	}
	return id, nil
}

// agentCheck is how the agent is to ask a service.
func agentCheck(svc bus.Service) *api.AgentServiceCheck {
	interval := svc.Interval
	if interval <= 0 {
		interval = 10 * time.Second
	}
	return &api.AgentServiceCheck{
		CheckID: checkID(svc),
		Name:    svc.Name + " answers",
		HTTP:    svc.HealthURL,
		// The agent asks a port of its own node whether somebody is there, and sends nothing that matters. The
		// certificate is for the name that others use.
		TLSSkipVerify:                  strings.HasPrefix(svc.HealthURL, "https://"),
		Interval:                       interval.String(),
		Timeout:                        min(max(2*interval, 2*time.Second), 10*time.Second).String(),
		Status:                         api.HealthPassing,
		DeregisterCriticalServiceAfter: deregisterAfter.String(),
	}
}

// DeregisterService implements bus.Registrar. Removing what is not there is no
// error. Sessions bound to the service's check end with it.
func (s *Store) DeregisterService(ctx context.Context, id string) error {
	c, err := s.begin(ctx, "deregister service "+id, s.timeout)
	if err != nil {
		return err
	}
	defer c.end()
	s.services.Lock()
	delete(s.services.byID, id)
	s.services.Unlock()
	err = s.calls.Agent().ServiceDeregisterOpts(id, c.query())
	if err != nil && c.answer.status != http.StatusNotFound {
		return s.fail(c, err)
	}
	return nil
}

// Leader returns the Raft address ("10.0.0.1:8300") of the server that leads, as
// the asked agent knows it; empty when it knows none.
func (s *Store) Leader(ctx context.Context) (string, error) {
	c, err := s.begin(ctx, "ask for the leader", s.timeout)
	if err != nil {
		return "", err
	}
	defer c.end()
	leader, err := s.calls.Status().LeaderWithQueryOptions(c.query())
	if err != nil {
		return "", s.fail(c, err)
	}
	return leader, nil
}

// Servers returns the Raft addresses of the leader (empty: none known) and of all
// voting servers. It is cheap and needs no token: a probe for "doctor".
func (s *Store) Servers(ctx context.Context) (leader string, peers []string, err error) {
	if leader, err = s.Leader(ctx); err != nil {
		return "", nil, err
	}
	c, err := s.begin(ctx, "ask for the servers", s.timeout)
	if err != nil {
		return "", nil, err
	}
	defer c.end()
	if peers, err = s.calls.Status().PeersWithQueryOptions(c.query()); err != nil {
		return "", nil, s.fail(c, err)
	}
	return leader, peers, nil
}

// Reach implements [bus.Reachable]: nil when the agent answers at all, whatever it says. A server without a leader answers this by itself.
func (s *Store) Reach(ctx context.Context) error {
	c, err := s.begin(ctx, "ask whether the agent is there", s.timeout)
	if err != nil {
		return err
	}
	defer c.end()
	var leader string
	if _, err := s.calls.Raw().Query("/v1/status/leader", &leader, c.query()); err != nil && c.answer.status == 0 {
		return s.fail(c, err)
	}
	return nil
}

// Leads implements bus.Led: it needs agent:read. An agent that is no server never leads.
func (s *Store) Leads(ctx context.Context) (bool, error) {
	c, err := s.begin(ctx, "ask who leads", s.timeout)
	if err != nil {
		return false, err
	}
	defer c.end()
	var self struct {
		Stats struct {
			Consul struct {
				Leader string `json:"leader"`
			} `json:"consul"`
		}
	}
	if _, err := s.calls.Raw().Query("/v1/agent/self", &self, c.query()); err != nil {
		return false, s.fail(c, err)
	}
	return self.Stats.Consul.Leader == "true", nil
}

// RaftIndex returns the asked server's last Raft log index, by which tests count
// entries: every write is one, and so is every session that begins or ends. It
// fails on an agent that is not a server, and needs agent:read.
func (s *Store) RaftIndex(ctx context.Context) (uint64, error) {
	c, err := s.begin(ctx, "ask for the Raft index", s.timeout)
	if err != nil {
		return 0, err
	}
	defer c.end()
	var self struct {
		Stats struct {
			Raft struct {
				LastLogIndex string `json:"last_log_index"`
			} `json:"raft"`
		}
	}
	if _, err := s.calls.Raw().Query("/v1/agent/self", &self, c.query()); err != nil {
		return 0, s.fail(c, err)
	}
	index, err := strconv.ParseUint(self.Stats.Raft.LastLogIndex, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is not a server: it has no Raft index", s.Describe())
	}
	return index, nil
}
