package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

// tryLater is the exit status by which a program asks to be run again: EX_TEMPFAIL of sysexits.h.
const tryLater = 75

// maxAnswer is the bytes of an answer; a longer one is a failure, for half an answer is none.
const maxAnswer = 1 << 20

// effectRun is the name of a run in the message's ledger of effects.
const effectRun = "exec"

// NewRunner is an [agent.Factory]: the runner exec, an agent whose work a program of this node does. It is started for each message, in the agent's workspace and under its
// sandbox, with the message's text on its standard input, and GATEMESH_MESSAGE_ID, GATEMESH_CONVERSATION_ID, GATEMESH_FROM, GATEMESH_CAPABILITY and GATEMESH_ATTEMPT in its environment.
// What it writes to its standard output (at most 1 MiB) is the answer: JSON if it is an object or an array, else text. Exit status 0 acks, 75 has it run again later, any other one
// makes the message a dead letter with the end of its standard error. It may run for runner.timeout, else for the message's ack timeout.
//
// That it runs is an effect: a message that is handled again after a crash in the middle of a run does not run it twice, but is a dead letter of the class unknown; with
// runner.repeat, for programs that a second run does no harm, it runs again, and so it does for a task of a queue. What the program started and left behind (setsid) is nobody's.
func NewRunner(spec agent.Spec, _ agent.Deps) (bus.Handler, error) {
	argv := spec.Runner.Command
	switch {
	case len(argv) == 0 || argv[0] == "":
		return nil, errors.New("it needs runner.command: the program and its arguments")
	case spec.Workspace == "":
		return nil, errors.New("it needs a directory to work in: set the agent's workspace")
	case strings.Contains(argv[0], "/") && !filepath.IsAbs(argv[0]) && !filepath.IsLocal(argv[0]):
		return nil, errors.New("runner.command names a program outside of the workspace: write its whole path")
	}
	return &runner{tool{spec}}, nil
}

type runner struct{ t tool }

// Handle implements bus.Handler.
func (r *runner) Handle(ctx context.Context, m *bus.Incoming) error {
	spec, e := r.t.spec, m.Envelope()
	workspace, dir, err := r.t.dirs("")
	if err != nil {
		return err
	}
	if was, known := m.Effect(effectRun); known && (was.State.Open() || was.State.Made()) {
		_ = m.Settle(effectRun, envelope.EffectUnknown, "")
		return bus.Never(envelope.ClassUnknown, fmt.Errorf("the program was cut off in the middle, on %s: look at what it did, then redrive the message to have it run again, or purge it; runner.repeat is for programs that may simply run again", was.Gateway))
	}
	program := spec.Runner.Command[0]
	switch {
	case filepath.IsAbs(program):
	case strings.Contains(program, "/"):
		program = filepath.Join(workspace, program)
	default:
		if program, err = exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed on this node, or not in the gateway's PATH", spec.Runner.Command[0])
		}
	}
	settle := func(envelope.EffectState) error { return nil }
	if !spec.Runner.Repeat {
		permit, err := m.Intend(ctx, effectRun, nil)
		if err != nil {
			return err
		}
		settle = func(s envelope.EffectState) error { return permit.Settle(s, "") }
		if err := permit.Check(); err != nil {
			return errors.Join(err, settle(envelope.EffectFailed))
		}
	}
	defer alive(m)()
	out, errs := &clipped{most: maxAnswer}, &clipped{most: 1 << 10}
	err = r.t.execute(ctx, job{
		program: program, args: spec.Runner.Command[1:], workspace: workspace, dir: dir, most: or(spec.Runner.Timeout, m.AckTimeout()),
		confined: r.t.confined("agent:" + spec.ID + ":" + e.ConversationID), in: strings.NewReader(agent.Text(e.Payload)), out: out, errs: errs,
		env: []string{
			"GATEMESH_MESSAGE_ID=" + e.MessageID, "GATEMESH_CONVERSATION_ID=" + e.ConversationID, "GATEMESH_FROM=" + e.SourceAgent + "@" + e.SourceGateway,
			"GATEMESH_CAPABILITY=" + e.Capability, "GATEMESH_ATTEMPT=" + strconv.Itoa(m.Attempt()),
		},
	})
	var refused *notRun
	if errors.As(err, &refused) {
		return errors.Join(err, settle(envelope.EffectFailed))
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause // the effect stays open: it was cut off
	}
	var exit *exec.ExitError
	said := strings.TrimSpace(errs.String())
	if errors.As(err, &exit) && exit.ExitCode() == tryLater {
		return bus.Retry(errors.Join(fmt.Errorf("the program asks to be run again: %s", said), settle(envelope.EffectFailed)))
	}
	if err := settle(envelope.EffectConfirmed); err != nil {
		return err
	}
	switch {
	case err != nil:
		return bus.Never(envelope.ClassUndeliverable, fmt.Errorf("the program failed: %w: %s", err, said))
	case out.left > 0 || len(out.tail) > 0:
		return bus.Never(envelope.ClassUndeliverable, fmt.Errorf("the program's answer has more than %d bytes", maxAnswer))
	}
	answer := bytes.TrimSpace(out.head)
	if len(answer) > 0 && (answer[0] == '{' || answer[0] == '[') && json.Valid(answer) {
		return m.Reply(answer)
	}
	return m.Reply(envelope.TextPayload(strings.ToValidUTF8(string(answer), "\uFFFD")))
}

// alive renews the message's lease until the returned function is called: the program's own time bounds the run.
func alive(m *bus.Incoming) func() {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(m.AckTimeout() / 3)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if m.Working() != nil {
					return
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}
