package gateway

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// FuzzCaller: whatever a client gives for a token, and however, it comes in only with one, and is else refused in one line that
// shows nothing of it.
func FuzzCaller(f *testing.F) {
	c, token := tokenOf(f, "ci", "send")
	cfg := withTokens(f, c)
	cfg.Gateway.Auth.RateLimit.MaxAttempts = 1 << 30
	coded := StreamTokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(token))
	for _, s := range [][2]string{
		{"Bearer " + token, ""}, {"bearer  " + token + " ", ""}, {"", StreamProtocol + ", " + coded}, {"Bearer x", coded}, {"", coded + "="}, {"", coded[:len(coded)-1] + "\n" + coded[len(coded)-1:]}, {"", coded[:len(coded)-1] + "R"}, {"", coded[:len(coded)-1] + "S"},
		{"Bearer", ""}, {"Bearer " + token[:20], ""}, {"Basic " + token, ""}, {"Bearer " + token + "\x00", ""}, {"", StreamTokenPrefix}, {"", ",,"},
	} {
		f.Add(s[0], s[1])
	}
	g := &Gateway{}
	g.guard.Store(newGuard(cfg.Gateway))
	f.Fuzz(func(t *testing.T, authorization, protocols string) {
		r := httptest.NewRequest(http.MethodGet, "/v1/events", nil)
		r.Header["Authorization"], r.Header["Sec-Websocket-Protocol"] = []string{authorization}, []string{protocols}
		who, err := g.admit(r, roleSend)
		if err == nil && !strings.Contains(authorization, token) && !strings.Contains(protocols, coded) {
			t.Fatalf("%q, %q came in as %+v", authorization, protocols, who)
		}
		if err != nil && (err.status != http.StatusUnauthorized || strings.ContainsAny(err.Message, "\r\n")) {
			t.Fatalf("%q, %q: %+v", authorization, protocols, err)
		}
		if _, err := g.admit(r, roleOperate); err == nil {
			t.Fatalf("%q, %q may operate", authorization, protocols)
		}
	})
}

// BenchmarkAdmit is what the check of a token costs a request, with ten of them.
func BenchmarkAdmit(b *testing.B) {
	var tokens []TokenConfig
	var last string
	for _, name := range strings.Split("abcdefghij", "") {
		c, token := tokenOf(b, name, "read")
		tokens, last = append(tokens, c), token
	}
	g := &Gateway{}
	g.guard.Store(newGuard(withTokens(b, tokens...).Gateway))
	r := httptest.NewRequest(http.MethodGet, "/v1/status", nil)
	r.Header.Set("Authorization", "Bearer "+last)
	for b.Loop() {
		if _, err := g.admit(r, roleRead); err != nil {
			b.Fatal(err)
		}
	}
}
