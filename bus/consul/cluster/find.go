package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// BinEnv names the environment variable that overrides where the Consul binary is.
const BinEnv = "GATEMESH_CONSUL_BIN"

// ErrNoBinary: no Consul binary was found.
var ErrNoBinary = errors.New("no consul binary")

// Find returns the Consul binary: $GATEMESH_CONSUL_BIN, else "consul" on PATH, else
// bin/tools/consul in the working directory or above it, else tools/consul beside
// the running executable. Its error is [ErrNoBinary] and names the remedy.
func Find() (string, error) {
	if path := os.Getenv(BinEnv); path != "" {
		if !executable(path) {
			return "", fmt.Errorf("%w: %s=%s is not an executable file (unset it, or run: make consul)", ErrNoBinary, BinEnv, path)
		}
		return path, nil
	}
	if path, err := exec.LookPath("consul"); err == nil {
		return path, nil
	}
	if dir, err := os.Getwd(); err == nil {
		for {
			if path := filepath.Join(dir, "bin", "tools", "consul"); executable(path) {
				return path, nil
			}
			up := filepath.Dir(dir)
			if up == dir {
				break
			}
			dir = up
		}
	}
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		if path := filepath.Join(filepath.Dir(exe), "tools", "consul"); executable(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: not on PATH and not at bin/tools/consul (run: make consul, or set %s)", ErrNoBinary, BinEnv)
}

func executable(path string) bool {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	return runtime.GOOS == "windows" || info.Mode()&0o111 != 0
}
