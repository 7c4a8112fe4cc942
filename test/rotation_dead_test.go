package test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// proveDead tries everything that was replaced, and beside it what took its place.
func (d *drill) proveDead(old *oldKeys) {
	d.t.Helper()
	for _, token := range old.api {
		for _, n := range d.nodes {
			if status := d.api(n, http.MethodGet, "/v1/status", nil, nil, token); status != http.StatusUnauthorized {
				d.t.Errorf("%s answers an old token of the API with %d", n.name, status)
				continue
			}
			if status := d.api(n, http.MethodGet, "/v1/status", nil, nil); status != http.StatusOK {
				d.t.Errorf("%s answers the token of now with %d", n.name, status)
				continue
			}
		}
		d.figures.Dead["api"]++
	}
	for _, token := range old.consul {
		if status, raw := d.consul(http.MethodGet, "kv/openclaw/trust/set", "", token); status != http.StatusForbidden {
			d.t.Errorf("Consul answers an old token with %d %s", status, raw)
			continue
		}
		d.figures.Dead["consul"]++
	}
	d.proveOperatorsDead(old.operator)
	for _, agent := range drillNodes {
		d.proveGatewayDead(agent, old.gateway[agent+"-gateway"])
	}
}

// proveOperatorsDead: a set that only an old operator signed is refused by every gateway, and by the operator's own commands.
func (d *drill) proveOperatorsDead(old []*trust.Key) {
	d.t.Helper()
	good := d.run("trust", "export")
	for _, key := range old {
		set, _, err := trust.DecodeSet([]byte(strings.TrimSpace(string(good))))
		if err != nil {
			d.t.Fatal(err)
		}
		set.Version += 100
		set.Operators = []string{trust.EncodePublic(key.Public())}
		forged, err := trust.SignSet(set, key)
		if err != nil {
			d.t.Fatal(err)
		}
		if status, raw := d.consul(http.MethodPut, "kv/"+trust.SetKey, string(forged), d.c.Token()); status != http.StatusOK {
			d.t.Fatalf("%d %s", status, raw)
		}
		for _, n := range d.nodes {
			d.until(n.name+" refuses the set of an old operator", func() bool {
				return d.refused(n, "wrong_operator", key.ID(), trust.SetKey)
			})
		}
		if code, _, errOut := d.try("trust", "enroll", "x", "--public", trust.EncodePublic(trust.NewKey().Public())); code == 0 || !strings.Contains(errOut, "wrong_operator") {
			d.t.Errorf("the operator builds on it: %d %s", code, errOut)
		}
		d.run("trust", "publish")
		d.figures.Dead["operator"]++
	}
}

// refused reports whether a node's audit log says that it refused what lies at a place, for this reason and of this key.
func (d *drill) refused(n *drillNode, reason, key, place string) bool {
	d.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.dir, "audit", "*.jsonl"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			d.t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, `"refusal":"`+reason+`"`) && strings.Contains(line, key) && strings.Contains(line, `"reason":"`+place) {
				return true
			}
		}
	}
	return false
}

// proveGatewayDead: somebody who has a gateway's old keys and its place on the network sends in its name. The key of now shows
// that it would work.
func (d *drill) proveGatewayDead(agent string, old []*trust.Key) {
	d.t.Helper()
	n := d.nodes[agent+"-gateway"]
	var victim string // another gateway's agent
	for _, a := range drillNodes {
		if a != agent {
			victim = a
		}
	}
	at := d.nodes[victim+"-gateway"]
	now, err := trust.LoadKey(filepath.Join(n.dir, "identity.key"))
	if err != nil {
		d.t.Fatal(err)
	}
	if err := n.cmd.Process.Kill(); err != nil { // the name is free, its session ends with its check
		d.t.Fatal(err)
	}
	<-n.done
	for _, key := range old {
		if d.sendAs(n.name, victim, key, 0) {
			d.t.Errorf("%s believes %s's old key %s", at.name, n.name, key.ID())
			continue
		}
		d.figures.Dead["gateway"]++
	}
	if !d.sendAs(n.name, victim, now, 0) {
		d.t.Errorf("%s does not believe %s's key of now, so that it refuses the old ones says nothing", at.name, n.name)
	}
	// Dated back into its life, an old key is refused when it was revoked.
	for _, key := range old {
		d.run("trust", "revoke", n.name, "--key", key.ID())
	}
	version := into[struct{ Version uint64 }](d.t, d.run("trust", "list", "--json")).Version
	d.until(at.name+" knows", func() bool {
		var keys struct {
			Version uint64 `json:"trust_version"`
		}
		return d.api(at, http.MethodGet, "/v1/keys", nil, &keys) == http.StatusOK && keys.Version == version
	})
	for _, key := range old {
		if d.sendAs(n.name, victim, key, time.Minute) {
			d.t.Errorf("%s believes %s's revoked key %s", at.name, n.name, key.ID())
		}
	}
	d.launch(n)
	d.until(n.name+" is back, with the key of now", func() bool {
		var s struct{ Key string }
		return d.api(n, http.MethodGet, "/v1/status", nil, &s) == http.StatusOK && s.Key == now.ID() && d.knows(n)
	})
}

// sendAs sends one message as a gateway, with a key and a clock that is behind, and reports whether it was acked. When it was
// not, the other side has refused its bell: as out of time, or as revoked with a clock that is behind.
func (d *drill) sendAs(gateway, to string, key *trust.Key, behind time.Duration) bool {
	d.t.Helper()
	s, err := consul.New(consul.Options{Address: d.c.Addr(0), Token: d.c.Token()})
	if err != nil {
		d.t.Fatal(err)
	}
	defer s.Close()
	b, err := bus.New(bus.Config{
		Gateway: gateway, Store: s, Logger: hclog.NewNullLogger(), SessionTTL: 10 * time.Second, Heartbeat: time.Second, DrainGrace: time.Millisecond,
		Clock: func() time.Time { return time.Now().Add(-behind) }, Signer: &trust.Signer{Mesh: "drill", Gateway: gateway, Key: key}, TTL: time.Hour,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 60*time.Second)
	defer cancel()
	d.until("the name "+gateway+" is free", func() bool { return b.Start(ctx) == nil })
	defer func() {
		if err := b.Stop(ctx); err != nil {
			d.t.Log(err)
		}
	}()
	id := envelope.NewID()
	if _, err := b.Send(ctx, bus.Outgoing{ID: id, To: envelope.Address{Agent: to}, From: "user", Payload: envelope.TextPayload("let me in")}); err != nil {
		d.t.Fatalf("send as %s: %v", gateway, err)
	}
	at := d.nodes[to+"-gateway"]
	reason := "out_of_time"
	if behind > 0 {
		reason = "revoked"
	}
	var acked bool
	d.until(fmt.Sprintf("the message of %s with %s is judged", gateway, key.ID()), func() bool {
		raw, err := s.Get(ctx, bus.Root+"receipts/"+gateway+"/from/"+to)
		if err != nil {
			d.t.Fatal(err)
		}
		acked = raw != nil && strings.Contains(string(raw.Value), id)
		return acked || d.refused(at, reason, key.ID(), bus.Root+"inbox/"+to+"/from/"+gateway)
	})
	return acked
}
