package test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/gateway"
)

const jobFile = "gatemesh.nomad.hcl"

// nomad runs Nomad's command line offline, in nomad/.
func nomad(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), nomadBinary(t), args...)
	cmd.Dir = filepath.Join(root(t), "nomad")
	// A closed port: what the job says must not depend on somebody's cluster.
	cmd.Env = append(os.Environ(), "NOMAD_ADDR=http://127.0.0.1:1", "NOMAD_TOKEN=", "NOMAD_NAMESPACE=", "NOMAD_REGION=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// nomadBinary is $GATEMESH_NOMAD_BIN, bin/tools/nomad, or the one on PATH.
func nomadBinary(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("GATEMESH_NOMAD_BIN"); p != "" {
		return p
	}
	if p := filepath.Join(root(t), "bin", "tools", "nomad"); fileExists(p) {
		return p
	}
	p, err := exec.LookPath("nomad")
	if err != nil {
		t.Fatal("this test needs the nomad binary: run `make nomad` (or set GATEMESH_NOMAD_BIN)")
	}
	return p
}

func fileExists(p string) bool { _, err := os.Stat(p); return err == nil }

func TestNomadJobIsValid(t *testing.T) {
	if out, err := nomad(t, "fmt", "-check", "."); err != nil {
		t.Errorf("not formatted (run: make fmt): %s", out)
	}
	for _, driver := range []string{"raw_exec", "exec"} {
		for _, source := range []string{"vault", "nomad"} {
			out, err := nomad(t, "job", "validate", "-var", "driver="+driver, "-var", "secret_source="+source, jobFile)
			if err != nil || !strings.Contains(out, "Job validation successful") || strings.Contains(out, "Warning") {
				t.Errorf("driver %s, secrets from %s: %v\n%s", driver, source, err, out)
			}
		}
	}
	for _, wrong := range []string{"driver=docker", "secret_source=file"} {
		if out, err := nomad(t, "job", "validate", "-var", wrong, jobFile); err == nil {
			t.Errorf("%s was taken:\n%s", wrong, out)
		}
	}
}

// nomadJob is what of the job the tests look at.
type nomadJob struct {
	Type        string
	Constraints []struct{ LTarget, RTarget, Operand string }
	TaskGroups  []struct {
		RestartPolicy struct{ Mode string }
		Services      []struct {
			Provider string
			Checks   []struct{ Type, Path string }
		}
		Tasks []struct {
			Driver    string
			Config    struct{ Command string }
			Env       map[string]string
			Templates []struct{ DestPath, EmbeddedTmpl, ChangeMode, ChangeSignal string }
		}
	}
}

func readJob(t *testing.T, vars ...string) nomadJob {
	t.Helper()
	args := []string{"job", "run", "-output"}
	for _, v := range vars {
		args = append(args, "-var", v)
	}
	out, err := nomad(t, append(args, jobFile)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var doc struct{ Job nomadJob }
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Job
}

// TestNomadJobPlan holds the job to the plan's words.
func TestNomadJobPlan(t *testing.T) {
	j := readJob(t)
	g := j.TaskGroups[0]
	task := g.Tasks[0]
	for what, ok := range map[string]bool{
		"one gateway on each node":            j.Type == "system" && len(j.TaskGroups) == 1 && len(g.Tasks) == 1,
		"a node is never left without one":    g.RestartPolicy.Mode == "delay",
		"health check":                        len(g.Services) == 1 && g.Services[0].Checks[0].Path == "/health",
		"Consul's entry is the gateway's":     g.Services[0].Provider == "nomad",
		"the node's own Consul agent":         task.Env["CONSUL_HTTP_ADDR"] == "http://127.0.0.1:8500",
		"Nomad, for the check":                task.Env["NOMAD_ADDR"] == "http://nomad.service.consul:4646",
		"a new Consul token needs no restart": strings.HasSuffix(task.Env["CONSUL_HTTP_TOKEN_FILE"], "/consul.token") && task.Templates[2].DestPath == "secrets/consul.token" && task.Templates[2].ChangeMode == "noop",
		"a changed configuration is a SIGHUP": task.Templates[0].ChangeMode == "signal" && task.Templates[0].ChangeSignal == "SIGHUP",
	} {
		if !ok {
			t.Errorf("%s: the job does not say so: %+v", what, j)
		}
	}
	nodes := regexp.MustCompile(j.Constraints[0].RTarget)
	for node, want := range map[string]bool{"jerry": true, "bobby": true, "billy": true, "jerry2": false, "xbobby": false} {
		if nodes.MatchString(node) != want {
			t.Errorf("node %s matches %s: %v, want %v", node, nodes, !want, want)
		}
	}
}

// TestNomadConfig reads the configuration as the gateway of each node would. "nomad job
// validate" never looks into templates.
func TestNomadConfig(t *testing.T) {
	task := readJob(t).TaskGroups[0].Tasks[0]
	rendered := render(t, task.Templates[0].EmbeddedTmpl, nil)
	for node, agents := range map[string][]string{
		"jerry": {"jerry", "bobby"}, "bobby": {"jerry", "bobby"}, "billy": {"jerry", "bobby", "billy"},
	} {
		env := map[string]string{
			"OPENCLAW_GATEWAY_TOKEN": "secret", "NOMAD_ADDR_http": "192.0.2.1:18789", "NOMAD_PORT_http": "18789",
		}
		for k, v := range task.Env {
			env[k] = strings.ReplaceAll(v, "${node.unique.name}", node)
		}
		cfg, warnings, err := gateway.ParseConfig("openclaw.json", []byte(rendered), func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		if err != nil {
			t.Fatalf("%s: %v", node, err)
		}
		cfg.Normalize()
		if err := cfg.Validate(); err != nil {
			t.Fatalf("%s: %v", node, err)
		}
		for _, w := range append(warnings, cfg.Unused()...) {
			t.Errorf("%s: %s", node, w)
		}
		if cfg.Mesh.Gateway != node+"-gateway" || cfg.Gateway.Port != 18789 || cfg.Mesh.AdvertiseURL != "http://192.0.2.1:18789" {
			t.Errorf("%s: %+v", node, cfg)
		}
		var here []string
		for _, a := range cfg.AgentsHere() {
			here = append(here, a.ID)
			if a.ID == node && a.Gateways[0] != cfg.Mesh.Gateway {
				t.Errorf("agent %s does not live on its node but on %s", a.ID, a.Gateways[0])
			}
		}
		if !slices.Equal(here, agents) {
			t.Errorf("%s may run %v, want %v", node, here, agents)
		}
	}
}

// TestNomadSecrets renders the secrets' templates with stand-ins for Vault and Nomad.
func TestNomadSecrets(t *testing.T) {
	for source, path := range map[string]string{"vault": "kv/data/openclaw", "nomad": "nomad/jobs/gatemesh"} {
		for _, c := range []struct {
			secrets map[string]any
			want    []string
		}{
			{map[string]any{"gateway_token": "g", "consul_token": "c", "nomad_token": "n"}, []string{"OPENCLAW_GATEWAY_TOKEN=g", "NOMAD_TOKEN=n", "c"}},
			{map[string]any{"gateway_token": "g", "consul_token": "c", "consul_token_jerry-1": "j"}, []string{"OPENCLAW_GATEWAY_TOKEN=g", "j"}},
			{map[string]any{"gateway_token": "g"}, []string{"OPENCLAW_GATEWAY_TOKEN=g"}},
			{map[string]any{"gateway_token": "g", "gateway_key_jerry-1": "k", "gateway_key_bobby-1": "b"}, []string{"OPENCLAW_GATEWAY_TOKEN=g", "GATEMESH_GATEWAY_KEY=k"}},
		} {
			asked, got := "", ""
			for _, tmpl := range readJob(t, "secret_source="+source).TaskGroups[0].Tasks[0].Templates[1:] {
				got += render(t, tmpl.EmbeddedTmpl, template.FuncMap{
					"secret": func(p string) any {
						asked = p
						return struct{ Data map[string]any }{map[string]any{"data": c.secrets}}
					},
					"nomadVar": func(p string) any {
						asked = p
						items := map[string]nomadItem{}
						for k, v := range c.secrets {
							items[k] = nomadItem{Value: v.(string)}
						}
						return items
					},
					"env": func(name string) string { return map[string]string{"NODE": "jerry-1"}[name] },
				})
			}
			if lines := strings.Fields(got); !slices.Equal(lines, c.want) || asked != path {
				t.Errorf("%s: %q from %s, want %q from %s", source, lines, asked, c.want, path)
			}
		}
	}
	if got := readJob(t, "secret_path=kv/data/x").TaskGroups[0].Tasks[0].Templates[1].EmbeddedTmpl; !strings.Contains(got, `"kv/data/x"`) {
		t.Errorf("secret_path is not used: %s", got)
	}
}

// nomadItem is how Nomad's templates see one value of a variable.
type nomadItem struct{ Value string }

func (i nomadItem) String() string { return i.Value }

func render(t *testing.T, text string, funcs template.FuncMap) string {
	t.Helper()
	tmpl, err := template.New("").Funcs(funcs).Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tmpl.Execute(&b, nil); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestNomadRunbook: every command of the runbook exists, and so do its flags. At three in
// the morning nobody wants to guess what it is called today.
func TestNomadRunbook(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root(t), "nomad", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	consul, err := cluster.Find()
	if err != nil {
		t.Fatal(err)
	}
	tools := map[string]string{"gatemesh": builtBinary(t), "nomad": nomadBinary(t), "consul": consul}
	lines := commandLines(string(page))
	if len(lines) < 20 {
		t.Fatalf("only %d commands: is the page read right?", len(lines))
	}
	for _, line := range lines {
		words := strings.Fields(line)
		tool, ok := tools[words[0]]
		if !ok {
			if words[0] != "export" {
				t.Errorf("%s: neither gatemesh nor nomad nor consul", line)
			}
			continue
		}
		out, _ := exec.CommandContext(t.Context(), tool, slices.Concat(subcommand(words)[1:], []string{"--help"})...).CombinedOutput()
		if why := checkCommand(words, string(out)); why != "" {
			t.Errorf("%s: %s", line, why)
		}
	}
}

// commandLines are the lines of a page's fenced blocks.
func commandLines(page string) []string {
	var lines []string
	for i, block := range strings.Split("\n"+page, "\n```") {
		if i%2 == 0 {
			continue
		}
		for _, l := range strings.Split(block, "\n") {
			if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
				lines = append(lines, l)
			}
		}
	}
	return lines
}

var bareWord = regexp.MustCompile(`^[a-z][a-z-]*$`)

// takesName are the commands whose next word is somebody's name and no subcommand.
var takesName = []string{"gatemesh trust approve", "gatemesh trust enroll", "gatemesh trust revoke", "gatemesh keys rotate gateway", "gatemesh keys rotate api", "gatemesh inbox", "nomad job status", "consul acl set-agent-token"}

// subcommand is the words that name a command: up to the first flag, name or file.
func subcommand(words []string) []string {
	n := 0
	for n < len(words) && bareWord.MatchString(words[n]) && !slices.Contains(takesName, strings.Join(words[:n], " ")) {
		n++
	}
	return words[:n]
}

// checkCommand says what of a command its help does not know.
func checkCommand(words []string, help string) string {
	name := strings.Join(subcommand(words), " ")
	usage := regexp.MustCompile(`(?i)usage:\s+` + regexp.QuoteMeta(name) + `\b`)
	if !usage.MatchString(help) {
		return "there is no command " + name
	}
	for _, w := range words {
		flag, _, _ := strings.Cut(w, "=")
		if strings.HasPrefix(flag, "-") && !regexp.MustCompile(`(^|\s)`+regexp.QuoteMeta(flag)+`\b`).MatchString(help) {
			return "it has no flag " + flag
		}
	}
	return ""
}

func TestCheckCommand(t *testing.T) {
	const help = "Usage:\n  gatemesh message show ID [flags]\n\nFlags:\n      --follow   go on\n"
	for line, want := range map[string]string{
		"gatemesh message show ID":          "",
		"gatemesh message show ID --follow": "",
		"gatemesh message show ID --fol":    "no flag",
		"gatemesh message read ID":          "no command",
		"gatemesh owner jerry":              "no command",
	} {
		if got := checkCommand(strings.Fields(line), help); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
