package envelope

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", maxLabel)
	for _, c := range []struct {
		what   string
		change func(*Envelope)
		want   string // "" is valid, else what the error names
	}{
		{"minimal", func(*Envelope) {}, ""},
		{"full", func(e *Envelope) { *e = full() }, ""},
		{"newer minor", func(e *Envelope) { e.SchemaVersion = "1.9999" }, ""},
		{"no version", func(e *Envelope) { e.SchemaVersion = "" }, "schema_version"},
		{"half a version", func(e *Envelope) { e.SchemaVersion = "1" }, "schema_version"},
		{"leading zero", func(e *Envelope) { e.SchemaVersion = "1.01" }, "schema_version"},
		{"patch version", func(e *Envelope) { e.SchemaVersion = "1.0.0" }, "schema_version"},
		{"endless minor", func(e *Envelope) { e.SchemaVersion = "1.12345" }, "schema_version"},
		{"older major", func(e *Envelope) { e.SchemaVersion = "0.9" }, "upgrade"},
		{"newer major", func(e *Envelope) { e.SchemaVersion = "11.0" }, "upgrade"},
		{"no message_id", func(e *Envelope) { e.MessageID = "" }, "message_id"},
		{"upper-case message_id", func(e *Envelope) { e.MessageID = strings.ToUpper(idA) }, "message_id"},
		{"one upper-case digit", func(e *Envelope) { e.MessageID = idA[:35] + "F" }, "message_id"},
		{"no correlation_id", func(e *Envelope) { e.CorrelationID = "" }, "correlation_id"},
		{"in_reply_to in braces", func(e *Envelope) { e.InReplyTo = "{" + idA[1:35] + "}" }, "in_reply_to"},
		{"no source_gateway", func(e *Envelope) { e.SourceGateway = "" }, "source_gateway"},
		{"no source_agent", func(e *Envelope) { e.SourceAgent = "" }, "source_agent"},
		{"no target_agent", func(e *Envelope) { e.TargetAgent = "" }, "target_agent"},
		{"path in target_gateway", func(e *Envelope) { e.TargetGateway = "../etc" }, "target_gateway"},
		{"dash first in reply_to", func(e *Envelope) { e.ReplyTo = "-x" }, "reply_to"},
		{"no conversation_id", func(e *Envelope) { e.ConversationID = "" }, "conversation_id"},
		{"longest conversation_id", func(e *Envelope) { e.ConversationID = strings.Repeat("é", maxLabel) }, ""},
		{"too long conversation_id", func(e *Envelope) { e.ConversationID = long + "x" }, "conversation_id"},
		{"too long capability", func(e *Envelope) { e.Capability = long + "x" }, "capability"},
		{"too long traceparent", func(e *Envelope) { e.Traceparent = long + "x" }, "traceparent"},
		{"newline in conversation_id", func(e *Envelope) { e.ConversationID = "a\nb" }, "control"},
		{"DEL in capability", func(e *Envelope) { e.Capability = "\x7f" }, "control"},
		{"NEL in traceparent", func(e *Envelope) { e.Traceparent = "\u0085" }, "control"},
		{"not UTF-8", func(e *Envelope) { e.ConversationID = "a\xffb" }, "UTF-8"},
		{"was not UTF-8", func(e *Envelope) { e.ConversationID = "\ufffd" }, "UTF-8"},
		{"no payload", func(e *Envelope) { e.Payload = nil }, "payload"},
		{"largest payload", func(e *Envelope) { e.Payload = TextPayload(strings.Repeat("x", MaxPayload-2)) }, ""},
		{"too large payload", func(e *Envelope) { e.Payload = TextPayload(strings.Repeat("x", MaxPayload-1)) }, "payload"},
		{"no created_at", func(e *Envelope) { e.CreatedAt = Time{} }, "created_at is missing"},
		{"created_at in 1970", func(e *Envelope) { e.CreatedAt = At(time.Unix(0, 0)) }, "created_at"},
		{"created_at in 3000", func(e *Envelope) { e.CreatedAt = At(time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)) }, "created_at"},
		{"created_at in 2999, by another zone's calendar", func(e *Envelope) {
			e.CreatedAt = Time{time.Date(2999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -2*3600))}
		}, "created_at"},
		{"no ttl", func(e *Envelope) { e.TTL = 0 }, "ttl"},
		{"negative ttl", func(e *Envelope) { e.TTL = -1 }, "ttl"},
		{"longest ttl", func(e *Envelope) { e.TTL = MillisOf(MaxTTL) }, ""},
		{"too long ttl", func(e *Envelope) { e.TTL = MillisOf(MaxTTL) + 1 }, "ttl"},
		{"overflowing ttl", func(e *Envelope) { e.TTL = math.MaxInt64 }, "ttl"},
		{"no max_hops", func(e *Envelope) { e.MaxHops = 0 }, "max_hops"},
		{"most max_hops", func(e *Envelope) { e.MaxHops = MaxHops }, ""},
		{"too many max_hops", func(e *Envelope) { e.MaxHops = MaxHops + 1 }, "max_hops"},
		{"empty budget", func(e *Envelope) { e.Budget = &Budget{} }, ""},
		{"spent budget", func(e *Envelope) {
			e.Budget = &Budget{Messages: ptr(int64(0)), Tokens: ptr(int64(0)), USD: ptr(0.0)}
		}, ""},
		{"negative messages", func(e *Envelope) { e.Budget = &Budget{Messages: ptr(int64(-1))} }, "budget"},
		{"negative tokens", func(e *Envelope) { e.Budget = &Budget{Tokens: ptr(int64(-1))} }, "budget"},
		{"negative usd", func(e *Envelope) { e.Budget = &Budget{USD: ptr(-0.01)} }, "budget"},
		{"usd that is no number", func(e *Envelope) { e.Budget = &Budget{USD: ptr(math.NaN())} }, "budget.usd"},
		{"endless usd", func(e *Envelope) { e.Budget = &Budget{USD: ptr(math.Inf(1))} }, "budget.usd"},
		{"deadline without a value", func(e *Envelope) { e.Budget = &Budget{Deadline: &Time{}} }, "budget.deadline"},
	} {
		e := minimal()
		c.change(&e)
		err := e.Validate()
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.what, err)
			} else if _, err := Seal(e); err != nil {
				t.Errorf("%s: valid, but %v", c.what, err)
			}
			continue
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an ErrInvalid that names %q", c.what, err, c.want)
		}
		if s, err := Seal(e); !errors.Is(err, ErrInvalid) || s != nil {
			t.Errorf("%s: Seal = %v, %v", c.what, s, err)
		}
		var verr *VersionError
		if got := errors.As(err, &verr); got != (c.want == "upgrade") {
			t.Errorf("%s: VersionError: %v", c.what, got)
		}
	}
}

// TestErrorsAreShort: a refusal quotes what was sent, but not all of it.
func TestErrorsAreShort(t *testing.T) {
	flood := strings.Repeat("\xff\x00é", 100_000)
	for _, change := range []func(*Envelope){
		func(e *Envelope) { e.SchemaVersion = flood },
		func(e *Envelope) { e.MessageID = flood },
		func(e *Envelope) { e.TargetAgent = flood },
		func(e *Envelope) { e.Capability = flood },
	} {
		e := minimal()
		change(&e)
		if err := e.Validate(); err == nil || len(err.Error()) > 400 || !utf8.ValidString(err.Error()) {
			t.Errorf("%.500q", err)
		}
	}
	if _, err := ParseAddress(flood); err == nil || len(err.Error()) > 400 {
		t.Errorf("%.500q", err)
	}
}

func TestIsUUID(t *testing.T) {
	for _, s := range []string{idA, NewID(), DerivedID(idA, "x"), "00000000-0000-0000-0000-000000000000", "0123456789abcdef0123"[:8] + "-89ab-cdef-0123-456789abcdef"} {
		if !isUUID(s) {
			t.Errorf("isUUID(%q) = false", s)
		}
	}
	for i := range len(idA) { // each place alone
		for _, c := range []string{"A", "g", "/", ":", "`", "-", "0", "\x00"} {
			s := idA[:i] + c + idA[i+1:]
			want := c == "0" && idA[i] != '-' || c == "-" && idA[i] == '-'
			if isUUID(s) != want {
				t.Errorf("isUUID(%q) = %v", s, !want)
			}
		}
	}
	for _, s := range []string{"", idA[:35], idA + "0", "{" + idA + "}", "urn:uuid:" + idA, strings.ReplaceAll(idA, "-", ""), idA + "\n"} {
		if isUUID(s) {
			t.Errorf("isUUID(%q) = true", s)
		}
	}
}

func TestValidName(t *testing.T) {
	for _, s := range []string{"a", "0", "jerry", "gw-1", "a-", "a--b", strings.Repeat("a", 63)} {
		if !ValidName(s) {
			t.Errorf("ValidName(%q) = false", s)
		}
	}
	for _, s := range []string{"", "-a", "A", "aB", "a_b", "a.b", "a/b", "a b", "a\n", "a@b", "é", "a\x00", "`", "{", ":", strings.Repeat("a", 64)} {
		if ValidName(s) {
			t.Errorf("ValidName(%q) = true", s)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for s, want := range map[string]Address{
		"bobby":      {Agent: "bobby"},
		"bobby@gw-2": {Agent: "bobby", Gateway: "gw-2"},
	} {
		got, err := ParseAddress(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("ParseAddress(%q) = %+v (%s), %v", s, got, got, err)
		}
	}
	for _, s := range []string{"", "@", "bobby@", "@gw", "a@b@c", "Bobby", "bobby@GW", " bobby", "bobby@gw\n"} {
		if got, err := ParseAddress(s); err == nil || got != (Address{}) {
			t.Errorf("ParseAddress(%q) = %+v, %v", s, got, err)
		}
	}
}

func TestIDs(t *testing.T) {
	if a, b := NewID(), NewID(); a == b || a[14] != '7' || !isUUID(a) {
		t.Errorf("NewID gave %s and %s", a, b)
	}
	// Frozen: another value would ask every pending question a second time.
	if got, want := DerivedID(idA, "ask/1"), "ea9e93eb-1bc8-54ec-882e-91066de64b5f"; got != want {
		t.Errorf("DerivedID = %s, want %s", got, want)
	}
	seen := map[string][2]string{}
	for _, parent := range []string{idA, idB, "", "no uuid", "no uuid either"} {
		for _, name := range []string{"", "ask/1", "ask/2", "ask/1 "} {
			id := DerivedID(parent, name)
			if other, ok := seen[id]; ok || !isUUID(id) {
				t.Errorf("%s is derived from %q and from %q", id, other, [2]string{parent, name})
			}
			seen[id] = [2]string{parent, name}
			if again := DerivedID(parent, name); again != id {
				t.Errorf("DerivedID(%q, %q) = %s, then %s", parent, name, id, again)
			}
		}
	}
	e := minimal()
	if got := e.Key(); got != (MessageKey{"gw-jerry", idA}) {
		t.Errorf("Key = %+v", got)
	}
}

func TestTime(t *testing.T) {
	zone := time.FixedZone("", 2*3600)
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{noon, `"2026-02-03T12:00:00.000Z"`},
		{noon.Add(999_999_999), `"2026-02-03T12:00:00.999Z"`},
		{noon.Add(-1), `"2026-02-03T11:59:59.999Z"`},
		{noon.In(zone), `"2026-02-03T12:00:00.000Z"`},
		{time.Unix(-1, 999_999_999), `"1969-12-31T23:59:59.999Z"`},
	} {
		for _, v := range []Time{At(c.at), {c.at}} { // rounded or not, the wire is the same
			b, err := v.MarshalJSON()
			if err != nil || string(b) != c.want {
				t.Errorf("%v is written %s (%v), want %s", c.at, b, err, c.want)
			}
			var back Time
			if err := json.Unmarshal(b, &back); err != nil || back != At(c.at) {
				t.Errorf("%s is read %v (%v), want %v", b, back, err, At(c.at))
			}
		}
	}
	if now := time.Now(); At(now) != At(now.Round(0)) {
		t.Error("At keeps the monotonic clock")
	}
	for _, y := range []int{-1, 10_000} {
		if b, err := (Time{time.Date(y, 6, 1, 0, 0, 0, 0, time.UTC)}).MarshalJSON(); err == nil {
			t.Errorf("year %d is written %s", y, b)
		}
	}
	// Still 9999 by its own calendar, no longer by ours.
	if b, err := (Time{time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -2*3600))}).MarshalJSON(); err == nil {
		t.Errorf("written %s", b)
	}
	for _, s := range []string{`"2026-02-03T12:00:00Z"`, `"2026-02-03T12:00:00.000999999999Z"`} {
		var got Time
		if err := json.Unmarshal([]byte(s), &got); err != nil || got != At(noon) {
			t.Errorf("%s is read %v, %v", s, got, err)
		}
	}
	for _, s := range []string{`null`, `""`, `"Z"`, `1`, `"2026-02-03"`, `"2026-02-03T12:00:00"`, `"2026-02-03T14:00:00+02:00"`, `"2026-02-03T12:00:00+00:00"`,
		`"2026-02-03T12:00:00,5Z"`, `"2026-02-30T12:00:00Z"`, `"2026-2-3T12:00:00Z"`, `"2026-02-03T1:00:00Z"`, `"2026-02-03t12:00:00z"`} {
		got := At(noon)
		if err := got.UnmarshalJSON([]byte(s)); err == nil || got != At(noon) {
			t.Errorf("%s is read %v, %v", s, got, err)
		}
	}
}

func TestMillis(t *testing.T) {
	for _, c := range []struct {
		m    Millis
		want time.Duration
	}{
		{0, 0},
		{1, time.Millisecond},
		{-1, -time.Millisecond},
		{math.MaxInt64 / 1_000_000, math.MaxInt64 / 1_000_000 * time.Millisecond},
		{math.MaxInt64/1_000_000 + 1, math.MaxInt64},
		{math.MaxInt64, math.MaxInt64},
		{math.MinInt64 / 1_000_000, math.MinInt64 / 1_000_000 * time.Millisecond},
		{math.MinInt64/1_000_000 - 1, math.MinInt64},
		{math.MinInt64, math.MinInt64},
	} {
		if got := c.m.Duration(); got != c.want {
			t.Errorf("%d ms is %d ns, want %d", c.m, got, c.want)
		}
	}
	for d, want := range map[time.Duration]Millis{0: 0, time.Millisecond - 1: 0, 2*time.Millisecond - 1: 1, -1: 0, math.MaxInt64: math.MaxInt64 / 1_000_000} {
		if got := MillisOf(d); got != want {
			t.Errorf("MillisOf(%d) = %d, want %d", d, got, want)
		}
	}
}

func TestTextPayload(t *testing.T) {
	for text, want := range map[string]string{
		"":               `""`,
		"a < b & c > d":  `"a < b & c > d"`,
		"\"\\\n\x00é":    `"\"\\\n\u0000é"`,
		"\xff a\xed\xa0": "\"\ufffd a\ufffd\"",
		"\u2028":         `"\u2028"`,
	} {
		p := TextPayload(text)
		if string(p) != want {
			t.Errorf("TextPayload(%q) = %s, want %s", text, p, want)
		}
		if got := PayloadText(p); got != strings.ToValidUTF8(text, "\ufffd") {
			t.Errorf("%q came back as %q", text, got)
		}
		e := minimal()
		e.Payload = p
		if d, err := Decode(seal(t, e).Canonical()); err != nil || d.Text() != PayloadText(p) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, p := range []string{``, `null`, `{"a":1}`, `["x"]`, `"open`, `12`} {
		if got := PayloadText(json.RawMessage(p)); got != p {
			t.Errorf("PayloadText(%s) = %q", p, got)
		}
	}
}

func TestClip(t *testing.T) {
	for _, c := range []struct {
		s    string
		n    int
		want string
	}{
		{"", 3, ""},
		{"abc", 3, "abc"},
		{"abcd", 3, "..."},
		{"abcdefgh", 6, "abc..."},
		{"aé", 3, "aé"},
		{"aéabc", 5, "a..."}, // é does not fit whole
		{"aéabc", 6, "aéabc"},
		{"\U0001f980\U0001f980", 7, "\U0001f980..."},
		{"\U0001f980\U0001f980", 6, "..."},
		{"a\xffb", 10, "a?b"},
		{"\x80\x80\x80\x80\x80\x80\x80\x80", 7, "?..."},
	} {
		if got := clip(c.s, c.n); got != c.want {
			t.Errorf("clip(%q, %d) = %q, want %q", c.s, c.n, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "s")
		n := rapid.IntRange(3, 40).Draw(t, "n")
		got := clip(s, n)
		if len(got) > n || !utf8.ValidString(got) {
			t.Fatalf("clip(%q, %d) = %q", s, n, got)
		}
		if utf8.ValidString(s) && len(s) <= n && got != s {
			t.Fatalf("clip(%q, %d) = %q", s, n, got)
		}
		if head, cut := strings.CutSuffix(got, "..."); utf8.ValidString(s) && len(s) > n && (!cut || !strings.HasPrefix(s, head) || len(head) < n-6) {
			t.Fatalf("clip(%q, %d) = %q", s, n, got)
		}
	})
}
