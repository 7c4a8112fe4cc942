package gateway

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/gatemesh/gatemesh/bus"
)

// vaultDesk is an account whose vaults the test holds: one for each term, from whichever node.
type vaultDesk struct {
	t      *testing.T
	store  bus.Store
	vaults chan Vault
}

func (d *vaultDesk) start(name string, keys ...string) *node {
	d.t.Helper()
	s := &script{in: make(chan Ingress, 8)}
	f := ChannelFactory{NeedsVault: true, New: func(deps ChannelDeps) (Channel, error) {
		if v, ok := deps.Vault.(*termVault); ok && v.term != nil {
			d.vaults <- v
		}
		return s, nil
	}}
	cfg := parseChannels(d.t, name, config{"channels": config{"test": config{}}}, echoAgent("bob-"+name))
	cfg.Mesh.ChannelKeys = keys
	return startNode(d.t, cfg, Deps{Store: d.store, Channels: map[string]ChannelFactory{"test": f}})
}

func (d *vaultDesk) rows() map[string][]byte {
	d.t.Helper()
	pairs, err := d.store.List(d.t.Context(), "openclaw/duties/channel-test-default/")
	if err != nil {
		d.t.Fatal(err)
	}
	rows := map[string][]byte{}
	for _, p := range pairs {
		if strings.Contains(p.Key, "/"+vaultPrefix) {
			rows[p.Key] = p.Value
		}
	}
	return rows
}

func (d *vaultDesk) has(v Vault, name, want string) {
	d.t.Helper()
	got, err := v.Get(d.t.Context(), name)
	if err != nil || string(got) != want {
		d.t.Errorf("%s: %q, %v; want %q", name, got, err, want)
	}
}

// TestVault: what an account keeps is whole, secret, where it belongs, and its owner's alone; also while its key is replaced.
func TestVault(t *testing.T) {
	d := &vaultDesk{t: t, store: newStore(t), vaults: make(chan Vault, 8)}
	first, second := NewChannelKey(), NewChannelKey()
	one := d.start("one", first)
	v := await(t, d.vaults, "the first term")
	values := map[string][]byte{"device": []byte("the private key"), "session/49170@s.whatsapp.net": []byte("a ratchet"), "gone": []byte("x")}
	if err := v.Write(t.Context(), values); err != nil {
		t.Fatal(err)
	}
	if err := v.Write(t.Context(), map[string][]byte{"gone": nil, "empty": {}}); err != nil {
		t.Fatal(err)
	}
	d.has(v, "device", "the private key")
	if got, err := v.Get(t.Context(), "gone"); got != nil || err != nil {
		t.Errorf("deleted: %q, %v", got, err)
	}
	if got, err := v.Get(t.Context(), "empty"); got == nil || len(got) != 0 || err != nil {
		t.Errorf("empty: %v, %v", got, err)
	}
	if list, err := v.List(t.Context(), "session/"); err != nil || len(list) != 1 || string(list["session/49170@s.whatsapp.net"]) != "a ratchet" {
		t.Errorf("%q, %v", list, err)
	}
	rows := d.rows()
	if len(rows) != 3 {
		t.Errorf("%d rows", len(rows))
	}
	for key, raw := range rows {
		for _, secret := range []string{"private", "ratchet", "49170"} {
			if strings.Contains(key, secret) || bytes.Contains(raw, []byte(secret)) {
				t.Errorf("%s says %s", key, secret)
			}
		}
	}

	// A row that somebody put into another one's place is not believed.
	place := func(name string) string {
		return "openclaw/duties/channel-test-default/" + (&termVault{}).place(name)
	}
	put := func(name string, raw []byte) {
		t.Helper()
		if _, err := d.store.Txn(t.Context(), []bus.Op{{Verb: bus.OpSet, Key: place(name), Value: raw}}); err != nil {
			t.Fatal(err)
		}
	}
	put("session/mallory", rows[place("device")])
	if got, err := v.Get(t.Context(), "session/mallory"); err == nil || got != nil {
		t.Errorf("a row of another name: %q", got)
	}
	if list, err := v.List(t.Context(), "session/"); err == nil {
		t.Errorf("a row of another name, in a list: %q", list)
	}
	put("session/mallory", nil)
	if err := v.Write(t.Context(), map[string][]byte{"session/mallory": nil}); err != nil {
		t.Fatal(err)
	}

	// The next owner, with another key before the old one, reads all and writes with the new one; who was deposed writes nothing.
	d.start("two", second, first)
	moved := func() bool {
		return one.do(http.MethodPost, "/v1/owners/channel-test-default/transfer", `{"to":"two"}`).status == http.StatusOK
	}
	for ctx := within(t); !moved(); { // until one has seen that two is there
		select {
		case <-one.bus.Load().RegistryChanged():
		case <-ctx.Done():
			t.Fatal("the account does not move")
		}
	}
	w := await(t, d.vaults, "the second term")
	d.has(w, "device", "the private key")
	if err := v.Write(t.Context(), map[string][]byte{"device": []byte("of before")}); !errors.Is(err, bus.ErrDeposed) {
		t.Errorf("a deposed owner writes: %v", err)
	}
	if err := w.Write(t.Context(), map[string][]byte{"device": []byte("the next private key")}); err != nil {
		t.Fatal(err)
	}
	d.has(w, "device", "the next private key")
	alone := func(key string) *termVault {
		k, err := parseChannelKey(key)
		if err != nil {
			t.Fatal(err)
		}
		x := *w.(*termVault)
		x.keys = x.keys[:0:0]
		x.keys = append(x.keys, k)
		return &x
	}
	d.has(alone(second), "device", "the next private key")
	d.has(alone(first), "session/49170@s.whatsapp.net", "a ratchet")
	for key, name := range map[string]string{first: "device", second: "session/49170@s.whatsapp.net"} {
		if got, err := alone(key).Get(t.Context(), name); err == nil || got != nil || !strings.Contains(err.Error(), "mesh.channelKeys") || strings.Contains(err.Error(), key) {
			t.Errorf("%s with the other key: %q, %v", name, got, err)
		}
	}
}

// TestVaultKeys: a key that is none is refused without being said, and an account that needs one does not start without.
func TestVaultKeys(t *testing.T) {
	for _, text := range []string{"", "secret-but-short", NewChannelKey()[:40], NewChannelKey() + "AAAA"} {
		if _, err := parseChannelKey(text); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
	cfg := parseChannels(t, "one", config{"channels": config{"test": config{}}}, echoAgent("bob"))
	f := ChannelFactory{NeedsVault: true, New: func(ChannelDeps) (Channel, error) { return &script{}, nil }}
	if _, err := New(cfg, Deps{Store: newStore(t), Channels: map[string]ChannelFactory{"test": f}, Runners: runners(nil)}); !errors.Is(err, ErrNoVault) {
		t.Errorf("without a key: %v", err)
	}
}
