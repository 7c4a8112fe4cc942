package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/gateway"
)

// TestProfile: a laptop's gateway beside the mesh (plan, Phase 4), with configuration, state and port of its own, on an embedded store, with LM Studio's protocol. It makes no
// connection to the mesh as long as nothing is meant for it; what is meant for it waits while it is away, also over a kill -9, and is delivered once when it is there.
func TestProfile(t *testing.T) {
	studio := modeltest.NewServer(t, agent.APIOpenAI)
	studio.Answer(func(modeltest.Request) modeltest.Step { return modeltest.Step{Text: "from the laptop"} })
	home, homelab := t.TempDir(), freePort(t)
	const token = "the-token-of-the-homelab-gateway"
	port := freePort(t)
	profileFile(t, home, "macbook", fmt.Sprintf(`{
  gateway: { port: %d, auth: { token: "the-token-of-the-laptop" } },
  models: { providers: { lmstudio: { baseUrl: %q, apiKey: %q, models: [{ id: "local-model", contextWindow: 32768, maxTokens: 4096 }] } } },
  agents: { list: [
    { id: "dev", model: "lmstudio/local-model" },
    { id: "bobby", runner: { kind: "a2a", url: "http://127.0.0.1:%d/a2a/bobby", token: "${HOMELAB_TOKEN}", resendSameId: true } },
  ] },
}`, port, studio.BaseURL(), modeltest.Key, homelab))
	env := []string{"HOME=" + home, "HOMELAB_TOKEN=" + token, "GATEMESH_PROFILE=macbook"}
	start := func() *proc { return launch(t, env, "gateway") }

	// Connections to where the mesh will be.
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", homelab))
	if err != nil {
		t.Fatal(err)
	}
	var connections atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			_ = c.Close()
		}
	}()
	p := start()
	until(t, "the laptop's gateway is up", func() bool { return gatemesh(t, env, "", "ask", "--to", "dev", "Hello?").code == exitOK })
	if out := must(t, env, "ask", "--to", "dev", "Who are you?"); !strings.Contains(out, "from the laptop") {
		t.Errorf("%q", out)
	}
	if _, err := os.Stat(filepath.Join(home, ".openclaw-macbook", "gatemesh", "mesh.db")); err != nil {
		t.Errorf("its state is elsewhere: %v", err)
	}
	_ = l.Close() // offline
	<-done
	if n := connections.Load(); n != 0 {
		t.Errorf("%d connections to the mesh, and nothing was meant for it", n)
	}

	sent := gatemesh(t, env, "", "--json", "send", "--to", "bobby", "--ttl", "1h", "check the disks")
	if sent.code != exitOK {
		t.Fatalf("status %d: %s", sent.code, sent.errOut)
	}
	id := parse[gateway.MessageStatus](t, sent.out).MessageID
	p.end(syscall.SIGKILL)
	start()
	until(t, "the laptop's gateway is up again", func() bool { return gatemesh(t, env, "", "agents").code == exitOK })
	if st := parse[gateway.MessageStatus](t, must(t, env, "--json", "message", "show", id)); st.Facts.Acked || st.Facts.Dead {
		t.Errorf("before the mesh is there: %+v", st.Facts)
	}

	dir := t.TempDir()
	startDaemon(t, writeFile(t, filepath.Join(dir, "openclaw.json"), fmt.Sprintf(`{
  mesh: { gateway: "home-gateway", store: "local", dataDir: %q, log: { json: true }, service: { register: false } },
  gateway: { port: %d, auth: { token: %q } },
  agents: { list: [{ id: "bobby", runner: "echo" }] },
}`, filepath.Join(dir, "data"), homelab, token)))
	at := []string{"GATEMESH_ADDR=http://127.0.0.1:" + fmt.Sprint(homelab), "GATEMESH_TOKEN=" + token}
	until(t, "it is answered", func() bool {
		r := gatemesh(t, env, "", "--json", "message", "show", id)
		return r.code == exitOK && parse[gateway.MessageStatus](t, r.out).Facts.Acked
	})
	list := parse[[]gateway.MessageStatus](t, must(t, at, "--json", "message", "list"))
	questions := 0
	for _, st := range list {
		if st.Envelope != nil && st.Envelope.InReplyTo == "" && st.Envelope.Text() == "check the disks" {
			questions++
		}
	}
	if questions != 1 {
		t.Errorf("the mesh was asked %d times: %+v", questions, list)
	}
}

// profileFile writes the configuration of a profile.
func profileFile(t *testing.T, home, name, text string) {
	t.Helper()
	dir := filepath.Join(home, ".openclaw-"+name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "openclaw.json"), text)
}

func TestProfileNames(t *testing.T) {
	home := t.TempDir()
	profileFile(t, home, "mac", `{}`)
	r := gatemesh(t, []string{"HOME=" + home}, "", "--profile", "mac", "--json", "config", "show")
	if r.code != exitOK || !strings.Contains(r.out, `"store":"local"`) && !strings.Contains(r.out, `"store": "local"`) || !strings.Contains(r.out, "mac-gateway") || !strings.Contains(r.out, ".openclaw-mac/gatemesh") || strings.Contains(r.out, "18789") {
		t.Errorf("%d %s %s", r.code, r.out, r.errOut)
	}
	for _, args := range [][]string{{"--profile", "A b", "config", "show"}, {"--profile", "../x", "agents"}} {
		if r := gatemesh(t, []string{"HOME=" + home}, "", args...); r.code != exitUsage || !strings.Contains(r.errOut, "--profile") {
			t.Errorf("%v: %d %s", args, r.code, r.errOut)
		}
	}
	if r := gatemesh(t, []string{"HOME=" + home}, "", "--profile", "none", "gateway"); r.code != exitUsage || !strings.Contains(r.errOut, ".openclaw-none") {
		t.Errorf("%d %s", r.code, r.errOut)
	}
}
