package envelope

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// schemaDoc is what the tests read of the schema itself.
type schemaDoc struct {
	Schema string `json:"$schema"`
	Defs   map[string]struct {
		Required   []string `json:"required"`
		Enum       []string `json:"enum"`
		MaxItems   int      `json:"maxItems"`
		MaxLength  int      `json:"maxLength"`
		Properties map[string]struct {
			Enum     []string    `json:"enum"`
			Maximum  json.Number `json:"maximum"`
			MaxItems int         `json:"maxItems"`
		} `json:"properties"`
		MaxProperties int `json:"maxProperties"`
	} `json:"$defs"`
	Description string `json:"description"`
}

func readSchema(t *testing.T) schemaDoc {
	t.Helper()
	var d schemaDoc
	if err := json.Unmarshal(Schema(), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestSchemaNamesTheFields: the schema lists exactly the fields of the structs,
// and requires those that are always written.
func TestSchemaNamesTheFields(t *testing.T) {
	d := readSchema(t)
	for def, v := range map[string]any{"envelope": Envelope{}, "budget": Budget{}, "task": Task{}, "encryption": Encryption{}, "delivery": Delivery{}, "hop": Hop{}, "failure": Failure{}, "effect": Effect{}} {
		var fields, required []string
		for f := range reflect.TypeOf(v).Fields() {
			name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields = append(fields, name)
			if opts == "" {
				required = append(required, name)
			}
		}
		slices.Sort(fields)
		slices.Sort(required)
		if got := slices.Sorted(maps.Keys(d.Defs[def].Properties)); !slices.Equal(got, fields) {
			t.Errorf("%s: schema has properties\n%q, struct has\n%q", def, got, fields)
		}
		if got := slices.Sorted(slices.Values(d.Defs[def].Required)); !slices.Equal(got, required) {
			t.Errorf("%s: schema requires\n%q, struct always writes\n%q", def, got, required)
		}
	}
}

func TestSchemaLists(t *testing.T) {
	d := readSchema(t)
	if d.Schema != "https://json-schema.org/draft/2020-12/schema" {
		t.Errorf("$schema is %q", d.Schema)
	}
	if got, want := d.Defs["delivery"].Properties["state"].Enum, words(States); !slices.Equal(got, want) {
		t.Errorf("states are %q in the schema, %q in Go", got, want)
	}
	if got, want := d.Defs["class"].Enum, words(Classes); !slices.Equal(got, want) {
		t.Errorf("classes are %q in the schema, %q in Go", got, want)
	}
	for _, l := range []struct {
		what      string
		got, want any
	}{
		{"ttl", d.Defs["envelope"].Properties["ttl"].Maximum.String(), fmt.Sprint(MaxTTL.Milliseconds())},
		{"max_attempts", d.Defs["envelope"].Properties["max_attempts"].Maximum.String(), fmt.Sprint(MaxAttempts)},
		{"payload_size", d.Defs["envelope"].Properties["payload_size"].Maximum.String(), fmt.Sprint(MaxClaim)},
		{"readers", d.Defs["encryption"].Properties["keys"].MaxItems, MaxReaders},
		{"wrapped", d.Defs["wrapped"].MaxLength, maxWrap},
		{"redrives", d.Defs["delivery"].Properties["redrives"].MaxItems, maxFailures},
		{"max_hops", d.Defs["envelope"].Properties["max_hops"].Maximum.String(), fmt.Sprint(MaxHops)},
		{"label", d.Defs["label"].MaxLength, maxLabel},
		{"keys", d.Defs["envelope"].MaxProperties, maxKeys},
		{"keys of budget", d.Defs["budget"].MaxProperties, maxKeys},
		{"failures", d.Defs["delivery"].Properties["failures"].MaxItems, maxFailures},
	} {
		if l.got != l.want {
			t.Errorf("%s: limit %v in the schema, %v in Go", l.what, l.got, l.want)
		}
	}
	for _, n := range []int{MaxPayload, MaxEncoded, maxDepth} {
		if !strings.Contains(d.Description, fmt.Sprint(n)) {
			t.Errorf("the schema's description does not name the limit %d", n)
		}
	}
}

func words[S ~string](in []S) []string {
	var out []string
	for _, s := range in {
		out = append(out, string(s))
	}
	return out
}

func TestSchemaIsACopy(t *testing.T) {
	Schema()[0] = 'x'
	if Schema()[0] != '{' {
		t.Error("a caller can change the schema")
	}
}

// TestSchemaAgreesWithSeal: what Seal takes, the schema accepts, and nothing else.
func TestSchemaAgreesWithSeal(t *testing.T) {
	schema := compileSchema(t, "")
	valid := 0
	rapid.Check(t, func(t *rapid.T) {
		e := wildEnvelope().Draw(t, "envelope")
		b, err := Encode(e)
		_, serr := Seal(e)
		if err != nil {
			if serr == nil {
				t.Fatalf("sealed what cannot be encoded: %v", err)
			}
			return
		}
		if !json.Valid(e.Payload) || strings.Contains(string(e.Payload), "\xff") {
			if serr == nil {
				t.Fatal("sealed a payload that is not JSON in UTF-8")
			}
			return
		}
		verr := schemaErr(t, schema, b)
		if (serr == nil) != (verr == nil) {
			t.Fatalf("Seal says %v, the schema says %v, of\n%s", serr, verr, b)
		}
		if serr == nil {
			valid++
		}
	})
	if valid < 5 {
		t.Errorf("only %d valid envelopes were generated: the test proves nothing", valid)
	}
}

// TestSchemaAgreesWithDecode puts odd JSON where a field belongs.
func TestSchemaAgreesWithDecode(t *testing.T) {
	schema := compileSchema(t, "")
	fields := []string{"from_a_newer_minor", "budget.from_a_newer_minor", "Upper", "dash-ed", "", "ſtate", "budget.ttL"}
	for f := range reflect.TypeFor[Envelope]().Fields() {
		fields = append(fields, strings.Split(f.Tag.Get("json"), ",")[0])
	}
	for f := range reflect.TypeFor[Budget]().Fields() {
		fields = append(fields, "budget."+strings.Split(f.Tag.Get("json"), ",")[0])
	}
	for f := range reflect.TypeFor[Task]().Fields() {
		fields = append(fields, "task."+strings.Split(f.Tag.Get("json"), ",")[0])
	}
	fields = append(fields, "task.from_a_newer_minor", "task.Upper")
	base := full()
	base.Task = &Task{Priority: ptr(1), NotBefore: ptr(At(noon)), UniqueKey: "k", UniqueFor: 1}
	values := []string{
		`null`, `true`, `false`, `0`, `-0`, `1`, `-1`, `1.5`, `32`, `33`, `1e400`, `9223372036854775807`, `9223372036854775808`,
		`[]`, `{}`, `[null]`, `""`, `"x"`, `"X"`, `" "`, `"\u0000"`, `"\ud800"`, `"\u2028"`, `"1.0"`, `"2.0"`, `"` + idC + `"`,
		`"2026-02-03T04:05:06Z"`, `"2026-02-03T04:05:06.123456789012Z"`, `"2026-02-03T04:05:06+00:00"`, `"2026-02-03t04:05:06z"`,
		`"2026-02-29T04:05:06Z"`, `"2026-02-03T24:00:00Z"`, `"2016-12-31T23:59:60Z"`, `"2026-02-03 04:05:06Z"`, `"2026-02-03T04:05:06,5Z"`,
		`"2026-02-03T4:05:06Z"`, `"2026-02-03T4:05:06.5Z"`, `"2026-02-03T04:05:06.Z"`, `"2026-02-03T04:05:06.5+01:00"`, `"2026-02-03T04:05:6Z"`, `"2026-02-03T04:05Z"`,
		`"1999-12-31T23:59:59.999Z"`, `"2000-01-01T00:00:00Z"`, `"2999-12-31T23:59:59.9999999Z"`, `"3000-01-01T00:00:00Z"`, `"20260-02-03T04:05:06Z"`,
		`2592000000`, `2592000001`, `"1.9999"`, `"1.10000"`, `"1.01"`, `"01.0"`, `"` + strings.ToUpper(idC) + `"`, `"{` + idC + `}"`, `"` + idC[:35] + `g"`,
		`"\u007f"`, `"\u0080"`, `"\u0085"`, `"\u009f"`, `"\u00a0"`, `"\u001f"`, `"\ufffd"`, `"a-"`, `"-a"`, `"a\n"`,
	}
	for _, n := range []int{63, 64, maxLabel, maxLabel + 1} {
		values = append(values, `"`+strings.Repeat("x", n)+`"`, `"`+strings.Repeat("é", n)+`"`)
	}
	taken := 0
	for _, field := range fields {
		for _, value := range values {
			var doc, inner map[string]json.RawMessage
			if err := json.Unmarshal(seal(t, base).Canonical(), &doc); err != nil {
				t.Fatal(err)
			}
			if object, name, ok := strings.Cut(field, "."); ok {
				if err := json.Unmarshal(doc[object], &inner); err != nil {
					t.Fatal(err)
				}
				inner[name] = json.RawMessage(value)
				doc[object], _ = Encode(inner)
			} else {
				doc[field] = json.RawMessage(value)
			}
			b, err := Encode(doc)
			if err != nil {
				t.Fatal(err)
			}
			_, derr := Decode(b)
			if verr := schemaErr(t, schema, b); (derr == nil) != (verr == nil) {
				t.Errorf("%s = %s: Decode says %v, the schema says %v", field, value, derr, verr)
			}
			if derr == nil {
				taken++
			}
		}
	}
	if taken < 50 || taken > len(fields)*len(values)/2 {
		t.Errorf("%d of %d were taken: the table is lopsided", taken, len(fields)*len(values))
	}
	for _, drop := range append(readSchema(t).Defs["envelope"].Required, "budget", "terminal") {
		var doc map[string]json.RawMessage
		if err := json.Unmarshal(seal(t, full()).Canonical(), &doc); err != nil {
			t.Fatal(err)
		}
		delete(doc, drop)
		b, _ := Encode(doc)
		_, derr := Decode(b)
		if verr := schemaErr(t, schema, b); (derr == nil) != (verr == nil) {
			t.Errorf("without %s: Decode says %v, the schema says %v", drop, derr, verr)
		}
	}
}

// TestSchemaOfDelivery: every record that random walks leave behind fits the schema.
func TestSchemaOfDelivery(t *testing.T) {
	schema := compileSchema(t, "#/$defs/delivery")
	rapid.Check(t, func(t *rapid.T) {
		d := Delivery{State: Queued, QueuedAt: ptr(At(noon)), Hops: []Hop{{"gw-jerry", "jerry", At(noon)}}, Owner: "gw-bobby",
			For: "billy", AttemptID: "try-2", Spent: &Spent{Messages: 1, Tokens: 2, USD: 0.5}, Keys: []string{"gw-bobby/0123456789abcdef/AA"}}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			to := rapid.SampledFrom(States).Draw(t, "to")
			if d.State == DeadLetter && rapid.Bool().Draw(t, "redrive") {
				if err := d.Redrive("op", "gw-bobby", At(noon), ptr(At(noon))); err != nil {
					t.Fatal(err)
				}
			}
			if d.Move(to, At(noon)) == nil && to == Failed {
				d.Fail("gw-bobby", At(noon), rapid.SampledFrom(Classes).Draw(t, "class"), rapid.String().Draw(t, "error"))
			}
		}
		b, err := Encode(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := schemaErr(t, schema, b); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
	})
	for _, bad := range []string{`{}`, `{"state":"lost","retry_count":0}`, `{"state":"acked","retry_count":-1}`, `{"state":"acked","retry_count":0,"class":"bad luck"}`} {
		if schemaErr(t, schema, []byte(bad)) == nil {
			t.Errorf("the schema accepts %s", bad)
		}
	}
}
