package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestSealClaim(t *testing.T) {
	e := minimal()
	e.Payload = json.RawMessage(` {"text": "` + strings.Repeat("x", MaxPayload) + `"} `)
	s, stored, err := SealClaim(e)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Claimed() || len(s.Text()) != MaxPayload || len(s.Canonical()) > 1024 {
		t.Errorf("claimed %t, text of %d bytes, %d canonical bytes", s.Claimed(), len(s.Text()), len(s.Canonical()))
	}
	got, err := Decode(s.Canonical())
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Payload) != "null" {
		t.Errorf("payload on the wire: %.40s", got.Payload)
	}
	full, err := got.WithPayload(stored)
	if err != nil || string(full.Payload) != string(s.Payload) || !bytes.Equal(full.Canonical(), s.Canonical()) {
		t.Errorf("WithPayload: %v", err)
	}
	torn := stored[:len(stored)-1]
	changed := append(json.RawMessage(nil), stored...)
	changed[20] ^= 1
	for name, p := range map[string]json.RawMessage{"torn": torn, "changed": changed, "empty": nil} {
		if _, err := got.WithPayload(p); !errors.Is(err, ErrPayloadMismatch) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e.Payload = json.RawMessage(`"` + strings.Repeat("x", MaxClaim) + `"`)
	if _, _, err := SealClaim(e); !errors.Is(err, ErrInvalid) {
		t.Errorf("too large: %v", err)
	}
	e.Payload = json.RawMessage(`{`)
	if _, _, err := SealClaim(e); !errors.Is(err, ErrInvalid) {
		t.Errorf("no JSON: %v", err)
	}
}

func TestHeader(t *testing.T) {
	s := seal(t, full())
	h := s.Header()
	if h.Key() != s.Key() || h.ConversationID != s.ConversationID || h.TTL != s.TTL || len(h.Payload) != 0 || len(h.Canonical()) != 0 {
		t.Errorf("header is %+v", h)
	}
}
