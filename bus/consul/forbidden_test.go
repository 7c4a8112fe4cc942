package consul

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// attempt is something that some may do and others may not: the ones show that it works, so that the others'
// refusal says something.
type attempt struct {
	what         string
	method, path string // below /v1/
	body         string
	refused      string // names of shipped policies, or nobody (no token), by spaces
	allowed      string // or root
}

// attempts are made from top to bottom; {x} in path or body is the session of x. Agents jerry and
// bobby may be owned by every gateway of nomad/openclaw.json, billy by billy's only.
var attempts = []attempt{
	{"forge the receipts that billy gives jerry", "PUT", "kv/openclaw/receipts/jerry-gateway/from/billy", "x", "jerry bobby viewer nobody", "billy operator"},
	{"forge the receipts that billy gives bobby", "PUT", "kv/openclaw/receipts/bobby-gateway/from/billy", "x", "jerry bobby", "billy"},
	{"forge an answer's receipts of bobby's gateway", "PUT", "kv/openclaw/receipts/billy-gateway/from/bobby-gateway", "x", "jerry billy", "bobby"},
	{"delete the receipts that billy gave", "DELETE", "kv/openclaw/receipts/jerry-gateway/from/billy", "", "jerry bobby", "billy"},
	{"delete all receipts of a gateway", "DELETE", "kv/openclaw/receipts/jerry-gateway/?recurse", "", "jerry bobby billy", "operator"},
	{"forge older receipts (dedupe memory)", "PUT", "kv/openclaw/ledger/jerry-gateway/billy/0000000000000001", "x", "jerry bobby", "billy"},
	{"delete older receipts", "DELETE", "kv/openclaw/ledger/jerry-gateway/billy/?recurse", "", "jerry bobby", "billy"},

	{"write into bobby's lane", "PUT", "kv/openclaw/lanes/bobby-gateway/billy/0000000000000001", "x", "jerry billy viewer nobody", "bobby"},
	{"delete an entry of bobby's lane", "DELETE", "kv/openclaw/lanes/bobby-gateway/billy/0000000000000001", "", "jerry billy", "bobby janitor"},
	{"delete bobby's lanes", "DELETE", "kv/openclaw/lanes/bobby-gateway/?recurse", "", "jerry billy viewer", "bobby"},
	{"ring bobby's bell at billy", "PUT", "kv/openclaw/inbox/billy/from/bobby-gateway", "x", "jerry billy", "bobby"},
	{"delete bobby's bell", "DELETE", "kv/openclaw/inbox/billy/from/bobby-gateway", "", "jerry billy", "bobby"},
	{"delete an inbox with everybody's bells", "DELETE", "kv/openclaw/inbox/billy/?recurse", "", "jerry bobby billy", "operator"},

	{"take the inbox of billy", "PUT", "kv/openclaw/owners/agents/billy?acquire={me}", "x", "jerry bobby viewer", "billy"},
	{"break billy's lock", "DELETE", "kv/openclaw/owners/agents/billy", "", "jerry bobby", "billy"},
	{"take the inbox of bobby's gateway", "PUT", "kv/openclaw/owners/agents/bobby-gateway?acquire={me}", "x", "jerry billy", "bobby"},
	{"take bobby's name", "PUT", "kv/openclaw/owners/gateways/bobby-gateway?acquire={me}", "x", "jerry billy", "bobby"},
	{"depose bobby by deleting its name", "DELETE", "kv/openclaw/owners/gateways/bobby-gateway", "", "jerry billy", "bobby"},
	{"open a session at bobby's node", "PUT", "session/create", `{"Node":"bobby"}`, "jerry billy viewer nobody", "bobby"},
	{"renew bobby's session", "PUT", "session/renew/{bobby}", "", "jerry billy", "bobby"},
	{"end bobby's session", "PUT", "session/destroy/{bobby}", "", "jerry billy viewer", "bobby"},

	{"forge the term of billy", "PUT", "kv/openclaw/terms/billy", "x", "jerry bobby", "billy"},
	{"forge work in progress of billy", "PUT", "kv/openclaw/pending/billy/m", "x", "jerry bobby", "billy"},
	{"forge an answer to billy", "PUT", "kv/openclaw/pending/billy/m/answers/q", "x", "jerry bobby", "billy"},
	{"delete dead letters of billy", "DELETE", "kv/openclaw/deadletters/billy/?recurse", "", "jerry bobby", "billy"},
	{"change bobby's registry entry", "PUT", "kv/openclaw/gateways/bobby-gateway/url", "http://evil", "jerry billy viewer nobody", "bobby"},
	{"delete the registry of gateways", "DELETE", "kv/openclaw/gateways/?recurse", "", "jerry bobby billy", "operator"},
	{"change billy's registry entry", "PUT", "kv/openclaw/agents/billy/gateway", "jerry-gateway", "jerry bobby", "billy"},
	{"change a big payload of bobby's", "PUT", "kv/openclaw/blobs/bobby-gateway/m/0000", "x", "jerry billy", "bobby"},
	{"change a fan-out of bobby's", "PUT", "kv/openclaw/fanouts/bobby-gateway/f", "x", "jerry billy", "bobby"},
	{"change an answer that bobby got", "PUT", "kv/openclaw/results/bobby-gateway/m", "x", "jerry billy", "bobby"},
	{"pose as a worker", "PUT", "kv/openclaw/tasks/jobs/workers/of/bobby-gateway", "x", "jerry bobby billy", "operator"},
	{"free a unique key", "DELETE", "kv/openclaw/tasks/jobs/unique/?recurse", "", "jerry bobby billy", "operator"},

	{"read bobby's credentials", "GET", "kv/openclaw/credentials/bobby-gateway/key", "", "jerry billy operator viewer nobody", "bobby root"},
	{"change bobby's credentials", "PUT", "kv/openclaw/credentials/bobby-gateway/key", "x", "jerry billy operator viewer", "bobby"},
	{"change the trust set", "PUT", "kv/openclaw/trust/set", "x", "jerry bobby billy janitor viewer nobody", "operator"},
	{"change the policy", "PUT", "kv/openclaw/policy", "x", "jerry bobby billy janitor viewer nobody", "operator"},
	{"read mail without a token", "GET", "kv/openclaw/results/bobby-gateway/resident", "", "nobody", "jerry bobby billy operator viewer"},
	{"clear the shared state by prefix", "DELETE", "kv/openclaw/shared-state/?recurse", "", "jerry bobby billy", "operator"},
	{"set the focus", "PUT", "kv/openclaw/shared-state/current-focus", "x", "viewer nobody", "jerry bobby billy"},
	{"take the janitor's duty", "PUT", "kv/openclaw/owners/duties/janitor?acquire={me}", "x", "jerry billy bobby", "janitor"},

	{"write beside the mesh", "PUT", "kv/vault/x", "x", "jerry janitor operator viewer nobody", "root"},
	{"read beside the mesh", "GET", "kv/vault/x", "", "jerry operator viewer nobody", "root"},
	{"list ACL tokens", "GET", "acl/tokens", "", "jerry bobby billy janitor operator viewer nobody", "root"},
	{"read ACL policies", "GET", "acl/policies", "", "jerry janitor operator viewer nobody", "root"},
	{"make a token", "PUT", "acl/token", `{}`, "jerry janitor operator viewer nobody", "root"},
	{"make a policy", "PUT", "acl/policy", `{"Name":"mine","Rules":"key_prefix \"\" { policy = \"write\" }"}`, "jerry janitor operator viewer nobody", "root"},
	{"take a snapshot of everything", "GET", "snapshot", "", "jerry janitor operator viewer nobody", "root"},
	{"look at Raft's servers", "GET", "operator/raft/configuration", "", "jerry viewer nobody", "operator"},
	{"remove a node", "PUT", "catalog/deregister", `{"Node":"spare"}`, "jerry bobby operator viewer", "root"},
	{"register as another service", "PUT", "agent/service/register", `{"Name":"vault"}`, "jerry bobby operator viewer", "root"},
	{"register as a gateway", "PUT", "agent/service/register", `{"Name":"openclaw","ID":"openclaw-x"}`, "viewer nobody", "jerry bobby billy"},
	{"fire an event", "PUT", "event/fire/x", "x", "jerry operator viewer", "root"},
	{"delete the registry of agents", "DELETE", "kv/openclaw/agents/?recurse", "", "jerry bobby viewer", "operator"},
	{"delete the whole mesh", "DELETE", "kv/openclaw/?recurse", "", "jerry bobby billy janitor operator viewer nobody", "root"},
}

// TestShippedPolicies plays every attempt on three servers with the policies of nomad/acl. Each node asks its own
// server, as in the plan.
func TestShippedPolicies(t *testing.T) {
	nodes := []string{"jerry", "bobby", "billy"}
	r := newRealm(t, cluster.Options{Servers: 3, Names: nodes})
	files, err := filepath.Glob(filepath.Join("..", "..", "nomad", "acl", "*.hcl"))
	if err != nil || len(files) == 0 {
		t.Fatal("no policies in nomad/acl", err)
	}
	token := map[string]string{"root": r.Token(), "nobody": ""}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(f), ".hcl")
		r.policy(t, name, string(raw))
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".hcl")
		policies := []string{name}
		if name == "janitor" {
			policies = append(policies, "jerry") // it is given to a gateway
		}
		token[name], _ = r.token(t, policies...)
	}
	at := func(who string) string { // whose server is asked
		for i, n := range nodes {
			if n == who {
				return r.Addr(i)
			}
		}
		return r.Addr(0)
	}
	do := func(who, method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, at(who)+"/v1/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token[who] != "" {
			req.Header.Set("X-Consul-Token", token[who])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	defer http.DefaultClient.CloseIdleConnections()

	// A token that was made at one server is known to the others a moment later.
	client := map[string]*Store{}
	sessions := map[string]string{}
	for _, who := range []string{"jerry", "bobby", "billy", "janitor", "operator", "root"} {
		client[who] = open(t, Options{Address: at(who), Token: token[who]})
		eventually(t, who+" can have a session", longTime, func() bool {
			id, err := client[who].NewSession(t.Context(), bus.SessionOptions{Name: who})
			sessions[who] = id
			return err == nil
		})
	}
	eventually(t, "the viewer's token is known", longTime, func() bool { s, _ := do("viewer", "GET", "catalog/nodes", ""); return s == http.StatusOK })
	sessions["viewer"] = sessions["jerry"]
	must(r.admin.Txn(t.Context(), []bus.Op{
		set("vault/x", "x"), set("openclaw/credentials/bobby-gateway/key", "secret"), set("openclaw/results/bobby-gateway/resident", "x"),
	}))(t)
	if s, text := do("root", "PUT", "catalog/register", `{"Node":"spare","Address":"192.0.2.1"}`); s != http.StatusOK {
		t.Fatal(text)
	}

	refusals := 0
	for _, a := range attempts {
		t.Run(a.what, func(t *testing.T) {
			fill := func(who string) (string, string) {
				f := strings.NewReplacer("{me}", sessions[who], "{bobby}", sessions["bobby"])
				return f.Replace(a.path), f.Replace(a.body)
			}
			for _, who := range strings.Fields(a.refused) {
				path, body := fill(who)
				if status, text := do(who, a.method, path, body); status != http.StatusForbidden {
					t.Errorf("%s: answer %d: %s", who, status, text)
				}
				refusals++
				// The same in the way of the bus, which is another path through Consul.
				if op, ok := asOp(a, sessions[who]); ok && client[who] != nil {
					if _, err := client[who].Txn(t.Context(), []bus.Op{op}); !isForbidden(err) {
						t.Errorf("%s, in a transaction: %v", who, err)
					}
				}
			}
			for _, who := range strings.Fields(a.allowed) {
				path, body := fill(who)
				if status, text := do(who, a.method, path, body); status != http.StatusOK || strings.HasPrefix(text, "false") {
					t.Errorf("%s, who may: answer %d: %s", who, status, text)
				}
			}
		})
	}
	t.Logf("%d attempts, %d refusals", len(attempts), refusals)
	t.Run("Listing", func(t *testing.T) {
		must(r.admin.Txn(t.Context(), []bus.Op{set("openclaw/credentials/bobby-gateway/key", "secret"), set("openclaw/results/x/y", "1")}))(t)
		// What a list leaves out is no empty list.
		for _, who := range []string{"jerry", "billy", "operator"} {
			if _, err := client[who].List(t.Context(), bus.CredentialsRoot); !isForbidden(err) {
				t.Errorf("%s lists credentials: %v", who, err)
			}
			must(client[who].List(t.Context(), "openclaw/results/"))(t)
		}
		if pairs := must(client["bobby"].List(t.Context(), bus.CredentialsRoot+"bobby-gateway/"))(t); len(pairs) != 1 {
			t.Errorf("bobby's own: %v", pairs)
		}
	})
	t.Run("JanitorsTransaction", func(t *testing.T) {
		s := client["janitor"]
		must(r.admin.Txn(t.Context(), []bus.Op{set("openclaw/lanes/gone/billy/0000000000000001", "x")}))(t)
		must(s.Txn(t.Context(), []bus.Op{{Verb: bus.OpLock, Key: "openclaw/owners/duties/janitor", Session: sessions["janitor"]}}))(t)
		must(s.Txn(t.Context(), []bus.Op{
			{Verb: bus.OpCheckSession, Key: "openclaw/owners/duties/janitor", Session: sessions["janitor"]},
			{Verb: bus.OpCheckNotExists, Key: "openclaw/owners/gateways/gone"},
			{Verb: bus.OpDelete, Key: "openclaw/lanes/gone/billy/0000000000000001"},
		}))(t)
	})
	// What ARCHITECTURE.md says that rules do not hold. When one of these is refused, that page is wrong.
	t.Run("NotHeld", func(t *testing.T) {
		for _, a := range []attempt{
			{"jerry, who may own bobby's inbox, forges what its owner of now wrote", "PUT", "kv/openclaw/receipts/billy-gateway/from/bobby", "x", "", "jerry"},
			{"jerry reads mail that is not for it", "GET", "kv/openclaw/results/bobby-gateway/resident", "", "", "jerry"},
			{"jerry removes bobby's catalog entry", "PUT", "catalog/deregister", `{"Node":"bobby","ServiceID":"openclaw-x"}`, "", "jerry"},
		} {
			if a.method == "GET" {
				must(r.admin.Txn(t.Context(), []bus.Op{set(strings.TrimPrefix(a.path, "kv/"), "x")}))(t)
			}
			if status, text := do(a.allowed, a.method, a.path, a.body); status != http.StatusOK {
				t.Errorf("%s: answer %d: %s", a.what, status, text)
			}
		}
	})
}

// asOp is the attempt as an operation of a transaction, if it is one.
func asOp(a attempt, session string) (bus.Op, bool) {
	key, kv := strings.CutPrefix(a.path, "kv/")
	key, query, _ := strings.Cut(key, "?")
	op := bus.Op{Key: key, Value: []byte(a.body)}
	switch {
	case !kv:
		return op, false
	case strings.HasPrefix(query, "acquire"):
		op.Verb, op.Session = bus.OpLock, session
	case query == "recurse":
		op.Verb = bus.OpDeleteTree
	case a.method == "DELETE":
		op.Verb = bus.OpDelete
	case a.method == "PUT":
		op.Verb = bus.OpSet
	default:
		op.Verb = bus.OpGet
	}
	return op, true
}

func isForbidden(err error) bool { return errors.Is(err, bus.ErrForbidden) }
