package cluster

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// A Cable lies between a client and servers, on a port of its own, and can be cut: it is for demos of faults and for tests. It carries TCP and
// knows nothing of what passes.
type Cable struct {
	listener net.Listener
	servers  []string // host:port

	life context.Context // ends with Close
	end  context.CancelFunc

	mu    sync.Mutex
	state CableState
	delay time.Duration
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

// A CableState is what a cable does.
type CableState string

// What a cable does.
const (
	CableWhole   CableState = "whole"
	CableRefuses CableState = "refuses" // every connection is closed at once
	CableHangs   CableState = "hangs"   // nothing comes through, and nobody says so
	CableResets  CableState = "resets"  // connections end in the middle
)

// NewCable lays a cable to the first of the servers (addresses as [Cluster.Addr] gives them, or host:port) that can be reached when a client connects.
// Close ends it.
func NewCable(servers ...string) (*Cable, error) {
	l, err := net.Listen("tcp", loopback+":0")
	if err != nil {
		return nil, err
	}
	c := &Cable{listener: l, state: CableWhole, conns: map[net.Conn]bool{}}
	c.life, c.end = context.WithCancel(context.Background())
	for _, s := range servers {
		c.servers = append(c.servers, strings.TrimPrefix(s, "http://"))
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.wg.Add(1)
			go func() {
				defer c.wg.Done()
				c.carry(conn)
			}()
		}
	}()
	return c, nil
}

// Addr is where clients connect, as http://host:port.
func (c *Cable) Addr() string { return "http://" + c.listener.Addr().String() }

// Close ends the cable and all its connections, and waits for them.
func (c *Cable) Close() error {
	err := c.listener.Close()
	c.end()
	c.Set(CableRefuses)
	c.wg.Wait()
	return err
}

// Set changes what the cable does. Connections that stand are cut by every state but whole and hangs; after
// hangs, whole cuts them too: what was swallowed will not come.
func (c *Cable) Set(state CableState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mended := state == CableWhole && c.state == CableHangs
	c.state = state
	for conn := range c.conns {
		if tcp, ok := conn.(*net.TCPConn); ok && state == CableResets {
			_ = tcp.SetLinger(0)
		}
		if mended || state == CableRefuses || state == CableResets {
			_ = conn.Close()
		}
	}
}

// Delay holds up what passes, in each direction, from now on.
func (c *Cable) Delay(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = d
}

func (c *Cable) now() (CableState, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.delay
}

func (c *Cable) keep(conn net.Conn, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if on {
		c.conns[conn] = true
	} else {
		delete(c.conns, conn)
	}
}

func (c *Cable) carry(in net.Conn) {
	defer in.Close()
	if s, _ := c.now(); s == CableRefuses || s == CableResets {
		return
	}
	var out net.Conn
	for _, s := range c.servers {
		var err error
		if out, err = (&net.Dialer{Timeout: time.Second}).DialContext(c.life, "tcp", s); err == nil {
			break
		}
	}
	if out == nil {
		return
	}
	defer out.Close()
	c.keep(in, true)
	c.keep(out, true)
	defer c.keep(in, false)
	defer c.keep(out, false)
	done := make(chan struct{}, 2)
	pump := func(to, from net.Conn) {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				state, delay := c.now()
				if state == CableHangs {
					_, _ = io.Copy(io.Discard, from) // swallowed until the connection ends
					return
				}
				if delay > 0 {
					select { // what comes meanwhile waits behind it, as on a slow line
					case <-time.After(delay):
					case <-c.life.Done():
					}
				}
				if _, werr := to.Write(buf[:n]); werr != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	go pump(out, in)
	go pump(in, out)
	<-done
	_ = in.Close()
	_ = out.Close()
	<-done
}
