package gateway

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A positioned JSON5 tree.
//
// Why not github.com/titanous/json5 for reading: it decodes straight into values
// and keeps no position of any key, so that "line 12, column 5" cannot be said; it
// answers duplicate keys with silence; it ends a block comment at the first slash
// after any asterisk; and it refuses constructs of the JSON5 specification that
// OpenClaw's own reader takes (\x41, \v, tabs in strings, non-ASCII keys, +NaN).
// Decoding a second time with it would only add a way for the two to differ. It
// serves as the oracle in FuzzConfig instead: what is accepted here without those
// constructs must be accepted there, with the same value.

// Limits of a configuration file.
const (
	// MaxConfigBytes is the size of the largest file that is read.
	MaxConfigBytes = 10_000_000
	// maxConfigDepth is how deep objects and arrays may nest.
	maxConfigDepth = 64
)

type jsonKind uint8

const (
	jsonNull jsonKind = iota
	jsonBool
	jsonNumber
	jsonString
	jsonArray
	jsonObject
)

// String names the kind as an error message does.
func (k jsonKind) String() string {
	return [...]string{"null", "boolean", "number", "string", "array", "object"}[k]
}

// jsonNode is one value and where it starts (a byte offset).
type jsonNode struct {
	kind    jsonKind
	off     int
	boolean bool
	num     float64
	str     string   // the string; of a number its literal
	raw     string   // a string before interpolation, set only when that changed it
	vars    []string // variables that interpolation put in
	failed  bool     // interpolation failed, which has been said
	items   []*jsonNode
	members []jsonMember
}

type jsonMember struct {
	key  string
	off  int
	node *jsonNode
}

// member returns the last member called key (the one that counts), or nil.
func (n *jsonNode) member(key string) *jsonNode {
	for i := len(n.members) - 1; i >= 0; i-- {
		if n.members[i].key == key {
			return n.members[i].node
		}
	}
	return nil
}

// value returns the node as plain Go values (map, slice, string, float64, bool, nil).
func (n *jsonNode) value() any {
	switch n.kind {
	case jsonBool:
		return n.boolean
	case jsonNumber:
		return n.num
	case jsonString:
		return n.str
	case jsonArray:
		list := make([]any, len(n.items))
		for i, item := range n.items {
			list[i] = item.value()
		}
		return list
	case jsonObject:
		m := make(map[string]any, len(n.members))
		for _, member := range n.members {
			m[member.key] = member.node.value()
		}
		return m
	}
	return nil
}

// json5Error is where reading stopped.
type json5Error struct {
	off int
	msg string
}

func (e *json5Error) Error() string { return e.msg }

type json5Parser struct {
	src   string
	pos   int
	depth int
	// beyond names a construct that JSON5 has and the oracle library lacks; "" when
	// the document uses none. Only the fuzz test reads it.
	beyond string
}

// parseJSON5 reads one document. src must be valid UTF-8.
func parseJSON5(src string) (*jsonNode, string, error) {
	p := &json5Parser{src: src}
	if err := p.space(); err != nil {
		return nil, "", err
	}
	node, err := p.value()
	if err != nil {
		return nil, "", err
	}
	if err := p.space(); err != nil {
		return nil, "", err
	}
	if p.pos < len(p.src) {
		return nil, "", p.unexpected("the end of the file")
	}
	return node, p.beyond, nil
}

func (p *json5Parser) fail(off int, format string, args ...any) error {
	return &json5Error{off, fmt.Sprintf(format, args...)}
}

// unexpected reports what stands at the current position instead of want.
func (p *json5Parser) unexpected(want string) error {
	return p.fail(p.pos, "expected %s, found %s", want, p.found())
}

func (p *json5Parser) found() string {
	if p.pos >= len(p.src) {
		return "the end of the file"
	}
	r, _ := p.peek()
	if json5IdentStart(r) {
		end := p.pos
		for end < len(p.src) && end-p.pos < 20 {
			r, size := utf8.DecodeRuneInString(p.src[end:])
			if !json5IdentPart(r) {
				break
			}
			end += size
		}
		return strconv.Quote(p.src[p.pos:end])
	}
	if r == '\n' || r == '\r' {
		return "the end of the line"
	}
	return strconv.QuoteRune(r)
}

// peek returns the rune at the position; (0, 0) at the end.
func (p *json5Parser) peek() (rune, int) {
	if p.pos >= len(p.src) {
		return 0, 0
	}
	if c := p.src[p.pos]; c < utf8.RuneSelf {
		return rune(c), 1
	}
	return utf8.DecodeRuneInString(p.src[p.pos:])
}

// at reports whether the byte at the position is c.
func (p *json5Parser) at(c byte) bool { return p.pos < len(p.src) && p.src[p.pos] == c }

func (p *json5Parser) value() (*jsonNode, error) {
	n := &jsonNode{off: p.pos}
	r, size := p.peek()
	switch {
	case size == 0:
		return nil, p.unexpected("a value")
	case r == '{':
		return n, p.object(n)
	case r == '[':
		return n, p.array(n)
	case r == '"' || r == '\'':
		n.kind = jsonString
		var err error
		n.str, err = p.quoted()
		return n, err
	case r == '+' || r == '-' || r == '.' || '0' <= r && r <= '9':
		return n, p.number(n)
	case json5IdentStart(r):
		word := p.word()
		switch word {
		case "true", "false":
			n.kind, n.boolean = jsonBool, word == "true"
		case "null":
		case "Infinity", "NaN":
			p.pos = n.off
			return n, p.number(n)
		default:
			p.pos = n.off
			if strings.HasPrefix(p.src[p.pos:], "${") {
				return nil, p.fail(n.off, "a variable needs quotes, also where a number is expected: \"${NAME}\"")
			}
			return nil, p.fail(n.off, "expected a value, found %s (text needs quotes)", p.found())
		}
		return n, nil
	}
	return nil, p.unexpected("a value")
}

// word reads ASCII letters, digits, _ and $.
func (p *json5Parser) word() string {
	start := p.pos
	for p.pos < len(p.src) {
		r, size := p.peek()
		if !json5IdentPart(r) {
			break
		}
		p.pos += size
	}
	return p.src[start:p.pos]
}

func (p *json5Parser) enter(off int) error {
	if p.depth++; p.depth > maxConfigDepth {
		return p.fail(off, "nested deeper than %d levels", maxConfigDepth)
	}
	return nil
}

func (p *json5Parser) array(n *jsonNode) error {
	n.kind = jsonArray
	if err := p.enter(n.off); err != nil {
		return err
	}
	defer func() { p.depth-- }()
	p.pos++
	for {
		if err := p.space(); err != nil {
			return err
		}
		if p.at(']') {
			p.pos++
			return nil
		}
		if p.pos >= len(p.src) {
			return p.fail(n.off, "this [ is never closed")
		}
		item, err := p.value()
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
		if err := p.space(); err != nil {
			return err
		}
		switch {
		case p.at(','):
			p.pos++
		case p.at(']'):
		case p.pos >= len(p.src):
			return p.fail(n.off, "this [ is never closed")
		default:
			return p.unexpected("',' or ']' after an array element")
		}
	}
}

func (p *json5Parser) object(n *jsonNode) error {
	n.kind = jsonObject
	if err := p.enter(n.off); err != nil {
		return err
	}
	defer func() { p.depth-- }()
	p.pos++
	for {
		if err := p.space(); err != nil {
			return err
		}
		if p.at('}') {
			p.pos++
			return nil
		}
		if p.pos >= len(p.src) {
			return p.fail(n.off, "this { is never closed")
		}
		m := jsonMember{off: p.pos}
		var err error
		if m.key, err = p.key(); err != nil {
			return err
		}
		if err := p.space(); err != nil {
			return err
		}
		if !p.at(':') {
			return p.unexpected(fmt.Sprintf("':' after the key %q", cfgShort(m.key)))
		}
		p.pos++
		if err := p.space(); err != nil {
			return err
		}
		if m.node, err = p.value(); err != nil {
			return err
		}
		n.members = append(n.members, m)
		if err := p.space(); err != nil {
			return err
		}
		switch {
		case p.at(','):
			p.pos++
		case p.at('}'):
		case p.pos >= len(p.src):
			return p.fail(n.off, "this { is never closed")
		default:
			return p.unexpected(fmt.Sprintf("',' or '}' after the value of %q", cfgShort(m.key)))
		}
	}
}
