package slack

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/gateway"
)

// Slack speaks HTTP/2, where a request's head leaves before its body is read: without the body, which has the token and the
// text, nothing is posted.
func TestGateOverHTTP2(t *testing.T) {
	var posted atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("HTTP/%d", r.ProtoMajor)
		}
		if err := r.ParseForm(); err != nil || r.Form.Get("text") == "" {
			return
		}
		fmt.Fprintf(w, `{"ok":true,"channel":"C1","ts":"1.00000%d"}`, posted.Add(1))
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	b := newBot(t, json.RawMessage(`{"appToken":"xapp-a","botToken":"xoxb-b","apiUrl":"`+srv.URL+`"}`), quick())
	b.http.Transport.(*http.Transport).TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	deposed := errors.New("deposed")
	for _, allowed := range []bool{true, false, true} {
		checks := 0
		_, err := b.Post(within(t), gateway.Post{ID: "p", To: general, Text: "x", Check: func() error {
			checks++
			if allowed {
				return nil
			}
			return deposed
		}})
		switch {
		case checks != 1:
			t.Errorf("checked %d times", checks)
		case allowed && err != nil:
			t.Error(err)
		case !allowed && (outcome(err) != "not sent, after 0s" || !errors.Is(err, deposed)):
			t.Errorf("%v", err)
		}
	}
	if n := posted.Load(); n != 2 {
		t.Errorf("%d posts", n)
	}
}

// A WebSocket over TLS is HTTP/1.1, also with a server that would rather speak HTTP/2.
func TestSocketOverTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		if err := ws.Write(r.Context(), websocket.MessageText, []byte(`{"type":"hello","num_connections":1}`)); err != nil {
			t.Error(err)
		}
		_, _, _ = ws.Read(r.Context()) // the goodbye
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	b := newBot(t, json.RawMessage(`{"appToken":"xapp-a","botToken":"xoxb-b"}`), quick())
	b.http.Transport.(*http.Transport).TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	r := &run{account: b.account}
	s, err := r.dial(within(t), "wss"+strings.TrimPrefix(srv.URL, "https")+"/link/?ticket=x")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.helloed:
	case <-within(t).Done():
		t.Error("no hello")
	}
	s.close()
	r.readers.Wait()
}
