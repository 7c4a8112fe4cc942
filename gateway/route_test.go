package gateway

import (
	"strings"
	"testing"
)

func TestRoute(t *testing.T) {
	const doc = `{
		agents: { list: [{ id: "first" }, { id: "main", default: true }] },
		channels: { discord: { accounts: { default: {}, ops: {} } }, slack: {}, whatsapp: { accounts: { a: {}, b: {} } } },
		bindings: [
			{ agentId: "anywhere", match: { channel: "discord", accountId: "*" } },
			{ agentId: "jerry", match: { channel: "discord" } },
			{ agentId: "guild", match: { channel: "discord", accountId: "*", guildId: "G" } },
			{ agentId: "bobby", match: { channel: "discord", accountId: "*", peer: { kind: "direct", id: "7" } } },
			{ agentId: "late", match: { channel: "discord", peer: { kind: "dm", id: "7" } } },
			{ agentId: "room", match: { channel: "slack", teamId: "T", peer: { kind: "channel", id: "C" } } },
			{ agentId: "team", match: { channel: "slack", teamId: "T" } },
			{ agentId: "wa", match: { channel: "whatsapp" } },
		],
	}`
	cfg := mustParseConfig(t, doc)
	cfg.Normalize()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	r := NewRouter(cfg)
	for _, tc := range []struct {
		channel, account, kind, peer, team, want string
		binding                                  int
	}{
		{"discord", "default", PeerDM, "7", "", "bobby", 4},       // the peer wins; of equals the first
		{"discord", "ops", PeerDM, "7", "", "bobby", 4},           // on any account
		{"discord", "default", PeerGroup, "7", "", "jerry", 2},    // another kind of peer
		{"discord", "default", PeerChannel, "9", "G", "guild", 3}, // the guild before the account
		{"discord", "default", PeerChannel, "9", "H", "jerry", 2}, // the account before the channel
		{"discord", "ops", PeerDM, "8", "", "anywhere", 1},        // no accountId is the default account alone
		{"slack", "default", PeerChannel, "C", "T", "room", 6},    // all that is said must fit
		{"slack", "default", PeerChannel, "C", "U", "main", 0},    // else it is not that
		{"slack", "default", PeerChannel, "D", "T", "team", 7},    //
		{"whatsapp", "a", PeerDM, "x", "", "wa", 8},               // the first in the alphabet is the default one
		{"whatsapp", "b", PeerDM, "x", "", "main", 0},             //
		{"webchat", "default", PeerDM, "x", "", "main", 0},        // the default agent
		{"discord", "default", "direct", "7", "", "bobby", 4},     // OpenClaw's other word for dm
	} {
		got := r.Route(RouteQuery{Channel: tc.channel, Account: tc.account, Peer: ChannelPeer{tc.kind, tc.peer}, Team: tc.team})
		if got.Agent != tc.want || got.Binding != tc.binding || got.Reason == "" {
			t.Errorf("%+v: %+v", tc, got)
		}
		decided := 0
		if got.Binding > 0 {
			decided = 1
		}
		if len(got.Others)+decided != len(cfg.Bindings) {
			t.Errorf("%+v: %d others", tc, len(got.Others))
		}
	}
	one := mustParseConfig(t, `{ agents: { list: [{ id: "first" }, { id: "second" }] } }`)
	one.Normalize()
	if got := NewRouter(one).Route(RouteQuery{Channel: "slack"}); got.Agent != "first" || !strings.Contains(got.Reason, "first agent") {
		t.Errorf("%+v", got)
	}
}

func TestChannelConfig(t *testing.T) {
	cfg := mustParseConfig(t, `{
		channels: { slack: { botToken: "b", apiUrl: "u", dmPolicy: "allowlist", allowFrom: ["U1", 7], accounts: { ops: { appToken: { source: "env", id: "OPS" }, apiUrl: "v", requireMention: false }, off: { enabled: false } } } },
	}`, "OPS=secret")
	cfg.Normalize()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	all := cfg.ChannelAccounts()
	if len(all) != 2 || all[0].ID != "off" || all[0].Enabled || !all[1].Enabled || all[1].RequireMention || all[1].DMPolicy != "allowlist" || strings.Join(all[1].AllowFrom, ",") != "U1,7" {
		t.Fatalf("%+v", all)
	}
	s, err := cfg.channelSettings(&all[1])
	if err != nil || string(s) != `{"apiUrl":"v","appToken":"secret","botToken":"b"}` {
		t.Errorf("%s %v", s, err)
	}
	for doc, want := range map[string]string{
		`{ bindings: [{ match: { channel: "slack" } }] }`:                                            "agentId is missing",
		`{ bindings: [{ agentId: "a", match: {} }] }`:                                                "channel is missing",
		`{ bindings: [{ agentId: "a", match: { channel: "x", roles: ["r"] } }] }`:                    "roles are not known",
		`{ bindings: [{ agentId: "a", match: { channel: "x", peer: { kind: "user", id: "1" } } }] }`: "not one of dm, group, channel",
		`{ channels: { slack: { dmPolicy: "opn" } } }`:                                               `did you mean "open"`,
		`{ channels: { slack: { accounts: { "Ops!": {} } } } }`:                                      "is no name for an inbox",
		`{ mesh: { channelKeys: ["canary"] } }`:                                                      "32 bytes in base64",
	} {
		c := mustParseConfig(t, doc)
		c.Normalize()
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", doc, err)
		}
	}
}
