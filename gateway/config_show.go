package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strings"
)

// Redacted stands where Show hides a value.
const Redacted = "[redacted]"

// Show writes the effective configuration. Format "json" (or "") is one JSON object in
// the file's own shape; "origins" is a line for each value with where it came from.
//
// Hidden are values whose key says that they are secret (token, apiKey, appToken,
// password, secret, sha256 ... and whatever ends so), at any depth, everything below env, what
// came from a variable with such a name, passwords within URLs, and any other string
// that holds one of these secrets.
func (c *Config) Show(w io.Writer, format string) error {
	s := &configShow{cfg: c}
	root := reflect.ValueOf(c).Elem()
	s.structure(root, "", false) // finds the secrets
	tree := s.structure(root, "", false)
	var out bytes.Buffer
	switch format {
	case "", "json":
		text, err := json.MarshalIndent(tree, "", "  ")
		if err != nil {
			return fmt.Errorf("show configuration: %w", err)
		}
		out.Write(append(text, '\n'))
	case "origins":
		s.lines(&out, tree, "")
	default:
		return fmt.Errorf("show configuration: no format %q: json or origins", format)
	}
	_, err := w.Write(out.Bytes())
	return err
}

// cfgObject is a JSON object that keeps its order.
type cfgObject []cfgMember

type cfgMember struct {
	key, path string
	value     any
}

// MarshalJSON implements json.Marshaler.
func (o cfgObject) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		key, _ := json.Marshal(m.key)
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

type configShow struct {
	cfg     *Config
	secrets []string // texts that were hidden, to find them elsewhere too
}

func (s *configShow) structure(v reflect.Value, path string, hide bool) cfgObject {
	path = cfgItemPath(v, path)
	object := cfgObject{}
	for _, f := range cfgSchema(v.Type()).fields {
		fv, p := v.Field(f.index), cfgJoin(path, f.key)
		if f.rest {
			object = append(object, s.value(fv, path, hide).(cfgObject)...)
			continue
		}
		if fv.IsZero() && f.def == "" && !s.cfg.source.explicit(p) {
			continue
		}
		value := s.value(fv, p, hide || f.secret || f.namesSecret() || p == "env")
		if o, ok := value.(cfgObject); ok && len(o) == 0 {
			continue
		}
		object = append(object, cfgMember{f.key, p, value})
	}
	return object
}

func (s *configShow) value(v reflect.Value, path string, hide bool) any {
	if v.Type() == cfgDurationType || v.Type() == cfgBytesType {
		return cfgText(v)
	}
	switch v.Kind() {
	case reflect.Struct:
		return s.structure(v, path, hide)
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = s.value(v.Index(i), fmt.Sprintf("%s[%d]", path, i), hide)
		}
		return list
	case reflect.Map:
		object := cfgObject{}
		for _, key := range slices.Sorted(maps.Keys(cfgStringKeys(v))) {
			p := cfgJoin(path, key)
			value := s.value(v.MapIndex(reflect.ValueOf(key)), p, hide || cfgSecretKey(key) || key == "env")
			object = append(object, cfgMember{key, p, value})
		}
		return object
	case reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return s.value(v.Elem(), path, hide)
	case reflect.String:
		return s.text(v.String(), path, hide)
	case reflect.Float64:
		if f := v.Float(); math.IsInf(f, 0) || math.IsNaN(f) {
			return fmt.Sprint(f) // JSON has no such number
		}
	}
	if hide && v.Kind() != reflect.Bool {
		return Redacted
	}
	return v.Interface()
}

func cfgStringKeys(v reflect.Value) map[string]bool {
	keys := make(map[string]bool, v.Len())
	for _, k := range v.MapKeys() {
		keys[k.String()] = true
	}
	return keys
}

func (s *configShow) text(text, path string, hide bool) any {
	for _, name := range s.cfg.Origin(path).Vars {
		hide = hide || cfgSecretVariable(name)
	}
	switch {
	case text == "":
		return text
	case hide:
		// Shorter ones would hide ordinary words.
		if len(text) >= 6 && !slices.Contains(s.secrets, text) {
			s.secrets = append(s.secrets, text)
		}
		return Redacted
	case slices.ContainsFunc(s.secrets, func(secret string) bool { return strings.Contains(text, secret) }):
		return Redacted
	}
	if strings.Contains(text, "://") && strings.Contains(text, "@") {
		if u, err := url.Parse(text); err != nil {
			return Redacted
		} else if _, has := u.User.Password(); has {
			u.User = url.UserPassword(u.User.Username(), "redacted")
			return u.String()
		}
	}
	return text
}

var cfgSecretEndings = []string{
	"token", "tokens", "apikey", "apikeys", "password", "passwords", "passwd", "passphrase", "secret", "secrets",
	"credential", "credentials", "privatekey", "accesskey", "secretkey", "signingkey", "authorization", "cookie", "sha256", "channelkeys",
}

// cfgSecretKey reports whether a key says that its value is secret.
// Counts of tokens (maxTokens) are none.
func cfgSecretKey(key string) bool {
	plain := strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(key))
	if plain == "maxtokens" {
		return false
	}
	return slices.ContainsFunc(cfgSecretEndings, func(end string) bool { return strings.HasSuffix(plain, end) })
}

// namesSecret is cfgSecretKey of a field; the fields of a list of ours speak for themselves.
func (f *cfgField) namesSecret() bool {
	list := f.typ.Kind() == reflect.Slice && f.typ.Elem().Kind() == reflect.Struct
	return !list && cfgSecretKey(f.key)
}

// cfgSecretVariable does the same for a variable's name, where KEY alone says enough.
func cfgSecretVariable(name string) bool {
	return cfgSecretKey(name) || strings.HasSuffix(strings.ToLower(name), "key") || strings.HasSuffix(strings.ToLower(name), "_pass")
}

// lines writes a tree flat, with origins.
func (s *configShow) lines(out *bytes.Buffer, value any, path string) {
	switch value := value.(type) {
	case cfgObject:
		for _, m := range value {
			s.lines(out, m.value, m.path)
		}
		return
	case []any:
		if len(value) > 0 {
			if _, nested := value[0].(cfgObject); nested {
				for i, item := range value {
					s.lines(out, item, fmt.Sprintf("%s[%d]", path, i))
				}
				return
			}
		}
	}
	text, err := json.Marshal(value)
	if err != nil {
		text = []byte(`"?"`)
	}
	fmt.Fprintf(out, "%s = %s  # %s\n", path, text, s.cfg.Origin(path))
}
