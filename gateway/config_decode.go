package gateway

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// configDecoder puts a positioned tree into a Config and goes on after an error, so
// that one run names everything.
type configDecoder struct {
	name     string
	lines    *cfgLines
	cfg      *Config
	problems []ConfigProblem
	warnings []Warning
	said     map[string]bool // what Unused has named
}

// maxConfigWarnings is how many warnings are kept. A file with more of them is not a
// configuration.
const maxConfigWarnings = 100

func (d *configDecoder) problem(off int, path, format string, args ...any) ConfigProblem {
	line, col := d.lines.position(off)
	if len(path) > 200 {
		path = path[:100] + "…" + path[len(path)-100:]
	}
	return ConfigProblem{File: d.name, Line: line, Col: col, Path: strings.ToValidUTF8(path, ""), Message: fmt.Sprintf(format, args...)}
}

func (d *configDecoder) errorf(off int, path, format string, args ...any) {
	d.problems = append(d.problems, d.problem(off, path, format, args...))
}

func (d *configDecoder) warnf(off int, path, format string, args ...any) {
	if len(d.warnings) < maxConfigWarnings {
		d.warnings = append(d.warnings, Warning{d.problem(off, path, format, args...), SeverityWarning})
	}
}

func (d *configDecoder) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	cfgSortProblems(d.problems)
	return &ConfigError{d.problems}
}

func cfgSortProblems(problems []ConfigProblem) {
	slices.SortStableFunc(problems, func(a, b ConfigProblem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
}

// prepare interpolates every string and finds duplicate keys, in the whole tree: also
// where no field of ours will look. The block env goes first, because it gives values
// to the others.
func (d *configDecoder) prepare(root *jsonNode) {
	process := d.cfg.source.env
	block := root.member("env")
	if block != nil {
		d.walk(block, "env", process)
	}
	for i := range root.members {
		if m := &root.members[i]; m.node != block {
			d.walk(m.node, cfgJoin("", m.key), cfgWithBlock(process, block))
		}
	}
	d.duplicates(root, "")
	if m := root.member("$include"); m != nil {
		d.errorf(m.off, "$include", "gatemesh does not read included files: put their content here")
	}
}

// cfgWithBlock looks names up in the process environment, then in the file's env block.
// As in OpenClaw, an empty variable of the process does not hide the block's.
func cfgWithBlock(process cfgEnv, block *jsonNode) cfgEnv {
	if block == nil {
		return process
	}
	return func(name string) (string, bool) {
		value, set := process(name)
		if value != "" {
			return value, set
		}
		for _, from := range []*jsonNode{block.member("vars"), block} {
			if from == nil {
				continue
			}
			if n := from.member(name); n != nil && n.kind == jsonString {
				return n.str, true
			}
		}
		return value, set
	}
}

func (d *configDecoder) walk(n *jsonNode, path string, env cfgEnv) {
	switch n.kind {
	case jsonString:
		text, vars, err := cfgInterpolate(n.str, env)
		if err != nil {
			d.errorf(n.off, path, "%v", err)
			n.failed = true
			return
		}
		if text != n.str || len(vars) > 0 {
			n.raw, n.str, n.vars = n.str, text, vars
		}
	case jsonArray:
		for i, item := range n.items {
			d.walk(item, fmt.Sprintf("%s[%d]", path, i), env)
		}
	case jsonObject:
		d.duplicates(n, path)
		for _, m := range n.members {
			d.walk(m.node, cfgJoin(path, m.key), env)
		}
	}
}

func (d *configDecoder) duplicates(n *jsonNode, path string) {
	first := make(map[string]int, len(n.members))
	for _, m := range n.members {
		if off, ok := first[m.key]; ok {
			line, col := d.lines.position(off)
			d.warnf(m.off, cfgJoin(path, m.key), "said before at %d:%d; the last one counts", line, col)
			continue
		}
		first[m.key] = m.off
	}
}

// structure reads an object into struct v.
func (d *configDecoder) structure(n *jsonNode, v reflect.Value, path string, unused bool) {
	s := cfgSchema(v.Type())
	for i, m := range n.members {
		p := cfgJoin(path, m.key)
		f := s.byKey[m.key]
		if f == nil && s.rest != nil {
			d.rest(m, v.Field(s.rest.index), p)
			continue
		}
		if f == nil {
			// Nobody reads the hundredth suggestion, and looking for one takes time.
			if !s.accept[m.key] && !s.acceptAny && m.key != "$include" && len(d.warnings) < maxConfigWarnings {
				d.warnf(m.off, p, "unknown key%s", s.suggest(m.key))
			}
			continue
		}
		if slices.ContainsFunc(n.members[i+1:], func(later jsonMember) bool { return later.key == m.key }) {
			continue // said again below
		}
		if f.unused && m.node.kind != jsonNull {
			d.note(m, f, v.Type(), p)
		}
		d.field(m, f, v.Field(f.index), p, unused || f.unused)
	}
}

// rest reads a key that only somebody else knows.
func (d *configDecoder) rest(m jsonMember, v reflect.Value, path string) {
	if m.node.kind == jsonNull || m.node.failed {
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	d.origin(m.node, path)
	d.inner(m.node, path)
	v.SetMapIndex(reflect.ValueOf(m.key), reflect.ValueOf(m.node.value()))
}

// note remembers for Unused that a file sets field f.
func (d *configDecoder) note(m jsonMember, f *cfgField, in reflect.Type, path string) {
	say := func(off int, path, once string) {
		if !d.said[once] {
			d.said[once] = true
			p := d.problem(off, path, "accepted, not used by this version")
			d.cfg.source.unused = append(d.cfg.source.unused, Warning{p, SeverityInfo})
		}
	}
	if !f.each || m.node.kind != jsonObject {
		say(m.off, path, in.Name()+"."+f.key)
		return
	}
	for _, entry := range m.node.members {
		p := cfgJoin(path, entry.key)
		say(entry.off, p, p)
	}
}

// field reads one member: the short form and references to secrets, then its value.
func (d *configDecoder) field(m jsonMember, f *cfgField, v reflect.Value, path string, unused bool) {
	n := m.node
	switch {
	case n.failed:
		return
	case n.kind == jsonString && f.short != "":
		d.origin(n, path)
		path = cfgJoin(path, f.short)
		d.value(n, v.Field(cfgSchema(f.typ).byKey[f.short].index), path, "", unused)
		return
	case n.kind == jsonObject && f.secret && f.typ.Kind() != reflect.Map:
		d.secretRef(n, v, path, unused)
		return
	}
	d.value(n, v, path, f.typeName(), unused)
}

// secretRef reads OpenClaw's {source, provider, id} where a secret stands. Only the
// source env is known; the others matter only where the secret would be used.
func (d *configDecoder) secretRef(n *jsonNode, v reflect.Value, path string, unused bool) {
	source, id := n.member("source"), n.member("id")
	switch {
	case unused:
	case source == nil || source.kind != jsonString || id == nil || id.kind != jsonString:
		d.errorf(n.off, path, `expected string, found object (a reference needs {source: "env", id: "NAME"})`)
	case source.str != "env":
		d.errorf(source.off, path, "secrets from source %q are not supported by this version: use env", cfgShort(source.str))
	default:
		value, _ := d.cfg.source.env(id.str)
		if value == "" {
			d.errorf(id.off, path, "environment variable %s is not set", cfgShort(id.str))
			return
		}
		d.origin(n, path)
		o := d.cfg.source.origins[path]
		o.Vars = []string{id.str}
		d.cfg.source.origins[path] = o
		v.SetString(value)
	}
}

func (d *configDecoder) origin(n *jsonNode, path string) {
	line, col := d.lines.position(n.off)
	d.cfg.source.origins[path] = Origin{Kind: OriginFile, Name: d.name, Line: line, Col: col, Vars: n.vars, raw: n.raw}
}

// value reads n into v. want is what an error says was expected.
func (d *configDecoder) value(n *jsonNode, v reflect.Value, path, want string, unused bool) {
	if n.kind == jsonNull || n.failed {
		return // as if the key were not there
	}
	d.origin(n, path)
	if want == "" {
		want = cfgTypeName(v.Type())
	}
	mismatch := func() { d.errorf(n.off, path, "expected %s, found %s", want, n.kind) }
	set := func(x int64, err error) {
		if err != nil {
			d.errorf(n.off, path, "%v", err)
			return
		}
		v.SetInt(x)
	}
	text := n.kind == jsonString
	switch {
	case v.Type() == cfgDurationType && n.kind == jsonNumber:
		x, err := cfgDurationOf(n.num)
		set(int64(x), err)
		return
	case v.Type() == cfgBytesType && n.kind == jsonNumber:
		x, err := cfgBytesOf(n.num)
		set(int64(x), err)
		return
	case (v.Type() == cfgDurationType || v.Type() == cfgBytesType) && text:
		if err := cfgSetText(v, n.str); err != nil {
			d.errorf(n.off, path, "%v", err)
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		if !text {
			mismatch()
			return
		}
		v.SetString(n.str)
	case reflect.Bool:
		switch {
		case n.kind == jsonBool:
			v.SetBool(n.boolean)
		case text && len(n.vars) > 0:
			d.text(n, v, path)
		default:
			mismatch()
		}
	case reflect.Int:
		switch {
		case n.kind == jsonNumber:
			set(cfgWholeOf(n.num))
		case text && len(n.vars) > 0:
			d.text(n, v, path)
		default:
			mismatch()
		}
	case reflect.Float64:
		if n.kind != jsonNumber {
			mismatch()
			return
		}
		v.SetFloat(n.num)
	case reflect.Int64:
		mismatch() // a duration or size that is neither text nor number
	case reflect.Struct:
		if n.kind != jsonObject {
			mismatch()
			return
		}
		d.structure(n, v, path, unused)
	case reflect.Slice:
		if n.kind != jsonArray {
			mismatch()
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
		for i, item := range n.items {
			p := fmt.Sprintf("%s[%d]", path, i)
			if item.kind == jsonNull {
				d.errorf(item.off, p, "expected %s, found null", cfgTypeName(v.Type().Elem()))
				continue
			}
			d.value(item, list.Index(i), p, "", unused)
			cfgSetAgentPath(list.Index(i), p)
		}
		v.Set(list)
	case reflect.Map:
		if n.kind != jsonObject {
			mismatch()
			return
		}
		d.mapping(n, v, path, unused)
	case reflect.Interface:
		v.Set(reflect.ValueOf(n.value()))
		d.inner(n, path)
	}
}

// text reads an interpolated string where a number or boolean is expected. JSON5 has
// no other way to say port: ${PORT}.
func (d *configDecoder) text(n *jsonNode, v reflect.Value, path string) {
	if err := cfgSetText(v, n.str); err != nil {
		d.errorf(n.off, path, "%v, found the string %q", err, cfgShort(n.raw))
	}
}

func (d *configDecoder) mapping(n *jsonNode, v reflect.Value, path string, unused bool) {
	m := reflect.MakeMapWithSize(v.Type(), len(n.members))
	for _, member := range n.members {
		p := cfgJoin(path, member.key)
		entry := reflect.New(v.Type().Elem()).Elem()
		d.value(member.node, entry, p, "", unused)
		cfgSetAgentPath(entry, p)
		m.SetMapIndex(reflect.ValueOf(member.key), entry)
	}
	v.Set(m)
}

// inner notes the origin of interpolated strings below a value of any shape, so that
// Show knows what to hide.
func (d *configDecoder) inner(n *jsonNode, path string) {
	if len(n.vars) > 0 {
		d.origin(n, path)
	}
	for i, item := range n.items {
		d.inner(item, fmt.Sprintf("%s[%d]", path, i))
	}
	for _, m := range n.members {
		d.inner(m.node, cfgJoin(path, m.key))
	}
}

func cfgSetAgentPath(v reflect.Value, path string) {
	if v.Type() == cfgAgentType {
		v.Addr().Interface().(*AgentConfig).path = path
	}
}
