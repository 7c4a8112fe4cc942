package agent

import (
	"errors"
	"strings"
)

// errNoRoom is a prompt whose last turn alone is too long.
var errNoRoom = errors.New("what was asked last is too long for the context window: ask less at once, or use a model with a larger contextWindow")

// Tokens estimates the tokens of a text: a third of its bytes, which is more than the vendors' tokenizers
// count for prose and JSON. No tokenizer is asked.
func Tokens(text string) int { return (len(text) + 2) / 3 }

// perMessage is what a message costs beside its text.
const perMessage = 8

func messageTokens(m ChatMessage) int {
	n := perMessage + Tokens(m.Text)
	for _, c := range m.Calls {
		n += perMessage + Tokens(c.Name) + Tokens(c.ID) + (len(c.Arguments)+2)/3
	}
	for _, r := range m.Results {
		n += perMessage + Tokens(r.CallID) + Tokens(r.Text)
	}
	return n
}

func fixedTokens(p Prompt) int {
	n := Tokens(p.System)
	for _, t := range p.Tools {
		n += perMessage + Tokens(t.Name) + Tokens(t.Description) + (len(t.Schema)+2)/3
	}
	return n
}

func promptTokens(p Prompt) int {
	n := fixedTokens(p)
	for _, m := range p.Messages {
		n += messageTokens(m)
	}
	return n
}

func completionTokens(c *Completion) int {
	return messageTokens(ChatMessage{Text: c.Text, Calls: c.Calls})
}

// Trim leaves out the oldest turns of a prompt until it fits into room tokens. A turn goes as a whole (from one
// message of a user to the next), so that no tool's result stays without its call. In the last turn, long results of tools
// are shortened; nothing that a user said is.
func Trim(p Prompt, room int) (Prompt, error) {
	msgs := p.Messages
	for promptTokens(Prompt{System: p.System, Tools: p.Tools, Messages: msgs}) > room {
		next := nextTurn(msgs)
		if next == 0 {
			break
		}
		msgs = msgs[next:]
	}
	p.Messages = append([]ChatMessage(nil), msgs...)
	for over := promptTokens(p) - room; over > 0; over = promptTokens(p) - room {
		if !shortenResult(p.Messages, over) {
			return p, errNoRoom
		}
	}
	return p, nil
}

// nextTurn is where the second turn begins; 0: there is one only.
func nextTurn(msgs []ChatMessage) int {
	for i := 1; i < len(msgs); i++ {
		if msgs[i].Role == RoleUser {
			return i
		}
	}
	return 0
}

const shortened = "\n(shortened)"

// shortenResult takes at least over tokens, or what there is, off the longest result.
func shortenResult(msgs []ChatMessage, over int) bool {
	at, of := -1, -1
	longest := 200 // not worth it below
	for i, m := range msgs {
		for j, r := range m.Results {
			if len(r.Text) > longest {
				at, of, longest = i, j, len(r.Text)
			}
		}
	}
	if at < 0 {
		return false
	}
	results := append([]ToolResult(nil), msgs[at].Results...)
	keep := max(100, longest-3*over-len(shortened)-3)
	results[of].Text = strings.ToValidUTF8(results[of].Text[:keep], "") + shortened
	msgs[at].Results = results
	return true
}
