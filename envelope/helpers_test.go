package envelope

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

const (
	idA = "01964f3c-7a10-7c3e-8b1d-0a2b3c4d5e6f"
	idB = "01964f3c-7a11-7f00-9c2d-1a2b3c4d5e6f"
	idC = "01964f3c-7a12-7abc-a0b1-2a2b3c4d5e6f"
)

// noon is the time that tests live in.
var noon = time.Date(2026, 2, 3, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// minimal has the required fields and nothing else.
func minimal() Envelope {
	return Envelope{
		SchemaVersion: "1.0", MessageID: idA, CorrelationID: idA, ConversationID: "ops",
		SourceGateway: "gw-jerry", SourceAgent: "jerry", TargetAgent: "bobby",
		Payload: json.RawMessage(`"How is Consul?"`), CreatedAt: At(noon), TTL: 60_000, MaxHops: 4,
	}
}

// full has every field.
func full() Envelope {
	e := minimal()
	e.MessageID, e.CorrelationID, e.InReplyTo = idB, idA, idC
	e.ReplyTo, e.TargetGateway = "jerry", "gw-bobby"
	e.Capability = "infra.check"
	e.Payload = json.RawMessage(`{"checks":["consul","nomad"],"limit":1.50,"deep":{"a":[null,true,{"b":""}]}}`)
	e.CreatedAt = At(noon.Add(123 * time.Millisecond))
	e.MaxAttempts, e.AckTimeout, e.RetryDelay = 3, 30_000, 250
	e.Terminal = true
	e.Budget = &Budget{Messages: ptr(int64(12)), Tokens: ptr(int64(50_000)), USD: ptr(0.25), Deadline: ptr(At(noon.Add(time.Minute)))}
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	return e
}

func seal(t testing.TB, e Envelope) *Sealed {
	t.Helper()
	s, err := Seal(e)
	if err != nil {
		t.Fatalf("Seal: %v", err)
	}
	return s
}

// compileSchema returns the part of the schema at ref ("" is the envelope).
func compileSchema(t testing.TB, ref string) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	const id = "urn:gatemesh:envelope:1"
	if err := c.AddResource(id, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(id + ref)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failer is testing.TB or *rapid.T.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func schemaErr(t failer, s *jsonschema.Schema, b []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("not JSON: %v: %s", err, b)
	}
	return s.Validate(v)
}

// often draws from good fifteen times of sixteen, else from odd.
func often[T any](good, odd *rapid.Generator[T]) *rapid.Generator[T] {
	return rapid.Custom(func(t *rapid.T) T {
		if rapid.Uint8Range(0, 15).Draw(t, "odd") == 15 {
			return odd.Draw(t, "value")
		}
		return good.Draw(t, "value")
	})
}

// wildEnvelope generates envelopes at and around the limits; a good third is valid.
func wildEnvelope() *rapid.Generator[Envelope] {
	id := often(
		rapid.StringMatching(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`),
		rapid.OneOf(rapid.SampledFrom([]string{"", "{" + idA + "}", "urn:uuid:" + idA, strings.ToUpper(idA),
			strings.ReplaceAll(idA, "-", ""), idA[:35], idA + "0", idA[:35] + "g", "é" + idA[2:]}), rapid.String()))
	name := often(
		rapid.StringMatching(`[a-z0-9][a-z0-9-]{0,62}`),
		rapid.OneOf(rapid.StringMatching(`[A-Za-z0-9_.@-]{0,65}`), rapid.String()))
	label := often(
		rapid.OneOf(rapid.StringMatching(`[ -~]{1,80}`), rapid.StringMatching(`\PC{1,60}`),
			rapid.SampledFrom([]string{"<&>", "\u2028", strings.Repeat("é", 256), strings.Repeat("\U0001f600", 256)})),
		rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
			"", "\x00", "a\n", "\x1f", "\x7f", "\u0085", "\u009f", "\u00a0", "\ufffd", "\xff", "a\xed\xa0\x80",
			strings.Repeat("x", 257), strings.Repeat("é", 257),
		})))
	optional := func(g *rapid.Generator[string]) *rapid.Generator[string] {
		return rapid.OneOf(rapid.Just(""), g)
	}
	when := often(
		rapid.Custom(func(t *rapid.T) Time { return At(noon.Add(time.Duration(rapid.Int64().Draw(t, "ns")))) }),
		rapid.Custom(func(t *rapid.T) Time {
			y := rapid.SampledFrom([]int{-1, 0, 1, 1969, 1999, 2000, 2999, 3000, 9999, 10000}).Draw(t, "year")
			edge := time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(-2, 2).Draw(t, "edge")) * time.Millisecond)
			return Time{edge.In(time.FixedZone("", rapid.SampledFrom([]int{0, 3600, -3600}).Draw(t, "zone")))}
		}))
	count := rapid.Ptr(often(rapid.Int64Min(0), rapid.Int64()), true)
	return rapid.Custom(func(t *rapid.T) Envelope {
		e := Envelope{
			SchemaVersion: often(rapid.Just(Version), rapid.SampledFrom([]string{"1.7", "1.9999", "1.10000", "1.00", "1.01", "01.0", "1", "1.", ".1", "1.0.0", "v1.0", "1.0 ", "2.0", "10.0", "", "1.x", "1.٣"})).Draw(t, "version"),
			MessageID:     id.Draw(t, "message_id"), CorrelationID: id.Draw(t, "correlation_id"), InReplyTo: optional(id).Draw(t, "in_reply_to"),
			ConversationID: label.Draw(t, "conversation_id"), Capability: optional(label).Draw(t, "capability"), Traceparent: optional(label).Draw(t, "traceparent"),
			SourceGateway: name.Draw(t, "source_gateway"), SourceAgent: name.Draw(t, "source_agent"),
			TargetGateway: optional(name).Draw(t, "target_gateway"), TargetAgent: name.Draw(t, "target_agent"), ReplyTo: optional(name).Draw(t, "reply_to"),
			Payload:   often(wildJSON(), rapid.SampledFrom([]json.RawMessage{nil, {}, json.RawMessage(`{`), json.RawMessage("\"\xff\""), json.RawMessage(` { "a" : 1 } `)})).Draw(t, "payload"),
			CreatedAt: when.Draw(t, "created_at"),
			TTL:       often(millis(rapid.Int64Range(1, MaxTTL.Milliseconds())), millis(rapid.SampledFrom([]int64{0, -1, math.MinInt64, math.MaxInt64, MaxTTL.Milliseconds() + 1}))).Draw(t, "ttl"),
			MaxHops:   often(rapid.IntRange(1, MaxHops), rapid.SampledFrom([]int{0, -1, MaxHops + 1})).Draw(t, "max_hops"),
			Terminal:  rapid.Bool().Draw(t, "terminal"),
		}
		if rapid.Bool().Draw(t, "retry") {
			e.MaxAttempts = often(rapid.IntRange(0, MaxAttempts), rapid.SampledFrom([]int{-1, MaxAttempts + 1})).Draw(t, "max_attempts")
			ms := often(millis(rapid.Int64Range(0, MaxTTL.Milliseconds())), millis(rapid.SampledFrom([]int64{-1, math.MaxInt64, MaxTTL.Milliseconds() + 1})))
			e.AckTimeout, e.RetryDelay = ms.Draw(t, "ack_timeout"), ms.Draw(t, "retry_delay")
		}
		if rapid.Uint8Range(0, 3).Draw(t, "claim") == 0 {
			e.PayloadSize = often(rapid.Int64Range(1, MaxClaim), rapid.SampledFrom([]int64{0, -1, MaxClaim + 1})).Draw(t, "payload_size")
			e.PayloadSHA256 = often(rapid.StringMatching(`[0-9a-f]{64}`), rapid.SampledFrom([]string{"", "00", strings.Repeat("A", 64), strings.Repeat("0", 65)})).Draw(t, "payload_sha256")
			e.Payload = often(rapid.Just(json.RawMessage("null")), rapid.Just(json.RawMessage("1"))).Draw(t, "null")
		}
		if rapid.Uint8Range(0, 2).Draw(t, "encryption") == 0 {
			wrap := often(rapid.StringMatching(`[a-z][a-z0-9-]{0,9}/[0-9a-f]{16}/[A-Za-z0-9+/]{1,60}`),
				rapid.SampledFrom([]string{"", "//", "a/0123456789abcdef", "a/0123456789abcdef/", "-a/0123456789abcdef/AA", "a/0123456789ABCDEF/AA", "a/0123456789abcdef/AA==", "a/0123456789abcdef/" + strings.Repeat("A", maxWrap)}))
			e.SchemaVersion = often(rapid.Just(EncryptedVersion), rapid.SampledFrom([]string{"2.7", "1.1", "3.0"})).Draw(t, "encrypted version")
			e.Encryption = &Encryption{
				Suite: often(rapid.StringMatching(`[a-z0-9-]{1,64}`), rapid.SampledFrom([]string{"", "A", "a b", strings.Repeat("a", 65)})).Draw(t, "suite"),
				Salt:  often(rapid.StringMatching(`[A-Za-z0-9+/]{22}`), rapid.SampledFrom([]string{"", "AAAA", strings.Repeat("A", 23), strings.Repeat("=", 22)})).Draw(t, "salt"),
				Keys:  often(rapid.SliceOfN(wrap, 1, 4), rapid.SampledFrom([][]string{{}, slices.Repeat([]string{"a/0123456789abcdef/AA"}, MaxReaders+1)})).Draw(t, "keys"),
			}
			if e.PayloadSHA256 == "" {
				e.Payload = often(rapid.Map(rapid.StringMatching(`[A-Za-z0-9+/]{22,90}`), func(s string) json.RawMessage { return json.RawMessage(`"` + s + `"`) }),
					rapid.SampledFrom([]json.RawMessage{json.RawMessage(`""`), json.RawMessage(`"AAAAAAAAAAAAAAAAAAAAA"`), json.RawMessage(`"AAAAAAAAAAAAAAAAAAAAAAAA=="`), json.RawMessage("null"), json.RawMessage("{}")})).Draw(t, "cipher")
			}
		}
		if rapid.Bool().Draw(t, "budget") {
			e.Budget = &Budget{
				Messages: count.Draw(t, "messages"), Tokens: count.Draw(t, "tokens"),
				USD:      rapid.Ptr(often(rapid.Float64Min(0), rapid.SampledFrom([]float64{-1, -5e-324, math.Copysign(0, -1), math.NaN(), math.Inf(1), math.Inf(-1)})), true).Draw(t, "usd"),
				Deadline: rapid.Ptr(when, true).Draw(t, "deadline"),
			}
		}
		if rapid.Bool().Draw(t, "task") {
			e.Task = &Task{
				Priority:  rapid.Ptr(often(rapid.IntRange(0, MaxPriority), rapid.SampledFrom([]int{-1, MaxPriority + 1})), true).Draw(t, "priority"),
				NotBefore: rapid.Ptr(when, true).Draw(t, "not_before"), UniqueKey: optional(label).Draw(t, "unique_key"),
				UniqueFor: often(millis(rapid.Int64Range(0, MaxTTL.Milliseconds())), millis(rapid.SampledFrom([]int64{-1, MaxTTL.Milliseconds() + 1}))).Draw(t, "unique_for"),
			}
		}
		return e
	})
}

// millis makes milliseconds out of numbers.
func millis(g *rapid.Generator[int64]) *rapid.Generator[Millis] {
	return rapid.Map(g, func(n int64) Millis { return Millis(n) })
}

// wildJSON generates JSON values without white space outside strings.
func wildJSON() *rapid.Generator[json.RawMessage] {
	leaf := rapid.OneOf(
		rapid.Map(rapid.String(), TextPayload),
		rapid.SampledFrom([]json.RawMessage{
			json.RawMessage(`null`), json.RawMessage(`""`), json.RawMessage(`true`), json.RawMessage(`-0`), json.RawMessage(`1.50e+3`),
			json.RawMessage(`"<&>"`), json.RawMessage("\"\u2028\""), json.RawMessage(`"\ud800"`), json.RawMessage(`"\\\"} ,: {"`), json.RawMessage(`{"A":1,"A":2}`),
		}))
	return rapid.Custom(func(t *rapid.T) json.RawMessage {
		v := leaf.Draw(t, "leaf")
		for range rapid.IntRange(0, 4).Draw(t, "depth") {
			if rapid.Bool().Draw(t, "array") {
				v = json.RawMessage("[" + string(v) + `," "]`)
			} else {
				v = json.RawMessage(`{"a b":` + string(v) + `}`)
			}
		}
		return v
	})
}
