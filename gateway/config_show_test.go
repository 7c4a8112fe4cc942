package gateway

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func showConfig(t *testing.T, cfg *Config, format string) string {
	t.Helper()
	var out bytes.Buffer
	if err := cfg.Show(&out, format); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestConfigShowRedacts(t *testing.T) {
	const doc = `{
		env: { FOO: "secret-0", vars: { BAR: "secret-1" } },
		models: { providers: { p: { apiKey: "secret-2", baseUrl: "https://u:secret-3@host/v1", models: [{ id: "m", maxTokens: 4096 }] } } },
		gateway: { auth: { token: "${GW}" }, http: { headers: { Authorization: "Bearer secret-4" }, sessionCookie: "secret-5" } },
		channels: { slack: { token: "secret-6", appToken: "${APP_TOKEN}", botToken: "" }, x: { other: { token: "secret-19" } } },
		mesh: { consul: { token: "secret-8", address: "${CONSUL_PASSWORD}.example" }, cluster: { id: "in-secret-9-side" } },
		mcp: { servers: { s: {
			args: ["--x", "secret-2", "plain-arg", "pre secret-6 post"],
			env: { ANY: "secret-10", N: 42 }, command: "c", headers: { X: "secret-20" },
		} } },
		logging: { servers: { s: {
			nested: [{ clientSecret: "secret-11", db_password: "secret-12", "api-key": "secret-13", tokens: ["secret-14"], credentials: { user: "secret-15" } }],
			url: "${SOME_KEY}", open: "${PLAIN}", weird: Infinity, no: null, pin: { password: 1234 },
		} } },
		agents: { list: [{ id: "a", runner: { options: { token: "secret-16", note: "fine" } } }] },
	}`
	env := []string{"GW=secret-9", "APP_TOKEN=secret-7", "CONSUL_PASSWORD=secret-17", "SOME_KEY=secret-18", "PLAIN=plain-text"}
	cfg := mustParseConfig(t, doc, env...)
	cfg.Normalize()
	for _, format := range []string{"json", "origins"} {
		text := showConfig(t, cfg, format)
		for _, hidden := range []string{"secret-", "1234", "42", "id-shown-nowhere"} {
			if i := strings.Index(text, hidden); i >= 0 {
				t.Errorf("%s shows %q: ...%s", format, hidden, text[max(0, i-60):i+len(hidden)])
			}
		}
		for _, shown := range []string{"plain-arg", "plain-text", "fine", "4096", Redacted, "18789", "https://u:redacted@host/v1"} {
			if !strings.Contains(text, shown) {
				t.Errorf("%s does not show %q:\n%s", format, shown, text)
			}
		}
	}
	if err := cfg.Show(&bytes.Buffer{}, "yaml"); err == nil {
		t.Error("an unknown format is accepted")
	}
}

// What Show prints as JSON, apart from secrets, reads back as the same configuration.
func TestConfigShowRoundTrip(t *testing.T) {
	for _, file := range []string{"plan-phase1.json5", "plan-phase2.json5", "plan-macbook.json5", "mesh.json5"} {
		cfg := mustParseConfig(t, string(configFile(t, file)), append([]string{"GATEWAY_SECRET=s3cret-value", "PORT=1"}, planEnv...)...)
		cfg.Normalize()
		text := showConfig(t, cfg, "")
		if !json.Valid([]byte(text)) {
			t.Fatalf("%s: not JSON:\n%s", file, text)
		}
		again := mustParseConfig(t, text)
		again.Normalize()
		if next := showConfig(t, again, ""); next != text {
			t.Errorf("%s: not the same:\n%s\n%s", file, text, next)
		}
		again.Mesh.Consul.Token = cfg.Mesh.Consul.Token
		if !reflect.DeepEqual(again.Mesh, cfg.Mesh) {
			t.Errorf("%s:\n got %+v\nwant %+v", file, again.Mesh, cfg.Mesh)
		}
	}
}

func TestConfigShowOrigins(t *testing.T) {
	cfg := mustParseConfig(t, "{\n  gateway: { port: 1, auth: { token: '${X}' } },\n  agents: { entries: { bobby: {} } },\n  mesh: { queues: [{ id: 'q', agent: 'bobby' }] },\n}", "X=tok")
	if err := cfg.Set("mesh.log.level", "debug", "--log-level"); err != nil {
		t.Fatal(err)
	}
	cfg.Normalize()
	lines := strings.Split(showConfig(t, cfg, "origins"), "\n")
	for _, want := range []string{
		`gateway.port = 1  # c.json5:2:20`,
		`gateway.bind = "loopback"  # default`,
		`gateway.auth.token = "[redacted]"  # c.json5:2:38 (${X})`,
		`mesh.log.level = "debug"  # flag --log-level`,
		`mesh.retry.max = "1m"  # default`,
		`agents.entries.bobby.maxConcurrent = 16  # default`,
		`mesh.queues[0].agent = "bobby"  # c.json5:4:38`,
		`mesh.queues[0].concurrency = 1  # default`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %s in\n%s", want, strings.Join(lines, "\n"))
		}
	}
}

func TestConfigReloadable(t *testing.T) {
	const base = `{
		gateway: { port: 1 }, mesh: { gateway: "g", queues: [{ id: "q", agent: "a", workers: ["x"], gateways: ["x"] }, { id: "r", agent: "a", workers: ["y"], gateways: ["y"] }] },
		channels: { slack: { token: "a" } },
		agents: { list: [{ id: "a", runner: { kind: "echo" } }, { id: "b" }] },
	}`
	for name, test := range map[string]struct {
		from, to         string
		changed, restart []string
	}{
		"nothing":  {"", "", nil, nil},
		"port":     {"port: 1", "port: 2", []string{"gateway.port"}, []string{"gateway.port"}},
		"gateway":  {`gateway: "g"`, `gateway: "h"`, []string{"agents.a.gateways", "agents.b.gateways", "mesh.dataDir", "mesh.gateway"}, []string{"agents.a.gateways", "agents.b.gateways", "mesh.dataDir", "mesh.gateway"}},
		"live":     {`gateway: "g"`, `gateway: "g", log: { level: "debug" }, retry: { max: "2m" }, maxPayload: "1KiB"`, []string{"mesh.log.level", "mesh.maxPayload", "mesh.retry.max"}, nil},
		"store":    {`gateway: "g"`, `gateway: "g", store: "local"`, []string{"mesh.store"}, []string{"mesh.store"}},
		"runner":   {`kind: "echo"`, `kind: "checks", checks: ["node"]`, []string{"agents.a.runner.checks", "agents.a.runner.kind"}, nil},
		"token":    {`token: "a"`, `token: "b", dmPolicy: "disabled", endpoint: "x"`, []string{"channels.slack.dmPolicy", "channels.slack.endpoint", "channels.slack.token"}, nil},
		"account":  {`token: "a"`, `token: "a", accounts: { b: {} }, gateways: ["g"]`, []string{"channels.slack.accounts.b", "channels.slack.gateways"}, []string{"channels.slack.accounts.b", "channels.slack.gateways"}},
		"channel":  {`slack:`, `discord:`, []string{"channels.discord", "channels.slack"}, []string{"channels.discord", "channels.slack"}},
		"order":    {`{ id: "a", runner: { kind: "echo" } }, { id: "b" }`, `{ id: "b" }, { id: "a", runner: { kind: "echo" } }`, nil, nil},
		"new":      {`{ id: "b" }`, `{ id: "c", capabilities: [] }`, []string{"agents.b", "agents.c"}, []string{"agents.b", "agents.c"}},
		"moved":    {`{ id: "b" }`, `{ id: "b", gateways: ["g", "h"], capabilities: ["x"] }`, []string{"agents.b.capabilities", "agents.b.gateways"}, []string{"agents.b.gateways"}},
		"queue":    {`id: "q", agent: "a"`, `id: "q", agent: "b"`, []string{"mesh.queues.q.agent"}, []string{"mesh.queues.q.agent"}},
		"worker":   {`workers: ["y"]`, `workers: ["y", "z"]`, []string{"mesh.queues.r.workers"}, []string{"mesh.queues.r.workers"}},
		"no queue": {`{ id: "q", agent: "a", workers: ["x"], gateways: ["x"] }, `, ``, []string{"mesh.queues.q"}, []string{"mesh.queues.q"}},
		"defaults": {`list:`, `defaults: { maxConcurrent: 2 }, list:`, []string{"agents.a.maxConcurrent", "agents.b.maxConcurrent", "agents.defaults.maxConcurrent"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			before, after := mustParseConfig(t, base), mustParseConfig(t, strings.Replace(base, test.from, test.to, 1))
			before.Normalize()
			after.Normalize()
			changed, restart := Reloadable(before, after)
			if !slices.Equal(changed, test.changed) || !slices.Equal(restart, test.restart) {
				t.Errorf("changed %q, want %q; restart %q, want %q", changed, test.changed, restart, test.restart)
			}
		})
	}
}

// TestConfigTags reads every tag: each key is described, and each default and bound
// fits its type and the other tags.
func TestConfigTags(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || seen[typ] {
			return
		}
		seen[typ] = true
		s := cfgSchema(typ)
		for i := range typ.NumField() {
			if f := typ.Field(i); f.IsExported() && f.Tag.Get("json") == "" {
				t.Errorf("%s.%s has no key", typ, f.Name)
			}
		}
		for _, f := range s.fields {
			name := typ.Name() + "." + f.key
			if len(f.doc) < 5 || !strings.HasSuffix(f.doc, ".") {
				t.Errorf("%s: no description: %q", name, f.doc)
			}
			v := reflect.New(f.typ).Elem()
			for _, text := range []string{f.def, f.min, f.max} {
				if text != "" && !f.computed() {
					if err := cfgSetText(v, text); err != nil {
						t.Errorf("%s: %q: %v", name, text, err)
					}
				}
			}
			if f.enum != nil && f.def != "" && !slices.Contains(f.enum, f.def) {
				t.Errorf("%s: default %q is none of %q", name, f.def, f.enum)
			}
			if f.short != "" && (f.typ.Kind() != reflect.Struct || cfgSchema(f.typ).byKey[f.short] == nil) {
				t.Errorf("%s: short form %q", name, f.short)
			}
			if f.secret != f.namesSecret() && f.typ.Kind() != reflect.Map {
				t.Errorf("%s: the tag and the name disagree about its being secret", name)
			}
			walk(f.typ)
		}
	}
	walk(reflect.TypeFor[Config]())
	if len(seen) < 20 {
		t.Errorf("only %d types", len(seen))
	}
}

func TestConfigReference(t *testing.T) {
	ref := ConfigReference()
	for _, want := range []string{
		"| `gateway.port` | whole number | `18789` | TCP port of API and probes; 0 takes any free one. From 0 to 65535. |\n",
		"| `mesh.maxPayload` | size (\"64KiB\" or a number of bytes) | `8MiB` |",
		"| `agents.list[].runner` | string or object |  | What answers its messages; a string is its kind. Taken up by a reload. Keys as in `agents.defaults.runner`. |\n",
		"| `mesh.queues` | array of objects |  | Task queues: what many may add to and several gateways work off, each task once. |\n",
		"| `mesh.queues[].concurrency` | whole number | `1` | Tasks that each of the workers does at the same time. From 1 to 128. |\n",
		"| `agents.entries` | object |  | The agents by id: OpenClaw's newer form of list. Keys as in `agents.list[]`. |\n",
		"| `channels.<name>.token` | string |  | Bot token. Secret. Taken up by a reload. |\n",
		"| `mesh.log.level` | string | `info` | Least level that is written. One of: debug, info, warn, error. Taken up by a reload. |\n",
	} {
		if !strings.Contains(ref, want) {
			t.Errorf("no %s in\n%s", want, ref)
		}
	}
	for line := range strings.Lines(ref) {
		if strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") != 5 {
			t.Errorf("not four cells: %s", line)
		}
	}
}
