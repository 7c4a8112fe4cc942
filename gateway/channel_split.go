package gateway

import (
	"strings"
	"unicode/utf8"
)

const (
	// fence begins and ends a block of code.
	fence = "```"
	// fenceRoom is how many characters a part must have for blocks of code to be closed and opened again in it: less would be nothing but fences.
	fenceRoom = 200
	// maxFence is how much of the line is kept that opens a block (its language).
	maxFence = 32
)

// splitText cuts a text into parts of no more than most characters: at the end of a paragraph, else of a line, else of a word, if one ends in the second
// half of the part. A block of code that is cut is closed in its part and opened again in the next one, for else a vendor shows the rest of it, and all that
// comes after, as what it is not. No part is empty. 0: one part.
func splitText(text string, most int) []string {
	if most <= 0 || utf8.RuneCountInString(text) <= most {
		return []string{text}
	}
	var parts []string
	open := "" // the line that opened the block of code in which text begins; empty: none
	for {
		before := ""
		if open != "" {
			before = open + "\n"
		}
		room := most - utf8.RuneCountInString(before)
		if utf8.RuneCountInString(text) <= room {
			return addPart(parts, before+text)
		}
		if most >= fenceRoom {
			room -= len("\n" + fence)
		}
		part, rest := cutText(text, room)
		after := ""
		if most >= fenceRoom {
			if at := danglingFence(part, open); at > 0 {
				part, rest = text[:at], text[at:]
			}
			open = openAfter(part, open)
		}
		if open == "" {
			rest = strings.TrimLeft(rest, " \n")
		} else {
			after = "\n" + fence
			rest = strings.TrimPrefix(rest, "\n") // what comes then is code, with its indentation
			if line, more, _ := strings.Cut(rest, "\n"); strings.TrimSpace(line) == fence {
				rest, open = strings.TrimLeft(more, " \n"), ""
			}
		}
		parts = addPart(parts, before+strings.TrimRight(part, " \n")+after)
		if text = rest; text == "" {
			return parts
		}
	}
}

func addPart(parts []string, part string) []string {
	if strings.TrimSpace(part) == "" {
		return parts
	}
	return append(parts, part)
}

// cutText cuts off at most so many characters, at the best place.
func cutText(text string, most int) (part, rest string) {
	end := 0 // in bytes, of most characters
	for range most {
		_, n := utf8.DecodeRuneInString(text[end:])
		end += n
	}
	for _, at := range []string{"\n\n", "\n", " "} {
		if i := strings.LastIndex(text[:end], at); i > end/2 {
			return text[:i], text[i:]
		}
	}
	return text[:end], text[end:]
}

// openAfter is the line that opened the block of code in which a text ends, where it begins in that of open.
func openAfter(text, open string) string {
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case !strings.HasPrefix(line, fence) || strings.Contains(line[len(fence):], fence): // no fence, or a block of one line
		case open != "":
			open = ""
		default:
			open = clipText(line, maxFence)
		}
	}
	return open
}

// danglingFence is where the last line of a text begins, if that line opens a block of code of which nothing else is in the text; else 0.
func danglingFence(text, open string) int {
	text = strings.TrimRight(text, " \n")
	at := strings.LastIndex(text, "\n") + 1
	if at > 0 && openAfter(text[:at], open) == "" && openAfter(text, open) != "" {
		return at
	}
	return 0
}
