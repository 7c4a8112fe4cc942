package gateway

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Reloadable compares two normalized configurations: which keys changed, and which of
// them a running gateway cannot take up. Agents and queues are compared by id
// (agents.bobby.name, mesh.queues.nightly.workers); one that came, went or may now run elsewhere
// needs a restart. Keys that this version
// does not use count as changed and never as in need of a restart. Both lists are
// sorted.
func Reloadable(old, new *Config) (changed, needRestart []string) {
	d := &configDiff{}
	d.structure(reflect.ValueOf(old).Elem(), reflect.ValueOf(new).Elem(), "", false)
	slices.Sort(d.changed)
	slices.Sort(d.restart)
	return d.changed, d.restart
}

type configDiff struct{ changed, restart []string }

func (d *configDiff) differs(path string, live bool) {
	d.changed = append(d.changed, path)
	if !live {
		d.restart = append(d.restart, path)
	}
}

func (d *configDiff) structure(old, new reflect.Value, path string, live bool) {
	for _, f := range cfgSchema(old.Type()).fields {
		p := cfgJoin(path, f.key)
		if f.rest {
			p = path
		}
		d.value(old.Field(f.index), new.Field(f.index), p, live || f.live || f.unused)
	}
}

func (d *configDiff) value(old, new reflect.Value, path string, live bool) {
	switch {
	case cfgByID(old.Type()):
		d.list(old, new, strings.TrimSuffix(path, ".list"))
	case old.Kind() == reflect.Struct:
		d.structure(old, new, path, live)
	case old.Kind() == reflect.Map:
		keys := cfgStringKeys(old)
		maps.Copy(keys, cfgStringKeys(new))
		for key := range keys {
			k, p := reflect.ValueOf(key), cfgJoin(path, key)
			a, b := old.MapIndex(k), new.MapIndex(k)
			if !a.IsValid() || !b.IsValid() {
				d.differs(p, live)
				continue
			}
			d.value(a, b, p, live)
		}
	case old.Kind() == reflect.Slice && old.Len() == 0 && new.Len() == 0:
	case !reflect.DeepEqual(old.Interface(), new.Interface()):
		d.differs(path, live)
	}
}

// cfgByID reports whether t is a list whose items are known by an id, wherever they stand in it.
func cfgByID(t reflect.Type) bool {
	if t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Struct {
		return false
	}
	id := cfgSchema(t.Elem()).byKey["id"]
	return id != nil && id.id
}

func (d *configDiff) list(old, new reflect.Value, path string) {
	byID := func(list reflect.Value) map[string]reflect.Value {
		id := cfgSchema(list.Type().Elem()).byKey["id"].index
		m := make(map[string]reflect.Value, list.Len())
		for i := range list.Len() {
			m[list.Index(i).Field(id).String()] = list.Index(i)
		}
		return m
	}
	before, after := byID(old), byID(new)
	all := maps.Clone(before)
	maps.Copy(all, after)
	for id := range all {
		p := path + "." + id
		a, was := before[id]
		b, is := after[id]
		if !was || !is {
			d.differs(p, false)
			continue
		}
		d.structure(a, b, p, false)
	}
}
