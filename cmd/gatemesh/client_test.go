package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/gateway"
)

// fakeGateway answers every request the same way.
func fakeGateway(t *testing.T, status int, body any) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if text, ok := body.(string); ok {
			_, _ = io.WriteString(w, text)
			return
		}
		_ = json.NewEncoder(w).Encode(body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func refusal(code string) gateway.ErrorResponse {
	return gateway.ErrorResponse{Error: gateway.APIError{Code: code, Message: "because of " + code, MessageID: "0190aaaa-0000-7000-8000-000000000001"}}
}

// TestExitStatusOfAnswers is the table from the gateway's answers to exit statuses.
func TestExitStatusOfAnswers(t *testing.T) {
	const id = "0190aaaa-0000-7000-8000-000000000001"
	accepted := `{"message_id":"` + id + `","facts":{"accepted":true},"events":[]}`
	late := `{"message_id":"` + id + `","facts":{"accepted":true,"delivered":true},"timed_out":true,"events":[]}`
	dead := `{"message_id":"` + id + `","facts":{"accepted":true,"dead":true,"class":"expired","reason":"its ttl passed"},"events":[]}`
	acked := `{"message_id":"` + id + `","facts":{"accepted":true,"delivered":true,"acked":true},"events":[]}`
	for _, c := range []struct {
		name   string
		status int
		body   any
		args   []string
		want   int
		says   string
	}{
		{"accepted", 202, accepted, []string{"send", "--to", "bobby", "hi"}, exitOK, ""},
		{"acked", 200, acked, []string{"send", "--to", "bobby", "--wait", "acked", "hi"}, exitOK, ""},
		{"timed out", 202, late, []string{"send", "--to", "bobby", "--wait", "acked", "hi"}, exitTimeout, "accepted, delivered"},
		{"ask timed out", 202, late, []string{"ask", "hi"}, exitTimeout, "gatemesh message show " + id},
		{"ask given up", 200, dead, []string{"ask", "hi"}, exitFailed, "expired: its ttl passed"},
		{"invalid", 400, refusal(gateway.CodeInvalid), []string{"ask", "hi"}, exitUsage, "because of invalid"},
		{"unauthorized", 401, refusal(gateway.CodeUnauthorized), []string{"agents"}, exitUsage, "GATEMESH_TOKEN"},
		{"role", 403, refusal(gateway.CodeRole), []string{"ask", "hi"}, exitUsage, "gatemesh token create"},
		{"rate limited", 429, refusal(gateway.CodeRateLimited), []string{"agents"}, exitUnavailable, "because of rate_limited"},
		{"unknown agent", 404, refusal(gateway.CodeUnknownAgent), []string{"ask", "hi"}, exitUsage, "gatemesh agents"},
		{"not found", 404, refusal(gateway.CodeNotFound), []string{"message", "show", id}, exitUsage, "because of not_found"},
		{"conflict", 409, refusal(gateway.CodeConflict), []string{"send", "--to", "bobby", "hi"}, exitUsage, "because of conflict"},
		{"too large", 413, refusal(gateway.CodeTooLarge), []string{"send", "--to", "bobby", "hi"}, exitUsage, "because of too_large"},
		{"bug", 500, refusal(gateway.CodeInternal), []string{"agents"}, exitFailed, "because of internal"},
		{"not ready", 503, refusal(gateway.CodeNotReady), []string{"agents"}, exitUnavailable, "because of not_ready"},
		{"stopping", 503, refusal(gateway.CodeStopping), []string{"ask", "hi"}, exitUnavailable, "because of stopping"},
		{"store", 503, refusal(gateway.CodeStoreUnavailable), []string{"ask", "hi"}, exitUnavailable, "because of store_unavailable"},
		{"events", 200, `{"events":[{"timestamp":"2026-01-01T00:00:00Z","agent":"bobby","event":"x"}]}`, []string{"state", "events"}, exitOK, ""},
		{"recorded", 200, `{"id":"1","timestamp":"2026-01-01T00:00:00Z","agent":"bobby","event":"x"}`, []string{"state", "record", "--agent", "bobby", "x"}, exitOK, ""},
		{"focus", 200, `{"focus":"ship it"}`, []string{"state", "focus"}, exitOK, ""},
		{"spoiled", 409, refusal(gateway.CodeSpoiled), []string{"state", "events"}, exitFailed, "because of spoiled"},
		{"contended", 503, refusal(gateway.CodeContended), []string{"state", "focus", "x"}, exitUnavailable, "because of contended"},
		{"outcome unknown", 504, refusal(gateway.CodeOutcomeUnknown), []string{"ask", "hi"}, exitUnavailable, "--id " + id},
		{"somebody else", 404, "<html>nginx</html>", []string{"agents"}, exitUnavailable, "does not answer like a gateway"},
		{"somebody else says ok", 200, "<html>hello</html>", []string{"agents"}, exitUnavailable, "does not answer like a gateway"},
		{"redirect", 301, "", []string{"agents"}, exitUnavailable, "use that address"},
		{"stream refused", 401, refusal(gateway.CodeUnauthorized), []string{"events"}, exitUsage, "GATEMESH_TOKEN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := fakeGateway(t, c.status, c.body)
			r := gatemesh(t, []string{"GATEMESH_ADDR=" + addr, "GATEMESH_TOKEN=very-secret-token"}, "", c.args...)
			if r.code != c.want {
				t.Errorf("status %d, want %d\n%s%s", r.code, c.want, r.out, r.errOut)
			}
			if c.want != exitOK {
				oneLine(t, r)
			}
			if !strings.Contains(r.errOut, c.says) {
				t.Errorf("standard error %q does not say %q", r.errOut, c.says)
			}
			if strings.Contains(r.out+r.errOut, "very-secret-token") {
				t.Error("the token was printed")
			}
		})
	}
}

// TestRequests checks what goes over the wire.
func TestRequests(t *testing.T) {
	type seen struct {
		method, path, auth, contentType string
		body                            map[string]any
	}
	requests := make(chan seen, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := seen{r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"), r.Header.Get("Content-Type"), nil}
		_ = json.NewDecoder(r.Body).Decode(&q.body)
		requests <- q
		_, _ = io.WriteString(w, `{"message_id":"x","facts":{"accepted":true,"replied":true},"events":[]}`)
	}))
	defer s.Close()
	file := t.TempDir() + "/body.json"
	writeFile(t, file, `{"disk":"/"}`+"\n")

	for _, c := range []struct {
		name  string
		stdin string
		args  []string
		want  map[string]any // of the body; "id" is only there
	}{
		{"arguments", "", []string{"send", "--to", "bobby@bobby-gateway", "--from", "me", "--capability", "infra.check", "--ttl", "30s",
			"--max-hops", "3", "--conversation", "c1", "check", "it"}, map[string]any{"to": "bobby@bobby-gateway", "from": "me",
			"capability": "infra.check", "ttl": "30s", "max_hops": 3.0, "conversation_id": "c1", "payload": "check it"}},
		{"file", "", []string{"send", "--to", "bobby", "--json-body", "--file", file}, map[string]any{"to": "bobby", "payload": map[string]any{"disk": "/"}}},
		{"standard input", "from a pipe\n", []string{"send", "--to", "bobby"}, map[string]any{"to": "bobby", "payload": "from a pipe"}},
		{"dash", "from a pipe\n", []string{"send", "--to", "bobby", "-"}, map[string]any{"to": "bobby", "payload": "from a pipe"}},
		{"wait", "", []string{"send", "--to", "bobby", "--wait", "delivered", "--timeout", "7s", "x"}, map[string]any{"to": "bobby", "payload": "x", "wait": "delivered", "timeout": "7s"}},
		{"ask", "", []string{"send", "--to", "bobby", "--id", "0190aaaa-0000-7000-8000-000000000001", "x"}, map[string]any{"to": "bobby", "payload": "x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := gatemesh(t, []string{"GATEMESH_ADDR=" + strings.TrimPrefix(s.URL, "http://"), "OPENCLAW_GATEWAY_TOKEN=tok"}, c.stdin, c.args...)
			if r.code != exitOK {
				t.Fatalf("status %d: %s", r.code, r.errOut)
			}
			q := <-requests
			if q.method != "POST" || q.path != "/v1/messages" || q.auth != "Bearer tok" || q.contentType != "application/json" {
				t.Errorf("request %+v", q)
			}
			if id, _ := q.body["id"].(string); len(id) != 36 {
				t.Errorf("id %q: want a UUID, so that sending again is safe", id)
			}
			delete(q.body, "id")
			got, _ := json.Marshal(q.body)
			want, _ := json.Marshal(c.want)
			if !bytes.Equal(got, want) {
				t.Errorf("body\n %s, want\n %s", got, want)
			}
		})
	}
}
