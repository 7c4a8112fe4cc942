//go:build !linux

package main

import (
	"os/exec"
	"time"
)

// dieWithParent does nothing here: there is no death signal, so a demo killed with -9
// leaves its gateways running.
func dieWithParent(*exec.Cmd) {}

// cpuTime and withChildren are known on Linux only.
func cpuTime(...int) time.Duration { return 0 }

func withChildren(pid int) []int { return []int{pid} }
