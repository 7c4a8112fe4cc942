package slack

import (
	"bytes"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/slack-go/slack/slackutilsx"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	xast "github.com/yuin/goldmark/extension/ast"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"
)

// markdown reads what models write: CommonMark with tables, strikethrough and task lists.
var markdown = goldmark.New(goldmark.WithExtensions(extension.Strikethrough, extension.Table, extension.TaskList))

// mrkdwn turns Markdown into Slack's own notation. Everything that would have a meaning of its own for Slack (<!channel>,
// <@U123>) is escaped: a text cannot call people.
func mrkdwn(md string) string {
	src := []byte(md)
	r := mrkdwnRenderer{src: src}
	return r.blocks(markdown.Parser().Parse(text.NewReader(src)), "\n\n")
}

type mrkdwnRenderer struct {
	src  []byte
	bold bool // within a heading: it is bold already
}

// blocks renders the children of n, which are blocks.
func (r *mrkdwnRenderer) blocks(n ast.Node, between string) string {
	var parts []string
	for c := n.FirstChild(); c != nil; c = c.NextSibling() {
		if s := r.block(c); s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, between)
}

func (r *mrkdwnRenderer) block(n ast.Node) string {
	switch n := n.(type) {
	case *ast.Heading:
		r.bold = true
		s := r.inlines(n)
		r.bold = false
		return wrap("*", s)
	case *ast.FencedCodeBlock, *ast.CodeBlock:
		return codeBlock(r.lines(n))
	case *ast.HTMLBlock:
		s := r.lines(n)
		if n.HasClosure() {
			s += string(n.ClosureLine.Value(r.src))
		}
		return slackutilsx.EscapeMessage(strings.TrimRight(s, "\n"))
	case *ast.ThematicBreak:
		return "———"
	case *ast.Blockquote:
		return indent("> ", "> ", r.blocks(n, "\n\n"))
	case *ast.List:
		return r.list(n)
	case *xast.Table:
		return r.table(n)
	default:
		return r.inlines(n)
	}
}

func (r *mrkdwnRenderer) list(l *ast.List) string {
	var items []string
	for i, c := 0, l.FirstChild(); c != nil; i, c = i+1, c.NextSibling() {
		mark := "• "
		if l.IsOrdered() {
			mark = strconv.Itoa(l.Start+i) + ". "
		}
		items = append(items, indent(mark, "    ", r.blocks(c, "\n")))
	}
	return strings.Join(items, "\n")
}

// table renders as code, in columns of equal width: Slack has no tables in text.
func (r *mrkdwnRenderer) table(t *xast.Table) string {
	var rows [][]string
	var widths []int
	for row := t.FirstChild(); row != nil; row = row.NextSibling() {
		var cells []string
		for c := row.FirstChild(); c != nil; c = c.NextSibling() {
			s := unescape.Replace(r.inlines(c))
			if i := len(cells); i == len(widths) {
				widths = append(widths, 0)
			}
			widths[len(cells)] = max(widths[len(cells)], len([]rune(s)))
			cells = append(cells, s)
		}
		rows = append(rows, cells)
	}
	var b strings.Builder
	for _, cells := range rows {
		for i, s := range cells {
			cells[i] = s + strings.Repeat(" ", widths[i]-len([]rune(s)))
		}
		b.WriteString(strings.TrimRight(strings.Join(cells, " | "), " ") + "\n")
	}
	return codeBlock(b.String())
}

func (r *mrkdwnRenderer) lines(n ast.Node) string {
	var b bytes.Buffer
	for i := range n.Lines().Len() {
		line := n.Lines().At(i)
		b.Write(line.Value(r.src))
	}
	return b.String()
}

// inlines renders the children of n, which are runs of text.
func (r *mrkdwnRenderer) inlines(n ast.Node) string {
	var b strings.Builder
	for c := n.FirstChild(); c != nil; c = c.NextSibling() {
		b.WriteString(r.inline(c))
	}
	return b.String()
}

func (r *mrkdwnRenderer) inline(n ast.Node) string {
	switch n := n.(type) {
	case *ast.Text:
		v := n.Value(r.src)
		if !n.IsRaw() {
			v = util.ResolveEntityNames(util.ResolveNumericReferences(util.UnescapePunctuations(v)))
		}
		s := slackutilsx.EscapeMessage(string(v))
		if n.SoftLineBreak() || n.HardLineBreak() {
			s += "\n"
		}
		return s
	case *ast.String:
		return slackutilsx.EscapeMessage(string(n.Value))
	case *ast.RawHTML:
		return slackutilsx.EscapeMessage(string(n.Segments.Value(r.src)))
	case *ast.CodeSpan:
		return wrap("`", r.inlines(n))
	case *ast.Emphasis:
		switch {
		case n.Level == 1:
			return wrap("_", r.inlines(n))
		case r.bold:
			return r.inlines(n)
		}
		return wrap("*", r.inlines(n))
	case *xast.Strikethrough:
		return wrap("~", r.inlines(n))
	case *ast.Link:
		return link(string(n.Destination), r.inlines(n))
	case *ast.Image:
		return link(string(n.Destination), r.inlines(n))
	case *ast.AutoLink:
		label := slackutilsx.EscapeMessage(string(n.Label(r.src)))
		return link(string(n.URL(r.src)), label)
	case *xast.TaskCheckBox:
		if n.IsChecked {
			return "☑ "
		}
		return "☐ "
	default:
		return r.inlines(n)
	}
}

// link is a link in Slack's notation. Only for schemes that are links: <!channel|...> and <@U1|...> have the same form.
func link(to, label string) string {
	u, err := url.Parse(to)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "mailto") {
		if label == "" || label == slackutilsx.EscapeMessage(to) {
			return slackutilsx.EscapeMessage(to)
		}
		return label + " (" + slackutilsx.EscapeMessage(to) + ")"
	}
	to = slackutilsx.EscapeMessage(strings.NewReplacer("|", "%7C", "<", "%3C", ">", "%3E").Replace(to))
	if label == "" || label == to {
		return "<" + to + ">"
	}
	return "<" + to + "|" + label + ">"
}

// wrap puts a mark around s, which may have white space at its ends; a mark next to it would be shown as it is.
func wrap(mark, s string) string {
	in := strings.TrimSpace(s)
	if in == "" {
		return s
	}
	at := strings.Index(s, in)
	return s[:at] + mark + in + mark + s[at+len(in):]
}

func codeBlock(s string) string {
	return "```\n" + slackutilsx.EscapeMessage(strings.TrimRight(s, "\n")) + "\n```"
}

// indent puts first before the first line and rest before the others.
func indent(first, rest, s string) string {
	return first + strings.ReplaceAll(s, "\n", "\n"+rest)
}

// unescape takes back what EscapeMessage does.
var unescape = strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&")

// references are what Slack writes in angle brackets: people, channels, groups and links.
var references = regexp.MustCompile(`<([^<>|]+)(?:\|([^<>]*))?>`)

// plain turns a message's text into what its reader sees. name gives a person's name.
func plain(s string, name func(id string) string) string {
	s = references.ReplaceAllStringFunc(s, func(ref string) string {
		m := references.FindStringSubmatch(ref)
		to, label := m[1], m[2]
		switch {
		case to[0] == '@':
			if label == "" {
				label = name(to[1:])
			}
			return "@" + strings.TrimPrefix(label, "@")
		case to[0] == '#':
			if label == "" {
				label = to[1:]
			}
			return "#" + label
		case to[0] == '!':
			if label == "" {
				label, _, _ = strings.Cut(to[1:], "^")
			}
			return "@" + strings.TrimPrefix(label, "@")
		case label == "" || label == to || strings.HasSuffix(to, "//"+label) || to == "mailto:"+label:
			return strings.TrimPrefix(to, "mailto:")
		}
		return label + " (" + to + ")"
	})
	return unescape.Replace(s)
}
