package infra

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
)

func init() {
	dieWithParent = func(cmd *exec.Cmd) {
		// SIGKILL when the thread that started it ends: with the test binary at
		// the latest. Go keeps its threads as long as no goroutine locks one.
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	unmountBelow = func(dir string) {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return
		}
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
				_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
			}
		}
	}
}
