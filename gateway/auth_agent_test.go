package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// A token that speaks for one agent has the routes of the list and no others, and sees of messages and dead letters what is that agent's.
func TestTokenOfAnAgent(t *testing.T) {
	operator, all := tokenOf(t, "operator", "operate")
	own, bobs := tokenOf(t, "bobs", "operate")
	own.Agent = "bobby"
	cfg := parseNode(t, "lone", nil, "", echoAgent("bobby"), echoAgent("jerry"))
	cfg.Gateway.Auth = AuthConfig{Mode: "token", Tokens: []TokenConfig{operator, own}, RateLimit: RateLimitConfig{MaxAttempts: 10000}}
	no := func(agent.Spec, agent.Deps) (bus.Handler, error) {
		return bus.HandlerFunc(func(_ context.Context, m *bus.Incoming) error {
			if m.Envelope().Text() == "no" {
				return bus.Never(envelope.ClassUndeliverable, errors.New("not that"))
			}
			return nil
		}), nil
	}
	n := startNode(t, cfg, Deps{Store: newStore(t), Runners: agent.Runners{"echo": no}})
	listed := map[string]bool{}
	for _, rt := range n.routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		if !strings.Contains(path, "/v1/") {
			continue
		}
		listed[rt.pattern] = true
		url := strings.ReplaceAll(path, "{agent}", "bobby")
		url = regexp.MustCompile(`\{[a-z]+\}`).ReplaceAllString(url, "x")
		r := n.do(method, url, "", bearer(bobs))
		if refused := r.status == http.StatusForbidden; refused == agentRoutes[rt.pattern] {
			t.Errorf("%s: %d %s", rt.pattern, r.status, r.body)
		}
	}
	for pattern := range agentRoutes {
		if !listed[pattern] {
			t.Errorf("%s is no route", pattern)
		}
	}
	if r := n.do(http.MethodGet, "/v1/agents/jerry/mailbox", "", bearer(bobs)); r.status != http.StatusForbidden {
		t.Errorf("another one's mailbox: %d", r.status)
	}
	send := func(token, from, to string) MessageStatus {
		t.Helper()
		var st MessageStatus
		n.do(http.MethodPost, "/v1/messages", fmt.Sprintf(`{"from":%q,"to":%q,"text":"hello","wait":"acked"}`, from, to), bearer(token)).into(t, &st)
		return st
	}
	for _, c := range []struct {
		id  string
		own bool
	}{
		{send(bobs, "bobby", "jerry").MessageID, true},
		{send(all, "jerry", "bobby").MessageID, true},
		{send(all, "user", "jerry").MessageID, false},
	} {
		if r := n.do(http.MethodGet, "/v1/messages/"+c.id, "", bearer(bobs)); r.status != map[bool]int{true: 200, false: 404}[c.own] {
			t.Errorf("message %s: %d %s", c.id, r.status, r.body)
		}
	}
	if r := n.do(http.MethodPost, "/v1/messages", `{"from":"jerry","to":"bobby","text":"x"}`, bearer(bobs)); r.status != http.StatusForbidden {
		t.Errorf("from another one: %d", r.status)
	}
	b := n.bus.Load()
	for _, x := range [][2]string{{"user", "jerry"}, {"bobby", "jerry"}, {"user", "bobby"}} {
		s, err := b.Send(t.Context(), bus.Outgoing{From: x[0], To: envelope.Address{Agent: x[1]}, Payload: envelope.TextPayload("no")})
		if err == nil {
			_, err = b.Await(within(t), s.MessageID, func(tr bus.Track) bool { return tr.Facts.Dead })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var seen, everything DeadLettersResponse
	n.do(http.MethodGet, "/v1/deadletters", "", bearer(bobs)).into(t, &seen)
	n.do(http.MethodGet, "/v1/deadletters", "", bearer(all)).into(t, &everything)
	if len(everything.DeadLetters) != 3 || len(seen.DeadLetters) != 2 {
		t.Errorf("%d of %d dead letters", len(seen.DeadLetters), len(everything.DeadLetters))
	}
	for _, d := range seen.DeadLetters {
		if d.Agent != "bobby" && d.Envelope.SourceAgent != "bobby" {
			t.Errorf("%+v", d)
		}
	}
}
