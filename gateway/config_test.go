package gateway

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var updateConfig = flag.Bool("update-config", false, "rewrite testdata/config/bad.txt")

// configEnv looks names up in "A=1 B=2".
func configEnv(pairs ...string) cfgEnv {
	m := map[string]string{"HOME": "/home/node"}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		m[name] = value
	}
	return func(name string) (string, bool) {
		value, ok := m[name]
		return value, ok
	}
}

func configFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "config", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustParseConfig(t *testing.T, doc string, env ...string) *Config {
	t.Helper()
	cfg, warnings, err := ParseConfig("c.json5", []byte(doc), configEnv(env...))
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) > 0 {
		t.Fatalf("warnings: %v", warnings)
	}
	return cfg
}

// configWords is Sprintln without the line feed: always a space in between.
func configWords(values ...any) string { return strings.TrimSuffix(fmt.Sprintln(values...), "\n") }

func configTexts(warnings []Warning) (lines []string) {
	for _, w := range warnings {
		lines = append(lines, string(w.Severity)+" "+w.String())
	}
	return lines
}

var planEnv = []string{
	"LITELLM_BASE_URL=https://litellm.example", "LITELLM_API_KEY=llm-key", "SLACK_BOT_TOKEN=xoxb",
	"SLACK_APP_TOKEN=xapp", "DISCORD_TOKEN=disc", "OPENCLAW_GATEWAY_TOKEN=gw-token",
}

// The plan's own files must load as they are, without a single warning.
func TestConfigPlan(t *testing.T) {
	tests := []struct {
		file, invalid string
		agents        []string
		unused        []string
	}{
		{
			file: "plan-phase2.json5", agents: []string{"jerry", "bobby", "billy"},
		},
		{
			file: "plan-phase1.json5", agents: []string{"jerry", "bobby", "billy"},
			unused: []string{
				"agents.defaults.sandbox.scope", "gateway.tailscale.resetOnExit",
			},
		},
		// A laptop's: under a profile it is valid (cmd/gatemesh), as a node of the mesh it is not.
		{
			file: "plan-macbook.json5", agents: []string{"dev"},
			invalid: "plan-macbook.json5:25:18: agents.list[0].model: lmstudio/local-model runs on somebody's laptop (LM Studio), and an agent of the mesh must not go away with it: " +
				"name another model, run the laptop's own gateway (gatemesh --profile NAME, or mesh.store \"local\"), or say models.providers.lmstudio.shared when that machine is always on",
		},
	}
	for _, test := range tests {
		t.Run(test.file, func(t *testing.T) {
			cfg, warnings, err := ParseConfig(test.file, configFile(t, test.file), configEnv(planEnv...))
			if err != nil || len(warnings) > 0 {
				t.Fatalf("warnings %v, error %v", configTexts(warnings), err)
			}
			var unused []string
			for _, w := range cfg.Unused() {
				if w.Severity != SeverityInfo || w.Line == 0 || w.Message != "accepted, not used by this version" {
					t.Errorf("odd: %+v", w)
				}
				unused = append(unused, w.Path)
			}
			if !slices.Equal(unused, test.unused) {
				t.Errorf("unused:\n got %q\nwant %q", unused, test.unused)
			}
			cfg.Normalize()
			message := ""
			if err := cfg.Validate(); err != nil {
				message = err.Error()
			}
			if message != test.invalid {
				t.Errorf("Validate:\n got %s\nwant %s", message, test.invalid)
			}
			var ids []string
			for _, a := range cfg.AgentsHere() {
				ids = append(ids, a.ID)
			}
			if test.agents != nil && !slices.Equal(ids, test.agents) {
				t.Errorf("agents %q", ids)
			}
		})
	}
}

func TestConfigPlanValues(t *testing.T) {
	cfg := mustParseConfig(t, string(configFile(t, "plan-phase1.json5")), planEnv...)
	cfg.Normalize()
	want := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	billy := cfg.Agents.List[2]
	want("fallbacks", billy.Model, ModelConfig{Primary: "anthropic/claude-sonnet-4-5", Fallbacks: []string{"anthropic/claude-haiku-4-6"}})
	want("sandbox", billy.Sandbox, SandboxConfig{Mode: "all", Scope: "agent", WorkspaceAccess: "rw"})
	want("model as string", cfg.Agents.List[0].Model.Primary, "anthropic/claude-sonnet-4-5")
	want("safeBins", cfg.Agents.List[1].Tools.Exec.SafeBins, []string{"nomad", "consul", "curl", "jq"})
	want("apiKey", cfg.Models.Providers["litellm"].APIKey, "llm-key")
	want("contextWindow", cfg.Models.Providers["litellm"].Models[0].ContextWindow, 32768)
	want("peer", cfg.Bindings[1].Match.Peer, PeerConfig{Kind: "direct", ID: "123456789012345678"})
	want("appToken", cfg.Channels["slack"].AppToken, "xapp")
	want("cron", cfg.Cron, CronConfig{Enabled: true, MaxConcurrentRuns: 2, SessionRetention: "24h"})
	want("listen", cfg.ListenAddr(), ":18789")
	want("token", cfg.Gateway.Auth.Token, "gw-token")
	want("token's origin", cfg.Origin("gateway.auth.token").String(), "env OPENCLAW_GATEWAY_TOKEN")
	want("port's origin", cfg.Origin("gateway.port").String(), "c.json5:100:11")
}

func TestConfigThreeAgents(t *testing.T) {
	values := map[string]string{"OC_PORT": "18801", "OC_TOKEN": "tok", "OC_CONTROL_UI": "false", "STUB_URL": "http://127.0.0.1:9", "OC_HOME": "/tmp/oc", "MESH_MCP": "/bin/mesh", "A2A_TOKEN": "a2a"}
	rendered := os.Expand(string(configFile(t, "three-agents.json5")), func(name string) string { return values[name] })
	cfg := mustParseConfig(t, rendered)
	cfg.Normalize()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range cfg.Agents.List {
		got = append(got, a.ID+" "+a.Name+" "+a.Workspace+" "+a.Model.Primary+" "+a.Runner.Kind)
	}
	want := []string{"jerry Jerry /tmp/oc/ws-jerry stub/stub llm", "bobby Bobby /tmp/oc/ws-bobby stub/stub llm", "billy Billy /tmp/oc/ws-billy stub/stub llm"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if cfg.ListenAddr() != "127.0.0.1:18801" || cfg.Gateway.Auth.Mode != "token" {
		t.Errorf("gateway: %+v", cfg.Gateway)
	}
}

func TestConfigMesh(t *testing.T) {
	cfg := mustParseConfig(t, string(configFile(t, "mesh.json5")), "PORT=18790", "GATEWAY_SECRET=s3cret-value")
	cfg.Normalize()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	m := cfg.Mesh
	got := configWords(m.HeartbeatInterval, m.DefaultTTL, m.DefaultMaxHops, m.MaxPayload, m.Retry, m.DataDir, m.Service, m.Log, cfg.ListenAddr())
	if want := "10s 1h30m0s 4 64KiB {3 500ms 10s} /home/node/mesh {openclaw false} {debug true} 100.64.0.2:18790"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	bobby, jerry, echo := cfg.Agents.List[0], cfg.Agents.List[1], cfg.Agents.List[2]
	got = configWords(bobby.MaxConcurrent, bobby.AckTimeout, bobby.Sandbox, bobby.Runner.Timeout, jerry.AckTimeout, jerry.Runner.To, echo.Runner.Kind, echo.Runner.Timeout, echo.Gateways)
	if want := "4 1m0s {all agent  { {}} {}} 0s 5m0s bobby relay 30s [bobby-gateway]"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	here := cfg.AgentsHere()
	if len(here) != 2 || here[0].ID != "bobby" || here[1].ID != "echo" {
		t.Errorf("here: %v", here)
	}
	for i, want := range []QueueConfig{
		{"nightly", "What can wait", "bobby", []string{"bobby-gateway", "jerry-gateway"}, []string{"bobby-gateway", "billy-gateway"}, 2, 30 * time.Second},
		{"reports", "", "jerry", []string{"jerry-gateway"}, []string{"jerry-gateway"}, 1, 5 * time.Minute},
	} {
		if got := cfg.Mesh.Queues[i]; !reflect.DeepEqual(got, want) {
			t.Errorf("queue %d: %+v, want %+v", i, got, want)
		}
	}
	before := fmt.Sprint(cfg.Mesh, cfg.Agents, cfg.Gateway)
	if cfg.Normalize(); before != fmt.Sprint(cfg.Mesh, cfg.Agents, cfg.Gateway) {
		t.Error("Normalize is not idempotent")
	}
}

func TestConfigDefaults(t *testing.T) {
	t.Setenv("OPENCLAW_GATEWAY_TOKEN", "")
	t.Setenv("GATEMESH_TOKEN", "from-env")
	t.Setenv("HOME", "/home/x")
	cfg := DefaultConfig()
	cfg.Mesh.Gateway = "a-gateway"
	cfg.Normalize()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	m := cfg.Mesh
	got := configWords(cfg.ListenAddr(), cfg.Gateway.Auth, m.Store, m.DataDir, m.Cluster, m.HeartbeatInterval, m.SessionTTL, m.DefaultTTL, m.MaxTTL,
		m.DefaultMaxHops, m.MaxPayload, m.Retry, m.AckTimeout, m.ResultRetention, m.Log, m.Service)
	want := "127.0.0.1:18789 {token from-env [] {10 60000 false 0} {}} consul /home/x/.gatemesh/a-gateway {octant-homelab option-2-distributed} 20s 15s 5m0s 24h0m0s" +
		" 4 8MiB {5 1s 1m0s} 10m0s 1h0m0s {info false} {openclaw true}"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// A file that says nothing is the same.
	parsed := mustParseConfig(t, "{}", "GATEMESH_TOKEN=from-env", "HOME=/home/x")
	parsed.Mesh.Gateway = "a-gateway"
	parsed.Normalize()
	if !reflect.DeepEqual(parsed.Mesh, cfg.Mesh) || !reflect.DeepEqual(parsed.Gateway, cfg.Gateway) {
		t.Errorf("{} differs from DefaultConfig: %+v", parsed)
	}
	// A client's variable does not come in beside the tokens of a file.
	listed := mustParseConfig(t, `{ gateway: { auth: { tokens: [{ name: "ci", role: "read", sha256: "`+strings.Repeat("ab", 32)+`" }] } } }`, "GATEMESH_TOKEN=from-env")
	listed.Normalize()
	if a := listed.Gateway.Auth; a.Token != "" || a.Mode != "token" {
		t.Errorf("beside a list: %+v", a)
	}
	// Made by hand, zeros that can be meant stay.
	hand := &Config{Mesh: MeshConfig{Gateway: "a-gateway", AckTimeout: time.Second}, Agents: AgentsConfig{List: []AgentConfig{{ID: "x"}}}}
	hand.Normalize()
	if err := hand.Validate(); err != nil || hand.Gateway.Port != 0 || hand.Mesh.Service.Register || hand.Agents.List[0].AckTimeout != time.Second {
		t.Errorf("by hand: %v %+v", err, hand)
	}
	for host, want := range map[string]string{
		"jerry": "jerry-gateway", "Bobby.local.lan": "bobby-gateway", "a_b": "a-b-gateway", "": "local-gateway", "---": "local-gateway",
		strings.Repeat("x", 80): strings.Repeat("x", 55) + "-gateway",
	} {
		if got := cfgDefaultGatewayID(host, nil); got != want || !cfgIDPattern.MatchString(got) {
			t.Errorf("gateway id of %q: %q", host, got)
		}
	}
}

func TestConfigSet(t *testing.T) {
	cfg := mustParseConfig(t, `{gateway: {port: 1, bind: "lan"}, mesh: {sessionTTL: "1m"}}`)
	for path, text := range map[string]string{"gateway.port": "0", "gateway.bind": "loopback", "mesh.sessionTTL": "20", "mesh.service.register": "false", "mesh.maxPayload": "2KiB", "agents.defaults.runner.checks": "consul, node"} {
		if err := cfg.Set(path, text, "--x"); err != nil {
			t.Error(err)
		}
	}
	cfg.Normalize()
	got := configWords(cfg.ListenAddr(), cfg.Mesh.SessionTTL, cfg.Mesh.Service.Register, cfg.Mesh.MaxPayload, cfg.Agents.Defaults.Runner.Checks, cfg.Origin("gateway.port"))
	if want := "127.0.0.1:0 20s false 2KiB [consul node] flag --x"; got != want {
		t.Errorf("got %s", got)
	}
	for path, text := range map[string]string{"gateway.prot": "1", "gateway.port": "x", "gateway": "x", "gateway.port.x": "1", "mesh.sessionTTL": "soon", "bindings": "a"} {
		if err := cfg.Set(path, text, "--x"); err == nil {
			t.Errorf("%s=%s is accepted", path, text)
		} else {
			t.Log(err)
		}
	}
	if cfg.Gateway.Port != 0 || cfg.Mesh.SessionTTL != 20*time.Second {
		t.Error("a failed Set changed something")
	}
	if err := cfg.Set("mesh.log.level", "loud", "--log-level"); err != nil {
		t.Error(err)
	}
	if err := cfg.Validate(); err == nil || err.Error() != `flag --log-level: mesh.log.level: "loud" is not one of debug, info, warn, error` {
		t.Errorf("got %v", err)
	}
}

// A gateway owns, works and makes runners as the file says, which is the same for all.
func TestConfigQueuesHere(t *testing.T) {
	const doc = `{
		mesh: { gateway: "HERE", queues: [
			{ id: "q", agent: "a" },
			{ id: "r", agent: "b", gateways: ["two", "three"], workers: ["three"] },
		] },
		agents: { list: [{ id: "a", gateways: ["one", "two"] }, { id: "b", gateways: ["one"] }] },
	}`
	for here, want := range map[string]string{
		"one": "own [q], work [q], runners [a b]", "two": "own [q r], work [q], runners [a]",
		"three": "own [r], work [r], runners [b]", "four": "own [], work [], runners []",
	} {
		cfg := mustParseConfig(t, strings.Replace(doc, "HERE", here, 1))
		cfg.Normalize()
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		ids := func(queues []QueueConfig) (ids []string) {
			for _, q := range queues {
				ids = append(ids, q.ID)
			}
			return ids
		}
		var runners []string
		for _, a := range cfg.runnersHere() {
			runners = append(runners, a.ID)
		}
		if got := fmt.Sprintf("own %v, work %v, runners %v", ids(cfg.QueuesHere()), ids(cfg.WorkHere()), runners); got != want {
			t.Errorf("%s: %s, want %s", here, got, want)
		}
	}
}

// TestConfigBad compares what is said about bad configurations with bad.txt.
func TestConfigBad(t *testing.T) {
	file := string(configFile(t, "bad.txt"))
	head, rest, _ := strings.Cut(file, "=== ")
	var out strings.Builder
	out.WriteString(head)
	for _, section := range strings.Split(rest, "\n=== ") {
		title, body, _ := strings.Cut(section, "\n")
		doc, want, _ := strings.Cut(body+"\n", "---\n")
		name, env, _ := strings.Cut(strings.TrimSuffix(title, "]"), " [")
		var got []string
		t.Run(name, func(t *testing.T) {
			env, _ = url.PathUnescape(env)
			cfg, warnings, err := ParseConfig("c.json5", []byte(doc), configEnv(splitConfigEnv(env)...))
			for _, w := range warnings {
				got = append(got, "warning: "+w.String())
			}
			if err == nil {
				cfg.Normalize()
				err = cfg.Validate()
			}
			if err != nil {
				var list *ConfigError
				if !errors.As(err, &list) || len(list.Problems) == 0 {
					t.Fatalf("not a ConfigError: %v", err)
				}
				got = append(got, strings.Split(err.Error(), "\n")...)
			}
			for _, line := range got {
				if strings.Contains(line, "hunter2") {
					t.Errorf("a secret is shown: %s", line)
				}
			}
			if !*updateConfig && strings.Join(got, "\n") != strings.TrimSpace(want) {
				t.Errorf("\n got %s\nwant %s", strings.Join(got, "\n     "), want)
			}
		})
		fmt.Fprintf(&out, "=== %s\n%s---\n%s\n", title, doc, strings.Join(got, "\n"))
	}
	if *updateConfig {
		if err := os.WriteFile(filepath.Join("testdata", "config", "bad.txt"), []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// splitConfigEnv splits "A=1 B=2"; a value may hold no space but a line feed.
func splitConfigEnv(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' })
}

func TestConfigNotText(t *testing.T) {
	deep := strings.Repeat("[", maxConfigDepth)
	for name, test := range map[string]struct{ doc, want string }{
		"binary":           {"\x7fELF\x02\x00", "c: not a text file: byte 0x00 at offset 5"},
		"latin 1":          {"{a: '\xe9'}", "c: not UTF-8 text: byte 0xe9 at offset 5"},
		"UTF-16":           {"\xff\xfe{\x00}\x00", "c: the text is UTF-16: save it as UTF-8"},
		"BOM":              {"\ufeff{}", ""},
		"BOM and an error": {"\ufeff{,}", "c:1:2: expected a key or '}', found ','"},
		"space":            {" \n\t", "c: the file is empty: write {} for the defaults"},
		"no byte":          {"", "c: the file is empty: write {} for the defaults"},
		"deep":             {"{mcp: {x: " + deep, "c:1:73: nested deeper than 64 levels"},
		"large":            {"{}" + strings.Repeat(" ", MaxConfigBytes), "c: larger than 10 MB, the most a configuration may have"},
		"column":           {"{\r\n\t'ä': 1,\rmesh: }", "c:3:7: expected a value, found '}'"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ParseConfig("c", []byte(test.doc), configEnv())
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("\n got %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestConfigLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "openclaw.json")
	if _, _, err := LoadConfig(path, configEnv()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, _, err := LoadConfig(dir, configEnv()); err == nil {
		t.Error("a directory is accepted")
	}
	if err := os.WriteFile(path, []byte("{mesh: {gateway: 1}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadConfig(path, configEnv()); err == nil || err.Error() != path+":1:18: mesh.gateway: expected string, found number" {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte("{}"+strings.Repeat("\n", MaxConfigBytes)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadConfig(path, configEnv()); err == nil || !strings.Contains(err.Error(), "larger than 10 MB") {
		t.Errorf("got %v", err)
	}
}
