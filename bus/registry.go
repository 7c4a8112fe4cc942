package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// GatewayInfo is a gateway as the registry has it.
type GatewayInfo struct {
	Name          string        `json:"gateway"`
	URL           string        `json:"url"`
	Agents        []string      `json:"agents"`
	Status        string        `json:"status"`
	LastHeartbeat envelope.Time `json:"last_heartbeat,omitzero"`
	Version       string        `json:"version,omitempty"`
}

// AgentInfo is an agent as the registry has it.
type AgentInfo struct {
	ID            string        `json:"agent"`
	Gateway       string        `json:"gateway"`
	Name          string        `json:"name,omitempty"`
	Description   string        `json:"description,omitempty"`
	Workspace     string        `json:"workspace,omitempty"`
	Capabilities  []string      `json:"capabilities"`
	Status        string        `json:"status"`
	LastHeartbeat envelope.Time `json:"last_heartbeat,omitzero"`
}

// The words of Status.
const (
	StatusHealthy  = "healthy"  // a gateway that renews its session
	StatusDraining = "draining" // a gateway that is stopping
	StatusActive   = "active"   // an agent with an owner
	// StatusUnreachable is what a reader makes of a missing status key: the store deletes it
	// with the session of a gateway that died.
	StatusUnreachable = "unreachable"
)

// registry writes this gateway's entries and keeps a picture of all.
type registry struct {
	b *Bus

	mu       sync.Mutex
	gateways map[string]GatewayInfo
	agents   map[string]AgentInfo
	raw      map[string]Pair
	believed map[string]believedFields // by key
	seen     [2]bool                   // both prefixes were read once
	// clustered: the cluster block is there.
	clustered bool
	// changed is closed and replaced when the picture changed.
	changed chan struct{}
	// wake carries wake-ups for the heartbeat loop (capacity 1).
	wake chan struct{}

	signMu sync.Mutex
	signed map[string]signedRecord // by key
}

func newRegistry(b *Bus) *registry {
	return &registry{b: b, gateways: map[string]GatewayInfo{}, agents: map[string]AgentInfo{}, raw: map[string]Pair{}, believed: map[string]believedFields{}, signed: map[string]signedRecord{},
		changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

func (r *registry) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// follow keeps the picture.
func (r *registry) follow(ctx context.Context) {
	var wg sync.WaitGroup
	for i, prefix := range [...]string{gatewaysPrefix, agentsPrefix} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r.b.watchForever(ctx, prefix, func(pairs []Pair) error {
				r.take(i, prefix, pairs)
				return nil
			})
		}()
	}
	wg.Wait()
}

func (r *registry) take(which int, prefix string, pairs []Pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.raw {
		if strings.HasPrefix(k, prefix) {
			delete(r.raw, k)
		}
	}
	fields := map[string]map[string]Pair{}
	if len(r.believed) > 4*len(pairs)+64 {
		clear(r.believed) // of those that are gone
	}
	for _, p := range pairs {
		r.raw[p.Key] = p
		name, field, ok := strings.Cut(p.Key[len(prefix):], "/")
		if !ok || !envelope.ValidName(name) {
			continue
		}
		if fields[name] == nil {
			fields[name] = map[string]Pair{}
		}
		fields[name][field] = p
	}
	for name := range fields {
		if !r.b.enforced() {
			break
		}
		if err := r.believe(which == 1, prefix+name+"/", fields[name]); err != nil {
			p := fields[name][signedField]
			r.b.refuse(prefix+name, p.Value, err, "", "")
			delete(fields, name)
		}
	}
	serving, leading, unseen := map[string]map[string]int{}, map[string]bool{}, map[string]bool{}
	if which == 0 {
		r.gateways = map[string]GatewayInfo{}
		for name, f := range fields {
			leading[name] = text(f[leadsField]) == "true"
			unseen[name] = text(f[overseenField]) == "false" // who says nothing has nothing to be heard of, or is older
			var ranks map[string]int
			_ = json.Unmarshal(f[servesField].Value, &ranks)
			for id, rank := range ranks {
				if serving[id] == nil {
					serving[id] = map[string]int{}
				}
				serving[id][name] = rank
			}
			r.gateways[name] = GatewayInfo{Name: name, URL: text(f["url"]), Agents: texts(f["agents"]), Status: status(f["status"]),
				LastHeartbeat: moment(f["last_heartbeat"]), Version: text(f["version"])}
		}
	} else {
		r.agents = map[string]AgentInfo{}
		for id, f := range fields {
			r.agents[id] = AgentInfo{ID: id, Gateway: text(f["gateway"]), Name: text(f["name"]), Description: text(f["description"]),
				Workspace: text(f["workspace"]), Capabilities: texts(f["capabilities"]), Status: status(f["status"]), LastHeartbeat: moment(f["last_heartbeat"])}
		}
	}
	if which == 0 {
		r.b.elector.published(serving, leading, unseen)
	}
	r.seen[which] = true
	close(r.changed)
	r.changed = make(chan struct{})
	// Somebody deleted our entries (the runbook's reset): write them again now.
	if r.missingLocked() {
		r.kick()
	}
}

// servesField is which inboxes a gateway may own, and how early in the line it comes for each.
const servesField = "serves"

// leadsField is whether the gateway's own server leads the store's.
const leadsField = "leads"

// overseenField is whether the store was seen to hear of what the gateway's checks find.
const overseenField = "overseen"

// signedField holds what the other fields say once more, as one signed record. Two of them stand beside it: status is bound to
// the writer's session, and last_heartbeat is a hint.
const signedField = "signed"

// signedFields is that record.
type signedFields struct {
	Fields map[string]string `json:"fields"`
}

// believedFields are such a record and what it was judged by: with every heartbeat of anybody all of them are read again.
type believedFields struct {
	signedFields
	index uint64
	set   *trust.Set
}

// believe puts what was signed in the place of what stands there.
func (r *registry) believe(agent bool, prefix string, f map[string]Pair) error {
	name := strings.TrimSuffix(prefix[strings.LastIndexByte(prefix[:len(prefix)-1], '/')+1:], "/")
	by, host := name, ""
	if agent {
		by, host = "", name
	}
	key, set := prefix+signedField, r.b.trustSet()
	b := r.believed[key]
	if raw := f[signedField]; b.index != raw.ModifyIndex || b.set != set {
		body, st, err := r.b.open(trust.KindRegistry, key, raw.Value, by, host)
		if err != nil {
			return err
		}
		b = believedFields{index: raw.ModifyIndex, set: set}
		if err := json.Unmarshal(body, &b.signedFields); err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		if agent && b.Fields["gateway"] != st.Gateway {
			return &trust.Refusal{Reason: trust.WrongGateway, Gateway: st.Gateway, Key: st.Key, Detail: st.Gateway + " wrote that " + name + " runs elsewhere"}
		}
		r.believed[key] = b
	}
	for field := range f {
		if field != "status" && field != "last_heartbeat" {
			delete(f, field)
		}
	}
	for field, v := range b.Fields {
		f[field] = Pair{Key: prefix + field, Value: []byte(v)}
	}
	return nil
}

// signFields adds the signed records to what is to be written. One that says what it said before is not signed again: it
// would be another one each time, and a write.
func (r *registry) signFields(plain map[string]string) {
	if r.b.cfg.Signer == nil {
		return
	}
	groups := map[string]map[string]string{}
	for k, v := range plain {
		i := strings.LastIndexByte(k, '/') + 1
		if groups[k[:i]] == nil {
			groups[k[:i]] = map[string]string{}
		}
		groups[k[:i]][k[i:]] = v
	}
	r.signMu.Lock()
	defer r.signMu.Unlock()
	by := r.b.cfg.Signer.Current()
	for prefix, fields := range groups {
		key := prefix + signedField
		body := mustEncode(signedFields{fields})
		if old := r.signed[key]; old.by != by || !bytes.Equal(old.body, body) {
			r.signed[key] = signedRecord{body, string(r.b.sign(trust.KindRegistry, key, body)), by}
		}
		plain[key] = r.signed[key].value
	}
}

type signedRecord struct {
	body  []byte
	value string
	by    *trust.Key
}

// The plan's registry values are plain text, and JSON where they are lists.
func text(p Pair) string { return string(p.Value) }

func texts(p Pair) []string {
	list := []string{}
	_ = json.Unmarshal(p.Value, &list)
	return list
}

func moment(p Pair) envelope.Time {
	t, err := time.Parse(time.RFC3339, string(p.Value))
	if err != nil {
		return envelope.Time{}
	}
	return envelope.At(t)
}

func status(p Pair) string {
	if p.Key == "" || p.Session == "" {
		return StatusUnreachable
	}
	return string(p.Value)
}

// desired are the keys that this gateway writes, without the heartbeats.
func (r *registry) desired() (plain, bound map[string]string, agents []string) {
	gw := r.b.cfg.Gateway
	plain, bound = map[string]string{}, map[string]string{}
	agents = []string{}
	for _, a := range r.b.elector.owned() {
		if a.ID == gw {
			continue
		}
		agents = append(agents, a.ID)
		p := agentsPrefix + a.ID + "/"
		plain[p+"gateway"] = gw
		caps := a.Capabilities
		if caps == nil {
			caps = []string{}
		}
		plain[p+"capabilities"] = string(mustEncode(caps))
		for k, v := range map[string]string{"name": a.Name, "description": a.Description, "workspace": a.Workspace} {
			if v != "" {
				plain[p+k] = v
			}
		}
		bound[p+"status"] = StatusActive
	}
	sort.Strings(agents)
	p := gatewaysPrefix + gw + "/"
	plain[p+"url"] = r.b.cfg.URL
	plain[p+"agents"] = string(mustEncode(agents))
	plain[p+servesField] = string(mustEncode(r.b.elector.ranks()))
	if storeAs[Led](r.b.store) != nil {
		plain[p+leadsField] = strconv.FormatBool(r.b.elector.leads())
	}
	if r.b.elector.overseer() != nil {
		plain[p+overseenField] = strconv.FormatBool(r.b.elector.overseen())
	}
	if r.b.cfg.Version != "" {
		plain[p+"version"] = r.b.cfg.Version
	}
	bound[p+"status"] = StatusHealthy
	if r.b.stopping.Load() {
		bound[p+"status"] = StatusDraining
	}
	r.signFields(plain)
	return plain, bound, agents
}

// missingLocked reports whether a key that should be there is not.
func (r *registry) missingLocked() bool {
	if !r.seen[0] || !r.seen[1] || r.b.session.id() == "" {
		return false
	}
	plain, bound, _ := r.desired()
	session := r.b.session.id()
	for k, v := range plain {
		if p, ok := r.raw[k]; !ok || string(p.Value) != v {
			return true
		}
	}
	for k := range bound {
		if p, ok := r.raw[k]; !ok || p.Session != session {
			return true
		}
	}
	return false
}

// heartbeats renews the entries regularly, and at once when something of them is missing.
func (r *registry) heartbeats(ctx context.Context) {
	t := time.NewTimer(r.b.cfg.Heartbeat)
	defer t.Stop()
	pause := newBackoff()
	for {
		select {
		case <-t.C:
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		if err := r.beat(ctx); err != nil && ctx.Err() == nil {
			var refused *TxnError
			if !errors.As(err, &refused) {
				r.b.storeDown(err)
			}
			r.b.log.Debug("heartbeat", "error", err)
			r.b.pause(ctx, pause, err)
			r.kick()
			continue
		}
		pause.Reset()
		t.Reset(r.b.cfg.Heartbeat)
	}
}

// beat writes what differs from the picture, and the time: one transaction per 64 keys, so one
// write for a gateway with up to 50 settled agents.
func (r *registry) beat(ctx context.Context) error {
	session := r.b.session.id()
	if session == "" {
		return nil
	}
	plain, bound, agents := r.desired()
	now := string(envelope.At(r.b.now()).UTC().AppendFormat(nil, "2006-01-02T15:04:05.000Z"))
	plain[gatewaysPrefix+r.b.cfg.Gateway+"/last_heartbeat"] = now
	for _, a := range agents {
		plain[agentsPrefix+a+"/last_heartbeat"] = now
	}
	r.mu.Lock()
	raw := make(map[string]Pair, len(plain)+len(bound))
	for k := range plain {
		raw[k] = r.raw[k]
	}
	for k := range bound {
		raw[k] = r.raw[k]
	}
	first := !r.clustered
	r.mu.Unlock()
	var ops []Op
	for k, v := range plain {
		if p := raw[k]; p.Key == "" || string(p.Value) != v {
			ops = append(ops, Op{Verb: OpSet, Key: k, Value: []byte(v)})
		}
	}
	for k, v := range bound {
		if p := raw[k]; p.Session != session || string(p.Value) != v {
			ops = append(ops, Op{Verb: OpLock, Key: k, Value: []byte(v), Session: session})
		}
	}
	if first {
		ops = append(ops, r.cluster(ctx)...)
	}
	sort.Slice(ops, func(i, j int) bool { return ops[i].Key < ops[j].Key })
	check := Op{Verb: OpCheckSession, Key: gatewayLockKey(r.b.cfg.Gateway), Session: session}
	for len(ops) > 0 {
		n := min(len(ops), r.b.store.Limits().Ops-1)
		for n < len(ops) && n > 1 && path.Dir(ops[n].Key) == path.Dir(ops[n-1].Key) {
			n-- // what one of them says of itself is written together
		}
		if _, err := r.b.store.Txn(ctx, append([]Op{check}, ops[:n]...)); err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
		ops = ops[n:]
	}
	r.mu.Lock()
	r.clustered = true
	r.mu.Unlock()
	return nil
}

// cluster writes the plan's cluster block if nobody has.
func (r *registry) cluster(ctx context.Context) []Op {
	var ops []Op
	for k, v := range map[string]string{"id": r.b.cfg.ClusterID, "deployment": r.b.cfg.Deployment} {
		if p, err := r.b.store.Get(ctx, clusterPrefix+k); err == nil && p == nil {
			ops = append(ops, Op{Verb: OpSet, Key: clusterPrefix + k, Value: []byte(v)})
		}
	}
	return ops
}

// Gateways lists all known gateways by name.
func (b *Bus) Gateways() []GatewayInfo {
	b.registry.mu.Lock()
	defer b.registry.mu.Unlock()
	list := make([]GatewayInfo, 0, len(b.registry.gateways))
	for _, g := range b.registry.gateways {
		list = append(list, g)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// Agents lists the known agents that have the capability, by id; all of them for "".
func (b *Bus) Agents(capability string) []AgentInfo {
	b.registry.mu.Lock()
	defer b.registry.mu.Unlock()
	list := make([]AgentInfo, 0, len(b.registry.agents))
	for _, a := range b.registry.agents {
		if capability == "" || slices.Contains(a.Capabilities, capability) {
			list = append(list, a)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].ID < list[j].ID })
	return list
}

// RegistryChanged returns a channel that is closed at the next change of what Gateways and Agents
// return.
func (b *Bus) RegistryChanged() <-chan struct{} {
	b.registry.mu.Lock()
	defer b.registry.mu.Unlock()
	return b.registry.changed
}

// Owners lists who owns which inbox, by agent.
func (b *Bus) Owners() []Owner {
	b.elector.mu.Lock()
	defer b.elector.mu.Unlock()
	list := make([]Owner, 0, len(b.elector.owners))
	for _, o := range b.elector.owners {
		list = append(list, o)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Agent < list[j].Agent })
	return list
}

// OwnerOf is the gateway that drains an agent's inbox, or "" when none does, as far as this one knows.
func (b *Bus) OwnerOf(agent string) string {
	b.elector.mu.Lock()
	defer b.elector.mu.Unlock()
	o := b.elector.owners[agent]
	if t := b.elector.terms[agent]; t != nil && t.ctx.Err() == nil && o.Token <= t.term {
		return b.cfg.Gateway // the picture of all locks is behind our own
	}
	return o.Gateway
}

// checkTarget refuses targets that nobody can ever have meant. An agent without an owner is
// fine: its mail waits.
func (b *Bus) checkTarget(ctx context.Context, to envelope.Address) error {
	b.registry.mu.Lock()
	a, known := b.registry.agents[to.Agent]
	_, gateway := b.registry.gateways[to.Agent]
	b.registry.mu.Unlock()
	if known && to.Gateway != "" && a.Gateway != to.Gateway {
		return fmt.Errorf("%w: %s runs on %s, not on %s", ErrUnknownAgent, to.Agent, a.Gateway, to.Gateway)
	}
	if known || gateway {
		return nil
	}
	// The registry may just have been reset; an inbox is never.
	p, err := b.store.Get(ctx, inboxAboutKey(to.Agent))
	if err != nil {
		return fmt.Errorf("look for agent %s: %w", to.Agent, err)
	}
	if p == nil {
		return fmt.Errorf("%w %q: no gateway has ever served it", ErrUnknownAgent, to.Agent)
	}
	return nil
}
