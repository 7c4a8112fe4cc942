package main

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel end the child when this process ends, however it ends, and
// keeps a terminal's Ctrl-C away from it: the demo stops its children itself, in order.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
