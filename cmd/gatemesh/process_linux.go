package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// dieWithParent has the kernel end the child when this process ends, however it ends, and
// keeps a terminal's Ctrl-C away from it: the demo stops its children itself, in order.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// cpuTime is the processor time that processes have used so far (proc(5)), in steps of 10 ms; what is gone counts nothing.
func cpuTime(pids ...int) time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs on Linux
	var sum time.Duration
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // a name may hold anything
		for _, f := range fields[min(11, len(fields)):min(13, len(fields))] {
			n, _ := strconv.Atoi(string(f)) // the kernel wrote it
			sum += time.Duration(n) * tick
		}
	}
	return sum
}

// withChildren is a process and those that its threads started.
func withChildren(pid int) []int {
	all := []int{pid}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // none: it is gone
	for _, t := range tasks {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, c := range bytes.Fields(children) {
			if n, err := strconv.Atoi(string(c)); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}
