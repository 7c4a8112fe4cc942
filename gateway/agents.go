package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
)

// liveAgent is a handler that a reload can replace. A message that is being worked on keeps
// the one it began with.
type liveAgent struct{ now atomic.Pointer[liveHandler] }

type liveHandler struct {
	handler    bus.Handler
	ackTimeout time.Duration
}

func (l *liveAgent) set(h bus.Handler, ackTimeout time.Duration) {
	l.now.Store(&liveHandler{h, ackTimeout})
}

// Handle implements bus.Handler.
func (l *liveAgent) Handle(ctx context.Context, m *bus.Incoming) error {
	h := l.now.Load()
	if agent.Waits(&m.Envelope().Envelope) {
		return h.handler.Handle(ctx, m)
	}
	ctx, cancel := context.WithTimeout(ctx, h.ackTimeout)
	defer cancel()
	return h.handler.Handle(ctx, m)
}

// queueWork is a liveAgent at a queue, where the lease of a task is what ends an attempt.
type queueWork struct{ *liveAgent }

// Handle implements bus.Handler.
func (w queueWork) Handle(ctx context.Context, m *bus.Incoming) error {
	return w.now.Load().handler.Handle(ctx, m)
}

// longestAck is the bus's own bound; liveAgent has the agent's, which a reload may change.
const longestAck = 365 * 24 * time.Hour

func specOf(cfg *Config, a AgentConfig) agent.Spec {
	r := a.Runner
	models, _ := cfg.modelsOf(a) // Validate has refused what cannot be resolved
	return agent.Spec{
		ID: a.ID, Name: a.Name, Description: a.Description, Workspace: a.Workspace, Capabilities: a.Capabilities,
		Models: models, Tools: cfg.toolPolicies(a), Exec: cfg.execOf(a), SessionsOf: cfg.sessionsOf(a), SpawnAgents: a.Subagents.AllowAgents, RunRetention: cfg.Cron.runRetention(),
		Runner: agent.Runner{
			Kind: r.Kind, To: r.To, Timeout: r.Timeout, Alert: r.Alert, Checks: r.Checks,
			Nomad: agent.Nomad{Address: r.Nomad.Address, Token: r.Nomad.Token}, Command: r.Command, Repeat: r.Repeat, URL: r.URL, Token: r.Token, ResendSameID: r.Resend, Options: r.Options,
		},
	}
}

// runner makes what answers an agent's messages. Who fetches them has a lease of his own, and they wait for him as long as they live.
func (g *Gateway) runner(cfg *Config, a AgentConfig) (bus.Handler, time.Duration, error) {
	if a.Runner.Kind == runnerMailbox {
		return newMailbox(), longestAck, nil
	}
	h, err := g.deps.Runners.New(specOf(cfg, a), g.agentDeps(a.ID))
	if err == nil && a.Alerts.Channel != "" {
		h = newAlertPoster(a.Alerts, h)
	}
	return h, a.AckTimeout, err
}

func (g *Gateway) agentDeps(id string) agent.Deps {
	return agent.Deps{Gateway: g.name, Directory: g, Logger: g.log.Named(id), ModelCalled: g.metrics.model, NoteCheck: func(ctx context.Context, agent string, n bus.CheckNote) error {
		_, err := g.bus.Load().NoteCheck(ctx, agent, n) // there is a message, so there is a bus
		return err
	}, Room: func(ctx context.Context, agent, prefix string) ([]bus.RoomEntry, error) {
		return g.bus.Load().Room(ctx, agent, prefix)
	}, Place: placeOf, Post: postAt}
}

// Agents implements agent.Directory; empty until the store was reached.
func (g *Gateway) Agents(capability string) []bus.AgentInfo {
	if b := g.bus.Load(); b != nil {
		return b.Agents(capability)
	}
	return nil
}

// serveAgents offers the agents of cfg to the bus.
func (g *Gateway) serveAgents(b *bus.Bus, cfg *Config) error {
	for _, a := range cfg.AgentsHere() {
		l := g.agents[a.ID]
		if l == nil {
			continue // came with a reload: needs a restart
		}
		if err := b.Serve(bus.AgentSpec{
			ID: a.ID, Name: a.Name, Description: a.Description, Workspace: a.Workspace, Capabilities: a.Capabilities,
			Rank: slices.Index(a.Gateways, g.name), Candidates: a.Gateways, MaxConcurrent: a.MaxConcurrent, AckTimeout: longestAck,
			Waits: agent.Waits, OneOrder: a.Runner.Kind == runnerLLM, // a transcript has one writer at a time, also when people and its own runs speak to it through several gateways
		}, l); err != nil {
			return err
		}
	}
	return nil
}

// serveQueues offers the queues of the start to the bus, and this gateway as a worker. A reload changes
// neither, only the runners that do the work.
func (g *Gateway) serveQueues(b *bus.Bus) error {
	for _, q := range g.start.QueuesHere() {
		if err := b.ServeQueue(bus.QueueSpec{ID: q.ID, Description: q.Description, Rank: slices.Index(q.Gateways, g.name), AckTimeout: q.AckTimeout}); err != nil {
			return fmt.Errorf("queue %s: %w", q.ID, err)
		}
	}
	for _, q := range g.start.WorkHere() {
		if err := b.Work(bus.WorkerSpec{Queue: q.ID, Agent: q.Agent, Slots: q.Concurrency}, queueWork{g.agents[q.Agent]}); err != nil {
			return fmt.Errorf("work of queue %s: %w", q.ID, err)
		}
	}
	return nil
}

// Reload takes up what a running gateway can take up of cfg, and says by key what changed
// since the last reload and what waits for a restart (since the start). On an error
// nothing was taken up.
//
// Taken up at once: tokens (streams of those that are gone are closed), another key in mesh.identity.keyFile (asked for, and signed
// with when it counts), runners and ack timeouts of agents, limits
// and defaults for messages that come through the API, the log level, settings and tokens of chat accounts (connected again, under
// the same ownership). What the registry says of an agent (name,
// capabilities ...) follows when its inbox is taken the next time.
func (g *Gateway) Reload(cfg *Config) (changed, needRestart []string, err error) {
	if cfg == nil {
		return nil, nil, errors.New("reload: no configuration")
	}
	cfg.Normalize()
	if err := cfg.Validate(); err != nil {
		return nil, nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopping {
		return nil, nil, bus.ErrStopped
	}
	if err := g.checkReload(cfg); err != nil {
		return nil, nil, fmt.Errorf("reload: %w", err)
	}
	if err := g.reloadKey(); err != nil {
		return nil, nil, fmt.Errorf("reload: %w", err)
	}
	changed, _ = Reloadable(g.last, cfg)
	sinceStart, needRestart := Reloadable(g.start, cfg)
	for _, key := range sinceStart {
		if g.fixed(key, cfg) && !slices.Contains(needRestart, key) {
			needRestart = append(needRestart, key)
		}
	}
	slices.Sort(needRestart)

	// All handlers first: a mistake in one must not leave half of them changed.
	type update struct {
		l *liveAgent
		h bus.Handler
		t time.Duration
	}
	var updates []update
	for _, a := range cfg.runnersHere() {
		l := g.agents[a.ID]
		if l == nil {
			continue
		}
		h, ackTimeout := l.now.Load().handler, a.AckTimeout
		_, isMailbox := h.(*mailbox)
		if isMailbox && a.Runner.Kind == runnerMailbox {
			continue // nothing of it is configured, and who has fetched something goes on
		}
		if slices.ContainsFunc(changed, func(k string) bool {
			if strings.HasPrefix(k, "models.") || strings.HasPrefix(k, "tools.") {
				return a.Runner.Kind == runnerLLM
			}
			rest, ok := strings.CutPrefix(k, "agents."+a.ID+".")
			return ok && !strings.HasPrefix(rest, "ackTimeout")
		}) {
			if h, ackTimeout, err = g.runner(cfg, a); err != nil {
				return nil, nil, fmt.Errorf("reload: %w", err)
			}
		}
		updates = append(updates, update{l, h, ackTimeout})
	}
	takeAccounts, switched, err := g.reloadAccounts(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("reload: %w", err)
	}
	needRestart = append(needRestart, switched...)
	slices.Sort(needRestart)
	for _, u := range updates {
		u.l.set(u.h, u.t)
	}
	takeAccounts()
	g.setGuard(cfg.Gateway, changed)
	g.settings.Store(settingsOf(cfg))
	g.router.Store(NewRouter(cfg))
	if slices.ContainsFunc(changed, func(k string) bool { return strings.HasPrefix(k, "mesh.policy.") }) {
		if err := g.policy.set(cfg); err != nil { // Validate has read it, so this is a bug
			return nil, nil, fmt.Errorf("reload: %w", err)
		}
	}
	g.confidentiality.set(cfg)
	if slices.Contains(changed, "mesh.log.level") {
		g.log.SetLevel(hclog.LevelFromString(cfg.Mesh.Log.Level))
	}
	if b := g.bus.Load(); b != nil {
		if err := g.serveAgents(b, cfg); err != nil {
			return nil, nil, fmt.Errorf("reload: %w", err)
		}
	}
	g.last = cfg
	g.takeSkills(cfg)
	if len(changed) > 0 {
		g.audit.order(auditOrder{What: "reload", Keys: changed})
	}
	g.log.Info("configuration reloaded", "changed", strings.Join(changed, ", "), "after_restart", strings.Join(needRestart, ", "))
	return changed, needRestart, nil
}

// fixed reports whether the bus keeps the value of key that it was started with.
func (g *Gateway) fixed(key string, cfg *Config) bool {
	switch {
	case strings.HasPrefix(key, "mesh.retry"), key == "mesh.resultRetention", key == "mesh.log.json",
		strings.HasPrefix(key, "agents.") && strings.HasSuffix(key, ".maxConcurrent"):
		return true
	case strings.HasPrefix(key, "mesh.confidentiality."):
		return g.identity.ring == nil
	case key == "mesh.maxPayload":
		return cfg.Mesh.MaxPayload > g.start.Mesh.MaxPayload
	}
	return false
}
