package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// operatorDesk is an operator's machine beside a store that no gateway uses meanwhile.
type operatorDesk struct {
	t    *testing.T
	dir  string
	conf string
	key  string
}

func newOperatorDesk(t *testing.T) *operatorDesk {
	dir := t.TempDir()
	d := &operatorDesk{t: t, dir: dir, conf: filepath.Join(dir, "mesh.json5"), key: filepath.Join(dir, "op", "operator.key")}
	writeFile(t, d.conf, fmt.Sprintf("{ mesh: { store: 'local', dataDir: %q, cluster: { id: 'm' } } }", filepath.Join(dir, "data")))
	return d
}

func (d *operatorDesk) run(args ...string) result {
	d.t.Helper()
	sub, rest := args[0], args[1:]
	return gatemesh(d.t, nil, "", append([]string{"trust", sub, "--config", d.conf, "--operator-key", d.key, "--json"}, rest...)...)
}

func (d *operatorDesk) view(args ...string) trustView {
	d.t.Helper()
	r := d.run(args...)
	if r.code != exitOK {
		d.t.Fatalf("trust %s: status %d: %s", strings.Join(args, " "), r.code, r.errOut)
	}
	return parse[trustView](d.t, r.out)
}

func (d *operatorDesk) fails(code int, says string, args ...string) {
	d.t.Helper()
	if r := d.run(args...); r.code != code || !strings.Contains(r.errOut, says) {
		d.t.Errorf("trust %s: status %d, %q; want %d and %q", strings.Join(args, " "), r.code, r.errOut, code, says)
	}
}

// inStore does what somebody with the store can do.
func (d *operatorDesk) inStore(do func(s bus.Store)) {
	d.t.Helper()
	s, err := openLocal(filepath.Join(d.dir, "data"), hclog.NewNullLogger())
	if err != nil {
		d.t.Fatal(err)
	}
	defer s.Close()
	do(s)
}

func (d *operatorDesk) put(key string, value []byte) {
	d.t.Helper()
	d.inStore(func(s bus.Store) {
		op := bus.Op{Verb: bus.OpSet, Key: key, Value: value}
		if value == nil {
			op.Verb = bus.OpDelete
		}
		if _, err := s.Txn(d.t.Context(), []bus.Op{op}); err != nil {
			d.t.Fatal(err)
		}
	})
}

func (d *operatorDesk) ask(name string, k *trust.Key, token *trust.Token) {
	d.t.Helper()
	d.put(trust.RequestsPrefix+name, trust.NewJoinRequest(&trust.Signer{Mesh: "m", Gateway: name, Key: k}, []string{name + "-agent"}, token, time.Now()))
}

// TestTrust walks an operator through a mesh's life, with somebody at the store who does not mean well.
func TestTrust(t *testing.T) {
	d := newOperatorDesk(t)
	a, b, c, thief := trust.NewKey(), trust.NewKey(), trust.NewKey(), trust.NewKey()

	d.fails(exitUsage, "gatemesh trust init", "pending")
	first := d.view("init")
	if first.Version != 1 || first.Mesh != "m" || len(first.Operators) != 1 {
		t.Fatalf("%+v", first)
	}
	if info, err := os.Stat(d.key); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the operator's key: %v, %v", info, err)
	}
	d.fails(exitFailed, "already", "init")

	// By the key, which must be named.
	d.ask("alpha", a, nil)
	if list := parse[[]pendingRequest](t, d.run("pending").out); len(list) != 1 || list[0].Key != a.ID() || list[0].Token {
		t.Errorf("pending: %+v", list)
	}
	d.fails(exitUsage, "--key is missing", "approve", "alpha")
	d.ask("alpha", thief, nil) // somebody asks in its name
	d.fails(exitFailed, "somebody else asks in its name", "approve", "alpha", "--key", a.ID())
	d.ask("alpha", a, nil)
	if v := d.view("approve", "alpha", "--key", a.ID(), "--agents", "jerry,q-*"); v.Version != 2 || v.Gateways[0].Keys[0].Key != a.ID() || len(v.Gateways[0].Agents) != 2 {
		t.Errorf("approved: %+v", v)
	}
	if out := strings.TrimSpace(d.run("pending").out); out != "[]" {
		t.Errorf("still pending: %s", out)
	}
	// By its public key.
	if v := d.view("enroll", "beta", "--public", trust.EncodePublic(b.Public()), "--agents", "*"); v.Version != 3 || len(v.Gateways) != 2 {
		t.Errorf("enrolled: %+v", v)
	}
	// By a token, once, and only for the key that shows it.
	given := parse[struct{ Token string }](t, d.run("enroll", "gamma", "--new-token", "--agents", "billy").out)
	token, err := trust.ParseToken(given.Token)
	if err != nil {
		t.Fatal(err)
	}
	d.ask("gamma", c, token)
	if list := parse[[]pendingRequest](t, d.run("pending").out); len(list) != 1 || !list[0].Token {
		t.Errorf("pending: %+v", list)
	}
	if v := d.view("approve", "--tokens"); v.Version != 4 || len(v.Gateways) != 3 || v.Gateways[2].Agents[0] != "billy" {
		t.Errorf("by token: %+v", v)
	}
	d.ask("gamma", thief, token)
	if v := d.view("approve", "--tokens"); v.Version != 4 {
		t.Errorf("a token was used twice: %+v", v)
	}

	// Another key, and the old one ends in order.
	if v := d.view("enroll", "beta", "--public", trust.EncodePublic(thief.Public())); v.Version != 5 || len(v.Gateways[1].Keys) != 2 {
		t.Errorf("a second key: %+v", v)
	}
	if v := d.view("revoke", "beta", "--key", b.ID(), "--after", "24h"); v.Version != 6 || v.Gateways[1].Keys[0].NotAfter == nil || len(v.Revoked) != 0 {
		t.Errorf("retired: %+v", v)
	}
	d.fails(exitUsage, "--key ID", "revoke", "beta", "--after", "24h")

	// Out again, and nobody brings it back by hand.
	before := d.run("export").out
	if v := d.view("revoke", "gamma"); v.Version != 7 || len(v.Gateways) != 2 || v.Revoked[0].Key != c.ID() {
		t.Errorf("revoked: %+v", v)
	}
	d.fails(exitUsage, "no such gateway", "revoke", "gamma")
	d.put(trust.SetKey, []byte(strings.TrimSuffix(before, "\n")))
	d.fails(exitFailed, "gatemesh trust publish", "enroll", "delta", "--public", trust.EncodePublic(c.Public()))
	if v := d.view("publish"); v.Version != 7 || len(v.Gateways) != 2 {
		t.Errorf("put back: %+v", v)
	}
	d.put(trust.SetKey, []byte(`{"set":{}}`))
	d.fails(exitFailed, "spoilt", "list")
	d.view("publish")
	d.put(trust.SetKey, nil)
	d.fails(exitFailed, "gatemesh trust publish", "init")
	d.view("publish")
	if v := d.view("list"); v.Version != 7 || v.SignedBy[0] != first.Operators[0].Key {
		t.Errorf("list: %+v", v)
	}

	// Another operator takes over.
	old := d.key
	d.key = filepath.Join(d.dir, "op", "next.key")
	next := trust.NewKey()
	if err := trust.WriteKey(d.key, next); err != nil {
		t.Fatal(err)
	}
	d.fails(exitFailed, "is not what was signed here", "revoke", "beta")
	d.key = old
	d.view("operator", "--add", trust.EncodePublic(next.Public()))
	if v := d.view("operator", "--drop", first.Operators[0].Key); len(v.Operators) != 1 || v.Operators[0].Key != next.ID() {
		t.Errorf("operators: %+v", v.Operators)
	}
	d.fails(exitUsage, "does not name the key", "revoke", "beta")
}

func TestTrustTexts(t *testing.T) {
	d := newOperatorDesk(t)
	text := func(args ...string) string {
		t.Helper()
		r := gatemesh(t, nil, "", append([]string{"trust", args[0], "--config", d.conf, "--operator-key", d.key}, args[1:]...)...)
		if r.code != exitOK {
			t.Fatalf("trust %v: %s", args, r.errOut)
		}
		return r.out
	}
	if out := text("init"); !strings.Contains(out, d.key) || !strings.Contains(out, "trust set 1") {
		t.Errorf("init: %s", out)
	}
	secret, err := os.ReadFile(d.key)
	if err != nil {
		t.Fatal(err)
	}
	k := trust.NewKey()
	d.ask("alpha", k, nil)
	all := text("pending") + text("approve", "alpha", "--key", k.ID()) + text("list") + text("revoke", "alpha") + text("export")
	for _, want := range []string{"alpha", k.ID(), "trust set 2", "REVOKED", `"signatures"`} {
		if !strings.Contains(all, want) {
			t.Errorf("nowhere is %q:\n%s", want, all)
		}
	}
	if body := strings.Split(string(secret), "\n")[1]; strings.Contains(all, body) {
		t.Error("the operator's key was printed")
	}
	d.put(trust.RequestsPrefix+"evil", []byte("\x1b[2J"))
	if out := text("pending"); strings.Contains(out, "\x1b[2J") || !strings.Contains(out, "malformed") {
		t.Errorf("pending with rubbish: %q", out)
	}
}
