package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeFile(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBadInput: one clear line and the right status, whatever was typed. Nothing here
// needs a gateway.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	malformed := writeFile(t, filepath.Join(dir, "malformed.json"), "{\n  gateway: { port: 18789,\n  mesh: }\n")
	wrongType := writeFile(t, filepath.Join(dir, "type.json"), "{\n  gateway: { port: \"many\" },\n}\n")
	good := writeFile(t, filepath.Join(dir, "good.json"), "{}\n")
	open := writeFile(t, filepath.Join(dir, "open.json"), "{ gateway: { bind: 'lan' } }\n")
	huge := writeFile(t, filepath.Join(dir, "huge.txt"), strings.Repeat("x", maxBody+1))
	empty := writeFile(t, filepath.Join(dir, "empty.txt"), "\n")
	nowhere := "http://127.0.0.1:1" // reserved: nobody listens

	for _, c := range []struct {
		name string
		args []string
		want int
		says string
	}{
		{"unknown flag", []string{"agents", "--nope"}, exitUsage, "unknown flag: --nope"},
		{"unknown command", []string{"agentz"}, exitUsage, `unknown command "agentz"`},
		{"unknown subcommand", []string{"message", "shwo"}, exitUsage, `unknown command "shwo"`},
		{"group alone", []string{"config"}, exitUsage, "needs one of: reference, show, validate"},
		{"surplus argument", []string{"agents", "bobby"}, exitUsage, "unknown command"},
		{"missing argument", []string{"message", "show"}, exitUsage, "accepts 1 arg"},
		{"bad duration", []string{"agents", "--timeout", "soon"}, exitUsage, "--timeout"},
		{"no target", []string{"send", "hi"}, exitUsage, "--to"},
		{"bad target", []string{"send", "--to", "Bobby!", "hi"}, exitUsage, "agent@gateway"},
		{"bad wait", []string{"send", "--to", "bobby", "--wait", "forever", "hi"}, exitUsage, "accepted, delivered"},
		{"bad ttl", []string{"send", "--to", "bobby", "--ttl", "-3s", "hi"}, exitUsage, "--ttl"},
		{"bad priority", []string{"send", "--to", "bobby", "--priority", "10", "hi"}, exitUsage, "--priority"},
		{"bad delay", []string{"send", "--to", "bobby", "--delay", "later", "hi"}, exitUsage, "--delay"},
		{"no queue", []string{"task", "add", "hi"}, exitUsage, "gatemesh task queues"},
		{"bad queue", []string{"task", "add", "--queue", "../x", "hi"}, exitUsage, "not the name of a queue"},
		{"task without a body", []string{"task", "add", "--queue", "jobs"}, exitUsage, "no body"},
		{"negative priority", []string{"task", "add", "--queue", "jobs", "--priority", "-1", "hi"}, exitUsage, "--priority"},
		{"priority in words", []string{"task", "add", "--queue", "jobs", "--priority", "high", "hi"}, exitUsage, "--priority"},
		{"bad time", []string{"task", "add", "--queue", "jobs", "--at", "tomorrow", "hi"}, exitUsage, "--at"},
		{"far time", []string{"task", "add", "--queue", "jobs", "--at", "9999-01-01T00:00:00Z", "hi"}, exitUsage, "--at"},
		{"two times", []string{"task", "add", "--queue", "jobs", "--at", "2026-01-31T02:00:00Z", "--delay", "1s", "hi"}, exitUsage, "one of them"},
		{"bad unique-for", []string{"task", "add", "--queue", "jobs", "--unique", "k", "--unique-for", "-1h", "hi"}, exitUsage, "--unique-for"},
		{"unique-for alone", []string{"task", "add", "--queue", "jobs", "--unique-for", "1h", "hi"}, exitUsage, "--unique NAME"},
		{"bad queue of a list", []string{"task", "list", "--queue", "No"}, exitUsage, "not the name of a queue"},
		{"bad state", []string{"task", "list", "--state", "done"}, exitUsage, "waiting, delayed"},
		{"bad limit of tasks", []string{"task", "list", "--limit", "0"}, exitUsage, "--limit"},
		{"cancel without a queue", []string{"task", "cancel", "x"}, exitUsage, "--queue"},
		{"cancel nothing", []string{"task", "cancel", "--queue", "jobs"}, exitUsage, "accepts 1 arg"},
		{"unreachable task", []string{"task", "add", "--queue", "jobs", "--addr", nowhere, "hi"}, exitUnavailable, "connection refused"},
		{"bad hops", []string{"send", "--to", "bobby", "--max-hops", "99", "hi"}, exitUsage, "--max-hops"},
		{"no body", []string{"send", "--to", "bobby"}, exitUsage, "no body"},
		{"empty file", []string{"send", "--to", "bobby", "--file", empty}, exitUsage, "no body"},
		{"missing file", []string{"send", "--to", "bobby", "--file", filepath.Join(dir, "nope")}, exitUsage, "no such file"},
		{"two bodies", []string{"send", "--to", "bobby", "--file", empty, "hi"}, exitUsage, "given twice"},
		{"not JSON", []string{"send", "--to", "bobby", "--json-body", "{a:"}, exitUsage, "not JSON"},
		{"huge body", []string{"send", "--to", "bobby", "--file", huge}, exitUsage, "the most a message carries"},
		{"bad address", []string{"agents", "--addr", "ftp://x"}, exitUsage, "not a URL"},
		{"bad address 2", []string{"agents", "--addr", "http://user:pw@[x"}, exitUsage, "not a URL"},
		{"unreachable", []string{"agents", "--addr", nowhere}, exitUnavailable, "connection refused"},
		{"unreachable ask", []string{"ask", "--addr", nowhere, "hi"}, exitUnavailable, "gatemesh gateway --config FILE"},
		{"unreachable events", []string{"events", "--addr", nowhere}, exitUnavailable, "connection refused"},
		{"unreachable hides credentials", []string{"agents", "--addr", "http://user:hunter22@127.0.0.1:1"}, exitUnavailable, "user:xxxxx@"},
		{"short id", []string{"message", "show", "a"}, exitUsage, "too short"},
		{"bad replay", []string{"events", "--replay", "5000"}, exitUsage, "--replay"},
		{"bad limit", []string{"message", "list", "--limit", "0"}, exitUsage, "--limit"},
		{"bad agent", []string{"inbox", "../x"}, exitUsage, "not the name of an agent"},
		{"trust alone", []string{"trust"}, exitUsage, "needs one of: approve"},
		{"enroll nothing", []string{"trust", "enroll", "a"}, exitUsage, "--new-token"},
		{"enroll a bad name", []string{"trust", "enroll", "A!", "--new-token"}, exitUsage, "not the name of a gateway"},
		{"enroll a bad key", []string{"trust", "enroll", "a", "--public", "AAAA"}, exitUsage, "base64 of 32 bytes"},
		{"enroll a private key", []string{"trust", "enroll", "a", "--public", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}, exitUsage, "never hand out a private one"},
		{"bad agents", []string{"trust", "enroll", "a", "--new-token", "--agents", "[x]"}, exitUsage, "--agents"},
		{"long token", []string{"trust", "enroll", "a", "--new-token", "--ttl", "9000h"}, exitUsage, "--ttl"},
		{"approve whom", []string{"trust", "approve"}, exitUsage, "--tokens"},
		{"approve without a key", []string{"trust", "approve", "a"}, exitUsage, "--key is missing"},
		{"no operator", []string{"trust", "pending", "--config", good, "--operator-key", filepath.Join(dir, "nope")}, exitUsage, "gatemesh trust init"},
		{"operator's key is none", []string{"trust", "pending", "--config", good, "--operator-key", good}, exitUsage, "neither PEM nor"},
		{"no event", []string{"state", "record", "--agent", "bobby"}, exitUsage, "no text"},
		{"event of nobody", []string{"state", "record", "x"}, exitUsage, "--agent"},
		{"long event", []string{"state", "record", "--agent", "bobby", strings.Repeat("x", 1025)}, exitUsage, "at most 1024"},
		{"bad event limit", []string{"state", "events", "--limit", "101"}, exitUsage, "--limit"},
		{"focus and clear", []string{"state", "focus", "--clear", "x"}, exitUsage, "one of the two"},
		{"empty focus", []string{"state", "focus", ""}, exitUsage, "--clear"},
		{"bad store", []string{"demo", "--store", "etcd"}, exitUsage, "local or consul"},
		{"existing needs consul", []string{"demo", "--existing"}, exitUsage, "--store consul"},
		{"existing needs an address", []string{"demo", "--store", "consul", "--existing"}, exitUsage, "CONSUL_HTTP_ADDR"},
		{"config missing", []string{"gateway", "--config", filepath.Join(dir, "none.json")}, exitUsage, "no configuration at"},
		{"config malformed", []string{"gateway", "--config", malformed}, exitUsage, "malformed.json:3:"},
		{"config wrong type", []string{"gateway", "--config", wrongType}, exitUsage, "type.json:2:20"},
		{"config open", []string{"gateway", "--config", open}, exitUsage, "needs a token"},
		{"config bad override", []string{"gateway", "--config", good, "--set", "gateway.port"}, exitUsage, "KEY=VALUE"},
		{"config unknown override", []string{"gateway", "--config", good, "--set", "gateway.prot=1"}, exitUsage, "gateway.prot"},
		{"config impossible override", []string{"gateway", "--config", good, "--set", "gateway.port=70000"}, exitUsage, "between 0 and 65535"},
		{"validate malformed", []string{"config", "validate", "--config", malformed}, exitUsage, "malformed.json:3:"},
		{"role unknown", []string{"acl", "policy", "--role", "root"}, exitUsage, "gateway, janitor"},
		{"rules of nobody", []string{"acl", "policy"}, exitUsage, "--gateway"},
		{"rules of a bad name", []string{"acl", "policy", "--gateway", "a", "--node", "n", "--agent", "b=a,B!"}, exitUsage, "not the name of a gateway"},
		{"rules without a node", []string{"acl", "policy", "--gateway", "a", "--agent", "b=a"}, exitUsage, "--node"},
		{"rules of a stranger", []string{"acl", "policy", "--gateway", "a", "--node", "n", "--agent", "b=c"}, exitUsage, "not in the mesh"},
		{"rules of a bad agent", []string{"acl", "policy", "--gateway", "a", "--node", "n", "--agent", "b"}, exitUsage, "NAME=GATEWAY"},
		{"rules of a missing file", []string{"acl", "policy", "--config", filepath.Join(dir, "none.json")}, exitUsage, "no configuration at"},
		{"rules of a malformed file", []string{"acl", "policy", "--config", malformed}, exitUsage, "malformed.json:3:"},
		{"show malformed", []string{"config", "show", "--config", malformed}, exitUsage, "malformed.json:3:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := gatemesh(t, nil, "", c.args...)
			if r.code != c.want {
				t.Errorf("status %d, want %d", r.code, c.want)
			}
			oneLine(t, r)
			if !strings.Contains(r.errOut, c.says) {
				t.Errorf("standard error %q does not say %q", r.errOut, c.says)
			}
			if strings.Contains(r.errOut, "hunter22") {
				t.Error("a password was printed")
			}
		})
	}
}
