package gateway

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// ConfigReference is the documentation of every key, as a Markdown table.
func ConfigReference() string {
	r := &configReference{shown: map[reflect.Type]string{}}
	r.b.WriteString("| Key | Type | Default | Meaning |\n|---|---|---|---|\n")
	r.structure(reflect.TypeFor[Config](), "", false, false)
	return r.b.String()
}

type configReference struct {
	b     strings.Builder
	shown map[reflect.Type]string
}

// structure lists the keys of t; live and unused are said of the whole of it.
func (r *configReference) structure(t reflect.Type, path string, live, unused bool) {
	r.shown[t] = path
	for _, f := range cfgSchema(t).fields {
		p := f.key
		if path != "" {
			p = path + "." + f.key
		}
		elem, below := f.typ, p
		switch f.typ.Kind() {
		case reflect.Slice:
			elem, below = f.typ.Elem(), p+"[]"
		case reflect.Map:
			elem, below = f.typ.Elem(), p+".<name>"
		}
		meaning := f.meaning(live || f.live, unused || f.unused)
		before, again := r.shown[elem]
		if elem.Kind() == reflect.Struct && again {
			meaning += fmt.Sprintf(" Keys as in `%s`.", before)
		}
		def := f.def
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&r.b, "| `%s` | %s | %s | %s |\n", p, cfgCell(f.typeName()), cfgCell(def), cfgCell(meaning))
		if elem.Kind() == reflect.Struct && !again {
			r.structure(elem, below, live || f.live, unused || f.unused)
		}
	}
}

// meaning is the doc tag and what the other tags add to it.
func (f *cfgField) meaning(live, unused bool) string {
	parts := []string{f.doc}
	if len(f.enum) > 0 {
		parts = append(parts, "One of: "+strings.Join(strings.Fields(strings.Join(f.enum, " ")), ", ")+".")
	}
	switch {
	case f.min != "" && f.max != "":
		parts = append(parts, fmt.Sprintf("From %s to %s.", f.min, f.max))
	case f.min != "":
		parts = append(parts, fmt.Sprintf("At least %s.", f.min))
	}
	if f.secret {
		parts = append(parts, "Secret.")
	}
	if live && !unused {
		parts = append(parts, "Taken up by a reload.")
	}
	if unused {
		parts = append(parts, "Not used by this version.")
	}
	return strings.Join(parts, " ")
}

// cfgCell makes text safe within a table.
func cfgCell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(s)
}

// cfgText writes a number, duration or size as a file would.
func cfgText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return cfgDurationText(x)
	default:
		return fmt.Sprint(x)
	}
}
