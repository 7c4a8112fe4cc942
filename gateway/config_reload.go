package gateway

import (
	"maps"
	"reflect"
	"slices"
)

// Reloadable compares two normalized configurations: which keys changed, and which of
// them a running gateway cannot take up. Agents are compared by id (agents.bobby.name);
// one that came, went or may now run elsewhere needs a restart. Keys that this version
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
		d.value(old.Field(f.index), new.Field(f.index), cfgJoin(path, f.key), live || f.live || f.unused)
	}
}

func (d *configDiff) value(old, new reflect.Value, path string, live bool) {
	switch {
	case old.Type() == reflect.TypeFor[[]AgentConfig]():
		d.agents(old.Interface().([]AgentConfig), new.Interface().([]AgentConfig))
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

func (d *configDiff) agents(old, new []AgentConfig) {
	byID := func(list []AgentConfig) map[string]AgentConfig {
		m := make(map[string]AgentConfig, len(list))
		for _, a := range list {
			m[a.ID] = a
		}
		return m
	}
	before, after := byID(old), byID(new)
	all := maps.Clone(before)
	maps.Copy(all, after)
	for id := range all {
		path := "agents." + id
		a, was := before[id]
		b, is := after[id]
		if !was || !is {
			d.differs(path, false)
			continue
		}
		d.structure(reflect.ValueOf(a), reflect.ValueOf(b), path, false)
	}
}
