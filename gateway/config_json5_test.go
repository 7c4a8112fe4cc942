package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/titanous/json5"
)

func TestConfigJSON5Values(t *testing.T) {
	const big = 1 << 52
	for doc, want := range map[string]any{
		"null": nil, "true": true, " false ": false,
		"0": 0.0, "-0.5": -0.5, ".5": 0.5, "5.": 5.0, "+.5e-1": 0.05, "1E3": 1000.0, "0xfF": 255.0, "-0X10": -16.0, "0x10000000000000": float64(big),
		"Infinity": math.Inf(1), "-Infinity": math.Inf(-1), "+Infinity": math.Inf(1),
		`"a'b\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00"`: "a'b\"\\/\b\f\n\r\tä😀",
		`'\x41\v\0\q\'"'`:                         "A\v\x00q'\"",
		"'one \\\ntwo\\\r\nthree\\\u2028four'":    "one twothreefour",
		`'\ud83d x \ud83d\u0041'`:                 "\ufffd x \ufffdA",
		"'\u2028\ttab'":                           "\u2028\ttab",
		"[]":                                      []any{}, "[1,]": []any{1.0}, "[1, /* two */ 'x', // three\n null,]": []any{1.0, "x", nil},
		"{}": map[string]any{}, "{a:1,}": map[string]any{"a": 1.0},
		`{$a_1: 1, "b c": 2, 'd': 3, ä: 4, \u0065e: 5, null: 6, NaN: 7}`: map[string]any{"$a_1": 1.0, "b c": 2.0, "d": 3.0, "ä": 4.0, "ee": 5.0, "null": 6.0, "NaN": 7.0},
		"{a: 1, a: 2}":                  map[string]any{"a": 2.0},
		"/**/{/***/a/**/:/* * / */1}//": map[string]any{"a": 1.0},
		"\ufeff\u00a0\v\f1":             1.0,
	} {
		n, _, err := parseJSON5(doc)
		if err != nil {
			t.Errorf("%s: %v", doc, err)
		} else if got := n.value(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %#v, want %#v", doc, got, want)
		}
	}
	for _, doc := range []string{"NaN", "+NaN", "-NaN"} {
		if n, _, err := parseJSON5(doc); err != nil || !math.IsNaN(n.num) {
			t.Errorf("%s: %v", doc, err)
		}
	}
	for _, doc := range []string{
		"", "{", "[", "{a}", "{a:}", "{a 1}", "{,}", "{a:1,,}", "[,]", "[1,,]", "[1 2]", "{a:1 b:2}", "{1:2}", "{a-b:1}", "{\\u0020:1}", "{\\x41:1}",
		"00", "01", "0x", "0xg", "1e", "1e+", "+", "-", ".", "1.2.3", "1x", "1e999", "+-1", "infinity", "Infinit", "nul", "TRUE", "truex", "undefined",
		"'", `"a`, "'a\nb'", `'\1'`, `'\01'`, `'\x4'`, `'\u12'`, `'\`, "/", "/*", "/* *", "1 /", "{} 1", "}", "`x`",
	} {
		if n, _, err := parseJSON5(doc); err == nil {
			t.Errorf("%q is accepted: %#v", doc, n.value())
		}
	}
}

// FuzzConfig: reading never panics; problems are single lines with a position; and what
// is accepted without the constructs that titanous/json5 lacks is accepted there, with
// the same value.
func FuzzConfig(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "config", "*"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // a directory
		}
		if strings.HasSuffix(file, "bad.txt") {
			for section := range strings.SplitSeq(string(data), "\n=== ") {
				_, doc, _ := strings.Cut(section, "\n")
				doc, _, _ = strings.Cut(doc, "---\n")
				f.Add([]byte(doc))
			}
			continue
		}
		f.Add(data)
	}
	for _, seed := range []string{
		"{a:[1,.5,5.,0x1F,-Infinity,+1e-3,NaN,'\\u00e4\\\nx',\"\\ud83d\\ude00\"],/*c*/b:{}}//", "[0xffffffffffffffff,-0x1]", "{a:1,a:{a:[]}}", "\ufeff{}", "{env:{A:'x'},mesh:{gateway:'${A}'}}",
		"{gateway:{port:'${A:-1}'},mesh:{retry:{max:1e300},maxPayload:'1e3'}}", "{agents:{entries:{'a b':{},'':{}}}}", "{channels:{'${X}':{token:{source:'env',id:'A'}}}}",
	} {
		f.Add([]byte(seed))
	}
	env := configEnv("A=a", "TOKEN=0123456789")
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, warnings, err := ParseConfig("c", data, env)
		if err == nil {
			cfg.Normalize()
			err = cfg.Validate()
			var out bytes.Buffer
			if err := cfg.Show(&out, "json"); err != nil {
				t.Errorf("Show: %v", err)
			}
			if err := cfg.Show(&out, "origins"); err != nil {
				t.Errorf("Show: %v", err)
			}
			if changed, _ := Reloadable(cfg, cfg); len(changed) > 0 && !strings.Contains(string(data), "NaN") {
				t.Errorf("differs from itself: %q", changed)
			}
		}
		if err != nil {
			var list *ConfigError
			if !errors.As(err, &list) || len(list.Problems) == 0 {
				t.Fatalf("not a ConfigError: %v", err)
			}
			for _, p := range list.Problems {
				checkConfigProblem(t, p)
			}
		}
		for _, w := range warnings {
			checkConfigProblem(t, w.ConfigProblem)
		}
		compareWithJSON5(t, data)
	})
}

func checkConfigProblem(t *testing.T, p ConfigProblem) {
	t.Helper()
	line := p.String()
	if p.Message == "" || strings.ContainsAny(p.Message, "\r\n") || !utf8.ValidString(line) || p.Line < 0 || p.Line > 0 && p.Col < 1 || len(p.Message) > 1000 {
		t.Errorf("odd problem: %q", line)
	}
}

func compareWithJSON5(t *testing.T, data []byte) {
	src := strings.TrimPrefix(string(data), "\ufeff")
	if !utf8.ValidString(src) {
		return
	}
	n, beyond, err := parseJSON5(src)
	if err != nil || beyond != "" {
		return
	}
	var theirs any
	if err := unmarshalJSON5([]byte(src), &theirs); err != nil {
		t.Fatalf("accepted %q, which titanous/json5 refuses: %v", src, err)
	}
	if ours := n.value(); fmt.Sprintf("%#v", ours) != fmt.Sprintf("%#v", theirs) { // NaN is not equal to itself
		t.Fatalf("%q: got %#v, titanous/json5 has %#v", src, ours, theirs)
	}
}

func unmarshalJSON5(data []byte, v any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return json5.Unmarshal(data, v)
}
