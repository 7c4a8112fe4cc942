package envelope

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func fastSamples(tb testing.TB) [][]byte {
	var all [][]byte
	for _, path := range slices.Concat(goldenFiles(tb, "v1.0"), goldenFiles(tb, "v1.1"), goldenFiles(tb, "v2.0-encrypted")) {
		all = append(all, wire(tb, path))
	}
	return all
}

// TestFastDecodeAgrees: whatever the short way reads, encoding/json reads alike.
func TestFastDecodeAgrees(t *testing.T) {
	took := 0
	check := func(b []byte) {
		t.Helper()
		var fast, slow Envelope
		if !fast.decodeFast(b) {
			return
		}
		took++
		if checkCanonical(b) != nil {
			return // refused before either way
		}
		if err := json.Unmarshal(b, &slow); err != nil {
			t.Fatalf("the short way reads what JSON refuses (%v): %s", err, b)
		}
		if !reflect.DeepEqual(fast, slow) {
			t.Fatalf("read differently:\n%+v\n%+v\n%s", fast, slow, b)
		}
	}
	pieces := []string{`"`, `,`, `:`, `{`, `}`, `\`, `null`, `1`, `0`, `true`, "\xff", `""`, `,"ttl":1`, `,"ttl":1e3`, `,"terminal":false`, `]`}
	for _, b := range fastSamples(t) {
		check(b)
		for i := 0; i <= len(b); i++ {
			for _, p := range pieces {
				check([]byte(string(b[:i]) + p + string(b[i:])))
				check([]byte(string(b[:i]) + p + string(b[min(len(b), i+len(p)):])))
			}
		}
	}
	if took < 100 {
		t.Errorf("the short way was taken %d times only: the samples do not test it", took)
	}
}

// TestFastEncodeAgrees: whatever the short way writes, encoding/json writes alike.
func TestFastEncodeAgrees(t *testing.T) {
	took := 0
	for _, b := range fastSamples(t) {
		s, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, conv := range []string{s.ConversationID, "<&>", "quote\"", "back\\slash", "é", "plain"} {
			e := s.Envelope
			e.ConversationID = conv
			fast, ok := e.appendJSON(nil)
			if !ok {
				continue
			}
			took++
			slow, err := Encode(&e)
			if err != nil || !bytes.Equal(fast, slow) {
				t.Errorf("written differently (%v):\n%s\n%s", err, fast, slow)
			}
		}
	}
	if took == 0 {
		t.Error("the short way was never taken")
	}
	e := Envelope{ConversationID: "c", Payload: json.RawMessage(`{"a":1}`)}
	if _, ok := e.appendJSON(nil); !ok || !plainString([]byte(`"`+strings.Repeat("x", 9)+`"`)) || plainString([]byte(`"`)) || goodPayload([]byte(`{"a":}`)) {
		t.Error("what is not checked may not go the short way")
	}
}
