//go:build proof

package test

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

var (
	flowQuestions = flag.Int("flow.questions", 60, "questions in each configuration")
	flowEach      = flag.Int("flow.each", 10, "questions with each fault of the model")
)

// TestProofFlow is the plan's flow on three processes and on one, with three Consul servers.
func TestProofFlow(t *testing.T) {
	prove(t, "flow", func() any {
		f := runFlow(t, *binary, *flowQuestions, *flowEach, func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "flow: "+format+"\n", args...)
		})
		if f.A2A > 50 || f.Discovery > 100 {
			t.Errorf("a question and answer between agents takes %.0f ms, at most 50 are promised; discovery %.0f of 100 (95 of 100)", f.A2A, f.Discovery)
		}
		if f.Answered+f.Refused != f.Questions {
			t.Errorf("%+v", f)
		}
		return f
	})
}
