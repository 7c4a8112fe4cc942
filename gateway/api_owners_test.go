package gateway

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

func (n *node) owners() []bus.OwnerInfo {
	n.t.Helper()
	var res OwnersResponse
	n.do(http.MethodGet, "/v1/owners", "").into(n.t, &res)
	return res.Owners
}

// sees waits until this gateway's own picture names the owner of bobby.
func (n *node) sees(ctx context.Context, owner string) {
	n.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for n.bus.Load().OwnerOf("bobby") != owner {
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.t.Fatalf("%s does not own bobby: %+v", owner, n.owners())
		}
	}
}

// Who owns what is listed on any gateway, and an operator moves it from any; the order is in the audit log.
func TestOwners(t *testing.T) {
	s := newStore(t)
	bobby := echoAgent("bobby")
	bobby["gateways"] = []string{"one", "two"}
	one := startNode(t, parseNode(t, "one", nil, "", bobby), Deps{Store: s, Runners: runners(nil)})
	two := startNode(t, parseNode(t, "two", nil, "", bobby), Deps{Store: s, Runners: runners(nil)})
	three := startNode(t, parseNode(t, "three", nil, "", bobby), Deps{Store: s, Runners: runners(nil)})
	three.waitAgent("bobby", "one")
	ctx := within(t)
	for {
		o := three.owners()
		if len(o) == 1 && o[0].Duty == "bobby" && o[0].Owner == "one" && o[0].Next == "two" && len(o[0].Candidates) == 2 {
			break
		}
		b := three.bus.Load()
		select {
		case <-b.RegistryChanged():
		case <-ctx.Done():
			t.Fatalf("%+v", o)
		}
	}
	var c bus.OwnerChange
	three.do(http.MethodPost, "/v1/owners/bobby/transfer", `{"to":"two","by":"me"}`).into(t, &c)
	if c.Duty != "bobby" || c.From != "one" || c.To != "two" || c.Token == 0 {
		t.Errorf("%+v", c)
	}
	three.sees(ctx, "two") // a change of the owner may be known at its end before the others' watches tell of it
	three.do(http.MethodPost, "/v1/owners/bobby/release", `{}`).into(t, &c)
	if c.To != "one" {
		t.Errorf("%+v", c)
	}
	two.sees(ctx, "one")
	two.do(http.MethodPost, "/v1/owners/bobby/transfer", `{"to":"two","force":true}`).into(t, &c)
	if c.To != "two" {
		t.Errorf("%+v", c)
	}
	one.sees(ctx, "two")
	three.sees(ctx, "two")
	for _, tc := range []struct {
		path, body string
		status     int
		code, says string
	}{
		{"/v1/owners/bobby/transfer", `{}`, http.StatusBadRequest, CodeInvalid, "who is to have bobby"},
		{"/v1/owners/bobby/release", `{"to":"one"}`, http.StatusBadRequest, CodeInvalid, "use transfer"},
		{"/v1/owners/BOBBY/release", `{}`, http.StatusBadRequest, CodeInvalid, "not the name of a duty"},
		{"/v1/owners/bobby/release", `{"timeout":"x"}`, http.StatusBadRequest, CodeInvalid, "x"},
		{"/v1/owners/nobody/release", `{}`, http.StatusNotFound, CodeNotFound, "nobody"},
		{"/v1/owners/bobby/transfer", `{"to":"three"}`, http.StatusConflict, CodeNotOwned, "it may be one of one, two"},
	} {
		r := one.do(http.MethodPost, tc.path, tc.body)
		if e := r.err(t); r.status != tc.status || e.Code != tc.code || !strings.Contains(e.Message, tc.says) {
			t.Errorf("%s %s: %d %+v", tc.path, tc.body, r.status, e)
		}
	}
	i := slices.IndexFunc(one.owners(), func(o bus.OwnerInfo) bool { return o.Duty == "bobby" })
	if o := one.owners()[i]; o.Owner != "two" || o.Next != "one" {
		t.Errorf("%+v", o)
	}
}
