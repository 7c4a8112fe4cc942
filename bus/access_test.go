package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// TestWrites: what a gateway may write covers its own keys and those of the inboxes that it may own, and nothing of
// others. The names are each other's beginnings: bob, bob-2, and a gateway bob-2-gateway.
func TestWrites(t *testing.T) {
	mesh := bus.Topology{
		Gateways: []string{"sender"},
		Agents:   map[string][]string{"bob": {"a", "b"}, "bob-2": {"b"}},
		Queues:   map[string][]string{"jobs": {"a"}, "jobs-2": {"b"}},
		Workers:  map[string][]string{"jobs": {"b", "bob-2-gateway"}},
	}
	if all := mesh.All(); !slices.Equal(all, []string{"a", "b", "bob-2-gateway", "sender"}) {
		t.Errorf("all: %q", all)
	}
	may := func(gw, key string) bool {
		return slices.ContainsFunc(mesh.Writes(gw), func(g bus.Grant) bool {
			return g.Key == key || g.Prefix && strings.HasPrefix(key, g.Key)
		})
	}
	for key, who := range map[string]string{
		"gateways/a/url": "a", "owners/gateways/a": "a", "owners/gateways/bob-2-gateway": "bob-2-gateway", "lanes/b/bob/0000000000000001": "b",
		"receipts/a/about": "a", "receipts/sender/about": "sender", "blobs/a/x/0000": "a", "results/b/x": "b", "fanouts/b/x": "b", "credentials/b/key": "b",
		"inbox/bob/from/b": "b", "inbox/bob/from/sender": "sender", "inbox/sender/from/a": "a", "inbox/jobs/from/bob-2-gateway": "bob-2-gateway",
		"inbox/bob/about": "a b", "inbox/bob-2/about": "b", "inbox/jobs/about": "a", "inbox/a/about": "a",
		"receipts/sender/from/bob": "a b", "receipts/sender/from/bob-2": "b", "receipts/b/from/jobs": "a", "receipts/a/from/sender": "sender",
		"ledger/sender/bob/0000000000000001": "a b", "ledger/sender/bob-2/0000000000000001": "b", "ledger/a/b/0000000000000001": "b",
		"pending/bob/x": "a b", "pending/bob-2/x/answers/y": "b", "pending/sender/x": "sender", "deadletters/jobs/x": "a", "terms/bob-2": "b", "terms/bob": "a b",
		"owners/agents/bob": "a b", "owners/agents/bob-2": "b", "owners/agents/a": "a", "owners/agents/jobs-2": "b",
		"agents/bob/gateway": "a b", "agents/bob-2/gateway": "b", "agents/jobs/gateway": "a", "agents/a/gateway": "",
		"tasks/jobs/workers/of/b": "b", "tasks/jobs/workers/of/bob-2-gateway": "bob-2-gateway", "tasks/jobs/workers/of/a": "", "tasks/jobs/workers/about": "a",
		"tasks/jobs/unique/x": "a", "tasks/jobs-2/unique/x": "b",
		"cluster/id": "a b bob-2-gateway sender", "shared-state/recent-events": "a b bob-2-gateway sender", "shared-state/x": "", "doctor/x": "a b bob-2-gateway sender",
		"owners/duties/janitor": "", "trust/set": "", "trust/operators/0000000000000002": "", "policy": "", "policy/rules": "", "x": "", "": "",
	} {
		var can []string
		for _, gw := range mesh.All() {
			if may(gw, bus.Root+key) {
				can = append(can, gw)
			}
		}
		if got := strings.Join(can, " "); got != who {
			t.Errorf("%s may be written by %q, want %q", key, got, who)
		}
	}
	for _, gw := range mesh.All() {
		grants := append(mesh.Writes(gw), bus.JanitorWrites()...)
		for _, g := range grants {
			if g.Prefix != strings.HasSuffix(g.Key, "/") || g.What == "" || !strings.HasPrefix(g.Key, bus.Root) {
				t.Errorf("%+v: a prefix ends in a slash and a key does not", g)
			}
		}
		if again := append(mesh.Writes(gw), bus.JanitorWrites()...); !slices.Equal(grants, again) {
			t.Error("not the same again")
		}
	}
	if bad, ok := mesh.Invalid(); ok {
		t.Errorf("%q is no name", bad)
	}
	mesh.Agents["c"] = []string{"../x"}
	if bad, ok := mesh.Invalid(); !ok || bad != "../x" {
		t.Errorf("%q, %v", bad, ok)
	}
}

// TestJanitorsDutyIsLeftToOthers: a gateway whose rules do not allow it leaves the clearing up to one that may, and says
// nothing every minute.
func TestJanitorsDutyIsLeftToOthers(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var log bytes.Buffer
		g := b.gateway("jerry", func(c *bus.Config) {
			c.ResultRetention = 10 * time.Minute
			c.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: &log})
		})
		refused := 0
		g.store.Before(func(_ string, ops []bus.Op) error {
			if slices.ContainsFunc(ops, func(o bus.Op) bool { return o.Key == bus.Root+"owners/duties/janitor" }) {
				refused++
				return fmt.Errorf("%w: by the test", bus.ErrForbidden)
			}
			return nil
		})
		h := b.gateway("gone", nil)
		b.serve(g, bus.AgentSpec{ID: "bob"}, func(_ context.Context, m *bus.Incoming) error { return m.Reply(m.Envelope().Payload) })
		if _, err := h.AskAPI(b.Context(), bus.Outgoing{To: envelope.Address{Agent: "bob"}, From: "user", Payload: envelope.TextPayload("hello")}); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		b.crash(h)
		b.pass(2 * time.Hour)
		if refused == 0 || b.count("results/gone/") == 0 {
			b.Fatalf("refused %d times, %d results: this test shows nothing", refused, b.count("results/gone/"))
		}
		if log.Len() > 0 {
			b.Errorf("it says:\n%s", &log)
		}
		k := b.gateway("keeper", func(c *bus.Config) { c.ResultRetention = 10 * time.Minute })
		b.pass(2 * time.Hour)
		if n := b.count("results/gone/"); n != 0 {
			b.Errorf("%d keys are left", n)
		}
		b.stop(g, h, k)
	})
}

// TestForbiddenSendHarmsNoOther: a message to an agent that the rules do not know yet is refused, and what was to be
// written with it is written.
func TestForbiddenSendHarmsNoOther(t *testing.T) {
	inBubble(t, func(b *bubble) {
		g, h := b.gateway("jerry", nil), b.gateway("bobby", nil)
		ok := func(context.Context, *bus.Incoming) error { return nil }
		b.serve(h, bus.AgentSpec{ID: "bob"}, ok)
		b.serve(h, bus.AgentSpec{ID: "new"}, ok)
		shared := 0
		g.store.Before(func(_ string, ops []bus.Op) error {
			rings := func(agent string) bool {
				return slices.ContainsFunc(ops, func(o bus.Op) bool { return o.Key == bus.Root+"inbox/"+agent+"/from/jerry" })
			}
			if !rings("new") {
				return nil
			}
			if rings("bob") {
				shared++
			}
			return fmt.Errorf("%w: by the test", bus.ErrForbidden)
		})
		var wg sync.WaitGroup
		for i := range 20 {
			to := []string{"bob", "new"}[i%2]
			wg.Go(func() {
				_, err := g.Send(b.Context(), bus.Outgoing{To: envelope.Address{Agent: to}, From: "user", Payload: envelope.TextPayload("x")})
				if forbidden := errors.Is(err, bus.ErrForbidden); to == "bob" && err != nil || to == "new" && !forbidden {
					b.Errorf("to %s: %v", to, err)
				}
			})
		}
		wg.Wait()
		if shared == 0 {
			b.Error("no batch held both: this test shows nothing")
		}
		b.stop(g, h)
	})
}
