package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
	"github.com/gatemesh/gatemesh/gateway"
)

// examine runs doctor --json and returns its findings by check.
func examine(t *testing.T, env []string, args ...string) (map[string]finding, result) {
	t.Helper()
	r := gatemesh(t, env, "", append([]string{"doctor", "--json"}, args...)...)
	var report doctorReport
	if err := json.Unmarshal([]byte(r.out), &report); err != nil {
		t.Fatalf("doctor --json: %v\n%s%s", err, r.out, r.errOut)
	}
	if failed := r.code == exitFailed; failed == report.OK {
		t.Errorf("status %d, but ok is %v", r.code, report.OK)
	}
	found := map[string]finding{}
	for _, f := range report.Checks {
		found[f.Check] = f
		if f.Status != statusOK && f.Fix == "" {
			t.Errorf("%s: %s: no fix is named", f.Check, f.Detail)
		}
	}
	return found, r
}

func wantFindings(t *testing.T, found map[string]finding, want map[string]string) {
	t.Helper()
	for check, status := range want {
		if found[check].Status != status {
			t.Errorf("%s is %q, want %q: %+v", check, found[check].Status, status, found[check])
		}
	}
}

func TestDoctorLooksAtConsul(t *testing.T) {
	c := cluster.ForTest(t, 1)
	file := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"), fmt.Sprintf(`{ mesh: { consul: { address: %q } } }`, c.Addr(0)))
	found, _ := examine(t, []string{"GATEMESH_ADDR=http://127.0.0.1:1"}, "--config", file)
	wantFindings(t, found, map[string]string{
		"config": statusOK, "gateway": statusFail, "consul": statusOK, "consul servers": statusWarn,
		"consul clock": statusOK, "consul sessions": statusOK, "consul KV": statusOK, "consul binary": statusOK,
	})
	r := gatemesh(t, nil, "", "doctor", "--config", file)
	if !strings.Contains(r.out, "fail  gateway: ") || !strings.Contains(r.out, "      fix: gatemesh gateway --config "+file) {
		t.Errorf("doctor for people:\n%s", r.out)
	}
	if err := c.Kill(0); err != nil {
		t.Fatal(err)
	}
	found, _ = examine(t, []string{"GATEMESH_ADDR=http://127.0.0.1:1"}, "--config", file)
	wantFindings(t, found, map[string]string{"consul": statusFail})
}

func TestDoctorNamesThePolicy(t *testing.T) {
	const management = "11111111-2222-3333-4444-555555555555"
	c := cluster.ForTestWith(t, cluster.Options{Token: management, Config: `
acl {
  enabled = true
  default_policy = "deny"
  tokens { initial_management = "` + management + `" }
}`})
	file := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"), fmt.Sprintf(`{ mesh: { consul: { address: %q } } }`, c.Addr(0)))
	found, _ := examine(t, nil, "--config", file)
	wantFindings(t, found, map[string]string{"consul": statusOK, "consul sessions": statusFail})
	if !strings.Contains(found["consul sessions"].Fix, "gatemesh acl policy") {
		t.Errorf("fix: %s", found["consul sessions"].Fix)
	}
	found, r := examine(t, []string{"CONSUL_HTTP_TOKEN=" + management}, "--config", file)
	wantFindings(t, found, map[string]string{"consul sessions": statusOK, "consul KV": statusOK})
	if strings.Contains(r.out+r.errOut, management) {
		t.Error("the token was printed")
	}
}

func TestDoctorSeesABrokenConfig(t *testing.T) {
	bad := writeFile(t, filepath.Join(t.TempDir(), "openclaw.json"), `{ gateway: { port: "many" } }`)
	found, _ := examine(t, nil, "--config", bad)
	wantFindings(t, found, map[string]string{"config": statusFail})
	if !strings.Contains(found["config"].Fix, "config validate --config "+bad) {
		t.Errorf("fix: %s", found["config"].Fix)
	}
}

func TestDoctorOnClocksAndInboxes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 400e6, time.UTC)
	for _, c := range []struct {
		skew time.Duration // of the other clock
		want string
	}{
		{0, statusOK}, {600 * time.Millisecond, statusOK}, {-2 * time.Second, statusOK},
		{4 * time.Second, statusWarn}, {-5 * time.Second, statusWarn}, {time.Minute, statusFail}, {-time.Minute, statusFail},
	} {
		d := &doctor{report: doctorReport{OK: true}}
		d.clock("clock", "Consul", http.Header{"Date": {now.Add(c.skew).Format(http.TimeFormat)}}, now, now.Add(time.Millisecond))
		if got := d.report.Checks[0]; got.Status != c.want {
			t.Errorf("skew %s: %+v, want %s", c.skew, got, c.want)
		}
	}
	d := &doctor{report: doctorReport{OK: true}}
	d.inboxes([]bus.InboxInfo{{Agent: "bobby", Waiting: 2, Pending: 1}, {Agent: "billy", Owner: "billy-gateway", Waiting: 9, DeadLetters: 1}})
	if got := d.report; got.OK || len(got.Checks) != 2 || got.Checks[0].Status != statusFail || got.Checks[1].Status != statusWarn {
		t.Errorf("inboxes: %+v", got)
	}
}

func TestDoctorOnQueues(t *testing.T) {
	works := []bus.WorkerInfo{{Gateway: "billy-gateway", Slots: 1}}
	for name, c := range map[string]struct {
		queue      bus.QueueInfo
		want, says string
	}{
		"fine":           {bus.QueueInfo{Owner: "o", Waiting: 3, Running: 1, Workers: works}, statusOK, "1 queue"},
		"idle":           {bus.QueueInfo{}, statusOK, "1 queue"},
		"no owner":       {bus.QueueInfo{Waiting: 2, Delayed: 1, Workers: works}, statusWarn, "3 tasks unfinished and nobody hands them out"},
		"no worker":      {bus.QueueInfo{Owner: "o", Delayed: 1}, statusWarn, "1 task unfinished and nobody works"},
		"worker leaving": {bus.QueueInfo{Owner: "o", Waiting: 1, Workers: []bus.WorkerInfo{{Gateway: "g"}}}, statusWarn, "nobody works"},
	} {
		d := &doctor{report: doctorReport{OK: true}}
		c.queue.Queue = "jobs"
		d.queues([]bus.QueueInfo{c.queue})
		got := d.report
		if !got.OK || len(got.Checks) != 1 || got.Checks[0].Status != c.want || !strings.Contains(got.Checks[0].Detail, c.says) || (c.want == statusWarn) != strings.Contains(got.Checks[0].Fix, "mesh.queues, id jobs") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	d := &doctor{}
	if d.queues(nil); len(d.report.Checks) != 0 {
		t.Errorf("a mesh without queues: %+v", d.report.Checks)
	}
}

// TestDoctorLooksAtKeys: a key that waits for the operator, and one that ends, are things to do.
func TestDoctorLooksAtKeys(t *testing.T) {
	for fix, st := range map[string]gateway.StatusResponse{
		"":                                  {Key: "k"},
		"gatemesh keys rotate gateway g on": {Key: "k", KeyEnds: envelope.At(time.Now().Add(time.Hour))},
		"gatemesh keys rotate gateway g --key next on": {Key: "k", NextKey: "next"},
	} {
		d := &doctor{}
		st.Gateway, st.Trust, st.TrustVersion = "g", gateway.TrustEnforced, 3
		d.trust(&st)
		if f := d.report.Checks[0]; (f.Status == statusOK) != (fix == "") || !strings.HasPrefix(f.Fix, fix) {
			t.Errorf("%+v: %+v", st, f)
		}
	}
}

// TestDoctorLooksAtChannels: each account that does not work is named with what mends it.
func TestDoctorLooksAtChannels(t *testing.T) {
	account := func(channel string, state gateway.ChannelState, change func(*gateway.AccountStatus)) gateway.AccountStatus {
		a := gateway.AccountStatus{Channel: channel, Account: "default", Inbox: "channel-" + channel + "-default", Gateway: "g"}
		a.State = state
		if change != nil {
			change(&a)
		}
		return a
	}
	for _, c := range []struct {
		a                 gateway.AccountStatus
		status, says, fix string
	}{
		{account("slack", gateway.ChannelConnected, nil), statusOK, "1 account, connected", ""},
		{account("slack", gateway.ChannelReconnecting, func(a *gateway.AccountStatus) { a.Detail = "no route" }), statusWarn, "reconnecting at g: no route", "log of g"},
		{account("slack", gateway.ChannelLoggedOut, nil), statusFail, "refuses its credentials at g", "channels.slack"},
		{account("whatsapp", gateway.ChannelLoggedOut, nil), statusFail, "refuses its credentials", "gatemesh channels pair whatsapp/default"},
		{account("whatsapp", gateway.ChannelPairing, nil), statusWarn, "to link it", "gatemesh channels pair whatsapp/default"},
		{account("discord", gateway.ChannelStopped, func(a *gateway.AccountStatus) { a.Gateway = "" }), statusWarn, "nobody has it", "start a gateway"},
		{account("discord", gateway.ChannelConnected, func(a *gateway.AccountStatus) { a.Foreign = "from elsewhere" }), statusFail, "from elsewhere", "another one in channels.discord"},
		{account("discord", gateway.ChannelConnected, func(a *gateway.AccountStatus) { a.Foreign, a.ForeignAt = "from elsewhere", envelope.At(time.Now()) }), statusFail, "uses its credentials: 0s ago: from elsewhere", "another one in channels.discord"},
		{account("discord", gateway.ChannelConnected, func(a *gateway.AccountStatus) {
			a.Foreign, a.ForeignAt = "from elsewhere", envelope.At(time.Now().Add(-2*time.Hour))
		}), statusWarn, "used its credentials: 2h0m0s ago: from elsewhere", "another one in channels.discord"},
		{account("discord", gateway.ChannelConnected, func(a *gateway.AccountStatus) { a.Unknown = 2 }), statusWarn, "2 posts", "deadletter list --agent channel-discord-default --class unknown"},
	} {
		d := &doctor{report: doctorReport{OK: true}}
		d.channels([]gateway.AccountStatus{c.a})
		if n := len(d.report.Checks); n != 1 {
			t.Errorf("%s: %d findings", c.says, n)
			continue
		}
		if f := d.report.Checks[0]; f.Status != c.status || !strings.Contains(f.Detail, c.says) || !strings.Contains(f.Fix, c.fix) || d.report.OK != (c.status != statusFail) {
			t.Errorf("%s: %+v", c.says, f)
		}
	}
	d := &doctor{}
	if d.channels(nil); len(d.report.Checks) != 0 {
		t.Errorf("a mesh without channels: %+v", d.report.Checks)
	}
}

// TestRemediesOfChannels: the commands that are named for accounts are there, with those arguments and flags.
func TestRemediesOfChannels(t *testing.T) {
	a := gateway.AccountStatus{Channel: "whatsapp", Account: "default", Inbox: "channel-whatsapp-default", Gateway: "g", Unknown: 1}
	remedies := []string{unknownRemedy(a)}
	for _, s := range []gateway.ChannelState{gateway.ChannelLoggedOut, gateway.ChannelPairing, gateway.ChannelReconnecting} {
		d := &doctor{}
		a.State = s
		d.channels([]gateway.AccountStatus{a})
		for _, c := range d.report.Checks {
			remedies = append(remedies, c.Fix)
		}
	}
	for _, r := range remedies {
		command, _, _ := strings.Cut(r, ";")
		command, _, _ = strings.Cut(command, ",")
		root := newApp().rootCommand()
		cmd, rest, err := root.Find(strings.Fields(command)[1:])
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil || !strings.HasPrefix(command, "gatemesh ") || !cmd.Runnable() {
			t.Errorf("%q: %v", command, err)
		}
	}
}

// TestDoctorLooksAtTheSet: what lies in the store is compared with what the gateway goes by.
func TestDoctorLooksAtTheSet(t *testing.T) {
	operator, s := trust.NewKey(), localStore(t)
	signed := func(version uint64) []byte {
		raw, err := trust.SignSet(&trust.Set{Mesh: "m", Version: version, IssuedAt: envelope.At(time.Now()), Operators: []string{trust.EncodePublic(operator.Public())},
			Gateways: []trust.Member{}, Revoked: []trust.Revocation{}}, operator)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for _, c := range []struct {
		value        []byte
		status, says string
	}{
		{nil, statusFail, "has none"},
		{[]byte("{}"), statusFail, "spoilt"},
		{signed(2), statusFail, "number 2 back"},
		{signed(3), statusOK, "number 3"},
		{signed(4), statusWarn, "still goes by number 3"},
	} {
		if c.value != nil {
			if _, err := s.Txn(t.Context(), []bus.Op{{Verb: bus.OpSet, Key: trust.SetKey, Value: c.value}}); err != nil {
				t.Fatal(err)
			}
		}
		d := &doctor{trusts: 3}
		d.trustInStore(t.Context(), s)
		if f := d.report.Checks[0]; f.Status != c.status || !strings.Contains(f.Detail, c.says) || (c.status == statusFail) != strings.Contains(f.Fix, "gatemesh trust publish") {
			t.Errorf("%s: %+v", c.says, f)
		}
	}
	d := &doctor{}
	if d.trustInStore(t.Context(), s); len(d.report.Checks) != 0 {
		t.Errorf("an open mesh: %+v", d.report.Checks)
	}
}

func localStore(t *testing.T) bus.Store {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "mesh.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}
