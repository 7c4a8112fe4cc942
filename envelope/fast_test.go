package envelope

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
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

// TestOrderedDecodeAgrees: whatever is read without another look at its form is canonical, and the long way reads it alike.
func TestOrderedDecodeAgrees(t *testing.T) {
	texts := [][]byte{}
	for _, b := range fastSamples(t) {
		s, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		e := s.Envelope
		e.Payload, e.PayloadSize, e.PayloadSHA256, e.Budget, e.Task, e.Encryption, e.SchemaVersion = TextPayload("plain text"), 0, "", nil, nil, nil, Version
		texts = append(texts, b, seal(t, e).Canonical())
	}
	took, refused := 0, 0
	check := func(b []byte) {
		t.Helper()
		var ordered, slow Envelope
		if !ordered.decodeOrdered(b) {
			refused++
			return
		}
		took++
		if !utf8.Valid(b) {
			t.Fatalf("taken, and not UTF-8: %q", b)
		}
		if err := checkCanonical(b); err != nil {
			t.Fatalf("taken, and not canonical (%v): %s", err, b)
		}
		if err := json.Unmarshal(b, &slow); err != nil {
			t.Fatalf("taken, and JSON refuses it (%v): %s", err, b)
		}
		if !reflect.DeepEqual(ordered, slow) {
			t.Fatalf("read differently:\n%+v\n%+v\n%s", ordered, slow, b)
		}
	}
	pieces := []string{`"`, `,`, `:`, `{`, `}`, `\`, ` `, `null`, `1`, `0`, `9`, `true`, "\xff", `""`, `,"ttl":1`, `,"ttl":1e3`, `,"terminal":false`, `,"payload":"x"`, `]`, `é`}
	for _, b := range texts {
		check(b)
		for i := 0; i <= len(b); i++ {
			for _, p := range pieces {
				check([]byte(string(b[:i]) + p + string(b[i:])))
				check([]byte(string(b[:i]) + p + string(b[min(len(b), i+len(p)):])))
			}
			check(b[:i])
		}
	}
	if took < 1000 || refused < 1000 {
		t.Errorf("taken %d times, refused %d times: the samples do not test it", took, refused)
	}
	for _, bad := range []string{"2026-02-30T10:00:00.000Z", "2026-13-01T10:00:00.000Z", "2026-00-10T10:00:00.000Z", "2026-01-10T24:00:00.000Z", "2026-01-10T10:60:00.000Z", "2026-01-10T10:00:60.000Z"} {
		if _, ok := parseTime([]byte(bad)); ok {
			t.Errorf("%s was taken for a moment", bad)
		}
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
			fast, ok := e.appendJSON(nil, false)
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
	if _, ok := e.appendJSON(nil, false); !ok || !plainString([]byte(`"`+strings.Repeat("x", 9)+`"`)) || plainString([]byte(`"`)) || goodPayload([]byte(`{"a":}`)) {
		t.Error("what is not checked may not go the short way")
	}
}
