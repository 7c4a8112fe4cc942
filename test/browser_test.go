package test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/gatemesh/gatemesh/gateway"
)

// browser is a real one; the test is skipped where there is none (make chromium).
func browser(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Skip("no Chromium here: make chromium installs Debian's")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-background-networking", true), chromedp.WindowSize(1200, 1400))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, end := chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(end)
	ctx, stop := context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(stop)
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("%s does not start: %v", path, err)
	}
	return ctx
}

// TestPagesInBrowser: somebody links WhatsApp on the page of the gateway that has it, and holds one conversation on two gateways, of which the first dies.
func TestPagesInBrowser(t *testing.T) {
	tab := browser(t)
	m := newChatMesh(t, builtBinary(t), 1)
	do := func(ctx context.Context, what string, actions ...chromedp.Action) {
		t.Helper()
		if err := chromedp.Run(ctx, actions...); err != nil {
			var body string
			_ = chromedp.Run(tab, chromedp.Text("body", &body))
			t.Fatalf("%s: %v; the page:\n%s", what, err, body)
		}
	}
	// shows waits until an element has a text.
	shows := func(ctx context.Context, id, text string) {
		t.Helper()
		do(ctx, id+" does not show "+text, chromedp.Poll(`document.getElementById("`+id+`").textContent.includes("`+text+`")`, nil, chromedp.WithPollingTimeout(40*time.Second)))
	}

	was, _ := m.owner("channel-whatsapp-default")
	owner, other := (was+1)%3, (was+2)%3
	m.pin("channel-whatsapp-default", owner) // it stays there: the first owner gives it to who is next in line once all are up
	do(tab, "the page of another gateway", chromedp.Navigate(m.nodes[other].address()), chromedp.WaitVisible("#accounts-card"))
	shows(tab, "accounts", "Link at "+nodeName(owner))
	do(tab, "the page of the owner", chromedp.Navigate(m.nodes[owner].address()), chromedp.WaitVisible("#accounts button"), chromedp.Click("#accounts button"), chromedp.WaitVisible("#code"))
	var width float64
	do(tab, "the code is a picture", chromedp.Evaluate(`document.getElementById("code").naturalWidth`, &width))
	if width < 300 {
		t.Errorf("the picture of the code is %v wide", width)
	}
	screenshot(t, tab, "pairing")
	var p gateway.PairResponse // what the phone sees
	if err := m.nodes[owner].api(http.MethodPost, "/v1/channels/channel-whatsapp-default/pair", "{}", &p); err != nil || p.Code == nil {
		t.Fatalf("%v %+v", err, p)
	}
	if err := m.whatsapp.Scan(t.Context(), p.Code.Code, chatBot); err != nil {
		t.Fatal(err)
	}
	shows(tab, "pairing-text", "Linked as "+chatBot)
	shows(tab, "accounts", "connected")

	// A conversation: on the page of a gateway that will die, and then on another one's.
	say := func(text string) {
		t.Helper()
		do(tab, "saying "+text, chromedp.SendKeys("#text", text), chromedp.Click("#send"))
		do(tab, "no answer to "+text, chromedp.Poll(`[...document.querySelectorAll("#log li[data-who=agent]")].some((e) => e.textContent.includes("`+text+`"))`, nil, chromedp.WithPollingTimeout(40*time.Second)))
	}
	m.place("channel-webchat-default", owner)
	var address, log string
	do(tab, "the chat", chromedp.Navigate(m.nodes[owner].address()+"/chat"), chromedp.WaitVisible("#say"))
	say("is anybody there")
	do(tab, "its address", chromedp.Location(&address))
	_, conversation, _ := strings.Cut(address, "#")
	m.nodes[owner].end(syscall.SIGKILL)
	do(tab, "the chat elsewhere", chromedp.Navigate(m.nodes[other].address()+"/chat#"+conversation), chromedp.WaitVisible("#say"))
	shows(tab, "log", "is anybody there")
	say("and after the death")
	do(tab, "the whole conversation", chromedp.Text("#log", &log))
	if got := strings.Join(strings.Fields(log), " "); got != "You: is anybody there Agent: is anybody there You: and after the death Agent: and after the death" {
		t.Errorf("the page shows %q", got)
	}
	screenshot(t, tab, "chat")
}

// screenshot keeps a picture of the page where GATEMESH_SCREENSHOTS names a directory: for whoever changes the pages.
func screenshot(t *testing.T, ctx context.Context, name string) { //nolint:revive // the tab is the second thing
	t.Helper()
	dir := os.Getenv("GATEMESH_SCREENSHOTS")
	if dir == "" {
		return
	}
	var png []byte
	if err := chromedp.Run(ctx, chromedp.FullScreenshot(&png, 100)); err != nil {
		t.Error(err)
		return
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Error(err)
	}
}
