package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/gatemesh/gatemesh/bus"
)

// command runs this test binary in another role.
func command(t *testing.T, role, path string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+role, childPath+"="+path)
	return cmd
}

// checkFile has bbolt look through the whole file.
func checkFile(t *testing.T, s *Store) {
	t.Helper()
	err := s.db.View(func(tx *bolt.Tx) error {
		var errs []error
		for err := range tx.Check() {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Errorf("the file is damaged: %v", err)
	}
}

const crashWriters = 4

// commitForever commits from several goroutines and prints the number of each
// transaction once it was answered.
func commitForever(path string) error {
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	ctx := context.Background()
	id, err := s.NewSession(ctx, bus.SessionOptions{TTL: time.Hour})
	if err != nil {
		return err
	}
	if _, err := s.Txn(ctx, []bus.Op{{Verb: bus.OpLock, Key: "owner", Session: id}}); err != nil {
		return err
	}
	var out sync.Mutex
	failed := make(chan error, crashWriters)
	for w := range crashWriters {
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				value := bytes.Repeat([]byte(name), 20)
				_, err := s.Txn(ctx, []bus.Op{
					{Verb: bus.OpSet, Key: "a/" + name, Value: value},
					{Verb: bus.OpSet, Key: "b/" + name, Value: value},
					{Verb: bus.OpCheckSession, Key: "owner", Session: id},
				})
				if err != nil {
					failed <- err
					return
				}
				out.Lock()
				fmt.Println(name)
				out.Unlock()
			}
		}()
	}
	return <-failed
}

func TestKillMinusNine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.db")
	acknowledged := make(map[string]bool)
	for round, enough := range []int{1, 40, 150} {
		cmd := command(t, "commit", path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, n := bufio.NewReader(out), 0
		for {
			line, err := lines.ReadString('\n')
			if err == io.EOF {
				break // what is left of a torn line was not acknowledged
			}
			if err != nil {
				t.Fatal(err)
			}
			acknowledged[strings.TrimSuffix(line, "\n")] = true
			if n++; n == enough {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // "signal: killed"
		if n < enough {
			t.Fatalf("the child ended by itself after %d transactions", n)
		}

		s, err := Open(path, Options{})
		if err != nil {
			t.Fatalf("round %d: open after kill -9: %v", round, err)
		}
		checkFile(t, s)
		pairs, err := s.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string][]byte, len(pairs))
		for _, p := range pairs {
			values[p.Key] = p.Value
		}
		for name := range acknowledged {
			if want := bytes.Repeat([]byte(name), 20); !bytes.Equal(values["a/"+name], want) {
				t.Errorf("round %d: acknowledged transaction %s is lost", round, name)
			}
		}
		for key := range values {
			switch {
			case key == "owner":
				t.Errorf("round %d: a dead process still holds its lock", round)
			case values["a/"+key[2:]] == nil || values["b/"+key[2:]] == nil:
				t.Errorf("round %d: half a transaction: only %s", round, key)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d transactions acknowledged", len(acknowledged))
}

func TestDiskFull(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux")
	}
	t.Run("no-space", func(t *testing.T) {
		cmd := command(t, "full-tmpfs", t.TempDir())
		// A mount of its own that vanishes with it.
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if os.Getuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, syscall.EPERM) || bytes.Contains(out, []byte("mount: ")) {
			t.Skipf("may not mount here: %v %s", err, out)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	t.Run("file-size", func(t *testing.T) {
		out, err := command(t, "full-filesize", filepath.Join(t.TempDir(), "mesh.db")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}

func fullDisk(dir string) error {
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ballast := filepath.Join(dir, "ballast")
	return full(filepath.Join(dir, "mesh.db"), syscall.ENOSPC, "free space in "+dir,
		func() error { return os.WriteFile(ballast, make([]byte, 6<<20), 0o600) },
		func() error { return os.Remove(ballast) })
}

func fullFileSize(path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		return err
	}
	return full(path, syscall.EFBIG, "ulimit -f",
		func() error {
			return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 2 << 20, Max: was.Max})
		},
		func() error { return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was) })
}

// full writes until there is no room, and on when there is again.
func full(path string, cause error, fix string, restrict, lift func() error) error {
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := restrict(); err != nil {
		return err
	}
	write := func(i int) error {
		_, err := s.Txn(ctx, []bus.Op{
			{Verb: bus.OpSet, Key: fmt.Sprintf("k/%03d/large", i), Value: make([]byte, 200<<10)},
			{Verb: bus.OpSet, Key: fmt.Sprintf("k/%03d/small", i), Value: []byte("x")},
		})
		return err
	}
	check := func(n int) error {
		keys, err := s.Keys(ctx, "k/", "")
		if err != nil {
			return err
		}
		if len(keys) != 2*n {
			return fmt.Errorf("%d keys, want %d", len(keys), 2*n)
		}
		return nil
	}
	n := 0
	for err = write(n); err == nil && n < 100; err = write(n) {
		n++
	}
	if !errors.Is(err, bus.ErrUnavailable) || !errors.Is(err, cause) || !strings.Contains(err.Error(), fix) {
		return fmt.Errorf("write %d: %v; want ErrUnavailable from %q with the fix %q", n, err, cause, fix)
	}
	for range 3 { // it does not get worse
		if err := write(n); !errors.Is(err, cause) {
			return fmt.Errorf("another write: %v", err)
		}
		if err := check(n); err != nil {
			return fmt.Errorf("while full: %w", err)
		}
	}
	if err := lift(); err != nil {
		return err
	}
	if err := write(n); err != nil {
		return fmt.Errorf("write with room again: %w", err)
	}
	n++
	if err := check(n); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = Open(path, Options{}); err != nil {
		return err
	}
	if err := check(n); err != nil {
		return fmt.Errorf("reopened: %w", err)
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		var errs []error
		for err := range tx.Check() {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, s.Close())
}
