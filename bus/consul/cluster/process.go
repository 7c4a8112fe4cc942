package cluster

import (
	"os/exec"
	"runtime"
	"time"
)

// process is one running server.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed by the goroutine of launch once the process has ended
	err  error         // how it ended; read after done
}

// launch starts cmd so that it dies with this process where the system can do that.
//
// The kernel sends the death signal when the thread that started the child ends,
// not when the process does: hence the goroutine that keeps its thread until the
// child is gone.
func launch(cmd *exec.Cmd) (*process, error) {
	dieWithParent(cmd)
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// ended waits for the process to end, at most that long.
func (p *process) ended(within time.Duration) bool {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-p.done:
		return true
	case <-t.C:
		return false
	}
}
