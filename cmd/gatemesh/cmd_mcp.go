package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/gateway"
	"github.com/gatemesh/gatemesh/gateway/a2aserver"
	"github.com/gatemesh/gatemesh/gateway/mcpserver"
	"github.com/gatemesh/gatemesh/gateway/openclawgw"
)

// mcpAt makes the gateway's own MCP server.
func mcpAt(version string) func(http.Handler) http.Handler {
	return func(api http.Handler) http.Handler { return mcpserver.Handler(version, api) }
}

// a2aAt makes the gateway's own A2A server.
func a2aAt(version string) func(http.Handler) http.Handler {
	return func(api http.Handler) http.Handler { return a2aserver.Handler(version, api) }
}

// openClawAt makes the gateway's server for OpenClaw's own clients.
func openClawAt(version string) func(http.Handler) http.Handler {
	return func(api http.Handler) http.Handler { return openclawgw.Handler(version, api) }
}

func (a *app) mcpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "mcp", Short: "Serve the mesh as MCP tools on standard input and output (consul-registry)",
		Long: `Serve the mesh as MCP tools on standard input and output: the server consul-registry, for programs that start their MCP servers.
It is a client of the gateway at --addr, with --token (GATEMESH_TOKEN): best one that speaks for the agent (gateway.auth.tokens, agent),
because MCP passes no identity of its caller. The gateway itself serves the same over HTTP at /mcp.`,
		Args: cobra.NoArgs,
		RunE: body(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.close()
			s := mcpserver.New(buildVersion().Version, c.raw)
			err = s.Run(ctx, &mcp.IOTransport{Reader: io.NopCloser(a.in), Writer: nopCloser{a.out}})
			if err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "EOF") {
				return failf(exitFailed, "mcp: %w", err)
			}
			return nil
		}),
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// raw makes one request and returns the answer as it is. An error is one of the way there.
func (c *client) raw(ctx context.Context, method, path string, in []byte) (int, []byte, error) {
	u := *c.base
	p, query, _ := strings.Cut(path, "?")
	u.Path, u.RawQuery = strings.TrimSuffix(u.Path, "/")+p, query
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(in))
	if err != nil {
		return 0, nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 2*gateway.MaxBodyBytes))
	if err != nil {
		return 0, nil, fmt.Errorf("read the answer: %w", err)
	}
	return resp.StatusCode, b, nil
}
