package gateway

import (
	"errors"
	"math"
	"math/big"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// The tokens of JSON5: white space, keys, strings, numbers; and positions.

// space skips white space and comments.
func (p *json5Parser) space() error {
	for {
		r, size := p.peek()
		switch {
		case size == 0:
			return nil
		case r == ' ' || r == '\t' || r == '\n' || r == '\r':
			p.pos++
		case r == '\v' || r == '\f' || r == 0xFEFF || r == 0x2028 || r == 0x2029 || unicode.Is(unicode.Zs, r):
			p.beyond = "rare white space"
			p.pos += size
		case r == '/':
			if err := p.comment(); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func (p *json5Parser) comment() error {
	start := p.pos
	rest := p.src[start:]
	switch {
	case strings.HasPrefix(rest, "//"):
		for p.pos < len(p.src) {
			r, size := p.peek()
			if r == '\n' || r == '\r' || r == 0x2028 || r == 0x2029 {
				if r != '\n' {
					p.beyond = "comment ended by something else than a line feed"
				}
				return nil
			}
			p.pos += size
		}
		return nil
	case strings.HasPrefix(rest, "/*"):
		end := strings.Index(rest[2:], "*/")
		if end < 0 {
			return p.fail(start, "this comment is never closed (no */ before the end of the file)")
		}
		if body := rest[2 : 2+end]; strings.Contains(body, "*") {
			p.beyond = "asterisk in a block comment"
		}
		p.pos += end + 4
		return nil
	}
	return p.unexpected("a value")
}

// key reads an object key: a quoted string or an ECMAScript identifier.
func (p *json5Parser) key() (string, error) {
	if p.at('"') || p.at('\'') {
		return p.quoted()
	}
	start := p.pos
	var b strings.Builder
	for p.pos < len(p.src) {
		r, size := p.peek()
		off := p.pos
		if r == '\\' {
			p.pos++
			if !p.at('u') {
				return "", p.fail(off, `only \uXXXX may follow a backslash in a key`)
			}
			p.pos++
			code, err := p.hex(4)
			if err != nil {
				return "", err
			}
			r, size = code, 0
			p.beyond = "escape in an unquoted key"
			if !json5IdentPart(r) {
				return "", p.fail(off, "a key with %q needs quotes", r)
			}
		}
		if !json5IdentPart(r) || b.Len() == 0 && !json5IdentStart(r) {
			break
		}
		if r >= utf8.RuneSelf {
			p.beyond = "unquoted key that is not ASCII"
		}
		b.WriteRune(r)
		p.pos += size
	}
	if p.pos == start {
		return "", p.unexpected("a key or '}'")
	}
	if p.at('/') {
		p.beyond = "comment right after an unquoted key"
	}
	if r, _ := p.peek(); r == '-' {
		return "", p.fail(start, "a key with '-' needs quotes")
	}
	return b.String(), nil
}

// quoted reads a string in either kind of quotes.
func (p *json5Parser) quoted() (string, error) {
	start, quote := p.pos, p.src[p.pos]
	p.pos++
	var b strings.Builder
	for p.pos < len(p.src) {
		r, size := p.peek()
		switch {
		case r == rune(quote):
			p.pos++
			return b.String(), nil
		case r == '\n' || r == '\r':
			return "", p.fail(start, "this string is not closed before the end of its line")
		case r == '\\':
			if err := p.escape(&b); err != nil {
				return "", err
			}
		default:
			if r < ' ' {
				p.beyond = "control character in a string"
			}
			b.WriteString(p.src[p.pos : p.pos+size])
			p.pos += size
		}
	}
	return "", p.fail(start, "this string is never closed")
}

func (p *json5Parser) escape(b *strings.Builder) error {
	start := p.pos
	p.pos++
	r, size := p.peek()
	p.pos += size
	switch r {
	case 'b':
		b.WriteByte('\b')
	case 'f':
		b.WriteByte('\f')
	case 'n':
		b.WriteByte('\n')
	case 'r':
		b.WriteByte('\r')
	case 't':
		b.WriteByte('\t')
	case '\\', '/', '"', '\'':
		b.WriteRune(r)
	case '\n':
	case '\r':
		if p.at('\n') {
			p.pos++
		}
	case 'u':
		code, err := p.hex(4)
		if err != nil {
			return err
		}
		if utf16.IsSurrogate(code) && strings.HasPrefix(p.src[p.pos:], `\u`) {
			back := p.pos
			p.pos += 2
			low, err := p.hex(4)
			if err != nil {
				return err
			}
			if pair := utf16.DecodeRune(code, low); pair != unicode.ReplacementChar {
				code = pair
			} else {
				p.pos = back
			}
		}
		b.WriteRune(code) // a lone surrogate becomes U+FFFD
	default:
		p.beyond = "escape beyond JSON's"
		switch {
		case size == 0:
			return p.fail(start, "the file ends within a string")
		case r == 'v':
			b.WriteByte('\v')
		case r == '0':
			if next, _ := p.peek(); '0' <= next && next <= '9' {
				return p.fail(start, `\0 must not be followed by a digit`)
			}
			b.WriteByte(0)
		case r == 'x':
			code, err := p.hex(2)
			if err != nil {
				return err
			}
			b.WriteRune(code)
		case '1' <= r && r <= '9':
			return p.fail(start, `\%c is not an escape`, r)
		case r == 0x2028 || r == 0x2029: // a continued line
		default:
			b.WriteRune(r)
		}
	}
	return nil
}

// hex reads exactly n hexadecimal digits.
func (p *json5Parser) hex(n int) (rune, error) {
	if p.pos+n <= len(p.src) {
		if code, err := strconv.ParseUint(p.src[p.pos:p.pos+n], 16, 32); err == nil {
			p.pos += n
			return rune(code), nil
		}
	}
	return 0, p.fail(p.pos, "expected %d hexadecimal digits", n)
}

func (p *json5Parser) number(n *jsonNode) error {
	n.kind = jsonNumber
	start := p.pos
	sign := 1.0
	if p.at('+') || p.at('-') {
		if p.at('-') {
			sign = -1
		}
		p.pos++
		if p.at('.') || p.at('N') {
			p.beyond = "sign before . or NaN"
		}
	}
	body := p.pos
	switch rest := p.src[body:]; {
	case strings.HasPrefix(rest, "Infinity"):
		p.pos += len("Infinity")
		n.num = math.Inf(int(sign))
	case strings.HasPrefix(rest, "NaN"):
		p.pos += len("NaN")
		n.num = math.NaN()
	case len(rest) > 1 && rest[0] == '0' && (rest[1] == 'x' || rest[1] == 'X'):
		p.pos += 2
		digits := p.digits(true)
		if digits == "" {
			return p.unexpected("a hexadecimal digit")
		}
		whole, _ := new(big.Int).SetString(digits, 16)
		if whole.BitLen() > 63 {
			p.beyond = "large hexadecimal number"
		}
		f, _ := new(big.Float).SetInt(whole).Float64()
		n.num = sign * f
	default:
		whole := p.digits(false)
		if len(whole) > 1 && whole[0] == '0' {
			return p.fail(start, "a number must not start with 0 (write 0x... for hexadecimal)")
		}
		fraction := ""
		if p.at('.') {
			p.pos++
			fraction = p.digits(false)
		}
		if whole == "" && fraction == "" {
			return p.unexpected("a digit")
		}
		if p.at('e') || p.at('E') {
			p.pos++
			if p.at('+') || p.at('-') {
				p.pos++
			}
			if p.digits(false) == "" {
				return p.unexpected("a digit of the exponent")
			}
		}
		f, err := strconv.ParseFloat(p.src[body:p.pos], 64)
		if errors.Is(err, strconv.ErrRange) {
			return p.fail(start, "this number is too large")
		} else if err != nil {
			return p.fail(start, "this is not a number")
		}
		n.num = sign * f
	}
	n.str = p.src[start:p.pos]
	if r, _ := p.peek(); json5IdentPart(r) {
		return p.fail(start, "a number ends in %q (text needs quotes)", r)
	}
	if math.IsInf(n.num, 0) && !strings.HasSuffix(n.str, "Infinity") {
		return p.fail(start, "this number is too large")
	}
	return nil
}

func (p *json5Parser) digits(hex bool) string {
	start := p.pos
	for p.pos < len(p.src) {
		c := p.src[p.pos]
		if ('0' <= c && c <= '9') || hex && ('a' <= c|0x20 && c|0x20 <= 'f') {
			p.pos++
			continue
		}
		break
	}
	return p.src[start:p.pos]
}

func json5IdentStart(r rune) bool {
	return r == '$' || r == '_' || unicode.IsLetter(r) || unicode.Is(unicode.Nl, r)
}

func json5IdentPart(r rune) bool {
	return json5IdentStart(r) || unicode.In(r, unicode.Nd, unicode.Mn, unicode.Mc, unicode.Pc) || r == 0x200C || r == 0x200D
}

// cfgShort cuts text that goes into a message.
func cfgShort(s string) string {
	if utf8.RuneCountInString(s) <= 40 {
		return s
	}
	return string([]rune(s)[:39]) + "…"
}

// cfgLines turns byte offsets into lines and columns, both counted from 1;
// columns count characters, not bytes.
// Positions are mostly asked for in rising order, so counting goes on where it stopped:
// a file of one long line would otherwise cost the square of its length. Not safe for
// concurrent use.
type cfgLines struct {
	src     string
	starts  []int
	off     int // of the last answer,
	lastCol int // and its column
}

func newCfgLines(src string) *cfgLines {
	x := &cfgLines{src: src, starts: []int{0}, lastCol: 1}
	for i := 0; i < len(src); i++ {
		if src[i] == '\n' || src[i] == '\r' && (i+1 == len(src) || src[i+1] != '\n') {
			x.starts = append(x.starts, i+1)
		}
	}
	return x
}

func (x *cfgLines) position(off int) (line, col int) {
	off = min(off, len(x.src))
	line = sort.Search(len(x.starts), func(i int) bool { return x.starts[i] > off })
	from, col := x.starts[line-1], 1
	if from <= x.off && x.off <= off {
		from, col = x.off, x.lastCol
	}
	x.off, x.lastCol = off, col+utf8.RuneCountInString(x.src[from:off])
	return line, x.lastCol
}
