package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
)

// soakProcess is one gateway, started again and again.
type soakProcess struct {
	s     *soak
	n     int
	cable *cluster.Cable
	// skew is what the clock of the next process is wrong by.
	skew time.Duration

	mu    sync.Mutex
	cmd   *exec.Cmd
	in    io.WriteCloser
	ready chan struct{}
	gone  chan struct{}
}

func (p *soakProcess) start() {
	s := p.s
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), soakNodeEnv+"="+fmt.Sprintf("node-%d", p.n), soakStoreEnv+"="+p.cable.Addr(), soakClockEnv+"="+p.skew.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.say("node %d is process %d", p.n, cmd.Process.Pid)
	ready, gone := make(chan struct{}), make(chan struct{})
	p.mu.Lock()
	p.cmd, p.in, p.ready, p.gone = cmd, in, ready, gone
	p.mu.Unlock()
	go func() {
		defer close(gone)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var l soakLine
			if json.Unmarshal(lines.Bytes(), &l) != nil {
				continue // cut short by a kill
			}
			if l.What == "ready" {
				close(ready)
				continue
			}
			s.hear(p.n, l)
		}
		_ = cmd.Wait()
	}()
}

// end ends a process: with kill -9, or in order.
func (p *soakProcess) end(sig syscall.Signal) {
	p.mu.Lock()
	cmd, gone := p.cmd, p.gone
	p.mu.Unlock()
	_ = cmd.Process.Signal(syscall.SIGCONT)
	_ = cmd.Process.Signal(sig)
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-gone
	}
}

func (p *soakProcess) isReady(d time.Duration) bool {
	p.mu.Lock()
	ready, gone := p.ready, p.gone
	p.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ready:
		return true
	case <-gone:
	case <-t.C:
	}
	return false
}

// revive starts a process that is not running, and waits until it is ready.
func (p *soakProcess) revive() {
	for try := 0; try < 5; try++ {
		p.start()
		if p.isReady(45 * time.Second) {
			return
		}
		p.end(syscall.SIGKILL)
	}
	p.s.t.Errorf("node %d does not start", p.n)
}
