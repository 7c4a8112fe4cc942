//go:build !linux

package main

import "os/exec"

// dieWithParent does nothing here: there is no death signal, so a demo killed with -9
// leaves its gateways running.
func dieWithParent(*exec.Cmd) {}
