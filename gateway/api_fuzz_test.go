package gateway

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
)

// FuzzBody: whatever a client posts, it is read, or refused with one clear line and a 4xx; and a message that
// is made of it keeps within the limits.
func FuzzBody(f *testing.F) {
	for _, s := range []string{
		`{"to":"bobby","text":"hello"}`,
		`{"to":"bobby@jerry-gateway","payload":{"a":[1,2]},"ttl":"90s","max_hops":3,"budget":{"usd":0.5},"wait":"replied","timeout":"2s"}`,
		`{"to":"bobby","text":"x","ack_timeout":"1s","retry_delay":"-1s"}`,
		`{"to":"jobs","text":"x","priority":9,"delay":"10m","unique_key":"backup db1","unique_for":"24h"}`,
		`{"to":"jobs","text":"x","priority":0,"not_before":"2026-01-31T06:00:00+02:00"}`,
		`{"to":"jobs","text":"x","priority":-1,"not_before":"0000-01-01T00:00:00Z","delay":"0"}`,
		`{"to":5}`, `{"bogus":1}`, `{`, ``, `null`, `[]`, `{} {}`, `{"to":"a","text":"\ud800"}`, "{\"to\":\"a\",\"id\":\"\n\"}",
	} {
		f.Add([]byte(s))
	}
	g := &Gateway{}
	g.settings.Store(&settings{ttl: time.Minute, maxTTL: time.Hour, maxPayload: 1 << 20})
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/v1/messages", strings.NewReader(string(body)))
		r.Header.Set("Content-Type", "application/json")
		var req SendRequest
		err := decodeBody(r, &req)
		if err == nil {
			_, err = parseWaiting(req.Wait, req.Timeout)
		}
		if err == nil {
			out, oerr := g.outgoing(&req, r)
			if err = oerr; err == nil && (out.To.Agent == "" || len(out.Payload) == 0 || out.TTL <= 0 || out.TTL > time.Hour || out.AckTimeout < 0 || out.RetryDelay < 0) {
				t.Errorf("%q became %+v", body, out)
			}
			if task := out.Task; err == nil && task != nil && (task.Priority != nil && (*task.Priority < 0 || *task.Priority > envelope.MaxPriority) ||
				task.NotBefore != nil && time.Until(task.NotBefore.Time) > envelope.MaxDelay || task.UniqueFor < 0 || task.UniqueFor > 0 && task.UniqueKey == "") {
				t.Errorf("%q became the task %+v", body, task)
			}
		}
		if err == nil {
			return
		}
		var e *APIError
		if !errors.As(err, &e) || e.status < 400 || e.status > 499 || e.Message == "" || strings.ContainsAny(e.Message, "\n\r") {
			t.Errorf("%q: refused with %#v", body, err)
		}
	})
}
