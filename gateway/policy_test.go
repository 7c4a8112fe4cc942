package gateway

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

func policyOf(t *testing.T, p config) *Policy {
	t.Helper()
	c := parseNode(t, "here", config{"policy": p}, "")
	c.Normalize()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	policy, err := NewPolicy(c.Mesh.Policy, c.Mesh.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

func asks(from, to, capability string, size int) bus.Invocation {
	agent, gw, _ := strings.Cut(from, "@")
	return bus.Invocation{From: envelope.Address{Agent: agent, Gateway: gw}, To: to, Gateway: "here", Capability: capability, Size: size}
}

func TestPolicy(t *testing.T) {
	rules := config{"rules": []config{
		{"name": "no secrets", "action": "deny", "to": "vault*"},
		{"from": "jerry@*", "to": "bobby", "capability": "infra.*", "maxPayload": "1KiB"},
		{"name": "billy", "from": "*@billy-gateway", "to": "b?[lb]*", "capability": "node.report"},
		{"from": "hub", "capability": "*"},
		{"action": "deny", "from": "mallory"},
	}, "operators": []string{"jerry-*"}}
	strict, open := policyOf(t, rules), policyOf(t, config{"default": "allow", "rules": rules["rules"]})
	for _, tc := range []struct {
		ask          bus.Invocation
		strict, open bool
		rule         string
	}{
		{asks("jerry@jerry-gateway", "bobby", "infra.check", 1024), true, true, "2"},
		{asks("jerry@jerry-gateway", "bobby", "infra.check", 1025), false, false, "2"},
		{asks("jerry@another", "bobby", "infra.check", 0), true, true, "2"},
		{asks("jerry@jerry-gateway", "bobby", "infra", 0), false, true, ""},
		{asks("jerry@jerry-gateway", "bobby", "", 0), false, true, ""},
		{asks("jerry2@jerry-gateway", "bobby", "infra.check", 0), false, true, ""},
		{asks("anyone@billy-gateway", "billy", "node.report", 0), true, true, "billy"},
		{asks("anyone@billy-gateway", "jerry", "node.report", 0), false, true, ""},
		{asks("anyone@billy-gateway2", "billy", "node.report", 0), false, true, ""},
		{asks("hub@x", "jerry", "", 1<<20), true, true, "4"},
		{asks("hub@x", "vault", "", 0), false, false, "no secrets"},
		{asks("mallory@x", "jerry", "", 0), false, false, "5"},
		// This gateway's own are allowed what no rule denies.
		{asks("user@here", "jerry", "anything", 0), true, true, ""},
		{asks("user@here", "vault-2", "anything", 0), false, false, "no secrets"},
		{asks("mallory@here", "jerry", "", 0), false, false, "5"},
	} {
		for name, p := range map[string]*Policy{"strict": strict, "open": open} {
			want := tc.strict
			if name == "open" {
				want = tc.open
			}
			v := p.Explain(tc.ask)
			if v.Allowed != want || v.Rule != tc.rule || v.Reason == "" {
				t.Errorf("%s: %+v: %+v, want %t by %q", name, tc.ask, v, want, tc.rule)
			}
			if err := p.Authorize(tc.ask); (err == nil) != want {
				t.Errorf("%s: %+v: %v", name, tc.ask, err)
			}
		}
	}
	order := asks("user@jerry-gateway", "vault", "mesh.purge", 0)
	order.Operator = true
	if v := strict.Explain(order); !v.Allowed {
		t.Errorf("an order of an operator: %+v", v)
	}
	order.From.Gateway = "billy-gateway"
	if v := strict.Explain(order); v.Allowed || !strings.Contains(v.Reason, "mesh.policy.operators") {
		t.Errorf("an order of another operator: %+v", v)
	}
	if v := open.Explain(order); !v.Allowed {
		t.Errorf("by default operators of all gateways may give orders: %+v", v)
	}
}

// A rate counts messages, not attempts, and each gateway by itself.
func TestPolicyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := policyOf(t, config{"rules": []config{{"name": "slow", "rate": "3/m"}}})
		ask := asks("a@one", "bobby", "", 0)
		again := ask
		again.Again = true
		for i := range 3 {
			if err := p.Authorize(ask); err != nil {
				t.Fatalf("message %d: %v", i+1, err)
			}
			if err := p.Authorize(again); err != nil {
				t.Fatalf("a retry: %v", err)
			}
		}
		err := p.Authorize(ask)
		if err == nil || !strings.Contains(err.Error(), "rule 1 (slow)") || !strings.Contains(err.Error(), "3/m") {
			t.Errorf("the fourth: %v", err)
		}
		if err := p.Authorize(asks("a@two", "bobby", "", 0)); err != nil {
			t.Errorf("another gateway pays for the first: %v", err)
		}
		time.Sleep(20 * time.Second) // fake time
		if err := p.Authorize(ask); err != nil {
			t.Errorf("a third of a minute later: %v", err)
		}
		if err := p.Authorize(ask); err == nil {
			t.Error("one too many a third of a minute later")
		}
		// Names without end do not take memory without end.
		for i := range 3 * maxLimiters {
			_ = p.Authorize(asks("a@g"+strings.Repeat("x", i%50)+string(rune('a'+i%26)), "bobby", "", 0))
		}
		if n := len(p.rules[0].limiters); n > maxLimiters+1 {
			t.Errorf("%d counters", n)
		}
	})
}

func TestPolicyMistakes(t *testing.T) {
	for want, p := range map[string]config{
		`mesh.policy.rules[0].from`:       {"rules": []config{{"from": "[a"}}},
		`mesh.policy.rules[0].to`:         {"rules": []config{{"to": "a@b"}}},
		`mesh.policy.rules[1].capability`: {"rules": []config{{}, {"capability": "a/b"}}},
		`mesh.policy.rules[0].rate`:       {"rules": []config{{"rate": "10"}}},
		`0/s`:                             {"rules": []config{{"rate": "0/s"}}},
		`mesh.policy.rules[0].action`:     {"rules": []config{{"action": "deny", "rate": "1/s"}}},
		`not one of`:                      {"rules": []config{{"action": "maybe"}}},
		`mesh.policy.operators`:           {"operators": []string{"[a"}},
		`mesh.policy.default`:             {"default": "ask"},
	} {
		c := parseNode(t, "here", config{"policy": p}, "")
		c.Normalize()
		err := c.Validate()
		var bad *ConfigError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", p, err, want)
		}
	}
}

// What no rule allows is a dead letter with its reason, also when it is redriven; what waits beside it goes on. After a
// reload that allows it a redrive brings it back.
func TestPolicyAcrossGateways(t *testing.T) {
	store := newStore(t)
	jerry := startNode(t, parseNode(t, "jerry", nil, ""), Deps{Store: store})
	agents := config{"id": "bobby", "runner": "echo"}
	bobby := startNode(t, parseNode(t, "bobby-gw", config{"policy": config{"rules": []config{{"capability": "node.report"}}}}, "", agents), Deps{Store: store})
	jerry.waitAgent("bobby", "bobby-gw")
	ask := func(capability, conversation string) MessageStatus {
		return jerry.send(SendRequest{To: "bobby", Text: text("x"), Capability: capability, ConversationID: conversation, Wait: WaitAcked, Timeout: longest.String()})
	}
	if m := ask("node.report", "one"); !m.Facts.Acked {
		t.Fatalf("what a rule allows: %+v", m.Facts)
	}
	refused := ask("infra.check", "one")
	if !refused.Facts.Dead || refused.Facts.Class != envelope.ClassUnauthorised || !strings.Contains(refused.Facts.Reason, "mesh.policy.rules") {
		t.Fatalf("what no rule allows: %+v", refused.Facts)
	}
	if m := ask("node.report", "one"); !m.Facts.Acked {
		t.Errorf("what comes behind it: %+v", m.Facts)
	}
	if m := bobby.send(SendRequest{To: "bobby", Text: text("x"), Capability: "infra.check", Wait: WaitAcked, Timeout: longest.String()}); !m.Facts.Acked {
		t.Errorf("what a client of the same gateway asks: %+v", m.Facts)
	}
	redrive := func() {
		t.Helper()
		var res DeadLetterResults
		jerry.do(http.MethodPost, "/v1/deadletters/redrive", `{"agent":"bobby","all":true}`).into(t, &res)
		if res.Done != 1 {
			t.Fatalf("redrive: %+v", res)
		}
	}
	await := func(done func(bus.DeadLetter) bool, none bool) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ctx := within(t); ; {
			var list DeadLettersResponse
			bobby.do(http.MethodGet, "/v1/deadletters?agent=bobby", "").into(t, &list)
			if none && len(list.DeadLetters) == 0 || len(list.DeadLetters) == 1 && done(list.DeadLetters[0]) {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("dead letters: %+v", list.DeadLetters)
			}
		}
	}
	redrive()
	await(func(d bus.DeadLetter) bool {
		return len(d.Delivery.Redrives) == 1 && d.Delivery.Class == envelope.ClassUnauthorised
	}, false)
	changed, restart, err := bobby.Reload(parseNode(t, "bobby-gw", config{"policy": config{"rules": []config{{"capability": "infra.*", "from": "*@jerry"}}}}, "", agents))
	if err != nil || len(restart) > 0 || len(changed) == 0 {
		t.Fatalf("reload: %v, %v, %v", changed, restart, err)
	}
	redrive()
	await(func(bus.DeadLetter) bool { return false }, true)
	if m := ask("node.report", "two"); m.Facts.Class != envelope.ClassUnauthorised {
		t.Errorf("what was allowed before the reload: %+v", m.Facts)
	}
}
