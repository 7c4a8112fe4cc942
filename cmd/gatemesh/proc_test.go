package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A proc is a gatemesh process that runs beside the test. Its two outputs are kept line by
// line.
type proc struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{}

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed and replaced with every line
}

// launch starts the binary; it is killed at the end of the test if it still runs.
func launch(t testing.TB, env []string, args ...string) *proc {
	t.Helper()
	p := &proc{t: t, cmd: command(context.Background(), t, env, args...), done: make(chan struct{}), more: make(chan struct{})}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errOut, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	dieWithParent(p.cmd)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for _, r := range []io.Reader{out, errOut} {
		readers.Go(func() {
			s := bufio.NewScanner(r)
			s.Buffer(nil, 1<<20)
			for s.Scan() {
				p.mu.Lock()
				p.lines = append(p.lines, s.Text())
				close(p.more)
				p.more = make(chan struct{})
				p.mu.Unlock()
			}
		})
	}
	go func() {
		readers.Wait()
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("gatemesh %s:\n%s", strings.Join(args, " "), p.text())
		}
	})
	return p
}

func (p *proc) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// wait returns the first line, from the given one on, that holds all of parts, and the
// number of the one behind it.
func (p *proc) wait(from int, parts ...string) (string, int) {
	p.t.Helper()
	timeout := time.NewTimer(testTimeout)
	defer timeout.Stop()
	ended := p.done
	for {
		p.mu.Lock()
		more := p.more
		for ; from < len(p.lines); from++ {
			if containsAll(p.lines[from], parts) {
				line := p.lines[from]
				p.mu.Unlock()
				return line, from + 1
			}
		}
		p.mu.Unlock()
		if ended == nil {
			p.t.Fatalf("ended without a line with %q:\n%s", parts, p.text())
		}
		select {
		case <-more:
		case <-ended:
			ended = nil // look at what came last
		case <-timeout.C:
			p.t.Fatalf("no line with %q within %s:\n%s", parts, testTimeout, p.text())
		}
	}
}

func containsAll(s string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(s, part) {
			return false
		}
	}
	return true
}

func (p *proc) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.lines)
}

func (p *proc) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// end sends a signal and returns the exit status.
func (p *proc) end(s syscall.Signal) int {
	p.t.Helper()
	p.signal(s)
	return p.exit()
}

func (p *proc) exit() int {
	p.t.Helper()
	timeout := time.NewTimer(testTimeout)
	defer timeout.Stop()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-timeout.C:
		p.t.Fatalf("still running after %s:\n%s", testTimeout, p.text())
		return -1
	}
}

// until runs f again and again until it says yes.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	timeout := time.NewTimer(testTimeout)
	defer timeout.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-timeout.C:
			t.Fatalf("not within %s: %s", testTimeout, what)
		}
	}
}

func parse[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}
