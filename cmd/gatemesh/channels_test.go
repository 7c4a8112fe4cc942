package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/gateway/slack/slacktest"
)

// TestChannelTokensRotate: a running gateway takes up new tokens of an account under traffic, under the same term: nothing is lost or said twice,
// the old ones are not used any more, and none is shown. Tokens that cannot be right change nothing.
func TestChannelTokensRotate(t *testing.T) {
	fake, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fake.Close() })
	dir := t.TempDir()
	file := filepath.Join(dir, "openclaw.json")
	write := func(settings string) {
		t.Helper()
		writeFile(t, file+".new", fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true, level: "debug" }, service: { register: false } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test" } },
  agents: { list: [{ id: "echo", runner: "echo" }] },
  channels: { slack: %s },
}
`, filepath.Join(dir, "data"), settings))
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	secrets := []string{fake.AppToken(), fake.BotToken()}
	write(string(fake.Settings()))
	p, env := startDaemon(t, file)
	until(t, "it is connected", func() bool { return fake.ConnectionsOf(secrets[0]) == 1 })
	terms := func() (token uint64) {
		t.Helper()
		for _, o := range parse[[]bus.OwnerInfo](t, must(t, env, "owner", "list", "--json")) {
			if o.Duty == "channel-slack-default" {
				token = o.Token
			}
		}
		return token
	}
	before := terms()
	var want []string
	say := func() {
		text := fmt.Sprint("question ", len(want))
		want = append(want, text)
		fake.Say(slacktest.Said{Channel: slacktest.Alice, Text: text})
	}
	say()
	until(t, "an answer", func() bool { return len(fake.Posts()) == 1 })

	for range 2 {
		at := p.count()
		write(`{ mode: "socket", appToken: "xapp-1-alone" }`)
		p.wait(at, "the old one stays", "botToken")
		old := fake.AppToken()
		fake.Rotate()
		secrets = append(secrets, fake.AppToken(), fake.BotToken())
		write(string(fake.Settings()))
		until(t, "the new tokens are used", func() bool {
			say()
			return fake.ConnectionsOf(fake.AppToken()) == 1 && fake.ConnectionsOf(old) == 0
		})
		fake.RevokeOld()
		say()
	}
	until(t, "all are answered", func() bool { return len(fake.Posts()) >= len(want) })
	var got []string
	for _, post := range fake.Posts() {
		got = append(got, post.Text)
	}
	if !slices.Equal(got, want) {
		t.Errorf("answers:\n%q\nwant\n%q", got, want)
	}
	if now := terms(); now != before || now == 0 {
		t.Errorf("the term of before was %d, this one is %d", before, now)
	}
	at := p.count()
	write(strings.Replace(string(fake.Settings()), "{", `{ "enabled": false, `, 1))
	p.wait(at, "need a restart", "channels.slack.enabled")
	shown := must(t, env, "channels", "list", "--json") + must(t, nil, "config", "show", "--config", file)
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
	for _, s := range secrets {
		if strings.Contains(p.text()+shown, s) {
			t.Error("a token is shown")
		}
	}
}
