package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// muteAttempts bounds the restarts until one fails as it should.
	muteAttempts = 3
	// muteTimeout is how long one of them is waited for: memberlist gives up the silent one after 10 s.
	muteTimeout = 9 * time.Second
	// muteSays is in the log of a server whose first synchronisation failed.
	muteSays = "failed to sync remote state"
)

// RestartMute is [Cluster.Restart], but for 15 to 30 s from then on the server's agent tells the catalog nothing of its checks by itself (only
// what is registered, in the request that does so), unless the servers elect a leader meanwhile. This happens by chance in one restart of
// twenty or so: Raft's leader speaks to the server before it has joined the gossip, and the agent's first synchronisation fails. Here the
// server has forgotten the others, and the first one that it asks accepts and says nothing.
func (c *Cluster) RestartMute(ctx context.Context, i int) error {
	for range muteAttempts {
		err := c.restartMute(ctx, i)
		if !errors.Is(err, errSpoke) {
			return err
		}
	}
	return fmt.Errorf("restart consul: %w", errSpoke)
}

var errSpoke = errors.New("its first synchronisation did not fail")

func (c *Cluster) restartMute(ctx context.Context, i int) error {
	silent, err := net.Listen("tcp", loopback+":0")
	if err != nil {
		return err
	}
	defer func() { _ = silent.Close() }() // what was not accepted ends with it
	if err := c.Kill(i); err != nil {
		return err
	}
	dir := c.path(i, "")
	if c.opt.DataDirs != nil {
		dir = c.opt.DataDirs[i]
	}
	if err := os.RemoveAll(filepath.Join(dir, "serf")); err != nil {
		return err
	}
	if err := c.configure(i, silent.Addr().String()); err != nil {
		return err
	}
	defer func() { _ = c.configure(i) }()
	before := len(c.Log(i))
	c.mu.Lock()
	err = c.restartLocked(i)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	mute, cancel := context.WithTimeout(ctx, muteTimeout)
	err = c.await(mute, i, func(context.Context, int) error {
		if !strings.Contains(c.Log(i)[before:], muteSays) {
			return errSpoke
		}
		return nil
	})
	cancel()
	if err != nil {
		return err
	}
	_ = silent.Close() // on to the next one to join
	ctx, cancel = context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return c.await(ctx, i, c.writes)
}
