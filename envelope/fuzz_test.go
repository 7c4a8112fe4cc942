package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// FuzzDecode: whatever is read is canonical, keeps its bytes wherever it is held, means
// the same when sealed anew, and fits the schema.
func FuzzDecode(f *testing.F) {
	for _, version := range []string{"v1.0", "v2.0"} {
		for _, path := range goldenFiles(f, version) {
			f.Add(wire(f, path))
		}
	}
	f.Add([]byte(`{}"a":1`))
	f.Add([]byte(`{"budget":{"usd":1,"USD":2}}`))
	schema := compileSchema(f, "")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			if s != nil || !errors.Is(err, ErrInvalid) {
				t.Fatalf("refused with %v, %v", s, err)
			}
			return
		}
		if !bytes.Equal(s.Canonical(), b) {
			t.Fatalf("canonical bytes\n%s\nare not\n%s", s.Canonical(), b)
		}
		checkSealed(t, s)
		checkKeys(t, b)
		if err := schemaErr(t, schema, b); err != nil {
			t.Fatalf("the schema refuses it: %v", err)
		}
		again, err := Seal(s.Envelope)
		if err != nil {
			t.Fatalf("cannot be sealed anew: %v", err)
		}
		checkSealed(t, again)
		if !reflect.DeepEqual(again.Envelope, s.Envelope) {
			t.Fatalf("sealed anew it is\n%+v\nnot\n%+v", again.Envelope, s.Envelope)
		}
	})
}

// checkKeys looks for keys that some reader could take for one another, with
// another parser than Decode's.
func checkKeys(t *testing.T, b []byte) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			t.Fatal(err)
		}
		key := tok.(string)
		for _, k := range keys {
			if strings.EqualFold(k, key) {
				t.Fatalf("keys %q and %q", k, key)
			}
		}
		keys = append(keys, key)
		if key == "budget" {
			checkKeys(t, value)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"bobby", "bobby@gw-2", "", "@", "a@", "@b", "a@b@c", "A", "é@b", strings.Repeat("a", 64)} {
		f.Add(s)
	}
	for _, e := range golden() {
		f.Add(e.TargetAgent + "@" + e.TargetGateway)
		f.Add(e.SourceAgent + "@" + e.SourceGateway)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			if a != (Address{}) {
				t.Fatalf("refused, but gave %+v", a)
			}
			return
		}
		if a.String() != s || !ValidName(a.Agent) || a.Gateway != "" && !ValidName(a.Gateway) {
			t.Fatalf("%q became %+v", s, a)
		}
		if again, err := ParseAddress(a.String()); err != nil || again != a {
			t.Fatalf("%q became %+v, then %+v (%v)", s, a, again, err)
		}
	})
}
