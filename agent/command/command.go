// Package command is the tool exec: programs that a model may have run on the node of its agent.
//
// There is no shell. A command line is taken apart into words by the shell's rules of quoting, and nothing in it is expanded; with an
// operator of a shell it is refused. The program gets the workspace as its directory and home, PATH and the locale of the
// gateway and nothing else of its environment, no input, and a process group of its own, which is killed when its time is over.
//
// With a sandbox it runs under Landlock (https://docs.kernel.org/userspace-api/landlock.html), and so does all that it starts: it reads
// the system's programs and libraries and its workspace, writes its workspace (if it may) and a directory for temporary files that is deleted
// afterwards, and makes no TCP connections unless it may. Where the kernel cannot do that it is not run. Not confined are: UDP, what
// it uses of memory and processor, and that it sees the names of other processes where /proc is open by other means.
// A program that leaves its process group (setsid) outlives the end of its time; it stays confined.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mattn/go-shellwords"

	"github.com/gatemesh/gatemesh/agent"
)

const (
	defaultTimeout = 60 * time.Second
	// grace is how long the output of a program that was killed is waited for.
	grace = 2 * time.Second
	// mainSession is the conversation that sandbox mode non-main leaves out.
	mainSession = ":main"
)

// Tools is an [agent.ToolSource]: exec, for agents that may run something.
func Tools(spec agent.Spec, deps agent.Deps) (agent.Toolset, error) {
	x := spec.Exec
	switch x.Security {
	case "", agent.ExecDeny:
		return nil, nil //nolint:nilnil // no tool is no mistake
	case agent.ExecAllowlist, agent.ExecFull:
	default:
		return nil, fmt.Errorf("exec: security %q is not known", x.Security)
	}
	if spec.Workspace == "" {
		return nil, errors.New("exec needs a directory to work in: set the agent's workspace")
	}
	if x.Sandbox != "" && x.Sandbox != agent.SandboxOff {
		if err := Available(); err != nil && deps.Logger != nil {
			deps.Logger.Warn("exec will run nothing: it is to be confined, and cannot be", "agent", spec.ID, "error", err)
		}
	}
	return tool{spec}, nil
}

type tool struct{ spec agent.Spec }

// Tools implements [agent.Toolset].
func (t tool) Tools() []agent.Tool {
	what := "any program that is installed"
	if t.spec.Exec.Security == agent.ExecAllowlist {
		what = "one of these programs: " + strings.Join(t.spec.Exec.SafeBins, ", ")
	}
	return []agent.Tool{{
		ToolDef: agent.ToolDef{Name: "exec", Description: "Runs " + what + ". There is no shell: no pipes, redirections, variables or wildcards.", Schema: json.RawMessage(`{
			"type": "object", "required": ["command"], "properties": {
				"command": {"type": "string", "description": "The program and its arguments; quotes work as in a shell"},
				"workdir": {"type": "string", "description": "Directory below the workspace to run it in"},
				"timeout": {"type": "number", "description": "Seconds after which it is killed"}}}`)},
		Effect: agent.EffectOutside, Timeout: -1, Run: t.run,
	}}
}

// run is the tool.
func (t tool) run(ctx context.Context, c *agent.Call) (agent.ToolOutput, error) {
	var in struct {
		Command string  `json:"command"`
		Workdir string  `json:"workdir"`
		Timeout float64 `json:"timeout"`
	}
	if err := c.Decode(&in); err != nil {
		return agent.Failed("%v", err), nil
	}
	words, err := split(in.Command)
	if err != nil {
		return agent.Failed("not run: %v", err), nil
	}
	program, err := t.program(words[0])
	if err != nil {
		return agent.Failed("not run: %v", err), nil
	}
	workspace, dir, err := t.dirs(in.Workdir)
	if err != nil {
		return agent.Failed("not run: %v", err), nil
	}
	most := or(t.spec.Exec.Timeout, defaultTimeout)
	if d := time.Duration(in.Timeout * float64(time.Second)); in.Timeout > 0 && d < most {
		most = d
	}
	return t.start(ctx, job{program: program, args: words[1:], workspace: workspace, dir: dir, most: most, confined: t.confined(c.Session)})
}

// job is one run of a program.
type job struct {
	program        string
	args           []string
	workspace, dir string
	most           time.Duration
	confined       bool
	// env is what it is told beside the usual; in, out and errs are its standard files.
	env       []string
	in        io.Reader
	out, errs io.Writer
}

// dirs are the workspace and the directory to work in, which is in it. Links are followed first.
func (t tool) dirs(workdir string) (workspace, dir string, err error) {
	workspace, err = filepath.EvalSymlinks(t.spec.Dir())
	if err == nil {
		workspace, err = filepath.Abs(workspace)
	}
	if err != nil {
		return "", "", errors.New("the agent's workspace is not there on this node")
	}
	dir, err = filepath.EvalSymlinks(filepath.Join(workspace, workdir))
	if err != nil {
		return "", "", fmt.Errorf("there is no directory %s in the workspace", workdir)
	}
	if rel, err := filepath.Rel(workspace, dir); err != nil || !filepath.IsLocal(rel) {
		return "", "", errors.New("workdir is a directory in the workspace")
	}
	return workspace, dir, nil
}

// confined reports whether what a session runs is confined.
func (t tool) confined(session string) bool {
	switch t.spec.Exec.Sandbox {
	case "", agent.SandboxOff:
		return false
	case agent.SandboxNonMain:
		return !strings.HasSuffix(session, mainSession)
	}
	return true // also what is not known
}

// start runs a program for a model: what it says to either output is the answer.
func (t tool) start(ctx context.Context, j job) (agent.ToolOutput, error) {
	out := &clipped{most: agent.MaxToolOutput / 2}
	j.out, j.errs = out, out
	err := t.execute(ctx, j)
	if cause := context.Cause(ctx); cause != nil {
		return agent.ToolOutput{}, cause
	}
	var refused *notRun
	switch {
	case errors.As(err, &refused):
		return agent.Failed("%v", err), nil
	case err != nil:
		return agent.ToolOutput{Text: fmt.Sprintf("%v\n%s", err, out), Failed: true}, nil
	}
	return agent.ToolOutput{Text: out.String()}, nil
}

// notRun: nothing was started.
type notRun struct{ cause error }

func (e *notRun) Error() string { return "not run: " + e.cause.Error() }
func (e *notRun) Unwrap() error { return e.cause }

// execute runs a program to its end. Errors: *notRun, *exec.ExitError, that it was killed.
func (t tool) execute(ctx context.Context, j job) error {
	bounded, cancel := context.WithTimeout(ctx, j.most)
	defer cancel()
	temp, err := os.MkdirTemp("", "gatemesh-exec-")
	if err != nil {
		return &notRun{err}
	}
	defer func() { _ = os.RemoveAll(temp) }()
	cmd := exec.CommandContext(bounded, j.program, j.args...)
	cmd.Dir = j.dir
	cmd.Env = append(environment(j.workspace, temp), j.env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = j.in, j.out, j.errs
	cmd.WaitDelay = grace
	group(cmd)
	var refused *os.File
	if j.confined {
		if refused, err = confine(cmd, j.workspace, t.spec.Exec, temp); err != nil {
			return &notRun{fmt.Errorf("it is to be confined, and cannot be: %w", err)}
		}
		defer func() { _ = refused.Close() }()
	}
	err = cmd.Start()
	closeFiles(cmd.ExtraFiles)
	if err != nil {
		return &notRun{err}
	}
	if refused != nil {
		if why, _ := io.ReadAll(io.LimitReader(refused, 1<<10)); len(why) > 0 {
			_ = cmd.Wait()
			return &notRun{fmt.Errorf("it is to be confined, and cannot be: %s", why)}
		}
	}
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case bounded.Err() != nil:
		return fmt.Errorf("killed after %s", j.most)
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // something that it started holds its output open
	}
	return err
}

// environment is all that a program is told. The gateway's own has tokens.
func environment(home, temp string) []string {
	env := []string{"HOME=" + home, "TMPDIR=" + temp}
	for _, name := range []string{"PATH", "LANG", "LC_ALL", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// split takes a command line apart.
func split(line string) ([]string, error) {
	if strings.ContainsRune(line, 0) {
		return nil, errors.New("a command has no NUL byte")
	}
	p := shellwords.NewParser()
	words, err := p.Parse(line)
	switch {
	case err != nil:
		return nil, fmt.Errorf("command is not readable: %w", err)
	case p.Position >= 0:
		return nil, fmt.Errorf("there is no shell here, so no %q: run one program at a time, and quote what is meant as text", line[p.Position:min(len(line), p.Position+1)])
	case len(words) == 0:
		return nil, errors.New("command is empty")
	}
	return words, nil
}

// program finds a program that the agent may run.
func (t tool) program(name string) (string, error) {
	if t.spec.Exec.Security == agent.ExecAllowlist && !slices.Contains(t.spec.Exec.SafeBins, name) {
		return "", fmt.Errorf("%s is not among the programs of this agent (tools.exec.safeBins): %s", name, strings.Join(t.spec.Exec.SafeBins, ", "))
	}
	path, err := exec.LookPath(name)
	if err == nil && !filepath.IsAbs(path) {
		err = errors.New("its directory is not in PATH")
	}
	if err != nil {
		return "", fmt.Errorf("%s is not installed on this node, or not in the gateway's PATH", name)
	}
	return path, nil
}

func or[T comparable](v, otherwise T) T {
	var none T
	if v == none {
		return otherwise
	}
	return v
}

func closeFiles(list []*os.File) {
	for _, f := range list {
		_ = f.Close()
	}
}

// clipped keeps the beginning and the end of an output, most bytes of each.
type clipped struct {
	most       int
	head, tail []byte
	left       int
}

// Write implements io.Writer.
func (c *clipped) Write(p []byte) (int, error) {
	n := len(p)
	if room := c.most - len(c.head); room > 0 {
		take := min(room, len(p))
		c.head, p = append(c.head, p[:take]...), p[take:]
	}
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - c.most; over > 0 {
		c.left += over
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	return n, nil
}

// String is what was kept.
func (c *clipped) String() string {
	between := ""
	if c.left > 0 {
		between = fmt.Sprintf("\n(%d bytes are left out here)\n", c.left)
	}
	return strings.ToValidUTF8(string(c.head)+between+string(c.tail), "\uFFFD")
}
