package gateway

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// TestJoin: two gateways of an operator's mesh ask to join, are let in, work, and go by what they saw after a restart.
func TestJoin(t *testing.T) {
	s := newStore(t)
	operator := trust.NewKey()
	put := func(key string, value []byte) {
		t.Helper()
		if _, err := s.Txn(t.Context(), []bus.Op{{Verb: bus.OpSet, Key: key, Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	set := &trust.Set{Mesh: "m", Version: 1, IssuedAt: envelope.At(time.Now()), Operators: []string{trust.EncodePublic(operator.Public())}, Gateways: []trust.Member{}, Revoked: []trust.Revocation{}}
	publish := func() []byte {
		t.Helper()
		raw, err := trust.SignSet(set, operator)
		if err != nil {
			t.Fatal(err)
		}
		put(trust.SetKey, raw)
		return raw
	}
	first := publish()
	mesh := config{"cluster": config{"id": "m"}, "heartbeatInterval": "1s", "trust": config{"operatorKeys": []string{trust.EncodePublic(operator.Public())}}}
	dirs := map[string]string{"jerry": t.TempDir(), "billy": t.TempDir()}
	start := func(name string, agents ...config) *node {
		t.Helper()
		n := newNode(t, parseNode(t, name, mesh, "", agents...), Deps{Store: s, StateDir: dirs[name]})
		if err := n.Start(within(t)); err != nil {
			t.Fatal(err)
		}
		return n
	}
	jerry := start("jerry")
	start("billy", echoAgent("bill"))
	if err := jerry.Ready(); err == nil || !strings.Contains(err.Error(), "gatemesh trust approve jerry --key "+jerry.identity.signer.Key.ID()) {
		t.Errorf("ready: %v", err)
	}
	for _, name := range []string{"jerry", "billy"} {
		var p *bus.Pair
		eventually(t, func() bool {
			var err error
			p, err = s.Get(t.Context(), trust.RequestsPrefix+name)
			return err == nil && p != nil
		})
		r, _, err := trust.DecodeJoinRequest(p.Key, "m", p.Value)
		if err != nil {
			t.Fatal(err)
		}
		set.Put(name, trust.MemberKey{Public: r.Public, NotBefore: set.IssuedAt}, r.Agents)
	}
	if m := set.Member("billy"); len(m.Agents) != 1 || m.Agents[0] != "bill" {
		t.Errorf("billy asks to host %v", m.Agents)
	}
	set.Version++
	publish()
	jerry.waitAgent("bill", "billy")
	if a := jerry.ask("bill", "hello"); !strings.Contains(a.Text, "hello") {
		t.Errorf("answer: %+v", a)
	}
	key := jerry.identity.signer.Key.ID()
	if err := jerry.Stop(within(t)); err != nil {
		t.Fatal(err)
	}

	put(trust.SetKey, first) // an older set: jerry is not in it
	again := start("jerry")
	if err := again.Ready(); err != nil {
		t.Errorf("after a rollback: %v", err)
	}
	if id, state, version := again.identity.state(); id != key || state != TrustEnforced || version != 2 {
		t.Errorf("after a restart: key %s, %s, set %d", id, state, version)
	}
	eventually(t, func() bool { return strings.Contains(again.log.String(), "refusal=rollback") })
	if strings.Contains(again.log.String(), "PRIVATE KEY") {
		t.Error("a key was logged")
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	open := func(text string, dir string, env map[string]string) (*identity, error) {
		t.Helper()
		c, _, err := ParseConfig("c.json", []byte(text), func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		if err != nil {
			t.Fatal(err)
		}
		c.Normalize()
		return openIdentity(c, dir)
	}
	a, err := open(`{}`, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := open(`{}`, dir, nil); err != nil || b.signer.Key.ID() != a.signer.Key.ID() {
		t.Errorf("another key after a restart: %v", err)
	}
	seed := base64.StdEncoding.EncodeToString(make([]byte, 32))
	fromEnv, err := open(`{}`, dir, map[string]string{keyVariable: seed})
	if err != nil || fromEnv.signer.Key.ID() == a.signer.Key.ID() {
		t.Errorf("the variable does not count: %v", err)
	}
	if _, err := open(`{}`, dir, map[string]string{keyVariable: seed + "x"}); err == nil || strings.Contains(err.Error(), seed) {
		t.Errorf("a bad key in the variable: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, IdentityFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := open(`{}`, dir, nil); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
	// A directory that cannot be made is no matter in an open mesh, and one in any other.
	nowhere := filepath.Join(dir, IdentityFile, "below")
	if id, err := open(`{}`, nowhere, nil); err != nil || id.loose == nil {
		t.Errorf("open mesh: %v", err)
	}
	if _, err := open(`{mesh: {trust: {mode: "enforce"}}}`, nowhere, nil); err == nil {
		t.Error("a key that does not last was taken where signatures are enforced")
	}
}

// eventually polls until it is so.
func eventually(t testing.TB, so func() bool) {
	t.Helper()
	ctx := within(t)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it did not become so")
		}
	}
}
