package gateway

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// PolicyConfig says which remote agent may invoke which capability of which agent of this gateway (plan, "Security
// Requirements"). Each gateway judges what arrives at it.
type PolicyConfig struct {
	Default   string       `json:"default" def:"deny" enum:"deny|allow" doc:"What holds for a message from another gateway that no rule is about. Messages of this gateway's own agents and clients are allowed."`
	Rules     []PolicyRule `json:"rules" doc:"In order: the first rule that is about a message decides."`
	Operators []string     `json:"operators" def:"*" doc:"Gateways (patterns) whose operators may give orders here: redrive and purge of dead letters, cancelling of messages and tasks."`
}

// PolicyRule is one rule. In its patterns * is any text, ? one letter and [abc] one of these; empty is *.
type PolicyRule struct {
	Name       string      `json:"name" doc:"What refusals and \"policy explain\" call it. Empty: its number."`
	Action     string      `json:"action" def:"allow" enum:"allow|deny" doc:"What happens to what it is about."`
	From       string      `json:"from" doc:"Who asks, as agent@gateway; without @ that agent on any gateway."`
	To         string      `json:"to" doc:"The agent or queue that is asked."`
	Capability string      `json:"capability" doc:"The capability that is asked for. A message without one is matched by * and by an empty pattern only."`
	Rate       string      `json:"rate" doc:"Messages from each gateway, as 10/s, 60/m or 500/h, all of them at once if they come so; more are refused. Empty: no limit. For allow only."`
	MaxPayload ConfigBytes `json:"maxPayload" doc:"Largest payload; a larger one is refused. 0: no limit of its own. For allow only."`
}

// Verdict is what a policy says of one message, and why.
type Verdict struct {
	Allowed bool `json:"allowed"`
	// Rule names the rule that decided; empty when none did.
	Rule   string `json:"rule,omitempty"`
	Number int    `json:"number,omitempty"` // of the rule, from 1
	// Where the rule stands: "mesh.policy" of the configuration, or "openclaw/policy" with its version.
	Where  string `json:"where,omitempty"`
	Reason string `json:"reason"`
}

// Policy judges messages: by the rules of this gateway's configuration first, then by those of the mesh, which an operator has
// signed, then by the configuration's default. Safe for concurrent use.
type Policy struct {
	self      string
	allow     bool
	operators []string
	rules     []*policyRule
	// mesh is the version of the signed policy in it; 0: none.
	mesh uint64
}

type policyRule struct {
	PolicyRule
	where                   string // it stands
	number                  int
	agent, gateway, to, cap string // patterns
	limit                   rate.Limit
	burst                   int

	mu       sync.Mutex
	limiters map[string]*rate.Limiter // by source gateway
}

// maxLimiters bounds the counters of one rule: gateways beyond that share one.
const maxLimiters = 256

// NewPolicy reads a policy for the gateway self. The errors name the rule and the field.
func NewPolicy(cfg PolicyConfig, self string) (*Policy, error) {
	p := &Policy{self: self, allow: cfg.Default == "allow", operators: cfg.Operators}
	for _, pattern := range cfg.Operators {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, &policyError{"operators", fmt.Sprintf("%q is not a pattern: %v", pattern, err)}
		}
	}
	if err := p.add(cfg.Rules, configRules); err != nil {
		return nil, err
	}
	return p, nil
}

// configRules is where the rules of the configuration stand.
const configRules = "mesh.policy"

// add puts rules behind those that are there.
func (p *Policy) add(rules []PolicyRule, where string) error {
	for i, c := range rules {
		r := &policyRule{PolicyRule: c, where: where, number: i + 1, to: c.To, cap: c.Capability, limiters: map[string]*rate.Limiter{}}
		at := func(field string) string { return fmt.Sprintf("rules[%d].%s", i, field) }
		var pinned bool
		if r.agent, r.gateway, pinned = strings.Cut(c.From, "@"); !pinned {
			r.gateway = "*"
		}
		for _, f := range []struct {
			name    string
			pattern *string
		}{{"from", &r.agent}, {"from", &r.gateway}, {"to", &r.to}, {"capability", &r.cap}} {
			if *f.pattern == "" {
				*f.pattern = "*"
			}
			// Names hold no slash, so a star of path.Match is any text.
			if _, err := path.Match(*f.pattern, ""); err != nil || strings.ContainsAny(*f.pattern, "/@") {
				return &policyError{at(f.name), fmt.Sprintf("%q is not a pattern of names: * is any text, ? one letter, [abc] one of these", *f.pattern)}
			}
		}
		if c.Action == "deny" && (c.Rate != "" || c.MaxPayload != 0) {
			return &policyError{at("action"), "a rule that denies has no rate and no maxPayload"}
		}
		if c.Rate != "" {
			var err error
			if r.limit, r.burst, err = parseRate(c.Rate); err != nil {
				return &policyError{at("rate"), err.Error()}
			}
		}
		p.rules = append(p.rules, r)
	}
	return nil
}

// policyError is one mistake in a policy, with the place below mesh.policy.
type policyError struct{ at, message string }

func (e *policyError) Error() string { return "mesh.policy." + e.at + ": " + e.message }

// parseRate reads 10/s, 60/m or 500/h.
func parseRate(s string) (rate.Limit, int, error) {
	number, unit, _ := strings.Cut(s, "/")
	per := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 1_000_000 || per == 0 {
		return 0, 0, fmt.Errorf("%q is not a rate: write 10/s, 60/m or 500/h", s)
	}
	return rate.Every(per / time.Duration(n)), n, nil
}

func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// Explain says what holds for a message, its rate aside.
func (p *Policy) Explain(i bus.Invocation) Verdict {
	v, _ := p.judge(i)
	return v
}

func (p *Policy) judge(i bus.Invocation) (Verdict, *policyRule) {
	from := i.From.Agent + "@" + i.From.Gateway
	if i.From.Agent == i.To && i.Capability == CapabilityEvent && !i.Operator {
		return Verdict{Allowed: true, Reason: "an account of a channel takes over what its owner before took in"}, nil
	}
	if i.From.Agent == i.To && i.To == CronInbox && !i.Operator {
		return Verdict{Allowed: true, Reason: "the scheduler takes orders from the gateways that may have it"}, nil
	}
	if i.From.Agent == i.To && agent.Continues(i.Capability) && !i.Operator {
		return Verdict{Allowed: true, Reason: "an agent goes on with what it began, at its owner before perhaps"}, nil
	}
	if i.Operator {
		for _, o := range p.operators {
			if matches(o, i.From.Gateway) {
				return Verdict{Allowed: true, Reason: fmt.Sprintf("operators of %s may give orders (mesh.policy.operators has %q)", i.From.Gateway, o)}, nil
			}
		}
		return Verdict{Reason: fmt.Sprintf("operators of %s may not give orders here: add it to mesh.policy.operators", i.From.Gateway)}, nil
	}
	for _, r := range p.rules {
		if !matches(r.agent, i.From.Agent) || !matches(r.gateway, i.From.Gateway) || !matches(r.to, i.To) || !matches(r.cap, i.Capability) {
			continue
		}
		v := Verdict{Allowed: r.Action != "deny", Rule: r.name(), Number: r.number, Where: r.where}
		switch {
		case !v.Allowed:
			v.Reason = fmt.Sprintf("%s denies %s of %s to %s", r.title(), capabilityText(i.Capability), i.To, from)
		case r.MaxPayload > 0 && i.Size > int(r.MaxPayload):
			v.Allowed = false
			v.Reason = fmt.Sprintf("%s allows payloads of %s at most, this one has %d bytes", r.title(), r.MaxPayload, i.Size)
		default:
			v.Reason = fmt.Sprintf("%s allows it", r.title())
			if r.burst > 0 {
				v.Reason += fmt.Sprintf(", %s from each gateway", r.Rate)
			}
		}
		return v, r
	}
	switch {
	case i.From.Gateway == p.self:
		return Verdict{Allowed: true, Reason: "it comes from this gateway's own agents and clients, and no rule denies it"}, nil
	case p.allow:
		return Verdict{Allowed: true, Reason: `no rule is about it, and mesh.policy.default is "allow"`}, nil
	}
	mesh := ""
	if p.mesh > 0 {
		mesh = fmt.Sprintf(" and none of %s (version %d)", trust.PolicyKey, p.mesh)
	}
	return Verdict{Reason: fmt.Sprintf("no rule of %s%s allows %s to ask %s of %s: add one to mesh.policy.rules, or to the mesh's policy (gatemesh policy publish)",
		p.self, mesh, from, capabilityText(i.Capability), i.To)}, nil
}

// Authorize is the bus's question: an error is a refusal and its reason.
func (p *Policy) Authorize(i bus.Invocation) error { return p.decide(i).err() }

// err is nil when it is allowed.
func (v Verdict) err() error {
	if v.Allowed {
		return nil
	}
	return refusal(v.Reason)
}

// decide says what holds for a message now, its rate included, which it counts.
func (p *Policy) decide(i bus.Invocation) Verdict {
	v, r := p.judge(i)
	if v.Allowed && r != nil && r.burst > 0 && !i.Again && !r.take(i.From.Gateway) {
		v.Allowed = false
		v.Reason = fmt.Sprintf("%s allows %s, and %s sent more", r.title(), r.Rate, i.From.Gateway)
	}
	return v
}

// refusal is why a message may not be handed to its agent.
type refusal string

func (r refusal) Error() string { return string(r) }

func (r *policyRule) take(gateway string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.limiters[gateway]
	if l == nil {
		if len(r.limiters) >= maxLimiters {
			gateway = ""
		}
		if l = r.limiters[gateway]; l == nil {
			l = rate.NewLimiter(r.limit, r.burst)
			r.limiters[gateway] = l
		}
	}
	return l.Allow()
}

func (r *policyRule) name() string {
	if r.Name != "" {
		return r.Name
	}
	return strconv.Itoa(r.number)
}

func (r *policyRule) title() string {
	if r.Name != "" {
		return fmt.Sprintf("rule %d (%s) of %s", r.number, r.Name, r.where)
	}
	return fmt.Sprintf("rule %d of %s", r.number, r.where)
}

func capabilityText(c string) string {
	if c == "" {
		return "anything without a capability"
	}
	return c
}

// livePolicy is the policy of the last configuration and of the mesh.
type livePolicy struct {
	atomic.Pointer[Policy]

	mu     sync.Mutex
	cfg    *Config
	signed *trust.Policy // nil: none yet
}

// set takes up a configuration. One that does not read was refused before: Validate reads it too.
func (l *livePolicy) set(cfg *Config) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewLocked(cfg, l.signed)
}

// setSigned takes up the mesh's policy.
func (l *livePolicy) setSigned(signed *trust.Policy) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewLocked(l.cfg, signed)
}

func (l *livePolicy) renewLocked(cfg *Config, signed *trust.Policy) error {
	p, err := NewPolicy(cfg.Mesh.Policy, cfg.Mesh.Gateway)
	if err == nil && signed != nil {
		err = p.Add(signed)
	}
	if err == nil {
		l.cfg, l.signed = cfg, signed
		l.Store(p)
	}
	return err
}

// authorize asks the policy of now, and records what it said.
func (g *Gateway) authorize(i bus.Invocation) error {
	v := g.policy.Load().decide(i)
	g.audit.decision(g.name, i, v)
	return v.err()
}
