package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/gatemesh/gatemesh/agent"
)

// confinedName is what the gateway's own binary is called when it is to confine itself and become another program.
const confinedName = "gatemesh-confined"

// leastABI is the first Landlock that knows networks (Linux 6.7).
const leastABI = 4

// Available reports why nothing can be confined here; nil: it can.
func Available() error {
	abi, err := landlocksys.LandlockGetABIVersion()
	switch {
	case err != nil:
		return fmt.Errorf("this kernel has no Landlock, or it is switched off (%w): Linux 6.7 or later with lsm=landlock has it; else set sandbox.mode to off, or take exec from the agent's tools", err)
	case abi < leastABI:
		return fmt.Errorf("this kernel's Landlock is too old (ABI %d): Linux 6.7 or later has what is needed; else set sandbox.mode to off, or take exec from the agent's tools", abi)
	}
	return nil
}

// confinement is what a confined program may have, from the gateway to its child.
type confinement struct {
	Read    []string `json:"read"`
	Write   []string `json:"write"`
	Program string   `json:"program"`
	Network bool     `json:"network,omitempty"`
}

// systemPaths are what programs need to run at all. None of them has secrets: /proc shows the environment of other processes of this user, and
// /etc as a whole may have keys.
var systemPaths = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix/store",
	"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group",
	"/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/ca-certificates", "/etc/hosts", "/etc/resolv.conf",
}

var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// confine makes a command that has not started one that confines itself first. The returned file says why it could not, and ends without
// a word when the program runs.
func confine(cmd *exec.Cmd, workspace string, x agent.ExecSpec, temp string) (*os.File, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := confinement{Read: systemPaths, Write: []string{temp}, Program: cmd.Path, Network: x.Network}
	switch x.Access {
	case "", agent.AccessReadWrite:
		c.Write = append(c.Write, workspace)
	case agent.AccessRead:
		c.Read = append(c.Read, workspace)
	case agent.AccessNone:
		cmd.Dir = temp
	default:
		return nil, fmt.Errorf("workspaceAccess %q is not known", x.Access)
	}
	order, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = []*os.File{w}
	cmd.Args = append([]string{confinedName, string(order), cmd.Args[0]}, cmd.Args[1:]...)
	cmd.Path = self
	return r, nil
}

// Confined becomes the confined program if this process was started for that, and does not return then; when it cannot, it returns true: the process has
// nothing else to do and ends with status 126. Else it returns false at once. main calls it first.
func Confined() bool {
	if len(os.Args) < 3 || os.Args[0] != confinedName {
		return false
	}
	const report = 3
	syscall.CloseOnExec(report)
	err := become(os.Args[1], os.Args[2:])
	_, _ = os.NewFile(report, "report").WriteString(err.Error())
	return true
}

func become(order string, args []string) error {
	var c confinement
	if err := json.Unmarshal([]byte(order), &c); err != nil {
		return err
	}
	abi, err := landlocksys.LandlockGetABIVersion()
	if err != nil {
		return err
	}
	var rules landlock.Config
	switch {
	case abi >= 6:
		rules = landlock.V6 // also no signals to, and no abstract sockets of, processes outside
	case abi == 5:
		rules = landlock.V5
	case abi == leastABI:
		rules = landlock.V4
	default:
		return errors.New("this kernel's Landlock is too old")
	}
	list := []landlock.Rule{landlock.RWFiles(devices...).IgnoreIfMissing()}
	for _, p := range c.Read {
		switch st, err := os.Stat(p); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return err
		case st.IsDir():
			list = append(list, landlock.RODirs(p))
		default:
			list = append(list, landlock.ROFiles(p))
		}
	}
	for _, p := range c.Write {
		list = append(list, landlock.RWDirs(p).WithRefer())
	}
	restrict := rules.Restrict
	if c.Network {
		restrict = rules.RestrictPaths
	}
	if err := restrict(list...); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", filepath.Base(c.Program), syscall.Exec(c.Program, args, os.Environ())) //nolint:gosec // to run what it is told is what it is for
}

// group makes a command the leader of a process group, and has the whole group killed at its end.
func group(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
