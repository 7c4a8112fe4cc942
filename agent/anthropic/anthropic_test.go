package anthropic_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/anthropic"
	"github.com/gatemesh/gatemesh/agent/modeltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestModel(t *testing.T) { modeltest.Run(t, agent.APIAnthropic, anthropic.New) }
