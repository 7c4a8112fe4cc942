package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
)

// store examines the store that the configuration names. Without a configuration the
// gateway's word on it (ready) has to do.
func (d *doctor) store(ctx context.Context) {
	if d.cfg == nil {
		return
	}
	if d.cfg.Mesh.Store == "local" {
		d.localStore(d.cfg.Mesh.DataDir)
		return
	}
	s, err := openConsul(d.cfg, nil)
	if err != nil {
		d.fail("consul", err.Error(), "mend mesh.consul in "+d.file+", or the CONSUL_* variables")
		return
	}
	defer s.Close()
	ctx, cancel := d.within(ctx)
	defer cancel()
	d.consul(ctx, s)
}

func (d *doctor) localStore(dir string) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		d.ok("store", "local, in "+dir+" (made at the first start)")
	case err != nil:
		d.fail("store", err.Error(), "name a directory of yours in mesh.dataDir")
	case !info.IsDir():
		d.fail("store", dir+" is not a directory", "name a directory in mesh.dataDir")
	default:
		f, err := os.CreateTemp(dir, ".doctor-*")
		if err != nil {
			d.fail("store", err.Error(), "chown -R $USER "+dir+" (or free disk space: df "+dir+")")
			return
		}
		_ = f.Close()
		_ = os.Remove(f.Name())
		d.ok("store", "local, in "+dir+", writable")
	}
}

func (d *doctor) consul(ctx context.Context, s *consul.Store) {
	leader, peers, err := s.Servers(ctx)
	switch {
	case err != nil:
		d.fail("consul", fmt.Sprintf("%s: %v", s.Describe(), err), "start Consul's agent on this node, or export CONSUL_HTTP_ADDR=HOST:PORT; try: consul info")
		return
	case leader == "":
		d.fail("consul", fmt.Sprintf("%s has no leader (%s known): nothing can be written", s.Describe(), plural(len(peers), "server")), "consul operator raft list-peers; start the servers that are down: a majority must run")
		return
	}
	d.ok("consul", fmt.Sprintf("%s, leader %s, %s", s.Describe(), leader, plural(len(peers), "server")))
	if len(peers) == 1 {
		d.warn("consul servers", "a single one: the mesh stands when it does", "run three servers where the mesh matters")
	}
	d.consulClock(ctx)
	d.trustInStore(ctx, s)

	session, err := s.NewSession(ctx, bus.SessionOptions{Name: "gatemesh doctor", TTL: 10 * time.Second})
	if err != nil {
		d.fail("consul sessions", err.Error(), "gatemesh acl policy --config "+d.file+" --node NODE prints the rules; consul acl policy update -name NAME -rules @FILE")
		return
	}
	defer func() { _ = s.DestroySession(context.WithoutCancel(ctx), session) }()
	d.ok("consul sessions", "can be created")

	// Locked by the session: whatever happens to us, the key goes with it.
	key := bus.DoctorRoot + strings.ToLower(rand.Text()[:8])
	_, err = s.Txn(ctx, []bus.Op{{Verb: bus.OpLock, Key: key, Value: []byte("written by gatemesh doctor, gone in a moment"), Session: session}})
	if err == nil {
		_, err = s.Txn(ctx, []bus.Op{{Verb: bus.OpDelete, Key: key}})
	}
	if err != nil {
		d.fail("consul KV", err.Error(), "gatemesh acl policy --config "+d.file+" --node NODE prints the rules; consul acl policy update -name NAME -rules @FILE")
		return
	}
	d.ok("consul KV", "openclaw/ is writable")
}

// consulClock asks over plain HTTP only; elsewhere the gateway's clock has to do.
func (d *doctor) consulClock(ctx context.Context) {
	addr := d.cfg.Mesh.Consul.Address
	if addr == "" {
		addr = d.a.getenv("CONSUL_HTTP_ADDR")
	}
	if addr == "" {
		addr = "127.0.0.1:8500"
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	if !strings.HasPrefix(addr, "http://") {
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(addr, "/")+"/v1/status/leader", nil)
	if err != nil {
		return
	}
	asked := time.Now()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return
	}
	_ = resp.Body.Close()
	d.clock("consul clock", "Consul", resp.Header, asked, time.Now())
}
