package openai_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/agent/modeltest"
	"github.com/gatemesh/gatemesh/agent/openai"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestModel(t *testing.T) { modeltest.Run(t, agent.APIOpenAI, openai.New) }
