package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/hashicorp/go-hclog"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/consul"
	"github.com/gatemesh/gatemesh/bus/local"
	"github.com/gatemesh/gatemesh/gateway"
)

// openStore opens the store that the configuration names. Consul is not connected to here:
// that it cannot be reached is the first call's error.
func openStore(cfg *gateway.Config, log hclog.Logger) (bus.Store, error) {
	m := cfg.Mesh
	if m.Store == "local" {
		s, err := openLocal(m.DataDir, log)
		if err != nil {
			return nil, fmt.Errorf("open the local store (mesh.dataDir): %w", err)
		}
		return s, nil
	}
	s, err := openConsul(cfg, slog.New(hclogHandler{log}))
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("consul settings (mesh.consul, CONSUL_*): %w", err)}
	}
	return s, nil
}

func openConsul(cfg *gateway.Config, log *slog.Logger) (*consul.Store, error) {
	c := cfg.Mesh.Consul
	return consul.New(consul.Options{Address: c.Address, Token: c.Token, TokenFile: c.TokenFile, Datacenter: c.Datacenter, Log: log})
}

// openLocal opens the embedded store below dir.
func openLocal(dir string, log hclog.Logger) (*local.Store, error) {
	return local.Open(filepath.Join(dir, "mesh.db"), local.Options{Log: slog.New(hclogHandler{log})})
}

// hclogHandler lets a slog.Logger write to our log.
type hclogHandler struct{ log hclog.Logger }

func (h hclogHandler) Enabled(_ context.Context, l slog.Level) bool {
	return hclogLevel(l) >= h.log.GetLevel()
}

func (h hclogHandler) Handle(_ context.Context, r slog.Record) error {
	args := make([]any, 0, 2*r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		args = append(args, a.Key, a.Value.Any())
		return true
	})
	h.log.Log(hclogLevel(r.Level), r.Message, args...)
	return nil
}

func (h hclogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	args := make([]any, 0, 2*len(attrs))
	for _, a := range attrs {
		args = append(args, a.Key, a.Value.Any())
	}
	return hclogHandler{h.log.With(args...)}
}

func (h hclogHandler) WithGroup(name string) slog.Handler { return hclogHandler{h.log.Named(name)} }

func hclogLevel(l slog.Level) hclog.Level {
	switch {
	case l < slog.LevelInfo:
		return hclog.Debug
	case l < slog.LevelWarn:
		return hclog.Info
	case l < slog.LevelError:
		return hclog.Warn
	}
	return hclog.Error
}
