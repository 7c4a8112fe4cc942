package test

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A cable lies between one gateway and the Consul servers, and can be cut.
type cable struct {
	listener net.Listener
	servers  []string // host:port

	mu    sync.Mutex
	state string
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

// What a cable does.
const (
	cableWhole   = "whole"
	cableRefuses = "refuses" // every connection is closed at once
	cableHangs   = "hangs"   // nothing comes through, and nobody says so
	cableResets  = "resets"  // connections end in the middle
)

func newCable(t *testing.T, servers []string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{listener: l, servers: servers, state: cableWhole, conns: map[net.Conn]bool{}}
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
	t.Cleanup(func() {
		_ = l.Close()
		c.set(cableRefuses)
		c.wg.Wait()
	})
	return c
}

func (c *cable) addr() string { return "http://" + c.listener.Addr().String() }

// set changes what the cable does; connections that stand are cut by every state but whole and hangs.
func (c *cable) set(state string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mended := state == cableWhole && c.state == cableHangs // what was swallowed will not come
	c.state = state
	for conn := range c.conns {
		if tcp, ok := conn.(*net.TCPConn); ok && state == cableResets {
			_ = tcp.SetLinger(0)
		}
		if mended || state == cableRefuses || state == cableResets {
			_ = conn.Close()
		}
	}
}

func (c *cable) now() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *cable) keep(conn net.Conn, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if on {
		c.conns[conn] = true
	} else {
		delete(c.conns, conn)
	}
}

func (c *cable) carry(in net.Conn) {
	defer in.Close()
	if s := c.now(); s == cableRefuses || s == cableResets {
		return
	}
	var out net.Conn
	for _, s := range c.servers {
		var err error
		if out, err = net.DialTimeout("tcp", s, time.Second); err == nil {
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
				if c.now() == cableHangs {
					_, _ = io.Copy(io.Discard, from) // swallowed until the connection ends
					return
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
