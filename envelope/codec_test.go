package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// holder stands for whatever carries envelopes in the store.
type holder struct {
	Note string    `json:"note"`
	List []*Sealed `json:"list"`
	One  Sealed    `json:"one"`
}

// checkSealed holds what must be true of every Sealed.
func checkSealed(t failer, s *Sealed) {
	t.Helper()
	b := s.Canonical()
	var tight bytes.Buffer
	if err := json.Compact(&tight, b); err != nil || !bytes.Equal(tight.Bytes(), b) {
		t.Fatalf("canonical bytes are not compact JSON (%v): %s", err, b)
	}
	if len(b) > MaxEncoded {
		t.Fatalf("%d bytes", len(b))
	}
	d, err := Decode(b)
	if err != nil {
		t.Fatalf("canonical bytes are refused: %v: %s", err, b)
	}
	if !reflect.DeepEqual(d, s) {
		t.Fatalf("decoded again\n%+v\nis not\n%+v", d, s)
	}
	out, err := Encode(holder{Note: "<", List: []*Sealed{s, nil, s}, One: *s})
	if err != nil {
		t.Fatalf("cannot be held: %v", err)
	}
	if want := fmt.Sprintf(`{"note":"<","list":[%s,null,%s],"one":%s}`, b, b, b); string(out) != want {
		t.Fatalf("held bytes changed\n got %s\nwant %s", out, want)
	}
	var in holder
	if err := json.Unmarshal(out, &in); err != nil {
		t.Fatalf("cannot be read back: %v", err)
	}
	if in.List[1] != nil || !reflect.DeepEqual(in.List[0], s) || !reflect.DeepEqual(&in.One, s) {
		t.Fatalf("read back %+v", in)
	}
}

func TestSealThenDecode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, err := Seal(wildEnvelope().Draw(t, "envelope"))
		if err != nil {
			if s != nil || !errors.Is(err, ErrInvalid) {
				t.Fatalf("refused with %v, %v", s, err)
			}
			return
		}
		// Compare moments as the wire has them.
		s.CreatedAt = At(s.CreatedAt.Time)
		if s.Budget != nil && s.Budget.Deadline != nil {
			s.Budget.Deadline = ptr(At(s.Budget.Deadline.Time))
		}
		if s.Task != nil && s.Task.NotBefore != nil {
			s.Task.NotBefore = ptr(At(s.Task.NotBefore.Time))
		}
		checkSealed(t, s)
	})
}

func TestSealPayload(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for in, want := range map[string]string{
		`null`:                                `null`,
		` { "a b" : [ 1 , "\" , " ] }` + "\n": `{"a b":[1,"\" , "]}`,
		"\t\"x\\\\\" ":                        `"x\\"`,
		`{"b":1.50,"a":1e3,"a":-0}`:           `{"b":1.50,"a":1e3,"a":-0}`,
		"\"<\u2028>\"":                        "\"<\u2028>\"",
		deep(maxDepth - 1):                    deep(maxDepth - 1),
		// not JSON, or not ours
		``: "", ` `: "", `{`: "", `1 2`: "", `1,"ttl":5`: "", `01`: "", `NaN`: "", `"open`: "", `"\"`: "", `"a` + "\n" + `"`: "", "\"\xff\"": "", `}{`: "", `"\x"`: "",
		deep(maxDepth): "", strings.Repeat("[", 50_000): "", ` ` + strings.Repeat("[", 50_000): "",
	} {
		e := minimal()
		e.Payload = json.RawMessage(in)
		s, err := Seal(e)
		if want == "" {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "payload") || s != nil {
				t.Errorf("payload %.60q: got %v, %v", in, s, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("payload %.60q: %v", in, err)
			continue
		}
		if string(s.Payload) != want || !bytes.Contains(s.Canonical(), []byte(`"payload":`+want+`,`)) {
			t.Errorf("payload %.60q became %.60q in %.600s", in, s.Payload, s.Canonical())
		}
		if string(e.Payload) != in {
			t.Errorf("Seal changed its caller's payload to %.60q", e.Payload)
		}
		checkSealed(t, s)
	}
}

// TestLargestEnvelope: every field at its limit still fits, in the worst spelling.
func TestLargestEnvelope(t *testing.T) {
	e := full()
	name := strings.Repeat("n", 63)
	label := strings.Repeat("\u2028", maxLabel) // six bytes each
	e.SourceGateway, e.SourceAgent, e.TargetGateway, e.TargetAgent, e.ReplyTo = name, name, name, name, name
	e.ConversationID, e.Capability, e.Traceparent = label, label, label
	e.Payload = TextPayload(strings.Repeat("x", MaxPayload-2))
	s := seal(t, e)
	checkSealed(t, s)

	// Fields of a newer minor may fill the rest, and no more.
	b := s.Canonical()
	pad := func(n int) []byte {
		return append(bytes.TrimSuffix(bytes.Clone(b), []byte("}")), fmt.Sprintf(`,"pad":"%s"}`, strings.Repeat("p", n))...)
	}
	room := MaxEncoded - len(pad(0))
	if _, err := Decode(pad(room)); err != nil {
		t.Errorf("%d bytes are refused: %v", len(pad(room)), err)
	}
	if _, err := Decode(pad(room + 1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("%d bytes are taken: %v", len(pad(room+1)), err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := string(seal(t, full()).Canonical())
	// with replaces old, which must be there once.
	with := func(old, repl string) string {
		if strings.Count(good, old) != 1 {
			t.Fatalf("%q stands %d times in %s", old, strings.Count(good, old), good)
		}
		return strings.Replace(good, old, repl, 1)
	}
	extra := func(fields string) string { return strings.TrimSuffix(good, "}") + "," + fields + "}" }
	many := func(n int) string {
		var f []string
		for i := range n {
			f = append(f, fmt.Sprintf(`"x%d":%d`, i, i))
		}
		return strings.Join(f, ",")
	}
	for what, c := range map[string]struct{ in, want string }{
		"as it is":                          {good, ""},
		"unknown field":                     {extra(`"x":{"A b":null,"A b":""}`), ""},
		"unknown field of budget":           {with(`"usd":0.25`, `"usd":0.25,"eur":0.2`), ""},
		"as many keys as allowed":           {extra(many(maxKeys - 21)), ""},
		"one key too many":                  {extra(many(maxKeys - 17)), "more than 32 keys"},
		"too many keys in budget":           {with(`"usd":0.25`, `"usd":0.25,`+many(maxKeys-3)), "more than 32 keys"},
		"space first":                       {" " + good, "white space"},
		"newline last":                      {good + "\n", "white space"},
		"tab after a key":                   {with(`"ttl":`, "\"ttl\":\t"), "white space"},
		"carriage return in the payload":    {with(`"limit":1.50`, "\"limit\":\r1.50"), "white space"},
		"key twice":                         {extra(`"ttl":1`), "twice"},
		"payload twice":                     {extra(`"payload":1`), "twice"},
		"unknown key twice":                 {extra(`"x":1,"x":1`), "twice"},
		"key of budget twice":               {with(`"usd":0.25`, `"usd":0.25,"usd":100`), "twice"},
		"key of budget twice, behind array": {with(`"usd":0.25`, `"x":[{"usd":1}],"usd":0.25,"usd":100`), "twice"},
		"upper-case key":                    {extra(`"TTL":1`), "key"},
		"upper-case key of budget":          {with(`"usd":0.25`, `"usd":0.25,"USD":100`), "key"},
		"key that Go folds into ttl's":      {extra(`"me` + "\u017f\u017f" + `age_id":"` + idC + `"`), "key"},
		"key with the Kelvin sign":          {extra("\"\u212a\":1"), "key"},
		"escaped key":                       {extra(`"\u0074tl":1`), "key"},
		"empty key":                         {extra(`"":1`), "key"},
		"null":                              {extra(`"x":null`), "leave it out"},
		"null for a known field":            {with(`"terminal":true`, `"terminal":null`), "leave it out"},
		"empty string":                      {with(`"reply_to":"jerry"`, `"reply_to":""`), "leave it out"},
		"null in budget":                    {with(`"usd":0.25`, `"usd":null`), "leave it out"},
		"null payload of budget":            {with(`"usd":0.25`, `"payload":null`), "leave it out"},
		"too deep":                          {with(`"limit":1.50`, `"limit":`+strings.Repeat("[", maxDepth-1)+strings.Repeat("]", maxDepth-1)), "deep"},
		"deepest":                           {with(`"limit":1.50`, `"limit":`+strings.Repeat("[", maxDepth-2)+strings.Repeat("]", maxDepth-2)), ""},
		"not UTF-8 in the payload":          {with(`"nomad"`, "\"\xff\""), "UTF-8"},
		"not UTF-8 in an unknown field":     {extra("\"x\":\"\xff\""), "UTF-8"},
		"two values":                        {good + "{}", "invalid"},
		"comma last":                        {extra(""), "invalid"},
		"cut short":                         {good[:len(good)-1], "invalid"},
		"cut in a string":                   {good[:10], "invalid"},
		"nothing":                           {"", "invalid"},
		"null instead":                      {"null", "schema_version"},
		"array instead":                     {"[" + good + "]", "invalid"},
		"string instead":                    {`"x"`, "invalid"},
		"closed before it is open":          {`{}"a":1`, "invalid"},
		"closed twice":                      {`{"budget":{}}}}"a":1,"b":2`, "invalid"},
		"fraction for an integer":           {with(`"max_hops":4`, `"max_hops":4.0`), "max_hops"},
		"string for an integer":             {with(`"ttl":60000`, `"ttl":"60000"`), "ttl"},
		"array for budget":                  {with(`{"messages":12,"tokens":50000,"usd":0.25,"deadline":"2026-02-03T12:01:00.000Z"}`, `["a","a"]`), "invalid"},
		"half of a surrogate pair":          {with(`"conversation_id":"ops"`, `"conversation_id":"\ud800"`), "conversation_id"},
	} {
		s, err := Decode([]byte(c.in))
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			} else if string(s.Canonical()) != c.in {
				t.Errorf("%s: the bytes changed: %s", what, s.Canonical())
			}
			continue
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) || s != nil {
			t.Errorf("%s: got %v, %v, want an ErrInvalid with %q", what, s, err, c.want)
		}
		if errors.As(err, new(*VersionError)) {
			t.Errorf("%s: refused for its version: %v", what, err)
		}
	}
}

// TestDecodeKeepsItsOwnBytes: the caller may use its buffer again.
func TestDecodeKeepsItsOwnBytes(t *testing.T) {
	want := seal(t, full())
	buf := bytes.Clone(want.Canonical())
	s, err := Decode(buf)
	if err != nil {
		t.Fatal(err)
	}
	for i := range buf {
		buf[i] = 'x'
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("changed with the caller's buffer: %s, %s", s.Canonical(), s.Payload)
	}
}

func TestStringEnd(t *testing.T) {
	for in, want := range map[string]int{
		`""`: 1, `"a"b"`: 2, `"\""`: 3, `"\\"x"`: 3, `"\\\""`: 5, `"\\\\"`: 5, `"`: 1, `"abc`: 4, `"\"`: 3, `"\\\"`: 5,
	} {
		if got := stringEnd([]byte(in), 0); got != want {
			t.Errorf("stringEnd(%s) = %d, want %d", in, got, want)
		}
	}
	if got := stringEnd([]byte(`\"\"" `), 1); got != 4 { // the first quote opens, whatever stands before it
		t.Errorf("stringEnd behind a backslash = %d, want 4", got)
	}
}

func TestUnsealedIsNotWritten(t *testing.T) {
	if b, err := Encode(Sealed{Envelope: full()}); err == nil {
		t.Errorf("wrote %s", b)
	}
	if b, err := json.Marshal(struct{ S *Sealed }{}); err != nil || string(b) != `{"S":null}` {
		t.Errorf("nil is written %s, %v", b, err)
	}
	s := *seal(t, minimal())
	if err := json.Unmarshal([]byte(`{"schema_version":"2.0"}`), &s); !errors.As(err, new(*VersionError)) {
		t.Errorf("got %v", err)
	}
	if !reflect.DeepEqual(&s, seal(t, minimal())) {
		t.Error("a refused read changed its target")
	}
}

func TestEncode(t *testing.T) {
	b, err := Encode(map[string]string{"a": "<&>\n"})
	if err != nil || string(b) != `{"a":"<&>\n"}` {
		t.Errorf("Encode = %s, %v", b, err)
	}
	if _, err := Encode(func() {}); err == nil || errors.Is(err, ErrInvalid) {
		t.Errorf("Encode of a function: %v", err)
	}
}
