package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// ConfigProblem is one thing wrong with a configuration. Line and Col count from 1 and are
// 0 when the value does not come from a file.
type ConfigProblem struct {
	File      string
	Line, Col int
	Path      string // key, like agents.list[1].name; "" for the file as a whole
	Message   string
}

// String is one line: file:line:col: path: message.
func (p ConfigProblem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Col)
		}
		b.WriteString(": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	return b.String() + p.Message
}

// ConfigError is everything wrong with a configuration, in the order of the file. Its
// text has one line for each problem.
type ConfigError struct{ Problems []ConfigProblem }

func (e *ConfigError) Error() string {
	const most = 25
	lines := make([]string, 0, most+1)
	for i, p := range e.Problems {
		if i == most {
			lines = append(lines, fmt.Sprintf("... and %d more", len(e.Problems)-most))
			break
		}
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// Severity of a [Warning].
type Severity string

const (
	// SeverityWarning: most likely a mistake.
	SeverityWarning Severity = "warning"
	// SeverityInfo: accepted, and good to know.
	SeverityInfo Severity = "info"
)

// Warning is something that does not keep the gateway from running.
type Warning struct {
	ConfigProblem
	Severity Severity
}

// OriginKind says where a value came from.
type OriginKind string

// The origins of a value: our default, the file, the environment, a flag.
const (
	OriginDefault OriginKind = "default"
	OriginFile    OriginKind = "file"
	OriginEnv     OriginKind = "env"
	OriginFlag    OriginKind = "flag"
)

// Origin is where a value came from.
type Origin struct {
	Kind      OriginKind
	Name      string // the file, the variable or the flag
	Line, Col int
	Vars      []string // variables that were put into the value
	raw       string   // the text before interpolation
}

// String is like "openclaw.json:12:5 (${TOKEN})", "env GATEMESH_TOKEN" or "default".
func (o Origin) String() string {
	switch o.Kind {
	case OriginFile:
		s := fmt.Sprintf("%s:%d:%d", o.Name, o.Line, o.Col)
		if len(o.Vars) > 0 {
			s += " (${" + strings.Join(o.Vars, "}, ${") + "})"
		}
		return s
	case OriginEnv, OriginFlag:
		return string(o.Kind) + " " + o.Name
	}
	return string(OriginDefault)
}

// configSource is what a Config remembers of its making.
type configSource struct {
	name    string
	env     cfgEnv
	origins map[string]Origin
	unused  []Warning
}

func (s *configSource) explicit(path string) bool {
	_, ok := s.origins[path]
	return ok
}

// Origin says where the value at path (like "gateway.port") came from.
func (c *Config) Origin(path string) Origin {
	if o, ok := c.source.origins[path]; ok {
		return o
	}
	return Origin{Kind: OriginDefault}
}

// Unused names what the file sets and this version does not act on, at
// [SeverityInfo]. The same key of several agents is named once, where it stands first.
func (c *Config) Unused() []Warning { return slices.Clone(c.source.unused) }

// DefaultConfig is the configuration of an empty file, before [Config.Normalize].
func DefaultConfig() *Config {
	c := &Config{}
	cfgFill(reflect.ValueOf(c).Elem(), "", true, c.source.explicit)
	c.source.origins = map[string]Origin{}
	return c
}

// Set overrides the key at a dotted path from text, as a command line flag does: it
// takes what a string in the file may hold, and lists of strings separated by
// commas. name is the flag's, for messages.
func (c *Config) Set(path, text, name string) error {
	v, _, err := cfgLookup(reflect.ValueOf(c).Elem(), path)
	if err != nil {
		return err
	}
	value := reflect.New(v.Type()).Elem()
	if err := cfgSetText(value, text); err != nil {
		return fmt.Errorf("%s: %s: %w", name, path, err)
	}
	v.Set(value)
	if c.source.origins == nil {
		c.source.origins = map[string]Origin{}
	}
	c.source.origins[path] = Origin{Kind: OriginFlag, Name: name}
	return nil
}

// LoadConfig reads a file. env looks up environment variables (os.LookupEnv). The
// result is neither normalized nor validated: flags come between.
//
// Errors are *ConfigError, except that a file that cannot be opened gives the error
// of the operating system (errors.Is fs.ErrNotExist).
func LoadConfig(path string, env func(string) (string, bool)) (*Config, []Warning, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxConfigBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	return ParseConfig(path, data, env)
}

// ParseConfig is [LoadConfig] of data; name stands for the file in messages.
func ParseConfig(name string, data []byte, env func(string) (string, bool)) (*Config, []Warning, error) {
	if env == nil {
		env = os.LookupEnv
	}
	src, err := configText(name, data)
	if err != nil {
		return nil, nil, err
	}
	d := &configDecoder{name: name, lines: newCfgLines(src), cfg: DefaultConfig(), said: map[string]bool{}}
	d.cfg.source.name, d.cfg.source.env = name, env

	root, _, err := parseJSON5(src)
	if stop := (*json5Error)(nil); errors.As(err, &stop) {
		d.errorf(stop.off, "", "%s", stop.msg)
		return nil, nil, d.err()
	}
	if root.kind != jsonObject {
		d.errorf(root.off, "", "expected object, found %s", root.kind)
		return nil, nil, d.err()
	}
	d.prepare(root)
	d.structure(root, reflect.ValueOf(d.cfg).Elem(), "", false)
	slices.SortStableFunc(d.warnings, cfgByPosition)
	slices.SortStableFunc(d.cfg.source.unused, cfgByPosition)
	if err := d.err(); err != nil {
		return nil, d.warnings, err
	}
	return d.cfg, d.warnings, nil
}

func cfgByPosition(a, b Warning) int {
	return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
}

// configText refuses what cannot be a configuration, in one line.
func configText(name string, data []byte) (string, error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", &ConfigError{[]ConfigProblem{{File: name, Message: fmt.Sprintf(format, args...)}}}
	}
	if len(data) > MaxConfigBytes {
		return refuse("larger than %d MB, the most a configuration may have", MaxConfigBytes/1_000_000)
	}
	for _, bom := range []string{"\xff\xfe", "\xfe\xff"} {
		if strings.HasPrefix(string(data[:min(2, len(data))]), bom) {
			return refuse("the text is UTF-16: save it as UTF-8")
		}
	}
	src := strings.TrimPrefix(string(data), "\ufeff")
	if strings.TrimSpace(src) == "" {
		return refuse("the file is empty: write {} for the defaults")
	}
	if i := strings.IndexByte(src, 0); i >= 0 {
		return refuse("not a text file: byte 0x00 at offset %d", i)
	}
	for i := 0; i < len(src); {
		r, size := utf8.DecodeRuneInString(src[i:])
		if r == utf8.RuneError && size == 1 {
			return refuse("not UTF-8 text: byte 0x%02x at offset %d", src[i], i)
		}
		i += size
	}
	return src, nil
}
