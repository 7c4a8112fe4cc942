package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/gatemesh/gatemesh/gateway"
)

// bearing is a transport that sends a token.
type bearing struct{ token string }

func (b bearing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

// toolbox is an agent of another program, as its MCP client.
type toolbox struct {
	t *testing.T
	s *mcp.ClientSession
}

func connectMCP(t *testing.T, transport mcp.Transport) toolbox {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	s, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(ctx, transport, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return toolbox{t, s}
}

// use calls a tool and returns its text; failed says that it is the tool's error.
func (b toolbox) use(tool string, args map[string]any) (text string, failed bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), testTimeout)
	defer cancel()
	r, err := b.s.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		b.t.Fatalf("%s: %v", tool, err)
	}
	for _, c := range r.Content {
		if x, ok := c.(*mcp.TextContent); ok {
			text += x.Text
		}
	}
	return text, r.IsError
}

func got[T any](b toolbox, tool string, args map[string]any) T {
	b.t.Helper()
	text, failed := b.use(tool, args)
	if failed {
		b.t.Fatalf("%s: %s", tool, text)
	}
	return parse[T](b.t, text)
}

func (b toolbox) refused(says, tool string, args map[string]any) {
	b.t.Helper()
	if text, failed := b.use(tool, args); !failed || !strings.Contains(text, says) {
		b.t.Errorf("%s %v: %q (failed %v), want %q", tool, args, text, failed, says)
	}
}

// TestMCP: agents of other programs find each other, send, fetch, answer and give back, over HTTP and over standard input and output, each with
// a token that speaks for it; what they may not they do not.
func TestMCP(t *testing.T) {
	dir := t.TempDir()
	var tokens []string
	entries := []string{}
	for _, who := range []string{"carol", "dave", "looker"} {
		args := []string{"token", "create", "--name", who, "--role", "send", "--agent", who, "--json"}
		if who == "looker" {
			args = []string{"token", "create", "--name", who, "--role", "read", "--json"}
		}
		made := parse[struct{ Token, Entry json.RawMessage }](t, must(t, nil, args...))
		var token string
		if err := json.Unmarshal(made.Token, &token); err != nil {
			t.Fatal(err)
		}
		tokens, entries = append(tokens, token), append(entries, string(made.Entry))
	}
	file := writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: { gateway: "node-gateway", store: "local", dataDir: %q, log: { json: true }, service: { register: false }, retry: { initial: "1ms", max: "10ms", maxAttempts: 3 } },
  gateway: { port: 0, auth: { token: "the-token-of-this-test", tokens: [%s] } },
  agents: { list: [
    { id: "carol", runner: "mailbox", capabilities: ["thinking"] }, { id: "dave", runner: "mailbox" }, { id: "echo", runner: "echo", capabilities: ["echo"] },
  ] },
}
`, filepath.Join(dir, "data"), strings.Join(entries, ", ")))
	p, env := startDaemon(t, file)
	url, _ := strings.CutPrefix(env[0], "GATEMESH_ADDR=")
	for _, a := range []string{"carol", "dave", "echo"} {
		served(t, env, a)
	}
	overHTTP := func(token string) toolbox {
		return connectMCP(t, &mcp.StreamableClientTransport{Endpoint: url + "/mcp", HTTPClient: &http.Client{Transport: bearing{token}}, DisableStandaloneSSE: true})
	}
	carol := connectMCP(t, &mcp.CommandTransport{Command: command(t.Context(), t, []string{"GATEMESH_ADDR=" + url, "GATEMESH_TOKEN=" + tokens[0]}, "mcp")}) // over standard input and output
	dave, looker := overHTTP(tokens[1]), overHTTP(tokens[2])

	list, err := carol.s.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range list.Tools {
		names = append(names, tool.Name)
	}
	for _, want := range []string{"agent_register", "agent_discover", "agent_heartbeat", "send_message", "check_inbox", "ack_message", "reply_message", "nak_message", "message_status", "dead_letters"} {
		if !slices.Contains(names, want) {
			t.Errorf("no tool %s in %q", want, names)
		}
	}
	type registered struct {
		Success bool
		Agent   struct{ Agent, Gateway string }
	}
	if r := got[registered](carol, "agent_register", map[string]any{"capabilities": []string{"thinking"}}); !r.Success || r.Agent.Agent != "carol" || r.Agent.Gateway != "node-gateway" {
		t.Errorf("%+v", r)
	}
	if r := got[gateway.AgentsResponse](dave, "agent_discover", map[string]any{"capability": "thinking"}); len(r.Agents) != 1 || r.Agents[0].ID != "carol" {
		t.Errorf("%+v", r)
	}

	// A question to an agent of the gateway, and its answer.
	if st := got[gateway.MessageStatus](dave, "send_message", map[string]any{"to_agent": "echo", "message_body": "anybody?", "wait_seconds": 30}); !st.Facts.Replied || st.Text != "anybody?" || st.Envelope == nil || st.Envelope.SourceAgent != "dave" {
		t.Errorf("%+v", st)
	}

	// One to an agent behind MCP: fetched, given back, fetched again, forgotten, handed out again, answered.
	st := got[gateway.MessageStatus](dave, "send_message", map[string]any{"to_agent": "carol", "message_body": "what is the sum?", "conversation_id": "sums"})
	fetch := func(lease float64) gateway.Mail {
		t.Helper()
		r := got[gateway.MailResponse](carol, "check_inbox", map[string]any{"wait_seconds": 30, "lease_seconds": lease})
		if len(r.Mail) != 1 || r.Mail[0].MessageID != st.MessageID || r.Mail[0].Text != "what is the sum?" || r.Mail[0].From != "dave@node-gateway" || r.Mail[0].ConversationID != "sums" {
			t.Fatalf("%+v", r)
		}
		return r.Mail[0]
	}
	if m := fetch(60); m.Attempt != 1 {
		t.Errorf("%+v", m)
	}
	if r := got[gateway.MailResponse](carol, "check_inbox", nil); len(r.Mail) != 0 {
		t.Errorf("leased twice: %+v", r)
	}
	dave.refused("is for the agent dave", "ack_message", map[string]any{"agent_id": "carol", "message_id": st.MessageID})
	dave.refused("is not leased", "ack_message", map[string]any{"message_id": st.MessageID})
	got[gateway.MailVerdict](carol, "nak_message", map[string]any{"message_id": st.MessageID, "reason": "not now"})
	carol.refused("is not leased", "ack_message", map[string]any{"message_id": st.MessageID})
	if m := fetch(0.01); m.Attempt != 2 {
		t.Errorf("%+v", m)
	}
	if m := fetch(60); m.Attempt != 3 { // nobody acked the last one
		t.Errorf("%+v", m)
	}
	got[gateway.MailVerdict](carol, "reply_message", map[string]any{"message_id": st.MessageID, "message_body": "four"})
	until(t, "the answer", func() bool {
		now := got[gateway.MessageStatus](dave, "message_status", map[string]any{"message_id": st.MessageID})
		return now.Facts.Replied && now.Text == "four"
	})

	// What is never acked is a dead letter in the end.
	lost := got[gateway.MessageStatus](dave, "send_message", map[string]any{"to_agent": "carol", "message_body": "forget me"})
	for range 3 {
		got[gateway.MailResponse](carol, "check_inbox", map[string]any{"wait_seconds": 30, "lease_seconds": 0.001})
	}
	until(t, "the dead letter", func() bool {
		r := got[gateway.DeadLettersResponse](dave, "dead_letters", map[string]any{"agent_id": "carol"})
		return len(r.DeadLetters) == 1 && r.DeadLetters[0].MessageID == lost.MessageID && strings.Contains(r.DeadLetters[0].Reason, "neither acked nor prolonged")
	})

	got[map[string]any](carol, "agent_heartbeat", map[string]any{"last_check_result": "all-healthy"})
	for _, c := range []struct {
		who  toolbox
		says string
		tool string
		args map[string]any
	}{
		{dave, "speaks for the agent dave", "send_message", map[string]any{"from_agent": "carol", "to_agent": "echo", "message_body": "x"}},
		{dave, "is for the agent dave", "check_inbox", map[string]any{"agent_id": "carol"}},
		{dave, "is for the agent dave", "agent_heartbeat", map[string]any{"agent_id": "carol", "last_check_result": "x"}},
		{dave, "to is missing", "send_message", map[string]any{"to_agent": "", "message_body": "x"}},
		{dave, "unknown agent", "send_message", map[string]any{"to_agent": "nobody", "message_body": "x"}},
		{dave, "up to 1h", "check_inbox", map[string]any{"lease_seconds": 7200}},
		{looker, "needs the role send", "send_message", map[string]any{"from_agent": "dave", "to_agent": "echo", "message_body": "x"}},
		{looker, "agent_id is missing", "check_inbox", nil},
		{looker, "needs the role send", "check_inbox", map[string]any{"agent_id": "carol"}},
		{looker, "runner of its own", "agent_register", map[string]any{"agent_id": "echo"}},
		{looker, "runner mailbox in agents.list", "agent_register", map[string]any{"agent_id": "nobody"}},
	} {
		c.who.refused(c.says, c.tool, c.args)
	}
	resp, err := http.Post(url+"/mcp", "application/json", strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %s", resp.Status)
	}
	if code := p.end(syscall.SIGTERM); code != exitOK {
		t.Errorf("status %d", code)
	}
	for _, token := range tokens {
		if strings.Contains(p.text(), token) {
			t.Error("the log holds a token")
		}
	}
}
