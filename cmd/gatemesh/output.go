package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// A printer writes for people: aligned and coloured on a terminal, plain (columns
// separated by tabs) everywhere else.
type printer struct {
	w        io.Writer
	terminal bool
	colour   bool
}

// newPrinter looks at what w is. Colours are left out when NO_COLOR is set
// (no-color.org) or TERM is "dumb".
func newPrinter(w io.Writer, env func(string) (string, bool)) *printer {
	p := &printer{w: w, terminal: isTerminal(w)}
	noColour, _ := env("NO_COLOR")
	kind, _ := env("TERM")
	p.colour = p.terminal && noColour == "" && kind != "dumb"
	return p
}

func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

type colour string

const (
	plain  colour = ""
	bold   colour = "1"
	dim    colour = "2"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	blue   colour = "34"
	cyan   colour = "36"
)

func (p *printer) paint(c colour, s string) string {
	if !p.colour || c == plain || s == "" {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

func (p *printer) printf(format string, args ...any) { fmt.Fprintf(p.w, format, args...) }

// json writes one value: indented on a terminal, else on one line, because an envelope's
// canonical bytes have no white space.
func (p *printer) json(v any) error {
	if !p.terminal {
		return p.jsonLine(v)
	}
	enc := json.NewEncoder(p.w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// jsonLine writes one value on one line: the form of streams.
func (p *printer) jsonLine(v any) error {
	enc := json.NewEncoder(p.w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// A table is rows of cells; a cell may have a colour.
type table struct {
	header []string
	rows   [][]cell
}

type cell struct {
	text string
	c    colour
}

func newTable(header ...string) *table { return &table{header: header} }

func (t *table) add(cells ...any) {
	row := make([]cell, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case cell:
			row[i] = c
		default:
			row[i] = cell{text: fmt.Sprint(c)}
		}
		row[i].text = printable(row[i].text)
		if row[i].text == "" {
			row[i].text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// table writes t. An empty table says so instead of showing a lonely header.
func (p *printer) table(t *table, none string) {
	if len(t.rows) == 0 {
		p.printf("%s\n", none)
		return
	}
	if !p.terminal {
		p.printf("%s\n", strings.Join(t.header, "\t"))
		for _, row := range t.rows {
			cells := make([]string, len(row))
			for i, c := range row {
				cells[i] = c.text
			}
			p.printf("%s\n", strings.Join(cells, "\t"))
		}
		return
	}
	widths := make([]int, len(t.header))
	for i, h := range t.header {
		widths[i] = utf8.RuneCountInString(h)
	}
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	line := func(cells []cell) {
		var b strings.Builder
		for i, c := range cells {
			b.WriteString(p.paint(c.c, c.text))
			if i < len(cells)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		p.printf("%s\n", b.String())
	}
	head := make([]cell, len(t.header))
	for i, h := range t.header {
		head[i] = cell{h, bold}
	}
	line(head)
	for _, row := range t.rows {
		line(row)
	}
}

// printable makes text from elsewhere safe for one line on a terminal: a message must not
// be able to move the cursor, change colours or reorder what stands beside it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
			return '\uFFFD'
		}
		return r
	}, s)
}

// printableText is printable for text of several lines.
func printableText(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\r\n", "\n"), "\n")
	for i, l := range lines {
		lines[i] = printable(l)
	}
	return strings.Join(lines, "\n")
}

// cut shortens s to n runes.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
