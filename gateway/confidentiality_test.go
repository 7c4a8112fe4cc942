package gateway

import (
	"bytes"
	"encoding/json"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// TestConfidentiality: the switch is thrown while gateways run; from then on the store shows no payload, who asked reads the
// answer, other gateways read headers, and what cannot be encrypted is not sent.
func TestConfidentiality(t *testing.T) {
	s := newStore(t)
	operator := trust.NewKey()
	set := &trust.Set{Mesh: "m", Operators: []string{trust.EncodePublic(operator.Public())}, IssuedAt: envelope.At(time.Now()), Gateways: []trust.Member{}, Revoked: []trust.Revocation{}}
	publish := func() {
		t.Helper()
		set.Version++
		raw, err := trust.SignSet(set, operator)
		if err == nil {
			_, err = s.Txn(t.Context(), []bus.Op{{Verb: bus.OpSet, Key: trust.SetKey, Value: raw}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	dirs := map[string]string{"jerry": t.TempDir(), "billy": t.TempDir()}
	for name, agents := range map[string][]string{"jerry": {}, "billy": {"bill"}} {
		key, _, err := trust.LoadOrMakeKey(filepath.Join(dirs[name], IdentityFile))
		if err != nil {
			t.Fatal(err)
		}
		set.Put(name, trust.MemberKey{Public: trust.EncodePublic(key.Public()), NotBefore: set.IssuedAt}, agents)
	}
	publish()
	mesh := func(mode string, capabilities ...string) config {
		c := config{"mode": mode}
		if len(capabilities) > 0 {
			c["capabilities"] = capabilities
		}
		return config{"cluster": config{"id": "m"}, "heartbeatInterval": "1s", "trust": config{"operatorKeys": set.Operators}, "confidentiality": c}
	}
	nodes := map[string]*node{}
	start := func(name string, agents ...config) {
		nodes[name] = newNode(t, parseNode(t, name, mesh("off"), "", agents...), Deps{Store: s, StateDir: dirs[name]})
		if err := nodes[name].Start(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	start("billy", echoAgent("bill"))
	start("jerry")
	jerry, billy := nodes["jerry"], nodes["billy"]
	jerry.waitAgent("bill", "billy")
	shown := func(text string) bool {
		t.Helper()
		pairs, err := s.List(t.Context(), bus.Root)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(pairs, func(p bus.Pair) bool { return bytes.Contains(p.Value, []byte(text)) })
	}
	if a := jerry.ask("bill", "in the clear"); !strings.Contains(a.Text, "in the clear") || a.ReplyPayload != nil || !shown("in the clear") {
		t.Errorf("off: %+v", a)
	}
	for name, agents := range map[string][]config{"jerry": {}, "billy": {echoAgent("bill")}} {
		changed, restart, err := nodes[name].Reload(parseNode(t, name, mesh("require"), "", agents...))
		if err != nil || len(restart) > 0 || !slices.Equal(changed, []string{"mesh.confidentiality.mode"}) {
			t.Fatalf("reload of %s: %v, %v, %v", name, changed, restart, err)
		}
	}
	var status StatusResponse
	jerry.do(http.MethodGet, "/v1/status", "").into(t, &status)
	if status.Confidentiality != "require" || len(status.EncryptionKeys) != 2 || status.EncryptionKeys[0].Key == "" || status.EncryptionKeys[1].Key == "" {
		t.Errorf("status: %+v", status)
	}
	a := jerry.ask("bill", "between us")
	if !strings.Contains(a.Text, "between us") || !strings.Contains(string(a.ReplyPayload), "between us") || !a.Reply.Encrypted() || shown("between us") {
		t.Errorf("require: %q %s", a.Text, a.ReplyPayload)
	}
	for _, n := range nodes {
		if strings.Contains(n.log.String(), "between us") {
			t.Errorf("%s logs a payload", n.Name())
		}
	}
	var seen MessageStatus
	billy.do(http.MethodGet, "/v1/messages/"+a.MessageID, "").into(t, &seen)
	if raw, _ := json.Marshal(seen); seen.Reply == nil || !strings.HasPrefix(seen.Text, "(") || strings.Contains(string(raw), "between us") || !seen.Facts.Replied {
		t.Errorf("elsewhere: %s", raw)
	}
	jerry.do(http.MethodGet, "/v1/messages/"+a.MessageID, "").into(t, &seen)
	if !strings.Contains(seen.Text, "between us") {
		t.Errorf("where it was asked: %q", seen.Text)
	}

	// Sending again under one id is safe, and another message has another id.
	id := envelope.NewID()
	again := func(text string) response {
		return jerry.do(http.MethodPost, "/v1/messages", `{"id":"`+id+`","to":"bill","text":"`+text+`"}`)
	}
	if first, second, other := again("once"), again("once"), again("twice"); first.status != 202 || second.status != 202 || other.status != http.StatusConflict {
		t.Errorf("sent again: %d, %d, %d", first.status, second.status, other.status)
	}

	set.Put("ghost", trust.MemberKey{Public: trust.EncodePublic(trust.NewKey().Public()), NotBefore: set.IssuedAt}, []string{"bill"})
	publish()
	eventually(t, func() bool { return jerry.identity.verifier.Set().Version == set.Version })
	r := jerry.do(http.MethodPost, "/v1/messages", `{"to":"bill","text":"x"}`)
	if e := r.err(t); r.status != 503 || e.Code != CodeNoEncryptionKey || !strings.Contains(e.Message, "ghost: it has published no encryption key") {
		t.Errorf("without a key: %d %+v", r.status, e)
	}
	if _, _, err := jerry.Reload(parseNode(t, "jerry", mesh("require", "secret.*"), "")); err != nil {
		t.Fatal(err)
	}
	if r := jerry.do(http.MethodPost, "/v1/messages", `{"to":"bill","text":"x","capability":"public"}`); r.status != 202 {
		t.Errorf("of another capability: %d %s", r.status, r.body)
	}
	if r := jerry.do(http.MethodPost, "/v1/messages", `{"to":"bill","text":"x","capability":"secret.thing"}`); r.status != 503 {
		t.Errorf("of that capability: %d %s", r.status, r.body)
	}
}

func TestConfidentialityOf(t *testing.T) {
	for _, test := range []struct {
		mode, patterns, capability string
		want                       bus.Confidentiality
	}{
		{"off", "*", "a", bus.InTheClear}, {"encrypt", "*", "a", bus.Encrypt}, {"require", "*", "", bus.RequireEncrypted},
		{"require", "*", "a/b", bus.RequireEncrypted}, {"require", "a*,b", "b", bus.RequireEncrypted}, {"require", "a*,b", "bb", bus.InTheClear},
		{"require", "a*", "", bus.InTheClear}, {"encrypt", "infra.*", "infra.check", bus.Encrypt},
	} {
		c := ConfidentialityConfig{Mode: test.mode, Capabilities: strings.Split(test.patterns, ",")}
		if got := c.of(test.capability); got != test.want {
			t.Errorf("%s %s of %q: %d, want %d", test.mode, test.patterns, test.capability, got, test.want)
		}
	}
}
