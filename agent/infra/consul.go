package infra

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	consulapi "github.com/hashicorp/consul/api"
)

// consulPart is a configured Consul client.
type consulPart struct {
	client    *consulapi.Client
	address   string // without credentials
	explicit  bool   // somebody said that Consul is there
	tokenFile string
	secrets   []string

	mu    sync.Mutex
	token string // what tokenFile held when it was last readable
}

// newConsulPart makes the client; fromEnv says that the environment names an
// address.
func newConsulPart(given *consulapi.Config, fromEnv bool, maxAnswer int) (*consulPart, error) {
	p := &consulPart{explicit: fromEnv}
	var cfg consulapi.Config
	env := consulapi.DefaultConfig()
	if given == nil {
		cfg = *env
	} else {
		cfg = *given
		p.explicit = fromEnv || given.Address != ""
	}
	cfg.HttpClient = nil
	cfg.Transport = newTransport()

	address := cfg.Address
	if address == "" {
		address = env.Address
	}
	var secrets []string
	if address, secrets = userinfo(address); len(secrets) > 0 {
		// The library would take the credentials for a part of the host's name.
		return nil, errors.New("the address holds credentials: give them as CONSUL_HTTP_AUTH")
	}
	for _, c := range []*consulapi.Config{&cfg, env} {
		secrets = append(secrets, c.Token)
		if a := c.HttpAuth; a != nil {
			secrets = append(secrets, a.Password, a.Username+":"+a.Password)
		}
	}
	p.secrets = secrets

	client, err := consulapi.NewClient(&cfg) // fills cfg
	if err != nil {
		return nil, scrubbedError(err, newScrubber(secrets...))
	}
	guard(cfg.HttpClient, maxAnswer)
	p.client = client
	p.tokenFile, p.token = cfg.TokenFile, cfg.Token // a token given by hand wins over the environment's file
	p.address = address
	if !strings.Contains(address, "://") {
		p.address = cfg.Scheme + "://" + address
	}
	return p, nil
}

// currentToken reads the token file again: tokens rotate while we run.
func (p *consulPart) currentToken() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tokenFile == "" {
		return p.token, nil
	}
	data, err := os.ReadFile(p.tokenFile)
	if err != nil {
		return p.token, fmt.Errorf("read the token file (the last token is used): %w", err)
	}
	if token := strings.TrimSpace(string(data)); token != "" {
		p.token = token
	}
	return p.token, nil
}

// The parts of Consul's answers that are used. Values, not pointers: an answer
// full of nulls then does no harm.
type (
	consulSelf struct {
		Config struct{ NodeName, Version string }
	}
	consulMember struct {
		Name   string
		Status int
	}
	consulCheck struct {
		Node, CheckID, Name, Status, ServiceID, ServiceName string
	}
)

// Serf's numbers for a member's state.
const (
	serfLeft   = 3
	serfFailed = 4
)

// IDs that Consul gives to checks of its own.
const (
	serfHealth         = "serfHealth"
	nodeMaintenance    = "_node_maintenance"
	serviceMaintenance = "_service_maintenance:"
)

func (c *Checker) checkConsul(ctx context.Context) ConsulReport {
	start := c.now()
	r := ConsulReport{Status: StatusAbsent}
	if c.consul == nil {
		r.Errors = []string{}
		r.fill(newScrubber(), nil, nil, nil, c.opts.MaxNames)
		return r
	}
	ctx, cancel := c.partContext(ctx)
	defer cancel()
	r.Address = c.consul.address
	r.fill(newScrubber(), nil, nil, nil, c.opts.MaxNames) // empty lists, whatever happens

	token, tokenErr := c.consul.currentToken()
	clean := newScrubber(append([]string{token}, c.consul.secrets...)...)
	get := func(ctx context.Context, path string, out any) error {
		q := (&consulapi.QueryOptions{Token: token}).WithContext(ctx)
		meta, err := c.consul.client.Raw().Query(path, out, q)
		if err == nil && meta.ResultsFilteredByACLs {
			return errFiltered
		}
		return err
	}

	var (
		self              consulSelf
		leader            string
		leaderKnown       bool
		members           []consulMember
		services          map[string][]string
		critical, warning []consulCheck
	)
	q := newQuestions(ctx)
	if tokenErr != nil {
		q.failed[questionToken] = tokenErr
	}
	q.ask("agent", func(ctx context.Context) error {
		err := get(ctx, "/v1/agent/self", &self)
		if err == nil && self.Config.NodeName == "" {
			err = errors.New("this is not the answer of a Consul agent")
		}
		return err
	})
	q.ask("leader", func(ctx context.Context) error {
		err := get(ctx, "/v1/status/leader", &leader)
		leaderKnown = err == nil
		return err
	})
	q.ask("members", func(ctx context.Context) error {
		err := get(ctx, "/v1/agent/members", &members)
		if err == nil && len(members) == 0 { // the agent itself is always one
			err = errFiltered
		}
		return err
	})
	q.ask("services", func(ctx context.Context) error {
		err := get(ctx, "/v1/catalog/services", &services)
		if err == nil && len(services) == 0 { // "consul" is always one
			err = errFiltered
		}
		return err
	})
	q.ask("critical checks", func(ctx context.Context) error {
		return get(ctx, "/v1/health/state/critical", &critical)
	})
	q.ask("warning checks", func(ctx context.Context) error {
		return get(ctx, "/v1/health/state/warning", &warning)
	})
	o := q.conclude("consul", c.consul.explicit, clean, func() ([]string, int) {
		r.Agent, r.Version, r.Leader = clean.name(self.Config.NodeName), clean.name(self.Config.Version), clean.name(leader)
		r.Services = len(services)
		if ignore := c.opts.IgnoreCheck; ignore != nil {
			critical = slices.DeleteFunc(critical, func(k consulCheck) bool { return ignore(k.CheckID) })
			warning = slices.DeleteFunc(warning, func(k consulCheck) bool { return ignore(k.CheckID) })
		}
		r.fill(clean, members, critical, warning, c.opts.MaxNames)
		var problems []string
		if n := r.FailedMembers.Count; n > 0 {
			problems = append(problems, fmt.Sprintf("%d failed members", n))
		}
		if n := r.UnhealthyNodeChecks.Count; n > 0 {
			problems = append(problems, fmt.Sprintf("%d failing node checks", n))
		}
		if leaderKnown && leader == "" {
			problems = append(problems, "consul has no leader")
		}
		return problems, r.UnhealthyServices.Count
	})
	r.Status, r.Errors, r.problems = o.status, o.errors, o.problems
	r.TookMS = c.now().Sub(start).Milliseconds()
	return r
}

// fill sorts members and checks into the lists of the report.
func (r *ConsulReport) fill(clean *scrubber, members []consulMember, critical, warning []consulCheck, limit int) {
	var failed, left, nodeChecks, maintenance []string
	failedNodes := map[string]bool{}
	for _, m := range members {
		switch m.Status {
		case serfFailed:
			failed = append(failed, m.Name)
			failedNodes[m.Name] = true
		case serfLeft:
			left = append(left, m.Name)
		}
	}
	type entry struct {
		status string
		checks []string
	}
	services := map[string]*entry{}
	for _, k := range slices.Concat(critical, warning) { // critical first: it gives the entry its word
		switch {
		case k.CheckID == nodeMaintenance:
			maintenance = append(maintenance, "node "+k.Node)
		case strings.HasPrefix(k.CheckID, serviceMaintenance):
			maintenance = append(maintenance, k.ServiceName+" on "+k.Node)
		case k.ServiceName != "":
			e := services[k.ServiceName]
			if e == nil {
				e = &entry{status: k.Status}
				services[k.ServiceName] = e
			}
			e.checks = append(e.checks, k.label())
		case k.CheckID == serfHealth && failedNodes[k.Node]:
			// said already
		default:
			nodeChecks = append(nodeChecks, fmt.Sprintf("%s (%s: %s)", k.Node, k.Status, k.label()))
		}
	}
	var unhealthy []string
	for name, e := range services {
		slices.Sort(e.checks)
		text := fmt.Sprintf("%s (%s: %s", name, e.status, e.checks[0])
		if n := len(e.checks) - 1; n > 0 {
			text += fmt.Sprintf(", +%d", n)
		}
		unhealthy = append(unhealthy, text+")")
	}
	r.Members = len(members)
	r.FailedMembers = clean.list(failed, limit)
	r.LeftMembers = clean.list(left, limit)
	r.UnhealthyServices = clean.list(unhealthy, limit)
	r.UnhealthyNodeChecks = clean.list(nodeChecks, limit)
	r.Maintenance = clean.list(maintenance, limit)
}

func (k consulCheck) label() string {
	name := k.Name
	if name == "" {
		name = k.CheckID
	}
	if k.ServiceName != "" {
		name += " on " + k.Node
	}
	return name
}
