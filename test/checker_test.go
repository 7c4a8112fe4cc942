package test

import (
	"slices"
	"strings"
	"testing"
)

// The rules must catch what they are for: each case breaks one.

func TestCheckImport(t *testing.T) {
	for _, c := range []struct {
		file, imp string
		want      string // part of the reason; "" is allowed
	}{
		{"bus/bus.go", module + "/envelope", ""},
		{"agent/agent.go", module + "/bus", ""},
		{"gateway/api.go", module + "/agent", ""},
		{"cmd/gatemesh/store.go", module + "/bus/consul", ""},
		{"bus/consul/store.go", module + "/bus", ""},
		{"bus/consul/cluster/cluster.go", module + "/bus/consul", ""},
		{"agent/infra/infra.go", module + "/agent", ""},
		{"agent/infra/infra.go", module + "/bus", ""},

		{"bus/bus.go", module + "/envelope/trust", ""},
		{"bus/consul/store.go", module + "/envelope/trust", ""},
		{"gateway/gateway.go", module + "/envelope/trust", ""},
		{"envelope/trust/set.go", module + "/envelope", ""},

		{"envelope/codec.go", module + "/envelope/trust", "must not know the children"},
		{"envelope/trust/set.go", module + "/bus", "stands left of"},
		{"envelope/codec.go", module + "/bus", "stands left of"},
		{"bus/bus.go", module + "/agent", "stands left of"},
		{"agent/agent.go", module + "/gateway", "stands left of"},
		{"gateway/api.go", module + "/cmd/gatemesh", "stands left of"},
		{"gateway/api.go", module + "/gateway/dashboard", ""},
		{"agent/agent.go", module + "/gateway/dashboard", "stands left of"},
		{"bus/bus.go", module + "/bus/consul", "a parent owns"},
		{"bus/consul/store.go", module + "/bus/local", "siblings"},
		{"gateway/api.go", module + "/bus/consul", "only cmd chooses"},
		{"agent/agent.go", module + "/bus/local", "only cmd chooses"},
		{"bus/bus.go", module + "/test", "nobody imports test"},
		{"bus/bus.go", module + "/internal/x", "nobody imports internal"},
		{"internal/x/x.go", module + "/bus", "is no room"},
		{"cmd/gatemesh/demo.go", module + "/bus/bustest", "the suite is for tests"},

		{"bus/consul/store.go", "github.com/hashicorp/consul/api", ""},
		{"bus/consul/cluster/find.go", "github.com/hashicorp/consul/api/watch", ""},
		{"agent/infra/consul.go", "github.com/hashicorp/consul/api", ""},
		{"cmd/gatemesh/runners.go", "github.com/hashicorp/consul/api", ""},
		{"bus/bus.go", "github.com/hashicorp/consul/api", "for everybody else"},
		{"cmd/gatemesh/store.go", "github.com/hashicorp/consul/api", "for everybody else"},
		{"gateway/api.go", "github.com/hashicorp/nomad/api", "does not need Nomad"},
		{"agent/agent.go", "github.com/hashicorp/nomad/api", "does not need Nomad"},
		{"bus/local/store.go", "go.etcd.io/bbolt/errors", ""},
		{"bus/store.go", "go.etcd.io/bbolt", "embedded store wraps it"},
		{"cmd/gatemesh/root.go", "github.com/spf13/cobra", ""},
		{"gateway/gateway.go", "github.com/spf13/cobra", "packages take structs"},
		{"gateway/stream.go", "github.com/coder/websocket", ""},
		{"bus/bus.go", "github.com/coder/websocket", "the stream is the API's"},
		{"agent/agent.go", "github.com/shirou/gopsutil/v4/mem", "looks at its node"},
		{"bus/bus.go", "github.com/prometheus/client_golang/prometheus", "one code path"},
		{"bus/bus.go", "net/http", "know no HTTP"},
		{"envelope/sign.go", "net/http/httptest", "know no HTTP"},
		{"bus/consul/errors.go", "net/http", ""},
		{"bus/bus.go", "log", "one log"},
		{"bus/local/store.go", "log/slog", ""},
		{"envelope/codec.go", "unsafe", "worth it"},

		{"envelope/codec.go", "encoding/json", ""},
		{"envelope/codec.go", "github.com/google/uuid", ""},
		{"envelope/codec.go", "github.com/hashicorp/go-hclog", "pure values"},

		{"bus/bustest/store.go", "testing", ""},
		{"bus/consul/cluster/fortest.go", "testing", ""},
		{"bus/consul/cluster/cluster.go", "testing", "registers flags"},
		{"bus/bus.go", "testing/synctest", "registers flags"},
	} {
		dir := c.file[:strings.LastIndex(c.file, "/")]
		got := strings.Join(checkImport(dir, c.file, c.imp), "; ")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s imports %s: %q, want %q", c.file, c.imp, got, c.want)
		}
	}
}

// TestEveryFenceBites: no fence is so wide that nothing can break it.
func TestEveryFenceBites(t *testing.T) {
	for _, f := range fences {
		if f.reason == "" {
			t.Errorf("%s: no reason", f.imports)
		}
		if len(checkImport("bus", "bus/bus.go", f.imports)) == 0 {
			t.Errorf("bus may import %s", f.imports)
		}
	}
}

func TestCheckPackages(t *testing.T) {
	read := func(name, src string) goFile {
		t.Helper()
		f, err := readGo(name, []byte(src))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	pkg := func(dir, file, src string) goPackage {
		return goPackage{dir: dir, name: dir[strings.LastIndex(dir, "/")+1:], files: []goFile{read(dir+"/"+file, src)}}
	}
	const doc = "// Package x is.\npackage x\n"
	for name, c := range map[string]struct {
		pkg  goPackage
		want string
	}{
		"fine":             {pkg("bus", "a.go", doc+`import "context"`), ""},
		"import":           {pkg("bus", "a.go", doc+`import _ "`+module+`/gateway"`), "bus/a.go: imports " + module + "/gateway: the direction"},
		"renamed import":   {pkg("bus", "a.go", doc+`import h "net/http"`), "bus/a.go: imports net/http"},
		"test file":        {pkg("bus", "a_test.go", doc+`import "net/http"`), ""},
		"no doc":           {pkg("bus", "a.go", "package x"), "bus: no package comment"},
		"empty doc":        {pkg("bus", "a.go", "//\npackage x"), "bus: no package comment"},
		"detached doc":     {pkg("bus", "a.go", "// Package x is.\n\npackage x"), "bus: no package comment"},
		"name":             {pkg("bus/util", "a.go", doc), "bus/util: a package called util"},
		"sleep":            {pkg("bus", "a_test.go", doc+"import \"time\"\nfunc f() { time.Sleep(1) }"), "bus/a_test.go:4:12: time.Sleep in a test"},
		"sleep in suite":   {pkg("bus/bustest", "a.go", doc+"import \"time\"\nfunc f() { time.Sleep(1) }"), "time.Sleep in a test"},
		"sleep in program": {pkg("bus", "a.go", doc+"import \"time\"\nfunc f() { time.Sleep(1) }"), ""},
		"fake sleep":       {pkg("bus", "a_test.go", doc+"import \"time\"\nfunc f() { synctest.Test(t, func() { time.Sleep(1) }) }"), ""},
	} {
		got := checkPackages([]goPackage{c.pkg})
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestCheckFiles(t *testing.T) {
	long := strings.Repeat("\n", maxLines+1)
	for name, c := range map[string]struct {
		file       repoFile
		wrong, see string
	}{
		"fine":         {repoFile{"bus/bus.go", []byte("package bus\n")}, "", ""},
		"room":         {repoFile{"internal/x.go", nil}, "internal needs a room", ""},
		"file":         {repoFile{"notes.txt", nil}, "notes.txt needs a room", ""},
		"home":         {repoFile{"a", nil}, "a needs a room", ""},
		"machine":      {repoFile{"Makefile", []byte("x\ncd /" + "work/main\n")}, "Makefile:2: a path of one machine", ""},
		"machine home": {repoFile{"nomad/x.hcl", []byte(`path = "/` + `root/bin"`)}, "a path of one machine", ""},
		"jobs":         {repoFile{"nomad/x.hcl", []byte("/tmp/" + "bash_jobs/1")}, "a path of one machine", ""},
		"a word":       {repoFile{"Makefile", []byte("https://example.org/" + "work/x docs/" + "root/y ${HOME}/" + "work/z")}, "", ""},
		"sums":         {repoFile{"go.sum", []byte("/" + "root/x")}, "", ""},
		"long":         {repoFile{"bus/bus.go", []byte(long)}, "", "has 701 lines"},
		"long prose":   {repoFile{"README.md", []byte(long)}, "", ""},
	} {
		wrong, see := checkFiles([]repoFile{c.file})
		for _, x := range []struct {
			got  []string
			want string
		}{{wrong, c.wrong}, {see, c.see}} {
			if x.want == "" && len(x.got) > 0 || x.want != "" && !slices.ContainsFunc(x.got, func(s string) bool { return strings.Contains(s, x.want) }) {
				t.Errorf("%s: %q, want %q", name, x.got, x.want)
			}
		}
	}
}
