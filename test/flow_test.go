package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/envelope"
)

// The plan's flow: somebody writes on our own page, jerry (a model with sessions_send) asks bobby, bobby really checks Consul, and the answer is
// read on the page. Three gateways and one are the same but for the configuration (Option 2 and Option 3 of the plan).

// flowFigures are what it came to. A question is one message on the page.
type flowFigures struct {
	Questions int `json:"questions"`
	Answered  int `json:"answered"`
	// Refused were answered with the honest word that there is no answer, because the model never gave one.
	Refused int `json:"refused"`
	Lost    int `json:"lost"`
	Doubled int `json:"doubled"`
	// A2A is from the model's word that bobby is to be asked until it is shown bobby's answer, at the model's wire: everything but the model,
	// bobby's checks included. Discovery is GET /v1/agents?capability=... at a gateway that does not run the agent.
	A2A       float64 `json:"a2a_p95_ms"`
	Discovery float64 `json:"discovery_p95_ms"`
	// Whole is from the page's message until the answer is on the page. The stub model answers at once, so that is the mesh's part of it.
	Whole float64 `json:"whole_p95_ms"`
	// Faults are the questions whose model failed so at first, and how many of these were answered.
	Faults map[string]flowFault `json:"faults"`
	// Modes has the same of each configuration.
	Modes map[string]flowMode `json:"modes"`
}

type flowFault struct {
	Questions int `json:"questions"`
	Answered  int `json:"answered"`
}

type flowMode struct {
	Gateways  int     `json:"gateways"`
	Questions int     `json:"questions"`
	A2A       float64 `json:"a2a_p95_ms"`
	Whole     float64 `json:"whole_p95_ms"`
	Discovery float64 `json:"discovery_p95_ms"`
}

// flowFaults are what a model does with the first call of a question; "loop" does it always.
var flowFaults = []string{"timeout", "429", "500", "cut", "malformed", "loop"}

// flowModel is the stub at the wire. It does what a model would do with the plan's question, and measures.
type flowModel struct {
	mu     sync.Mutex
	called map[string]time.Time // question to when its tool call left
	failed map[string]bool
	a2a    []time.Duration
}

var flowID = regexp.MustCompile(`#[a-z0-9-]+`)

func (f *flowModel) answer(r modeltest.Request) modeltest.Step {
	var body struct {
		Messages []struct {
			Role    string
			Content any
		}
	}
	if err := json.Unmarshal([]byte(r.Body), &body); err != nil || len(body.Messages) == 0 {
		return modeltest.Step{Status: 400, Body: "no messages"}
	}
	question := ""
	for _, m := range body.Messages {
		if m.Role == "user" {
			question = fmt.Sprint(m.Content)
		}
	}
	id := flowID.FindString(question)
	last := body.Messages[len(body.Messages)-1]
	f.mu.Lock()
	defer f.mu.Unlock()
	call := modeltest.Step{Calls: []agent.ToolCall{{ID: "call-" + strings.Trim(id, "#"), Name: "sessions_send", Arguments: json.RawMessage(`{"sessionKey":"bobby","message":"check Consul services"}`)}}}
	_, fault, _ := strings.Cut(id, "-")
	if fault == "loop" {
		call.Calls[0] = agent.ToolCall{ID: "again", Name: "agents_list", Arguments: json.RawMessage(`{}`)}
		return call
	}
	if fault != "" && !f.failed[id] {
		f.failed[id] = true
		switch fault {
		case "timeout":
			return modeltest.Step{Hang: true}
		case "429":
			return modeltest.Step{Status: 429, Header: map[string]string{"Retry-After-Ms": "50"}, Body: "slow down"}
		case "500":
			return modeltest.Step{Status: 500, Body: "broken"}
		case "cut":
			call.Cut = true
			return call
		case "malformed":
			call.Calls[0].Arguments = json.RawMessage(`{"sessionKey": "bob`)
			return call
		}
	}
	if last.Role != "tool" || strings.Contains(fmt.Sprint(last.Content), "wrong arguments") {
		f.called[id] = time.Now()
		return call
	}
	if at, ok := f.called[id]; ok {
		f.a2a = append(f.a2a, time.Since(at))
		delete(f.called, id)
	}
	var told struct{ Reply, Error string }
	_ = json.Unmarshal([]byte(fmt.Sprint(last.Content)), &told)
	return modeltest.Step{Text: id + " Bobby says: " + strings.SplitN(told.Reply+told.Error, "\n", 2)[0]}
}

// runFlow asks so many questions in each configuration, and each fault so often in the distributed one.
func runFlow(t *testing.T, binary string, questions, each int, say func(string, ...any)) flowFigures {
	t.Helper()
	c := cluster.ForTest(t, 3)
	f := flowFigures{Faults: map[string]flowFault{}, Modes: map[string]flowMode{}}
	var whole, a2a, discovery []time.Duration
	for _, mode := range []string{"distributed", "hybrid"} {
		m := &flowMesh{t: t, c: c, model: &flowModel{called: map[string]time.Time{}, failed: map[string]bool{}}, mode: mode}
		m.start(binary)
		var ids []string
		for i := range questions {
			ids = append(ids, fmt.Sprintf("#%s%d", mode[:1], i))
		}
		if mode == "distributed" {
			for _, fault := range flowFaults {
				for i := range each {
					ids = append(ids, fmt.Sprintf("#x%d-%s", i, fault))
				}
			}
		}
		say("%s: %d questions", mode, len(ids))
		took := m.ask(&f, ids, questions)
		found := m.discover()
		m.alert()
		f.Modes[mode] = flowMode{Gateways: len(m.nodes), Questions: len(ids), A2A: quantile(m.model.a2a, 0.95), Whole: quantile(took, 0.95), Discovery: quantile(found, 0.95)}
		whole, a2a, discovery = append(whole, took...), append(a2a, m.model.a2a...), append(discovery, found...)
		m.stop()
	}
	f.Whole, f.A2A, f.Discovery = quantile(whole, 0.95), quantile(a2a, 0.95), quantile(discovery, 0.95)
	return f
}

// flowMesh is the gateways of one configuration.
type flowMesh struct {
	t     *testing.T
	c     *cluster.Cluster
	mode  string
	model *flowModel
	nodes []*daemon
}

func (m *flowMesh) start(binary string) {
	m.t.Helper()
	server := modeltest.NewServer(m.t, agent.APIOpenAI)
	server.Answer(m.model.answer)
	names := []string{"jerry-gateway", "bobby-gateway", "billy-gateway"}
	homes := map[string]string{"jerry": names[0], "bobby": names[1], "billy": names[2]}
	if m.mode == "hybrid" {
		names = names[:1]
		homes = map[string]string{"jerry": names[0], "bobby": names[0], "billy": names[0]}
	}
	for i, name := range names {
		port := freePort(m.t)
		m.nodes = append(m.nodes, startGateway(m.t, binary, name, port, fmt.Sprintf(`{
			gateway: { port: %d },
			models: { mode: "merge", providers: { litellm: { baseUrl: %q, apiKey: %q, api: "openai-completions", models: [{ id: "stub", contextWindow: 200000, maxTokens: 4096 }] } } },
			agents: { list: [
				{ id: "jerry", runner: { kind: "llm", timeout: "2s" }, model: { primary: "litellm/stub" }, gateways: [%q], default: true },
				{ id: "bobby", runner: { kind: "checks", checks: ["consul"] }, capabilities: ["infra.check"], gateways: [%q] },
				{ id: "billy", runner: { kind: "echo" }, gateways: [%q] },
			] },
			channels: { webchat: { answerWithin: "2m" } },
			bindings: [{ agentId: "jerry", match: { channel: "webchat" } }],
			mesh: {
				gateway: %q, store: "consul", consul: { address: %q }, cluster: { id: %q }, dataDir: %q,
				policy: { rules: [{ from: "channel-*", to: "jerry" }, { from: "jerry", to: "bobby" }] },
			},
		}`, port, server.BaseURL(), modeltest.Key, homes["jerry"], homes["bobby"], homes["billy"], name, m.c.Addr(i), "flow", m.t.TempDir()),
			"CONSUL_HTTP_ADDR="+m.c.Addr(i), "NOMAD_ADDR=http://127.0.0.1:1"))
	}
	for _, n := range m.nodes {
		n.until("seeing everybody at home", func() bool {
			for a, home := range homes {
				if n.owner(a) != home {
					return false
				}
			}
			return n.owner("channel-webchat-default") != ""
		})
	}
}

func (m *flowMesh) stop() {
	for _, n := range m.nodes {
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
		<-n.done
	}
}

// ask puts the questions to the page of each node in turn, each in a conversation of its own, and returns how long the first ones took without the model.
func (m *flowMesh) ask(f *flowFigures, ids []string, timed int) []time.Duration {
	var took []time.Duration
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
	defer stop()
	slots := make(chan struct{}, 1) // one after the other: what is measured is the way, not the crowd
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, id := range ids {
		if i >= timed && cap(slots) == 1 {
			wg.Wait()
			slots = make(chan struct{}, 8)
		}
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			begin := time.Now()
			heard := m.converse(ctx, m.nodes[i%len(m.nodes)].url, "Ask Bobby to check Consul services "+id)
			d := time.Since(begin)
			mu.Lock()
			defer mu.Unlock()
			f.Questions++
			_, fault, _ := strings.Cut(id, "-")
			answered := len(heard) > 0 && strings.HasPrefix(heard[0], id+" Bobby says: ") && !strings.Contains(heard[0], "unknown")
			switch {
			case len(heard) == 0:
				f.Lost++
				m.t.Errorf("%s: no answer", id)
			case len(heard) > 1:
				f.Doubled++
				m.t.Errorf("%s: answered %d times: %q", id, len(heard), heard)
			case answered:
				f.Answered++
				if i < timed {
					took = append(took, d)
				}
			case fault == "loop" && strings.Contains(heard[0], "I stopped after"):
				f.Refused++
			default:
				m.t.Errorf("%s: %q", id, heard[0])
			}
			if fault != "" {
				x := f.Faults[fault]
				x.Questions++
				if answered {
					x.Answered++
				}
				f.Faults[fault] = x
			}
		}()
	}
	wg.Wait()
	return took
}

// converse says one thing on the page of a gateway, and returns what the agent said by the time that it has said something, and a moment longer.
func (m *flowMesh) converse(ctx context.Context, url, text string) (heard []string) {
	v := &chatVisitor{m: &chatMesh{t: m.t}, conversation: envelope.NewID(), more: make(chan struct{}, 1), heardSome: make(chan struct{}, 16)}
	v.say(text)
	ctx, end := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			v.visit(ctx, url)
		}
	}()
	defer func() {
		end()
		<-over
	}()
	select {
	case <-v.heardSome:
	case <-ctx.Done():
	}
	return v.agent()
}

// discover asks a gateway that does not run the agent who can check the infrastructure.
func (m *flowMesh) discover() (took []time.Duration) {
	m.t.Helper()
	n := m.nodes[len(m.nodes)-1]
	for range 200 {
		begin := time.Now()
		status, v := n.call(http.MethodGet, "/v1/agents?capability=infra.check", nil)
		took = append(took, time.Since(begin))
		if list, _ := v["agents"].([]any); status != http.StatusOK || len(list) != 1 {
			m.t.Fatalf("status %d: %v", status, v)
		}
	}
	return took
}

// alert breaks a real service and mends it: the page hears of both.
func (m *flowMesh) alert() {
	m.t.Helper()
	consul := func(path, body string) {
		m.t.Helper()
		req, err := http.NewRequestWithContext(m.t.Context(), http.MethodPut, m.c.Addr(0)+"/v1/agent/service/"+path, strings.NewReader(body))
		if err != nil {
			m.t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			m.t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			m.t.Fatal(resp.Status)
		}
	}
	tells := func(id, what string) {
		m.t.Helper()
		n := 0
		soonOr(m.t, "the page does not hear "+what, func() bool { // Consul's catalog follows its agent
			n++
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			heard := m.converse(ctx, m.nodes[0].url, fmt.Sprintf("Ask Bobby to check Consul services #%s%d", id, n))
			return len(heard) == 1 && strings.Contains(heard[0], what)
		})
	}
	consul("register", `{"Name": "broken", "Check": {"TTL": "10m", "Status": "critical"}}`)
	tells("broken", "alert: 0 failed allocations, 1 unhealthy services")
	consul("deregister/broken", "")
	tells("mended", "all-healthy")
}

// TestFlow: the flow in both configurations, each fault once.
func TestFlow(t *testing.T) {
	f := runFlow(t, builtBinary(t), 3, 1, t.Logf)
	t.Logf("%+v", f)
	if f.Answered != 3+3+len(flowFaults)-1 || f.Refused != 1 {
		t.Errorf("%+v", f)
	}
}
