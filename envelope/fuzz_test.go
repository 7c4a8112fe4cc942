package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

// FuzzDecode: whatever is read is canonical, keeps its bytes wherever it is held, means
// the same when sealed anew, and fits the schema.
func FuzzDecode(f *testing.F) {
	for _, version := range []string{"v1.0", "v1.1", "v2.0", "v2.0-encrypted"} {
		for _, path := range goldenFiles(f, version) {
			f.Add(wire(f, path))
		}
	}
	f.Add([]byte(`{}"a":1`))
	f.Add([]byte(`{"budget":{"usd":1,"USD":2}}`))
	f.Add([]byte(`{"task":{"priority":1,"priority":2}}`))
	f.Add([]byte(`{"encryption":{"suite":"a","suite":"b"}}`))
	schema := compileSchema(f, "")
	f.Fuzz(func(t *testing.T, b []byte) { checkDecode(t, schema, b) })
}

// TestDecodeMutated is FuzzDecode's little brother for every day: golden files with
// pieces of JSON put in, doubled or cut out.
func TestDecodeMutated(t *testing.T) {
	pieces := []string{
		`{`, `}`, `[`, `]`, `,`, `:`, `"`, `\`, `\"`, ` `, "\n", `null`, `""`, `0`, `-`, `e9`, `.5`, `true`, "\xff", "\u2028", "\u017f", `K`,
		`"x":1,`, `"ttl":1,`, `"budget":{},`, `"task":{},`, `"task":{"priority":1,"priority":2},`, `"budget":{"usd":1,"usd":2},`, `"x":{"a":1,"a":2},`, `"encryption":{},`, `"suite":"a",`, `"a/0123456789abcdef/AA",`, `{"payload":null,`, `\u0000`, `\ud800`,
	}
	schema := compileSchema(t, "")
	files := map[string]string{}
	for _, version := range []string{"v1.0", "v1.1", "v2.0", "v2.0-encrypted"} {
		for _, path := range goldenFiles(t, version) {
			files[path] = string(wire(t, path))
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := files[rapid.SampledFrom(slices.Sorted(maps.Keys(files))).Draw(t, "file")]
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			at := rapid.IntRange(0, len(b)).Draw(t, "at")
			to := min(len(b), at+rapid.IntRange(0, 20).Draw(t, "length"))
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				b = b[:at] + rapid.SampledFrom(pieces).Draw(t, "piece") + b[at:]
			case 1:
				b = b[:at] + b[to:]
			case 2:
				b = b[:to] + b[at:]
			}
		}
		checkDecode(t, schema, []byte(b))
	})
}

func checkDecode(t failer, schema *jsonschema.Schema, b []byte) {
	t.Helper()
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
	checkKeys(t, b, "budget")
	checkKeys(t, b, "task")
	checkKeys(t, b, "encryption")
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
}

// checkKeys looks for keys that some reader could take for one another, with
// another parser than Decode's. Inner names the field whose object is looked into too.
func checkKeys(t failer, b []byte, inner string) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	if _, err := dec.Token(); err != nil {
		t.Fatalf("%v", err)
	}
	var keys []string
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			t.Fatalf("%v", err)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			t.Fatalf("%v", err)
		}
		key := tok.(string)
		for _, k := range keys {
			if strings.EqualFold(k, key) {
				t.Fatalf("keys %q and %q", k, key)
			}
		}
		keys = append(keys, key)
		if key == inner {
			checkKeys(t, value, "")
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
