//go:build linux && proof

package openclawgw

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gatemesh/gatemesh/agent/openclaw/openclawtest"
)

// anything is a pattern of JavaScript that Go does not know; none of them is about what we say.
type anything string

func (anything) MatchString(string) bool { return true }
func (a anything) String() string        { return string(a) }

// schema holds what we say against OpenClaw's own schema, and counts the events. The schema is in the npm package @openclaw/gateway-protocol, which make openclaw installs too.
func schema(t *testing.T) map[string]int {
	f, err := os.Open(filepath.Join(openclawtest.Dir(t), "node_modules", "@openclaw", "gateway-protocol", "protocol.schema.json"))
	if err != nil {
		t.Fatalf("no schema here (%v): make openclaw installs it", err)
	}
	defer f.Close()
	doc, err := jsonschema.UnmarshalJSON(f)
	if err != nil {
		t.Fatal(err)
	}
	// Its address is of no use here: nothing is fetched.
	delete(doc.(map[string]any), "$id")
	const at = "mem:protocol.json"
	compiler := jsonschema.NewCompiler()
	compiler.UseRegexpEngine(func(expr string) (jsonschema.Regexp, error) {
		if re, err := regexp.Compile(expr); err == nil {
			return re, nil
		}
		return anything(expr), nil
	})
	if err := compiler.AddResource(at, doc); err != nil {
		t.Fatal(err)
	}
	fits := func(definition string, v any) {
		t.Helper()
		s, err := compiler.Compile(at + "#/definitions/" + definition)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); err != nil {
			b, _ := json.MarshalIndent(v, "", " ")
			t.Errorf("%s: %v\n%s", definition, err, b)
		}
	}
	g := mesh(t, &counter{})[0]
	c := dial(t, g)
	welcome := c.ask("connect", hello(token)).Payload
	delete(welcome["auth"].(map[string]any), "method") // newer than this schema: 2026.9.6 says it, and its TUI reads it
	fits("HelloOk", any(welcome))
	fits("AgentsListResult", any(c.ask("agents.list", nil).Payload))
	c.ask("agent", map[string]any{"agentId": "bobby", "message": "well?", "idempotencyKey": "one"})
	c.answer()
	c.ask("chat.send", map[string]any{"sessionKey": "agent:bobby:main", "message": "never", "idempotencyKey": "two"})
	c.chat("error")
	seen := map[string]int{}
	for _, ev := range c.seen {
		name, _ := ev["event"].(string)
		seen[name]++
		switch name {
		case "agent":
			p := ev["payload"].(map[string]any)
			delete(p, "sessionKey") // OpenClaw itself says these two and has them not in its schema
			delete(p, "agentId")
			fits("AgentEvent", p)
		case "chat":
			fits("ChatEvent", ev["payload"])
		}
	}
	if seen["agent"] < 3 || seen["chat"] < 3 {
		t.Errorf("events %v", seen)
	}
	e, err := json.Marshal(c.ask("nothing", nil).Error)
	if err != nil {
		t.Fatal(err)
	}
	var shape map[string]any
	if err := json.Unmarshal(e, &shape); err != nil {
		t.Fatal(err)
	}
	fits("ErrorShape", shape)
	return seen
}
