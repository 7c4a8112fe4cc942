// Package test holds what no single package can check: the architecture itself, the
// deployment files, and the proofs that drive the built binary. Unit tests sit beside
// their code.
package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/gatemesh/gatemesh"

// rooms are the packages at the top, in the order of imports: a room imports only rooms
// before it.
var rooms = []string{"envelope", "bus", "agent", "gateway", "cmd"}

// topLevel is everything that may lie in the repository's root, with its one job.
var topLevel = map[string]string{
	"envelope": "the wire contract",
	"bus":      "delivery and ownership over a Store",
	"agent":    "turns an envelope into an answer",
	"gateway":  "one node",
	"cmd":      "the binary: the only place that assembles",
	"test":     "what no single package can check; pinned tools",
	"nomad":    "job specs and the runbook",
	".ci":      "what CI runs",

	"ARCHITECTURE.md": "", "README.md": "", "CHANGELOG.md": "", "CONTRIBUTING.md": "", "METRICS.md": "", "LICENSE": "",
	"Makefile": "", "go.mod": "", "go.sum": "",
	".golangci.yml": "", ".editorconfig": "", ".gitattributes": "", ".gitignore": "",
}

// A fence keeps an import inside some packages. .golangci.yml has the same fences as
// depguard rules, so that an editor shows them: change both.
type fence struct {
	imports string   // the import path, and everything below it
	within  []string // packages (and everything below them), or files, that may import it
	reason  string
}

// fences are about non-test files.
var fences = []fence{
	// runners.go fills in the clients' own configuration types, which agent/infra takes: types
	// of ours between them would copy each TLS field.
	{imports: "github.com/hashicorp/consul/api", within: []string{"bus/consul", "agent/infra", "cmd/gatemesh/runners.go"},
		reason: "bus/consul is Consul for everybody else; agent/infra looks at Consul as a patient, not as a store"},
	{imports: "github.com/hashicorp/nomad/api", within: []string{"agent/infra", "cmd/gatemesh/runners.go"},
		reason: "gatemesh does not need Nomad; only the infrastructure check looks at it"},
	{imports: "go.etcd.io/bbolt", within: []string{"bus/local"},
		reason: "the embedded store wraps it; a second user would share its file format"},
	{imports: "github.com/shirou/gopsutil", within: []string{"agent/infra"},
		reason: "only the infrastructure check looks at its node"},
	{imports: "github.com/openai/openai-go", within: []string{"agent/openai"},
		reason: "the child is the vendor for everybody else; its errors hold requests, and with them keys"},
	{imports: "github.com/anthropics/anthropic-sdk-go", within: []string{"agent/anthropic"},
		reason: "the child is the vendor for everybody else; its errors hold requests, and with them keys"},
	{imports: module + "/agent/modeltest", within: []string{"agent/modeltest"},
		reason: "the suite is for tests: in a binary it would bring testing's flags"},
	{imports: module + "/agent/openclaw/openclawtest", within: []string{"agent/openclaw/openclawtest", "test/proof"},
		reason: "it starts OpenClaw for tests"},
	{imports: "github.com/spf13/cobra", within: []string{"cmd"},
		reason: "flags are the binary's; packages take structs"},
	{imports: "github.com/a2aproject/a2a-go", within: []string{"gateway/a2aserver", "agent/a2a"},
		reason: "one child serves A2A and one asks by it; the mesh's own words are others"},
	{imports: "github.com/coder/websocket", within: []string{"gateway", "cmd", "agent/openclaw"},
		reason: "the stream is the API's: its server is gateway, its client is cmd; agent/openclaw is a client of OpenClaw's"},
	{imports: "github.com/slack-go/slack", within: []string{"gateway/slack"},
		reason: "gateway/slack is Slack for everybody else"},
	{imports: "github.com/yuin/goldmark", within: []string{"gateway/slack"},
		reason: "it reads Markdown for a vendor that does not; a second user is a reason to talk about one place for it"},
	{imports: module + "/gateway/slack/slacktest", within: []string{"gateway/slack/slacktest"},
		reason: "the fake of Slack is for tests"},
	{imports: "go.mau.fi", within: []string{"gateway/whatsapp"},
		reason: "gateway/whatsapp is WhatsApp for everybody else"},
	{imports: module + "/gateway/whatsapp/whatsapptest", within: []string{"gateway/whatsapp/whatsapptest"},
		reason: "the fake of WhatsApp is for tests"},
	{imports: "github.com/prometheus/client_golang", within: []string{"gateway", "cmd"},
		reason: "metrics are fed by events, on one code path; packages below emit events"},
	{imports: "net/http", within: []string{"gateway", "cmd", "bus/consul", "agent/infra", "agent/openai", "agent/anthropic", "agent/modeltest", "agent/mcptools", "agent/a2a", "agent/openclaw"},
		reason: "bus, envelope and agent know no HTTP: they must run where there is none (tests with fake time)"},
	{imports: "github.com/bwmarrin/discordgo", within: []string{"gateway/discord"},
		reason: "the vendor's client library, which one child wraps"},
	{imports: module + "/gateway/discord/discordtest", within: []string{"gateway/discord/discordtest"},
		reason: "the fake of Discord is for tests"},
	{imports: module + "/bus/bustest", within: []string{"bus/bustest"},
		reason: "the suite is for tests: in a binary it would bring testing's flags"},
	{imports: "log", within: nil,
		reason: "one log: hclog, handed in; the global logger cannot be silenced or read by a test"},
	{imports: "unsafe", within: nil,
		reason: "nothing here is worth it"},
}

// adopted are children that their parent may import, with the reason.
var adopted = map[string]string{
	"gateway/dashboard": "embedded files and a handler for them: it implements no contract of gateway's and imports nothing of ours, so there is nothing to choose in cmd",
}

// values are children that hold no outside thing but values of their room's contract: every room to the right may
// import them, with the reason.
var values = map[string]string{
	"envelope/trust": "keys, signatures and the trust set: bus signs and verifies, gateway keeps the key, cmd is the operator; there is nothing to choose",
}

// suites are the packages of shared tests.
var suites = []string{"bus/bustest", "gateway/channeltest", "agent/modeltest", "agent/openclaw/openclawtest", "test/proof"}

// envelopeImports is what envelope may import beyond the standard library: it is the wire
// contract, which others must be able to copy.
var envelopeImports = []string{"github.com/google/uuid"}

// nonsenseNames are packages that say nothing about what is in them, so everything ends
// up in them.
var nonsenseNames = []string{"util", "utils", "common", "helper", "helpers", "manager", "misc", "base", "shared", "types", "lib"}

// maxLines is where a file is worth a look: is it still one job?
const maxLines = 700

// A goFile is what the rules need to know of a file of ours.
type goFile struct {
	name    string // path in the repository
	imports []string
	doc     bool     // it holds the package comment
	sleeps  []string // positions of time.Sleep outside synctest
}

func (f goFile) test() bool { return strings.HasSuffix(f.name, "_test.go") }

// A goPackage is a folder with Go files.
type goPackage struct {
	dir   string // path in the repository: bus/consul
	name  string
	files []goFile
}

// A repoFile is any file that is, or would be, in the repository.
type repoFile struct {
	name string
	text []byte
}

// within reports whether dir is base or below it.
func within(dir, base string) bool { return dir == base || strings.HasPrefix(dir, base+"/") }

func withinAny(dir string, bases []string) bool {
	return slices.ContainsFunc(bases, func(b string) bool { return within(dir, b) })
}

func room(dir string) string { r, _, _ := strings.Cut(dir, "/"); return r }

// checkPackages returns what is wrong, each with where and why.
func checkPackages(pkgs []goPackage) []string {
	var wrong []string
	add := func(where, format string, args ...any) {
		wrong = append(wrong, where+": "+fmt.Sprintf(format, args...))
	}
	for _, p := range pkgs {
		if slices.Contains(nonsenseNames, p.name) || slices.Contains(nonsenseNames, path.Base(p.dir)) {
			add(p.dir, "a package called %s: name it for its one job, or everything ends up in it", p.name)
		}
		if !slices.ContainsFunc(p.files, func(f goFile) bool { return f.doc }) {
			add(p.dir, "no package comment: say what it is for and what it does not promise (doc.go)")
		}
		for _, f := range p.files {
			for _, at := range f.sleeps {
				if f.test() || within(p.dir, "bus/bustest") || within(p.dir, "agent/modeltest") {
					add(at, "time.Sleep in a test: it is too short on a slow machine and too long on a fast one; use testing/synctest, a channel, or poll with a deadline")
				}
			}
			if f.test() {
				continue
			}
			for _, imp := range f.imports {
				for _, why := range checkImport(p.dir, f.name, imp) {
					add(f.name, "imports %s: %s", imp, why)
				}
			}
		}
	}
	return wrong
}

// checkImport is the rules for one import of a non-test file.
func checkImport(dir, file, imp string) []string {
	var why []string
	for _, f := range fences {
		if f.imports == "log" && imp != "log" {
			continue // log/slog is another thing
		}
		if within(imp, f.imports) && !withinAny(file, f.within) {
			why = append(why, f.reason)
		}
	}
	if within(imp, "testing") && !withinAny(dir, suites) && !strings.HasSuffix(file, "fortest.go") {
		why = append(why, "testing registers flags and belongs to tests: bus/bustest, gateway/channeltest, agent/modeltest, agent/openclaw/openclawtest, test/proof, or a file named *fortest.go")
	}
	switch to, ours := strings.CutPrefix(imp, module+"/"); {
	case ours:
		if bad := checkDirection(dir, to); bad != "" {
			why = append(why, bad)
		}
	case room(dir) == "envelope" && strings.Contains(room(imp), ".") && !slices.Contains(envelopeImports, imp):
		why = append(why, "envelope is pure values: the standard library and "+strings.Join(envelopeImports, ", "))
	}
	return why
}

// checkDirection says why a package at from may not import the one at to.
func checkDirection(from, to string) string {
	a, b := slices.Index(rooms, room(from)), slices.Index(rooms, room(to))
	switch {
	case b < 0:
		return "nobody imports " + room(to)
	case a < 0:
		return room(from) + " is no room that imports others"
	case a < b:
		return fmt.Sprintf("the direction is %s: %s stands left of %s and must not know it", strings.Join(rooms, " <- "), room(from), room(to))
	case a > b:
		if room(from) != "cmd" && to != room(to) && !hasKey(values, to) {
			return fmt.Sprintf("%s wraps one outside thing; only cmd chooses it, others see the contract in %s", to, room(to))
		}
		return ""
	case room(from) == "cmd" || within(from, to):
		return "" // a child imports its parent
	case hasKey(adopted, to) && path.Dir(to) == from:
		return ""
	case within(to, from):
		return "a parent owns the contract and must not know the children that implement it"
	default:
		return "siblings wrap different outside things and must not know each other"
	}
}

// machinePaths are directories of one machine. In pieces, or this file would be one of
// those that it finds.
var machinePaths = regexp.MustCompile(`(^|[^A-Za-z0-9_.$}-])/(work|` + `farm|root|tmp/bash_` + `jobs)/`)

// checkFiles returns what is wrong with files of any kind, and what is only worth a look.
func checkFiles(files []repoFile) (wrong, look []string) {
	for _, f := range files {
		if top, _, _ := strings.Cut(f.name, "/"); !hasKey(topLevel, top) {
			wrong = append(wrong, f.name+": the root's entries are fixed (topLevel in test/architecture_test.go): "+top+" needs a room, or a good reason there")
		}
		if strings.HasSuffix(f.name, "go.sum") || bytes.IndexByte(f.text, 0) >= 0 {
			continue
		}
		for i, line := range strings.Split(string(f.text), "\n") {
			if m := machinePaths.FindString(line); m != "" {
				wrong = append(wrong, fmt.Sprintf("%s:%d: a path of one machine: %s", f.name, i+1, strings.TrimSpace(line)))
			}
		}
		if n := bytes.Count(f.text, []byte("\n")); strings.HasSuffix(f.name, ".go") && n > maxLines {
			look = append(look, fmt.Sprintf("%s has %d lines: is it still one job?", f.name, n))
		}
	}
	return wrong, look
}

func hasKey(m map[string]string, k string) bool { _, ok := m[k]; return ok }

func TestArchitecture(t *testing.T) {
	pkgs := loadPackages(t)
	for _, w := range checkPackages(pkgs) {
		t.Error(w)
	}
	seen := map[string]bool{}
	for _, p := range pkgs {
		seen[room(p.dir)] = true
	}
	for _, r := range rooms {
		if !seen[r] {
			t.Errorf("no package below %s: did the listing work?", r)
		}
	}
}

func TestFiles(t *testing.T) {
	files := loadFiles(t)
	if len(files) < 20 {
		t.Fatalf("only %d files: did the listing work?", len(files))
	}
	wrong, look := checkFiles(files)
	for _, w := range wrong {
		t.Error(w)
	}
	for _, l := range look {
		t.Log(l)
	}
}

// loadPackages asks go list which packages there are, and reads their files: all of them,
// whatever system they are for.
func loadPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=Dir,Name,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l struct {
			Dir, Name                                                    string
			GoFiles, CgoFiles, IgnoredGoFiles, TestGoFiles, XTestGoFiles []string
		}
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		dir, err := filepath.Rel(root(t), l.Dir)
		if err != nil {
			t.Fatal(err)
		}
		p := goPackage{dir: filepath.ToSlash(dir), name: l.Name}
		if room(p.dir) == "bin" {
			continue // ignored by git: somebody's scratch
		}
		for _, name := range slices.Concat(l.GoFiles, l.CgoFiles, l.IgnoredGoFiles, l.TestGoFiles, l.XTestGoFiles) {
			src, err := os.ReadFile(filepath.Join(l.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			f, err := readGo(path.Join(p.dir, name), src)
			if err != nil {
				t.Fatal(err)
			}
			p.files = append(p.files, f)
		}
		pkgs = append(pkgs, p)
	}
}

// readGo reads what the rules need from a file.
func readGo(name string, src []byte) (goFile, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return goFile{}, err
	}
	f := goFile{name: name, doc: tree.Doc != nil && strings.TrimSpace(tree.Doc.Text()) != ""}
	for _, imp := range tree.Imports {
		p, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			return goFile{}, err
		}
		f.imports = append(f.imports, p)
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		switch selector(call.Fun) {
		case "time.Sleep":
			f.sleeps = append(f.sleeps, fset.Position(call.Pos()).String())
		case "synctest.Test":
			return false // fake time: there, Sleep is how time passes
		}
		return true
	})
	return f, nil
}

func selector(e ast.Expr) string {
	if s, ok := e.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}

// loadFiles reads what git has or would take; without git, everything.
func loadFiles(t *testing.T) []repoFile {
	t.Helper()
	var names []string
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root(t)
	if out, err := cmd.Output(); err == nil {
		names = strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	} else {
		t.Logf("no git here (%v): looking at every file but those in bin/", err)
		err := filepath.WalkDir(root(t), func(p string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(root(t), p)
			switch {
			case err != nil:
				return err
			case d.IsDir() && (rel == "bin" || rel == ".git"):
				return fs.SkipDir
			case d.Type().IsRegular():
				names = append(names, filepath.ToSlash(rel))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var files []repoFile
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(root(t), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, not yet committed
		} else if err != nil {
			t.Fatal(err)
		}
		files = append(files, repoFile{name, text})
	}
	return files
}

// root is the repository's root: tests run in their package's folder.
func root(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
