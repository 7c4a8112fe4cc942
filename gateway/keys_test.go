package gateway

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// deskMesh is a mesh with an operator, and its gateways on one store.
type deskMesh struct {
	t        *testing.T
	store    bus.Store
	operator *trust.Key
	set      *trust.Set
	config   config
	dirs     map[string]string
}

func newDeskMesh(t *testing.T, policy config) *deskMesh {
	t.Helper()
	m := &deskMesh{t: t, store: newStore(t), operator: trust.NewKey(), dirs: map[string]string{}}
	m.set = &trust.Set{Mesh: "m", IssuedAt: envelope.At(time.Now()), Operators: []string{trust.EncodePublic(m.operator.Public())}, Gateways: []trust.Member{}, Revoked: []trust.Revocation{}}
	m.config = config{"cluster": config{"id": "m"}, "heartbeatInterval": "1s", "policy": policy, "trust": config{"operatorKeys": m.set.Operators}}
	return m
}

func (m *deskMesh) put(key string, value []byte) {
	m.t.Helper()
	if _, err := m.store.Txn(m.t.Context(), []bus.Op{{Verb: bus.OpSet, Key: key, Value: value}}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *deskMesh) publish(by ...*trust.Key) []byte {
	m.t.Helper()
	m.set.Version++
	if by == nil {
		by = []*trust.Key{m.operator}
	}
	raw, err := trust.SignSet(m.set, by...)
	if err != nil {
		m.t.Fatal(err)
	}
	m.put(trust.SetKey, raw)
	return raw
}

// admit gives a gateway a directory with a key that the set names.
func (m *deskMesh) admit(name string) {
	m.t.Helper()
	m.dirs[name] = m.t.TempDir()
	k, _, err := trust.LoadOrMakeKey(filepath.Join(m.dirs[name], IdentityFile))
	if err != nil {
		m.t.Fatal(err)
	}
	m.set.Put(name, trust.MemberKey{Public: trust.EncodePublic(k.Public())}, []string{"*"})
}

func (m *deskMesh) start(name string, agents ...config) *node {
	m.t.Helper()
	n := newNode(m.t, parseNode(m.t, name, m.config, "", agents...), Deps{Store: m.store, StateDir: m.dirs[name]})
	if err := n.Start(within(m.t)); err != nil {
		m.t.Fatal(err)
	}
	return n
}

func (m *deskMesh) follow(name, public string, overlap time.Duration) {
	m.t.Helper()
	if err := m.set.Follow(name, public, time.Now(), overlap, time.Hour); err != nil {
		m.t.Fatal(err)
	}
}

// request is what a gateway asks the operator for.
func (m *deskMesh) request(name string) *trust.JoinRequest {
	m.t.Helper()
	p, err := m.store.Get(m.t.Context(), trust.RequestsPrefix+name)
	if err != nil || p == nil {
		m.t.Fatalf("%s asks for nothing: %v", name, err)
	}
	r, _, err := trust.DecodeJoinRequest(p.Key, "m", p.Value)
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

// stamped is the key that a record in the store is signed with.
func (m *deskMesh) stamped(key string) string {
	m.t.Helper()
	p, err := m.store.Get(m.t.Context(), key)
	if err != nil || p == nil {
		return ""
	}
	if _, st := trust.SplitRecord(p.Value); st != nil {
		return st.Key
	}
	return ""
}

func noRefusals(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		if s := n.log.String(); strings.Contains(s, "refused:") || strings.Contains(s, "refusal=") {
			t.Errorf("%s refused something", n.Name())
		}
	}
}

// TestRotate: a gateway changes its key while it works, twice, is believed by one that has not seen the set, and starts with
// the right key whenever it was stopped.
func TestRotate(t *testing.T) {
	m := newDeskMesh(t, config{"default": "allow"})
	m.admit("jerry")
	m.admit("billy")
	m.publish()
	m.config["heartbeatInterval"] = "1h" // only looking for the key that it does not know tells billy of a newer set
	billy := m.start("billy", echoAgent("bill"))
	m.config["heartbeatInterval"] = "1s"
	jerry := m.start("jerry", echoAgent("jer"))
	jerry.waitAgent("bill", "billy")
	billy.waitAgent("jer", "jerry")
	talk := func() {
		t.Helper()
		for range 3 {
			if a := jerry.ask("bill", "there"); !strings.Contains(a.Text, "there") {
				t.Fatalf("answer: %+v", a)
			}
			if a := billy.ask("jer", "back"); !strings.Contains(a.Text, "back") {
				t.Fatalf("answer: %+v", a)
			}
		}
	}
	talk()
	file := func(name string) string { return filepath.Join(m.dirs["jerry"], name) }
	for range 2 {
		before := jerry.keys().Now.Key
		var keys KeysResponse
		jerry.do(http.MethodPost, "/v1/keys/rotate", "").into(t, &keys)
		again := KeysResponse{}
		jerry.do(http.MethodPost, "/v1/keys/rotate", "").into(t, &again)
		if keys.Now.Key != before || keys.Next == nil || again.Next == nil || again.Next.Key != keys.Next.Key {
			t.Fatalf("asked twice: %+v, %+v", keys, again)
		}
		if info, err := os.Stat(file(NextKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("the next key's file: %v, %v", info, err)
		}
		r := m.request("jerry")
		if by, err := r.Vouched(m.set, time.Now()); err != nil || by != before || r.Public != keys.Next.Public {
			t.Fatalf("the request: %+v, vouched by %s, %v", r, by, err)
		}
		talk() // with the old key
		m.follow("jerry", r.Public, time.Hour)
		m.publish()
		eventually(t, func() bool { return jerry.keys().Now.Key == keys.Next.Key })
		talk()
		if k, err := trust.LoadKey(file(IdentityFile)); err != nil || k.ID() != keys.Next.Key {
			t.Errorf("the file holds %v, %v", k, err)
		}
		if _, err := os.Stat(file(NextKeyFile)); err == nil {
			t.Error("the next key's file is still there")
		}
		for _, key := range []string{"openclaw/gateways/jerry/signed", "openclaw/agents/jer/signed", "openclaw/owners/agents/jer", "openclaw/terms/jer", "openclaw/receipts/billy/from/jer"} {
			eventually(t, func() bool { return m.stamped(key) == keys.Next.Key })
		}
		if jerry.keys().Next != nil {
			t.Error("a key still waits")
		}
	}
	if billy.identity.verifier.Set().Version != 3 {
		t.Errorf("billy goes by set %d", billy.identity.verifier.Set().Version)
	}
	noRefusals(t, jerry, billy)

	// The set came to name the next key while jerry was down: after the first start with it, and after a crash in between.
	var keys KeysResponse
	jerry.do(http.MethodPost, "/v1/keys/rotate", "").into(t, &keys)
	if err := jerry.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	m.follow("jerry", keys.Next.Public, 0)
	raw := m.publish()
	jerry = m.start("jerry", echoAgent("jer"))
	if got := jerry.keys(); got.Now.Key != keys.Next.Key || jerry.Ready() != nil {
		t.Errorf("after a stop: %+v, %v", got, jerry.Ready())
	}
	jerry.waitAgent("bill", "billy")
	talk()
	if err := jerry.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	// As if it had died after pinning the set and before moving the file.
	if err := os.Rename(file(IdentityFile), file(NextKeyFile)); err != nil {
		t.Fatal(err)
	}
	if err := trust.WriteKey(file(IdentityFile), trust.NewKey()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file(pinFile), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := openIdentity(parseNode(t, "jerry", m.config, ""), m.dirs["jerry"])
	if err != nil || id.signer.Current().ID() != keys.Next.Key || id.next.Load() != nil {
		t.Errorf("after a crash: %+v, %v", id, err)
	}
	if k, err := trust.LoadKey(file(IdentityFile)); err != nil || k.ID() != keys.Next.Key {
		t.Errorf("after a crash the file holds %v, %v", k, err)
	}
}

// TestRotateOpen: where everybody is believed, a key is changed at once, and the audit log names those of before.
func TestRotateOpen(t *testing.T) {
	dir := t.TempDir()
	g := startNode(t, parseNode(t, "here", nil, ""), Deps{Store: newStore(t), StateDir: dir})
	var had []string
	for range 2 {
		before := g.keys().Now
		had = append(had, before.Public)
		var keys KeysResponse
		g.do(http.MethodPost, "/v1/keys/rotate", "").into(t, &keys)
		if keys.Now.Key == before.Key || keys.Next != nil {
			t.Fatalf("%+v", keys)
		}
		if k, err := trust.LoadKey(filepath.Join(dir, IdentityFile)); err != nil || k.ID() != keys.Now.Key {
			t.Errorf("the file holds %v, %v", k, err)
		}
	}
	former, err := FormerKeys(dir)
	if err != nil || len(former) != 2 || trust.EncodePublic(former[0]) != had[0] || trust.EncodePublic(former[1]) != had[1] {
		t.Errorf("former keys: %v, %v", former, err)
	}
	var none KeysResponse
	g.do(http.MethodPost, "/v1/keys/rotate?next="+had[0], "").into(t, &none)
	if none.Next != nil || none.Now.Key != g.keys().Now.Key {
		t.Errorf("asked for a key that does not wait: %+v", none)
	}
}

// TestRotateEnded: a gateway whose key ended before it had another accepts nothing, says what to do, and asks for a new one that
// nobody vouches for.
func TestRotateEnded(t *testing.T) {
	m := newDeskMesh(t, config{"default": "allow"})
	m.admit("jerry")
	k := m.set.Member("jerry").Keys[0]
	public, err := trust.ParsePublic(k.Public)
	if err != nil {
		t.Fatal(err)
	}
	m.set.Retire("jerry", trust.KeyID(public), time.Now().Add(-time.Hour))
	m.publish()
	jerry := m.start("jerry")
	var st StatusResponse
	if jerry.do(http.MethodGet, "/v1/status", "").into(t, &st); st.KeyEnds.IsZero() || st.KeyEnds.After(time.Now()) || st.NextKey != "" {
		t.Errorf("status: %+v", st)
	}
	if err := jerry.Ready(); err == nil || !strings.Contains(err.Error(), "gatemesh keys rotate gateway jerry") {
		t.Errorf("ready: %v", err)
	}
	if p, err := m.store.Get(t.Context(), trust.RequestsPrefix+"jerry"); err != nil || p != nil {
		t.Errorf("it asks for the key that has ended: %+v, %v", p, err)
	}
	var keys KeysResponse
	jerry.do(http.MethodPost, "/v1/keys/rotate", "").into(t, &keys)
	r := m.request("jerry")
	if _, err := r.Vouched(m.set, time.Now()); err == nil || keys.Next == nil || r.Public != keys.Next.Public {
		t.Errorf("the request: %+v, %v", r, err)
	}
	m.set.Put("jerry", trust.MemberKey{Public: r.Public}, nil)
	m.publish()
	eventually(t, func() bool { return jerry.keys().Now.Key == keys.Next.Key && jerry.Ready() == nil })
}

// TestRotateFile: another key in mesh.identity.keyFile, alone or behind the old one, is asked for at a reload.
func TestRotateFile(t *testing.T) {
	m := newDeskMesh(t, config{"default": "allow"})
	m.admit("jerry")
	m.publish()
	path := filepath.Join(m.dirs["jerry"], IdentityFile)
	old, err := trust.LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	m.config["identity"] = config{"keyFile": path}
	jerry := m.start("jerry")
	if r := jerry.do(http.MethodPost, "/v1/keys/rotate", ""); r.status != http.StatusConflict || !strings.Contains(string(r.body), "behind the old") {
		t.Errorf("asked over the API: %d %s", r.status, r.body)
	}
	reload := func(text string) error {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := jerry.Reload(parseNode(t, "jerry", m.config, ""))
		return err
	}
	if err := reload("nothing"); err == nil || jerry.keys().Next != nil {
		t.Errorf("a file without a key was taken: %v", err)
	}
	for i, text := range []func(now, next *trust.Key) string{
		func(now, next *trust.Key) string { return string(now.PEM()) + string(next.PEM()) },
		func(_, next *trust.Key) string { return string(next.PEM()) },
	} {
		next := trust.NewKey()
		for range 2 {
			if err := reload(text(old, next)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, func() bool {
			p, err := m.store.Get(t.Context(), trust.RequestsPrefix+"jerry")
			return err == nil && p != nil && strings.Contains(string(p.Value), trust.EncodePublic(next.Public()))
		})
		if _, err := m.request("jerry").Vouched(m.set, time.Now()); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		m.follow("jerry", trust.EncodePublic(next.Public()), time.Hour)
		m.publish()
		eventually(t, func() bool { return jerry.keys().Now.Key == next.ID() })
		old = next
	}
	if err := jerry.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	// Both keys in the file, and the set names the second: whichever came first, the start takes that one.
	if err := os.WriteFile(path, append(trust.NewKey().PEM(), old.PEM()...), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := openIdentity(parseNode(t, "jerry", m.config, ""), m.dirs["jerry"]); err != nil || id.signer.Current().ID() != old.ID() {
		t.Errorf("after a restart: %v, %v", id, err)
	}
	noRefusals(t, jerry)
}

// TestFollowOperators: a gateway that was away while the operator's key was replaced twice follows, and a set by the first
// one is refused after that.
func TestFollowOperators(t *testing.T) {
	m := newDeskMesh(t, config{"default": "allow"})
	m.admit("jerry")
	m.publish()
	jerry := m.start("jerry")
	if err := jerry.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	first := m.operator
	for range 2 {
		next := trust.NewKey()
		m.set.Operators = []string{trust.EncodePublic(next.Public())}
		raw := m.publish(m.operator, next)
		m.put(trust.OperatorsKey(m.set.Version), raw)
		m.operator = next
	}
	m.put(trust.OperatorsKey(m.set.Version+5), []byte("junk"))
	m.publish() // by the newest alone
	jerry = m.start("jerry")
	if got := jerry.identity.verifier.Set().Version; got != m.set.Version || jerry.Ready() != nil {
		t.Errorf("goes by set %d of %d, %v", got, m.set.Version, jerry.Ready())
	}
	m.publish(first)
	eventually(t, func() bool { return strings.Contains(jerry.log.String(), "refusal=wrong_operator") })
	if got := jerry.identity.verifier.Set().Version; got != m.set.Version-1 {
		t.Errorf("goes by set %d, signed by an operator that was replaced", got)
	}
}

// TestSignedPolicy: the mesh's rules count behind the configuration's, are taken up with a heartbeat and kept over a restart;
// what somebody else put there is refused.
func TestSignedPolicy(t *testing.T) {
	m := newDeskMesh(t, config{"rules": []config{{"name": "own", "action": "deny", "to": "bill", "capability": "secret"}}})
	m.admit("jerry")
	m.admit("billy")
	m.publish()
	billy, jerry := m.start("billy", echoAgent("bill")), m.start("jerry")
	jerry.waitAgent("bill", "billy")
	sign := func(version uint64, by *trust.Key, rules string) []byte {
		t.Helper()
		text, err := ParsePolicy("rules.json5", []byte(rules))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := trust.SignPolicy(&trust.Policy{Mesh: "m", Version: version, IssuedAt: envelope.At(time.Now()), Rules: text}, by)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	tries := 0
	ask := func(capability, says string) {
		t.Helper()
		tries++
		st := jerry.send(SendRequest{To: "bill", Capability: capability, Text: text(fmt.Sprint(tries)), Wait: WaitReplied, Timeout: longest.String()})
		if says == "" && !st.Facts.Replied || says != "" && (!st.Facts.Dead || st.Facts.Class != envelope.ClassUnauthorised || !strings.Contains(st.Facts.Reason, says)) {
			t.Errorf("%s: %+v, want %q", capability, st.Facts, says)
		}
	}
	taken := func(version uint64) {
		t.Helper()
		eventually(t, func() bool { return billy.keys().PolicyVersion == version })
	}
	ask("infra.check", "no rule of billy allows")

	second := sign(2, m.operator, "// allow\n{ rules: [{ action: 'allow', from: '*@jerry', to: 'bill' }, { name: 'never', action: 'deny', to: 'bill' }], }")
	m.put(trust.PolicyKey, second)
	taken(2)
	ask("infra.check", "")
	ask("secret", "rule 1 (own) of mesh.policy denies") // the configuration's rules come first

	for name, raw := range map[string][]byte{
		"wrong_operator": sign(9, trust.NewKey(), "{rules: []}"),
		"rollback":       sign(1, m.operator, "{rules: []}"),
		"bad_signature":  []byte(strings.Replace(string(second), "@jerry", "@jerri", 1)),
		"malformed":      []byte("{}"),
	} {
		m.put(trust.PolicyKey, raw)
		eventually(t, func() bool { return strings.Contains(billy.log.String(), "refusal="+name) })
		ask("infra.check", "")
	}
	m.put(trust.PolicyKey, sign(3, m.operator, "{rules: [{name: 'closed', action: 'deny', to: '*'}]}"))
	taken(3)
	ask("infra.check", "rule 1 (closed) of openclaw/policy (version 3) denies")

	// After a restart what was seen counts, also when the store has something older or nothing.
	if err := billy.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	m.put(trust.PolicyKey, second)
	billy = m.start("billy", echoAgent("bill"))
	jerry.waitAgent("bill", "billy")
	eventually(t, func() bool { return strings.Contains(billy.log.String(), "refusal=rollback") })
	ask("infra.check", "rule 1 (closed) of openclaw/policy (version 3) denies")
	if p, err := PinnedPolicy(m.dirs["billy"], "m"); err != nil || p.Version != 3 {
		t.Errorf("pinned: %+v, %v", p, err)
	}
}

func TestParsePolicy(t *testing.T) {
	for rules, want := range map[string]string{
		`{rules: [{to: "bobby", rate: "2/x"}]}`:      "rules[0].rate",
		`{rules: [{to: "b/b"}]}`:                     "rules[0].to",
		`{rules: [], default: "allow"}`:              "each gateway's own",
		`{rules: [], operators: ["*"]}`:              "each gateway's own",
		`{rules: [{too: "bobby"}]}`:                  "too",
		`{rules: [{action: "maybe"}]}`:               "action",
		`{rules: [`:                                  "",
		`{rules: [{action: "deny", rate: "10/s"}]} `: "no rate",
	} {
		if out, err := ParsePolicy("f", []byte(rules)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %s, %v", rules, out, err)
		}
	}
	for _, rules := range []string{`[{"action":"allow","new":1}]`, `[{"action":"perhaps"}]`, `[{}]`, `{}`} {
		if _, err := RulesOf(&trust.Policy{Version: 1, Rules: []byte(rules)}); err == nil {
			t.Errorf("read: %s", rules)
		}
	}
}
