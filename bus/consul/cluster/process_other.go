//go:build !unix

package cluster

import (
	"errors"
	"os/exec"
)

func dieWithParent(*exec.Cmd) {}

func (p *process) pause() error     { return errors.ErrUnsupported }
func (p *process) resume() error    { return nil }
func (p *process) terminate() error { return p.cmd.Process.Kill() }
