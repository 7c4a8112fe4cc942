package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

func TestZZPage(t *testing.T) {
	if os.Getenv("PAGE") == "" {
		t.Skip()
	}
	s := newStore(t)
	rs := runners(agent.Runners{"checks": func(agent.Spec, agent.Deps) (bus.Handler, error) {
		return agent.Checks(func(_ context.Context, c string) (agent.Finding, error) {
			if c == "bad" {
				return agent.Finding{}, fmt.Errorf("%w: <img src=x onerror=alert(1)>", agent.ErrNotOffered)
			}
			return agent.Finding{Text: "all-healthy\nConsul: 3 members, 4 services\nNomad: absent (nothing answers at http://127.0.0.1:4646)\nNode <b>bobby</b>: load 0.4 on 2 cores, memory 31%, disk 40%", Result: "all-healthy"}, nil
		}), nil
	}})
	_ = errors.New
	jerry := startNode(t, parseNode(t, "jerry-gateway", nil, "tok-én", config{"id": "jerry", "name": "Jerry", "description": "Hub: passes a question on", "capabilities": []string{"relay"}, "runner": "relay"}), Deps{Store: s, Runners: rs})
	startNode(t, parseNode(t, "bobby-gateway", nil, "", config{"id": "bobby", "name": "Bobby", "description": "Infrastructure", "capabilities": []string{"infra.check"}, "runner": "checks"}), Deps{Store: s, Runners: rs})
	billy := startNode(t, parseNode(t, "billy-gateway", nil, "", config{"id": "billy", "name": "Billy", "capabilities": []string{"node.report"}, "runner": "checks"}), Deps{Store: s, Runners: rs})
	jerry.waitAgent("bobby", "bobby-gateway")
	jerry.waitAgent("billy", "billy-gateway")
	jerry.send(SendRequest{To: "bobby", Capability: "bad", Text: text("x"), Wait: WaitAcked})

	cmd := exec.Command("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=19333", "--remote-allow-origins=*", "--user-data-dir="+t.TempDir(), "about:blank")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var pages []struct {
		WS   string `json:"webSocketDebuggerUrl"`
		Type string `json:"type"`
	}
	for range 100 {
		r, err := http.Get("http://127.0.0.1:19333/json")
		if err == nil {
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if json.Unmarshal(b, &pages) == nil && len(pages) > 0 {
				break
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, pages[0].WS, nil)
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(100 << 20)
	id := 0
	call := func(method string, params any) json.RawMessage {
		id++
		b, _ := json.Marshal(map[string]any{"id": id, "method": method, "params": params})
		if err := ws.Write(ctx, websocket.MessageText, b); err != nil {
			t.Fatal(err)
		}
		for {
			_, m, err := ws.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var r struct {
				ID     int
				Method string
				Result json.RawMessage
				Params json.RawMessage
			}
			_ = json.Unmarshal(m, &r)
			if r.Method == "Runtime.exceptionThrown" || r.Method == "Log.entryAdded" || r.Method == "Runtime.consoleAPICalled" {
				t.Logf("CONSOLE %s", r.Params)
			}
			if r.ID == id {
				return r.Result
			}
		}
	}
	type kv = map[string]any
	eval := func(js string) string {
		r := call("Runtime.evaluate", kv{"expression": js, "awaitPromise": true, "returnByValue": true})
		return string(r)
	}
	until := func(js string) {
		t.Helper()
		for range 100 {
			if strings.Contains(eval("String(!!("+js+"))"), `"true"`) {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("never: %s; page: %s", js, eval("document.body.innerText"))
	}
	shot := func(name string) {
		var r struct{ Data string }
		_ = json.Unmarshal(call("Page.captureScreenshot", kv{"captureBeyondViewport": true}), &r)
		b, _ := base64.StdEncoding.DecodeString(r.Data)
		_ = os.WriteFile("/tmp/gwapi/"+name+".png", b, 0o644)
	}
	size := func(w, h int, mobile bool) {
		call("Emulation.setDeviceMetricsOverride", kv{"width": w, "height": h, "deviceScaleFactor": 1, "mobile": mobile})
	}
	for _, d := range []string{"Page", "Runtime", "Log"} {
		call(d+".enable", kv{})
	}
	size(1200, 1100, false)
	call("Page.navigate", kv{"url": "http://" + jerry.Addr().String() + "/"})
	until(`!document.getElementById("login").hidden`)
	shot("1-login")
	eval(`document.getElementById("token").value="wrong"; document.getElementById("login").requestSubmit()`)
	until(`!document.getElementById("notice").hidden`)
	shot("2-wrong")
	eval(`document.getElementById("token").value="tok-én"; document.getElementById("login").requestSubmit()`)
	until(`document.getElementById("live").textContent.includes("live")`)
	eval(`document.getElementById("question").value="Ask Bobby to check Consul services"; document.getElementById("ask").requestSubmit()`)
	until(`document.getElementById("text").textContent.includes("all-healthy")`)
	until(`document.querySelectorAll("#steps .on").length == 4`)
	billy.Stop(ctx)
	until(`document.body.innerText.includes("unreachable")`)
	until(`document.querySelectorAll("details").length > 2`)
	eval(`document.querySelectorAll("details").forEach((d,i)=>d.open=i<3)`)
	shot("3-light")
	t.Log(eval(`[document.images.length, document.documentElement.scrollWidth, innerWidth].join()`))
	call("Emulation.setEmulatedMedia", kv{"features": []kv{{"name": "prefers-color-scheme", "value": "dark"}}})
	shot("4-dark")
	size(375, 1600, true)
	shot("5-phone")
	t.Log(eval(`[document.documentElement.scrollWidth, innerWidth].join()`))
	_, _ = bytes.Compare, envelope.NewID
	jerry.Stop(ctx)
	until(`document.getElementById("state").textContent=="unreachable"`)
}
