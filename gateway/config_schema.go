package gateway

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"
)

// cfgField is what the tags of one struct field say.
type cfgField struct {
	key, doc    string
	def         string // "" when there is none; with <...> when Normalize computes it
	min, max    string
	enum        []string
	short       string // key for which a string stands
	secret      bool
	live        bool
	unused      bool
	each        bool
	zeroMatters bool
	id          bool
	rest        bool
	index       int
	typ         reflect.Type
}

// computed reports whether the default depends on something else.
func (f *cfgField) computed() bool { return strings.Contains(f.def, "<") }

// cfgStruct is one struct type of the configuration.
type cfgStruct struct {
	fields    []*cfgField
	byKey     map[string]*cfgField
	accept    map[string]bool
	acceptAny bool
	rest      *cfgField // takes the keys that no other has
}

var cfgStructs sync.Map // reflect.Type -> *cfgStruct

// cfgSchema reads the tags of struct type t, once.
func cfgSchema(t reflect.Type) *cfgStruct {
	if s, ok := cfgStructs.Load(t); ok {
		return s.(*cfgStruct)
	}
	s := &cfgStruct{byKey: map[string]*cfgField{}, accept: map[string]bool{}}
	for i := range t.NumField() {
		sf := t.Field(i)
		for _, key := range strings.Fields(sf.Tag.Get("accept")) {
			s.accept[key] = true
			s.acceptAny = s.acceptAny || key == "*"
		}
		key := sf.Tag.Get("json")
		if key == "" {
			continue
		}
		tag := sf.Tag
		f := &cfgField{
			key: key, doc: tag.Get("doc"), def: tag.Get("def"),
			min: tag.Get("min"), max: tag.Get("max"), index: i, typ: sf.Type,
		}
		if enum, ok := tag.Lookup("enum"); ok {
			f.enum = strings.Split(enum, "|")
		}
		for opt := range strings.SplitSeq(tag.Get("cfg"), ",") {
			switch name, arg, _ := strings.Cut(opt, "="); name {
			case "":
			case "secret":
				f.secret = true
			case "live":
				f.live = true
			case "unused":
				f.unused = true
			case "each":
				f.each = true
			case "zero":
				f.zeroMatters = true
			case "id":
				f.id = true
			case "rest":
				f.rest = true
			case "short":
				f.short = arg
			default:
				panic(fmt.Sprintf("config: unknown option %q on %s.%s", name, t, sf.Name))
			}
		}
		s.fields = append(s.fields, f)
		if f.rest {
			s.rest = f
			continue
		}
		s.byKey[key] = f
	}
	got, _ := cfgStructs.LoadOrStore(t, s)
	return got.(*cfgStruct)
}

var (
	cfgDurationType = reflect.TypeFor[time.Duration]()
	cfgBytesType    = reflect.TypeFor[ConfigBytes]()
	cfgAgentType    = reflect.TypeFor[AgentConfig]()
)

// cfgTypeName says which JSON5 value a Go type takes, as messages and the reference do.
func cfgTypeName(t reflect.Type) string {
	switch {
	case t == cfgDurationType:
		return `duration ("1m30s" or a number of seconds)`
	case t == cfgBytesType:
		return `size ("64KiB" or a number of bytes)`
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int:
		return "whole number"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		switch t.Elem().Kind() {
		case reflect.String:
			return "array of strings"
		case reflect.Struct:
			return "array of objects"
		}
		return "array"
	case reflect.Struct, reflect.Map:
		return "object"
	}
	return "any value"
}

// typeName is cfgTypeName of a field, with its short form.
func (f *cfgField) typeName() string {
	if f.short != "" {
		return "string or object"
	}
	return cfgTypeName(f.typ)
}

// cfgFill writes the tags' defaults into struct v: into every field that has one when
// all is set, otherwise only where v holds a zero that cannot be meant and explicit
// does not know the path.
func cfgFill(v reflect.Value, path string, all bool, explicit func(path string) bool) {
	for _, f := range cfgSchema(v.Type()).fields {
		fv, p := v.Field(f.index), cfgJoin(path, f.key)
		if f.typ.Kind() == reflect.Struct {
			cfgFill(fv, p, all, explicit)
			continue
		}
		if f.def == "" || f.computed() {
			continue
		}
		if !all && (!fv.IsZero() || f.zeroMatters || f.typ.Kind() == reflect.Bool || explicit(p)) {
			continue
		}
		if err := cfgSetText(fv, f.def); err != nil {
			panic(fmt.Sprintf("config: default of %s: %v", p, err)) // a test reads every tag
		}
	}
}

// cfgLookup finds the field at a dotted path without lists or maps.
func cfgLookup(v reflect.Value, path string) (reflect.Value, *cfgField, error) {
	var f *cfgField
	for key := range strings.SplitSeq(path, ".") {
		if v.Kind() != reflect.Struct {
			return v, nil, fmt.Errorf("no key %q in the configuration", path)
		}
		s := cfgSchema(v.Type())
		if f = s.byKey[key]; f == nil {
			return v, nil, fmt.Errorf("no key %q in the configuration%s", path, s.suggest(key))
		}
		v = v.Field(f.index)
	}
	return v, f, nil
}

// suggest returns ` (did you mean "x"?)` for the nearest known key, or "".
func (s *cfgStruct) suggest(key string) string {
	known := make([]string, 0, len(s.fields)+len(s.accept))
	for _, f := range s.fields {
		known = append(known, f.key)
	}
	for k := range s.accept {
		known = append(known, k)
	}
	return cfgSuggest(key, known)
}

// cfgSuggest looks for the nearest of known within two edits. Of equally near ones the
// first in the alphabet wins, so that messages are stable.
func cfgSuggest(key string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		d := cfgEditDistance(strings.ToLower(key), strings.ToLower(k))
		if k == "*" || k == "" || d >= len(k) {
			continue
		}
		if d < distance || d == distance && k < best {
			best, distance = k, d
		}
	}
	if best == "" || distance > 2 {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// cfgEditDistance is Levenshtein's; answers above 2 are not exact.
func cfgEditDistance(a, b string) int {
	if len(a)-len(b) > 2 || len(b)-len(a) > 2 {
		return 3
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal, row[j] = row[j], min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// cfgJoin appends a key to a path: a.b, or a["b c"] where b would be unclear.
func cfgJoin(path, key string) string {
	plain := key != ""
	for _, r := range key {
		plain = plain && (json5IdentPart(r) || r == '-')
	}
	switch {
	case !plain:
		return fmt.Sprintf("%s[%q]", path, key)
	case path == "":
		return key
	}
	return path + "." + key
}
