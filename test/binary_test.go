package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var (
	buildOnce sync.Once
	built     string
	errBuild  error
)

// builtBinary builds gatemesh once for all tests, as `make build` does.
func builtBinary(t *testing.T) string {
	t.Helper()
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "gatemesh-test-")
		if err != nil {
			errBuild = err
			return
		}
		built = filepath.Join(dir, "gatemesh")
		cmd := exec.Command("go", "build", "-o", built, "../cmd/gatemesh")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		errBuild = cmd.Run()
	})
	if errBuild != nil {
		t.Fatal(errBuild)
	}
	return built
}

func TestMain(m *testing.M) {
	if name := os.Getenv(soakNodeEnv); name != "" {
		os.Exit(soakNode(name, os.Getenv(soakStoreEnv)))
	}
	if name := os.Getenv(failoverNodeEnv); name != "" {
		os.Exit(runFailoverNode(name, os.Getenv(failoverStoreEnv)))
	}
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}
