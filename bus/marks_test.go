package bus

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "lanes.json")
	k, err := openMarks(path)
	if err != nil {
		t.Fatal(err)
	}
	k.raise(sentMarks, "bob", 7)
	k.raise(sentMarks, "bob", 3)
	k.raise(takenMarks, "jerry/bob", 5)
	if err := k.save(); err != nil {
		t.Fatal(err)
	}
	if k, err = openMarks(path); err != nil || k.get(sentMarks, "bob") != 7 || k.get(takenMarks, "jerry/bob") != 5 || k.get(takenMarks, "bob") != 0 {
		t.Errorf("came back as %+v, %v", k.m, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openMarks(path); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a spoilt file: %v", err)
	}
	if k, err = openMarks(""); err != nil || k.save() != nil {
		t.Error("without a path there is nothing to keep")
	}
	k.raise(sentMarks, "bob", 7)
	if k.get(sentMarks, "bob") != 0 {
		t.Error("something was kept without a path")
	}
}
