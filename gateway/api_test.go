package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// Every refusal of a request: status, code and the field that it names.
func TestAPIRefuses(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", config{"maxPayload": "64KiB"}, "", echoAgent("bobby")), Deps{Store: newStore(t)})
	plain := func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }
	evil := func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }
	site := func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }
	rebound := func(r *http.Request) { r.Host = "evil.example" }
	const msg = "/v1/messages"
	for _, tc := range []struct {
		name, method, path, body string
		change                   func(*http.Request)
		status                   int
		code, field              string
	}{
		{"no body", "POST", msg, "", func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }, 400, CodeInvalid, ""},
		{"not JSON", "POST", msg, `{"to":`, nil, 400, CodeInvalid, ""},
		{"broken JSON", "POST", msg, `{"to" "x"}`, nil, 400, CodeInvalid, ""},
		{"an array", "POST", msg, `[]`, nil, 400, CodeInvalid, ""},
		{"something behind", "POST", msg, `{"to":"bobby","text":"x"} {}`, nil, 400, CodeInvalid, ""},
		{"unknown field", "POST", msg, `{"to":"bobby","text":"x","prority":1}`, nil, 400, CodeInvalid, "prority"},
		{"wrong type", "POST", msg, `{"to":7,"text":"x"}`, nil, 400, CodeInvalid, "to"},
		{"wrong type of number", "POST", msg, `{"to":"bobby","text":"x","max_hops":"4"}`, nil, 400, CodeInvalid, "max_hops"},
		{"no target", "POST", msg, `{"text":"x"}`, nil, 400, CodeInvalid, "to"},
		{"bad target", "POST", msg, `{"to":"Bobby!","text":"x"}`, nil, 400, CodeInvalid, "to"},
		{"an account's own word", "POST", msg, `{"to":"channel-slack-default","text":"x","capability":"channel.event"}`, nil, 400, CodeInvalid, "capability"},
		{"no payload", "POST", msg, `{"to":"bobby"}`, nil, 400, CodeInvalid, "text"},
		{"two payloads", "POST", msg, `{"to":"bobby","text":"x","payload":1}`, nil, 400, CodeInvalid, "payload"},
		{"bad id", "POST", msg, `{"id":"7","to":"bobby","text":"x"}`, nil, 400, CodeInvalid, "id"},
		{"bad correlation", "POST", msg, `{"correlation_id":"7","to":"bobby","text":"x"}`, nil, 400, CodeInvalid, ""},
		{"bad sender", "POST", msg, `{"from":"A B","to":"bobby","text":"x"}`, nil, 400, CodeInvalid, ""},
		{"bad ttl", "POST", msg, `{"to":"bobby","text":"x","ttl":"soon"}`, nil, 400, CodeInvalid, "ttl"},
		{"ttl 0", "POST", msg, `{"to":"bobby","text":"x","ttl":"0s"}`, nil, 400, CodeInvalid, "ttl"},
		{"long ttl", "POST", msg, `{"to":"bobby","text":"x","ttl":"25h"}`, nil, 400, CodeInvalid, "ttl"},
		{"many hops", "POST", msg, `{"to":"bobby","text":"x","max_hops":33}`, nil, 400, CodeInvalid, "max_hops"},
		{"bad wait", "POST", msg, `{"to":"bobby","text":"x","wait":"done"}`, nil, 400, CodeInvalid, "wait"},
		{"bad timeout", "POST", msg, `{"to":"bobby","text":"x","wait":"acked","timeout":"11m"}`, nil, 400, CodeInvalid, "timeout"},
		{"timeout alone", "POST", msg, `{"to":"bobby","text":"x","timeout":"1m"}`, nil, 400, CodeInvalid, "timeout"},
		{"low priority", "POST", msg, `{"to":"bobby","text":"x","priority":-1}`, nil, 400, CodeInvalid, "priority"},
		{"high priority", "POST", msg, `{"to":"bobby","text":"x","priority":10}`, nil, 400, CodeInvalid, "priority"},
		{"priority in words", "POST", msg, `{"to":"bobby","text":"x","priority":"high"}`, nil, 400, CodeInvalid, "priority"},
		{"bad delay", "POST", msg, `{"to":"bobby","text":"x","delay":"later"}`, nil, 400, CodeInvalid, "delay"},
		{"negative delay", "POST", msg, `{"to":"bobby","text":"x","delay":"-1s"}`, nil, 400, CodeInvalid, "delay"},
		{"long delay", "POST", msg, `{"to":"bobby","text":"x","delay":"721h"}`, nil, 400, CodeInvalid, "delay"},
		{"no time", "POST", msg, `{"to":"bobby","text":"x","not_before":"tomorrow"}`, nil, 400, CodeInvalid, "not_before"},
		{"far time", "POST", msg, `{"to":"bobby","text":"x","not_before":"9999-12-31T23:59:59Z"}`, nil, 400, CodeInvalid, "not_before"},
		{"ancient time", "POST", msg, `{"to":"bobby","text":"x","not_before":"0000-01-01T00:00:00Z"}`, nil, 400, CodeInvalid, ""},
		{"two times", "POST", msg, `{"to":"bobby","text":"x","delay":"1s","not_before":"2026-01-01T00:00:00Z"}`, nil, 400, CodeInvalid, "not_before"},
		{"bad unique_for", "POST", msg, `{"to":"bobby","text":"x","unique_key":"k","unique_for":"-1h"}`, nil, 400, CodeInvalid, "unique_for"},
		{"unique_for alone", "POST", msg, `{"to":"bobby","text":"x","unique_for":"1h"}`, nil, 400, CodeInvalid, "unique_for"},
		{"odd unique_key", "POST", msg, `{"to":"bobby","text":"x","unique_key":"a\nb"}`, nil, 400, CodeInvalid, ""},
		{"bad priority of a fan-out", "POST", "/v1/fanouts", `{"agents":["bobby"],"text":"x","priority":10}`, nil, 400, CodeInvalid, "priority"},
		{"bad queue", "GET", "/v1/queues/No%20queue/tasks", "", nil, 400, CodeInvalid, "queue"},
		{"no such queue", "GET", "/v1/queues/nothing/tasks", "", nil, 404, CodeNotFound, ""},
		{"bad state", "GET", "/v1/queues/nothing/tasks?state=done", "", nil, 400, CodeInvalid, "state"},
		{"bad number of tasks", "GET", "/v1/queues/nothing/tasks?limit=10001", "", nil, 400, CodeInvalid, "limit"},
		{"bad queue of a task", "POST", "/v1/queues/a..b/tasks/7/cancel", `{}`, nil, 400, CodeInvalid, "queue"},
		{"bad task", "POST", "/v1/queues/nothing/tasks/a.b/cancel", `{}`, nil, 400, CodeInvalid, "id"},
		{"cancel without a body", "POST", "/v1/queues/nothing/tasks/7/cancel", "", func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }, 400, CodeInvalid, ""},
		{"cancel as a form", "POST", "/v1/queues/nothing/tasks/7/cancel", `by=me`, plain, 415, CodeContentType, ""},
		{"cancel with more", "POST", "/v1/queues/nothing/tasks/7/cancel", `{"why":"x"}`, nil, 400, CodeInvalid, "why"},
		{"cancel by a line feed", "POST", "/v1/queues/nothing/tasks/7/cancel", `{"by":"a\nb"}`, nil, 400, CodeInvalid, "by"},
		{"cancel by a novel", "POST", "/v1/queues/nothing/tasks/7/cancel", `{"by":"` + strings.Repeat("x", longestBy+1) + `"}`, nil, 400, CodeInvalid, "by"},
		{"cancel never", "POST", "/v1/queues/nothing/tasks/7/cancel", `{"timeout":"0s"}`, nil, 400, CodeInvalid, "timeout"},
		{"cancel nothing", "POST", "/v1/queues/nothing/tasks/" + envelope.NewID() + "/cancel", `{}`, nil, 404, CodeNotFound, ""},
		{"form", "POST", msg, `to=bobby`, plain, 415, CodeContentType, ""},
		{"large payload", "POST", msg, `{"to":"bobby","text":"` + strings.Repeat("x", 65<<10) + `"}`, nil, 413, CodeTooLarge, "payload"},
		{"large body", "POST", msg, `{"to":"bobby","text":"` + strings.Repeat("x", MaxBodyBytes) + `"}`, nil, 413, CodeTooLarge, ""},
		{"unknown agent", "POST", msg, `{"to":"nobody","text":"x"}`, nil, 404, CodeUnknownAgent, ""},
		{"elsewhere", "POST", msg, `{"to":"bobby@other","text":"x"}`, nil, 404, CodeUnknownAgent, ""},
		{"no such message", "GET", msg + "/" + envelope.NewID(), "", nil, 404, CodeNotFound, ""},
		{"bad message id", "GET", msg + "/a.b", "", nil, 400, CodeInvalid, "id"},
		{"bad limit", "GET", msg + "?limit=0", "", nil, 400, CodeInvalid, "limit"},
		{"no such inbox", "GET", "/v1/inboxes/nobody", "", nil, 404, CodeNotFound, ""},
		{"bad inbox", "GET", "/v1/inboxes/No%20body", "", nil, 400, CodeInvalid, "agent"},
		{"event of nobody", "POST", "/v1/state/events", `{"event":"x"}`, nil, 400, CodeInvalid, ""},
		{"no event", "POST", "/v1/state/events", `{"agent":"bobby","event":" "}`, nil, 400, CodeInvalid, ""},
		{"long event", "POST", "/v1/state/events", `{"agent":"bobby","event":"` + strings.Repeat("x", bus.MaxEventBytes+1) + `"}`, nil, 413, CodeTooLarge, ""},
		{"bad event limit", "GET", "/v1/state/events?limit=101", "", nil, 400, CodeInvalid, "limit"},
		{"empty focus", "PUT", "/v1/state/focus", `{"focus":""}`, nil, 400, CodeInvalid, "focus"},
		{"long focus", "PUT", "/v1/state/focus", `{"focus":"` + strings.Repeat("x", bus.MaxFocusBytes+1) + `"}`, nil, 413, CodeTooLarge, ""},
		{"no such path", "GET", "/v1/nothing", "", nil, 404, CodeNotFound, ""},
		{"wrong method", "DELETE", msg, "", nil, 405, CodeMethodNotAllowed, ""},
		{"foreign origin", "POST", msg, `{"to":"bobby","text":"x"}`, evil, 403, CodeForbidden, ""},
		{"foreign site", "POST", msg, `{"to":"bobby","text":"x"}`, site, 403, CodeForbidden, ""},
		{"rebound name", "GET", "/v1/agents", "", rebound, 403, CodeForbidden, ""},
		{"rebound page", "GET", "/", "", rebound, 403, CodeForbidden, ""},
	} {
		var change []func(*http.Request)
		if tc.change != nil {
			change = append(change, tc.change)
		}
		r := n.do(tc.method, tc.path, tc.body, change...)
		e := r.err(t)
		if r.status != tc.status || e.Code != tc.code || e.Field != tc.field || e.Message == "" {
			t.Errorf("%s: %d %+v, want %d %s %q", tc.name, r.status, e, tc.status, tc.code, tc.field)
		}
		if got := r.header.Get("Content-Type"); got != "application/json" {
			t.Errorf("%s: content type %s", tc.name, got)
		}
	}
	if r := n.do("DELETE", msg, ""); r.header.Get("Allow") == "" {
		t.Error("405 without Allow")
	}
	if st := n.ask("bobby", "still well?"); st.Text != "still well?" {
		t.Errorf("afterwards: %+v", st)
	}
}

func TestAPIToken(t *testing.T) {
	const token = "s3cret-t0ken"
	n := startNode(t, parseNode(t, "lone", nil, token, echoAgent("bobby")), Deps{Store: newStore(t)})
	with := func(v string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Del("Authorization")
			if v != "" {
				r.Header.Set("Authorization", v)
			}
		}
	}
	for given, want := range map[string]int{
		"Bearer " + token: 200, "bearer " + token: 200,
		"": 401, "Bearer wrong": 401, "Bearer ": 401, "Bearer " + token + "x": 401, token: 401, "Basic " + token: 401,
	} {
		r := n.do("GET", "/v1/agents", "", with(given))
		if r.status != want {
			t.Errorf("%q: %d", given, r.status)
		}
		if want == 401 && (r.err(t).Code != CodeUnauthorized || r.header.Get("WWW-Authenticate") == "") {
			t.Errorf("%q: %s", given, r.body)
		}
		if strings.Contains(string(r.body), token) {
			t.Errorf("the answer to %q shows the token", given)
		}
	}
	for _, path := range []string{"/v1/status", "/v1/messages", "/v1/gateways", "/v1/inboxes", "/v1/nothing"} {
		if r := n.do("GET", path, "", with("")); r.status != 401 {
			t.Errorf("%s without a token: %d", path, r.status)
		}
	}
	for _, path := range []string{"/health", "/ready", "/metrics", "/"} {
		if r := n.do("GET", path, "", with("")); r.status != 200 || strings.Contains(string(r.body), token) {
			t.Errorf("%s without a token: %d", path, r.status)
		}
	}
	// With a token the name does not matter: a rebound page does not know it.
	if r := n.do("GET", "/v1/agents", "", func(r *http.Request) { r.Host = "jerry.tailscale" }); r.status != 200 {
		t.Errorf("another name: %d", r.status)
	}
	if strings.Contains(n.log.String(), token) {
		t.Error("the log shows the token")
	}
}

func TestAPILists(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby"), config{"id": "jerry", "runner": "relay"}), Deps{Store: newStore(t)})
	n.waitAgent("jerry", "lone")
	st := n.ask("bobby", "x")

	var agents AgentsResponse
	n.do("GET", "/v1/agents", "").into(t, &agents)
	if len(agents.Agents) != 2 || agents.Agents[0].ID != "bobby" || agents.Agents[0].Name != "Bobby" || agents.Agents[0].Status != bus.StatusActive {
		t.Errorf("agents: %+v", agents)
	}
	n.do("GET", "/v1/agents?capability=infra.check", "").into(t, &agents)
	if len(agents.Agents) != 1 {
		t.Errorf("agents by capability: %+v", agents)
	}
	var gateways GatewaysResponse
	n.do("GET", "/v1/gateways", "").into(t, &gateways)
	if len(gateways.Gateways) != 1 || gateways.Gateways[0].URL != n.URL() || gateways.Gateways[0].Version != "test" {
		t.Errorf("gateways: %+v", gateways)
	}
	var inboxes InboxesResponse
	n.do("GET", "/v1/inboxes", "").into(t, &inboxes)
	if len(inboxes.Inboxes) != 3 { // bobby, jerry and the gateway's own
		t.Errorf("inboxes: %+v", inboxes)
	}
	var inbox bus.InboxInfo
	n.do("GET", "/v1/inboxes/bobby", "").into(t, &inbox)
	if inbox.Agent != "bobby" || inbox.Owner != "lone" {
		t.Errorf("inbox: %+v", inbox)
	}
	var status StatusResponse
	n.do("GET", "/v1/status", "").into(t, &status)
	if status.Gateway != "lone" || !status.Ready || strings.Join(status.Owned, " ") != "bobby jerry" || status.Version != "test" || status.Started.IsZero() {
		t.Errorf("status: %+v", status)
	}
	var messages MessagesResponse
	n.do("GET", "/v1/messages?limit=500", "").into(t, &messages)
	found := false
	for _, m := range messages.Messages {
		found = found || m.MessageID == st.MessageID && m.Text == "x"
	}
	if !found {
		t.Errorf("messages: %+v", messages)
	}
	for _, path := range []string{"/health", "/ready"} {
		var p ProbeResponse
		n.do("GET", path, "").into(t, &p)
		if p.Gateway != "lone" {
			t.Errorf("%s: %+v", path, p)
		}
	}
}

func TestSendStates(t *testing.T) {
	g := newGate()
	rs := runners(agent.Runners{"checks": g.factory})
	n := startNode(t, parseNode(t, "lone", nil, "", config{"id": "slow", "runner": "checks"}, echoAgent("bobby")), Deps{Store: newStore(t), Runners: rs})
	n.waitAgent("slow", "lone")

	r := n.do("POST", "/v1/messages", `{"to":"bobby","payload":{"a":[1]},"from":"tester","capability":"infra.check","ttl":"90s","max_hops":3,"conversation_id":"c"}`,
		func(r *http.Request) {
			r.Header.Set("traceparent", "00-11111111111111111111111111111111-2222222222222222-01")
		})
	var st MessageStatus
	r.into(t, &st)
	e := st.Envelope
	if r.status != 202 || !st.Facts.Accepted || e.SourceAgent != "tester" || e.TTL.Duration().String() != "1m30s" || e.MaxHops != 3 ||
		e.ConversationID != "c" || string(e.Payload) != `{"a":[1]}` || e.ReplyTo != "" || !strings.HasPrefix(e.Traceparent, "00-1111") {
		t.Errorf("%d %+v", r.status, st)
	}
	if st := n.send(SendRequest{To: "bobby", Text: text("x")}); st.Envelope.SourceAgent != DefaultFrom || st.Envelope.TTL.Duration().String() != "5m0s" {
		t.Errorf("defaults: %+v", st.Envelope)
	}

	// Delivered is not acked, and acked is not replied.
	r = n.do("POST", "/v1/messages", `{"to":"slow","text":"x","wait":"delivered"}`)
	r.into(t, &st)
	if r.status != 200 || !st.Facts.Delivered || st.Facts.Acked {
		t.Errorf("wait for delivered: %d %+v", r.status, st.Facts)
	}
	r = n.do("POST", "/v1/messages", `{"to":"slow","text":"x","wait":"replied","timeout":"20ms"}`)
	r.into(t, &st)
	if r.status != 202 || !st.TimedOut || st.Facts.Replied || !st.Facts.Accepted {
		t.Errorf("time was up: %d %+v", r.status, st)
	}
	r = n.do("GET", "/v1/messages/"+st.MessageID+"?wait=replied&timeout=20ms", "")
	var got MessageStatus
	r.into(t, &got)
	if r.status != 200 || !got.TimedOut {
		t.Errorf("GET, time was up: %d %+v", r.status, got)
	}
	close(g.leave)
	got = MessageStatus{}
	n.do("GET", "/v1/messages/"+st.MessageID+"?wait=replied", "").into(t, &got)
	if !got.Facts.Replied || got.Text != "x" || got.TimedOut {
		t.Errorf("GET with wait: %+v", got)
	}
}

// The answer to a question can be read at any gateway, later.
func TestAnswerFromAnyGateway(t *testing.T) {
	s := newStore(t)
	one := startNode(t, parseNode(t, "one", nil, "", echoAgent("bobby")), Deps{Store: s})
	two := startNode(t, parseNode(t, "two", nil, ""), Deps{Store: s})
	st := one.send(SendRequest{To: "bobby", Text: text("x"), Reply: true})
	one.do("GET", "/v1/messages/"+st.MessageID+"?wait=replied", "").into(t, &st)
	var got MessageStatus
	two.do("GET", "/v1/messages/"+st.MessageID+"?wait=replied", "").into(t, &got)
	if !got.Facts.Replied || !got.Facts.Acked || got.Text != "x" {
		t.Errorf("at the other gateway: %+v", got)
	}
}

// The same id is the same message, however often it is sent, also at the same time.
func TestSendTwice(t *testing.T) {
	g := newGate()
	rs := runners(agent.Runners{"echo": g.factory})
	n := startNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: newStore(t), Runners: rs})
	id := envelope.NewID()
	body := fmt.Sprintf(`{"id":%q,"to":"bobby","payload":{"a":1},"reply":true}`, id)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if r := n.do("POST", "/v1/messages", body); r.status != 202 {
				t.Errorf("%d %s", r.status, r.body)
			}
		})
	}
	wg.Wait()
	close(g.leave)
	var st MessageStatus
	again := fmt.Sprintf(`{"id":%q,"to":"bobby","payload": { "a": 1 },"wait":"replied"}`, id)
	r := n.do("POST", "/v1/messages", again)
	r.into(t, &st)
	if r.status != 200 || st.Text != `{"a":1}` {
		t.Errorf("%d %+v", r.status, st)
	}
	queued := 0
	for _, ev := range n.hubEvents(ringEvents) {
		if ev.MessageID == id && ev.Event.Event == bus.EventQueued {
			queued++
		}
	}
	if queued != 1 || len(g.entered) != 1 {
		t.Errorf("queued %d times, handled %d times", queued, len(g.entered))
	}
	for _, other := range []string{`"to":"bobby","payload":{"a":2}`, `"to":"bobby","payload":{"a":1},"from":"x"`, `"to":"bobby","payload":{"a":1},"capability":"x"`} {
		r := n.do("POST", "/v1/messages", fmt.Sprintf(`{"id":%q,%s}`, id, other))
		if e := r.err(t); r.status != 409 || e.Code != CodeConflict || e.MessageID != id {
			t.Errorf("%s: %d %+v", other, r.status, e)
		}
	}
}

func TestDeadLetterEndsWaiting(t *testing.T) {
	rs := runners(agent.Runners{"echo": func(agent.Spec, agent.Deps) (bus.Handler, error) {
		return bus.HandlerFunc(func(context.Context, *bus.Incoming) error {
			return bus.Never(envelope.ClassPoison, errors.New("cannot be done"))
		}), nil
	}})
	n := startNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: newStore(t), Runners: rs})
	r := n.do("POST", "/v1/messages", `{"to":"bobby","text":"x","wait":"replied","timeout":"10s"}`)
	var st MessageStatus
	r.into(t, &st)
	if r.status != 200 || !st.Facts.Dead || st.Facts.Class != envelope.ClassPoison || !strings.Contains(st.Facts.Reason, "cannot be done") || st.TimedOut {
		t.Errorf("%d %+v", r.status, st)
	}
}

// A panic is an answer and a line in the log; the gateway goes on.
func TestAPIPanic(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, ""), Deps{Store: newStore(t)})
	s := n.settings.Swap(nil)
	r := n.do("POST", "/v1/messages", `{"to":"bobby","text":"x"}`)
	n.settings.Store(s)
	if e := r.err(t); r.status != 500 || e.Code != CodeInternal || strings.Contains(e.Message, "nil") {
		t.Errorf("%d %+v", r.status, e)
	}
	if !strings.Contains(n.log.String(), "panic in the API") {
		t.Error("nothing in the log")
	}
	if r := n.do("GET", "/health", ""); r.status != 200 {
		t.Errorf("afterwards: %d", r.status)
	}
}

func TestErrorMapping(t *testing.T) {
	for _, tc := range []struct {
		err    error
		status int
		code   string
	}{
		{bus.ErrUnknownAgent, 404, CodeUnknownAgent},
		{bus.ErrNotFound, 404, CodeNotFound},
		{bus.ErrTooLarge, 413, CodeTooLarge},
		{envelope.ErrInvalid, 400, CodeInvalid},
		{&envelope.VersionError{Got: "2.0"}, 400, CodeInvalid},
		{bus.ErrStopped, 503, CodeStopping},
		{bus.ErrClosed, 503, CodeStopping},
		{bus.ErrUnavailable, 503, CodeStoreUnavailable},
		{bus.ErrNoSession, 503, CodeStoreUnavailable},
		{bus.ErrForbidden, 503, CodeStoreForbidden},
		{fmt.Errorf("%w: %w", bus.ErrOutcomeUnknown, bus.ErrUnavailable), 504, CodeOutcomeUnknown},
		{context.DeadlineExceeded, 504, CodeTimeout},
		{context.Canceled, statusClientGone, CodeClientGone},
		{errors.New("secret detail"), 500, CodeInternal},
	} {
		e, _ := apiError(fmt.Errorf("do it: %w", tc.err))
		if e.Status() != tc.status || e.Code != tc.code || strings.Contains(e.Message, "secret") {
			t.Errorf("%v: %d %+v", tc.err, e.status, e)
		}
	}
}

func TestLocalHost(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:18789": true, "LOCALHOST.": true, "a.localhost:1": true, "127.0.0.1:1": true, "127.9.9.9": true, "[::1]:18789": true, "[::1]": true,
		"": false, "evil.example": false, "127.0.0.1.evil.example": false, "10.0.0.1:1": false, "localhost.evil.example:1": false, "[fe80::1]:1": false, "0.0.0.0": false,
	} {
		if got := localHost(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}
