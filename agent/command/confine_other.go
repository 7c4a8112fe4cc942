//go:build !linux

package command

import (
	"errors"
	"os"
	"os/exec"

	"github.com/gatemesh/gatemesh/agent"
)

// Available reports why nothing can be confined here.
func Available() error {
	return errors.New("programs are confined on Linux alone: set sandbox.mode to off, or take exec from the agent's tools")
}

func confine(*exec.Cmd, string, agent.ExecSpec, string) (*os.File, error) { return nil, Available() }

// Confined does nothing here.
func Confined() bool { return false }

func group(*exec.Cmd) {}
