//go:build linux && proof

package test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/agent/openclaw/openclawtest"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/envelope"
)

// Real OpenClaw at both ends: three gateways of the mesh, jerry's and bobby's with an OpenClaw gateway behind it each, on models at the wire. Jerry's
// OpenClaw asks bobby by the MCP server of its gateway, the mesh carries it, and bobby's OpenClaw answers. The same question, in the same run, to carl, another agent of
// jerry's OpenClaw, by OpenClaw's own sessions_send.

// clawFigures are what it came to.
type clawFigures struct {
	// Questions went through the mesh, and as many through sessions_send, in turns.
	Questions int `json:"questions"`
	Answered  int `json:"answered"`
	Doubled   int `json:"doubled"`
	// Mesh is from the model's word that bobby is to be asked until it is shown the answer, at jerry's model's wire: OpenClaw at both ends and the mesh, everything but
	// the models. Local is the same of sessions_send within one OpenClaw gateway.
	MeshP50  float64 `json:"openclaw_a2a_p50_ms"`
	MeshP95  float64 `json:"openclaw_a2a_p95_ms"`
	LocalP50 float64 `json:"sessions_send_p50_ms"`
	LocalP95 float64 `json:"sessions_send_p95_ms"`
	// Killed is what became of questions in the middle of whose turn bobby's OpenClaw was killed with -9.
	Killed clawKilled `json:"killed"`
}

type clawKilled struct {
	Questions int `json:"questions"`
	Answered  int `json:"answered"`
	Unknown   int `json:"unknown"`
	Lost      int `json:"lost"`
	// Longest is from the kill to the answer, or to the word that it is unknown; OpenClaw takes most of it to start.
	Longest float64 `json:"longest_s"`
}

var clawTag = regexp.MustCompile(`#(mesh|local|ask|hold)-([a-z]+[0-9]+)`)

// clawModel is the model of all agents of OpenClaw. What is to be done it reads from the tag of the last message that has one.
type clawModel struct {
	mu     sync.Mutex
	left   map[string]time.Time
	took   map[string]time.Duration
	asked  map[string]int
	held   map[string]bool
	inTurn chan string
	last   time.Time
}

func newClawModel() *clawModel {
	return &clawModel{left: map[string]time.Time{}, took: map[string]time.Duration{}, asked: map[string]int{}, held: map[string]bool{}, inTurn: make(chan string, 10)}
}

func (m *clawModel) answer(r modeltest.Request) modeltest.Step {
	var body struct {
		Messages []struct {
			Role    string
			Content json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(r.Body), &body); err != nil || len(body.Messages) == 0 {
		return modeltest.Step{Status: http.StatusBadRequest, Body: "no messages"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = time.Now()
	now, told, begun := "", false, false // what came since the model spoke last; OpenClaw puts words of its own behind the answer of a tool
	for i := len(body.Messages) - 1; i >= 0 && !begun; i-- {
		if begun = body.Messages[i].Role == "assistant"; !begun && body.Messages[i].Role != "system" {
			now, told = string(body.Messages[i].Content)+"\n"+now, told || body.Messages[i].Role == "tool"
		}
	}
	for _, skip := range []string{"REPLY_SKIP", "ANNOUNCE_SKIP"} {
		if strings.Contains(now, skip) {
			return modeltest.Step{Text: skip}
		}
	}
	tags := clawTag.FindAllStringSubmatch(r.Body, -1)
	if len(tags) == 0 {
		return modeltest.Step{Text: "I do not know what is wanted."}
	}
	kind, id := tags[len(tags)-1][1], tags[len(tags)-1][2]
	said := "answer-to-" + id
	if told {
		for i := len(tags) - 1; i >= 0; i-- {
			if k := tags[i][1]; k == "mesh" || k == "local" {
				id = tags[i][2]
				break
			}
		}
		if at, ok := m.left[id]; ok {
			m.took[id] = time.Since(at)
			delete(m.left, id)
		}
		if strings.Contains(now, "answer-to-"+id) {
			return modeltest.Step{Text: "I was told answer-to-" + id}
		}
		return modeltest.Step{Text: "I was told nothing: " + now[:min(len(now), 500)]}
	}
	switch kind {
	case "mesh":
		m.left[id] = time.Now()
		return m.call(id, "consul-registry__send_message", map[string]any{"to_agent": "bobby", "message_body": "#ask-" + id, "wait_seconds": 120})
	case "local":
		m.left[id] = time.Now()
		return m.call(id, "sessions_send", map[string]any{"sessionKey": "agent:carl:main", "message": "#ask-" + id, "timeoutSeconds": 120})
	case "hold":
		if m.asked[id]++; !m.held[id] {
			m.held[id] = true
			m.inTurn <- id
			return modeltest.Step{Hang: true}
		}
		return modeltest.Step{Text: said}
	}
	m.asked[id]++
	return modeltest.Step{Text: said}
}

func (m *clawModel) call(id, tool string, args map[string]any) modeltest.Step {
	raw, _ := json.Marshal(args)
	return modeltest.Step{Calls: []agent.ToolCall{{ID: "call_" + id, Name: tool, Arguments: raw}}}
}

func (m *clawModel) times(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[id]
}

// quiet waits until nobody has asked the model for a second: OpenClaw goes on with a question of sessions_send after its answer.
func (m *clawModel) quiet(ctx context.Context) {
	for tick := time.NewTicker(100 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		m.mu.Lock()
		d := time.Since(m.last)
		m.mu.Unlock()
		if d > time.Second {
			tick.Stop()
			return
		}
	}
}

// runOpenClaw asks so many questions either way, and kills bobby's OpenClaw so often in the middle of one.
func runOpenClaw(t *testing.T, binary string, questions, kills int, say func(string, ...any)) clawFigures {
	t.Helper()
	model := newClawModel()
	server := modeltest.NewServer(t, agent.APIOpenAI)
	server.Answer(model.answer)
	c := cluster.ForTest(t, 3)
	names, ports := []string{"jerry-gateway", "bobby-gateway", "billy-gateway"}, make([]int, 3)
	for i := range ports {
		ports[i] = freePort(t)
	}
	const mcpToken, ownToken, peerToken = "token-of-jerry-for-mcp", "token-of-this-test", "token-of-the-mesh-at-openclaw"
	jerry := openclawtest.Start(t, openclawtest.Config{
		Model: server.BaseURL(), Key: modeltest.Key, Agents: []string{"jerry", "carl"}, Tools: `profile: "coding", toolSearch: false`,
		More: fmt.Sprintf(`mcp: { servers: { "consul-registry": { url: "http://127.0.0.1:%d/mcp", transport: "streamable-http", headers: { Authorization: "Bearer %s" } } } },
			channels: { a2a: { enabled: true, rateLimitPerMinute: 0, peers: { mesh: { token: %q, url: "http://127.0.0.1:%d/a2a/bobby", outboundToken: %q } } } },`, ports[0], mcpToken, peerToken, ports[0], mcpToken),
		Entries: map[string]string{"carl": `tools: { deny: ["consul-registry__*"] }`},
	})
	bobby := openclawtest.Start(t, openclawtest.Config{Model: server.BaseURL(), Key: modeltest.Key, Agents: []string{"bobby"}, Tools: `profile: "minimal"`})
	var nodes []*daemon
	for i, name := range names {
		nodes = append(nodes, startGateway(t, binary, name, ports[i], fmt.Sprintf(`{
			gateway: { port: %d, auth: { token: %q, tokens: [{ name: "jerry", sha256: "%x", role: "send", agent: "jerry" }] } },
			agents: { list: [
				{ id: "jerry", runner: { kind: "openclaw", url: %q, token: %q }, gateways: ["jerry-gateway"], default: true },
				{ id: "bobby", runner: { kind: "openclaw", url: %q, token: %q }, gateways: ["bobby-gateway"] },
				{ id: "billy", runner: { kind: "a2a", url: %q, token: %q }, gateways: ["billy-gateway"] },
			] },
			mesh: { gateway: %q, store: "consul", consul: { address: %q }, cluster: { id: "claws" }, dataDir: %q, policy: { rules: [{ from: "*", to: "*" }] } },
		}`, ports[i], ownToken, sha256.Sum256([]byte(mcpToken)), jerry.URL(), openclawtest.Token, bobby.URL(), openclawtest.Token, jerry.HTTP(), peerToken, name, c.Addr(i), t.TempDir()),
			"CONSUL_HTTP_ADDR="+c.Addr(i), "NOMAD_ADDR=http://127.0.0.1:1"))
		nodes[i].token = ownToken
	}
	say("two OpenClaw gateways start (a minute on a small machine)")
	jerry.Ready()
	bobby.Ready()
	for _, n := range nodes {
		n.until("seeing everybody at home", func() bool {
			return n.owner("jerry") == names[0] && n.owner("bobby") == names[1] && n.owner("billy") == names[2]
		})
	}
	f := clawFigures{}
	ask := func(to, text string) (string, string) {
		t.Helper()
		status, v := nodes[2].call(http.MethodPost, "/v1/messages", map[string]any{"to": to, "text": text, "reply": true, "wait": "replied", "timeout": "85s", "ttl": "10m", "conversation_id": envelope.NewID()})
		if status >= 300 {
			t.Fatalf("status %d: %v", status, v)
		}
		b, _ := json.Marshal(v["reply"])
		return string(b), fmt.Sprint(v["message_id"])
	}
	// carl has a session, and everything was used once.
	if out, err := jerry.Run(t.Context(), "agent", "--agent", "carl", "--message", "#ask-first0"); err != nil || !strings.Contains(out, "answer-to-first0") {
		t.Fatalf("%v: %s", err, out)
	}
	var mesh, local []time.Duration
	for i := range questions + 1 {
		for _, way := range []string{"mesh", "local"} {
			model.quiet(t.Context())
			id := fmt.Sprintf("%s%d", map[string]string{"mesh": "m", "local": "l"}[way], i)
			reply, message := ask("jerry", "#"+way+"-"+id)
			model.mu.Lock()
			took := model.took[id]
			model.mu.Unlock()
			times := model.times(id)
			switch {
			case !strings.Contains(reply, "I was told answer-to-"+id):
				t.Errorf("%s: %s (%s)", id, reply, message)
				continue
			case times != 1 && way == "mesh": // what OpenClaw does by itself after sessions_send is not ours to count
				f.Doubled++
				t.Errorf("%s: the other agent was asked %d times", id, times)
			case i == 0: // the first of each opens what the others find open
			case way == "mesh":
				mesh = append(mesh, took)
				f.Answered++
				f.Questions++
			default:
				local = append(local, took)
			}
			say("%s: %s", id, took.Round(time.Millisecond))
		}
	}
	// By A2A: the mesh's agent billy stands for jerry's OpenClaw, and its channel a2a sends to bobby's card in the mesh.
	if reply, message := ask("billy", "#ask-a0"); !strings.Contains(reply, "answer-to-a0") || model.times("a0") != 1 {
		t.Errorf("by A2A to OpenClaw: %s (%s), asked %d times", reply, message, model.times("a0"))
	}
	if out, err := jerry.Run(t.Context(), "message", "send", "--channel", "a2a", "--target", "mesh", "--message", "#ask-a1"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	soonOr(t, "what OpenClaw's channel a2a sent does not arrive", func() bool { return model.times("a1") > 0 })
	if n := model.times("a1"); n != 1 {
		t.Errorf("by A2A from OpenClaw: bobby was asked %d times", n)
	}
	f.MeshP50, f.MeshP95 = quantile(mesh, 0.5), quantile(mesh, 0.95)
	f.LocalP50, f.LocalP95 = quantile(local, 0.5), quantile(local, 0.95)
	for i := range kills {
		clawKill(t, &f.Killed, model, bobby, nodes[2], fmt.Sprintf("k%d", i), say)
	}
	return f
}

// clawKill kills bobby's OpenClaw in the middle of a turn.
func clawKill(t *testing.T, k *clawKilled, model *clawModel, bobby *openclawtest.Gateway, from *daemon, id string, say func(string, ...any)) {
	t.Helper()
	status, v := from.call(http.MethodPost, "/v1/messages", map[string]any{"to": "bobby", "text": "#hold-" + id, "reply": true, "ttl": "10m"})
	if status >= 300 {
		t.Fatalf("status %d: %v", status, v)
	}
	k.Questions++
	<-model.inTurn
	began := time.Now()
	bobby.Kill()
	bobby.Restart()
	message := fmt.Sprint(v["message_id"])
	answered, unknown := false, false
	for ; !answered && !unknown && time.Since(began) < 5*time.Minute; <-time.After(200 * time.Millisecond) {
		_, v := from.call(http.MethodGet, "/v1/messages/"+message, nil)
		b, _ := json.Marshal(v)
		answered, unknown = strings.Contains(string(b), "answer-to-"+id), strings.Contains(string(b), `"class":"unknown"`)
	}
	took := time.Since(began)
	switch {
	case answered:
		k.Answered++
	case unknown:
		k.Unknown++
	default:
		k.Lost++
		t.Errorf("what became of %s is never told", id)
	}
	k.Longest = max(k.Longest, took.Seconds())
	say("killed in the middle of a turn: answered %v, unknown %v, after %s", answered, unknown, took.Round(time.Second))
}
