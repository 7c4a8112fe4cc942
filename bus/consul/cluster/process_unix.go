//go:build unix && !linux

package cluster

import (
	"os/exec"
	"syscall"
)

// dieWithParent keeps a terminal's Ctrl-C away from the child. There is no death
// signal here: a parent killed with -9 leaves its servers running.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
