package slack

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/gateway"
)

func TestSettings(t *testing.T) {
	for raw, want := range map[string]string{
		``:                           "channels.slack.accounts.ops.appToken is missing",
		`{"botToken":"xoxb-b"}`:      "channels.slack.accounts.ops.appToken is missing",
		`{"appToken":"xapp-a"}`:      "channels.slack.accounts.ops.botToken is missing",
		`{"appToken":7}`:             "channels.slack.accounts.ops.appToken: a string is wanted, not a number",
		`[]`:                         "channels.slack.accounts.ops",
		`{"appToken":"xoxb-canary"}`: "channels.slack.accounts.ops.botToken is missing",
		`{"appToken":"xoxb-canary","token":"xapp-canary"}`:                            "interchanged",
		`{"appToken":"xapp-canary","token":"xoxb-canary","mode":"http"}`:              "channels.slack.accounts.ops.mode",
		`{"appToken":"xapp-canary","token":"xoxb-canary","apiUrl":"canary"}`:          "channels.slack.accounts.ops.apiUrl",
		`{"appToken":"xapp-canary","token":"xoxb-canary","apiUrl":"ftp://x/"}`:        "channels.slack.accounts.ops.apiUrl",
		`{"appToken":"xapp-a","token":"xoxb-b","apiUrl":"https://canary:c@x/"}`:       "channels.slack.accounts.ops.apiUrl",
		`{"appToken":"xapp-a","botToken":"xoxb-b","mode":"socket","dm":{"x":[]}}`:     "",
		`{"appToken":"xapp-a","token":"xoxb-b","apiUrl":"https://slack-gov.com/api"}`: "",
	} {
		_, err := Factory().New(gateway.ChannelDeps{Account: "ops", Settings: json.RawMessage(raw), Logger: hclog.NewNullLogger()})
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, wanted %q", raw, err, want)
		case err != nil && strings.Contains(err.Error(), "canary"):
			t.Errorf("%s shows a value: %v", raw, err)
		}
	}
	s, err := parseSettings("default", json.RawMessage(`{"appToken":"xapp-a","token":"xoxb-b","apiUrl":"https://slack-gov.com/api","ackReaction":":wave:"}`))
	if err != nil || s.APIURL != "https://slack-gov.com/api/" || s.BotToken != "xoxb-b" || *s.AckReaction != "wave" {
		t.Errorf("%+v, %v", s, err)
	}
}

// Whatever went wrong, its description shows no token and no ticket.
func TestClean(t *testing.T) {
	a := &account{secrets: []string{"xapp-canary/1", "xoxb-canary"}}
	wss := "wss://wss-primary.slack.com/link/?ticket=canary-ticket&app_id=A1"
	for _, err := range []error{
		errors.New("token xapp-canary/1 and xapp-canary%2F1 refused, not xoxb-canary"),
		&url.Error{Op: "Get", URL: wss, Err: errors.New("refused: " + wss)},
		errors.Join(errors.New("canary-ticket"), context.Canceled),
	} {
		got := a.clean("dialling", err, ticket(wss)...)
		if strings.Contains(got.Error(), "canary") || !strings.HasPrefix(got.Error(), "dialling: ") {
			t.Errorf("%v", got)
		}
		if errors.Is(err, context.Canceled) != errors.Is(got, context.Canceled) {
			t.Errorf("%v forgets why", got)
		}
	}
}

func TestMrkdwn(t *testing.T) {
	for md, want := range map[string]string{
		"plain":                                 "plain",
		"two\nlines":                            "two\nlines",
		"two\n\n\nparagraphs":                   "two\n\nparagraphs",
		"**bold** and __bold__":                 "*bold* and *bold*",
		"*it* and _it_":                         "_it_ and _it_",
		"***both***":                            "_*both*_",
		"~~gone~~":                              "~gone~",
		"2 * 3 * 4 and snake_case_name":         "2 * 3 * 4 and snake_case_name",
		`\*not\* &amp; R&D <b>`:                 "*not* &amp; R&amp;D &lt;b&gt;",
		"# Title **x**\ntext":                   "*Title x*\n\ntext",
		"`a < **b**`":                           "`a &lt; **b**`",
		"```go\nif a < b {\n\t**x**\n}\n```":    "```\nif a &lt; b {\n\t**x**\n}\n```",
		"[Slack](https://slack.com/?a=1&b=2)":   "<https://slack.com/?a=1&amp;b=2|Slack>",
		"https://slack.com":                     "https://slack.com",
		"<https://slack.com>":                   "<https://slack.com>",
		"![a cat](https://x.org/c.png)":         "<https://x.org/c.png|a cat>",
		"[file](./a|b.md)":                      "file (./a|b.md)",
		"- a\n- b\n  - c\n\n":                   "• a\n• b\n    • c",
		"3. a\n4. b":                            "3. a\n4. b",
		"- [x] done\n- [ ] not":                 "• ☑ done\n• ☐ not",
		"> quoted\n> more":                      "> quoted\n> more",
		"a\n\n---\n\nb":                         "a\n\n———\n\nb",
		"| a | bb |\n|---|---|\n| 1 | <2> |":    "```\na | bb\n1 | &lt;2&gt;\n```",
		"<!channel> <!here|x> <@U1> <#C1>":      "&lt;!channel&gt; &lt;!here|x&gt; &lt;@U1&gt; &lt;#C1&gt;",
		"[all](!channel) [you](@U1) [x](<#C1>)": "all (!channel) you (@U1) x (#C1)",
		"<!-- a comment -->\n\n<div>x</div>":    "&lt;!-- a comment --&gt;\n\n&lt;div&gt;x&lt;/div&gt;",
		"":                                      "",
	} {
		if got := mrkdwn(md); got != want {
			t.Errorf("%q\ngot  %q\nwant %q", md, got, want)
		}
	}
}

// A text cannot call people, whatever is in it.
func FuzzMrkdwn(f *testing.F) {
	f.Add("[a](!channel) <!here> `<@U1>` | <#C1>\n\n| <@U1> |\n|-|\n<!-- <!channel> -->")
	f.Fuzz(func(t *testing.T, md string) {
		got := mrkdwn(md)
		for _, ref := range []string{"<!", "<@", "<#"} {
			if strings.Contains(got, ref) {
				t.Errorf("%q becomes %q", md, got)
			}
		}
	})
}

func TestPlain(t *testing.T) {
	name := func(id string) string { return "name of " + id }
	for in, want := range map[string]string{
		"a &lt;b&gt; &amp;amp;":                         "a <b> &amp;",
		"<@U1>, <@U1|ann>":                              "@name of U1, @ann",
		"<#C1|general> <#C1>":                           "#general #C1",
		"<!here> <!subteam^S1|@ops> <!channel|channel>": "@here @ops @channel",
		"<https://a.org|a.org> <https://a.org|A> <x:y>": "https://a.org A (https://a.org) x:y",
		"<mailto:a@b.org|a@b.org> <mailto:c@d.org>":     "a@b.org c@d.org",
		"<https://a.org?x=1&amp;y=2>":                   "https://a.org?x=1&y=2",
		"1 &lt; 2 <> 3":                                 "1 < 2 <> 3",
	} {
		if got := plain(in, name); got != want {
			t.Errorf("%q\ngot  %q\nwant %q", in, got, want)
		}
	}
}
