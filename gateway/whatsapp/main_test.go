package whatsapp_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/gatemesh/gatemesh/gateway/whatsapp"
)

func TestMain(m *testing.M) {
	_ = os.Setenv(whatsapp.TestVendors, "1") // no other test reads it
	goleak.VerifyTestMain(m)
}
