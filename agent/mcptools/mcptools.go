// Package mcptools gives agents the tools of MCP servers, by the official SDK.
//
// A server is a program that is started here (its standard input and output are the connection), or an HTTP endpoint. One connection to each serves all agents of the
// gateway; it is kept, and made again with growing pauses when it ends. While there is none, its tools are not there, and the log says why. A tool is called
// <server>__<tool>. One that says of itself that it only reads, or that a second call does nothing more, may be called again when a message is handled again; every other one is called
// once ([agent.EffectOutside]). Texts of a server that hold what the configuration gave it as secret (environment, headers, what is behind ? in its URL) do not reach the log.
package mcptools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/hashicorp/go-hclog"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/gatemesh/gatemesh/agent"
)

// Bounds of what a server may bring.
const (
	defaultTimeout = 60 * time.Second
	maxTools       = 128
	maxSchema      = 16 << 10
	maxDescription = 1 << 10
	// keepAlive is how often a silent connection is asked whether it lives.
	keepAlive = 30 * time.Second
	// patience is how long a program may take to end when its input has ended.
	patience = 2 * time.Second
)

// Server is how to reach one. It has a Command or a URL.
type Server struct {
	Name string
	// Command is a program with Args, in Dir (empty: the gateway's). Of the gateway's environment it gets PATH, HOME and the locale, and Env.
	Command string
	Args    []string
	Env     map[string]string
	Dir     string
	// URL is a streamable HTTP endpoint, or with SSE one of the protocol of before. Headers go with each request.
	URL     string
	SSE     bool
	Headers map[string]string
	// Timeout bounds one call, and a connection's beginning; 0: 60 seconds.
	Timeout time.Duration
}

// Servers are the connections of one gateway.
type Servers struct {
	list []*server
	wg   sync.WaitGroup
	stop context.CancelFunc
	life context.Context
}

// New returns the connections to some servers; Start begins them. version is this program's.
func New(list []Server, version string, log hclog.Logger) *Servers {
	s := &Servers{}
	s.life, s.stop = context.WithCancel(context.Background())
	for _, one := range list {
		if one.Timeout == 0 {
			one.Timeout = defaultTimeout
		}
		s.list = append(s.list, &server{Server: one, version: version, log: log.Named("mcp")})
	}
	slices.SortFunc(s.list, func(a, b *server) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Start connects in the background, and returns at once.
func (s *Servers) Start() {
	for _, one := range s.list {
		s.wg.Go(func() { one.run(s.life) })
	}
}

// Stop ends all connections and the programs behind them, and waits for that: some seconds at most. It may be called again.
func (s *Servers) Stop() {
	s.stop()
	s.wg.Wait()
}

// Source is an [agent.ToolSource]: all agents have these tools, as far as their policies let them pass.
func (s *Servers) Source(agent.Spec, agent.Deps) (agent.Toolset, error) {
	if len(s.list) == 0 {
		return nil, nil //nolint:nilnil // no servers is no mistake
	}
	return s, nil
}

// Tools implements [agent.Toolset]: what can be called now.
func (s *Servers) Tools() []agent.Tool {
	var all []agent.Tool
	for _, one := range s.list {
		_, tools := one.now()
		all = append(all, tools...)
	}
	return all
}

// server is one connection.
type server struct {
	Server
	version string
	log     hclog.Logger

	mu      sync.Mutex
	session *mcp.ClientSession
	tools   []agent.Tool
}

func (s *server) now() (*mcp.ClientSession, []agent.Tool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session, s.tools
}

func (s *server) set(session *mcp.ClientSession, tools []agent.Tool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session, s.tools = session, tools
}

// run keeps the connection until ctx ends.
func (s *server) run(ctx context.Context) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.MaxElapsedTime = time.Second, time.Minute, 0
	retry.Reset()
	for {
		began := time.Now()
		err := s.once(ctx)
		s.set(nil, nil)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			retry.Reset()
		}
		d := retry.NextBackOff()
		s.log.Warn("an MCP server is not there, and neither are its tools: connecting again", "server", s.Name, "in", d.Round(time.Millisecond).String(), "error", s.clean(err))
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// once connects, and follows what the server has until the connection ends.
func (s *server) once(ctx context.Context) error {
	life, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	changed := make(chan struct{}, 1)
	client := mcp.NewClient(&mcp.Implementation{Name: "gatemesh", Version: s.version}, &mcp.ClientOptions{
		KeepAlive: keepAlive, Capabilities: &mcp.ClientCapabilities{},
		ToolListChangedHandler: func(context.Context, *mcp.ToolListChangedRequest) {
			select {
			case changed <- struct{}{}:
			default:
			}
		},
	})
	errs := &lastWords{}
	late := time.AfterFunc(s.Timeout, func() { cancel(fmt.Errorf("no connection within %s", s.Timeout)) })
	session, err := client.Connect(life, s.transport(errs), nil)
	if err != nil {
		late.Stop()
		return errs.behind(or(context.Cause(life), err))
	}
	defer func() { _ = session.Close() }()
	ended := make(chan error, 1)
	go func() { ended <- session.Wait() }()
	for {
		tools, err := s.list(life, session)
		late.Stop()
		if err != nil {
			return errs.behind(or(context.Cause(life), fmt.Errorf("list its tools: %w", err)))
		}
		s.set(session, tools)
		s.log.Info("an MCP server's tools are there", "server", s.Name, "tools", len(tools))
		select {
		case <-changed:
			late = time.AfterFunc(s.Timeout, func() { cancel(fmt.Errorf("its tools were not listed within %s", s.Timeout)) })
		case err := <-ended:
			return errs.behind(or(err, errors.New("it ended the connection")))
		case <-life.Done():
			return context.Cause(life)
		}
	}
}

func or(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func (s *server) transport(errs *lastWords) mcp.Transport {
	if s.Command != "" {
		cmd := exec.Command(s.Command, s.Args...)
		cmd.Dir, cmd.Stderr = s.Dir, errs
		for _, name := range []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"} {
			if value, ok := os.LookupEnv(name); ok {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
		}
		for name, value := range s.Env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		return &mcp.CommandTransport{Command: cmd, TerminateDuration: patience}
	}
	client := &http.Client{
		Transport: headers{s.Headers, http.DefaultTransport},
		// A redirect would take the headers elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if s.SSE {
		return &mcp.SSEClientTransport{Endpoint: s.URL, HTTPClient: client}
	}
	return &mcp.StreamableClientTransport{Endpoint: s.URL, HTTPClient: client}
}

// headers adds them to each request.
type headers struct {
	add  map[string]string
	next http.RoundTripper
}

func (h headers) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for name, value := range h.add {
		r.Header.Set(name, value)
	}
	return h.next.RoundTrip(r)
}

// notAName is what vendors of models do not take in a tool's name.
var notAName = regexp.MustCompile(`[^a-zA-Z0-9_-]`)

// list reads what the server has.
func (s *server) list(ctx context.Context, session *mcp.ClientSession) ([]agent.Tool, error) {
	var tools []agent.Tool
	for t, err := range session.Tools(ctx, nil) {
		if err != nil {
			return nil, err
		}
		schema, err := json.Marshal(t.InputSchema)
		if err != nil || len(schema) > maxSchema || len(tools) == maxTools {
			s.log.Warn("a tool of an MCP server is left out: its schema is too large, or there are too many", "server", s.Name, "tool", t.Name)
			continue
		}
		name := notAName.ReplaceAllString(s.Name+"__"+t.Name, "_")
		effect := agent.EffectOutside
		if a := t.Annotations; a != nil && (a.ReadOnlyHint || a.IdempotentHint) {
			effect = agent.EffectNone
		}
		tools = append(tools, agent.Tool{
			ToolDef: agent.ToolDef{Name: name[:min(len(name), 64)], Description: strings.ToValidUTF8(t.Description[:min(len(t.Description), maxDescription)], ""), Schema: schema},
			Effect:  effect, Timeout: s.Timeout,
			Run: func(ctx context.Context, c *agent.Call) (agent.ToolOutput, error) { return s.call(ctx, t.Name, c) },
		})
	}
	return tools, nil
}

// call calls a tool.
func (s *server) call(ctx context.Context, tool string, c *agent.Call) (agent.ToolOutput, error) {
	session, _ := s.now()
	if session == nil {
		return agent.Failed("not called: the MCP server %s is not there at the moment", s.Name), nil
	}
	res, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: c.Arguments})
	switch {
	case err != nil && ctx.Err() != nil:
		return agent.ToolOutput{}, err // the caller knows what that means
	case err != nil:
		return agent.ToolOutput{Text: "no result, and it is not known whether it was done: " + s.clean(err), Failed: true}, nil
	}
	return agent.ToolOutput{Text: textOf(res), Failed: res.IsError}, nil
}

// textOf is a result as a model reads it.
func textOf(res *mcp.CallToolResult) string {
	var parts []string
	for _, c := range res.Content {
		switch c := c.(type) {
		case *mcp.TextContent:
			parts = append(parts, c.Text)
		case *mcp.EmbeddedResource:
			if c.Resource != nil && c.Resource.Text != "" {
				parts = append(parts, c.Resource.Text)
				continue
			}
			parts = append(parts, "(a resource that is no text)")
		case *mcp.ResourceLink:
			parts = append(parts, c.Name+": "+c.URI)
		default:
			parts = append(parts, "(something that is no text)")
		}
	}
	if len(parts) == 0 && res.StructuredContent != nil {
		if raw, err := json.Marshal(res.StructuredContent); err == nil {
			parts = append(parts, string(raw))
		}
	}
	return strings.Join(parts, "\n")
}

// clean is an error in one line, without what was given to the server as secret.
func (s *server) clean(err error) string {
	text := err.Error()
	secrets := make([]string, 0, len(s.Env)+len(s.Headers)+2)
	for _, m := range []map[string]string{s.Env, s.Headers} {
		for _, value := range m {
			_, bare, _ := strings.Cut(value, " ") // "Bearer ..."
			secrets = append(secrets, value, bare)
		}
	}
	if u, err := url.Parse(s.URL); err == nil {
		secrets = append(secrets, u.RawQuery)
		if u.User != nil {
			secrets = append(secrets, u.User.String())
		}
	}
	for _, secret := range secrets {
		if len(secret) >= 4 {
			text = strings.ReplaceAll(text, secret, "(not shown)")
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	return strings.ToValidUTF8(text[:min(len(text), 500)], "")
}

// lastWords keeps the end of what a program writes to its standard error.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

// Write implements io.Writer.
func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if over := len(l.text) - 400; over > 0 {
		l.text = append(l.text[:0], l.text[over:]...)
	}
	return len(p), nil
}

// behind adds them to an error.
func (l *lastWords) behind(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.text) == 0 {
		return err
	}
	return fmt.Errorf("%w; its last words: %s", err, l.text)
}
