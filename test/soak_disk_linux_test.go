package test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// disk is a file system of its own, whose size can be taken from under it.
type disk struct{ dir string }

// wholeDisk is the size of one that is not full; memory is used only for what is written.
const wholeDisk = "2g"

// newDisks makes n of them, or none where this process may not mount.
func newDisks(t *testing.T, n int) []*disk {
	t.Helper()
	var disks []*disk
	for i := range n {
		dir := filepath.Join(t.TempDir(), fmt.Sprintf("disk-%d", i+1))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("gatemesh-soak", dir, "tmpfs", 0, "size="+wholeDisk); err != nil {
			t.Logf("NO DISK IS FILLED HERE: mounting a small file system needs root on Linux (%v)", err)
			return nil
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		disks = append(disks, &disk{dir})
	}
	return disks
}

// fill leaves no byte: the file system becomes as small as what is on it.
func (d *disk) fill() error {
	var err error
	for range 100 { // it may grow between the two calls
		var st syscall.Statfs_t
		if err := syscall.Statfs(d.dir, &st); err != nil {
			return fmt.Errorf("look at %s: %w", d.dir, err)
		}
		used := (int64(st.Blocks) - int64(st.Bfree)) * st.Bsize
		if err = syscall.Mount("gatemesh-soak", d.dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", used)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("fill %s: %w", d.dir, err)
}

// free gives the space back.
func (d *disk) free() error {
	if err := syscall.Mount("gatemesh-soak", d.dir, "tmpfs", syscall.MS_REMOUNT, "size="+wholeDisk); err != nil {
		return fmt.Errorf("free %s: %w", d.dir, err)
	}
	return nil
}
