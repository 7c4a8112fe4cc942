package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	nodes    = 3
	loopback = "127.0.0.1"
	// nodeEnv holds a node's settings; a process that has it is a server.
	nodeEnv = "GATEMESH_NATS_NODE"
	// startTimeout bounds the start of all; one to three seconds is usual.
	startTimeout = 60 * time.Second
	pollEvery    = 50 * time.Millisecond
	// stopTimeout is how long a server may take to end before it is killed.
	stopTimeout = 5 * time.Second
)

// node is what one server is told.
type node struct {
	Name   string `json:"name"`
	Dir    string `json:"dir"`
	Synced bool   `json:"synced"`
	// Client and Cluster are its ports, Routes those of all.
	Client  int   `json:"client"`
	Cluster int   `json:"cluster"`
	Routes  []int `json:"routes"`
}

// runNode is one server, until in ends: it cannot outlive the process that started it.
func runNode(settings string, in io.Reader) error {
	var n node
	if err := json.Unmarshal([]byte(settings), &n); err != nil {
		return err
	}
	o := &server.Options{
		ServerName: n.Name, Host: loopback, Port: n.Client, DontListen: false, NoSigs: true, LogFile: filepath.Join(n.Dir, n.Name+".log"),
		JetStream: true, StoreDir: filepath.Join(n.Dir, n.Name), SyncAlways: n.Synced,
		Cluster: server.ClusterOpts{Name: "bench", Host: loopback, Port: n.Cluster},
	}
	for _, port := range n.Routes {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprintf("%s:%d", loopback, port)})
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	_, err = io.Copy(io.Discard, in)
	s.Shutdown()
	s.WaitForShutdown()
	return err
}

// cluster is the running servers.
type cluster struct {
	urls  []string
	procs []*exec.Cmd
	stdin []io.Closer
}

// startCluster starts the servers and returns when they have elected who leads JetStream.
func startCluster(ctx context.Context, dir string, synced bool) (_ *cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ports, err := freePorts(ctx, 2*nodes)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &cluster{}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	for i := range nodes {
		settings, err := json.Marshal(node{Name: fmt.Sprintf("nats-%d", i+1), Dir: dir, Synced: synced, Client: ports[i], Cluster: ports[nodes+i], Routes: ports[nodes:]})
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), nodeEnv+"="+string(settings))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		c.procs, c.stdin = append(c.procs, cmd), append(c.stdin, in)
		c.urls = append(c.urls, fmt.Sprintf("nats://%s:%d", loopback, ports[i]))
	}
	return c, c.await(ctx)
}

// await asks until a stream on all servers can be made.
func (c *cluster) await(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var last error
	for {
		if last = probe(ctx, c.urls[0]); last == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the servers are not ready: %w", errors.Join(last, ctx.Err()))
		}
	}
}

func probe(ctx context.Context, at string) error {
	nc, err := nats.Connect(at, nats.NoReconnect())
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "PROBE", Subjects: []string{"probe"}, Replicas: nodes}); err != nil {
		return err
	}
	return js.DeleteStream(ctx, "PROBE")
}

func (c *cluster) stop() {
	for _, in := range c.stdin {
		_ = in.Close()
	}
	for _, p := range c.procs {
		kill := time.AfterFunc(stopTimeout, func() { _ = p.Process.Kill() })
		_ = p.Wait()
		kill.Stop()
	}
}

// freePorts finds ports that are free now: all are held until the last is found.
func freePorts(ctx context.Context, n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", loopback+":0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
