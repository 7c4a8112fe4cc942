package gateway

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestSplitText(t *testing.T) {
	words := strings.TrimSpace(strings.Repeat("word ", 60)) // 299 characters
	code := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "    line %02d of the code\n", i)
		}
		return b.String()
	}
	for name, tc := range map[string]struct {
		text string
		most int
		want []string // nil: only what holds of all is looked at
	}{
		"short":               {"hello", 20, []string{"hello"}},
		"no limit":            {words, 0, []string{words}},
		"words":               {"one two three four five six seven", 20, []string{"one two three four", "five six seven"}},
		"paragraph":           {"first one here\n\nsecond one", 20, []string{"first one here", "second one"}},
		"runes":               {strings.Repeat("ä", 25), 20, []string{strings.Repeat("ä", 20), strings.Repeat("ä", 5)}},
		"blanks make no part": {strings.Repeat(" ", 500) + "end", 200, []string{"end"}},
		"code":                {words + "\n```go\n" + code(40) + "```\nand that was it", 400, nil},
		"code at the cut":     {strings.TrimSpace(words[:180]) + "\n```go\nfunc main() {}\n```\n" + words, 200, nil},
		"code to the end":     {"```\n" + code(30) + "```", 200, nil},
		"one line of code":    {"```x```\n" + words, 200, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := splitText(tc.text, tc.most)
			if tc.want != nil && strings.Join(got, "|") != strings.Join(tc.want, "|") {
				t.Errorf("%q, want %q", got, tc.want)
			}
			var lines []string
			for _, part := range got {
				if n := utf8.RuneCountInString(part); tc.most > 0 && n > tc.most || strings.TrimSpace(part) == "" {
					t.Errorf("a part of %d characters, at most %d: %q", n, tc.most, part)
				}
				if n := strings.Count(part, "```"); n%2 != 0 {
					t.Errorf("a block of code is open at the end, or was never opened: %q", part)
				}
				if strings.Contains(part, "```go\n```") || strings.Contains(part, "```\n```") {
					t.Errorf("a block with nothing in it: %q", part)
				}
				lines = append(lines, strings.Split(part, "\n")...)
			}
			for i := 0; strings.Contains(tc.text, fmt.Sprintf("line %02d", i)); i++ {
				if n := strings.Count(strings.Join(lines, "\n"), fmt.Sprintf("    line %02d of the code", i)); n != 1 {
					t.Errorf("line %d is there %d times, with its indentation", i, n)
				}
			}
		})
	}
}

// Whatever a model writes, nothing but blanks is lost, and no part is too long.
func FuzzSplitText(f *testing.F) {
	f.Add("a b\n```go\nx\n```\nend", 12)
	f.Add(strings.Repeat("```\n", 200), 200)
	f.Add(strings.Repeat("word ```go\n", 100), 210)
	f.Fuzz(func(t *testing.T, text string, most int) {
		if most < 1 || most > 5000 || len(text) > 20000 {
			t.Skip()
		}
		said := func(s string) int { // letters
			n := 0
			for _, r := range s {
				if r >= 'A' && r <= 'Z' {
					n++
				}
			}
			return n
		}
		parts := splitText(text, most)
		if strings.TrimSpace(text) != "" && len(parts) == 0 || len(parts) > 2*len(text)+1 {
			t.Fatalf("%d parts", len(parts))
		}
		all := 0
		for _, p := range parts {
			if utf8.RuneCountInString(p) > most {
				t.Fatalf("%q has more than %d characters", p, most)
			}
			all += said(p)
		}
		if all < said(text) {
			t.Fatalf("%d letters of %d are left: %q", all, said(text), parts)
		}
	})
}
