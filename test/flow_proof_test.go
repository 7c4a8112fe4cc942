//go:build linux && proof

package test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/gatemesh/gatemesh/test/proof"
)

var (
	flowQuestions = flag.Int("flow.questions", 60, "questions in each configuration")
	flowEach      = flag.Int("flow.each", 10, "questions with each fault of the model")
	flowClaw      = flag.Int("flow.openclaw", 20, "questions between real OpenClaw agents over the mesh, and within one OpenClaw")
	flowKills     = flag.Int("flow.kills", 3, "how often an OpenClaw is killed in the middle of a turn")
)

// flowProof is the flow with the embedded runners, and with real OpenClaw agents.
type flowProof struct {
	flowFigures
	OpenClawA2A float64     `json:"openclaw_a2a_p95_ms"`
	OpenClaw    clawFigures `json:"openclaw"`
}

// TestProofFlow is the plan's flow on three processes and on one, with three Consul servers; then real OpenClaw agents behind two gateways of three.
func TestProofFlow(t *testing.T) {
	proof.Run(t, "flow", func() any {
		f := runFlow(t, *binary, *flowQuestions, *flowEach, func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "flow: "+format+"\n", args...)
		})
		if f.A2A > 50 || f.Discovery > 100 {
			t.Errorf("a question and answer between agents takes %.0f ms, at most 50 are promised; discovery %.0f of 100 (95 of 100)", f.A2A, f.Discovery)
		}
		if f.Answered+f.Refused != f.Questions {
			t.Errorf("%+v", f)
		}
		p := flowProof{flowFigures: f}
		p.OpenClaw = runOpenClaw(t, *binary, *flowClaw, *flowKills, func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "flow: "+format+"\n", args...)
		})
		c := p.OpenClaw
		p.OpenClawA2A = c.MeshP95
		// The medians are compared. The slowest of a few dozen is when OpenClaw looks after its databases, and falls on either way.
		if c.Answered != *flowClaw || c.MeshP50 > c.LocalP50 {
			t.Errorf("between real OpenClaw agents: %d of %d answered; over the mesh %.0f ms (95 of 100: %.0f), by sessions_send within one OpenClaw %.0f (%.0f)", c.Answered, *flowClaw, c.MeshP50, c.MeshP95, c.LocalP50, c.LocalP95)
		}
		return p
	})
}
