package main

import (
	"crypto/ed25519"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope/trust"
	"github.com/gatemesh/gatemesh/gateway"
)

func (d *operatorDesk) keys(args ...string) result {
	d.t.Helper()
	args = append([]string{"keys"}, args...)
	if args[1] != "list" && !slices.Contains(args, "api") {
		args = append(args, "--operator-key", d.key)
	}
	return gatemesh(d.t, nil, "", append(args, "--config", d.conf, "--json")...)
}

func (d *operatorDesk) states() map[string]string {
	d.t.Helper()
	r := d.keys("list")
	if r.code != exitOK {
		d.t.Fatalf("keys list: status %d: %s", r.code, r.errOut)
	}
	all := map[string]string{}
	for _, l := range parse[[]keyLine](d.t, r.out) {
		all[l.Kind+" "+l.Name+" "+l.Key] = l.State
	}
	return all
}

// TestKeysRotateGateway: by a request that the gateway made itself; whose it is not, is not let in.
func TestKeysRotateGateway(t *testing.T) {
	d := newOperatorDesk(t)
	a, next, thief := trust.NewKey(), trust.NewKey(), trust.NewKey()
	d.view("init")
	d.view("enroll", "alpha", "--public", trust.EncodePublic(a.Public()), "--agents", "jerry")
	d.put("openclaw/gateways/alpha/signed", (&trust.Signer{Mesh: "m", Gateway: "alpha", Key: a}).SignRecord(trust.KindRegistry, "openclaw/gateways/alpha/signed", time.Now(), []byte(`{"fields":{"url":"http://127.0.0.1:1"}}`)))
	fails := func(code int, says string, args ...string) {
		t.Helper()
		if r := d.keys(args...); r.code != code || !strings.Contains(r.errOut, says) {
			t.Errorf("keys %v: status %d, %q; want %d and %q", args, r.code, r.errOut, code, says)
		}
	}
	ask := func(by, next *trust.Key) {
		t.Helper()
		d.put(trust.RequestsPrefix+"alpha", trust.NewRotationRequest(&trust.Signer{Mesh: "m", Gateway: "alpha", Key: by}, next, nil, time.Now()))
	}
	fails(exitUsage, "no gateway", "rotate", "gateway", "nobody", "--key", a.ID())
	fails(exitUnavailable, "127.0.0.1:1", "rotate", "gateway", "alpha") // where it says that it is, signed
	fails(exitTimeout, "it asks for nothing", "rotate", "gateway", "alpha", "--key", next.ID(), "--timeout", "300ms")
	ask(thief, thief)
	fails(exitTimeout, "is for the key "+thief.ID(), "rotate", "gateway", "alpha", "--key", next.ID(), "--timeout", "300ms")
	fails(exitFailed, "no key of its own that counts vouches", "rotate", "gateway", "alpha", "--key", thief.ID())
	ask(a, next)
	if got := d.states(); got["gateway alpha "+next.ID()] != keyWaiting || got["gateway alpha "+a.ID()] != keyInUse {
		t.Errorf("keys: %v", got)
	}
	r := parse[rotation](t, d.keys("rotate", "gateway", "alpha", "--key", next.ID(), "--overlap", "2h").out)
	if r.Key != next.ID() || r.Before != a.ID() || r.Version != 3 || r.InUse || time.Until(r.Ends.Time) < time.Hour {
		t.Errorf("rotated: %+v", r)
	}
	d.put("openclaw/gateways/alpha/signed", (&trust.Signer{Mesh: "m", Gateway: "alpha", Key: next}).SignRecord(trust.KindRegistry, "openclaw/gateways/alpha/signed", time.Now(), []byte(`{"fields":{}}`)))
	if got := d.states(); got["gateway alpha "+next.ID()] != keyInUse || got["gateway alpha "+a.ID()] != keyValid {
		t.Errorf("keys: %v", got)
	}
	d.view("revoke", "alpha", "--key", a.ID())
	if got := d.states(); got["gateway alpha "+a.ID()] != keyRevoked {
		t.Errorf("keys: %v", got)
	}
}

// TestKeysRotateOperator: twice, with a policy; stopped in between it goes on; the old key signs nothing any more.
func TestKeysRotateOperator(t *testing.T) {
	d := newOperatorDesk(t)
	d.view("init")
	old, err := trust.LoadKey(d.key)
	if err != nil {
		t.Fatal(err)
	}
	rules := filepath.Join(d.dir, "rules.json5")
	writeFile(t, rules, "{ rules: [{ name: 'all', to: 'bobby' }] }")
	policy := func(args ...string) result {
		t.Helper()
		return gatemesh(t, nil, "", append([]string{"policy"}, append(args, "--config", d.conf, "--json")...)...)
	}
	if r := policy("show"); r.code != exitFailed || !strings.Contains(r.errOut, "no policy") {
		t.Errorf("show: %d %s", r.code, r.errOut)
	}
	if r := policy("publish", rules, "--operator-key", d.key); r.code != exitOK || parse[policyView](t, r.out).Version != 1 {
		t.Fatalf("publish: %d %s", r.code, r.errOut)
	}
	for i := range 2 {
		before, err := trust.LoadKey(d.key)
		if err != nil {
			t.Fatal(err)
		}
		r := d.keys("rotate", "operator")
		if r.code != exitOK {
			t.Fatalf("status %d: %s", r.code, r.errOut)
		}
		now, err := trust.LoadKey(d.key)
		if err != nil || now.ID() == before.ID() {
			t.Fatalf("the key is still %v, %v", now, err)
		}
		if _, err := os.Stat(d.key + ".next"); err == nil {
			t.Error("the next key is still there")
		}
		if k, err := trust.LoadKey(d.key + "." + before.ID() + ".old"); err != nil || k.ID() != before.ID() {
			t.Errorf("the old key was not kept: %v", err)
		}
		v := d.view("list")
		if len(v.Operators) != 1 || v.Operators[0].Key != now.ID() || len(v.SignedBy) != 2 {
			t.Errorf("set: %+v", v)
		}
		if p := parse[policyView](t, policy("show").out); p.Version != uint64(i+2) || p.SignedBy != now.ID() || p.Problem != "" || !strings.Contains(string(p.Rules), "bobby") {
			t.Errorf("policy: %+v", p)
		}
		d.view("enroll", fmt.Sprintf("g%d", i), "--public", trust.EncodePublic(trust.NewKey().Public()))
	}
	// The way from the first operator to the one of now lies in the store: a gateway with nothing but his key goes it.
	anchor, err := trust.OpenAnchor("", "m", []ed25519.PublicKey{old.Public()})
	if err != nil {
		t.Fatal(err)
	}
	d.inStore(func(s bus.Store) {
		way, err := s.List(t.Context(), trust.OperatorsPrefix)
		if err != nil || len(way) != 4 {
			t.Fatalf("%d sets on the way, %v", len(way), err)
		}
		for _, p := range way {
			if _, err := anchor.Accept(p.Value); err != nil {
				t.Error(err)
			}
		}
		p, err := s.Get(t.Context(), trust.SetKey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := anchor.Accept(p.Value); err != nil {
			t.Error(err)
		}
	})
	// With the first one's file nothing can be signed.
	writeFile(t, d.key+".first", string(old.PEM()))
	for _, args := range [][]string{{"trust", "enroll", "x", "--public", trust.EncodePublic(old.Public())}, {"policy", "publish", rules}, {"keys", "rotate", "operator"}} {
		r := gatemesh(t, nil, "", append(args, "--config", d.conf, "--operator-key", d.key+".first")...)
		if r.code == exitOK {
			t.Errorf("%v: the old operator still signs: %s", args, r.out)
		}
	}

	// Stopped after the sets were published and before the files were changed.
	now, err := trust.LoadKey(d.key)
	if err != nil {
		t.Fatal(err)
	}
	if r := d.keys("rotate", "operator"); r.code != exitOK {
		t.Fatal(r.errOut)
	}
	if err := os.Rename(d.key, d.key+".next"); err != nil {
		t.Fatal(err)
	}
	if err := trust.WriteKey(d.key, now); err != nil {
		t.Fatal(err)
	}
	version := d.view("list").Version
	if r := d.keys("rotate", "operator"); r.code != exitOK {
		t.Fatal(r.errOut)
	}
	if k, err := trust.LoadKey(d.key); err != nil || k.ID() == now.ID() || d.view("list").Version != version {
		t.Errorf("it did not go on: %v, %v", k, err)
	}
}

// TestKeysRotateAPI: the lines that it prints let both in, and then the new one alone.
func TestKeysRotateAPI(t *testing.T) {
	d := newOperatorDesk(t)
	old := gateway.NewToken()
	sum, err := gateway.HashToken(old)
	if err != nil {
		t.Fatal(err)
	}
	write := func(lines ...string) {
		t.Helper()
		writeFile(t, d.conf, fmt.Sprintf("{ mesh: { store: 'local', gateway: 'g', dataDir: %q, log: { json: true } }, gateway: { port: 0, auth: { tokens: [\n%s\n] } } }", filepath.Join(d.dir, "data"), strings.Join(lines, "\n")))
	}
	write(tokenEntry{Name: "ci", Role: "operate", SHA256: sum}.line())
	if r := d.keys("rotate", "api", "nobody"); r.code != exitUsage {
		t.Errorf("nobody: %d %s", r.code, r.errOut)
	}
	first := parse[newAPIToken](t, d.keys("rotate", "api", "ci", "--overlap", "1h").out)
	if first.Entry.Name != "ci-2" || first.Entry.Role != "operate" || first.Old.SHA256 != sum || first.Old.Expires == "" {
		t.Errorf("%+v", first)
	}
	write(first.Entry.line(), first.Old.line())
	second := parse[newAPIToken](t, d.keys("rotate", "api", "ci-2").out)
	if second.Entry.Name != "ci-3" || second.Token == first.Token {
		t.Errorf("%+v", second)
	}
	if got := d.states(); got["api ci "] != keyValid || got["api ci-2 "] != keyValid {
		t.Errorf("keys: %v", got)
	}
	p, env := startDaemon(t, d.conf)
	status := func(token string) int {
		t.Helper()
		return gatemesh(t, append(env, "GATEMESH_TOKEN="+token), "", "status").code
	}
	if a, b := status(old), status(first.Token); a != exitOK || b != exitOK {
		t.Errorf("both tokens: %d, %d", a, b)
	}
	r := gatemesh(t, append(env, "GATEMESH_TOKEN="+first.Token), "", "keys", "list", "--config", d.conf, "--json")
	for _, l := range parse[[]keyLine](t, r.out) {
		if l.State != keyInUse || strings.Contains(r.out, sum) {
			t.Errorf("keys: %s", r.out)
		}
	}
	r = gatemesh(t, []string{"GATEMESH_ADDR=http://127.0.0.1:1"}, "", "keys", "list", "--config", d.conf, "--json")
	if list := parse[[]keyLine](t, r.out); r.code != exitOK || len(list) != 2 || list[0].State != keyValid || !strings.Contains(list[0].Note, "not known") {
		t.Errorf("keys, and no gateway answers: %d %s %s", r.code, r.out, r.errOut)
	}
	write(first.Entry.line())
	until(t, "the old token is refused", func() bool { return status(old) == exitUsage })
	if status(first.Token) != exitOK {
		t.Error("the new token is refused, too")
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
}

// TestKeyFileIsFollowed: a running gateway takes up another key from its file, and one that it makes itself; its audit log is whole
// over both.
func TestKeyFileIsFollowed(t *testing.T) {
	dir := t.TempDir()
	keyFile, data := filepath.Join(dir, "gateway.key"), filepath.Join(dir, "data")
	first, next := trust.NewKey(), trust.NewKey()
	if err := trust.WriteKey(keyFile, first); err != nil {
		t.Fatal(err)
	}
	store := fmt.Sprintf("store: 'local', dataDir: %q", data)
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), daemonConfig(store+fmt.Sprintf(", identity: { keyFile: %q }", keyFile), "info"))
	p, env := startDaemon(t, file)
	status := func() gateway.StatusResponse {
		t.Helper()
		return parse[gateway.StatusResponse](t, must(t, env, "status", "--json"))
	}
	if got := status().Key; got != first.ID() {
		t.Errorf("it signs with %s", got)
	}
	at := p.count()
	if err := os.Rename(writeFile(t, keyFile+".new", string(first.PEM())+string(next.PEM())), keyFile); err != nil {
		t.Fatal(err)
	}
	p.wait(at, "signs with another key now", next.ID())
	if got := status().Key; got != next.ID() {
		t.Errorf("it signs with %s, want %s", got, next.ID())
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
	keys := []string{"--key", trust.EncodePublic(first.Public()), "--key", trust.EncodePublic(next.Public())}
	if r := gatemesh(t, nil, "", append([]string{"audit", "verify", "--config", file}, keys...)...); r.code != exitOK {
		t.Errorf("audit verify: %d %s %s", r.code, r.out, r.errOut)
	}

	// Without the file the gateway has a key of its own, and changes that one when it is asked to.
	file = writeFile(t, file, daemonConfig(store, "info"))
	if err := os.RemoveAll(filepath.Join(data, gateway.AuditDir)); err != nil {
		t.Fatal(err)
	}
	p, env = startDaemon(t, file)
	own := status().Key
	until(t, "the key has signed something of the audit log", func() bool {
		return strings.Contains(must(t, nil, "audit", "export", "--config", file), `"kind":"mark"`)
	})
	c, err := newClient(strings.TrimPrefix(env[0], "GATEMESH_ADDR="), "the-token-of-this-test", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	var changed gateway.KeysResponse
	if err := c.do(t.Context(), http.MethodPost, "/v1/keys/rotate", nil, nil, &changed); err != nil || changed.Now.Key == own || status().Key != changed.Now.Key {
		t.Errorf("%+v, %v", changed, err)
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
	if r := gatemesh(t, nil, "", "audit", "verify", "--config", file); r.code != exitOK {
		t.Errorf("audit verify: %d %s %s", r.code, r.out, r.errOut)
	}
	if err := os.Remove(filepath.Join(data, "identity.former")); err != nil {
		t.Fatal(err)
	}
	if r := gatemesh(t, nil, "", "audit", "verify", "--config", file); r.code != exitFailed {
		t.Errorf("audit verify without the key of before: %d %s %s", r.code, r.out, r.errOut)
	}
	if strings.Contains(p.text(), "PRIVATE KEY") {
		t.Error("a key was logged")
	}
}
