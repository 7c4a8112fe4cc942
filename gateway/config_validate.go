package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/gatemesh/gatemesh/envelope/trust"
)

var cfgIDPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// cfgRunnerChecks are the checks that runner.checks may name.
var cfgRunnerChecks = []string{"consul", "nomad", "node"}

// Validate reports everything that keeps this configuration from running, as a
// *ConfigError. Call Normalize first.
func (c *Config) Validate() error {
	v := &configValidator{cfg: c}
	v.structure(reflect.ValueOf(c).Elem(), "")
	v.bind()
	v.tokens()
	v.tls()
	v.mesh()
	v.agents()
	v.queues()
	v.channels()
	v.models()
	v.mcp()
	v.cron()
	if len(v.problems) == 0 {
		return nil
	}
	cfgSortProblems(v.problems)
	return &ConfigError{v.problems}
}

type configValidator struct {
	cfg      *Config
	problems []ConfigProblem
}

func (v *configValidator) errorf(path, format string, args ...any) {
	p := ConfigProblem{File: v.cfg.source.name, Path: path, Message: fmt.Sprintf(format, args...)}
	// What the file does not say itself is blamed on the object that it belongs to.
	for at := path; at != ""; at = at[:max(0, strings.LastIndexAny(at, ".["))] {
		o := v.cfg.Origin(at)
		if o.Kind == OriginDefault {
			continue
		}
		if p.Line, p.Col = o.Line, o.Col; o.Kind != OriginFile {
			p.File = o.String()
		}
		break
	}
	v.problems = append(v.problems, p)
}

// show quotes a value in a message. What came from a variable is shown as the file has
// it, because the variable may hold a secret.
func (v *configValidator) show(path, value string) string {
	if o := v.cfg.Origin(path); len(o.Vars) > 0 {
		if o.raw == "" {
			return "the value of ${" + o.Vars[0] + "}"
		}
		value = o.raw
	}
	return fmt.Sprintf("%q", cfgShort(value))
}

// structure checks what tags say: enum, min, max and id.
func (v *configValidator) structure(s reflect.Value, path string) {
	for _, f := range cfgSchema(s.Type()).fields {
		if f.unused {
			continue
		}
		fv, p := s.Field(f.index), cfgJoin(path, f.key)
		switch {
		case f.typ.Kind() == reflect.Struct:
			v.structure(fv, p)
		case f.typ.Kind() == reflect.Slice && f.typ.Elem().Kind() == reflect.Struct:
			for i := range fv.Len() {
				v.structure(fv.Index(i), cfgItemPath(fv.Index(i), fmt.Sprintf("%s[%d]", p, i)))
			}
		case f.enum != nil:
			if got := fv.String(); !slices.Contains(f.enum, got) {
				known := slices.DeleteFunc(slices.Clone(f.enum), func(s string) bool { return s == "" })
				v.errorf(p, "%s is not one of %s%s", v.show(p, got), strings.Join(known, ", "), cfgSuggest(got, known))
			}
		case f.id:
			if got := fv.String(); got != "" && !cfgIDPattern.MatchString(got) {
				v.errorf(p, "%s is not an id: small letters, digits and '-', at most 63, not starting with '-'", v.show(p, got))
			}
		case f.min != "" || f.max != "":
			if fv.IsZero() && f.def == "" && !v.cfg.source.explicit(p) {
				continue
			}
			switch {
			case f.min != "" && f.max != "" && (cfgCompare(fv, f.min) < 0 || cfgCompare(fv, f.max) > 0):
				v.errorf(p, "%s is not between %s and %s", cfgText(fv), f.min, f.max)
			case f.min != "" && cfgCompare(fv, f.min) < 0:
				v.errorf(p, "%s is less than %s", cfgText(fv), f.min)
			}
		}
	}
}

// cfgItemPath is where an item of a list stood in the file: now at path, or where Normalize took it from.
func cfgItemPath(v reflect.Value, path string) string {
	if v.Type() == cfgAgentType {
		if a := v.Interface().(AgentConfig); a.path != "" {
			return a.path
		}
	}
	return path
}

// bind refuses to stand open.
func (v *configValidator) bind() {
	g := v.cfg.Gateway
	if g.Mode == "remote" {
		v.errorf("gateway.mode", "\"remote\" makes this the file of a client, not of a gateway: say \"local\" or leave it out")
	}
	loopback := g.Bind == "loopback"
	if g.Bind != "loopback" && g.Bind != "lan" {
		ip, err := netip.ParseAddr(g.Bind)
		switch {
		case err == nil:
			loopback = ip.Unmap().IsLoopback()
		case slices.Contains([]string{"auto", "tailnet", "custom"}, g.Bind):
			v.errorf("gateway.bind", "%q is OpenClaw's and not supported by this version: use loopback, lan or an IP address", g.Bind)
			return
		default:
			v.errorf("gateway.bind", "%s is not loopback, lan or an IP address%s", v.show("gateway.bind", g.Bind), cfgSuggest(g.Bind, []string{"loopback", "lan"}))
			return
		}
	}
	if g.Auth.Mode == "token" && g.Auth.Token == "" && len(g.Auth.Tokens) == 0 {
		v.errorf("gateway.auth.mode", "token, but there is none: set gateway.auth.tokens (gatemesh token create), gateway.auth.token or the environment variable GATEMESH_TOKEN")
	} else if !loopback && g.Auth.Mode != "token" {
		v.errorf("gateway.bind", "%q is open to other machines and needs a token: set gateway.auth.tokens (gatemesh token create), gateway.auth.token or the environment variable GATEMESH_TOKEN%s", g.Bind, cfgAuthHint(g.Auth))
	}
}

func cfgAuthHint(a AuthConfig) string {
	if a.Mode == "none" && (a.Token != "" || len(a.Tokens) > 0) {
		return ` and gateway.auth.mode "token"`
	}
	return ""
}

func (v *configValidator) mesh() {
	m := v.cfg.Mesh
	if m.Gateway == "" {
		v.errorf("mesh.gateway", "is empty")
	}
	if m.DefaultTTL > m.MaxTTL {
		v.errorf("mesh.defaultTTL", "%s is more than mesh.maxTTL (%s)", cfgDurationText(m.DefaultTTL), cfgDurationText(m.MaxTTL))
	}
	if m.Retry.Initial > m.Retry.Max {
		v.errorf("mesh.retry.initial", "%s is more than mesh.retry.max (%s)", cfgDurationText(m.Retry.Initial), cfgDurationText(m.Retry.Max))
	}
	if m.AdvertiseURL != "" {
		u, err := url.Parse(m.AdvertiseURL)
		if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "ws", "wss"}, u.Scheme) {
			v.errorf("mesh.advertiseURL", "not a URL that starts with http://, https://, ws:// or wss://")
		} else if u.User != nil {
			v.errorf("mesh.advertiseURL", "must not hold a password: the registry shows it to everybody")
		}
	}
	if m.Store == "local" && strings.HasPrefix(m.DataDir, "~") {
		v.errorf("mesh.dataDir", "only a leading ~/ with a known home directory is expanded")
	}
	for i, text := range m.Trust.OperatorKeys {
		if _, err := trust.ParsePublic(text); err != nil {
			v.errorf(fmt.Sprintf("mesh.trust.operatorKeys[%d]", i), "%v (gatemesh trust init prints it)", err)
		}
	}
	if m.Trust.EnrollToken != "" {
		if t, err := trust.ParseToken(m.Trust.EnrollToken); err != nil {
			v.errorf("mesh.trust.enrollToken", "%v", err)
		} else if t.Gateway != m.Gateway {
			v.errorf("mesh.trust.enrollToken", "is for the gateway %q; this one is %q", t.Gateway, m.Gateway)
		}
	}
	v.confidentiality()
	var wrong *policyError
	if _, err := NewPolicy(m.Policy, m.Gateway); errors.As(err, &wrong) {
		v.errorf("mesh.policy."+wrong.at, "%s", wrong.message)
	}
	if m.Service.Register && m.Service.Name == "" {
		v.errorf("mesh.service.name", "is empty")
	}
}

// names checks a list of ids.
func (v *configValidator) names(path string, list []string) {
	for i, name := range list {
		p := fmt.Sprintf("%s[%d]", path, i)
		if !cfgIDPattern.MatchString(name) {
			v.errorf(p, "%s is not an id: small letters, digits and '-', at most 63, not starting with '-'", v.show(p, name))
		} else if slices.Contains(list[:i], name) {
			v.errorf(p, "%q is there already", name)
		}
	}
}

// taken are the names that a queue cannot have: the inboxes of agents and gateways stand beside its own.
func (v *configValidator) taken() map[string]string {
	taken := map[string]string{v.cfg.Mesh.Gateway: "a gateway"}
	for _, q := range v.cfg.Mesh.Queues {
		for _, g := range slices.Concat(q.Gateways, q.Workers) {
			taken[g] = "a gateway"
		}
	}
	for _, a := range v.cfg.Agents.List {
		for _, g := range a.Gateways {
			taken[g] = "a gateway"
		}
	}
	for _, a := range v.cfg.Agents.List {
		taken[a.ID] = "an agent"
	}
	return taken
}

func (v *configValidator) queues() {
	taken := v.taken()
	var agents []string
	for _, a := range v.cfg.Agents.List {
		agents = append(agents, a.ID)
	}
	for i, q := range v.cfg.Mesh.Queues {
		path := fmt.Sprintf("mesh.queues[%d]", i)
		same := slices.IndexFunc(v.cfg.Mesh.Queues[:i], func(before QueueConfig) bool { return before.ID == q.ID })
		switch what := taken[q.ID]; {
		case q.ID == "":
			v.errorf(path, "id is missing")
		case what != "":
			v.errorf(path+".id", "%q is the id of %s; a queue needs another one", q.ID, what)
		case same >= 0:
			v.errorf(path+".id", "queue %q is there already (mesh.queues[%d])", q.ID, same)
		}
		switch {
		case q.Agent == "":
			v.errorf(path, "agent is missing: the agent whose runner does the work")
		case !slices.Contains(agents, q.Agent):
			v.errorf(path+".agent", "there is no agent %s in agents.list%s", v.show(path+".agent", q.Agent), cfgSuggest(q.Agent, agents))
		}
		// What a queue takes over from its agent is judged there.
		if v.cfg.source.explicit(path + ".gateways") {
			v.names(path+".gateways", q.Gateways)
		}
		if v.cfg.source.explicit(path + ".workers") {
			v.names(path+".workers", q.Workers)
		}
	}
}

func (v *configValidator) agents() {
	seen := map[string]string{}
	for i := range v.cfg.Agents.List {
		a := &v.cfg.Agents.List[i]
		path := cfgItemPath(reflect.ValueOf(*a), fmt.Sprintf("agents.list[%d]", i))
		idAt := path + ".id"
		if !v.cfg.source.explicit(idAt) {
			idAt = path // agents.entries.<id>
		}
		if before, ok := seen[a.ID]; ok && a.ID != "" {
			where := before
			if o := v.cfg.Origin(before); o.Kind == OriginFile {
				where = fmt.Sprintf("%s at %d:%d", before, o.Line, o.Col)
			}
			v.errorf(idAt, "agent %q is there already (%s)", a.ID, where)
		}
		seen[a.ID] = idAt
		switch {
		case a.ID == "":
			v.errorf(path, "id is missing")
		case a.ID == v.cfg.Mesh.Gateway:
			v.errorf(idAt, "%q is the id of this gateway (mesh.gateway); an agent needs another one", a.ID)
		}
		if _, entry, ok := strings.Cut(path, "agents.entries."); ok && entry != a.ID && cfgIDPattern.MatchString(entry) {
			v.errorf(idAt, "%q differs from its key %q", a.ID, entry)
		}
		v.names(path+".gateways", a.Gateways)
		if a.ID != "" && a.Runner.To == a.ID {
			v.errorf(path+".runner.to", "an agent cannot relay to itself")
		}
		if a.ID != "" && a.Runner.Alert == a.ID {
			v.errorf(path+".runner.alert", "an agent cannot tell itself")
		}
		v.alerts(path+".alerts", a.Alerts, a.Runner.Kind)
		for j, check := range a.Runner.Checks {
			if p := fmt.Sprintf("%s.runner.checks[%d]", path, j); !slices.Contains(cfgRunnerChecks, check) {
				v.errorf(p, "%s is not one of %s%s", v.show(p, check), strings.Join(cfgRunnerChecks, ", "), cfgSuggest(check, cfgRunnerChecks))
			}
		}
	}
}
