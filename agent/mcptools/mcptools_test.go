package mcptools_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/mcptools"
)

// servesVariable makes this test's own binary an MCP server on its standard input and output.
const servesVariable = "GATEMESH_TEST_MCP"

func TestMain(m *testing.M) {
	if os.Getenv(servesVariable) != "" {
		s := served(nil)
		if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

type said struct {
	Text string `json:"text" jsonschema:"what to say"`
}

// served is a server of the official SDK with tools of each kind.
func served(slow <-chan struct{}) *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	text := func(t string) *mcp.CallToolResult {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: t}}}
	}
	mcp.AddTool(s, &mcp.Tool{Name: "say", Description: "Says it."}, func(_ context.Context, _ *mcp.CallToolRequest, in said) (*mcp.CallToolResult, any, error) {
		return text("said " + in.Text), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "look", Annotations: &mcp.ToolAnnotations{ReadOnlyHint: true}}, func(_ context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		return text(os.Getenv("MCP_SECRET") + "|" + os.Getenv("GATEMESH_TOKEN")), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "fail"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return nil, nil, errors.New("it cannot")
	})
	mcp.AddTool(s, &mcp.Tool{Name: "end"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		os.Exit(3)
		return nil, nil, nil
	})
	if slow != nil {
		mcp.AddTool(s, &mcp.Tool{Name: "slow"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
			select {
			case <-slow:
			case <-ctx.Done():
			}
			return text("late"), nil, nil
		})
	}
	return s
}

// logged is a log that can be read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func started(t *testing.T, list ...mcptools.Server) (*mcptools.Servers, *logged) {
	t.Helper()
	log := &logged{}
	s := mcptools.New(list, "1.2.3", hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Debug}))
	s.Start()
	t.Cleanup(s.Stop)
	return s, log
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still not: " + what)
		}
	}
}

func find(s *mcptools.Servers, name string) *agent.Tool {
	for _, t := range s.Tools() {
		if t.Name == name {
			return &t
		}
	}
	return nil
}

func run(t *testing.T, s *mcptools.Servers, name, args string) agent.ToolOutput {
	t.Helper()
	tool := find(s, name)
	if tool == nil {
		t.Fatalf("no %s", name)
	}
	out, err := tool.Run(t.Context(), &agent.Call{Arguments: json.RawMessage(args)})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// self is this test's binary as a program to be started.
func self(t *testing.T) mcptools.Server {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return mcptools.Server{Name: "home", Command: path, Env: map[string]string{servesVariable: "1", "MCP_SECRET": "secret-of-the-server"}}
}

// A program is started with the environment it is to have and no more, its tools are called, and it is started again when it ends.
func TestProgram(t *testing.T) {
	t.Setenv("GATEMESH_TOKEN", "secret-of-the-gateway")
	s, log := started(t, self(t))
	soon(t, "its tools are there", func() bool { return find(s, "home__say") != nil })
	say, look := find(s, "home__say"), find(s, "home__look")
	if say.Effect != agent.EffectOutside || look.Effect != agent.EffectNone || say.Description != "Says it." || !strings.Contains(string(say.Schema), "what to say") || say.Timeout == 0 {
		t.Errorf("%+v %+v", say, look)
	}
	if out := run(t, s, "home__say", `{"text":"hello"}`); out.Failed || out.Text != "said hello" {
		t.Errorf("%+v", out)
	}
	if out := run(t, s, "home__look", `{}`); out.Text != "secret-of-the-server|" {
		t.Errorf("it is told %q", out.Text)
	}
	if out := run(t, s, "home__fail", `{}`); !out.Failed || !strings.Contains(out.Text, "it cannot") {
		t.Errorf("%+v", out)
	}
	if out := run(t, s, "home__say", `{"text":7}`); !out.Failed {
		t.Errorf("a wrong argument: %+v", out)
	}
	stale := find(s, "home__say")
	if out := run(t, s, "home__end", `{}`); !out.Failed || out.Undone || !strings.Contains(out.Text, "not known whether") {
		t.Errorf("it ended: %+v", out)
	}
	soon(t, "its tools are gone", func() bool { return find(s, "home__say") == nil })
	if out, err := stale.Run(t.Context(), &agent.Call{Arguments: []byte(`{"text":"x"}`)}); err != nil || !out.Undone || !strings.Contains(out.Text, "is not there") {
		t.Errorf("%+v %v", out, err)
	}
	soon(t, "it was started again", func() bool { return find(s, "home__say") != nil })
	if out := run(t, s, "home__say", `{"text":"again"}`); out.Text != "said again" {
		t.Errorf("%+v", out)
	}
	if text := log.String(); !strings.Contains(text, "is not there") || strings.Contains(text, "secret-of") {
		t.Errorf("the log: %s", text)
	}
	s.Stop()
	s.Stop()
}

// A program that is none, or that says why it cannot, is told of with its last words.
func TestBrokenPrograms(t *testing.T) {
	s, log := started(t, mcptools.Server{Name: "none", Command: "/nowhere/at-all"},
		mcptools.Server{Name: "odd", Command: "sh", Args: []string{"-c", "echo no key $KEY >&2; exit 1"}, Env: map[string]string{"KEY": "the-key-of-it"}})
	soon(t, "both are told of", func() bool {
		text := log.String()
		return strings.Contains(text, "server=none") && strings.Contains(text, "no key (not shown)")
	})
	if strings.Contains(log.String(), "the-key-of-it") {
		t.Error("the log shows the key")
	}
	if len(s.Tools()) != 0 {
		t.Error("there are tools")
	}
}

// closed ends an endpoint, with the sessions that its clients have left.
func closed(s *mcp.Server, web *httptest.Server) {
	web.CloseClientConnections()
	web.Close()
	for session := range s.Sessions() {
		_ = session.Close()
	}
}

// An endpoint gets the headers with each request, its new tools come by themselves, a call that takes too long ends, and it may go and come back.
func TestEndpoint(t *testing.T) {
	slow := make(chan struct{})
	server := served(slow)
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil)
	var mu sync.Mutex
	refused := 0
	guard := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer key-of-the-endpoint" {
			mu.Lock()
			refused++
			mu.Unlock()
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	})
	web := httptest.NewServer(guard)
	t.Cleanup(func() { close(slow); closed(server, web) })
	good := mcptools.Server{Name: "web", URL: web.URL + "?key=query-secret", Headers: map[string]string{"Authorization": "Bearer key-of-the-endpoint"}, Timeout: 2 * time.Second}
	bad := good
	bad.Name, bad.Headers = "bad", map[string]string{"Authorization": "Bearer another-secret"}
	s, log := started(t, good, bad)
	soon(t, "its tools are there", func() bool { return find(s, "web__say") != nil })
	if out := run(t, s, "web__say", `{"text":"hello"}`); out.Text != "said hello" {
		t.Errorf("%+v", out)
	}
	soon(t, "the other one is refused", func() bool { return strings.Contains(log.String(), "server=bad") })
	if find(s, "bad__say") != nil {
		t.Error("who is refused has tools")
	}
	mcp.AddTool(server, &mcp.Tool{Name: "new"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return nil, map[string]int{"n": 7}, nil
	})
	soon(t, "the new tool is there", func() bool { return find(s, "web__new") != nil })
	if out := run(t, s, "web__new", `{}`); out.Failed || !strings.Contains(out.Text, `"n":7`) {
		t.Errorf("%+v", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := find(s, "web__slow").Run(ctx, &agent.Call{Arguments: []byte(`{}`)}); err == nil {
		t.Error("a call without an end has one")
	}
	for _, secret := range []string{"key-of-the-endpoint", "another-secret", "query-secret"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log shows %s: %s", secret, log)
		}
	}
}

// An endpoint that is not there yet is connected to when it is.
func TestEndpointLater(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	s, log := started(t, mcptools.Server{Name: "later", URL: "http://" + addr})
	soon(t, "it is told of", func() bool { return strings.Contains(log.String(), "server=later") })
	server := served(nil)
	web := &httptest.Server{Config: &http.Server{Handler: mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil)}}
	if web.Listener, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	web.Start()
	t.Cleanup(func() { closed(server, web) })
	soon(t, "its tools are there", func() bool { return find(s, "later__say") != nil })
}

func TestNoServers(t *testing.T) {
	s, _ := started(t)
	if set, err := s.Source(agent.Spec{}, agent.Deps{}); set != nil || err != nil {
		t.Error(set, err)
	}
}
