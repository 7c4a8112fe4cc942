package gateway

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/a8m/envsubst/parse"
)

// Interpolation of strings, after parsing: a value can therefore hold any character
// without breaking the file.
//
//	${NAME}            the variable; unset or empty is an error
//	${NAME:-text}      text when it is unset or empty; ${NAME-text} only when unset
//	${NAME:+text}      text when it is set, else nothing
//	$${NAME}           the characters ${NAME}
//
// A $ without { behind it is an ordinary character, as in OpenClaw: "pa$$word" stays
// what it is. envsubst sees one ${...} at a time and only of the form below: given a
// whole string it would expand $word, and for some malformed input ("${A:-$_}") its
// parser never returns.
var cfgVariable = regexp.MustCompile(`^\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-+=])([^{}$\r\n]*))?\}`)

type cfgEnv = func(name string) (string, bool)

// cfgInterpolate returns s with its variables put in and their names. The error says
// which variable is missing; it never holds a value.
func cfgInterpolate(s string, env cfgEnv) (out string, vars []string, err error) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			b.WriteString(s)
			return b.String(), vars, nil
		}
		if i > 0 && s[i-1] == '$' { // $${NAME}
			b.WriteString(s[:i-1])
			b.WriteString("${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		m := cfgVariable.FindStringSubmatch(s[i:])
		if m == nil || m[1] == "_" {
			return "", vars, fmt.Errorf("%q is not a variable: write ${NAME} or ${NAME:-text}, or $${ for the characters ${", cfgShort(s[i:]))
		}
		text, err := cfgSubstitute(m[0], m[1], m[2], m[3], env)
		vars = append(vars, m[1])
		if err != nil {
			return "", vars, err
		}
		b.WriteString(text)
		s = s[i+len(m[0]):]
	}
}

// cfgSubstitute expands one ${name<op>text}.
func cfgSubstitute(expr, name, op, text string, env cfgEnv) (string, error) {
	value, set := env(name)
	switch {
	case op == "" && !set:
		return "", fmt.Errorf("environment variable %s is not set", name)
	case op == "" && value == "":
		return "", fmt.Errorf("environment variable %s is empty (write ${%s:-} if it may be)", name, name)
	case op != "" && text == "":
		// envsubst takes an empty alternative for none at all.
		if strings.HasSuffix(op, "+") {
			return "", nil
		}
		return value, nil
	}
	var list []string
	if set {
		list = []string{name + "=" + value}
	}
	out, err := parse.New(name, list, &parse.Restrictions{NoUnset: true}).Parse(expr)
	if err != nil {
		return "", fmt.Errorf("environment variable %s: %w", name, err)
	}
	return out, nil
}
