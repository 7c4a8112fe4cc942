package local

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// childEnv names what this binary does instead of running tests, and childPath
// the store it does it to.
const (
	childEnv  = "GATEMESH_LOCAL_TEST_CHILD"
	childPath = "GATEMESH_LOCAL_TEST_PATH"
)

func TestMain(m *testing.M) {
	role := os.Getenv(childEnv)
	if role == "" {
		goleak.VerifyTestMain(m)
		return
	}
	child, ok := map[string]func(path string) error{
		"commit":        commitForever,
		"full-tmpfs":    fullDisk,
		"full-filesize": fullFileSize,
	}[role]
	if !ok {
		panic("unknown child " + role)
	}
	if err := child(os.Getenv(childPath)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
