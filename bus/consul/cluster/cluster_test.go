package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// helperEnv makes the test binary a process that starts a server and waits to be
// killed.
const helperEnv = "GATEMESH_TEST_CLUSTER_HELPER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperEnv); dir != "" {
		c, err := Start(context.Background(), Options{Dir: dir})
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(c.Addr(0), c.Pid(0))
		select {}
	}
	goleak.VerifyTestMain(m)
}

func put(t *testing.T, addr, key, value string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, addr+"/v1/kv/"+key, strings.NewReader(value))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("put %s: %s", key, resp.Status)
	}
}

func get(t *testing.T, addr, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

func client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
}

// eventually polls; it is for facts of other processes, which send no signal.
func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(within)
	defer limit.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func TestThreeServers(t *testing.T) {
	begin := time.Now()
	c := ForTest(t, 3)
	t.Logf("three servers ready in %s", time.Since(begin).Round(time.Millisecond))
	for i := range c.Servers() {
		put(t, c.Addr(i), fmt.Sprintf("k%d", i), "v")
	}

	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Pause(leader); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	next, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("leader %d paused, %d leads after %s", leader, next, time.Since(begin).Round(time.Millisecond))
	if next == leader {
		t.Fatalf("server %d leads while it is paused", leader)
	}
	put(t, c.Addr(next), "k", "v")
	if err := c.Resume(leader); err != nil {
		t.Fatal(err)
	}

	if err := c.Kill(next); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(next); err != nil {
		t.Fatalf("second kill: %v", err)
	}
	begin = time.Now()
	if third, err := c.Leader(t.Context()); err != nil || third == next {
		t.Fatalf("leader %d after the kill of %d: %v", third, next, err)
	}
	t.Logf("leader killed, another leads after %s", time.Since(begin).Round(time.Millisecond))
	if err := c.Restart(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if status, _ := get(t, c.Addr(next), "/v1/kv/k0?raw"); status != http.StatusOK {
		t.Fatalf("the restarted server answers %d", status)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("temporary directory after Stop: %v", err)
	}
	if err := c.Restart(t.Context(), 0); err == nil {
		t.Fatal("a server of a stopped cluster started")
	}
}

func TestStartsInParallelDoNotCollide(t *testing.T) {
	var all [3]*Cluster
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			c, err := Start(t.Context(), Options{Dev: i == 1, UI: i == 1})
			if err != nil {
				t.Error(err)
				return
			}
			all[i] = c
		})
	}
	wg.Wait()
	for i, c := range all {
		if c == nil {
			continue
		}
		defer c.Stop()
		put(t, c.Addr(0), "who", fmt.Sprint(i))
	}
	if t.Failed() {
		return
	}
	for i, c := range all {
		if _, got := get(t, c.Addr(0), "/v1/kv/who?raw"); got != fmt.Sprint(i) {
			t.Errorf("cluster %d holds the value of %s", i, got)
		}
	}
	if status, page := get(t, all[1].Addr(0), "/ui/"); status != http.StatusOK || !strings.Contains(page, "<html") {
		t.Errorf("the UI answers %d", status)
	}
}

func TestDirKeepsDataAndPorts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var said []string
	c, err := Start(t.Context(), Options{Dir: dir, Progress: func(s string) { said = append(said, s) }})
	if err != nil {
		t.Fatal(err)
	}
	addr := c.Addr(0)
	put(t, addr, "kept", "yes")
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if len(said) != 3 {
		t.Errorf("progress: %q", said)
	}

	c, err = Start(t.Context(), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	if c.Addr(0) != addr {
		t.Errorf("address %s after %s", c.Addr(0), addr)
	}
	if _, got := get(t, addr, "/v1/kv/kept?raw"); got != "yes" {
		t.Errorf("the value is %q", got)
	}

	if _, err := Start(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "old ports") {
		t.Errorf("a second start on the same data: %v", err)
	}
	if _, err := Start(t.Context(), Options{Dir: dir, Servers: 3}); err == nil || !strings.Contains(err.Error(), "of 1 servers") {
		t.Errorf("three servers on the data of one: %v", err)
	}
}

func TestFailedStartRollsBack(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	_, err := Start(t.Context(), Options{Config: `no_such_setting = true`})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("the error does not quote the log: %v", err)
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, opt := range []Options{{Servers: 2}, {Servers: 3, Dev: true}} {
		if _, err := Start(t.Context(), opt); err == nil {
			t.Errorf("%+v started", opt)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("start under an ended context: %v", err)
	}
}

func TestServersDieWithTheirParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has a parent-death signal")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var addr string
	var pid int
	if _, err := fmt.Sscan(line, &addr, &pid); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	put(t, addr, "k", "v")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the server is gone", 5*time.Second, func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, addr+"/v1/status/leader", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client().Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err != nil
	})
}

func TestFind(t *testing.T) {
	found, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("found %s", found)

	dir := t.TempDir()
	fake := func(elem ...string) string {
		path := filepath.Join(append([]string{dir}, elem...)...)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	deep := filepath.Join(dir, "w", "a", "b")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(deep)
	t.Setenv("PATH", filepath.Join(dir, "path"))
	t.Setenv(BinEnv, "")

	if _, err := Find(); !errors.Is(err, ErrNoBinary) || !strings.Contains(err.Error(), "make consul") {
		t.Errorf("nothing to find: %v", err)
	}
	check := func(where, want string) {
		t.Helper()
		if got, err := Find(); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", where, got, err, want)
		}
	}
	check("above", fake("w", "bin", "tools", "consul"))
	check("PATH", fake("path", "consul"))
	t.Setenv(BinEnv, fake("mine"))
	check("environment", os.Getenv(BinEnv))
	t.Setenv(BinEnv, filepath.Join(dir, "none"))
	if _, err := Find(); !errors.Is(err, ErrNoBinary) || !strings.Contains(err.Error(), BinEnv) {
		t.Errorf("wrong environment: %v", err)
	}
}
